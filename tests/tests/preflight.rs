//! Preflight in a laboratory where one thing at a time is wrong: exactly the right check turns red.
//!
//! ```text
//!   bastion  eth1.107 10.107.0.1 ------- eth0 10.107.0.254  street: the router, and whatever misbehaves
//!            eth0     203.0.113.1 ------ eth0 203.0.113.53  uplink: DNS (dnsmasq) and NTP (a fake)
//! ```
//!
//! The links are veths: `eth1.107` is only called so. Everything else is real: the kernels' ARP, neighbour discovery and
//! pings, dnsmasq as DHCP, TFTP and DNS server.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tests::bastion::reveille;
use tests::lab::{Lab, until};
use tests::netns::Netns;
use tests::ntp;
use tests::process::{self, Process};

const LIMIT: Duration = Duration::from_secs(20);
const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
const SITE: &str = "site: lab
networks:
  - name: provisioning
    link: eth1.107
    subnet: 10.107.0.0/24
    mode: MODE
    router: 10.107.0.254
    mtu: 1500
    dns: [203.0.113.53]
    ntp: [203.0.113.53]
    domain: lab.example
";
const MACHINES: &str = "machines:
  - { name: node-1, mac: 52:54:00:aa:00:01, address: 10.107.0.11, profile: live }
";

const RECORD: &str = "--host-record=node-1.lab.example,10.107.0.11";
const OTHER_RECORD: &str = "--host-record=node-1.lab.example,10.107.0.99";

/// What is wrong in one laboratory, and what must come of it.
#[derive(Clone, Copy)]
struct Case {
    what: &'static str,
    mode: &'static str,
    /// What site.yaml says besides.
    links: &'static str,
    /// The state directory's file system.
    tmpfs: &'static str,
    /// What dnsmasq is told of names; `None` for no server.
    zone: Option<&'static [&'static str]>,
    /// How wrong the NTP server is, in seconds; `None` for no server.
    ahead: Option<u64>,
    harm: fn(&World) -> Option<Process>,
    /// What must not pass.
    red: &'static [&'static str],
    /// What the evidence must show.
    shown: &'static str,
}

const GOOD: Case = Case {
    what: "nothing",
    mode: "reservation",
    links: "",
    tmpfs: "size=2g",
    zone: Some(&[RECORD]),
    ahead: Some(0),
    harm: |_| None,
    red: &[],
    shown: "used by their machines: 1",
};

struct World {
    lab: Lab,
    street: Netns,
    uplink: Netns,
    processes: Vec<Process>,
}

impl World {
    /// Everything as it should be, but for one thing.
    fn with(case: Case) -> Self {
        let (lab, street, uplink) = (Lab::empty(), Netns::new(), Netns::new());
        let bastion = &lab.netns;
        bastion.cable("eth1.107", &street, "eth0");
        bastion.cable("eth0", &uplink, "eth0");
        bastion.ip("addr add 10.107.0.1/24 dev eth1.107");
        bastion.ip("addr add fd00:107::1/64 dev eth1.107 nodad");
        bastion.ip("addr add 203.0.113.1/24 dev eth0");
        street.ip("addr add 10.107.0.254/24 dev eth0");
        // A machine that is on. Each card answers for its own address only, as separate stations do.
        street.sysctl("ipv4/conf/all/arp_ignore", "1");
        street.ip("link add node-1 link eth0 address 52:54:00:aa:00:01 type macvlan mode bridge");
        street.ip("addr add 10.107.0.11/24 dev node-1");
        street.ip("link set node-1 up");
        uplink.ip(&format!("addr add {UPLINK}/24 dev eth0"));
        let mut world = Self {
            lab,
            street,
            uplink,
            processes: Vec::new(),
        };
        world.write_site(case);
        if let Some(zone) = case.zone {
            let mut words = vec!["--port=53", "--no-resolv", "--no-hosts"];
            words.extend(["--local=/lab.example/", "--local=/10.in-addr.arpa/"]);
            words.extend(zone);
            let server = world.dnsmasq(&world.uplink, &words, "started, version");
            world.processes.push(server);
        }
        if let Some(ahead) = case.ahead {
            ntp::serve(&world.uplink, UPLINK, ahead);
        }
        let culprit = (case.harm)(&world);
        world.processes.extend(culprit);
        world
    }

    fn write_site(&self, case: Case) {
        let (site, state) = (self.lab.path("site"), self.lab.path("state"));
        fs::create_dir_all(site.join("profiles")).expect("a site directory");
        fs::create_dir(&state).expect("a state directory");
        let place = state.to_str().expect("paths are text");
        let mount = ["-t", "tmpfs", "-o", case.tmpfs, "tmpfs", place];
        self.lab.netns.output("mount", &mount);
        let write = |name: &str, text: &str| fs::write(site.join(name), text).expect("a site file");
        let text = SITE.replace("MODE", case.mode) + case.links;
        write("site.yaml", &text);
        write("machines.yaml", MACHINES);
        write("profiles/live.yaml", "kernel: vmlinuz\npurpose: live\n");
        let kernel = self.lab.path("vmlinuz");
        fs::write(&kernel, "no kernel at all").expect("a file");
        let kernel = kernel.to_str().expect("paths are text");
        let words = [
            "image", "import", kernel, "--name", "vmlinuz", "--state", place,
        ];
        self.lab.netns.output(reveille(), &words);
    }

    fn dnsmasq(&self, netns: &Netns, words: &[&str], begun: &str) -> Process {
        let mut command = process::command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--log-facility=-",
            "--log-dhcp",
            "--log-queries",
        ]);
        command.args(words);
        let process = netns.start(&self.lab.timeline, "dnsmasq", command);
        process.wait_for(begun, LIMIT);
        process
    }

    /// A DHCP server that nobody ordered. It looks whether an address is free before it offers it.
    fn dhcp_server(&self) -> Process {
        let range = "--dhcp-range=10.107.0.50,10.107.0.59,255.255.255.0,1h";
        let words = [
            "--port=0",
            "--interface=eth0",
            "--dhcp-leasefile=/dev/null",
            range,
        ];
        self.dnsmasq(&self.street, &words, "DHCP, IP range")
    }

    fn tftp_server(&self) -> Process {
        let root = self.lab.path("tftp");
        fs::create_dir(&root).expect("a directory");
        let root = format!("--tftp-root={}", root.display());
        let words = ["--port=0", "--enable-tftp", &root];
        self.dnsmasq(&self.lab.netns, &words, "TFTP root")
    }

    fn damage_artefact(&self) {
        // The state is on a file system that only the namespace sees.
        let depot = self.lab.path("state/depot/sha256");
        self.lab.netns.run(move || {
            let file = fs::read_dir(depot).expect("a depot").next();
            let file = file.expect("a file").expect("an entry").path();
            let writable = fs::Permissions::from_mode(0o644);
            fs::set_permissions(&file, writable).expect("a writable file");
            fs::write(file, "no kernel at alL").expect("a damaged file");
        });
    }

    /// A CA as the daemon makes it, but for its end in three days.
    fn shorten_ca(&self) {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.not_before = rcgen::date_time_ymd(1970, 1, 1);
        let end = std::time::SystemTime::now() + Duration::from_secs(3 * 86_400 + 3600);
        params.not_after = end.into();
        let certificate = params.self_signed(&key).expect("a certificate");
        let text = format!("{}{}", key.serialize_pem(), certificate.pem());
        let file = self.lab.path("state/site-ca.pem");
        self.lab
            .netns
            .run(move || fs::write(file, text).expect("a certificate"));
    }

    fn site_and_state(&self) -> [std::path::PathBuf; 2] {
        ["site", "state"].map(|name| self.lab.path(name))
    }

    fn preflight(&self, more: &[&str]) -> Output {
        let [site, state] = self.site_and_state();
        let mut command = process::command(reveille());
        command.args(["preflight", "--site"]).arg(site);
        command.arg("--state").arg(state).args(more);
        self.lab
            .netns
            .run(move || command.output().expect("the command runs"))
    }
}

/// The checks that did not pass, as `id result`, and the exit code that belongs to them.
fn not_passed(output: &Output) -> (Vec<String>, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    let checks = report["checks"].as_array().expect("a list of checks");
    let mut found = Vec::new();
    for check in checks {
        let word = |key: &str| check[key].as_str().expect("a text");
        assert!(
            !word("evidence").is_empty() && !word("subject").is_empty(),
            "{check}"
        );
        if word("result") == "pass" {
            assert!(check.get("remedy").is_none(), "{check}");
        } else {
            assert!(!word("remedy").is_empty(), "{check}");
            found.push(format!("{} {}", word("id"), word("result")));
        }
    }
    let failed = found.iter().any(|check| check.ends_with(" fail"));
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{text}");
    (found, text)
}

/// One thing wrong at a time.
fn cases() -> Vec<Case> {
    let wrong = |what, harm, red, shown| Case {
        what,
        harm,
        red,
        shown,
        ..GOOD
    };
    vec![
        GOOD,
        wrong(
            "a second DHCP server",
            |world| Some(world.dhcp_server()),
            &["rogue-dhcp fail"],
            "offered 10.107.0.5",
        ),
        wrong(
            "a reserved address in use",
            |world| ip(&world.street, "addr add 10.107.0.11/24 dev eth0"),
            &["duplicate-address fail"],
            "10.107.0.11 of node-1 is used by",
        ),
        wrong(
            "our address in use",
            |world| ip(&world.street, "addr add 10.107.0.1/24 dev eth0"),
            &["duplicate-address fail"],
            "10.107.0.1 is also used by",
        ),
        wrong(
            "our IPv6 address in use",
            |world| ip(&world.street, "addr add fd00:107::1/64 dev eth0 nodad"),
            &["duplicate-address fail"],
            "fd00:107::1 is also used by",
        ),
        wrong(
            "no carrier",
            |world| ip(&world.street, "link set eth0 down"),
            &["vlan-carries-frames fail"],
            "no carrier",
        ),
        wrong(
            "nothing on the VLAN",
            |world| {
                ip(&world.street, "link set node-1 down");
                ip(&world.street, "link set eth0 down");
                // Up again, and deaf and dumb: a switch that does not carry the VLAN.
                world.street.sysctl("ipv6/conf/eth0/disable_ipv6", "1");
                world.street.ip("link set eth0 arp off up");
                ip(&world.street, "addr flush dev eth0")
            },
            &["vlan-carries-frames warn", "gateway fail"],
            "must carry VLAN 107",
        ),
        wrong(
            "no link",
            |world| ip(&world.lab.netns, "link set eth1.107 name eth1.108"),
            &["host-links fail"],
            "ip link add link eth1 name eth1.107 type vlan id 107",
        ),
        wrong(
            "no address of ours",
            |world| ip(&world.lab.netns, "addr del 10.107.0.1/24 dev eth1.107"),
            &["host-links fail"],
            "has no address in 10.107.0.0/24",
        ),
        wrong(
            "a small MTU on the way",
            |world| ip(&world.street, "link set eth0 mtu 1400"),
            &["path-mtu fail"],
            "; 1400 bytes do",
        ),
        wrong(
            "a small MTU of our own",
            |world| ip(&world.lab.netns, "link set eth1.107 mtu 1400"),
            &["path-mtu fail"],
            "link eth1.107 takes 1400",
        ),
        wrong(
            "no router",
            |world| ip(&world.street, "addr del 10.107.0.254/24 dev eth0"),
            &["gateway fail"],
            "does not answer",
        ),
        Case {
            what: "a listed address that is not there",
            links: "links: [{ name: eth1.107, addresses: [10.107.0.1/24, 10.109.0.1/24] }]
host: { firewall: false }
",
            red: &["host-links warn"],
            shown: "10.109.0.1/24",
            ..GOOD
        },
        Case {
            what: "a wrong record",
            zone: Some(&[OTHER_RECORD]),
            red: &["dns-records fail"],
            shown: "is 10.107.0.99, not 10.107.0.11",
            ..GOOD
        },
        Case {
            what: "a second record",
            zone: Some(&[RECORD, OTHER_RECORD]),
            red: &["dns-records fail"],
            shown: "is 10.107.0.11 and 10.107.0.99",
            ..GOOD
        },
        Case {
            what: "no record",
            zone: Some(&[]),
            red: &["dns-records warn"],
            shown: "10.107.0.11 has no name",
            ..GOOD
        },
        Case {
            what: "no DNS server",
            zone: None,
            red: &["dns-records fail"],
            shown: "does not answer",
            ..GOOD
        },
        Case {
            what: "a wildcard",
            zone: Some(&[RECORD, "--address=/lab.example/203.0.113.80"]),
            red: &["dns-wildcard fail"],
            shown: "203.0.113.80",
            ..GOOD
        },
        Case {
            what: "a wrong clock",
            ahead: Some(90),
            red: &["ntp-offset fail"],
            shown: "ahead of the bastion's",
            ..GOOD
        },
        Case {
            what: "no NTP server",
            ahead: None,
            red: &["ntp-offset warn"],
            shown: "gives no time",
            ..GOOD
        },
        wrong(
            "a port taken",
            |world| Some(world.tftp_server()),
            &["ports fail"],
            "dnsmasq (process",
        ),
        Case {
            what: "a full disk",
            tmpfs: "size=100m",
            red: &["disk-space fail"],
            shown: "MiB free",
            ..GOOD
        },
        Case {
            what: "no room for files",
            tmpfs: "size=2g,nr_inodes=60",
            red: &["disk-space fail"],
            shown: "more files",
            ..GOOD
        },
        wrong(
            "a damaged artefact",
            |world| {
                world.damage_artefact();
                None
            },
            &["artefacts fail"],
            "has the content of",
        ),
        wrong(
            "a certificate's end",
            |world| {
                world.shorten_ca();
                None
            },
            &["certificates fail"],
            "for 3 more days",
        ),
        Case {
            what: "no server beside mode proxy",
            mode: "proxy",
            red: &["rogue-dhcp fail"],
            shown: "mode proxy needs one",
            ..GOOD
        },
        Case {
            what: "nothing, in mode proxy",
            mode: "proxy",
            harm: |world| Some(world.dhcp_server()),
            shown: "offered 10.107.0.5",
            ..GOOD
        },
    ]
}

fn ip(netns: &Netns, words: &str) -> Option<Process> {
    netns.ip(words);
    None
}

#[test]
fn each_fault_alone_turns_exactly_its_own_check_red() {
    // Most of each case is listening, so all of them listen at once.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let running = cases().into_iter().map(|case| {
            scope.spawn(move || {
                let (found, text) = not_passed(&World::with(case).preflight(&["--json"]));
                let Case {
                    what, red, shown, ..
                } = case;
                (found != red || !text.contains(shown))
                    .then(|| format!("{what}: {found:?}, not {red:?} with {shown:?}\n{text}"))
            })
        });
        let running: Vec<_> = running.collect();
        let ended = running
            .into_iter()
            .map(|case| case.join().expect("no case panics"));
        ended.flatten().collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_failure_that_is_skipped_by_name_is_shown_and_does_not_count() {
    let world = World::with(Case {
        tmpfs: "size=100m",
        ..GOOD
    });
    let output = world.preflight(&["--skip", "disk-space"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("fail, skipped"), "{text}");
    let unknown = world.preflight(&["--skip", "nonsense"]);
    assert_eq!(unknown.status.code(), Some(64));
}

/// As its unit starts it: a user of its own, three capabilities and no more. It has the ports, offers nothing to a
/// stranger, and may not see whose a process is.
#[test]
fn the_daemon_checks_with_the_rights_of_its_unit_for_one_who_may_change_at_a_time() {
    let world = World::with(Case {
        tmpfs: "size=2g,uid=65534",
        ..GOOD
    });
    let [site, state] = world.site_and_state();
    let owned = state.to_str().expect("paths are text");
    world.lab.netns.output("chown", &["-R", "65534", owned]);
    fs::set_permissions(world.lab.scratch.path(), fs::Permissions::from_mode(0o777))
        .expect("a directory for the socket");
    let socket = world.lab.path("control.sock");
    let mut serve = process::command("setpriv");
    let rights = "-all,+net_admin,+net_raw,+net_bind_service";
    serve.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    serve.args(["--inh-caps", rights, "--ambient-caps", rights]);
    serve.args(["--bounding-set", rights, "--no-new-privs", "--", reveille()]);
    serve.arg("serve").arg("--site").arg(site);
    serve.arg("--state").arg(state).arg("--socket").arg(&socket);
    let netns = &world.lab.netns;
    let daemon = netns.start(&world.lab.timeline, "reveille", serve);
    daemon.wait_for("serving DHCP", LIMIT);
    until("the daemon to answer", LIMIT, || {
        UnixStream::connect(&socket).is_ok()
    });
    let ask = |user: &str| {
        let mut command = process::command("setpriv");
        command.args(["--reuid", user, "--clear-groups", "--"]);
        command.args([reveille(), "preflight", "--json", "--socket"]);
        command.arg(&socket);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        netns.run(move || command.spawn().expect("the command runs"))
    };
    let end = |child: Child| child.wait_with_output().expect("the command ends");

    let first = ask("0");
    daemon.wait_for("preflight", LIMIT);
    let second = end(ask("0"));
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another preflight is under way"), "{said}");
    let (found, text) = not_passed(&end(first));
    assert_eq!(found, [""; 0], "{text}");
    assert!(text.contains("ours on eth1.107"), "{text}");

    assert_eq!(end(ask("65533")).status.code(), Some(77));

    // A program that shares UDP 67 with the daemon: each gets some of the packets.
    let _rival = netns.run(|| {
        let rival = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
        rival.set_reuse_address(true).expect("an option");
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67));
        rival.bind(&everywhere.into()).expect("a shared port");
        rival
    });
    let (found, text) = not_passed(&end(ask("0")));
    assert_eq!(found, ["ports fail"], "{text}");
    assert!(
        text.contains("a process of user root has it on eth1.107"),
        "{text}"
    );
    assert!(text.contains("ss -lunp sport = :67"), "{text}");
}
