//! Which certificates nodes are given: the table of legitimate and forged requests, and what holds for every request.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::net::IpAddr;

use netboot::csr::{
    Alarm, Bootstrapper, CLIENT_SIGNER, CsrFacts, CsrPolicy, CsrRequest, CsrState, Expectation,
    ExpectedNode, JOIN_SECONDS_MAX, Leave, SERVING_SIGNER, Verdict, judge,
};
use netboot::net::Timestamp;
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const NODE: &str = "worker-1.lab.example";
const NAMESPACE: &str = "openshift-machine-config-operator";

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 107, 0, last])
}

fn okd() -> CsrPolicy {
    CsrPolicy {
        client: Some(Bootstrapper::ServiceAccount {
            namespace: NAMESPACE.to_owned(),
            name: "node-bootstrapper".to_owned(),
        }),
        serving: true,
    }
}

/// One worker that booted an hour ago and waits to join, and one that joined yesterday.
fn expectation() -> Expectation {
    let node = |name: &str, last| ExpectedNode {
        dns: vec![name.to_owned(), format!("{name}.lab.example")],
        addresses: vec![address(last)],
        admitted: true,
        booted: true,
        released: Some(Timestamp::from_millis(NOW.millis() - 3_600_000)),
        ready: false,
        given: None,
    };
    let joined = ExpectedNode {
        released: Some(Timestamp::from_millis(NOW.millis() - 86_400_000)),
        ready: true,
        ..node("worker-2", 22)
    };
    Expectation {
        now: NOW,
        policy: okd(),
        nodes: [
            (NODE.to_owned(), node("worker-1", 21)),
            ("worker-2.lab.example".to_owned(), joined),
        ]
        .into(),
    }
}

fn subject() -> CsrRequest {
    CsrRequest {
        common_names: vec![format!("system:node:{NODE}")],
        organizations: texts(&["system:nodes"]),
        ..CsrRequest::default()
    }
}

fn client() -> CsrFacts {
    CsrFacts {
        name: "csr-1".to_owned(),
        signer: CLIENT_SIGNER.to_owned(),
        user: format!("system:serviceaccount:{NAMESPACE}:node-bootstrapper"),
        groups: texts(&[
            "system:serviceaccounts",
            "system:serviceaccounts:openshift-machine-config-operator",
            "system:authenticated",
        ]),
        usages: texts(&["digital signature", "client auth"]),
        request: Some(subject()),
        state: CsrState::Pending,
    }
}

fn serving() -> CsrFacts {
    CsrFacts {
        signer: SERVING_SIGNER.to_owned(),
        user: format!("system:node:{NODE}"),
        groups: texts(&["system:nodes", "system:authenticated"]),
        usages: texts(&["key encipherment", "digital signature", "server auth"]),
        request: Some(CsrRequest {
            dns: texts(&["worker-1.lab.example"]),
            addresses: vec![address(21)],
            ..subject()
        }),
        ..client()
    }
}

/// A request with one thing changed.
fn but(mut csr: CsrFacts, change: impl FnOnce(&mut CsrFacts)) -> CsrFacts {
    change(&mut csr);
    csr
}

fn asking(csr: CsrFacts, change: impl FnOnce(&mut CsrRequest)) -> CsrFacts {
    but(csr, |csr| change(csr.request.as_mut().unwrap()))
}

fn verdict(csr: &CsrFacts) -> Verdict {
    judge(csr, &expectation())
}

/// The verdict where the ledger knows something else of the worker.
fn with(csr: &CsrFacts, change: impl FnOnce(&mut ExpectedNode)) -> Verdict {
    let mut expected = expectation();
    change(expected.nodes.get_mut(NODE).unwrap());
    judge(csr, &expected)
}

fn alarm(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Alarm(alarm) => alarm.code(),
        Verdict::Approve(_) => "approved",
        Verdict::Leave(_) => "left",
    }
}

#[test]
fn a_booted_member_gets_the_two_certificates_of_a_kubelet() {
    let approved = Verdict::Approve(NODE.to_owned());
    assert_eq!(verdict(&client()), approved);
    assert_eq!(verdict(&serving()), approved);
    // Kubelets before 1.27, or with an RSA key.
    let older = but(client(), |csr| csr.usages.push("key encipherment".into()));
    assert_eq!(verdict(&older), approved);
    let newer = but(serving(), |csr| {
        csr.usages.retain(|usage| usage != "key encipherment")
    });
    assert_eq!(verdict(&newer), approved);
    // One of its names is enough, and DNS knows no case.
    let short = asking(serving(), |request| {
        request.dns = texts(&["Worker-1"]);
        request.addresses.clear();
    });
    assert_eq!(verdict(&short), approved);
    // The same request, seen again because approving it failed.
    let again = with(&client(), |node| node.given = Some("csr-1".into()));
    assert_eq!(again, approved);
}

#[test]
fn a_serving_certificate_is_renewed_for_as_long_as_the_node_is_a_member() {
    let years_later = with(&serving(), |node| {
        node.ready = true;
        node.released = Some(Timestamp::from_millis(1));
    });
    assert_eq!(years_later, Verdict::Approve(NODE.to_owned()));
    let mut expected = expectation();
    expected.nodes.remove(NODE);
    assert_eq!(alarm(&judge(&serving(), &expected)), "csr-unknown-node");
}

#[test]
fn a_bootstrap_token_of_the_right_group_asks_for_platforms_that_use_one() {
    let group = "system:bootstrappers:kubeadm:default-node-token";
    let mut expected = expectation();
    expected.policy.client = Some(Bootstrapper::BootstrapToken {
        group: group.to_owned(),
    });
    let token = |user: &str, groups: &[&str]| {
        let csr = but(client(), |csr| {
            csr.user = user.to_owned();
            csr.groups = texts(groups);
        });
        alarm(&judge(&csr, &expected))
    };
    let groups = ["system:bootstrappers", group, "system:authenticated"];
    assert_eq!(token("system:bootstrap:abc123", &groups), "approved");
    assert_eq!(
        token("system:bootstrap:abc123", &groups[..1]),
        "csr-wrong-requestor"
    );
    assert_eq!(
        token("system:bootstrap:ABC123", &groups),
        "csr-wrong-requestor"
    );
    assert_eq!(token("system:bootstrap:", &groups), "csr-wrong-requestor");
    assert_eq!(token("eve", &groups), "csr-wrong-requestor");
    let more = [group, "system:authenticated", "system:masters"];
    assert_eq!(
        token("system:bootstrap:abc123", &more),
        "csr-wrong-requestor"
    );
    assert_eq!(alarm(&judge(&client(), &expected)), "csr-wrong-requestor");
}

#[test]
fn what_is_not_ours_is_left_without_an_alarm() {
    let left = |csr: &CsrFacts, why| assert_eq!(verdict(csr), Verdict::Leave(why), "{csr:?}");
    for state in [CsrState::Approved, CsrState::Refused] {
        left(&but(client(), |csr| csr.state = state), Leave::Decided);
        // Even a forged one: somebody looked at it.
        left(
            &but(client(), |csr| (csr.state, csr.request) = (state, None)),
            Leave::Decided,
        );
    }
    let other = but(client(), |csr| {
        csr.signer = "example.com/ingress".into();
        csr.user = "system:serviceaccount:web:operator".into();
        csr.groups = texts(&["system:authenticated"]);
        csr.request = None;
    });
    left(&other, Leave::NotForNodes);
    let network_plugin = asking(
        but(serving(), |csr| {
            csr.signer = "kubernetes.io/kube-apiserver-client".into()
        }),
        |request| {
            request.common_names = vec![format!("system:ovn-node:{NODE}")];
            request.organizations = texts(&["system:ovn-nodes"]);
        },
    );
    left(&network_plugin, Leave::NotForNodes);
    let renewal = but(client(), |csr| {
        csr.user = format!("system:node:{NODE}");
        csr.groups = texts(&["system:nodes", "system:authenticated"]);
    });
    left(&renewal, Leave::Renewal);
    let mut by_itself = expectation();
    by_itself.policy = CsrPolicy::default();
    for csr in [client(), serving()] {
        assert_eq!(judge(&csr, &by_itself), Verdict::Leave(Leave::ByPlatform));
    }
}

#[test]
fn no_forged_request_is_approved_and_each_says_what_is_wrong() {
    let name = |name: &str| vec![format!("system:node:{name}")];
    let table = [
        (
            "csr-unknown-node",
            asking(client(), |r| r.common_names = name("worker-9.lab.example")),
        ),
        (
            "csr-unknown-node",
            asking(client(), |r| r.common_names = name("WORKER-1.lab.example")),
        ),
        (
            "csr-unknown-node",
            asking(client(), |r| r.common_names = name(" worker-1.lab.example")),
        ),
        (
            "csr-joined-already",
            asking(client(), |r| r.common_names = name("worker-2.lab.example")),
        ),
        (
            "csr-wrong-requestor",
            but(client(), |c| c.user = "system:anonymous".into()),
        ),
        (
            "csr-wrong-requestor",
            but(client(), |c| {
                c.user = "system:node:worker-2.lab.example".into()
            }),
        ),
        (
            "csr-wrong-requestor",
            but(client(), |c| c.groups.push("system:masters".into())),
        ),
        ("csr-wrong-requestor", but(client(), |c| c.groups.clear())),
        (
            "csr-wrong-requestor",
            but(serving(), |c| {
                c.user = "system:node:worker-2.lab.example".into()
            }),
        ),
        (
            "csr-wrong-requestor",
            but(serving(), |c| {
                (c.user, c.groups) = (client().user, client().groups)
            }),
        ),
        (
            "csr-wrong-requestor",
            but(serving(), |c| c.groups.push("system:masters".into())),
        ),
        (
            "csr-wrong-signer",
            but(client(), |c| {
                c.signer = "kubernetes.io/kube-apiserver-client".into()
            }),
        ),
        (
            "csr-wrong-signer",
            but(client(), |c| {
                c.signer = "kubernetes.io/legacy-unknown".into()
            }),
        ),
        (
            "csr-wrong-signer",
            but(client(), |c| {
                (c.signer, c.request) = ("example.com/x".into(), None)
            }),
        ),
        (
            "csr-wrong-requestor",
            but(client(), |c| c.signer = SERVING_SIGNER.into()),
        ),
        ("left", but(serving(), |c| c.signer = CLIENT_SIGNER.into())),
        (
            "csr-wrong-usages",
            but(client(), |c| c.usages.push("server auth".into())),
        ),
        (
            "csr-wrong-usages",
            but(client(), |c| c.usages.push("cert sign".into())),
        ),
        ("csr-wrong-usages", but(client(), |c| c.usages.clear())),
        (
            "csr-wrong-usages",
            but(serving(), |c| c.usages = client().usages),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.organizations = texts(&["system:masters"])),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.organizations.push("system:masters".into())),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.organizations.clear()),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.common_names = texts(&["system:admin"])),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.common_names = texts(&["system:node:"])),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.common_names.push("system:node:x".into())),
        ),
        (
            "csr-wrong-subject",
            asking(client(), |r| r.common_names.clear()),
        ),
        (
            "csr-extra",
            asking(client(), |r| r.others.push("extension 2.5.29.19".into())),
        ),
        ("csr-extra", asking(client(), |r| r.dns.push(NODE.into()))),
        (
            "csr-extra",
            asking(client(), |r| r.addresses.push(address(21))),
        ),
        (
            "csr-extra",
            asking(serving(), |r| r.others.push("URI spiffe://x".into())),
        ),
        (
            "csr-wrong-name",
            asking(serving(), |r| r.dns.push("api.lab.lab.example".into())),
        ),
        (
            "csr-wrong-name",
            asking(serving(), |r| r.dns = texts(&["*.lab.example"])),
        ),
        (
            "csr-wrong-name",
            asking(serving(), |r| r.addresses.push(address(22))),
        ),
        (
            "csr-wrong-name",
            asking(serving(), |r| r.addresses = vec![address(1)]),
        ),
        (
            "csr-no-names",
            asking(serving(), |r| (r.dns, r.addresses) = (vec![], vec![])),
        ),
        ("csr-unreadable", but(client(), |c| c.request = None)),
        ("csr-unreadable", but(serving(), |c| c.request = None)),
    ];
    for (wanted, csr) in table {
        assert_eq!(alarm(&verdict(&csr)), wanted, "{csr:?}");
    }
}

#[test]
fn a_client_certificate_is_given_between_the_release_of_the_config_and_the_first_ready() {
    let at = |change: fn(&mut ExpectedNode)| alarm(&with(&client(), change)).to_owned();
    let ago = |seconds: u64| Some(Timestamp::from_millis(NOW.millis() - seconds * 1000));
    assert_eq!(at(|node| node.admitted = false), "csr-not-admitted");
    assert_eq!(at(|node| node.booted = false), "csr-not-booted");
    assert_eq!(at(|node| node.released = None), "csr-not-released");
    assert_eq!(at(|node| node.ready = true), "csr-joined-already");
    let last = with(&client(), |node| node.released = ago(JOIN_SECONDS_MAX));
    assert_eq!(alarm(&last), "approved");
    let late = with(&client(), |node| node.released = ago(JOIN_SECONDS_MAX + 1));
    assert_eq!(alarm(&late), "csr-window-over");
    let second = with(&client(), |node| node.given = Some("csr-0".into()));
    assert_eq!(alarm(&second), "csr-second");
}

#[test]
fn a_serving_certificate_needs_a_node_that_was_booted_and_admitted() {
    let at = |change: fn(&mut ExpectedNode)| alarm(&with(&serving(), change)).to_owned();
    assert_eq!(at(|node| node.admitted = false), "csr-not-admitted");
    assert_eq!(at(|node| node.booted = false), "csr-not-booted");
}

#[test]
fn an_alarm_repeats_foreign_text_cut_and_without_control_characters() {
    let csr = but(client(), |csr| {
        csr.user = format!("\u{1b}[2J\n{}", "x".repeat(500))
    });
    let Verdict::Alarm(alarm) = verdict(&csr) else {
        panic!("approved");
    };
    let words = alarm.to_string();
    assert!(
        words.starts_with("it is asked for by \\u{1b}[2J\\nxxx"),
        "{words}"
    );
    assert!(words.chars().count() < 120, "{words}");
    assert!(matches!(alarm, Alarm::WrongRequestor(_)));
}

/// Values that a request may bear, near enough to the right ones that some are right.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(CLIENT_SIGNER.to_owned()),
        Just(SERVING_SIGNER.to_owned()),
        Just(format!("system:node:{NODE}")),
        Just("system:node:worker-2.lab.example".to_owned()),
        Just("system:nodes".to_owned()),
        Just("system:authenticated".to_owned()),
        Just(client().user),
        Just("digital signature".to_owned()),
        Just("client auth".to_owned()),
        Just("server auth".to_owned()),
        Just(NODE.to_owned()),
        any::<String>(),
    ]
}

fn words() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        Just(texts(&["system:nodes"])),
        Just(texts(&["system:nodes", "system:authenticated"])),
        Just(vec![format!("system:node:{NODE}")]),
        Just(client().groups),
        Just(client().usages),
        Just(serving().usages),
        prop::collection::vec(word(), 0..4),
    ]
}

fn requests() -> impl Strategy<Value = CsrRequest> {
    let addresses = prop::collection::vec((20u8..24).prop_map(address), 0..3);
    let others = prop::collection::vec(word(), 0..2);
    (words(), words(), words(), addresses, others).prop_map(
        |(common_names, organizations, dns, addresses, others)| CsrRequest {
            common_names,
            organizations,
            dns,
            addresses,
            others,
        },
    )
}

/// One of the two good requests with up to two of its parts drawn anew.
fn near() -> impl Strategy<Value = CsrFacts> {
    let good = prop_oneof![Just(client()), Just(serving())];
    let change = (0u8..8, word(), words(), prop::option::of(requests()));
    (good, prop::collection::vec(change, 0..3)).prop_map(|(mut csr, changes)| {
        for (part, word, words, request) in changes {
            match part {
                0 => csr.signer = word,
                1 => csr.user = word,
                2 => csr.groups = words,
                3 => csr.usages = words,
                4 => csr.request = request,
                5 => csr.state = CsrState::Approved,
                6 => csr.state = CsrState::Refused,
                _ => csr.name = word,
            }
        }
        csr
    })
}

fn known() -> impl Strategy<Value = ExpectedNode> {
    let released = prop::option::of(0u64..JOIN_SECONDS_MAX * 2);
    let given = prop::option::of(word());
    (any::<[bool; 3]>(), released, given).prop_map(|([admitted, booted, ready], ago, given)| {
        ExpectedNode {
            dns: texts(&["worker-1", NODE]),
            addresses: vec![address(21)],
            admitted,
            booted,
            released: ago.map(|ago| Timestamp::from_millis(NOW.millis() - ago * 1000)),
            ready,
            given,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_is_approved_is_one_kubelets_own_certificate_and_the_ledger_vouches_for_it(
        csr in near(),
        node in known(),
    ) {
        let mut expected = expectation();
        expected.nodes.insert(NODE.to_owned(), node);
        if let Verdict::Approve(name) = judge(&csr, &expected) {
            let node = &expected.nodes[&name];
            let request = csr.request.unwrap();
            prop_assert_eq!(csr.state, CsrState::Pending);
            prop_assert!(node.admitted && node.booted);
            prop_assert_eq!(request.common_names, vec![format!("system:node:{name}")]);
            prop_assert_eq!(request.organizations, vec!["system:nodes".to_owned()]);
            prop_assert!(request.others.is_empty());
            prop_assert!(!csr.usages.contains(&"cert sign".to_owned()));
            prop_assert!(!csr.groups.contains(&"system:masters".to_owned()));
            if csr.signer == CLIENT_SIGNER {
                let age = NOW.millis_since(node.released.unwrap());
                prop_assert!(!node.ready && age <= JOIN_SECONDS_MAX * 1000);
                prop_assert!(node.given.as_ref().is_none_or(|by| *by == csr.name));
                prop_assert!(request.dns.is_empty() && request.addresses.is_empty());
                prop_assert!(csr.usages.contains(&"client auth".to_owned()));
            } else {
                prop_assert_eq!(csr.signer, SERVING_SIGNER);
                prop_assert_eq!(csr.user, format!("system:node:{name}"));
                prop_assert!(request.dns.iter().all(|dns| node.dns.contains(&dns.to_ascii_lowercase())));
                prop_assert!(request.addresses.iter().all(|ip| node.addresses.contains(ip)));
                prop_assert!(csr.usages.contains(&"server auth".to_owned()));
            }
        }
    }

    #[test]
    fn any_text_is_judged_and_none_of_it_approved(
        texts in prop::collection::vec(any::<String>(), 6),
        list in prop::collection::vec(any::<String>(), 0..5),
        addresses in prop::collection::vec(any::<IpAddr>(), 0..3),
    ) {
        let csr = CsrFacts {
            name: texts[0].clone(),
            signer: texts[1].clone(),
            user: texts[2].clone(),
            groups: list.clone(),
            usages: list.clone(),
            request: Some(CsrRequest {
                common_names: texts[3..].to_vec(),
                organizations: list.clone(),
                dns: list.clone(),
                addresses,
                others: list,
            }),
            state: CsrState::Pending,
        };
        prop_assert!(!matches!(verdict(&csr), Verdict::Approve(_)));
    }
}
