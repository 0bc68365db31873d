//! The secrets of a Talos cluster, judged by OpenSSL: each key of the right kind, each certificate the key's own, and
//! what administrators are given vouched for by the right authority.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::mint::talos::{admin, bundle, inspect, kubernetes_admin};
use ignition::platform::talos::{Bundle, Certified, Encryption, kubeconfig, pem, talosconfig};
use ignition::secret::Secret;
use netboot::net::Timestamp;
use serde_json::Value;

/// The primes of one bundle are enough.
fn made() -> &'static Bundle {
    static MADE: OnceLock<Bundle> = OnceLock::new();
    MADE.get_or_init(|| bundle(now()).expect("a bundle"))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.expect("a clock that was set").as_millis();
    Timestamp::from_millis(u64::try_from(millis).expect("this era"))
}

/// What `openssl` prints of what it is given, which it must not refuse.
fn openssl(arguments: &[&str], given: &str) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's openssl");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(given.as_bytes()).expect("openssl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("openssl ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The key under a label that OpenSSL knows: of Ed25519 it knows only the general one.
fn readable(key: &Secret<String>) -> String {
    pem::pkcs8(key.expose()).map_or_else(
        || key.expose().clone(),
        |der| pem::encode(pem::PKCS8_KEY, der.expose()),
    )
}

/// OpenSSL's word on whether `authority` vouches for a certificate.
fn vouched(authority: &Certified, purpose: &str, certificate: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &authority.certificate).expect("a file");
    let ca = ca.to_str().expect("a plain path");
    let said = openssl(
        &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca],
        certificate,
    );
    assert_eq!(said.trim(), "stdin: OK");
}

struct Expected {
    subject: &'static str,
    label: &'static str,
    kind: &'static str,
    hours: u64,
}

fn check(made: &Certified, expected: &Expected) {
    let Expected {
        subject,
        label,
        kind,
        hours,
    } = expected;
    let said = openssl(
        &["x509", "-noout", "-subject", "-nameopt", "RFC2253"],
        &made.certificate,
    );
    assert_eq!(said.trim(), format!("subject={subject}"));
    assert!(
        made.key
            .expose()
            .starts_with(&format!("-----BEGIN {label}-----\n")),
        "{label}"
    );
    let key = readable(&made.key);
    let text = openssl(&["pkey", "-noout", "-text"], &key);
    assert!(text.contains(kind), "{text}");
    let public = openssl(&["pkey", "-pubout"], &key);
    assert_eq!(
        openssl(&["x509", "-noout", "-pubkey"], &made.certificate),
        public
    );
    // Lasts to the end of its time, but for the hour by which it was dated back, and no longer.
    let ends_within = |hours: u64| {
        let seconds = (hours * 3600).to_string();
        let given = ["x509", "-noout", "-checkend", &seconds];
        let mut child = Command::new("openssl")
            .args(given)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("Debian's openssl");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin
            .write_all(made.certificate.as_bytes())
            .expect("openssl reads");
        drop(stdin);
        !child.wait().expect("openssl ends").success()
    };
    assert!(!ends_within(hours - 2), "{subject} ends too soon");
    assert!(ends_within(*hours), "{subject} lasts too long");
}

#[test]
fn each_authority_is_what_talos_makes_itself() {
    let made = made();
    let ecdsa = |subject| Expected {
        subject,
        label: "EC PRIVATE KEY",
        kind: "prime256v1",
        hours: 87_600,
    };
    check(&made.etcd, &ecdsa("O=etcd"));
    check(&made.kubernetes, &ecdsa("O=kubernetes"));
    check(&made.aggregator, &ecdsa("CN=front-proxy"));
    check(
        &made.os,
        &Expected {
            subject: "O=talos",
            label: "ED25519 PRIVATE KEY",
            kind: "ED25519",
            hours: 87_600,
        },
    );
    for authority in [&made.etcd, &made.kubernetes, &made.aggregator, &made.os] {
        vouched(authority, "any", &authority.certificate);
        let text = openssl(&["x509", "-noout", "-text"], &authority.certificate);
        for words in [
            "CA:TRUE",
            "Digital Signature, Certificate Sign",
            "TLS Web Server Authentication, TLS Web Client Authentication",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}

#[test]
fn ed25519_keys_are_pkcs8_of_version_1_as_go_writes_them() {
    let (label, der) = pem::decode(made().os.key.expose()).expect("PEM");
    assert_eq!(label, "ED25519 PRIVATE KEY");
    assert_eq!(der.expose().len(), 48, "the seed and nothing behind it");
}

#[test]
fn the_key_of_service_accounts_is_rsa_of_4096_bits() {
    let key = &made().service_account;
    assert!(
        key.expose()
            .starts_with("-----BEGIN RSA PRIVATE KEY-----\n")
    );
    let text = openssl(&["rsa", "-noout", "-check", "-text"], key.expose());
    assert!(
        text.contains("RSA key ok") && text.contains("Private-Key: (4096 bit"),
        "{text}"
    );
}

#[test]
fn administrators_are_vouched_for_by_the_right_authority() {
    let (made, now) = (made(), now());
    let talos = admin(made, now).expect("a certificate");
    check(
        &talos,
        &Expected {
            subject: "O=os:admin",
            label: "ED25519 PRIVATE KEY",
            kind: "ED25519",
            hours: 8760,
        },
    );
    vouched(&made.os, "sslclient", &talos.certificate);
    let kubernetes = kubernetes_admin(made, now).expect("a certificate");
    check(
        &kubernetes,
        &Expected {
            subject: "CN=admin,O=system:masters",
            label: "EC PRIVATE KEY",
            kind: "prime256v1",
            hours: 8760,
        },
    );
    vouched(&made.kubernetes, "sslclient", &kubernetes.certificate);
}

#[test]
fn a_bundle_survives_its_file_and_no_two_of_its_secrets_are_alike() {
    let made = made();
    let text = made.yaml();
    let read = Bundle::read(text.expose()).expect("what was written");
    assert_eq!(read.yaml().expose(), text.expose());
    assert_eq!(inspect(&read, now()), []);
    let Encryption::Secretbox(encryption) = &made.encryption else {
        panic!("new clusters encrypt by secretbox");
    };
    let mut secrets: Vec<&str> = made
        .private_keys()
        .map(|key| key.expose().as_str())
        .collect();
    secrets.extend([
        encryption.expose().as_str(),
        made.bootstrap_token.expose(),
        made.trustd_token.expose(),
        made.cluster_secret.expose(),
        &made.cluster_id,
    ]);
    let different: BTreeSet<&str> = secrets.iter().copied().collect();
    assert_eq!(different.len(), 10);
}

#[test]
fn an_imported_bundle_whose_parts_do_not_belong_together_is_refused() {
    let now = now();
    let mut mixed = made().clone();
    mixed.etcd.key = made().kubernetes.key.clone();
    mixed.os.key = made().kubernetes.key.clone();
    mixed.kubernetes = kubernetes_admin(made(), now).expect("a certificate");
    mixed.service_account = Secret::new("nothing".to_owned());
    let faults: Vec<String> = inspect(&mixed, now)
        .iter()
        .map(ToString::to_string)
        .collect();
    let places: Vec<&str> = faults
        .iter()
        .filter_map(|fault| fault.split(' ').next())
        .collect();
    assert_eq!(
        places,
        [
            "certs.etcd.key",
            "certs.k8s.crt",
            "certs.os.key",
            "certs.k8sserviceaccount.key"
        ]
    );
    let late = inspect(made(), now.plus_seconds(11 * 31_557_600));
    assert!(
        late.iter().all(|fault| fault.problem == "has expired"),
        "{late:?}"
    );
    assert_eq!(late.len(), 4);
}

#[test]
fn a_ca_with_an_rsa_key_signs_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .to_str()
            .expect("plain")
            .to_owned()
    };
    let (key, certificate) = (path("key"), path("crt"));
    openssl(&["genrsa", "-traditional", "-out", &key, "2048"], "");
    let made_by_openssl = [
        "req",
        "-x509",
        "-new",
        "-key",
        &key,
        "-out",
        &certificate,
        "-subj",
        "/CN=kubernetes",
        "-days",
        "2",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ];
    openssl(&made_by_openssl, "");
    let read = |path: &str| std::fs::read_to_string(path).expect("a file");
    let mut imported = made().clone();
    imported.kubernetes = Certified {
        certificate: read(&certificate),
        key: Secret::new(read(&key)),
    };
    assert_eq!(inspect(&imported, now()), []);
    let client = kubernetes_admin(&imported, now()).expect("a certificate");
    vouched(&imported.kubernetes, "sslclient", &client.certificate);
}

#[test]
fn administrators_files_hold_what_opens_the_cluster() {
    let (made, now) = (made(), now());
    let client = admin(made, now).expect("a certificate");
    let addresses = [Ipv4Addr::new(10, 1, 0, 11), Ipv4Addr::new(10, 1, 0, 21)];
    let text = talosconfig("blue", &addresses[..1], &addresses, made, &client);
    let config = yaml(&text);
    assert_eq!(config["context"], "blue");
    let context = &config["contexts"]["blue"];
    assert_eq!(context["endpoints"], serde_json::json!(["10.1.0.11"]));
    assert_eq!(
        context["nodes"],
        serde_json::json!(["10.1.0.11", "10.1.0.21"])
    );
    assert_eq!(decoded(&context["ca"]), made.os.certificate);
    assert_eq!(decoded(&context["crt"]), client.certificate);
    assert_eq!(decoded(&context["key"]), *client.key.expose());

    let client = kubernetes_admin(made, now).expect("a certificate");
    let text = kubeconfig("blue", "api.blue.lab.example", made, &client);
    let config = yaml(&text);
    let cluster = &config["clusters"][0]["cluster"];
    assert_eq!(cluster["server"], "https://api.blue.lab.example:6443");
    assert_eq!(
        decoded(&cluster["certificate-authority-data"]),
        made.kubernetes.certificate
    );
    let user = &config["users"][0]["user"];
    assert_eq!(
        decoded(&user["client-certificate-data"]),
        client.certificate
    );
    assert_eq!(decoded(&user["client-key-data"]), *client.key.expose());
    assert_eq!(config["current-context"], config["contexts"][0]["name"]);
}

fn yaml(text: &Secret<String>) -> Value {
    serde_saphyr::from_str(text.expose()).expect("YAML")
}

fn decoded(text: &Value) -> String {
    let bytes = STANDARD
        .decode(text.as_str().expect("a text"))
        .expect("base64");
    String::from_utf8(bytes).expect("PEM")
}
