//! What the hands on the host's network promise beside the model: nothing is lost on the way there and back, changes are
//! heard, refusals say what to do, and rivals are named. Real kernel, real nft, real systemd-networkd.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use daemon::host::kernel::Kernel;
use daemon::host::rivals::rivals;
use netboot::host::{Operation, Ruleset, restore};
use netboot::link::{BondMode, LinkKind, MAIN_TABLE, Rule};
use netboot::net::VlanId;
use tests::hands::{
    a_route, add_link, address, bridge, carry_out, host, inside, join, link, name, net, no_address,
    no_route, proven, read, route, up,
};
use tests::netns::Netns;
use tests::process;

/// Everything that the administrator's tools show.
fn shown(netns: &Netns) -> Vec<String> {
    let ip = [
        "link",
        "address",
        "-4 rule",
        "-6 rule",
        "-4 route show table all",
        "-6 route show table all",
    ];
    let mut shown: Vec<String> = ip
        .iter()
        .map(|words| netns.ip(&format!("-j {words}")))
        .collect();
    shown.push(netns.output("nft", &["-j", "list", "ruleset"]));
    // nft numbers its objects and never gives a number again.
    let handle = |text: &str| {
        let mut parts = text.split("\"handle\": ");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |all, part| {
            all + part.trim_start_matches(|digit: char| digit.is_ascii_digit())
        })
    };
    shown.iter().map(|text| handle(text)).collect()
}

fn firewall(port: u16) -> Operation {
    let of = |mut object: serde_json::Value| {
        object["family"] = "inet".into();
        object["table"] = "reveille".into();
        object
    };
    let chain = of(serde_json::json!({
        "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": "accept"
    }));
    let rule = of(serde_json::json!({ "chain": "input", "expr": [
        { "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": port } },
        { "drop": null }
    ]}));
    let objects = vec![
        serde_json::json!({ "chain": chain }),
        serde_json::json!({ "rule": rule }),
    ];
    Operation::SetRuleset {
        ruleset: Some(Ruleset(objects)),
    }
}

#[test]
fn what_was_undone_looks_to_every_tool_as_if_it_had_never_been() {
    let netns = host();
    for words in [
        "link set eth2 up",
        "address add 203.0.113.5/24 dev eth2",
        "address add 2001:db8:2::5/64 dev eth2 nodad",
        "route add default via 203.0.113.1",
        "rule add from 203.0.113.5 lookup 77 priority 400",
    ] {
        netns.ip(words);
    }
    netns.output("nft", &["add table inet theirs"]);
    let near = a_route("10.107.0.0/24", None, Some("10.107.0.1"), 0, 1107);
    let everywhere = a_route(
        "0.0.0.0/0",
        Some("10.107.0.254"),
        Some("10.107.0.1"),
        0,
        1107,
    );
    let rule = Rule {
        priority: 18_600,
        from: net("10.107.0.1/32"),
        table: 1107,
    };
    for operation in [
        firewall(8080),
        add_link("br0", bridge(false)),
        join("eth1", "br0"),
        up("eth1"),
        up("br0"),
        address("br0", "10.107.0.1/24"),
        address("br0", "10.107.0.2/24"),
        address("br0", "fd00:107::1/64"),
        route("br0", near),
        route("br0", everywhere),
        Operation::AddRule { rule },
    ] {
        carry_out(&netns, operation).expect("a good operation");
    }
    let (before, looked) = (read(&netns), shown(&netns));

    // Another site, as thoroughly different as can be.
    let change = [
        firewall(8443),
        Operation::RemoveRule { rule },
        no_route("br0", everywhere),
        no_route("br0", near),
        no_address("br0", "10.107.0.2/24"),
        Operation::SetMaster {
            link: name("eth1"),
            master: None,
        },
        Operation::RemoveLink { link: name("br0") },
        add_link("br9", bridge(true)),
        Operation::SetMtu {
            link: name("br9"),
            mtu: 1400,
        },
        Operation::SetForwarding {
            link: name("eth1"),
            on: true,
        },
        join("eth1", "br9"),
        up("br9"),
        address("br9", "10.108.0.1/24"),
        address("eth2", "10.109.0.1/24"),
        route(
            "br9",
            a_route("10.200.0.0/16", Some("10.108.0.254"), None, 0, MAIN_TABLE),
        ),
    ];
    for operation in &change {
        carry_out(&netns, operation.clone()).unwrap_or_else(|failed| panic!("{failed}"));
    }
    assert_ne!(shown(&netns), looked);
    for operation in restore(&before, &change, &read(&netns)) {
        carry_out(&netns, operation).unwrap_or_else(|failed| panic!("{failed}"));
    }
    assert_eq!(read(&netns), before);
    assert_eq!(shown(&netns), looked);
}

#[test]
fn every_kind_of_change_is_heard() {
    let netns = host();
    netns.sysctl("ipv6/conf/eth1/disable_ipv6", "1");
    netns.sysctl("ipv6/conf/eth1far/disable_ipv6", "1");
    netns.ip("link set eth1 up");
    inside(&netns, async |kernel: Kernel| {
        let mut changes = kernel.changes();
        let quiet = Duration::from_millis(200);
        for words in [
            "ip link set eth1 mtu 1400",
            "ip address add 10.1.0.1/24 dev eth1",
            "ip route add 10.2.0.0/16 via 10.1.0.254",
            "ip route add default via 10.1.0.254 table 1107",
            "ip rule add from 10.1.0.1 lookup 1107",
            "ip -6 rule add from fd00::1 lookup 1107",
            "sysctl -qw net.ipv4.conf.eth1.rp_filter=2",
            "sysctl -qw net.ipv4.conf.eth1.forwarding=1",
            "nft add table inet reveille",
            "nft delete table inet reveille",
            "ip link delete m0",
            "ip link set eth2 down",
        ] {
            // What came before has been heard out.
            while tokio::time::timeout(quiet, changes.next()).await.is_ok() {}
            let words: Vec<&str> = words.split(' ').collect();
            let status = Command::new(words[0]).args(&words[1..]).status();
            assert!(status.expect("it runs").success(), "{words:?}");
            if words[..] == ["ip", "link", "set", "eth2", "down"] {
                let nothing = tokio::time::timeout(quiet, changes.next()).await;
                assert!(nothing.is_err(), "it was down, and nothing changed");
                continue;
            }
            let heard = tokio::time::timeout(Duration::from_secs(1), changes.next()).await;
            assert!(heard.is_ok(), "{words:?} is heard");
        }
    });
}

#[test]
fn who_stops_waiting_for_changes_loses_none() {
    let netns = host();
    inside(&netns, async |kernel: Kernel| {
        let mut changes = kernel.changes();
        while tokio::time::timeout(Duration::from_millis(200), changes.next())
            .await
            .is_ok()
        {}
        let status = Command::new("ip")
            .args(["link", "set", "eth2", "mtu", "1400"])
            .status();
        assert!(status.expect("ip runs").success());
        // Shorter than a burst settles: the event is taken from the socket, and nobody is told.
        let cut = tokio::time::timeout(Duration::from_millis(5), changes.next()).await;
        assert!(cut.is_err());
        let heard = tokio::time::timeout(Duration::from_secs(1), changes.next()).await;
        assert!(heard.is_ok());
    });
}

/// What the kernel or the hands say no to: their words, and what they advise.
fn refused(netns: &Netns, operation: Operation) -> (String, String) {
    let before = read(netns);
    let failed = carry_out(netns, operation).expect_err("a refusal");
    assert_eq!(read(netns), before, "a refused operation changes nothing");
    (failed.cause, failed.remedy)
}

fn contains((cause, remedy): &(String, String), in_cause: &str, in_remedy: &str) {
    assert!(cause.contains(in_cause), "{cause}");
    assert!(remedy.contains(in_remedy), "{remedy}");
}

#[test]
fn a_refusal_says_why_and_what_to_do() {
    let netns = host();
    netns.ip("link add br8 type bridge");
    for operation in [up("eth1"), address("eth1", "10.1.0.1/24")] {
        carry_out(&netns, operation).expect("a good operation");
    }
    let said = refused(&netns, Operation::RemoveLink { link: name("br8") });
    contains(
        &said,
        "remove br8: br8 does not bear our mark",
        "ip link delete br8",
    );
    let said = refused(&netns, up("eth9"));
    contains(&said, "there is no link eth9", "plug in or make eth9");
    let said = refused(&netns, add_link("br8", bridge(false)));
    contains(&said, "add bridge br8: ", "another link has the name br8");
    let far = a_route("10.2.0.0/16", Some("10.3.0.254"), None, 0, MAIN_TABLE);
    let said = refused(&netns, route("eth1", far));
    contains(
        &said,
        "Nexthop has invalid gateway",
        "an address in the gateway's network",
    );
    let near = a_route("10.2.0.0/16", Some("10.1.0.254"), None, 0, MAIN_TABLE);
    netns.ip("route add 10.2.0.0/16 via 10.1.0.253");
    let said = refused(&netns, route("eth1", near));
    contains(&said, "EEXIST", "give this one another metric");
    let said = refused(
        &netns,
        Operation::SetMtu {
            link: name("eth1"),
            mtu: 10,
        },
    );
    contains(&said, "less than", "the smallest and the largest it takes");
    let broken =
        serde_json::json!({ "chain": { "family": "inet", "table": "elsewhere", "name": "x" } });
    let said = refused(
        &netns,
        Operation::SetRuleset {
            ruleset: Some(Ruleset(vec![broken])),
        },
    );
    contains(
        &said,
        "setting the firewall's table inet reveille: nft: ",
        "host.firewall: false",
    );
}

#[test]
fn a_kernel_without_a_kind_of_link_names_the_module_to_load() {
    let netns = host();
    let vlan = LinkKind::Vlan {
        parent: name("eth1"),
        id: VlanId::new(107).expect("an id"),
    };
    let bond = LinkKind::Bond {
        mode: BondMode::ActiveBackup,
        ports: Vec::new(),
        monitor_millis: 100,
    };
    for (link, kind, module) in [("eth1.107", vlan, "8021q"), ("bond0", bond, "bonding")] {
        let operation = add_link(link, kind);
        // Where this kernel has it, the model must be right about it.
        if carry_out(&netns, operation.clone()).is_ok() {
            carry_out(&netns, Operation::RemoveLink { link: name(link) }).expect("it is ours");
            proven(&netns, &operation);
            continue;
        }
        contains(
            &refused(&netns, operation),
            link,
            &format!("modprobe {module}"),
        );
    }
}

#[test]
fn what_is_so_already_is_no_failure() {
    let netns = host();
    carry_out(&netns, up("eth1")).expect("a link");
    let rule = Rule {
        priority: 18_600,
        from: net("10.1.0.1/32"),
        table: 1107,
    };
    for operation in [
        address("eth1", "10.1.0.1/24"),
        address("eth1", "fd00::1/64"),
        Operation::AddRule { rule },
        add_link("br0", bridge(false)),
    ] {
        carry_out(&netns, operation.clone()).expect("a good operation");
        if !matches!(operation, Operation::AddLink { .. }) {
            carry_out(&netns, operation).expect("as good a second time");
        }
    }
    let near = a_route("10.2.0.0/16", Some("10.1.0.254"), None, 0, MAIN_TABLE);
    for operation in [
        no_route("eth1", near),
        no_address("eth1", "10.1.0.9/24"),
        no_address("eth9", "10.1.0.1/24"),
        Operation::RemoveRule { rule },
        Operation::RemoveRule { rule },
        Operation::RemoveLink { link: name("br0") },
        Operation::RemoveLink { link: name("br0") },
    ] {
        carry_out(&netns, operation.clone()).unwrap_or_else(|failed| panic!("{failed}"));
    }
    let other_prefix = refused(&netns, address("eth1", "fd00::1/48"));
    contains(&other_prefix, "EEXIST", "with another prefix");
}

#[test]
fn a_link_that_lost_its_maker_between_two_requests_is_ours_still() {
    let netns = host();
    netns.ip("link add br0 group 107 type bridge");
    assert!(link(&read(&netns), "br0").ours);
    carry_out(&netns, Operation::RemoveLink { link: name("br0") }).expect("it is ours");
    // The number it had went to another link: a new one is better than none.
    netns.ip("link add index 77 name br7 type bridge");
    let again = Operation::AddLink {
        link: name("br0"),
        kind: bridge(false),
        index: Some(77),
        mac: None,
    };
    carry_out(&netns, again).expect("the name is free");
    let made = link(&read(&netns), "br0");
    assert!(made.ours && made.index != 77);
    assert!(
        netns
            .ip("-j link show br0")
            .contains("\"group\":\"default\"")
    );
}

#[test]
fn networkd_is_named_for_the_links_it_configures_and_for_no_other() {
    let netns = host();
    let networkd = netns.run(|| {
        let tmpfs = Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs", "/run"])
            .status();
        assert!(tmpfs.expect("mount runs").success());
        let write = |name: &str, text: &str| {
            fs::write(Path::new("/run/systemd/network").join(name), text).expect("a file");
        };
        fs::create_dir_all("/run/systemd/network").expect("a directory");
        fs::create_dir_all("/run/systemd/netif/links").expect("a directory");
        let owned = Command::new("chown")
            .args([
                "-R",
                "systemd-network:systemd-network",
                "/run/systemd/netif",
            ])
            .status();
        assert!(owned.expect("chown runs").success());
        write(
            "10-eth1.network",
            "[Match]\nName=eth1\n[Network]\nAddress=10.1.0.1/24\n",
        );
        write(
            "20-eth2.network",
            "[Match]\nName=eth2\n[Link]\nUnmanaged=yes\n",
        );
        process::command("/lib/systemd/systemd-networkd")
            .spawn()
            .expect("systemd-networkd starts")
    });
    let mut networkd = networkd;
    let named = inside(&netns, async |kernel: Kernel| {
        let (eth1, eth2) = (name("eth1"), name("eth2"));
        let mut changes = kernel.changes();
        // It gives the link its address first, then says so in its notes.
        for _ in 0..100 {
            let present = kernel.read().await.expect("a readable kernel");
            let named = rivals(Path::new("/"), &[&eth1, &eth2].into(), &present);
            if !named.is_empty() {
                return named;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
        }
        Vec::new()
    });
    networkd.kill().expect("it runs");
    networkd.wait().expect("it ended");
    let [networkd] = &named[..] else {
        panic!("{named:?}")
    };
    assert_eq!(
        (networkd.program, &networkd.links[..]),
        ("systemd-networkd", &[name("eth1")][..])
    );
    assert!(
        networkd
            .remedy
            .contains("Name=eth1 and [Link] Unmanaged=yes"),
        "{}",
        networkd.remedy
    );
}
