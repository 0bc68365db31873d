//! What is learned of a cluster, and which certificates its nodes are given, from recorded answers of a fake.
//!
//! Shown here is what no real server of the tests can show: OKD's and k3s's operators in the shape they report in, servers that
//! are away, silent, endless or strangers, and requests that an API server wouldn't take. The rest is in `kube.rs`.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use daemon::probe::kube::csr::round;
use daemon::probe::kube::{AccessFault, KubeAccess, OperatorsWatch, Server, TrustedCa, Want, look};
use ignition::secret::Secret;
use netboot::csr::Verdict;
use netboot::net::Timestamp;
use serde_json::{Value, json};
use tests::kube::condition;
use tests::kube_csr::{
    Ask, CSRS, Der, NAMESPACE, client, codes, expectation, now, okd, unwrapped, with_attributes,
    wrapped,
};
use tests::kube_fake::{Answer, Fake, access};

const OPERATORS: &str = "/apis/config.openshift.io/v1/clusteroperators";

/// One look at one fact.
async fn one(access: &KubeAccess, want: Want) -> (bool, String) {
    let mut seen = look(access, &[want]).await;
    let seen = seen.pop().expect("one look");
    (seen.holds, seen.words)
}

fn says(status: u16, body: Value) -> Answer {
    Answer::Says(status, body.to_string())
}

fn ok() -> (&'static str, Answer) {
    ("/readyz", Answer::Says(200, "ok".to_owned()))
}

/// An address of loopback on which nothing listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

#[tokio::test]
async fn a_look_that_fails_says_why_in_words() {
    let fake = Fake::start(vec![("/readyz", says(503, json!("etcd is away")))]);
    let stranger = Fake::start(vec![ok()]);
    let (refused, there) = (nobody(), fake.address);
    let server = |address| Server::new(address, "127.0.0.1").expect("a server");
    let at = |servers| access(fake.ca(), servers);

    let said = one(&fake.access(), Want::Api).await;
    assert_eq!(said, (false, format!("503 from {there}")));
    let said = one(&at(vec![server(refused)]), Want::Api).await;
    assert_eq!(said, (false, format!("connection refused by {refused}")));
    let other = stranger.address;
    let said = one(&at(vec![server(other)]), Want::Api).await;
    let words = format!("the certificate of {other} is not of this cluster's CA");
    assert_eq!(said, (false, words));
    let misnamed = Server::new(there, "api.lab.example").expect("a server");
    let said = one(&at(vec![misnamed]), Want::Api).await;
    assert_eq!(
        said,
        (
            false,
            format!("the certificate of {there} is for other names")
        )
    );
    let said = one(&at(Vec::new()), Want::Api).await;
    assert_eq!(
        said,
        (false, "no control plane can be asked yet".to_owned())
    );
    // Nothing that hangs on the API is asked of one that isn't ready, and the words say the same.
    let said = one(&fake.access(), Want::BootstrapComplete).await;
    assert_eq!(said, (false, format!("503 from {there}")));
    assert!(
        fake.asked()
            .iter()
            .all(|asked| asked.starts_with("GET /readyz "))
    );
    assert!(stranger.asked().is_empty(), "a stranger is told nothing");
}

#[tokio::test]
async fn one_ready_control_plane_of_several_is_enough_and_is_the_one_that_is_asked() {
    let map = json!({"metadata": {"name": "bootstrap"}, "data": {"status": "complete"}});
    let path = "/api/v1/namespaces/kube-system/configmaps/bootstrap";
    let fake = Fake::start(vec![ok(), (path, says(200, map))]);
    let dead = nobody();
    let server = Server::new(dead, "127.0.0.1").expect("a server");
    let access = fake.access().at(vec![server, fake.server()]);
    let seen = look(&access, &[Want::BootstrapComplete, Want::Api]).await;
    let (first, second) = (&seen[0], &seen[1]);
    assert_eq!(
        (first.key.fact.as_str(), first.holds),
        ("bootstrap-complete", true)
    );
    assert_eq!((second.key.fact.as_str(), second.holds), ("api", true));
    let both = format!("connection refused by {dead}; 200 from {}", fake.address);
    assert_eq!(second.words, both);
}

#[tokio::test]
async fn a_server_that_is_silent_or_endless_or_speaks_of_something_else_is_left_in_time() {
    let map = "/api/v1/namespaces/kube-system/configmaps/bootstrap";
    for (answer, words) in [
        (Answer::Silence, "no whole answer from"),
        (Answer::Endless, "reading the answer of"),
        (says(200, json!([1, 2])), "with no object of that kind"),
        (
            Answer::Says(200, "\u{1b}[2J<html>".into()),
            "with no object of that kind",
        ),
    ] {
        let fake = Fake::start(vec![ok(), (map, answer)]);
        let begun = Instant::now();
        let (holds, said) = one(&fake.access(), Want::BootstrapComplete).await;
        assert!(!holds && said.contains(words), "{said}");
        assert!(!said.chars().any(char::is_control), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{said}");
    }
}

#[tokio::test]
async fn the_operators_of_okd_are_believed_only_when_they_say_it_in_as_many_words() {
    let object = |conditions: Vec<Value>| json!({"metadata": {"name": "console"}, "status": {"conditions": conditions}});
    let (yes, no) = (
        condition("Available", "True", ""),
        condition("Progressing", "False", ""),
    );
    let busy = condition(
        "Progressing",
        "True",
        "Working towards 4.21: 640 of 900 done",
    );
    let failing = condition("Failing", "True", "etcd\nis degraded");
    let fine = condition("Failing", "False", "");
    for (conditions, wanted) in [
        (
            vec![yes.clone(), no.clone(), fine.clone()],
            "the version is available",
        ),
        (vec![yes.clone(), no.clone()], "Failing is not reported"),
        (
            vec![yes.clone(), busy.clone(), fine.clone()],
            "Progressing is True: Working towards 4.21: 640 of 900 done",
        ),
        (
            vec![yes.clone(), no.clone(), failing],
            "Failing is True: etcd is degraded",
        ),
        (vec![], "Failing is not reported"),
    ] {
        let path = "/apis/config.openshift.io/v1/clusterversions/version";
        let fake = Fake::start(vec![ok(), (path, says(200, object(conditions)))]);
        let said = one(&fake.access(), Want::VersionAvailable).await;
        assert_eq!(
            said,
            (wanted == "the version is available", wanted.to_owned())
        );
    }
    let list = |items: Vec<Value>| {
        says(
            200,
            json!({"kind": "ClusterOperatorList", "apiVersion": "config.openshift.io/v1", "metadata": {}, "items": items}),
        )
    };
    let sound = condition("Degraded", "False", "");
    let settled = object(vec![yes.clone(), no.clone(), sound.clone()]);
    for (items, wanted) in [
        (
            vec![settled.clone(), settled.clone()],
            "all 2 operators are settled for 0 of 30 s",
        ),
        (
            vec![settled.clone(), object(vec![yes.clone(), no])],
            "1 of 2 operators are not settled: console (Degraded is not reported)",
        ),
        (vec![], "there are no operators yet"),
        (
            vec![settled, object(vec![yes, busy, sound])],
            "1 of 2 operators are not settled: console (Progressing is True: Working towards 4.21: 640 of 900 done)",
        ),
    ] {
        let fake = Fake::start(vec![ok(), (OPERATORS, list(items))]);
        let want = Want::OperatorsSettled(OperatorsWatch::default());
        let said = one(&fake.access(), want).await;
        assert_eq!(said, (false, wanted.to_owned()));
    }
    for (status, wanted) in [("True", true), ("False", false), ("Unknown", false)] {
        let path = "/apis/operator.openshift.io/v1/etcds/cluster";
        let etcd = object(vec![condition("EtcdBootstrapMemberRemoved", status, "")]);
        let fake = Fake::start(vec![ok(), (path, says(200, etcd))]);
        assert_eq!(
            one(&fake.access(), Want::BootstrapMemberRemoved).await.0,
            wanted
        );
    }
}

#[tokio::test]
async fn a_k3s_server_counts_once_it_votes_in_etcd() {
    let labels = json!({"node-role.kubernetes.io/etcd": "true"});
    let node = |labels: Value, status| {
        let mut voter = condition("EtcdIsVoter", status, "Node is a learner");
        // As an API says it of a condition that was written without its moment.
        voter["lastTransitionTime"] = Value::Null;
        let conditions = [voter];
        json!({"metadata": {"name": "server-1", "labels": labels}, "status": {"conditions": conditions}})
    };
    for (node, wanted) in [
        (node(labels.clone(), "True"), "server-1 votes in etcd"),
        (
            node(labels, "False"),
            "server-1: EtcdIsVoter is False: Node is a learner",
        ),
        (node(json!({}), "True"), "server-1 is no member of etcd yet"),
    ] {
        let list = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": [node]});
        let fake = Fake::start(vec![ok(), ("/api/v1/nodes", says(200, list))]);
        let want = Want::EtcdVoter {
            node: "machine-1".parse().expect("a name"),
            name: "server-1".to_owned(),
        };
        let said = one(&fake.access(), want).await;
        assert_eq!(said, (wanted.contains("votes"), wanted.to_owned()));
    }
}

#[tokio::test]
async fn the_machine_config_server_is_asked_as_ignition_asks_it_and_without_a_certificate() {
    for (status, wanted) in [(200, true), (500, false), (404, false)] {
        let answer = Answer::Says(status, String::new());
        let fake = Fake::start(vec![("/config/worker", answer)]);
        let want = Want::MachineConfigServer {
            node: "control-1".parse().expect("a name"),
            server: fake.server(),
            ca: TrustedCa::from_pem(fake.ca().as_bytes()).expect("a CA"),
        };
        // It is asked even where no API can be.
        let nowhere = access(fake.ca(), Vec::new());
        let (holds, words) = one(&nowhere, want).await;
        assert_eq!(holds, wanted, "{words}");
        let asked = fake.asked();
        let [request] = asked.as_slice() else {
            panic!("{asked:?}");
        };
        assert!(
            request.starts_with("HEAD /config/worker HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains("application/vnd.coreos.ignition+json;version="),
            "{request}"
        );
    }
}

#[test]
fn an_access_that_cannot_work_is_refused_without_repeating_it() {
    let text = |text: &str| Secret::new(text.as_bytes().to_vec());
    let secret = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t";
    let user = format!("client-key-data: {secret}");
    let whole = format!(
        "current-context: a\nclusters:\n- name: c\n  cluster: {{server: 'https://[fd00::1]:6443', certificate-authority-data: AAAA}}\n\
         contexts:\n- name: a\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{client-certificate-data: AAAA, {user}}}\n"
    );
    for (config, wanted) in [
        (
            whole.clone(),
            "the cluster's CA is not a certificate in PEM",
        ),
        (
            whole.replace("https:", "http:"),
            "this kubeconfig names no https server",
        ),
        (
            whole.replace("certificate-authority-data", "certificate-authority"),
            "this kubeconfig embeds no CA (certificate-authority-data)",
        ),
        (
            whole.replace("client-key-data", "client-key"),
            "this kubeconfig embeds no key of a user (client-key-data)",
        ),
        (
            whole.replace("user: u", "user: v"),
            "this kubeconfig lacks its context's user",
        ),
        (
            whole.replace("current-context", "context"),
            "this kubeconfig has no current context",
        ),
        (
            format!("{whole}: {secret}"),
            "this kubeconfig is not YAML of its kind",
        ),
    ] {
        let fault = KubeAccess::from_kubeconfig(&text(&config), &[nobody()]);
        let fault = fault.expect_err(wanted);
        let words = format!("{fault} {fault:?}");
        assert!(words.starts_with(wanted), "{words}");
        assert!(!words.contains(secret), "{words}");
    }
    let fault = Server::new(nobody(), "not a name").expect_err("a space");
    assert!(matches!(fault, AccessFault::Name(_)));
}

/// A request as an API server lists it.
fn listed(name: &str, pem: &[u8], created: Timestamp) -> Value {
    let created = created.millis() / 1000;
    let date = Command::new("date")
        .args(["-u", "-d", &format!("@{created}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output();
    let date = String::from_utf8(date.expect("date runs").stdout).expect("text");
    json!({
        "metadata": {"name": name, "resourceVersion": "7", "creationTimestamp": date.trim()},
        "spec": {
            "request": STANDARD.encode(pem), "signerName": client(1).signer, "usages": client(1).usages,
            "username": format!("system:serviceaccount:{NAMESPACE}:node-bootstrapper"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{NAMESPACE}"), "system:authenticated"],
        },
        "status": {},
    })
}

fn list(items: Vec<Value>) -> (&'static str, Answer) {
    (
        CSRS,
        says(
            200,
            json!({"kind": "CertificateSigningRequestList", "apiVersion": "certificates.k8s.io/v1", "metadata": {}, "items": items}),
        ),
    )
}

#[tokio::test]
async fn an_approval_that_somebody_else_was_faster_than_changes_nothing_and_is_told() {
    let csr = listed("csr-1", &client(1).pem(), now());
    let conflict = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "the object has been modified", "reason": "Conflict", "code": 409});
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests/csr-1/approval";
    let fake = Fake::start(vec![list(vec![csr]), (path, says(409, conflict))]);
    let outcomes = round(&fake.access(), expectation(okd()))
        .await
        .expect("listed");
    assert_eq!(codes(&outcomes)["csr-1"], "failed");
    let why = outcomes[0].failed.as_deref().unwrap_or_default();
    assert!(
        why.starts_with("409 from") && why.ends_with("the object has been modified"),
        "{why}"
    );
    // The very version that was judged.
    let asked = fake.asked();
    let put = asked
        .iter()
        .find(|asked| asked.starts_with("PUT "))
        .expect("an approval");
    assert!(put.contains(r#""resourceVersion":"7""#), "{put}");
}

#[tokio::test]
async fn of_two_requests_for_one_boot_the_older_is_approved_and_one_of_an_earlier_boot_does_not_count()
 {
    let good = client(1).pem();
    let (now, path) = (
        now(),
        "/apis/certificates.k8s.io/v1/certificatesigningrequests/b-older/approval",
    );
    let minutes = |count: u64| Timestamp::from_millis(now.millis() - count * 60_000);
    let mut before = listed("c-before", &good, minutes(300));
    before["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    let items = vec![
        listed("a-newer", &good, minutes(1)),
        listed("b-older", &good, minutes(2)),
        before,
    ];
    let fake = Fake::start(vec![list(items), (path, says(200, json!({})))]);
    let outcomes = round(&fake.access(), expectation(okd()))
        .await
        .expect("listed");
    let wanted = [
        ("a-newer".to_owned(), "csr-second"),
        ("b-older".to_owned(), "approved"),
    ];
    assert_eq!(codes(&outcomes), wanted.into());
}

#[tokio::test]
async fn what_two_readers_could_read_in_two_ways_is_unreadable() {
    let one_name = Ask {
        extensions: &["subjectAltName=DNS:worker-1.lab.example"],
        ..client(1)
    };
    let good = one_name.pem();
    let text = String::from_utf8(good.clone()).expect("PEM");
    let der = unwrapped(&good);
    let nothing = || Der::Many(0x30, Vec::new());
    assert_eq!(unwrapped(&with_attributes(&good, |_| ())), der);
    let forged = [
        ("two-blocks", [good.clone(), client(3).pem()].concat()),
        ("words-before", [b"worker-1\n", &*good].concat()),
        (
            "headers",
            text.replace("REQUEST-----\n", "REQUEST-----\nProc-Type: 4\n\n")
                .into(),
        ),
        (
            "other-kind",
            text.replace("CERTIFICATE REQUEST", "CERTIFICATE").into(),
        ),
        ("bytes-behind", wrapped(&[&*der, &[0x30, 0]].concat())),
        ("cut", wrapped(&der[..der.len() / 2])),
        ("not-der", wrapped(b"worker-1")),
        ("endless", wrapped(&[0x30; 40_000])),
        ("empty", Vec::new()),
        // The attribute twice, with two values, and the names twice in one.
        (
            "attribute-twice",
            with_attributes(&good, |all| all.push(all[0].clone())),
        ),
        (
            "two-values",
            with_attributes(&good, |all| all[0].inside()[1].inside().push(nothing())),
        ),
        (
            "names-twice",
            with_attributes(&good, |all| {
                let extensions = all[0].inside()[1].inside()[0].inside();
                extensions.push(extensions[0].clone());
            }),
        ),
    ];
    let items = forged.iter().map(|(name, pem)| listed(name, pem, now()));
    // What they were made of is read, or none of this would show anything.
    let items = items.chain([listed("good", &good, now())]).collect();
    let fake = Fake::start(vec![list(items)]);
    let outcomes = round(&fake.access(), expectation(okd()))
        .await
        .expect("listed");
    let wanted = forged
        .iter()
        .map(|(name, _)| ((*name).to_owned(), "csr-unreadable"));
    let wanted = wanted.chain([("good".to_owned(), "csr-extra")]);
    assert_eq!(codes(&outcomes), wanted.collect());
}

#[tokio::test]
async fn a_request_damaged_at_any_place_is_judged_and_never_makes_another_node() {
    let der = unwrapped(&client(1).pem());
    let damaged = (0..der.len()).map(|place| {
        let mut der = der.clone();
        der[place] ^= 1 << (place % 8);
        listed(&format!("place-{place}"), &wrapped(&der), now())
    });
    let damaged: Vec<Value> = damaged.collect();
    let all = damaged.len();
    let fake = Fake::start(vec![list(damaged)]);
    let outcomes = round(&fake.access(), expectation(okd()))
        .await
        .expect("listed");
    assert_eq!(outcomes.len(), all);
    let (mut approved, mut alarms) = (0, 0);
    for outcome in outcomes {
        match outcome.verdict {
            // The damage is in the key or the signature, which the signer checks.
            Verdict::Approve(node) => {
                assert_eq!(node, "worker-1.lab.example");
                approved += 1;
            }
            Verdict::Alarm(_) => alarms += 1,
            Verdict::Leave(why) => panic!("{}: {why}", outcome.csr),
        }
    }
    assert!(
        approved > 50 && alarms > 50,
        "{approved} approved, {alarms} alarms"
    );
}

#[tokio::test]
async fn a_round_that_nobody_answers_says_why() {
    let dead = nobody();
    let server = Server::new(dead, "127.0.0.1").expect("a server");
    let fake = Fake::start(vec![ok()]);
    let failed = round(&fake.access().at(vec![server]), expectation(okd())).await;
    assert_eq!(
        failed.expect_err("refused").to_string(),
        format!("connection refused by {dead}")
    );
    let failed = round(&fake.access(), expectation(okd())).await;
    assert!(
        failed
            .expect_err("not found")
            .to_string()
            .starts_with("404 from")
    );
}
