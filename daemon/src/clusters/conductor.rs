//! The loop of clusters: look, say what was seen, start the database once, approve what may be approved.
//!
//! ```text
//!            ┌──────────────────────────── every few seconds, for each cluster ◀──────────┐
//!   keyring ─┴▶ secrets?   probes ─▶ what was seen ─▶ Event::Seen ─▶ phases, turns        │
//!                          Event::BootstrapIntended, on disk ─▶ the call ─▶ Event::BootstrapDone
//!                          certificate requests ─▶ approved, left, or an alarm ───────────┘
//! ```
//!
//! A round decides nothing: facts latch in the controller, and the machine that the database is started on is chosen there
//! and written down before it is called. A daemon that dies in between calls the same machine again, and "already there" is
//! done. A cluster whose round takes long holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ignition::platform::{Platform, Secrets};
use netboot::attempt::Fact;
use netboot::cluster::{
    ClusterName, ClusterSpec, ClusterState, FactKey, Member, Role, SECRETS, Seen, Stage,
};
use netboot::csr::{CsrPolicy, Expectation, ExpectedNode, Verdict};
use netboot::event::{Event, Outcome};
use netboot::node::Admission;
use netboot::site::Site;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::keyring::{Keyring, Keys};
use super::{looks, member};
use crate::bastion::Bastion;
use crate::controller::{Controller, NotWritten, now};
use crate::health::Health;
use crate::ledger::Ledger;
use crate::probe::kube::csr::CsrOutcome;
use crate::probe::kube::{self, KubeAccess, OperatorsWatch, TrustedCa};
use crate::probe::talos::{self, BootstrapAnswer};

/// Between two rounds of a cluster that is on its way, and of one that is ready.
const ROUND_TIME: Duration = Duration::from_secs(2);
const READY_ROUND_TIME: Duration = Duration::from_secs(10);
/// Requests that an alarm names.
const ALARMS_SHOWN: usize = 3;

/// Everything a round needs.
#[derive(Clone)]
pub(crate) struct Conductor {
    controller: Controller,
    ledger: Ledger,
    keyring: Arc<Keyring>,
    health: Health,
    memory: Arc<Mutex<BTreeMap<ClusterName, Memory>>>,
}

/// What one round of a cluster leaves to the next, and a restart forgets.
#[derive(Default)]
struct Memory {
    /// Certificate requests that an alarm was raised for, so that it is raised once.
    alarmed: BTreeSet<String>,
    operators: OperatorsWatch,
}

/// Where a cluster's conditions are told.
#[derive(Clone, Copy)]
enum Room {
    Kubeconfig,
    Bootstrap,
    Certificates,
}

fn room(cluster: &ClusterName, room: Room) -> String {
    match room {
        Room::Kubeconfig => format!("kubeconfig of {cluster}"),
        Room::Bootstrap => format!("bootstrap of {cluster}"),
        Room::Certificates => format!("certificates of {cluster}"),
    }
}

impl Conductor {
    pub(crate) fn new(bastion: &Bastion) -> Self {
        Self {
            controller: bastion.controller.clone(),
            ledger: bastion.ledger.clone(),
            keyring: Arc::clone(&bastion.keyring),
            health: bastion.health.clone(),
            memory: Arc::default(),
        }
    }

    /// Goes round the clusters until `stop`.
    ///
    /// # Errors
    /// [`NotWritten::Stopping`] when the controller is gone.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), NotWritten> {
        let mut rounds = JoinSet::new();
        let mut busy: BTreeSet<ClusterName> = BTreeSet::new();
        let mut due: BTreeMap<ClusterName, tokio::time::Instant> = BTreeMap::new();
        let mut ticks = tokio::time::interval(ROUND_TIME / 4);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = rounds.join_next() => {
                    let (name, again) = match ended {
                        Ok(ended) => ended,
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    };
                    busy.remove(&name);
                    due.insert(name, tokio::time::Instant::now() + again);
                    continue;
                }
                _ = ticks.tick() => {}
            }
            self.controller.alive().await?;
            let site = self.controller.snapshot().load();
            let at = tokio::time::Instant::now();
            for (spec, state) in site.clusters() {
                let waits = due.get(&spec.name).is_some_and(|due| *due > at);
                if waits || !busy.insert(spec.name.clone()) {
                    continue;
                }
                let round = Round {
                    conductor: self.clone(),
                    site: Arc::clone(&site),
                    spec: Arc::clone(spec),
                    state: Arc::clone(state),
                };
                rounds.spawn(async move {
                    let name = round.spec.name.clone();
                    let ready = round.state.record.stage == Stage::Ready;
                    round.go().await;
                    (name, if ready { READY_ROUND_TIME } else { ROUND_TIME })
                });
            }
            for name in due.keys().filter(|name| site.cluster(name).is_none()) {
                self.forget(name);
            }
            due.retain(|name, _| site.cluster(name).is_some());
        }
    }
}

impl Conductor {
    fn memory(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Memory>> {
        // Each write is one insertion, so what a panicking holder left is whole.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is told any more of a cluster that no definition wants.
    fn forget(&self, cluster: &ClusterName) {
        for each in [Room::Kubeconfig, Room::Bootstrap, Room::Certificates] {
            self.health.forget(&room(cluster, each));
        }
        self.memory().remove(cluster);
    }
}

/// One round of one cluster, over one snapshot.
struct Round {
    conductor: Conductor,
    site: Arc<Site>,
    spec: Arc<ClusterSpec>,
    state: Arc<ClusterState>,
}

impl Round {
    async fn go(self) {
        let Ok(platform) = self.spec.platform.parse::<Platform>() else {
            return;
        };
        let Some(keys) = self.secrets().await else {
            return;
        };
        let Some(access) = self.kubernetes(&keys) else {
            return;
        };
        if let Some(machines) = &keys.machines {
            let wanted = looks::machines(&self.site, &self.spec, &self.state);
            let witnesses = talos::look(machines, &wanted).await;
            let mut facts = talos::facts(&witnesses);
            // Until all machines are up it would be the health of some of them, and what was learned once is kept.
            if self.state.record.stage < Stage::Addon {
                facts.retain(|seen| seen.key.fact.as_str() != "healthy");
            }
            self.tell(facts).await;
            self.bootstrap(machines).await;
        }
        let ca = match &keys.secrets {
            Secrets::Okd(set) => set
                .machine_config_ca()
                .and_then(|pem| TrustedCa::from_pem(pem.as_bytes()).ok()),
            Secrets::Talos(_) | Secrets::K3s(_) => None,
        };
        let operators = self.memory(|memory| memory.operators.clone());
        let wants = looks::wants(
            platform,
            &self.site,
            &self.spec,
            &self.state,
            ca.as_ref(),
            &operators,
        );
        self.tell(kube::look(&access, &wants).await).await;
        let policy = platform.csr_policy();
        if policy != CsrPolicy::default() {
            self.certificates(platform, &access, policy).await;
        }
    }

    /// The cluster's keys; whether there are any that are young enough is a fact like others.
    async fn secrets(&self) -> Option<Arc<Keys>> {
        let (keyring, spec) = (Arc::clone(&self.conductor.keyring), Arc::clone(&self.spec));
        let planes = member::of_role(&self.site, &self.spec, &self.state, Role::ControlPlane);
        let planes: Vec<_> = planes.map(|(_, _, address)| address).collect();
        let founded = self.state.record.founded;
        let prepare = move || keyring.prepare(&spec, founded, &planes, now());
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let prepared = prepared.expect("preparing secrets does not panic, and nobody aborts it");
        let (holds, words) = match &prepared {
            Ok(keys) => fresh(keys),
            Err(why) => (false, why.to_string()),
        };
        let fact = SECRETS.parse().expect("a fact's name is one label");
        let key = FactKey { node: None, fact };
        let seen = Seen {
            key,
            holds,
            words,
            boot: None,
        };
        self.tell(vec![seen]).await;
        prepared.ok()
    }

    fn kubernetes(&self, keys: &Keys) -> Option<KubeAccess> {
        let at = looks::apis(&self.site, &self.spec, &self.state);
        let room = room(&self.spec.name, Room::Kubeconfig);
        match KubeAccess::from_kubeconfig(&keys.kubeconfig, &at) {
            Ok(access) => {
                self.conductor.health.forget(&room);
                Some(access)
            }
            Err(fault) => {
                let what = format!("its kubeconfig can't be used: {fault}");
                self.conductor.health.ill(&room, what);
                None
            }
        }
    }

    /// Starts the database where the platform has a call for that: on one machine, written down before.
    async fn bootstrap(&self, machines: &talos::Access) {
        if self
            .state
            .record
            .bootstrap
            .as_ref()
            .is_some_and(|call| call.done.is_some())
        {
            return;
        }
        let name = || self.spec.name.clone();
        let event = Event::BootstrapIntended(name());
        // Otherwise it isn't time yet, or nothing was written down: then nobody is called.
        let Ok(Outcome::Bootstrap(Ok(node))) = self.conductor.controller.apply(event).await else {
            return;
        };
        let room = room(&self.spec.name, Room::Bootstrap);
        let serves = |place: &&Arc<Member>| place.cluster == self.spec.name;
        let spec_of = self.site.member(&node).filter(serves);
        let spec_of = spec_of.and_then(|_| self.site.spec().node(&node));
        let Some(address) = spec_of.and_then(|spec| member::address(&self.spec, spec)) else {
            let cluster = &self.spec.name;
            let what = format!(
                "{node} was to start the cluster's database, and is none of its machines any more: give it its place back, or `reveille cluster destroy {cluster}` and apply it again"
            );
            self.conductor.health.ill(&room, what);
            return;
        };
        let answer = talos::bootstrap(machines, (address, talos::PORT).into()).await;
        match answer {
            BootstrapAnswer::Done | BootstrapAnswer::AlreadyDone => {
                tracing::info!(cluster = %self.spec.name, %node, ?answer, "its database was started");
                self.conductor.health.forget(&room);
                // When it isn't written down, the same machine is called again and says "already there".
                let _ = self
                    .conductor
                    .controller
                    .apply(Event::BootstrapDone(name(), self.state.record.founded))
                    .await;
            }
            BootstrapAnswer::NotYet(words) => {
                tracing::debug!(cluster = %self.spec.name, %node, words, "its database can't be started yet");
            }
            BootstrapAnswer::Refused(words) => {
                let what = format!("{node} refuses to start the cluster's database: {words}");
                self.conductor.health.ill(&room, what);
            }
        }
    }

    /// Judges the nodes' certificate requests. What raises an alarm stays pending and is told once.
    async fn certificates(&self, platform: Platform, access: &KubeAccess, policy: CsrPolicy) {
        let outcomes = match kube::csr::round(access, self.expected(platform, policy)).await {
            Ok(outcomes) => outcomes,
            Err(trouble) => {
                tracing::debug!(cluster = %self.spec.name, %trouble, "certificate requests can't be listed");
                return;
            }
        };
        let before = self.memory(|memory| memory.alarmed.clone());
        let mut pending = BTreeSet::new();
        for CsrOutcome {
            csr,
            user,
            verdict,
            failed,
        } in outcomes
        {
            let what = match (verdict, failed) {
                (Verdict::Approve(node), None) => format!("{csr} of {node} approved"),
                (Verdict::Approve(node), Some(why)) => {
                    tracing::warn!(csr, node, why, "an approval failed; it is tried again");
                    continue;
                }
                (Verdict::Leave(_), _) => continue,
                (Verdict::Alarm(alarm), _) => {
                    pending.insert(csr.clone());
                    if before.contains(&csr) {
                        continue;
                    }
                    let what = format!("{csr} by {user} stays pending: {alarm}");
                    tracing::warn!(cluster = %self.spec.name, "{what}");
                    what
                }
            };
            let room = "certificates".into();
            let fact = Fact::Bastion { room, what };
            self.conductor.ledger.note(None, None, fact);
        }
        self.alarm(&pending);
        // What is no longer pending is forgotten, so that nobody fills the memory with requests.
        self.memory(|memory| memory.alarmed = pending);
    }

    fn memory<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memory = self.conductor.memory();
        act(memory.entry(self.spec.name.clone()).or_default())
    }

    fn alarm(&self, pending: &BTreeSet<String>) {
        let room = room(&self.spec.name, Room::Certificates);
        if pending.is_empty() {
            self.conductor.health.forget(&room);
            return;
        }
        let shown: Vec<&str> = pending
            .iter()
            .take(ALARMS_SHOWN)
            .map(String::as_str)
            .collect();
        let what = format!(
            "{} certificate requests stay pending, for no node of ours would ask so: {}; see `reveille events`, then decide with kubectl",
            pending.len(),
            shown.join(", ")
        );
        self.conductor.health.ill(&room, what);
    }

    fn expected(&self, platform: Platform, policy: CsrPolicy) -> Expectation {
        let ready: netboot::cluster::FactName = netboot::cluster::NODE_READY
            .parse()
            .expect("a fact's name is one label");
        let mut nodes = BTreeMap::new();
        for role in [Role::ControlPlane, Role::Worker, Role::Infra] {
            for (seat, node, _) in member::of_role(&self.site, &self.spec, &self.state, role) {
                let record = self.site.record(&seat.node);
                // What it was booted for before it came here is nothing.
                let attempt = record
                    .attempt
                    .as_ref()
                    .filter(|attempt| attempt.profile == seat.profile && seat.former.is_none());
                let released = attempt.and_then(|attempt| attempt.released);
                let name = looks::name_of(platform, &self.spec, node);
                let dns = BTreeSet::from([name.clone(), node.hostname.as_str().to_owned()]);
                let expected = ExpectedNode {
                    dns: dns.into_iter().collect(),
                    addresses: node.links.iter().map(|link| link.address.into()).collect(),
                    admitted: self.state.turn(&self.spec, seat).is_ok()
                        && record.admission != Admission::Rejected,
                    booted: released.is_some()
                        || attempt.is_some_and(|attempt| attempt.report.is_some()),
                    released,
                    ready: self.state.knows(&ready, Some(&seat.node)),
                    given: None,
                };
                nodes.insert(name, expected);
            }
        }
        Expectation {
            now: now(),
            policy,
            nodes,
        }
    }

    async fn tell(&self, seen: Vec<Seen>) {
        let cluster = self.spec.name.clone();
        if seen.is_empty() {
            return;
        }
        let event = Event::Seen {
            cluster,
            founded: self.state.record.founded,
            seen,
        };
        // What was not written down is seen again in the next round.
        if let Err(error) = self.conductor.controller.apply(event).await {
            tracing::debug!(cluster = %self.spec.name, %error, "what was seen was not written down");
        }
    }
}

/// Whether an install that begins now can end with these secrets.
fn fresh(keys: &Keys) -> (bool, String) {
    match &keys.secrets {
        Secrets::Okd(set) => {
            let age = set.life().age(now());
            (age.may_install(), age.to_string())
        }
        Secrets::Talos(_) | Secrets::K3s(_) => (true, "in the vault".to_owned()),
    }
}
