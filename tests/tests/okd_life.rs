//! An OKD cluster's life before the real daemon, from its definition to the day it is done. The cluster is a fake: machines
//! are namespaces, at whose addresses servers say what the test has them say, by certificates of the installer's own set.
//!
//! ```text
//!   a client, 200 connections a second ──▶ 10.107.0.1:6443 ──▶ boot-1, cp-1, cp-2, cp-3     6443, 22623
//!                                          the balancer         cp-1 to cp-3, w-1, w-2      80, 443
//! ```
//!
//! At each of eight points of the install the machines behind each port are those of a table written by hand, told by
//! the daemon's status and by HAProxy's own runtime socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ignition::platform::okd::File;
use serde_json::{Value, json};
use tests::bastion::Bastion;
use tests::kube::condition;
use tests::kube_csr::{Ask, CSRS, NAMESPACE, client, now};
use tests::kube_fake::{Answer, Answers, Authority, Fake, Serving};
use tests::lab::{Lab, until};
use tests::node::Node;
use tests::okd;
use tests::process::{self, Process};
use tests::visitor::Visitor;

const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: example.test }
";
const PROFILE: &str = "kernel: vmlinuz
arguments: [\"ignition.config.url={{ config_url }}config.ign\", \"reveille.report={{ report_url }}\"]
config: { format: ignition }
disk: { path: /dev/disk/by-path/pci-0 }
";
const CLUSTER: &str = "name: lab
type: OKD
version: 4.19.0-okd-scos.1
nodeGroups:
  - { name: bootstrap, role: BOOTSTRAP, count: 1, boot: { configTemplate: scos }, placement: { preferredNodes: [boot-1] } }
  - { name: masters, role: CONTROL_PLANE, count: 3, boot: { configTemplate: scos }, placement: { labels: { role: cp } } }
  - { name: workers, role: WORKER, count: 2, boot: { configTemplate: scos }, placement: { labels: { role: w } } }
";
/// Names, and numbers as `Node` counts.
const MACHINES: [(&str, u8); 6] = [
    ("boot-1", 0),
    ("cp-1", 1),
    ("cp-2", 2),
    ("cp-3", 3),
    ("w-1", 11),
    ("w-2", 12),
];
const PLANES: [&str; 3] = ["cp-1", "cp-2", "cp-3"];
const LIMIT: Duration = Duration::from_secs(90);
const PORTS: [(u16, &str); 4] = [
    (6443, "lab-api-6443"),
    (22623, "lab-machine-config-22623"),
    (80, "lab-ingress-http-80"),
    (443, "lab-ingress-443"),
];

const VERSION: &str = r#"{"major":"1","minor":"33","gitVersion":"v1.33.1"}"#;
const READYZ: &str = "/readyz";
const NODES: &str = "/api/v1/nodes";
const BOOTSTRAP: &str = "/api/v1/namespaces/kube-system/configmaps/bootstrap";
const ETCD: &str = "/apis/operator.openshift.io/v1/etcds/cluster";
const CLUSTER_VERSION: &str = "/apis/config.openshift.io/v1/clusterversions/version";
const OPERATORS: &str = "/apis/config.openshift.io/v1/clusteroperators";
const WORKER_CONFIG: &str = "/config/worker";

/// What is so at one point of the install. Machines stand in the balancer's order: up with a plus, down with a minus, and in
/// brackets when they serve only while nobody else does.
struct Point {
    what: &'static str,
    phase: &'static str,
    words: &'static str,
    /// In the order of [`PORTS`].
    sets: [&'static str; 4],
}

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

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Embedded,
    Haproxy,
}

/// Who speaks for a dead machine.
#[derive(Clone, Copy)]
enum Death {
    /// Its kernel: connections are refused.
    OfItsServer,
    /// Nobody.
    OfTheMachine,
}

fn says(status: u16, body: &Value) -> Answer {
    Answer::Says(status, body.to_string())
}

fn object(name: &str, conditions: &[Value]) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": conditions}})
}

fn list(kind: &str, group: &str, items: &[Value]) -> Answer {
    says(
        200,
        &json!({"kind": kind, "apiVersion": group, "metadata": {}, "items": items}),
    )
}

/// The operators, the last of which changed at this moment.
fn operators(changed: &str, progressing: &str) -> Answer {
    let operator = |name: &str, changed: &str, progressing: &str| {
        let mut conditions = [
            condition("Available", "True", ""),
            condition("Progressing", progressing, "rolling out"),
            condition("Degraded", "False", ""),
        ];
        conditions[1]["lastTransitionTime"] = json!(changed);
        object(name, &conditions)
    };
    let items = [
        operator("etcd", "2026-01-01T00:00:00Z", "False"),
        operator("console", changed, progressing),
    ];
    list("ClusterOperatorList", "config.openshift.io/v1", &items)
}

fn nodes(ready: &[&str]) -> Answer {
    let node = |name: &&str| {
        let name = format!("{name}.lab.example.test");
        object(&name, &[condition("Ready", "True", "")])
    };
    let items: Vec<Value> = ready.iter().map(node).collect();
    list("NodeList", "v1", &items)
}

/// A worker's client certificate, asked for by the credential that all machines share.
fn request(name: &str, node: &str, approved: bool) -> Value {
    let ask = Ask {
        subject: format!("/O=system:nodes/CN=system:node:{node}.lab.example.test"),
        ..client(1)
    };
    let mut object = ask.object(name);
    object["metadata"]["creationTimestamp"] = json!(rfc3339());
    object["metadata"]["resourceVersion"] = json!("7");
    object["spec"]["username"] = json!(format!(
        "system:serviceaccount:{NAMESPACE}:node-bootstrapper"
    ));
    object["spec"]["groups"] = json!([
        "system:serviceaccounts",
        format!("system:serviceaccounts:{NAMESPACE}"),
        "system:authenticated"
    ]);
    let by = json!([{"type": "Approved", "status": "True", "reason": "ReveilleApproved"}]);
    object["status"] = if approved {
        json!({"conditions": by})
    } else {
        json!({})
    };
    object
}

fn rfc3339() -> String {
    let seconds = now().millis() / 1000;
    let words = ["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"];
    let date = std::process::Command::new("date").args(words).output();
    let date = String::from_utf8(date.expect("date runs").stdout);
    date.expect("text").trim().to_owned()
}

/// One machine and what it serves.
struct Machine {
    node: Node,
    servers: BTreeMap<u16, Fake>,
}

struct Install<'a> {
    lab: &'a Lab,
    engine: Engine,
    bastion: Bastion<'a>,
    /// Holds what dies with the test.
    haproxy: Option<Process>,
    machines: BTreeMap<&'static str, Machine>,
    ca: Authority,
    serving: Serving,
    /// What every API server says, for they have one database.
    api: Answers,
    /// The same of machine-config servers.
    config: Answers,
}

impl<'a> Install<'a> {
    /// The definition in force, the installer's set imported, all machines off.
    fn begin(lab: &'a Lab, engine: Engine) -> Self {
        let root = lab.path("given");
        let machine = |(name, number): &(&str, u8)| {
            let role = if name.starts_with('w') { "w" } else { "cp" };
            let address = 10 + number;
            format!(
                "  - {{ name: {name}, mac: \"52:54:00:aa:00:{number:02x}\", address: 10.107.0.{address}, labels: {{ role: {role} }} }}\n"
            )
        };
        let machines: String = MACHINES.iter().map(machine).collect();
        let machines = format!("machines:\n{machines}").replacen("role: cp", "role: boot", 1);
        let site = match engine {
            Engine::Embedded => SITE.to_owned(),
            Engine::Haproxy => format!("{SITE}balancer: {{ engine: haproxy }}\n"),
        };
        for (name, text) in [
            ("site.yaml", site.as_str()),
            ("machines.yaml", &machines),
            ("profiles/scos.yaml", PROFILE),
            ("clusters/lab.yaml", CLUSTER),
        ] {
            write(&root, name, text);
        }
        let kernel = lab.path("vmlinuz");
        fs::write(&kernel, "a kernel").expect("written");
        let mut bastion = Bastion::new(lab, &root).managed();
        bastion.import(&kernel, "vmlinuz");
        bastion.start();
        let files = okd::files(0);
        okd::write(&lab.path("set"), &files);
        let set = lab.path("set");
        let imported = bastion.client(&["cluster", "import", "lab", set.to_str().expect("text")]);
        assert!(imported.contains("is kept"), "{imported}");
        let ca = okd::authority(&files);
        assert!(files[&File::Kubeconfig].contains("https://api.lab.example.test:6443"));
        let serving = ca.server(&["api.lab.example.test", "api-int.lab.example.test"]);
        let machine = |(name, number)| {
            let node = Node::new(lab, number);
            let servers = BTreeMap::new();
            (name, Machine { node, servers })
        };
        let install = Self {
            haproxy: (engine == Engine::Haproxy).then(|| haproxy(lab, &bastion)),
            lab,
            engine,
            bastion,
            machines: MACHINES.map(machine).into(),
            ca,
            serving,
            api: Answers::default(),
            config: Answers::default(),
        };
        install.api.say(READYZ, Answer::Says(200, "ok".to_owned()));
        install
            .api
            .say("/version", Answer::Says(200, VERSION.to_owned()));
        install.api.say(CSRS, requests(&[]));
        install.api.say(NODES, nodes(&[]));
        install
            .config
            .say(WORKER_CONFIG, Answer::Says(500, String::new()));
        install
    }

    fn node(&self, name: &str) -> &Node {
        &self.machines[name].node
    }

    /// Its firmware is given a script and its system a config, once; it reports its disk written.
    fn boots(&self, name: &str) {
        let node = self.node(name);
        wait(&format!("the turn of {name}"), || {
            node.script().contains("ignition.config.url=")
        });
        let script = node.script();
        let told = |word| Node::argument(&script, word).expect("an argument");
        let config = told("ignition.config.url=");
        let (status, text) = node.fetch(&config);
        assert_eq!(status, "200", "{text}");
        let report = told("reveille.report=");
        let words = [
            "--silent",
            "--insecure",
            "--fail",
            "--data",
            "installed",
            &report,
        ];
        node.netns.output("curl", &words);
    }

    fn serves(&mut self, name: &'static str, ports: &[u16]) {
        for &port in ports {
            let at = format!("{}:{port}", self.node(name).address());
            let fake = match port {
                6443 => Fake::at(&self.node(name).netns, &at, &self.serving, &self.api),
                22623 => Fake::at(&self.node(name).netns, &at, &self.serving, &self.config),
                _ => {
                    let answers = Answers::default();
                    answers.say("/", Answer::Says(200, name.to_owned()));
                    Fake::at(&self.node(name).netns, &at, &Serving::default(), &answers)
                }
            };
            let machine = self.machines.get_mut(name).expect("a machine");
            machine.servers.insert(port, fake);
        }
    }

    /// Takes no new connection from one moment to the next, finishes those it has, and is gone.
    fn dies(&mut self, name: &str, port: u16, death: Death) {
        let machine = self.machines.get_mut(name).expect("a machine");
        let verdict = match death {
            Death::OfItsServer => "reject with tcp reset",
            Death::OfTheMachine => "drop",
        };
        let rules = format!(
            "add table ip dead; add chain ip dead in {{ type filter hook input priority 0; }}; \
             add rule ip dead in tcp dport {port} tcp flags syn / fin,syn,rst,ack {verdict}"
        );
        machine.node.netns.output("nft", &[&rules]);
        let fake = machine.servers.remove(&port).expect("it serves");
        until("its connections to end", LIMIT, || fake.connections() == 0);
    }

    fn revives(&mut self, name: &'static str, port: u16) {
        self.serves(name, &[port]);
        let netns = &self.node(name).netns;
        netns.output("nft", &["delete table ip dead"]);
    }

    fn status(&self) -> Value {
        let said = self.bastion.client(&["status", "--json"]);
        serde_json::from_str(&said).expect("JSON")
    }

    fn cluster(&self) -> Value {
        let said = self.bastion.client(&["cluster", "status", "lab", "--json"]);
        serde_json::from_str(&said).expect("JSON")
    }

    /// Who is behind each port, as the daemon says it.
    fn sets(&self) -> Vec<String> {
        let status = self.status();
        let listeners = status["balancer"].as_array().expect("listeners");
        let of_port = |(port, _): &(u16, &str)| {
            let listener = listeners.iter().find(|listener| listener["port"] == *port);
            let backends = listener.and_then(|listener| listener["backends"].as_array());
            let backends = backends.into_iter().flatten();
            let there = backends.filter(|backend| backend["health"] != "leaving");
            let shown = there.map(|backend| {
                let spare = backend["spare"].as_bool().expect("a truth");
                let node = backend["node"].as_str().expect("a name");
                shown(node, backend["health"] == "up", spare)
            });
            shown.collect::<Vec<_>>().join(" ")
        };
        PORTS.iter().map(of_port).collect()
    }

    /// The same as HAProxy itself says it, each set sorted.
    fn haproxy_s_sets(&self) -> Vec<String> {
        let socket = self.bastion.state.join("haproxy/admin.sock");
        let Ok(mut socket) = UnixStream::connect(socket) else {
            return Vec::new();
        };
        socket.write_all(b"show stat\n").expect("asked");
        let mut stat = String::new();
        socket.read_to_string(&mut stat).expect("text");
        let mut lines = stat.trim_start_matches("# ").lines();
        let header: Vec<&str> = lines.next().expect("a header").split(',').collect();
        let place = |name| header.iter().position(|column| *column == name);
        let [proxy, server, status, spare] = ["pxname", "svname", "status", "bck"].map(place);
        let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
        let cell = |row: &Vec<&str>, at: Option<usize>| row[at.expect("a column")].to_owned();
        let of_port = |(_, name): &(u16, &str)| {
            let mine = rows
                .iter()
                .filter(|row| row.len() > 20 && cell(row, proxy) == *name);
            let servers = mine.filter(|row| {
                let server = cell(row, server);
                server != "FRONTEND" && server != "BACKEND" && cell(row, status) != "DRAIN"
            });
            let up = |row: &Vec<&str>| cell(row, status).starts_with("UP");
            let shown =
                servers.map(|row| shown(&cell(row, server), up(row), cell(row, spare) == "1"));
            sorted(&shown.collect::<Vec<_>>().join(" "))
        };
        PORTS.iter().map(of_port).collect()
    }

    /// Waits until everything is as it is written in the table.
    fn is_at(&self, point: &Point) {
        let Point {
            what,
            phase,
            words,
            sets,
        } = point;
        wait(what, || self.cluster()["phase"] == *phase);
        let mut seen = Vec::new();
        let settled = catch(|| {
            wait(what, || {
                seen = self.sets();
                seen == *sets
            });
        });
        assert!(
            settled,
            "{what}: {seen:#?} and not {sets:#?}\n{}",
            self.lab.timeline.told()
        );
        if self.engine == Engine::Haproxy {
            let wanted = sets.map(sorted);
            let settled = catch(|| {
                wait(what, || {
                    seen = self.haproxy_s_sets();
                    seen == wanted
                });
            });
            let told = self.lab.timeline.told();
            assert!(
                settled,
                "{what}, by HAProxy: {seen:#?} and not {wanted:#?}\n{told}"
            );
        }
        let mut told = String::new();
        let said = catch(|| {
            wait(what, || {
                told = self.bastion.client(&["cluster", "status", "lab"]);
                told.contains(words)
            });
        });
        assert!(said, "{what}: {words:?} is not in\n{told}");
        self.lab.timeline.note(format!("at the point where {what}"));
    }
}

/// HAProxy as its unit would run it, but that it makes do with the descriptors it may open here.
fn haproxy(lab: &Lab, bastion: &Bastion) -> Process {
    let directory = bastion.state.join("haproxy");
    let configuration = directory.join("haproxy.cfg");
    until("a configuration", LIMIT, || configuration.exists());
    let lenient = lab.path("lenient.cfg");
    fs::write(&lenient, "global\n    no strict-limits\n").expect("written");
    let mut command = process::family("haproxy");
    command
        .args(["-W", "-db", "-S"])
        .arg(directory.join("master.sock"));
    command.arg("-f").arg(lenient).arg("-f").arg(configuration);
    lab.netns.start(&lab.timeline, "haproxy", command)
}

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, text).expect("written");
}

fn requests(items: &[Value]) -> Answer {
    list(
        "CertificateSigningRequestList",
        "certificates.k8s.io/v1",
        items,
    )
}

fn shown(node: &str, up: bool, spare: bool) -> String {
    let health = if up { '+' } else { '-' };
    match spare {
        true => format!("({node}{health})"),
        false => format!("{node}{health}"),
    }
}

fn sorted(set: &str) -> String {
    let mut words: Vec<&str> = set.split(' ').collect();
    words.sort_unstable();
    words.join(" ")
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

/// Whether it went well; the caller has better words for why not.
fn catch(act: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_ok()
}

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
    assert_eq!(visits.failed, 0, "{visits:#?}\n{}", lab.timeline.told());

    // Whatever is unsaid by now was seen.
    install.bastion.kill();
    install.api.forget(BOOTSTRAP);
    install
        .api
        .say(OPERATORS, operators("2026-01-03T00:00:00Z", "True"));
    install.bastion.start();
    install.is_at(&POINTS[7]);
    assert_eq!(install.cluster()["retired"], json!(["boot-1"]));
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
        let planes = PLANES
            .iter()
            .map(|name| install.machines[name].servers[&6443].asked());
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
