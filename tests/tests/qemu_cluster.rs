//! A cluster's machines with real firmware, powered on in the worst order: those whose turn has not come are held in iPXE, and
//! evidence alone lets them go. Firmware, kernel, Ignition and the config it applies are real; k3s is not: the API's port of
//! each machine leads to one server in the bastion's namespace, so nothing is seen of the cluster before a machine of it runs.
//! That server is kube-apiserver where `KUBE_APISERVER` names one, and a fake elsewhere; the test writes its nodes.

use std::time::Duration;

use daemon::mint;
use daemon::vault::Vault;
use ignition::platform::Platform;
use ignition::platform::k3s::Secrets;
use ignition::platform::talos::Certified;
use netboot::cluster::ClusterName;
use serde_json::{Value, json};
use tests::bastion::{Bastion, site};
use tests::kube::{self, As, Kube, Place, apiserver, condition};
use tests::kube_fake::{Answer, Answers, Authority, Fake};
use tests::lab::{Lab, until};
use tests::okd::now;
use tests::qemu::{Firmware, Hardware, Machine};
use tests::site::{import_images, sha256};

/// From a look at the cluster to what follows from it; a held machine asks again after 15 s at the most.
const LIMIT: Duration = Duration::from_secs(60);
const PROGRAM: &str = "#!/bin/sh\necho a fake k3s\n";
const AUTHORITY: &str = "/var/lib/rancher/k3s/server/tls/server-ca.crt";

/// What answers behind the machines' ports of the API, and the laboratory.
enum Api {
    /// kube-apiserver, by the authorities of the cluster.
    Real(Box<Kube>),
    Fake {
        lab: Lab,
        answers: Answers,
        _server: Fake,
    },
}

impl Api {
    /// It is ready and knows no node.
    fn start(secrets: &Secrets) -> Self {
        let lab = Lab::flat(5);
        let name = "api.edge.lab.example";
        let key = pkcs8(&lab, &secrets.server_ca);
        let certificate = &secrets.server_ca.certificate;
        if let Some(program) = apiserver() {
            let users = pkcs8(&lab, &secrets.client_ca);
            let place = Place {
                port: 16443,
                name,
                servers: kube::Authority {
                    certificate,
                    key: &key,
                },
                users: kube::Authority {
                    certificate: &secrets.client_ca.certificate,
                    key: &users,
                },
            };
            return Self::Real(Kube::at(&program, lab, &place).into());
        }
        let serving = Authority::of(certificate, &key).server(&[name]);
        let answers = Answers::default();
        answers.say("/readyz", Answer::Says(200, "ok".to_owned()));
        let server = Fake::at(&lab.netns, "10.107.0.1:16443", &serving, &answers);
        let api = Self::Fake {
            lab,
            answers,
            _server: server,
        };
        api.lists(&[]);
        api
    }

    fn lab(&self) -> &Lab {
        match self {
            Self::Real(kube) => &kube.lab,
            Self::Fake { lab, .. } => lab,
        }
    }

    /// The nodes are these from now on, and ready; servers vote in etcd. The last one is new.
    fn lists(&self, nodes: &[&str]) {
        let conditions = ["Ready", "EtcdIsVoter"].map(|kind| condition(kind, "True", ""));
        let status = json!({ "status": { "conditions": conditions } });
        let node = |name: &&str| {
            let mut labels = json!({});
            if name.starts_with("server") {
                labels["node-role.kubernetes.io/etcd"] = "true".into();
            }
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } })
        };
        match self {
            Self::Real(kube) => {
                let new = nodes.last().expect("a new node");
                kube.create(As::User("admin"), "/api/v1/nodes", &node(new));
                kube.patch(&format!("/api/v1/nodes/{new}/status"), &status);
            }
            Self::Fake { answers, .. } => {
                let whole = |name| {
                    let mut node: Value = node(name);
                    node["status"] = status["status"].clone();
                    node
                };
                let items: Vec<Value> = nodes.iter().map(whole).collect();
                let list = json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": items });
                answers.say("/api/v1/nodes", Answer::Says(200, list.to_string()));
            }
        }
    }
}

/// The cluster `edge` of `tests/sites/k3s`.
struct Edge<'a> {
    lab: &'a Lab,
    bastion: Bastion<'a>,
}

impl<'a> Edge<'a> {
    /// The bastion serves, and no machine has power.
    fn start(lab: &'a Lab, secrets: &Secrets) -> Self {
        let mut bastion = Bastion::new(lab, &site("k3s"));
        import_images(&bastion);
        let program = lab.path("k3s");
        std::fs::write(&program, PROGRAM).expect("written");
        bastion.import(&program, "k3s");
        // What is in the vault already is not made anew.
        let name: ClusterName = "edge".parse().expect("a name");
        let vault = Vault::open(&bastion.state, None).expect("a vault");
        let sealed = vault.put(&name, Platform::K3s.word(), &secrets.seal());
        sealed.expect("kept");
        bastion.start();
        Self { lab, bastion }
    }

    fn json(&self, words: &[&str]) -> Value {
        let text = self.bastion.client(&[words, &["--json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    fn status(&self) -> Value {
        self.json(&["cluster", "status", "edge"])
    }

    /// The ledger of a machine, the oldest first: those of one kind of fact.
    fn ledger(&self, node: &str, fact: &str) -> Vec<Value> {
        let events = self.json(&["events", "--node", node, "--limit", "1000"]);
        let events = events.as_array().expect("a list").iter();
        events
            .filter(|event| event["fact"] == fact)
            .cloned()
            .collect()
    }

    /// Why a machine was held, each time it asked.
    fn holds(&self, node: &str) -> Vec<String> {
        let scripts = self.ledger(node, "script");
        let held = scripts.iter().filter(|script| script["answer"] == "hold");
        held.map(|script| script["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// What the machine's own iPXE is told when it asks again for the reason that it shows: status line and headers.
    fn asked_again(&self, hardware: &Hardware) -> String {
        let mac = hardware.mac.replace(':', "-");
        let url = format!("http://10.107.0.1:8080/boot/{mac}/script.ipxe");
        let ask = |url: &str| {
            let words = ["--silent", "--include", "--max-time", "10", url];
            self.lab.netns.output("curl", &words)
        };
        let shown = ask(&url);
        let mark = shown.split_once("held=").expect("it asks with a mark").1;
        let mark = mark.split_whitespace().next().expect("a mark");
        ask(&format!("{url}?held={mark}")).to_ascii_lowercase()
    }

    /// The machine runs on the config that is its own.
    fn runs(&self, machine: &Machine) {
        machine.wait_for("node: kernel up");
        machine.wait_for("node: ignition files exit 0");
        let name = &machine.name;
        machine.wait_for(&format!(
            "node: file /etc/hostname {}",
            sha256(hostname(name))
        ));
        machine.wait_for(&format!("node: file /opt/bin/k3s {}", sha256(PROGRAM)));
        machine.wait_for("node: phoned home");
    }

    /// The ledger's own story, for each machine and the one whose evidence it waited for: when it was told to boot, and that
    /// its config left once, and then.
    fn booted(&self, order: &[(&str, Option<&str>)]) {
        let status = self.status();
        let members = status["members"].as_array().expect("members");
        let learned = |node: &str, fact: &str| {
            let member = members.iter().find(|member| member["node"] == node);
            moment(&member.expect("a member")["facts"][fact])
        };
        for &(node, after) in order {
            let scripts = self.ledger(node, "script");
            let (boot, before) = scripts.split_last().expect("scripts were served");
            assert_eq!(boot["answer"], "boot", "{node}: {scripts:?}");
            assert!(before.iter().all(|script| script["answer"] == "hold"));
            assert_eq!(before.is_empty(), after.is_none(), "{node}: {scripts:?}");
            for fact in ["node-ready", "etcd-member"] {
                let seen = after.map_or(0, |after| learned(after, fact));
                assert!(seen <= moment(&boot["at"]), "{node} before {fact}");
            }
            let configs = self.ledger(node, "config");
            assert!(!configs.is_empty(), "{node} has read a config");
            for config in &configs {
                assert!(config["withheld"].is_null(), "{node}: {config}");
                assert!(moment(&config["at"]) >= moment(&boot["at"]), "{config}");
            }
            let deliveries = self.ledger(node, "delivery");
            let [delivery] = &deliveries[..] else {
                panic!("{node}: {deliveries:?}");
            };
            assert_eq!(delivery["acknowledged"], true);
        }
    }
}

/// k3s' keys are written as Go writes them (SEC 1); what signs here takes PKCS #8.
fn pkcs8(lab: &Lab, authority: &Certified) -> String {
    let file = lab.path("authority.key");
    std::fs::write(&file, authority.key.expose()).expect("written");
    let file = file.to_str().expect("paths are text");
    let words = ["pkcs8", "-topk8", "-nocrypt", "-in", file];
    lab.netns.output("openssl", &words)
}

fn hostname(node: &str) -> String {
    format!("{node}\n")
}

fn hardware(name: &str, number: u8, firmware: Firmware) -> Hardware {
    Hardware {
        name: name.to_owned(),
        ..Hardware::numbered(number, firmware)
    }
}

#[test]
fn machines_powered_on_in_the_worst_order_boot_in_the_order_of_evidence() {
    let secrets = mint::k3s::secrets(now()).expect("made");
    let api = Api::start(&secrets);
    let lab = api.lab();
    let edge = Edge::start(lab, &secrets);
    let agent = hardware("agent-1", 4, Firmware::Bios);
    let third = hardware("server-3", 3, Firmware::UefiPxe);
    let second = hardware("server-2", 2, Firmware::Bios);

    // Nobody is there who could be joined: all three wait, and the console says what for.
    let [agent_on, third_on, second_on] = [&agent, &third, &second].map(|each| each.power_on(lab));
    third_on.wait_for("Reveille: waits its turn in edge (bootstrap phase): api not seen yet");
    for each in [&agent, &second] {
        until(&each.name, each.firmware.patience(), || {
            !edge.holds(&each.name).is_empty()
        });
    }
    let told = edge.asked_again(&second);
    assert!(told.starts_with("http/1.1 503"), "{told}");
    assert!(told.contains("\nretry-after: 7\r\n"), "{told}");

    // The first server runs, its API answers, and that alone lets nobody go.
    let first_on = hardware("server-1", 1, Firmware::Bios).power_on(lab);
    edge.runs(&first_on);
    let authority = sha256(&secrets.server_ca.certificate);
    first_on.wait_for(&format!("node: file {AUTHORITY} {authority}"));
    until("the API to be seen", LIMIT, || {
        let status = edge.bastion.client(&["cluster", "status", "edge"]);
        status.contains("200 from 10.107.0.11:6443")
            && status.contains("server-1 has not joined yet")
    });
    assert_eq!(edge.status()["phase"], "bootstrap");

    api.lists(&["server-1"]);
    edge.runs(&second_on);
    third_on.wait_for("Reveille: waits its turn in edge (control-plane phase): 1 of 2");
    api.lists(&["server-1", "server-2"]);
    edge.runs(&third_on);
    assert_eq!(edge.status()["phase"], "control-plane");
    api.lists(&["server-1", "server-2", "server-3"]);
    edge.runs(&agent_on);
    assert_eq!(edge.status()["phase"], "worker");
    api.lists(&["server-1", "server-2", "server-3", "agent-1"]);
    until("the cluster to be ready", LIMIT, || {
        edge.status()["phase"] == "ready"
    });

    let held = edge.holds("agent-1").len();
    assert!(held > 4, "iPXE asks again by itself, not {held} times");
    edge.booted(&[
        ("server-1", None),
        ("server-2", Some("server-1")),
        ("server-3", Some("server-2")),
        ("agent-1", Some("server-3")),
    ]);
}

/// Milliseconds since 1970.
fn moment(value: &Value) -> u64 {
    value.as_u64().expect("a moment")
}
