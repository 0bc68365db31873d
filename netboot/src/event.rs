//! The closed list of things that happen to a site, and what each of them changes.
//!
//! [`Site::apply`] never touches the site it is called on. It decides again, from the newest facts,
//! whatever the caller had decided from an older snapshot: two scripts asked for at once, or a permit
//! that ran out in between, are settled here. The caller persists [`Applied::changes`] before it
//! publishes [`Applied::site`] and before anything that rests on [`Applied::outcome`] leaves.

use std::net::Ipv4Addr;
use std::sync::Arc;

use uuid::Uuid;

use crate::boot::{Boot, BootDecision, BootRequest};
use crate::cluster::{ClusterDraft, ClusterName, PlacementFault, Seen};
use crate::delivery::Deliveries;
use crate::loader::Client;
use crate::net::{Digest, MacAddress, NetworkName, NodeName, Timestamp};
use crate::node::{
    Admission, Attempt, BootState, DiskRule, Install, NodeRecord, NodeSpec, Report, WipePermit,
};
use crate::release::{Asker, Release, Withheld};
use crate::site::{Lease, SIGHTINGS_MAX, Sighting, Site};
use crate::spec::{ConfigSource, Profile, Purpose, SiteSpec};

/// Shortest and longest life of a permit, in seconds.
pub const PERMIT_SECONDS: std::ops::RangeInclusive<u64> = 60..=7 * 86_400;
/// Characters of a machine's own words that are kept.
pub const WORDS_MAX: usize = 256;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A machine asked for its boot script and would be told to boot.
    ScriptAsked(ScriptAsked),
    /// A machine asked for its config.
    ConfigAsked(Asker),
    /// A machine asked for a config with secrets, which leaves once for each boot.
    SecretAsked(Asker),
    /// It acknowledged every byte of it.
    Delivered {
        /// Which machine.
        node: NodeName,
        /// Which of its attempts.
        attempt: u32,
    },
    /// A machine reported.
    Reported {
        /// Who.
        asker: Asker,
        /// What.
        report: Report,
    },
    /// A person consents to lose a disk.
    PermitGiven {
        /// Which machine.
        node: NodeName,
        /// Serial number of the disk.
        disk: String,
        /// How long the consent holds; within [`PERMIT_SECONDS`].
        seconds: u64,
        /// Who.
        by: String,
    },
    /// A person admits a machine, or lets it try again.
    Approved(NodeName),
    /// A person rejects a machine.
    Rejected(NodeName),
    /// A person sets a machine aside.
    Cordoned(NodeName),
    /// A person takes it back.
    Uncordoned(NodeName),
    /// A person takes what is left of a lost store for all that is worth knowing: from here on a listed
    /// machine without a record is a new one.
    RecoveryAccepted,
    /// A machine that is not listed wants an address.
    LeaseAsked(LeaseAsked),
    /// It gave the address back.
    LeaseReleased {
        /// Which.
        address: Ipv4Addr,
        /// Whose.
        mac: MacAddress,
    },
    /// It found somebody else on the address.
    AddressDeclined {
        /// Which.
        address: Ipv4Addr,
        /// Who found out.
        mac: MacAddress,
    },
    /// A machine that is not listed was heard.
    Sighted {
        /// Which.
        mac: MacAddress,
        /// Where.
        network: NetworkName,
        /// Its UUID, where it showed one.
        uuid: Option<Uuid>,
    },
    /// The site's files were read again.
    SpecReplaced(Arc<SiteSpec>),
    /// Probes or machines showed how a cluster is.
    Seen {
        /// Which cluster.
        cluster: ClusterName,
        /// See [`ClusterRecord::founded`](crate::cluster::ClusterRecord::founded).
        founded: Timestamp,
        /// What they showed.
        seen: Vec<Seen>,
    },
    /// A cluster's database is about to be started.
    BootstrapIntended(ClusterName),
    /// It runs. With the moment at which the cluster was taken in.
    BootstrapDone(ClusterName, Timestamp),
    /// A cluster is being taken away: so many of its services, the last of the start order, are stopped; 0 starts them again.
    ServicesStopped(ClusterName, usize),
    /// A person is done with a cluster that no definition wants any more.
    ClusterForgotten(ClusterName),
}

/// See [`Event::ScriptAsked`].
#[derive(Clone, Debug)]
pub struct ScriptAsked {
    /// The link it asks from.
    pub mac: MacAddress,
    /// What runs there.
    pub client: Client,
    /// The network it was heard on.
    pub network: NetworkName,
    /// SMBIOS UUID, where it showed one.
    pub uuid: Option<Uuid>,
    /// SMBIOS serial, where it showed one.
    pub serial: Option<String>,
    /// SHA-256 of the token that the script's URLs will bear.
    pub token: Digest,
}

/// See [`Event::LeaseAsked`].
#[derive(Clone, Debug)]
pub struct LeaseAsked {
    /// Who.
    pub mac: MacAddress,
    /// On which network.
    pub network: NetworkName,
    /// The very address that the ACK will carry; a lease on another one is no use.
    pub address: Ipv4Addr,
}

/// A snapshot, what has to be on disk before it may be seen, and the answer.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The site afterwards.
    pub site: Site,
    /// What changed; empty when nothing durable did.
    pub changes: Vec<Change>,
    /// The answer to whoever sent the event.
    pub outcome: Outcome,
}

/// One durable thing that changed; its value is read from the new site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node's record.
    Record(NodeName),
    /// A lease, made, changed or gone.
    Lease(Ipv4Addr),
    /// [`Site::recovered`].
    Recovery,
    /// A cluster's record but for what it holds of machines; gone when the site has none.
    Cluster(ClusterName),
    /// What a cluster's record holds of one machine; gone when that is nothing.
    Member(ClusterName, NodeName),
}

/// The answer to an event.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It took.
    Done,
    /// It did not take, and why, with the remedy.
    Refused(String),
    /// The boot that may be served; `None` when the newest facts say otherwise and the asker must be
    /// answered from the new snapshot.
    Script(Option<ServedBoot>),
    /// The config that may leave, or why it stays.
    Config(Result<Release, Withheld>),
    /// The config with secrets that may begin to leave, and which delivery of its attempt that is.
    Secret(Result<(Release, u8), Withheld>),
    /// The report was taken; or it was not that machine's to make.
    Report(Result<NodeName, Withheld>),
    /// The address is the asker's, or somebody else's.
    Lease(bool),
    /// The machine on which to start the cluster's database, or why not.
    Bootstrap(Result<NodeName, String>),
}

/// A boot that was written down and may be served.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedBoot {
    /// Whose.
    pub node: Arc<NodeSpec>,
    /// What.
    pub profile: Arc<Profile>,
    /// The disk that may be written.
    pub disk: Option<DiskRule>,
    /// The attempt's number.
    pub attempt: u32,
}

impl Site {
    /// What the site becomes when `event` happens at `now`.
    #[must_use]
    pub fn apply(&self, event: Event, now: Timestamp) -> Applied {
        let mut draft = Draft {
            site: self.clone(),
            changes: Vec::new(),
        };
        let outcome = match event {
            Event::ScriptAsked(asked) => Outcome::Script(draft.script_asked(asked, now)),
            Event::ConfigAsked(asker) => Outcome::Config(draft.config_asked(&asker, now)),
            Event::SecretAsked(asker) => Outcome::Secret(draft.secret_asked(&asker, now)),
            Event::Delivered { node, attempt } => {
                draft.delivered(&node, attempt, now);
                Outcome::Done
            }
            Event::Reported { asker, report } => {
                Outcome::Report(draft.reported(&asker, report, now))
            }
            Event::PermitGiven {
                node,
                disk,
                seconds,
                by,
            } => draft.permit_given(&node, disk, seconds, by, now),
            Event::Approved(node) => draft.person(&node, |record| {
                record.admission = Admission::Approved;
                record.failed_attempts = 0;
                if let Some(attempt) = &mut record.attempt {
                    attempt.deliveries.asked_again = None;
                }
            }),
            Event::Rejected(node) => draft.person(&node, |record| {
                record.admission = Admission::Rejected;
                record.permit = None;
            }),
            Event::Cordoned(node) => draft.person(&node, |record| record.cordoned = true),
            Event::Uncordoned(node) => draft.person(&node, |record| record.cordoned = false),
            Event::RecoveryAccepted => draft.recovery_accepted(),
            Event::LeaseAsked(asked) => Outcome::Lease(draft.lease_asked(&asked, now)),
            Event::LeaseReleased { address, mac } => draft.lease_released(address, mac),
            Event::AddressDeclined { address, mac } => draft.address_declined(address, mac, now),
            Event::Sighted { mac, network, uuid } => draft.sighted(mac, network, uuid, now),
            Event::SpecReplaced(spec) => match draft.clusters(now).replace_spec(spec) {
                Ok(()) => Outcome::Done,
                Err(faults) => {
                    let told = |fault: &PlacementFault| {
                        format!(
                            "cluster {}, group {}: {}; {}",
                            fault.cluster, fault.group, fault.problem, fault.remedy
                        )
                    };
                    Outcome::Refused(faults.iter().map(told).collect::<Vec<_>>().join("; "))
                }
            },
            Event::Seen {
                cluster,
                founded,
                seen,
            } => {
                draft.clusters(now).seen(&cluster, founded, seen);
                Outcome::Done
            }
            Event::BootstrapIntended(cluster) => {
                Outcome::Bootstrap(draft.clusters(now).bootstrap_intended(&cluster))
            }
            Event::BootstrapDone(cluster, founded) => {
                draft.clusters(now).bootstrap_done(&cluster, founded);
                Outcome::Done
            }
            Event::ServicesStopped(cluster, count) => {
                draft.clusters(now).stopped(&cluster, count);
                Outcome::Done
            }
            Event::ClusterForgotten(cluster) => match draft.clusters(now).forget(&cluster) {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Refused(why),
            },
        };
        if !draft.changes.is_empty() {
            draft.site.generation += 1;
        }
        Applied {
            site: draft.site,
            changes: draft.changes,
            outcome,
        }
    }
}

/// A site being changed.
pub(crate) struct Draft {
    pub(crate) site: Site,
    changes: Vec<Change>,
}

impl Draft {
    fn clusters(&mut self, now: Timestamp) -> ClusterDraft<'_> {
        ClusterDraft {
            site: &mut self.site,
            changes: &mut self.changes,
            now,
        }
    }

    pub(crate) fn change(&mut self, node: &NodeName, edit: impl FnOnce(&mut NodeRecord)) {
        let mut record = self.site.record(node).clone();
        edit(&mut record);
        self.site.records.insert(node.clone(), Arc::new(record));
        self.changes.push(Change::Record(node.clone()));
    }

    fn script_asked(&mut self, asked: ScriptAsked, now: Timestamp) -> Option<ServedBoot> {
        let ScriptAsked {
            mac,
            client,
            network,
            uuid,
            serial,
            token,
        } = asked;
        let request = BootRequest {
            mac,
            client,
            network: &network,
            uuid,
            serial: serial.as_deref(),
            chainloads: 0,
        };
        let BootDecision::Boot(Boot {
            node: Some(node),
            profile,
            disk,
            uses_permit,
        }) = self.site.decide(&request, now).answer
        else {
            return None;
        };
        let (node, profile) = (Arc::clone(node), Arc::clone(profile));
        let previous = self
            .site
            .record(&node.name)
            .attempt
            .as_ref()
            .map(|attempt| attempt.token);
        let mut number = 0;
        self.change(&node.name, |record| {
            if uses_permit && let Some(permit) = record.permit.take() {
                record.generation += 1;
                record.installed = None;
                record.configured = None;
                record.consented_disk = Some(permit.disk);
                record.failed_attempts = 0;
            }
            record.attempts_ever += 1;
            number = record.attempts_ever;
            // A live boot that fetches nothing leaves no trace of success, and repeating it costs no disk.
            if !(profile.purpose == Purpose::Live && profile.config == ConfigSource::None) {
                record.failed_attempts = record.failed_attempts.saturating_add(1);
            }
            record.state = BootState::Booting;
            let profile = profile.name.clone();
            record.attempt = Some(Attempt {
                number,
                token,
                mac,
                profile,
                started: now,
                released: None,
                deliveries: Deliveries::default(),
                report: None,
            });
        });
        if uses_permit {
            self.clusters(now).reinstalled(&node.name);
        }
        if let Some(previous) = previous {
            self.site.tokens.remove(&previous);
        }
        self.site.tokens.insert(token, node.name.clone());
        Some(ServedBoot {
            node,
            profile,
            disk,
            attempt: number,
        })
    }

    pub(crate) fn config_asked(
        &mut self,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<Release, Withheld> {
        let release = self.site.may_release(asker, now)?;
        if !release.repeated {
            let live = release.profile.purpose == Purpose::Live;
            self.change(&release.node.name, |record| {
                if record.state == BootState::Booting {
                    record.state = BootState::Installing;
                }
                if live {
                    record.failed_attempts = 0;
                }
                record.configured.get_or_insert(now);
                if let Some(attempt) = &mut record.attempt {
                    attempt.released = Some(now);
                }
            });
        }
        Ok(release)
    }

    fn reported(
        &mut self,
        asker: &Asker,
        report: Report,
        now: Timestamp,
    ) -> Result<NodeName, Withheld> {
        let (node, record, attempt) = self
            .site
            .attempt_of(&asker.token)
            .ok_or(Withheld::UnknownToken)?;
        let node = Arc::clone(node);
        self.site.came_from(&node, asker.address, asker.neighbour)?;
        let name = node.name.clone();
        let installs = self
            .site
            .spec
            .profile(&attempt.profile)
            .is_some_and(|profile| profile.purpose == Purpose::Install);
        let report = bounded(report);
        let state = match &report {
            Report::Installed | Report::Booted => BootState::Provisioned,
            Report::Joined => BootState::Joined,
            Report::Ready => BootState::Ready,
            Report::Failed(_) => BootState::Failed,
        };
        let latch = installs && report == Report::Installed && record.installed.is_none();
        let forward = !record.state.reached(state);
        if attempt.report.as_ref() == Some(&report) && !latch && !forward {
            return Ok(name);
        }
        self.change(&name, |record| {
            let number = record.attempt.as_ref().map_or(0, |attempt| attempt.number);
            if latch {
                record.installed = Some(Install {
                    generation: record.generation,
                    attempt: number,
                    at: now,
                });
                record.consented_disk = None;
            }
            if !matches!(report, Report::Failed(_)) {
                record.failed_attempts = 0;
            }
            if forward {
                record.state = state;
            }
            if let Some(attempt) = &mut record.attempt {
                attempt.report = Some(report);
            }
        });
        Ok(name)
    }

    fn permit_given(
        &mut self,
        node: &NodeName,
        disk: String,
        seconds: u64,
        by: String,
        now: Timestamp,
    ) -> Outcome {
        let Some(spec) = self.site.spec.node(node).cloned() else {
            return unknown_node(node);
        };
        let refused = |why: String| Outcome::Refused(why);
        let profile = self.site.profile_of(&spec);
        let Some(profile) = profile else {
            return refused(format!(
                "{node} boots nothing at present: no cluster wants it and it has no profile of its own"
            ));
        };
        if profile.purpose == Purpose::Live {
            return refused(format!(
                "profile {} runs from memory and writes no disk; power-cycle {node}",
                profile.name
            ));
        }
        if self.site.record(node).installed.is_none() {
            return refused(format!(
                "{node} has no acknowledged install to lose; `node approve {node}` lets it try again"
            ));
        }
        if !PERMIT_SECONDS.contains(&seconds) {
            return refused(format!(
                "a permit lasts {} seconds to 7 days",
                PERMIT_SECONDS.start()
            ));
        }
        let disk = disk.trim().to_owned();
        let rule = spec.disk.as_ref().or(profile.disk.as_ref());
        match rule {
            _ if disk.is_empty() => {
                return refused("name the serial number of the disk that may be lost".to_owned());
            }
            Some(DiskRule::Serial(listed)) if *listed != disk => {
                return refused(format!(
                    "{node} installs to the disk with serial {listed}, not {disk}"
                ));
            }
            _ => {}
        }
        let permit = WipePermit {
            disk,
            given: now,
            expires: now.plus_seconds(seconds),
            by,
        };
        self.change(node, |record| record.permit = Some(permit));
        Outcome::Done
    }

    fn person(&mut self, node: &NodeName, edit: impl FnOnce(&mut NodeRecord)) -> Outcome {
        if self.site.spec.node(node).is_none() {
            return unknown_node(node);
        }
        self.change(node, edit);
        Outcome::Done
    }

    fn recovery_accepted(&mut self) -> Outcome {
        if self.site.recovered.take().is_none() {
            return Outcome::Refused(
                "the store was never lost; there is nothing to accept".to_owned(),
            );
        }
        self.changes.push(Change::Recovery);
        Outcome::Done
    }

    fn lease_asked(&mut self, asked: &LeaseAsked, now: Timestamp) -> bool {
        let Some(network) = self.site.spec.network(&asked.network).cloned() else {
            return false;
        };
        if !self.site.may_lend(&network, asked.mac, asked.address, now) {
            return false;
        }
        let former: Vec<Ipv4Addr> = self
            .site
            .lease_of(&network, asked.mac)
            .filter(|address| *address != asked.address)
            .into_iter()
            .collect();
        for address in former {
            self.site.drop_lease(address);
            self.changes.push(Change::Lease(address));
        }
        let expires = now.plus_seconds(u64::from(network.lease_seconds));
        self.site.keep_lease(
            asked.address,
            Lease {
                mac: asked.mac,
                expires,
                declined: false,
            },
        );
        self.changes.push(Change::Lease(asked.address));
        true
    }

    fn lease_released(&mut self, address: Ipv4Addr, mac: MacAddress) -> Outcome {
        if self
            .site
            .leases
            .get(&address)
            .is_some_and(|lease| lease.mac == mac && !lease.declined)
        {
            self.site.drop_lease(address);
            self.changes.push(Change::Lease(address));
        }
        Outcome::Done
    }

    /// RFC 2131, 4.3.3: "the server MUST mark the network address as not available".
    fn address_declined(&mut self, address: Ipv4Addr, mac: MacAddress, now: Timestamp) -> Outcome {
        if let Some(lease) = self
            .site
            .leases
            .get(&address)
            .filter(|lease| lease.mac == mac)
        {
            let lease = Lease {
                declined: true,
                expires: now.plus_seconds(3600),
                ..lease.clone()
            };
            self.site.keep_lease(address, lease);
            self.changes.push(Change::Lease(address));
        }
        Outcome::Done
    }

    fn sighted(
        &mut self,
        mac: MacAddress,
        network: NetworkName,
        uuid: Option<Uuid>,
        now: Timestamp,
    ) -> Outcome {
        let first = self
            .site
            .sightings
            .get(&mac)
            .map_or(now, |sighting| sighting.first);
        self.site.sightings.insert(
            mac,
            Sighting {
                first,
                last: now,
                network,
                uuid,
            },
        );
        if self.site.sightings.len() > SIGHTINGS_MAX {
            let oldest = self
                .site
                .sightings
                .iter()
                .min_by_key(|(_, s)| s.last)
                .map(|(mac, _)| *mac);
            if let Some(oldest) = oldest {
                self.site.sightings.remove(&oldest);
            }
        }
        Outcome::Done
    }
}

fn unknown_node(node: &NodeName) -> Outcome {
    Outcome::Refused(format!(
        "{node} is not listed; `reveille node list` shows who is"
    ))
}

fn bounded(report: Report) -> Report {
    match report {
        Report::Failed(words) => Report::Failed(
            words
                .chars()
                .filter(|c| !c.is_control())
                .take(WORDS_MAX)
                .collect(),
        ),
        told @ (Report::Installed | Report::Booted | Report::Joined | Report::Ready) => told,
    }
}
