//! Both ends of connections through a balancer, on one thread: clients that ask, and the backend that answers them.
//!
//! Touches: TCP sockets in the load's namespace, the monotonic clock.
//!
//! One epoll for both, so that the load's core spends nothing on switching between them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

/// What is asked, and as much is answered.
const QUESTION: [u8; 64] = [b'?'; 64];
const LISTENER: u64 = u64::MAX;
const SERVED: u64 = 1 << 32;

/// What the clients got in the window after the warm-up.
pub(crate) struct Report {
    pub(crate) exchanges: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    /// Of each exchange, sorted.
    latencies: Vec<Duration>,
}

impl Report {
    /// Microseconds below which this part of the exchanges took.
    pub(crate) fn latency_micros(&self, part: f64) -> f64 {
        let at = (self.latencies.len() as f64 * part) as usize;
        let latency = self.latencies.get(at).or(self.latencies.last());
        latency.map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// Where connections go, and how they are used.
pub(crate) struct Load {
    pub(crate) to: SocketAddrV4,
    pub(crate) at_once: usize,
    /// Each exchange on a connection of its own, which the backend closes; else all on one.
    pub(crate) anew: bool,
    pub(crate) window: Duration,
}

struct Client {
    stream: TcpStream,
    began: Instant,
    asked: bool,
    got: usize,
}

struct Ends<'a> {
    load: &'a Load,
    epoll: Epoll,
    listener: TcpListener,
    clients: Vec<Client>,
    served: BTreeMap<u64, TcpStream>,
    count: u64,
    latencies: Vec<Duration>,
}

/// Keeps `load` going with a backend behind `listener`, and measures the second part of the time.
pub(crate) fn exchange(
    listener: TcpListener,
    load: &Load,
    cpu: impl Fn() -> Result<Duration>,
) -> Result<Report> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut ends = Ends {
        load,
        epoll,
        listener,
        clients: Vec::new(),
        served: BTreeMap::new(),
        count: 0,
        latencies: Vec::with_capacity(1 << 20),
    };
    for place in 0..load.at_once {
        let client = ends.connect(place as u64)?;
        ends.clients.push(client);
    }
    ends.drive(load.window / 4)?;
    ends.latencies.clear();
    let (before, start) = (cpu()?, Instant::now());
    ends.drive(load.window)?;
    let elapsed = start.elapsed();
    let cpu = cpu()?.saturating_sub(before);
    let mut latencies = ends.latencies;
    latencies.sort_unstable();
    ensure!(!latencies.is_empty(), "nothing was answered");
    Ok(Report {
        exchanges: latencies.len() as u64,
        elapsed,
        cpu,
        latencies,
    })
}

impl Ends<'_> {
    fn drive(&mut self, period: Duration) -> Result<()> {
        let start = Instant::now();
        let mut events = [EpollEvent::empty(); 128];
        while start.elapsed() < period {
            let count = self.epoll.wait(&mut events, EpollTimeout::from(100_u8))?;
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept()?,
                    token if token & SERVED != 0 => self.answer(token),
                    place => self.ask(place, event.events())?,
                }
            }
        }
        Ok(())
    }

    fn connect(&self, place: u64) -> Result<Client> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::IPV4, kind, None)?;
        let began = Instant::now();
        match socket.connect(&self.load.to.into()) {
            Err(error)
                if error.kind() != ErrorKind::WouldBlock
                    && error.raw_os_error() != Some(nix::libc::EINPROGRESS) =>
            {
                return Err(error).context("connecting");
            }
            _ => {}
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&socket, EpollEvent::new(flags, place))?;
        Ok(Client {
            stream: socket.into(),
            began,
            asked: false,
            got: 0,
        })
    }

    fn ask(&mut self, place: u64, flags: EpollFlags) -> Result<()> {
        let client = &mut self.clients[place as usize];
        if !client.asked && flags.contains(EpollFlags::EPOLLOUT) {
            client.stream.write_all(&QUESTION).context("asking")?;
            client.asked = true;
        }
        if !flags.contains(EpollFlags::EPOLLIN) {
            return Ok(());
        }
        let mut buffer = [0; 256];
        loop {
            match client.stream.read(&mut buffer) {
                Ok(0) => {
                    ensure!(client.got == QUESTION.len(), "an answer was cut");
                    self.latencies.push(client.began.elapsed());
                    self.clients[place as usize] = self.connect(place)?;
                    return Ok(());
                }
                Ok(length) => client.got += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("reading an answer"),
            }
        }
        if !self.load.anew && client.got == QUESTION.len() {
            self.latencies.push(client.began.elapsed());
            client.began = Instant::now();
            client.got = 0;
            client.stream.write_all(&QUESTION).context("asking again")?;
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let (stream, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => bail!("accepting: {error}"),
            };
            stream.set_nonblocking(true)?;
            self.count = (self.count + 1) & (SERVED - 1);
            let token = SERVED | self.count;
            self.epoll
                .add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
            self.served.insert(token, stream);
        }
    }

    /// Whoever only looks whether the port is open is let go.
    fn answer(&mut self, token: u64) {
        let Some(stream) = self.served.get_mut(&token) else {
            return;
        };
        let mut buffer = [0; 256];
        let stays = match stream.read(&mut buffer) {
            Ok(length @ 1..) => stream.write_all(&buffer[..length]).is_ok() && !self.load.anew,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
            Ok(0) => false,
        };
        if !stays {
            self.served.remove(&token);
        }
    }
}
