//! A cluster as people and scripts see it: its phase, the gates with the latest look at each, its machines and what
//! they wait for. The shapes are promises to scripts, as those of [`crate::status`] are.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netboot::cluster::{
    Admit, ClusterName, ClusterSpec, ClusterState, FactKey, FactName, Gate, GroupName, Member,
    NodeGroup, Order, Role, Service, ServiceState, Stage, Unmet,
};
use netboot::net::{Hostname, NetworkName, NodeName, Timestamp};
use netboot::node::BootState;
use netboot::site::Site;
use serde::{Deserialize, Serialize};

use crate::status::NodeStatus;

/// One cluster in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterSummary {
    /// Its name.
    pub name: ClusterName,
    /// `okd`, `talos` or `k3s`.
    pub platform: String,
    /// Its release.
    pub version: String,
    /// The domain below which its own lies.
    pub domain: String,
    /// Where its machines are.
    pub network: NetworkName,
    /// `bootstrap`, `control-plane`, `worker`, `addon` or `ready`.
    pub phase: String,
    /// When the phase began.
    pub since: Timestamp,
    /// Machines that serve in it.
    pub machines: usize,
    /// Those of them that are ready.
    pub ready: usize,
    /// What it waits for, in one sentence.
    pub sentence: String,
}

/// Everything known of one cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: ClusterSummary,
    /// True when the definition was applied, false when it is one of the site's.
    pub applied: bool,
    /// When this was computed.
    pub now: Timestamp,
    /// Its phases, in order.
    pub phases: Vec<PhaseStatus>,
    /// The machine on which its database is started, once that was decided.
    pub bootstrap: Option<BootstrapStatus>,
    /// What it leans on, in start order.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// Its node groups, in file order.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// How its making is followed.
    #[serde(default)]
    pub validation: ValidationStatus,
    /// Its machines, by role and rank.
    pub members: Vec<MemberStatus>,
    /// Machines that did their work and left.
    pub retired: Vec<NodeName>,
}

/// One service that a cluster leans on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// `load-balancer`, `dns`, `dhcp`, `pxe-boot`, `storage` or `monitoring`.
    pub kind: String,
    /// Who does it: `builtin`, `external` or `off`.
    pub mode: String,
    /// Whether the cluster waits for it.
    pub required: bool,
    /// `up`, `starting`, `waits`, `failed`, `by others`, `off` or `stopped`.
    pub state: String,
    /// The same in a sentence: what was seen, or what it waits for.
    pub detail: String,
    /// When it was last looked at, since the daemon started.
    pub looked: Option<Timestamp>,
}

/// One node group, as its definition has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: GroupName,
    /// What its machines do.
    pub role: String,
    /// How many.
    pub count: u16,
    /// Words for people.
    pub tags: Vec<String>,
    /// Words for people, by key.
    pub metadata: BTreeMap<String, String>,
}

/// How a cluster's making is followed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ValidationStatus {
    /// Whether the command that applies the definition waits for the end.
    pub wait_for_cluster: bool,
    /// Minutes from the first machine's boot to the alarm.
    pub timeout_minutes: Option<u16>,
}

/// One phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseStatus {
    /// Its name.
    pub phase: String,
    /// `done`, `now` or `later`.
    pub state: String,
    /// Who may boot from here on, in words.
    pub admits: Vec<String>,
    /// What ends it.
    pub gates: Vec<GateStatus>,
}

/// One thing that a phase waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GateStatus {
    /// The fact.
    pub fact: String,
    /// The role whose members must show it; `null` for a fact of the cluster.
    pub role: Option<String>,
    /// Whether one of them is enough.
    pub any: bool,
    /// How many show it.
    pub have: usize,
    /// How many must.
    pub want: usize,
    /// Whether that is so.
    pub open: bool,
    /// Members that don't show it.
    pub missing: Vec<NodeName>,
    /// The latest look at what is missing, or at the fact where nothing is.
    pub look: Option<LookStatus>,
}

/// The latest look at a fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookStatus {
    /// When.
    pub at: Timestamp,
    /// Whether it was so.
    pub holds: bool,
    /// What was seen.
    pub words: String,
    /// On which machine; `null` for the cluster.
    pub node: Option<NodeName>,
}

/// The call that starts a cluster's database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BootstrapStatus {
    /// On which machine; never another.
    pub node: NodeName,
    /// When it was decided.
    pub intended: Timestamp,
    /// When it was done.
    pub done: Option<Timestamp>,
}

/// One machine of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The machine.
    pub node: NodeName,
    /// Its group.
    pub group: GroupName,
    /// What it does.
    pub role: String,
    /// Its rank in the role, from 0.
    pub index: u16,
    /// The boot link's address.
    pub address: Option<Ipv4Addr>,
    /// Its state, as `node list` says it.
    pub state: String,
    /// What it would be told if it asked for its script now.
    pub next_boot: String,
    /// What it waits for.
    pub waits_for: String,
    /// What is known of it, since when.
    pub facts: BTreeMap<String, Timestamp>,
}

impl ClusterSummary {
    /// One cluster at `now`.
    #[must_use]
    pub fn of(site: &Site, spec: &ClusterSpec, state: &ClusterState, now: Timestamp) -> Self {
        let unmet = state.unmet(spec);
        let ready = state
            .members
            .iter()
            .filter(|m| is_ready(site, state, m))
            .count();
        let machines = state.members.len();
        let stage = state.record.stage;
        let down = state.down(spec).into_iter().map(|down| down.to_string());
        let unmet = unmet.iter().map(|unmet| told(state, unmet, now));
        let waits: Vec<String> = down.chain(unmet).collect();
        let sentence = match (stage, waits.is_empty()) {
            (Stage::Ready, true) => "ready".to_owned(),
            (Stage::Ready, false) => format!("ready, but {}", waits.join("; ")),
            (_, true) => format!("{stage} phase"),
            (_, false) => format!("{stage} phase: {}", waits.join("; ")),
        };
        Self {
            name: spec.name.clone(),
            platform: spec.platform.to_string(),
            version: spec.version.to_string(),
            domain: spec.domain.to_string(),
            network: spec.network.clone(),
            phase: stage.word().to_owned(),
            since: state.record.since,
            machines,
            ready,
            sentence,
        }
    }
}

impl ClusterStatus {
    /// One cluster at `now`; `None` when no definition wants it.
    #[must_use]
    pub fn of(site: &Site, name: &ClusterName, applied: bool, now: Timestamp) -> Option<Self> {
        let (spec, state) = site.cluster(name)?;
        let phases = spec.course.phases.iter().map(|phase| PhaseStatus {
            phase: phase.stage.word().to_owned(),
            state: match phase.stage.cmp(&state.record.stage) {
                std::cmp::Ordering::Less => "done",
                std::cmp::Ordering::Equal => "now",
                std::cmp::Ordering::Greater => "later",
            }
            .to_owned(),
            admits: phase.admits.iter().map(admits).collect(),
            gates: phase
                .gates
                .iter()
                .map(|gate| GateStatus::of(state, gate))
                .collect(),
        });
        let members = state.members.iter();
        Some(Self {
            summary: ClusterSummary::of(site, spec, state, now),
            applied,
            now,
            phases: phases.collect(),
            bootstrap: state.record.bootstrap.as_ref().map(|call| BootstrapStatus {
                node: call.node.clone(),
                intended: call.intended,
                done: call.done,
            }),
            services: services(spec, state),
            groups: groups(spec),
            validation: validation(spec),
            members: members
                .filter_map(|m| MemberStatus::of(site, state, m, now))
                .collect(),
            retired: state.record.retired.keys().cloned().collect(),
        })
    }
}

impl GateStatus {
    fn of(state: &ClusterState, gate: &Gate) -> Self {
        let (fact, role) = match gate {
            Gate::Fact(fact) => (fact, None),
            Gate::Every(role, fact) | Gate::Any(role, fact) => (fact, Some(*role)),
        };
        let members: Vec<&NodeName> = role.map_or_else(Vec::new, |role| {
            state.of_role(role).map(|member| &member.node).collect()
        });
        let known = |node: &&NodeName| state.knows(fact, Some(node));
        let missing: Vec<NodeName> = members
            .iter()
            .filter(|node| !known(node))
            .map(|node| (*node).clone())
            .collect();
        let (have, want) = match gate {
            Gate::Fact(_) => (usize::from(state.knows(fact, None)), 1),
            Gate::Every(..) => (members.len() - missing.len(), members.len()),
            Gate::Any(..) => (members.len() - missing.len(), 1),
        };
        Self {
            fact: fact.to_string(),
            role: role.map(|role| role.word().to_owned()),
            any: matches!(gate, Gate::Any(..)),
            have,
            want,
            open: have >= want,
            look: latest(state, fact, role.is_some(), &missing),
            missing,
        }
    }
}

impl MemberStatus {
    fn of(site: &Site, state: &ClusterState, member: &Member, now: Timestamp) -> Option<Self> {
        let node = site.spec().node(&member.node)?;
        let status = NodeStatus::of(site, node, now);
        let waits_for = match site.may_begin(node) {
            Err(waits) if status.rule == "not-its-turn" => {
                let down = waits.down.iter().map(ToString::to_string);
                let unmet = waits.unmet.iter().map(|unmet| told(state, unmet, now));
                let all: Vec<String> = down.chain(unmet).collect();
                format!("its turn: {}", all.join("; "))
            }
            Ok(()) | Err(_) => status.waits_for,
        };
        let own = state.record.facts.iter();
        let own = own.filter(|(key, _)| key.node.as_ref() == Some(&member.node));
        Some(Self {
            node: member.node.clone(),
            group: member.group.clone(),
            role: member.role.word().to_owned(),
            index: member.index,
            address: Some(status.address),
            state: status.state,
            next_boot: status.next_boot,
            waits_for,
            facts: own
                .map(|(key, known)| (key.fact.to_string(), known.at))
                .collect(),
        })
    }
}

/// What a cluster leans on, in start order.
pub(super) fn services(spec: &ClusterSpec, state: &ClusterState) -> Vec<ServiceStatus> {
    let status = |(service, how): (&Service, ServiceState)| {
        let look = state.look_at(service);
        ServiceStatus {
            name: service.name.to_string(),
            kind: service.kind.word().to_owned(),
            mode: service.provider.word().to_owned(),
            required: service.required,
            state: how.word().to_owned(),
            detail: match (&how, look) {
                (ServiceState::Up, Some(look)) => look.words.clone(),
                _ => how.to_string(),
            },
            looked: look.map(|look| look.at),
        }
    };
    state.services(spec).into_iter().map(status).collect()
}

/// The groups of a definition, in file order.
pub(super) fn groups(spec: &ClusterSpec) -> Vec<GroupStatus> {
    let status = |group: &NodeGroup| GroupStatus {
        name: group.name.clone(),
        role: group.role.word().to_owned(),
        count: group.count,
        tags: group.tags.clone(),
        metadata: group.metadata.clone(),
    };
    spec.groups.iter().map(status).collect()
}

/// How a definition has its making followed.
pub(super) fn validation(spec: &ClusterSpec) -> ValidationStatus {
    ValidationStatus {
        wait_for_cluster: spec.validation.wait,
        timeout_minutes: spec.validation.timeout_minutes,
    }
}

/// Who an entry of a phase admits.
pub(super) fn admits(admit: &Admit) -> String {
    let role = admit.role.plural();
    match &admit.order {
        Order::Together => format!("all {role}"),
        Order::First => format!("the first of the {role}"),
        Order::Batches { size: 1, until } => {
            format!("{role} one by one, each until {}", names(until))
        }
        Order::Batches { size, until } => {
            format!("{role} {size} at a time, until {}", names(until))
        }
    }
}

fn names(facts: &[FactName]) -> String {
    let facts: Vec<&str> = facts.iter().map(FactName::as_str).collect();
    facts.join(" and ")
}

/// What ends a phase, in words.
pub(super) fn gate(gate: &Gate) -> String {
    match gate {
        Gate::Fact(fact) => fact.to_string(),
        Gate::Every(role, fact) => format!("every one of the {}: {fact}", role.plural()),
        Gate::Any(role, fact) => format!("any of the {}: {fact}", role.plural()),
    }
}

/// What is waited for, and what the latest look at it showed.
fn told(state: &ClusterState, unmet: &Unmet, now: Timestamp) -> String {
    match latest(state, &unmet.fact, unmet.counted.is_some(), &unmet.missing) {
        None if unmet.counted.is_none() => unmet.to_string(),
        None => format!("{unmet}; not looked at yet"),
        Some(LookStatus {
            at, words, node, ..
        }) => {
            let whose = node.map_or_else(String::new, |node| format!(" of {node}"));
            format!("{unmet}; last look{whose} {}: {words}", ago(at, now))
        }
    }
}

fn latest(
    state: &ClusterState,
    fact: &FactName,
    of_members: bool,
    missing: &[NodeName],
) -> Option<LookStatus> {
    let nodes: Vec<Option<NodeName>> = match of_members {
        true => missing.iter().cloned().map(Some).collect(),
        false => vec![None],
    };
    let looks = nodes.into_iter().filter_map(|node| {
        let key = FactKey {
            node,
            fact: fact.clone(),
        };
        let look = state.looks.get(&key)?;
        Some(LookStatus {
            at: look.at,
            holds: look.holds,
            words: look.words.clone(),
            node: key.node,
        })
    });
    looks.max_by_key(|look| look.at)
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.millis_since(at) / 1000 {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds => format!("{} h ago", seconds / 3600),
    }
}

/// Whether a member does its work: the API says so, or the machine did where nobody can ask.
fn is_ready(site: &Site, state: &ClusterState, member: &Member) -> bool {
    let ready = |key: &FactKey| {
        key.node.as_ref() == Some(&member.node) && key.fact.as_str() == "node-ready"
    };
    site.record(&member.node).state == BootState::Ready || state.record.facts.keys().any(ready)
}

/// The name by which people reach a cluster's API.
pub(super) fn api_name(name: &ClusterName, domain: &Hostname) -> String {
    format!("api.{name}.{domain}")
}

/// How many control planes may be lost.
pub(super) fn quorum(spec: &ClusterSpec) -> String {
    let voters = spec.count(Role::ControlPlane);
    match voters.saturating_sub(1) / 2 {
        0 => format!("{voters} control planes; none may be lost"),
        1 => format!("{voters} control planes; one may be lost"),
        more => format!("{voters} control planes; {more} may be lost"),
    }
}
