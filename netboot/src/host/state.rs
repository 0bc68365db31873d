//! The host's network as the kernel has it, and the closed list of what can be done to it.
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
}

/// One link as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// The kernel's number. A link that is brought back gets the one it had.
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
    /// In the kernel's order, link-local ones left out.
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

/// One change of the host's network. Each is done whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Makes a link, down, marked as ours.
    AddLink {
        /// Its name.
        link: LinkName,
        /// What it is; ports join it by [`Operation::SetMaster`].
        kind: LinkKind,
        /// The number it had before; the kernel's choice otherwise.
        index: Option<u32>,
        /// The MAC address it had before; the kernel's choice otherwise.
        mac: Option<MacAddress>,
    },
    /// Removes a link of ours, and with it what hangs on it.
    RemoveLink {
        /// Its name.
        link: LinkName,
    },
    /// Brings a link up or down.
    SetUp {
        /// Its name.
        link: LinkName,
        /// Up or down.
        up: bool,
    },
    /// Sets the largest packet.
    SetMtu {
        /// Of this link.
        link: LinkName,
        /// Bytes.
        mtu: u32,
    },
    /// Makes a link a port, or frees it.
    SetMaster {
        /// The port.
        link: LinkName,
        /// The bridge or bond.
        master: Option<LinkName>,
    },
    /// Adds an address, marked as ours.
    AddAddress {
        /// To this link.
        link: LinkName,
        /// With its prefix.
        address: IpNet,
    },
    /// Removes an address of ours.
    RemoveAddress {
        /// From this link.
        link: LinkName,
        /// With its prefix.
        address: IpNet,
    },
    /// Adds a route, marked as ours.
    AddRoute {
        /// It leaves by this link.
        link: LinkName,
        /// The route.
        route: Route,
    },
    /// Removes a route of ours.
    RemoveRoute {
        /// It leaves by this link.
        link: LinkName,
        /// The route.
        route: Route,
    },
    /// Adds a rule, marked as ours.
    AddRule {
        /// The rule.
        rule: Rule,
    },
    /// Removes a rule of ours.
    RemoveRule {
        /// The rule.
        rule: Rule,
    },
    /// Sets IPv4 forwarding of what comes in by a link.
    SetForwarding {
        /// The link.
        link: LinkName,
        /// On or off.
        on: bool,
    },
    /// Sets how strictly sources are checked.
    SetReversePath {
        /// Of packets that come in by this link.
        link: LinkName,
        /// How strictly.
        rp_filter: ReversePath,
    },
    /// Puts our table of the firewall in the place of the one there is, in one transaction.
    SetRuleset {
        /// The table; `None` removes it.
        ruleset: Option<Ruleset>,
    },
}
