//! Certificate signing requests for the tests: made by openssl, and what a ledger expects of four workers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use daemon::probe::kube::csr::CsrOutcome;
use netboot::csr::{
    Bootstrapper, CLIENT_SIGNER, CsrPolicy, Expectation, ExpectedNode, SERVING_SIGNER, Verdict,
};
use netboot::net::Timestamp;
use serde_json::{Value, json};

pub const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
pub const NAMESPACE: &str = "openshift-machine-config-operator";

/// What somebody asks to have signed.
#[derive(Clone)]
pub struct Ask {
    pub signer: &'static str,
    pub usages: &'static [&'static str],
    /// As openssl writes one: `/O=system:nodes/CN=system:node:worker-1`.
    pub subject: String,
    /// As openssl writes them: `subjectAltName=IP:10.107.0.21`.
    pub extensions: &'static [&'static str],
}

/// A worker's client certificate, as its kubelet asks for it.
pub fn client(number: u8) -> Ask {
    Ask {
        signer: CLIENT_SIGNER,
        usages: &["digital signature", "key encipherment", "client auth"],
        subject: subject(number),
        extensions: &[],
    }
}

/// A worker's serving certificate for these names.
pub fn serving(number: u8, names: &'static [&'static str]) -> Ask {
    Ask {
        signer: SERVING_SIGNER,
        usages: &["digital signature", "server auth"],
        extensions: names,
        ..client(number)
    }
}

impl Ask {
    /// The request in PEM, with a key that nobody keeps.
    pub fn pem(&self) -> Vec<u8> {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-new", "-newkey", "ec", "-pkeyopt"]);
        openssl.args(["ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null"]);
        openssl.args(["-subj", &self.subject]);
        for extension in self.extensions {
            openssl.args(["-addext", extension]);
        }
        let output = openssl.output().expect("openssl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        output.stdout
    }

    /// The object that asks an API server for it.
    pub fn object(&self, name: &str) -> Value {
        json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": STANDARD.encode(self.pem()),
                "signerName": self.signer,
                "usages": self.usages,
            },
        })
    }
}

fn subject(number: u8) -> String {
    format!("/O=system:nodes/CN=system:node:worker-{number}.lab.example")
}

pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    Timestamp::from_millis(u64::try_from(since.as_millis()).expect("not for long"))
}

/// Worker 1 has booted and waits to join, worker 2 was never booted, worker 3 has joined, worker 4 waits like worker 1.
pub fn expectation(policy: CsrPolicy) -> Expectation {
    let now = now();
    let node = |number: u8| {
        let name = format!("worker-{number}.lab.example");
        let waiting = ExpectedNode {
            dns: vec![name.clone()],
            addresses: vec![IpAddr::from([10, 107, 0, 20 + number])],
            admitted: true,
            booted: true,
            released: Some(Timestamp::from_millis(now.millis() - 600_000)),
            ..ExpectedNode::default()
        };
        let node = match number {
            2 => ExpectedNode {
                booted: false,
                released: None,
                ..waiting
            },
            3 => ExpectedNode {
                ready: true,
                ..waiting
            },
            _ => waiting,
        };
        (name, node)
    };
    Expectation {
        now,
        policy,
        nodes: (1..=4).map(node).collect(),
    }
}

pub fn okd() -> CsrPolicy {
    CsrPolicy {
        client: Some(Bootstrapper::ServiceAccount {
            namespace: NAMESPACE.to_owned(),
            name: "node-bootstrapper".to_owned(),
        }),
        serving: true,
    }
}

/// What became of each, by name: a code, or the word.
pub fn codes(outcomes: &[CsrOutcome]) -> BTreeMap<String, &'static str> {
    let code = |outcome: &CsrOutcome| {
        let word = match &outcome.verdict {
            Verdict::Approve(_) if outcome.failed.is_some() => "failed",
            Verdict::Approve(_) => "approved",
            Verdict::Leave(_) => "left",
            Verdict::Alarm(alarm) => alarm.code(),
        };
        (outcome.csr.clone(), word)
    };
    outcomes.iter().map(code).collect()
}
