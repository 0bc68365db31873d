//! `reveille preflight`: is everything around the bastion as the site says, before a machine boots?
//!
//! Each check is a hand that gathers evidence within a bound, and a pure judge that makes a [`Check`] of it. All
//! hands work at the same time, so the whole takes as long as the slowest: under fifteen seconds.
//!
//! ```text
//!   Scene --> segment  frames on each link: rogue-dhcp, duplicate-address, vlan-carries-frames, gateway, path-mtu
//!         |-> names    questions to DNS servers: dns-records, dns-wildcard
//!         |-> clock    questions to NTP servers: ntp-offset
//!         |-> host     the kernel's links, compared with the site's: host-links
//!         |-> ports    the kernel's sockets: ports
//!         `-> local    the bastion's disk: disk-space, artefacts, certificates
//! ```
//!
//! Nothing is changed anywhere. What is sent is what machines send anyway (DISCOVER, ARP, pings, questions), in small
//! numbers and bounded.

mod clock;
mod frames;
mod host;
mod local;
mod names;
mod path;
mod ports;
mod segment;
mod told;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netboot::net::Timestamp;
use netboot::spec::SiteSpec;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::http::Ports;
use crate::link::Links;

pub use local::Verified;
pub use told::preflight;

/// How long any hand may take.
const HAND_TIME: Duration = Duration::from_secs(14);

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
            Self::NtpOffset => "ntp-offset",
            Self::Ports => "ports",
            Self::DiskSpace => "disk-space",
            Self::Artefacts => "artefacts",
            Self::Certificates => "certificates",
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
    fn pass(id: Id, subject: impl Into<String>, evidence: impl Into<String>) -> Self {
        Self {
            id,
            subject: subject.into(),
            result: Outcome::Pass,
            evidence: evidence.into(),
            remedy: None,
        }
    }

    fn warn(
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

    fn fail(
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

/// Everything that was checked, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// By check, then by subject.
    pub checks: Vec<Check>,
}

/// The failed checks that nobody overrode by name. While there are any, machines had better not be started.
#[must_use]
pub fn blocks<'a>(checks: &'a [Check], overridden: &[Id]) -> Vec<&'a Check> {
    checks
        .iter()
        .filter(|check| check.result == Outcome::Fail && !overridden.contains(&check.id))
        .collect()
}

/// What is checked: the site, and where this process stands.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The site.
    pub spec: Arc<SiteSpec>,
    /// The kernel's links.
    pub links: Arc<Links>,
    /// Where boot HTTP is served.
    pub ports: Ports,
    /// The state directory.
    pub state: PathBuf,
    /// The time by the bastion's clock.
    pub at: Timestamp,
}

/// Checks everything. `told` hears of each check as it is done.
pub async fn run(scene: Scene, verified: Arc<Verified>, told: impl Fn(&Check)) -> Report {
    let scene = Arc::new(scene);
    let mut hands = JoinSet::new();
    for segment in segment::segments(&scene) {
        let name = format!("link {}", segment.name());
        hands.spawn(bounded(Id::VlanCarriesFrames, name, segment.check()));
    }
    for server in names::servers(&scene.spec) {
        let name = format!("server {}", server.address());
        hands.spawn(bounded(Id::DnsRecords, name, server.check()));
    }
    for server in clock::servers(&scene.spec) {
        let name = format!("server {server}");
        hands.spawn(bounded(Id::NtpOffset, name, clock::check(server)));
    }
    let here = || "this host".to_owned();
    let shared = || Arc::clone(&scene);
    hands.spawn(bounded(Id::HostLinks, here(), host::check(shared())));
    hands.spawn(bounded(Id::Ports, here(), ports::check(shared())));
    hands.spawn(bounded(Id::DiskSpace, here(), local::disk(shared())));
    hands.spawn(bounded(
        Id::Artefacts,
        here(),
        local::artefacts(shared(), verified),
    ));
    hands.spawn(bounded(
        Id::Certificates,
        here(),
        local::certificates(shared()),
    ));
    let mut checks = Vec::new();
    while let Some(done) = hands.join_next().await {
        let done = done.expect("no hand panics, and nobody aborts one");
        done.iter().for_each(&told);
        checks.extend(done);
    }
    checks.sort_by(|one, other| (one.id, &one.subject).cmp(&(other.id, &other.subject)));
    Report { checks }
}

/// A hand, or the word that it took too long.
async fn bounded(id: Id, subject: String, hand: impl Future<Output = Vec<Check>>) -> Vec<Check> {
    tokio::time::timeout(HAND_TIME, hand)
        .await
        .unwrap_or_else(|_| {
            let evidence = format!("was not done within {} s", HAND_TIME.as_secs());
            let remedy = "run it again when the bastion is less busy";
            vec![Check::warn(id, subject, evidence, remedy)]
        })
}

/// The first few of a list in words, and how many more there are.
fn listed(items: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 6;
    let items: Vec<String> = items.into_iter().collect();
    let more = items.len().saturating_sub(SHOWN);
    let shown = items[..items.len() - more].join("; ");
    if more == 0 {
        shown
    } else {
        format!("{shown}; and {more} more")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_that_nobody_overrode_block() {
        let checks = [
            Check::pass(Id::Ports, "a", ""),
            Check::warn(Id::Gateway, "b", "", ""),
            Check::fail(Id::RogueDhcp, "c", "", ""),
            Check::fail(Id::DiskSpace, "d", "", ""),
        ];
        let blocking = |overridden: &[Id]| -> Vec<String> {
            let blocking = blocks(&checks, overridden).into_iter();
            blocking.map(|check| check.subject.clone()).collect()
        };
        assert_eq!(blocking(&[]), ["c", "d"]);
        assert_eq!(blocking(&[Id::RogueDhcp, Id::Gateway]), ["d"]);
        assert_eq!(blocking(&[Id::DiskSpace, Id::RogueDhcp]), [""; 0]);
    }

    #[test]
    fn a_name_is_the_same_in_json_on_the_command_line_and_in_tables() {
        use clap::ValueEnum;
        for id in Id::value_variants() {
            let json = serde_json::to_value(id).expect("a name is JSON");
            assert_eq!(json, id.word());
            let value = id.to_possible_value().expect("nothing is hidden");
            assert_eq!(value.get_name(), id.word());
        }
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let items = |count: u8| listed((0..count).map(|item| item.to_string()));
        assert_eq!(items(2), "0; 1");
        assert_eq!(items(8), "0; 1; 2; 3; 4; 5; and 2 more");
    }
}
