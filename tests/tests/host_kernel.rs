//! The hands on the host's network against the real kernel: what is read is what `ip` and `nft` say, and what is
//! carried out is what the pure model foretold.

use daemon::host::kernel::{Failed, Kernel};
use netboot::host::{HostState, LinkState, Operation, Owned, PresentKind, ReversePath};
use netboot::link::{LinkKind, MAIN_TABLE, Route, Rule};
use netboot::net::LinkName;
use tests::netns::Netns;

fn name(text: &str) -> LinkName {
    text.parse().expect("a link's name")
}

/// Runs something of the daemon's inside the namespace, on a runtime of its own.
fn inside<T: Send + 'static>(
    netns: &Netns,
    work: impl AsyncFnOnce(Kernel) -> T + Send + 'static,
) -> T {
    netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let kernel = Kernel::open().await.expect("a kernel that can be read");
            work(kernel).await
        })
    })
}

fn read(netns: &Netns) -> HostState {
    inside(netns, async |kernel: Kernel| kernel.read().await).expect("the kernel can be read")
}

fn carry_out(netns: &Netns, operation: Operation) -> Result<(), Failed> {
    inside(netns, async move |kernel: Kernel| {
        kernel.carry_out(&operation).await
    })
}

fn link(state: &HostState, of: &str) -> LinkState {
    state
        .links
        .get(&name(of))
        .cloned()
        .unwrap_or_else(|| panic!("there is {of}: {state:#?}"))
}

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
