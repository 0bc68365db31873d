//! Talos' machine API over real TLS and real gRPC, against fakes that say what a real apid would: who is talked to, what
//! each answer means, and what a silent, foreign or boundless node can do to us.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use daemon::probe::talos::wire::{
    Bootstrap, Diagnostic, MachineStatus, Metadata, Readiness, RpcStatus, Stage, UnmetCondition,
    Version,
};
use daemon::probe::talos::{
    Access, AccessFault, BootstrapAnswer, Machine, REPLY_BYTES_MAX, bootstrap, facts, look,
};
use netboot::cluster::Seen;
use tests::talos::{Answer, Authority, FakeTalos, member, reply, resource, sound};
use tokio::net::TcpListener;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// gRPC's numbers (grpc `doc/statuscodes.md`).
const INVALID_ARGUMENT: u16 = 3;
const ALREADY_EXISTS: u16 = 6;
const PERMISSION_DENIED: u16 = 7;
const FAILED_PRECONDITION: u16 = 9;

fn done() -> Answer {
    reply(Bootstrap::default())
}

fn no() -> Answer {
    Answer::Status(FAILED_PRECONDITION, "bootstrap is not available yet")
}

async fn bootstrapping(answers: Vec<Answer>) -> (Authority, FakeTalos) {
    let authority = Authority::default();
    let node = FakeTalos::honest(&authority, [("Bootstrap", answers)]);
    (authority, node)
}

fn machine(name: &str, api: SocketAddr, control_plane: bool) -> Machine {
    Machine {
        node: name.parse().expect("a name"),
        api,
        control_plane,
    }
}

fn fact<'a>(facts: &'a [Seen], name: &str, node: Option<&str>) -> &'a Seen {
    let of = |seen: &&Seen| {
        seen.key.fact.as_str() == name && seen.key.node.as_ref().map(|n| n.as_str()) == node
    };
    facts.iter().find(of).expect("the fact was looked for")
}

/// What a look says of one node, which is a control plane.
async fn looked(access: &Access, api: SocketAddr) -> Vec<Seen> {
    facts(&look(access, &[machine("cp-1", api, true)]).await)
}

#[tokio::test]
async fn bootstrap_is_one_call_of_one_node() {
    let (authority, node) = bootstrapping(vec![done()]).await;
    let answer = bootstrap(&authority.access(), node.address).await;
    assert_eq!(answer, BootstrapAnswer::Done);
    assert_eq!(node.calls(), ["Bootstrap"]);
}

#[tokio::test]
async fn a_node_that_is_not_ready_to_bootstrap_may_be_asked_again() {
    let (authority, node) = bootstrapping(vec![no(), no(), done()]).await;
    let access = authority.access();
    let words = "bootstrap is not available yet".to_owned();
    for _ in 0..2 {
        let answer = bootstrap(&access, node.address).await;
        assert_eq!(answer, BootstrapAnswer::NotYet(words.clone()));
    }
    assert_eq!(
        bootstrap(&access, node.address).await,
        BootstrapAnswer::Done
    );
}

#[tokio::test]
async fn a_node_that_has_an_etcd_is_bootstrapped() {
    let exists = Answer::Status(ALREADY_EXISTS, "etcd data directory is not empty");
    let (authority, node) = bootstrapping(vec![exists]).await;
    let answer = bootstrap(&authority.access(), node.address).await;
    assert_eq!(answer, BootstrapAnswer::AlreadyDone);
}

#[tokio::test]
async fn what_no_time_can_mend_is_refused_with_the_nodes_words() {
    for (code, words) in [
        (INVALID_ARGUMENT, "etcd is not configured"),
        (PERMISSION_DENIED, "not authorized"),
    ] {
        let (authority, node) = bootstrapping(vec![Answer::Status(code, words)]).await;
        let answer = bootstrap(&authority.access(), node.address).await;
        assert_eq!(answer, BootstrapAnswer::Refused(words.to_owned()));
    }
}

#[tokio::test]
async fn an_error_inside_a_good_reply_counts_as_the_error_that_it_is() {
    let inside = |code: u16| {
        reply(Bootstrap {
            metadata: Some(Metadata {
                error: "as it says".to_owned(),
                status: Some(RpcStatus {
                    code: i32::from(code),
                    message: String::new(),
                }),
            }),
        })
    };
    let answers = vec![inside(ALREADY_EXISTS), inside(INVALID_ARGUMENT), inside(0)];
    let (authority, node) = bootstrapping(answers).await;
    let access = authority.access();
    let words = "as it says".to_owned();
    for expected in [
        BootstrapAnswer::AlreadyDone,
        BootstrapAnswer::Refused(words.clone()),
        BootstrapAnswer::NotYet(words),
    ] {
        assert_eq!(bootstrap(&access, node.address).await, expected);
    }
}

#[tokio::test]
async fn a_node_of_another_cluster_is_told_nothing() {
    let (_, node) = bootstrapping(vec![done()]).await;
    let other = Authority::default();
    let answer = bootstrap(&other.access(), node.address).await;
    let BootstrapAnswer::NotYet(words) = answer else {
        panic!("a stranger was believed: {answer:?}");
    };
    assert!(
        words.starts_with("its certificate is not of this cluster"),
        "{words}"
    );
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn a_node_that_refuses_our_certificate_is_not_bootstrapped_and_says_why() {
    let (authority, node) = bootstrapping(vec![done()]).await;
    let (certificate, key) = Authority::default().administrator();
    let access = Access::new(&authority.pem, &certificate, &key).unwrap();
    let answer = bootstrap(&access, node.address).await;
    let BootstrapAnswer::NotYet(words) = answer else {
        panic!("a refusal was taken for an answer: {answer:?}");
    };
    // Its alert comes after the handshake, and a connection may be over before it is read.
    let said = ["alert", "does not take our certificate"];
    assert!(said.iter().any(|said| words.contains(said)), "{words}");
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn a_node_at_anothers_address_is_told_nothing() {
    let authority = Authority::default();
    let named = IpAddr::from([10, 107, 0, 11]);
    let node = FakeTalos::start(&authority, named, [("Bootstrap", vec![done()])]);
    let answer = bootstrap(&authority.access(), node.address).await;
    let BootstrapAnswer::NotYet(words) = answer else {
        panic!("a node at another's address was believed: {answer:?}");
    };
    assert!(
        words.starts_with("its certificate is for another address"),
        "{words}"
    );
    assert!(node.calls().is_empty());
}

#[test]
fn an_access_of_parts_that_do_not_fit_is_refused_before_any_call() {
    let authority = Authority::default();
    let (certificate, key) = authority.administrator();
    let (_, other) = authority.administrator();
    let made = |ca: &str, certificate: &str, key| Access::new(ca, certificate, key).err();
    assert!(matches!(
        made("", &certificate, &key),
        Some(AccessFault::Authority)
    ));
    assert!(matches!(
        made(&authority.pem, "", &key),
        Some(AccessFault::Certificate)
    ));
    let nothing = ignition::secret::Secret::new(String::new());
    assert!(matches!(
        made(&authority.pem, &certificate, &nothing),
        Some(AccessFault::Key)
    ));
    assert!(matches!(
        made(&authority.pem, &certificate, &other),
        Some(AccessFault::Tls(_))
    ));
    assert!(made(&authority.pem, &certificate, &key).is_none());
}

#[tokio::test]
async fn a_port_that_takes_connections_and_stays_silent_costs_seconds_and_no_more() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let began = Instant::now();
    let answer = bootstrap(&Authority::default().access(), address).await;
    let silence = "no answer within 5 s".to_owned();
    assert_eq!(answer, BootstrapAnswer::NotYet(silence));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_said_at_once() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let answer = bootstrap(&Authority::default().access(), address).await;
    let BootstrapAnswer::NotYet(words) = answer else {
        panic!("nobody answered: {answer:?}");
    };
    assert!(
        words.contains("does not answer: Connection refused"),
        "{words}"
    );
}

#[tokio::test]
async fn nodes_that_hang_do_not_hold_up_the_look_at_others() {
    let authority = Authority::default();
    let mut silent = Vec::new();
    for _ in 0..8 {
        let answers = [("Version", vec![Answer::Silence])];
        silent.push(FakeTalos::honest(&authority, answers));
    }
    let sound = FakeTalos::honest(&authority, sound(&[]));
    let mut machines: Vec<Machine> = silent
        .iter()
        .enumerate()
        .map(|(place, node)| machine(&format!("silent-{place}"), node.address, false))
        .collect();
    machines.push(machine("sound", sound.address, false));
    let began = Instant::now();
    let seen = facts(&look(&authority.access(), &machines).await);
    assert!(began.elapsed() < Duration::from_secs(10));
    let hung = fact(&seen, "machine-api", Some("silent-7"));
    assert!(!hung.holds);
    assert_eq!(hung.words, "no answer within 5 s");
    let sound = fact(&seen, "machine-api", Some("sound"));
    assert!(sound.holds);
    assert_eq!(sound.words, "Talos v1.12.0 answers");
}

#[tokio::test]
async fn a_reply_beyond_the_bound_is_an_error_and_is_not_kept() {
    let authority = Authority::default();
    let mut version = Version::default();
    version.version.get_or_insert_default().tag = "x".repeat(REPLY_BYTES_MAX + 1);
    let huge = [("Version", vec![reply(version)])];
    let node = FakeTalos::honest(&authority, huge);
    let seen = looked(&authority.access(), node.address).await;
    let api = fact(&seen, "machine-api", Some("cp-1"));
    assert!(!api.holds);
    assert!(api.words.contains("too large"), "{}", api.words);
}

#[tokio::test]
async fn words_of_a_node_are_cut_and_carry_no_control_letters() {
    let authority = Authority::default();
    let mut version = Version::default();
    version.version.get_or_insert_default().tag = format!("v1\n\u{1b}[2J{}", "x".repeat(5000));
    let mut answers = sound(&[]);
    answers[0].1 = vec![reply(version)];
    let node = FakeTalos::honest(&authority, answers);
    let seen = looked(&authority.access(), node.address).await;
    let words = &fact(&seen, "machine-api", Some("cp-1")).words;
    assert!(!words.chars().any(char::is_control), "{words}");
    assert!(words.chars().count() <= 300);
}

#[tokio::test]
async fn a_bootstrapped_and_healthy_cluster_shows_every_fact() {
    let authority = Authority::default();
    let etcd = [member(1, LOOPBACK)];
    let plane = FakeTalos::honest(&authority, sound(&etcd));
    let worker = FakeTalos::honest(&authority, sound(&[]));
    let machines = [
        machine("cp-1", plane.address, true),
        machine("worker-1", worker.address, false),
    ];
    let seen = facts(&look(&authority.access(), &machines).await);
    let told: Vec<(&str, Option<&str>, bool, &str)> = seen
        .iter()
        .map(|seen| {
            let node = seen.key.node.as_ref().map(|node| node.as_str());
            (
                seen.key.fact.as_str(),
                node,
                seen.holds,
                seen.words.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("machine-api", Some("cp-1"), true, "Talos v1.12.0 answers"),
            (
                "machine-api",
                Some("worker-1"),
                true,
                "Talos v1.12.0 answers"
            ),
            ("etcd-member", Some("cp-1"), true, "one of 1 votes in etcd"),
            ("bootstrapped", None, true, "etcd of cp-1 counts 1 votes"),
            ("healthy", None, true, "9 checks passed"),
        ]
    );
    assert!(!worker.calls().contains(&"EtcdMemberList".to_owned()));
}

#[tokio::test]
async fn before_bootstrap_a_control_plane_answers_and_is_no_member() {
    let authority = Authority::default();
    let mut answers = sound(&[]);
    answers.pop();
    let waits = Answer::Status(14, "etcd is not running");
    answers.push(("EtcdMemberList", vec![waits]));
    let node = FakeTalos::honest(&authority, answers);
    let seen = looked(&authority.access(), node.address).await;
    assert!(fact(&seen, "machine-api", Some("cp-1")).holds);
    let member = fact(&seen, "etcd-member", Some("cp-1"));
    assert!(!member.holds);
    assert_eq!(member.words, "etcd is not running");
    let bootstrapped = fact(&seen, "bootstrapped", None);
    assert!(!bootstrapped.holds);
    assert_eq!(bootstrapped.words, "no control plane has a vote in etcd");
}

#[tokio::test]
async fn what_keeps_a_cluster_from_being_healthy_is_named() {
    let authority = Authority::default();
    let mut answers = sound(&[member(1, LOOPBACK)]);
    let status = MachineStatus {
        stage: Stage::Booting.into(),
        status: Some(Readiness {
            ready: false,
            unmet_conditions: vec![UnmetCondition {
                name: "time".to_owned(),
                reason: "time is not synced".to_owned(),
            }],
        }),
    };
    answers[2].1 = vec![Answer::of(&resource(&status))];
    let warning = Diagnostic {
        message: "kubelet CSRs are not approved".to_owned(),
    };
    answers[3].1 = vec![Answer::of(&resource(&warning))];
    let node = FakeTalos::honest(&authority, answers);
    let seen = looked(&authority.access(), node.address).await;
    let healthy = fact(&seen, "healthy", None);
    assert!(!healthy.holds);
    assert_eq!(
        healthy.words,
        "waits for no diagnostics: cp-1: kubelet CSRs are not approved; and 2 more checks fail"
    );
}
