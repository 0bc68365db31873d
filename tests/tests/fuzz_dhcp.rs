//! Hostile DHCP packets, made from fixed seeds: captured ones with bytes, options and lengths changed, and ones put
//! together from nothing. Whatever comes in, the answer is one the protocol allows, and the same one twice.
//!
//! `FUZZ_ROUNDS` sets how many; the seed of a failure is in its message.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::net::Ipv4Addr;
use std::sync::Arc;

use dhcproto::v4::{Message, MessageType};
use dhcproto::{Decodable, Decoder};
use netboot::dhcp::{
    Destination, Heard, Kind, LinkContext, Malformed, Port, Request, Verdict, answer,
};
use netboot::net::{MacAddress, Timestamp};
use netboot::site::Site;
use netboot::spec::Mode;
use tests::chance::Chance;
use tests::dhcp::{self, mac};
use tests::wire;

const ROUNDS: u64 = 150_000;
const MODES: [Mode; 4] = [Mode::Reservation, Mode::Pool, Mode::Proxy, Mode::Off];

fn site(mode: Mode) -> Site {
    Site::new(Arc::new(dhcp::site(dhcp::network(mode), 3)))
}

fn link() -> LinkContext {
    LinkContext {
        name: "eth0".parse().unwrap(),
        server: dhcp::SERVER,
        http_port: 8080,
        mtu: 1500,
    }
}

/// A DISCOVER of listed machine 1, with these options behind its type.
fn plain(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    bytes[28..34].copy_from_slice(&mac(1).octets());
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, 1]);
    bytes.extend(options);
    bytes
}

fn hostile(chance: &mut Chance, captured: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = if chance.happens(20) {
        plain(&[])
    } else {
        chance.pick(captured).clone()
    };
    if chance.happens(60) {
        let station = if chance.happens(80) {
            mac(1 + chance.below(4) as u16).octets()
        } else {
            chance.number().to_le_bytes()[..6].try_into().unwrap()
        };
        bytes[28..34].copy_from_slice(&station);
    }
    for _ in 0..chance.below(6) {
        mutate(chance, &mut bytes);
    }
    bytes
}

fn mutate(chance: &mut Chance, bytes: &mut Vec<u8>) {
    const CODES: [u8; 26] = [
        0, 1, 12, 43, 50, 51, 52, 53, 54, 55, 57, 60, 61, 66, 67, 77, 80, 81, 82, 93, 94, 97, 152,
        155, 175, 255,
    ];
    let byte = chance.number() as u8;
    let at = chance.below(bytes.len().max(1));
    match chance.below(8) {
        0 => bytes.truncate(at),
        1 => bytes.extend(std::iter::repeat_n(byte, chance.below(600))),
        2 if !bytes.is_empty() => bytes[at] = byte,
        3 if bytes.len() > 40 => bytes[chance.below(40)] = byte,
        4 if bytes.len() >= 243 => {
            let address = chance.pick(&[
                [10, 107, 1, 1],
                [10, 107, 200, 9],
                [10, 107, 0, 1],
                [192, 0, 2, 1],
                [255; 4],
            ]);
            let place = *chance.pick(&[12, 16, 20, 24]);
            bytes[place..place + 4].copy_from_slice(address);
        }
        5 if bytes.len() >= 243 => {
            // Options inside 'file' and 'sname', sound or not.
            let junk: Vec<u8> = (0..192).map(|_| *chance.pick(&CODES)).collect();
            bytes[44..236].copy_from_slice(&junk);
            bytes.splice(243..243, [52, 1, byte % 5]);
        }
        _ if bytes.len() >= 243 => {
            let code = *chance.pick(&CODES);
            let length = if chance.happens(70) {
                chance.below(20)
            } else {
                chance.below(256)
            };
            let mut option = vec![code, length as u8];
            option.extend((0..length).map(|_| chance.number() as u8));
            if chance.happens(20) {
                option[1] = byte;
            }
            if chance.happens(30) && length == 4 {
                option.truncate(2);
                option.extend([10, 107, 1, 1]);
            }
            let place = if chance.happens(80) { 243 } else { 240 };
            bytes.splice(place..place, option);
        }
        _ => {}
    }
}

/// How far a packet came.
#[derive(PartialEq)]
enum Depth {
    Refused,
    Read,
    Answered,
}

/// The rules that hold for every answer.
fn judge(site: &Site, mode: Mode, bytes: &[u8], heard: Heard) -> Depth {
    let Ok(request) = Request::parse(bytes) else {
        return Depth::Refused;
    };
    let now = Timestamp::from_millis(1_000);
    let (mut reply, mut again) = (Vec::new(), vec![9; 77]);
    let told = answer(site, &link(), &request, heard, now, &mut reply);
    let twin = answer(site, &link(), &request, heard, now, &mut again);
    assert_eq!(format!("{:?}", told.verdict), format!("{:?}", twin.verdict));
    let Verdict::Reply(verdict) = told.verdict else {
        return Depth::Read;
    };
    assert_eq!(reply, again, "one question has one answer");
    assert_ne!(mode, Mode::Off, "an unserved network is silent");
    assert!(
        told.node.is_some() || mode == Mode::Pool,
        "a stranger is answered by the pool alone"
    );
    let limit = usize::from(request.size_max().unwrap_or(576).min(1500)) - 28;
    assert!(
        (300..=limit).contains(&reply.len()),
        "{} bytes of {limit}",
        reply.len()
    );
    assert_eq!(reply[0], 2);
    assert_eq!(reply[4..8], bytes[4..8], "the transaction");
    assert_eq!(reply[28..34], bytes[28..34], "the station");
    let said = Message::decode(&mut Decoder::new(&reply)).expect("our own codec reads it");
    let kind = match verdict.kind {
        Kind::Offer => MessageType::Offer,
        Kind::Ack => MessageType::Ack,
        Kind::Nak => MessageType::Nak,
    };
    assert_eq!(said.opts().msg_type(), Some(kind));
    given(&verdict, &said, told.node.is_some(), told.mac, mode);
    if request
        .option(82)
        .is_some_and(|information| !information.is_empty())
    {
        assert_eq!(last_option(&reply), 82, "option 82 is the last one");
    }
    Depth::Answered
}

fn given(
    verdict: &netboot::dhcp::Reply,
    said: &Message,
    listed: bool,
    mac: MacAddress,
    mode: Mode,
) {
    let pool = Ipv4Addr::new(10, 107, 200, 1)..=Ipv4Addr::new(10, 107, 200, 100);
    assert_eq!(
        verdict.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
        said.yiaddr()
    );
    if let Some(address) = verdict.address {
        let own = (1..=3)
            .find(|number| dhcp::mac(*number) == mac)
            .map(dhcp::address);
        assert!(
            own == Some(address) || (!listed && pool.contains(&address)),
            "{address} is not its own"
        );
        assert_ne!(mode, Mode::Proxy, "a proxy gives no address");
        let waits = verdict.lease.is_some();
        assert_eq!(
            waits,
            !listed && verdict.kind == Kind::Ack,
            "a lent address is written down first"
        );
    }
    if verdict.kind == Kind::Nak {
        assert_ne!(mode, Mode::Proxy, "a proxy refuses nothing");
    }
    if let Destination::Client(address) = verdict.destination {
        assert_eq!(
            address.octets()[..2],
            [10, 107],
            "nobody outside the network is written to"
        );
    }
}

fn last_option(reply: &[u8]) -> u8 {
    let (mut at, mut last) = (240, 0);
    while reply[at] != 255 {
        last = reply[at];
        at += 2 + usize::from(reply[at + 1]);
    }
    last
}

#[test]
fn whatever_comes_in_the_answer_is_one_the_protocol_allows() {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let captured: Vec<Vec<u8>> = wire::names()
        .iter()
        .flat_map(|name| wire::read(name))
        .map(|message| message.bytes)
        .collect();
    let sites = MODES.map(site);
    let (mut read, mut answered) = (0, 0);
    for seed in 0..rounds {
        let mut chance = Chance::new(seed);
        let bytes = hostile(&mut chance, &captured);
        let which = chance.below(MODES.len());
        let heard = Heard {
            port: if chance.happens(85) {
                Port::Server
            } else {
                Port::BootServer
            },
            unicast: chance.happens(30),
            chainloads: chance.below(9) as u8,
        };
        let judged = std::panic::catch_unwind(|| judge(&sites[which], MODES[which], &bytes, heard));
        let Ok(depth) = judged else {
            panic!("seed {seed}, mode {:?}: {bytes:02x?}", MODES[which])
        };
        read += u64::from(depth != Depth::Refused);
        answered += u64::from(depth == Depth::Answered);
    }
    // Hostile bytes that never get past the first check would test nothing.
    assert!(
        read > rounds / 3 && answered > rounds / 10,
        "{read} read, {answered} answered"
    );
}

#[test]
fn what_is_known_to_break_the_codec_does_not_reach_it() {
    let site = site(Mode::Reservation);
    let heard = Heard {
        port: Port::Server,
        unicast: false,
        chainloads: 0,
    };
    let reason = |bytes: &[u8]| Request::parse(bytes).err();
    let changed = |at: usize, value: u8| {
        let mut bytes = plain(&[255]);
        bytes[at] = value;
        bytes
    };
    // A hardware address longer than its field.
    for length in [0, 7, 16, 17, 255] {
        assert_eq!(reason(&changed(2, length)), Some(Malformed::HardwareType));
    }
    // Another cookie.
    assert_eq!(reason(&changed(239, 0)), Some(Malformed::NoCookie));
    // Options whose length is wrong for their type, and the ones behind them all the same.
    for code in [1, 12, 54, 80, 81, 93, 94, 119, 121, 152, 153, 154, 155] {
        for length in [0, 1, 2, 3, 5, 9] {
            let mut options = vec![code, length];
            options.extend(std::iter::repeat_n(0xff, usize::from(length)));
            options.extend([60, 2, b'h', b'i', 255]);
            let bytes = plain(&options);
            match Request::parse(&bytes) {
                Ok(request) => assert_eq!(request.option(60).as_deref(), Some(&b"hi"[..])),
                Err(why) => assert_eq!((code, why), (54, Malformed::OptionLength)),
            }
            judge(&site, Mode::Reservation, &bytes, heard);
        }
    }
    // 'sname' and 'file' without an end, empty options, and iPXE's own.
    let mut full = plain(&[61, 0, 82, 0, 97, 0, 77, 0, 55, 0, 175, 2, 177, 0, 255]);
    full[44..236].fill(b'x');
    judge(&site, Mode::Reservation, &full, heard);
    // An end that never comes.
    judge(&site, Mode::Reservation, &plain(&[]), heard);
}
