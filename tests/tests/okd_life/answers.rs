//! What the servers of a fake OKD cluster say.

use serde_json::{Value, json};
use tests::kube::condition;
use tests::kube_csr::{Ask, NAMESPACE, client, now};
use tests::kube_fake::Answer;

pub(crate) const VERSION: &str = r#"{"major":"1","minor":"33","gitVersion":"v1.33.1"}"#;
pub(crate) const READYZ: &str = "/readyz";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const BOOTSTRAP: &str = "/api/v1/namespaces/kube-system/configmaps/bootstrap";
pub(crate) const ETCD: &str = "/apis/operator.openshift.io/v1/etcds/cluster";
pub(crate) const CLUSTER_VERSION: &str = "/apis/config.openshift.io/v1/clusterversions/version";
pub(crate) const OPERATORS: &str = "/apis/config.openshift.io/v1/clusteroperators";
pub(crate) const WORKER_CONFIG: &str = "/config/worker";

pub(crate) fn says(status: u16, body: &Value) -> Answer {
    Answer::Says(status, body.to_string())
}

pub(crate) fn object(name: &str, conditions: &[Value]) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": conditions}})
}

fn list(kind: &str, group: &str, items: &[Value]) -> Answer {
    says(
        200,
        &json!({"kind": kind, "apiVersion": group, "metadata": {}, "items": items}),
    )
}

/// The operators, the last of which changed at this moment.
pub(crate) fn operators(changed: &str, progressing: &str) -> Answer {
    let operator = |name: &str, changed: &str, progressing: &str| {
        let mut conditions = [
            condition("Available", "True", ""),
            condition("Progressing", progressing, "rolling out"),
            condition("Degraded", "False", ""),
        ];
        conditions[1]["lastTransitionTime"] = json!(changed);
        object(name, &conditions)
    };
    let items = [
        operator("etcd", "2026-01-01T00:00:00Z", "False"),
        operator("console", changed, progressing),
    ];
    list("ClusterOperatorList", "config.openshift.io/v1", &items)
}

pub(crate) fn nodes(ready: &[&str]) -> Answer {
    let node = |name: &&str| {
        let name = format!("{name}.lab.example.test");
        object(&name, &[condition("Ready", "True", "")])
    };
    let items: Vec<Value> = ready.iter().map(node).collect();
    list("NodeList", "v1", &items)
}

/// A worker's client certificate, asked for by the credential that all machines share.
pub(crate) fn request(name: &str, node: &str, approved: bool) -> Value {
    let ask = Ask {
        subject: format!("/O=system:nodes/CN=system:node:{node}.lab.example.test"),
        ..client(1)
    };
    let mut object = ask.object(name);
    object["metadata"]["creationTimestamp"] = json!(rfc3339());
    object["metadata"]["resourceVersion"] = json!("7");
    object["spec"]["username"] = json!(format!(
        "system:serviceaccount:{NAMESPACE}:node-bootstrapper"
    ));
    object["spec"]["groups"] = json!([
        "system:serviceaccounts",
        format!("system:serviceaccounts:{NAMESPACE}"),
        "system:authenticated"
    ]);
    let by = json!([{"type": "Approved", "status": "True", "reason": "ReveilleApproved"}]);
    object["status"] = if approved {
        json!({"conditions": by})
    } else {
        json!({})
    };
    object
}

fn rfc3339() -> String {
    let seconds = now().millis() / 1000;
    let words = ["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"];
    let date = std::process::Command::new("date").args(words).output();
    let date = String::from_utf8(date.expect("date runs").stdout);
    date.expect("text").trim().to_owned()
}

pub(crate) fn requests(items: &[Value]) -> Answer {
    list(
        "CertificateSigningRequestList",
        "certificates.k8s.io/v1",
        items,
    )
}
