//! What the site's files say: networks, machines, profiles and clusters, joined into one [`SiteSpec`].
//!
//! Each part is sound by itself before it comes here; `faults.rs` refuses parts that contradict each
//! other, and is the only place that makes a spec.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use uuid::Uuid;

use crate::cluster::{ClusterName, ClusterSpec};
use crate::host::HostSpec;
use crate::loader::LoaderTable;
use crate::net::{
    AddressRange, Destination, Digest, Hostname, LinkName, MacAddress, NetworkName, NodeName,
    ProfileName, Subnet,
};
use crate::node::{DiskRule, NodeSpec};
use crate::zone::{DnsMode, DnsSpec};

/// Machines that may be listed.
pub const NODES_MAX: usize = 100_000;

/// One network that the bastion serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Unique in the site.
    pub name: NetworkName,
    /// The bastion's link on it.
    pub link: LinkName,
    /// Its addresses.
    pub subnet: Subnet,
    /// How DHCP behaves on it.
    pub mode: Mode,
    /// Addresses for machines that are not listed; asked of mode `pool` only.
    pub range: Option<AddressRange>,
    /// Machines reach it through a relay: the bastion's neighbour table can't know their MACs.
    pub relayed: bool,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<Hostname>,
    /// Option 119.
    pub search: Vec<Hostname>,
    /// Option 26, 576 to 65535.
    pub mtu: Option<u16>,
    /// Option 121: destination and gateway. Clients that take it ignore option 3 (RFC 3442), so the
    /// answer adds the default route itself.
    pub routes: Vec<(Destination, Ipv4Addr)>,
    /// Option 51, 120 to 31,536,000 seconds.
    pub lease_seconds: u32,
    /// Raw options by code, sent when asked for.
    pub options: BTreeMap<u8, Vec<u8>>,
    /// Loaders by architecture code.
    pub loaders: LoaderTable,
    /// Answer IPv6 router solicitations with "no router", so that no boot stage waits for one.
    pub quiet_ipv6: bool,
    /// What a machine that is not listed boots, if anything; asked of mode `pool` only.
    pub discovery: Option<ProfileName>,
}

impl Network {
    /// How long an address is lent where the site doesn't say: half a day.
    pub const LEASE_SECONDS: u32 = 12 * 3600;

    /// A network of which nothing else was said: reservations alone, and no option of its own.
    #[must_use]
    pub fn plain(name: NetworkName, link: LinkName, subnet: Subnet) -> Self {
        Self {
            name,
            link,
            subnet,
            mode: Mode::Reservation,
            range: None,
            relayed: false,
            router: None,
            dns: Vec::new(),
            ntp: Vec::new(),
            domain: None,
            search: Vec::new(),
            mtu: None,
            routes: Vec::new(),
            lease_seconds: Self::LEASE_SECONDS,
            options: BTreeMap::new(),
            loaders: LoaderTable::new(),
            quiet_ipv6: true,
            discovery: None,
        }
    }
}

/// How DHCP behaves on a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Listed machines only, each its own address.
    #[default]
    Reservation,
    /// The same, and an address from the range for machines that are not listed.
    Pool,
    /// Another server gives the addresses; this one says only what to boot.
    Proxy,
    /// Silent.
    Off,
}

/// What a class of machine boots: matchbox's word and meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Unique in the site.
    pub name: ProfileName,
    /// The kernel.
    pub kernel: Artifact,
    /// Initial ramdisks, in the order the kernel sees them.
    pub initrds: Vec<Artifact>,
    /// Files that the templates name by their URL, such as a live root: by the name they have there.
    pub artifacts: BTreeMap<String, Artifact>,
    /// Kernel arguments, each a template.
    pub arguments: Vec<String>,
    /// The document a node of this profile fetches.
    pub config: ConfigSource,
    /// Whether booting it writes a disk.
    pub purpose: Purpose,
    /// The disk an install may write, where the machine names none.
    pub disk: Option<DiskRule>,
}

impl Profile {
    /// True when its config holds the secrets of a cluster, and so leaves once for each boot.
    #[must_use]
    pub fn holds_secrets(&self) -> bool {
        matches!(self.config, ConfigSource::Platform(_))
    }

    /// Every file of the depot that a machine of this profile may fetch, the kernel and the initial
    /// ramdisks first.
    pub fn files(&self) -> impl Iterator<Item = &Artifact> {
        std::iter::once(&self.kernel)
            .chain(&self.initrds)
            .chain(self.artifacts.values())
    }
}

/// A file of the depot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The last part of its depot name, for URLs and consoles.
    pub file: String,
    /// What it is served by.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

impl Artifact {
    /// Where it is served; `base` is boot HTTP without a slash at the end: `http://10.107.0.1:8080`.
    #[must_use]
    pub fn url(&self, base: &str) -> String {
        format!("{base}/artifacts/{}/{}", self.digest, self.file)
    }
}

/// What booting a profile does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// It writes a disk. Once that was acknowledged, the machine is sent to its disk for ever.
    #[default]
    Install,
    /// It runs from memory and is booted each time.
    Live,
}

/// The document of a profile, as templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// Nothing is fetched.
    None,
    /// One Ignition config (JSON).
    Ignition(Arc<str>),
    /// NoCloud's files; those not given are served empty, `meta-data` is made here when absent.
    CloudInit {
        /// `user-data`.
        user_data: Arc<str>,
        /// `vendor-data`.
        vendor_data: Option<Arc<str>>,
        /// `network-config`.
        network_config: Option<Arc<str>>,
    },
    /// One Talos machine config.
    Talos(Arc<str>),
    /// What the platform of the machine's cluster writes, in this form.
    Platform(Format),
}

/// The form in which a system reads what it is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One Ignition config.
    Ignition,
    /// NoCloud's files.
    CloudInit,
    /// One Talos machine config.
    Talos,
}

impl Format {
    /// The word in a profile.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ignition => "ignition",
            Self::CloudInit => "cloud-init",
            Self::Talos => "talos",
        }
    }
}

/// What the site's files say, checked as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteSpec {
    pub(crate) networks: BTreeMap<NetworkName, Arc<Network>>,
    pub(crate) nodes: BTreeMap<NodeName, Arc<NodeSpec>>,
    pub(crate) profiles: BTreeMap<ProfileName, Arc<Profile>>,
    pub(crate) clusters: BTreeMap<ClusterName, Arc<ClusterSpec>>,
    pub(crate) admission: AdmissionPolicy,
    pub(crate) host: Arc<HostSpec>,
    pub(crate) dns: Arc<DnsSpec>,
    pub(crate) serve_time: bool,
    pub(crate) proxied: BTreeSet<u16>,
    pub(crate) by_mac: BTreeMap<MacAddress, Arc<NodeSpec>>,
    pub(crate) by_uuid: BTreeMap<Uuid, Arc<NodeSpec>>,
    pub(crate) by_address: BTreeMap<Ipv4Addr, Arc<NodeSpec>>,
}

/// Whether the inventory's word is enough to install a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdmissionPolicy {
    /// A listed machine may be installed.
    #[default]
    Listed,
    /// A listed machine waits for `node approve`.
    Manual,
}

/// The parts of a spec, each already sound by itself.
#[derive(Clone, Debug, Default)]
pub struct SiteParts {
    /// In file order.
    pub networks: Vec<Network>,
    /// In file order.
    pub nodes: Vec<NodeSpec>,
    /// In file order.
    pub profiles: Vec<Profile>,
    /// In file order.
    pub clusters: Vec<ClusterSpec>,
    /// The site's policy.
    pub admission: AdmissionPolicy,
    /// The bastion's own network.
    pub host: HostSpec,
    /// Names.
    pub dns: DnsSpec,
    /// The bastion answers NTP on the networks' links.
    pub serve_time: bool,
    /// TCP ports behind which the client's address is told before its bytes (PROXY protocol, version 2).
    pub proxied: BTreeSet<u16>,
}

/// A contradiction between parts. The config room finds the line by item, field and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFault {
    /// Which part.
    pub item: Item,
    /// The key in its file, such as `address`.
    pub field: &'static str,
    /// The offending value.
    pub value: String,
    /// What is wrong, in one clause.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// The part that bore the value first, where two share what one may have.
    pub earlier: Option<Item>,
}

/// A part by its place in [`SiteParts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Index into `networks`.
    Network(usize),
    /// Index into `nodes`.
    Node(usize),
    /// Index into `profiles`.
    Profile(usize),
    /// Index into `clusters`.
    Cluster(usize),
    /// Index into `clusters`, and into its `groups`.
    Group(usize, usize),
    /// Index into `clusters`, and into its `needs`.
    Service(usize, usize),
    /// Index into `host.links`.
    Link(usize),
    /// The rest of `host`.
    Host,
}

impl SiteSpec {
    /// The networks by name.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The machines by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeSpec>> {
        self.nodes.values()
    }

    /// The profiles by name.
    pub fn profiles(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.profiles.values()
    }

    /// The clusters by name.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<ClusterSpec>> {
        self.clusters.values()
    }

    /// A cluster by name.
    #[must_use]
    pub fn cluster(&self, name: &ClusterName) -> Option<&Arc<ClusterSpec>> {
        self.clusters.get(name)
    }

    /// How many machines there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A network by name.
    #[must_use]
    pub fn network(&self, name: &NetworkName) -> Option<&Arc<Network>> {
        self.networks.get(name)
    }

    /// A machine by name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Arc<NodeSpec>> {
        self.nodes.get(name)
    }

    /// A profile by name.
    #[must_use]
    pub fn profile(&self, name: &ProfileName) -> Option<&Arc<Profile>> {
        self.profiles.get(name)
    }

    /// The machine that bears `mac`.
    #[must_use]
    pub fn node_by_mac(&self, mac: MacAddress) -> Option<&Arc<NodeSpec>> {
        self.by_mac.get(&mac)
    }

    /// The machine with this SMBIOS UUID.
    #[must_use]
    pub fn node_by_uuid(&self, uuid: Uuid) -> Option<&Arc<NodeSpec>> {
        self.by_uuid.get(&uuid)
    }

    /// The machine an address is reserved for.
    #[must_use]
    pub fn node_by_address(&self, address: Ipv4Addr) -> Option<&Arc<NodeSpec>> {
        self.by_address.get(&address)
    }

    /// The network served on a link whose subnet has `address`; without one, the link's only network.
    #[must_use]
    pub fn network_on(&self, link: &LinkName, address: Option<Ipv4Addr>) -> Option<&Arc<Network>> {
        let mut here = self
            .networks
            .values()
            .filter(|n| n.link == *link && !n.relayed);
        match address {
            Some(address) => here.find(|network| network.subnet.contains(address)),
            None => here.next(),
        }
    }

    /// The network whose subnet contains a relay's address.
    #[must_use]
    pub fn network_behind(&self, relay: Ipv4Addr) -> Option<&Arc<Network>> {
        self.networks
            .values()
            .find(|network| network.subnet.contains(relay))
    }

    /// What the bastion's own network should be.
    #[must_use]
    pub fn host(&self) -> &Arc<HostSpec> {
        &self.host
    }

    /// What is wanted of DNS.
    #[must_use]
    pub fn dns(&self) -> &Arc<DnsSpec> {
        &self.dns
    }

    /// Whether the bastion answers NTP on the networks' links.
    #[must_use]
    pub fn serves_time(&self) -> bool {
        self.serve_time
    }

    /// The TCP ports of clusters behind which the client's address is told before its bytes (PROXY protocol, version 2).
    #[must_use]
    pub fn proxied(&self) -> &BTreeSet<u16> {
        &self.proxied
    }

    /// The DNS servers of a network's machines: those that it names, or this bastion when it serves; `server` is its
    /// address there.
    #[must_use]
    pub fn dns_servers(&self, network: &Network, server: Ipv4Addr) -> Vec<Ipv4Addr> {
        let serves = self.dns.mode == DnsMode::Serve && network.mode != Mode::Off;
        match &network.dns[..] {
            [] if serves => vec![server],
            named => named.to_vec(),
        }
    }

    /// The time servers of a network's machines, likewise.
    #[must_use]
    pub fn time_servers(&self, network: &Network, server: Ipv4Addr) -> Vec<Ipv4Addr> {
        match &network.ntp[..] {
            [] if self.serve_time && network.mode != Mode::Off => vec![server],
            named => named.to_vec(),
        }
    }

    /// The site's admission policy.
    #[must_use]
    pub fn admission(&self) -> AdmissionPolicy {
        self.admission
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_names_no_server_is_given_the_bastion_where_it_serves() {
        let ours = Ipv4Addr::new(10, 107, 0, 1);
        let other = Ipv4Addr::new(192, 0, 2, 53);
        let subnet = "10.107.0.0/24".parse().unwrap();
        let plain = Network::plain("lab".parse().unwrap(), "eth1".parse().unwrap(), subnet);
        let named = Network {
            dns: vec![other],
            ntp: vec![other],
            ..plain.clone()
        };
        let silent = Network {
            mode: Mode::Off,
            ..plain.clone()
        };
        let spec = |mode, serve_time| SiteSpec {
            dns: Arc::new(DnsSpec {
                mode,
                ..DnsSpec::default()
            }),
            serve_time,
            ..SiteSpec::default()
        };
        let told = |spec: &SiteSpec, network: &Network| {
            (
                spec.dns_servers(network, ours),
                spec.time_servers(network, ours),
            )
        };
        let serves = spec(DnsMode::Serve, true);
        assert_eq!(told(&serves, &plain), (vec![ours], vec![ours]));
        assert_eq!(told(&serves, &named), (vec![other], vec![other]));
        assert_eq!(told(&serves, &silent), (vec![], vec![]));
        let leaves = spec(DnsMode::External, false);
        assert_eq!(told(&leaves, &plain), (vec![], vec![]));
        assert_eq!(told(&leaves, &named), (vec![other], vec![other]));
    }
}
