//! The promises of the backend sets, for any order in which facts come.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const REMOVED: &str = "bootstrap-member-removed";
const READY: &str = "node-ready";

fn okd() -> Vec<Port> {
    vec![
        Port::api(Some(REMOVED)),
        Port::machine_config(REMOVED),
        Port::ingress(80, "ingress-http", READY),
        Port::ingress(443, "ingress", READY),
    ]
}

fn members() -> Vec<Member> {
    let roles = [
        ("boot", Role::Bootstrap),
        ("cp-1", Role::ControlPlane),
        ("cp-2", Role::ControlPlane),
        ("cp-3", Role::ControlPlane),
        ("w-1", Role::Worker),
        ("w-2", Role::Worker),
    ];
    let member = |(at, (name, role)): (usize, (&str, Role))| Member {
        node: name.parse().expect("a name"),
        role,
        address: Ipv4Addr::new(10, 107, 0, 10 + at as u8),
    };
    roles.into_iter().enumerate().map(member).collect()
}

fn place(link: &str, last: u8) -> Place {
    Place {
        link: link.parse().expect("a link"),
        address: Ipv4Addr::new(10, 107, 0, last),
    }
}

type Seen = BTreeSet<(String, Option<NodeName>)>;

fn at(seen: &Seen) -> Vec<Endpoint> {
    let holds =
        |fact: &str, node: Option<&NodeName>| seen.contains(&(fact.to_owned(), node.cloned()));
    endpoints("okd", &okd(), &members(), &holds)
}

fn names(endpoint: &Endpoint) -> Vec<String> {
    let name = |backend: &Backend| {
        let spare = if backend.spare { " (spare)" } else { "" };
        format!("{}{spare}", backend.node)
    };
    endpoint.backends.iter().map(name).collect()
}

#[test]
fn the_sets_follow_an_installation_from_its_first_fact_to_its_last() {
    let mut seen = Seen::new();
    let first = at(&seen);
    for api in &first[..2] {
        assert_eq!(names(api), ["boot", "cp-1", "cp-2", "cp-3"]);
        assert_eq!(api.backends[0].address.port(), api.port.port);
    }
    assert_eq!(names(&first[3]), ["cp-1", "cp-2", "cp-3"]);
    // Neither the API nor its word that bootstrapping is complete is evidence enough.
    for fact in ["api", "bootstrap-complete", "machine-config-server"] {
        seen.insert((fact.to_owned(), None));
        assert_eq!(at(&seen), first);
    }
    seen.insert((REMOVED.to_owned(), None));
    let second = at(&seen);
    assert_eq!(names(&second[0]), ["cp-1", "cp-2", "cp-3"]);
    assert_eq!(names(&second[1]), ["cp-1", "cp-2", "cp-3"]);
    assert_eq!(second[2..], first[2..]);
    let worker = Some("w-1".parse().expect("a name"));
    seen.insert((READY.to_owned(), worker));
    let last = at(&seen);
    assert_eq!(last[..2], second[..2]);
    let expected = ["w-1", "w-2", "cp-1 (spare)", "cp-2 (spare)", "cp-3 (spare)"];
    for ingress in &last[2..] {
        assert_eq!(names(ingress), expected);
    }
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let facts = ["api", "bootstrap-complete", REMOVED, "operators-settled"];
    let of_cluster = prop::sample::select(facts.to_vec()).prop_map(|fact| (fact.to_owned(), None));
    let nodes: Vec<NodeName> = members().into_iter().map(|member| member.node).collect();
    let of_node = prop::sample::select(nodes).prop_map(|node| (READY.to_owned(), Some(node)));
    prop::collection::btree_set(prop_oneof![of_cluster, of_node], 0..8)
}

fn any_ground() -> impl Strategy<Value = Ground> {
    let places = || prop::collection::vec(1_u8..6, 0..3);
    (places(), places(), any::<bool>()).prop_map(|(private, public, open)| Ground {
        open,
        private: private
            .into_iter()
            .map(|at| place("eth1.107", at))
            .collect(),
        public: public.into_iter().map(|at| place("eth0", at)).collect(),
    })
}

proptest! {
    #[test]
    fn the_bootstrap_machine_leaves_on_its_evidence_and_on_nothing_else(seen in any_seen()) {
        let removed = seen.contains(&(REMOVED.to_owned(), None));
        for endpoint in &at(&seen)[..2] {
            let there = names(endpoint).contains(&"boot".to_owned());
            prop_assert_eq!(there, !removed, "{}", endpoint.port.name);
        }
    }

    #[test]
    fn a_port_is_never_without_a_backend_nor_with_one_twice(seen in any_seen()) {
        for endpoint in at(&seen) {
            let nodes: BTreeSet<&NodeName> = endpoint.backends.iter().map(|b| &b.node).collect();
            prop_assert_eq!(nodes.len(), endpoint.backends.len());
            prop_assert!(endpoint.backends.iter().any(|backend| !backend.spare));
        }
    }

    #[test]
    fn no_address_and_port_is_anybodys_twice_and_nothing_private_is_on_a_public_link(
        grounds in prop::collection::vec(any_ground(), 1..4)
    ) {
        let of = |name: String| endpoints(&name, &okd(), &members(), &|_: &str, _: Option<&NodeName>| false);
        let clusters: Vec<_> = (0..grounds.len()).map(|at| of(format!("c{at}"))).collect();
        let pairs = clusters.iter().map(Vec::as_slice).zip(&grounds);
        let (listeners, taken) = placed(pairs);
        prop_assert_eq!(listeners.len(), okd().len() * grounds.len());
        let mut seen = BTreeSet::new();
        for listener in &listeners {
            for place in &listener.places {
                prop_assert!(seen.insert((place.address, listener.port)));
                prop_assert!(!listener.private || place.link.as_str() == "eth1.107");
            }
        }
        for (at, listener) in listeners.iter().enumerate() {
            let open = grounds[at / okd().len()].open;
            prop_assert_eq!(listener.private, listener.port == 22623 || !open);
        }
        // What is left out is left out by name, and only because somebody has it.
        for taken in taken {
            prop_assert!(seen.contains(&(*taken.at.ip(), taken.at.port())));
        }
    }
}
