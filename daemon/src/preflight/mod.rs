//! `reveille preflight`: is everything around the bastion as the site says, before a machine boots?
//!
//! Each check is a hand that gathers evidence within a bound, and a pure judge that makes a [`Check`] of it. All
//! hands work at the same time, so the whole takes as long as the slowest: under fifteen seconds.
//!
//! ```text
//!   Scene --> segment  frames on each link: rogue-dhcp, duplicate-address, vlan-carries-frames, gateway, path-mtu
//!         |-> names    questions to DNS servers: dns-records, dns-wildcard
//!         |-> elsewhere  names and ports of clusters that others serve: elsewhere
//!         |-> clock    questions to NTP servers: ntp-offset
//!         |-> host     the kernel's links, compared with the site's: host-links
//!         |-> ports    the kernel's sockets: ports
//!         |-> local    the bastion's disk: disk-space, artefacts, certificates
//!         `-> cluster  one cluster's machines, names, ports, secrets and services, where one is named
//! ```
//!
//! Nothing is changed anywhere. What is sent is what machines send anyway (DISCOVER, ARP, pings, questions), in small
//! numbers and bounded.

pub mod check;
mod clock;
mod cluster;
mod frames;
mod host;
mod local;
pub(crate) mod names;
mod path;
mod ports;
mod segment;
mod told;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netboot::net::Timestamp;
use netboot::spec::{Mode, Network, SiteSpec};
use netboot::zone::Names;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::elsewhere::{self, Finding, Question, State};
use crate::http::Ports;
use crate::link::{Links, met_at};

pub use check::{Check, Id, Outcome};
pub use cluster::Focus;
pub use local::Verified;
pub(crate) use names::addresses_of;
pub use told::preflight;
pub(crate) use told::progress;

/// How long any hand may take.
const HAND_TIME: Duration = Duration::from_secs(14);

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
    /// The names that follow from it.
    pub names: Names,
    /// The kernel's links.
    pub links: Arc<Links>,
    /// Where boot HTTP is served.
    pub ports: Ports,
    /// The state directory.
    pub state: PathBuf,
    /// What must be so elsewhere.
    pub elsewhere: Vec<Question>,
    /// One cluster, where only what matters to it is checked.
    pub focus: Option<Focus>,
    /// The time by the bastion's clock.
    pub at: Timestamp,
}

impl Scene {
    /// The networks that answer, and matter.
    fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        let cluster = self.focus.as_ref().and_then(Focus::cluster);
        let matters = move |network: &&Arc<Network>| {
            let here = cluster.is_none_or(|(spec, _)| spec.network == network.name);
            here && network.mode != Mode::Off
        };
        self.spec.networks().filter(matters)
    }

    /// The bastion's own address that a network's machines meet.
    fn our_address(&self, network: &Network) -> Option<Ipv4Addr> {
        let (_, address) = met_at(&self.spec, &self.links, &network.link).ok()?;
        Some(address)
    }
}

/// Checks everything. `told` hears of each check as it is done.
pub async fn run(scene: Scene, verified: Arc<Verified>, told: impl Fn(&Check)) -> Report {
    let scene = Arc::new(scene);
    let mut hands = JoinSet::new();
    for segment in segment::segments(&scene) {
        let name = format!("link {}", segment.name());
        hands.spawn(bounded(Id::VlanCarriesFrames, name, segment.check()));
    }
    for server in names::servers(&scene) {
        let name = format!("server {}", server.address());
        hands.spawn(bounded(Id::DnsRecords, name, server.check()));
    }
    for server in clock::servers(&scene) {
        let name = format!("server {server}");
        hands.spawn(bounded(Id::NtpOffset, name, clock::check(server)));
    }
    let others = "other servers".to_owned();
    hands.spawn(bounded(Id::Elsewhere, others, elsewhere(scene.clone())));
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
    if let Some(focus) = &scene.focus {
        let name = format!("cluster {}", focus.name);
        hands.spawn(bounded(Id::ClusterNames, name, cluster::check(shared())));
    }
    let mut checks = Vec::new();
    while let Some(done) = hands.join_next().await {
        let done = done.expect("no hand panics, and nobody aborts one");
        done.iter().for_each(&told);
        checks.extend(done);
    }
    checks.sort_by(|one, other| (one.id, &one.subject).cmp(&(other.id, &other.subject)));
    Report { checks }
}

/// What others serve in the bastion's place.
async fn elsewhere(scene: Arc<Scene>) -> Vec<Check> {
    let found = elsewhere::look(scene.elsewhere.clone(), scene.at).await;
    let matters = |finding: &Finding| {
        let focus = scene.focus.as_ref();
        focus.is_none_or(|focus| finding.cluster == focus.name.as_str())
    };
    found.into_iter().filter(matters).map(judged).collect()
}

fn judged(finding: Finding) -> Check {
    let Finding {
        cluster,
        subject,
        state,
        detail,
        remedy,
        at: _,
    } = finding;
    let (id, subject) = (Id::Elsewhere, format!("{cluster}: {subject}"));
    match state {
        State::Right => Check::pass(id, subject, detail),
        State::Waits => Check::warn(
            id,
            subject,
            detail,
            "ask again once its machines are up; `reveille status` looks every 30 s",
        ),
        State::Wrong => Check::fail(id, subject, detail, remedy.unwrap_or_default()),
    }
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
