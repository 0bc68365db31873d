//! HTTP for the machines that boot: scripts, configs, loaders, artefacts, reports.
//!
//! Listens on the provisioning links alone, plain on one port and over TLS on another, and keeps
//! every client within limits: connections in all and by peer, bytes and time of a request, a
//! slowest pace of reading. What is refused is counted by its reason.
//!
//! ```text
//!   listener --> connection --> wire (bytes to request) --> boot (what a machine may have)
//!                                                      \--> artifact (a file by its digest)
//! ```
//!
//! A server of its own instead of a library's, because an artefact leaves by sendfile(2) on the
//! very connection that brought the script: iPXE keeps one for everything.

mod artifact;
pub(crate) mod boot;
pub mod clusters;
mod connection;
pub mod control;
mod delivery;
pub mod events;
pub mod handout;
mod listen;
mod oauth;
mod report;
pub mod rights;
pub mod web;
mod wire;
pub mod words;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use images::{Depot, Loaders};
use netboot::attempt::{Fact, TransferOutcome};
use netboot::net::{Digest, LinkName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tracing::debug;

pub use artifact::Pace;
pub use listen::{Http, start};
pub use wire::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Method, Parsed, Request, parse};

use crate::clusters::keyring::Keyring;
use crate::controller::Controller;
use crate::ledger::Ledger;
use crate::probe::talos::sink::Sink;
use crate::tls::SiteCa;

/// A connection, plain or over TLS.
type Wire = Either<TcpStream, TlsStream<TcpStream>>;

/// What a client may take of us.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections_max: usize,
    pub connections_of_peer_max: usize,
    /// For a request's head, and for a TLS handshake.
    pub head_time: Duration,
    pub body_time: Duration,
    /// For what must be on disk before its answer leaves: Ignition waits ten seconds for an answer's
    /// head (internal/resource/http.go).
    pub write_time: Duration,
    /// Between two requests.
    pub idle_time: Duration,
    /// The same when three quarters of all connections are taken.
    pub idle_time_crowded: Duration,
    pub pace: Pace,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            connections_of_peer_max: 512,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(8),
            idle_time: Duration::from_secs(75),
            idle_time_crowded: Duration::from_secs(5),
            // A machine on a 10 Mbit/s line reads seventy times as fast.
            pace: Pace {
                window: Duration::from_secs(30),
                bytes: 512 * 1024,
            },
        }
    }
}

/// Why a client got less than it asked for. Each has its own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Malformed,
    Version,
    Method,
    HeadTooLarge,
    HeadTooSlow,
    BodyTooLarge,
    BodyTooSlow,
    BodyWithoutLength,
    UnknownPath,
    UnknownArtifact,
    Precondition,
    ForeignSource,
    ConfigWithheld,
    NotItsTurn,
    ConfigSpent,
    ConfigUnderWay,
    NoFlowToken,
    ReportWithheld,
    ReportUnreadable,
    NotWritten,
    Broken,
    ReaderTooSlow,
    TooManyConnections,
    TooManyOfPeer,
    Tls,
}

impl Refusal {
    pub const ALL: [Self; 25] = [
        Self::Malformed,
        Self::Version,
        Self::Method,
        Self::HeadTooLarge,
        Self::HeadTooSlow,
        Self::BodyTooLarge,
        Self::BodyTooSlow,
        Self::BodyWithoutLength,
        Self::UnknownPath,
        Self::UnknownArtifact,
        Self::Precondition,
        Self::ForeignSource,
        Self::ConfigWithheld,
        Self::NotItsTurn,
        Self::ConfigSpent,
        Self::ConfigUnderWay,
        Self::NoFlowToken,
        Self::ReportWithheld,
        Self::ReportUnreadable,
        Self::NotWritten,
        Self::Broken,
        Self::ReaderTooSlow,
        Self::TooManyConnections,
        Self::TooManyOfPeer,
        Self::Tls,
    ];

    /// The counter's label.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.told().1
    }

    /// The status, the label, and what the client is told: outside words only.
    fn told(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Malformed => (400, "malformed", "this is not HTTP/1.1 as RFC 9112 has it"),
            Self::Version => (505, "version", "speak HTTP/1.1"),
            Self::Method => (405, "method", "only GET, HEAD and POST are understood here"),
            Self::HeadTooLarge => (431, "head-too-large", "send a shorter request head"),
            Self::HeadTooSlow => (408, "head-too-slow", "send the request head faster"),
            Self::BodyTooLarge => (413, "body-too-large", "send at most 64 KiB"),
            Self::BodyTooSlow => (408, "body-too-slow", "send the request body faster"),
            Self::BodyWithoutLength => (
                411,
                "body-without-length",
                "send the body with a Content-Length",
            ),
            Self::UnknownPath => (404, "unknown-path", "there is nothing at this path"),
            Self::UnknownArtifact => (
                404,
                "unknown-artifact",
                "the depot has no file of this digest",
            ),
            Self::Precondition => (412, "precondition", "the file is another one than expected"),
            Self::ForeignSource => (
                403,
                "foreign-source",
                "this address is of no network served here",
            ),
            Self::ConfigWithheld => (403, "config-withheld", "refused"),
            // Whoever may have it later asks again: 503 ends no installer, 403 does.
            Self::NotItsTurn => (503, "not-its-turn", "not yet, ask again"),
            // It never comes, but whoever asks again harms nothing until its machine is started anew.
            Self::ConfigSpent => (503, "config-spent", "not again in this boot"),
            Self::ConfigUnderWay => (503, "config-under-way", "it is being sent, ask again"),
            Self::NoFlowToken => (401, "no-flow-token", "refused"),
            Self::ReportWithheld => (403, "report-withheld", "refused"),
            Self::ReportUnreadable => (
                400,
                "report-unreadable",
                "send one report as the agent protocol has it",
            ),
            Self::NotWritten => (
                503,
                "not-written",
                "the state could not be written down, ask again",
            ),
            Self::Broken => (500, "broken", "something is wrong here, ask the operator"),
            Self::ReaderTooSlow => (408, "reader-too-slow", "read faster"),
            Self::TooManyConnections => (
                503,
                "too-many-connections",
                "too many connections, come again",
            ),
            Self::TooManyOfPeer => (
                503,
                "too-many-of-peer",
                "too many connections of one address",
            ),
            Self::Tls => (400, "tls", "the TLS handshake failed"),
        }
    }
}

/// What was answered and what was refused since the start.
#[derive(Debug)]
pub struct Counters {
    refused: [AtomicU64; Refusal::ALL.len()],
    answered: [AtomicU64; 6],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            answered: Default::default(),
        }
    }
}

impl Counters {
    fn refuse(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn answered(&self, status: u16) {
        self.answered[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        let count = |refusal: Refusal| self.refused[refusal as usize].load(Ordering::Relaxed);
        Refusal::ALL
            .into_iter()
            .map(move |refusal| (refusal, count(refusal)))
    }

    /// How often this reason was met.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize].load(Ordering::Relaxed)
    }

    /// Answers whose status begins with this digit, 1 to 5.
    #[must_use]
    pub fn answers(&self, hundreds: u16) -> u64 {
        self.answered
            .get(usize::from(hundreds))
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// A reply before it is bytes.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    body: Body,
    /// The file that it sends, for the ledger.
    transfer: Option<Told>,
    /// The delivery that it is.
    delivery: Option<delivery::Delivery>,
}

#[derive(Debug)]
enum Body {
    Bytes(Bytes),
    File(artifact::Slice),
}

/// What the ledger is told of a file that was asked for.
#[derive(Debug)]
struct Told {
    file: String,
    digest: Option<Digest>,
    offset: u64,
    size: u64,
}

impl Reply {
    fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Bytes(Bytes::new()),
            transfer: None,
            delivery: None,
        }
    }

    fn text(status: u16, body: impl Into<Bytes>) -> Self {
        let reply = Self::empty(status).with("Content-Type", "text/plain; charset=utf-8");
        Self {
            body: Body::Bytes(body.into()),
            ..reply
        }
        .with("Cache-Control", "no-store")
    }

    fn refused(refusal: Refusal) -> Self {
        let (status, _, words) = refusal.told();
        let reply = Self::text(status, format!("{words}\n"));
        match status {
            // RFC 9110, 11.6.1: a 401 names its scheme.
            401 => reply.with("WWW-Authenticate", "Bearer"),
            405 => reply.with("Allow", "GET, HEAD, POST"),
            // iPXE asks again by itself whenever a failing status carries this.
            503 => reply.with("Retry-After", "5"),
            _ => reply,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Who asks, where.
#[derive(Clone, Debug)]
struct Origin {
    peer: Ipv4Addr,
    /// Our end: what the URLs of a script begin with.
    local: SocketAddrV4,
    link: LinkName,
}

/// All that an answer is made from.
struct Server {
    depot: Depot,
    loaders: Arc<Loaders>,
    controller: Controller,
    ledger: Ledger,
    ca: Arc<SiteCa>,
    ports: Ports,
    limits: Limits,
    sink: Arc<Sink>,
    counters: Counters,
    keyring: Arc<Keyring>,
    deliveries: delivery::Desk,
    flow: oauth::Flow,
    seats: Mutex<HashMap<Ipv4Addr, usize>>,
    taken: AtomicUsize,
}

/// What a server is made of.
pub struct Parts {
    pub depot: Depot,
    pub loaders: Arc<Loaders>,
    pub controller: Controller,
    pub ledger: Ledger,
    pub ca: Arc<SiteCa>,
    pub ports: Ports,
    /// The secrets of clusters, which their members' configs are made from.
    pub keyring: Arc<Keyring>,
    /// What the device flow's codes are derived from.
    pub flow_key: [u8; 32],
    pub limits: Limits,
}

/// The ports of boot HTTP on every provisioning link.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub plain: u16,
    pub tls: u16,
    /// What is served there is another protocol: the events of Talos machines.
    pub events: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            plain: 8080,
            tls: 8443,
            events: 8444,
        }
    }
}

impl Server {
    fn new(parts: Parts) -> Self {
        let Parts {
            depot,
            loaders,
            controller,
            ledger,
            ca,
            ports,
            keyring,
            flow_key,
            limits,
        } = parts;
        Self {
            sink: Arc::new(Sink::new(controller.clone(), ledger.clone())),
            depot,
            loaders,
            controller,
            ledger,
            ca,
            ports,
            keyring,
            limits,
            counters: Counters::default(),
            deliveries: delivery::Desk::default(),
            flow: oauth::Flow::new(flow_key),
            seats: Mutex::default(),
            taken: AtomicUsize::new(0),
        }
    }

    fn connections(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Three quarters of all connections are taken: nobody may sit idle.
    fn crowded(&self) -> bool {
        self.connections() > self.limits.connections_max / 4 * 3
    }

    fn note_transfer(
        &self,
        origin: &Origin,
        request: &Request,
        told: &Told,
        bytes: u64,
        outcome: &Result<(), artifact::Cut>,
        millis: u64,
    ) {
        let outcome = match outcome {
            Ok(()) if request.method == Method::Head => TransferOutcome::SizeOnly,
            Ok(()) => TransferOutcome::Complete,
            Err(artifact::Cut::Slow) => TransferOutcome::TimedOut,
            Err(artifact::Cut::Gone) => TransferOutcome::Aborted,
        };
        let fact = Fact::Transfer {
            protocol: "http".into(),
            file: told.file.clone(),
            digest: told.digest,
            offset: told.offset,
            bytes,
            size: told.size,
            millis,
            retransmits: 0,
            outcome,
        };
        self.note(origin, fact);
    }

    /// Notes a fact about the machine whose reserved address asks.
    fn note(&self, origin: &Origin, fact: Fact) {
        let site = self.controller.snapshot().load();
        let node = site.spec().node_by_address(origin.peer);
        let mac = node.and_then(|node| node.link_at(origin.peer)?.macs.first().copied());
        self.ledger.note(mac, node.map(|node| &node.name), fact);
    }
}

/// A place among the connections, given back when it is dropped.
struct Seat {
    server: Arc<Server>,
    peer: Ipv4Addr,
}

impl Seat {
    fn take(server: &Arc<Server>, peer: Ipv4Addr) -> Result<Self, Refusal> {
        if server.connections() >= server.limits.connections_max {
            return Err(Refusal::TooManyConnections);
        }
        let mut seats = server.seats.lock().expect("no holder of the seats panics");
        let of_peer = seats.entry(peer).or_default();
        if *of_peer >= server.limits.connections_of_peer_max {
            return Err(Refusal::TooManyOfPeer);
        }
        *of_peer += 1;
        drop(seats);
        server.taken.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            server: Arc::clone(server),
            peer,
        })
    }

    async fn serve(self, stream: TcpStream, origin: Origin, tls: Option<TlsAcceptor>) {
        let server = &*self.server;
        let wire = match tls {
            None => Wire::Left(stream),
            Some(tls) => match timeout(server.limits.head_time, tls.accept(stream)).await {
                Ok(Ok(stream)) => Wire::Right(stream),
                Ok(Err(error)) => {
                    debug!(peer = %origin.peer, %error, "TLS handshake failed");
                    return server.counters.refuse(Refusal::Tls);
                }
                Err(_) => return server.counters.refuse(Refusal::Tls),
            },
        };
        connection::converse(server, wire, &origin).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.server.taken.fetch_sub(1, Ordering::Relaxed);
        let mut seats = self
            .server
            .seats
            .lock()
            .expect("no holder of the seats panics");
        if let Some(of_peer) = seats.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                seats.remove(&self.peer);
            }
        }
    }
}
