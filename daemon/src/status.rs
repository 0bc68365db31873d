//! A snapshot as people and scripts see it: one view for the commands, the status page, the metrics
//! and the unit's status line. Reads only; every sentence here is computed, never stored.
//!
//! The shapes are promises to scripts: keys are added, never renamed. A moment is milliseconds since
//! 1970 in UTC.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use netboot::attempt::{Entry, Fact};
use netboot::boot::{BootDecision, BootRequest, Hold};
use netboot::cluster::{ClusterName, GroupName};
use netboot::loader::{Architecture, Client};
use netboot::net::{MacAddress, NetworkName, NodeName, ProfileName, Timestamp};
use netboot::node::{Admission, BootState, NodeRecord, NodeSpec, Report};
use netboot::site::Site;
use netboot::spec::{Mode, Network};
use netboot::verdict::{Explanation, Hop};
use serde::{Deserialize, Serialize};

use crate::balancer::ListenerStatus;
use crate::clusters::status::ClusterSummary;
use crate::elsewhere::Finding;
use crate::health::Condition;

/// What the bastion does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The whole in one sentence; also the unit's status line.
    pub sentence: String,
    /// The daemon's.
    pub version: String,
    /// False while something that should work doesn't.
    pub healthy: bool,
    /// When the daemon started.
    pub started: Timestamp,
    /// When this was computed.
    pub now: Timestamp,
    /// Counts durable changes of the site.
    pub generation: u64,
    /// The files in force.
    pub site: SiteFiles,
    /// What is known to be missing from the records, after a store was lost or restored.
    pub recovered: Option<String>,
    /// What each room of the daemon says of itself.
    pub conditions: Vec<Condition>,
    /// The networks served.
    pub networks: Vec<NetworkStatus>,
    /// The clusters that definitions want.
    #[serde(default)]
    pub clusters: Vec<ClusterSummary>,
    /// What the balancer takes connections for, and who is behind it.
    #[serde(default)]
    pub balancer: Vec<ListenerStatus>,
    /// What others must serve in this bastion's place, as it was found last.
    #[serde(default)]
    pub elsewhere: Vec<Finding>,
    /// How many machines are in each state.
    pub counts: BTreeMap<String, usize>,
    /// The machines.
    pub nodes: Vec<NodeStatus>,
    /// Machines that are not listed and were heard.
    pub unlisted: Vec<Unlisted>,
    /// Ledger entries that were dropped because its queue was full.
    pub ledger_dropped: u64,
}

/// The files in force, and those that were refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteFiles {
    /// Where they were read.
    pub directory: String,
    /// When.
    pub loaded: Timestamp,
    /// The last reload, where it was refused; the site in force is then the one before it.
    pub refused: Option<RefusedSite>,
}

/// A site that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedSite {
    /// When.
    pub at: Timestamp,
    /// What is wrong with it, one fault each.
    pub faults: Vec<String>,
}

/// One network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: NetworkName,
    /// The bastion's link.
    pub link: String,
    /// `reservation`, `pool`, `proxy` or `off`.
    pub mode: String,
    /// Its addresses.
    pub subnet: String,
    /// Machines listed on it.
    pub nodes: usize,
    /// Addresses lent to machines that are not listed.
    pub leases: usize,
}

/// One machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Where its story stands: `registered`, `booting`, `installing`, `provisioned`, `joined`, `ready` or `failed`.
    pub state: String,
    /// What happens next, and who must act.
    pub waits_for: String,
    /// True when a person must act.
    pub needs_person: bool,
    /// What it would be told if it asked for its script now: `boot`, `disk`, `hold` or `refuse`.
    pub next_boot: String,
    /// The rule that chose it.
    pub rule: String,
    /// The boot link's first MAC address.
    pub mac: MacAddress,
    /// The boot link's address.
    pub address: Ipv4Addr,
    /// The boot link's network.
    pub network: NetworkName,
    /// What it boots.
    #[serde(default)]
    pub profile: Option<ProfileName>,
    /// Its place in a cluster, if it has one.
    #[serde(default)]
    pub member: Option<Membership>,
    /// `listed`, `approved` or `rejected`.
    pub admission: String,
    /// True while it is set aside.
    pub cordoned: bool,
    /// Boot scripts served without a success.
    pub failed_attempts: u8,
    /// Boot scripts ever served.
    pub attempts: u32,
    /// When its install was acknowledged.
    pub installed: Option<Timestamp>,
    /// How far its system said that it is, since the daemon started: a hint, for nothing proves it.
    #[serde(default)]
    pub progress: Option<Progress>,
}

/// What a machine's system said of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// When.
    pub at: Timestamp,
    /// What, as `events` shows it.
    pub words: String,
}

/// A machine's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Which cluster.
    pub cluster: ClusterName,
    /// Which node group.
    pub group: GroupName,
    /// `bootstrap`, `control-plane`, `worker` or `infra`.
    pub role: String,
    /// Its rank in the role, from 0.
    pub index: u16,
}

/// Everything known of one machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeDetail {
    /// What `node list` shows.
    #[serde(flatten)]
    pub status: NodeStatus,
    /// Its host name.
    pub hostname: String,
    /// Its links, the boot link first.
    pub links: Vec<LinkStatus>,
    /// Its SMBIOS UUID, where listed.
    pub uuid: Option<String>,
    /// Its SMBIOS serial number, where listed.
    pub serial: Option<String>,
    /// The disk an install may write, by the machine's own rule.
    pub disk: Option<String>,
    /// Counts installs wanted.
    pub install_generation: u32,
    /// A consent to lose the disk that was not used yet.
    pub permit: Option<PermitStatus>,
    /// The latest boot script served.
    pub attempt: Option<AttemptStatus>,
}

/// One attachment to a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The network.
    pub network: NetworkName,
    /// The address reserved there.
    pub address: Ipv4Addr,
    /// The MAC addresses that get it.
    pub macs: Vec<MacAddress>,
}

/// A consent to lose a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PermitStatus {
    /// The disk's serial number.
    pub disk: String,
    /// Who gave it.
    pub by: String,
    /// Worth nothing from here on.
    pub expires: Timestamp,
    /// True while it may still be used.
    pub open: bool,
}

/// One boot script served, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptStatus {
    /// Its number.
    pub number: u32,
    /// The MAC address that fetched the script.
    pub mac: MacAddress,
    /// The profile it was served.
    pub profile: ProfileName,
    /// When.
    pub started: Timestamp,
    /// When the config left.
    pub released: Option<Timestamp>,
    /// What the machine reported last.
    pub report: Option<String>,
    /// The words of a report of failure.
    pub failure: Option<String>,
}

/// Why a machine is where it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// The machine.
    pub name: NodeName,
    /// What it comes down to, such as `kernel-not-fetched`.
    pub verdict: String,
    /// The same as a sentence.
    pub sentence: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
    /// The parts of the way, in order.
    pub hops: Vec<HopStatus>,
    /// The ledger's entries that it rests on, the oldest first.
    pub evidence: Vec<Entry>,
    /// What its system said last of itself: a hint, on which the verdict does not rest.
    #[serde(default)]
    pub progress: Option<Progress>,
}

/// One part of the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HopStatus {
    /// Its name, such as `loader`.
    pub hop: String,
    /// `ok`, `waiting`, `failed` or `unseen`.
    pub state: String,
    /// When it last left a trace.
    pub at: Option<Timestamp>,
    /// What the trace says.
    pub detail: String,
}

/// A machine that is not listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unlisted {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Where it was heard.
    pub network: NetworkName,
    /// When it was heard first.
    pub first: Timestamp,
    /// When it was heard last.
    pub last: Timestamp,
    /// Its SMBIOS UUID, where it showed one.
    pub uuid: Option<String>,
}

/// What a status is made of, besides the site.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// When the daemon started.
    pub started: Timestamp,
    /// The files in force.
    pub site: SiteFiles,
    /// What the rooms say.
    pub conditions: Vec<Condition>,
    /// What the balancer says.
    pub balancer: Vec<ListenerStatus>,
    /// What was found of other servers.
    pub elsewhere: Vec<Finding>,
    /// Ledger entries dropped.
    pub ledger_dropped: u64,
}

impl Status {
    /// The status of `site` at `now`.
    #[must_use]
    pub fn of(site: &Site, around: Surroundings, now: Timestamp) -> Self {
        let nodes: Vec<NodeStatus> = site
            .spec()
            .nodes()
            .map(|node| NodeStatus::of(site, node, now))
            .collect();
        let mut counts = BTreeMap::new();
        for node in &nodes {
            *counts.entry(node.state.clone()).or_insert(0) += 1;
        }
        let healthy = around.site.refused.is_none()
            && site.recovered().is_none()
            && around.conditions.iter().all(|condition| condition.healthy);
        let mut status = Self {
            sentence: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            healthy,
            started: around.started,
            now,
            generation: site.generation(),
            site: around.site,
            recovered: site.recovered().map(str::to_owned),
            conditions: around.conditions,
            networks: site
                .spec()
                .networks()
                .map(|network| NetworkStatus::of(site, network, now))
                .collect(),
            clusters: site
                .clusters()
                .map(|(spec, state)| ClusterSummary::of(site, spec, state, now))
                .collect(),
            balancer: around.balancer,
            elsewhere: around.elsewhere,
            counts,
            nodes,
            unlisted: site
                .sightings()
                .map(|(mac, seen)| Unlisted {
                    mac: *mac,
                    network: seen.network.clone(),
                    first: seen.first,
                    last: seen.last,
                    uuid: seen.uuid.map(|uuid| uuid.to_string()),
                })
                .collect(),
            ledger_dropped: around.ledger_dropped,
        };
        status.sentence = status.sentence();
        status
    }

    /// What is wrong comes first: the sentence may be all that a person looks at.
    fn sentence(&self) -> String {
        let mut parts = Vec::new();
        if let Some(refused) = &self.site.refused {
            parts.push(format!(
                "the changed site has {} and is not in force",
                counted(refused.faults.len(), "fault")
            ));
        }
        if let Some(recovered) = &self.recovered {
            parts.push(recovered.clone());
        }
        let ill = self.conditions.iter().filter(|c| !c.healthy);
        parts.extend(ill.map(|c| format!("{}: {}", c.subject, c.detail)));
        let waiting = self.nodes.iter().filter(|node| node.needs_person).count();
        if waiting > 0 {
            let verb = if waiting == 1 { "waits" } else { "wait" };
            parts.push(format!(
                "{} {verb} for a person",
                counted(waiting, "machine")
            ));
        }
        parts.extend(self.clusters.iter().map(|cluster| {
            let ClusterSummary {
                name,
                phase,
                ready,
                machines,
                ..
            } = cluster;
            format!("cluster {name}: {phase} phase, {ready} of {machines} ready")
        }));
        const ORDER: [BootState; 7] = [
            BootState::Failed,
            BootState::Booting,
            BootState::Installing,
            BootState::Provisioned,
            BootState::Joined,
            BootState::Ready,
            BootState::Registered,
        ];
        let states: Vec<String> = ORDER
            .iter()
            .filter_map(|state| {
                Some(format!(
                    "{} {}",
                    self.counts.get(state.word())?,
                    state.word()
                ))
            })
            .collect();
        let machines = counted(self.nodes.len(), "machine");
        parts.push(if states.is_empty() {
            format!("{machines} listed")
        } else {
            format!("{machines}: {}", states.join(", "))
        });
        parts.join("; ")
    }
}

impl NetworkStatus {
    fn of(site: &Site, network: &Network, now: Timestamp) -> Self {
        let on_it = |node: &&Arc<NodeSpec>| node.links.iter().any(|l| l.network == network.name);
        let lent = |(address, lease): &(&Ipv4Addr, &netboot::site::Lease)| {
            network.subnet.contains(**address) && lease.expires > now && !lease.declined
        };
        Self {
            name: network.name.clone(),
            link: network.link.to_string(),
            mode: match network.mode {
                Mode::Reservation => "reservation",
                Mode::Pool => "pool",
                Mode::Proxy => "proxy",
                Mode::Off => "off",
            }
            .to_owned(),
            subnet: network.subnet.to_string(),
            nodes: site.spec().nodes().filter(on_it).count(),
            leases: site.leases().filter(lent).count(),
        }
    }
}

impl NodeStatus {
    /// The status of one listed machine at `now`.
    #[must_use]
    pub fn of(site: &Site, node: &NodeSpec, now: Timestamp) -> Self {
        let record = site.record(&node.name);
        let link = node.boot_link();
        let mac = *link
            .macs
            .first()
            .expect("a link without a MAC address is refused when the site is built");
        // iPXE on any processor: every machine comes to this question, and only this one decides.
        let request = BootRequest {
            mac,
            client: Client::Ipxe(Architecture::X64_UEFI),
            network: &link.network,
            uuid: None,
            serial: None,
            chainloads: 0,
        };
        let decision = site.decide(&request, now);
        let needs_person = match &decision.answer {
            BootDecision::Hold(Hold::NotItsTurn(_) | Hold::Unclaimed | Hold::Retired(_))
            | BootDecision::Boot(_)
            | BootDecision::LocalDisk
            | BootDecision::Chainload(_) => false,
            BootDecision::Hold(_) | BootDecision::Refuse(_) => true,
        };
        let (next_boot, hold) = match &decision.answer {
            BootDecision::Boot(_) => ("boot", None),
            BootDecision::LocalDisk => ("disk", None),
            BootDecision::Hold(hold) => ("hold", Some(hold.to_string())),
            BootDecision::Refuse(refusal) => ("refuse", Some(refusal.to_string())),
            BootDecision::Chainload(_) => ("chainload", None),
        };
        Self {
            name: node.name.clone(),
            state: record.state.word().to_owned(),
            waits_for: hold.unwrap_or_else(|| waits_for(record, next_boot, now)),
            needs_person,
            next_boot: next_boot.to_owned(),
            rule: decision.rule.to_owned(),
            mac,
            address: link.address,
            network: link.network.clone(),
            profile: site.profile_name(node).cloned(),
            member: site.member(&node.name).map(|member| Membership {
                cluster: member.cluster.clone(),
                group: member.group.clone(),
                role: member.role.word().to_owned(),
                index: member.index,
            }),
            admission: match record.admission {
                Admission::Listed => "listed",
                Admission::Approved => "approved",
                Admission::Rejected => "rejected",
            }
            .to_owned(),
            cordoned: record.cordoned,
            failed_attempts: record.failed_attempts,
            attempts: record.attempts_ever,
            installed: record.installed.as_ref().map(|install| install.at),
            progress: None,
        }
    }
}

impl NodeStatus {
    /// What it waits for, and how far its system says that it is.
    #[must_use]
    pub fn waiting(&self) -> String {
        match &self.progress {
            None => self.waits_for.clone(),
            Some(Progress { words, .. }) => format!("{}; it {words}", self.waits_for),
        }
    }
}

impl Why {
    /// The verdict on one listed machine at `now`, from its ledger's entries, the oldest first.
    #[must_use]
    pub fn of(site: &Site, node: &NodeSpec, entries: &[Entry], now: Timestamp) -> Self {
        let Explanation {
            code,
            sentence,
            remedy,
            evidence,
            hops,
        } = site.explain(node, entries, now);
        let hop = |Hop {
                       name,
                       state,
                       at,
                       detail,
                   }| HopStatus {
            hop: name.word().to_owned(),
            state: state.word().to_owned(),
            at,
            detail,
        };
        Self {
            name: node.name.clone(),
            verdict: code.word().to_owned(),
            sentence,
            remedy,
            hops: hops.into_iter().map(hop).collect(),
            evidence,
            progress: entries.iter().rev().find_map(progress),
        }
    }
}

impl NodeDetail {
    /// Everything known of one listed machine at `now`.
    #[must_use]
    pub fn of(site: &Site, node: &NodeSpec, now: Timestamp) -> Self {
        let record = site.record(&node.name);
        Self {
            status: NodeStatus::of(site, node, now),
            hostname: node.hostname.to_string(),
            links: node
                .links
                .iter()
                .map(|link| LinkStatus {
                    network: link.network.clone(),
                    address: link.address,
                    macs: link.macs.clone(),
                })
                .collect(),
            uuid: node.uuid.map(|uuid| uuid.to_string()),
            serial: node.serial.clone(),
            disk: node.disk.as_ref().map(|rule| rule.text().to_owned()),
            install_generation: record.generation,
            permit: record.permit.as_ref().map(|permit| PermitStatus {
                disk: permit.disk.clone(),
                by: permit.by.clone(),
                expires: permit.expires,
                open: permit.is_open(now),
            }),
            attempt: record.attempt.as_ref().map(|attempt| AttemptStatus {
                number: attempt.number,
                mac: attempt.mac,
                profile: attempt.profile.clone(),
                started: attempt.started,
                released: attempt.released,
                report: attempt.report.as_ref().map(|r| report_word(r).to_owned()),
                failure: match &attempt.report {
                    Some(Report::Failed(words)) => Some(words.clone()),
                    Some(Report::Installed | Report::Booted | Report::Joined | Report::Ready)
                    | None => None,
                },
            }),
        }
    }
}

fn progress(entry: &Entry) -> Option<Progress> {
    let said = matches!(entry.fact, Fact::Progress { .. });
    said.then(|| Progress {
        at: entry.at,
        words: entry.fact.to_string(),
    })
}

/// The word of a report, as the agent spells it.
#[must_use]
pub fn report_word(report: &Report) -> &'static str {
    match report {
        Report::Installed => "installed",
        Report::Booted => "booted",
        Report::Joined => "joined",
        Report::Ready => "ready",
        Report::Failed(_) => "failed",
    }
}

fn waits_for(record: &NodeRecord, next_boot: &str, now: Timestamp) -> String {
    if record
        .permit
        .as_ref()
        .is_some_and(|permit| permit.is_open(now))
    {
        return "its next boot, which installs it again".to_owned();
    }
    match record.state {
        BootState::Registered => "its first boot",
        BootState::Booting => "its request for a config",
        BootState::Installing => "its report",
        BootState::Failed => "its next boot",
        BootState::Provisioned | BootState::Joined | BootState::Ready if next_boot == "disk" => {
            "nothing; its disk boots"
        }
        BootState::Provisioned | BootState::Joined | BootState::Ready => "nothing",
    }
    .to_owned()
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;

    fn empty(refused: Option<RefusedSite>, health: &Health) -> Status {
        let around = Surroundings {
            started: Timestamp::default(),
            site: SiteFiles {
                directory: "/etc/reveille".to_owned(),
                loaded: Timestamp::default(),
                refused,
            },
            conditions: health.conditions(),
            balancer: Vec::new(),
            elsewhere: Vec::new(),
            ledger_dropped: 0,
        };
        Status::of(&Site::default(), around, Timestamp::default())
    }

    #[test]
    fn what_is_wrong_comes_first_in_the_sentence() {
        let health = Health::default();
        assert_eq!(empty(None, &health).sentence, "0 machines listed");
        health.well("store", "open");
        assert!(empty(None, &health).healthy);
        health.ill("link eth1.107", "is down");
        let refused = RefusedSite {
            at: Timestamp::default(),
            faults: vec!["one".to_owned()],
        };
        let status = empty(Some(refused), &health);
        assert!(!status.healthy);
        assert_eq!(
            status.sentence,
            "the changed site has 1 fault and is not in force; link eth1.107: is down; 0 machines listed"
        );
    }
}
