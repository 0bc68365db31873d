//! What a cluster leans on, before the real daemon: services start one after the other as each is seen to be up, a required
//! one that is not holds whoever has got nothing yet, and `status` says which and why. Machines and the storage of others
//! are namespaces with `curl`, `dig` and plain sockets: nothing boots here.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tests::bastion::Bastion;
use tests::kube_fake::{Answer, Answers, Authority, Fake};
use tests::lab::{Lab, until};
use tests::netns::Netns;
use tests::node::Node;
use tests::site::{of_talos, write};

const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: lab.example }
dns: { mode: serve }
";
const CLUSTER: &str = "name: lab
type: TALOS
version: v1.11.5
network: { serviceCIDR: 10.200.0.0/16 }
nodeGroups:
  - { name: heads, role: CONTROL_PLANE, count: 1, boot: { configTemplate: talos }, tags: [rack-a], metadata: { owner: ops } }
services:
  - { name: api, type: LOAD_BALANCER, dependsOn: [names] }
  - { name: names, type: DNS, dependsOn: [storage] }
  - { name: storage, type: STORAGE, configuration: { address: \"10.107.0.50:2049\" } }
  - { name: leases, type: DHCP }
  - { name: boot, type: PXE_BOOT }
  - { name: metrics, type: MONITORING, required: false, configuration: { url: \"http://10.107.0.50:9090/ready\" } }
  - { name: console, type: MONITORING, required: false, configuration: { url: \"https://10.107.0.50:9443/ready\" } }
  - { name: backup, type: STORAGE, configuration: { mode: external } }
validation: { timeoutMinutes: 45, healthChecks: [node-readiness, api-availability] }
";
const LIMIT: Duration = Duration::from_secs(60);

fn given(root: &Path) {
    of_talos(root, SITE, &["head-1"]);
    write(root, "clusters/lab.yaml", CLUSTER);
}

/// A bastion of this site that has its kernel.
fn with_kernel<'a>(lab: &'a Lab, root: &Path) -> Bastion<'a> {
    let bastion = Bastion::new(lab, root);
    let kernel = lab.path("vmlinuz");
    fs::write(&kernel, "a kernel").expect("written");
    bastion.import(&kernel, "vmlinuz");
    bastion
}

/// A server that takes connections and answers each with one line, until it is dropped.
struct Server {
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(netns: &Netns, at: &'static str, answer: &'static str) -> Self {
        let listener = netns.run(move || TcpListener::bind(at).expect("a free port"));
        listener.set_nonblocking(true).expect("a socket");
        let closed = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&closed);
        let serve = move || {
            while !until.load(SeqCst) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let _ = stream.set_nonblocking(false);
                        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
                        let _ = stream.read(&mut [0; 512]);
                        let _ = stream.write_all(answer.as_bytes());
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        Self {
            closed,
            thread: Some(std::thread::spawn(serve)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closed.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn status(bastion: &Bastion<'_>) -> Value {
    let text = bastion.client(&["cluster", "status", "lab", "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

fn listeners(bastion: &Bastion<'_>) -> usize {
    let text = bastion.client(&["status", "--json"]);
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all["balancer"].as_array().expect("a list").len()
}

/// A service's state and detail.
fn service(status: &Value, name: &str) -> (String, String) {
    let all = status["services"].as_array().expect("a list");
    let one = all.iter().find(|service| service["name"] == name);
    let one = one.unwrap_or_else(|| panic!("{name}: {status}"));
    let text = |key: &str| one[key].as_str().expect("text").to_owned();
    (text("state"), text("detail"))
}

#[test]
fn services_start_in_order_and_a_required_one_that_is_down_holds_the_cluster_and_is_named() {
    let lab = Lab::flat(0);
    let head = Node::new(&lab, 1);
    let others = Node::new(&lab, 40);
    let root = lab.path("given");
    given(&root);
    let mut bastion = with_kernel(&lab, &root);
    let squatter = lab
        .netns
        .run(|| TcpListener::bind("10.107.0.1:6443").expect("free"));
    bastion.start();
    lab.answers_tcp(8080);

    until("every service that can to be looked at", LIMIT, || {
        let now = status(&bastion);
        let state = |name| service(&now, name).0;
        state("leases") == "up" && state("boot") == "up" && state("storage") == "failed"
    });
    let now = status(&bastion);
    let (_, why) = service(&now, "storage");
    assert!(
        why.contains("10.107.0.50:2049: Connection refused"),
        "{why}"
    );
    assert!(why.contains("correct `configuration`"), "{why}");
    assert_eq!(service(&now, "names").1, "waits for storage");
    assert_eq!(service(&now, "api").1, "waits for names");
    assert_eq!(service(&now, "backup").1, "by others, not looked at");
    let order: Vec<&str> = now["services"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|service| service["name"].as_str().expect("a name"))
        .collect();
    let place = |name: &str| order.iter().position(|other| *other == name);
    assert!(
        place("storage") < place("names") && place("names") < place("api"),
        "{order:?}"
    );
    assert_eq!(now["groups"][0]["tags"], serde_json::json!(["rack-a"]));
    assert_eq!(now["groups"][0]["metadata"]["owner"], "ops");
    assert_eq!(now["validation"]["timeout_minutes"], 45);
    let held = head.script();
    assert!(
        held.contains("service storage (required): 10.107.0.50:2049"),
        "{held}"
    );
    let api = || {
        head.netns
            .output("dig", &["+short", "@10.107.0.1", "api.lab.lab.example"])
    };
    assert_eq!(api().trim(), "", "its names are not told yet");
    assert_eq!(listeners(&bastion), 0, "its ports are not wanted yet");

    let storage = Server::start(&others.netns, "10.107.0.50:2049", "");
    until("the balancer to be started", LIMIT, || {
        let (state, why) = service(&status(&bastion), "api");
        state == "failed" && why.contains("10.107.0.1:6443 is taken by")
    });
    assert_eq!(api().trim(), "10.107.0.1");
    assert_eq!(listeners(&bastion), 1);
    let us = format!("(process {})", std::process::id());
    let text = bastion.client(&["status"]);
    assert!(
        text.contains("service api of lab") && text.contains(&us),
        "{text}"
    );
    let held = head.script();
    assert!(
        held.contains("service api (required): 10.107.0.1:6443 is taken by"),
        "{held}"
    );

    drop(squatter);
    until("the first machine's turn", LIMIT, || {
        head.script().contains("talos.config=")
    });
    let (state, why) = service(&status(&bastion), "metrics");
    assert_eq!(state, "failed", "an optional one holds nobody: {why}");
    let metrics = Server::start(
        &others.netns,
        "10.107.0.50:9090",
        "HTTP/1.1 204 No Content\r\n\r\n",
    );
    until("the monitoring to be seen", LIMIT, || {
        service(&status(&bastion), "metrics").1 == "204 from http://10.107.0.50:9090/ready"
    });
    // Its certificate says nothing to anybody here.
    let answers = Answers::default();
    answers.say("/ready", Answer::Says(200, String::new()));
    let stranger = Authority::default().server(&["console.example"]);
    let console = Fake::at(&others.netns, "10.107.0.50:9443", &stranger, &answers);
    until("the console to be seen", LIMIT, || {
        service(&status(&bastion), "console").1 == "200 from https://10.107.0.50:9443/ready"
    });
    drop(console);

    // The machine takes its config; then the storage goes. It goes on, and the phase waits.
    let url = Node::argument(&head.script(), "talos.config=");
    let url = url.expect("the script names a config");
    let (_, config) = head.fetch(&url);
    assert!(config.contains("type: controlplane"), "{config}");
    drop((storage, metrics));
    until("the storage to be missed", LIMIT, || {
        service(&status(&bastion), "storage").0 == "failed"
    });
    assert!(head.script().contains("talos.config="), "its turn is used");
    let now = status(&bastion);
    assert_eq!(service(&now, "api").0, "up", "a flicker stops nothing");
    let sentence = now["sentence"].as_str().expect("text");
    assert!(
        sentence.starts_with("bootstrap phase: service storage (required): "),
        "{sentence}"
    );
    assert_eq!(api().trim(), "10.107.0.1");

    // What was up once is started for good, also for the next daemon.
    bastion.kill();
    bastion.start();
    until("the listener to be there again", LIMIT, || {
        listeners(&bastion) == 1
    });
    assert_eq!(api().trim(), "10.107.0.1");
}

#[test]
fn a_cluster_whose_machines_would_meet_a_failed_check_is_not_put_in_force() {
    let lab = Lab::flat(0);
    let head = Node::new(&lab, 1);
    let root = lab.path("given");
    given(&root);
    let definition = lab.path("lab.yaml");
    let own =
        "  - { name: storage, type: STORAGE, configuration: { address: \"10.107.0.50:2049\" } }\n";
    let text = CLUSTER
        .replace(own, "")
        .replace(", dependsOn: [storage]", "");
    fs::write(&definition, text).expect("written");
    fs::remove_dir_all(root.join("clusters")).expect("removed");
    let mut bastion = with_kernel(&lab, &root);
    bastion.start();
    lab.answers_tcp(8080);
    let file = definition.to_str().expect("paths are text");
    let apply = || {
        bastion
            .operator()
            .command(&["cluster", "apply", "-f", file])
    };

    let squatter = lab
        .netns
        .run(|| TcpListener::bind("10.107.0.1:6443").expect("free"));
    let why = apply().expect_err("the port is taken");
    let us = format!("(process {})", std::process::id());
    for told in [
        "preflight of lab fails; nothing changed",
        "cluster-ports (cluster lab): 10.107.0.1:6443 is taken by ",
        &us,
        "--ignore-preflight",
    ] {
        assert!(why.contains(told), "{told}: {why}");
    }
    drop(squatter);
    // Its names and its balancer come with it, so their absence stops nothing; the monitoring is optional.
    apply().unwrap_or_else(|why| panic!("{why}"));
    until("its services to be up", LIMIT, || {
        let now = status(&bastion);
        ["api", "names", "leases", "boot"]
            .iter()
            .all(|name| service(&now, name).0 == "up")
    });
    until("its secrets to be made", LIMIT, || {
        head.script().contains("talos.config=")
    });
    let report = bastion.client(&["preflight", "lab", "--json"]);
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let result = |id: &str| -> Vec<&str> {
        let checks = report["checks"].as_array().expect("a list").iter();
        let of_id = checks.filter(|check| check["id"] == id);
        of_id
            .map(|check| check["result"].as_str().expect("a word"))
            .collect()
    };
    for id in [
        "cluster-machines",
        "cluster-names",
        "cluster-ports",
        "cluster-secrets",
    ] {
        assert_eq!(result(id), ["pass"], "{id}: {report:#}");
    }
    let services = result("cluster-services");
    assert_eq!(
        services.iter().filter(|one| **one == "pass").count(),
        5,
        "{report:#}"
    );
    assert_eq!(
        services.iter().filter(|one| **one == "warn").count(),
        2,
        "{report:#}"
    );
    let unknown = bastion.operator().command(&["preflight", "prod"]);
    let unknown = unknown.expect_err("nobody knows it");
    assert!(unknown.contains("there is no cluster prod"), "{unknown}");

    bastion.client(&["cluster", "destroy", "lab", "--confirm", "lab"]);
    assert_eq!(listeners(&bastion), 0);
    let told = lab.timeline.told();
    let stopped = |name: &str| told.find(&format!("stopped cluster=lab service={name}"));
    assert!(
        stopped("api").is_some() && stopped("api") < stopped("names"),
        "{told}"
    );
}

#[test]
fn a_definition_that_leaves_the_site_has_its_services_stopped_in_reverse() {
    let lab = Lab::flat(0);
    let root = lab.path("given");
    given(&root);
    let started = CLUSTER.replacen(", dependsOn: [storage]", "", 1);
    write(&root, "clusters/lab.yaml", &started);
    let mut bastion = with_kernel(&lab, &root);
    bastion.start();
    until("its balancer to be started", LIMIT, || {
        service(&status(&bastion), "api").0 == "up"
    });
    fs::remove_file(bastion.site.join("clusters/lab.yaml")).expect("removed");
    bastion.client(&["reload"]);
    assert_eq!(listeners(&bastion), 0);
    let told = lab.timeline.told();
    let stopped = |name: &str| told.find(&format!("stopped cluster=lab service={name}"));
    assert!(
        stopped("api").is_some() && stopped("api") < stopped("names"),
        "{told}"
    );
}

#[test]
fn a_cluster_behind_a_relay_is_named_at_the_address_it_shares_and_a_second_one_there_is_told_of() {
    // The machines of a relayed network meet the address that its link has in its own network.
    const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: lab.example }
  - { name: far, link: br0, subnet: 10.108.0.0/24, relayed: true, router: 10.108.0.1, domain: far.example }
dns: { mode: serve }
";
    const MACHINES: &str = "machines:
  - { name: head-1, mac: \"52:54:00:aa:00:01\", address: 10.107.0.11, labels: { at: near } }
  - { name: head-2, mac: \"52:54:00:aa:00:02\", address: 10.108.0.11, network: far, labels: { at: far } }
";
    let lab = Lab::flat(0);
    let root = lab.path("given");
    of_talos(&root, SITE, &["head-1"]);
    write(&root, "machines.yaml", MACHINES);
    for (name, network, place, service) in [
        ("one", "provisioning", "near", 96),
        ("two", "far", "far", 97),
    ] {
        let definition = format!(
            "name: {name}\ntype: TALOS\nversion: v1.11.5\n\
             network: {{ network: {network}, podCIDR: 10.{place_of}.0.0/16, serviceCIDR: 10.{service}.0.0/16 }}\n\
             nodeGroups:\n  - {{ name: heads, role: CONTROL_PLANE, count: 1, boot: {{ configTemplate: talos }}, \
             placement: {{ labels: {{ at: {place} }} }} }}\n",
            place_of = service + 100
        );
        write(&root, &format!("clusters/{name}.yaml"), &definition);
    }
    let definition = root.join("clusters/two.yaml");
    let text = fs::read_to_string(&definition).expect("it was written");
    let services = "services:\n  - { name: names, type: DNS }\n";
    fs::write(&definition, format!("{text}{services}")).expect("written");
    let mut bastion = with_kernel(&lab, &root);
    bastion.start();
    until("the contradiction to be told", LIMIT, || {
        let told = bastion.client(&["status"]);
        told.contains("cluster two would listen on 10.107.0.1:6443, where cluster one does")
    });
    until("its DNS service to be up", LIMIT, || {
        let text = bastion.client(&["cluster", "status", "two", "--json"]);
        let now = serde_json::from_str(&text).expect("JSON");
        service(&now, "names")
            == (
                "up".to_owned(),
                "api.two.far.example is 10.107.0.1 at 10.107.0.1:53".to_owned(),
            )
    });
    for name in ["api", "api-int", "console.apps"] {
        let asked = format!("{name}.two.far.example");
        let told = lab.netns.output("dig", &["+short", "@10.107.0.1", &asked]);
        assert_eq!(told.trim(), "10.107.0.1", "{asked}");
    }
    fs::remove_file(bastion.site.join("clusters/two.yaml")).expect("removed");
    bastion.client(&["reload"]);
    until("it to be over", LIMIT, || {
        !bastion.client(&["status"]).contains("would listen")
    });
}
