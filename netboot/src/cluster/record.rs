//! What was decided and learned of each cluster.
//!
//! A fact is kept from the first look that found it true; the latest look of each is kept beside it for people, in
//! memory only, so that a probe every few seconds costs no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use uuid::Uuid;

use super::placement::{Before, PlacementFault, Seats, place};
use super::{ClusterName, ClusterSpec, FactName, GroupName, Member, Stage, Unmet, Waits};
use crate::net::{NodeName, Timestamp};
use crate::node::NodeSpec;
use crate::site::Site;
use crate::spec::SiteSpec;

/// Everything durable of one cluster. Made by events only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRecord {
    /// When it was taken in. One of the same name that was destroyed before has another: what is still seen of that one
    /// is not of this.
    pub founded: Timestamp,
    /// Its phase; only forward.
    pub stage: Stage,
    /// When the phase began.
    pub since: Timestamp,
    /// Which machine serves where.
    pub seats: BTreeMap<NodeName, Seat>,
    /// What is known, since when, and in the words of the look that found it.
    pub facts: BTreeMap<FactKey, Known>,
    /// The call that starts its database, where the platform has one.
    pub bootstrap: Option<BootstrapCall>,
    /// Machines that did their work and left, with the generation of what they last installed here.
    pub retired: BTreeMap<NodeName, u32>,
    /// Which of their systems were seen to run.
    pub boots: BTreeMap<NodeName, Boots>,
}

/// What a [`ClusterRecord`] holds of one machine; the store keeps each by itself, so that a cluster may grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRecord {
    /// Its place, while it has one.
    pub seat: Option<Seat>,
    /// What is known of it.
    pub facts: BTreeMap<FactName, Known>,
    /// See [`ClusterRecord::retired`].
    pub retired: Option<u32>,
    /// See [`ClusterRecord::boots`].
    pub boots: Boots,
}

/// Boots of a machine's systems, by the ids that their kernels gave them (random(4), `boot_id`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boots {
    /// The one that was seen last.
    pub latest: Option<Uuid>,
    /// The last one of the install before this one: nothing that it shows is evidence of this one.
    pub former: Option<Uuid>,
}

impl ClusterRecord {
    /// What is held of one machine.
    #[must_use]
    pub fn of_machine(&self, node: &NodeName) -> MemberRecord {
        let facts = self
            .facts
            .iter()
            .filter(|(key, _)| key.node.as_ref() == Some(node));
        MemberRecord {
            seat: self.seats.get(node).cloned(),
            facts: facts
                .map(|(key, known)| (key.fact.clone(), known.clone()))
                .collect(),
            retired: self.retired.get(node).copied(),
            boots: self.boots.get(node).copied().unwrap_or_default(),
        }
    }

    /// The machines that anything is held of.
    #[must_use]
    pub fn machines(&self) -> BTreeSet<&NodeName> {
        let named = self.facts.keys().filter_map(|key| key.node.as_ref());
        self.seats
            .keys()
            .chain(self.retired.keys())
            .chain(self.boots.keys())
            .chain(named)
            .collect()
    }

    /// Takes back what [`ClusterRecord::of_machine`] gave.
    pub fn remember(&mut self, node: &NodeName, member: MemberRecord) {
        let MemberRecord {
            seat,
            facts,
            retired,
            boots,
        } = member;
        if let Some(seat) = seat {
            self.seats.insert(node.clone(), seat);
        }
        if let Some(generation) = retired {
            self.retired.insert(node.clone(), generation);
        }
        if boots != Boots::default() {
            self.boots.insert(node.clone(), boots);
        }
        for (fact, known) in facts {
            let node = Some(node.clone());
            self.facts.insert(FactKey { node, fact }, known);
        }
    }

    /// The same without what is held of machines.
    #[must_use]
    pub fn head(&self) -> Self {
        let of_cluster = self.facts.iter().filter(|(key, _)| key.node.is_none());
        Self {
            founded: self.founded,
            stage: self.stage,
            since: self.since,
            seats: BTreeMap::new(),
            facts: of_cluster
                .map(|(key, known)| (key.clone(), known.clone()))
                .collect(),
            bootstrap: self.bootstrap.clone(),
            retired: BTreeMap::new(),
            boots: BTreeMap::new(),
        }
    }
}

/// A machine's place in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Which group.
    pub group: GroupName,
    /// Which of its places, from 0.
    pub ordinal: u16,
    /// See [`Member::former`].
    pub former: Option<u32>,
}

/// What a fact is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FactKey {
    /// Of which member; `None` for the cluster as a whole.
    pub node: Option<NodeName>,
    /// Which fact.
    pub fact: FactName,
}

/// A fact that was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// When it was first seen.
    pub at: Timestamp,
    /// What was seen, at most [`WORDS_MAX`](crate::event::WORDS_MAX) characters.
    pub words: String,
}

/// One look at one fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// At what.
    pub key: FactKey,
    /// Whether it was so.
    pub holds: bool,
    /// What was seen: `503 from 10.1.107.11:6443`.
    pub words: String,
    /// Which boot of the machine's system it is of, where that was told.
    pub boot: Option<Uuid>,
}

/// The latest look at a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Timestamp,
    /// Whether it was so.
    pub holds: bool,
    /// What was seen.
    pub words: String,
}

/// The one call that starts a cluster's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapCall {
    /// On which machine; never another.
    pub node: NodeName,
    /// When it was decided, before the call.
    pub intended: Timestamp,
    /// When the machine said that it is done.
    pub done: Option<Timestamp>,
}

/// One cluster in a snapshot.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The durable half.
    pub record: ClusterRecord,
    /// Its machines, by role and rank; none while no definition wants the cluster.
    pub members: Vec<Arc<Member>>,
    /// The latest look at each fact.
    pub looks: OrdMap<FactKey, Look>,
    /// Services that are stopped, the last of the start order first, while the cluster is being taken away.
    pub stopped: usize,
}

impl Site {
    /// A cluster that a definition wants.
    #[must_use]
    pub fn cluster(&self, name: &ClusterName) -> Option<(&Arc<ClusterSpec>, &Arc<ClusterState>)> {
        Some((self.spec.clusters.get(name)?, self.clusters.get(name)?))
    }

    /// The clusters that definitions want, by name.
    pub fn clusters(&self) -> impl Iterator<Item = (&Arc<ClusterSpec>, &Arc<ClusterState>)> {
        let wanted = self.spec.clusters.values();
        wanted.filter_map(|spec| Some((spec, self.clusters.get(&spec.name)?)))
    }

    /// Every cluster's record, also of those that no definition wants any more.
    pub fn cluster_records(&self) -> impl Iterator<Item = (&ClusterName, &ClusterRecord)> {
        self.clusters
            .iter()
            .map(|(name, state)| (name, &state.record))
    }

    /// A cluster's record, whether or not a definition wants it.
    #[must_use]
    pub fn cluster_record(&self, name: &ClusterName) -> Option<&ClusterRecord> {
        self.clusters.get(name).map(|state| &state.record)
    }

    /// A machine's place in its cluster.
    #[must_use]
    pub fn member(&self, node: &NodeName) -> Option<&Arc<Member>> {
        self.members.get(node)
    }

    /// The cluster that a machine served and left, where it serves no other since.
    #[must_use]
    pub fn retired_from(&self, node: &NodeName) -> Option<&ClusterName> {
        let left = |(_, state): &(&ClusterName, &Arc<ClusterState>)| {
            state.record.retired.contains_key(node)
        };
        let mut clusters = self.clusters.iter();
        clusters
            .find(left)
            .map(|(name, _)| name)
            .filter(|_| self.member(node).is_none())
    }

    /// May a machine be told to boot? As [`Site::turn`]; and one that has got nothing yet begins only while the services
    /// that its cluster requires are up. A config left, and that was its turn: whatever fails then, it goes on.
    ///
    /// # Errors
    /// What it waits for.
    pub fn may_begin(&self, node: &NodeSpec) -> Result<(), Waits> {
        let member = self.member(&node.name);
        let begun = self.record(&node.name).configured.is_some();
        match member.and_then(|member| Some((member, self.cluster(&member.cluster)?))) {
            Some((member, (spec, state))) if !begun => state.may_begin(spec, member),
            _ => self.turn(node),
        }
    }

    /// May a member boot yet? A machine of no cluster may.
    ///
    /// # Errors
    /// What it waits for.
    pub fn turn(&self, node: &NodeSpec) -> Result<(), Waits> {
        let Some(member) = self.member(&node.name) else {
            return Ok(());
        };
        match self.cluster(&member.cluster) {
            Some((spec, state)) => state.turn(spec, member),
            None => Ok(()),
        }
    }

    /// What the present phase of a cluster waits for.
    #[must_use]
    pub fn unmet(&self, name: &ClusterName) -> Vec<Unmet> {
        self.cluster(name)
            .map_or_else(Vec::new, |(spec, state)| state.unmet(spec))
    }

    /// Who would serve where under `spec`, given who serves now.
    ///
    /// # Errors
    /// Groups that can't be filled.
    pub fn seats_under(&self, spec: &SiteSpec) -> Result<Seats, Vec<PlacementFault>> {
        let records = || self.clusters.iter();
        let before = Before {
            seats: records()
                .flat_map(|(name, state)| {
                    let seats = state.record.seats.iter();
                    seats.map(move |(node, seat)| (node.clone(), (name.clone(), seat.clone())))
                })
                .collect(),
            stages: records()
                .map(|(name, state)| (name.clone(), state.record.stage))
                .collect(),
            started: self
                .records
                .iter()
                .filter(|(_, record)| record.attempt.is_some())
                .map(|(name, _)| name.clone())
                .collect(),
        };
        place(spec, &before)
    }
}
