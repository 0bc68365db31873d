//! Node groups to machines. Deterministic: the same inventory, definitions and history give the same seats. Sticky:
//! a machine keeps its seat for as long as it is listed and, until it first booted, fits.
//!
//! The pool is the machines without a profile of their own that no other cluster holds. A cluster whose definition
//! was taken away and that was not destroyed still holds its own. Open seats are filled by a search that tries the
//! best machine first and goes back where racks leave no other way.

use std::collections::{BTreeMap, BTreeSet};

use super::{AntiAffinity, ClusterName, ClusterSpec, GroupName, NodeGroup, Role, Seat, Stage};
use crate::net::NodeName;
use crate::node::NodeSpec;
use crate::spec::SiteSpec;

/// Steps of one cluster's search before it gives up.
const STEPS_MAX: u32 = 100_000;

/// Who serves where.
pub type Seats = BTreeMap<NodeName, (ClusterName, Seat)>;

/// What was before.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// Who served where.
    pub seats: Seats,
    /// The phase of each cluster that is known.
    pub stages: BTreeMap<ClusterName, Stage>,
    /// Machines that were served a boot script.
    pub started: BTreeSet<NodeName>,
}

/// A group that can't be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementFault {
    /// Whose.
    pub cluster: ClusterName,
    /// Which.
    pub group: GroupName,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Fills every group of every cluster of `spec`.
///
/// # Errors
/// Each group that can't be filled, with what it lacks.
pub fn place(spec: &SiteSpec, before: &Before) -> Result<Seats, Vec<PlacementFault>> {
    let mut seats = Seats::new();
    let mut faults = Vec::new();
    for (node, (cluster, seat)) in &before.seats {
        let kept = match spec.clusters.get(cluster) {
            None => true,
            Some(cluster) => stays(spec, cluster, before, node, seat),
        };
        if kept {
            seats.insert(node.clone(), (cluster.clone(), seat.clone()));
        }
    }
    for cluster in spec.clusters.values() {
        fill(spec, cluster, before, &mut seats, &mut faults);
    }
    seats.retain(|_, (cluster, _)| spec.clusters.contains_key(cluster));
    if faults.is_empty() {
        Ok(seats)
    } else {
        Err(faults)
    }
}

/// Whether a machine keeps its seat.
fn stays(
    spec: &SiteSpec,
    cluster: &ClusterSpec,
    before: &Before,
    node: &NodeName,
    seat: &Seat,
) -> bool {
    let Some((group, machine)) = cluster.group(&seat.group).zip(spec.node(node)) else {
        return false;
    };
    let fits = before.started.contains(node) || fits(cluster, group, machine);
    seat.ordinal < group.count && machine.profile.is_none() && fits
}

fn fits(cluster: &ClusterSpec, group: &NodeGroup, machine: &NodeSpec) -> bool {
    let Placement {
        labels, targets, ..
    } = &group.placement;
    machine.profile.is_none()
        && machine.boot_link().network == cluster.network
        && (targets.is_empty() || targets.contains(&machine.name))
        && labels
            .iter()
            .all(|(key, value)| machine.labels.get(key) == Some(value))
}

use super::Placement;

/// A seat to be filled.
struct Open<'a> {
    group: &'a NodeGroup,
    ordinal: u16,
}

struct Search<'a> {
    open: Vec<Open<'a>>,
    pool: Vec<&'a NodeSpec>,
    /// Machines that other groups name.
    named: BTreeMap<&'a NodeName, BTreeSet<&'a GroupName>>,
    racks: BTreeMap<&'a GroupName, Vec<&'a str>>,
    taken: BTreeSet<&'a NodeName>,
    chosen: Vec<&'a NodeSpec>,
    steps: u32,
    cluster: &'a ClusterSpec,
}

fn fill(
    spec: &SiteSpec,
    cluster: &ClusterSpec,
    before: &Before,
    seats: &mut Seats,
    faults: &mut Vec<PlacementFault>,
) {
    let stage = before.stages.get(&cluster.name).copied();
    let left = |group: &NodeGroup| {
        let retires = cluster
            .course
            .phases
            .iter()
            .find(|phase| phase.retires == Some(group.role));
        group.temporary
            && stage
                .zip(retires)
                .is_some_and(|(now, phase)| now > phase.stage)
    };
    let mut open = Vec::new();
    for group in cluster
        .groups
        .iter()
        .filter(|group| group.role != Role::Bastion && !left(group))
    {
        let feeders = cluster
            .groups
            .iter()
            .filter(|other| other.becomes.as_ref() == Some(&group.name) && !left(other));
        let kept_free: u16 = feeders.map(|feeder| feeder.count).sum();
        let filled = |ordinal| {
            let here = |(name, seat): &(ClusterName, Seat)| {
                *name == cluster.name && seat.group == group.name && seat.ordinal == ordinal
            };
            seats.values().any(here)
        };
        let missing =
            (0..group.count.saturating_sub(kept_free)).filter(|ordinal| !filled(*ordinal));
        open.extend(missing.map(|ordinal| Open { group, ordinal }));
    }
    let pool: Vec<&NodeSpec> = spec
        .nodes
        .values()
        .map(AsRef::as_ref)
        .filter(|machine| machine.profile.is_none() && !seats.contains_key(&machine.name))
        .collect();
    let scarce = faults.len();
    for group in &cluster.groups {
        let wanted = open
            .iter()
            .filter(|seat| seat.group.name == group.name)
            .count();
        let able: Vec<&str> = pool
            .iter()
            .filter(|machine| fits(cluster, group, machine))
            .map(|machine| machine.name.as_str())
            .collect();
        if able.len() < wanted {
            faults.push(too_few(cluster, group, wanted, &able));
        }
    }
    if faults.len() > scarce {
        return;
    }
    // Whoever has the fewest to choose from chooses first.
    open.sort_by_key(|seat| {
        let able = pool
            .iter()
            .filter(|machine| fits(cluster, seat.group, machine))
            .count();
        let place = cluster
            .groups
            .iter()
            .position(|group| group.name == seat.group.name);
        (
            seat.group.placement.targets.is_empty(),
            able,
            place,
            seat.ordinal,
        )
    });
    let mut racks: BTreeMap<&GroupName, Vec<&str>> = BTreeMap::new();
    for (node, (name, seat)) in seats.iter() {
        let group = cluster.group(&seat.group).filter(|_| *name == cluster.name);
        let rack = spec.node(node).and_then(|machine| machine.rack.as_deref());
        if let Some((group, rack)) = group.zip(rack) {
            racks.entry(&group.name).or_default().push(rack);
        }
    }
    let mut named: BTreeMap<&NodeName, BTreeSet<&GroupName>> = BTreeMap::new();
    for group in spec.clusters.values().flat_map(|cluster| &cluster.groups) {
        for node in group
            .placement
            .preferred
            .iter()
            .chain(&group.placement.targets)
        {
            named.entry(node).or_default().insert(&group.name);
        }
    }
    let mut search = Search {
        open,
        pool,
        named,
        racks,
        taken: BTreeSet::new(),
        chosen: Vec::new(),
        steps: 0,
        cluster,
    };
    if search.run() {
        let found: Vec<(NodeName, Seat)> = search
            .open
            .iter()
            .zip(&search.chosen)
            .map(|(open, machine)| {
                let seat = Seat {
                    group: open.group.name.clone(),
                    ordinal: open.ordinal,
                    former: None,
                };
                (machine.name.clone(), seat)
            })
            .collect();
        for (node, seat) in found {
            seats.insert(node, (cluster.name.clone(), seat));
        }
    } else {
        let group = search.open.first().map(|seat| seat.group);
        let hard = cluster
            .groups
            .iter()
            .find(|group| group.placement.anti_affinity == AntiAffinity::Hard);
        if let Some(group) = hard.or(group) {
            faults.push(PlacementFault {
                cluster: cluster.name.clone(),
                group: group.name.clone(),
                problem: format!("wants {} machines in racks of their own, together with what the other groups want, and no choice of machines gives that", group.count),
                remedy: "add machines in other racks, or give it `antiAffinity: SOFT`".to_owned(),
            });
        }
    }
}

fn too_few(
    cluster: &ClusterSpec,
    group: &NodeGroup,
    wanted: usize,
    able: &[&str],
) -> PlacementFault {
    let mut asked: Vec<String> = group
        .placement
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if !group.placement.targets.is_empty() {
        let targets: Vec<&str> = group
            .placement
            .targets
            .iter()
            .map(NodeName::as_str)
            .collect();
        asked.push(format!("one of {}", targets.join(", ")));
    }
    let asked = if asked.is_empty() {
        String::new()
    } else {
        format!(" with {}", asked.join(" and "))
    };
    let free = match able {
        [] => "none is free".to_owned(),
        [one] => format!("only {one} is free"),
        some => format!("only {} are free: {}", some.len(), some.join(", ")),
    };
    PlacementFault {
        cluster: cluster.name.clone(),
        group: group.name.clone(),
        problem: format!(
            "wants {wanted} more machines on network {}{asked}, and {free}",
            cluster.network
        ),
        remedy: "list more machines without a `profile` of their own, or lower `count`".to_owned(),
    }
}

impl<'a> Search<'a> {
    /// Depth first; true when every seat is filled.
    fn run(&mut self) -> bool {
        let place = self.chosen.len();
        let Some(seat) = self.open.get(place) else {
            return true;
        };
        let group = seat.group;
        for machine in self.candidates(group) {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return false;
            }
            self.taken.insert(&machine.name);
            self.chosen.push(machine);
            if let Some(rack) = &machine.rack {
                self.racks.entry(&group.name).or_default().push(rack);
            }
            if self.run() {
                return true;
            }
            if machine.rack.is_some() {
                self.racks.entry(&group.name).or_default().pop();
            }
            self.chosen.pop();
            self.taken.remove(&machine.name);
        }
        false
    }

    /// The machines that may take a seat of `group`, the best first.
    fn candidates(&self, group: &'a NodeGroup) -> Vec<&'a NodeSpec> {
        let shares = |machine: &NodeSpec| {
            let racks = self.racks.get(&group.name);
            machine
                .rack
                .as_deref()
                .is_some_and(|rack| racks.is_some_and(|racks| racks.contains(&rack)))
        };
        let affinity = group.placement.anti_affinity;
        let may = |machine: &&&NodeSpec| {
            !self.taken.contains(&machine.name)
                && fits(self.cluster, group, machine)
                && !(affinity == AntiAffinity::Hard && shares(machine))
        };
        let mut able: Vec<&NodeSpec> = self.pool.iter().filter(may).copied().collect();
        able.sort_by_cached_key(|machine| {
            let preferred = group
                .placement
                .preferred
                .iter()
                .position(|name| *name == machine.name);
            let elsewhere = self
                .named
                .get(&machine.name)
                .is_some_and(|groups| groups.iter().any(|name| **name != group.name));
            let crowded = affinity != AntiAffinity::Off && shares(machine);
            (
                preferred.unwrap_or(usize::MAX),
                elsewhere,
                crowded,
                machine.name.clone(),
            )
        });
        able
    }
}
