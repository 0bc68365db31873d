//! Phases and turns. A [`Course`] says which roles each phase admits and which facts end it; whose turn it is
//! follows from the facts that are known, never from a clock. Facts are kept once learned and phases only go
//! forward, so a turn that came never goes away again.

use std::fmt;

use super::{
    BEGUN, ClusterName, ClusterSpec, ClusterState, Down, ETCD_MEMBER, FactKey, FactName, Known,
    Member, Role, SECRETS,
};
use crate::net::{NodeName, Timestamp};

/// The phases of a platform, in order. The last one is [`Stage::Ready`], which has no gates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Each stage at most once, in the order of [`Stage`].
    pub phases: Vec<Phase>,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Its name.
    pub stage: Stage,
    /// Who may boot from here on.
    pub admits: Vec<Admit>,
    /// What must be known before the next phase begins.
    pub gates: Vec<Gate>,
    /// Temporary machines of this role leave when the phase is over.
    pub retires: Option<Role>,
}

/// A phase's name, the same for every platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The first breath.
    #[default]
    Bootstrap,
    /// The control plane gathers.
    ControlPlane,
    /// Workers join.
    Worker,
    /// The cluster's own parts settle.
    Addon,
    /// It is done.
    Ready,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 5] = [
        Self::Bootstrap,
        Self::ControlPlane,
        Self::Worker,
        Self::Addon,
        Self::Ready,
    ];

    /// The word in tables, JSON and the store.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
            Self::Addon => "addon",
            Self::Ready => "ready",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Who may boot in a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admit {
    /// Which role.
    pub role: Role,
    /// In which order.
    pub order: Order,
}

/// In which order the members of a role boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// All at once.
    Together,
    /// Number 0 alone.
    First,
    /// So many at a time, each batch when all before it have these facts.
    Batches {
        /// At least 1.
        size: u16,
        /// What a member of an earlier batch must have shown.
        until: Vec<FactName>,
    },
}

/// One thing a phase waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// A fact of the cluster.
    Fact(FactName),
    /// A fact of every member of a role; open when there is none.
    Every(Role, FactName),
    /// A fact of one member of a role at least.
    Any(Role, FactName),
}

/// A gate that is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// What is waited for.
    pub fact: FactName,
    /// Of how many members it is known, and of how many it is wanted; `None` for a fact of the cluster.
    pub counted: Option<(Role, usize, usize)>,
    /// The members it is not known of.
    pub missing: Vec<NodeName>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.counted {
            None => write!(f, "{} not seen yet", self.fact),
            Some((role, have, want)) => {
                write!(f, "{have} of {want} {} {}", role.plural(), self.fact)
            }
        }
    }
}

/// Why a member may not boot yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Whose member it is.
    pub cluster: ClusterName,
    /// The phase the cluster is in.
    pub stage: Stage,
    /// What is waited for.
    pub unmet: Vec<Unmet>,
    /// The services that hold it; one of the two is never empty.
    pub down: Vec<Down>,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waits its turn in {} ({} phase): ",
            self.cluster, self.stage
        )?;
        let down = self.down.iter().map(ToString::to_string);
        let unmet = self.unmet.iter().map(ToString::to_string);
        let all: Vec<String> = down.chain(unmet).collect();
        f.write_str(&all.join(", "))
    }
}

impl Course {
    /// The phase of a stage.
    #[must_use]
    pub fn phase(&self, stage: Stage) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.stage == stage)
    }

    /// Whether any phase admits `role`.
    #[must_use]
    pub fn admits(&self, role: Role) -> bool {
        let mut admits = self.phases.iter().flat_map(|phase| &phase.admits);
        admits.any(|admit| admit.role == role)
    }

    /// Where a cluster begins.
    #[must_use]
    pub fn first(&self) -> Stage {
        self.phases
            .first()
            .map_or(Stage::Ready, |phase| phase.stage)
    }

    /// Adds gates to the last phase before the end, those that it does not have.
    pub fn also(&mut self, gates: impl IntoIterator<Item = Gate>) {
        for gate in gates {
            let known = self.phases.iter().any(|phase| phase.gates.contains(&gate));
            let mut phases = self.phases.iter_mut().rev();
            let last = phases.find(|phase| phase.stage != Stage::Ready);
            if let Some(last) = last.filter(|_| !known) {
                last.gates.push(gate);
            }
        }
    }

    /// The phase after `stage`; `Ready` is after everything.
    #[must_use]
    pub fn after(&self, stage: Stage) -> Stage {
        let later = self.phases.iter().map(|phase| phase.stage);
        later
            .filter(|other| *other > stage)
            .min()
            .unwrap_or(Stage::Ready)
    }
}

impl ClusterState {
    /// That it is not ready in the time that its definition gives (`validation.timeoutMinutes`): those minutes, and what
    /// it was begun by. None before that, and none while nobody gave it time.
    #[must_use]
    pub fn late(&self, spec: &ClusterSpec, now: Timestamp) -> Option<(u16, &Known)> {
        let minutes = spec.validation.timeout_minutes?;
        let fact = BEGUN.parse().ok()?;
        let begun = self.record.facts.get(&FactKey { node: None, fact })?;
        let over = now.millis_since(begun.at) >= u64::from(minutes) * 60_000;
        (over && self.record.stage != Stage::Ready).then_some((minutes, begun))
    }

    /// What ends the present phase and is not there yet; empty when the phase is over.
    #[must_use]
    pub fn unmet(&self, spec: &ClusterSpec) -> Vec<Unmet> {
        let phase = spec.course.phase(self.record.stage);
        let gates = phase.into_iter().flat_map(|phase| &phase.gates);
        gates.filter_map(|gate| self.closed(gate)).collect()
    }

    /// May this member boot?
    ///
    /// # Errors
    /// What it waits for.
    pub fn turn(&self, spec: &ClusterSpec, member: &Member) -> Result<(), Waits> {
        let waits = |unmet| {
            Err(Waits {
                cluster: member.cluster.clone(),
                stage: self.record.stage,
                unmet,
                down: Vec::new(),
            })
        };
        if let Some(unmet) = self.unprepared(spec) {
            return waits(vec![unmet]);
        }
        let begun = |stage: Stage| stage <= self.record.stage;
        let mut nearest: Option<Vec<Unmet>> = None;
        for phase in &spec.course.phases {
            for admit in phase
                .admits
                .iter()
                .filter(|admit| admit.role == member.role)
            {
                if !begun(phase.stage) {
                    continue;
                }
                match &admit.order {
                    Order::Together => return Ok(()),
                    Order::First if member.index == 0 => return Ok(()),
                    Order::First => {}
                    Order::Batches { size, until } => {
                        let unmet = self.unfinished(member, *size, until);
                        if unmet.is_empty() {
                            return Ok(());
                        }
                        nearest = Some(unmet);
                    }
                }
            }
        }
        waits(nearest.unwrap_or_else(|| self.unmet(spec)))
    }

    /// May this member, which nothing was given yet, begin?
    ///
    /// # Errors
    /// What it waits for.
    pub fn may_begin(&self, spec: &ClusterSpec, member: &Member) -> Result<(), Waits> {
        let turn = self.turn(spec, member);
        let down = self.down(spec);
        if down.is_empty() {
            return turn;
        }
        Err(Waits {
            cluster: member.cluster.clone(),
            stage: self.record.stage,
            unmet: turn.err().map_or_else(Vec::new, |waits| waits.unmet),
            down,
        })
    }

    /// What nobody may boot without.
    fn unprepared(&self, spec: &ClusterSpec) -> Option<Unmet> {
        let fact: FactName = SECRETS.parse().ok()?;
        let key = FactKey {
            node: None,
            fact: fact.clone(),
        };
        let denied = self.looks.get(&key).is_some_and(|look| !look.holds);
        let early = self.record.stage == spec.course.first();
        let lacks = !self.knows(&fact, None) || (early && denied);
        lacks.then(|| Unmet {
            fact,
            counted: None,
            missing: Vec::new(),
        })
    }

    fn unfinished(&self, member: &Member, size: u16, until: &[FactName]) -> Vec<Unmet> {
        let before = member.index - member.index % size.max(1);
        let earlier = |other: &&Member| other.role == member.role && other.index < before;
        let earlier: Vec<&Member> = self
            .members
            .iter()
            .map(AsRef::as_ref)
            .filter(earlier)
            .collect();
        let counted = |fact: &FactName| self.counted(member.role, fact, &earlier, earlier.len());
        until.iter().filter_map(counted).collect()
    }

    fn closed(&self, gate: &Gate) -> Option<Unmet> {
        match gate {
            Gate::Fact(fact) => (!self.knows(fact, None)).then(|| Unmet {
                fact: fact.clone(),
                counted: None,
                missing: Vec::new(),
            }),
            Gate::Every(role, fact) => {
                let all: Vec<&Member> = self.of_role(*role).collect();
                self.counted(*role, fact, &all, all.len())
            }
            Gate::Any(role, fact) => {
                let all: Vec<&Member> = self.of_role(*role).collect();
                self.counted(*role, fact, &all, 1)
            }
        }
    }

    fn counted(&self, role: Role, fact: &FactName, of: &[&Member], want: usize) -> Option<Unmet> {
        let lacks = |member: &&&Member| !self.knows(fact, Some(&member.node));
        let missing: Vec<NodeName> = of
            .iter()
            .filter(lacks)
            .map(|member| member.node.clone())
            .collect();
        let have = of.len() - missing.len();
        (have < want).then(|| Unmet {
            fact: fact.clone(),
            counted: Some((role, have, want)),
            missing,
        })
    }

    /// Whether a fact was ever learned.
    #[must_use]
    pub fn knows(&self, fact: &FactName, node: Option<&NodeName>) -> bool {
        let key = FactKey {
            fact: fact.clone(),
            node: node.cloned(),
        };
        self.record.facts.contains_key(&key)
    }

    /// Whether a member is the one that starts the cluster: the first control plane that is listed, whoever powers on first,
    /// and only while no other one was ever seen in the database. A second start would be a second cluster with the same keys.
    #[must_use]
    pub fn founds(&self, member: &Member) -> bool {
        let first = member.role == Role::ControlPlane && member.index == 0;
        let joined = |(key, _): (&FactKey, &Known)| {
            key.fact.as_str() == ETCD_MEMBER
                && key.node.as_ref().is_some_and(|node| *node != member.node)
        };
        first && !self.record.facts.iter().any(joined)
    }

    /// The members of a role, by rank.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Member> {
        let members = self.members.iter().map(AsRef::as_ref);
        members.filter(move |member: &&Member| member.role == role)
    }
}
