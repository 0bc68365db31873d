//! A fake of Talos' device flow, written from RFC 8628 and the sequence of golang.org/x/oauth2 that Talos uses, over curl:
//! each poll is sent twice, first with the client in a header, then in the form, until one succeeds. What the real one dies of
//! it would die of here: any error of a poll but `authorization_pending` and `slow_down`.

use daemon::http::Limits;
use netboot::attempt::{Entry, Fact};
use netboot::event::Event;
use netboot::net::NodeName;
use netboot::spec::{ConfigSource, SiteParts};
use serde_json::Value;
use tests::http::{BASE, Bastion, LIVE, TALOS, argument, curl, mac, script};
use tests::netns::Netns;

const GRANT: &str = "grant_type=urn:ietf:params:oauth:grant-type:device_code";

fn bastion() -> Bastion {
    Bastion::of(Limits::default(), |parts: &mut SiteParts| {
        for profile in &mut parts.profiles {
            if matches!(profile.config, ConfigSource::Talos(_)) {
                let client = "talos.config.oauth.client_id=reveille";
                profile.arguments.push(client.to_owned());
            }
        }
    })
}

fn talos() -> NodeName {
    format!("node-{TALOS}").parse().expect("a name")
}

fn post(machine: &Netns, path: &str, words: &[&str]) -> (u16, Value) {
    let url = format!("{BASE}{path}");
    let form: Vec<&str> = words
        .iter()
        .flat_map(|word| ["--data-urlencode", word])
        .collect();
    let (status, body) = curl(machine, &[&form[..], &[&url]].concat());
    let body = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    (status, body)
}

/// The device's answer; the extra variables are as Talos sends them.
fn device_code(machine: &Netns) -> Value {
    let mac = format!("mac={}", mac(TALOS));
    let (status, answer) = post(
        machine,
        "/device/code",
        &["client_id=reveille", "audience=", &mac],
    );
    assert_eq!(status, 200, "{answer}");
    answer
}

/// One poll: the same request twice, unless the first succeeds. What counts for the client is the last answer.
fn poll(machine: &Netns, code: &str) -> (u16, Value) {
    let code = format!("device_code={code}");
    let words = ["client_id=reveille", GRANT, &code];
    let first = post(machine, "/token", &words);
    if first.0 == 200 {
        first
    } else {
        post(machine, "/token", &words)
    }
}

fn told(bastion: &mut Bastion) -> Vec<String> {
    let facts = bastion.facts().into_iter();
    let answer = |entry: Entry| {
        let Fact::DeviceFlow { answer, .. } = entry.fact else {
            return None;
        };
        Some(answer.into_owned())
    };
    facts.filter_map(answer).collect()
}

fn apply(bastion: &Bastion, event: Event) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    runtime
        .block_on(bastion.controller.apply(event))
        .expect("written");
}

#[test]
fn a_machine_that_policy_admits_gets_its_token_and_with_it_alone_its_config() {
    let mut bastion = bastion();
    let machine = bastion.machine(TALOS);
    let (status, boot) = curl(&machine, &[&script(TALOS)]);
    assert_eq!(status, 200);
    let config = argument(&boot, "talos.config=").to_owned();
    assert_eq!(curl(&machine, &[&config]).0, 401);

    let device = device_code(&machine);
    assert_eq!(device["user_code"], talos().as_str());
    let uri = device["verification_uri"].as_str().expect("a URL");
    assert!(curl(&machine, &[uri]).1.contains("node approve"));
    let (status, token) = poll(&machine, device["device_code"].as_str().expect("a code"));
    assert_eq!(
        (status, &token["token_type"]),
        (200, &Value::from("Bearer"))
    );
    let token = token["access_token"].as_str().expect("a token");
    let bearer = format!("Authorization: Bearer {token}");
    for (header, wanted) in [
        (bearer.as_str(), 200),
        ("Authorization: Bearer guess", 401),
        ("Authorization: Basic cmV2ZWlsbGU6", 401),
    ] {
        assert_eq!(
            curl(&machine, &["-H", header, &config]).0,
            wanted,
            "{header}"
        );
    }
    assert_eq!(told(&mut bastion)[..3], ["refused", "asked", "granted"]);

    // A token ends with its boot.
    let (_, boot) = curl(&machine, &[&script(TALOS)]);
    let config = argument(&boot, "talos.config=").to_owned();
    assert_eq!(curl(&machine, &["-H", &bearer, &config]).0, 401);
}

#[test]
fn a_machine_that_waits_for_a_person_is_held_without_an_error_it_would_die_of() {
    let mut bastion = bastion();
    let machine = bastion.machine(TALOS);
    assert_eq!(curl(&machine, &[&script(TALOS)]).0, 200);
    apply(&bastion, Event::Cordoned(talos()));
    let device = device_code(&machine);
    let code = device["device_code"].as_str().expect("a code");
    // At once, as the client does, and once more when its first interval is over.
    for _ in 0..2 {
        let (status, answer) = poll(&machine, code);
        assert_eq!(
            (status, &answer["error"]),
            (400, &Value::from("authorization_pending"))
        );
    }
    let (_, answer) = poll(&machine, code);
    assert_eq!(answer["error"], "slow_down");
    apply(&bastion, Event::Uncordoned(talos()));
    assert_eq!(poll(&machine, code).0, 200);
    assert_eq!(told(&mut bastion), ["asked", "waits", "granted"]);

    apply(&bastion, Event::Rejected(talos()));
    assert_eq!(poll(&machine, code).1["error"], "access_denied");
}

#[test]
fn nobody_else_gets_a_code_or_a_token_and_no_answer_helps_to_guess() {
    let bastion = bastion();
    let machine = bastion.machine(TALOS);
    assert_eq!(curl(&machine, &[&script(TALOS)]).0, 200);
    let device = device_code(&machine);
    let code = device["device_code"].as_str().expect("a code");
    assert_eq!(poll(&machine, "guess").1["error"], "expired_token");
    let other = format!("mac={}", mac(LIVE));
    let right = format!("device_code={code}");
    let words = ["client_id=reveille", GRANT, &right, &other];
    assert_eq!(post(&machine, "/token", &words).1["error"], "access_denied");
    for (words, error) in [
        (&[GRANT, &right][..], "invalid_request"),
        (
            &["client_id=reveille", "grant_type=password"],
            "unsupported_grant_type",
        ),
    ] {
        let (status, answer) = post(&machine, "/token", words);
        assert_eq!((status, &answer["error"]), (400, &Value::from(error)));
    }

    // Another machine with the right code.
    let thief = bastion.machine(LIVE);
    assert_eq!(poll(&thief, code).1["error"], "access_denied");
}
