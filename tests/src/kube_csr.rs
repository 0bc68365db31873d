//! Certificate signing requests for the tests: made by openssl, and what a ledger expects of four workers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use daemon::probe::kube::csr::CsrOutcome;
use ignition::platform::Platform;
use netboot::csr::{CLIENT_SIGNER, CsrPolicy, Expectation, ExpectedNode, SERVING_SIGNER, Verdict};
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

/// What waits for us on OKD.
pub fn okd() -> CsrPolicy {
    Platform::Okd.csr_policy()
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

/// A request made anew: PEM of these bytes.
pub fn wrapped(der: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
        .into_bytes()
}

/// The bytes of a request in PEM.
pub fn unwrapped(pem: &[u8]) -> Vec<u8> {
    let text = str::from_utf8(pem).expect("PEM is text");
    let body: String = text
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect();
    STANDARD.decode(body).expect("base64")
}

/// A piece of DER, to be cut and pasted: its tag and what is in it.
#[derive(Clone)]
pub enum Der {
    Many(u8, Vec<Self>),
    Bytes(u8, Vec<u8>),
}

impl Der {
    /// Reads pieces; those with the constructed bit are read in turn.
    pub fn read(mut bytes: &[u8]) -> Vec<Self> {
        let mut pieces = Vec::new();
        while let [tag, length, rest @ ..] = bytes {
            let (count, long) = match length {
                0x80.. => (usize::from(length & 0x7f), true),
                _ => (0, false),
            };
            let (octets, rest) = rest.split_at(count);
            let long_length = octets
                .iter()
                .fold(0, |sum, &octet| sum << 8 | usize::from(octet));
            let length = if long {
                long_length
            } else {
                usize::from(*length)
            };
            let (content, rest) = rest.split_at(length);
            pieces.push(match tag & 0x20 {
                0 => Self::Bytes(*tag, content.to_vec()),
                _ => Self::Many(*tag, Self::read(content)),
            });
            bytes = rest;
        }
        pieces
    }

    /// The bytes again, every length in its shortest form.
    pub fn write(&self) -> Vec<u8> {
        let (tag, content) = match self {
            Self::Many(tag, pieces) => (*tag, pieces.iter().flat_map(Self::write).collect()),
            Self::Bytes(tag, content) => (*tag, content.clone()),
        };
        let length = content.len().to_be_bytes();
        let mut octets: Vec<u8> = length.into_iter().skip_while(|&octet| octet == 0).collect();
        if content.len() >= 0x80 {
            octets.insert(0, 0x80 | u8::try_from(octets.len()).expect("a few octets"));
        } else if octets.is_empty() {
            octets.push(0);
        }
        [vec![tag], octets, content].concat()
    }

    /// The pieces inside.
    pub fn inside(&mut self) -> &mut Vec<Self> {
        match self {
            Self::Many(_, pieces) => pieces,
            Self::Bytes(..) => panic!("nothing is inside"),
        }
    }
}

/// The request with its attributes edited: certificationRequest, its info, and the last of that.
pub fn with_attributes(pem: &[u8], edit: impl FnOnce(&mut Vec<Der>)) -> Vec<u8> {
    let mut request = Der::read(&unwrapped(pem)).remove(0);
    let info = &mut request.inside()[0];
    edit(info.inside()[3].inside());
    wrapped(&request.write())
}
