//! The install: a bastion with the real daemon, machines that are namespaces, and the world outside.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ignition::platform::okd::File;
use serde_json::Value;
use tests::bastion::Bastion;
use tests::kube_csr::CSRS;
use tests::kube_fake::{Answer, Answers, Authority, Fake, Serving};
use tests::lab::{BASTION, Lab, until};
use tests::netns::Netns;
use tests::node::Node;
use tests::okd;
use tests::process::{self, Process};
use tests::site::write;

use crate::answers::{NODES, READYZ, VERSION, WORKER_CONFIG, nodes, requests};

const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: example.test }
";
const PROFILE: &str = "kernel: vmlinuz
arguments: [\"ignition.config.url={{ config_url }}config.ign\", \"reveille.report={{ report_url }}\"]
config: { format: ignition }
disk: { path: /dev/disk/by-path/pci-0 }
";
pub(crate) const CLUSTER: &str = "name: lab
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
/// The bastion in the world.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const PLANES: [&str; 3] = ["cp-1", "cp-2", "cp-3"];
const LIMIT: Duration = Duration::from_secs(90);
pub(crate) const PORTS: [(u16, &str); 4] = [
    (6443, "lab-api-6443"),
    (22623, "lab-machine-config-22623"),
    (80, "lab-ingress-http-80"),
    (443, "lab-ingress-443"),
];

/// What is so at one point of the install. Machines stand in the balancer's order: up with a plus, down with a minus, and in
/// brackets when they serve only while nobody else does.
pub(crate) struct Point {
    pub(crate) what: &'static str,
    pub(crate) phase: &'static str,
    pub(crate) words: &'static str,
    /// In the order of [`PORTS`].
    pub(crate) sets: [&'static str; 4],
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Engine {
    Embedded,
    Haproxy,
}

/// Who speaks for a dead machine.
#[derive(Clone, Copy)]
pub(crate) enum Death {
    /// Its kernel: connections are refused.
    OfItsServer,
    /// Nobody.
    OfTheMachine,
}

/// One machine and what it serves.
struct Machine {
    node: Node,
    servers: BTreeMap<u16, Fake>,
}

pub(crate) struct Install<'a> {
    lab: &'a Lab,
    pub(crate) engine: Engine,
    world: Netns,
    pub(crate) bastion: Bastion<'a>,
    /// Holds what dies with the test.
    pub(crate) haproxy: Option<Process>,
    machines: BTreeMap<&'static str, Machine>,
    pub(crate) ca: Authority,
    serving: Serving,
    /// What every API server says, for they have one database.
    pub(crate) api: Answers,
    /// The same of machine-config servers.
    pub(crate) config: Answers,
}

impl<'a> Install<'a> {
    /// The definition in force, the installer's set imported, all machines off.
    pub(crate) fn begin(lab: &'a Lab, engine: Engine) -> Self {
        let world = Netns::new();
        lab.netns.cable("eth0", &world, "eth0");
        lab.netns.ip(&format!("addr add {PUBLIC}/24 dev eth0"));
        world.ip("addr add 203.0.113.9/24 dev eth0");
        world.ip(&format!("route add {BASTION}/32 via {PUBLIC}"));
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
        let engine_s_name = match engine {
            Engine::Embedded => "embedded",
            Engine::Haproxy => "haproxy",
        };
        let site = format!("{SITE}balancer: {{ engine: {engine_s_name}, public: [eth0] }}\n");
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
            world,
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

    pub(crate) fn node(&self, name: &str) -> &Node {
        &self.machines[name].node
    }

    /// Its firmware is given a script and its system a config, once; it reports its disk written.
    pub(crate) fn boots(&self, name: &str) {
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

    pub(crate) fn serves(&mut self, name: &'static str, ports: &[u16]) {
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
    pub(crate) fn dies(&mut self, name: &str, port: u16, death: Death) {
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
        until("its connections to end", LIMIT, || {
            machine.node.netns.tcp_connections(port) == 0
        });
        drop(fake);
    }

    pub(crate) fn revives(&mut self, name: &'static str, port: u16) {
        self.serves(name, &[port]);
        let netns = &self.node(name).netns;
        netns.output("nft", &["delete table ip dead"]);
    }

    /// The requests that a server had so far.
    pub(crate) fn asked(&self, name: &str, port: u16) -> Vec<String> {
        self.machines[name].servers[&port].asked()
    }

    fn status(&self) -> Value {
        let said = self.bastion.client(&["status", "--json"]);
        serde_json::from_str(&said).expect("JSON")
    }

    pub(crate) fn cluster(&self) -> Value {
        let said = self.bastion.client(&["cluster", "status", "lab", "--json"]);
        serde_json::from_str(&said).expect("JSON")
    }

    /// Who is behind each port, as the daemon says it.
    pub(crate) fn sets(&self) -> Vec<String> {
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
    pub(crate) fn is_at(&self, point: &Point) {
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
            "{}\n{what}: {seen:#?} and not {sets:#?}",
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
                "{told}\n{what}, by HAProxy: {seen:#?} and not {wanted:#?}"
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
        self.the_world_meets_all_but_the_machine_configs(what);
        self.lab.timeline.note(format!("at the point where {what}"));
    }

    /// By the public address; and by the inner one through the public link, as a neighbour may ask.
    fn the_world_meets_all_but_the_machine_configs(&self, what: &str) {
        for (port, _) in PORTS {
            for address in [PUBLIC, BASTION] {
                let refused = self.refuses_the_world((address, port));
                assert_eq!(refused, port == 22623, "{what}: {port}");
            }
        }
    }

    pub(crate) fn refuses_the_world(&self, to: (Ipv4Addr, u16)) -> bool {
        let connect = move || TcpStream::connect_timeout(&to.into(), Duration::from_secs(5));
        match self.world.run(connect) {
            Ok(_) => false,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
            // It was taken, and nobody was there to serve it.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{to:?}: {error}"),
        }
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
pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
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
