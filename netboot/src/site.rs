//! Everything one bastion knows: what its files want ([`SiteSpec`]) and what it saw ([`Site`]'s records).
//!
//! A [`Site`] is an immutable snapshot. Events go in through [`Site::apply`], a new snapshot and the
//! changed records come out; the caller makes the changes durable before anybody sees the snapshot.
//! Nothing here is a cache: every answer is computed from the spec and the records, each time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use uuid::Uuid;

use crate::cluster::{ClusterName, ClusterRecord, ClusterState, Member, MemberRecord};
use crate::net::{Digest, MacAddress, NetworkName, NodeName, ProfileName, Timestamp};
use crate::node::{NodeRecord, NodeSpec};
use crate::spec::{Profile, SiteSpec};

/// Unlisted machines that are remembered, for `status`.
pub const SIGHTINGS_MAX: usize = 256;

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
    /// By name, also of clusters that no definition wants any more.
    pub(crate) clusters: OrdMap<ClusterName, Arc<ClusterState>>,
    /// The machines that serve clusters; derived from their seats.
    pub(crate) members: OrdMap<NodeName, Arc<Member>>,
    pub(crate) leases: OrdMap<Ipv4Addr, Lease>,
    /// The leases by machine, so that a stranger's packet costs no walk over a range.
    pub(crate) lent: OrdSet<(MacAddress, Ipv4Addr)>,
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
    /// By name.
    pub clusters: BTreeMap<ClusterName, ClusterRecord>,
}

impl Memory {
    /// Takes a cluster's record without what it holds of machines, which may have come before or comes later.
    pub fn take_cluster(&mut self, name: ClusterName, head: ClusterRecord) {
        let record = self.clusters.entry(name).or_default();
        let ClusterRecord {
            founded,
            stage,
            since,
            seats: _,
            facts,
            bootstrap,
            retired: _,
            boots: _,
        } = head;
        (record.stage, record.since, record.bootstrap) = (stage, since, bootstrap);
        record.founded = founded;
        record.facts.extend(facts);
    }

    /// Takes what a cluster's record holds of one machine.
    pub fn take_member(&mut self, name: ClusterName, node: &NodeName, member: MemberRecord) {
        self.clusters
            .entry(name)
            .or_default()
            .remember(node, member);
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
            clusters,
        } = memory;
        let tokens = records
            .iter()
            .filter_map(|(name, record)| Some((record.attempt.as_ref()?.token, name.clone())))
            .collect();
        let records = records
            .into_iter()
            .map(|(name, record)| (name, Arc::new(record)))
            .collect();
        let mut site = Self {
            spec,
            generation,
            recovered,
            records,
            tokens,
            ..Self::default()
        };
        for (address, lease) in leases {
            site.keep_lease(address, lease);
        }
        for (name, record) in clusters {
            let state = ClusterState {
                record,
                ..ClusterState::default()
            };
            site.clusters.insert(name, Arc::new(state));
        }
        site.seat_members();
        site
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

    /// The lease on an address.
    #[must_use]
    pub fn lease(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.leases.get(&address)
    }

    /// Machines that are not listed and were heard.
    pub fn sightings(&self) -> impl Iterator<Item = (&MacAddress, &Sighting)> {
        self.sightings.iter()
    }

    /// The profile of a node: its group's in a cluster, else its own. A spec never names one it lacks.
    #[must_use]
    pub fn profile_of(&self, node: &NodeSpec) -> Option<&Arc<Profile>> {
        self.spec.profile(self.profile_name(node)?)
    }

    /// The name of that profile; `None` for a machine that serves no cluster and has none of its own.
    #[must_use]
    pub fn profile_name<'a>(&'a self, node: &'a NodeSpec) -> Option<&'a ProfileName> {
        let of_group = self.member(&node.name).map(|member| &member.profile);
        of_group.or(node.profile.as_ref())
    }
}
