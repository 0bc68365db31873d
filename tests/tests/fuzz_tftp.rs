//! Hostile and unlucky TFTP, from fixed seeds: the desk never panics, never outgrows its limits, never sends more
//! than a window for a packet, and a patient client on a bad wire gets every block.
//!
//! `FUZZ_ROUNDS` multiplies the work; each failure names its seed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Duration;

use netboot::tftp::{
    Admission, Desk, Limits, Outcome, Packet, Send, Turn, block_octets, encode_options, parse,
};
use tests::chance::Chance;

const SEEDS: u64 = 40;
const STEPS: usize = 5_000;

#[test]
fn hostile_packets_never_outgrow_the_desk() {
    for seed in 0..SEEDS * rounds() {
        let mut siege = Siege::new(seed);
        for _ in 0..STEPS {
            siege.step();
        }
        siege.leave_alone();
    }
}

#[test]
fn mutated_requests_are_refused_or_name_a_clean_path() {
    let mut chance = Chance::new(7);
    let mut read = 0;
    for _ in 0..200_000 * rounds() {
        let bytes = packet(&mut chance);
        if let Ok(Packet::Read(request)) = parse(&bytes) {
            let path = &request.path;
            let clean = !path.is_empty()
                && path.len() <= 255
                && !path.contains(['\\', '\0', '\n'])
                && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            assert!(clean, "{bytes:?} named {path:?}");
            assert!(request.asked.len() <= 4);
            read += 1;
        }
    }
    assert!(
        read > 10_000,
        "only {read} requests were read: the generator no longer bites"
    );
}

#[test]
fn a_patient_client_on_a_bad_wire_gets_every_block() {
    for seed in 0..300 * rounds() {
        let mut chance = Chance::new(seed);
        let window = *chance.pick(&[1, 1, 2, 4, 16, 64]);
        let blocks = 1 + chance.below(400) as u64;
        let loss = chance.below(25) as u64;
        let mut wire = Wire::new(seed, window, blocks, loss);
        let end = wire.run();
        assert!(
            matches!(end, Outcome::Complete | Outcome::Unconfirmed),
            "seed {seed}: window {window}, {loss} % lost: {end:?} after {} of {blocks} blocks",
            wire.arrived
        );
        assert_eq!(
            wire.arrived, blocks,
            "seed {seed}: the server left too early"
        );
    }
}

#[test]
fn a_clean_wire_carries_each_block_once() {
    for window in [1, 2, 4, 16, 64] {
        let mut wire = Wire::new(1, window, 1000, 0);
        assert_eq!(wire.run(), Outcome::Complete);
        assert_eq!(wire.sent, 1000, "window {window}");
    }
}

/// A desk among strangers.
struct Siege {
    seed: u64,
    chance: Chance,
    limits: Limits,
    desk: Desk<()>,
    now: Duration,
    started: usize,
    ended: usize,
}

impl Siege {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            transfers: 20,
            transfers_per_client: 6,
            window: 16,
            ..Limits::default()
        };
        Self {
            seed,
            chance: Chance::new(seed),
            desk: Desk::new(limits.clone()),
            limits,
            now: Duration::ZERO,
            started: 0,
            ended: 0,
        }
    }

    fn step(&mut self) {
        let micros = [0, 10, 1000, 300_000, 3_000_000][self.chance.below(5)];
        self.now += Duration::from_micros(micros);
        while let Some(turn) = self.desk.expire(self.now) {
            self.take(turn);
        }
        let bytes = packet(&mut self.chance);
        let peer = peer(&mut self.chance);
        if self.chance.happens(40) {
            self.ask(peer, &bytes);
        } else {
            let port = self.chance.below(self.limits.ports + 1);
            let turn = self.desk.packet(port, peer, &bytes, self.now);
            self.take(turn);
        }
        assert_eq!(
            self.started - self.ended,
            self.desk.len(),
            "seed {}",
            self.seed
        );
        assert!(
            self.desk.len() <= self.limits.transfers,
            "seed {}",
            self.seed
        );
    }

    fn ask(&mut self, peer: SocketAddrV4, bytes: &[u8]) {
        match self.desk.admit(peer, bytes, self.now) {
            Admission::Open { request, replaced } => {
                self.ended += usize::from(replaced.is_some());
                let length = [0, 1, 511, 512, 1468, 100_000, 1 << 33][self.chance.below(7)];
                let (id, send) = self.desk.open(peer, request, (), length, self.now);
                self.started += 1;
                self.sent(id, send);
            }
            Admission::Again(id, send) => self.sent(id, send),
            Admission::Refuse { message, .. } => assert!(message.len() < 128),
            Admission::Ignore(_) => {}
        }
    }

    fn take(&mut self, turn: Turn<()>) {
        match turn {
            Turn::Send(id, send) => self.sent(id, send),
            Turn::Ended(..) => self.ended += 1,
            Turn::Ignored(_) => {}
        }
    }

    fn sent(&self, id: usize, send: Send) {
        let transfer = &self.desk.session(id).unwrap().transfer;
        let agreed = transfer.agreed();
        assert!(agreed.window <= self.limits.window && agreed.block_size <= self.limits.block_size);
        match send {
            Send::Nothing => {}
            // RFC 2347 bounds a request at 512 octets; an answer to it is shorter.
            Send::Options => assert!(encode_options(agreed, transfer.length()).len() < 512),
            Send::Blocks { first, count } => {
                let last = transfer.length() / u64::from(agreed.block_size) + 1;
                assert!(first >= 1 && count >= 1 && count <= agreed.window);
                assert!(first + u64::from(count) - 1 <= last, "seed {}", self.seed);
                let octets = block_octets(transfer.length(), agreed.block_size, first);
                assert!(octets.len() <= usize::from(agreed.block_size));
            }
        }
    }

    /// With nobody speaking, every transfer ends by the clock.
    fn leave_alone(&mut self) {
        for _ in 0..10_000 {
            let Some(deadline) = self.desk.next_deadline() else {
                break;
            };
            self.now = self.now.max(deadline);
            while let Some(turn) = self.desk.expire(self.now) {
                self.take(turn);
            }
        }
        assert!(
            self.desk.is_empty(),
            "seed {}: a transfer outlived its client",
            self.seed
        );
        assert_eq!(self.started, self.ended);
    }
}

/// One client and one desk on a wire that loses, doubles and delays, in a time of its own.
struct Wire {
    desk: Desk<()>,
    chance: Chance,
    loss: u64,
    window: u64,
    last: u64,
    /// Blocks the client holds, in order.
    arrived: u64,
    unanswered: u64,
    gap_told: bool,
    heard_at: Duration,
    now: Duration,
    /// Numbers of blocks on their way to the client (0 is the OACK), and of ACKs to the server.
    down: VecDeque<(Duration, u64)>,
    up: VecDeque<(Duration, u64)>,
    sent: u64,
    end: Option<Outcome>,
}

const CLIENT: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 7, 0, 2), 2070);

impl Wire {
    fn new(seed: u64, window: u16, blocks: u64, loss: u64) -> Self {
        let mut desk = Desk::new(Limits::default());
        let request = format!("\0\x01ipxe.efi\0octet\0tsize\x000\0windowsize\0{window}\0");
        let Admission::Open { request, .. } =
            desk.admit(CLIENT, request.as_bytes(), Duration::ZERO)
        else {
            panic!("a plain request is opened");
        };
        let (id, send) = desk.open(CLIENT, request, (), (blocks - 1) * 512 + 1, Duration::ZERO);
        let mut wire = Self {
            desk,
            chance: Chance::new(seed ^ 0x5eed),
            loss,
            window: u64::from(window),
            last: blocks,
            arrived: 0,
            unanswered: 0,
            gap_told: false,
            heard_at: Duration::ZERO,
            now: Duration::ZERO,
            down: VecDeque::new(),
            up: VecDeque::new(),
            sent: 0,
            end: None,
        };
        wire.send(id, send);
        wire
    }

    fn run(&mut self) -> Outcome {
        for _ in 0..2_000_000 {
            if let Some(end) = self.end.take() {
                return end;
            }
            self.advance();
        }
        panic!("no end after {} of {} blocks", self.arrived, self.last);
    }

    /// The next thing that happens: an arrival at either side, the server's clock or the client's.
    fn advance(&mut self) {
        let patience = self.heard_at + Duration::from_secs(1);
        let arrival =
            |wire: &VecDeque<(Duration, u64)>| wire.front().map_or(Duration::MAX, |next| next.0);
        let alarm = self.desk.next_deadline().unwrap_or(Duration::MAX);
        let next = arrival(&self.down)
            .min(arrival(&self.up))
            .min(alarm)
            .min(patience);
        self.now = self.now.max(next);
        if arrival(&self.down) <= self.now {
            let (_, block) = self.down.pop_front().unwrap();
            self.client_hears(block);
        } else if arrival(&self.up) <= self.now {
            let (_, block) = self.up.pop_front().unwrap();
            let [high, low] = ((block & 0xffff) as u16).to_be_bytes();
            let turn = self.desk.packet(0, CLIENT, &[0, 4, high, low], self.now);
            self.take(turn);
        } else if patience <= self.now {
            self.heard_at = self.now;
            self.acknowledge();
        } else {
            while let Some(turn) = self.desk.expire(self.now) {
                self.take(turn);
            }
        }
    }

    fn client_hears(&mut self, block: u64) {
        self.heard_at = self.now;
        if block == self.arrived + 1 {
            self.arrived += 1;
            self.unanswered += 1;
            self.gap_told = false;
            if self.unanswered >= self.window || self.arrived == self.last {
                self.acknowledge();
            }
        } else if block > self.arrived && !self.gap_told {
            self.gap_told = true;
            self.acknowledge();
        } else if block == self.arrived {
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        self.unanswered = 0;
        let block = self.arrived;
        let delay = self.delay();
        if !self.chance.happens(self.loss) {
            self.up.push_back((self.now + delay, block));
        }
    }

    fn take(&mut self, turn: Turn<()>) {
        match turn {
            Turn::Send(id, send) => self.send(id, send),
            Turn::Ended(_, outcome) => self.end = Some(outcome),
            Turn::Ignored(_) => {}
        }
    }

    fn send(&mut self, _id: usize, send: Send) {
        let blocks = match send {
            Send::Nothing => 0..0,
            Send::Options => 0..1,
            Send::Blocks { first, count } => first..first + u64::from(count),
        };
        for block in blocks {
            self.sent += u64::from(block > 0);
            let copies = 1 + u64::from(self.loss > 0 && self.chance.happens(2));
            for _ in 0..copies {
                let delay = self.delay();
                if !self.chance.happens(self.loss) {
                    // A packet may overtake another only by a little, so the queue stays nearly in order.
                    self.down.push_back((self.now + delay, block));
                }
            }
        }
        self.down.make_contiguous().sort_by_key(|arrival| arrival.0);
    }

    fn delay(&mut self) -> Duration {
        if self.loss == 0 {
            return Duration::from_micros(100);
        }
        Duration::from_micros(100 + self.chance.number() % 200)
    }
}

fn rounds() -> u64 {
    let rounds = std::env::var("FUZZ_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    rounds.unwrap_or(1)
}

fn peer(chance: &mut Chance) -> SocketAddrV4 {
    let host = chance.below(5) as u8;
    SocketAddrV4::new([10, 7, 0, host].into(), chance.below(8) as u16)
}

/// A packet that began as a good one, or never was one.
fn packet(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = match chance.below(10) {
        0..=3 => request(chance),
        4..=6 => {
            let block = *chance.pick(&[0, 1, 2, 3, 4, 15, 16, 17, 32, 65535]);
            [&[0, 4][..], &u16::to_be_bytes(block)].concat()
        }
        7 => [&[0, 5, 0, chance.below(10) as u8][..], b"no\0"].concat(),
        8 => vec![0, chance.below(8) as u8, 0, 1, 2, 3],
        _ => (0..chance.below(64))
            .map(|_| chance.number() as u8)
            .collect(),
    };
    if chance.happens(30) {
        for _ in 0..=chance.below(4) {
            mutate(chance, &mut bytes);
        }
    }
    bytes
}

fn request(chance: &mut Chance) -> Vec<u8> {
    const NAMES: &[&[u8]] = &[
        b"ipxe.efi",
        b"/boot/snponly.efi",
        b"..\\..\\boot.ini",
        b"a/../b",
        b"undionly.kpxe\xff\xff",
        b"",
        b"/",
        &[b'a'; 300],
    ];
    const VALUES: &[&[u8]] = &[
        b"0",
        b"1",
        b"4",
        b"64",
        b"512",
        b"1468",
        b"65464",
        b"65535",
        b"99999999999999999999",
        b"-1",
        b"",
    ];
    let mut bytes = vec![0, *chance.pick(&[1, 1, 1, 1, 2])];
    let mut word = |word: &[u8]| {
        bytes.extend_from_slice(word);
        bytes.push(0);
    };
    word(chance.pick::<&[u8]>(NAMES));
    word(chance.pick::<&[u8]>(&[b"octet", b"OCTET", b"netascii", b"mail"]));
    for _ in 0..chance.below(6) {
        word(chance.pick::<&[u8]>(&[
            b"blksize",
            b"windowsize",
            b"timeout",
            b"tsize",
            b"TSIZE",
            b"multicast",
        ]));
        word(chance.pick::<&[u8]>(VALUES));
    }
    bytes
}

fn mutate(chance: &mut Chance, bytes: &mut Vec<u8>) {
    let length = bytes.len();
    match chance.below(5) {
        0 => bytes.truncate(chance.below(length + 1)),
        1 if length > 0 => bytes[chance.below(length)] = chance.number() as u8,
        2 if length > 0 => bytes[chance.below(length)] ^= 1 << chance.below(8),
        3 => bytes.insert(
            chance.below(length + 1),
            *chance.pick(&[0, 0, 0xff, b'/', b'\\', b'.']),
        ),
        _ => bytes.extend(std::iter::repeat_n(
            chance.number() as u8,
            chance.below(1500),
        )),
    }
}
