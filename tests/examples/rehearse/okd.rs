//! The definition `tests/fixtures/clusters/okd-production.json`, posted as it is to a bastion on VLAN 107, and its four machines
//! powered on in the wrong order.
//!
//! ```text
//!   person ── vmbr0.3 ── bastion ── vmbr0.107 ──┬── storage01 hv5 hv6 hv7 ──(their ports)──▶ fakes in the bastion's namespace
//!                                               └── a switch that nothing else hangs on
//! ```
//!
//! Firmware, kernels, Ignition, DNS and the balancer are real: the control planes' Ignition asks for its machine config at
//! `api-int`, which is the bootstrap machine behind the bastion. Fakes: openshift-install, CoreOS (`node-init`), and what
//! would run on it (`cluster.rs`). The two links are one end of a cable and a bridge: a kernel without 8021q must do.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::bastion::{Bastion, reveille, site};
use tests::lab::Lab;
use tests::netns::Netns;
use tests::process;
use tests::qemu::{Cable, Firmware, Hardware, Machine};
use tests::site::{import_images, sha256};

use crate::cluster::Cluster;
use crate::{show, tell};

pub(crate) const FQDN: &str = "okd-production.lab.example";
pub(crate) const MASTERS: [&str; 3] = ["hv5", "hv6", "hv7"];
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 1, 107, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const CLUSTER: &str = "okd-production";
const STATUS: [&str; 3] = ["cluster", "status", CLUSTER];
/// From what the cluster says to the phase that follows: some looks, and the half minute that operators must be settled for.
const PHASE_LIMIT: Duration = Duration::from_secs(120);

const KERNEL: (&str, &str) = ("node: kernel up", "its kernel runs");
const UP: [(&str, &str); 4] = [
    (
        "node: ignition fetch exit 0",
        "Ignition has the config, and all that it merges",
    ),
    ("node: ignition files exit 0", "Ignition wrote its files"),
    ("node: forwards 6443", "its ports answer"),
    ("node: phoned home", "it reported to the bastion"),
];

/// From the posted definition to `Ready`.
///
/// # Panics
/// When a phase isn't reached, or something else isn't as it must be.
pub(crate) fn rehearse() {
    println!("A bastion with vmbr0.3 (public) and vmbr0.107 (private) serves tests/sites/okd.");
    let (lab, person, switch) = (Lab::empty(), Netns::new(), Netns::new());
    lab.netns.bridge("vmbr0.107", PRIVATE, 24);
    for name in ["storage01", "hv5", "hv6", "hv7"] {
        if let Cable::Tap(tap) = hardware(name).cable {
            lab.netns.tap(&tap, "vmbr0.107");
        }
    }
    lab.netns.cable("trunk", &switch, "port1");
    lab.netns.ip("link set trunk master vmbr0.107");
    lab.netns.cable("vmbr0.3", &person, "eth0");
    lab.netns.ip(&format!("addr add {PUBLIC}/24 dev vmbr0.3"));
    person.ip("addr add 203.0.113.9/24 dev eth0");
    let mut bastion = Bastion::new(&lab, &site("okd"));
    import_images(&bastion);
    bastion.start();

    show(&bastion, &["preflight"]);
    provision(&lab, &bastion);
    let hv7 = power_on(&lab, "hv7");
    let held = hv7.wait_for("Reveille: waits its turn");
    let seconds = hv7.seconds_to(&held);
    println!("hv7: {seconds:5.1} s  its console: {}\n", held.text);
    let set = installer(&lab, &bastion);
    let cluster = Cluster::of(&lab, &set);
    let [hv6, hv5] = ["hv6", "hv5"].map(|name| power_on(&lab, name));
    let masters = [hv5, hv6, hv7];
    for machine in &masters {
        tell(machine, &[KERNEL]);
    }
    wait(&bastion, "configs for all control planes", |status| {
        let members = status["members"].as_array().into_iter().flatten();
        let masters = members.filter(|member| member["role"] == "control-plane");
        masters
            .filter(|member| member["state"] == "installing")
            .count()
            == MASTERS.len()
    });
    println!("Their Ignition waits for the machine-config server of the bootstrap machine.\n");
    show(&bastion, &STATUS);

    let storage01 = power_on(&lab, "storage01");
    tell(&storage01, &[KERNEL]);
    tell(&storage01, &UP);
    let machine_config = format!("node: file /etc/machine-config {}", sha256("master"));
    for machine in &masters {
        tell(machine, &UP);
        machine.wait_for(&machine_config);
    }
    phases(&bastion, &cluster, storage01);
    show(&bastion, &["status"]);
    seen_from_outside(&lab, &person, cluster.ca());
}

/// What the cluster shows, and which phase follows from it.
fn phases(bastion: &Bastion<'_>, cluster: &Cluster, bootstrap: Machine) {
    println!("\nThe bootstrap is complete, but etcd still has its member: storage01 must stay.\n");
    cluster.api_is_ready();
    cluster.nodes_are_ready();
    cluster.bootstrap_is_complete();
    wait(bastion, "bootstrap-complete", |status| {
        status["phases"][0]["gates"][0]["open"] == true && status["members"][1]["state"] == "ready"
    });
    show(bastion, &STATUS);

    cluster.bootstrap_member_is_removed();
    reaches(bastion, "control-plane");
    println!("etcd has let go of it: storage01 is free, and is switched off.\n");
    drop(bootstrap);
    show(bastion, &STATUS);

    cluster.workers_may_join();
    reaches(bastion, "addon");
    println!("A control plane hands out the workers' config; there are no workers to wait for.\n");
    show(bastion, &STATUS);

    cluster.operators_settle();
    wait(bastion, "settled operators", |status| {
        status["phases"].to_string().contains("settled for")
    });
    println!("The version is available, and all operators have settled; that must last.\n");
    show(bastion, &STATUS);
    reaches(bastion, "ready");
    println!("It did.\n");
    show(bastion, &STATUS);
}

/// Shows the plan, and posts the definition.
fn provision(lab: &Lab, bastion: &Bastion<'_>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/clusters/okd-production.json");
    let [file, socket] = [&file, &bastion.socket].map(|path| path.to_str().expect("text"));
    let mut plan = process::command(reveille());
    plan.args(["cluster", "plan", "-f", file, "--socket", socket]);
    let plan = lab.netns.run(move || plan.output());
    let plan = plan.expect("the client runs");
    let [out, error] =
        [plan.stdout, plan.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    // A plan that would change something.
    assert_eq!(plan.status.code(), Some(2), "{error}");
    println!("$ reveille cluster plan -f okd-production.json\n{out}");

    let url = "http://localhost/api/v1/clusters/provision";
    println!(
        "$ curl -X POST {url} --unix-socket /run/reveille/control.sock -H 'Content-Type: application/json' -d @okd-production.json"
    );
    let words = [
        "-X",
        "POST",
        url,
        "--unix-socket",
        socket,
        "-H",
        "Content-Type: application/json",
    ];
    let done = curl(
        &lab.netns,
        &[&words[..], &["-d", &format!("@{file}")]].concat(),
    );
    let done: Value = serde_json::from_str(&done).expect("JSON");
    assert_eq!(done["changed"], true, "{done}");
    println!(
        "{}\n",
        done["plan"]["sentence"].as_str().expect("a sentence")
    );
}

/// Has the installer make its set, and imports that; its directory.
fn installer(lab: &Lab, bastion: &Bastion<'_>) -> PathBuf {
    let directory = lab.path("install");
    std::fs::create_dir(&directory).expect("made");
    let config = json!({ "baseDomain": "lab.example", "metadata": { "name": CLUSTER } });
    std::fs::write(directory.join("install-config.yaml"), config.to_string()).expect("written");
    let path = directory.to_str().expect("paths are text");
    for target in ["manifests", "ignition-configs"] {
        println!("$ openshift-install create {target} --dir install");
        let fake = concat!(env!("CARGO_MANIFEST_DIR"), "/lab/openshift-install-fake");
        lab.netns.output(fake, &["create", target, "--dir", path]);
    }
    let told = bastion.client(&["cluster", "import", CLUSTER, path]);
    println!("$ reveille cluster import {CLUSTER} install\n{told}");
    directory
}

/// The names, the API and the routers by the public address, and what must not be there.
fn seen_from_outside(lab: &Lab, person: &Netns, authority: &str) {
    let ca = lab.path("root-ca.crt");
    std::fs::write(&ca, authority).expect("written");
    let ca = ca.to_str().expect("paths are text");
    println!("From the public side:\n");
    for (name, port, path) in [
        (format!("api.{FQDN}"), 6443, "/readyz"),
        (format!("console.apps.{FQDN}"), 443, "/"),
    ] {
        let address = person.output("dig", &["+short", &format!("@{PUBLIC}"), &name]);
        print!("$ dig +short @{PUBLIC} {name}\n{address}");
        let resolved = format!("{name}:{port}:{}", address.trim());
        let url = format!("https://{name}:{port}{path}");
        let said = curl(person, &["--cacert", ca, "--resolve", &resolved, &url]);
        println!("$ curl --cacert root-ca.crt {url}\n{}", said.trim_end());
    }
    let private = format!("https://{PUBLIC}:22623/config/master");
    let refused = person.try_output("curl", &["--silent", "--max-time", "5", &private]);
    assert!(refused.is_err(), "what gives secrets answers outside");
    println!("Nobody answers on port 22623 there, where machines get their secrets.");
}

fn curl(netns: &Netns, words: &[&str]) -> String {
    let common = [
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--max-time",
        "60",
    ];
    netns.output("curl", &[&common, words].concat())
}

fn power_on(lab: &Lab, name: &str) -> Machine {
    let hardware = hardware(name);
    println!(
        "{name}: power on ({:?}, {})",
        hardware.firmware, hardware.mac
    );
    hardware.power_on(lab)
}

/// The machines of `tests/sites/okd`.
fn hardware(name: &str) -> Hardware {
    let (number, firmware) = match name {
        "storage01" => (1, Firmware::Bios),
        "hv5" => (5, Firmware::Bios),
        "hv6" => (6, Firmware::Bios),
        "hv7" => (7, Firmware::UefiPxe),
        _ => panic!("the site okd has no machine {name}"),
    };
    Hardware {
        name: name.to_owned(),
        ..Hardware::numbered(number, firmware)
    }
}

fn reaches(bastion: &Bastion<'_>, phase: &str) {
    wait(bastion, phase, |status| status["phase"] == phase);
}

/// Waits until the cluster's status is as wanted.
fn wait(bastion: &Bastion<'_>, what: &str, is_so: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + PHASE_LIMIT;
    loop {
        let status = bastion.client(&[&STATUS[..], &["--json"]].concat());
        if is_so(&serde_json::from_str(&status).expect("JSON")) {
            return;
        }
        if Instant::now() > deadline {
            show(bastion, &STATUS);
            panic!("{CLUSTER} did not come to {what} within {PHASE_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
