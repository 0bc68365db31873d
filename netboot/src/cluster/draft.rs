//! The events of clusters: what each makes of the records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::placement::PlacementFault;
use super::record::{BootstrapCall, ClusterRecord, ClusterState, FactKey, Known, Look, Seat, Seen};
use super::{ClusterName, ClusterSpec, GroupName, Member, NODE_READY, Role, Stage};
use crate::event::{Change, WORDS_MAX};
use crate::net::{NodeName, Timestamp};
use crate::node::{BootState, Install};
use crate::site::Site;
use crate::spec::{Purpose, SiteSpec};

/// The changes that events make to clusters.
pub(crate) struct ClusterDraft<'a> {
    pub(crate) site: &'a mut Site,
    pub(crate) changes: &'a mut Vec<Change>,
    pub(crate) now: Timestamp,
}

impl ClusterDraft<'_> {
    /// Takes a new spec, and seats machines for it.
    pub(crate) fn replace_spec(&mut self, spec: Arc<SiteSpec>) -> Result<(), Vec<PlacementFault>> {
        let seats = self.site.seats_under(&spec)?;
        self.site.spec = spec;
        let wanted: Vec<Arc<ClusterSpec>> = self.site.spec.clusters.values().cloned().collect();
        for cluster in &wanted {
            let known = self.site.clusters.contains_key(&cluster.name);
            let mine = seats.iter().filter(|(_, (name, _))| *name == cluster.name);
            let mut mine: BTreeMap<NodeName, Seat> = mine
                .map(|(node, (_, seat))| (node.clone(), seat.clone()))
                .collect();
            let newcomers: Vec<NodeName> = mine
                .iter()
                .filter(|(node, seat)| self.is_new(cluster, node, &seat.group))
                .map(|(node, _)| node.clone())
                .collect();
            for node in &newcomers {
                let former = self.begin_anew(node);
                if let Some(seat) = mine.get_mut(node) {
                    seat.former = former;
                }
            }
            let now = self.now;
            self.edit(&cluster.name, |record| {
                if !known {
                    record.founded = now;
                    record.stage = cluster.course.first();
                    record.since = now;
                }
                let gone = |key: &FactKey| {
                    key.node
                        .as_ref()
                        .is_some_and(|node| !mine.contains_key(node) || newcomers.contains(node))
                };
                record.facts.retain(|key, _| !gone(key));
                for node in &newcomers {
                    if let Some(boots) = record.boots.get_mut(node) {
                        boots.former = boots.latest.take().or(boots.former);
                    }
                }
                record.retired.retain(|node, _| !mine.contains_key(node));
                record.boots.retain(|node, _| mine.contains_key(node));
                record.seats = mine;
            });
        }
        self.reseat();
        for cluster in &wanted {
            self.stopped(&cluster.name, 0);
            self.advance(cluster);
        }
        Ok(())
    }

    /// True of a machine that comes to a cluster, or to another role in it.
    fn is_new(&self, cluster: &ClusterSpec, node: &NodeName, group: &GroupName) -> bool {
        let served = |record: &ClusterRecord| record.seats.contains_key(node);
        let record = self.site.cluster_record(&cluster.name);
        let role = cluster.group(group).map(|group| group.role);
        let changed = |before: &Arc<Member>| Some(before.role) != role;
        !record.is_some_and(served) || self.site.member(node).is_some_and(changed)
    }

    /// Ends a machine's story so far, where it takes a new place: what it fetched and what its disk holds is of another
    /// life. Returns the generation of that disk, if it was written.
    fn begin_anew(&mut self, node: &NodeName) -> Option<u32> {
        let record = self.site.record(node);
        let former = record.installed.as_ref().map(|_| record.generation);
        if record.attempt.is_some() || record.configured.is_some() {
            let mut record = record.clone();
            record.configured = None;
            record.state = match former {
                Some(_) => BootState::Provisioned,
                None => BootState::Registered,
            };
            if let Some(attempt) = record.attempt.take() {
                self.site.tokens.remove(&attempt.token);
            }
            self.site.records.insert(node.clone(), Arc::new(record));
            self.changes.push(Change::Record(node.clone()));
        }
        former
    }

    /// Takes what a probe or a machine showed of the cluster that was taken in at `founded`.
    pub(crate) fn seen(&mut self, name: &ClusterName, founded: Timestamp, seen: Vec<Seen>) {
        let Some((spec, state)) = self.site.cluster(name) else {
            return;
        };
        if state.record.founded != founded {
            return;
        }
        let (spec, mut state) = (Arc::clone(spec), ClusterState::clone(state));
        let (mut learned, mut booted) = (BTreeSet::new(), BTreeSet::new());
        for seen in seen {
            let Seen {
                key,
                holds,
                words,
                boot,
            } = seen;
            let of_ours = |node: &NodeName| state.record.seats.contains_key(node);
            if !key.node.as_ref().is_none_or(of_ours) {
                continue;
            }
            // An API server takes a node for ready until it was silent for 40 s.
            let older = key.node.as_ref().is_some_and(|node| {
                let record = self.site.record(node);
                let boots = state.record.boots.get(node);
                record.attempt.is_some() && record.configured.is_none()
                    || boot.is_some() && boot == boots.and_then(|boots| boots.former)
            });
            if let (Some(node), Some(_), false) = (&key.node, boot, older) {
                let boots = state.record.boots.entry(node.clone()).or_default();
                if boots.latest != boot {
                    boots.latest = boot;
                    booted.insert(node.clone());
                }
            }
            let (holds, words) = match holds && older {
                true => (
                    false,
                    format!("that is the install before this one: {words}"),
                ),
                false => (holds, words),
            };
            let words: String = words
                .chars()
                .filter(|c| !c.is_control())
                .take(WORDS_MAX)
                .collect();
            if holds && !state.record.facts.contains_key(&key) {
                let known = Known {
                    at: self.now,
                    words: words.clone(),
                };
                state.record.facts.insert(key.clone(), known);
                learned.insert(key.clone());
            }
            let look = Look {
                at: self.now,
                holds,
                words,
            };
            state.looks.insert(key, look);
        }
        self.site.clusters.insert(name.clone(), Arc::new(state));
        let learned_of = learned.iter().map(|key| key.node.clone());
        let changed: BTreeSet<Option<NodeName>> =
            learned_of.chain(booted.into_iter().map(Some)).collect();
        self.changes
            .extend(changed.into_iter().map(|node| match node {
                Some(node) => Change::Member(name.clone(), node),
                None => Change::Cluster(name.clone()),
            }));
        for key in &learned {
            if let Some(node) = &key.node {
                self.runs(node, key.fact.as_str() == NODE_READY);
            }
        }
        // A service that is up again is no news, and the phase may have waited for it.
        if !learned.is_empty() || !spec.needs.is_empty() {
            self.advance(&spec);
        }
    }

    /// A member whose system showed itself by the cluster's own credentials has come up, whatever it reports: what
    /// has no agent of ours says no more than that.
    fn runs(&mut self, node: &NodeName, ready: bool) {
        let record = self.site.record(node);
        let Some(attempt) = record.attempt.clone() else {
            return;
        };
        let mut record = record.clone();
        let wanted = if ready {
            BootState::Ready
        } else {
            BootState::Joined
        };
        if !record.state.reached(wanted) {
            record.state = wanted;
        }
        record.failed_attempts = 0;
        let profile = self.site.spec.profile(&attempt.profile);
        let installs = profile.is_some_and(|profile| profile.purpose == Purpose::Install);
        if installs && record.installed.is_none() {
            record.installed = Some(Install {
                generation: record.generation,
                attempt: attempt.number,
                at: self.now,
            });
            record.consented_disk = None;
        }
        self.site.records.insert(node.clone(), Arc::new(record));
        self.changes.push(Change::Record(node.clone()));
    }

    /// The machine on which the cluster's database is to be started, written down before anybody calls it.
    pub(crate) fn bootstrap_intended(&mut self, name: &ClusterName) -> Result<NodeName, String> {
        let Some((_, state)) = self.site.cluster(name) else {
            return Err(format!(
                "no cluster {name}; `reveille cluster list` shows them"
            ));
        };
        if let Some(call) = &state.record.bootstrap {
            return match call.done {
                None => Ok(call.node.clone()),
                Some(_) => Err(format!("{name} was bootstrapped on {}", call.node)),
            };
        }
        let first = state.of_role(Role::ControlPlane).next();
        let Some(first) = first.map(|member| member.node.clone()) else {
            return Err(format!("{name} has no control plane"));
        };
        if self.site.record(&first).configured.is_none() {
            return Err(format!("{first} has not fetched its config yet"));
        }
        let now = self.now;
        let node = first.clone();
        self.edit(name, |record| {
            record.bootstrap = Some(BootstrapCall {
                node,
                intended: now,
                done: None,
            });
        });
        Ok(first)
    }

    /// The machine said that its database runs.
    pub(crate) fn bootstrap_done(&mut self, name: &ClusterName, founded: Timestamp) {
        let now = self.now;
        let record = self.site.cluster_record(name);
        if record.is_none_or(|record| record.founded != founded) {
            return;
        }
        self.edit(name, |record| {
            if let Some(call) = &mut record.bootstrap {
                call.done.get_or_insert(now);
            }
        });
    }

    /// So many of the cluster's services are stopped. Not for the disk: a daemon that dies starts them again.
    pub(crate) fn stopped(&mut self, name: &ClusterName, count: usize) {
        let state = self.site.clusters.get(name);
        if let Some(state) = state.filter(|state| state.stopped != count) {
            let mut state = ClusterState::clone(state);
            state.stopped = count;
            self.site.clusters.insert(name.clone(), Arc::new(state));
        }
    }

    /// Forgets a cluster that no definition wants.
    pub(crate) fn forget(&mut self, name: &ClusterName) -> Result<(), String> {
        if self.site.spec.clusters.contains_key(name) {
            return Err(format!(
                "a definition wants cluster {name}; take that away first"
            ));
        }
        let Some(forgotten) = self.site.clusters.remove(name) else {
            return Err(format!("nothing is known of cluster {name}"));
        };
        let machines = forgotten.record.machines().into_iter();
        self.changes
            .extend(machines.map(|node| Change::Member(name.clone(), node.clone())));
        self.changes.push(Change::Cluster(name.clone()));
        Ok(())
    }

    /// What was known of a machine's part in its cluster ends with its install.
    pub(crate) fn reinstalled(&mut self, node: &NodeName) {
        let Some(member) = self.site.member(node).cloned() else {
            return;
        };
        self.edit(&member.cluster, |record| {
            record
                .facts
                .retain(|key, _| key.node.as_ref() != Some(node));
            if let Some(boots) = record.boots.get_mut(node) {
                boots.former = boots.latest.take().or(boots.former);
            }
            if let Some(seat) = record.seats.get_mut(node) {
                seat.former = None;
            }
        });
        self.reseat();
    }

    fn edit(&mut self, name: &ClusterName, edit: impl FnOnce(&mut ClusterRecord)) {
        let known = self.site.clusters.get(name);
        let mut state = known.map_or_else(ClusterState::default, |state| (**state).clone());
        let before = state.record.clone();
        edit(&mut state.record);
        let mut changes = changes_between(name, &before, &state.record);
        if known.is_none() && changes.is_empty() {
            changes.push(Change::Cluster(name.clone()));
        }
        if !changes.is_empty() {
            self.site.clusters.insert(name.clone(), Arc::new(state));
            self.changes.append(&mut changes);
        }
    }

    /// Steps through the phases whose gates are open.
    fn advance(&mut self, spec: &ClusterSpec) {
        while let Some(state) = self.site.clusters.get(&spec.name) {
            let stage = state.record.stage;
            let over = state.unmet(spec).is_empty() && state.down(spec).is_empty();
            if stage == Stage::Ready || !over {
                break;
            }
            let retires = spec.course.phase(stage).and_then(|phase| phase.retires);
            let installed: BTreeMap<NodeName, u32> = state
                .record
                .seats
                .keys()
                .filter(|node| self.site.record(node).installed.is_some())
                .map(|node| (node.clone(), self.site.record(node).generation))
                .collect();
            let now = self.now;
            let mut moved = Vec::new();
            self.edit(&spec.name, |record| {
                if let Some(role) = retires {
                    moved = retire(spec, role, &installed, record);
                }
                record.stage = spec.course.after(stage);
                record.since = now;
            });
            for node in &moved {
                self.begin_anew(node);
            }
            if retires.is_some() {
                self.reseat();
            }
        }
    }

    /// Makes the members again of the seats.
    fn reseat(&mut self) {
        self.site.seat_members();
    }
}

/// Temporary machines of a role leave; those that become something else take the places kept for them, and are returned.
fn retire(
    spec: &ClusterSpec,
    role: Role,
    installed: &BTreeMap<NodeName, u32>,
    record: &mut ClusterRecord,
) -> Vec<NodeName> {
    let mut moved = Vec::new();
    let leaving: Vec<NodeName> = record
        .seats
        .iter()
        .filter(|(_, seat)| {
            spec.group(&seat.group)
                .is_some_and(|group| group.role == role && group.temporary)
        })
        .map(|(node, _)| node.clone())
        .collect();
    for node in leaving {
        let Some(seat) = record.seats.remove(&node) else {
            continue;
        };
        record
            .facts
            .retain(|key, _| key.node.as_ref() != Some(&node));
        let next = spec
            .group(&seat.group)
            .and_then(|group| group.becomes.as_ref());
        let next = next.and_then(|next| spec.group(next));
        let taken = |group: &GroupName, ordinal| {
            record
                .seats
                .values()
                .any(|seat| seat.group == *group && seat.ordinal == ordinal)
        };
        let free = next.and_then(|group| {
            Some((
                group,
                (0..group.count).find(|ordinal| !taken(&group.name, *ordinal))?,
            ))
        });
        match free {
            Some((group, ordinal)) => {
                let seat = Seat {
                    group: group.name.clone(),
                    ordinal,
                    former: installed.get(&node).copied(),
                };
                moved.push(node.clone());
                record.seats.insert(node, seat);
            }
            None => {
                record.retired.insert(
                    node.clone(),
                    installed.get(&node).copied().unwrap_or_default(),
                );
            }
        }
    }
    moved
}

impl Site {
    /// Derives the members of each cluster from its seats.
    pub(crate) fn seat_members(&mut self) {
        let mut members = OrdMap::new();
        let specs: Vec<Arc<ClusterSpec>> = self.spec.clusters.values().cloned().collect();
        for (name, state) in self.clusters.clone() {
            let spec = specs.iter().find(|spec| spec.name == name);
            let seated = spec.map_or_else(Vec::new, |spec| seated(spec, &state.record));
            for member in &seated {
                members.insert(member.node.clone(), Arc::clone(member));
            }
            let mut state = ClusterState::clone(&state);
            let looks = state.looks.into_iter();
            state.looks = looks
                .filter(|(key, _)| {
                    let node = key.node.as_ref();
                    node.is_none_or(|node| members.contains_key(node))
                })
                .collect();
            state.members = seated;
            self.clusters.insert(name, Arc::new(state));
        }
        self.members = members;
    }
}

fn seated(spec: &ClusterSpec, record: &ClusterRecord) -> Vec<Arc<Member>> {
    let mut members = Vec::with_capacity(record.seats.len());
    for role in Role::ALL {
        let mut index = 0;
        for group in spec.groups.iter().filter(|group| group.role == role) {
            let mut here: Vec<(&NodeName, &Seat)> = record
                .seats
                .iter()
                .filter(|(_, seat)| seat.group == group.name)
                .collect();
            here.sort_by_key(|(_, seat)| seat.ordinal);
            for (node, seat) in here {
                members.push(Arc::new(Member {
                    cluster: spec.name.clone(),
                    group: group.name.clone(),
                    role,
                    index,
                    node: node.clone(),
                    profile: group.profile.clone(),
                    former: seat.former,
                }));
                index += 1;
            }
        }
    }
    members
}

/// What changed from one record to the next, a machine at a time.
fn changes_between(
    name: &ClusterName,
    before: &ClusterRecord,
    after: &ClusterRecord,
) -> Vec<Change> {
    let mut machines = before.machines();
    machines.extend(after.machines());
    let differs = |node: &&NodeName| before.of_machine(node) != after.of_machine(node);
    let of_machines = machines.into_iter().filter(differs);
    let of_machines = of_machines.map(|node| Change::Member(name.clone(), node.clone()));
    let head = (before.head() != after.head()).then(|| Change::Cluster(name.clone()));
    head.into_iter().chain(of_machines).collect()
}
