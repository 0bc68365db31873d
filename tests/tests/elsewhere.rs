//! What others serve in the bastion's place: the real daemon looks at a dnsmasq and a HAProxy that somebody else set up,
//! with a machine behind it that answers by the cluster's own CA (`openssl s_server`).
//!
//! ```text
//!   bastion eth1 10.107.0.1 ----- eth0 10.107.0.53 dnsmasq
//!                                      10.107.0.250 HAProxy
//!                                      10.107.0.11, .12 machines
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::vault::Vault;
use ignition::platform::{Platform, Secrets};
use rcgen::{CertificateParams, Issuer, KeyPair};
use serde_json::Value;
use tests::bastion::Bastion;
use tests::lab::{Lab, until};
use tests::netns::Netns;
use tests::process::{self, Process};

const LIMIT: Duration = Duration::from_secs(60);
const SITE: &str = "site: test
networks:
  - { name: provisioning, link: eth1, subnet: 10.107.0.0/24, domain: lab.example, dns: [10.107.0.53] }
dns: { mode: external }
balancer: { engine: external, addresses: [10.107.0.250] }
";
const MACHINES: &str = "machines:
  - { name: head-1, mac: 52:54:00:aa:00:01, address: 10.107.0.11 }
";
const CLUSTER: &str = "name: lab
type: K3S
version: v1.32.0+k3s1
nodeGroups:
  - { name: heads, role: CONTROL_PLANE, count: 1, boot: { configTemplate: k3s } }
services:
  - { name: names, type: DNS }
  - { name: ports, type: LOAD_BALANCER, dependsOn: [names], configuration: { mode: external } }
";

/// The others' side of the cable.
struct World {
    lab: Lab,
    others: Netns,
}

impl World {
    fn new() -> Self {
        let (lab, others) = (Lab::empty(), Netns::new());
        lab.netns.cable("eth1", &others, "eth0");
        lab.netns.ip("addr add 10.107.0.1/24 dev eth1");
        for last in [11, 12, 53, 250] {
            others.ip(&format!("addr add 10.107.0.{last}/24 dev eth0"));
        }
        let root = lab.path("given");
        for (name, text) in [
            ("site.yaml", SITE),
            ("machines.yaml", MACHINES),
            (
                "profiles/k3s.yaml",
                "kernel: vmlinuz\nartifacts: { k3s: vmlinuz }\nconfig: { format: cloud-init }\n",
            ),
            ("clusters/lab.yaml", CLUSTER),
        ] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        }
        Self { lab, others }
    }

    fn bastion(&self) -> Bastion<'_> {
        let mut bastion = Bastion::new(&self.lab, &self.lab.path("given"));
        let kernel = self.lab.path("vmlinuz");
        fs::write(&kernel, "no kernel at all").expect("a file");
        bastion.import(&kernel, "vmlinuz");
        bastion.start();
        self.lab.answers_tcp(8080);
        bastion
    }

    /// A server that knows these names.
    fn dnsmasq(&self, records: &[(&str, &str)]) -> Process {
        let mut command = process::command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
        ]);
        command.args([
            "--log-facility=-",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ]);
        command.args(["--listen-address=10.107.0.53", "--local=/lab.example/"]);
        for (name, address) in records {
            command.arg(format!("--address=/{name}.lab.lab.example/{address}"));
        }
        let server = self.others.start(&self.lab.timeline, "dnsmasq", command);
        server.wait_for("started, version", LIMIT);
        server
    }

    /// Somebody's HAProxy, with one machine behind it.
    fn haproxy(&self, backend: &str) -> Process {
        let path = self.lab.path("haproxy.cfg");
        let text = format!(
            "defaults\n    mode tcp\n    timeout connect 1s\n    timeout client 1m\n    timeout server 1m\n\
             listen api\n    bind 10.107.0.250:6443\n    server one {backend}:6443\n"
        );
        fs::write(&path, text).expect("written");
        let mut command = process::command("haproxy");
        command.args(["-db", "-f"]).arg(path);
        let server = self.others.start(&self.lab.timeline, "haproxy", command);
        until("HAProxy to listen", LIMIT, || {
            let connect = || std::net::TcpStream::connect("10.107.0.250:6443").is_ok();
            self.others.run(connect)
        });
        server
    }

    /// A machine's API server: it answers /readyz to anybody, by this certificate.
    fn api(&self, address: &str, certificate: &Path) -> Process {
        let served = self.lab.path("served");
        fs::create_dir_all(&served).expect("made");
        fs::write(served.join("readyz"), "ok").expect("written");
        let mut command = process::command("openssl");
        command.current_dir(served);
        command.args(["s_server", "-quiet", "-WWW", "-accept"]);
        command.arg(format!("{address}:6443"));
        command
            .arg("-cert")
            .arg(certificate)
            .arg("-key")
            .arg(certificate);
        let server = self.others.start(&self.lab.timeline, "openssl", command);
        let at = format!("{address}:6443");
        until("the API server to listen", LIMIT, || {
            let at = at.clone();
            self.others
                .run(move || std::net::TcpStream::connect(at).is_ok())
        });
        server
    }

    /// A certificate of api.lab.lab.example with its key; `authority` is that of another cluster unless given.
    fn certificate(&self, name: &str, authority: Option<(&str, &str)>) -> PathBuf {
        let key = KeyPair::generate().expect("a key");
        let params =
            CertificateParams::new(vec!["api.lab.lab.example".to_owned()]).expect("a name");
        let certificate = match authority {
            Some((certificate, key_of_ca)) => {
                // It is in SEC1's form, which rcgen does not read.
                let file = self.lab.path("ca.key");
                fs::write(&file, key_of_ca).expect("written");
                let file = file.to_str().expect("paths are text");
                let words = ["pkcs8", "-topk8", "-nocrypt", "-in", file];
                let key_of_ca = self.others.output("openssl", &words);
                let of_ca = KeyPair::from_pem(&key_of_ca).expect("the authority's key");
                let issuer = Issuer::from_ca_cert_pem(certificate, of_ca).expect("the authority");
                params.signed_by(&key, &issuer).expect("signed")
            }
            None => params.self_signed(&key).expect("signed"),
        };
        let path = self.lab.path(name);
        fs::write(
            &path,
            format!("{}{}", certificate.pem(), key.serialize_pem()),
        )
        .expect("written");
        path
    }
}

/// What preflight found now, by subject: the result and the evidence.
fn found(bastion: &Bastion<'_>, subject: &str) -> (String, String) {
    // The exit code is that of a check that failed, and then the error tells what was printed.
    let said = bastion.operator().command(&["preflight", "--json"]);
    let said = said.unwrap_or_else(|failed| failed);
    let begin = said
        .find("{\n")
        .unwrap_or_else(|| panic!("no JSON: {said}"));
    let mut documents = serde_json::Deserializer::from_str(&said[begin..]).into_iter();
    let report: Value = documents.next().expect("a document").expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let mut of_others = checks.iter().filter(|check| check["id"] == "elsewhere");
    let check = of_others.find(|check| check["subject"] == format!("lab: {subject}"));
    let check = check.unwrap_or_else(|| panic!("nothing of {subject}: {said}"));
    let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (word("result"), word("evidence"))
}

/// Waits for words of `cluster status`.
fn tells(bastion: &Bastion<'_>, words: &str) {
    let mut told = String::new();
    let is_told = || {
        told = bastion.client(&["cluster", "status", "lab"]);
        told.contains(words)
    };
    until(words, LIMIT, is_told);
}

#[test]
fn names_and_ports_that_others_serve_are_looked_at_until_they_are_right() {
    const API: &str = "api at 10.107.0.250:6443";
    let world = World::new();
    let names = world.dnsmasq(&[("api", "10.107.0.250"), ("api-int", "10.107.0.1")]);
    let bastion = world.bastion();
    let listed = bastion.client(&["balancer", "requirements"]);
    for told in [
        "to be taken by another balancer",
        "at 10.107.0.250:6443",
        "10.107.0.11:6443",
        "GET /readyz",
    ] {
        assert!(listed.contains(told), "{told}: {listed}");
    }

    // The daemon looks by itself.
    let mut status = Value::Null;
    until("what others serve to be in the status", LIMIT, || {
        status = serde_json::from_str(&bastion.client(&["status", "--json"])).expect("JSON");
        status["elsewhere"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    });
    let state = |subject: &str| {
        let all = status["elsewhere"].as_array().expect("findings");
        let finding = all.iter().find(|finding| finding["subject"] == subject);
        finding.unwrap_or_else(|| panic!("{subject}: {status}"))["state"].clone()
    };
    assert_eq!(state("api.lab.lab.example by 10.107.0.53"), "right");
    assert_eq!(state("api-int.lab.lab.example by 10.107.0.53"), "wrong");
    assert_eq!(state("*.apps.lab.lab.example by 10.107.0.53"), "wrong");
    assert_eq!(state(API), "waits", "nobody answers behind it yet");
    assert_eq!(status["healthy"], false);
    tells(
        &bastion,
        "service names (required): *.apps.lab.lab.example by 10.107.0.53: is no address",
    );
    tells(&bastion, "service ports (required): waits for names");

    drop(names);
    let all = ["api", "api-int", "apps"].map(|name| (name, "10.107.0.250"));
    let _names = world.dnsmasq(&all);
    tells(&bastion, "as it must be: 3");
    tells(&bastion, "as it must be: 0; once machines answer: 1");
    let vault = Vault::open(&bastion.state, None).expect("the daemon's vault");
    let cluster: netboot::cluster::ClusterName = "lab".parse().expect("a name");
    let sealed = vault
        .get(&cluster, "k3s")
        .expect("opened")
        .expect("made by the daemon");
    let Ok(Secrets::K3s(secrets)) = Platform::K3s.unseal(&sealed) else {
        panic!("the secrets of a k3s cluster");
    };
    let ca = &secrets.server_ca;
    let own = world.certificate("own.pem", Some((&ca.certificate, ca.key.expose())));
    let _api = world.api("10.107.0.11", &own);
    let (result, why) = found(&bastion, API);
    assert_eq!(result, "fail", "{why}");
    assert!(why.contains("though head-1 answers"), "{why}");

    let balancer = world.haproxy("10.107.0.11");
    let (result, why) = found(&bastion, API);
    assert_eq!(
        (result.as_str(), why.contains("it is this cluster")),
        ("pass", true),
        "{why}"
    );
    let (result, why) = found(&bastion, "*.apps.lab.lab.example by 10.107.0.53");
    assert_eq!(result, "pass", "{why}");

    // It is open, but leads to somebody else's cluster.
    drop(balancer);
    let foreign = world.certificate("foreign.pem", None);
    let _foreign = world.api("10.107.0.12", &foreign);
    let _balancer = world.haproxy("10.107.0.12");
    let (result, why) = found(&bastion, API);
    assert_eq!(result, "fail", "{why}");
    assert!(why.contains("certificate"), "{why}");
    tells(&bastion, &format!("service ports (required): {API}: "));
}
