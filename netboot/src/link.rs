//! A link of a host as somebody wants it: the bastion's own, and those of the machines it boots.
//!
//! One shape for both, so that the kernel, the boot arguments and every file format are told the same.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::net::{LinkName, MacAddress, VlanId};

/// Where rules of ours stand among the host's: before the kernel's main table (32766), after what
/// most tools put first.
pub const RULE_PRIORITY: u32 = 18_600;
/// The kernel's main routing table (`RT_TABLE_MAIN`, Linux `include/uapi/linux/rtnetlink.h`).
pub const MAIN_TABLE: u32 = 254;
/// What the kernel takes for an IPv6 route without a metric (`IP6_RT_PRIO_USER`, Linux
/// `include/uapi/linux/ipv6_route.h`).
pub const IPV6_METRIC: u32 = 1024;

/// One link, and everything that hangs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Unique on the host.
    pub name: LinkName,
    /// What makes it.
    pub kind: LinkKind,
    /// Largest packet in bytes, 68 to 65535; `None` leaves what is there.
    pub mtu: Option<u32>,
    /// Its addresses, each with the prefix of its network. The first of a network is the one that packets
    /// leave from.
    pub addresses: Vec<IpNet>,
    /// Routes that leave by it.
    pub routes: Vec<Route>,
    /// What sends packets to tables other than the main one.
    pub rules: Vec<Rule>,
}

/// What makes a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A card, or any link that others make. Known by one of its MAC addresses, or by its name when none is given.
    Card {
        /// Any of these means this link.
        macs: Vec<MacAddress>,
    },
    /// Frames of one IEEE 802.1Q VLAN of another link.
    Vlan {
        /// The link that carries the tagged frames.
        parent: LinkName,
        /// The tag.
        id: VlanId,
    },
    /// A learning bridge.
    Bridge {
        /// The links it joins; each is in one bridge or bond only.
        ports: Vec<LinkName>,
        /// Whether it speaks the spanning tree protocol.
        stp: bool,
    },
    /// Several links as one.
    Bond {
        /// How frames are spread.
        mode: BondMode,
        /// The links it joins, the preferred one first.
        ports: Vec<LinkName>,
        /// How often carriers are looked at, in milliseconds (`miimon`), 1 to 10,000.
        monitor_millis: u32,
    },
}

/// How a bond spreads frames (Linux `Documentation/networking/bonding.rst`, "mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// In turn, over every port.
    BalanceRr,
    /// One port at a time; the next takes over when its carrier is lost. Needs nothing of the switch.
    ActiveBackup,
    /// By a hash of the addresses.
    BalanceXor,
    /// The same frame over every port.
    Broadcast,
    /// IEEE 802.3ad (LACP); the switch must speak it too. Firmware that netboots over it needs the
    /// switch to let a single port pass before LACP has begun.
    #[serde(rename = "802.3ad")]
    Lacp,
    /// By load, sending.
    BalanceTlb,
    /// By load, both ways.
    BalanceAlb,
}

impl BondMode {
    /// Every mode, in the order of the kernel's numbers.
    pub const ALL: [Self; 7] = [
        Self::BalanceRr,
        Self::ActiveBackup,
        Self::BalanceXor,
        Self::Broadcast,
        Self::Lacp,
        Self::BalanceTlb,
        Self::BalanceAlb,
    ];

    /// The kernel's word, which every tool uses.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::BalanceRr => "balance-rr",
            Self::ActiveBackup => "active-backup",
            Self::BalanceXor => "balance-xor",
            Self::Broadcast => "broadcast",
            Self::Lacp => "802.3ad",
            Self::BalanceTlb => "balance-tlb",
            Self::BalanceAlb => "balance-alb",
        }
    }
}

impl LinkKind {
    /// The link this one lies on: a VLAN's parent.
    #[must_use]
    pub fn parent(&self) -> Option<&LinkName> {
        match self {
            Self::Vlan { parent, .. } => Some(parent),
            Self::Card { .. } | Self::Bridge { .. } | Self::Bond { .. } => None,
        }
    }

    /// The links this one joins, a bridge's or a bond's.
    #[must_use]
    pub fn ports(&self) -> &[LinkName] {
        match self {
            Self::Bridge { ports, .. } | Self::Bond { ports, .. } => ports,
            Self::Card { .. } | Self::Vlan { .. } => &[],
        }
    }
}

/// A route that leaves by a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    pub to: IpNet,
    /// The gateway; `None` for what is on the link itself.
    pub via: Option<IpAddr>,
    /// The address that packets of this host leave from.
    pub source: Option<IpAddr>,
    /// Lower is preferred; 0 is the kernel's choice (0 for IPv4; 1024 for IPv6, which is read as 0).
    pub metric: u32,
    /// The routing table; [`MAIN_TABLE`] unless a rule leads elsewhere.
    pub table: u32,
}

/// What sends packets with a source address to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Lower is asked first.
    pub priority: u32,
    /// The source addresses.
    pub from: IpNet,
    /// The table that is asked.
    pub table: u32,
}

/// What a host with two gateways needs so that each side is answered by the way it came: in a table of
/// the link's own, the way to the link's network and to everywhere else, and a rule for each address.
///
/// A gateway outside every address' network gets its route and nothing more; `host/faults.rs` refuses it.
#[must_use]
pub fn policy_routing(
    addresses: &[IpNet],
    gateways: &[IpAddr],
    table: u32,
) -> (Vec<Route>, Vec<Rule>) {
    let (mut routes, mut rules) = (Vec::new(), Vec::new());
    for gateway in gateways {
        let mut near = addresses
            .iter()
            .filter(|net| net.contains(gateway))
            .peekable();
        let first = near.peek().copied().copied();
        let everywhere = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        let route = |to, via| Route {
            to,
            via,
            source: first.map(|first| first.addr()),
            metric: 0,
            table,
        };
        routes.extend(first.map(|first| route(first.trunc(), None)));
        routes.push(route(everywhere, Some(*gateway)));
        rules.extend(near.map(|net| Rule {
            priority: RULE_PRIORITY,
            from: IpNet::from(net.addr()),
            table,
        }));
    }
    (routes, rules)
}
