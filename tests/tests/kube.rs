//! What is learned of a cluster, and which certificates its nodes are given, with a real kube-apiserver and etcd.
//!
//! `make kube` builds them; without them (`KUBE_APISERVER` names none) these tests say so and pass. They show readiness, nodes,
//! ConfigMaps, custom resources, credentials and approvals as they are. The server is of version 1.20 and no OKD runs on it: its
//! operators' objects are written by the tests. What needs newer fields, or servers that go wrong, is in `kube_recorded.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::probe::kube::csr::round;
use daemon::probe::kube::{KubeAccess, OperatorsWatch, Server, Want, look};
use ignition::secret::Secret;
use netboot::csr::{Bootstrapper, CsrPolicy};
use serde_json::{Value, json};
use tests::kube::{As, Kube, TOKEN, TOKEN_GROUP, apiserver, condition};
use tests::kube_csr::{Ask, CSRS, NAMESPACE, client, codes, expectation, now, okd, serving};
use tests::kube_fake::access;
use tests::lab::{BASTION, until};

const OPERATORS: &str = "/apis/config.openshift.io/v1/clusteroperators";
const BOOT: &str = "2f6d3c7e-8a51-4a0e-9d44-0b1f6f1f0a11";
const ADMIN: As<'_> = As::User("admin");

fn node_ready(number: u8) -> Want {
    Want::NodeReady {
        node: format!("machine-{number}").parse().expect("a name"),
        name: format!("worker-{number}.lab.example"),
    }
}

#[test]
fn a_real_api_is_seen_to_become_ready_and_so_are_its_nodes_and_operators() {
    let Some(apiserver) = apiserver() else { return };
    let mut kube = Kube::start(&apiserver);
    let ours = kube.access();
    let wants = || {
        vec![
            Want::Api,
            node_ready(1),
            node_ready(2),
            Want::BootstrapComplete,
            Want::BootstrapMemberRemoved,
            Want::VersionAvailable,
            Want::OperatorsSettled(OperatorsWatch::default()),
        ]
    };
    let see = |kube: &Kube, access: &KubeAccess| -> Vec<(bool, String)> {
        let access = access.clone();
        let seen = kube.run(async move { look(&access, &wants()).await });
        seen.into_iter()
            .map(|seen| (seen.holds, seen.words))
            .collect()
    };
    let server = format!("{BASTION}:6443");
    let unknown = format!("404 from {server}");
    let before = see(&kube, &ours);
    assert_eq!(before[0], (true, format!("200 from {server}")));
    assert_eq!(
        before[1],
        (false, "worker-1.lab.example has not joined yet".into())
    );
    let missing = format!("404 from {server}: configmaps \"bootstrap\" not found");
    assert_eq!(before[3], (false, missing));
    assert_eq!(
        before[4..],
        [
            (false, unknown.clone()),
            (false, unknown.clone()),
            (false, unknown)
        ]
    );

    // Sixty nodes are two pages.
    for number in 1..=60 {
        let name = format!("worker-{number}.lab.example");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        kube.create(ADMIN, "/api/v1/nodes", &node);
    }
    let joined = see(&kube, &ours);
    assert_eq!(
        joined[1],
        (false, "worker-1.lab.example: Ready is not reported".into())
    );
    let ready = |number: u8, status: &str, message: &str| {
        let path = format!("/api/v1/nodes/worker-{number}.lab.example/status");
        kube.patch(
            &path,
            &json!({"status": {
                "conditions": [condition("Ready", status, message)],
                "nodeInfo": {"bootID": BOOT},
            }}),
        );
    };
    ready(1, "True", "kubelet is posting ready status");
    ready(
        2,
        "False",
        "container runtime network not ready: cni plugin not initialized",
    );
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bootstrap"}, "data": {"status": "complete"}});
    kube.create(ADMIN, "/api/v1/namespaces/kube-system/configmaps", &map);
    kube.define("operator.openshift.io", "Etcd", "etcds");
    kube.define("config.openshift.io", "ClusterVersion", "clusterversions");
    kube.define("config.openshift.io", "ClusterOperator", "clusteroperators");
    let object = |group: &str, kind: &str, name: &str, conditions: Value| json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": name}, "status": {"conditions": conditions}});
    let settled = json!([
        condition("Available", "True", ""),
        condition("Progressing", "False", ""),
        condition("Degraded", "False", ""),
        condition("Failing", "False", "")
    ]);
    let removed = json!([condition("EtcdBootstrapMemberRemoved", "True", "")]);
    let config = "config.openshift.io";
    kube.create(
        ADMIN,
        "/apis/operator.openshift.io/v1/etcds",
        &object("operator.openshift.io", "Etcd", "cluster", removed),
    );
    kube.create(
        ADMIN,
        "/apis/config.openshift.io/v1/clusterversions",
        &object(config, "ClusterVersion", "version", settled.clone()),
    );
    for operator in ["etcd", "console"] {
        kube.create(
            ADMIN,
            OPERATORS,
            &object(config, "ClusterOperator", operator, settled.clone()),
        );
    }
    let kubeconfig = Secret::new(kube.kubeconfig().into_bytes());
    let by_kubeconfig = KubeAccess::from_kubeconfig(&kubeconfig, &[kube.address]).expect("access");
    for access in [&ours, &by_kubeconfig] {
        let after = see(&kube, access);
        let holds: Vec<bool> = after.iter().map(|(holds, _)| *holds).collect();
        assert_eq!(
            holds,
            [true, true, false, true, true, true, false],
            "{after:?}"
        );
        assert_eq!(after[6].1, "all 2 operators are settled for 0 of 30 s");
        let words = "worker-2.lab.example: Ready is False: container runtime network not ready: cni plugin not initialized";
        assert_eq!(after[2].1, words);
    }
    let (asked, again) = ([Want::Api, node_ready(1), node_ready(3)], ours.clone());
    let seen = kube.run(async move { look(&again, &asked).await });
    let boots: Vec<_> = seen.into_iter().map(|seen| seen.boot).collect();
    assert_eq!(boots, [None, BOOT.parse().ok(), None]);

    // Who isn't in the cluster is told so, by either side.
    let stranger = access(
        &kube.ca_pem(),
        vec![Server::new(kube.address, "api.lab.example").expect("a server")],
    );
    let (holds, words) = see(&kube, &stranger).remove(1);
    assert!(!holds && words.contains(&server), "{words}");
    kube.kill_apiserver();
    let gone = see(&kube, &ours);
    assert!(
        gone.iter()
            .all(|seen| *seen == (false, format!("connection refused by {server}"))),
        "{gone:?}"
    );
}

/// The conditions of every request, as the API tells curl.
fn conditions(kube: &Kube) -> BTreeMap<String, Vec<(String, String)>> {
    let (status, list) = kube.ask(ADMIN, "GET", CSRS, None);
    assert_eq!(status, 200, "{list}");
    let items = list["items"].as_array().expect("a list");
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = items.iter().map(|csr| {
        let conditions = csr["status"]["conditions"].as_array();
        let conditions = conditions.into_iter().flatten();
        let conditions = conditions.map(|one| (word(&one["type"]), word(&one["reason"])));
        (word(&csr["metadata"]["name"]), conditions.collect())
    });
    all.collect()
}

#[test]
fn a_real_api_ends_with_only_the_legitimate_requests_approved() {
    let Some(apiserver) = apiserver() else { return };
    let kube = Kube::start(&apiserver);
    let bootstrapper = kube.account_token(NAMESPACE, "node-bootstrapper");
    let joining = As::Token(&bootstrapper);
    let node = |number: u8| format!("system:node:worker-{number}.lab.example");
    for number in [1, 3] {
        kube.user(&node(number), "system:nodes");
    }
    let (first, third) = (node(1), node(3));
    let (first, third) = (As::User(&first), As::User(&third));
    let own = &["subjectAltName=DNS:worker-1.lab.example,IP:10.107.0.21"];
    let foreign = "kubernetes.io/kube-apiserver-client";
    let subject = |ask: Ask, subject: &str| Ask {
        subject: subject.to_owned(),
        ..ask
    };
    let masters = "/O=system:masters/CN=system:node:worker-1.lab.example";
    let two =
        "/O=system:nodes/CN=system:node:worker-1.lab.example/CN=system:node:worker-3.lab.example";
    let both_usages = Ask {
        usages: &["client auth", "server auth"],
        ..client(1)
    };
    let authority = Ask {
        extensions: &["basicConstraints=CA:TRUE"],
        ..client(1)
    };
    let with_names = Ask {
        extensions: own,
        ..client(1)
    };
    let other_signer = |ask: Ask| Ask {
        signer: foreign,
        ..ask
    };
    let of_the_api = &["subjectAltName=DNS:worker-1.lab.example,DNS:api.lab.example"];
    let with_mail = &["subjectAltName=DNS:worker-1.lab.example,email:a@b"];
    let of_2 = &["subjectAltName=IP:10.107.0.22"];
    let of_3 = &["subjectAltName=IP:10.107.0.23"];
    let table = [
        // The two that worker 1 is owed, and the renewal of worker 3's server.
        ("client-1", joining, client(1), "approved"),
        ("serving-1", first, serving(1, own), "approved"),
        ("serving-3", third, serving(3, of_3), "approved"),
        // The shared credential in other hands.
        ("again-1", joining, client(1), "csr-second"),
        ("unknown", joining, client(9), "csr-unknown-node"),
        ("not-booted", joining, client(2), "csr-not-booted"),
        ("replay-3", joining, client(3), "csr-joined-already"),
        (
            "masters",
            joining,
            subject(client(1), masters),
            "csr-wrong-subject",
        ),
        (
            "two-names",
            joining,
            subject(client(1), two),
            "csr-wrong-subject",
        ),
        ("server-too", joining, both_usages, "csr-wrong-usages"),
        ("names", joining, with_names, "csr-extra"),
        ("authority", joining, authority, "csr-extra"),
        (
            "signer",
            joining,
            other_signer(client(1)),
            "csr-wrong-signer",
        ),
        ("by-token", joining, serving(1, own), "csr-wrong-requestor"),
        (
            "other-token",
            As::Token(TOKEN),
            client(4),
            "csr-wrong-requestor",
        ),
        // Nodes that want to be others.
        (
            "serving-of-1-by-3",
            third,
            serving(1, own),
            "csr-wrong-requestor",
        ),
        ("client-of-1-by-3", third, client(1), "csr-wrong-requestor"),
        ("api-name", first, serving(1, of_the_api), "csr-wrong-name"),
        ("other-address", first, serving(1, of_2), "csr-wrong-name"),
        ("mail", first, serving(1, with_mail), "csr-extra"),
        ("no-names", first, serving(1, &[]), "csr-no-names"),
        // Nothing of ours.
        ("renewal-3", third, client(3), "left"),
        (
            "web",
            ADMIN,
            subject(other_signer(client(1)), "/CN=web"),
            "left",
        ),
    ];
    let mut wanted = BTreeMap::new();
    for (name, who, ask, code) in table {
        kube.create(who, CSRS, &ask.object(name));
        wanted.insert(name.to_owned(), code);
        // The API dates requests in whole seconds, and the older of two goes first.
        if name == "serving-3" {
            let begun = now().millis() / 1000;
            until("the next second", Duration::from_secs(2), || {
                now().millis() / 1000 > begun
            });
        }
    }
    // As good as the first of worker 1, but a person said no.
    kube.create(joining, CSRS, &client(4).object("denied-4"));
    let denial = json!([{"type": "Denied", "status": "True", "reason": "ByHand", "message": "no"}]);
    let path = format!("{CSRS}/denied-4/approval");
    kube.patch(&path, &json!({"status": {"conditions": denial}}));

    let access = kube.access();
    let go = |policy: CsrPolicy| {
        let (access, expected) = (access.clone(), expectation(policy));
        kube.run(async move { round(&access, expected).await.expect("listed") })
    };
    let outcomes = go(okd());
    assert_eq!(codes(&outcomes), wanted, "{outcomes:#?}");
    let ours = vec![("Approved".to_owned(), "ReveilleApproved".to_owned())];
    let decided = |of: &BTreeMap<String, Vec<(String, String)>>| -> Vec<String> {
        let decided = of.iter().filter(|(_, conditions)| !conditions.is_empty());
        decided.map(|(name, _)| name.clone()).collect()
    };
    let after = conditions(&kube);
    assert_eq!(
        decided(&after),
        ["client-1", "denied-4", "serving-1", "serving-3"]
    );
    for name in ["client-1", "serving-1", "serving-3"] {
        assert_eq!(after[name], ours, "{name}");
    }
    assert_eq!(
        after["denied-4"],
        [("Denied".to_owned(), "ByHand".to_owned())]
    );

    // Another round finds nothing more to approve, and what was approved is not approved twice.
    let again = go(okd());
    wanted.retain(|_, code| *code != "approved");
    assert_eq!(codes(&again), wanted);
    assert_eq!(conditions(&kube), after);

    // A platform whose machines join by bootstrap token.
    let by_token = go(CsrPolicy {
        client: Some(Bootstrapper::BootstrapToken {
            group: TOKEN_GROUP.to_owned(),
        }),
        serving: false,
    });
    let by_token = codes(&by_token);
    assert_eq!(by_token["other-token"], "approved");
    assert_eq!(by_token["unknown"], "csr-wrong-requestor");
    assert_eq!(by_token["api-name"], "left");
    let last = conditions(&kube);
    assert_eq!(last["other-token"], ours);
    assert_eq!(decided(&last).len(), 5);
}
