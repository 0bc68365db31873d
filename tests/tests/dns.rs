//! The daemon's DNS, asked by real clients from each of its sides.
//!
//! ```text
//!   machine  eth0 10.107.0.11 ----- eth1 10.107.0.1   bastion   eth0 203.0.113.1 ----- eth0 203.0.113.9  outside
//!                                                                                      eth0 203.0.113.53 dnsmasq
//! ```
//!
//! dnsmasq is the server that the site forwards to: it knows `example.org`, whose names the tests can count on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use tests::bastion::Bastion;
use tests::debian::Debian;
use tests::lab::{Lab, until};
use tests::netns::Netns;
use tests::process::{self, Process};

const LIMIT: Duration = Duration::from_secs(20);
const INSIDE: &str = "@10.107.0.1";
const OUTSIDE: &str = "@203.0.113.1";
const REFUSER: &str = "203.0.113.54";
const SITE: &str = "site: lab
networks:
  - { name: provisioning, link: eth1, subnet: 10.107.0.0/24, domain: lab.example }
dns:
  forward: [FORWARD]
  public: [eth0]
  ttl: 30s
  records:
    registry.lab.example: [10.107.0.1, \"fd00:107::1\"]
    \"*.web.lab.example\": [10.107.0.1]
ntp: { serve: true }
";
const MACHINES: &str = "machines:
  - { name: node-1, mac: 52:54:00:aa:00:01, address: 10.107.0.11, profile: live }
  - { name: node-2, mac: 52:54:00:aa:00:02, address: 10.107.0.12, profile: live }
";

struct World {
    lab: Lab,
    machine: Netns,
    outside: Netns,
}

impl World {
    fn new(forward: &str) -> Self {
        let (lab, machine, outside) = (Lab::empty(), Netns::new(), Netns::new());
        let bastion = &lab.netns;
        bastion.cable("eth1", &machine, "eth0");
        bastion.cable("eth0", &outside, "eth0");
        bastion.ip("addr add 10.107.0.1/24 dev eth1");
        bastion.ip("addr add 203.0.113.1/24 dev eth0");
        machine.ip("addr add 10.107.0.11/24 dev eth0");
        machine.ip("route add default via 10.107.0.1");
        outside.ip("addr add 203.0.113.9/24 dev eth0");
        outside.ip("addr add 203.0.113.53/24 dev eth0");
        outside.ip(&format!("addr add {REFUSER}/24 dev eth0"));
        outside.ip("route add 10.107.0.0/24 via 203.0.113.1");
        let site = lab.path("made");
        fs::create_dir_all(site.join("profiles")).expect("a site directory");
        let write = |name: &str, text: &str| fs::write(site.join(name), text).expect("a site file");
        write("site.yaml", &SITE.replace("FORWARD", forward));
        write("machines.yaml", MACHINES);
        write("profiles/live.yaml", "kernel: vmlinuz\npurpose: live\n");
        Self {
            lab,
            machine,
            outside,
        }
    }

    /// The daemon, once it answers questions.
    fn bastion(&self) -> Bastion<'_> {
        let mut bastion = Bastion::new(&self.lab, &self.lab.path("made"));
        let kernel = self.lab.path("vmlinuz");
        fs::write(&kernel, "no kernel at all").expect("a file");
        bastion.import(&kernel, "vmlinuz");
        bastion.start();
        until("the daemon to answer for a machine's name", LIMIT, || {
            dig(&self.machine, &[INSIDE, "+short", "node-1.lab.example"]) == "10.107.0.11"
        });
        bastion
    }

    /// A fake: a server that refuses every question at once.
    fn refuser(&self) {
        let socket = self
            .outside
            .run(|| UdpSocket::bind((REFUSER, 53)).expect("a free port"));
        std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                // QR, and the code REFUSED.
                packet[2] |= 0x80;
                packet[3] = 5;
                let _ = socket.send_to(&packet[..length], from);
            }
        });
    }

    fn dnsmasq(&self) -> Process {
        let long = format!("--txt-record=long.example.org,{}", "x".repeat(200));
        let mut command = process::command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
        ]);
        command.args([
            "--log-facility=-",
            "--log-queries",
            "--no-resolv",
            "--no-hosts",
            "--port=53",
        ]);
        command.args([
            "--bind-interfaces",
            "--listen-address=203.0.113.53",
            "--local=/example.org/",
        ]);
        command.args([
            "--host-record=www.example.org,198.51.100.80",
            "--local-ttl=100",
        ]);
        command.args([
            "--auth-server=ns.example.org,eth9",
            "--auth-zone=auth.example.org",
        ]);
        command.args(["--cname=alias.example.org,www.example.org"]);
        for number in 0..5 {
            command.arg(format!("{long}{number}"));
        }
        let server = self.outside.start(&self.lab.timeline, "dnsmasq", command);
        server.wait_for("started, version", LIMIT);
        server
    }
}

/// What dig prints; an exit code besides zero is no answer.
fn dig(netns: &Netns, words: &[&str]) -> String {
    let words = [&["+tries=1", "+time=5"], words].concat();
    let said = netns
        .try_output("dig", &words)
        .unwrap_or_else(|error| error);
    said.trim().to_owned()
}

/// The status, the flags and the sections' counts of an answer.
fn head(netns: &Netns, words: &[&str]) -> String {
    let said = dig(netns, &[&["+noall", "+comments"], words].concat());
    let field = |name: &str, end: char| {
        let (_, rest) = said.split_once(name).unwrap_or_else(|| panic!("{said}"));
        rest.split(end).next().unwrap_or_default().trim().to_owned()
    };
    format!("{} {}", field("status: ", ','), field("flags: ", ';'))
}

#[test]
fn every_record_of_the_site_is_answered_to_machines_in_both_directions() {
    let world = World::new("203.0.113.53");
    let bastion = world.bastion();
    let listed: Value =
        serde_json::from_str(&bastion.client(&["dns", "records", "--json"])).unwrap();
    let records = listed["records"].as_array().expect("a list");
    assert_eq!(records.len(), 7, "{listed}");
    for record in records {
        let word = |key: &str| record[key].as_str().expect("a text").to_owned();
        let (name, kind, data) = (word("name"), word("type"), word("data"));
        let asked = name.replace("*.", "shop.");
        for client in ["dig", "kdig"] {
            for way in ["+notcp", "+tcp"] {
                let said = world
                    .machine
                    .output(client, &[INSIDE, way, "+short", &asked, &kind]);
                assert_eq!(said.trim(), data, "{client} {way} {name} {kind}");
            }
        }
    }
    let zone = bastion.client(&["dns", "zone"]);
    assert!(
        zone.contains("node-1.lab.example. IN A 10.107.0.11\n"),
        "{zone}"
    );
    assert!(
        bastion
            .client(&["dns", "zone", "--outside"])
            .lines()
            .count()
            == 2
    );
    // This host's own questions come by loopback.
    let here = dig(&world.lab.netns, &[INSIDE, "+short", "-x", "10.107.0.12"]);
    assert_eq!(here, "node-2.lab.example.");
}

#[test]
fn each_side_is_told_every_record_of_its_own_and_none_of_the_other_s() {
    let world = World::new("203.0.113.53");
    // The balancer takes connections at a link's first address, so no other may be told.
    world.lab.netns.ip("addr add 203.0.113.2/24 dev eth0");
    let site = SITE.replace("FORWARD", "203.0.113.53");
    for (name, text) in [
        (
            "site.yaml",
            &*format!("{site}balancer: {{ public: [eth0] }}\n"),
        ),
        (
            "machines.yaml",
            &*format!(
                "{MACHINES}  - {{ name: head-1, mac: 52:54:00:aa:00:03, address: 10.107.0.13 }}\n"
            ),
        ),
        (
            "profiles/k3s.yaml",
            "kernel: vmlinuz\nartifacts: { k3s: vmlinuz }\nconfig: { format: cloud-init }\n",
        ),
        (
            "clusters/okd.yaml",
            "name: okd\ntype: K3S\nversion: v1.32.0+k3s1\nnodeGroups:\n  - { name: heads, role: CONTROL_PLANE, count: 1, \
             boot: { configTemplate: k3s } }\n",
        ),
    ] {
        let path = world.lab.path("made").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("a site file");
    }
    let bastion = world.bastion();
    let listed: Value =
        serde_json::from_str(&bastion.client(&["dns", "records", "--json"])).unwrap();
    let mut sides: [BTreeMap<_, BTreeSet<String>>; 2] = Default::default();
    for record in listed["records"].as_array().expect("a list") {
        let word = |key: &str| record[key].as_str().expect("a text").to_owned();
        let asked = (word("name").replace("*.", "shop."), word("type"));
        let side = usize::from(word("side") == "outside");
        sides[side].entry(asked).or_default().insert(word("data"));
    }
    let names = |side: usize| -> Vec<&str> {
        let of_cluster = |name: &&str| name.contains("okd.lab.example");
        let names = sides[side].keys().filter(|(_, kind)| kind == "A");
        names.map(|(name, _)| &**name).filter(of_cluster).collect()
    };
    let [api, int, apps, head, ns] = ["api", "api-int", "shop.apps", "head-1", "ns"]
        .map(|host| format!("{host}.okd.lab.example."));
    assert_eq!(names(0), [&*int, &api, &head, &ns, &apps]);
    assert_eq!(names(1), [&*api, &ns, &apps]);
    for name in [api, apps] {
        let told = &sides[1][&(name, "A".to_owned())];
        assert_eq!(told, &BTreeSet::from(["203.0.113.1".to_owned()]));
    }
    let all: BTreeSet<_> = sides.iter().flat_map(BTreeMap::keys).collect();
    for (side, client, server) in [(0, &world.machine, INSIDE), (1, &world.outside, OUTSIDE)] {
        for asked in &all {
            let (name, kind) = asked;
            let wanted = sides[side].get(*asked).cloned().unwrap_or_default();
            for program in ["dig", "kdig"] {
                let said = client.output(program, &[server, "+short", name, kind]);
                let said: BTreeSet<String> = said.lines().map(str::to_owned).collect();
                assert_eq!(said, wanted, "{program} {server} {name} {kind}");
            }
        }
    }
}

#[test]
fn systemd_resolved_is_told_names_addresses_and_what_is_not_there() {
    let world = World::new("203.0.113.53");
    let _upstream = world.dnsmasq();
    let _bastion = world.bastion();
    world.machine.ip("link set lo up");
    let debian = Debian::over(&world.machine);
    let _resolved = debian.resolved(&world.lab.timeline, "10.107.0.1");
    let query = |words: &[&str]| {
        let words = [&["--no-pager", "--legend=no", "query"], words].concat();
        debian.try_output("resolvectl", &words)
    };
    until("systemd-resolved to answer", LIMIT, || {
        query(&["node-1.lab.example"]).is_ok()
    });
    for (asked, told) in [
        ("node-2.lab.example", "10.107.0.12"),
        ("10.107.0.12", "node-2.lab.example"),
        ("registry.lab.example", "fd00:107::1"),
        ("shop.web.lab.example", "10.107.0.1"),
        ("www.example.org", "198.51.100.80"),
    ] {
        let said = query(&[asked]).unwrap_or_else(|error| panic!("{asked}: {error}"));
        assert!(said.contains(told), "{asked}: {said}");
    }
    let refused = query(&["nobody.example.org"]).expect_err("nobody is called that");
    assert!(refused.contains("not found"), "{refused}");
}

#[test]
fn a_machine_is_answered_for_as_soon_as_the_site_that_has_it_is_taken() {
    let world = World::new("203.0.113.53");
    let bastion = world.bastion();
    let machines = bastion.site.join("machines.yaml");
    let ask = |words: &[&str]| dig(&world.machine, &[&[INSIDE, "+short"], words].concat());
    let moved = MACHINES.replace("10.107.0.12", "10.107.0.99");
    let more =
        "  - { name: node-3, mac: 52:54:00:aa:00:03, address: 10.107.0.13, profile: live }\n";
    for round in 0..3 {
        fs::write(&machines, format!("{moved}{more}")).expect("the inventory");
        bastion.client(&["reload"]);
        assert_eq!(ask(&["node-3.lab.example"]), "10.107.0.13", "round {round}");
        assert_eq!(ask(&["-x", "10.107.0.99"]), "node-2.lab.example.");
        fs::write(&machines, MACHINES).expect("the inventory");
        bastion.client(&["reload"]);
        assert_eq!(ask(&["node-2.lab.example"]), "10.107.0.12");
        let gone = head(&world.machine, &[INSIDE, "+norec", "node-3.lab.example"]);
        assert!(gone.starts_with("REFUSED"), "{gone}");
    }
}

#[test]
fn what_is_not_there_is_said_so_with_an_soa_and_transfers_are_refused() {
    let world = World::new("203.0.113.53");
    let _bastion = world.bastion();
    let ask = |words: &[&str]| head(&world.machine, &[&[INSIDE], words].concat());
    assert_eq!(ask(&["node-1.lab.example"]), "NOERROR qr aa rd ra");
    assert_eq!(ask(&["node-1.lab.example", "AAAA"]), "NOERROR qr aa rd ra");
    assert_eq!(
        ask(&["node-1.lab.example", "AXFR"]).split(' ').next(),
        Some("REFUSED")
    );
    assert_eq!(
        ask(&["+notcp", "lab.example", "IXFR=1"]).split(' ').next(),
        Some("REFUSED")
    );
    assert_eq!(
        ask(&["-c", "CH", "version.bind", "TXT"]).split(' ').next(),
        Some("REFUSED")
    );
    assert_eq!(
        ask(&["+opcode=NOTIFY", "lab.example", "SOA"])
            .split(' ')
            .next(),
        Some("NOTIMP")
    );
    assert_eq!(
        ask(&["+edns=1", "+noednsneg", "node-1.lab.example"])
            .split(' ')
            .next(),
        Some("BADVERS")
    );
    let soa = dig(
        &world.machine,
        &[INSIDE, "+noall", "+authority", "node-1.lab.example", "TXT"],
    );
    assert!(soa.starts_with("lab.example.\t\t30\tIN\tSOA"), "{soa}");
    let any = dig(
        &world.machine,
        &[
            INSIDE,
            "+notcp",
            "+noall",
            "+answer",
            "node-1.lab.example",
            "ANY",
        ],
    );
    assert!(any.contains("HINFO\t\"RFC8482\""), "{any}");
    let mixed = dig(
        &world.machine,
        &[INSIDE, "+noall", "+question", "NoDe-1.LAB.example"],
    );
    assert!(mixed.contains("NoDe-1.LAB.example"), "{mixed}");
}

#[test]
fn names_of_others_are_looked_up_for_machines_and_kept_for_their_time() {
    let world = World::new("203.0.113.53");
    let _bastion = world.bastion();
    let mut dnsmasq = world.dnsmasq();
    let ask = |words: &[&str]| dig(&world.machine, &[&[INSIDE], words].concat());
    assert_eq!(ask(&["+short", "www.example.org"]), "198.51.100.80");
    assert_eq!(
        ask(&["+short", "alias.example.org"]),
        "www.example.org.\n198.51.100.80"
    );
    let nobody = head(&world.machine, &[INSIDE, "nobody.example.org"]);
    assert_eq!(nobody, "NXDOMAIN qr rd ra");
    // Too long for a datagram without EDNS, so dig comes again by TCP.
    let long = ask(&["+noedns", "+ignore", "long.example.org", "TXT"]);
    assert!(
        long.contains(" tc ") && long.contains("ANSWER: 0"),
        "{long}"
    );
    let long = ask(&["+noedns", "+short", "long.example.org", "TXT"]);
    assert_eq!(long.lines().count(), 5, "{long}");
    // Its case is the client's, not the one that was made up for the server.
    let mixed = ask(&["+noall", "+answer", "WWW.example.ORG"]);
    assert!(mixed.starts_with("WWW.example.ORG."), "{mixed}");
    dnsmasq.stop(LIMIT);
    assert_eq!(ask(&["+short", "www.example.org"]), "198.51.100.80", "kept");
    let ttl = || {
        let said = ask(&["+noall", "+answer", "www.example.org"]);
        let ttl = said
            .split_whitespace()
            .nth(1)
            .and_then(|ttl| ttl.parse::<u32>().ok());
        ttl.unwrap_or_else(|| panic!("{said}"))
    };
    let first = ttl();
    assert!(first <= 100);
    until("the time to live to fall", LIMIT, || ttl() < first);
    let failed = head(&world.machine, &[INSIDE, "other.example.org"]);
    assert_eq!(failed, "SERVFAIL qr rd ra");
}

#[test]
fn a_dead_server_beside_a_living_one_costs_nobody_an_answer() {
    let world = World::new("203.0.113.99, 203.0.113.53");
    let _bastion = world.bastion();
    let _dnsmasq = world.dnsmasq();
    for name in ["www.example.org", "alias.example.org"] {
        let said = dig(&world.machine, &[INSIDE, "+short", name]);
        assert!(said.ends_with("198.51.100.80"), "{name}: {said}");
    }
}

#[test]
fn a_server_that_refuses_at_once_beside_one_that_knows_costs_nobody_an_answer() {
    let world = World::new(&format!("{REFUSER}, 203.0.113.53"));
    world.refuser();
    let _bastion = world.bastion();
    let _dnsmasq = world.dnsmasq();
    for number in 0..10 {
        let name = format!("nobody{number}.example.org");
        let said = head(&world.machine, &[INSIDE, &name]);
        assert_eq!(said, "NXDOMAIN qr rd ra", "{name}");
    }
    let said = dig(&world.machine, &[INSIDE, "+short", "www.example.org"]);
    assert_eq!(said, "198.51.100.80");
}

#[test]
fn what_servers_said_is_forgotten_with_them() {
    let world = World::new("203.0.113.53");
    world.refuser();
    let bastion = world.bastion();
    let _dnsmasq = world.dnsmasq();
    let ask = || head(&world.machine, &[INSIDE, "www.example.org"]);
    assert_eq!(ask(), "NOERROR qr rd ra");
    let site = SITE.replace("FORWARD", REFUSER);
    fs::write(bastion.site.join("site.yaml"), site).expect("written");
    bastion.client(&["reload"]);
    assert_eq!(ask(), "SERVFAIL qr rd ra");
}

#[test]
fn many_who_ask_for_one_name_at_once_cost_one_question() {
    let world = World::new("203.0.113.53");
    let _bastion = world.bastion();
    let dnsmasq = world.dnsmasq();
    let list = world.lab.path("queries");
    fs::write(&list, "www.example.org A\n".repeat(200)).expect("a list of questions");
    let list = list.to_str().expect("paths are text");
    let said = world.machine.output(
        "dnsperf",
        &[
            "-s",
            "10.107.0.1",
            "-d",
            list,
            "-n",
            "1",
            "-c",
            "20",
            "-q",
            "200",
        ],
    );
    assert!(said.contains("Queries lost:         0 (0.00%)"), "{said}");
    dnsmasq.wait_for("is 198.51.100.80", LIMIT);
    let again = dnsmasq.try_wait_for("is 198.51.100.80", 2, Duration::from_millis(500));
    assert!(again.is_err(), "asked twice");
}

#[test]
fn nobody_outside_has_names_looked_up_or_sees_the_machines() {
    let world = World::new("203.0.113.53");
    let _bastion = world.bastion();
    let _dnsmasq = world.dnsmasq();
    for server in [OUTSIDE, INSIDE] {
        for way in ["+notcp", "+tcp"] {
            for name in [
                "www.example.org",
                "node-1.lab.example",
                "registry.lab.example",
            ] {
                let said = dig(
                    &world.outside,
                    &[
                        server,
                        way,
                        "+time=1",
                        "+noall",
                        "+comments",
                        "+answer",
                        name,
                    ],
                );
                // By the inside's address and another link there is no answer at all.
                let silent = server == INSIDE && way == "+notcp";
                assert!(
                    said.contains("status: REFUSED") || silent,
                    "{server} {way} {name}: {said}"
                );
                assert!(!said.contains("IN\tA"), "{said}");
                assert!(!said.contains(" ra;"), "{said}");
            }
        }
    }
    // A source on the machines' link that is none of theirs.
    world.machine.ip("addr add 192.0.2.7/32 dev eth0");
    world.lab.netns.ip("route add 192.0.2.7/32 dev eth1");
    for name in ["www.example.org", "node-1.lab.example"] {
        let said = head(&world.machine, &["-b", "192.0.2.7", INSIDE, name]);
        assert!(said.starts_with("REFUSED qr rd"), "{name}: {said}");
    }
}

#[test]
fn a_flood_from_outside_gets_a_limited_number_of_replies() {
    let world = World::new("203.0.113.53");
    let _bastion = world.bastion();
    let list = world.lab.path("queries");
    fs::write(&list, "node-1.lab.example A\n").expect("a list of questions");
    let list = list.to_str().expect("paths are text");
    let flood = |netns: &Netns, server: &str| {
        let words = ["-s", server, "-d", list, "-l", "2", "-q", "100", "-t", "1"];
        let said = netns.output("dnsperf", &words);
        let count = |name: &str| {
            let (_, rest) = said.split_once(name).unwrap_or_else(|| panic!("{said}"));
            let number = rest
                .split_whitespace()
                .next()
                .and_then(|text| text.parse::<u32>().ok());
            number.unwrap_or_else(|| panic!("{said}"))
        };
        (count("Queries completed:"), count("Queries lost:"))
    };
    let (outside, lost) = flood(&world.outside, "203.0.113.1");
    // 200 at once and 100 a second; every tenth over the limit is the hint to ask by TCP.
    assert!(outside < 700 && lost > 0, "{outside} of {lost}");
    let (inside, lost) = flood(&world.machine, "10.107.0.1");
    assert!(inside > 2000 && lost == 0, "{inside} of {lost}");
}

#[test]
fn a_port_that_is_taken_is_told_and_taken_when_it_is_free() {
    let world = World::new("203.0.113.53");
    let mut command = process::command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--log-facility=-",
    ]);
    command.args([
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
    ]);
    command.args(["--listen-address=10.107.0.1", "--except-interface=lo"]);
    let mut rival = world.lab.netns.start(&world.lab.timeline, "rival", command);
    rival.wait_for("started, version", LIMIT);
    let mut bastion = Bastion::new(&world.lab, &world.lab.path("made"));
    let kernel = world.lab.path("vmlinuz");
    fs::write(&kernel, "no kernel at all").expect("a file");
    bastion.import(&kernel, "vmlinuz");
    bastion.start();
    until("the status to tell of the port", LIMIT, || {
        let status = bastion.client(&["status", "--json"]);
        status.contains("opening UDP port 53 on 10.107.0.1:53")
    });
    rival.stop(LIMIT);
    until("the port to be taken", LIMIT, || {
        dig(
            &world.machine,
            &[INSIDE, "+short", "+time=1", "node-1.lab.example"],
        ) == "10.107.0.11"
    });
}

#[test]
fn a_reload_that_admits_more_clients_keeps_every_port_while_questions_are_under_way() {
    let world = World::new("203.0.113.53");
    // It hears and says nothing, so a question stays under way for seconds.
    let _silent = world
        .outside
        .run(|| UdpSocket::bind("203.0.113.53:53").expect("a free port"));
    let bastion = world.bastion();
    world.machine.ip("addr add 10.109.0.5/32 dev eth0");
    world.lab.netns.ip("route add 10.109.0.5/32 dev eth1");
    let far = || {
        dig(
            &world.machine,
            &["-b", "10.109.0.5", INSIDE, "+short", "node-1.lab.example"],
        )
    };
    assert_eq!(far(), "", "it is no client yet");
    let site = SITE.replace("FORWARD", "203.0.113.53").replace(
        "dns:\n",
        "  - { name: far, link: eth1, subnet: 10.109.0.0/24, relayed: true, router: 10.109.0.1 }\ndns:\n",
    );
    fs::write(bastion.site.join("site.yaml"), site).expect("written");
    let asking = ["one", "two"].map(|name| {
        let mut command = process::command("dig");
        command.args([
            INSIDE,
            "+tries=1",
            "+time=6",
            &format!("{name}.example.org"),
        ]);
        world.machine.start(&world.lab.timeline, "dig", command)
    });
    bastion.client(&["reload"]);
    until("the new network to be served", LIMIT, || {
        let served = far() == "10.107.0.11";
        // The port is closed and opened in less time than a dig takes to start.
        let near = || dig(&world.machine, &[INSIDE, "+short", "node-1.lab.example"]);
        assert!((0..3).any(|_| near() == "10.107.0.11"));
        let status = bastion.client(&["status"]);
        assert!(!status.contains("server running here"), "{status}");
        served
    });
    drop(asking);
}

#[test]
fn a_connection_that_says_nothing_or_too_much_is_closed_and_others_are_served() {
    let world = World::new("203.0.113.53");
    let _bastion = world.bastion();
    let connect = || {
        let stream = TcpStream::connect((Ipv4Addr::new(10, 107, 0, 1), 53)).expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream
    };
    let (closed_at_once, idle) = world.machine.run(move || {
        let mut long = connect();
        long.write_all(&[0xff, 0xff, 0, 0])
            .expect("two bytes of length");
        let ended = |stream: &mut TcpStream| matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_));
        // More than one source may have: the rest is closed without a word.
        let mut crowd: Vec<TcpStream> = (0..40).map(|_| connect()).collect();
        let closed = crowd.iter_mut().skip(20).filter_map(|stream| {
            stream
                .set_read_timeout(Some(Duration::from_millis(200)))
                .ok()?;
            matches!(stream.read(&mut [0; 16]), Ok(0)).then_some(())
        });
        let closed = closed.count();
        drop(crowd);
        (ended(&mut long), closed)
    });
    assert!(closed_at_once);
    assert!(idle >= 15, "{idle} of 20");
    until("a seat to be free", LIMIT, || {
        dig(
            &world.machine,
            &[INSIDE, "+tcp", "+short", "node-1.lab.example"],
        ) == "10.107.0.11"
    });
}
