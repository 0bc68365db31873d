//! An OKD cluster's life before the real daemon, from its definition to the day it is done. The cluster is a fake: machines
//! are namespaces, at whose addresses servers say what the test has them say, by certificates of the installer's own set.
//!
//! ```text
//!   a client, 200 connections a second ──▶ 10.107.0.1:6443 ──▶ boot-1, cp-1, cp-2, cp-3     6443, 22623
//!   the world ────────────────────────▶ 203.0.113.1          cp-1 to cp-3, w-1, w-2      80, 443
//!                                          the balancer
//! ```
//!
//! At each of eight points of the install the machines behind each port are those of a table written by hand, told by
//! the daemon's status and by HAProxy's own runtime socket, and the world meets every port but the one that gives secrets.

mod answers;
mod install;

use std::time::Duration;

use serde_json::{Value, json};
use tests::kube::condition;
use tests::kube_csr::CSRS;
use tests::kube_fake::Answer;
use tests::lab::{BASTION, Lab};
use tests::node::Node;
use tests::site::write;
use tests::visitor::Visitor;

use answers::{
    BOOTSTRAP, CLUSTER_VERSION, ETCD, NODES, OPERATORS, VERSION, WORKER_CONFIG, nodes, object,
    operators, request, requests, says,
};
use install::{CLUSTER, Death, Engine, Install, PLANES, PORTS, PUBLIC, Point, wait};

const POINTS: [Point; 8] = [
    Point {
        what: "the definition is in force and nobody is up",
        phase: "bootstrap",
        words: "bootstrap-complete not seen yet; last look 0 s ago: no control plane can be asked yet",
        sets: [
            "boot-1- cp-1- cp-2- cp-3-",
            "boot-1- cp-1- cp-2- cp-3-",
            "cp-1- cp-2- cp-3-",
            "cp-1- cp-2- cp-3-",
        ],
    },
    Point {
        what: "the bootstrap machine is up",
        phase: "bootstrap",
        words: "404 from 10.107.0.10:6443",
        sets: [
            "boot-1+ cp-1- cp-2- cp-3-",
            "boot-1+ cp-1- cp-2- cp-3-",
            "cp-1- cp-2- cp-3-",
            "cp-1- cp-2- cp-3-",
        ],
    },
    Point {
        what: "one control plane is up beside it",
        phase: "bootstrap",
        words: "kube-system/bootstrap says progressing",
        sets: [
            "boot-1+ cp-1+ cp-2- cp-3-",
            "boot-1+ cp-1+ cp-2- cp-3-",
            "cp-1- cp-2- cp-3-",
            "cp-1- cp-2- cp-3-",
        ],
    },
    Point {
        what: "all control planes are up",
        phase: "bootstrap",
        words: "kube-system/bootstrap says progressing",
        sets: [
            "boot-1+ cp-1+ cp-2+ cp-3+",
            "boot-1+ cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
        ],
    },
    Point {
        what: "bootstrapping is complete, and etcd still counts the bootstrap machine",
        phase: "bootstrap",
        words: "EtcdBootstrapMemberRemoved is False: still a member",
        sets: [
            "boot-1+ cp-1+ cp-2+ cp-3+",
            "boot-1+ cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
        ],
    },
    Point {
        what: "etcd let the bootstrap machine go",
        phase: "control-plane",
        words: "500 from 10.107.0.1",
        sets: [
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
        ],
    },
    Point {
        what: "the workers serve",
        phase: "addon",
        words: "Progressing is True: Working towards 4.19: 640 of 900 done",
        sets: [
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
            "w-1+ w-2+ (cp-1+) (cp-2+) (cp-3+)",
            "w-1+ w-2+ (cp-1+) (cp-2+) (cp-3+)",
        ],
    },
    Point {
        what: "the install is complete",
        phase: "ready",
        words: "5 of 5 machines ready",
        sets: [
            "cp-1+ cp-2+ cp-3+",
            "cp-1+ cp-2+ cp-3+",
            "w-1+ w-2+ (cp-1+) (cp-2+) (cp-3+)",
            "w-1+ w-2+ (cp-1+) (cp-2+) (cp-3+)",
        ],
    },
];

/// The whole seconds before ` of 30 s`, if that is what is said of the operators.
fn settled_for(cluster: &Value) -> Option<u64> {
    let sentence = cluster["sentence"].as_str()?;
    let (before, _) = sentence.split_once(" of 30 s")?;
    before.rsplit(' ').next()?.parse().ok()
}

fn life(engine: Engine) {
    let lab = Lab::flat(0);
    let mut install = Install::begin(&lab, engine);
    install.is_at(&POINTS[0]);
    let w = install.node("w-1").script();
    assert!(w.contains("waits its turn in lab (bootstrap phase)"), "{w}");

    for name in ["boot-1"].iter().chain(&PLANES) {
        install.boots(name);
    }
    install.serves("boot-1", &[6443, 22623]);
    install.is_at(&POINTS[1]);

    let user = Node::new(&lab, 190);
    let door = "10.107.0.1:6443";
    let visitor = Visitor::start(
        &user.netns,
        Duration::from_millis(5),
        door,
        "api.lab.example.test",
        &install.ca.pem,
        VERSION,
    );
    install.api.say(
        BOOTSTRAP,
        says(200, &json!({"data": {"status": "progressing"}})),
    );
    let member = |removed| {
        object(
            "cluster",
            &[condition(
                "EtcdBootstrapMemberRemoved",
                removed,
                "still a member",
            )],
        )
    };
    install.api.say(ETCD, says(200, &member("False")));
    install.serves("cp-1", &[6443, 22623]);
    install.is_at(&POINTS[2]);
    install.serves("cp-1", &[80, 443]);
    install.serves("cp-2", &[6443, 22623, 80, 443]);
    install.serves("cp-3", &[6443, 22623, 80, 443]);
    install.is_at(&POINTS[3]);

    install.dies("cp-2", 6443, Death::OfItsServer);
    install.dies("cp-3", 6443, Death::OfTheMachine);
    wait("two dead control planes to be out", || {
        install.sets()[0] == "boot-1+ cp-1+ cp-2- cp-3-"
    });
    install.revives("cp-2", 6443);
    install.revives("cp-3", 6443);
    install.api.say(
        BOOTSTRAP,
        says(200, &json!({"data": {"status": "complete"}})),
    );
    install.is_at(&POINTS[4]);

    write(
        &install.bastion.site,
        "profiles/rescue.yaml",
        "kernel: vmlinuz\npurpose: live\n",
    );
    install.bastion.client(&["reload"]);
    install.is_at(&POINTS[4]);

    install.api.say(ETCD, says(200, &member("True")));
    install.is_at(&POINTS[5]);
    assert_eq!(install.cluster()["retired"], json!(["boot-1"]));
    let left = install.node("boot-1").script();
    assert!(
        left.contains("did its work in cluster lab and left"),
        "{left}"
    );
    for port in [6443, 22623] {
        install.dies("boot-1", port, Death::OfTheMachine);
    }
    certificates(&mut install);

    install
        .api
        .say(NODES, nodes(&["cp-1", "cp-2", "cp-3", "w-1", "w-2"]));
    let version = |progressing: &str| {
        let words = "Working towards 4.19: 640 of 900 done";
        let available = condition("Available", "True", "");
        says(
            200,
            &object(
                "version",
                &[
                    available,
                    condition("Failing", "False", ""),
                    condition("Progressing", progressing, words),
                ],
            ),
        )
    };
    install.api.say(CLUSTER_VERSION, version("True"));
    install
        .api
        .say(OPERATORS, operators("2026-01-01T00:00:00Z", "True"));
    for name in ["w-1", "w-2"] {
        install.serves(name, &[80, 443]);
    }
    install.is_at(&POINTS[6]);
    let (_, who) = user.fetch("http://10.107.0.1:80/");
    assert!(
        ["w-1", "w-2"].contains(&who.as_str()),
        "{who} answers for the routers"
    );

    install.api.say(CLUSTER_VERSION, version("False"));
    settles(&mut install);
    install.is_at(&POINTS[7]);

    let visits = visitor.end();
    println!("{visits:?}");
    let wanted = visits.lasted.as_secs() * 195;
    assert!(visits.made as u64 > wanted, "too few: {visits:?}");
    assert_eq!(visits.failed, 0, "{}\n{visits:#?}", lab.timeline.told());

    // Whatever is unsaid by now was seen.
    install.bastion.kill();
    install.api.forget(BOOTSTRAP);
    install
        .api
        .say(OPERATORS, operators("2026-01-03T00:00:00Z", "True"));
    install.bastion.start();
    install.is_at(&POINTS[7]);
    assert_eq!(install.cluster()["retired"], json!(["boot-1"]));

    let closed = format!("{CLUSTER}network: {{ publicAccess: false }}\n");
    write(&install.bastion.site, "clusters/lab.yaml", &closed);
    install.bastion.client(&["reload"]);
    for (port, _) in PORTS {
        wait("the world to be shut out", || {
            [PUBLIC, BASTION]
                .iter()
                .all(|address| install.refuses_the_world((*address, port)))
        });
    }
    let (_, who) = user.fetch("http://10.107.0.1:80/");
    assert!(
        ["w-1", "w-2"].contains(&who.as_str()),
        "{who} answers for the routers"
    );
    drop(install.haproxy.take());
}

/// Workers come: the request of one that was booted is approved, one of a machine that nobody knows stays, with an alarm.
fn certificates(install: &mut Install<'_>) {
    let waits = install.node("w-1").script();
    assert!(waits.contains("machine-config-server"), "{waits}");
    install
        .config
        .say(WORKER_CONFIG, Answer::Says(200, String::new()));
    for name in ["w-1", "w-2"] {
        install.boots(name);
    }
    let approval = format!("{CSRS}/csr-good/approval");
    install.api.say(&approval, says(200, &json!({})));
    let forged = request("csr-forged", "w-9", false);
    install.api.say(
        CSRS,
        requests(&[forged.clone(), request("csr-good", "w-1", false)]),
    );
    let asked = |install: &Install<'_>| -> Vec<String> {
        let planes = PLANES.iter().map(|name| install.asked(name, 6443));
        planes
            .flatten()
            .filter(|asked| asked.starts_with("PUT "))
            .collect()
    };
    wait("the approval", || !asked(install).is_empty());
    install
        .api
        .say(CSRS, requests(&[forged, request("csr-good", "w-1", true)]));
    wait("the alarm", || {
        let said = install.bastion.client(&["status"]);
        said.contains("certificates of lab") && said.contains("csr-forged")
    });
    let told = install.bastion.client(&["events"]);
    assert!(told.contains("csr-good of w-1"), "{told}");
    for approved in asked(install) {
        assert!(
            approved.starts_with(&format!("PUT {approval}")),
            "{approved}"
        );
        assert!(approved.contains("ReveilleApproved"), "{approved}");
    }
}

/// Operators have to be settled for 30 s of looks in a row: what changed meanwhile, or a new daemon, begins again.
fn settles(install: &mut Install<'_>) {
    let settled = |install: &Install<'_>| settled_for(&install.cluster());
    install
        .api
        .say(OPERATORS, operators("2026-01-01T00:00:00Z", "False"));
    wait("some seconds of peace", || settled(install) > Some(3));
    // It changed and came back between two looks.
    install
        .api
        .say(OPERATORS, operators("2026-01-02T00:00:00Z", "False"));
    wait("a new beginning", || {
        settled(install).is_some_and(|held| held < 3)
    });
    wait("some seconds of peace", || settled(install) > Some(3));
    match install.engine {
        Engine::Embedded => drop(install.bastion.stop()),
        // Its connections are not the daemon's.
        Engine::Haproxy => drop(install.bastion.kill()),
    }
    install.bastion.start();
    wait("a look", || settled(install).is_some());
    assert!(settled(install) < Some(10), "{}", install.cluster());
}

#[test]
fn a_life_is_seen_to_its_end_and_no_client_of_the_api_notices_by_the_daemon_s_own_balancer() {
    life(Engine::Embedded);
}

#[test]
fn a_life_is_seen_to_its_end_and_no_client_of_the_api_notices_by_haproxy() {
    life(Engine::Haproxy);
}
