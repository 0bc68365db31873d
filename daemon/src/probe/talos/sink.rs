//! Where Talos machines tell how far they are: the server behind the kernel argument `talos.events.sink=<ip:port>`.
//!
//! ```text
//!   installing ──▶ rebooting ──▶ booting ──▶ running ──▶ running, ready; in between what is amiss, such as `time: …`
//! ```
//!
//! A machine connects when its network is up, in clear and with no proof of who it is, and publishes its events one by
//! one (siderolabs/siderolink `api/events/events.proto`). So they are hints for people: known by the source address of
//! a listed machine, kept in the ledger, and no decision rests on one.
//!
//! Ugly facts. After each lost connection all events come again, told from new ones by their number alone
//! (siderolabs/talos `internal/app/machined/pkg/controllers/runtime/events_sink.go`). A machine that gets an error for an
//! event sends that event again for ever, so whatever can be read is taken, understood or not.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use netboot::attempt::{Fact, Word};
use netboot::net::NodeName;
use netboot::spec::SiteSpec;
use prost::Message;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::access::one_line;
use super::wire::{Any, ConfigError, EventRequest, MachineStatus, SequenceEvent, Stage};
use crate::controller::{Controller, now};
use crate::ledger::Ledger;
use crate::status::Progress;

const PUBLISH: &str = "/events.EventSinkService/Publish";
/// An event may have this many bytes; a machine's status has a few hundred.
const EVENT_BYTES_MAX: usize = 64 * 1024;
const HEAD_BYTES_MAX: u32 = 8 * 1024;
/// Connections in all. With one event at a time on each, what they hold is bounded.
const CONNECTIONS_MAX: usize = 2048;
/// A machine has one, and perhaps an old one that it does not know is dead.
const CONNECTIONS_OF_PEER_MAX: usize = 2;
/// For one event to arrive.
const EVENT_TIME: Duration = Duration::from_secs(10);
/// A machine that lost power is noticed within this and [`PING_TIME`].
const PING_PAUSE: Duration = Duration::from_secs(60);
const PING_TIME: Duration = Duration::from_secs(20);
/// Events of one machine by which it is known whether one comes again. Events that tell nothing don't count.
const REMEMBERED: usize = 64;

/// Takes events. Its connections end by themselves.
pub struct Sink {
    controller: Controller,
    ledger: Ledger,
    seats: Mutex<BTreeMap<Ipv4Addr, usize>>,
    stories: Mutex<BTreeMap<NodeName, Story>>,
    counts: [AtomicU64; Outcome::ALL.len()],
}

/// What one machine told.
#[derive(Default)]
struct Story {
    /// The hashes of the latest events' numbers.
    heard: VecDeque<u64>,
    progress: Option<Progress>,
}

/// Whether any machine may boot Talos, whose kernel arguments have a prefix of their own. Where none does there is
/// nobody to listen to.
pub(crate) fn is_wanted(spec: &SiteSpec) -> bool {
    let mut arguments = spec.profiles().flat_map(|profile| &profile.arguments);
    arguments.any(|argument| argument.starts_with("talos."))
}

/// What became of a connection or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Told something new.
    Noted,
    /// Was heard before.
    Repeated,
    /// Of a known type that tells nothing of progress.
    Quiet,
    /// Of a type that is not known here.
    Unknown,
    /// Of a known type, and not to be read.
    Unreadable,
    /// From no listed machine's address.
    Foreign,
    /// One connection too many.
    Crowded,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::Noted,
        Self::Repeated,
        Self::Quiet,
        Self::Unknown,
        Self::Unreadable,
        Self::Foreign,
        Self::Crowded,
    ];

    /// The counter's label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Noted => "noted",
            Self::Repeated => "repeated",
            Self::Quiet => "quiet",
            Self::Unknown => "unknown",
            Self::Unreadable => "unreadable",
            Self::Foreign => "foreign",
            Self::Crowded => "crowded",
        }
    }
}

impl Sink {
    /// A sink that notes what listed machines tell.
    #[must_use]
    pub fn new(controller: Controller, ledger: Ledger) -> Self {
        Self {
            controller,
            ledger,
            seats: Mutex::default(),
            stories: Mutex::default(),
            counts: Default::default(),
        }
    }

    /// What a machine told last, since the daemon started.
    #[must_use]
    pub fn progress(&self, node: &NodeName) -> Option<Progress> {
        lock(&self.stories).get(node)?.progress.clone()
    }

    /// Connections refused and events taken, by what became of them.
    pub fn counts(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        let count = |outcome| self.counts[outcome as usize].load(Ordering::Relaxed);
        Outcome::ALL
            .into_iter()
            .map(move |outcome| (outcome, count(outcome)))
    }

    /// Takes the events of one connection until it ends.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, peer: Ipv4Addr) {
        let listed = || {
            self.controller
                .snapshot()
                .load()
                .spec()
                .node_by_address(peer)
                .is_some()
        };
        if !listed() {
            return self.count(Outcome::Foreign);
        }
        let Some(_seat) = Seat::take(&self, peer) else {
            return self.count(Outcome::Crowded);
        };
        let answer = service_fn(|request| answer(Arc::clone(&self), peer, request));
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(1)
            .max_header_list_size(HEAD_BYTES_MAX)
            .keep_alive_interval(PING_PAUSE)
            .keep_alive_timeout(PING_TIME)
            .serve_connection(TokioIo::new(stream), answer)
            .await;
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "a connection for events ended");
        }
    }

    /// Takes one event from this address.
    fn take(&self, peer: Ipv4Addr, event: &EventRequest) -> Outcome {
        let site = self.controller.snapshot().load();
        let Some(node) = site.spec().node_by_address(peer) else {
            return Outcome::Foreign;
        };
        let (stage, detail) = match read(event.data.as_ref()) {
            Ok(told) => told,
            Err(outcome) => return outcome,
        };
        let fact = Fact::Progress { stage, detail };
        let mut stories = lock(&self.stories);
        if !stories.contains_key(&node.name) {
            stories.retain(|name, _| site.spec().node(name).is_some());
        }
        let story = stories.entry(node.name.clone()).or_default();
        if story.knows(&event.id) {
            return Outcome::Repeated;
        }
        story.progress = Some(Progress {
            at: now(),
            words: fact.to_string(),
        });
        drop(stories);
        let mac = node.link_at(peer).and_then(|link| link.macs.first());
        self.ledger.note(mac.copied(), Some(&node.name), fact);
        Outcome::Noted
    }

    fn count(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Story {
    /// Whether the event of this number was heard, and that it is now. An event without a number is always new.
    fn knows(&mut self, id: &str) -> bool {
        if id.is_empty() {
            return false;
        }
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let id = hasher.finish();
        if self.heard.contains(&id) {
            return true;
        }
        self.heard.truncate(REMEMBERED - 1);
        self.heard.push_front(id);
        false
    }
}

/// What an event tells of its machine's progress: the stage, and what is amiss.
fn read(data: Option<&Any>) -> Result<(Word, Option<String>), Outcome> {
    let Any { type_url, value } = data.ok_or(Outcome::Unreadable)?;
    // `type.googleapis.com/` is before the name, whatever the host (google/protobuf/any.proto).
    let name = type_url.rsplit('/').next().unwrap_or_default();
    match name {
        "machine.MachineStatusEvent" => status(&decode(value)?),
        "machine.ConfigLoadErrorEvent" => {
            let ConfigError { error } = decode(value)?;
            Ok(("config-not-loaded".into(), Some(one_line(&error))))
        }
        "machine.ConfigValidationErrorEvent" => {
            let ConfigError { error } = decode(value)?;
            Ok(("config-not-valid".into(), Some(one_line(&error))))
        }
        "machine.SequenceEvent" => {
            let SequenceEvent { sequence, error } = decode(value)?;
            let error = error.ok_or(Outcome::Quiet)?.message;
            let detail = one_line(&format!("{sequence}: {error}"));
            Ok(("sequence-failed".into(), Some(detail)))
        }
        "machine.PhaseEvent"
        | "machine.TaskEvent"
        | "machine.ServiceStateEvent"
        | "machine.RestartEvent"
        | "machine.AddressEvent" => Err(Outcome::Quiet),
        _ => Err(Outcome::Unknown),
    }
}

fn decode<M: Message + Default>(value: &[u8]) -> Result<M, Outcome> {
    M::decode(value).map_err(|_| Outcome::Unreadable)
}

fn status(told: &MachineStatus) -> Result<(Word, Option<String>), Outcome> {
    let status = told.status.clone().unwrap_or_default();
    let amiss: Vec<String> = status
        .unmet_conditions
        .iter()
        .map(|unmet| format!("{}: {}", unmet.name, unmet.reason))
        .collect();
    let stage = match (told.stage(), status.ready) {
        (Stage::Running, true) => "ready",
        (stage, _) => stage.word(),
    };
    let detail = (!amiss.is_empty()).then(|| one_line(&amiss.join("; ")));
    Ok((stage.into(), detail))
}

async fn answer(
    sink: Arc<Sink>,
    peer: Ipv4Addr,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    if request.uri().path() != PUBLISH {
        return Ok(Status::unimplemented("only events are taken here").into_http());
    }
    let mut grpc = Grpc::new(ProstCodec::<(), EventRequest>::default())
        .max_decoding_message_size(EVENT_BYTES_MAX);
    let taken = timeout(EVENT_TIME, grpc.unary(Publish { sink, peer }, request)).await;
    Ok(taken.unwrap_or_else(|_| Status::deadline_exceeded("send events faster").into_http()))
}

struct Publish {
    sink: Arc<Sink>,
    peer: Ipv4Addr,
}

impl UnaryService<EventRequest> for Publish {
    type Response = ();
    type Future = Ready<Result<Response<()>, Status>>;

    fn call(&mut self, request: Request<EventRequest>) -> Self::Future {
        let outcome = self.sink.take(self.peer, request.get_ref());
        self.sink.count(outcome);
        ready(Ok(Response::new(())))
    }
}

/// A place among the connections, given back when it is dropped.
struct Seat<'a> {
    sink: &'a Sink,
    peer: Ipv4Addr,
}

impl<'a> Seat<'a> {
    fn take(sink: &'a Sink, peer: Ipv4Addr) -> Option<Self> {
        let mut seats = lock(&sink.seats);
        let taken: usize = seats.values().sum();
        let of_peer = seats.entry(peer).or_default();
        if taken >= CONNECTIONS_MAX || *of_peer >= CONNECTIONS_OF_PEER_MAX {
            seats.retain(|_, count| *count > 0);
            return None;
        }
        *of_peer += 1;
        drop(seats);
        Some(Self { sink, peer })
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut seats = lock(&self.sink.seats);
        if let Some(count) = seats.get_mut(&self.peer) {
            *count -= 1;
        }
        seats.retain(|_, count| *count > 0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every write under these locks is whole before anything in it can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::talos::wire::{Readiness, SequenceError, UnmetCondition};

    fn event(name: &str, value: &impl Message) -> Any {
        Any {
            type_url: format!("type.googleapis.com/machine.{name}"),
            value: value.encode_to_vec(),
        }
    }

    fn status_of(stage: Stage, ready: bool, unmet: &[(&str, &str)]) -> Any {
        let unmet = unmet.iter().map(|(name, reason)| UnmetCondition {
            name: (*name).to_owned(),
            reason: (*reason).to_owned(),
        });
        let status = MachineStatus {
            stage: stage.into(),
            status: Some(Readiness {
                ready,
                unmet_conditions: unmet.collect(),
            }),
        };
        event("MachineStatusEvent", &status)
    }

    fn words(any: &Any) -> String {
        let (stage, detail) = read(Some(any)).expect("an event that tells something");
        Fact::Progress { stage, detail }.to_string()
    }

    #[test]
    fn a_machines_status_is_its_stage_and_what_is_amiss() {
        assert_eq!(
            words(&status_of(Stage::Installing, false, &[])),
            "says that it is installing"
        );
        let waits = [("time", "time is not synced"), ("nodeReady", "not yet")];
        assert_eq!(
            words(&status_of(Stage::Running, false, &waits)),
            "says that it is running; time: time is not synced; nodeReady: not yet"
        );
        assert_eq!(
            words(&status_of(Stage::Running, true, &[])),
            "says that it is ready"
        );
        // Ready for this stage is not the end of the way.
        assert_eq!(
            words(&status_of(Stage::Booting, true, &[])),
            "says that it is booting"
        );
    }

    #[test]
    fn a_config_that_was_not_taken_and_a_sequence_that_failed_are_told_in_the_machines_words() {
        let error = ConfigError {
            error: "no\nsuch key".to_owned(),
        };
        let loading = event("ConfigLoadErrorEvent", &error);
        assert_eq!(
            words(&loading),
            "says that it is config-not-loaded; no such key"
        );
        let failed = SequenceEvent {
            sequence: "install".to_owned(),
            error: Some(SequenceError {
                message: "no disk".to_owned(),
            }),
        };
        let failed = event("SequenceEvent", &failed);
        assert_eq!(
            words(&failed),
            "says that it is sequence-failed; install: no disk"
        );
    }

    #[test]
    fn what_tells_nothing_is_told_apart_from_what_is_not_known_or_not_to_be_read() {
        let sequence = event("SequenceEvent", &SequenceEvent::default());
        assert_eq!(read(Some(&sequence)), Err(Outcome::Quiet));
        assert_eq!(read(Some(&event("TaskEvent", &()))), Err(Outcome::Quiet));
        assert_eq!(read(Some(&event("LaterEvent", &()))), Err(Outcome::Unknown));
        assert_eq!(read(Some(&Any::default())), Err(Outcome::Unknown));
        assert_eq!(read(None), Err(Outcome::Unreadable));
        let mut broken = status_of(Stage::Running, true, &[]);
        broken.value.truncate(3);
        assert_eq!(read(Some(&broken)), Err(Outcome::Unreadable));
    }

    #[test]
    fn an_event_that_comes_again_is_known_until_many_others_came() {
        let mut story = Story::default();
        assert!(!story.knows("a"));
        assert!(story.knows("a"));
        for number in 0..REMEMBERED {
            assert!(!story.knows(&number.to_string()));
        }
        assert_eq!(story.heard.len(), REMEMBERED);
        assert!(!story.knows("a"));
        assert!(!story.knows("") && !story.knows(""));
    }
}
