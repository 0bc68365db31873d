//! What a check is: its name, and how it came out.

use serde::{Deserialize, Serialize};

/// The checks, by names that stay.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Id {
    /// Each served link is there and has our address of its networks; what the site lists is so.
    HostLinks,
    /// The link has a carrier, and frames come in by it.
    VlanCarriesFrames,
    /// No other server answers DHCP, or in mode `proxy` exactly one does.
    RogueDhcp,
    /// Nobody else uses an address that is reserved or ours.
    DuplicateAddress,
    /// Routers and gateways answer.
    Gateway,
    /// Packets of the network's size come through.
    PathMtu,
    /// Names and addresses of machines agree in DNS.
    DnsRecords,
    /// Names that nobody gave have no address.
    DnsWildcard,
    /// What another DNS server or balancer must have of the clusters is there.
    Elsewhere,
    /// The bastion's clock and the NTP servers' agree.
    NtpOffset,
    /// The ports that are served are ours or free.
    Ports,
    /// The state directory has room.
    DiskSpace,
    /// Every artefact is there, with the content it is known by.
    Artefacts,
    /// Certificates are valid, and for a while yet.
    Certificates,
    /// A cluster's machines have their places, and nobody holds them back.
    ClusterMachines,
    /// The names by which machines find a cluster lead to it.
    ClusterNames,
    /// A cluster's ports are its own, or free.
    ClusterPorts,
    /// What a cluster's documents are made from is there, and young enough.
    ClusterSecrets,
    /// What a cluster leans on is up.
    ClusterServices,
}

impl Id {
    /// The name in tables, JSON and `--skip`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::HostLinks => "host-links",
            Self::VlanCarriesFrames => "vlan-carries-frames",
            Self::RogueDhcp => "rogue-dhcp",
            Self::DuplicateAddress => "duplicate-address",
            Self::Gateway => "gateway",
            Self::PathMtu => "path-mtu",
            Self::DnsRecords => "dns-records",
            Self::DnsWildcard => "dns-wildcard",
            Self::Elsewhere => "elsewhere",
            Self::NtpOffset => "ntp-offset",
            Self::Ports => "ports",
            Self::DiskSpace => "disk-space",
            Self::Artefacts => "artefacts",
            Self::Certificates => "certificates",
            Self::ClusterMachines => "cluster-machines",
            Self::ClusterNames => "cluster-names",
            Self::ClusterPorts => "cluster-ports",
            Self::ClusterSecrets => "cluster-secrets",
            Self::ClusterServices => "cluster-services",
        }
    }
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// Worth a look; nothing is held back for it.
    Warn,
    /// Machines would not boot, or would boot wrong.
    Fail,
}

impl Outcome {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which check.
    pub id: Id,
    /// Of what: `network provisioning`, `link eth1.107`.
    pub subject: String,
    /// How it came out.
    pub result: Outcome,
    /// What was seen.
    pub evidence: String,
    /// What to do about it; only of what did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    pub(super) fn pass(id: Id, subject: impl Into<String>, evidence: impl Into<String>) -> Self {
        Self {
            id,
            subject: subject.into(),
            result: Outcome::Pass,
            evidence: evidence.into(),
            remedy: None,
        }
    }

    pub(super) fn warn(
        id: Id,
        subject: impl Into<String>,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            result: Outcome::Warn,
            remedy: Some(remedy.into()),
            ..Self::pass(id, subject, evidence)
        }
    }

    pub(super) fn fail(
        id: Id,
        subject: impl Into<String>,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            result: Outcome::Fail,
            ..Self::warn(id, subject, evidence, remedy)
        }
    }
}
