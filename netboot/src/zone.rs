//! The names that the bastion answers for, and its answers. Pure: the daemon moves the packets.
//!
//! ```text
//!   Names (what the site says) --records()--> every record, once, with the sides that see it
//!                                   |--> Zones: an index for each side, replies ready but for the question
//!                                   `--> lists and zone files for people and other servers
//! ```
//!
//! A cluster's domain is ours as a whole: what isn't in it does not exist. A network's domain and the reverse of its
//! subnet are not: others may keep names there, so a name that we don't know is somebody else's to answer.
//!
//! Each side sees its own view. Inside are the provisioning links: everything. Outside are the links that the site
//! names: `api` and `*.apps` of the clusters, under the addresses where everybody meets them, and nothing else; `api-int` and
//! the machines are never told there.

mod index;
pub mod name;
pub mod packet;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterName, ClusterSpec, Member, ServiceKind};
use crate::net::{LinkName, NodeName};
use crate::node::{NodeLink, NodeSpec};
use crate::site::Site;
use crate::spec::{Network, SiteSpec};
pub use index::{Answered, Zones};
use index::{EXPIRE, REFRESH, RETRY};
pub use name::DomainName;
use packet::kind;

/// What `site.yaml` wants of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSpec {
    /// Who answers.
    pub mode: DnsMode,
    /// The servers that are asked for all other names, the quickest first; none: such names are refused.
    pub forward: Vec<SocketAddr>,
    /// How long an answer of ours may be kept, in seconds, 1 to 86,400; the same for a negative one.
    pub ttl_seconds: u32,
    /// Links on which the outside's view is served.
    pub public: BTreeSet<LinkName>,
    /// Records besides those that follow from the site, seen inside only.
    pub records: BTreeMap<DomainName, Vec<IpAddr>>,
    /// Where the clusters' ports are balanced, if not by this bastion.
    pub balanced: Option<Balanced>,
    /// Links at whose first address this bastion's balancer takes everybody's connections.
    pub met_on: BTreeSet<LinkName>,
}

/// Where a balancer elsewhere takes the clusters' connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balanced {
    /// Those of machines.
    pub inside: Vec<Ipv4Addr>,
    /// Those of everybody else; empty for nowhere.
    pub outside: Vec<Ipv4Addr>,
}

impl DnsSpec {
    /// Short enough for a balancer that moves, long enough for a rack that boots.
    pub const TTL_SECONDS: u32 = 60;
}

impl Default for DnsSpec {
    fn default() -> Self {
        Self {
            mode: DnsMode::default(),
            forward: Vec::new(),
            ttl_seconds: Self::TTL_SECONDS,
            public: BTreeSet::new(),
            records: BTreeMap::new(),
            balanced: None,
            met_on: BTreeSet::new(),
        }
    }
}

/// Who answers for the site's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsMode {
    /// This bastion.
    Serve,
    /// Other servers, which are checked against the records that must be there.
    External,
    /// Others, or nobody.
    #[default]
    Off,
}

/// Everything that names follow from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The zones' serial number; a later one is larger in the sense of RFC 1982.
    pub serial: u32,
    /// See [`DnsSpec::ttl_seconds`].
    pub ttl_seconds: u32,
    /// The clusters.
    pub clusters: Vec<ClusterNames>,
    /// Machines in no cluster, by full name.
    pub machines: Vec<(DomainName, Ipv4Addr)>,
    /// What else the site lists.
    pub extra: Vec<(DomainName, IpAddr)>,
    /// Domains in which some names are ours: those of networks.
    pub partial: BTreeSet<DomainName>,
}

/// What one cluster's names follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNames {
    /// The cluster's own domain: `okd.lab.example`.
    pub domain: DomainName,
    /// Where its API and ingress are balanced for machines.
    pub inside: Vec<Ipv4Addr>,
    /// The same for everybody else; empty for nowhere.
    pub outside: Vec<Ipv4Addr>,
    /// Its machines by full name.
    pub members: Vec<(DomainName, Ipv4Addr)>,
}

/// Who asks, by the link a question came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// A machine on a provisioning link.
    Inside,
    /// Anybody, on a link that the site made public.
    Outside,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// PTR.
    Name(DomainName),
}

/// One record, as one side sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Who sees it.
    pub side: Side,
    /// Whose it is.
    pub name: DomainName,
    /// What it says.
    pub data: Data,
}

impl Names {
    /// What follows from a site. `serial` grows with each change; `inside` is the bastion's address in a network, and
    /// `outside` are those where it takes everybody's connections; neither counts where another balancer does.
    #[must_use]
    pub fn of(
        site: &Site,
        serial: u32,
        inside: impl Fn(&Network) -> Option<Ipv4Addr>,
        outside: &[Ipv4Addr],
    ) -> Self {
        let (spec, dns) = (site.spec(), site.spec().dns());
        let mut clusters = BTreeMap::new();
        for cluster in spec.clusters() {
            // A cluster whose name is too long for its domain is refused when its files are read.
            let base = DomainName::from(&cluster.domain);
            let Some(domain) = DomainName::under(cluster.name.as_str(), &base) else {
                continue;
            };
            let network = spec.network(&cluster.network);
            let here = || Balanced {
                inside: network
                    .and_then(|network| inside(network))
                    .into_iter()
                    .collect(),
                outside: outside.to_vec(),
            };
            let balanced = dns.balanced.clone().unwrap_or_else(here);
            let told = tells(site, &cluster.name);
            let seen = |addresses: Vec<Ipv4Addr>, by: bool| match by {
                true => addresses,
                false => Vec::new(),
            };
            let names = ClusterNames {
                domain,
                inside: seen(balanced.inside, told),
                outside: seen(balanced.outside, told && cluster.public),
                members: Vec::new(),
            };
            clusters.insert(&cluster.name, (cluster, names));
        }
        let mut machines = BTreeMap::new();
        for node in spec.nodes() {
            let seat = site.member(&node.name);
            let seat = seat.and_then(|member| clusters.get_mut(&member.cluster));
            let mut cluster = None;
            if let Some((spec, names)) = seat {
                cluster = Some(&spec.network);
                let link = node.links.iter().find(|link| link.network == spec.network);
                let name = DomainName::under(node.hostname.label(), &names.domain);
                names
                    .members
                    .extend(name.zip(link.map(|link| link.address)));
            }
            let others = node
                .links
                .iter()
                .filter(|link| Some(&link.network) != cluster);
            for link in others {
                let network = spec.network(&link.network);
                let name = network.and_then(|network| machine_name(node, link, network));
                // One name, one address: with several links in one domain the boot link comes first and stays.
                if let Some(name) = name {
                    machines.entry(name).or_insert(link.address);
                }
            }
        }
        let extra = dns.records.iter().flat_map(|(name, addresses)| {
            addresses
                .iter()
                .map(move |address| (name.clone(), *address))
        });
        let domains = spec
            .networks()
            .filter_map(|network| network.domain.as_ref());
        Self {
            serial,
            ttl_seconds: dns.ttl_seconds,
            clusters: clusters.into_values().map(|(_, names)| names).collect(),
            machines: machines.into_iter().collect(),
            extra: extra.collect(),
            partial: domains.map(DomainName::from).collect(),
        }
    }

    /// Every record once, by side, then by name.
    #[must_use]
    pub fn records(&self) -> BTreeSet<Record> {
        let mut records = BTreeSet::new();
        // An address that bears a machine's name has no other: the machine asks for it to learn its own.
        let mut named = BTreeSet::new();
        let members = self.clusters.iter().flat_map(|cluster| &cluster.members);
        for (name, address) in members.chain(&self.machines) {
            let forward = (Side::Inside, name, IpAddr::V4(*address));
            if named.insert(*address) {
                both_ways(&mut records, forward);
            } else {
                one_way(&mut records, forward);
            }
        }
        for cluster in &self.clusters {
            let sides = [
                (Side::Inside, &cluster.inside, &["api", "api-int"][..]),
                (Side::Outside, &cluster.outside, &["api"][..]),
            ];
            for (side, addresses, hosts) in sides {
                for address in addresses {
                    let mut add = |host, back: bool| {
                        let Some(name) = DomainName::under(host, &cluster.domain) else {
                            return;
                        };
                        let forward = (side, &name, IpAddr::V4(*address));
                        if back && !named.contains(address) {
                            both_ways(&mut records, forward);
                        } else {
                            one_way(&mut records, forward);
                        }
                    };
                    hosts.iter().for_each(|host| add(host, true));
                    add("ns", false);
                    let apps = DomainName::under("apps", &cluster.domain);
                    if let Some(name) = apps.and_then(|apps| DomainName::under("*", &apps)) {
                        one_way(&mut records, (side, &name, IpAddr::V4(*address)));
                    }
                }
            }
        }
        for (name, address) in &self.extra {
            one_way(&mut records, (Side::Inside, name, *address));
        }
        records
    }

    /// A side's records as a master file (RFC 1035, section 5), with the SOA and NS of each cluster's zone.
    #[must_use]
    pub fn zone_file(&self, side: Side) -> String {
        let mut text = format!("; {} records\n$TTL {}\n", side, self.ttl_seconds);
        for cluster in self.clusters.iter().filter(|cluster| cluster.is_seen(side)) {
            let (domain, ttl) = (&cluster.domain, self.ttl_seconds);
            let times = format!("{} {REFRESH} {RETRY} {EXPIRE} {ttl}", self.serial);
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{domain} IN SOA ns.{domain} hostmaster.{domain} {times}"
            );
            let _ = writeln!(text, "{domain} IN NS ns.{domain}");
        }
        for record in self.records().iter().filter(|record| record.side == side) {
            let _ = writeln!(text, "{record}");
        }
        text
    }
}

/// Whether a cluster's names are told: its DNS service, where it lists one, is started. Machines' own names always are.
fn tells(site: &Site, cluster: &ClusterName) -> bool {
    let found = site.cluster(cluster);
    // Other servers are told what they must say before anything is started.
    let serves = site.spec().dns().mode == DnsMode::Serve;
    !serves || found.is_none_or(|(spec, state)| state.does(ServiceKind::Dns, spec))
}

/// A machine's name on one of its links: in the domain of the link's network, or whole where it boots from it.
fn machine_name(node: &NodeSpec, link: &NodeLink, network: &Network) -> Option<DomainName> {
    let domain = network.domain.as_ref().map(DomainName::from);
    if link == node.boot_link() {
        DomainName::of_host(&node.hostname, domain.as_ref())
    } else {
        DomainName::under(node.hostname.label(), &domain?)
    }
}

/// What names follow from, besides the bastion's own addresses: as long as it is the same, so are they.
#[derive(Clone, Debug, Default)]
pub struct Source {
    spec: Arc<SiteSpec>,
    members: OrdMap<NodeName, Arc<Member>>,
    /// The clusters whose names are not told yet.
    silent: Vec<ClusterName>,
}

impl Source {
    /// A site's.
    #[must_use]
    pub fn of(site: &Site) -> Self {
        Self {
            spec: Arc::clone(site.spec()),
            members: site.members.clone(),
            silent: silent(site).cloned().collect(),
        }
    }

    /// What the site wants of DNS.
    #[must_use]
    pub fn dns(&self) -> &DnsSpec {
        self.spec.dns()
    }

    /// True when it is still this site's. Cheap while nothing was applied to the site's clusters.
    #[must_use]
    pub fn is_of(&self, site: &Site) -> bool {
        let members = || self.members.ptr_eq(&site.members) || self.members == site.members;
        Arc::ptr_eq(&self.spec, site.spec()) && members() && silent(site).eq(&self.silent)
    }
}

/// Costs nothing where no definition lists a DNS service.
fn silent(site: &Site) -> impl Iterator<Item = &ClusterName> {
    let lists = |cluster: &&Arc<ClusterSpec>| {
        let mut needs = cluster.needs.iter();
        needs.any(|service| service.kind == ServiceKind::Dns)
    };
    let listing = site.spec().clusters().filter(lists);
    listing
        .map(|cluster| &cluster.name)
        .filter(|name| !tells(site, name))
}

impl ClusterNames {
    fn is_seen(&self, side: Side) -> bool {
        match side {
            Side::Inside => true,
            Side::Outside => !self.outside.is_empty(),
        }
    }
}

fn one_way(records: &mut BTreeSet<Record>, (side, name, address): (Side, &DomainName, IpAddr)) {
    let (name, data) = (name.clone(), Data::Address(address));
    records.insert(Record { side, name, data });
}

fn both_ways(records: &mut BTreeSet<Record>, forward: (Side, &DomainName, IpAddr)) {
    one_way(records, forward);
    if let (side, name, IpAddr::V4(address)) = forward {
        let (data, name) = (Data::Name(name.clone()), DomainName::reverse(address));
        records.insert(Record { side, name, data });
    }
}

impl Data {
    /// The type's word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Address(IpAddr::V4(_)) => "A",
            Self::Address(IpAddr::V6(_)) => "AAAA",
            Self::Name(_) => "PTR",
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => kind::A,
            Self::Address(IpAddr::V6(_)) => kind::AAAA,
            Self::Name(_) => kind::PTR,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Address(IpAddr::V4(address)) => out.extend(address.octets()),
            Self::Address(IpAddr::V6(address)) => out.extend(address.octets()),
            Self::Name(name) => out.extend_from_slice(name.wire()),
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for Record {
    /// A line of a master file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} IN {} {}", self.name, self.data.word(), self.data)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        })
    }
}

#[cfg(test)]
mod tests;
