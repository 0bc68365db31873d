//! The balancer: TCP connections to a cluster's ports, given to the machines that answer them in this phase.
//!
//! ```text
//!   Vec<Listener> ──> follower ── gates, doors ──> workers (threads): accept, connect, move bytes
//!   links ─────────┘     └─ one check a target ──> health, which workers read at each connection
//! ```
//!
//! The follower turns what is wanted into listening sockets and pools of backends. A changed set is a new pool behind
//! the same socket, so no connection notices; a backend that left finishes what it has, for as long as the limits say.
//! Listening sockets are left with the service manager, so a restart refuses nobody.

pub(crate) mod check;
pub mod command;
pub mod feed;
mod flow;
pub mod haproxy;
mod listen;
mod peer;
mod pool;
mod words;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netboot::endpoint::{Check, Listener, Place};
use socket2::Socket;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::handover::{self, Inheritance};
use crate::link::Links;
use listen::Spot;
pub use pool::Limits;
use pool::{Counters, Gate, Health, Pool, Target};
pub use words::{BackendStatus, ListenerStatus, Totals};
use worker::{Door, Worker};

/// How often what could not be had is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// For how long sockets of the last process wait to be wanted: the site is read and links are there long before.
const INHERITED: Duration = Duration::from_secs(20);
/// For connections under way when the daemon stops; within what its servers have.
const FINISH: Duration = Duration::from_secs(3);
/// More threads than this would share too few connections.
const WORKERS_MAX: usize = 4;

/// What the balancer does, for whoever asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Balancer(Arc<Mutex<View>>);

/// What an engine shows of itself.
#[derive(Debug)]
enum View {
    /// The embedded engine's listeners, read when somebody asks.
    Ours(BTreeMap<Key, Shown>),
    /// What another one said last.
    Said(Vec<ListenerStatus>),
}

impl Default for View {
    fn default() -> Self {
        Self::Said(Vec::new())
    }
}

/// A cluster's name and a port.
type Key = (String, u16);

/// One listener as it is shown.
#[derive(Clone, Debug)]
struct Shown {
    listener: Listener,
    gate: Arc<Gate>,
    open: Vec<SocketAddrV4>,
    fault: Option<String>,
    targets: Vec<(Arc<Target>, bool)>,
    leaving: Vec<Arc<Target>>,
}

impl Balancer {
    /// Every listener, in the order of clusters and ports.
    #[must_use]
    pub fn status(&self) -> Vec<ListenerStatus> {
        match &*self.view() {
            View::Ours(shown) => shown.values().map(Shown::status).collect(),
            View::Said(said) => said.clone(),
        }
    }

    fn say(&self, said: Vec<ListenerStatus>) {
        *self.view() = View::Said(said);
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn status(&self) -> ListenerStatus {
        let counters = &self.gate.counters;
        let there = self.targets.iter().map(|(target, spare)| {
            let health = match target.health() {
                Health::Up => "up",
                Health::Down => "down",
                Health::Unknown => "unknown",
            };
            backend(target, *spare, health)
        });
        let leaving = self.leaving.iter().filter(|target| target.open() > 0);
        let leaving = leaving.map(|target| backend(target, false, "leaving"));
        ListenerStatus {
            cluster: self.listener.cluster.clone(),
            name: self.listener.name.clone(),
            port: self.listener.port,
            addresses: self.open.clone(),
            fault: self.fault.clone(),
            connections: self.gate.open.load(Relaxed) as u64,
            totals: Totals {
                accepted: counters.accepted.load(Relaxed),
                retried: counters.retried.load(Relaxed),
                unserved: counters.unserved.load(Relaxed),
                crowded: counters.crowded.load(Relaxed),
                expired: counters.expired.load(Relaxed),
                bytes_in: counters.up.load(Relaxed),
                bytes_out: counters.down.load(Relaxed),
            },
            backends: there.chain(leaving).collect(),
        }
    }
}

fn backend(target: &Target, spare: bool, health: &str) -> BackendStatus {
    BackendStatus {
        node: target.node.clone(),
        address: target.address,
        health: health.to_owned(),
        spare,
        connections: target.open() as u64,
        served: target.served.load(Relaxed),
        failed: target.failed.load(Relaxed),
        detail: target.words.load().to_string(),
    }
}

/// What serves the listeners; [`Balancing::run`] does it.
pub struct Balancing {
    balancer: Balancer,
    limits: Limits,
    house: Arc<AtomicUsize>,
    workers: Vec<Worker>,
    ended: Vec<oneshot::Receiver<()>>,
    inheritance: Inheritance,
    running: BTreeMap<Key, Running>,
    checks: JoinSet<()>,
    numbers: u64,
}

/// One listener at work.
struct Running {
    gate: Arc<Gate>,
    targets: BTreeMap<SocketAddrV4, Watched>,
    leaving: Vec<Arc<Target>>,
    doors: BTreeMap<Spot, (u64, Arc<Socket>)>,
    fault: Option<String>,
}

/// A target, and the task that looks at it.
struct Watched {
    target: Arc<Target>,
    check: (Check, bool),
    watching: AbortHandle,
}

/// Starts the workers; nothing is listened on yet.
///
/// # Errors
/// The kernel gives no thread, epoll or eventfd.
pub fn start(limits: Limits, inheritance: Inheritance) -> io::Result<(Balancer, Balancing)> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let started: io::Result<Vec<_>> = (0..count.min(WORKERS_MAX)).map(Worker::start).collect();
    let (workers, ended) = started?.into_iter().unzip();
    let balancer = Balancer::default();
    let balancing = Balancing {
        balancer: balancer.clone(),
        limits,
        house: Arc::default(),
        workers,
        ended,
        inheritance,
        running: BTreeMap::new(),
        checks: JoinSet::new(),
        numbers: 0,
    };
    Ok((balancer, balancing))
}

impl Balancing {
    /// Serves what is wanted until `stop`, then lets connections finish for a moment.
    ///
    /// # Errors
    /// A worker ended by itself, or nobody says any more what is wanted.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<Arc<Vec<Listener>>>,
        mut links: watch::Receiver<Arc<Links>>,
        stop: CancellationToken,
    ) -> Result<(), &'static str> {
        let started = Instant::now();
        let mut again = tokio::time::interval(RETRY);
        let worker_ended = any_of(std::mem::take(&mut self.ended));
        tokio::pin!(worker_ended);
        loop {
            let listeners = Arc::clone(&wanted.borrow_and_update());
            let there = Arc::clone(&links.borrow_and_update());
            self.converge(&listeners, &there);
            if started.elapsed() > INHERITED {
                self.inheritance.renounce();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = &mut worker_ended => return Err("a worker of the balancer ended"),
                changed = wanted.changed() => changed.map_err(|_| "nobody says what is wanted")?,
                changed = links.changed() => changed.map_err(|_| "nobody follows the links")?,
                _ = again.tick() => {}
            }
        }
        let until = Instant::now() + FINISH;
        for worker in &self.workers {
            worker.finish(until);
        }
        // The listening sockets close only with this value: until then the kernel goes on queueing, for whoever
        // the service manager gives them to next.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
        Ok(())
    }

    fn converge(&mut self, wanted: &[Listener], links: &Links) {
        let keys: BTreeMap<Key, &Listener> = wanted
            .iter()
            .map(|listener| ((listener.cluster.clone(), listener.port), listener))
            .collect();
        let gone: Vec<Key> = self
            .running
            .keys()
            .filter(|key| !keys.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            if let Some(running) = self.running.remove(&key) {
                self.end(&running);
            }
        }
        let mut shown = BTreeMap::new();
        for (key, listener) in keys {
            let mut running = match self.running.remove(&key) {
                Some(running) => running,
                None => self.begin(listener),
            };
            self.set_pool(&mut running, listener);
            self.set_doors(&mut running, listener, links);
            shown.insert(key.clone(), running.shown(listener));
            self.running.insert(key, running);
        }
        *self.balancer.view() = View::Ours(shown);
    }

    fn begin(&self, listener: &Listener) -> Running {
        let pool = Pool::new(listener.balance, listener.proxy_protocol, Vec::new());
        let gate = Gate {
            pool: ArcSwap::from_pointee(pool),
            limits: self.limits,
            house: Arc::clone(&self.house),
            counters: Counters::default(),
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        };
        Running {
            gate: Arc::new(gate),
            targets: BTreeMap::new(),
            leaving: Vec::new(),
            doors: BTreeMap::new(),
            fault: None,
        }
    }

    fn end(&self, running: &Running) {
        for (spot, (id, _)) in &running.doors {
            self.close(spot, *id);
        }
        for watched in running.targets.values() {
            watched.leave();
        }
    }

    /// Puts the wanted backends behind the gate. The ones that stay keep their health and their connections.
    fn set_pool(&mut self, running: &mut Running, listener: &Listener) {
        let check = (listener.check.clone(), listener.proxy_protocol);
        let wanted: BTreeMap<SocketAddrV4, _> = listener
            .backends
            .iter()
            .map(|backend| (backend.address, backend))
            .collect();
        let stays = |at: &SocketAddrV4, watched: &Watched| {
            let node = wanted.get(at).map(|backend| &backend.node);
            node == Some(&watched.target.node) && watched.check == check
        };
        let leaving = running
            .targets
            .extract_if(.., |at, watched| !stays(at, watched));
        for (_, watched) in leaving {
            watched.leave();
            running.leaving.push(watched.target);
        }
        running.leaving.retain(|target| target.open() > 0);
        for (at, backend) in &wanted {
            if running.targets.contains_key(at) {
                continue;
            }
            info!(listener = %listener.label(), node = %backend.node, address = %at, "backend joins");
            let back = running
                .leaving
                .iter()
                .position(|target| target.address == *at && target.node == backend.node);
            let target = match back {
                Some(place) => running.leaving.swap_remove(place),
                None => Arc::new(Target::new(backend.node.clone(), *at)),
            };
            target.set_left(None);
            let (probe, proxied) = check.clone();
            let watching = check::watch(Arc::clone(&target), probe, proxied, listener.label());
            let watching = self.checks.spawn(watching);
            let watched = Watched {
                target,
                check: check.clone(),
                watching,
            };
            running.targets.insert(*at, watched);
        }
        while self.checks.try_join_next().is_some() {}
        let targets: Vec<_> = listener
            .backends
            .iter()
            .filter_map(|backend| {
                let watched = running.targets.get(&backend.address)?;
                Some((Arc::clone(&watched.target), backend.spare))
            })
            .collect();
        let pool = Pool::new(listener.balance, listener.proxy_protocol, targets);
        if *running.gate.pool.load_full() != pool {
            running.gate.pool.store(Arc::new(pool));
        }
    }

    /// Listens where it is wanted and can be done.
    fn set_doors(&mut self, running: &mut Running, listener: &Listener, links: &Links) {
        let (mut spots, mut faults) = (Vec::new(), Vec::new());
        for place in &listener.places {
            match spot(place, listener, links) {
                Ok(spot) => spots.push(spot),
                Err(fault) => faults.push(fault),
            }
        }
        for spot in &spots {
            let doors = &mut running.doors;
            let moved = doors
                .keys()
                .find(|door| door.at == spot.at && !spots.contains(door));
            if let Some((old, door)) = moved.cloned().and_then(|old| doors.remove_entry(&old)) {
                let tied = listen::tie(&door.1, spot).is_ok();
                doors.insert(if tied { spot.clone() } else { old }, door);
            }
        }
        let gone = running
            .doors
            .extract_if(.., |spot, _| !spots.contains(spot));
        for (spot, (id, _)) in gone {
            self.close(&spot, id);
        }
        for spot in spots {
            if running.doors.contains_key(&spot) {
                continue;
            }
            match self.open(&spot) {
                Ok(socket) => {
                    info!(listener = %listener.label(), at = %spot.at, "taking connections");
                    self.numbers += 1;
                    for worker in &self.workers {
                        let door = Door {
                            socket: Arc::clone(&socket),
                            at: spot.at,
                            gate: Arc::clone(&running.gate),
                        };
                        worker.open(self.numbers, door);
                    }
                    running.doors.insert(spot, (self.numbers, socket));
                }
                Err(error) => faults.push(said(&spot, &error)),
            }
        }
        if listener.places.is_empty() {
            faults.push(
                "there is no link to listen on: the cluster's network has none here".to_owned(),
            );
        }
        let fault = (!faults.is_empty()).then(|| faults.join("; "));
        if let Some(fault) = fault
            .as_ref()
            .filter(|fault| running.fault.as_ref() != Some(fault))
        {
            warn!(listener = %listener.label(), "not taking connections: {fault}");
        }
        running.fault = fault;
    }

    fn open(&mut self, spot: &Spot) -> io::Result<Arc<Socket>> {
        let name = spot.name();
        if let Some(left) = self.inheritance.claim(&name) {
            if let Some(socket) = listen::adopt(spot, left) {
                return Ok(Arc::new(socket));
            }
            handover::forget(&name);
        }
        let socket = Arc::new(listen::open(spot)?);
        handover::keep(&name, &*socket);
        Ok(socket)
    }

    fn close(&self, spot: &Spot, id: u64) {
        info!(at = %spot.at, "taking no more connections");
        handover::forget(&spot.name());
        for worker in &self.workers {
            worker.close(id);
        }
    }
}

impl Running {
    fn shown(&self, listener: &Listener) -> Shown {
        Shown {
            listener: listener.clone(),
            gate: Arc::clone(&self.gate),
            open: self.doors.keys().map(|spot| spot.at).collect(),
            fault: self.fault.clone(),
            targets: self.gate.pool.load().targets.clone(),
            leaving: self.leaving.clone(),
        }
    }
}

impl Watched {
    fn leave(&self) {
        self.watching.abort();
        self.target.set_left(Some(Instant::now()));
    }
}

/// The socket of a place, as the links are now.
fn spot(place: &Place, listener: &Listener, links: &Links) -> Result<Spot, String> {
    let name = &place.link;
    let Some(link) = links.get(name.as_str()) else {
        return Err(format!(
            "there is no link {name}; it is served as soon as it appears"
        ));
    };
    if link
        .addresses
        .iter()
        .all(|have| have.addr() != place.address)
    {
        return Err(format!(
            "link {name} has no address {}; give it that one",
            place.address
        ));
    }
    Ok(Spot {
        at: SocketAddrV4::new(place.address, listener.port),
        link: listener.private.then(|| (name.clone(), link.index)),
    })
}

fn said(spot: &Spot, error: &io::Error) -> String {
    let at = spot.at;
    if error.kind() != io::ErrorKind::AddrInUse {
        return format!("{at}: {error}");
    }
    match crate::sockets::holder(at) {
        Some(who) => format!(
            "{at} is taken by {who}: stop it or bind it to another address; it is waited for"
        ),
        None => format!(
            "{at} is taken: `ss -ltnp sport = :{}` shows by whom; it is waited for",
            at.port()
        ),
    }
}

async fn any_of(receivers: Vec<oneshot::Receiver<()>>) {
    let mut waiting = JoinSet::new();
    for receiver in receivers {
        waiting.spawn(receiver);
    }
    let _ = waiting.join_next().await;
}
