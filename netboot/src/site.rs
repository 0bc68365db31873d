//! Everything one bastion knows: what its files want ([`SiteSpec`]) and what it saw ([`Site`]'s records).
//!
//! A [`Site`] is an immutable snapshot. Events go in through [`Site::apply`], a new snapshot and the
//! changed records come out; the caller makes the changes durable before anybody sees the snapshot.
//! Nothing here is a cache: every answer is computed from the spec and the records, each time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;
use uuid::Uuid;

use crate::loader::LoaderTable;
use crate::net::{
    AddressRange, Digest, Hostname, LinkName, MacAddress, NetworkName, NodeName, ProfileName,
    Subnet, Timestamp,
};
use crate::node::{DiskRule, NodeLink, NodeRecord, NodeSpec};

/// Machines that may be listed.
pub const NODES_MAX: usize = 100_000;
/// Unlisted machines that are remembered, for `status`.
pub const SIGHTINGS_MAX: usize = 256;

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
    pub routes: Vec<(Subnet, Ipv4Addr)>,
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
    /// Kernel arguments, each a template.
    pub arguments: Vec<String>,
    /// The document a node of this profile fetches.
    pub config: ConfigSource,
    /// Whether booting it writes a disk.
    pub purpose: Purpose,
    /// The disk an install may write, where the machine names none.
    pub disk: Option<DiskRule>,
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
}

/// What the site's files say, checked as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteSpec {
    networks: BTreeMap<NetworkName, Arc<Network>>,
    nodes: BTreeMap<NodeName, Arc<NodeSpec>>,
    profiles: BTreeMap<ProfileName, Arc<Profile>>,
    admission: AdmissionPolicy,
    by_mac: BTreeMap<MacAddress, Arc<NodeSpec>>,
    by_uuid: BTreeMap<Uuid, Arc<NodeSpec>>,
    by_address: BTreeMap<Ipv4Addr, Arc<NodeSpec>>,
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
    /// The site's policy.
    pub admission: AdmissionPolicy,
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
}

/// A machine that is not listed and asked for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// First and last time.
    pub first: Timestamp,
    /// Last time.
    pub last: Timestamp,
    /// The network it was heard on.
    pub network: NetworkName,
    /// Its UUID, where it showed one.
    pub uuid: Option<Uuid>,
}

/// An address lent to a machine that is not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub mac: MacAddress,
    /// Free again from here on.
    pub expires: Timestamp,
    /// Somebody else was found on it (DHCPDECLINE); not lent until it expires.
    pub declined: bool,
}

/// Everything one bastion knows, at one generation.
#[derive(Clone, Debug, Default)]
pub struct Site {
    pub(crate) spec: Arc<SiteSpec>,
    pub(crate) generation: u64,
    pub(crate) recovered: Option<Arc<str>>,
    pub(crate) records: OrdMap<NodeName, Arc<NodeRecord>>,
    pub(crate) tokens: OrdMap<Digest, NodeName>,
    pub(crate) leases: OrdMap<Ipv4Addr, Lease>,
    pub(crate) sightings: OrdMap<MacAddress, Sighting>,
}

/// The durable half of a [`Site`], as the store hands it over at start.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The last committed generation.
    pub generation: u64,
    /// See [`Site::recovered`].
    pub recovered: Option<Arc<str>>,
    /// By node.
    pub records: Vec<(NodeName, NodeRecord)>,
    /// By address.
    pub leases: Vec<(Ipv4Addr, Lease)>,
}

impl SiteSpec {
    /// Joins the parts, or names every contradiction between them.
    ///
    /// # Errors
    /// All faults at once: names, MACs, UUIDs or addresses used twice; an address outside its subnet, inside
    /// a lending range, or equal to a gateway; networks that overlap or share a link; unknown names.
    pub fn new(parts: SiteParts) -> Result<Self, Vec<SpecFault>> {
        let faults = crate::spec::faults(&parts);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut spec = Self {
            admission: parts.admission,
            ..Self::default()
        };
        spec.networks = parts
            .networks
            .into_iter()
            .map(|n| (n.name.clone(), Arc::new(n)))
            .collect();
        spec.profiles = parts
            .profiles
            .into_iter()
            .map(|p| (p.name.clone(), Arc::new(p)))
            .collect();
        for node in parts.nodes.into_iter().map(Arc::new) {
            for mac in node.macs() {
                spec.by_mac.insert(mac, Arc::clone(&node));
            }
            for link in &node.links {
                spec.by_address.insert(link.address, Arc::clone(&node));
            }
            if let Some(uuid) = node.uuid {
                spec.by_uuid.insert(uuid, Arc::clone(&node));
            }
            spec.nodes.insert(node.name.clone(), node);
        }
        Ok(spec)
    }

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

    /// The site's admission policy.
    #[must_use]
    pub fn admission(&self) -> AdmissionPolicy {
        self.admission
    }
}

impl Site {
    /// A site that has seen nothing.
    #[must_use]
    pub fn new(spec: Arc<SiteSpec>) -> Self {
        Self {
            spec,
            ..Self::default()
        }
    }

    /// A site as the store remembers it.
    #[must_use]
    pub fn restore(spec: Arc<SiteSpec>, memory: Memory) -> Self {
        let Memory {
            generation,
            recovered,
            records,
            leases,
        } = memory;
        let tokens = records
            .iter()
            .filter_map(|(name, record)| Some((record.attempt.as_ref()?.token, name.clone())))
            .collect();
        let records = records
            .into_iter()
            .map(|(name, record)| (name, Arc::new(record)))
            .collect();
        let leases = leases.into_iter().collect();
        Self {
            spec,
            generation,
            recovered,
            records,
            tokens,
            leases,
            sightings: OrdMap::new(),
        }
    }

    /// The wanted half.
    #[must_use]
    pub fn spec(&self) -> &Arc<SiteSpec> {
        &self.spec
    }

    /// Counts applied events; only grows.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is known to be missing from the records, where a store was lost or restored from an export:
    /// until a person approves a machine, nobody knows whether its disk is worth keeping.
    #[must_use]
    pub fn recovered(&self) -> Option<&str> {
        self.recovered.as_deref()
    }

    /// What was seen of a node; a machine nothing was seen of has the empty record.
    #[must_use]
    pub fn record(&self, name: &NodeName) -> &NodeRecord {
        static UNSEEN: std::sync::LazyLock<NodeRecord> =
            std::sync::LazyLock::new(NodeRecord::default);
        self.records.get(name).map_or(&UNSEEN, Arc::as_ref)
    }

    /// Every record, also of machines the files no longer list.
    pub fn records(&self) -> impl Iterator<Item = (&NodeName, &Arc<NodeRecord>)> {
        self.records.iter()
    }

    /// The node whose latest attempt bears the token with this digest.
    #[must_use]
    pub fn node_by_token(&self, token: &Digest) -> Option<&Arc<NodeSpec>> {
        self.spec.node(self.tokens.get(token)?)
    }

    /// Addresses lent to machines that are not listed.
    pub fn leases(&self) -> impl Iterator<Item = (&Ipv4Addr, &Lease)> {
        self.leases.iter()
    }

    /// Machines that are not listed and were heard.
    pub fn sightings(&self) -> impl Iterator<Item = (&MacAddress, &Sighting)> {
        self.sightings.iter()
    }

    /// The profile of a node. A spec never names one it lacks.
    #[must_use]
    pub fn profile_of(&self, node: &NodeSpec) -> Option<&Arc<Profile>> {
        self.spec.profile(&node.profile)
    }

    /// The link and network by which a machine's `mac` is reached.
    #[must_use]
    pub fn attachment<'a>(
        &'a self,
        node: &'a NodeSpec,
        mac: MacAddress,
    ) -> Option<(&'a NodeLink, &'a Arc<Network>)> {
        let link = node.link_of(mac)?;
        Some((link, self.spec.network(&link.network)?))
    }
}
