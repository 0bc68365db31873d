//! The contradictions of the bastion's own network: each is found where it stands, and a sound site has none.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use netboot::host::{HostLink, HostSpec, Masquerade};
use netboot::link::{BondMode, Link, LinkKind, MAIN_TABLE, Route, policy_routing};
use netboot::net::LinkName;
use netboot::spec::{Item, Network, SiteParts, SiteSpec};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn names(ports: &[&str]) -> Vec<LinkName> {
    ports.iter().map(|port| name(port)).collect()
}

fn card() -> LinkKind {
    LinkKind::Card { macs: Vec::new() }
}

fn vlan(parent: &str, id: u16) -> LinkKind {
    let parent = name(parent);
    let id = netboot::net::VlanId::new(id).unwrap();
    LinkKind::Vlan { parent, id }
}

fn bridge(ports: &[&str]) -> LinkKind {
    let ports = names(ports);
    LinkKind::Bridge { ports, stp: false }
}

fn bond(ports: &[&str]) -> LinkKind {
    LinkKind::Bond {
        mode: BondMode::Lacp,
        ports: names(ports),
        monitor_millis: 100,
    }
}

fn link(text: &str, kind: LinkKind, addresses: &[&str], gateways: &[&str], table: u32) -> HostLink {
    let addresses: Vec<_> = addresses.iter().map(|net| net.parse().unwrap()).collect();
    let gateways: Vec<_> = gateways.iter().map(|via| via.parse().unwrap()).collect();
    let (routes, rules) = policy_routing(&addresses, &gateways, table);
    HostLink {
        link: Link {
            name: name(text),
            kind,
            mtu: None,
            addresses,
            routes,
            rules,
        },
        forwarding: None,
        rp_filter: None,
    }
}

fn network(text: &str, on: &str, subnet: &str) -> Network {
    Network {
        lease_seconds: 600,
        ..Network::plain(text.parse().unwrap(), name(on), subnet.parse().unwrap())
    }
}

/// A dual-homed bastion with a bond, a VLAN on it and a bridge on that.
fn sound() -> SiteParts {
    let networks = vec![
        network("provisioning", "br107", "10.107.0.0/24"),
        network("other", "eth9", "10.9.0.0/24"),
    ];
    let host = HostSpec {
        links: vec![
            link(
                "eth0",
                card(),
                &["203.0.113.5/24", "2001:db8::5/64"],
                &["203.0.113.1", "2001:db8::1"],
                2001,
            ),
            link("bond0", bond(&["eth1", "eth2"]), &[], &[], 0),
            link("bond0.107", vlan("bond0", 107), &[], &[], 0),
            link(
                "bond0.108",
                vlan("bond0", 108),
                &["10.108.0.1/24"],
                &["10.108.0.254"],
                1108,
            ),
            link("br107", bridge(&["bond0.107"]), &["10.107.0.1/24"], &[], 0),
        ],
        masquerade: vec![Masquerade {
            from: "10.107.0.0/24".parse().unwrap(),
            inside: name("br107"),
            out: name("eth0"),
        }],
        ..HostSpec::default()
    };
    SiteParts {
        networks,
        host,
        ..SiteParts::default()
    }
}

/// The faults of the sound site with one change, each by its place.
fn faults(change: impl FnOnce(&mut SiteParts)) -> Vec<(Item, &'static str, String)> {
    let mut site = sound();
    change(&mut site);
    let faults = SiteSpec::new(site).err().unwrap_or_default();
    assert!(faults.iter().all(|fault| !fault.remedy.is_empty()));
    let places = faults.into_iter();
    places
        .map(|fault| (fault.item, fault.field, fault.value))
        .collect()
}

fn at(item: Item, field: &'static str, value: &str) -> Vec<(Item, &'static str, String)> {
    vec![(item, field, value.to_owned())]
}

fn add(wanted: HostLink) -> impl FnOnce(&mut SiteParts) {
    move |site| site.host.links.push(wanted)
}

#[test]
fn a_sound_site_has_no_faults() {
    assert_eq!(faults(|_| ()), []);
}

#[test]
fn a_name_stands_for_one_link() {
    let twice = faults(add(link("bond0", card(), &[], &[], 0)));
    assert_eq!(twice, at(Item::Link(5), "name", "bond0"));
    for odd in ["eth*", "@eth", "-a", "a\"b", "ä"] {
        let found = faults(add(link(odd, card(), &[], &[], 0)));
        assert_eq!(found, at(Item::Link(5), "name", odd));
    }
}

#[test]
fn an_address_and_a_network_are_on_one_link() {
    let found = faults(add(link("eth5", card(), &["10.108.0.1/32"], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "addresses", "10.108.0.1/32"));
    let found = faults(add(link("eth5", card(), &["2001:db8::7/48"], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "addresses", "2001:db8::7/48"));
    let found = faults(add(link("eth5", card(), &["10.9.0.7/16"], &[], 0)));
    assert_eq!(found, at(Item::Network(1), "subnet", "10.9.0.0/24"));
}

#[test]
fn a_port_belongs_to_one_and_bears_no_addresses() {
    let found = faults(add(link("br1", bridge(&["eth1"]), &[], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "ports", "eth1"));
    let found = faults(add(link("br1", bridge(&["eth7", "eth7"]), &[], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "ports", "eth7"));
    let found = faults(add(link("br1", bridge(&["br107"]), &[], &[], 0)));
    let expected = [
        at(Item::Link(5), "ports", "br107"),
        at(Item::Link(4), "addresses", "10.107.0.1/24"),
    ];
    assert_eq!(found[..2], expected.concat());
    let found = faults(add(link("eth1", card(), &["10.1.0.1/24"], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "addresses", "10.1.0.1/24"));
    let found = faults(|site| site.networks[1].link = name("eth1"));
    assert_eq!(found, at(Item::Network(1), "link", "eth1"));
}

#[test]
fn no_link_lies_on_itself() {
    let found = faults(|site| site.host.links[1].link.kind = bond(&["bond0.107"]));
    let circle = [
        at(Item::Link(1), "ports", "bond0.107"),
        at(Item::Link(2), "parent", "bond0"),
    ];
    assert!(
        circle.concat().iter().all(|fault| found.contains(fault)),
        "{found:?}"
    );
    let found = faults(add(link("a", vlan("a", 1), &[], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "parent", "a"));
}

#[test]
fn a_vlan_id_is_used_once_and_no_vlan_is_larger_than_its_parent() {
    let found = faults(add(link("again", vlan("bond0", 108), &[], &[], 0)));
    assert_eq!(found, at(Item::Link(5), "id", "108"));
    let sizes = |parent, here| {
        faults(move |site| {
            site.host.links[1].link.mtu = Some(parent);
            site.host.links[3].link.mtu = Some(here);
        })
    };
    assert_eq!(sizes(9000, 9000), []);
    assert_eq!(sizes(1500, 9000), at(Item::Link(3), "mtu", "9000"));
    let found = faults(|site| {
        let mut port = link("eth1", card(), &[], &[], 0);
        port.link.mtu = Some(9000);
        site.host.links.push(port);
    });
    assert_eq!(found, at(Item::Link(5), "mtu", "9000"));
}

#[test]
fn a_gateway_is_in_a_network_of_its_link_and_has_a_table_to_itself() {
    let found = faults(add(link(
        "eth5",
        card(),
        &["10.5.0.1/24"],
        &["10.6.0.1"],
        2006,
    )));
    assert_eq!(found, at(Item::Link(5), "gateway", "10.6.0.1"));
    let found = faults(add(link(
        "eth5",
        card(),
        &["10.5.0.1/24"],
        &["10.5.0.254"],
        1108,
    )));
    assert_eq!(found, at(Item::Link(5), "table", "1108"));
    let main = |to: &str, via: &str| Route {
        to: to.parse().unwrap(),
        via: Some(via.parse().unwrap()),
        source: None,
        metric: 0,
        table: MAIN_TABLE,
    };
    let found = faults(|site| {
        site.host.links[3]
            .link
            .routes
            .push(main("10.200.0.0/16", "10.1.0.1"))
    });
    assert_eq!(found, at(Item::Link(3), "via", "10.1.0.1"));
    let both = |to: &'static str| {
        faults(move |site| {
            site.host.links[0].link.routes.push(main(to, "203.0.113.1"));
            site.host.links[3]
                .link
                .routes
                .push(main(to, "10.108.0.254"));
        })
    };
    assert_eq!(
        both("0.0.0.0/0"),
        at(Item::Link(3), "default_route", "true")
    );
    assert_eq!(
        both("10.200.0.0/16"),
        at(Item::Link(3), "to", "10.200.0.0/16")
    );
}

#[test]
fn a_network_has_an_address_of_the_bastion_and_leaves_by_another_link() {
    let found = faults(|site| site.host.links[4].link.addresses.clear());
    assert_eq!(found, at(Item::Network(0), "link", "br107"));
    let found = faults(|site| site.host.masquerade[0].out = name("br107"));
    assert_eq!(found, at(Item::Host, "out", "br107"));
}

#[test]
fn no_machine_gets_an_address_of_the_bastion() {
    let found = faults(|site| site.networks[0].range = Some("10.107.0.1-9".parse().unwrap()));
    assert_eq!(found, at(Item::Link(4), "addresses", "10.107.0.1/24"));
}
