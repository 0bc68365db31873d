//! Who gets the next connection of a listener.
//!
//! A [`Pool`] is one set of backends and never changes; a new set is a new pool, put into the [`Gate`] that the workers
//! look at for each connection. A [`Target`] outlives pools: its health and its count go on when the set around it
//! changes, and flows to one that left finish.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use netboot::endpoint::Balance;
use netboot::net::NodeName;
use tokio::sync::Notify;

/// What is known of a backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing was heard yet; used while nobody is known to be up.
    Unknown,
    /// Gets connections.
    Up,
    /// Gets none.
    Down,
}

/// One machine behind one listener.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) node: NodeName,
    pub(super) address: SocketAddrV4,
    health: AtomicU8,
    /// What its last check said.
    pub(super) words: ArcSwap<String>,
    /// A connection to it failed: look at once.
    pub(super) suspicion: Notify,
    open: AtomicUsize,
    pub(super) served: AtomicU64,
    pub(super) failed: AtomicU64,
    /// When it left the set.
    left: ArcSwapOption<Instant>,
}

impl Target {
    pub(super) fn new(node: NodeName, address: SocketAddrV4) -> Self {
        Self {
            node,
            address,
            health: AtomicU8::new(Health::Unknown as u8),
            words: ArcSwap::from_pointee("was not checked yet".to_owned()),
            suspicion: Notify::new(),
            open: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            left: ArcSwapOption::empty(),
        }
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Unknown,
            1 => Health::Up,
            _ => Health::Down,
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Relaxed);
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// It is in the set again, or no longer.
    pub(super) fn set_left(&self, left: Option<Instant>) {
        self.left.store(left.map(Arc::new));
    }

    /// For how long it has been out of the set.
    pub(super) fn left_for(&self, now: Instant) -> Option<Duration> {
        let left = self.left.load();
        left.as_deref()
            .map(|left| now.saturating_duration_since(*left))
    }
}

/// One connection to a target, counted as long as this lives.
#[derive(Debug)]
pub(super) struct Lease(Arc<Target>);

impl Lease {
    fn of(target: &Arc<Target>) -> Self {
        target.open.fetch_add(1, Relaxed);
        Self(Arc::clone(target))
    }

    pub(super) fn target(&self) -> &Target {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The backends of a listener at one moment.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) balance: Balance,
    /// Begin each connection with the client's address.
    pub(super) proxy_protocol: bool,
    /// Each with whether it is a spare.
    pub(super) targets: Vec<(Arc<Target>, bool)>,
    /// Ties go round.
    turn: AtomicU32,
}

/// The same backends, in the same order and roles.
impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        let same = |((one, spare), (other, other_spare)): (&(Arc<Target>, bool), &(_, bool))| {
            Arc::ptr_eq(one, other) && spare == other_spare
        };
        self.balance == other.balance
            && self.proxy_protocol == other.proxy_protocol
            && self.targets.len() == other.targets.len()
            && self.targets.iter().zip(&other.targets).all(same)
    }
}

impl Pool {
    pub(super) fn new(
        balance: Balance,
        proxy_protocol: bool,
        targets: Vec<(Arc<Target>, bool)>,
    ) -> Self {
        Self {
            balance,
            proxy_protocol,
            targets,
            turn: AtomicU32::new(0),
        }
    }

    /// The best backend for a client that was not tried yet; none when nobody is left that might answer.
    pub(super) fn choose(&self, client: Ipv4Addr, tried: &[SocketAddrV4]) -> Option<Lease> {
        let wanted = [
            (Health::Up, false),
            (Health::Up, true),
            (Health::Unknown, false),
            (Health::Unknown, true),
        ];
        wanted.into_iter().find_map(|(health, spare)| {
            let fitting = |(target, is_spare): &&(Arc<Target>, bool)| {
                *is_spare == spare && target.health() == health && !tried.contains(&target.address)
            };
            let among = self
                .targets
                .iter()
                .filter(fitting)
                .map(|(target, _)| target);
            let best = match self.balance {
                Balance::SourceHash => among.max_by_key(|target| weight(client, target.address)),
                Balance::LeastConnections => {
                    let turn = self.turn.fetch_add(1, Relaxed) as usize;
                    let count = self.targets.len().max(1);
                    let ranked = among.enumerate().min_by_key(|(at, target)| {
                        (target.open(), (at + count - turn % count) % count)
                    });
                    ranked.map(|(_, target)| target)
                }
            };
            best.map(Lease::of)
        })
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998): every pair has a weight and the heaviest wins, so a client moves
/// only when its own backend leaves or a heavier one comes. The mixing is that of SplitMix64.
fn weight(client: Ipv4Addr, target: SocketAddrV4) -> u64 {
    let pair = u64::from(u32::from(client)) << 32 | u64::from(u32::from(*target.ip()));
    let mut mixed = pair ^ u64::from(target.port()).rotate_left(48);
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        mixed = (mixed ^ mixed >> 30).wrapping_mul(multiplier);
        mixed ^= mixed >> 27;
    }
    mixed
}

/// What is counted of a listener.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    /// Connections that were tried at another backend because the first didn't take them.
    pub(super) retried: AtomicU64,
    /// Closed because no backend took them.
    pub(super) unserved: AtomicU64,
    /// Closed because there are too many already.
    pub(super) crowded: AtomicU64,
    /// Ended by the idle limit or the draining limit.
    pub(super) expired: AtomicU64,
    /// Bytes from clients, and to them.
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

/// What a worker needs to know of a listener.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) pool: ArcSwap<Pool>,
    pub(super) limits: Limits,
    /// Connections open now behind all listeners.
    pub(super) house: Arc<AtomicUsize>,
    pub(super) counters: Counters,
    /// Connections open now, and those of them that wait for a backend to answer.
    pub(super) open: AtomicUsize,
    pub(super) waiting: AtomicUsize,
}

/// What a listener may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once, behind all listeners.
    pub house: usize,
    /// Connections open at once.
    pub connections: usize,
    /// Of these, those that wait for a backend to answer.
    pub waiting: usize,
    /// For a backend to complete a handshake; then another is tried.
    pub connect: Duration,
    /// Without a byte in either direction. Dead peers are found by keepalive long before; this bounds live silence,
    /// and is as long as a kubelet lets a stream be idle.
    pub idle: Duration,
    /// The same when one side has finished sending.
    pub half_closed: Duration,
    /// For connections to a backend that left the set.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            house: 16_384,
            connections: 12_288,
            waiting: 1024,
            connect: Duration::from_secs(2),
            idle: Duration::from_secs(4 * 3600),
            half_closed: Duration::from_secs(300),
            drain: Duration::from_secs(300),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(last: u8, health: Health) -> Arc<Target> {
        let address = SocketAddrV4::new(Ipv4Addr::new(10, 107, 0, last), 6443);
        let target = Target::new(format!("cp-{last}").parse().expect("a name"), address);
        target.set_health(health);
        Arc::new(target)
    }

    fn pool(balance: Balance, targets: &[(Arc<Target>, bool)]) -> Pool {
        Pool::new(balance, false, targets.to_vec())
    }

    fn client(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0a6b_0100 + number)
    }

    #[test]
    fn connections_spread_evenly_and_new_ones_go_where_the_fewest_are() {
        let targets: Vec<_> = (1..=3).map(|at| (target(at, Health::Up), false)).collect();
        let pool = pool(Balance::LeastConnections, &targets);
        let mut leases: Vec<Lease> = (0..9)
            .filter_map(|at| pool.choose(client(at), &[]))
            .collect();
        assert!(targets.iter().all(|(target, _)| target.open() == 3));
        leases.retain(|lease| lease.target().address != targets[1].0.address);
        let next = pool.choose(client(0), &[]).expect("a backend");
        assert_eq!(next.target().address, targets[1].0.address);
    }

    #[test]
    fn idle_backends_take_turns() {
        let targets: Vec<_> = (1..=3).map(|at| (target(at, Health::Up), false)).collect();
        let pool = pool(Balance::LeastConnections, &targets);
        let mut met = std::collections::BTreeSet::new();
        for _ in 0..3 {
            met.insert(
                pool.choose(client(0), &[])
                    .expect("a backend")
                    .target()
                    .address,
            );
        }
        assert_eq!(met.len(), 3);
    }

    #[test]
    fn a_client_stays_with_its_backend_when_others_come_and_go() {
        let all: Vec<_> = (1..=4).map(|at| (target(at, Health::Up), false)).collect();
        let chosen = |set: &[(Arc<Target>, bool)], number| {
            let lease = pool(Balance::SourceHash, set).choose(client(number), &[]);
            lease.expect("a backend").target().address
        };
        let mut met = std::collections::BTreeMap::<_, u32>::new();
        for number in 0..1000 {
            let before = chosen(&all, number);
            *met.entry(before).or_default() += 1;
            let after = chosen(&all[..3], number);
            assert!(before == after || before == all[3].0.address);
        }
        assert!(
            met.len() == 4 && met.values().all(|count| *count > 180),
            "{met:?}"
        );
    }

    #[test]
    fn spares_and_the_unknown_serve_only_when_nobody_better_does() {
        let (spare, unknown) = (target(1, Health::Up), target(2, Health::Unknown));
        let (down, up) = (target(3, Health::Down), target(4, Health::Up));
        let set = [(spare, true), (unknown, false), (down, false), (up, false)];
        let pool = pool(Balance::SourceHash, &set);
        let mut tried = Vec::new();
        while let Some(lease) = pool.choose(client(7), &tried) {
            tried.push(lease.target().address);
        }
        let order: Vec<u8> = tried.iter().map(|at| at.ip().octets()[3]).collect();
        assert_eq!(order, [4, 1, 2]);
    }
}
