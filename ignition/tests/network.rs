//! Whatever a site says of links: every format says all of it or names what it left out, and nothing breaks out of its place.

use std::net::IpAddr;

use ignition::network::netplan::Reader;
use ignition::network::{
    File, Network, dracut, ifupdown, keyfile, netplan, networkd, nmstate, talos,
};
use netboot::link::{BondMode, Link, LinkKind, MAIN_TABLE, Route, Rule};
use netboot::net::{LinkName, MacAddress, VlanId};
use proptest::prelude::*;
use serde_json::Value;

fn sound<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a sound value")
}

/// Names as the kernel allows them: mostly tame, some of the rest.
fn name() -> impl Strategy<Value = LinkName> {
    prop_oneof![
        40 => "[a-z][a-z0-9._-]{2,14}",
        1 => "[!-.0-9;-~]{1,15}",
        1 => prop::sample::select(vec!["yes", "no", "null", "12", "0x10", "1e3", "~", "all", "-a", "a#b", "a;b", "$(x)", "a,b", "[a]", "\u{1}", "%i", "*"]).prop_map(str::to_owned),
    ]
    .prop_filter_map("the kernel's rule", |text| text.parse().ok())
}

fn mac() -> impl Strategy<Value = MacAddress> {
    any::<[u8; 6]>().prop_filter_map("a station's", |mut octets| {
        octets[0] &= 0xfe;
        MacAddress::from_octets(octets)
    })
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    (any::<IpAddr>(), 0..=128u8).prop_filter_map("a prefix of its family", |(address, length)| {
        ipnet::IpNet::new(
            address,
            length.min(if address.is_ipv4() { 32 } else { 128 }),
        )
        .ok()
    })
}

fn link(kind: LinkKind, name: LinkName) -> impl Strategy<Value = Link> {
    let route = (
        net(),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0), any::<u32>()],
        prop_oneof![Just(MAIN_TABLE), 1..5000u32],
    )
        .prop_map(|(to, via, source, metric, table)| Route {
            to: to.trunc(),
            via: via.then(|| to.addr()),
            source: source.then(|| to.addr()),
            metric,
            table,
        });
    let rule = (any::<u32>(), net(), 1..5000u32).prop_map(|(priority, from, table)| Rule {
        priority,
        from,
        table,
    });
    let many = |count| 0..=count;
    (
        prop::option::of(68..65536u32),
        prop::collection::vec(net(), many(3)),
        prop::collection::vec(route, many(3)),
        prop::collection::vec(rule, many(2)),
    )
        .prop_map(move |(mtu, addresses, routes, rules)| Link {
            name: name.clone(),
            kind: kind.clone(),
            mtu,
            addresses,
            routes,
            rules,
        })
}

/// Which kind, the links it lies on among those before it, and its own numbers.
type Shape = (
    u8,
    [prop::sample::Index; 2],
    Vec<MacAddress>,
    u16,
    BondMode,
    u32,
);

/// A sound host: links lie on links before them, and a port has nothing of its own.
fn links() -> impl Strategy<Value = Vec<Link>> {
    let shape = (
        0..5u8,
        any::<[prop::sample::Index; 2]>(),
        prop::collection::vec(mac(), 0..3),
        1..4095u16,
        prop::sample::select(BondMode::ALL.to_vec()),
        1..10_001u32,
    );
    prop::collection::vec((name(), shape), 1..7)
        .prop_flat_map(|shapes| {
            let names: Vec<LinkName> = shapes.iter().map(|(name, _)| name.clone()).collect();
            shapes
                .into_iter()
                .enumerate()
                .map(|(place, (name, shape))| link(kind(&names[..place], shape), name))
                .collect::<Vec<_>>()
        })
        .prop_map(|mut links| {
            let mut taken = std::collections::BTreeSet::new();
            for link in &mut links {
                if let LinkKind::Bridge { ports, .. } | LinkKind::Bond { ports, .. } =
                    &mut link.kind
                {
                    ports.retain(|port| taken.insert(port.clone()));
                }
            }
            for link in &mut links {
                if taken.contains(&link.name) {
                    link.addresses.clear();
                    link.routes.clear();
                    link.rules.clear();
                }
            }
            links
        })
        .prop_shuffle()
}

fn kind(before: &[LinkName], (which, below, macs, id, mode, monitor_millis): Shape) -> LinkKind {
    if before.is_empty() || which < 2 {
        return LinkKind::Card { macs };
    }
    let [first, second] = below.map(|index| index.get(before).clone());
    match which {
        2 => LinkKind::Vlan {
            parent: first,
            id: VlanId::new(id).expect("an id"),
        },
        3 => LinkKind::Bridge {
            ports: vec![first, second],
            stp: id % 2 == 0,
        },
        _ => LinkKind::Bond {
            mode,
            ports: vec![first, second],
            monitor_millis,
        },
    }
}

fn network(links: &[Link]) -> Option<Network> {
    let hostname = sound("node-1.example");
    let dns: Vec<IpAddr> = vec![sound("10.0.0.1"), sound("2001:db8::1")];
    let search = [sound("lab.example")];
    Network::new(Some(&hostname), links, &dns, &search).ok()
}

/// Every line of an INI file is a comment, a section, or a key of `keys` and a value.
fn ini(file: &File, keys: &[&str]) {
    for line in file.text.lines().filter(|line| !line.is_empty()) {
        let section = line.starts_with('[')
            && line.ends_with(']')
            && line[1..line.len() - 1]
                .bytes()
                .all(|b| b.is_ascii_alphanumeric());
        let key = line.split_once('=').is_some_and(|(key, _)| {
            keys.contains(
                &key.trim_end_matches(|c: char| c.is_ascii_digit())
                    .trim_end_matches("_options")
                    .trim_end_matches(|c: char| c.is_ascii_digit()),
            )
        });
        assert!(
            line.starts_with("# ") || section || key,
            "{}: {line:?}",
            file.path
        );
    }
}

fn mentions(text: &str, unsaid: &[ignition::network::Unsaid], fact: &str) -> bool {
    text.contains(fact)
        || unsaid
            .iter()
            .any(|one| one.what.contains(fact) || one.what.starts_with("all of it"))
}

/// Every address, route, rule and MTU is somewhere in the text, or named as left out.
fn whole(network: &Network, text: &str, unsaid: &[ignition::network::Unsaid]) {
    for link in network.links() {
        for address in &link.addresses {
            assert!(
                mentions(text, unsaid, &address.addr().to_string()),
                "{} lost {address}\n{text}",
                link.name
            );
        }
        for route in &link.routes {
            let destination = route.to.addr().to_string();
            let default = route.to.prefix_len() == 0;
            let said = mentions(text, unsaid, &destination)
                || default
                    && route
                        .via
                        .is_some_and(|via| mentions(text, unsaid, &via.to_string()));
            assert!(said, "{} lost the route to {}\n{text}", link.name, route.to);
            if route.table != MAIN_TABLE {
                assert!(mentions(text, unsaid, &route.table.to_string()));
            }
        }
        for rule in &link.rules {
            assert!(
                mentions(text, unsaid, &rule.from.to_string()),
                "{} lost a rule",
                link.name
            );
        }
        if let Some(mtu) = link.mtu {
            assert!(
                mentions(text, unsaid, &mtu.to_string()),
                "{} lost its MTU",
                link.name
            );
        }
    }
}

fn parsed(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_out_and_nothing_is_lost(links in links()) {
        let Some(network) = network(&links) else { return Ok(()) };
        let arguments = dracut::arguments(&network);
        for argument in &arguments.said {
            prop_assert!(argument.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\$`".contains(&b)), "{argument:?}");
        }
        whole(&network, &arguments.said.join(" "), &arguments.unsaid);
        let keys = ["id", "uuid", "type", "interface-name", "autoconnect-priority", "master", "slave-type", "mac-address", "mtu", "flags", "parent", "stp", "miimon", "mode", "address", "dns", "dns-search", "method", "route", "routing-rule"];
        let files = keyfile::files(&network);
        files.said.iter().skip(1).for_each(|file| ini(file, &keys));
        whole(&network, &joined(&files.said), &files.unsaid);
        let keys = ["Name", "Kind", "Id", "STP", "Mode", "MIIMonitorSec", "PermanentMACAddress", "MTUBytes", "DHCP", "IPv6AcceptRA", "ConfigureWithoutCarrier", "Bond", "Bridge", "VLAN", "Address", "DNS", "Domains", "Destination", "Gateway", "Scope", "PreferredSource", "Metric", "Table", "From", "Priority"];
        let files = networkd::files(&network);
        files.said.iter().skip(1).for_each(|file| ini(file, &keys));
        whole(&network, &joined(&files.said), &files.unsaid);
        let files = ifupdown::files(&network);
        whole(&network, &joined(&files.said), &files.unsaid);
        for line in files.said[1].text.lines().filter(|line| !line.starts_with("# ")) {
            prop_assert!(!line.contains(['\\', ';', '$', '`', '"', '\'', '&', '<', '>', '(', '*', '?']), "{line:?}");
        }
        let document = netplan::document(&network, Reader::CloudInit);
        whole(&network, &document.said, &document.unsaid);
        let document = netplan::document(&network, Reader::Netplan);
        whole(&network, &document.said, &document.unsaid);
        let top = &parsed(&document.said)[0]["network"];
        let state = nmstate::document(&network);
        whole(&network, &state.said, &state.unsaid);
        let interfaces = &parsed(&state.said)[0]["interfaces"];
        for link in network.links() {
            let sections = ["ethernets", "vlans", "bridges", "bonds"];
            prop_assert!(sections.iter().any(|section| top[section][link.name.as_str()].is_object()), "{}", document.said);
            // What others may have set up, and nothing is said of, is left to them.
            let lies_below = network.links().iter().any(|upper| upper.kind.ports().contains(&link.name));
            if lies_below || link.mtu.is_some() || !matches!(link.kind, LinkKind::Card { .. }) {
                prop_assert!(interfaces.as_array().into_iter().flatten().any(|one| one["name"] == link.name.as_str()), "{}", state.said);
            }
        }
        let documents = talos::documents(&network);
        whole(&network, &documents.said, &documents.unsaid);
        prop_assert!(parsed(&documents.said).iter().all(|one| one["apiVersion"] == "v1alpha1" && one["kind"].is_string()));
        let section = talos::section(&network);
        whole(&network, &section.said, &section.unsaid);
        prop_assert_eq!(&parsed(&section.said)[0], &serde_json::from_str::<Value>(&section.said).unwrap());
    }

    #[test]
    fn a_host_with_tame_names_is_never_refused(links in links()) {
        let tame = |link: &Link| {
            let name = link.name.as_str();
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            plain && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name != "all"
        };
        let mut names: Vec<&LinkName> = links.iter().map(|link| &link.name).collect();
        names.sort();
        names.dedup();
        if links.iter().all(tame) && names.len() == links.len() {
            prop_assert!(network(&links).is_some(), "{links:?}");
        }
    }

    #[test]
    fn lower_links_come_first_and_all_are_there(links in links()) {
        let Some(network) = network(&links) else { return Ok(()) };
        let names: Vec<&LinkName> = network.links().iter().map(|link| &link.name).collect();
        for (place, link) in network.links().iter().enumerate() {
            for below in link.kind.parent().into_iter().chain(link.kind.ports()) {
                prop_assert!(names[..place].contains(&below), "{} before {below}", link.name);
            }
        }
        prop_assert!(links.iter().all(|link| network.links().contains(link)));
    }
}

fn joined(files: &[File]) -> String {
    files.iter().map(|file| file.text.as_str()).collect()
}

fn bare(name: &str, kind: LinkKind) -> Link {
    Link {
        name: sound(name),
        kind,
        mtu: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    }
}

fn bridge(ports: &[&str]) -> LinkKind {
    LinkKind::Bridge {
        ports: ports.iter().map(|port| sound(port)).collect(),
        stp: false,
    }
}

#[test]
fn what_no_file_can_bear_is_refused_all_at_once() {
    let card = || LinkKind::Card { macs: Vec::new() };
    let mut addressed = bare("eth3", card());
    addressed.addresses.push("10.0.0.1/24".parse().unwrap());
    let links = [
        bare("a;b", card()),
        bare("all", card()),
        bare("eth0", card()),
        bare("eth0", card()),
        bare("br0", bridge(&["br1"])),
        bare("br1", bridge(&["br0"])),
        bare("br2", bridge(&["eth3", "eth3"])),
        addressed,
    ];
    let faults = Network::new(None, &links, &[], &[]).unwrap_err();
    let told: Vec<&str> = faults.iter().map(|fault| fault.problem.as_str()).collect();
    assert_eq!(
        told,
        [
            "link name \"a;b\" can't be written in a file",
            "link name \"all\" can't be written in a file",
            "link eth0 is listed twice",
            "link eth3 is a port of br2 and has addresses, routes or rules",
            "link eth3 is a port twice",
            "link eth3 is a port of br2 and has addresses, routes or rules",
            "links br0, br1 lie on each other",
        ]
    );
}

#[test]
fn an_initramfs_is_not_told_a_vlan_whose_id_it_would_misread() {
    let vlan = LinkKind::Vlan {
        parent: "eth0".parse().unwrap(),
        id: VlanId::new(107).unwrap(),
    };
    for (name, said) in [
        ("eth0.107", true),
        ("vlan107", true),
        ("lan107", false),
        ("eth0.7", false),
        ("inside", false),
    ] {
        let network = Network::new(None, &[bare(name, vlan.clone())], &[], &[]).unwrap();
        let arguments = dracut::arguments(&network);
        assert_eq!(!arguments.said.is_empty(), said, "{name}: {arguments:?}");
        assert_eq!(arguments.unsaid.is_empty(), said, "{name}: {arguments:?}");
    }
}

#[test]
fn talos_knows_a_card_by_its_address_wherever_it_is_named() {
    let mac = "52:54:00:aa:00:01".parse().unwrap();
    let card = bare("lan0", LinkKind::Card { macs: vec![mac] });
    let vlan = LinkKind::Vlan {
        parent: "lan0".parse().unwrap(),
        id: VlanId::new(107).unwrap(),
    };
    let mut vlan = bare("inside", vlan);
    vlan.addresses.push("10.107.0.11/24".parse().unwrap());
    vlan.routes.push(Route {
        to: "0.0.0.0/0".parse().unwrap(),
        via: Some("10.107.0.1".parse().unwrap()),
        source: None,
        metric: 0,
        table: MAIN_TABLE,
    });
    let network = Network::new(None, &[card, vlan], &[], &[]).unwrap();
    let section: Value = serde_json::from_str(&talos::section(&network).said).unwrap();
    let wanted = serde_json::json!({ "interfaces": [{
        "deviceSelector": { "hardwareAddr": "52:54:00:aa:00:01", "physical": true },
        "dhcp": false,
        "vlans": [{
            "vlanId": 107, "dhcp": false, "addresses": ["10.107.0.11/24"],
            "routes": [{ "network": "0.0.0.0/0", "gateway": "10.107.0.1" }],
        }],
    }] });
    assert_eq!(section, wanted);
    let documents = parsed(&talos::documents(&network).said);
    let kinds: Vec<&str> = documents
        .iter()
        .map(|one| one["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["LinkAliasConfig", "LinkConfig", "VLANConfig"]);
    assert_eq!(
        documents[0]["selector"]["match"],
        "mac(link.permanent_addr) == \"52:54:00:aa:00:01\""
    );
    assert_eq!(documents[2]["parent"], documents[0]["name"]);
    // A destination of all zeros is refused there.
    assert_eq!(
        documents[2]["routes"],
        serde_json::json!([{ "gateway": "10.107.0.1" }])
    );
}
