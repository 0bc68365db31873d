//! One connection and its other half: bytes from a client to a backend, and back.
//!
//! The first bytes of a direction are copied through one buffer that all flows of a worker share, which is the cheapest
//! way for a short request. A direction that has moved more than [`COPIED`] goes through a pipe by splice(2): the
//! kernel passes its pages on, and nobody copies them. A pipe is borrowed only while something is in it.
//!
//! A short exchange costs what it takes and no more: the last ACK of the backend's handshake goes with the first bytes,
//! the end of a direction goes with its last bytes, and where closing says the same nothing is shut down before.

use std::io::{self, ErrorKind, Read};
use std::mem;
use std::net::{Shutdown, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::epoll::EpollFlags;
use nix::unistd::pipe2;
use socket2::{Domain, Protocol, Socket, Type};

use super::peer::{BACKEND_GONE, CLIENT_GONE, is_gone, keep_alive};
use super::pool::{Gate, Lease};

/// Bytes of a direction that are copied before it is spliced.
const COPIED: u64 = 128 << 10;
/// Of the buffer that a worker's flows share.
pub(super) const BUFFER: usize = 64 << 10;
/// Of a pipe: what Linux lets a process without privileges have.
const PIPE: usize = 256 << 10;
/// Bytes that one flow may move before others have their turn.
const TURN: usize = 512 << 10;
/// Pipes that a worker keeps for later.
const PIPES_KEPT: usize = 32;
/// A flow this old is worth four system calls to find out when its backend has lost power.
const LASTING: Duration = Duration::from_secs(3);
/// Between two looks at the peers of a lasting flow.
const LOOK: Duration = Duration::from_secs(5);

/// What all flows of one worker share.
pub(super) struct Tools {
    pub(super) buffer: Vec<u8>,
    pipes: Vec<Pipe>,
}

impl Tools {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER],
            pipes: Vec::new(),
        }
    }

    fn pipe(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // The size is the kernel's to refuse: a user has only so many pages in pipes, and a small one works too.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        Ok(Pipe {
            read,
            write,
            holds: 0,
        })
    }

    fn take_back(&mut self, pipe: Pipe) {
        if pipe.holds == 0 && self.pipes.len() < PIPES_KEPT {
            self.pipes.push(pipe);
        }
    }
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    holds: usize,
}

/// One direction.
#[derive(Default)]
struct Half {
    /// The source may have something.
    readable: bool,
    /// The source will send no more after what it has: its FIN or a reset is there.
    ending: bool,
    /// It is a FIN, and a read that leaves room in the buffer has come to it.
    in_order: bool,
    /// The source sends urgent data, at which every read stops (tcp(7)): one that leaves room proves nothing.
    urgent: bool,
    /// The destination may have room.
    writable: bool,
    /// The destination sends small packets at once (TCP_NODELAY).
    prompt: bool,
    /// The destination was given something.
    begun: bool,
    /// Copied from the source, not yet written.
    held: Vec<u8>,
    pipe: Option<Pipe>,
    moved: u64,
    ended: bool,
    /// The destination has everything, the end included.
    done: bool,
}

/// What became of a turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing to do until the kernel says otherwise.
    Waits,
    /// More could be moved, when the others had their turn.
    Unfinished,
    /// Both sides are done, or one is gone.
    Done,
}

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

/// One client's connection, and that to the backend it was given to.
pub(super) struct Flow {
    pub(super) gate: Arc<Gate>,
    pub(super) client: Socket,
    pub(super) from: SocketAddrV4,
    /// Where the client connected to.
    pub(super) to: SocketAddrV4,
    pub(super) backend: Option<(Socket, Lease)>,
    pub(super) tried: Vec<SocketAddrV4>,
    pub(super) connected: bool,
    born: Instant,
    /// When it was last seen to have moved something.
    active: Instant,
    /// When its backend must have answered.
    pub(super) deadline: Instant,
    lasting: bool,
    /// When its peers were looked at, and whether one of them seemed gone.
    looked: (Instant, bool),
    /// Waits for its next turn.
    pub(super) queued: bool,
    up: Half,
    down: Half,
    told: (u64, u64),
}

impl Flow {
    pub(super) fn new(
        gate: Arc<Gate>,
        client: Socket,
        from: SocketAddrV4,
        to: SocketAddrV4,
        now: Instant,
    ) -> Self {
        gate.open.fetch_add(1, Relaxed);
        gate.house.fetch_add(1, Relaxed);
        gate.waiting.fetch_add(1, Relaxed);
        Self {
            deadline: now + gate.limits.connect,
            gate,
            client,
            from,
            to,
            backend: None,
            tried: Vec::new(),
            connected: false,
            born: now,
            active: now,
            lasting: false,
            looked: (now, false),
            queued: false,
            // A client speaks first, as a rule.
            up: Half {
                readable: true,
                ..Half::default()
            },
            // Its socket has what was set on the listening one.
            down: Half {
                writable: true,
                prompt: true,
                ..Half::default()
            },
            told: (0, 0),
        }
    }

    /// Begins a connection to the best backend that was not tried yet; false when there is none.
    pub(super) fn connect(&mut self, now: Instant) -> bool {
        loop {
            let pool = self.gate.pool.load();
            let Some(lease) = pool.choose(*self.from.ip(), &self.tried) else {
                return false;
            };
            let address = lease.target().address;
            self.tried.push(address);
            let header = pool.proxy_protocol.then(|| header(self.from, self.to));
            drop(pool);
            match connect(address) {
                Ok(socket) => {
                    self.up.held = header.unwrap_or_default();
                    self.backend = Some((socket, lease));
                    self.deadline = now + self.gate.limits.connect;
                    return true;
                }
                Err(_) => self.failed(&lease),
            }
        }
    }

    /// The backend took the connection.
    pub(super) fn connected(&mut self) {
        self.connected = true;
        self.gate.waiting.fetch_sub(1, Relaxed);
        self.up.writable = true;
        if let Some((_, lease)) = &self.backend {
            lease.target().served.fetch_add(1, Relaxed);
        }
    }

    /// The backend did not take the connection. Not a byte of the client's was read, so another may have it.
    pub(super) fn refused(&mut self) {
        if let Some((_, lease)) = self.backend.take() {
            self.failed(&lease);
            self.gate.counters.retried.fetch_add(1, Relaxed);
        }
    }

    fn failed(&self, lease: &Lease) {
        lease.target().failed.fetch_add(1, Relaxed);
        lease.target().suspicion.notify_one();
    }

    /// What the kernel said of one of the sockets.
    pub(super) fn hears(&mut self, side: Side, said: EpollFlags) {
        let (read, write) = match side {
            Side::Client => (&mut self.up, &mut self.down),
            Side::Backend => (&mut self.down, &mut self.up),
        };
        let finished = said.contains(EpollFlags::EPOLLRDHUP);
        let broken = said.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        read.ending |= finished || broken;
        read.readable |= read.ending || said.contains(EpollFlags::EPOLLIN);
        read.urgent |= said.contains(EpollFlags::EPOLLPRI);
        read.in_order = finished && !said.contains(EpollFlags::EPOLLERR);
        write.writable |= said.contains(EpollFlags::EPOLLOUT);
    }

    /// Moves what can be moved, in both directions.
    pub(super) fn turn(&mut self, tools: &mut Tools) -> Turn {
        let Some((backend, _)) = &self.backend else {
            return Turn::Done;
        };
        let up = self.up.pump(&self.client, backend, self.down.done, tools);
        // Also when that failed: a backend that wants no more of a request may have answered before it broke off. Only an
        // end that it sent itself is passed on then: writing has taken the error that a read would tell.
        let other_done = match up {
            Ok(_) => self.up.done,
            Err(_) => {
                // The kernel's word that there is something may still be on its way to us.
                self.down.readable = true;
                !(mem::take(&mut self.down.in_order) || self.down.ended)
            }
        };
        let down = self.down.pump(backend, &self.client, other_done, tools);
        match (up, down) {
            (Ok(_), Ok(_)) if self.up.done && self.down.done => Turn::Done,
            (Ok(false), Ok(false)) => Turn::Waits,
            (Ok(_), Ok(_)) => Turn::Unfinished,
            // One side was reset: the other is told so, and not that all is well.
            (Err(_), _) | (_, Err(_)) => {
                self.reset();
                Turn::Done
            }
        }
    }

    /// Makes closing a reset.
    pub(super) fn reset(&self) {
        let _ = self.client.set_linger(Some(Duration::ZERO));
        if let Some((backend, _)) = &self.backend {
            let _ = backend.set_linger(Some(Duration::ZERO));
        }
    }

    /// Looks at it once in a while: false when it has had its time.
    pub(super) fn may_stay(&mut self, now: Instant) -> bool {
        if (self.up.moved, self.down.moved) != self.told {
            self.tell();
            self.active = now;
        }
        if !self.lasting && now.saturating_duration_since(self.born) >= LASTING {
            self.lasting = true;
            if let Some((backend, _)) = &self.backend {
                let _ = keep_alive(backend, BACKEND_GONE);
            }
        }
        if self.lasting && self.is_dead(now) {
            return false;
        }
        let limits = &self.gate.limits;
        let silent = now.saturating_duration_since(self.active);
        let limit = match self.up.ended || self.down.ended {
            true => limits.half_closed,
            false => limits.idle,
        };
        let left = self
            .backend
            .as_ref()
            .map(|(_, lease)| lease.target().left_for(now));
        silent < limit && left.flatten().is_none_or(|left| left < limits.drain)
    }

    /// One of its peers was gone at two looks in a row: what was sent just before the first was answered by the second.
    fn is_dead(&mut self, now: Instant) -> bool {
        let (looked, before) = self.looked;
        if now.saturating_duration_since(looked) < LOOK {
            return false;
        }
        let backend = self.backend.as_ref();
        let now_gone = is_gone(&self.client, CLIENT_GONE)
            || backend.is_some_and(|(backend, _)| is_gone(backend, BACKEND_GONE));
        self.looked = (now, now_gone);
        before && now_gone
    }

    /// Adds to the listener's bytes what was moved since the last time.
    fn tell(&mut self) {
        let counters = &self.gate.counters;
        counters.up.fetch_add(self.up.moved - self.told.0, Relaxed);
        counters
            .down
            .fetch_add(self.down.moved - self.told.1, Relaxed);
        self.told = (self.up.moved, self.down.moved);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.tell();
        self.gate.open.fetch_sub(1, Relaxed);
        self.gate.house.fetch_sub(1, Relaxed);
        if !self.connected {
            self.gate.waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Half {
    /// Moves what can be moved; true when there may be more but others should have their turn. Where the other
    /// direction is done, both sockets are closed at the end of this one, and that tells the destination.
    fn pump(
        &mut self,
        from: &Socket,
        to: &Socket,
        other_done: bool,
        tools: &mut Tools,
    ) -> io::Result<bool> {
        let until = self.moved + TURN as u64;
        loop {
            if !self.flush(to, tools)? {
                return Ok(false);
            }
            if self.ended {
                if !mem::replace(&mut self.done, true) && !other_done {
                    match to.shutdown(Shutdown::Write) {
                        Err(error) if error.kind() != ErrorKind::NotConnected => return Err(error),
                        _ => {}
                    }
                }
                return Ok(false);
            }
            if !self.readable {
                return Ok(false);
            }
            if self.moved >= until {
                return Ok(true);
            }
            if self.moved < COPIED || self.urgent {
                self.copy(from, to, tools)?;
            } else {
                self.fill(from, tools)?;
            }
        }
    }

    /// Gives the destination what is held; false when it has no room for all of it.
    fn flush(&mut self, to: &Socket, tools: &mut Tools) -> io::Result<bool> {
        while !self.held.is_empty() {
            if !self.writable {
                return Ok(false);
            }
            let held = mem::take(&mut self.held);
            let written = self.write(to, &held);
            self.held = held;
            self.held.drain(..written?);
            if self.held.is_empty() {
                // Its room is a slow moment's, and a flow may live for hours.
                self.held = Vec::new();
            }
        }
        while let Some(pipe) = &mut self.pipe {
            if pipe.holds == 0 {
                let pipe = self.pipe.take();
                pipe.into_iter().for_each(|pipe| tools.take_back(pipe));
                break;
            }
            if !self.writable {
                return Ok(false);
            }
            match splice(&pipe.read, None, to, None, pipe.holds, flags()) {
                Ok(count) => {
                    pipe.holds -= count.min(pipe.holds);
                    self.moved += count as u64;
                }
                Err(Errno::EAGAIN) => self.writable = false,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Gives the destination what it takes of `bytes`.
    fn write(&mut self, to: &Socket, bytes: &[u8]) -> io::Result<usize> {
        // The first packet waits for nobody (RFC 896), so a short request needs no word about it.
        if self.begun && !mem::replace(&mut self.prompt, true) {
            to.set_tcp_nodelay(true)?;
        }
        // The end goes with the last bytes: whatever says it next sends them.
        let flags = if self.ended { libc::MSG_MORE } else { 0 };
        match to.send_with_flags(bytes, flags | libc::MSG_NOSIGNAL) {
            Ok(count) => {
                self.begun = true;
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn copy(&mut self, mut from: &Socket, to: &Socket, tools: &mut Tools) -> io::Result<()> {
        let count = match from.read(&mut tools.buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        if count == 0 {
            self.ended = true;
            return Ok(());
        }
        // The kernel had no more: it will say so when it has (epoll(7), edge-triggered), or this was all.
        if count < tools.buffer.len() && !self.urgent {
            self.ended = self.in_order;
            self.readable = self.ending;
        }
        self.moved += count as u64;
        let bytes = &tools.buffer[..count];
        let written = if self.writable {
            self.write(to, bytes)?
        } else {
            0
        };
        if written < count {
            self.held.extend_from_slice(&bytes[written..]);
        }
        Ok(())
    }

    fn fill(&mut self, from: &Socket, tools: &mut Tools) -> io::Result<()> {
        let mut pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => tools.pipe()?,
        };
        match splice(from, None, &pipe.write, None, PIPE, flags()) {
            // The end, or urgent data, at which it stops too: a read knows.
            Ok(0) => self.urgent = true,
            Ok(count) => pipe.holds += count,
            Err(Errno::EAGAIN) => self.readable = false,
            Err(Errno::EINTR) => {}
            Err(error) => {
                tools.take_back(pipe);
                return Err(error.into());
            }
        }
        match pipe.holds {
            0 => tools.take_back(pipe),
            _ => self.pipe = Some(pipe),
        }
        Ok(())
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// Begins a connection without waiting for it.
fn connect(address: SocketAddrV4) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
    // The handshake's last ACK waits for the client's first bytes, a fifth of a second at the most: one packet less for
    // whoever speaks first, as clients of a cluster do.
    socket.set_tcp_quickack(false)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The PROXY protocol's header, version 2, for TCP over IPv4 (HAProxy, doc/proxy-protocol.txt, section 2.2).
pub(super) fn header(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    // Version 2, command PROXY; TCP over IPv4; twelve bytes follow.
    bytes.extend([0x21, 0x11, 0, 12]);
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes
}

/// The header of a connection that is nobody's but the balancer's own: version 2, command LOCAL, nothing follows.
pub(super) fn local_header() -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([0x20, 0, 0, 0]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_the_specification() {
        let address = |text: &str| text.parse().expect("an address");
        let bytes = header(address("192.0.2.1:56324"), address("10.107.0.1:443"));
        let expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\
                         \xc0\x00\x02\x01\x0a\x6b\x00\x01\xdc\x04\x01\xbb";
        assert_eq!(bytes, expected);
        assert_eq!(local_header().len(), 16);
    }
}
