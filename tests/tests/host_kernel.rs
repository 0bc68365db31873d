//! The hands on the host's network against the real kernel: what is read is what `ip` and `nft` say, and what is
//! carried out is what the pure model foretold. VLANs and bonds are tried in a virtual machine where this kernel has none.

use std::fs;
use std::path::Path;
use std::process::Command;

use netboot::host::{LinkState, Operation, Owned, PresentKind, ReversePath, Ruleset};
use netboot::link::{BondMode, LinkKind, MAIN_TABLE, Route, Rule};
use netboot::net::VlanId;
use tests::bastion::copy_tree;
use tests::hands::{
    a_route, add_link, address, bridge, carry_out, down, free, host, join, link, name, net,
    no_address, no_route, proven, read, route, up,
};
use tests::host::{Gateway, Host, OUTSIDE};
use tests::lab::Lab;
use tests::netns::Netns;
use tests::switch::Switch;

fn nets(link: &LinkState) -> Vec<(String, bool)> {
    let addresses = link.addresses.iter();
    addresses
        .map(|address| (address.net.to_string(), address.ours))
        .collect()
}

#[test]
fn what_is_read_is_what_others_made() {
    let netns = Netns::new();
    for words in [
        "link add eth1 type veth peer name far",
        "link set eth1 address 52:54:00:aa:00:01 mtu 1400 up",
        "link set far up",
        "link add br0 type bridge stp_state 1",
        "link add port type veth peer name other",
        "link set port master br0",
        "link add m0 link eth1 type macvlan",
        "link set br0 alias reveille",
        "address add 10.1.0.1/24 dev eth1",
        "address add 10.2.0.1/24 dev eth1",
        "address add 2001:db8::2/64 dev eth1 nodad",
        "route add 10.200.0.0/16 via 10.1.0.254 dev eth1 metric 100",
        "route add default via 10.2.0.254 dev eth1 table 1107 proto 107 src 10.2.0.1",
        "route add 2001:db8:1::/48 via 2001:db8::254 dev eth1",
        "route add blackhole 10.9.0.0/16",
        "rule add from 10.2.0.1 lookup 1107 priority 18600 protocol 107",
        "-6 rule add from 2001:db8::/64 lookup 200 priority 300",
        "rule add fwmark 1 lookup 100 priority 301",
        "rule add from 10.3.0.0/16 to 10.4.0.0/16 lookup 100 priority 302",
    ] {
        netns.ip(words);
    }
    netns.sysctl("ipv4/conf/eth1/forwarding", "1");
    netns.sysctl("ipv4/conf/eth1/rp_filter", "2");

    // This iproute2 can't mark an address.
    for address in ["10.1.0.2/24", "2001:db8::1/64"] {
        let (link, address) = (name("eth1"), address.parse().expect("an address"));
        carry_out(&netns, Operation::AddAddress { link, address }).expect("the address is free");
    }

    let state = read(&netns);
    let eth1 = link(&state, "eth1");
    assert_eq!(eth1.kind, PresentKind::Other("veth".into()));
    assert_eq!(eth1.mac, Some("52:54:00:aa:00:01".parse().expect("a MAC")));
    assert_eq!((eth1.mtu, eth1.up, eth1.ours), (1400, true, false));
    assert_eq!(
        (eth1.forwarding, eth1.rp_filter),
        (true, ReversePath::Loose)
    );
    let shown = [
        ("10.1.0.1/24", false),
        ("10.2.0.1/24", false),
        ("10.1.0.2/24", true),
        ("2001:db8::1/64", true),
        ("2001:db8::2/64", false),
    ];
    assert_eq!(nets(&eth1), shown.map(|(net, ours)| (net.to_owned(), ours)));
    let route = |to: &str, via: &str, source: Option<&str>, metric, table, ours| Owned {
        what: Route {
            to: to.parse().expect("a network"),
            via: Some(via.parse().expect("an address")),
            source: source.map(|source| source.parse().expect("an address")),
            metric,
            table,
        },
        ours,
    };
    let routes = [
        route("10.200.0.0/16", "10.1.0.254", None, 100, MAIN_TABLE, false),
        route("0.0.0.0/0", "10.2.0.254", Some("10.2.0.1"), 0, 1107, true),
        route(
            "2001:db8:1::/48",
            "2001:db8::254",
            None,
            0,
            MAIN_TABLE,
            false,
        ),
    ];
    assert_eq!(eth1.routes, routes.into_iter().collect());
    let rule = |from: &str, priority, table, ours| Owned {
        what: Rule {
            priority,
            from: from.parse().expect("a network"),
            table,
        },
        ours,
    };
    let rules = [
        rule("10.2.0.1/32", 18_600, 1107, true),
        rule("2001:db8::/64", 300, 200, false),
    ];
    assert_eq!(state.rules, rules.into_iter().collect());

    let br0 = link(&state, "br0");
    let bridge = LinkKind::Bridge {
        ports: Vec::new(),
        stp: true,
    };
    assert_eq!((br0.kind, br0.ours), (PresentKind::Known(bridge), true));
    assert_eq!(link(&state, "port").master, Some(name("br0")));
    assert_eq!(
        link(&state, "m0").kind,
        PresentKind::Other("macvlan".into())
    );
    let card = LinkKind::Card { macs: Vec::new() };
    assert_eq!(link(&state, "lo").kind, PresentKind::Known(card));
    assert_eq!(state.ruleset, None);
}

#[test]
fn the_model_foretells_links_and_their_ports() {
    let netns = host();
    proven(&netns, &add_link("br0", bridge(false)));
    let made = proven(&netns, &add_link("br1", bridge(true)));
    assert!(link(&made, "br0").ours && link(&made, "br1").ours);
    for operation in [
        join("eth1", "br0"),
        up("br0"),
        up("eth1"),
        join("eth2", "br1"),
        free("eth2"),
        join("eth2", "br0"),
        Operation::SetMtu {
            link: name("eth1"),
            mtu: 1400,
        },
        Operation::SetMtu {
            link: name("br1"),
            mtu: 9000,
        },
        address("br0", "10.107.0.1/24"),
        Operation::RemoveLink { link: name("br1") },
        Operation::RemoveLink { link: name("br0") },
    ] {
        proven(&netns, &operation);
    }
    let bridge_again = Operation::AddLink {
        link: name("br0"),
        kind: bridge(false),
        index: Some(4711),
        mac: Some("52:54:00:aa:00:07".parse().expect("a MAC")),
    };
    let made = proven(&netns, &bridge_again);
    let br0 = link(&made, "br0");
    assert_eq!(
        (br0.index, br0.mac.map(|mac| mac.to_string())),
        (4711, Some("52:54:00:aa:00:07".into()))
    );
}

#[test]
fn the_model_foretells_addresses_their_order_and_what_goes_with_them() {
    let netns = host();
    for operation in [
        up("eth1"),
        address("eth1", "10.1.0.1/24"),
        address("eth1", "10.1.0.2/24"),
        address("eth1", "10.2.0.1/24"),
        address("eth1", "10.2.0.9/16"),
        address("eth1", "10.1.0.3/24"),
        address("eth1", "192.0.2.1/32"),
        address("eth1", "2001:db8::1/64"),
        address("eth1", "2001:db8::2/64"),
        address("eth1", "fd00::1/64"),
        no_address("eth1", "10.2.0.1/24"),
        no_address("eth1", "10.1.0.2/24"),
        no_address("eth1", "2001:db8::1/64"),
        no_address("eth1", "10.1.0.1/24"),
        down("eth1"),
        up("eth1"),
    ] {
        proven(&netns, &operation);
    }
}

#[test]
fn the_model_foretells_routes_in_every_table_and_rules() {
    let netns = host();
    let everywhere = |table| a_route("0.0.0.0/0", Some("10.1.0.254"), Some("10.1.0.1"), 0, table);
    let near = a_route("10.1.0.0/24", None, Some("10.1.0.1"), 0, 1107);
    let everywhere6 = a_route("::/0", Some("2001:db8::254"), Some("2001:db8::1"), 0, 1107);
    let rule = |from: &str, table| Rule {
        priority: 18_600,
        from: net(from),
        table,
    };
    for operation in [
        up("eth1"),
        address("eth1", "10.1.0.1/24"),
        address("eth1", "2001:db8::1/64"),
        route("eth1", near),
        route("eth1", everywhere(1107)),
        route("eth1", everywhere(200)),
        route("eth1", everywhere6),
        route(
            "eth1",
            a_route("10.200.0.0/16", Some("10.1.0.254"), None, 100, MAIN_TABLE),
        ),
        route("eth1", a_route("10.201.0.0/16", None, None, 0, MAIN_TABLE)),
        route("eth1", a_route("fd00:1::/64", None, None, 77, MAIN_TABLE)),
        Operation::AddRule {
            rule: rule("10.1.0.1/32", 1107),
        },
        Operation::AddRule {
            rule: rule("2001:db8::1/128", 1107),
        },
        Operation::AddRule {
            rule: rule("10.1.0.1/32", 200),
        },
        Operation::RemoveRule {
            rule: rule("10.1.0.1/32", 200),
        },
        no_route(
            "eth1",
            a_route("10.200.0.0/16", Some("10.1.0.254"), None, 100, MAIN_TABLE),
        ),
        no_route("eth1", everywhere(200)),
        no_route("eth1", a_route("fd00:1::/64", None, None, 77, MAIN_TABLE)),
        // The source goes, and with it what names it.
        no_address("eth1", "10.1.0.1/24"),
        no_address("eth1", "2001:db8::1/64"),
        address("eth1", "10.1.0.1/24"),
        route("eth1", near),
        route("eth1", everywhere(1107)),
        down("eth1"),
    ] {
        proven(&netns, &operation);
    }
}

#[test]
fn the_model_foretells_forwarding_reverse_paths_and_the_firewall() {
    let netns = host();
    netns.sysctl("ipv4/conf/default/rp_filter", "1");
    netns.sysctl("ipv4/conf/default/forwarding", "1");
    proven(&netns, &add_link("br0", bridge(false)));
    let chain = serde_json::json!({ "chain": {
        "family": "inet", "table": "reveille", "name": "input",
        "type": "filter", "hook": "input", "prio": 0, "policy": "accept"
    }});
    let forward = |on| Operation::SetForwarding {
        link: name("eth1"),
        on,
    };
    let check = |rp_filter| Operation::SetReversePath {
        link: name("eth1"),
        rp_filter,
    };
    for operation in [
        forward(true),
        forward(false),
        check(ReversePath::Loose),
        check(ReversePath::Strict),
        check(ReversePath::Off),
        Operation::SetRuleset {
            ruleset: Some(Ruleset(vec![chain.clone()])),
        },
        Operation::SetRuleset {
            ruleset: Some(Ruleset(vec![chain])),
        },
        Operation::SetRuleset { ruleset: None },
        Operation::SetRuleset { ruleset: None },
    ] {
        proven(&netns, &operation);
    }
}

/// Set where the kernel is one that has everything.
const IN_LAB: &str = "REVEILLE_HOST_KERNEL";

/// Runs one test of this file in a virtual machine, whose kernel has VLANs and bonds.
fn in_the_lab(test: &str) {
    assert!(
        std::env::var_os(IN_LAB).is_none(),
        "the lab's kernel has VLANs"
    );
    let lab = Lab::empty();
    let overlay = lab.path("overlay");
    copy_tree(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/bastion"),
        &overlay,
    );
    let program = overlay.join("usr/local/bin/host_kernel");
    fs::create_dir_all(program.parent().expect("a parent")).expect("directories");
    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(&program)
        .arg(std::env::current_exe().expect("this program"));
    assert!(strip.status().expect("strip runs").success());
    let switch = Switch::start(&lab);
    let outside = Gateway::outside(&lab, &switch);
    let host = Host::boot(&lab, &switch, &overlay);
    let mut shell = host.shell(&outside, OUTSIDE);
    shell.must(&format!(
        "{IN_LAB}=1 host_kernel --exact {test} --nocapture"
    ));
}

#[test]
fn the_model_foretells_vlans_and_bonds() {
    let netns = host();
    let probe = "link add link eth1 name probe type vlan id 1".split(' ');
    if netns.try_output("ip", &probe.collect::<Vec<_>>()).is_err() {
        return in_the_lab("the_model_foretells_vlans_and_bonds");
    }
    netns.ip("link delete probe");
    let vlan = |parent: &str, id| LinkKind::Vlan {
        parent: name(parent),
        id: VlanId::new(id).expect("an id"),
    };
    let mtu = |link: &str, mtu| Operation::SetMtu {
        link: name(link),
        mtu,
    };
    let bond = |mode| LinkKind::Bond {
        mode,
        ports: Vec::new(),
        monitor_millis: 100,
    };
    for operation in [
        add_link("eth1.107", vlan("eth1", 107)),
        add_link("tagged", vlan("eth1", 108)),
        add_link("again", vlan("eth1", 107)),
        up("eth1.107"),
        up("eth1"),
        address("eth1.107", "10.107.0.1/24"),
        address("eth1.107", "fd00:107::1/64"),
        route(
            "eth1.107",
            a_route("10.200.0.0/16", Some("10.107.0.254"), None, 0, 1107),
        ),
        mtu("eth1.107", 1600),
        mtu("eth1", 1400),
        mtu("eth1.107", 1300),
        mtu("eth1", 1500),
        down("tagged"),
        down("eth1"),
        up("eth1"),
        add_link("br0", bridge(false)),
        join("eth1.107", "br0"),
        free("eth1.107"),
        add_link("br0.5", vlan("br0", 5)),
        Operation::RemoveLink { link: name("br0") },
        Operation::RemoveLink {
            link: name("eth1.107"),
        },
        add_link("bond0", bond(BondMode::ActiveBackup)),
        add_link("bond1", bond(BondMode::Lacp)),
        up("eth2"),
        join("eth2", "bond0"),
        down("eth2"),
        join("eth2", "bond0"),
        up("bond0"),
        mtu("bond0", 1400),
        address("bond0", "10.108.0.1/24"),
        add_link("bond0.7", vlan("bond0", 7)),
        free("eth2"),
        join("eth2", "bond1"),
        Operation::RemoveLink {
            link: name("bond0"),
        },
        Operation::RemoveLink {
            link: name("bond1"),
        },
    ] {
        proven(&netns, &operation);
    }
}
