//! TFTP on one provisioning link: sockets, a thread, and the desk of `netboot::tftp` between them.
//!
//! ```text
//!   :69   ---- requests -------> desk.admit -> source(path) -> desk.open --.
//!   ring  ---- ACK, ERROR -----> desk.packet ------------------------------+--> outbox --> ring
//!   clock ---- next_deadline --> desk.expire ------------------------------'
//! ```
//!
//! Every socket is bound to the link's address and to the link itself, so an answer leaves from the address
//! and the link that heard the request, and a broadcast request is never answered (RFC 1123, section
//! 4.2.3.4). A link that changes its address stops its server and starts another: both take a millisecond.
//!
//! One thread per link, no runtime: a transfer is a datagram in and a few out, and the thread's only wait
//! is for its sockets. Transfers share a ring of eight ports instead of a port each. A pair of ports still
//! names one transfer, which is all RFC 1350 asks, and one system call hears up to 64 clients and answers
//! them. Files are answered from memory; the source decides at once from the snapshot.
//!
//! This engine is the default; `tftp_async` is the packaged one behind the same source and reports. The
//! packaged one cannot be told by a client that it is done (it resends an OACK to EDK2 for seconds),
//! opens files one at a time, sees no last acknowledgement, has no bound on a window, and waits whole
//! seconds for a lost block. README names the measured difference.

mod counters;
mod outbox;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netboot::tftp::{
    Admission, Agreed, Desk, ErrorCode, Limits, Mode, Outcome, Request, Send, Session, Turn,
    encode_error, encode_options, netascii,
};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::counters::Counters;
use self::outbox::Outbox;
use crate::config::TftpEngine;
use crate::tftp_async;

/// Datagrams heard by one system call. Requests are short; anything longer is cut and then refused.
const BATCH: usize = 64;
const DATAGRAM_OCTETS: usize = 1100;
/// Room for a storm of requests and for every client's window; the kernel may grant less.
const SOCKET_BUFFER_OCTETS: usize = 8 << 20;
/// Text forms of files that are held at once, over all transfers of a link.
const TRANSLATED_OCTETS_MAX: usize = 64 << 20;
/// A running transfer is reported this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const STOP: u64 = u64::MAX;
const ALARM: u64 = STOP - 1;

/// A link with the one address its clients know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkBinding {
    pub name: String,
    pub ifindex: u32,
    pub address: Ipv4Addr,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub engine: TftpEngine,
    /// 69; a test without privileges takes another.
    pub port: u16,
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            engine: TftpEngine::default(),
            port: 69,
            limits: Limits::default(),
        }
    }
}

/// What the source is asked: who wants which file, and where it was heard. The path has no leading slash,
/// no backslash and nothing that climbs.
#[derive(Debug, Clone, Copy)]
pub struct TftpRequest<'a> {
    pub peer: SocketAddrV4,
    pub local: Ipv4Addr,
    pub link: &'a str,
    pub path: &'a str,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Bytes(Bytes),
    /// Why, for the ledger; the client reads "file not found".
    NotFound(String),
    Denied,
}

pub type Source = Arc<dyn Fn(&TftpRequest<'_>) -> Answer + std::marker::Send + Sync>;
/// Takes reports. It is called between packets, so it must not wait.
pub type Reports = Arc<dyn Fn(Report) + std::marker::Send + Sync>;

/// What happened to one transfer, or to a request that became none.
#[derive(Debug, Clone)]
pub struct Report {
    pub peer: SocketAddrV4,
    pub link: String,
    pub path: String,
    pub stage: Stage,
}

#[derive(Debug, Clone)]
pub enum Stage {
    Started(Progress),
    Running(Progress),
    Ended(Progress, Outcome),
    Refused(String),
}

#[derive(Debug, Clone)]
pub struct Progress {
    /// Acknowledged by the client.
    pub bytes: u64,
    pub total: u64,
    pub agreed: Agreed,
    pub retransmits: u64,
    pub elapsed: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "opening TFTP on link {link} at {address}: is the address there, and no other TFTP server?"
)]
pub struct StartError {
    link: String,
    address: SocketAddrV4,
    source: io::Error,
}

/// A running server. Dropping it stops it.
pub struct Server {
    counters: Arc<Counters>,
    running: Running,
}

enum Running {
    Builtin {
        stop: Arc<EventFd>,
        thread: Option<JoinHandle<()>>,
    },
    Packaged(tftp_async::Running),
}

impl Server {
    pub fn start(
        link: &LinkBinding,
        settings: &Settings,
        source: Source,
        reports: Reports,
    ) -> Result<Self, StartError> {
        let address = SocketAddrV4::new(link.address, settings.port);
        let start = || match settings.engine {
            TftpEngine::Builtin => start_builtin(link, settings, source, reports),
            TftpEngine::AsyncTftp => {
                let socket = bind(link, settings.port)?;
                let (counters, running) =
                    tftp_async::start(link, socket, &settings.limits, source, reports)?;
                Ok(Self {
                    counters,
                    running: Running::Packaged(running),
                })
            }
        };
        start().map_err(|source| StartError {
            link: link.name.clone(),
            address,
            source,
        })
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Ends every transfer with an ERROR and closes the sockets before it returns.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.running {
            Running::Builtin { stop, thread } => {
                // An eventfd takes a write until its counter is near 2^64.
                let _ = stop.write(1);
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
            Running::Packaged(running) => running.stop(),
        }
    }
}

/// A socket of this link: nothing reaches it from another, nothing leaves it by another.
pub(crate) fn bind(link: &LinkBinding, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    socket.set_nonblocking(true)?;
    // Past the system's limit where we may, up to it where we may not.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_OCTETS).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER_OCTETS)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER_OCTETS).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER_OCTETS)?;
    }
    socket.bind(&SocketAddrV4::new(link.address, port).into())?;
    Ok(socket.into())
}

fn start_builtin(
    link: &LinkBinding,
    settings: &Settings,
    source: Source,
    reports: Reports,
) -> io::Result<Server> {
    let door = bind(link, settings.port)?;
    let ring = (0..settings.limits.ports.max(1))
        .map(|_| bind(link, 0))
        .collect::<io::Result<Vec<_>>>()?;
    let stop = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let alarm = Alarm::new()?;
    epoll.add(&*stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
    epoll.add(&alarm.timer, EpollEvent::new(EpollFlags::EPOLLIN, ALARM))?;
    for (place, socket) in std::iter::once(&door).chain(&ring).enumerate() {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
    }
    let counters = Arc::new(Counters::default());
    let name: String = format!("tftp-{}", link.name).chars().take(15).collect();
    let (link, limits) = (link.clone(), settings.limits.clone());
    let (counted, stopped) = (counters.clone(), stop.clone());
    // The buffers of the batched calls hold pointers and stay on the thread that made them.
    let run = move || {
        let server = LinkServer {
            link,
            counters: counted,
            source,
            reports,
            clock: Instant::now(),
            desk: Desk::new(limits),
            translated: 0,
            outbox: Outbox::new(ring.len()),
            alarm,
            door,
            ring,
        };
        server.run(&epoll, &stopped);
    };
    let thread = std::thread::Builder::new().name(name).spawn(run)?;
    Ok(Server {
        counters,
        running: Running::Builtin {
            stop,
            thread: Some(thread),
        },
    })
}

/// Everything the thread of one link holds.
struct LinkServer {
    link: LinkBinding,
    counters: Arc<Counters>,
    source: Source,
    reports: Reports,
    clock: Instant,
    desk: Desk<Served>,
    translated: usize,
    outbox: Outbox,
    alarm: Alarm,
    door: UdpSocket,
    ring: Vec<UdpSocket>,
}

/// The clock's bell, set anew only when the earliest deadline has changed. A time limit on each wait would be
/// set and taken back for every block, and setting one costs a virtual machine more than the wait itself.
struct Alarm {
    timer: TimerFd,
    set_for: Option<Duration>,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            set_for: None,
        })
    }

    /// Rings at `deadline`, or not before it is set again.
    fn set(&mut self, deadline: Option<Duration>, clock: Instant) -> nix::Result<()> {
        if self.set_for == deadline {
            return Ok(());
        }
        match deadline {
            // A wait of nothing would mean "never".
            Some(deadline) => {
                let wait = deadline.saturating_sub(clock.elapsed());
                let wait = Expiration::OneShot(wait.max(Duration::from_micros(1)).into());
                self.timer.set(wait, TimerSetTimeFlags::empty())?;
            }
            None => self.timer.unset()?,
        }
        self.set_for = deadline;
        Ok(())
    }

    fn rang(&mut self) {
        // Spends the descriptor; one that was set anew meanwhile has nothing to read.
        let _ = self.timer.wait();
        self.set_for = None;
    }
}

/// The file of one transfer.
struct Served {
    content: Bytes,
    /// Octets of it that exist for this transfer alone.
    translated: usize,
    told: Duration,
}

impl LinkServer {
    fn run(mut self, epoll: &Epoll, stop: &EventFd) {
        let mut ears = Ears::new();
        let mut events = vec![EpollEvent::empty(); self.ring.len() + 3];
        loop {
            let set = self.alarm.set(self.desk.next_deadline(), self.clock);
            let ready = match set.and_then(|()| epoll.wait(&mut events, EpollTimeout::NONE)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    tracing::error!(link = self.link.name, %errno, "waiting for TFTP packets");
                    break;
                }
            };
            // The door comes last: a client that gave up with ERROR and asks again from its port has ended
            // its transfer before its request is heard, however close together they came.
            events[..ready].sort_unstable_by_key(|event| std::cmp::Reverse(event.data()));
            for event in &events[..ready] {
                match event.data() {
                    STOP => {
                        // Read, so that the descriptor is spent and says so to nobody else.
                        let _ = stop.read();
                        return self.farewell();
                    }
                    ALARM => self.alarm.rang(),
                    place => self.listen(usize::try_from(place).unwrap_or(0), &mut ears),
                }
            }
            let now = self.clock.elapsed();
            while let Some(turn) = self.desk.expire(now) {
                self.take(turn, now);
            }
            self.flush();
        }
    }

    /// Hears what one socket holds, at most one batch before the others have their turn.
    fn listen(&mut self, place: usize, ears: &mut Ears) {
        let socket = if place == 0 {
            &self.door
        } else {
            &self.ring[place - 1]
        };
        ears.hear(socket);
        let now = self.clock.elapsed();
        for (&(peer, length), octets) in ears.heard.iter().zip(ears.octets.iter()) {
            let bytes = &octets[..length];
            if place == 0 {
                self.request(peer, bytes, now);
            } else {
                let turn = self.desk.packet(place - 1, peer, bytes, now);
                self.take(turn, now);
            }
        }
        self.flush();
    }

    fn request(&mut self, peer: SocketAddrV4, bytes: &[u8], now: Duration) {
        Counters::add(&self.counters.requests, 1);
        match self.desk.admit(peer, bytes, now) {
            Admission::Open { request, replaced } => {
                if let Some(session) = replaced {
                    self.ended(&session, Outcome::Replaced, now);
                }
                self.open(peer, request, now);
            }
            Admission::Again(id, send) => self.send(id, send),
            Admission::Refuse {
                path,
                code,
                message,
                reason,
            } => {
                self.counters.ignored(reason);
                self.refuse(peer, &path, code, message, message);
            }
            Admission::Ignore(reason) => self.counters.ignored(reason),
        }
    }

    fn open(&mut self, peer: SocketAddrV4, request: Request, now: Duration) {
        let answer = (self.source)(&TftpRequest {
            peer,
            local: self.link.address,
            link: &self.link.name,
            path: &request.path,
        });
        let content = match answer {
            Answer::Bytes(content) => content,
            Answer::NotFound(reason) => {
                Counters::add(&self.counters.not_found, 1);
                return self.refuse(
                    peer,
                    &request.path,
                    ErrorCode::NotFound,
                    "file not found",
                    &reason,
                );
            }
            Answer::Denied => {
                Counters::add(&self.counters.denied, 1);
                return self.refuse(
                    peer,
                    &request.path,
                    ErrorCode::Denied,
                    "access denied",
                    "access denied",
                );
            }
        };
        let Some((content, translated)) = self.as_asked(request.mode, content) else {
            Counters::add(&self.counters.busy, 1);
            let message = "server busy: ask again, or in octet mode";
            return self.refuse(peer, &request.path, ErrorCode::Undefined, message, message);
        };
        let length = content.len() as u64;
        let served = Served {
            content,
            translated,
            told: now,
        };
        let (id, send) = self.desk.open(peer, request, served, length, now);
        Counters::add(&self.counters.started, 1);
        self.send(id, send);
        if let Some(session) = self.desk.session(id) {
            self.report(session, Stage::Started(progress(session, now)));
        }
    }

    /// The file in the mode of the request, unless too much text is held already.
    fn as_asked(&mut self, mode: Mode, content: Bytes) -> Option<(Bytes, usize)> {
        if mode == Mode::Octet {
            return Some((content, 0));
        }
        if self.translated + 2 * content.len() > TRANSLATED_OCTETS_MAX {
            return None;
        }
        let Some(text) = netascii(&content) else {
            return Some((content, 0));
        };
        self.translated += text.len();
        let octets = text.len();
        Some((text.into(), octets))
    }

    fn take(&mut self, turn: Turn<Served>, now: Duration) {
        match turn {
            Turn::Send(id, send) => {
                self.send(id, send);
                self.tell(id, now);
            }
            Turn::Ended(session, outcome) => self.ended(&session, outcome, now),
            Turn::Ignored(reason) => self.counters.ignored(reason),
        }
    }

    fn send(&mut self, id: usize, send: Send) {
        let Some(session) = self.desk.session(id) else {
            return;
        };
        match send {
            Send::Nothing => {}
            Send::Options => {
                let transfer = &session.transfer;
                let packet = encode_options(transfer.agreed(), transfer.length());
                self.outbox.packet(session.port, session.peer, packet);
            }
            Send::Blocks { first, count } => self.outbox.blocks(session, first, count),
        }
    }

    fn flush(&mut self) {
        let failed = self.outbox.flush(&self.door, &self.ring);
        if failed > 0 {
            Counters::add(&self.counters.send_failed, failed);
        }
    }

    fn refuse(
        &mut self,
        peer: SocketAddrV4,
        path: &str,
        code: ErrorCode,
        message: &str,
        reason: &str,
    ) {
        self.outbox.refusal(peer, encode_error(code, message));
        (self.reports)(Report {
            peer,
            link: self.link.name.clone(),
            path: path.to_owned(),
            stage: Stage::Refused(reason.to_owned()),
        });
    }

    /// A running transfer's progress, not more often than anybody reads it.
    fn tell(&mut self, id: usize, now: Duration) {
        let Some(file) = self.desk.file_mut(id) else {
            return;
        };
        if now.saturating_sub(file.told) < REPORT_EVERY {
            return;
        }
        file.told = now;
        if let Some(session) = self.desk.session(id) {
            self.report(session, Stage::Running(progress(session, now)));
        }
    }

    fn ended(&mut self, session: &Session<Served>, outcome: Outcome, now: Duration) {
        self.translated -= session.file.translated;
        let progress = progress(session, now);
        self.counters.ended(&outcome);
        Counters::add(&self.counters.bytes, progress.bytes);
        Counters::add(&self.counters.retransmits, progress.retransmits);
        tracing::debug!(
            link = self.link.name,
            peer = %session.peer,
            path = session.request.path,
            bytes = progress.bytes,
            total = progress.total,
            retransmits = progress.retransmits,
            "TFTP transfer ended: {}", outcome.name()
        );
        self.report(session, Stage::Ended(progress, outcome));
    }

    fn report(&self, session: &Session<Served>, stage: Stage) {
        (self.reports)(Report {
            peer: session.peer,
            link: self.link.name.clone(),
            path: session.request.path.clone(),
            stage,
        });
    }

    /// Tells every client at once, so that none waits for a server that is gone.
    fn farewell(mut self) {
        let now = self.clock.elapsed();
        for session in self.desk.clear() {
            let packet = encode_error(ErrorCode::Undefined, "server is stopping, ask again");
            self.outbox.packet(session.port, session.peer, packet);
            self.ended(&session, Outcome::Stopped, now);
        }
        self.flush();
    }
}

/// Buffers for one batch of datagrams, used again and again.
struct Ears {
    headers: MultiHeaders<SockaddrIn>,
    octets: Box<[[u8; DATAGRAM_OCTETS]; BATCH]>,
    heard: Vec<(SocketAddrV4, usize)>,
    /// How many datagrams the next call asks for: preparing for a crowd costs more than hearing one.
    expected: usize,
}

impl Ears {
    fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            octets: Box::new([[0; DATAGRAM_OCTETS]; BATCH]),
            heard: Vec::with_capacity(BATCH),
            expected: 1,
        }
    }

    /// Fills `heard`. An error of the socket concerns one earlier packet and says nothing about the next; the
    /// clock repeats what was lost.
    fn hear(&mut self, socket: &UdpSocket) {
        self.heard.clear();
        let expected = &mut self.octets[..self.expected];
        let mut slices: Vec<_> = expected
            .iter_mut()
            .map(|octets| [io::IoSliceMut::new(octets)])
            .collect();
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        if let Ok(messages) = recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None) {
            self.heard.extend(
                messages.filter_map(|message| Some((message.address?.into(), message.bytes))),
            );
        }
        self.expected = (2 * self.heard.len()).clamp(1, BATCH);
    }
}

fn progress(session: &Session<Served>, now: Duration) -> Progress {
    let transfer = &session.transfer;
    Progress {
        bytes: transfer.bytes_acknowledged(),
        total: transfer.length(),
        agreed: transfer.agreed().clone(),
        retransmits: transfer.retransmits(),
        elapsed: now.saturating_sub(session.started),
    }
}
