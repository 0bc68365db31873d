//! The contradictions in what a site wants of the bastion's own network: between two links, between a link and a network, and
//! within one link where its parts come from several keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::spec::{HostLink, HostSpec};
use crate::faults::fault;
use crate::link::{LinkKind, MAIN_TABLE, Route};
use crate::net::LinkName;
use crate::spec::{Item, Mode, Network, SiteParts, SpecFault};

/// Everything that is wrong with `host`, and with the networks where it is about their links.
pub(crate) fn host_faults(parts: &SiteParts, found: &mut Vec<SpecFault>) {
    let host = &parts.host;
    name_faults(parts, found);
    below_faults(&host.links, found);
    for (index, wanted) in host.links.iter().enumerate() {
        for (other, earlier) in host.links[..index].iter().enumerate() {
            address_faults(index, wanted, other, earlier, found);
            table_faults(index, wanted, other, earlier, found);
        }
        mtu_faults(index, wanted, host, found);
        route_faults(index, wanted, found);
        station_faults(index, wanted, parts, found);
    }
    for (index, network) in parts.networks.iter().enumerate() {
        network_faults(Item::Network(index), network, host, found);
    }
    for way in &host.masquerade {
        if way.inside == way.out {
            let problem = "is the link of the network that should leave by it".to_owned();
            let remedy = "name the link that leads outside";
            found.push(fault(Item::Host, "out", &way.out, problem, remedy));
        }
    }
}

fn name_faults(parts: &SiteParts, found: &mut Vec<SpecFault>) {
    let host = &parts.host;
    let mut seen = BTreeMap::new();
    for (index, wanted) in host.links.iter().enumerate() {
        let item = Item::Link(index);
        if let Some(earlier) = seen.insert(&wanted.link.name, item) {
            let problem = "names two links".to_owned();
            found.push(SpecFault {
                earlier: Some(earlier),
                ..fault(
                    item,
                    "name",
                    &wanted.link.name,
                    problem,
                    "rename one of them",
                )
            });
        }
    }
    // nft takes a star for any ending and an at sign for a set, and the system's files have words of their own.
    let plain = |name: &LinkName| {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let mut letters = name.as_str().chars();
        letters.next().is_some_and(|c| c.is_ascii_alphanumeric()) && letters.all(letter)
    };
    let links = host.links.iter().enumerate();
    let links = links.map(|(index, wanted)| (Item::Link(index), "name", &wanted.link.name));
    let ways = host
        .masquerade
        .iter()
        .map(|way| (Item::Host, "out", &way.out));
    let open = !host.services.is_empty() || !host.masquerade.is_empty();
    let networks = parts.networks.iter().enumerate().filter(|_| open);
    let networks = networks.map(|(index, network)| (Item::Network(index), "link", &network.link));
    for (item, field, name) in links.chain(ways).chain(networks) {
        if !plain(name) {
            let problem =
                "has letters that firewalls and the system's files read as something else";
            let remedy = "name the link with letters, digits, dots, dashes and underscores only";
            found.push(fault(item, field, name, problem.to_owned(), remedy));
        }
    }
}

/// Which link lies on which: VLANs on parents, bridges and bonds on ports.
fn below_faults(links: &[HostLink], found: &mut Vec<SpecFault>) {
    let mut joined: BTreeMap<&LinkName, &LinkName> = BTreeMap::new();
    let mut tagged = BTreeMap::new();
    let by_name: BTreeMap<&LinkName, &HostLink> = links
        .iter()
        .map(|wanted| (&wanted.link.name, wanted))
        .collect();
    for (index, wanted) in links.iter().enumerate() {
        let item = Item::Link(index);
        let (name, kind) = (&wanted.link.name, &wanted.link.kind);
        for port in kind.ports() {
            if let Some(master) = joined.insert(port, name) {
                let problem = format!("is a port of {master} already");
                let remedy = "a link is a port of one bridge or bond: remove it from one of them";
                found.push(fault(item, "ports", port, problem, remedy));
            }
            let listed = by_name.get(port).map(|port| &port.link.kind);
            if matches!(kind, LinkKind::Bridge { .. })
                && matches!(listed, Some(LinkKind::Bridge { .. }))
            {
                let problem = "is a bridge, which no bridge takes as a port".to_owned();
                let remedy = "list its ports here, or join the two by a cable (veth)";
                found.push(fault(item, "ports", port, problem, remedy));
            }
        }
        if let LinkKind::Vlan { parent, id } = kind
            && let Some(other) = tagged.insert((parent, *id), name)
        {
            let problem = format!("is already the VLAN of {other} on {parent}");
            let remedy = "give one of the two another id, or remove it";
            found.push(fault(item, "id", &id.get(), problem, remedy));
        }
        if let Some(through) = lies_on_itself(wanted, &by_name) {
            let field = if kind.parent().is_some() {
                "parent"
            } else {
                "ports"
            };
            let problem = format!("lies on {name}, and so {name} on itself");
            let remedy = "break the circle at one of its links";
            found.push(fault(item, field, through, problem, remedy));
        }
    }
    for (index, wanted) in links.iter().enumerate() {
        let Some(master) = joined.get(&wanted.link.name) else {
            continue;
        };
        if let Some(address) = wanted.link.addresses.first() {
            let problem = format!("stands on a port of {master}, where nobody would answer for it");
            let remedy = format!("give it to {master}");
            found.push(fault(
                Item::Link(index),
                "addresses",
                address,
                problem,
                remedy,
            ));
        }
    }
}

/// The first step of the way on which a link lies on itself.
fn lies_on_itself<'a>(
    wanted: &'a HostLink,
    links: &BTreeMap<&'a LinkName, &'a HostLink>,
) -> Option<&'a LinkName> {
    let below = |wanted: &'a HostLink| {
        let kind = &wanted.link.kind;
        kind.parent().into_iter().chain(kind.ports())
    };
    below(wanted).find(|first| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*first]);
        while let Some(name) = next.pop() {
            if let Some(listed) = links.get(name).filter(|_| seen.insert(name)) {
                next.extend(below(listed));
            }
        }
        seen.contains(&wanted.link.name)
    })
}

fn address_faults(
    index: usize,
    wanted: &HostLink,
    other: usize,
    earlier: &HostLink,
    found: &mut Vec<SpecFault>,
) {
    let name = &earlier.link.name;
    for net in &wanted.link.addresses {
        let mut nets = earlier.link.addresses.iter();
        if nets.any(|there| there.addr() == net.addr()) {
            let problem = format!("is already an address of {name}");
            let remedy = "remove it from one of the two";
            found.push(SpecFault {
                earlier: Some(Item::Link(other)),
                ..fault(Item::Link(index), "addresses", net, problem, remedy)
            });
            continue;
        }
        let mut nets = earlier.link.addresses.iter();
        if let Some(there) = nets.find(|there| overlap(there, net)) {
            let problem = format!("is in network {} of {name}", there.trunc());
            let remedy = "give each link a network of its own, or join the links by a bridge";
            found.push(fault(Item::Link(index), "addresses", net, problem, remedy));
        }
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Two links whose tables or routes would stand in each other's place.
fn table_faults(
    index: usize,
    wanted: &HostLink,
    other: usize,
    earlier: &HostLink,
    found: &mut Vec<SpecFault>,
) {
    let tables = |wanted: &HostLink| -> BTreeSet<u32> {
        let routes = wanted.link.routes.iter().map(|route| route.table);
        let rules = wanted.link.rules.iter().map(|rule| rule.table);
        routes
            .chain(rules)
            .filter(|table| *table != MAIN_TABLE)
            .collect()
    };
    let name = &earlier.link.name;
    for table in tables(wanted).intersection(&tables(earlier)) {
        let problem = format!("is already the table of {name}");
        let remedy = "give one of the two another `table:`";
        found.push(SpecFault {
            earlier: Some(Item::Link(other)),
            ..fault(Item::Link(index), "table", table, problem, remedy)
        });
    }
    let main = |route: &&Route| route.table == MAIN_TABLE;
    for route in wanted.link.routes.iter().filter(main) {
        let mut routes = earlier.link.routes.iter().filter(main);
        if !routes.any(|there| (there.to, there.metric) == (route.to, route.metric)) {
            continue;
        }
        let found_at = if route.to.prefix_len() == 0 {
            let problem = format!("stands on {name} too, for the same kind of address");
            let remedy = "keep it on the link that the bastion itself leaves by";
            fault(Item::Link(index), "default_route", &"true", problem, remedy)
        } else {
            let problem = format!("leads by {name} already, under the same metric");
            let remedy = "give one of the two another metric, or remove it";
            fault(Item::Link(index), "to", &route.to, problem, remedy)
        };
        found.push(SpecFault {
            earlier: Some(Item::Link(other)),
            ..found_at
        });
    }
}

fn mtu_faults(index: usize, wanted: &HostLink, host: &HostSpec, found: &mut Vec<SpecFault>) {
    let Some(mtu) = wanted.link.mtu else { return };
    let listed = |name: &LinkName| Some((name.clone(), host.link(name)?.link.mtu?));
    let parent = wanted.link.kind.parent().and_then(listed);
    if let Some((parent, most)) = parent.filter(|(_, most)| *most < mtu) {
        let problem = format!("is more than the {most} of its parent {parent}");
        let remedy = format!("raise it on {parent}, or lower it here");
        found.push(fault(Item::Link(index), "mtu", &mtu, problem, remedy));
    }
    let name = &wanted.link.name;
    let bonds = host.links.iter().filter(|other| {
        let kind = &other.link.kind;
        matches!(kind, LinkKind::Bond { .. }) && kind.ports().contains(name)
    });
    for bond in bonds {
        if bond.link.mtu != Some(mtu) {
            let problem = format!("is not what the bond {} gives its ports", bond.link.name);
            let remedy = "set it on the bond only";
            found.push(fault(Item::Link(index), "mtu", &mtu, problem, remedy));
        }
    }
}

/// Gateways that are on no network of their link.
fn route_faults(index: usize, wanted: &HostLink, found: &mut Vec<SpecFault>) {
    let link = &wanted.link;
    let mut seen = BTreeSet::new();
    for route in &link.routes {
        let Some(via) = route.via.filter(|via| seen.insert(*via)) else {
            continue;
        };
        let mut own = link.addresses.iter();
        let mut near = link.routes.iter().filter(|route| route.via.is_none());
        // Where others give the addresses, the link's networks are not known here.
        let known = own.any(|net| net.addr().is_ipv4() == via.is_ipv4());
        let local = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
        if known
            && !local
            && !link.addresses.iter().any(|net| net.contains(&via))
            && !near.any(|route| route.to.contains(&via))
        {
            let of_table = route.table != MAIN_TABLE;
            let field = if of_table { "gateway" } else { "via" };
            let problem = format!("is in no network of {}", link.name);
            let remedy = "name a router in the network of one of its `addresses:`";
            found.push(fault(Item::Link(index), field, &via, problem, remedy));
        }
    }
}

/// Addresses that machines have, or may be lent.
fn station_faults(index: usize, wanted: &HostLink, parts: &SiteParts, found: &mut Vec<SpecFault>) {
    let item = Item::Link(index);
    for net in &wanted.link.addresses {
        let IpAddr::V4(address) = net.addr() else {
            continue;
        };
        let remedy = "choose an address that no machine gets";
        let bears =
            |node: &&crate::node::NodeSpec| node.links.iter().any(|link| link.address == address);
        if let Some(node) = parts.nodes.iter().find(bears) {
            let problem = format!("is the address of machine {}", node.name);
            found.push(fault(item, "addresses", net, problem, remedy));
        }
        let lends = |network: &&Network| network.range.is_some_and(|range| range.contains(address));
        if let Some(network) = parts.networks.iter().find(lends) {
            let problem = format!("lies in the range that network {} lends out", network.name);
            found.push(fault(item, "addresses", net, problem, remedy));
        }
    }
}

fn network_faults(item: Item, network: &Network, host: &HostSpec, found: &mut Vec<SpecFault>) {
    let subnet = IpNet::V4(network.subnet.net());
    for wanted in &host.links {
        let link = &wanted.link;
        let own = link.name == network.link && !network.relayed;
        let by_others = matches!(link.kind, LinkKind::Card { .. }) && link.addresses.is_empty();
        if own && network.mode != Mode::Off && !by_others {
            let stands = |net: &IpNet| match net.addr() {
                IpAddr::V4(address) => network.subnet.has_station(address),
                IpAddr::V6(_) => false,
            };
            if !link.addresses.iter().any(stands) {
                let problem = format!("has no address in subnet {}", network.subnet);
                let remedy = format!("give {} one under `links:`", link.name);
                found.push(fault(item, "link", &network.link, problem, remedy));
            }
        }
        let mut others = link.addresses.iter().filter(|_| !own);
        if let Some(net) = others.find(|net| overlap(net, &subnet)) {
            let problem = format!("overlaps {}, where {} is", net.trunc(), link.name);
            let remedy = "give the network addresses of its own, or name that link as its own";
            found.push(fault(item, "subnet", &network.subnet, problem, remedy));
        }
        if link.kind.ports().contains(&network.link) && !network.relayed {
            let problem = format!(
                "is a port of {}, which takes all that comes in by it",
                link.name
            );
            let remedy = format!("name {}", link.name);
            found.push(fault(item, "link", &network.link, problem, remedy));
        }
    }
}
