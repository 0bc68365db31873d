//! One address's loop: drain, look up, send.
//!
//! Ours is answered at once, in the batch it came in, and so is what the cache knows. What other servers must be asked
//! is a task of its own, which sends its answer by the same socket when it has one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use netboot::zone::packet::{Code, Flags, Question, Reply, Unanswerable, refuse};
use netboot::zone::{Answered, Side};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use super::book::{Book, Page};
use super::cache::{self, Key};
use super::forward::Forwarder;
use super::limit::{Allowed, Limits};
use super::{Count, Counters, PORT, Place};
use crate::sys::{Datagram, Inbox, Outbox};

const BATCH: usize = 64;
/// Longer questions than this are nobody's; a reply is at most 1232 bytes.
const PACKET_MAX: usize = 1300;
/// Bytes of kernel memory for waiting questions; one costs about 800.
const QUEUE: usize = 4 << 20;
/// The kernel's number of the loopback link, in every network namespace.
const LOOPBACK: u32 = 1;

/// What every server shares.
pub(super) struct Desk {
    pub(super) book: Book,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) counters: Arc<Counters>,
}

/// Whether a client may have its names looked up elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// One of our machines, or this host.
    Ours,
    /// Anybody, who sees the outside's view.
    Anybody,
    /// Somebody who has no business here.
    Foreign,
}

impl Place {
    /// Who asks, by address; packets say by which link too.
    pub(super) fn client(&self, source: Ipv4Addr) -> Client {
        match self.side {
            Side::Outside => Client::Anybody,
            Side::Inside => {
                let ours = self.front.address == source
                    || self
                        .front
                        .clients
                        .iter()
                        .any(|subnet| subnet.contains(source));
                if ours { Client::Ours } else { Client::Foreign }
            }
        }
    }
}

/// Opens the socket of a place. It is bound to the address and not to the link, because this host's own questions come by
/// loopback; each packet says which link it came by.
pub(super) fn open(place: &Place) -> anyhow::Result<Socket> {
    let at = SocketAddrV4::new(place.front.address, PORT);
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        // Beyond net.core.rmem_max this takes CAP_NET_ADMIN; without it the queue is merely shorter.
        if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
            socket.set_recv_buffer_size(QUEUE)?;
        }
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        socket.bind(&at.into())?;
        anyhow::Ok(socket)
    };
    open().with_context(|| {
        format!("opening UDP port 53 on {at}; is another DNS server running here?")
    })
}

/// The loop of one place and what it holds.
pub(super) struct Server {
    place: Place,
    socket: Arc<Socket>,
    desk: Arc<Desk>,
    runtime: Handle,
    page: Page,
    limits: Limits,
    outbox: Outbox,
    reply: Vec<u8>,
    key: Key,
    started: Instant,
}

impl Server {
    /// Must be called inside the runtime that asks other servers.
    pub(super) fn new(place: Place, socket: Socket, desk: Arc<Desk>) -> Self {
        Self {
            place,
            socket: Arc::new(socket),
            page: desk.book.page(),
            desk,
            runtime: Handle::current(),
            limits: Limits::new(),
            outbox: Outbox::new(BATCH, PACKET_MAX),
            reply: Vec::with_capacity(PACKET_MAX),
            key: Key::new(),
            started: Instant::now(),
        }
    }

    /// Serves until `stop` is written to, or the socket is dead.
    pub(super) fn run(mut self, stop: &EventFd) {
        let socket = Arc::clone(&self.socket);
        let mut inbox = Inbox::new(BATCH, PACKET_MAX);
        loop {
            let ready = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut polled = [ready(stop.as_fd()), ready(socket.as_fd())];
            if poll(&mut polled, PollTimeout::NONE).is_err() {
                // A signal; nothing was looked at.
                continue;
            }
            if polled[0].any() != Some(false) {
                return;
            }
            match inbox.receive(&socket) {
                Ok(0) => {}
                Ok(count) => self.batch(&inbox, count),
                // What an earlier reply met on its way, told by ICMP: nothing of this socket's.
                Err(error) if is_of_a_client(&error) => {}
                Err(error) => {
                    // The follower starts this place anew when it finds the thread ended.
                    warn!(address = %self.place.front.address, %error, "receiving DNS failed");
                    return;
                }
            }
        }
    }

    fn batch(&mut self, inbox: &Inbox, count: usize) {
        self.desk.counters.add(Count::Received, count as u64);
        self.desk.book.turn_to(&mut self.page);
        let now = Instant::now();
        for place in 0..count {
            self.one(&inbox.datagram(place), now);
        }
        if self.outbox.is_empty() {
            return;
        }
        let address = self.place.front.address;
        self.outbox.send(&*self.socket, |error| {
            debug!(%address, %error, "a DNS reply could not be sent");
        });
    }

    fn one(&mut self, datagram: &Datagram<'_>, now: Instant) {
        let (from, source) = (datagram.from, *datagram.from.ip());
        let by_here = datagram.link == self.place.front.index;
        let by_itself = datagram.link == LOOPBACK && source == self.place.front.address;
        // Port 0 can't be answered.
        if !(by_here || by_itself) || from.port() == 0 {
            self.desk.counters.add(Count::Dropped, 1);
            return;
        }
        let client = self.place.client(source);
        let allowed = match client {
            Client::Ours => Allowed::Whole,
            Client::Anybody | Client::Foreign => self.allowed(source, now),
        };
        if allowed == Allowed::Nothing {
            self.desk.counters.add(Count::Limited, 1);
            return;
        }
        self.reply.clear();
        let counted = match Question::parse(datagram.bytes) {
            Err(Unanswerable::Silent) => Count::Dropped,
            Err(Unanswerable::Refused(code)) => {
                refuse(datagram.bytes, code, &mut self.reply);
                Count::Malformed
            }
            Ok(question) => {
                let limit = match allowed {
                    // Too small for any reply, so it is cut to the question.
                    Allowed::Hint => 0,
                    Allowed::Whole | Allowed::Nothing => question.datagram_max(),
                };
                self.answer(&question, client, limit, datagram, now)
            }
        };
        self.desk.counters.add(counted, 1);
        if !self.reply.is_empty() {
            self.outbox
                .push_datagram(&self.reply, from, self.place.front.address);
        }
    }

    fn allowed(&mut self, source: Ipv4Addr, now: Instant) -> Allowed {
        let since = now.saturating_duration_since(self.started).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.limits.count(source, since)
    }

    /// Writes the reply, or has somebody else asked.
    fn answer(
        &mut self,
        question: &Question<'_>,
        client: Client,
        limit: usize,
        datagram: &Datagram<'_>,
        now: Instant,
    ) -> Count {
        let page = &self.page;
        let recursion = client == Client::Ours && page.forwards();
        if client == Client::Foreign {
            return refused(question, recursion, limit, &mut self.reply);
        }
        let (side, out) = (self.place.side, &mut self.reply);
        match page.zones().answer(side, question, recursion, limit, out) {
            Answered::Here(Code::Refused) => return Count::Refused,
            Answered::Here(_) => return Count::Own,
            Answered::Elsewhere => {}
        }
        if !recursion || !question.wants_recursion() {
            return refused(question, recursion, limit, &mut self.reply);
        }
        cache::key(question, &mut self.key);
        let forwarder = &self.desk.forwarder;
        if let Some((kept, age)) = forwarder.kept(page.servers(), &self.key, now) {
            kept.write(question, age, limit, &mut self.reply);
            return Count::Kept;
        }
        self.ask(datagram)
    }

    /// Has other servers asked, unless too many questions are under way: then the client asks again.
    fn ask(&self, datagram: &Datagram<'_>) -> Count {
        let Some(turn) = self.desk.forwarder.turn(*datagram.from.ip()) else {
            return Count::Limited;
        };
        let (bytes, from) = (datagram.bytes.to_vec(), datagram.from);
        // The socket is this place's: a question under way does not keep the port when the place is given up.
        let (desk, socket) = (Arc::clone(&self.desk), Arc::downgrade(&self.socket));
        let servers = self.page.servers().to_vec();
        self.runtime.spawn(async move {
            let _turn = turn;
            let Ok(question) = Question::parse(&bytes) else {
                return;
            };
            let kept = desk.forwarder.ask(&servers, &question).await;
            let Some(socket) = socket.upgrade() else {
                return;
            };
            let mut reply = Vec::with_capacity(PACKET_MAX);
            kept.write(&question, 0, question.datagram_max(), &mut reply);
            if let Err(error) = socket.send_to(&reply, &from.into()) {
                debug!(%from, %error, "a DNS reply could not be sent");
            }
        });
        Count::Asked
    }
}

/// Says that this is not for this client.
pub(super) fn refused(
    question: &Question<'_>,
    recursion: bool,
    limit: usize,
    out: &mut Vec<u8>,
) -> Count {
    let flags = Flags {
        recursion,
        ..Flags::default()
    };
    Reply::new(out, question, flags, limit).finish(Code::Refused);
    Count::Refused
}

/// Errors that a socket reports of one destination.
fn is_of_a_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    [ConnectionRefused, HostUnreachable, NetworkUnreachable].contains(&error.kind())
}
