//! A machine's links to its reservations and to what its system makes.
//!
//! ```text
//! flat   mac, address            one reservation; the system is left to DHCP
//! links  cards, VLANs, bonds     a reservation for each address, under the MAC that its frames bear
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netboot::link::{Link, LinkKind};
use netboot::net::{LinkName, MacAddress, NetworkName};
use netboot::node::{NodeLink, card_name};

use super::fault::{Faults, Place, suggestion};
use super::file;
use super::judge::{address, list, missing, parse};
use super::links::{bond_kind, file_name, mtu, vlan_kind};
use super::read::Given;
use super::site::SiteFile;

/// Links of one machine; what is in no rack is a slip.
const LINKS_MAX: usize = 64;

/// What a machine's links come to.
pub(super) struct NodeLinks {
    /// Its reservations, the boot link's first.
    pub(super) links: Vec<NodeLink>,
    /// What its system makes; empty for one plain card.
    pub(super) system: Vec<Link>,
}

/// Judges the links of a machine, which its entry tells in one of two ways.
pub(super) fn judge(
    entry: &file::Machine,
    place: Place,
    site: &SiteFile,
    faults: &Faults,
) -> Option<NodeLinks> {
    let file::Machine {
        mac,
        macs,
        address,
        network,
        links,
        ..
    } = entry;
    let (list_place, listed) = match links {
        Given::Good(place, listed) => (*place, listed),
        Given::Bad(_) => return None,
        Given::Absent => {
            let macs = mac_addresses(mac, macs, faults);
            if macs.is_empty() && mac.is_absent() && macs_absent(&entry.macs) {
                missing(faults, "mac", place);
            }
            if address.is_absent() {
                missing(faults, "address", place);
            }
            let (network, address) = reserved(address, network, site, faults)?;
            return (!macs.is_empty()).then(|| NodeLinks {
                links: vec![NodeLink {
                    macs,
                    network,
                    address,
                    name: None,
                    default_route: false,
                }],
                system: Vec::new(),
            });
        }
    };
    let flat = [mac.place(), macs.place(), address.place(), network.place()];
    if let Some(flat) = flat.into_iter().flatten().next() {
        let problem = "stands beside `links:`, which says the same";
        let remedy = "keep one of the two: move it into the first link";
        faults.add(flat, "", "this key", problem, remedy);
    }
    several(listed, list_place, site, faults)
}

/// One entry of `links`, judged by itself.
struct Leg<'a> {
    place: Place,
    entry: &'a file::Link,
    link: Link,
    /// `None` where it bears no address.
    reserved: Option<(NetworkName, Ipv4Addr)>,
}

fn several(
    listed: &[Given<file::Link>],
    place: Place,
    site: &SiteFile,
    faults: &Faults,
) -> Option<NodeLinks> {
    let before = faults.count();
    if listed.is_empty() {
        let remedy = "list the link the machine boots from";
        faults.add(place, "links", "", "is empty", remedy);
    }
    if let Some(extra) = listed.get(LINKS_MAX) {
        let place = extra.place().unwrap_or(place);
        let remedy = format!("keep a machine within {LINKS_MAX} links");
        faults.add(place, "links", "", "has one link too many", remedy);
        return None;
    }
    // Each is judged before any is missed, so that all faults are named.
    let legs: Vec<Option<Leg<'_>>> = listed
        .iter()
        .enumerate()
        .map(|(index, given)| {
            let (place, entry) = given.good()?;
            leg(entry, place, index, site, faults)
        })
        .collect();
    let legs: Vec<Leg<'_>> = legs.into_iter().collect::<Option<_>>()?;
    contradictions(&legs, faults);
    let boot = boot_leg(&legs, place, faults)?;
    if faults.count() > before {
        return None;
    }
    // One plain card is left to DHCP, as it is without `links:`.
    let plain = legs.len() == 1
        && legs.iter().all(|leg| {
            leg.entry.name.is_absent()
                && leg.entry.mtu.is_absent()
                && leg.entry.default_route.is_absent()
        });
    let mut links: Vec<NodeLink> = Vec::new();
    for (index, leg) in legs.iter().enumerate() {
        let Some((network, address)) = leg.reserved.clone() else {
            continue;
        };
        let link = NodeLink {
            macs: borne(leg, &legs),
            network,
            address,
            name: (!plain).then(|| leg.link.name.clone()),
            default_route: leg.entry.default_route.value() == Some(&true),
        };
        let at = if index == boot { 0 } else { links.len() };
        links.insert(at, link);
    }
    let system = legs.into_iter().map(|leg| leg.link).collect();
    Some(NodeLinks {
        links,
        system: if plain { Vec::new() } else { system },
    })
}

fn leg<'a>(
    entry: &'a file::Link,
    place: Place,
    index: usize,
    site: &SiteFile,
    faults: &Faults,
) -> Option<Leg<'a>> {
    let file::Link {
        name,
        mac,
        macs,
        vlan,
        bond,
        mtu: given_mtu,
        address,
        network,
        default_route,
        boot: _,
    } = entry;
    let made = vlan.place().or(bond.place()).is_some();
    let name = if name.is_absent() && !made {
        Some(card_name(index))
    } else {
        file_name(name, place, faults)
    };
    if made && let Some(mac) = mac.place().or(macs.place()) {
        let problem = "stands on a link that bears the MAC address of those below it";
        faults.add(mac, "", "this key", problem, "move it to the card's entry");
    }
    let kind = match (vlan, bond) {
        (Given::Absent, Given::Absent) => {
            let macs_borne = mac_addresses(mac, macs, faults);
            let nameless = entry.name.is_absent() || !address.is_absent();
            if nameless && mac.is_absent() && macs_absent(macs) {
                missing(faults, "mac", place);
            }
            Some(LinkKind::Card { macs: macs_borne })
        }
        (Given::Good(_, _), Given::Good(second, _)) => {
            let remedy = "keep one, and give the other a link of its own";
            let problem = "stands beside vlan on one link";
            faults.add(*second, "", "bond", problem, remedy);
            None
        }
        (Given::Good(place, vlan), _) => vlan_kind(vlan, *place, faults),
        (_, Given::Good(place, bond)) => bond_kind(bond, *place, faults),
        _ => None,
    };
    let mtu = mtu(given_mtu, false, faults);
    if address.is_absent()
        && let Some((key, place)) = [
            ("network", network.place()),
            ("default_route", default_route.place()),
        ]
        .into_iter()
        .find_map(|(key, place)| Some((key, place?)))
    {
        let problem = "stands on a link without an address";
        faults.add(place, key, "", problem, "add `address:`, or remove it");
    }
    let link = Link {
        name: name?,
        kind: kind?,
        mtu,
        addresses: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    };
    let reserved = match address {
        Given::Absent => None,
        Given::Bad(_) | Given::Good(..) => Some(reserved(address, network, site, faults)?),
    };
    Some(Leg {
        place,
        entry,
        link,
        reserved,
    })
}

/// What two links of one machine can't both say.
fn contradictions(legs: &[Leg<'_>], faults: &Faults) {
    let mut names = BTreeMap::new();
    let mut macs = BTreeMap::new();
    let mut masters: BTreeMap<&LinkName, &LinkName> = BTreeMap::new();
    for leg in legs {
        let name = &leg.link.name;
        if names.insert(name, leg).is_some() {
            let place = leg.entry.name.place().unwrap_or(leg.place);
            let problem = "names two links of this machine";
            faults.add(place, "name", name.as_str(), problem, "rename one of them");
        }
        if let LinkKind::Card { macs: borne } = &leg.link.kind {
            for mac in borne {
                if macs.insert(*mac, name).is_some() {
                    let place = leg.entry.mac.place().or(leg.entry.macs.place());
                    let place = place.unwrap_or(leg.place);
                    let problem = "is the MAC address of two cards of this machine";
                    let remedy =
                        "a VLAN of the first is written as `vlan: { parent: NAME, id: 107 }`";
                    faults.add(place, "mac", &mac.to_string(), problem, remedy);
                }
            }
        }
        for port in leg.link.kind.ports() {
            if masters.insert(port, name).is_some() {
                let place = leg.entry.bond.place().unwrap_or(leg.place);
                let problem = "is a port twice";
                faults.add(
                    place,
                    "ports",
                    port.as_str(),
                    problem,
                    "leave it in one bond",
                );
            }
        }
    }
    for leg in legs {
        below(leg, &names, faults);
        lone(leg, legs, masters.get(&leg.link.name).copied(), faults);
    }
    let asked = |key: fn(&file::Link) -> &Given<bool>| {
        let places = legs.iter().filter_map(move |leg| key(leg.entry).good());
        places.filter_map(|(place, asked)| asked.then_some(place))
    };
    for (key, second) in [
        ("default_route", asked(|link| &link.default_route).nth(1)),
        ("boot", asked(|link| &link.boot).nth(1)),
    ] {
        if let Some(place) = second {
            let problem = "is asked of a second link";
            faults.add(place, key, "true", problem, "keep it on one link");
        }
    }
}

/// Whether what a link lies on is there and can carry it.
fn below(leg: &Leg<'_>, names: &BTreeMap<&LinkName, &Leg<'_>>, faults: &Faults) {
    let (vlan, bond) = (&leg.entry.vlan, &leg.entry.bond);
    let look = |name: &LinkName, key: &str, place: Option<Place>| {
        let place = place.unwrap_or(leg.place);
        let found = names.get(name);
        if found.is_none() {
            let known = names
                .keys()
                .copied()
                .filter(|known| **known != leg.link.name);
            let remedy = suggestion(name.as_str(), known.map(LinkName::as_str));
            let problem = "is not the name of a link of this machine";
            faults.add(place, key, name.as_str(), problem, remedy);
        }
        found.map(|found| (place, *found))
    };
    match &leg.link.kind {
        LinkKind::Card { .. } | LinkKind::Bridge { .. } => {}
        LinkKind::Vlan { parent, .. } => {
            let at = vlan.value().and_then(|vlan| vlan.parent.place());
            let Some((place, found)) = look(parent, "parent", at) else {
                return;
            };
            if found.link.kind.parent().is_some() {
                let (problem, remedy) = ("is a VLAN itself", "name the card or bond below it");
                faults.add(place, "parent", parent.as_str(), problem, remedy);
            } else if let (Some(mtu), Some(carried)) = (leg.link.mtu, found.link.mtu)
                && mtu > carried
            {
                let place = leg.entry.mtu.place().unwrap_or(leg.place);
                let problem = format!("is more than its parent's {carried}");
                let remedy = "raise the parent's, or lower this";
                faults.add(place, "mtu", &mtu.to_string(), problem, remedy);
            }
        }
        LinkKind::Bond { ports, .. } => {
            let at = bond.value().and_then(|bond| bond.ports.place());
            if ports.is_empty() && bond.value().is_some_and(|bond| !bond.ports.is_absent()) {
                let remedy = "name the cards that it joins";
                faults.add(at.unwrap_or(leg.place), "ports", "", "is empty", remedy);
            }
            for port in ports {
                let Some((place, found)) = look(port, "ports", at) else {
                    continue;
                };
                if !matches!(found.link.kind, LinkKind::Card { .. }) {
                    let remedy = "name cards; a VLAN lies on the bond";
                    faults.add(place, "ports", port.as_str(), "is not a card", remedy);
                }
            }
        }
    }
}

/// Whether a link has what it needs by itself: an address, or somebody that lies on it, but not both below a bond.
fn lone(leg: &Leg<'_>, legs: &[Leg<'_>], bond: Option<&LinkName>, faults: &Faults) {
    let name = &leg.link.name;
    let vlans = || {
        legs.iter()
            .filter(|other| other.link.kind.parent() == Some(name))
    };
    match bond {
        Some(bond) => {
            if let Some((place, text)) = leg.entry.address.good() {
                let problem = format!("stands on a port of {bond}");
                let remedy = format!("move it to {bond}; a port has no address of its own");
                faults.add(place, "address", text, problem, remedy);
            }
            if let Some(vlan) = vlans().next() {
                let given = vlan.entry.vlan.value().and_then(|vlan| vlan.parent.place());
                let problem = format!("is a port of {bond}");
                let remedy = format!("write `parent: {bond}`");
                let place = given.unwrap_or(vlan.place);
                faults.add(place, "parent", name.as_str(), problem, remedy);
            }
        }
        // What asks for an address was told so already.
        None if leg.entry.address.is_absent()
            && leg.entry.network.is_absent()
            && leg.entry.default_route.is_absent()
            && vlans().next().is_none() =>
        {
            missing(faults, "address", leg.place);
        }
        None => {}
    }
    // The reservation is by MAC, so somebody below must have one. Where nobody sound is below, that is the fault.
    let kind_of = |name: &LinkName| {
        let found = legs.iter().find(|other| other.link.name == *name);
        found.map(|found| &found.link.kind)
    };
    let below: Vec<_> = (leg.link.kind.parent().into_iter())
        .chain(leg.link.kind.ports())
        .map(kind_of)
        .collect();
    let sound = |kind: &Option<&LinkKind>| kind.is_some_and(|kind| kind.parent().is_none());
    if leg.reserved.is_some()
        && !below.is_empty()
        && below.iter().all(sound)
        && borne(leg, legs).is_empty()
    {
        let problem = "lies on no card whose MAC address is known";
        let remedy = "add `mac:` to the card's entry";
        faults.add(leg.place, "", "this link", problem, remedy);
    }
}

/// The index of the boot link: the one that says so, else the first untagged one with an address.
fn boot_leg(legs: &[Leg<'_>], place: Place, faults: &Faults) -> Option<usize> {
    let tagged = |leg: &Leg<'_>| leg.link.kind.parent().is_some();
    let asked = legs
        .iter()
        .position(|leg| leg.entry.boot.value() == Some(&true));
    let Some(asked) = asked else {
        let first = legs
            .iter()
            .position(|leg| !tagged(leg) && leg.reserved.is_some());
        if first.is_none() && legs.iter().any(|leg| leg.reserved.is_some()) {
            let problem = "has no untagged link with an address, and firmware tags no frames";
            let remedy = "give the card that it boots from an address of a network that the switch sends it untagged";
            faults.add(place, "links", "", problem, remedy);
        }
        return first;
    };
    let leg = &legs[asked];
    let at = leg.entry.boot.place().unwrap_or(leg.place);
    if tagged(leg) {
        let problem = "stands on a tagged link, and firmware tags no frames";
        let remedy = "boot from a link that the switch sends untagged";
        faults.add(at, "boot", "true", problem, remedy);
    } else if leg.reserved.is_none() {
        let problem = "stands on a link without an address";
        let remedy = "mark the bond it is a port of, or give it an address";
        faults.add(at, "boot", "true", problem, remedy);
    }
    Some(asked)
}

/// The MAC addresses that a link's frames bear: a card's own, its parent's, its ports'.
fn borne(leg: &Leg<'_>, legs: &[Leg<'_>]) -> Vec<MacAddress> {
    let below = |name: &LinkName| legs.iter().find(|other| other.link.name == *name);
    let of_cards = |names: &[LinkName]| {
        let cards = names.iter().filter_map(below);
        let macs = cards.flat_map(|card| match &card.link.kind {
            LinkKind::Card { macs } => &macs[..],
            LinkKind::Vlan { .. } | LinkKind::Bond { .. } | LinkKind::Bridge { .. } => &[],
        });
        macs.copied().collect()
    };
    match &leg.link.kind {
        LinkKind::Card { macs } => macs.clone(),
        LinkKind::Bond { ports, .. } | LinkKind::Bridge { ports, .. } => of_cards(ports),
        LinkKind::Vlan { parent, .. } => match below(parent).map(|parent| &parent.link.kind) {
            Some(LinkKind::Bond { ports, .. }) => of_cards(ports),
            _ => of_cards(std::slice::from_ref(parent)),
        },
    }
}

fn macs_absent(macs: &Given<Vec<Given<String>>>) -> bool {
    match macs {
        Given::Absent => true,
        Given::Good(_, listed) => listed.is_empty(),
        Given::Bad(_) => false,
    }
}

fn mac_addresses(
    mac: &Given<String>,
    macs: &Given<Vec<Given<String>>>,
    faults: &Faults,
) -> Vec<MacAddress> {
    let mut all: Vec<MacAddress> = parse(faults, "mac", mac).into_iter().collect();
    all.extend(list(faults, "macs", macs, parse::<MacAddress>));
    all
}

/// An address and its network: the one that is named, else the one whose subnet holds the address.
fn reserved(
    given: &Given<String>,
    network: &Given<String>,
    site: &SiteFile,
    faults: &Faults,
) -> Option<(NetworkName, Ipv4Addr)> {
    let network = match network.good() {
        Some((_, name)) if site.broken.contains(name) => None,
        Some(_) => parse(faults, "network", network),
        None if network.is_absent() => holder(given, site, faults),
        None => None,
    };
    let address = address(faults, "address", given);
    network.zip(address)
}

fn holder(given: &Given<String>, site: &SiteFile, faults: &Faults) -> Option<NetworkName> {
    let (place, text) = given.good()?;
    let address: Ipv4Addr = text.parse().ok()?;
    let holder = site
        .networks
        .iter()
        .find(|network| network.subnet.contains(address));
    let guessable = site.broken.is_empty() && !site.incomplete;
    if holder.is_none() && guessable {
        let known = site.networks.iter().take(10);
        let subnets: Vec<String> = known
            .map(|network| format!("{} ({})", network.subnet, network.name))
            .collect();
        let remedy = format!("choose one in {}", subnets.join(", "));
        let problem = "is in no network of the site";
        faults.add(place, "address", text, problem, remedy);
    }
    holder.map(|network| network.name.clone())
}
