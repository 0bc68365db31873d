//! A TFTP client for what the packaged ones cannot do: any option, any port, lost packets on purpose, and
//! hundreds of downloads at once from one thread. It stands where a client is not the thing under test.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Until a client asks again: what a loader's own clock does.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES_MAX: u32 = 10;

/// What to fetch, and how.
#[derive(Debug, Clone)]
pub struct Wish {
    pub server: SocketAddrV4,
    pub path: String,
    pub options: Vec<(&'static str, String)>,
    /// Of a thousand packets in each direction, how many are lost.
    pub lost_per_mille: u32,
    pub seed: u64,
    /// Compared block by block instead of kept, so that large loads fit in memory.
    pub expected: Option<Bytes>,
}

impl Wish {
    pub fn new(server: SocketAddrV4, path: &str) -> Self {
        Self {
            server,
            path: path.to_owned(),
            options: Vec::new(),
            lost_per_mille: 0,
            seed: 1,
            expected: None,
        }
    }

    #[must_use]
    pub fn option(mut self, name: &'static str, value: impl ToString) -> Self {
        self.options.push((name, value.to_string()));
        self
    }

    /// The request as bytes.
    pub fn request(&self) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        let mut word = |word: &str| {
            bytes.extend_from_slice(word.as_bytes());
            bytes.push(0);
        };
        word(&self.path);
        word("octet");
        for (name, value) in &self.options {
            word(name);
            word(value);
        }
        bytes
    }
}

/// How a download went.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Empty where the file was compared.
    pub bytes: Vec<u8>,
    pub length: usize,
    /// What the server acknowledged, as it wrote it.
    pub options: Vec<(String, String)>,
    /// The address that answered.
    pub from: Option<SocketAddr>,
    /// Blocks that had arrived before.
    pub repeated: u64,
}

/// One download, to its end.
pub fn fetch(wish: &Wish) -> Result<Fetched, String> {
    fetch_all(std::slice::from_ref(wish)).remove(0)
}

/// All downloads at once, each from a port of its own, in the caller's network namespace.
pub fn fetch_all(wishes: &[Wish]) -> Vec<Result<Fetched, String>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
    let mut downloads: Vec<Download> = wishes.iter().map(Download::start).collect();
    for (place, download) in downloads.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
        epoll
            .add(download.socket.as_fd(), event)
            .expect("a socket can be waited for");
    }
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = vec![0; 66_000];
    let mut swept = Instant::now();
    while downloads.iter().any(|download| download.ended.is_none()) {
        let timeout = EpollTimeout::try_from(50).expect("a short wait");
        let ready = epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..ready] {
            let place = usize::try_from(event.data()).expect("a place in the list");
            downloads[place].drain(&mut buffer);
        }
        if swept.elapsed() >= Duration::from_millis(50) {
            swept = Instant::now();
            downloads.iter_mut().for_each(Download::tick);
        }
    }
    downloads.into_iter().map(Download::finish).collect()
}

struct Download {
    wish: Wish,
    socket: UdpSocket,
    server: Option<SocketAddr>,
    block_size: usize,
    window: u64,
    /// Blocks that arrived in order, and how many of them since the last acknowledgement.
    arrived: u64,
    unanswered: u64,
    /// The gap was reported and not filled since.
    gap_told: bool,
    last_sent: Vec<u8>,
    heard_at: Instant,
    tries: u32,
    chance: u64,
    fetched: Fetched,
    ended: Option<Result<(), String>>,
}

impl Download {
    fn start(wish: &Wish) -> Self {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        socket
            .set_nonblocking(true)
            .expect("a socket that does not wait");
        let mut download = Self {
            wish: wish.clone(),
            socket,
            server: None,
            block_size: 512,
            window: 1,
            arrived: 0,
            unanswered: 0,
            gap_told: false,
            last_sent: wish.request(),
            heard_at: Instant::now(),
            tries: 0,
            chance: wish.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            fetched: Fetched::default(),
            ended: None,
        };
        download.repeat();
        download
    }

    fn drain(&mut self, buffer: &mut [u8]) {
        while self.ended.is_none() {
            match self.socket.recv_from(buffer) {
                Ok((length, from)) => self.hear(from, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A server that is not there says so by ICMP.
                Err(error) => self.ended = Some(Err(error.to_string())),
            }
        }
    }

    fn hear(&mut self, from: SocketAddr, bytes: &[u8]) {
        if self.is_lost() || *self.server.get_or_insert(from) != from || bytes.len() < 4 {
            return;
        }
        self.heard_at = Instant::now();
        self.tries = 0;
        let number = u16::from_be_bytes([bytes[2], bytes[3]]);
        match bytes[1] {
            3 => self.data(number, &bytes[4..]),
            5 => {
                let words = String::from_utf8_lossy(&bytes[4..])
                    .trim_end_matches('\0')
                    .to_owned();
                self.ended = Some(Err(format!("ERROR {number}: {words}")));
            }
            6 if self.arrived == 0 => self.options(&bytes[2..]),
            _ => {}
        }
    }

    fn options(&mut self, bytes: &[u8]) {
        let words: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        self.fetched.options = words
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect();
        for (name, value) in &self.fetched.options {
            match name.as_str() {
                "blksize" => self.block_size = value.parse().expect("a block size"),
                "windowsize" => self.window = value.parse().expect("a window"),
                _ => {}
            }
        }
        self.acknowledge();
    }

    fn data(&mut self, number: u16, octets: &[u8]) {
        let ahead = number.wrapping_sub((self.arrived & 0xffff) as u16);
        if ahead != 1 {
            let behind = ahead == 0 || ahead > 0x8000;
            self.fetched.repeated += u64::from(behind);
            // A gap is reported once; an old block only where it was the end of a window.
            if ahead == 0 || (!behind && !self.gap_told) {
                self.gap_told |= !behind;
                self.acknowledge();
            }
            return;
        }
        self.arrived += 1;
        self.unanswered += 1;
        self.gap_told = false;
        match &self.wish.expected {
            None => self.fetched.bytes.extend_from_slice(octets),
            Some(expected) => {
                let place = self.fetched.length..self.fetched.length + octets.len();
                if expected.get(place) != Some(octets) {
                    self.ended = Some(Err(format!("block {} is not the file's", self.arrived)));
                    return;
                }
            }
        }
        self.fetched.length += octets.len();
        let last = octets.len() < self.block_size;
        if last || self.unanswered >= self.window {
            self.acknowledge();
        }
        if last {
            self.ended = Some(Ok(()));
        }
    }

    fn acknowledge(&mut self) {
        self.unanswered = 0;
        let [high, low] = ((self.arrived & 0xffff) as u16).to_be_bytes();
        self.last_sent = vec![0, 4, high, low];
        self.repeat();
    }

    fn repeat(&mut self) {
        if self.is_lost() {
            return;
        }
        let to = self.server.unwrap_or(self.wish.server.into());
        // What is not sent is lost, and loss is what the clock is for.
        let _ = self.socket.send_to(&self.last_sent, to);
    }

    fn tick(&mut self) {
        if self.ended.is_some() || self.heard_at.elapsed() < PATIENCE {
            return;
        }
        self.heard_at = Instant::now();
        self.tries += 1;
        if self.tries > TRIES_MAX {
            self.ended = Some(Err(format!("silence after {} blocks", self.arrived)));
        } else if self.arrived > 0 {
            self.acknowledge();
        } else {
            self.repeat();
        }
    }

    /// A small generator (xorshift): the same seed loses the same packets.
    fn is_lost(&mut self) -> bool {
        if self.wish.lost_per_mille == 0 {
            return false;
        }
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % 1000 < u64::from(self.wish.lost_per_mille)
    }

    fn finish(mut self) -> Result<Fetched, String> {
        self.fetched.from = self.server;
        match self.ended {
            Some(Err(reason)) => Err(format!("{}: {reason}", self.wish.path)),
            Some(Ok(())) | None => Ok(self.fetched),
        }
    }
}
