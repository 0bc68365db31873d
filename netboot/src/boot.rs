//! What a machine boots: one question, one answer, from durable facts only.
//!
//! The order of the questions in [`decide`] is the safety argument:
//!
//! 1. Who is it? Unlisted machines and machines that contradict the inventory never get an installer.
//! 2. Can its firmware read scripts? If not, it is sent a loader that can. A loader writes nothing.
//! 3. Did it leave a cluster, or is its disk of a place that it held before there? Then it waits: what its disk
//!    holds must not come up again, and nothing may be written over it without a person's word.
//! 4. Did its disk already take an install that was acknowledged, with no open permit to lose it? Then
//!    it is sent to that disk, for ever. Nothing below may run.
//! 5. Did a person reject it, set it aside, or not admit it yet? Then it waits.
//! 6. Did it use up its attempts? Then it waits for a person.
//! 7. Does it serve a cluster whose phase is not its turn yet, or has it got nothing yet while a service that the
//!    cluster requires is not up? Then it waits for that.
//! 8. Otherwise it boots its profile.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::cluster::{ClusterName, Waits};
use crate::identity::{Conflict, Identity, identify};
use crate::loader::{Architecture, Client, LoaderName, LoaderTable, loader_for};
use crate::net::{MacAddress, NetworkName, ProfileName, Timestamp};
use crate::node::{Admission, DiskRule, NodeRecord, NodeSpec};
use crate::site::Site;
use crate::spec::{AdmissionPolicy, ConfigSource, Format, Profile, Purpose};

/// Boot scripts that may be served without a success before a person is asked.
pub const ATTEMPTS_MAX: u8 = 3;
/// Loaders that a machine may fetch in a row without ever asking for a script.
pub const CHAINLOADS_MAX: u8 = 6;

/// The question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BootRequest<'a> {
    /// The link it asks from.
    pub mac: MacAddress,
    /// What runs there.
    pub client: Client,
    /// The network it was heard on.
    pub network: &'a NetworkName,
    /// SMBIOS UUID, where it showed one.
    pub uuid: Option<Uuid>,
    /// SMBIOS serial, where it showed one.
    pub serial: Option<&'a str>,
    /// Loaders it fetched since it last asked for a script, as far as we saw.
    pub chainloads: u8,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub enum BootDecision<'a> {
    /// Its firmware can't read scripts: send this loader.
    Chainload(LoaderName),
    /// Boot the profile.
    Boot(Boot<'a>),
    /// Leave for the local disk.
    LocalDisk,
    /// Wait and ask again.
    Hold(Hold),
    /// Nothing for this machine; say why and leave.
    Refuse(Refusal),
}

/// What is booted, and by whose leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Boot<'a> {
    /// The listed machine; `None` for discovery.
    pub node: Option<&'a Arc<NodeSpec>>,
    /// Its profile.
    pub profile: &'a Arc<Profile>,
    /// The disk that may be written, where anything names one.
    pub disk: Option<DiskRule>,
    /// This boot uses up the permit to wipe.
    pub uses_permit: bool,
}

/// Why a machine waits. The console shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// `node approve` is needed, and why.
    NeedsApproval(String),
    /// `node cordon` set it aside.
    Cordoned,
    /// It was served this many boot scripts without a success.
    AttemptsUsedUp(u8),
    /// Its cluster is not ready for it.
    NotItsTurn(Waits),
    /// No cluster wants it yet, and it has no profile of its own.
    Unclaimed,
    /// It did its work in this cluster and left.
    Retired(ClusterName),
    /// What its disk holds is of a place it held before in this cluster.
    FormerInstall(ClusterName),
}

/// Why a machine gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not listed and the network has no discovery profile.
    NotListed,
    /// It contradicts the inventory.
    IdentityConflict(Conflict),
    /// A person rejected it.
    Rejected,
    /// No loader for its firmware.
    NoLoader(Architecture),
    /// It keeps fetching loaders and never asks for a script.
    ChainLoop(u8),
    /// The firmware is not one that boots from a network.
    NotBooting,
    /// Its profile is gone from the site.
    NoProfile(ProfileName),
}

/// The name of the rule that decided, for `simulate` and the ledger.
pub type Rule = &'static str;

/// An answer with the rule that chose it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<'a> {
    /// The answer.
    pub answer: BootDecision<'a>,
    /// The rule.
    pub rule: Rule,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsApproval(why) => write!(f, "waits for `reveille node approve`: {why}"),
            Self::Cordoned => f.write_str("set aside; `reveille node uncordon` lets it boot"),
            Self::AttemptsUsedUp(count) => write!(
                f,
                "{count} boots without a success; see `reveille node why`, then `reveille node approve` lets it try again"
            ),
            Self::NotItsTurn(waits) => waits.fmt(f),
            Self::Unclaimed => {
                f.write_str("free: no cluster wants it yet and it has no profile of its own")
            }
            Self::Retired(cluster) => write!(
                f,
                "did its work in cluster {cluster} and left; power it off, or list it for something else"
            ),
            Self::FormerInstall(cluster) => write!(
                f,
                "its disk holds what it was before its place in cluster {cluster}; `reveille node reinstall` gives that up"
            ),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListed => f.write_str("not listed; add its MAC address to machines.yaml"),
            Self::IdentityConflict(conflict) => {
                write!(f, "identity conflict: {conflict}; mend machines.yaml")
            }
            Self::Rejected => f.write_str("rejected; `reveille node approve` admits it again"),
            Self::NoLoader(arch) => write!(
                f,
                "no loader for {arch}; name one under `loaders` in site.yaml"
            ),
            Self::ChainLoop(count) => {
                write!(
                    f,
                    "fetched a loader {count} times and never asked for a script; the loader is not iPXE or its DHCP does not reach us"
                )
            }
            Self::NotBooting => f.write_str("not a network boot client"),
            Self::NoProfile(name) => write!(f, "profile {name} is gone from the site"),
        }
    }
}

impl Site {
    /// What the machine that asks `request` boots at `now`. See the head of this file for the order.
    #[must_use]
    pub fn decide<'a>(&'a self, request: &BootRequest<'_>, now: Timestamp) -> Decision<'a> {
        let decided = |answer, rule| Decision { answer, rule };
        let node = match identify(&self.spec, request.mac, request.uuid, request.serial) {
            Identity::Known(node) => node,
            Identity::Unknown => return self.decide_unlisted(request),
            Identity::Conflict(conflict) => {
                return decided(
                    BootDecision::Refuse(Refusal::IdentityConflict(conflict)),
                    "identity-conflict",
                );
            }
        };
        if let Some(decision) = self.decide_loader(request, &node.loaders) {
            return decision;
        }
        let record = self.record(&node.name);
        if let Some(hold) = self.left_behind(node, record, now) {
            return decided(BootDecision::Hold(hold), "left-its-cluster");
        }
        let Some(name) = self.profile_name(node) else {
            return match record.installed {
                Some(_) => decided(BootDecision::LocalDisk, "installed"),
                None => decided(BootDecision::Hold(Hold::Unclaimed), "unclaimed"),
            };
        };
        let Some(profile) = self.spec.profile(name) else {
            return decided(
                BootDecision::Refuse(Refusal::NoProfile(name.clone())),
                "profile-gone",
            );
        };
        let decision = decide_node(node, profile, record, self.doubt(), now);
        match (&decision.answer, self.may_begin(node)) {
            (BootDecision::Boot(_), Err(waits)) => {
                decided(BootDecision::Hold(Hold::NotItsTurn(waits)), "not-its-turn")
            }
            _ => decision,
        }
    }

    /// Why a machine that served a cluster before must not come up as what it was.
    fn left_behind(&self, node: &NodeSpec, record: &NodeRecord, now: Timestamp) -> Option<Hold> {
        if let Some(cluster) = self.retired_from(&node.name)
            && node.profile.is_none()
        {
            return Some(Hold::Retired(cluster.clone()));
        }
        let member = self.member(&node.name)?;
        let permitted = record
            .permit
            .as_ref()
            .is_some_and(|permit| permit.is_open(now));
        let installed = record.installed.as_ref().zip(member.former);
        let former = installed.is_some_and(|(install, former)| install.generation <= former);
        (former && !permitted).then(|| Hold::FormerInstall(member.cluster.clone()))
    }

    /// Why the inventory's word alone admits nobody, where it doesn't.
    fn doubt(&self) -> Option<&str> {
        match self.spec.admission() {
            AdmissionPolicy::Manual => Some("the site admits machines by hand"),
            AdmissionPolicy::Listed => self.recovered.as_deref(),
        }
    }

    fn decide_unlisted<'a>(&'a self, request: &BootRequest<'_>) -> Decision<'a> {
        let network = self.spec.network(request.network);
        let discovery = network.and_then(|network| self.spec.profile(network.discovery.as_ref()?));
        let Some(profile) = discovery.filter(|profile| profile.purpose == Purpose::Live) else {
            return Decision {
                answer: BootDecision::Refuse(Refusal::NotListed),
                rule: "not-listed",
            };
        };
        if let Some(decision) = self.decide_loader(request, &LoaderTable::new()) {
            return decision;
        }
        let boot = Boot {
            node: None,
            profile,
            disk: None,
            uses_permit: false,
        };
        Decision {
            answer: BootDecision::Boot(boot),
            rule: "discovery",
        }
    }

    /// The loader, for firmware that can't read scripts; `None` for iPXE, which can.
    fn decide_loader<'a>(
        &'a self,
        request: &BootRequest<'_>,
        own: &LoaderTable,
    ) -> Option<Decision<'a>> {
        let refuse = |refusal, rule| {
            Some(Decision {
                answer: BootDecision::Refuse(refusal),
                rule,
            })
        };
        let arch = match request.client {
            Client::Ipxe(_) => return None,
            Client::System => return refuse(Refusal::NotBooting, "not-booting"),
            Client::Pxe(arch) | Client::HttpBoot(arch) => arch,
        };
        if request.chainloads >= CHAINLOADS_MAX {
            return refuse(Refusal::ChainLoop(request.chainloads), "chain-loop");
        }
        let nothing = LoaderTable::new();
        let network = self
            .spec
            .network(request.network)
            .map_or(&nothing, |network| &network.loaders);
        match loader_for(arch, [own, network]) {
            Some(loader) => Some(Decision {
                answer: BootDecision::Chainload(loader),
                rule: "firmware-needs-loader",
            }),
            None => refuse(Refusal::NoLoader(arch), "no-loader"),
        }
    }
}

/// Questions 4 to 6 of the head of this file, for a listed machine that can read scripts. `doubt` says
/// why being listed is not enough, where it isn't.
#[must_use]
pub fn decide_node<'a>(
    node: &'a Arc<NodeSpec>,
    profile: &'a Arc<Profile>,
    record: &NodeRecord,
    doubt: Option<&str>,
    now: Timestamp,
) -> Decision<'a> {
    let decided = |answer, rule| Decision { answer, rule };
    let permit = record.permit.as_ref().filter(|permit| permit.is_open(now));
    if profile.purpose == Purpose::Install && record.installed.is_some() && permit.is_none() {
        return decided(BootDecision::LocalDisk, "installed");
    }
    match (&record.admission, doubt) {
        (Admission::Rejected, _) => {
            return decided(BootDecision::Refuse(Refusal::Rejected), "rejected");
        }
        (Admission::Listed, Some(why)) => {
            return decided(
                BootDecision::Hold(Hold::NeedsApproval(why.to_owned())),
                "needs-approval",
            );
        }
        (Admission::Listed, None) | (Admission::Approved, _) => {}
    }
    if record.cordoned {
        return decided(BootDecision::Hold(Hold::Cordoned), "cordoned");
    }
    // A permit is a person's word, so it opens a new count.
    if record.failed_attempts >= ATTEMPTS_MAX && permit.is_none() {
        return decided(
            BootDecision::Hold(Hold::AttemptsUsedUp(record.failed_attempts)),
            "attempts-used-up",
        );
    }
    let consented = permit
        .map(|permit| &permit.disk)
        .or(record.consented_disk.as_ref());
    let disk = writable_disk(consented, node, profile);
    let uses_permit = permit.is_some() && profile.purpose == Purpose::Install;
    decided(
        BootDecision::Boot(Boot {
            node: Some(node),
            profile,
            disk,
            uses_permit,
        }),
        "boot-profile",
    )
}

/// Is this boot for emptying the disk, and the next one for the install? Talos never installs over an installation of
/// itself, which starts instead, from the network too, and reads no other config; told to wipe it does that and starts
/// again. So where a person consented to lose the disk every other boot wipes, until a config left.
#[must_use]
pub fn wipes_first(record: &NodeRecord, boot: &Boot<'_>) -> bool {
    let talos = matches!(
        boot.profile.config,
        ConfigSource::Talos(_) | ConfigSource::Platform(Format::Talos)
    );
    let begun_again = record.consented_disk.is_some()
        && record.installed.is_none()
        && record.configured.is_none()
        && record.failed_attempts > 0
        && record.failed_attempts.is_multiple_of(2);
    talos && boot.profile.purpose == Purpose::Install && (boot.uses_permit || begun_again)
}

/// The disk that may be written: the machine's own rule, the profile's, or else the one whose loss a
/// person consented to.
pub(crate) fn writable_disk(
    consented: Option<&String>,
    node: &NodeSpec,
    profile: &Profile,
) -> Option<DiskRule> {
    match (consented, node.disk.as_ref().or(profile.disk.as_ref())) {
        (Some(serial), None) => Some(DiskRule::Serial(serial.clone())),
        (_, rule) => rule.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Digest;
    use crate::spec::Artifact;

    #[test]
    fn talos_empties_the_disk_in_every_other_boot_of_a_consented_install_and_never_else() {
        let profile = |config, purpose| {
            Arc::new(Profile {
                name: "talos".parse().expect("a name"),
                kernel: Artifact {
                    file: "vmlinuz".to_owned(),
                    digest: Digest::from_bytes([1; 32]),
                    size: 1,
                },
                initrds: Vec::new(),
                artifacts: Default::default(),
                arguments: Vec::new(),
                config,
                purpose,
                disk: None,
            })
        };
        let talos = profile(ConfigSource::Platform(Format::Talos), Purpose::Install);
        let wipes = |record: &NodeRecord, profile: &Arc<Profile>, uses_permit| {
            let boot = Boot {
                node: None,
                profile,
                disk: None,
                uses_permit,
            };
            wipes_first(record, &boot)
        };
        let mut record = NodeRecord::default();
        assert!(!wipes(&record, &talos, false), "nobody consented");
        assert!(wipes(&record, &talos, true));
        record.consented_disk = Some("SN-1".to_owned());
        let boots = (1..=4).map(|failed_attempts| {
            record.failed_attempts = failed_attempts;
            wipes(&record, &talos, false)
        });
        assert_eq!(boots.collect::<Vec<_>>(), [false, true, false, true]);
        record.configured = Some(Timestamp::from_millis(1));
        assert!(!wipes(&record, &talos, false), "its config left");
        let ignition = profile(ConfigSource::Platform(Format::Ignition), Purpose::Install);
        assert!(!wipes(&record, &ignition, true));
        let live = profile(ConfigSource::Platform(Format::Talos), Purpose::Live);
        assert!(!wipes(&record, &live, true));
    }
}
