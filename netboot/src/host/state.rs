//! The host's network as the kernel has it.
//!
//! It is written to disk before anything is changed, so that what was there can be brought back after a crash.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::host::ReversePath;
use crate::link::{LinkKind, Route, Rule};
use crate::net::{LinkName, MacAddress};

/// The alias (`IFLA_IFALIAS`) of links that we made.
pub const ALIAS: &str = "reveille";
/// The protocol number of addresses, routes and rules that we made (`IFA_PROTO`, `rtm_protocol`, `FRA_PROTOCOL`).
/// Assigned to nobody in Linux `include/uapi/linux/rtnetlink.h` and iproute2's `rt_protos`, where 186 to 192 are
/// the routing daemons' (BGP, IS-IS, OSPF, RIP, EIGRP).
pub const PROTOCOL: u8 = 107;
/// The nftables table, of family `inet`, that is ours alone.
pub const TABLE: &str = "reveille";

/// The parts of a host's network that this project deals with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// The links by name.
    pub links: BTreeMap<LinkName, LinkState>,
    /// Our own table of the firewall, if it is there.
    pub ruleset: Option<Ruleset>,
    /// Rules of all tools, without the kernel's three.
    pub rules: BTreeSet<Owned<Rule>>,
    /// What the kernel gives to links that are made.
    #[serde(default)]
    pub defaults: LinkDefaults,
}

/// The settings a new link starts with (`/proc/sys/net/ipv4/conf/default`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkDefaults {
    /// `forwarding`.
    pub forwarding: bool,
    /// `rp_filter`.
    pub rp_filter: ReversePath,
}

/// One link as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// The kernel's number; 0 in a state that is only planned. A link that is brought back gets the one it had.
    pub index: u32,
    /// Made by us: it bears [`ALIAS`].
    pub ours: bool,
    /// What it is.
    pub kind: PresentKind,
    /// Its MAC address, if it is Ethernet.
    pub mac: Option<MacAddress>,
    /// Administratively up (`IFF_UP`). Whether there is a carrier is nobody's wish.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// The bridge or bond it is a port of.
    pub master: Option<LinkName>,
    /// In the kernel's order, without those that the kernel made itself: link-local ones and those of router
    /// advertisements (`IFA_PROTO` 1 to 3).
    pub addresses: Vec<Address>,
    /// Routes of all tools that leave by it, in every table, without the kernel's own.
    pub routes: BTreeSet<Owned<Route>>,
    /// IPv4 forwarding of packets that come in by it.
    pub forwarding: bool,
    /// The link's own value.
    pub rp_filter: ReversePath,
}

/// Kinds of links that we can make, and all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresentKind {
    /// One that we can make. A card's MACs are left empty, and so are ports: those point to their master.
    Known(LinkKind),
    /// The kernel's word for it (`IFLA_INFO_KIND`), with what we can't say of it.
    Other(String),
}

impl PresentKind {
    /// How the kernel would show a link of this kind.
    #[must_use]
    pub fn of(kind: &LinkKind) -> Self {
        Self::Known(match kind {
            LinkKind::Card { .. } => LinkKind::Card { macs: Vec::new() },
            LinkKind::Vlan { parent, id } => LinkKind::Vlan {
                parent: parent.clone(),
                id: *id,
            },
            LinkKind::Bridge { stp, .. } => LinkKind::Bridge {
                ports: Vec::new(),
                stp: *stp,
            },
            LinkKind::Bond {
                mode,
                monitor_millis,
                ..
            } => LinkKind::Bond {
                mode: *mode,
                ports: Vec::new(),
                monitor_millis: *monitor_millis,
            },
        })
    }

    /// The link that a VLAN lies on.
    #[must_use]
    pub fn parent(&self) -> Option<&LinkName> {
        match self {
            Self::Known(kind) => kind.parent(),
            Self::Other(_) => None,
        }
    }

    pub(super) fn is_bond(&self) -> bool {
        matches!(self, Self::Known(LinkKind::Bond { .. }))
    }
}

impl HostState {
    /// The VLANs that lie on a link.
    pub fn vlans_on<'a>(
        &'a self,
        parent: &'a LinkName,
    ) -> impl Iterator<Item = (&'a LinkName, &'a LinkState)> {
        self.links
            .iter()
            .filter(move |(_, link)| link.kind.parent() == Some(parent))
    }

    /// The ports of a bridge or bond.
    pub fn ports_of<'a>(
        &'a self,
        master: &'a LinkName,
    ) -> impl Iterator<Item = (&'a LinkName, &'a LinkState)> {
        self.links
            .iter()
            .filter(move |(_, link)| link.master.as_ref() == Some(master))
    }

    pub(super) fn is_bond(&self, name: &LinkName) -> bool {
        self.links.get(name).is_some_and(|link| link.kind.is_bond())
    }

    pub(super) fn is_ours(&self, name: &LinkName) -> bool {
        self.links.get(name).is_some_and(|link| link.ours)
    }

    /// Whether taking a link down, for a moment even, costs others something: the kernel drops its routes and IPv6
    /// addresses, and does the same to the VLANs on it.
    pub(super) fn is_leant_on(&self, name: &LinkName) -> bool {
        let Some(link) = self.links.get(name) else {
            return false;
        };
        link.routes.iter().any(|route| !route.ours)
            || link
                .addresses
                .iter()
                .any(|address| !address.ours && address.net.addr().is_ipv6())
            || self
                .vlans_on(name)
                .any(|(above, vlan)| !vlan.ours || self.is_leant_on(above))
    }

    /// The links, those that others lie on first: a VLAN after its parent, a bridge or bond after its ports.
    pub(super) fn bottom_up(&self) -> Vec<LinkName> {
        let mut names: Vec<_> = self
            .links
            .keys()
            .map(|name| (self.height(name, HEIGHT_MAX), name.clone()))
            .collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    fn height(&self, name: &LinkName, left: usize) -> usize {
        let (Some(link), true) = (self.links.get(name), left > 0) else {
            return 0;
        };
        let below = link.kind.parent().into_iter();
        let below = below.chain(self.ports_of(name).map(|(port, _)| port));
        below
            .map(|lower| 1 + self.height(lower, left - 1))
            .max()
            .unwrap_or(0)
    }
}

/// Links upon links that are told apart; the kernel allows 8 (`MAX_NEST_DEV`).
const HEIGHT_MAX: usize = 8;

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// With the prefix of its network.
    pub net: IpNet,
    /// It bears [`PROTOCOL`].
    pub ours: bool,
}

/// Something of the kernel's that bears its maker's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owned<T> {
    /// What it is.
    pub what: T,
    /// It bears [`PROTOCOL`].
    pub ours: bool,
}

/// Our table of the firewall in nftables' JSON (libnftables-json(5)): the objects inside the table in the order that `nft -j
/// list table` prints them, without handles. Two that are equal filter alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset(pub Vec<serde_json::Value>);
