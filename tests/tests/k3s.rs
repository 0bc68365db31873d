//! k3s: authorities and tokens made before any machine boots, judged by openssl; documents that the real Ignition takes and
//! applies, and that the real cloud-init takes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use daemon::mint;
use ignition::Document;
use ignition::platform::Role;
use ignition::platform::k3s::{Secrets, document};
use netboot::net::Digest;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::Digest as _;
use tests::cluster::Cluster;
use tests::debian::Debian;
use tests::ignition::{Root, is_valid};
use tests::netns::Netns;
use tests::okd::{now, undo};

const PROGRAM: &[u8] = b"#!/bin/sh\necho a fake k3s\n";
const IMAGES: &[u8] = b"fake images";

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(bytes).into())
}

fn cluster(settings: Value) -> Cluster {
    let files = [
        ("k3s", "k3s", digest(PROGRAM)),
        (
            "k3s_images",
            "k3s-airgap-images-amd64.tar.zst",
            digest(IMAGES),
        ),
    ];
    Cluster::new(settings, &files)
}

fn secrets() -> Secrets {
    mint::k3s::secrets(now()).expect("made")
}

fn told(cluster: &Cluster, secrets: &Secrets, role: Role, index: u16, wanted: Document) -> String {
    let made = cluster.member(role, index, |member, subject| {
        document(member, secrets, &cluster.profile, subject, wanted)
    });
    made.expect("rendered").expect("every node has one")
}

fn openssl(directory: &Path, arguments: &str) -> String {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("openssl runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The first server's files, by the real Ignition.
fn first_server(secrets: &Secrets) -> (Root, Cluster) {
    let mut cluster =
        cluster(json!({ "disable": ["traefik"], "sshKeys": ["ssh-ed25519 AAAA admin"] }));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    cluster.urls.base = format!("http://127.0.0.1:{port}");
    let depot = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.expect("a client");
            let mut request = [0; 4096];
            let length = stream.read(&mut request).expect("a request");
            let images = String::from_utf8_lossy(&request[..length]).contains("images");
            let body = if images { IMAGES } else { PROGRAM };
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body))
                .expect("answered");
        }
    });
    let text = told(&cluster, secrets, Role::ControlPlane, 0, Document::Ignition);
    is_valid(&text);
    let root = Root::of(&text);
    depot.join().expect("both files were fetched");
    (root, cluster)
}

const TLS: &str = "/var/lib/rancher/k3s/server/tls";

#[test]
fn the_first_server_starts_with_authorities_that_openssl_takes_and_a_token_that_names_them() {
    let secrets = secrets();
    let (root, _) = first_server(&secrets);
    let tls = root.path(TLS);
    for name in [
        "server-ca",
        "client-ca",
        "request-header-ca",
        "etcd/server-ca",
        "etcd/peer-ca",
    ] {
        openssl(
            &tls,
            &format!("verify -check_ss_sig -CAfile {name}.crt {name}.crt"),
        );
        let text = openssl(&tls, &format!("x509 -in {name}.crt -noout -text"));
        for words in [
            "CA:TRUE",
            "Certificate Sign",
            "Subject Key Identifier",
            "prime256v1",
        ] {
            assert!(text.contains(words), "{name}: no {words} in {text}");
        }
        let of_certificate = openssl(&tls, &format!("x509 -in {name}.crt -noout -pubkey"));
        let of_key = openssl(&tls, &format!("pkey -in {name}.key -pubout"));
        assert_eq!(of_certificate, of_key, "{name}");
        assert_eq!(root.mode(&format!("{TLS}/{name}.key")), 0o600);
    }
    openssl(&tls, "pkey -in service.key -noout");
    let hash = openssl(&tls, "dgst -sha256 -r server-ca.crt");
    let hash = hash.split_whitespace().next().expect("a hash");
    let config = root.read("/etc/rancher/k3s/config.yaml");
    for line in [
        format!(
            "token: K10{hash}::server:{}",
            secrets.server_password.expose()
        ),
        format!(
            "agent-token: K10{hash}::node:{}",
            secrets.agent_password.expose()
        ),
        "cluster-init: true".to_owned(),
        "node-name: machine-7.lab.example.test".to_owned(),
        "node-ip: 10.107.0.17".to_owned(),
        "cluster-cidr: 10.42.0.0/16".to_owned(),
        "service-cidr: 10.43.0.0/16".to_owned(),
        "- api.lab.example.test".to_owned(),
        "- 10.107.0.1".to_owned(),
        "- traefik".to_owned(),
    ] {
        assert!(
            config
                .lines()
                .any(|said| said.trim().replace('"', "") == line),
            "no {line} in\n{config}"
        );
    }
    assert_eq!(root.mode("/etc/rancher/k3s/config.yaml"), 0o600);
}

#[test]
fn program_and_images_come_from_the_depot_and_are_what_their_digests_say() {
    let (root, _) = first_server(&secrets());
    assert_eq!(fs::read(root.path("/opt/bin/k3s")).expect("there"), PROGRAM);
    assert_eq!(root.mode("/opt/bin/k3s"), 0o755);
    let images = "/var/lib/rancher/k3s/agent/images/k3s-airgap-images-amd64.tar.zst";
    assert_eq!(root.read(images).as_bytes(), IMAGES);
    assert!(
        root.read("/etc/systemd/system/k3s.service")
            .contains("ExecStart=/opt/bin/k3s server")
    );
    assert!(
        root.read("/home/core/.ssh/authorized_keys.d/ignition")
            .contains("admin")
    );
}

#[test]
fn a_kubeconfig_is_of_an_admin_whom_the_client_authority_vouches_for() {
    let secrets = secrets();
    let kubeconfig =
        mint::k3s::kubeconfig(&secrets, "lab", "api.lab.example.test", now()).expect("made");
    let directory = tempfile::tempdir().expect("a directory");
    let field = |name: &str| {
        let (_, rest) = kubeconfig
            .expose()
            .split_once(&format!("{name}: "))
            .expect("the field");
        undo(&format!(
            "base64,{}",
            rest.lines().next().expect("a line").trim_matches('"')
        ))
    };
    for (file, text) in [
        ("ca.crt", secrets.client_ca.certificate.clone()),
        ("admin.crt", field("client-certificate-data")),
        ("admin.key", field("client-key-data")),
    ] {
        fs::write(directory.path().join(file), text).expect("written");
    }
    openssl(
        directory.path(),
        "verify -purpose sslclient -CAfile ca.crt admin.crt",
    );
    let subject = openssl(
        directory.path(),
        "x509 -in admin.crt -noout -subject -nameopt RFC2253",
    );
    assert!(
        subject.contains("CN=system:admin") && subject.contains("O=system:masters"),
        "{subject}"
    );
    let of_key = openssl(directory.path(), "pkey -in admin.key -pubout");
    assert_eq!(
        openssl(directory.path(), "x509 -in admin.crt -noout -pubkey"),
        of_key
    );
    assert_eq!(
        field("certificate-authority-data"),
        secrets.server_ca.certificate
    );
    assert!(
        kubeconfig
            .expose()
            .contains("https://api.lab.example.test:6443")
    );
}

#[test]
fn secrets_come_back_whole_from_the_vault_and_never_in_words() {
    let secrets = secrets();
    let again = Secrets::unseal(&secrets.seal()).expect("of our version");
    assert_eq!(
        again.server_token().expose(),
        secrets.server_token().expose()
    );
    assert_eq!(
        again.etcd_peer_ca.key.expose(),
        secrets.etcd_peer_ca.key.expose()
    );
    let words = format!("{secrets:?}");
    assert!(
        !words.contains("PRIVATE") && !words.contains(secrets.agent_password.expose()),
        "{words}"
    );
}

#[test]
fn servers_join_by_the_api_s_name_and_have_no_keys_of_the_authorities() {
    let (cluster, secrets) = (cluster(Value::Null), secrets());
    let text = told(
        &cluster,
        &secrets,
        Role::ControlPlane,
        1,
        Document::UserData,
    );
    assert!(
        text.contains("server: https://api.lab.example.test:6443"),
        "{text}"
    );
    assert!(
        !text.contains("cluster-init") && !text.contains("PRIVATE KEY"),
        "{text}"
    );
    assert!(text.contains(secrets.server_token().expose()));
}

#[test]
fn cloud_init_takes_every_seed() {
    let (netns, cluster, secrets) = (
        Netns::new(),
        cluster(json!({ "sshKeys": ["ssh-ed25519 AAAA admin"] })),
        secrets(),
    );
    let debian = Debian::over(&netns);
    for (role, index) in [
        (Role::ControlPlane, 0),
        (Role::ControlPlane, 1),
        (Role::Worker, 0),
        (Role::Infra, 3),
    ] {
        let text = told(&cluster, &secrets, role, index, Document::UserData);
        debian.write("/tmp/user-data", 0o600, &text);
        let said = debian.output("cloud-init", &["schema", "--config-file", "/tmp/user-data"]);
        assert!(
            said.contains("Valid") && !said.contains("deprecat"),
            "{said}"
        );
    }
}

/// The script that fetches under cloud-init, run against a file of its own.
#[test]
fn what_is_fetched_under_cloud_init_is_put_in_place_only_when_its_digest_is_right() {
    let (cluster, secrets) = (cluster(Value::Null), secrets());
    let text = told(&cluster, &secrets, Role::Worker, 0, Document::UserData);
    let config: Value = serde_json::from_str(&yaml_as_json(&text)).expect("JSON");
    let files = config["write_files"].as_array().expect("files");
    let script = files
        .iter()
        .find(|file| file["path"] == "/usr/local/lib/reveille/fetch")
        .expect("the script");
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    fs::write(at("fetch"), script["content"].as_str().expect("text")).expect("written");
    fs::write(at("source"), PROGRAM).expect("written");
    let run = |sha256: &str, to: &str| {
        let url = format!("file://{}", at("source"));
        let output = Command::new("python3")
            .args([&at("fetch"), &url, sha256, "0755", &at(to)])
            .output();
        output.expect("Python runs").status.success()
    };
    assert!(!run(&digest(b"else").to_string(), "bin/k3s"));
    assert_eq!(
        fs::read_dir(at("bin")).expect("made").count(),
        0,
        "nothing half right stays"
    );
    assert!(run(&digest(PROGRAM).to_string(), "bin/k3s"));
    assert_eq!(fs::read(at("bin/k3s")).expect("there"), PROGRAM);
}

fn yaml_as_json(text: &str) -> String {
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))";
    let netns = Netns::new();
    let debian = Debian::over(&netns);
    debian.write("/tmp/text", 0o600, text);
    debian.output("sh", &["-c", &format!("python3 -c '{script}' < /tmp/text")])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_document_of_an_agent_holds_an_authority_s_key_or_the_server_s_token(
        index in 0_u16..5000,
        infra: bool,
        disable in proptest::collection::vec("[a-z]{1,8}", 0..3),
        selinux: bool,
    ) {
        let cluster = cluster(json!({ "disable": disable, "selinux": selinux }));
        let secrets = secrets();
        let role = if infra { Role::Infra } else { Role::Worker };
        for wanted in [Document::Ignition, Document::UserData, Document::MetaData, Document::NetworkConfig, Document::IgnitionPointer] {
            let mut text = told(&cluster, &secrets, role, index, wanted);
            if wanted == Document::Ignition {
                let config: Value = serde_json::from_str(&text).expect("JSON");
                let inner = config["storage"]["files"].as_array().expect("files");
                let inner: String = inner
                    .iter()
                    .filter_map(|file| file["contents"]["source"].as_str().filter(|source| source.starts_with("data:")).map(undo))
                    .collect();
                assert!(inner.contains(secrets.agent_token().expose()));
                text += &inner;
            }
            prop_assert!(!text.contains("PRIVATE KEY"));
            prop_assert!(!text.contains(secrets.server_password.expose()));
        }
    }
}
