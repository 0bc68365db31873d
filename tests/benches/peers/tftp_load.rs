//! Many TFTP readers on one thread: RFC 1350 with the block size, transfer size and window options.
//!
//! Touches: a UDP socket per reader in the load's namespace, the monotonic clock.
//!
//! ```text
//!   RRQ ──▶ OACK ──▶ ACK 0 ──▶ DATA … DATA ──▶ ACK after each window, or of the last good block at a gap
//! ```
//!
//! A reader behaves as boot firmware does: it waits one second before it says its last word again and
//! gives up after five times. Where a case has loss, the load drops packets itself, in both directions
//! and from fixed seeds, because not every kernel has a lossy queue.

use std::io::IoSliceMut;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt};

use crate::lab::{CLIENT, SERVER};

const BLOCK: usize = 1468;
const BATCH: usize = 64;
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u8 = 5;
/// A second word about the same gap, when the repair itself was lost.
const REPAIR: Duration = Duration::from_millis(10);

/// One case: who reads what, and how.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) clients: usize,
    pub(crate) file: String,
    pub(crate) window: u16,
    /// Of 1,000 packets in each direction, this many are lost.
    pub(crate) lost_per_mille: u32,
    pub(crate) limit: Duration,
}

/// What the readers got before all were done or the limit was reached.
pub(crate) struct Report {
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) failed: usize,
}

struct Reader {
    socket: UdpSocket,
    peer: Option<SocketAddr>,
    next: u64,
    /// What the server granted: one block, unless its OACK said more.
    window: u16,
    in_window: u16,
    repaired: Option<(u64, Instant)>,
    due: Instant,
    tries: u8,
    bytes: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Reading,
    Done,
    Failed,
}

/// Reads the case's file with all its clients at once; `run` chooses the packets that are lost.
pub(crate) fn read(case: &Case, run: u64) -> Result<Report> {
    let start = Instant::now();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut dice = Dice {
        state: 0x2545_F491_4F6C_DD1D ^ run.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        per_mille: case.lost_per_mille,
    };
    let mut readers = Vec::new();
    for index in 0..case.clients {
        let socket = UdpSocket::bind(SocketAddrV4::new(CLIENT, 0)).context("binding a reader")?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(1 << 20))
            .context("raising a receive buffer")?;
        epoll.add(
            socket.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, index as u64),
        )?;
        let mut reader = Reader {
            socket,
            peer: None,
            next: 0,
            window: 1,
            in_window: 0,
            repaired: None,
            due: start,
            tries: 0,
            bytes: 0,
            state: State::Reading,
        };
        reader.speak(case, &mut dice);
        readers.push(reader);
    }
    let mut buffers = vec![[0; BLOCK + 4]; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let mut events = [EpollEvent::empty(); 256];
    let mut sweep = start;
    while start.elapsed() < case.limit
        && readers.iter().any(|reader| reader.state == State::Reading)
    {
        let count = epoll.wait(&mut events, EpollTimeout::from(20_u8))?;
        for event in &events[..count] {
            readers[event.data() as usize].receive(case, &mut dice, &mut headers, &mut buffers)?;
        }
        let now = Instant::now();
        if now.duration_since(sweep) > Duration::from_millis(20) {
            sweep = now;
            for reader in &mut readers {
                reader.remind(case, &mut dice, now);
            }
        }
    }
    Ok(Report {
        bytes: readers.iter().map(|reader| reader.bytes).sum(),
        elapsed: start.elapsed(),
        failed: readers
            .iter()
            .filter(|reader| reader.state == State::Failed)
            .count(),
    })
}

impl Reader {
    fn receive(
        &mut self,
        case: &Case,
        dice: &mut Dice,
        headers: &mut MultiHeaders<SockaddrIn>,
        buffers: &mut [[u8; BLOCK + 4]],
    ) -> Result<()> {
        // The server answers from a port of its own (RFC 1350 section 4): the first answer says which.
        if self.peer.is_none() {
            let Ok((length, peer)) = self.socket.recv_from(&mut buffers[0]) else {
                return Ok(());
            };
            self.socket
                .connect(peer)
                .context("connecting to the server's transfer port")?;
            self.peer = Some(peer);
            if !dice.loses() {
                self.take(&buffers[0][..length], case, dice);
            }
            return Ok(());
        }
        let lengths: Vec<usize> = {
            let mut slices: Vec<[IoSliceMut; 1]> = buffers
                .iter_mut()
                .map(|buffer| [IoSliceMut::new(buffer)])
                .collect();
            let fd = self.socket.as_raw_fd();
            match recvmmsg(fd, headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) {
                Ok(results) => results.map(|message| message.bytes).collect(),
                Err(nix::Error::EAGAIN) => Vec::new(),
                // The server closed the port: the last ACK was enough for it, or it gave up.
                Err(nix::Error::ECONNREFUSED) => Vec::new(),
                Err(error) => return Err(error).context("receiving TFTP packets"),
            }
        };
        for (buffer, length) in buffers.iter().zip(lengths) {
            if self.state == State::Reading && !dice.loses() {
                self.take(&buffer[..length], case, dice);
            }
        }
        Ok(())
    }

    fn take(&mut self, packet: &[u8], case: &Case, dice: &mut Dice) {
        let Some((&[_, kind, high, low], data)) = packet.split_first_chunk::<4>() else {
            return;
        };
        match kind {
            3 => self.data(u16::from_be_bytes([high, low]), data, case, dice),
            5 => self.state = State::Failed,
            // A repeated OACK means that ACK 0 was lost.
            6 if self.next <= 1 => {
                self.next = 1;
                self.window = granted(&packet[2..]).unwrap_or(1);
                self.speak(case, dice);
            }
            _ => {}
        }
    }

    fn data(&mut self, block: u16, data: &[u8], case: &Case, dice: &mut Dice) {
        self.next = self.next.max(1);
        if block == self.next as u16 {
            self.bytes += data.len() as u64;
            self.next += 1;
            self.in_window += 1;
            self.tries = 0;
            if data.len() < BLOCK {
                self.state = State::Done;
            }
            if self.in_window >= self.window || self.state == State::Done {
                self.speak(case, dice);
            }
            return;
        }
        // RFC 7440 section 4: "the receiver SHOULD notify the sender of the last block received in order".
        // Once per gap, or the sender would start again for each packet behind it.
        let now = Instant::now();
        let said = self.repaired.is_some_and(|(next, at)| {
            next == self.next && self.window > 1 && now.duration_since(at) < REPAIR
        });
        if !said {
            self.repaired = Some((self.next, now));
            self.speak(case, dice);
        }
    }

    fn remind(&mut self, case: &Case, dice: &mut Dice, now: Instant) {
        if self.state != State::Reading || now < self.due {
            return;
        }
        self.tries += 1;
        if self.tries > TRIES {
            self.state = State::Failed;
        } else {
            self.speak(case, dice);
        }
    }

    /// The request, or the acknowledgement of the last block in order.
    fn speak(&mut self, case: &Case, dice: &mut Dice) {
        self.due = Instant::now() + PATIENCE;
        self.in_window = 0;
        if dice.loses() {
            return;
        }
        // A send that fails is a lost packet, and the reminder follows.
        let _ = if self.next == 0 {
            let request = request(case);
            self.socket.send_to(&request, SocketAddrV4::new(SERVER, 69))
        } else {
            let [high, low] = ((self.next - 1) as u16).to_be_bytes();
            self.socket.send(&[0, 4, high, low])
        };
    }
}

/// The window size that an OACK names.
fn granted(options: &[u8]) -> Option<u16> {
    let mut words = options.split(|byte| *byte == 0);
    while let Some(name) = words.next() {
        let value = words.next()?;
        if name.eq_ignore_ascii_case(b"windowsize") {
            return std::str::from_utf8(value).ok()?.parse().ok();
        }
    }
    None
}

fn request(case: &Case) -> Vec<u8> {
    let mut words = vec![
        case.file.clone(),
        "octet".into(),
        "blksize".into(),
        BLOCK.to_string(),
    ];
    words.extend(["tsize".into(), "0".into()]);
    if case.window > 1 {
        words.extend(["windowsize".into(), case.window.to_string()]);
    }
    let mut packet = vec![0, 1];
    for word in words {
        packet.extend(word.as_bytes());
        packet.push(0);
    }
    packet
}

/// xorshift64: the same losses for the same seed.
struct Dice {
    state: u64,
    per_mille: u32,
}

impl Dice {
    fn loses(&mut self) -> bool {
        if self.per_mille == 0 {
            return false;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % 1000 < u64::from(self.per_mille)
    }
}

/// Is there a server that sends `file` whole?
pub(crate) fn answered(file: &str) -> Result<bool> {
    let limit = Duration::from_millis(200);
    let case = Case {
        clients: 1,
        file: file.to_owned(),
        window: 1,
        lost_per_mille: 0,
        limit,
    };
    Ok(read(&case, 0)?.bytes > 0)
}
