//! Talos' event sink on a real link: a real gRPC client in the namespace of a machine publishes what a machine would,
//! and others publish what nobody should.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use daemon::http::Limits;
use daemon::probe::talos::sink::Outcome;
use daemon::probe::talos::wire::{
    Any, EventRequest, MachineStatus, Readiness, Stage, UnmetCondition,
};
use http::uri::PathAndQuery;
use netboot::attempt::Fact;
use proptest::prelude::any;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use prost::Message;
use tests::http::{Bastion, LIVE, SERVER, TALOS};
use tests::lab::until;
use tests::netns::Netns;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

const PORT: u16 = 8444;
const PATIENCE: Duration = Duration::from_secs(10);

fn status(id: &str, stage: Stage, ready: bool, amiss: &[(&str, &str)]) -> EventRequest {
    let unmet = amiss.iter().map(|(name, reason)| UnmetCondition {
        name: (*name).to_owned(),
        reason: (*reason).to_owned(),
    });
    let status = MachineStatus {
        stage: stage.into(),
        status: Some(Readiness {
            ready,
            unmet_conditions: unmet.collect(),
        }),
    };
    event(id, "machine.MachineStatusEvent", status.encode_to_vec())
}

fn event(id: &str, name: &str, value: Vec<u8>) -> EventRequest {
    EventRequest {
        data: Some(Any {
            type_url: format!("type.googleapis.com/{name}"),
            value,
        }),
        id: id.to_owned(),
    }
}

fn story() -> Vec<EventRequest> {
    let waits = [("time", "time is not synced")];
    vec![
        status("1", Stage::Installing, false, &[]),
        status("2", Stage::Running, false, &waits),
        status("3", Stage::Running, true, &[]),
    ]
}

/// Publishes over one connection, as a machine does: one event after the other.
fn publish(machine: &Netns, events: Vec<EventRequest>) -> Vec<Result<(), Status>> {
    machine.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let sink = Endpoint::from_shared(format!("http://{SERVER}:{PORT}")).expect("a URL");
            let sink = sink.connect_timeout(PATIENCE).timeout(PATIENCE);
            let channel = match sink.connect().await {
                Ok(channel) => channel,
                Err(error) => return vec![Err(Status::unavailable(error.to_string()))],
            };
            let mut grpc = Grpc::new(channel);
            let mut answers = Vec::new();
            for event in events {
                grpc.ready().await.expect("the channel works");
                let path = PathAndQuery::from_static("/events.EventSinkService/Publish");
                let codec = ProstCodec::<EventRequest, ()>::default();
                let answer = grpc.unary(Request::new(event), path, codec).await;
                answers.push(answer.map(|_| ()));
            }
            answers
        })
    })
}

fn told(bastion: &mut Bastion) -> Vec<(String, String)> {
    let facts = bastion.facts().into_iter();
    let told = facts.filter(|entry| matches!(entry.fact, Fact::Progress { .. }));
    told.map(|entry| {
        let node = entry.node.expect("told of a listed machine").to_string();
        (node, entry.fact.to_string())
    })
    .collect()
}

fn count(bastion: &Bastion, outcome: Outcome) -> u64 {
    let counts = bastion.http.sink().counts();
    let mut counts = counts.filter(|(other, _)| *other == outcome);
    counts.next().expect("every outcome is counted").1
}

fn hint(bastion: &Bastion) -> Option<String> {
    let node = "node-3".parse().expect("a name");
    Some(bastion.http.sink().progress(&node)?.words)
}

#[test]
fn what_a_listed_machine_tells_is_a_fact_of_the_ledger_and_its_last_word_a_hint() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(TALOS);
    assert_eq!(hint(&bastion), None);
    let answers = publish(&machine, story());
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let says = |words: &str| ("node-3".to_owned(), format!("says that it is {words}"));
    assert_eq!(
        told(&mut bastion),
        [
            says("installing"),
            says("running; time: time is not synced"),
            says("ready")
        ]
    );
    assert_eq!(hint(&bastion).as_deref(), Some("says that it is ready"));
}

#[test]
fn events_that_come_again_after_a_lost_connection_are_not_told_twice() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(TALOS);
    publish(&machine, story());
    assert_eq!(told(&mut bastion).len(), 3);
    let mut again = story();
    again.push(status("4", Stage::Rebooting, false, &[]));
    let answers = publish(&machine, again);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let told = told(&mut bastion);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1, "says that it is rebooting");
    assert_eq!(count(&bastion, Outcome::Repeated), 3);
}

#[test]
fn events_of_no_known_type_are_counted_and_dropped_and_not_asked_for_again() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(TALOS);
    let broken = vec![0x0a, 0xff];
    let answers = publish(
        &machine,
        vec![
            event("1", "machine.LaterEvent", vec![1, 2, 3]),
            event("2", "machine.TaskEvent", Vec::new()),
            event("3", "machine.MachineStatusEvent", broken),
            EventRequest::default(),
        ],
    );
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(told(&mut bastion), []);
    assert_eq!(count(&bastion, Outcome::Unknown), 1);
    assert_eq!(count(&bastion, Outcome::Quiet), 1);
    assert_eq!(count(&bastion, Outcome::Unreadable), 2);
}

#[test]
fn a_machine_that_is_not_listed_is_not_heard() {
    let mut bastion = Bastion::start(Limits::default());
    let address = Ipv4Addr::new(10, 107, 9, 9);
    let stranger = bastion.stranger("52:54:00:aa:09:09", address);
    let answers = publish(&stranger, story());
    assert!(answers.iter().any(Result::is_err), "{answers:?}");
    assert_eq!(told(&mut bastion), []);
    assert!(count(&bastion, Outcome::Foreign) > 0);
}

#[test]
fn an_event_beyond_the_bound_is_refused() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(TALOS);
    let huge = event("1", "machine.ConfigLoadErrorEvent", vec![b'x'; 1 << 20]);
    let answers = publish(&machine, vec![huge]);
    let refused = answers[0].as_ref().expect_err("a mebibyte is no event");
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!(told(&mut bastion), []);
}

#[test]
fn one_machine_has_two_connections_and_no_more() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let held = machine.run(|| {
        let connect = |_| TcpStream::connect((SERVER, PORT)).expect("the port is open");
        [0; 8].map(connect)
    });
    until("the others to be refused", PATIENCE, || {
        count(&bastion, Outcome::Crowded) == 6
    });
    drop(held);
    // Its place is free again when the old ones are gone.
    until("a place to be free", PATIENCE, || {
        publish(&machine, vec![status("1", Stage::Booting, true, &[])])
            .iter()
            .all(Result::is_ok)
    });
}

#[test]
fn whatever_bytes_come_the_next_machine_is_heard() {
    let mut bastion = Bastion::start(Limits::default());
    let (machine, other) = (bastion.machine(TALOS), bastion.machine(LIVE));
    let mut runner = TestRunner::deterministic();
    let bytes = proptest::collection::vec(any::<u8>(), 0..400);
    let mut noise = || {
        let tree = bytes.new_tree(&mut runner).expect("bytes");
        tree.current()
    };
    // As TCP, with and without the first words of HTTP/2.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let streams: Vec<Vec<u8>> = (0..100)
        .map(|number| match number % 2 {
            0 => noise(),
            _ => [preface.clone(), noise()].concat(),
        })
        .collect();
    other.run(move || {
        for bytes in streams {
            let mut stream = TcpStream::connect((SERVER, PORT)).expect("the port is open");
            // It may be closed while we write.
            let _ = stream.write_all(&bytes);
        }
    });
    // As events: good envelopes with bad content, and bad envelopes with a good number.
    let events = (0..500)
        .map(|number: u32| {
            let id = number.to_string();
            match number % 3 {
                0 => event(&id, "machine.MachineStatusEvent", noise()),
                1 => event(&id, "machine.SequenceEvent", noise()),
                _ => event(&id, &String::from_utf8_lossy(&noise()), noise()),
            }
        })
        .collect();
    let answers = publish(&machine, events);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    told(&mut bastion);
    publish(&machine, vec![status("last", Stage::Running, true, &[])]);
    assert_eq!(hint(&bastion).as_deref(), Some("says that it is ready"));
}

#[test]
fn where_no_profile_boots_talos_nobody_listens() {
    let bastion = Bastion::of(Limits::default(), |parts| {
        for profile in &mut parts.profiles {
            profile.arguments.retain(|text| !text.starts_with("talos."));
        }
    });
    let served = bastion.http.served();
    assert!(
        served.iter().all(|place| place.port() != PORT),
        "{served:?}"
    );
}
