//! Hostile HTTP: a structured fuzzer on the reader of requests, and the same bytes thrown at a live server. A bounded count
//! with a fixed seed, so that a failure comes back; `REVEILLE_FUZZ=N` multiplies the count.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use daemon::http::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Limits, Parsed, parse};
use tests::chance::Chance;
use tests::http::{BASE, Bastion, LIVE, SERVER, curl};
use tests::lab::until;

const SEED: u64 = 0x5245_5645_494c_4c45;
const LIMIT: Duration = Duration::from_secs(20);

/// Pieces that requests are made of, good ones and bad ones.
const METHODS: &[&str] = &[
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "get",
    "",
    "G\0T",
    "OPTIONS",
    "GETGETGETGETGET",
];
const TARGETS: &[&str] = &[
    "/",
    "/healthz",
    "/artifacts/",
    "/artifacts/../../etc/passwd",
    "/boot/52-54-00-aa-00-01/script.ipxe",
    "/boot//script.ipxe",
    "/config/x/config.ign",
    "/config//",
    "/agent/v1/report/x",
    "/loader/%2e%2e/%2e%2e/etc/passwd",
    "/loader/",
    "*",
    "",
    "http://a/b",
    "http://",
    "//a",
    "/a b",
    "/a#b",
    "/\u{e9}",
    "/?uuid=%zz&serial=%",
    "/%00",
    "a://b/../c",
];
const VERSIONS: &[&str] = &[
    "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.", "http/1.1", "",
];
const HEADERS: &[&str] = &[
    "Host: a",
    "Host: b",
    "host:",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 65536",
    "Content-Length: 65537",
    "Content-Length: -1",
    "Content-Length: 18446744073709551616",
    "Content-Length: 5, 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Range: bytes=0-",
    "Range: bytes=-",
    "Range: bytes=18446744073709551615-",
    "If-Range: \"x\"",
    "Connection: close",
    "Connection: keep-alive, close",
    "Expect: 100-continue",
    "X: \u{e9}",
    "User-Agent: iPXE/1.0.0+",
    " folded",
    ": nameless",
    "Bad Name: x",
    "NoColon",
    "X:\ty\t",
    "X: \0",
];
const ENDS: &[&str] = &["\r\n", "\n", "\r", "\r\r\n", ""];

#[test]
fn no_bytes_make_the_reader_panic_or_read_more_than_a_head() {
    let mut dice = Chance::new(SEED);
    for _ in 0..rounds(200_000) {
        let bytes = request(&mut dice);
        let parsed = parse(&bytes);
        match &parsed {
            Parsed::Whole(request, length) => {
                assert!(*length <= bytes.len().min(HEAD_BYTES_MAX), "{bytes:?}");
                assert!(
                    request.path.starts_with('/') && request.path.is_ascii(),
                    "{request:?}"
                );
                assert!(request.content_length <= BODY_BYTES_MAX, "{request:?}");
                // What comes behind a head is never part of it.
                let mut longer = bytes[..*length].to_vec();
                longer.extend_from_slice(b"GET /smuggled HTTP/1.1\r\n");
                assert_eq!(parse(&longer), parsed, "{bytes:?}");
            }
            Parsed::Partial => assert!(
                bytes.len() < HEAD_BYTES_MAX,
                "a head without end is refused"
            ),
            Parsed::Refused(_) => {}
        }
        // Bytes that arrive one by one mean what they mean at once: no beginning of a whole head is refused.
        if let Parsed::Whole(_, length) = parsed {
            let cut = dice.below(length);
            assert_eq!(
                parse(&bytes[..cut]),
                Parsed::Partial,
                "{:?}",
                String::from_utf8_lossy(&bytes[..cut])
            );
        }
    }
}

#[test]
fn a_live_server_outlives_what_the_fuzzer_sends() {
    let limits = Limits {
        head_time: Duration::from_millis(200),
        body_time: Duration::from_millis(200),
        ..Limits::default()
    };
    let bastion = Bastion::start(limits);
    let machine = bastion.machine(LIVE);
    let rounds = rounds(3000);
    let good = machine.run(move || {
        let mut dice = Chance::new(SEED + 1);
        (0..rounds)
            .filter(|_| answered_well(&request(&mut dice)))
            .count()
    });
    assert!(good > 0, "some of them are good requests");
    assert_eq!(
        curl(&machine, &[&format!("{BASE}/healthz")]),
        (200, "ok\n".to_owned())
    );
    until("every place to be free", LIMIT, || {
        bastion.http.connections() == 0
    });
    let refused: u64 = bastion
        .http
        .counters()
        .refusals()
        .map(|(_, count)| count)
        .sum();
    assert!(refused > 0, "refusals are counted");
    let kinds = bastion
        .http
        .counters()
        .refusals()
        .filter(|(_, count)| *count > 0)
        .count();
    assert!(
        kinds >= 6,
        "by their reasons: {:?}",
        bastion.http.counters()
    );
}

#[test]
fn no_path_leads_out_of_the_depot() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let file = bastion.artifact("a/b", 100);
    let digest = file.digest.to_string();
    for path in [
        "/artifacts/../../../../etc/passwd",
        "/artifacts/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/artifacts//etc/passwd",
        "/artifacts/./b",
        &format!("/artifacts/{digest}"),
        &format!("/artifacts/{digest}/../../names/a:b.json"),
        &format!("/artifacts/{digest}/x/y"),
        &format!("/artifacts/..%2fsha256%2f{digest}/x"),
        &format!("/artifacts/{}/x", &digest[1..]),
        &format!("/artifacts/{digest}0/x"),
        "/loader/../depot/lock",
        "/loader/%2e%2e%2fpasswd",
        "/loader//etc/passwd",
        "/boot/../script.ipxe",
        "/config/../../x",
        "/../../etc/passwd",
        "//etc/passwd",
    ] {
        let (status, body) = curl(&machine, &["--path-as-is", &format!("{BASE}{path}")]);
        assert_eq!(status, 404, "{path}: {body}");
    }
    let upper = format!("{BASE}/artifacts/{}/any-name-does", digest.to_uppercase());
    assert_eq!(
        curl(&machine, &["-o", "/dev/null", &upper]).0,
        200,
        "the digest is the file"
    );
}

#[test]
fn strangers_without_number_leave_nothing_behind_but_a_bounded_list() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let count = rounds(20_000);
    let refused = machine.run(move || {
        let mut stream = TcpStream::connect((SERVER, 8080)).expect("connected");
        let mut dice = Chance::new(SEED + 2);
        let mut refused = 0;
        for _ in 0..count {
            let number = dice.number();
            let [a, b, c, d, ..] = number.to_le_bytes();
            let request = format!("GET /boot/02-ee-{a:02x}-{b:02x}-{c:02x}-{d:02x}/script.ipxe HTTP/1.1\r\nHost: a\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("sent");
            refused += usize::from(one_answer(&mut stream).contains("not listed"));
        }
        refused
    });
    assert_eq!(refused, count);
    let site = bastion.controller.snapshot().load();
    assert!(site.sightings().count() <= 256);
    assert_eq!(site.records().count(), 0);
    assert!(bastion.facts().len() <= 16_384);
}

/// A request put together from the pieces, sometimes bent afterwards.
fn request(dice: &mut Chance) -> Vec<u8> {
    let mut text = String::new();
    let end = if dice.happens(80) {
        "\r\n"
    } else {
        *dice.pick(ENDS)
    };
    let space = if dice.happens(95) { " " } else { "  " };
    text += &[
        *dice.pick(METHODS),
        *dice.pick(TARGETS),
        *dice.pick(VERSIONS),
    ]
    .join(space);
    text += end;
    if dice.happens(70) {
        text += "Host: 10.107.0.1:8080\r\n";
    }
    let headers = if dice.happens(3) { 70 } else { dice.below(4) };
    for _ in 0..headers {
        text += *dice.pick(HEADERS);
        text += end;
    }
    text += if dice.happens(85) {
        "\r\n"
    } else {
        *dice.pick(ENDS)
    };
    let mut bytes = text.into_bytes();
    if dice.happens(2) {
        let at = dice.below(bytes.len() + 1);
        let long = vec![b'a'; dice.below(2 * HEAD_BYTES_MAX)];
        bytes.splice(at..at, long);
    }
    for _ in 0..if dice.happens(30) { dice.below(4) } else { 0 } {
        let at = dice.below(bytes.len().max(1));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = dice.number() as u8;
        }
    }
    if dice.happens(10) {
        bytes.truncate(dice.below(bytes.len() + 1));
    }
    bytes
}

/// Sends the bytes, closes this end, and reads what comes: an answer or none, but an end.
fn answered_well(bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect((SERVER, 8080)).expect("connected");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    // The server may have refused before all of it was sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert_ne!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "the server held on to {bytes:?}"
        ),
    }
    let text = String::from_utf8_lossy(&said);
    assert!(
        said.is_empty() || text.starts_with("HTTP/1.1 "),
        "{bytes:?} gave {text}"
    );
    assert!(!text.contains("root:"), "{bytes:?} gave {text}");
    text.starts_with("HTTP/1.1 200 ")
}

/// Reads one answer with a body off a connection.
fn one_answer(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).expect("an answer");
        assert!(read > 0, "the connection ended");
        said.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&said);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .expect("a length");
            if body.len() >= length.parse::<usize>().expect("a number") {
                return text.into_owned();
            }
        }
    }
}

fn rounds(count: usize) -> usize {
    let times = std::env::var("REVEILLE_FUZZ")
        .ok()
        .and_then(|text| text.parse().ok());
    count * times.unwrap_or(1)
}
