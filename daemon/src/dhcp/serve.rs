//! One link's loop: drain, ask, send.
//!
//! Each round takes one batch of requests that finish something, then one batch of DISCOVERs, the
//! newest first: under overload a machine that just asked is still listening, one that asked long ago
//! has given up. What waited longer than any client does is dropped unread. Facts are noted after the
//! replies have left.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use netboot::attempt::Fact;
use netboot::dhcp::{Answer, Ask, Heard, Ignored, Kind, Port, Reply, Request, Verdict, answer};
use netboot::event::{Event, LeaseAsked, Outcome};
use netboot::loader::Client;
use netboot::net::{MacAddress, NodeName, Timestamp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::Served;
use super::counters::Counters;
use super::post::Post;
use super::socket::Sockets;
use crate::controller::{Controller, now};
use crate::ledger::Ledger;
use crate::sys::{Datagram, Inbox};

const BATCH: usize = 64;
/// More than an Ethernet frame carries; what is longer is cut and refused.
const PACKET_MAX: usize = 1600;
/// The shortest wait after which a client asks anew is iPXE's first: one second.
const STALE_NANOS: u64 = 1_000_000_000;
/// Pool leases on their way to the disk.
const LEASES_PENDING_MAX: usize = 256;
/// Machines whose loaders are counted; a storm of strangers must not grow this.
const CHAINS_MAX: usize = 16_384;
/// A machine that was sent no loader for so long starts a new count.
const CHAIN_SECONDS: u64 = 600;
/// Sightings of machines that are not listed, told to the controller at most this often.
const SIGHTINGS_PER_SECOND: u32 = 20;

/// The loop of one link and what it holds.
pub(super) struct Server {
    served: Served,
    sockets: Arc<Sockets>,
    controller: Controller,
    ledger: Ledger,
    counters: Arc<Counters>,
    runtime: Handle,
    leases: Arc<Semaphore>,
    chains: HashMap<MacAddress, Chain>,
    sightings: (u64, u32),
    post: Post,
    notes: Vec<Note>,
    reply: Vec<u8>,
}

/// Loaders sent to one machine since it last asked as iPXE.
struct Chain {
    count: u8,
    /// A client repeats a request under the same transaction when the answer was lost.
    xid: u32,
    last: Timestamp,
}

type Note = (MacAddress, Option<NodeName>, Fact);

impl Server {
    /// Must be called inside the runtime that writes leases down.
    pub(super) fn new(
        served: Served,
        sockets: Sockets,
        controller: Controller,
        ledger: Ledger,
        counters: Arc<Counters>,
    ) -> Self {
        let sockets = Arc::new(sockets);
        let (link, doors) = (served.clone(), Arc::clone(&sockets));
        let post = Post::new(link, doors, Arc::clone(&counters), BATCH, PACKET_MAX);
        Self {
            served,
            sockets,
            controller,
            ledger,
            counters,
            runtime: Handle::current(),
            leases: Arc::new(Semaphore::new(LEASES_PENDING_MAX)),
            chains: HashMap::new(),
            sightings: (0, 0),
            post,
            notes: Vec::with_capacity(BATCH),
            reply: Vec::with_capacity(PACKET_MAX),
        }
    }

    /// Serves until `stop` is written to, or the link's sockets are dead.
    pub(super) fn run(mut self, stop: &EventFd) {
        let sockets = Arc::clone(&self.sockets);
        let mut inbox = Inbox::new(BATCH, PACKET_MAX);
        loop {
            let ready = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut polled = [
                ready(stop.as_fd()),
                ready(sockets.express.as_fd()),
                ready(sockets.boot_server.as_fd()),
                ready(sockets.discover.as_fd()),
            ];
            if poll(&mut polled, PollTimeout::NONE).is_err() {
                // A signal; nothing was looked at.
                continue;
            }
            let [stopped, express, boot_server, discover] =
                polled.map(|polled| polled.any() != Some(false));
            if stopped {
                return;
            }
            for (socket, port, is_ready) in [
                (&sockets.express, Port::Server, express),
                (&sockets.boot_server, Port::BootServer, boot_server),
                (&sockets.discover, Port::Server, discover),
            ] {
                if !is_ready {
                    continue;
                }
                match inbox.receive(socket) {
                    Ok(count) => self.batch(&inbox, count, port),
                    Err(error) => {
                        // The follower starts this link anew when it finds the thread ended.
                        warn!(link = %self.served.context.name, %error, "receiving DHCP failed");
                        return;
                    }
                }
            }
        }
    }

    fn batch(&mut self, inbox: &Inbox, count: usize, port: Port) {
        if count == 0 {
            return;
        }
        self.counters.received(count as u64);
        let snapshot = self.controller.snapshot().clone();
        let site = snapshot.peek();
        let at = now();
        let oldest = nanos().saturating_sub(STALE_NANOS);
        for place in (0..count).rev() {
            let datagram = inbox.datagram(place);
            if datagram.queued_at < oldest && datagram.queued_at != 0 {
                self.counters.ignored("stale");
                continue;
            }
            match Request::parse(datagram.bytes) {
                Ok(request) => self.one(&site, &request, &datagram, port, at),
                Err(malformed) => self.counters.ignored(malformed.label()),
            }
        }
        self.post.flush();
        for (mac, node, fact) in self.notes.drain(..) {
            self.ledger.note(Some(mac), node.as_ref(), fact);
        }
    }

    fn one(
        &mut self,
        site: &netboot::site::Site,
        request: &Request<'_>,
        datagram: &Datagram<'_>,
        port: Port,
        at: Timestamp,
    ) {
        let mac = request.hardware_address();
        let heard = Heard {
            port,
            unicast: datagram.to == self.served.context.server,
            chainloads: self.chainloads(mac, at),
        };
        let mut reply = std::mem::take(&mut self.reply);
        let answered = answer(site, &self.served.context, request, heard, at, &mut reply);
        if matches!(answered.client, Client::Ipxe(_)) {
            self.chains.remove(&mac);
        }
        debug!(link = %self.served.context.name, %mac, xid = request.xid(), verdict = ?answered.verdict, "DHCP");
        match &answered.verdict {
            Verdict::Reply(told) => {
                if told.chainloads {
                    self.count_chainload(mac, request.xid(), at);
                }
                match told.lease.clone() {
                    Some(lease) => self.lease(lease, told, &reply, datagram.from),
                    None => self.post.put(&reply, told.destination, port, datagram.from),
                }
                self.counters.replied(told.kind);
                if let Some(code) = told.omitted {
                    self.counters.ignored("option_omitted");
                    debug!(%mac, code, "the reply exceeds the client's size limit; options from here on were left out");
                }
            }
            Verdict::Ignore(reason) => {
                self.counters.ignored(reason.label());
                if *reason == Ignored::NotListed {
                    self.sight(&answered, at);
                }
            }
            Verdict::Declined(address, event) => {
                self.counters.ignored("declined");
                warn!(link = %self.served.context.name, %mac, %address, "a machine found its address in use by another one: look for {address} on the link");
                self.tell(event.clone());
            }
            Verdict::Released(_, event) => {
                self.counters.ignored("released");
                self.tell(event.clone());
            }
        }
        self.reply = reply;
        self.note(request, &answered, port, at);
    }

    fn tell(&self, event: Option<Event>) {
        if let Some(event) = event
            && !self.controller.tell(event)
        {
            self.counters.ignored("event_dropped");
        }
    }

    /// The ledger's line about a listed machine, or about one that was answered.
    fn note(&mut self, request: &Request<'_>, answered: &Answer<'_>, port: Port, at: Timestamp) {
        let concerns_us = answered.node.is_some() || matches!(answered.verdict, Verdict::Reply(_));
        if !concerns_us || !self.ledger.takes_packet(at) {
            return;
        }
        let message = word(request.ask());
        let fact = match &answered.verdict {
            Verdict::Reply(reply) => Fact::Dhcp {
                port: match port {
                    Port::Server => 67,
                    Port::BootServer => 4011,
                },
                message: message.into(),
                reply: match reply.kind {
                    Kind::Offer => "OFFER",
                    Kind::Ack => "ACK",
                    Kind::Nak => "NAK",
                }
                .into(),
                client: answered.client,
                xid: request.xid(),
                address: reply.address,
                rule: reply.rule.map(Into::into),
            },
            Verdict::Ignore(reason) => ignored(message, reason.label()),
            Verdict::Declined(..) => ignored(message, "address_in_use"),
            Verdict::Released(..) => ignored(message, "released"),
        };
        let node = answered.node.map(|node| node.name.clone());
        self.notes.push((answered.mac, node, fact));
    }

    fn sight(&mut self, answered: &Answer<'_>, at: Timestamp) {
        let second = at.millis() / 1000;
        if self.sightings.0 != second {
            self.sightings = (second, 0);
        }
        let Some(network) = answered.network else {
            return;
        };
        if self.sightings.1 < SIGHTINGS_PER_SECOND {
            self.sightings.1 += 1;
            let (mac, uuid) = (answered.mac, answered.uuid);
            let network = network.name.clone();
            self.tell(Some(Event::Sighted { mac, network, uuid }));
        }
    }

    fn chainloads(&self, mac: MacAddress, at: Timestamp) -> u8 {
        let chain = self.chains.get(&mac);
        chain
            .filter(|chain| chain.is_live(at))
            .map_or(0, |chain| chain.count)
    }

    fn count_chainload(&mut self, mac: MacAddress, xid: u32, at: Timestamp) {
        if self.chains.len() >= CHAINS_MAX && !self.chains.contains_key(&mac) {
            self.chains.retain(|_, chain| chain.is_live(at));
            if self.chains.len() >= CHAINS_MAX {
                self.counters.ignored("chain_not_counted");
                return;
            }
        }
        let chain = self.chains.entry(mac).or_insert(Chain {
            count: 0,
            xid: !xid,
            last: at,
        });
        if !chain.is_live(at) {
            chain.count = 0;
        }
        if chain.xid != xid {
            chain.count = chain.count.saturating_add(1);
        }
        (chain.xid, chain.last) = (xid, at);
    }

    /// A lease must be on disk before its acknowledgement leaves; the loop does not wait for that.
    fn lease(&self, lease: LeaseAsked, told: &Reply, reply: &[u8], from: SocketAddrV4) {
        let Ok(permit) = Arc::clone(&self.leases).try_acquire_owned() else {
            self.counters.ignored("leases_pending");
            return;
        };
        let (controller, sockets) = (self.controller.clone(), Arc::clone(&self.sockets));
        let (served, counters) = (self.served.clone(), Arc::clone(&self.counters));
        let (destination, reply) = (told.destination, reply.to_vec());
        self.runtime.spawn(async move {
            let _permit = permit;
            match controller.apply(Event::LeaseAsked(lease)).await {
                Ok(Outcome::Lease(true)) => {
                    let mut post = Post::new(served, sockets, counters, 1, PACKET_MAX);
                    post.put(&reply, destination, Port::Server, from);
                    post.flush();
                }
                // The address went to somebody else meanwhile: the client asks again and is refused.
                Ok(_) => counters.ignored("lease_taken"),
                Err(error) => {
                    counters.ignored("lease_not_written");
                    warn!("lending an address failed, so the machine was not answered: {error}");
                }
            }
        });
    }
}

fn ignored(message: &'static str, reason: &'static str) -> Fact {
    Fact::DhcpIgnored {
        message: message.into(),
        reason: reason.into(),
    }
}

fn word(ask: Ask) -> &'static str {
    match ask {
        Ask::Discover => "DISCOVER",
        Ask::Request => "REQUEST",
        Ask::Decline => "DECLINE",
        Ask::Release => "RELEASE",
        Ask::Inform => "INFORM",
    }
}

fn nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

impl Chain {
    fn is_live(&self, at: Timestamp) -> bool {
        at.millis_since(self.last) < CHAIN_SECONDS * 1000
    }
}
