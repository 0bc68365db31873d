//! One entry of `site.yaml`'s `links` to a link of the bastion.

use std::net::IpAddr;

use ipnet::IpNet;
use netboot::host::{HostLink, ReversePath};
use netboot::link::{Link, LinkKind, MAIN_TABLE, Route, policy_routing};
use netboot::net::{LinkName, Malformed, VlanId};

use super::fault::{Faults, Place};
use super::file;
use super::judge::{ip_address, list, missing, need, network_of, parse, seconds};
use super::read::Given;
use super::site::Written;

/// RFC 791, 3.2: a link that can't carry 68 bytes can't carry IPv4.
const MTU_MIN: u16 = 68;
/// RFC 8200, 5: "every link in the Internet have an MTU of 1280 octets or greater".
const MTU_MIN_IPV6: u16 = 1280;
const MONITOR_MILLIS: u32 = 100;
const MONITOR_MILLIS_MAX: u32 = 10_000;
/// Tables of links with a gateway: this and a VLAN's id, or this and the link's place in the list.
const VLAN_TABLES: u32 = 1000;
const OTHER_TABLES: u32 = 2000;
/// `RT_TABLE_UNSPEC`, `DEFAULT`, `MAIN` and `LOCAL` (Linux `include/uapi/linux/rtnetlink.h`).
const RESERVED_TABLES: [u32; 4] = [0, 253, MAIN_TABLE, 255];

/// Judges one link; `None` when it has a fault of its own.
pub(super) fn link(
    entry: &file::HostLink,
    place: Place,
    place_in_list: u32,
    faults: &Faults,
) -> Option<HostLink> {
    let file::HostLink {
        name: given_name,
        vlan,
        bridge,
        bond,
        addresses: given_addresses,
        mtu: given_mtu,
        gateway,
        gateways,
        table,
        default_route,
        routes: given_routes,
        rp_filter,
        forwarding,
    } = entry;
    let before = faults.count();
    let name = file_name(given_name, place, faults);
    let kind = kind(vlan, bridge, bond, faults);
    let addresses = addresses(given_addresses, faults);
    let mtu = mtu(given_mtu, addresses.iter().any(is_ipv6), faults);
    let gateways = self::gateways(gateway, gateways, given_addresses, &addresses, faults);
    let own_table = match &kind {
        Some(LinkKind::Vlan { id, .. }) => VLAN_TABLES + u32::from(id.get()),
        _ => OTHER_TABLES + place_in_list,
    };
    let asked = (gateway.place().or(entry.gateways.place())).is_some();
    let own_table = self::table(table, asked, faults).unwrap_or(own_table);
    let (mut routes, rules) = policy_routing(&addresses, &gateways, own_table);
    if let Some((place, true)) = default_route.good() {
        if !asked {
            let remedy = "add `gateway:`, or remove it";
            let problem = "stands on a link without a gateway";
            faults.add(place, "default_route", "true", problem, remedy);
        }
        let everywhere = routes.iter().filter(|route| route.via.is_some());
        let main = everywhere.map(|route| Route {
            source: None,
            table: MAIN_TABLE,
            ..*route
        });
        routes.extend(main.collect::<Vec<_>>());
    }
    routes.extend(self::routes(given_routes, faults));
    let rp_filter = match rp_filter.value() {
        Some(file::ReversePath::Off) => Some(ReversePath::Off),
        Some(file::ReversePath::Strict) => Some(ReversePath::Strict),
        Some(file::ReversePath::Loose) => Some(ReversePath::Loose),
        // What comes in by one gateway may have its way back by another.
        None => asked.then_some(ReversePath::Loose),
    };
    // What a fault left out would only bring forth more of them when links are compared.
    if faults.count() > before {
        return None;
    }
    Some(HostLink {
        link: Link {
            name: name?,
            kind: kind?,
            mtu,
            addresses,
            routes,
            rules,
        },
        forwarding: forwarding.value().copied(),
        rp_filter,
    })
}

/// A link's name that every file and argument can bear as it is: what the kernel takes, without what means something
/// else to it or to the formats that links are written in.
pub(super) fn file_name(given: &Given<String>, place: Place, faults: &Faults) -> Option<LinkName> {
    let name: LinkName = need(faults, "name", given, place)?;
    let text = name.as_str();
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    // `sysctl_dev_name_is_allowed` (Linux include/linux/inetdevice.h) keeps the two words for itself.
    let reserved = matches!(text, "all" | "default") || text.starts_with(['-', '.']);
    if reserved || !text.bytes().all(sound) {
        let place = given.place().unwrap_or(place);
        let problem = "means something else to the kernel or in a file";
        let remedy = "use letters, digits, dots, hyphens and underscores, a letter first";
        faults.add(place, "name", text, problem, remedy);
        return None;
    }
    Some(name)
}

/// What makes a link: one of the three keys, or none of them.
fn kind(
    vlan: &Given<file::Vlan>,
    bridge: &Given<file::Bridge>,
    bond: &Given<file::Bond>,
    faults: &Faults,
) -> Option<LinkKind> {
    let given = [vlan.place(), bridge.place(), bond.place()];
    if let [_, second, ..] = given.into_iter().flatten().collect::<Vec<_>>()[..] {
        let remedy = "keep one, and give the other a link of its own";
        faults.add(
            second,
            "",
            "this key",
            "is the second of vlan, bridge and bond on one link",
            remedy,
        );
        return None;
    }
    match (vlan, bridge, bond) {
        (Given::Good(place, vlan), _, _) => vlan_kind(vlan, *place, faults),
        (_, Given::Good(place, bridge), _) => Some(LinkKind::Bridge {
            ports: ports(&bridge.ports, *place, faults),
            stp: bridge.stp.value().copied().unwrap_or(false),
        }),
        (_, _, Given::Good(place, bond)) => bond_kind(bond, *place, faults),
        (Given::Absent, Given::Absent, Given::Absent) => Some(LinkKind::Card { macs: Vec::new() }),
        _ => None,
    }
}

/// A VLAN of another link.
pub(super) fn vlan_kind(vlan: &file::Vlan, place: Place, faults: &Faults) -> Option<LinkKind> {
    let parent = need(faults, "parent", &vlan.parent, place);
    if vlan.id.is_absent() {
        missing(faults, "id", place);
    }
    let id = vlan.id.good().and_then(|(place, id)| {
        let known = VlanId::new(*id);
        if known.is_none() {
            let remedy = "write 1 to 4094, as the switch's port is tagged";
            faults.add(place, "id", &id.to_string(), "is not a VLAN id", remedy);
        }
        known
    });
    Some(LinkKind::Vlan {
        parent: parent?,
        id: id?,
    })
}

/// Several links as one.
pub(super) fn bond_kind(bond: &file::Bond, place: Place, faults: &Faults) -> Option<LinkKind> {
    if bond.mode.is_absent() {
        missing(faults, "mode", place);
    }
    let monitor_millis = bond.monitor.good().and_then(|(place, text)| {
        let millis = match text.strip_suffix("ms") {
            Some(number) => number.parse().ok(),
            None => seconds(text).and_then(|seconds| seconds.checked_mul(1000)),
        };
        let sound = millis.filter(|millis| (1..=MONITOR_MILLIS_MAX).contains(millis));
        if sound.is_none() {
            let rule = "write 1ms to 10s; 100ms is usual";
            faults.add_malformed(place, "monitor", &Malformed::new("interval", text, rule));
        }
        sound
    });
    Some(LinkKind::Bond {
        ports: ports(&bond.ports, place, faults),
        mode: bond.mode.value()?.0,
        monitor_millis: monitor_millis.unwrap_or(MONITOR_MILLIS),
    })
}

fn ports(given: &Given<Vec<Given<String>>>, place: Place, faults: &Faults) -> Vec<LinkName> {
    if given.is_absent() {
        missing(faults, "ports", place);
    }
    list(faults, "ports", given, parse)
}

fn addresses(given: &Given<Vec<Given<String>>>, faults: &Faults) -> Vec<IpNet> {
    let mut addresses: Vec<IpNet> = Vec::new();
    for (place, text) in given.value().into_iter().flatten().filter_map(Given::good) {
        let refuse = |problem, remedy| faults.add(place, "addresses", text, problem, remedy);
        let Some(net) = network_of(faults, "addresses", place, text) else {
            continue;
        };
        let address = net.addr();
        // RFC 3021: both addresses of a /31 are stations', and RFC 6164 says the same of a /127.
        let shared = net.prefix_len() + 1 < net.max_prefix_len();
        let local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            refuse(
                "is not one station's address",
                "write the address of this link",
            );
        } else if shared && address == net.network() {
            refuse("is the network's own address", "choose an address above it");
        } else if shared && net.addr().is_ipv4() && address == net.broadcast() {
            refuse("is the network's broadcast address", "choose one below it");
        } else if local {
            refuse(
                "is link-local",
                "leave it out; the kernel makes it by itself",
            );
        } else if addresses.iter().any(|other| other.addr() == address) {
            refuse("stands here twice", "remove one of the two");
        } else {
            addresses.push(net);
        }
    }
    addresses
}

fn is_ipv6(net: &IpNet) -> bool {
    net.addr().is_ipv6()
}

/// A largest packet that its link's addresses can live with.
pub(super) fn mtu(given: &Given<u16>, with_ipv6: bool, faults: &Faults) -> Option<u32> {
    let (place, mtu) = given.good()?;
    let (least, whose) = if with_ipv6 {
        (MTU_MIN_IPV6, "IPv6")
    } else {
        (MTU_MIN, "IPv4")
    };
    if *mtu < least {
        let problem = format!("is less than {whose} needs");
        let remedy = format!("write {least} to 65535; 1500 is usual");
        faults.add(place, "mtu", &mtu.to_string(), problem, remedy);
        return None;
    }
    Some(u32::from(*mtu))
}

fn gateways(
    one: &Given<String>,
    several: &Given<Vec<Given<String>>>,
    given_addresses: &Given<Vec<Given<String>>>,
    addresses: &[IpNet],
    faults: &Faults,
) -> Vec<IpAddr> {
    if let (Some(_), Some(place)) = (one.place(), several.place()) {
        let remedy = "keep one of the two";
        faults.add(place, "gateways", "", "stands beside gateway", remedy);
    }
    let mut gateways: Vec<IpAddr> = Vec::new();
    let entries = several.value().into_iter().flatten();
    for given in std::iter::once(one).chain(entries) {
        let Some((place, text)) = given.good() else {
            continue;
        };
        let refuse = |problem, remedy| faults.add(place, "gateway", text, problem, remedy);
        let Some(gateway) = ip_address(faults, "gateway", given) else {
            continue;
        };
        let family = |address: &IpAddr| address.is_ipv4() == gateway.is_ipv4();
        let asked = given_addresses.value().map_or(0, Vec::len);
        if addresses.len() == asked && !addresses.iter().any(|net| family(&net.addr())) {
            refuse(
                "has no address of its kind on this link",
                "add one of the gateway's network to `addresses:`",
            );
        } else if addresses.iter().any(|net| net.addr() == gateway) {
            refuse("is this link's own address", "name the router on it");
        } else if gateways.iter().any(family) {
            refuse(
                "is the second of its kind on this link",
                "keep one for IPv4 and one for IPv6",
            );
        } else {
            gateways.push(gateway);
        }
    }
    gateways
}

fn table(given: &Given<u32>, asked: bool, faults: &Faults) -> Option<u32> {
    let (place, table) = given.good()?;
    let refuse = |problem, remedy| faults.add(place, "table", &table.to_string(), problem, remedy);
    if RESERVED_TABLES.contains(table) {
        let remedy =
            "write another number, such as 1107; `ip route show table all` shows those in use";
        refuse("is a table of the kernel's own", remedy);
        return None;
    }
    if !asked {
        refuse(
            "is asked for only with a gateway",
            "add `gateway:`, or remove it",
        );
    }
    Some(*table)
}

fn routes(given: &Given<Vec<Given<file::HostRoute>>>, faults: &Faults) -> Vec<Route> {
    let mut routes = Vec::new();
    for (place, route) in given.value().into_iter().flatten().filter_map(Given::good) {
        let file::HostRoute { to, via, metric } = route;
        for (key, given) in [("to", to), ("via", via)] {
            if given.is_absent() {
                missing(faults, key, place);
            }
        }
        let to = to.good().and_then(|(place, text)| {
            let net = network_of(faults, "to", place, text)?;
            let refuse = |problem, remedy: &str| {
                faults.add(place, "to", text, problem, remedy);
                None
            };
            if net.prefix_len() == 0 {
                refuse(
                    "is a default route",
                    "name the router as the link's `gateway:` with `default_route: true`",
                )
            } else if net != net.trunc() {
                refuse(
                    "has bits set after its prefix",
                    &format!("write {}", net.trunc()),
                )
            } else {
                Some((place, net))
            }
        });
        let (Some((place, to)), Some(via)) = (to, ip_address(faults, "via", via)) else {
            continue;
        };
        if to.addr().is_ipv4() != via.is_ipv4() {
            let problem = format!("can't be reached by {via}");
            let remedy = "write both as IPv4 or both as IPv6";
            faults.add(place, "to", &to.to_string(), problem, remedy);
            continue;
        }
        routes.push(Route {
            to,
            via: Some(via),
            source: None,
            metric: metric.value().copied().unwrap_or(0),
            table: MAIN_TABLE,
        });
    }
    routes
}

impl Written<Box<file::HostLink>> {
    /// Where the value stands that a contradiction is about.
    pub(super) fn place_of(&self, field: &str, value: &str) -> Place {
        let Self { place, entry } = self;
        let (vlan, bridge, bond) = (&entry.vlan, &entry.bridge, &entry.bond);
        let inner = match field {
            "name" => entry.name.place(),
            "vlan" => vlan.place(),
            "parent" => vlan.value().and_then(|vlan| vlan.parent.place()),
            "id" => vlan.value().and_then(|vlan| vlan.id.place()),
            "bridge" => bridge.place(),
            "bond" => bond.place(),
            "ports" => {
                let bridged = bridge.value().map(|bridge| &bridge.ports);
                let bonded = bond.value().map(|bond| &bond.ports);
                bridged
                    .or(bonded)
                    .and_then(|ports| entry_place(ports, value))
            }
            "addresses" => entry_place(&entry.addresses, value),
            "mtu" => entry.mtu.place(),
            "gateway" | "gateways" => entry
                .gateway
                .place()
                .or_else(|| entry_place(&entry.gateways, value)),
            "table" => entry.table.place().or(entry.gateway.place()),
            "default_route" => entry.default_route.place(),
            "routes" => entry.routes.place(),
            "to" | "via" => route_place(&entry.routes, value),
            "rp_filter" => entry.rp_filter.place(),
            "forwarding" => entry.forwarding.place(),
            _ => None,
        };
        inner.unwrap_or(*place)
    }
}

/// The place of one value of a list, or of the list.
fn entry_place(given: &Given<Vec<Given<String>>>, value: &str) -> Option<Place> {
    let values = given.value().into_iter().flatten();
    // The last, since what stands twice is at fault where it comes again.
    let entry = values
        .filter_map(Given::good)
        .rfind(|(_, text)| *text == value);
    entry.map(|(place, _)| place).or(given.place())
}

fn route_place(given: &Given<Vec<Given<file::HostRoute>>>, value: &str) -> Option<Place> {
    let routes = given.value().into_iter().flatten().filter_map(Given::value);
    let entry = routes
        .flat_map(|route| [&route.to, &route.via])
        .filter_map(Given::good)
        .find(|(_, text)| *text == value);
    entry.map(|(place, _)| place).or(given.place())
}
