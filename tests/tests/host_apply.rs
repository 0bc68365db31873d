//! The bastion's own network, by the real daemon and the real kernel: changes that are proven, confirmed or
//! undone, what a crash in between leaves, and how drift is mended. Bridges and virtual cables stand for the links; VLANs need
//! a kernel module that not every laboratory has, see `host_vlan.rs`.
//!
//! ```text
//!   outside: 203.0.113.1 ---- eth0 [bastion] br107, p107 ---- machines
//!            203.0.114.1 ---- eth1, public         spare ---- machines
//! ```

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::bastion::{Bastion, reveille};
use tests::lab::{Lab, until};
use tests::netns::Netns;
use tests::process;

/// What the site says besides its links.
const SITE: &str =
    "site: host\nnetworks:\n  - { name: provisioning, link: br107, subnet: 10.107.0.0/24 }\n";
/// A provisioning bridge with everything that can hang on a link.
const LINKS: &str = "links:
  - name: br107
    bridge: { ports: [p107] }
    addresses: [10.107.0.1/24, 'fd00:107::1/64']
    mtu: 1450
    gateway: 10.107.0.254
    routes: [{ to: 10.200.0.0/16, via: 10.107.0.254, metric: 100 }]
";
/// The public side too, and then its cable in another hole: nobody there answers any more.
const PUBLIC: &str = "  - name: public
    bridge: { ports: [eth1] }
    addresses: [203.0.114.5/24]
    gateway: 203.0.114.1
";
fn whole() -> String {
    format!("{LINKS}{PUBLIC}")
}
fn cut() -> String {
    let more = "  - name: br108\n    bridge: { ports: [eth1] }\n    addresses: [10.108.0.1/24]\n";
    let rest = format!("{LINKS}{PUBLIC}").replace("[eth1]", "[spare]");
    let firewall = "host:\n  masquerade: [{ network: provisioning, out: public }]\n";
    rest.replace("1450", "1400") + more + firewall
}

/// A bastion between an outside with a gateway, and machines.
struct Scene {
    lab: Lab,
    outside: Netns,
    _machines: Netns,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::empty();
        let (outside, machines) = (Netns::new(), Netns::new());
        for netns in [&lab.netns, &outside, &machines] {
            // Addresses are final from their first moment.
            netns.sysctl("ipv6/conf/default/accept_dad", "0");
            netns.sysctl("ipv6/conf/default/accept_ra", "0");
        }
        lab.netns.cable("eth0", &outside, "bastion");
        lab.netns.cable("eth1", &outside, "second");
        lab.netns.cable("p107", &machines, "bastion");
        lab.netns.cable("spare", &machines, "nobody");
        outside.ip("addr add 203.0.114.1/24 dev second");
        outside.ip("addr add 203.0.113.1/24 dev bastion");
        lab.netns.ip("addr add 203.0.113.5/24 dev eth0");
        lab.netns.ip("route add default via 203.0.113.1");
        // What other tools made, and must find as they left it.
        lab.netns.ip("link add foreign0 type bridge");
        lab.netns.ip("addr add 192.0.2.1/24 dev foreign0");
        lab.netns.ip("link set foreign0 up");
        lab.netns
            .ip("route add 198.51.100.0/24 via 203.0.113.9 proto static metric 7");
        lab.netns
            .ip("rule add from 192.0.2.0/24 table 77 priority 5000");
        lab.netns.output("nft", &["add table inet foreign"]);
        Self {
            lab,
            outside,
            _machines: machines,
        }
    }

    fn bastion(&self, links: &str) -> Bastion<'_> {
        let site = self.lab.path("written");
        fs::create_dir(&site).expect("a directory for the site");
        write(&site, links);
        Bastion::new(&self.lab, &site)
    }

    fn picture(&self) -> Picture {
        picture(&self.lab.netns)
    }
}

fn write(site: &Path, links: &str) {
    fs::write(site.join("site.yaml"), format!("{SITE}{links}")).expect("the site can be written");
}

/// Everything that `ip` and `nft` say, letter for letter.
type Picture = Vec<(&'static str, String)>;

fn picture(netns: &Netns) -> Picture {
    let ip = [
        "link",
        "addr",
        "route show table all",
        "rule",
        "-6 route show table all",
        "-6 rule",
    ];
    let mut picture: Picture = ip
        .iter()
        .map(|words| (*words, netns.ip(&format!("-j {words}"))))
        .collect();
    // The kernel numbers a table anew each time it is put in place; all else must be the same.
    let ruleset = netns.output("nft", &["-j", "list", "ruleset"]);
    let mut ruleset: Value = serde_json::from_str(&ruleset).expect("nft speaks JSON");
    without_handles(&mut ruleset);
    picture.push(("nft", ruleset.to_string()));
    picture
}

fn without_handles(value: &mut Value) {
    if let Value::Array(items) = value {
        items.iter_mut().for_each(without_handles);
    } else if let Value::Object(members) = value {
        members.remove("handle");
        members.values_mut().for_each(without_handles);
    }
}

/// A picture with what differs, for people.
#[track_caller]
fn same(before: &Picture, after: &Picture) {
    for ((what, before), (_, after)) in before.iter().zip(after) {
        assert_eq!(before, after, "{what} is not as before");
    }
}

/// Runs a command of the operator's: its exit code and both outputs.
fn operator(bastion: &Bastion<'_>, lab: &Lab, words: &[&str]) -> (i32, String, String) {
    let mut command = process::command(reveille());
    command.args(words).arg("--socket").arg(&bastion.socket);
    command.env_remove("SSH_CONNECTION");
    let output: Output = lab
        .netns
        .run(move || command.output().expect("the command runs"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn what_the_site_lists_is_made_at_the_start_and_others_things_stay_as_they_are() {
    let scene = Scene::new();
    let foreign = |netns: &Netns| {
        [
            "-j link show foreign0",
            "-j addr show foreign0",
            "-j addr show eth0",
            "-j route show 198.51.100.0/24",
            "-j route show default",
            "-j rule list priority 5000",
        ]
        .map(|words| netns.ip(words))
    };
    let before = foreign(&scene.lab.netns);
    let mut bastion = scene.bastion(LINKS);
    bastion.start();
    let plan = operator(&bastion, &scene.lab, &["host", "plan"]);
    assert_eq!(
        plan,
        (
            0,
            "the host's network is as the site wants it\n".to_owned(),
            String::new()
        )
    );
    let netns = &scene.lab.netns;
    let address = netns.ip("-br addr show br107");
    assert!(
        address.contains("10.107.0.1/24") && address.contains("fd00:107::1/64"),
        "{address}"
    );
    assert!(
        netns
            .ip("route show table 2001")
            .contains("default via 10.107.0.254")
    );
    assert!(netns.ip("rule").contains("from 10.107.0.1 lookup 2001"));
    assert!(
        netns
            .output("nft", &["list", "tables"])
            .contains("inet reveille")
    );
    assert_eq!(foreign(netns), before);

    // The answer to a second apply is that there is nothing to do.
    let now = scene.picture();
    let (code, said, _) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert_eq!(code, 0);
    assert!(said.starts_with("nothing to do"), "{said}");
    same(&now, &scene.picture());

    // A site that lists nothing takes away what was ours, and nothing else.
    write(&bastion.site, "");
    let (code, said, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert_eq!(code, 0, "{said}{why}");
    assert!(netns.try_output("ip", &["link", "show", "br107"]).is_err());
    assert!(
        !netns
            .output("nft", &["list", "tables"])
            .contains("reveille")
    );
    assert_eq!(foreign(netns), before);
}

#[test]
fn a_change_that_cuts_the_gateway_off_is_undone_in_time_and_to_the_letter() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(&whole());
    bastion.start();
    let before = scene.picture();
    write(&bastion.site, &cut());
    let (code, plan, _) = operator(&bastion, &scene.lab, &["host", "plan"]);
    assert_eq!(code, 2, "{plan}");
    same(&before, &scene.picture());

    let began = Instant::now();
    let apply = ["host", "apply", "--confirm-within", "10s"];
    let (code, said, why) = operator(&bastion, &scene.lab, &apply);
    assert_eq!(code, 2, "{said}{why}");
    assert!(
        said.contains("waits for an answer of gateway 203.0.114.1"),
        "{said}"
    );
    assert!(
        scene
            .lab
            .netns
            .ip("-o link show spare")
            .contains("master public")
    );

    // While it waits nothing else is begun.
    let (code, _, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert!(code == 1 && why.contains("waits to be confirmed"), "{why}");

    let limit = Duration::from_secs(12).saturating_sub(began.elapsed());
    until("the change to be undone", limit, || {
        let status = bastion.client(&["host", "status", "--json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        status["last"]["outcome"] == "rolled-back"
    });
    assert!(
        began.elapsed() >= Duration::from_secs(10),
        "it had its time"
    );
    same(&before, &scene.picture());

    // It does not come back by itself, not with a reload and not with a restart.
    bastion.client(&["reload"]);
    same(&before, &scene.picture());
    bastion.stop();
    bastion.start();
    same(&before, &scene.picture());
    let (code, _, why) = operator(&bastion, &scene.lab, &["host", "confirm"]);
    assert!(code == 1 && why.contains("no change waits"), "{why}");
    let status = bastion.client(&["status", "--json"]);
    assert!(status.contains("nobody confirmed it in time"), "{status}");
    // The remedy: another site.
    write(&bastion.site, LINKS);
    let (code, said, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert_eq!(code, 0, "{said}{why}");
    let events = bastion.client(&["events", "--limit", "500"]);
    assert!(
        events.contains("host, roll-back: nobody confirmed it in time"),
        "{events}"
    );
}

#[test]
fn a_change_that_a_dying_daemon_left_unproven_is_undone_by_the_next_one() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(&whole());
    bastion.start();
    let before = scene.picture();
    write(&bastion.site, &cut());
    let (code, said, why) = operator(&bastion, &scene.lab, &["host", "apply", "--ask"]);
    assert_eq!(code, 2, "{said}{why}");
    assert!(scene.picture() != before);
    bastion.kill();
    bastion.start();
    same(&before, &scene.picture());
    let (_, said, _) = operator(&bastion, &scene.lab, &["host", "status"]);
    assert!(
        said.contains("the daemon ended before the change by root was proven"),
        "{said}"
    );
}

#[test]
fn a_change_is_kept_by_a_proof_or_by_a_person() {
    let scene = Scene::new();
    let mut bastion = scene.bastion("");
    bastion.start();
    write(&bastion.site, LINKS);
    let (code, said, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert_eq!(code, 0, "{said}{why}");
    assert!(
        said.ends_with("kept: gateway 203.0.113.1 answers\n"),
        "{said}"
    );

    write(&bastion.site, &LINKS.replace("1450", "1400"));
    let apply = ["host", "apply", "--ask", "--json"];
    let (code, said, why) = operator(&bastion, &scene.lab, &apply);
    assert_eq!(code, 2, "{said}{why}");
    let applied: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(applied["outcome"], "waiting");
    let (code, said, _) = operator(&bastion, &scene.lab, &["host", "confirm"]);
    assert_eq!((code, said.as_str()), (0, "kept: confirmed by root\n"));
    let kept = scene.picture();
    bastion.kill();
    bastion.start();
    same(&kept, &scene.picture());

    // Without a gateway that answered before there is nothing to lose.
    scene.outside.ip("link set bastion down");
    write(&bastion.site, &LINKS.replace("1450", "1300"));
    let (code, said, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert_eq!(code, 0, "{said}{why}");
    assert!(said.contains("none was lost"), "{said}");
}

#[test]
fn the_connection_that_an_apply_is_typed_over_must_bring_a_sign_of_life() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(&whole());
    bastion.start();
    // What a login over SSH is to the kernel: a connection from outside that carries what the command prints.
    let bound = || TcpListener::bind("203.0.114.5:2222").unwrap();
    let listener = scene.lab.netns.run(bound);
    let reach = || TcpStream::connect("203.0.114.5:2222").unwrap();
    let mut administrator = scene.outside.run(reach);
    let (here, from) = listener.accept().unwrap();
    let session = format!("{} {} 203.0.114.5 2222", from.ip(), from.port());
    let apply = |mtu: &str, output: Stdio| {
        write(&bastion.site, &whole().replace("1450", mtu));
        let mut command = process::command(reveille());
        command.args(["host", "apply", "--socket"]);
        command.arg(&bastion.socket).stdout(output);
        command.env("SSH_CONNECTION", &session);
        let status = scene.lab.netns.run(move || command.status().unwrap());
        status.code()
    };
    // It stands all the time, but nothing comes through it.
    assert_eq!(apply("1400", Stdio::null()), Some(2));
    let (_, status, _) = operator(&bastion, &scene.lab, &["host", "status"]);
    let missing = format!("waits for the connection {session}, which acknowledged nothing since");
    assert!(status.contains(&missing), "{status}");
    bastion.client(&["host", "confirm"]);

    assert_eq!(apply("1300", Stdio::from(OwnedFd::from(here))), Some(0));
    let mut said = String::new();
    administrator.read_to_string(&mut said).unwrap();
    assert!(
        said.contains("done        set the MTU of br107 to 1300"),
        "{said}"
    );
    assert!(
        said.contains(&format!("the connection {session} lives")),
        "{said}"
    );
}

#[test]
fn what_failed_at_the_start_is_tried_again_without_a_person() {
    let scene = Scene::new();
    let netns = &scene.lab.netns;
    netns.sysctl("ipv6/conf/foreign0/disable_ipv6", "1");
    let before = scene.picture();
    let mut bastion = scene.bastion(&format!(
        "{LINKS}  - name: foreign0\n    addresses: ['fd00:9::1/64']\n"
    ));
    bastion.start();
    same(&before, &scene.picture());
    let status = bastion.client(&["status", "--json"]);
    assert!(status.contains("a change was undone"), "{status}");
    netns.sysctl("ipv6/conf/foreign0/disable_ipv6", "0");
    until("the next try", Duration::from_secs(15), || {
        netns.ip("-br addr").contains("10.107.0.1/24")
    });
}

#[test]
fn an_operation_that_fails_ends_the_change_and_the_report_has_all_three_parts() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(LINKS);
    bastion.start();
    scene
        .lab
        .netns
        .sysctl("ipv6/conf/foreign0/disable_ipv6", "1");
    let before_too = scene.picture();
    let wanted = format!(
        "{LINKS}  - name: br1\n    bridge: {{ ports: [] }}\n    addresses: [10.1.0.1/24]\n    gateway: 10.1.0.254\n  - name: foreign0\n    addresses: ['fd00:9::1/64']\n"
    );
    write(&bastion.site, &wanted);
    let (code, said, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert_eq!(code, 1, "{said}{why}");
    for word in ["done ", "failed ", "not tried ", "rolled back "] {
        assert!(
            said.lines().any(|line| line.starts_with(word)),
            "{word}: {said}{why}"
        );
    }
    assert!(why.contains("  try: "), "{why}");
    same(&before_too, &scene.picture());
}

#[test]
fn what_is_ours_is_back_within_a_second_of_its_loss() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(LINKS);
    bastion.start();
    let netns = &scene.lab.netns;
    let losses: [(&str, &[&str]); 6] = [
        ("ip", &["addr", "del", "10.107.0.1/24", "dev", "br107"]),
        ("ip", &["route", "del", "10.200.0.0/16"]),
        ("ip", &["rule", "del", "from", "10.107.0.1"]),
        ("nft", &["delete", "table", "inet", "reveille"]),
        ("ip", &["link", "set", "br107", "down"]),
        ("ip", &["link", "del", "br107"]),
    ];
    let told = |netns: &Netns| {
        let own = [
            "-br addr show br107",
            "route show 10.200.0.0/16",
            "route show table 2001",
            "rule",
        ];
        let mut told: Vec<String> = own
            .iter()
            .map(|words| {
                let words: Vec<&str> = words.split(' ').collect();
                netns.try_output("ip", &words).unwrap_or_default()
            })
            .collect();
        told.push(netns.output("nft", &["-s", "list", "ruleset"]));
        told
    };
    // The link-local address is the kernel's, and a new bridge has another one.
    let stable = |told: Vec<String>| -> Vec<String> {
        let words = told.iter().map(|text| {
            let words = text
                .split_whitespace()
                .filter(|word| !word.starts_with("fe80:"));
            words.collect::<Vec<_>>().join(" ")
        });
        words.collect()
    };
    let whole = stable(told(netns));
    for (program, words) in losses {
        netns.output(program, words);
        until(
            &format!("{words:?} to be repaired"),
            Duration::from_secs(1),
            || stable(told(netns)) == whole,
        );
    }
    let events = bastion.client(&["events", "--limit", "500"]);
    assert!(events.contains("host, repair: "), "{events}");
}

#[test]
fn something_that_undoes_every_repair_is_met_ever_less_often_and_told_of() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(LINKS);
    bastion.start();
    let netns = &scene.lab.netns;
    let address = "10.107.0.1/24";
    let there = || netns.ip("-br addr show br107").contains(address);
    for _ in 0..3 {
        netns.ip(&format!("addr del {address} dev br107"));
        until("the repair", Duration::from_secs(1), there);
    }
    netns.ip(&format!("addr del {address} dev br107"));
    let complaint = || {
        let status = bastion.client(&["status", "--json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        let conditions = status["conditions"].as_array().unwrap().clone();
        conditions
            .into_iter()
            .find(|condition| condition["subject"] == "host" && condition["healthy"] == false)
    };
    until("the daemon to step aside", Duration::from_secs(2), || {
        complaint().is_some()
    });
    let said = complaint().unwrap()["detail"].to_string();
    assert!(
        said.contains("again and again") && said.contains(address),
        "{said}"
    );
    assert!(!there());
    // And then it tries once more.
    until("the end of the pause", Duration::from_secs(12), there);
}

#[test]
fn a_port_that_comes_late_is_waited_for_and_then_used() {
    let scene = Scene::new();
    let netns = &scene.lab.netns;
    let mut bastion = scene.bastion(&format!(
        "{LINKS}  - name: br2\n    bridge: {{ ports: [late0] }}\n    addresses: [10.2.0.1/24]\n"
    ));
    bastion.start();
    let (code, said, _) = operator(&bastion, &scene.lab, &["host", "plan"]);
    assert!(said.contains("late0"), "{code} {said}");
    netns.ip("link add late0 type veth peer name late1");
    until("the late port to be used", Duration::from_secs(3), || {
        netns.ip("-o link show late0").contains("master br2")
    });
    until("nothing to be left to do", Duration::from_secs(3), || {
        operator(&bastion, &scene.lab, &["host", "plan"]).0 == 0
    });
}

#[test]
fn links_that_others_make_are_only_looked_at() {
    let scene = Scene::new();
    let mut bastion = scene.bastion(&format!("host: {{ links: unmanaged }}\n{LINKS}"));
    let before = scene.picture();
    bastion.start();
    let (code, said, _) = operator(&bastion, &scene.lab, &["host", "plan"]);
    assert_eq!(code, 2, "{said}");
    let (code, _, why) = operator(&bastion, &scene.lab, &["host", "apply"]);
    assert!(
        code == 1 && why.contains("unmanaged") && why.contains("try: "),
        "{why}"
    );
    until("the status to say so", Duration::from_secs(2), || {
        let status = bastion.client(&["status", "--json"]);
        status.contains("differ from the site")
    });
    same(&before, &scene.picture());
}
