//! What the services of a cluster promise, for any definition that is taken: none is started before what it depends on
//! was up, a required one that is not up holds the cluster, and an optional one never does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use netboot::cluster::{
    ClusterSpec, ClusterState, Course, FactKey, Known, Look, Member, Provider, Role, Service,
    ServiceKind, ServiceName, ServiceState, Stage, Target, Validation, start_order,
};
use netboot::net::Timestamp;
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn service(own: &str, depends_on: &[&str]) -> Service {
    Service {
        name: name(own),
        kind: ServiceKind::Dns,
        provider: Provider::Builtin,
        depends_on: depends_on.iter().map(|own| name(own)).collect(),
        required: true,
        startup_order: 0,
        configuration: serde_json::Value::Null.into(),
    }
}

fn spec(needs: Vec<Service>) -> ClusterSpec {
    ClusterSpec {
        name: name("prod"),
        platform: "sample".into(),
        version: "1".into(),
        domain: name("lab.example"),
        network: name("lab"),
        pods: Vec::new(),
        services: Vec::new(),
        groups: Vec::new(),
        needs,
        course: Course::default(),
        public: true,
        validation: Validation::default(),
        settings: serde_json::Value::Null.into(),
    }
}

/// A cluster in its last phase with its secrets, where nothing but services can keep a machine from its turn.
fn state() -> (ClusterState, Member) {
    let mut state = ClusterState::default();
    state.record.stage = Stage::Ready;
    know(&mut state, "secrets");
    let member = Member {
        cluster: name("prod"),
        group: name("workers"),
        role: Role::Worker,
        index: 0,
        node: name("m-01"),
        profile: name("system"),
        former: None,
    };
    (state, member)
}

fn key(fact: &str) -> FactKey {
    FactKey {
        node: None,
        fact: name(fact),
    }
}

fn know(state: &mut ClusterState, fact: &str) {
    let words = "so".to_owned();
    let known = state.record.facts.entry(key(fact));
    known.or_insert(Known { at: NOW, words });
}

fn look(state: &mut ClusterState, service: &Service, holds: bool) {
    let fact = service.fact();
    if holds {
        know(state, fact.as_str());
    }
    let look = Look {
        at: NOW,
        holds,
        words: "refused".to_owned(),
    };
    state.looks.insert(key(fact.as_str()), look);
}

fn anybody() -> Course {
    use netboot::cluster::{Admit, Order, Phase};
    let admit = Admit {
        role: Role::Worker,
        order: Order::Together,
    };
    let phase = Phase {
        stage: Stage::Ready,
        admits: vec![admit],
        gates: Vec::new(),
        retires: None,
    };
    Course {
        phases: vec![phase],
    }
}

#[test]
fn a_service_waits_for_what_it_depends_on_and_a_flicker_of_that_stops_nothing() {
    let mut dns = service("dns", &[]);
    dns.required = false;
    let api = service("api", &["dns"]);
    let spec = spec(vec![api.clone(), dns.clone()]);
    let (mut state, _) = state();
    let states = |state: &ClusterState| -> Vec<String> {
        let all = state.services(&spec).into_iter();
        all.map(|(service, state)| format!("{}: {state}", service.name))
            .collect()
    };
    assert_eq!(states(&state), ["dns: starting", "api: waits for dns"]);
    look(&mut state, &dns, false);
    assert_eq!(states(&state), ["dns: refused", "api: waits for dns"]);
    look(&mut state, &dns, true);
    assert_eq!(states(&state), ["dns: up", "api: starting"]);
    look(&mut state, &api, true);
    look(&mut state, &dns, false);
    assert_eq!(states(&state), ["dns: refused", "api: up"]);
    state.looks.clear();
    assert_eq!(
        states(&state),
        ["dns: starting", "api: starting"],
        "the daemon started again: both run, and neither is believed before a look"
    );
}

#[test]
fn a_lower_number_goes_first_without_being_named_unless_it_is_optional() {
    let [mut first, mut second] = ["storage", "api"].map(|own| service(own, &[]));
    (first.startup_order, second.startup_order) = (1, 2);
    let (state, _) = state();
    let waits = |needs: &[Service]| {
        let spec = spec(needs.to_vec());
        let all = state.services(&spec).into_iter();
        let api = all.map(|(_, state)| state).next_back();
        api.unwrap()
    };
    let both = [first.clone(), second.clone()];
    assert_eq!(waits(&both), ServiceState::Waits(vec![name("storage")]));
    first.required = false;
    assert_eq!(
        waits(&[first.clone(), second.clone()]),
        ServiceState::Starting
    );
    first.required = true;
    first.provider = Provider::Off;
    assert_eq!(
        waits(&[first.clone(), second.clone()]),
        ServiceState::Starting
    );
    first.provider = Provider::External(None);
    assert_eq!(waits(&[first, second]), ServiceState::Starting);
}

#[test]
fn what_is_listed_is_done_once_it_is_started_and_what_is_not_listed_at_once() {
    let mut names = service("names", &["storage"]);
    let storage = Service {
        kind: ServiceKind::Storage,
        ..service("storage", &[])
    };
    let (mut state, _) = state();
    let wanted = spec(vec![storage.clone(), names.clone()]);
    assert!(state.does(ServiceKind::LoadBalancer, &wanted), "not listed");
    assert!(!state.does(ServiceKind::Dns, &wanted));
    look(&mut state, &storage, true);
    assert!(state.does(ServiceKind::Dns, &wanted));
    names.provider = Provider::Off;
    assert!(!state.does(ServiceKind::Dns, &spec(vec![storage, names])));
}

#[test]
fn an_address_and_a_url_say_where_to_look_and_nothing_else_does() {
    for (text, shown) in [
        ("10.0.0.5:2049", "10.0.0.5:2049"),
        ("nfs.lab.example:2049", "nfs.lab.example:2049"),
        ("[2001:db8::5]:9", "[2001:db8::5]:9"),
    ] {
        assert_eq!(Target::of_address(text).unwrap().to_string(), shown);
    }
    for text in [
        "",
        "10.0.0.5",
        ":1",
        "a:0",
        "a:65536",
        "2001:db8::5:9",
        "a b:1",
        "a/:1",
    ] {
        assert!(Target::of_address(text).is_err(), "{text}");
    }
    for (text, shown) in [
        ("http://mon.lab.example", "http://mon.lab.example:80/"),
        (
            "https://mon.lab.example/-/ready",
            "https://mon.lab.example:443/-/ready",
        ),
        (
            "http://10.0.0.5:9090/-/ready?a=b",
            "http://10.0.0.5:9090/-/ready?a=b",
        ),
    ] {
        assert_eq!(Target::of_url(text).unwrap().to_string(), shown);
    }
    for text in [
        "ftp://a",
        "https://:443",
        "a",
        "http://",
        "http://a/b c",
        "http://u@a/",
        "http://a/\r\nX: y",
    ] {
        assert!(Target::of_url(text).is_err(), "{text}");
    }
}

/// Any definition that is taken: up to seven services, each depending on earlier ones, in any file order.
fn definitions() -> impl Strategy<Value = Vec<Service>> {
    let one = (any::<u8>(), any::<bool>(), 0u32..4, 0u8..6);
    prop::collection::vec(one, 1..8).prop_flat_map(|drawn| {
        let mut services: Vec<Service> = Vec::new();
        for (index, (bits, required, number, provider)) in drawn.into_iter().enumerate() {
            let before: Vec<Service> = (0..index)
                .filter(|other| bits >> other & 1 == 1)
                .map(|other| services[other].clone())
                .collect();
            let least = before.iter().map(|other| other.startup_order).max();
            services.push(Service {
                required,
                startup_order: number.max(least.unwrap_or(0)),
                provider: match provider {
                    0 => Provider::Off,
                    1 => Provider::External(None),
                    2 => Provider::External(Some(Target::of_address("a:1").unwrap())),
                    3 => Provider::Elsewhere,
                    _ => Provider::Builtin,
                },
                depends_on: before.into_iter().map(|other| other.name).collect(),
                ..service(&format!("s{index}"), &[])
            });
        }
        Just(services).prop_shuffle()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn none_is_started_before_what_it_depends_on_was_up_and_only_required_ones_hold(
        needs in definitions(),
        looks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
    ) {
        let spec = ClusterSpec { course: anybody(), ..spec(needs) };
        let order = start_order(&spec.needs).unwrap();
        let place = |own: &ServiceName| order.iter().position(|other| other.name == *own).unwrap();
        for service in &spec.needs {
            prop_assert!(service.depends_on.iter().all(|other| place(other) < place(&service.name)));
        }
        let by_name: BTreeMap<&ServiceName, &Service> =
            spec.needs.iter().map(|service| (&service.name, service)).collect();
        let (mut state, member) = state();
        let mut started = BTreeSet::new();
        let mut up = BTreeSet::new();
        for (which, holds) in looks {
            let watched: Vec<&Service> = state.watched(&spec).collect();
            let now: BTreeSet<&ServiceName> = watched.iter().map(|service| &service.name).collect();
            prop_assert!(now.is_superset(&started), "one was stopped");
            for service in &watched {
                for other in service.depends_on.iter().filter(|other| by_name[other].is_watched()) {
                    prop_assert!(up.contains(other), "{} before {other}", service.name);
                }
            }
            started = now;
            if let Some(looked) = (!watched.is_empty()).then(|| which.get(&watched)) {
                look(&mut state, looked, holds);
                if holds {
                    up.insert(&looked.name);
                }
            }
            let states = state.services(&spec);
            let held: BTreeSet<&ServiceName> = states
                .iter()
                .filter(|(service, state)| service.required && !state.serves())
                .map(|(service, _)| &service.name)
                .collect();
            match state.may_begin(&spec, &member) {
                Ok(()) => prop_assert!(held.is_empty()),
                Err(waits) => {
                    let told: BTreeSet<&ServiceName> =
                        waits.down.iter().map(|down| &down.service).collect();
                    prop_assert_eq!(&told, &held);
                    prop_assert!(!told.is_empty());
                }
            }
            // Whose turn it is, is another question.
            prop_assert!(state.turn(&spec, &member).is_ok());
        }
        // Stopping is the same order, backwards: what still runs is the beginning of it.
        let before: Vec<&ServiceName> = order
            .iter()
            .map(|service| &service.name)
            .filter(|own| state.watched(&spec).any(|service| service.name == **own))
            .collect();
        for stopped in 0..=order.len() {
            state.stopped = stopped;
            let left: BTreeSet<&ServiceName> =
                state.watched(&spec).map(|service| &service.name).collect();
            let gone: BTreeSet<&ServiceName> =
                order.iter().rev().take(stopped).map(|service| &service.name).collect();
            for own in &before {
                prop_assert_eq!(left.contains(own), !gone.contains(own));
            }
            let leans = |own: &ServiceName| left.iter().any(|other| by_name[other].depends_on.contains(own));
            prop_assert!(!gone.iter().any(|own| leans(own)), "one runs without what it depends on");
        }
        state.stopped = 0;
        // When all that is looked at is well, everything comes up, in as many rounds as there are services.
        for _ in &spec.needs {
            let watched: Vec<Service> = state.watched(&spec).cloned().collect();
            watched.iter().for_each(|service| look(&mut state, service, true));
        }
        prop_assert!(state.services(&spec).iter().all(|(_, state)| state.serves()));
        prop_assert!(state.may_begin(&spec, &member).is_ok());
    }

    #[test]
    fn an_optional_service_that_no_required_one_leans_on_changes_nobodys_turn(
        needs in definitions(),
        bad in any::<prop::sample::Index>(),
    ) {
        let (mut state, member) = state();
        let spec = ClusterSpec { course: anybody(), ..spec(needs) };
        let optional = |service: &&Service| {
            let leaned_on = |other: &Service| other.depends_on.contains(&service.name);
            !service.required && !spec.needs.iter().any(leaned_on)
        };
        let alone: Vec<&Service> = spec.needs.iter().filter(optional).collect();
        prop_assume!(!alone.is_empty());
        let bad = bad.get(&alone);
        for _ in &spec.needs {
            let watched: Vec<Service> = state.watched(&spec).cloned().collect();
            for service in &watched {
                look(&mut state, service, service.name != bad.name);
            }
        }
        prop_assert!(state.may_begin(&spec, &member).is_ok());
    }
}
