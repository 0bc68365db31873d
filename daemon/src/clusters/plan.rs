//! What a definition would come to: machines, addresses, names, artefacts, phases, and disks that are written.
//!
//! The plan is read from the very site that would be in force, made from the records of now.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use netboot::cluster::{ClusterName, ClusterSpec, GroupName, Member, NodeGroup};
use netboot::event::Event;
use netboot::net::{NetworkName, NodeName, ProfileName, Subnet, Timestamp};
use netboot::site::Site;
use netboot::spec::{Purpose, SiteSpec};
use serde::{Deserialize, Serialize};

use super::status::{
    GroupStatus, ServiceStatus, ValidationStatus, admits, api_name, gate, groups, quorum, services,
    validation,
};
use crate::status::NodeStatus;

/// What a definition would come to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterPlan {
    /// The whole in one sentence.
    pub sentence: String,
    /// The cluster.
    pub name: ClusterName,
    /// Whether anything of it would be other than now.
    pub changed: bool,
    /// `okd`, `talos` or `k3s`.
    pub platform: String,
    /// Its release.
    pub version: String,
    /// The name of its API.
    pub api: String,
    /// Where its machines are.
    pub network: NetworkName,
    /// Pod addresses.
    pub pods: Vec<String>,
    /// Service addresses.
    pub services: Vec<String>,
    /// Its machines, by role and rank.
    pub machines: Vec<PlannedMachine>,
    /// Machines that it has now and would give back.
    pub released: Vec<NodeName>,
    /// The files that its machines fetch.
    pub artefacts: Vec<PlannedArtefact>,
    /// Its phases, in order.
    pub phases: Vec<PlannedPhase>,
    /// How many control planes may be lost.
    pub quorum: String,
    /// What it leans on, in start order.
    pub start_order: Vec<String>,
    /// The same, and who does each.
    #[serde(default)]
    pub needs: Vec<ServiceStatus>,
    /// Its node groups, in file order.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// Whether its ports and names are there on the site's public links.
    #[serde(default)]
    pub public: bool,
    /// How its making is followed.
    #[serde(default)]
    pub validation: ValidationStatus,
    /// What people had better know.
    pub warnings: Vec<String>,
}

/// One machine of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedMachine {
    /// The machine.
    pub node: NodeName,
    /// Its group.
    pub group: GroupName,
    /// What it would do.
    pub role: String,
    /// Its rank in the role, from 0.
    pub index: u16,
    /// Its host name.
    pub hostname: String,
    /// The boot link's address.
    pub address: Ipv4Addr,
    /// What it would boot.
    pub profile: ProfileName,
    /// `new`, `moved` or `kept`.
    pub change: String,
    /// What it would be told if it asked for its script right then.
    pub next_boot: String,
    /// The disk that its install writes; `null` where none is written any more.
    pub wipes: Option<String>,
}

/// One file of the depot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedArtefact {
    /// Whose.
    pub profile: ProfileName,
    /// Its name in URLs.
    pub file: String,
    /// What it is served by.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// One phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedPhase {
    /// Its name.
    pub phase: String,
    /// Who may boot from here on.
    pub admits: Vec<String>,
    /// What ends it.
    pub until: Vec<String>,
}

impl ClusterPlan {
    /// What becomes of cluster `name` when `spec` comes into force in `site` at `now`; `None` when it has no such cluster.
    #[must_use]
    pub fn of(
        site: &Site,
        spec: Arc<SiteSpec>,
        name: &ClusterName,
        warnings: Vec<String>,
        now: Timestamp,
    ) -> Option<Self> {
        let before = site.cluster(name);
        let after = site.apply(Event::SpecReplaced(spec), now).site;
        let (spec, state) = after.cluster(name)?;
        let machines: Vec<PlannedMachine> = state
            .members
            .iter()
            .filter_map(|member| PlannedMachine::of(site, &after, member, now))
            .collect();
        let had = before.map_or(&[][..], |(_, state)| &state.members[..]);
        let released: Vec<NodeName> = had
            .iter()
            .map(|member| member.node.clone())
            .filter(|node| machines.iter().all(|machine| machine.node != *node))
            .collect();
        let moves = machines.iter().any(|machine| machine.change != "kept");
        let same = before.is_some_and(|(old, _)| old == spec) && !moves && released.is_empty();
        let needs = services(spec, state);
        let mut plan = Self {
            sentence: String::new(),
            name: name.clone(),
            changed: !same,
            platform: spec.platform.to_string(),
            version: spec.version.to_string(),
            api: api_name(name, &spec.domain),
            network: spec.network.clone(),
            pods: spec.pods.iter().map(ToString::to_string).collect(),
            services: spec.services.iter().map(ToString::to_string).collect(),
            machines,
            released,
            artefacts: artefacts(&after, spec),
            phases: phases(spec),
            quorum: quorum(spec),
            start_order: needs.iter().map(|service| service.name.clone()).collect(),
            needs,
            groups: groups(spec),
            public: spec.public,
            validation: validation(spec),
            warnings,
        };
        plan.sentence = plan.sentence(before.is_none());
        Some(plan)
    }

    fn sentence(&self, new: bool) -> String {
        let Self {
            name,
            platform,
            version,
            network,
            ..
        } = self;
        let count = self.machines.len();
        let plural = if count == 1 { "" } else { "s" };
        let what = format!("{name}: {platform} {version}, {count} machine{plural} on {network}");
        let wiped = self
            .machines
            .iter()
            .filter(|machine| machine.wipes.is_some())
            .count();
        let wiped = match wiped {
            0 => "no disk would be written".to_owned(),
            1 => "1 disk would be written".to_owned(),
            wiped => format!("{wiped} disks would be written"),
        };
        match (self.changed, new) {
            (false, _) => format!("{what}; nothing would change"),
            (true, true) => format!("{what}; it would be new, and {wiped}"),
            (true, false) => format!("{what}; it would change, and {wiped}"),
        }
    }
}

impl PlannedMachine {
    fn of(before: &Site, after: &Site, member: &Member, now: Timestamp) -> Option<Self> {
        let node = after.spec().node(&member.node)?;
        let status = NodeStatus::of(after, node, now);
        let profile = after.profile_of(node)?;
        let installs = profile.purpose == Purpose::Install && status.installed.is_none();
        let disk = node.disk.as_ref().or(profile.disk.as_ref());
        let disk = disk.map_or("the disk its installer finds", |disk| disk.text());
        let change = match before.member(&member.node) {
            None => "new",
            Some(was) if was.cluster == member.cluster && was.group == member.group => "kept",
            Some(_) => "moved",
        };
        Some(Self {
            node: member.node.clone(),
            group: member.group.clone(),
            role: member.role.word().to_owned(),
            index: member.index,
            hostname: node.hostname.to_string(),
            address: status.address,
            profile: member.profile.clone(),
            change: change.to_owned(),
            next_boot: status.next_boot,
            wipes: installs.then(|| disk.to_owned()),
        })
    }
}

/// A definition's values by key, for the comparison of sites.
#[must_use]
pub fn say_cluster(spec: &ClusterSpec) -> BTreeMap<&'static str, String> {
    let words = |subnets: &[Subnet]| {
        let words: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        words.join(" ")
    };
    let group = |group: &NodeGroup| {
        let NodeGroup {
            name,
            role,
            count,
            profile,
            placement,
            temporary,
            becomes,
            tags,
            metadata,
        } = group;
        format!(
            "{name}: {count} {} of {profile}, {placement:?}, {temporary}, {becomes:?}, {tags:?}, {metadata:?}",
            role.plural()
        )
    };
    let groups: Vec<String> = spec.groups.iter().map(group).collect();
    let needs: Vec<String> = spec.needs.iter().map(|need| format!("{need:?}")).collect();
    BTreeMap::from([
        ("type", spec.platform.to_string()),
        ("version", spec.version.to_string()),
        ("domain", spec.domain.to_string()),
        ("network", spec.network.to_string()),
        ("podCIDR", words(&spec.pods)),
        ("serviceCIDR", words(&spec.services)),
        ("nodeGroups", groups.join("; ")),
        ("services", needs.join("; ")),
        ("publicAccess", spec.public.to_string()),
        ("validation", format!("{:?}", spec.validation)),
        ("platformConfig", spec.settings.to_string()),
    ])
}

fn artefacts(site: &Site, spec: &ClusterSpec) -> Vec<PlannedArtefact> {
    let profiles: BTreeMap<_, _> = spec
        .groups
        .iter()
        .filter_map(|group| Some((&group.profile, site.spec().profile(&group.profile)?)))
        .collect();
    let files = profiles.into_iter().flat_map(|(name, profile)| {
        profile.files().map(|file| PlannedArtefact {
            profile: name.clone(),
            file: file.file.clone(),
            sha256: file.digest.to_string(),
            size: file.size,
        })
    });
    files.collect()
}

fn phases(spec: &ClusterSpec) -> Vec<PlannedPhase> {
    let phase = |phase: &netboot::cluster::Phase| PlannedPhase {
        phase: phase.stage.word().to_owned(),
        admits: phase.admits.iter().map(admits).collect(),
        until: phase.gates.iter().map(gate).collect(),
    };
    spec.course.phases.iter().map(phase).collect()
}
