//! A cluster's machines with real firmware, powered on in the worst order: those whose turn has not come are held in iPXE, and
//! evidence alone lets them go. Firmware, kernel, Ignition and the config it applies are real; k3s is not: the API's port of
//! each machine leads to one fake, so nothing is seen of a cluster before a machine of it runs.

use std::time::Duration;

use daemon::mint;
use daemon::vault::Vault;
use ignition::platform::Platform;
use ignition::platform::k3s::Secrets;
use netboot::cluster::ClusterName;
use serde_json::{Value, json};
use tests::bastion::{Bastion, site};
use tests::kube_fake::{Answer, Answers, Authority, Fake};
use tests::lab::{Lab, until};
use tests::okd::now;
use tests::qemu::{Firmware, Hardware, Machine};
use tests::site::{import_images, sha256};

/// From a look at the cluster to what follows from it; a held machine asks again after 15 s at the most.
const LIMIT: Duration = Duration::from_secs(60);
const PROGRAM: &str = "#!/bin/sh\necho a fake k3s\n";
const AUTHORITY: &str = "/var/lib/rancher/k3s/server/tls/server-ca.crt";

/// The cluster `edge` of `tests/sites/k3s`.
struct Edge<'a> {
    lab: &'a Lab,
    bastion: Bastion<'a>,
    secrets: Secrets,
    answers: Answers,
    _api: Fake,
}

impl<'a> Edge<'a> {
    /// The bastion serves; no machine has power, and the fake knows nothing yet.
    fn start(lab: &'a Lab) -> Self {
        let mut bastion = Bastion::new(lab, &site("k3s"));
        import_images(&bastion);
        let program = lab.path("k3s");
        std::fs::write(&program, PROGRAM).expect("written");
        bastion.import(&program, "k3s");
        // What is in the vault already is not made anew, so the fake can have a certificate of the cluster's own authority.
        let secrets = mint::k3s::secrets(now()).expect("made");
        let name: ClusterName = "edge".parse().expect("a name");
        let vault = Vault::open(&bastion.state, None).expect("a vault");
        vault
            .put(&name, Platform::K3s.word(), &secrets.seal())
            .expect("kept");
        let authority = &secrets.server_ca;
        let key = pkcs8(lab, authority.key.expose());
        let authority = Authority::of(&authority.certificate, &key);
        let serving = authority.server(&["api.edge.lab.example"]);
        let answers = Answers::default();
        let api = Fake::at(&lab.netns, "10.107.0.1:16443", &serving, &answers);
        bastion.start();
        Self {
            lab,
            bastion,
            secrets,
            answers,
            _api: api,
        }
    }

    /// From now on the API is ready, and these nodes are; servers vote in etcd.
    fn shows(&self, ready: &[&str]) {
        let node = |name: &&str| {
            let labels = match name.starts_with("server") {
                true => json!({ "node-role.kubernetes.io/etcd": "true" }),
                false => json!({}),
            };
            let is_true = |kind| json!({ "type": kind, "status": "True" });
            json!({
                "metadata": { "name": name, "labels": labels },
                "status": { "conditions": [is_true("Ready"), is_true("EtcdIsVoter")] },
            })
        };
        let nodes: Vec<Value> = ready.iter().map(node).collect();
        let list =
            json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": nodes });
        self.answers
            .say("/api/v1/nodes", Answer::Says(200, list.to_string()));
        self.answers
            .say("/readyz", Answer::Says(200, "ok".to_owned()));
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
fn pkcs8(lab: &Lab, key: &str) -> String {
    let file = lab.path("authority.key");
    std::fs::write(&file, key).expect("written");
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
    let lab = Lab::flat(5);
    let edge = Edge::start(&lab);
    let agent = hardware("agent-1", 4, Firmware::Bios);
    let third = hardware("server-3", 3, Firmware::UefiPxe);
    let second = hardware("server-2", 2, Firmware::Bios);

    // Nobody is there who could be joined: all three wait, and the console says what for.
    let [agent_on, third_on, second_on] = [&agent, &third, &second].map(|each| each.power_on(&lab));
    third_on.wait_for("Reveille: waits its turn in edge (bootstrap phase): api not seen yet");
    for each in [&agent, &second] {
        until(&each.name, each.firmware.patience(), || {
            !edge.holds(&each.name).is_empty()
        });
    }
    let told = edge.asked_again(&second);
    assert!(told.starts_with("http/1.1 503"), "{told}");
    assert!(told.contains("\nretry-after: 7\r\n"), "{told}");

    // The first server runs, and nothing is seen of it but a refusal.
    let first_on = hardware("server-1", 1, Firmware::Bios).power_on(&lab);
    edge.runs(&first_on);
    let authority = sha256(&edge.secrets.server_ca.certificate);
    first_on.wait_for(&format!("node: file {AUTHORITY} {authority}"));
    until("the API's refusal to be seen", LIMIT, || {
        let status = edge.bastion.client(&["cluster", "status", "edge"]);
        status.contains("404 from 10.107.0.11:6443")
    });
    assert_eq!(edge.status()["phase"], "bootstrap");

    edge.shows(&["server-1"]);
    edge.runs(&second_on);
    third_on.wait_for("Reveille: waits its turn in edge (control-plane phase): 1 of 2");
    edge.shows(&["server-1", "server-2"]);
    edge.runs(&third_on);
    assert_eq!(edge.status()["phase"], "control-plane");
    edge.shows(&["server-1", "server-2", "server-3"]);
    edge.runs(&agent_on);
    assert_eq!(edge.status()["phase"], "worker");
    edge.shows(&["server-1", "server-2", "server-3", "agent-1"]);
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
