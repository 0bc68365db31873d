//! One operation on the host's network, as the kernel is asked for it, and what to do when it refuses.
//!
//! Ugly facts. A link and its alias are two requests, see [`MARK_GROUP`]. A value of 0 is left out by the
//! library's message of IPv4 settings, so that one is packed here. IPv4 forwarding set this way leaves a card's large
//! receive offload as it is (only the sysctl turns it off, by `dev_disable_lro`): where a card has it on, `ethtool -K
//! LINK lro off`. An address, a route or a rule that is gone already is as good as removed.

use std::net::IpAddr;

use ipnet::IpNet;
use netboot::host::{ALIAS, Operation, PROTOCOL, ReversePath};
use netboot::link::{LinkKind, Route, Rule};
use netboot::net::{LinkName, MacAddress};
use nix::errno::Errno;
use rtnetlink::packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, BondMode, BridgeStpState, InfoBond, InfoBridge, InfoData, InfoKind,
    InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::host::kernel::{Failed, MARK_GROUP};
use crate::host::netlink::{self, NetlinkError};
use crate::host::read::{self, Borne, Found};

/// Makes what is not there yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// `RT_TABLE_COMPAT` of Linux `include/uapi/linux/rtnetlink.h`: see the attribute.
const TABLE_IN_ATTRIBUTE: u8 = 252;
/// `IFLA_INET_CONF` of Linux `include/uapi/linux/if_link.h`.
const INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_FORWARDING` and `IPV4_DEVCONF_RP_FILTER` of Linux `include/uapi/linux/ip.h`.
const FORWARDING: u16 = 1;
const RP_FILTER: u16 = 8;

/// Why an operation was not done.
enum Trouble {
    /// The kernel's reason.
    Kernel(NetlinkError),
    /// The link it needs is not there.
    NoLink(LinkName),
    /// The link of that name is somebody else's.
    Foreign(LinkName),
}

impl From<NetlinkError> for Trouble {
    fn from(error: NetlinkError) -> Self {
        Self::Kernel(error)
    }
}

/// Does one thing, whole or not at all.
///
/// # Errors
/// With the reason and what to do about it.
pub(crate) async fn carry_out(operation: &Operation) -> Result<(), Failed> {
    let done = match operation {
        Operation::AddLink {
            link,
            kind,
            index,
            mac,
        } => add_link(link, kind, *index, *mac).await,
        Operation::RemoveLink { link } => remove_link(link).await,
        Operation::SetUp { link, up } => set_up(link, *up).await,
        Operation::SetMtu { link, mtu } => set(link, LinkAttribute::Mtu(*mtu)).await,
        Operation::SetMaster { link, master } => set_master(link, master.as_ref()).await,
        Operation::AddAddress { link, address } => add_address(link, *address).await,
        Operation::RemoveAddress { link, address } => remove_address(link, *address).await,
        Operation::AddRoute { link, route } => add_route(link, route).await,
        Operation::RemoveRoute { link, route } => remove_route(link, route).await,
        Operation::AddRule { rule } => {
            let asked = netlink::change(RouteNetlinkMessage::NewRule(rule_message(rule)), NEW);
            unless(asked.await, &[Errno::EEXIST])
        }
        Operation::RemoveRule { rule } => {
            let asked = netlink::change(RouteNetlinkMessage::DelRule(rule_message(rule)), 0);
            unless(asked.await, &[Errno::ENOENT])
        }
        Operation::SetForwarding { link, on } => {
            set(link, ipv4_setting(FORWARDING, u32::from(*on))).await
        }
        Operation::SetReversePath { link, rp_filter } => {
            set(link, ipv4_setting(RP_FILTER, rp_filter_number(*rp_filter))).await
        }
        Operation::SetRuleset { ruleset } => return crate::host::nft::set(ruleset.as_ref()).await,
    };
    done.map_err(|trouble| failed(operation, trouble))
}

/// Takes these refusals for success: somebody was faster.
fn unless(asked: Result<(), NetlinkError>, fine: &[Errno]) -> Result<(), Trouble> {
    match asked {
        Err(NetlinkError::Refused { errno, .. }) if fine.contains(&errno) => Ok(()),
        asked => Ok(asked?),
    }
}

fn refused_with(asked: &Result<(), NetlinkError>, reason: Errno) -> bool {
    matches!(asked, Err(NetlinkError::Refused { errno, .. }) if *errno == reason)
}

/// The link of that name, if there is one.
async fn find(link: &LinkName) -> Result<Option<Found>, Trouble> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::IfName(link.to_string()));
    match netlink::ask(RouteNetlinkMessage::GetLink(request)).await {
        Ok(answers) => Ok(answers.iter().find_map(read::found)),
        Err(NetlinkError::Refused {
            errno: Errno::ENODEV,
            ..
        }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn number(link: &LinkName) -> Result<u32, Trouble> {
    let found = find(link).await?;
    Ok(found.ok_or_else(|| Trouble::NoLink(link.clone()))?.index)
}

async fn set(link: &LinkName, attribute: LinkAttribute) -> Result<(), Trouble> {
    let mut request = LinkMessage::default();
    request.header.index = number(link).await?;
    request.attributes.push(attribute);
    Ok(netlink::change(RouteNetlinkMessage::SetLink(request), 0).await?)
}

async fn add_link(
    link: &LinkName,
    kind: &LinkKind,
    index: Option<u32>,
    mac: Option<MacAddress>,
) -> Result<(), Trouble> {
    let mut request = LinkMessage::default();
    request.header.index = index.unwrap_or(0);
    request.attributes = vec![
        LinkAttribute::IfName(link.to_string()),
        LinkAttribute::Group(MARK_GROUP),
    ];
    if let Some(mac) = mac {
        request
            .attributes
            .push(LinkAttribute::Address(mac.octets().to_vec()));
    }
    let info = match kind {
        LinkKind::Vlan { parent, id } => {
            request
                .attributes
                .push(LinkAttribute::Link(number(parent).await?));
            let data = InfoData::Vlan(vec![InfoVlan::Id(id.get())]);
            vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]
        }
        LinkKind::Bridge { ports: _, stp } => {
            let stp = if *stp {
                BridgeStpState::KernelStp
            } else {
                BridgeStpState::Disabled
            };
            let data = InfoData::Bridge(vec![InfoBridge::StpState(stp)]);
            vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)]
        }
        LinkKind::Bond {
            mode,
            ports: _,
            monitor_millis,
        } => {
            let data = InfoData::Bond(vec![
                // Ours are in the order of the kernel's numbers.
                InfoBond::Mode(BondMode::from(*mode as u8)),
                InfoBond::MiiMon(*monitor_millis),
            ]);
            vec![LinkInfo::Kind(InfoKind::Bond), LinkInfo::Data(data)]
        }
        // Nobody can make a card; it comes by itself.
        LinkKind::Card { .. } => return Err(Trouble::NoLink(link.clone())),
    };
    request.attributes.push(LinkAttribute::LinkInfo(info));
    let mut asked = netlink::change(RouteNetlinkMessage::NewLink(request.clone()), NEW).await;
    if index.is_some() && refused_with(&asked, Errno::EEXIST) && find(link).await?.is_none() {
        // The number went to another link meanwhile. Better a link with a new one than none.
        request.header.index = 0;
        asked = netlink::change(RouteNetlinkMessage::NewLink(request), NEW).await;
    }
    asked?;
    let mut marked = LinkMessage::default();
    marked.header.index = number(link).await?;
    marked.attributes = vec![
        LinkAttribute::IfAlias(ALIAS.into()),
        LinkAttribute::Group(0),
    ];
    let asked = netlink::change(RouteNetlinkMessage::SetLink(marked), 0).await;
    if asked.is_err() {
        remove_link(link).await?;
    }
    Ok(asked?)
}

/// Only what bears our mark at this moment.
async fn remove_link(link: &LinkName) -> Result<(), Trouble> {
    let Some(found) = find(link).await? else {
        return Ok(());
    };
    if !found.ours {
        return Err(Trouble::Foreign(link.clone()));
    }
    let mut request = LinkMessage::default();
    request.header.index = found.index;
    let asked = netlink::change(RouteNetlinkMessage::DelLink(request), 0).await;
    unless(asked, &[Errno::ENODEV])
}

async fn set_up(link: &LinkName, up: bool) -> Result<(), Trouble> {
    let mut request = LinkMessage::default();
    request.header.index = number(link).await?;
    request.header.change_mask = LinkFlags::Up;
    if up {
        request.header.flags = LinkFlags::Up;
    }
    Ok(netlink::change(RouteNetlinkMessage::SetLink(request), 0).await?)
}

async fn set_master(link: &LinkName, master: Option<&LinkName>) -> Result<(), Trouble> {
    let master = match master {
        Some(master) => number(master).await?,
        None => 0,
    };
    set(link, LinkAttribute::Controller(master)).await
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
        // Without duplicate address detection (IPv6): until it ends no route may name the address as its source.
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    // RFC 3021: networks of two stations have no broadcast address.
    if let IpNet::V4(net) = address
        && net.prefix_len() < 31
    {
        let broadcast = AddressAttribute::Broadcast(net.broadcast());
        message.attributes.push(broadcast);
    }
    message
}

async fn add_address(link: &LinkName, address: IpNet) -> Result<(), Trouble> {
    let message = address_message(number(link).await?, address);
    let index = message.header.index;
    let asked = netlink::change(RouteNetlinkMessage::NewAddress(message), NEW).await;
    if refused_with(&asked, Errno::EEXIST) {
        let answers =
            netlink::dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
        let there = |borne: Borne| borne.link == index && borne.address.net == address;
        if answers.iter().filter_map(read::address).any(there) {
            return Ok(());
        }
    }
    Ok(asked?)
}

async fn remove_address(link: &LinkName, address: IpNet) -> Result<(), Trouble> {
    let Some(found) = find(link).await? else {
        return Ok(());
    };
    let message = RouteNetlinkMessage::DelAddress(address_message(found.index, address));
    unless(netlink::change(message, 0).await, &[Errno::EADDRNOTAVAIL])
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let to = route.to.trunc();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to.addr()),
        destination_prefix_length: to.prefix_len(),
        table: u8::try_from(route.table).unwrap_or(TABLE_IN_ATTRIBUTE),
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: match (to, route.via) {
            (IpNet::V4(_), None) => RouteScope::Link,
            (IpNet::V4(_), Some(_)) | (IpNet::V6(_), _) => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Table(route.table),
        RouteAttribute::Oif(index),
    ];
    if to.prefix_len() > 0 {
        let to = RouteAttribute::Destination(RouteAddress::from(to.addr()));
        message.attributes.push(to);
    }
    message.attributes.extend(route.via.map(|via| {
        if via.is_ipv4() == to.addr().is_ipv4() {
            RouteAttribute::Gateway(RouteAddress::from(via))
        } else {
            // RFC 5549: an IPv4 network behind an IPv6 gateway.
            RouteAttribute::Via(RouteVia::from(via))
        }
    }));
    let source = route.source.map(RouteAddress::from);
    message
        .attributes
        .extend(source.map(RouteAttribute::PrefSource));
    if route.metric != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(route.metric));
    }
    message
}

async fn add_route(link: &LinkName, route: &Route) -> Result<(), Trouble> {
    let message = route_message(number(link).await?, route);
    Ok(netlink::change(RouteNetlinkMessage::NewRoute(message), NEW).await?)
}

async fn remove_route(link: &LinkName, route: &Route) -> Result<(), Trouble> {
    let Some(found) = find(link).await? else {
        return Ok(());
    };
    let message = RouteNetlinkMessage::DelRoute(route_message(found.index, route));
    unless(netlink::change(message, 0).await, &[Errno::ESRCH])
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.from.addr());
    message.header.src_len = rule.from.prefix_len();
    message.header.table = u8::try_from(rule.table).unwrap_or(TABLE_IN_ATTRIBUTE);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    if rule.from.prefix_len() > 0 {
        message
            .attributes
            .push(RuleAttribute::Source(rule.from.trunc().addr()));
    }
    message
}

/// One IPv4 setting of a link, packed as `inet_set_link_af` of Linux `net/ipv4/devinet.c` reads it.
fn ipv4_setting(which: u16, value: u32) -> LinkAttribute {
    let setting = DefaultNla::new(which, value.to_ne_bytes().to_vec());
    let mut bytes = vec![0; setting.buffer_len()];
    setting.emit(&mut bytes);
    let settings = AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, bytes));
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![settings])])
}

fn rp_filter_number(rp_filter: ReversePath) -> u32 {
    match rp_filter {
        ReversePath::Off => 0,
        ReversePath::Strict => 1,
        ReversePath::Loose => 2,
    }
}

fn failed(operation: &Operation, trouble: Trouble) -> Failed {
    let act = operation.to_string();
    match trouble {
        Trouble::NoLink(link) => Failed {
            cause: format!("{act}: there is no link {link}"),
            remedy: format!("plug in or make {link}, and apply again (ip link)"),
        },
        Trouble::Foreign(link) => Failed {
            cause: format!("{act}: {link} does not bear our mark (alias {ALIAS}) any more"),
            remedy: format!("if it is not needed: ip link delete {link}"),
        },
        Trouble::Kernel(error) => Failed {
            remedy: remedy(operation, &error),
            cause: format!("{act}: {error}"),
        },
    }
}

/// What to do about a refusal of the kernel's.
fn remedy(operation: &Operation, error: &NetlinkError) -> String {
    let NetlinkError::Refused { errno, said } = error else {
        return "apply again; when it stays, look into the kernel's log (dmesg)".into();
    };
    match (errno, operation) {
        (Errno::EPERM | Errno::EACCES, _) if said.is_none() => {
            "run it as root or by its unit, which grants CAP_NET_ADMIN".into()
        }
        (Errno::EOPNOTSUPP, Operation::AddLink { kind, .. }) => {
            let module = match kind {
                LinkKind::Vlan { .. } => "8021q",
                LinkKind::Bridge { .. } => "bridge",
                LinkKind::Bond { .. } => "bonding",
                LinkKind::Card { .. } => "card's",
            };
            format!(
                "load the {module} module: modprobe {module}, and name it in /etc/modules-load.d/reveille.conf"
            )
        }
        (Errno::EEXIST, Operation::AddLink { link, .. }) => format!(
            "another link has the name {link} or its VLAN (ip -d link); remove it, or give this one another name or id"
        ),
        (Errno::EEXIST, Operation::AddRoute { route, .. }) => format!(
            "another route leads there (ip route show table {}); remove it, or give this one another metric",
            route.table
        ),
        (Errno::EEXIST, Operation::AddAddress { link, address }) => format!(
            "{link} has {} with another prefix (ip address show {link}); remove that one",
            address.addr()
        ),
        (Errno::ENETUNREACH | Errno::EHOSTUNREACH, Operation::AddRoute { link, .. }) => {
            format!("give {link} an address in the gateway's network, or correct the gateway")
        }
        (Errno::ENETDOWN, Operation::AddRoute { link, .. }) => {
            format!("{link} was taken down meanwhile: apply again")
        }
        (Errno::EINVAL | Errno::ERANGE, Operation::SetMtu { link, .. }) => {
            format!(
                "ip -d link show {link} says the smallest and the largest it takes; a VLAN can't exceed its parent"
            )
        }
        (Errno::EBUSY, Operation::SetMaster { link, .. }) => {
            format!("{link} is a port of another link (ip -d link show {link}); free it")
        }
        (Errno::EBUSY, _) => {
            "something else holds it (ip -d link); free it, and apply again".into()
        }
        (Errno::ENODEV, _) => "the link vanished meanwhile: apply again when it is there".into(),
        _ => "correct what it says, or look into the kernel's log (dmesg), and apply again".into(),
    }
}
