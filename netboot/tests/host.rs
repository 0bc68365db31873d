//! The promises of the bastion's own network: what is planned, in which order, and what is left alone.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netboot::host::{
    Address, HostLink, HostSpec, HostState, LinkPolicy, LinkState, Masquerade, ObstacleKind,
    Operation, Owned, PresentKind, ReversePath, Service, Transport, diff, restore, ruleset, target,
};
use netboot::link::{BondMode, Link, LinkKind, MAIN_TABLE, Route, policy_routing};
use netboot::net::{LinkName, VlanId};

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn card() -> LinkKind {
    LinkKind::Card { macs: Vec::new() }
}

fn vlan(parent: &str, id: u16) -> LinkKind {
    LinkKind::Vlan {
        parent: name(parent),
        id: VlanId::new(id).unwrap(),
    }
}

fn bridge(ports: &[&str]) -> LinkKind {
    LinkKind::Bridge {
        ports: ports.iter().map(|port| name(port)).collect(),
        stp: false,
    }
}

fn bond(ports: &[&str]) -> LinkKind {
    LinkKind::Bond {
        mode: BondMode::Lacp,
        ports: ports.iter().map(|port| name(port)).collect(),
        monitor_millis: 100,
    }
}

fn wanted(text: &str, kind: LinkKind, addresses: &[&str]) -> HostLink {
    HostLink {
        link: Link {
            name: name(text),
            kind,
            mtu: None,
            addresses: addresses.iter().map(|text| net(text)).collect(),
            routes: Vec::new(),
            rules: Vec::new(),
        },
        forwarding: None,
        rp_filter: None,
    }
}

fn there(index: u32, kind: &LinkKind) -> LinkState {
    LinkState {
        index,
        ours: false,
        kind: PresentKind::of(kind),
        mac: None,
        up: true,
        mtu: 1500,
        master: None,
        addresses: Vec::new(),
        routes: BTreeSet::new(),
        forwarding: false,
        rp_filter: ReversePath::Off,
    }
}

fn route(to: &str, via: Option<&str>) -> Route {
    Route {
        to: net(to),
        via: via.map(|via| via.parse().unwrap()),
        source: None,
        metric: 0,
        table: MAIN_TABLE,
    }
}

/// A bastion with an uplink that its administrator uses, and a card nobody has touched.
fn bastion() -> HostState {
    let mut uplink = there(2, &card());
    uplink.addresses.push(Address {
        net: net("203.0.113.5/24"),
        ours: false,
    });
    uplink.routes.insert(Owned {
        what: route("0.0.0.0/0", Some("203.0.113.1")),
        ours: false,
    });
    let mut spare = there(3, &card());
    spare.up = false;
    HostState {
        links: BTreeMap::from([(name("eth0"), uplink), (name("eth1"), spare)]),
        ..HostState::default()
    }
}

fn site() -> HostSpec {
    let mut inside = wanted("eth1.107", vlan("eth1", 107), &["10.107.0.1/24"]);
    let gateway = ["10.107.0.254".parse().unwrap()];
    let (routes, rules) = policy_routing(&inside.link.addresses, &gateway, 1107);
    inside.link.routes = routes;
    inside.link.rules = rules;
    inside.rp_filter = Some(ReversePath::Loose);
    HostSpec {
        policy: LinkPolicy::Managed,
        links: vec![inside],
        masquerade: vec![Masquerade {
            from: "10.107.0.0/24".parse().unwrap(),
            inside: name("eth1.107"),
            out: name("eth0"),
        }],
        services: vec![Service {
            name: "dhcp",
            transport: Transport::Udp,
            port: 67,
            links: BTreeSet::from([name("eth1.107")]),
        }],
        confirm_seconds: 60,
    }
}

fn links(links: Vec<HostLink>) -> HostSpec {
    HostSpec {
        links,
        ..HostSpec::default()
    }
}

fn address(text: &str, ours: bool) -> Address {
    let net = net(text);
    Address { net, ours }
}

fn ours(index: u32, kind: &LinkKind) -> LinkState {
    LinkState {
        ours: true,
        ..there(index, kind)
    }
}

/// The bastion after a plan for it, which is carried out step by step.
fn planned(spec: &HostSpec, present: &HostState) -> HostState {
    let goal = target(spec, present);
    assert!(!goal.is_refused(), "{:?}", goal.obstacles);
    let after = carried_out(present.clone(), &diff(present, &goal.state));
    assert_eq!(after, goal.state);
    after
}

fn carried_out(mut state: HostState, operations: &[Operation]) -> HostState {
    for operation in operations {
        let done = state.apply(operation);
        assert_eq!(done, Ok(()), "{operation}");
    }
    state
}

#[test]
fn a_plan_reads_as_an_administrator_would_do_it() {
    let present = bastion();
    let goal = target(&site(), &present);
    assert_eq!(goal.obstacles, []);
    let lines: Vec<String> = diff(&present, &goal.state)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        lines,
        [
            "put the 7 rules of nftables table inet reveille in place",
            "add VLAN 107 on eth1 as eth1.107",
            "forward what comes in by eth0",
            "set rp_filter of eth1.107 to loose",
            "forward what comes in by eth1.107",
            "bring eth1 up",
            "add 10.107.0.1/24 to eth1.107",
            "add route 10.107.0.0/24 src 10.107.0.1 table 1107 by eth1.107",
            "add route default via 10.107.0.254 src 10.107.0.1 table 1107 by eth1.107",
            "add rule from 10.107.0.1/32 lookup 1107 priority 18600",
        ]
    );
}

#[test]
fn a_plan_that_was_carried_out_leaves_nothing_to_do_and_can_be_undone() {
    let present = bastion();
    let goal = target(&site(), &present);
    let operations = diff(&present, &goal.state);
    let after = carried_out(present.clone(), &operations);
    assert_eq!(after, goal.state);
    assert_eq!(diff(&after, &target(&site(), &after).state), []);
    for done in 0..=operations.len() {
        let midway = carried_out(present.clone(), &operations[..done]);
        let back = restore(&present, &operations, &midway);
        assert_eq!(carried_out(midway, &back), present, "after {done}");
    }
}

#[test]
fn a_link_whose_parent_is_missing_waits_and_the_rest_goes_on() {
    let mut present = bastion();
    present.links.remove(&name("eth1"));
    let mut spec = site();
    spec.links
        .push(wanted("br0", bridge(&[]), &["10.1.0.1/24"]));
    let goal = target(&spec, &present);
    let waits: Vec<_> = goal
        .obstacles
        .iter()
        .map(|o| (o.link.as_str(), o.kind))
        .collect();
    assert_eq!(waits, [("eth1.107", ObstacleKind::Waits)]);
    assert!(!goal.is_refused() && goal.state.links.contains_key(&name("br0")));
}

#[test]
fn a_vlan_that_others_made_under_another_name_is_refused() {
    let mut present = bastion();
    present
        .links
        .insert(name("mgmt"), there(4, &vlan("eth1", 107)));
    assert!(target(&site(), &present).is_refused());
    present.links.insert(name("eth1.107"), there(5, &card()));
    assert!(target(&site(), &present).is_refused());
}

#[test]
fn an_ipv6_route_with_the_kernels_own_metric_is_as_good_as_one_with_none() {
    let mut spec = HostSpec::default();
    let mut link = wanted("eth0", card(), &["fd00::5/64"]);
    let to = route("fd00:1::/64", Some("fd00::1"));
    link.link.routes.push(Route { metric: 1024, ..to });
    spec.links.push(link);
    let present = bastion();
    let wanted = target(&spec, &present).state;
    let after = carried_out(present.clone(), &diff(&present, &wanted));
    let routes = &after.links[&name("eth0")].routes;
    assert!(routes.iter().any(|there| there.what == to), "{routes:?}");
    assert_eq!(target(&spec, &after).state, after);
}

#[test]
fn the_firewall_names_only_the_ports_and_links_of_the_site() {
    assert_eq!(ruleset(&HostSpec::default()), None);
    let rules = ruleset(&site()).unwrap().0;
    let dropped = |rule: &serde_json::Value| rule["rule"]["expr"].to_string().contains("drop");
    let drops: Vec<_> = rules.iter().filter(|rule| dropped(rule)).collect();
    assert_eq!(drops.len(), 2);
    assert!(
        drops
            .iter()
            .all(|drop| drop.to_string().contains("67") || drop.to_string().contains("eth1.107"))
    );
}

#[test]
fn a_bridge_that_becomes_a_bond_does_not_take_down_ports_that_others_lean_on() {
    let mut present = bastion();
    present.links.insert(name("lan"), ours(4, &bridge(&[])));
    let uplink = present.links.get_mut(&name("eth0")).unwrap();
    uplink.master = Some(name("lan"));
    let spec = links(vec![wanted("lan", bond(&[]), &[])]);
    assert!(target(&spec, &present).is_refused());
}

#[test]
fn a_bridge_that_becomes_a_vlan_lets_its_ports_go() {
    let mut present = bastion();
    present.links.insert(name("lan"), ours(4, &bridge(&[])));
    let port = present.links.get_mut(&name("eth1")).unwrap();
    port.master = Some(name("lan"));
    let spec = links(vec![wanted("lan", vlan("eth1", 107), &[])]);
    assert_eq!(planned(&spec, &present).links[&name("eth1")].master, None);
}

#[test]
fn a_bond_takes_a_link_and_a_vlan_on_it_as_ports() {
    let mut present = bastion();
    let spec = links(vec![
        wanted("bond0", bond(&["eth1", "eth1.7"]), &[]),
        wanted("eth1.7", vlan("eth1", 7), &[]),
    ]);
    let after = planned(&spec, &present);
    assert_eq!(after.ports_of(&name("bond0")).count(), 2);

    // A VLAN can't be up, and so in a bond, before its parent is.
    let others = there(4, &vlan("eth1", 8));
    present.links.insert(
        name("eth1.8"),
        LinkState {
            up: false,
            ..others
        },
    );
    let spec = links(vec![wanted("bond0", bond(&["eth1.8"]), &[])]);
    assert!(planned(&spec, &present).links[&name("eth1")].up);
}

#[test]
fn the_mtu_that_a_bond_takes_from_a_vlan_on_its_port_is_said_at_once() {
    let mut present = bastion();
    present.links.get_mut(&name("eth1")).unwrap().mtu = 9000;
    let mut tagged = wanted("eth1.7", vlan("eth1", 7), &[]);
    tagged.link.mtu = Some(9000);
    let spec = links(vec![wanted("bond0", bond(&["eth1"]), &[]), tagged]);
    let said = target(&spec, &present).obstacles;
    assert!(
        said.iter().any(|said| said.problem.contains("MTU")),
        "{said:?}"
    );
    assert_eq!(target(&spec, &planned(&spec, &present)).obstacles, said);
}

#[test]
fn an_address_stays_while_one_behind_it_is_the_source_of_anothers_route() {
    let mut present = bastion();
    let mut lan = ours(4, &bridge(&[]));
    lan.addresses = vec![address("10.2.0.1/24", true), address("10.2.0.3/24", true)];
    present.links.insert(name("lan"), lan.clone());
    let uplink = present.links.get_mut(&name("eth0")).unwrap();
    let what = Route {
        source: Some("10.2.0.3".parse().unwrap()),
        ..route("10.9.0.0/16", Some("203.0.113.2"))
    };
    uplink.routes.insert(Owned { what, ours: false });
    let spec = links(vec![wanted("lan", bridge(&[]), &[])]);
    let after = planned(&spec, &present);
    assert_eq!(after.links[&name("lan")].addresses, lan.addresses);
}

#[test]
fn a_wanted_route_whose_network_is_no_longer_wanted_goes_with_it_and_is_named() {
    let mut present = bastion();
    let mut lan = ours(4, &bridge(&[]));
    let led = route("10.9.0.0/16", Some("10.2.0.254"));
    lan.addresses = vec![address("10.2.0.1/24", true)];
    lan.routes.insert(Owned {
        what: led,
        ours: true,
    });
    present.links.insert(name("lan"), lan);
    let mut bare = wanted("lan", bridge(&[]), &[]);
    bare.link.routes.push(led);
    let spec = links(vec![bare]);
    let after = planned(&spec, &present);
    assert!(after.links[&name("lan")].routes.is_empty());
    assert_eq!(target(&spec, &after).obstacles.len(), 1);
}

#[test]
fn the_way_back_leaves_an_address_that_anothers_route_has_come_to_need() {
    let mut present = bastion();
    let spare = present.links.get_mut(&name("eth1")).unwrap();
    spare.up = true;
    let what = route("10.9.0.0/16", None);
    spare.routes.insert(Owned { what, ours: false });
    let spec = links(vec![wanted("eth1", card(), &["10.2.0.1/24"])]);
    let operations = diff(&present, &target(&spec, &present).state);
    let after = planned(&spec, &present);
    assert_eq!(restore(&present, &operations, &after), []);
}

#[test]
fn the_way_back_gives_a_bonds_ports_their_own_mtu_again() {
    let mut present = bastion();
    present.links.insert(name("bond0"), ours(4, &bond(&[])));
    let port = present.links.get_mut(&name("eth1")).unwrap();
    (port.master, port.up) = (Some(name("bond0")), true);
    let mut jumbo = wanted("bond0", bond(&["eth1"]), &[]);
    jumbo.link.mtu = Some(9000);
    for mtu in [1500, 1400] {
        present.links.get_mut(&name("eth1")).unwrap().mtu = mtu;
        let spec = links(vec![jumbo.clone()]);
        let operations = diff(&present, &target(&spec, &present).state);
        let after = planned(&spec, &present);
        assert_eq!(after.links[&name("eth1")].mtu, 9000);
        let back = restore(&present, &operations, &after);
        assert_eq!(carried_out(after, &back), present);
    }
}

#[test]
fn a_bond_goes_on_without_a_port_whose_parent_has_a_smaller_mtu() {
    let mut present = bastion();
    present.links.get_mut(&name("eth1")).unwrap().mtu = 1400;
    let mut tagged = there(4, &vlan("eth1", 7));
    (tagged.mtu, tagged.up) = (1400, false);
    present.links.insert(name("eth1.7"), tagged);
    let spec = links(vec![wanted("bond0", bond(&["eth1.7"]), &[])]);
    assert_eq!(target(&spec, &present).obstacles.len(), 1);
    assert_eq!(planned(&spec, &present).links[&name("eth1.7")].master, None);
}

#[test]
fn a_bridge_takes_no_port_that_lies_on_it() {
    let mut present = bastion();
    present.links.insert(name("lan"), there(4, &bridge(&[])));
    present
        .links
        .insert(name("lan.7"), there(5, &vlan("lan", 7)));
    let spec = links(vec![wanted("lan", bridge(&["lan.7"]), &[])]);
    assert!(target(&spec, &present).is_refused());
}
