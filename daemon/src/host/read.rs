//! The kernel's answers as a [`HostState`], or as the [`Links`] that the servers follow.
//!
//! Ugly facts. The kernel speaks of links by number, so names come last. A table above 255 is in an attribute, and the header
//! says another one. A metric of 1024 is what IPv6 calls none. IPv6 addresses come newest first, in an
//! order that matters to nobody: they are sorted here. What is not understood (a new
//! attribute, a route over several links, a rule that looks at marks) is left out, never an error: nothing of it is ours.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library lists every attribute of the kernel, a dozen of which matter here"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use netboot::host::{
    ALIAS, Address, HostState, LinkDefaults, LinkState, Owned, PROTOCOL, PresentKind, ReversePath,
};
use netboot::link::{BondMode, IPV6_METRIC, LinkKind, Route, Rule};
use netboot::net::{LinkName, MacAddress, VlanId};
use rtnetlink::packet_core::{
    DefaultNla, Emitable, NlaBuffer, NlasIterator, Parseable, ParseableParametrized,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, BridgeStpState, InfoBond, InfoBridge, InfoData, InfoKind, InfoVlan,
    LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkLayerType, VlanProtocol,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::host::kernel::MARK_GROUP;
use crate::host::netlink::{Answer, Request};
use crate::link::{Link, Links};

/// The length of `struct ifinfomsg`, before a link's attributes.
const LINK_HEADER: usize = 16;
/// `IFLA_LINKINFO` and, inside it, `IFLA_INFO_KIND` of Linux `include/uapi/linux/if_link.h`.
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
/// `RTM_GETNETCONF`, and of Linux `include/uapi/linux/netconf.h` the attributes and the number that stands for what a new link gets.
const GET_NETCONF: u16 = 82;
const NETCONF_LINK: u16 = 1;
const NETCONF_FORWARDING: u16 = 2;
const NETCONF_RP_FILTER: u16 = 3;
const NETCONF_DEFAULT: i32 = -2;
/// `RT_TABLE_LOCAL` of Linux `include/uapi/linux/rtnetlink.h`: the kernel's own.
const LOCAL_TABLE: u32 = 255;

/// What must be known of a link before it is touched.
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) ours: bool,
}

pub(crate) fn found(answer: &Answer) -> Option<Found> {
    link(answer).map(|link| Found {
        index: link.state.index,
        ours: link.state.ours,
    })
}

/// What was read so far, by the links' numbers.
pub(crate) struct Reading(BTreeMap<u32, Raw>);

/// A link whose neighbours are numbers still.
struct Raw {
    name: LinkName,
    state: LinkState,
    carrier: bool,
    ipv4: Vec<Ipv4Net>,
    link_local: Option<Ipv6Addr>,
    master: Option<u32>,
    vlan: Option<(u32, VlanId)>,
}

impl Reading {
    pub(crate) fn of_links(answers: &[Answer]) -> Self {
        let links = answers.iter().filter_map(link);
        Self(links.map(|link| (link.state.index, link)).collect())
    }

    pub(crate) fn addresses(&mut self, answers: &[Answer]) {
        for Borne {
            link,
            address,
            by_kernel,
        } in answers.iter().filter_map(address)
        {
            let Some(link) = self.0.get_mut(&link) else {
                continue;
            };
            match address.net {
                IpNet::V4(net) => link.ipv4.push(net),
                IpNet::V6(net) if net.addr().is_unicast_link_local() => {
                    link.link_local.get_or_insert(net.addr());
                    continue;
                }
                IpNet::V6(_) => {}
            }
            if !by_kernel {
                link.state.addresses.push(address);
            }
        }
        for link in self.0.values_mut() {
            // IPv4 comes first, and stays in the kernel's order: the sort is stable.
            let addresses = &mut link.state.addresses;
            addresses.sort_by_key(|address| match address.net {
                IpNet::V4(_) => None,
                IpNet::V6(net) => Some(net),
            });
        }
    }

    pub(crate) fn routes(&mut self, answers: &[Answer]) {
        for (index, route) in answers.iter().filter_map(route) {
            if let Some(link) = self.0.get_mut(&index) {
                link.state.routes.insert(route);
            }
        }
    }

    /// What the servers need of the links.
    pub(crate) fn links(self) -> Links {
        let links = self.0.into_values().map(|raw| {
            let link = Link {
                name: raw.name.to_string(),
                index: raw.state.index,
                mac: raw.state.mac.map_or([0; 6], MacAddress::octets),
                up: raw.state.up && raw.carrier,
                mtu: raw.state.mtu,
                addresses: raw.ipv4,
                link_local: raw.link_local,
            };
            (link.name.clone(), link)
        });
        links.collect()
    }

    /// The whole, with names for numbers and without the firewall.
    pub(crate) fn host(self, rules: &[Answer], defaults: &[Answer]) -> HostState {
        let names: BTreeMap<u32, LinkName> = self
            .0
            .iter()
            .map(|(index, link)| (*index, link.name.clone()))
            .collect();
        let links = self.0.into_values().map(|raw| {
            let mut state = raw.state;
            state.master = raw.master.and_then(|index| names.get(&index).cloned());
            if let Some((parent, id)) = raw.vlan
                && let Some(parent) = names.get(&parent).cloned()
            {
                state.kind = PresentKind::Known(LinkKind::Vlan { parent, id });
            }
            (raw.name, state)
        });
        HostState {
            links: links.collect(),
            ruleset: None,
            rules: rules.iter().filter_map(rule).collect(),
            defaults: defaults.iter().find_map(link_defaults).unwrap_or_default(),
        }
    }
}

fn link(answer: &Answer) -> Option<Raw> {
    let header = LinkHeader::parse(&answer.payload).ok()?;
    let (mut name, mut mac, mut mtu, mut ours) = (None, None, 0, false);
    let (mut master, mut parent, mut elsewhere) = (None, None, false);
    let (mut forwarding, mut rp_filter) = (false, ReversePath::Off);
    let (mut kind, mut vlan) = (
        PresentKind::Known(LinkKind::Card { macs: Vec::new() }),
        None,
    );
    for attribute in NlasIterator::new(answer.payload.get(LINK_HEADER..)?).map_while(Result::ok) {
        let Ok(known) = LinkAttribute::parse_with_param(&attribute, AddressFamily::Unspec) else {
            if attribute.kind() == LINK_INFO {
                kind = PresentKind::Other(word_of_kind(&attribute));
            }
            continue;
        };
        match known {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Address(octets) if header.link_layer_type == LinkLayerType::Ether => {
                mac = octets.try_into().ok().and_then(MacAddress::from_octets);
            }
            LinkAttribute::Mtu(bytes) => mtu = bytes,
            LinkAttribute::IfAlias(alias) => ours |= alias == ALIAS,
            LinkAttribute::Group(group) => ours |= group == MARK_GROUP,
            LinkAttribute::Controller(index) => master = Some(index),
            LinkAttribute::Link(index) => parent = Some(index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(info) => (kind, vlan) = made_by(&info),
            LinkAttribute::AfSpecUnspec(families) => {
                if let Some(settings) = ipv4_settings(&families) {
                    (forwarding, rp_filter) = settings;
                }
            }
            _ => {}
        }
    }
    Some(Raw {
        name: name?,
        master,
        // A number of another namespace means another link here.
        vlan: parent.filter(|_| !elsewhere).zip(vlan),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        ipv4: Vec::new(),
        link_local: None,
        state: LinkState {
            index: header.index,
            ours,
            kind,
            mac,
            up: header.flags.contains(LinkFlags::Up),
            mtu,
            master: None,
            addresses: Vec::new(),
            routes: BTreeSet::new(),
            forwarding,
            rp_filter,
        },
    })
}

/// The question for what a new link's IPv4 settings will be (`RTM_GETNETCONF`, which the library doesn't have).
pub(crate) fn ask_defaults() -> Request {
    let of = DefaultNla::new(NETCONF_LINK, NETCONF_DEFAULT.to_ne_bytes().to_vec());
    let family = [u8::from(AddressFamily::Inet), 0, 0, 0];
    let mut payload = vec![0; family.len() + of.buffer_len()];
    payload[..family.len()].copy_from_slice(&family);
    of.emit(&mut payload[family.len()..]);
    Request {
        kind: GET_NETCONF,
        payload,
    }
}

fn link_defaults(answer: &Answer) -> Option<LinkDefaults> {
    let mut defaults = LinkDefaults::default();
    // The family and its padding come first.
    for attribute in NlasIterator::new(answer.payload.get(4..)?).map_while(Result::ok) {
        let value = attribute.value().first_chunk().copied();
        let value = i32::from_ne_bytes(value?);
        match attribute.kind() {
            NETCONF_FORWARDING => defaults.forwarding = value != 0,
            NETCONF_RP_FILTER => defaults.rp_filter = reverse_path(value),
            _ => {}
        }
    }
    Some(defaults)
}

fn reverse_path(value: i32) -> ReversePath {
    match value {
        0 => ReversePath::Off,
        1 => ReversePath::Strict,
        _ => ReversePath::Loose,
    }
}

/// The kernel's word for a kind whose details are beyond us.
fn word_of_kind(link_info: &NlaBuffer<&[u8]>) -> String {
    let mut parts = NlasIterator::new(link_info.value()).map_while(Result::ok);
    let kind = parts.find(|part| part.kind() == INFO_KIND);
    let word = kind.map(|kind| {
        String::from_utf8_lossy(kind.value())
            .trim_end_matches('\0')
            .to_owned()
    });
    word.unwrap_or_else(|| "unknown".into())
}

/// What a link is; a VLAN's tag apart, until its parent has a name.
fn made_by(info: &[LinkInfo]) -> (PresentKind, Option<VlanId>) {
    let word = info.iter().find_map(|part| match part {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    // A card that is a port has information on that, and no kind.
    let Some(word) = word else {
        return (
            PresentKind::Known(LinkKind::Card { macs: Vec::new() }),
            None,
        );
    };
    let other = PresentKind::Other(word.to_string());
    let data = info.iter().find_map(|part| match part {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    match (word, data) {
        (InfoKind::Vlan, Some(InfoData::Vlan(parts))) => {
            let tagged = parts
                .iter()
                .all(|part| !matches!(part, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)));
            let id = parts.iter().find_map(|part| match part {
                InfoVlan::Id(id) => VlanId::new(*id),
                _ => None,
            });
            (other, id.filter(|_| tagged))
        }
        (InfoKind::Bridge, Some(InfoData::Bridge(parts))) => {
            let stp = !parts.contains(&InfoBridge::StpState(BridgeStpState::Disabled));
            let ports = Vec::new();
            (PresentKind::Known(LinkKind::Bridge { ports, stp }), None)
        }
        (InfoKind::Bond, Some(InfoData::Bond(parts))) => (bond(parts).unwrap_or(other), None),
        _ => (other, None),
    }
}

fn bond(parts: &[InfoBond]) -> Option<PresentKind> {
    let mode = parts.iter().find_map(|part| match part {
        InfoBond::Mode(mode) => Some(u8::from(*mode)),
        _ => None,
    })?;
    let monitor = parts.iter().find_map(|part| match part {
        InfoBond::MiiMon(milliseconds) => Some(*milliseconds),
        _ => None,
    });
    Some(PresentKind::Known(LinkKind::Bond {
        mode: *BondMode::ALL.get(usize::from(mode))?,
        ports: Vec::new(),
        monitor_millis: monitor.unwrap_or(0),
    }))
}

/// Forwarding and `rp_filter`; a link without IPv4 has neither.
fn ipv4_settings(families: &[AfSpecUnspec]) -> Option<(bool, ReversePath)> {
    let parts = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(parts) => Some(parts),
        _ => None,
    })?;
    let settings = parts.iter().find_map(|part| match part {
        AfSpecInet::DevConf(settings) => Some(settings),
        _ => None,
    })?;
    let rp_filter = reverse_path(settings.rp_filter);
    Some((settings.forwarding != 0, rp_filter))
}

/// An address, and the link it is on.
pub(crate) struct Borne {
    pub(crate) link: u32,
    pub(crate) address: Address,
    /// Loopback's, a link-local one, or one that a router's advertisement brought.
    by_kernel: bool,
}

pub(crate) fn address(answer: &Answer) -> Option<Borne> {
    let message = AddressMessage::parse(&answer.payload).ok()?;
    let (mut local, mut peer, mut by) = (None, None, AddressProtocol::Other(0));
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(address),
            AddressAttribute::Address(address) => peer = Some(address),
            AddressAttribute::Protocol(protocol) => by = protocol,
            _ => {}
        }
    }
    // On a point-to-point link the local address is ours and the other one is the peer's.
    let address = local.or(peer)?;
    let net = IpNet::new(address, message.header.prefix_len).ok()?;
    let ours = by == AddressProtocol::Other(PROTOCOL);
    Some(Borne {
        link: message.header.index,
        address: Address { net, ours },
        by_kernel: !matches!(by, AddressProtocol::Other(_)),
    })
}

fn route(answer: &Answer) -> Option<(u32, Owned<Route>)> {
    let RouteMessage {
        header, attributes, ..
    } = RouteMessage::parse(&answer.payload).ok()?;
    let by_the_kernel = matches!(
        header.protocol,
        RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
    );
    let cached = header.flags.contains(RouteFlags::Cloned);
    if by_the_kernel || cached || header.kind != RouteType::Unicast {
        return None;
    }
    let everything: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut to, mut via, mut source, mut link) = (everything, None, None, None);
    let (mut metric, mut table) = (0, u32::from(header.table));
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(&address)?,
            RouteAttribute::Gateway(address) => via = Some(ip(&address)?),
            RouteAttribute::Via(RouteVia::Inet(address)) => via = Some(address.into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some(address.into()),
            RouteAttribute::PrefSource(address) => source = Some(ip(&address)?),
            RouteAttribute::Oif(index) => link = Some(index),
            RouteAttribute::Priority(priority) => metric = priority,
            RouteAttribute::Table(number) => table = number,
            // It leaves by more than one link, or from some sources only.
            RouteAttribute::MultiPath(_) | RouteAttribute::Source(_) => return None,
            _ => {}
        }
    }
    if table == LOCAL_TABLE {
        return None;
    }
    if everything.is_ipv6() && metric == IPV6_METRIC {
        metric = 0;
    }
    let to = IpNet::new(to, header.destination_prefix_length).ok()?;
    let what = Route {
        to,
        via,
        source,
        metric,
        table,
    };
    let ours = header.protocol == RouteProtocol::Other(PROTOCOL);
    Some((link?, Owned { what, ours }))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A rule that looks at nothing but the source.
fn rule(answer: &Answer) -> Option<Owned<Rule>> {
    let RuleMessage {
        header, attributes, ..
    } = RuleMessage::parse(&answer.payload).ok()?;
    let everything: IpAddr = match header.family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    if header.action != RuleAction::ToTable || header.dst_len != 0 || header.tos != 0 {
        return None;
    }
    let (mut from, mut priority, mut table) = (everything, 0, u32::from(header.table));
    let mut ours = false;
    for attribute in attributes {
        match attribute {
            RuleAttribute::Source(address) => from = address,
            RuleAttribute::Priority(number) => priority = number,
            RuleAttribute::Table(number) => table = number,
            RuleAttribute::Protocol(RouteProtocol::Kernel) => return None,
            RuleAttribute::Protocol(by) => ours = by == RouteProtocol::Other(PROTOCOL),
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    let from = IpNet::new(from, header.src_len).ok()?;
    let what = Rule {
        priority,
        from,
        table,
    };
    Some(Owned { what, ours })
}
