//! Fakes: machines, firmware, installers and platforms that can't be had by the thousand. Each machine reacts to an answer as
//! the program it stands for does, and panics where that program would die; each platform knows what it could not survive.
//!
//! ```text
//!   off ─▶ iPXE ─▶ its system fetches its config ─▶ installs ─▶ iPXE ─▶ disk ─▶ runs ─▶ the platform's truth
//!           ▲  └─ held: asks again for ever               (or runs from memory)      │
//!           └──────────────────── power cut ◀────────────────────────────────────────┘
//! ```
//!
//! The bastion is the real core: every answer is `Site::decide`, every change `Site::apply`, and a kill leaves what was written
//! down. A look at the truth may be lost like any packet.
//!
//! How each client takes an answer:
//!
//! | client | 503 | 403, 404 |
//! |---|---|---|
//! | iPXE, script | asks again for ever | leaves for the next boot entry: dies |
//! | Ignition, merged config | asks again for ever | emergency shell: dies |
//! | Talos, machine config | asks again, ever more slowly | the same |
//! | cloud-init before 25.1, seed | gives up after eleven: dies | dies |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ignition::platform::Platform;
use netboot::boot::{BootDecision, BootRequest, Hold};
use netboot::cluster::{
    ClusterName, ClusterRecord, ClusterSpec, FactKey, NodeGroup, Placement, Provider, Role, Seen,
    Service, ServiceKind, ServiceName, Stage, Validation,
};
use netboot::event::{Change, Event, Outcome, ScriptAsked};
use netboot::loader::{Architecture, Client};
use netboot::net::{Digest, MacAddress, NodeName, Timestamp};
use netboot::node::{NodeLink, NodeRecord, NodeSpec, Report};
use netboot::release::{Asker, Withheld};
use netboot::site::{Memory, Site};
use netboot::spec::{
    Artifact, ConfigSource, Format, Network, Profile, Purpose, SiteParts, SiteSpec,
};

use crate::chance::Chance;

/// Steps after which a story that has not ended never will.
const STEPS_MAX: u32 = 60_000;
/// Packets lost, of a hundred.
const LOSS: u64 = 15;
/// Times in a thousand that a machine loses its power, and that the daemon is killed in the middle of an event.
const POWER_CUT: u64 = 3;
const KILL: u64 = 5;
/// Power cuts of one story: nobody's mains fails for ever.
const POWER_CUTS_MAX: u32 = 8;
/// Looks at a service that find it bad, of a hundred; the monitoring never comes up at all.
const SERVICE_BAD: u64 = 10;
/// How often cloud-init before 25.1 asks.
const CLOUD_INIT_TRIES: u8 = 11;

/// One machine.
#[derive(Debug)]
struct Machine {
    node: NodeName,
    role: Role,
    index: usize,
    mac: MacAddress,
    address: std::net::Ipv4Addr,
    doing: Doing,
    /// What its disk holds boots by itself.
    disk: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Its turn to be powered on has not come.
    Off,
    /// iPXE asks for its script.
    Script,
    /// Its system asks for its config, so many times without one.
    Config(Digest, u8),
    /// It writes its disk.
    Installing(Digest, u8),
    /// Its installer reports until it is heard.
    Reporting(Digest),
    /// Its system runs, for so many steps.
    Running(u16),
}

/// What is really so, whoever knows of it.
#[derive(Debug, Default)]
struct Truth {
    /// The machine that the database was started on.
    bootstrapped: Option<NodeName>,
    /// Calls that were answered "not yet" so far.
    refused: u8,
    /// The bootstrap machine did its work.
    complete: bool,
    /// etcd let it go.
    removed: bool,
    /// Members of etcd with a vote.
    voters: BTreeSet<NodeName>,
    /// The one that is being taken in, for so many steps yet.
    learner: Option<(NodeName, u8)>,
    /// Nodes that were Ready.
    ready: BTreeSet<NodeName>,
    /// Services that the latest look found bad, or that the daemon has not looked at since it started.
    bad: BTreeSet<ServiceName>,
}

/// A cluster on its way.
#[derive(Debug)]
pub struct Fleet {
    platform: Platform,
    dice: Chance,
    site: Site,
    disk: BTreeMap<NodeName, NodeRecord>,
    clusters: BTreeMap<ClusterName, ClusterRecord>,
    generation: u64,
    machines: Vec<Machine>,
    truth: Truth,
    tokens: u64,
    power_cuts: u32,
    now: Timestamp,
    /// Services that were ever seen to be up.
    services_up: BTreeSet<ServiceName>,
    /// Configs in the order they left.
    released: Vec<(Role, usize)>,
    /// Times that the daemon was killed as a phase began.
    gates: u32,
    stage: Stage,
}

impl Fleet {
    /// A cluster of a platform, its machines powered on in the worst order: workers, control planes, bootstrap.
    ///
    /// # Panics
    /// Where the sample itself is not sound.
    #[must_use]
    pub fn new(platform: Platform, workers: u16, seed: u64) -> Self {
        let spec = Arc::new(sample(platform, workers));
        let mut fleet = Self {
            platform,
            dice: Chance::new(seed),
            site: Site::new(Arc::clone(&spec)),
            disk: BTreeMap::new(),
            clusters: BTreeMap::new(),
            generation: 0,
            machines: Vec::new(),
            truth: Truth::default(),
            tokens: seed << 32,
            power_cuts: 0,
            now: Timestamp::from_millis(1_700_000_000_000),
            services_up: BTreeSet::new(),
            released: Vec::new(),
            gates: 0,
            stage: Stage::Bootstrap,
        };
        let seated = fleet
            .site
            .apply(Event::SpecReplaced(Arc::clone(&spec)), fleet.now);
        assert!(
            matches!(seated.outcome, Outcome::Done),
            "{:?}",
            seated.outcome
        );
        fleet.keep(&seated.site, &seated.changes);
        fleet.site = seated.site;
        let (_, state) = fleet
            .site
            .cluster(&cluster_name())
            .expect("the sample's cluster");
        let members = state.members.clone();
        for member in members {
            let node = spec.node(&member.node).expect("a member is listed");
            let link = node.boot_link();
            fleet.machines.push(Machine {
                node: member.node.clone(),
                role: member.role,
                index: usize::from(member.index),
                mac: link.macs[0],
                address: link.address,
                doing: Doing::Off,
                disk: false,
            });
        }
        let worst = |role| match role {
            Role::Worker | Role::Infra => 0,
            Role::ControlPlane => 1,
            Role::Bootstrap | Role::Bastion => 2,
        };
        // Within a role the first one listed comes last.
        fleet
            .machines
            .sort_by_key(|machine| (worst(machine.role), usize::MAX - machine.index));
        fleet
    }

    /// Lives until the cluster is ready.
    ///
    /// # Panics
    /// Where a promise is broken, a client would have died, or the story does not end.
    pub fn comes_up(&mut self, what: &str) {
        for step in 0..STEPS_MAX {
            self.now = self.now.plus_seconds(1);
            self.step(step);
            if self.stage == Stage::Ready {
                let ready = |machine: &Machine| {
                    machine.role == Role::Bootstrap || self.truth.ready.contains(&machine.node)
                };
                assert!(
                    self.machines.iter().all(ready),
                    "{what}: ready without all of its nodes"
                );
                return;
            }
        }
        panic!(
            "{what}: still {} after {STEPS_MAX} steps: {:?}\n{:?}",
            self.stage, self.machines, self.truth
        );
    }

    /// Roles and ranks in the order in which their configs left.
    #[must_use]
    pub fn released(&self) -> &[(Role, usize)] {
        &self.released
    }

    /// How often the daemon was killed at the very moment a phase began.
    #[must_use]
    pub fn gates(&self) -> u32 {
        self.gates
    }

    fn step(&mut self, step: u32) {
        let count = self.machines.len();
        // A machine is powered on every few steps, in the order of the list.
        if let Some(next) = self.machines.get_mut(step as usize / 5)
            && next.doing == Doing::Off
        {
            next.doing = Doing::Script;
        }
        let index = self.dice.below(count);
        if self.machines[index].doing != Doing::Off
            && self.power_cuts < POWER_CUTS_MAX
            && self.dice.number() % 1000 < POWER_CUT
        {
            self.power_cuts += 1;
            self.machines[index].doing = Doing::Script;
        }
        self.machine_acts(index);
        self.platform_acts();
        if step.is_multiple_of(3) {
            self.daemon_looks();
        }
        let (_, state) = self
            .site
            .cluster(&cluster_name())
            .expect("the sample's cluster");
        assert!(state.record.stage >= self.stage, "a phase went back");
        if state.record.stage != self.stage {
            self.stage = state.record.stage;
            self.gates += 1;
            self.daemon_dies();
        }
    }

    fn machine_acts(&mut self, index: usize) {
        match self.machines[index].doing {
            Doing::Off => {}
            Doing::Script => self.asks_script(index),
            Doing::Config(token, tries) => self.asks_config(index, token, tries),
            Doing::Installing(token, 0) => {
                self.machines[index].disk = true;
                // Talos has nobody to report: it starts again at once.
                self.machines[index].doing = match self.platform {
                    Platform::Talos => Doing::Script,
                    Platform::Okd | Platform::K3s => Doing::Reporting(token),
                };
            }
            Doing::Installing(token, left) => {
                self.machines[index].doing = Doing::Installing(token, left - 1);
            }
            Doing::Reporting(token) => self.reports(index, token),
            Doing::Running(steps) => {
                self.machines[index].doing = Doing::Running(steps.saturating_add(1));
            }
        }
    }

    fn asks_script(&mut self, index: usize) {
        if self.dice.happens(LOSS) {
            return;
        }
        let machine = &self.machines[index];
        let (mac, node, network) = (
            machine.mac,
            machine.node.clone(),
            "lab".parse().expect("a name"),
        );
        let request = BootRequest {
            mac,
            client: Client::Ipxe(Architecture::BIOS),
            network: &network,
            uuid: None,
            serial: None,
            chainloads: 0,
        };
        match self.site.decide(&request, self.now).answer {
            BootDecision::LocalDisk => {
                assert!(
                    self.machines[index].disk,
                    "{node} is sent to a disk that holds nothing"
                );
                self.machines[index].doing = Doing::Running(0);
            }
            BootDecision::Boot(_) => {
                let used = self.site.record(&node).configured.is_some();
                assert!(
                    used || self.truth.bad.iter().all(|name| name.as_str() == "metrics"),
                    "{node} begins while {:?} is down",
                    self.truth.bad
                );
                self.tokens += 1;
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&self.tokens.to_be_bytes());
                let token = Digest::from_bytes(bytes);
                let asked = ScriptAsked {
                    mac,
                    client: Client::Ipxe(Architecture::BIOS),
                    network,
                    uuid: None,
                    serial: None,
                    token,
                };
                let outcome = self.happens(Event::ScriptAsked(asked));
                let served = matches!(outcome, Some(Outcome::Script(Some(_))));
                if !served || self.dice.happens(LOSS) {
                    return;
                }
                let talos = self.platform == Platform::Talos;
                let machine = &mut self.machines[index];
                // Whatever is booted, Talos runs what its disk holds, and never fetches a config again.
                machine.doing = match talos && machine.disk {
                    true => Doing::Running(0),
                    false => Doing::Config(token, 0),
                };
                if !talos {
                    machine.disk = false;
                }
            }
            BootDecision::Hold(Hold::AttemptsUsedUp(_)) => {
                // Power failed three times in the same place: a person says "again".
                let _ = self.happens(Event::Approved(node));
            }
            // Held: iPXE asks again, for ever.
            BootDecision::Hold(_) => {}
            BootDecision::Refuse(refused) => panic!("iPXE of {node} leaves and dies: {refused}"),
            BootDecision::Chainload(loader) => panic!("iPXE of {node} is given {loader}"),
        }
    }

    fn asks_config(&mut self, index: usize, token: Digest, tries: u8) {
        if self.dice.happens(LOSS) {
            return;
        }
        let machine = &self.machines[index];
        let (node, role, rank) = (machine.node.clone(), machine.role, machine.index);
        let asker = self.asker(index, token);
        match self.happens(Event::SecretAsked(asker)) {
            Some(Outcome::Secret(Ok((release, _)))) => {
                self.may_leave(role, rank);
                self.released.push((role, rank));
                // The connection breaks on the way: the machine's TCP never acknowledged all of it.
                if self.dice.happens(LOSS) {
                    return;
                }
                let steps = u8::try_from(self.dice.below(4)).expect("few");
                self.machines[index].doing = Doing::Installing(token, steps);
                let attempt = release.attempt;
                let _ = self.happens(Event::Delivered { node, attempt });
            }
            // Three connections broke: 503 from now on, and an alarm that sends a person to the power button.
            Some(Outcome::Secret(Err(Withheld::Spent(..)))) => {
                self.machines[index].doing = Doing::Script;
            }
            Some(Outcome::Secret(Err(Withheld::NotItsTurn(..)))) => match self.platform {
                Platform::Okd | Platform::Talos => {}
                Platform::K3s => {
                    assert!(
                        tries < CLOUD_INIT_TRIES,
                        "cloud-init of {node} gives up and runs without a config"
                    );
                    self.machines[index].doing = Doing::Config(token, tries + 1);
                }
            },
            Some(Outcome::Secret(Err(withheld))) => match self.platform {
                Platform::Talos => {}
                Platform::Okd | Platform::K3s => panic!("the installer of {node} dies: {withheld}"),
            },
            // No answer: all of them ask again.
            None => {}
            Some(other) => panic!("{node} asked for its config and {other:?} answered"),
        }
    }

    fn reports(&mut self, index: usize, token: Digest) {
        if self.dice.happens(LOSS) {
            return;
        }
        let asker = self.asker(index, token);
        let report = Report::Installed;
        let heard = self.happens(Event::Reported { asker, report });
        if let Some(Outcome::Report(answer)) = heard
            && !self.dice.happens(LOSS)
        {
            assert!(
                answer.is_ok(),
                "a report of {} is not believed: {answer:?}",
                self.machines[index].node
            );
            self.machines[index].doing = Doing::Script;
        }
    }

    fn asker(&self, index: usize, token: Digest) -> Asker {
        Asker {
            token,
            address: self.machines[index].address,
            neighbour: Some(self.machines[index].mac),
        }
    }

    /// The order in which configs may leave, as the platforms would survive it.
    fn may_leave(&self, role: Role, rank: usize) {
        let of = |role| {
            self.machines
                .iter()
                .filter(move |machine| machine.role == role)
        };
        let voted = |machine: &Machine| self.truth.voters.contains(&machine.node);
        let all_voted = || of(Role::ControlPlane).all(voted);
        let earlier = || {
            of(Role::ControlPlane)
                .filter(|machine| machine.index < rank)
                .all(voted)
        };
        let sound = match (self.platform, role) {
            (Platform::Okd, Role::Bootstrap | Role::ControlPlane) => true,
            (Platform::Okd, _) => self.truth.removed,
            (Platform::Talos, Role::ControlPlane) => rank == 0 || self.truth.bootstrapped.is_some(),
            (Platform::K3s, Role::ControlPlane) => earlier(),
            (Platform::Talos | Platform::K3s, _) => all_voted(),
        };
        assert!(
            sound,
            "the config of {role} {rank} left too early: {:?}",
            self.truth
        );
    }

    /// What the platform does by itself.
    fn platform_acts(&mut self) {
        let runs = |machine: &Machine| matches!(machine.doing, Doing::Running(steps) if steps > 2);
        let running = |role: Role| -> Vec<NodeName> {
            let here = self
                .machines
                .iter()
                .filter(|machine| machine.role == role && runs(machine));
            here.map(|machine| machine.node.clone()).collect()
        };
        let (bootstraps, planes, workers) = (
            running(Role::Bootstrap),
            running(Role::ControlPlane),
            running(Role::Worker),
        );
        let first = self
            .machines
            .iter()
            .find(|machine| machine.role == Role::ControlPlane && machine.index == 0);
        let first = first.map(|machine| machine.node.clone());
        let truth = &mut self.truth;
        match self.platform {
            Platform::Okd => {
                if truth.complete {
                    truth.removed |= self.dice.happens(10);
                    truth.voters.extend(planes.iter().cloned());
                } else {
                    truth.complete = !bootstraps.is_empty() && planes.len() == 3;
                }
            }
            Platform::Talos if truth.bootstrapped.is_some() => {
                truth.voters.extend(planes.iter().cloned())
            }
            Platform::Talos => {}
            Platform::K3s => {
                if let Some((node, left)) = truth.learner.take() {
                    match left {
                        0 => drop(truth.voters.insert(node)),
                        left => truth.learner = Some((node, left - 1)),
                    }
                }
                for node in &planes {
                    if truth.voters.contains(node)
                        || truth
                            .learner
                            .as_ref()
                            .is_some_and(|(learner, _)| learner == node)
                    {
                        continue;
                    }
                    if truth.voters.is_empty() {
                        assert_eq!(Some(node), first.as_ref(), "a second cluster was begun");
                        truth.voters.insert(node.clone());
                    } else {
                        assert!(
                            truth.learner.is_none(),
                            "etcdserver: too many learner members"
                        );
                        truth.learner = Some((node.clone(), 5));
                    }
                }
            }
        }
        let joined = match self.platform {
            Platform::Okd => truth.complete,
            Platform::Talos | Platform::K3s => !truth.voters.is_empty(),
        };
        let voters = truth.voters.clone();
        truth
            .ready
            .extend(planes.into_iter().filter(|node| voters.contains(node)));
        if joined {
            truth.ready.extend(workers);
        }
    }

    /// What the daemon's probes see, and the call that it makes.
    fn daemon_looks(&mut self) {
        if self.dice.happens(LOSS) {
            return;
        }
        let mut seen = Vec::new();
        let mut look = |fact: &str, node: Option<&NodeName>, holds: bool| {
            seen.push(Seen {
                key: FactKey {
                    node: node.cloned(),
                    fact: fact.parse().expect("a name"),
                },
                holds,
                words: if holds { "so" } else { "503" }.to_owned(),
                boot: None,
            });
        };
        let up = |machine: &Machine| matches!(machine.doing, Doing::Running(steps) if steps > 2);
        let truth = &self.truth;
        let api = self
            .machines
            .iter()
            .any(|machine| up(machine) && truth.voters.contains(&machine.node));
        look("secrets", None, true);
        look("api", None, api);
        look("bootstrap-complete", None, truth.complete);
        look("bootstrap-member-removed", None, truth.removed);
        look("bootstrapped", None, !truth.voters.is_empty());
        let all = self.machines.iter().all(|machine| {
            machine.role == Role::Bootstrap || (up(machine) && truth.ready.contains(&machine.node))
        });
        for fact in ["version-available", "operators-settled", "healthy"] {
            look(fact, None, all);
        }
        for machine in &self.machines {
            let here = up(machine);
            let plane = machine.role == Role::ControlPlane;
            look(
                "node-ready",
                Some(&machine.node),
                here && truth.ready.contains(&machine.node),
            );
            look(
                "machine-api",
                Some(&machine.node),
                here && self.platform == Platform::Talos,
            );
            look(
                "etcd-member",
                Some(&machine.node),
                here && plane && truth.voters.contains(&machine.node),
            );
            look(
                "machine-config-server",
                Some(&machine.node),
                here && plane && truth.removed,
            );
        }
        let cluster = cluster_name();
        let _ = self.happens(Event::Seen {
            cluster,
            founded: self.founded(),
            seen,
        });
        self.daemon_looks_at_services();
        if self.platform == Platform::Talos {
            self.daemon_bootstraps();
        }
    }

    /// Services flicker, and no look is at one that is not started.
    fn daemon_looks_at_services(&mut self) {
        let (spec, state) = self
            .site
            .cluster(&cluster_name())
            .expect("the sample's cluster");
        let watched: Vec<Service> = state.watched(spec).cloned().collect();
        for service in watched {
            for other in &service.depends_on {
                let was_up = self.services_up.contains(other);
                assert!(was_up, "{} is started before {other} was up", service.name);
            }
            let holds = service.name.as_str() != "metrics" && !self.dice.happens(SERVICE_BAD);
            let fact = service.fact();
            let seen = vec![Seen {
                key: FactKey { node: None, fact },
                holds,
                words: if holds { "up" } else { "refused" }.to_owned(),
                boot: None,
            }];
            if holds {
                self.services_up.insert(service.name.clone());
            }
            let cluster = cluster_name();
            if self
                .happens(Event::Seen {
                    cluster,
                    founded: self.founded(),
                    seen,
                })
                .is_none()
            {
                continue;
            }
            match holds {
                true => self.truth.bad.remove(&service.name),
                false => self.truth.bad.insert(service.name),
            };
        }
    }

    fn daemon_bootstraps(&mut self) {
        let Some(Outcome::Bootstrap(Ok(node))) =
            self.happens(Event::BootstrapIntended(cluster_name()))
        else {
            return;
        };
        let up = self.machines.iter().any(|machine| {
            machine.node == node && matches!(machine.doing, Doing::Running(steps) if steps > 2)
        });
        if !up || self.dice.happens(LOSS) {
            return;
        }
        if self.truth.bootstrapped.is_none() && self.truth.refused < 3 {
            // FailedPrecondition: "time is not in sync yet".
            self.truth.refused += 1;
            return;
        }
        let before = self.truth.bootstrapped.get_or_insert_with(|| node.clone());
        assert_eq!(*before, node, "Bootstrap was called on two nodes");
        self.truth.voters.insert(node);
        if self.dice.happens(LOSS) {
            return;
        }
        let _ = self.happens(Event::BootstrapDone(cluster_name(), self.founded()));
    }

    fn founded(&self) -> Timestamp {
        let record = self.site.cluster_record(&cluster_name());
        record.map_or_else(Timestamp::default, |record| record.founded)
    }

    /// The event's outcome; `None` when the daemon died on the way and nobody was answered.
    fn happens(&mut self, event: Event) -> Option<Outcome> {
        let applied = self.site.apply(event, self.now);
        let dies = self.dice.number() % 1000 < KILL;
        if dies && self.dice.happens(50) {
            self.daemon_dies();
            return None;
        }
        self.keep(&applied.site, &applied.changes);
        self.site = applied.site;
        if dies {
            self.daemon_dies();
            return None;
        }
        Some(applied.outcome)
    }

    fn keep(&mut self, site: &Site, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Record(node) => {
                    self.disk.insert(node.clone(), site.record(node).clone());
                }
                Change::Cluster(cluster) => {
                    let head = site
                        .cluster_record(cluster)
                        .map(ClusterRecord::head)
                        .unwrap_or_default();
                    let kept = self.clusters.entry(cluster.clone()).or_default();
                    let members: Vec<(NodeName, _)> = kept
                        .machines()
                        .into_iter()
                        .map(|node| (node.clone(), kept.of_machine(node)))
                        .collect();
                    *kept = head;
                    for (node, member) in members {
                        kept.remember(&node, member);
                    }
                }
                Change::Member(cluster, node) => {
                    let member = site
                        .cluster_record(cluster)
                        .map(|record| record.of_machine(node))
                        .unwrap_or_default();
                    let kept = self.clusters.entry(cluster.clone()).or_default();
                    kept.seats.remove(node);
                    kept.retired.remove(node);
                    kept.facts.retain(|key, _| key.node.as_ref() != Some(node));
                    kept.remember(node, member);
                }
                Change::Lease(_) | Change::Recovery => {}
            }
        }
        self.generation = site.generation();
    }

    /// What was written down is all that is left.
    fn daemon_dies(&mut self) {
        let memory = Memory {
            generation: self.generation,
            records: self.disk.clone().into_iter().collect(),
            clusters: self.clusters.clone(),
            ..Memory::default()
        };
        let spec = Arc::clone(self.site.spec());
        let site = Site::restore(Arc::clone(&spec), memory);
        let seated = site.apply(Event::SpecReplaced(spec), self.now);
        assert!(
            seated.changes.is_empty(),
            "a start without news changes nothing: {:?}",
            seated.changes
        );
        self.site = seated.site;
        // Looks are not written down: until the next one, nothing is believed to be up.
        self.truth.bad.extend(self.services_up.iter().cloned());
    }
}

fn cluster_name() -> ClusterName {
    "prod".parse().expect("a name")
}

fn sample(platform: Platform, workers: u16) -> SiteSpec {
    let group = |name: &str, role, count| NodeGroup {
        name: name.parse().expect("a name"),
        role,
        count,
        profile: "system".parse().expect("a name"),
        placement: Placement::default(),
        temporary: role == Role::Bootstrap,
        becomes: None,
        tags: Vec::new(),
        metadata: BTreeMap::new(),
    };
    let service = |name: &str, kind, depends_on: &[&str], required| Service {
        name: name.parse().expect("a name"),
        kind,
        provider: Provider::Builtin,
        depends_on: depends_on
            .iter()
            .map(|name| name.parse().expect("a name"))
            .collect(),
        required,
        startup_order: 0,
        configuration: serde_json::Value::Null.into(),
    };
    let mut groups = vec![
        group("masters", Role::ControlPlane, 3),
        group("workers", Role::Worker, workers),
    ];
    if platform == Platform::Okd {
        groups.insert(0, group("bootstrap", Role::Bootstrap, 1));
    }
    let cluster = ClusterSpec {
        name: cluster_name(),
        platform: platform.word().into(),
        version: "1".into(),
        domain: "lab.example".parse().expect("a domain"),
        network: "lab".parse().expect("a name"),
        pods: Vec::new(),
        services: Vec::new(),
        groups,
        needs: vec![
            service("api", ServiceKind::LoadBalancer, &["names"], true),
            service("names", ServiceKind::Dns, &[], true),
            service("metrics", ServiceKind::Monitoring, &[], false),
        ],
        course: platform.course(),
        public: true,
        validation: Validation::default(),
        settings: serde_json::Value::Null.into(),
    };
    let nodes = (0..=3 + workers).map(|number| {
        let name = format!("node-{number:02}");
        NodeSpec {
            name: name.parse().expect("a name"),
            links: vec![NodeLink {
                macs: vec![
                    format!("52:54:00:bb:00:{number:02x}")
                        .parse()
                        .expect("a MAC address"),
                ],
                network: "lab".parse().expect("a name"),
                address: format!("10.107.0.{}", 10 + number)
                    .parse()
                    .expect("an address"),
                name: None,
                default_route: false,
            }],
            system: Vec::new(),
            uuid: None,
            serial: None,
            hostname: name.parse().expect("a name"),
            profile: None,
            labels: BTreeMap::new(),
            rack: None,
            variables: BTreeMap::new(),
            loaders: BTreeMap::new(),
            disk: None,
        }
    });
    let profile = Profile {
        name: "system".parse().expect("a name"),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::Platform(Format::Ignition),
        purpose: Purpose::Install,
        disk: None,
    };
    let network = Network::plain(
        "lab".parse().expect("a name"),
        "eth0".parse().expect("a link"),
        "10.107.0.0/24".parse().expect("a subnet"),
    );
    SiteSpec::new(SiteParts {
        networks: vec![network],
        nodes: nodes.collect(),
        profiles: vec![profile],
        clusters: vec![cluster],
        ..SiteParts::default()
    })
    .expect("the sample is sound")
}
