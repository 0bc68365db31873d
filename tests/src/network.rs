//! Networks that the formats are tried with.

use ignition::network::Network;
use netboot::link::{BondMode, Link, LinkKind, MAIN_TABLE, Route, policy_routing};
use netboot::net::VlanId;

use crate::netns::Netns;

/// A card with a MAC address that carries VLAN 107, and a bond whose VLAN 20 is bridged: every kind, both families, two gateways.
///
/// # Panics
/// Never: it is sound.
pub fn every_kind() -> Network {
    let macs = |mac: &str| LinkKind::Card {
        macs: vec![mac.parse().expect("a MAC address")],
    };
    let vlan = |parent: &str, id| LinkKind::Vlan {
        parent: parent.parse().expect("a name"),
        id: VlanId::new(id).expect("an id"),
    };
    let ports = |names: &[&str]| {
        names
            .iter()
            .map(|name| name.parse().expect("a name"))
            .collect()
    };
    let bond = LinkKind::Bond {
        mode: BondMode::ActiveBackup,
        ports: ports(&["lan1", "eth2"]),
        monitor_millis: 100,
    };
    let bridge = LinkKind::Bridge {
        ports: ports(&["bond0.20"]),
        stp: false,
    };
    let mut links = vec![
        link("br20", bridge, &["10.20.0.11/24"]),
        link("bond0.20", vlan("bond0", 20), &[]),
        link("bond0", bond, &[]),
        // All its digits are decimal: YAML 1.1 would take it for a number of base 60.
        link("lan0", macs("52:54:00:10:00:01"), &[]),
        link("lan1", macs("52:54:00:aa:00:02"), &[]),
        link(
            "lan0.107",
            vlan("lan0", 107),
            &["10.107.0.11/24", "2001:db8:107::11/64", "10.107.0.12/24"],
        ),
    ];
    links[2].mtu = Some(9000);
    links[3].mtu = Some(1600);
    links[5].mtu = Some(1400);
    let gateways =
        ["10.107.0.1", "2001:db8:107::1"].map(|gateway| gateway.parse().expect("an address"));
    (links[5].routes, links[5].rules) = policy_routing(&links[5].addresses, &gateways, 1107);
    links[5]
        .routes
        .push(main("0.0.0.0/0", Some("10.107.0.1"), 0));
    links[5]
        .routes
        .push(main("::/0", Some("2001:db8:107::1"), 0));
    links[0]
        .routes
        .push(main("10.200.0.0/16", Some("10.20.0.1"), 100));
    links[0].routes.push(main("10.201.0.0/16", None, 0));
    network(&links)
}

/// What a kernel without VLANs and bonds can do, on a namespace with the links `eth0`, `eth1` and `eth2`. The bridge's `ports`
/// have its MTU, or are not spoken of.
///
/// # Panics
/// Never: it is sound.
pub fn bridged(ports: bool) -> (Network, Vec<Link>) {
    let bridge = LinkKind::Bridge {
        ports: vec![
            "eth1".parse().expect("a name"),
            "eth2".parse().expect("a name"),
        ],
        stp: false,
    };
    let card = || LinkKind::Card { macs: Vec::new() };
    let mut links = vec![
        link("eth0", card(), &["203.0.113.5/24", "2001:db8:5::5/64"]),
        link(
            "br107",
            bridge,
            &["10.107.0.1/24", "10.107.1.1/24", "2001:db8:107::1/64"],
        ),
    ];
    links[1].mtu = Some(1400);
    let outside = ["203.0.113.1".parse().expect("an address")];
    (links[0].routes, links[0].rules) = policy_routing(&links[0].addresses, &outside, 2000);
    links[0]
        .routes
        .push(main("0.0.0.0/0", Some("203.0.113.1"), 0));
    let inside =
        ["10.107.0.254", "2001:db8:107::fe"].map(|gateway| gateway.parse().expect("an address"));
    (links[1].routes, links[1].rules) = policy_routing(&links[1].addresses, &inside, 1107);
    links[1]
        .routes
        .push(main("10.200.0.0/16", Some("10.107.0.254"), 100));
    if ports {
        links.extend(["eth1", "eth2"].map(|name| link(name, card(), &[])));
        links[2].mtu = Some(1400);
        links[3].mtu = Some(1400);
    }
    (network(&links), links)
}

/// A namespace with three cables plugged in, as one finds them at its start.
///
/// # Panics
/// Without root.
pub fn cabled() -> (Netns, Netns) {
    let (netns, far) = (Netns::new(), Netns::new());
    for link in ["eth0", "eth1", "eth2"] {
        netns.cable(link, &far, link);
        netns.ip(&format!("link set {link} down"));
    }
    (netns, far)
}

fn network(links: &[Link]) -> Network {
    let hostname = "node-1.lab.example".parse().expect("a host name");
    let dns = ["10.107.0.1", "2001:db8:107::53"].map(|server| server.parse().expect("an address"));
    let search = ["lab.example", "example"].map(|domain| domain.parse().expect("a domain"));
    Network::new(Some(&hostname), links, &dns, &search).expect("a sound network")
}

fn link(name: &str, kind: LinkKind, addresses: &[&str]) -> Link {
    Link {
        name: name.parse().expect("a name"),
        kind,
        mtu: None,
        addresses: addresses
            .iter()
            .map(|net| net.parse().expect("an address"))
            .collect(),
        routes: Vec::new(),
        rules: Vec::new(),
    }
}

fn main(to: &str, via: Option<&str>, metric: u32) -> Route {
    Route {
        to: to.parse().expect("a network"),
        via: via.map(|via| via.parse().expect("an address")),
        source: None,
        metric,
        table: MAIN_TABLE,
    }
}
