//! Hostile DNS, from fixed seeds: whatever the bytes, a reply is small, is marked as one, can be read by others, and is
//! never about what isn't ours.
//!
//! `FUZZ_ROUNDS` multiplies the work; each failure names its bytes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netboot::zone::packet::{Code, Kept, Question, Unanswerable, refuse};
use netboot::zone::{Answered, ClusterNames, DomainName, Names, Side, Zones};
use tests::chance::Chance;

const BASTION: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
const SECRET: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 2);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Header, a name of 255 bytes, type and class, an OPT.
const REPLY_PLAIN_MAX: usize = 1232;

fn rounds() -> u64 {
    let rounds = std::env::var("FUZZ_ROUNDS").ok();
    rounds.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn name(text: &str) -> DomainName {
    text.parse().expect("a name")
}

fn zones() -> Zones {
    Zones::new(&Names {
        serial: 1,
        ttl_seconds: 60,
        clusters: vec![ClusterNames {
            domain: name("okd.lab.example"),
            inside: vec![SECRET],
            outside: vec![PUBLIC],
            members: vec![(name("master-1.okd.lab.example"), SECRET)],
        }],
        machines: vec![(name("node-1.lab.example"), SECRET)],
        extra: vec![(name("*.web.lab.example"), IpAddr::V4(BASTION))],
        partial: BTreeSet::from([name("lab.example")]),
    })
}

/// A sound question, then some of its bytes changed, cut off or added.
fn packet(chance: &mut Chance) -> Vec<u8> {
    let words = [
        "api", "api-int", "apps", "okd", "web", "node-1", "lab", "example", "org", "x", "*",
    ];
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let labels = chance.below(8);
    for _ in 0..labels {
        let word = *chance.pick(&words);
        bytes.push(word.len() as u8);
        bytes.extend(word.bytes());
    }
    if chance.below(2) == 0 {
        bytes.extend(b"\x03okd\x03lab\x07example");
    }
    bytes.push(0);
    let kind = *chance.pick(&[1u16, 2, 6, 12, 16, 28, 41, 251, 252, 255, 65_280]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, *chance.pick(&[1, 1, 1, 1, 3, 255])]);
    if chance.below(2) == 0 {
        bytes[11] = 1;
        bytes.extend([
            0,
            0,
            41,
            16,
            0,
            0,
            *chance.pick(&[0, 0, 0, 1]),
            0x80,
            0,
            0,
            0,
        ]);
    }
    for _ in 0..chance.below(4) {
        let at = chance.below(bytes.len());
        bytes[at] = chance.below(256) as u8;
    }
    match chance.below(8) {
        0 => bytes.truncate(chance.below(bytes.len() + 1)),
        1 => (0..chance.below(300)).for_each(|_| bytes.push(chance.below(256) as u8)),
        _ => {}
    }
    bytes
}

#[test]
fn hostile_questions_get_small_sound_replies_or_none() {
    let (zones, mut chance) = (zones(), Chance::new(53));
    let (mut out, mut read) = (Vec::new(), 0);
    for _ in 0..400_000 * rounds() {
        let bytes = packet(&mut chance);
        let side = *chance.pick(&[Side::Inside, Side::Outside]);
        out.clear();
        match Question::parse(&bytes) {
            Ok(question) => {
                read += 1;
                let answered =
                    zones.answer(side, &question, false, question.datagram_max(), &mut out);
                assert_eq!(answered == Answered::Elsewhere, out.is_empty(), "{bytes:?}");
                assert_eq!(&bytes[12..12 + question.raw().len()], question.raw());
                if side == Side::Outside {
                    let secret = out.windows(4).any(|window| window == SECRET.octets());
                    assert!(!secret, "{bytes:?} told the outside {out:?}");
                }
            }
            Err(Unanswerable::Refused(code)) => refuse(&bytes, code, &mut out),
            Err(Unanswerable::Silent) => {
                assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0, "{bytes:?}");
            }
        }
        assert!(out.len() <= REPLY_PLAIN_MAX);
        // A reply is never a question, so two servers can't talk to each other for ever.
        assert!(out.is_empty() || Question::parse(&out).is_err());
        assert!(out.is_empty() || out[..2] == bytes[..2], "{bytes:?}");
    }
    assert!(
        read > 50_000,
        "only {read} were read: the generator no longer bites"
    );
}

#[test]
fn hostile_replies_of_other_servers_are_kept_whole_or_not_at_all() {
    let mut chance = Chance::new(54);
    let question =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01";
    let asked = Question::parse(question).expect("a sound question");
    let mut sound = question.to_vec();
    sound[2] = 0x81;
    sound[7] = 2;
    for last in 1..=2 {
        sound.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, last]);
    }
    let mut kept_some = 0;
    for _ in 0..200_000 * rounds() {
        let mut bytes = sound.clone();
        for _ in 0..chance.below(5) {
            let at = chance.below(bytes.len());
            bytes[at] = chance.below(256) as u8;
        }
        bytes.truncate(bytes.len() - chance.below(8) * usize::from(chance.below(4) == 0));
        let Some(kept) = Kept::read(&bytes, asked.raw().len(), Code::NoError, false, 3600) else {
            continue;
        };
        kept_some += 1;
        assert!(kept.seconds <= 3600);
        let mut out = Vec::new();
        kept.write(&asked, 7, 1232, &mut out);
        assert!(out.len() <= 1232);
        assert_eq!(out[..2], question[..2]);
    }
    assert!(
        kept_some > 50_000,
        "only {kept_some} were kept: the generator no longer bites"
    );
}
