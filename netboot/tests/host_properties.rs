//! The promises of the plan for whatever sound site meets whatever host: carried out it gives what was
//! wanted, a second one is empty, others' things stay as they are, and the way back leads back.
//!
//! A host is made as hosts come about: by others, then by the plan of an older site, then by others
//! again, each step as the model of the kernel takes it. A step that it refuses is left out.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netboot::host::{
    HostLink, HostSpec, HostState, LinkState, Masquerade, Obstacle, ObstacleKind, Operation, Owned,
    PresentKind, ReversePath, diff, restore, target,
};
use netboot::link::{BondMode, Link, LinkKind, MAIN_TABLE, Route, Rule, policy_routing};
use netboot::net::{LinkName, VlanId};
use netboot::spec::{SiteParts, SiteSpec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// The first three are cards, where they are plugged in.
const NAMES: [&str; 7] = ["eth0", "eth1", "eth2", "mid0", "mid1", "mid2", "mid3"];
const CARDS: usize = 3;
const MTUS: [u32; 3] = [1400, 1500, 9000];
const REVERSE_PATHS: [ReversePath; 3] = [ReversePath::Off, ReversePath::Strict, ReversePath::Loose];

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn names() -> impl Strategy<Value = LinkName> {
    select(&NAMES[..]).prop_map(name)
}

fn nets() -> Vec<IpNet> {
    let v4 = (0..3).flat_map(|n| (1..4).map(move |last| format!("10.0.{n}.{last}/24")));
    let v6 = (0..2).flat_map(|n| (1..3).map(move |last| format!("fd00:{n}::{last}/64")));
    let texts = v4.chain(["10.0.0.3/16".to_owned()]).chain(v6);
    texts.map(|text| text.parse().unwrap()).collect()
}

fn gateways() -> Vec<IpAddr> {
    let texts = [
        "10.0.0.254",
        "10.0.1.254",
        "fd00:0::fe",
        "fd00:1::fe",
        "fe80::1",
    ];
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn kinds() -> impl Strategy<Value = LinkKind> {
    let ids = select(&[7, 8][..]).prop_map(|id| VlanId::new(id).unwrap());
    let ports = subsequence(&NAMES[..], 0..=2)
        .prop_map(|ports| ports.into_iter().map(name).collect::<Vec<_>>());
    let modes = select(&[BondMode::ActiveBackup, BondMode::Lacp][..]);
    prop_oneof![
        Just(LinkKind::Card { macs: Vec::new() }),
        (names(), ids).prop_map(|(parent, id)| LinkKind::Vlan { parent, id }),
        (ports.clone(), any::<bool>()).prop_map(|(ports, stp)| LinkKind::Bridge { ports, stp }),
        (ports, modes).prop_map(|(ports, mode)| LinkKind::Bond {
            mode,
            ports,
            monitor_millis: 100
        }),
    ]
}

fn routes() -> impl Strategy<Value = Route> {
    let to = &["0.0.0.0/0", "::/0", "10.9.0.0/16", "fd09::/32"][..];
    let vias = select(gateways()).prop_map(Some);
    let sources = proptest::option::weighted(0.2, select(nets()));
    let tables = prop_oneof![3 => Just(MAIN_TABLE), 1 => 1..3_u32];
    (
        select(to),
        prop_oneof![3 => vias, 1 => Just(None)],
        sources,
        select(&[0, 100][..]),
        tables,
    )
        .prop_map(|(to, via, source, metric, table)| {
            let to: IpNet = to.parse().unwrap();
            let v4 = to.addr().is_ipv4();
            Route {
                to,
                via: via.filter(|via| via.is_ipv4() == v4),
                source: source
                    .map(|net| net.addr())
                    .filter(|source| source.is_ipv4() == v4),
                metric,
                table,
            }
        })
}

fn wanted_links() -> impl Strategy<Value = HostLink> {
    let bears = (
        subsequence(nets(), 0..=3).prop_shuffle(),
        subsequence(gateways(), 0..=1),
        1..6_u32,
    );
    let routes = proptest::collection::vec(routes(), 0..2);
    let mtu = proptest::option::weighted(0.3, select(&MTUS[..]));
    let forwarding = proptest::option::weighted(0.2, any::<bool>());
    let rp_filter = proptest::option::weighted(0.2, select(&REVERSE_PATHS[..]));
    (names(), kinds(), bears, routes, mtu, forwarding, rp_filter).prop_map(
        |(name, kind, (addresses, gateways, table), more, mtu, forwarding, rp_filter)| {
            let (mut routes, rules) = policy_routing(&addresses, &gateways, table);
            // What site.yaml says of a route: `to`, `via`, `metric`, and `default_route: true`.
            routes.extend(more.into_iter().map(|route| Route {
                table: MAIN_TABLE,
                source: None,
                ..route
            }));
            let link = Link {
                name,
                kind,
                mtu,
                addresses,
                routes,
                rules,
            };
            HostLink {
                link,
                forwarding,
                rp_filter,
            }
        },
    )
}

fn is_sound(host: &HostSpec) -> bool {
    let host = host.clone();
    SiteSpec::new(SiteParts {
        host,
        ..SiteParts::default()
    })
    .is_ok()
}

/// Of arbitrary links those that the site accepts beside the ones before them.
fn specs() -> impl Strategy<Value = HostSpec> {
    let ways = proptest::option::weighted(0.3, (names(), names()));
    (proptest::collection::vec(wanted_links(), 0..6), ways).prop_map(|(links, way)| {
        let mut spec = HostSpec::default();
        for link in links {
            spec.links.push(link);
            if !is_sound(&spec) {
                spec.links.pop();
            }
        }
        let from = "10.0.0.0/24".parse().unwrap();
        spec.masquerade
            .extend(way.map(|(inside, out)| Masquerade { from, inside, out }));
        if !is_sound(&spec) {
            spec.masquerade.clear();
        }
        spec
    })
}

/// What others do to a host.
fn acts() -> impl Strategy<Value = Vec<Operation>> {
    let masters = proptest::option::weighted(0.8, names());
    let rules = (select(nets()), 1..3_u32).prop_map(|(from, table)| Rule {
        priority: netboot::link::RULE_PRIORITY,
        from: from.addr().into(),
        table,
    });
    let act = prop_oneof![
        3 => (names(), kinds()).prop_map(|(link, kind)| Operation::AddLink { link, kind, index: None, mac: None }),
        1 => names().prop_map(|link| Operation::RemoveLink { link }),
        2 => (names(), any::<bool>()).prop_map(|(link, up)| Operation::SetUp { link, up }),
        1 => (names(), select(&MTUS[..])).prop_map(|(link, mtu)| Operation::SetMtu { link, mtu }),
        2 => (names(), masters).prop_map(|(link, master)| Operation::SetMaster { link, master }),
        2 => (names(), select(nets())).prop_map(|(link, address)| Operation::AddAddress { link, address }),
        1 => (names(), select(nets())).prop_map(|(link, address)| Operation::RemoveAddress { link, address }),
        3 => (names(), routes()).prop_map(|(link, route)| Operation::AddRoute { link, route }),
        1 => rules.prop_map(|rule| Operation::AddRule { rule }),
        1 => (names(), any::<bool>()).prop_map(|(link, on)| Operation::SetForwarding { link, on }),
        1 => (names(), select(&REVERSE_PATHS[..])).prop_map(|(link, rp_filter)| Operation::SetReversePath { link, rp_filter }),
    ];
    proptest::collection::vec(act, 0..10)
}

fn hosts() -> impl Strategy<Value = HostState> {
    let cards = proptest::collection::vec(
        proptest::option::weighted(0.9, (any::<bool>(), select(&MTUS[..]))),
        CARDS,
    );
    let older = proptest::option::weighted(0.7, specs());
    (cards, acts(), older, acts()).prop_map(|(cards, first, older, then)| {
        let mut host = HostState::default();
        for (text, card) in NAMES.iter().zip(cards) {
            host.links
                .extend(card.map(|(up, mtu)| (name(text), card_link(up, mtu))));
        }
        number(&mut host);
        by_others(&mut host, first);
        if let Some(older) = older {
            let goal = target(&older, &host);
            let plan = if goal.is_refused() {
                Vec::new()
            } else {
                diff(&host, &goal.state)
            };
            for operation in plan {
                // Whether every step can be taken is for the test to say.
                let _ = host.apply(&operation);
            }
            number(&mut host);
        }
        by_others(&mut host, then);
        host
    })
}

fn card_link(up: bool, mtu: u32) -> LinkState {
    LinkState {
        index: 0,
        ours: false,
        kind: PresentKind::Known(LinkKind::Card { macs: Vec::new() }),
        mac: None,
        up,
        mtu,
        master: None,
        addresses: Vec::new(),
        routes: BTreeSet::new(),
        forwarding: false,
        rp_filter: ReversePath::Off,
    }
}

/// Gives each link that has none a number and a MAC address, as the kernel does.
fn number(host: &mut HostState) {
    let mut next = host
        .links
        .values()
        .map(|link| link.index)
        .max()
        .unwrap_or_default()
        .max(100);
    for link in host.links.values_mut().filter(|link| link.index == 0) {
        next += 1;
        link.index = next;
        let [.., high, low] = next.to_be_bytes();
        let text = format!("02:00:00:00:{high:02x}:{low:02x}");
        link.mac.get_or_insert(text.parse().unwrap());
    }
}

/// What others do bears no mark of ours.
fn by_others(host: &mut HostState, acts: Vec<Operation>) {
    for act in acts {
        let before = host.clone();
        if host.apply(&act).is_err()
            && let Operation::SetMaster {
                link,
                master: Some(_),
            } = &act
        {
            // A port joins a bond while it is down.
            let link = link.clone();
            let _ = host.apply(&Operation::SetUp { link, up: false });
            let _ = host.apply(&act);
        }
        for (name, link) in &mut host.links {
            let was = before.links.get(name);
            link.ours &= was.is_some();
            for address in &mut link.addresses {
                address.ours &= was.is_some_and(|was| was.addresses.contains(address));
            }
            let routes = std::mem::take(&mut link.routes).into_iter();
            let ours = |route: &Owned<Route>| {
                // The kernel takes a source out of a route that stays.
                let same = |there: &&Owned<Route>| {
                    Route {
                        source: None,
                        ..there.what
                    } == Route {
                        source: None,
                        ..route.what
                    }
                };
                was.and_then(|was| was.routes.iter().find(same))
                    .is_some_and(|there| there.ours)
            };
            link.routes = routes
                .map(|route| Owned {
                    ours: ours(&route),
                    ..route
                })
                .collect();
        }
        let rules = std::mem::take(&mut host.rules).into_iter();
        let ours = |rule: &Owned<Rule>| rule.ours && before.rules.contains(rule);
        host.rules = rules
            .map(|rule| Owned {
                ours: ours(&rule),
                ..rule
            })
            .collect();
        number(host);
    }
}

fn is_default(route: &Route) -> bool {
    route.to.prefix_len() == 0 && route.table == MAIN_TABLE
}

/// The default routes of the main table for one kind of address.
fn defaults(host: &HostState, v4: bool) -> BTreeSet<(&LinkName, &Owned<Route>)> {
    let routes = host
        .links
        .iter()
        .flat_map(|(name, link)| link.routes.iter().map(move |route| (name, route)));
    routes
        .filter(|(_, route)| is_default(&route.what) && route.what.to.addr().is_ipv4() == v4)
        .collect()
}

fn names_default(spec: &HostSpec, v4: bool) -> bool {
    let mut routes = spec.links.iter().flat_map(|wanted| &wanted.link.routes);
    routes.any(|route| is_default(route) && route.to.addr().is_ipv4() == v4)
}

fn carry_out(host: &mut HostState, operations: &[Operation]) -> Result<(), TestCaseError> {
    for operation in operations {
        let taken = host.apply(operation);
        prop_assert!(taken.is_ok(), "{operation}: {taken:?}");
    }
    Ok(())
}

fn others<T: Copy>(all: impl IntoIterator<Item = (T, bool)>) -> Vec<T> {
    all.into_iter()
        .filter(|(_, ours)| !ours)
        .map(|(what, _)| what)
        .collect()
}

/// A link that others made, before and after.
fn is_left_alone(
    spec: &HostSpec,
    before: &HostState,
    after: &HostState,
    name: &LinkName,
) -> Result<(), TestCaseError> {
    let was = &before.links[name];
    let is = after.links.get(name);
    prop_assert!(is.is_some(), "{name} is gone");
    let is = is.unwrap();
    prop_assert_eq!(
        (is.index, is.ours, &is.kind, is.mac),
        (was.index, false, &was.kind, was.mac)
    );
    let listed = spec.link(name);
    let joined = spec
        .links
        .iter()
        .find(|wanted| wanted.link.kind.ports().contains(name));
    let to_ours = |master: &Option<LinkName>| {
        master
            .as_ref()
            .is_some_and(|master| before.links[master].ours)
    };
    prop_assert!(
        is.master == was.master || joined.is_some() || to_ours(&was.master),
        "{name}: {:?}",
        is.master
    );
    prop_assert!(is.up || !was.up, "{name} went down");
    let by_bond = |link: &LinkState, host: &HostState| {
        link.master.as_ref().is_some_and(|master| {
            matches!(
                host.links[master].kind,
                PresentKind::Known(LinkKind::Bond { .. })
            )
        })
    };
    let sized = listed.is_some_and(|listed| listed.link.mtu.is_some()) || by_bond(is, after);
    prop_assert!(
        is.mtu == was.mtu || sized,
        "{name}: MTU {} became {}",
        was.mtu,
        is.mtu
    );
    // Of what lies on what, VLANs on their parents.
    let lies_on = |upper: &LinkName| {
        let mut below = Some(upper);
        while let Some(lower) = below.filter(|lower| *lower != name) {
            let there = after.links.get(lower);
            below = there.and_then(|there| there.kind.parent());
        }
        below.is_some()
    };
    let lain_on = spec.links.iter().any(|wanted| {
        let ports = wanted.link.kind.ports().iter();
        ports.chain([&wanted.link.name]).any(lies_on)
    });
    // The kernel brings VLANs up with their parent.
    let carried = matches!(&is.kind, PresentKind::Known(LinkKind::Vlan { .. }));
    prop_assert!(
        is.up == was.up || listed.is_some() || joined.is_some() || lain_on || carried,
        "{name} went up"
    );
    let masquerades = spec
        .masquerade
        .iter()
        .any(|way| [&way.inside, &way.out].contains(&name));
    let switched = listed.is_some_and(|listed| listed.forwarding.is_some()) || masquerades;
    prop_assert!(is.forwarding == was.forwarding || switched);
    let checked = listed.is_some_and(|listed| listed.rp_filter.is_some());
    prop_assert!(is.rp_filter == was.rp_filter || checked);
    Ok(())
}

fn others_are_left_alone(
    spec: &HostSpec,
    before: &HostState,
    after: &HostState,
) -> Result<(), TestCaseError> {
    for (name, was) in &before.links {
        if !was.ours {
            is_left_alone(spec, before, after, name)?;
        }
        let addresses =
            |link: &LinkState| others(link.addresses.iter().map(|there| (there.net, there.ours)));
        let routes =
            |link: &LinkState| others(link.routes.iter().map(|there| (there.what, there.ours)));
        let is = after.links.get(name);
        prop_assert_eq!(
            is.map(addresses).unwrap_or_default(),
            addresses(was),
            "{}",
            name
        );
        prop_assert_eq!(is.map(routes).unwrap_or_default(), routes(was), "{}", name);
    }
    let rules = |host: &HostState| others(host.rules.iter().map(|there| (there.what, there.ours)));
    prop_assert_eq!(rules(after), rules(before));
    for v4 in [true, false] {
        prop_assert!(names_default(spec, v4) || defaults(after, v4) == defaults(before, v4));
    }
    Ok(())
}

/// Whether everything the site says of a link is so.
fn is_done(wanted: &HostLink, host: &HostState) -> Result<(), TestCaseError> {
    let link = &wanted.link;
    let is = host.links.get(&link.name);
    prop_assert!(is.is_some(), "{} is not there", link.name);
    let is = is.unwrap();
    prop_assert!(is.up, "{} is down", link.name);
    prop_assert_eq!(link.mtu.unwrap_or(is.mtu), is.mtu);
    prop_assert_eq!(wanted.rp_filter.unwrap_or(is.rp_filter), is.rp_filter);
    if is.ours && !matches!(link.kind, LinkKind::Card { .. }) {
        prop_assert_eq!(&is.kind, &PresentKind::of(&link.kind));
    }
    for port in link.kind.ports() {
        prop_assert_eq!(
            host.links.get(port).and_then(|port| port.master.as_ref()),
            Some(&link.name)
        );
    }
    for net in &link.addresses {
        prop_assert!(
            is.addresses.iter().any(|there| there.net == *net),
            "{} lacks {}",
            link.name,
            net
        );
    }
    for route in &link.routes {
        let near = |there: &Owned<Route>| {
            (there.what.to, there.what.via, there.what.metric)
                == (route.to, route.via, route.metric)
        };
        prop_assert!(is.routes.iter().any(near), "{} lacks {}", link.name, route);
    }
    for rule in &link.rules {
        prop_assert!(host.rules.iter().any(|there| there.what == *rule));
    }
    Ok(())
}

/// Whether each obstacle says what is wrong and what to do.
fn is_spoken(obstacles: &[Obstacle]) -> bool {
    obstacles
        .iter()
        .all(|obstacle| !obstacle.problem.is_empty() && !obstacle.remedy.is_empty())
}

/// Which address is the first of its subnet is promised, and no other order.
fn in_order(host: &HostState) -> HostState {
    let mut host = host.clone();
    for link in host.links.values_mut() {
        let all = link.addresses.clone();
        link.addresses.sort_by_key(|there| {
            let subnet = there.net.trunc();
            let first = all.iter().find(|other| other.net.trunc() == subnet);
            (subnet, first != Some(there), there.net)
        });
    }
    host
}

/// Whether others route IPv4 by a link without an IPv4 address: the last of ours then has to stay, because the kernel removes
/// those routes with it.
fn has_unnumbered_routes(host: &HostState) -> bool {
    host.links.values().any(|link| {
        let mut routes = link.routes.iter().filter(|route| !route.ours);
        let mut addresses = link.addresses.iter().filter(|there| !there.ours);
        routes.any(|route| route.what.to.addr().is_ipv4())
            && addresses.all(|there| there.net.addr().is_ipv6())
    })
}

/// Whether a route of ours rests on what others have removed since: the kernel keeps it, and would not take it again.
fn has_stranded_routes(host: &HostState) -> bool {
    let links = host.links.iter();
    let mut routes =
        links.flat_map(|(link, state)| state.routes.iter().map(move |route| (link, route)));
    routes.any(|(link, route)| {
        let (link, route) = (link.clone(), route.what);
        let mut host = host.clone();
        let remove = Operation::RemoveRoute {
            link: link.clone(),
            route,
        };
        host.apply(&remove).is_ok() && host.apply(&Operation::AddRoute { link, route }).is_err()
    })
}

/// What others made or put something on is not taken down again.
fn stay_up(midway: &mut HostState, before: &HostState) {
    let names: Vec<LinkName> = midway.links.keys().cloned().collect();
    for name in names {
        let is_lain_on = midway.vlans_on(&name).next().is_some();
        let link = midway.links.get_mut(&name).unwrap();
        let of_others = link.addresses.iter().any(|there| !there.ours)
            || link.routes.iter().any(|there| !there.ours);
        if link.up && (!link.ours || of_others || is_lain_on) {
            link.up = before.links.get(&name).is_none_or(|was| was.up);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        // The same hosts each time: a red test is about the change at hand. Another number finds others.
        rng_seed: proptest::test_runner::RngSeed::Fixed(107),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_plan_carried_out_gives_what_was_wanted_and_a_second_one_is_empty(
        spec in specs(),
        present in hosts(),
    ) {
        let goal = target(&spec, &present);
        prop_assume!(!goal.is_refused());
        let mut after = present.clone();
        carry_out(&mut after, &diff(&present, &goal.state))?;
        prop_assert_eq!(&after, &goal.state);
        number(&mut after);
        let again = target(&spec, &after);
        prop_assert_eq!(diff(&after, &again.state), []);
        prop_assert!(again.obstacles.len() <= goal.obstacles.len(), "{:?}", again.obstacles);
        prop_assert!(!again.is_refused(), "{:?}", again.obstacles);
    }

    #[test]
    fn what_others_made_stays_as_it_is(spec in specs(), present in hosts()) {
        let goal = target(&spec, &present);
        prop_assume!(!goal.is_refused());
        let operations = diff(&present, &goal.state);
        let mut after = present.clone();
        carry_out(&mut after, &operations)?;
        others_are_left_alone(&spec, &present, &after)?;
        for operation in &operations {
            let (Operation::AddRoute { route, .. } | Operation::RemoveRoute { route, .. }) = operation
            else {
                continue;
            };
            let named = names_default(&spec, route.to.addr().is_ipv4());
            prop_assert!(!is_default(route) || named, "{operation}");
        }
    }

    #[test]
    fn the_way_back_from_any_step_of_a_plan_ends_where_it_began(
        spec in specs(),
        before in hosts(),
    ) {
        let goal = target(&spec, &before);
        prop_assume!(!goal.is_refused());
        let operations = diff(&before, &goal.state);
        for done in 0..=operations.len() {
            let mut midway = before.clone();
            carry_out(&mut midway, &operations[..done])?;
            number(&mut midway);
            let back = restore(&before, &operations, &midway);
            carry_out(&mut midway, &back)?;
            stay_up(&mut midway, &before);
            others_are_left_alone(&spec, &before, &midway)?;
            if has_unnumbered_routes(&before) || has_stranded_routes(&before) {
                continue;
            }
            let lines: Vec<String> = operations.iter().map(ToString::to_string).collect();
            prop_assert_eq!(in_order(&midway), in_order(&before), "after {} of {:?}", done, lines);
        }
    }

    #[test]
    fn what_no_obstacle_names_is_done_and_what_lacks_its_parent_waits(
        spec in specs(),
        present in hosts(),
    ) {
        let goal = target(&spec, &present);
        prop_assert!(is_spoken(&goal.obstacles));
        prop_assume!(!goal.is_refused());
        let obstacles = goal.obstacles.iter();
        let named: BTreeMap<_, _> = obstacles.map(|said| (&said.link, said.kind)).collect();
        for wanted in &spec.links {
            let link = &wanted.link;
            let mut parts = link.kind.ports().iter().chain([&link.name]);
            if !parts.any(|part| named.contains_key(part)) {
                is_done(wanted, &goal.state)?;
            }
            if let Some(parent) = link.kind.parent() && !goal.state.links.contains_key(parent) {
                prop_assert_eq!(named.get(&link.name), Some(&ObstacleKind::Waits));
                let there = goal.state.links.get(&link.name);
                let was = present.links.get(&link.name);
                prop_assert_eq!(there.map(|there| there.index), was.map(|was| was.index));
            }
        }
    }
}
