//! An upgrade of the daemon under the real service manager, on a bastion with a kernel of its own: systemd keeps the balancer's
//! listening sockets from one process to the next, so nobody who comes to a cluster's API is refused. See `tests/src/host.rs`
//! for the laboratory. The cluster is a fake: a namespace, where a server answers as an API.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use tests::host::{Gateway, Host, OUTSIDE, PUBLIC, Shell, installed};
use tests::kube_fake::{Answer, Answers, Authority, Fake};
use tests::lab::Lab;
use tests::netns::Netns;
use tests::site::{of_talos, write};
use tests::switch::{Port, Switch};
use tests::visitor::{Visitor, Visits};

const SITE: &str = "site: test
links:
  - { name: eth1.107, vlan: { parent: eth1, id: 107 }, addresses: [10.107.0.1/24] }
  - { name: eth0, addresses: [203.0.113.5/24], gateway: 203.0.113.1, default_route: true }
networks:
  - { name: provisioning, link: eth1.107, subnet: 10.107.0.0/24, domain: example.test }
balancer: { public: [eth0] }
";
const CLUSTER: &str = "name: lab
type: TALOS
version: v1.11.5
network: { serviceCIDR: 10.200.0.0/16 }
nodeGroups:
  - { name: heads, role: CONTROL_PLANE, count: 1, boot: { configTemplate: talos } }
";
const API: u16 = 6443;
const NAME: &str = "api.lab.example.test";
const VERSION: &str = r#"{"major":"1","minor":"33","gitVersion":"v1.33.1"}"#;
/// What an emulated processor takes beside a restart.
const EVERY: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(30);

fn given(lab: &Lab) -> PathBuf {
    let root = lab.path("given");
    of_talos(&root, SITE, &["head-1"]);
    write(&root, "clusters/lab.yaml", CLUSTER);
    root
}

/// The process that serves; waits until it has one healthy machine behind the API.
fn served_by(shell: &mut Shell) -> String {
    shell.must("until reveille status --json | grep -q '\"health\": \"up\"'; do sleep 0.1; done");
    shell.must("systemctl show reveille --property=MainPID")
}

fn visitor(outside: &Gateway, ca: &Authority) -> Visitor {
    let door = format!("{PUBLIC}:{API}");
    Visitor::start(&outside.netns, EVERY, &door, NAME, &ca.pem, VERSION)
}

fn nobody_was_refused(what: &str, visits: &Visits) {
    println!("{what}: {visits:?}");
    assert_eq!(visits.failed, 0, "{what}: {visits:#?}");
    let wanted = visits.lasted.as_millis() / EVERY.as_millis() * 9 / 10;
    assert!(visits.made as u128 > wanted, "{what}: too few: {visits:?}");
}

#[test]
fn who_comes_while_systemd_restarts_the_daemon_waits_and_is_served() {
    let lab = Lab::empty();
    let switch = Switch::start(&lab);
    let outside = Gateway::outside(&lab, &switch);
    let head = Netns::new();
    let _cable = switch.plug(&lab, &head, Port::Inside(1), "52:54:00:aa:00:01");
    head.ip("addr add 10.107.0.11/24 dev eth0");
    let ca = Authority::default();
    let answers = Answers::default();
    answers.say("/readyz", Answer::Says(200, "ok".to_owned()));
    answers.say("/version", Answer::Says(200, VERSION.to_owned()));
    let at = format!("10.107.0.11:{API}");
    let _api = Fake::at(&head, &at, &ca.server(&[NAME]), &answers);
    let overlay = installed(&lab, &given(&lab), &["bastion"]);
    let host = Host::boot(&lab, &switch, &overlay);
    let mut shell = host.shell(&outside, OUTSIDE);
    shell.must("systemctl start reveille");
    let first = served_by(&mut shell);

    let visits = visitor(&outside, &ca);
    shell.must("systemctl restart reveille");
    let second = served_by(&mut shell);
    assert_ne!(first, second);
    nobody_was_refused("a restart", &visits.end());

    // Connections that it had are gone with it; the next ones wait in the kernel for systemd to start it again.
    shell.must("systemctl kill --signal=KILL reveille");
    let visits = visitor(&outside, &ca);
    let third = served_by(&mut shell);
    assert_ne!(second, third);
    nobody_was_refused("an end by SIGKILL", &visits.end());

    shell.must("systemctl stop reveille");
    let refused = outside.connect(OUTSIDE, (PUBLIC, API), LIMIT);
    let refused = refused.expect_err("a service that was stopped leaves no port open");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}
