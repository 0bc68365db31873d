//! A Talos cluster's life before the real daemon. Machines are namespaces, at whose addresses a fake apid and a fake API
//! answer by the authorities of the cluster's own secrets bundle; nothing boots here.
//!
//! Its database must be started on one node, once: two calls on two nodes are two clusters. So the daemon is killed right
//! after it wrote down whom it would call, and again while the call is under way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use daemon::mint;
use daemon::probe::talos::wire::Bootstrap;
use ignition::platform::talos::Bundle;
use serde_json::{Value, json};
use tests::bastion::{Bastion, reveille};
use tests::kube::condition;
use tests::kube_csr::now;
use tests::kube_fake::{self, Answers, Fake};
use tests::lab::{Lab, until};
use tests::node::Node;
use tests::process::{self, Process};
use tests::site::of_talos;
use tests::talos::{Answer, Authority, FakeTalos, member, reply, sound};

const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: lab.example }
";
const CLUSTER: &str = "name: lab
type: TALOS
version: v1.11.5
network: { serviceCIDR: 10.200.0.0/16 }
nodeGroups:
  - { name: heads, role: CONTROL_PLANE, count: 3, boot: { configTemplate: talos } }
  - { name: workers, role: WORKER, count: 1, boot: { configTemplate: talos } }
";
/// In the order in which places are given.
const MACHINES: [&str; 4] = ["head-1", "head-2", "head-3", "work-1"];
const NODES: &str = "/api/v1/nodes";
const LIMIT: Duration = Duration::from_secs(90);
/// gRPC's numbers (grpc `doc/statuscodes.md`).
const ALREADY_EXISTS: u16 = 6;
const UNAVAILABLE: u16 = 14;

struct Machine {
    node: Node,
    apid: Option<FakeTalos>,
}

struct Install<'a> {
    bastion: Bastion<'a>,
    /// Who applied the definition, and waits.
    admin: Process,
    machines: Vec<Machine>,
    authority: Authority,
    kubernetes: kube_fake::Authority,
    api: Answers,
}

impl<'a> Install<'a> {
    /// The definition in force with a secrets bundle of the test's own, all machines off.
    fn begin(lab: &'a Lab) -> Self {
        let root = lab.path("given");
        of_talos(&root, SITE, &MACHINES);
        let kernel = lab.path("vmlinuz");
        fs::write(&kernel, "a kernel").expect("written");
        let bundle = mint::talos::bundle(now()).expect("secrets");
        let secrets = lab.path("secrets.yaml");
        fs::write(&secrets, bundle.yaml().expose()).expect("written");
        let mut bastion = Bastion::new(lab, &root);
        bastion.import(&kernel, "vmlinuz");
        bastion.start();
        let definition = lab.path("lab.yaml");
        fs::write(&definition, CLUSTER).expect("written");
        let mut apply = process::command(reveille());
        apply.args(["cluster", "apply", "--wait", "--ignore-preflight", "-f"]);
        apply.arg(&definition).arg("--socket").arg(&bastion.socket);
        let admin = lab.netns.start(&lab.timeline, "admin", apply);
        admin.wait_for("lab is in force with 4 machines", LIMIT);
        let secrets = secrets.to_str().expect("paths are text");
        let imported = bastion.client(&["cluster", "import", "lab", secrets]);
        assert!(imported.contains("is kept"), "{imported}");
        let machine = |number| Machine {
            node: Node::new(lab, number),
            apid: None,
        };
        Self {
            bastion,
            admin,
            machines: (1..=4).map(machine).collect(),
            authority: Authority::of(&bundle.os),
            kubernetes: kubernetes(&bundle, &lab.path("kubernetes.key")),
            api: Answers::default(),
        }
    }

    /// Its firmware is given a script and its system a config.
    fn boots(&self, machine: usize) {
        let node = &self.machines[machine].node;
        wait(&format!("the turn of {}", MACHINES[machine]), || {
            node.script().contains("talos.config=")
        });
        let url = Node::argument(&node.script(), "talos.config=").expect("a config");
        // Until the secrets were read again it is told to ask again.
        wait("its config", || node.fetch(&url).0 == "200");
    }

    /// Its apid answers.
    fn wakes(&mut self, machine: usize, answers: Vec<(&'static str, Vec<Answer>)>) {
        let node = &self.machines[machine].node;
        let apid = FakeTalos::at(&node.netns, &self.authority, node.address(), answers);
        self.machines[machine].apid = Some(apid);
    }

    fn apid(&self, machine: usize) -> &FakeTalos {
        self.machines[machine].apid.as_ref().expect("it is awake")
    }

    fn bootstraps(&self, machine: usize) -> usize {
        let calls = self.apid(machine).calls();
        calls.iter().filter(|call| *call == "Bootstrap").count()
    }

    fn cluster(&self) -> Value {
        let said = self.bastion.client(&["cluster", "status", "lab", "--json"]);
        serde_json::from_str(&said).expect("JSON")
    }

    /// Waits for words of `cluster status`.
    fn tells(&self, words: &str) {
        wait(words, || {
            let told = self.bastion.client(&["cluster", "status", "lab"]);
            told.contains(words)
        });
    }
}

/// The authority of the cluster's API. Its key is of the form that only programs for certificates read.
fn kubernetes(bundle: &Bundle, key: &Path) -> kube_fake::Authority {
    fs::write(key, bundle.kubernetes.key.expose()).expect("written");
    let words = ["pkcs8", "-topk8", "-nocrypt", "-in"];
    let converted = Command::new("openssl").args(words).arg(key).output();
    let converted = converted.expect("openssl runs").stdout;
    let key = String::from_utf8(converted).expect("PEM");
    kube_fake::Authority::of(&bundle.kubernetes.certificate, &key)
}

fn nodes(ready: &[&str]) -> kube_fake::Answer {
    let node = |name: &&str| {
        let ready = condition("Ready", "True", "");
        json!({"metadata": {"name": name}, "status": {"conditions": [ready]}})
    };
    let items: Vec<Value> = ready.iter().map(node).collect();
    let list = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": items});
    kube_fake::Answer::Says(200, list.to_string())
}

/// What the status says of a fact that ends a phase.
fn gate<'a>(cluster: &'a Value, fact: &str) -> &'a Value {
    let phases = cluster["phases"].as_array().expect("phases").iter();
    let mut gates = phases.flat_map(|phase| phase["gates"].as_array().expect("gates"));
    gates.find(|gate| gate["fact"] == fact).expect("a gate")
}

/// Waits for what only a command tells, which takes a moment to run.
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    until(what, LIMIT, || {
        let so = is_so();
        if !so {
            std::thread::sleep(Duration::from_millis(200));
        }
        so
    });
}

#[test]
fn a_database_is_started_on_one_node_once_whenever_the_daemon_is_killed_and_phases_go_on_to_ready()
{
    let lab = Lab::flat(0);
    let mut install = Install::begin(&lab);
    install.boots(0);
    wait("the intent", || {
        install.cluster()["bootstrap"]["node"] == "head-1"
    });
    install.bastion.kill();
    let intended = {
        install.bastion.start();
        let call = install.cluster()["bootstrap"].clone();
        assert_eq!(call["done"], Value::Null, "nobody was there to be called");
        call["intended"].clone()
    };
    install.tells("its database is started on head-1: not answered yet");

    // The first call does it, and its answer never comes; a data directory that is there is the answer to the next.
    let etcd = |count: u8| -> Vec<_> {
        let planes = install.machines.iter().take(usize::from(count));
        let planes = planes.map(|machine| machine.node.address());
        (1..)
            .zip(planes)
            .map(|(id, at)| member(id, at.into()))
            .collect()
    };
    let (one, three) = (etcd(1), etcd(3));
    let exists = Answer::Status(ALREADY_EXISTS, "etcd data directory is not empty");
    let waits = Answer::Status(UNAVAILABLE, "etcd is not running");
    let mut answers = sound(&one);
    answers.push(("Bootstrap", vec![Answer::Silence, exists]));
    answers.push(("EtcdMemberList", vec![waits]));
    install.wakes(0, answers);
    wait("the call", || install.bootstraps(0) == 1);
    install.bastion.kill();
    install.bastion.start();
    wait("its end", || {
        install.cluster()["bootstrap"]["done"] != Value::Null
    });
    assert_eq!(install.cluster()["bootstrap"]["intended"], intended);
    assert_eq!(
        install.bootstraps(0),
        2,
        "one that did it, one that was told so"
    );
    let waiting = install.machines[1].node.script();
    assert!(waiting.contains("bootstrapped not seen yet"), "{waiting}");

    install.apid(0).say(sound(&one));
    install.tells("control-plane phase");
    let serving = install.kubernetes.server(&["api.lab.lab.example"]);
    install
        .api
        .say("/readyz", kube_fake::Answer::Says(200, "ok".to_owned()));
    install.api.say(NODES, nodes(&["head-1"]));
    let head = &install.machines[0].node;
    let _api = Fake::at(&head.netns, "10.107.0.11:6443", &serving, &install.api);
    install.tells("1 of 3 control planes");
    for machine in [1, 2] {
        install.boots(machine);
        let mut answers = sound(&three);
        answers.push(("Bootstrap", vec![reply(Bootstrap::default())]));
        install.wakes(machine, answers);
    }
    install.apid(0).say(sound(&three));
    install.tells("head-3 has not joined yet");
    // Three machines that are well are not yet a cluster that is.
    assert_eq!(gate(&install.cluster(), "healthy")["have"], 0);
    install
        .api
        .say(NODES, nodes(&["head-1", "head-2", "head-3"]));
    install.tells("worker phase");

    install.boots(3);
    install.tells("work-1 has not joined yet");
    install.wakes(3, sound(&[]));
    install
        .api
        .say(NODES, nodes(&["head-1", "head-2", "head-3", "work-1"]));
    install.tells("4 of 4 machines ready");
    wait("the end", || install.cluster()["phase"] == "ready");
    for told in [
        "0 of 4 machines ready; bootstrap phase",
        "1 of 4 machines ready; control-plane phase",
        "3 of 4 machines ready; worker phase",
        "4 of 4 machines ready; ready",
    ] {
        install.admin.wait_for(told, LIMIT);
    }
    let ended = install.admin.wait(LIMIT);
    assert!(ended.success(), "{ended}");
    let told: Vec<usize> = (0..3).map(|machine| install.bootstraps(machine)).collect();
    assert_eq!(told, [2, 0, 0]);

    install.bastion.kill();
    install.bastion.start();
    install.tells("4 of 4 machines ready");
    assert_eq!(install.cluster()["phase"], "ready");
    assert_eq!(install.bootstraps(0), 2, "what is done is not done again");
}
