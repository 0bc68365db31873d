//! The desk: every transfer of one link, found by who asked and on which of our ports.
//!
//! RFC 1350, section 4: a transfer is named by the two ports it runs between. A client picks its own for
//! each transfer; ours come from a small ring of ports that all transfers share, so that one system call
//! can hear and answer many clients. A client that starts over from the same port gets the next of ours.
//!
//! Memory is bounded by the limits: so many transfers, so many per client, so many clients remembered.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::packet::{
    Agreed, ErrorCode, Malformed, Offer, PLAIN_BLOCK_SIZE, Packet, Peer, Request, parse,
};
use super::transfer::{Send, Step, Transfer};

/// A repeated request this soon after progress is the network's copy, not a client starting over.
const COPY_WINDOW: Duration = Duration::from_millis(500);
/// How long a client's stumble is remembered, and for how many clients.
const CAUTION: Duration = Duration::from_secs(600);
const CAUTIONS_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct Limits {
    pub transfers: usize,
    pub transfers_per_client: usize,
    pub block_size: u16,
    pub window: u16,
    /// The longest `timeout` a client may have acknowledged.
    pub timeout: Duration,
    /// How many ports of ours the transfers share.
    pub ports: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfers: 1024,
            // One firmware runs one transfer; a whole rack behind one relay that translates addresses
            // looks like one client.
            transfers_per_client: 256,
            // An Ethernet frame less IPv4, UDP and TFTP headers: what arrives without fragments.
            block_size: 1468,
            window: 64,
            timeout: Duration::from_secs(30),
            ports: 8,
        }
    }
}

/// What to do with a datagram that came to port 69.
#[derive(Debug)]
pub enum Admission<F> {
    /// Look for the file, then `open`. A transfer that this request replaces is handed back.
    Open {
        request: Request,
        replaced: Option<Box<Session<F>>>,
    },
    /// The client repeats a request whose answer it did not see.
    Again(usize, Send),
    Refuse {
        path: String,
        code: ErrorCode,
        message: &'static str,
        reason: Ignored,
    },
    Ignore(Ignored),
}

/// What a packet to a transfer's port, or the clock, led to.
#[derive(Debug)]
pub enum Turn<F> {
    Send(usize, Send),
    Ended(Box<Session<F>>, Outcome),
    Ignored(Ignored),
}

/// Why a datagram was not served; each has its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    Malformed(Malformed),
    Write,
    /// Not a request, on port 69.
    Astray,
    /// A copy of a request whose transfer is under way.
    Copy,
    /// No transfer with this client on this port; usually the last echo of one that ended.
    UnknownTransfer,
    /// Says nothing new.
    Stale,
    /// DATA or OACK from a client.
    Foreign,
    Busy,
    BusyClient,
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// Everything was sent; the client left without its last acknowledgement.
    Unconfirmed,
    /// The client asked for the size only: it answered the OACK with an ERROR.
    SizeOnly,
    /// The client ended it with an ERROR after data had flowed.
    Aborted {
        code: u16,
        message: String,
    },
    Silent,
    /// The client started over from the same port.
    Replaced,
    /// This side stopped.
    Stopped,
}

/// One transfer with everything a report says about it. `F` is the file as the caller keeps it.
#[derive(Debug)]
pub struct Session<F> {
    pub peer: Peer,
    /// Which of our ports carries it.
    pub port: usize,
    pub request: Request,
    pub file: F,
    pub transfer: Transfer,
    pub started: Duration,
    birth: u64,
    /// The one entry in the desk's alarms that counts for this transfer.
    alarm: Duration,
}

#[derive(Debug)]
pub struct Desk<F> {
    limits: Limits,
    sessions: Vec<Option<Session<F>>>,
    free: Vec<usize>,
    by_peer: BTreeMap<Peer, usize>,
    per_client: BTreeMap<Ipv4Addr, usize>,
    /// A transfer's alarm may lie before its deadline, never after it, so most acknowledgements leave
    /// this heap alone.
    alarms: BinaryHeap<Reverse<(Duration, usize, u64)>>,
    cautions: BTreeMap<Ipv4Addr, Caution>,
    births: u64,
}

impl<F> Desk<F> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: Vec::new(),
            free: Vec::new(),
            by_peer: BTreeMap::new(),
            per_client: BTreeMap::new(),
            alarms: BinaryHeap::new(),
            cautions: BTreeMap::new(),
            births: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.by_peer.is_empty()
    }

    pub fn len(&self) -> usize {
        self.by_peer.len()
    }

    pub fn session(&self, id: usize) -> Option<&Session<F>> {
        self.sessions.get(id)?.as_ref()
    }

    /// The caller's own part of a session.
    pub fn file_mut(&mut self, id: usize) -> Option<&mut F> {
        Some(&mut self.sessions.get_mut(id)?.as_mut()?.file)
    }

    /// A datagram to port 69.
    pub fn admit(&mut self, peer: Peer, bytes: &[u8], now: Duration) -> Admission<F> {
        let request = match parse(bytes) {
            Ok(Packet::Read(request)) => request,
            Ok(Packet::Write) => {
                return refuse(
                    ErrorCode::Denied,
                    "read only: nothing is written here",
                    Ignored::Write,
                );
            }
            Ok(Packet::Ack(_) | Packet::Error { .. } | Packet::Foreign) => {
                return Admission::Ignore(Ignored::Astray);
            }
            Err(Malformed::Short | Malformed::Opcode) => {
                return Admission::Ignore(Ignored::Malformed(Malformed::Opcode));
            }
            Err(fault) => {
                let (code, message) = ErrorCode::of(fault);
                return refuse(code, message, Ignored::Malformed(fault));
            }
        };
        let replaced = match self.by_peer.get(&peer).copied() {
            None => None,
            Some(id) => match self.repeats(id, &request, now) {
                Some(answer) => return answer,
                None => self.replace(id, now),
            },
        };
        if let Some((message, reason)) = self.full(*peer.ip()) {
            // A replaced transfer leaves room, so a full desk never loses one here.
            return Admission::Refuse {
                path: request.path,
                code: ErrorCode::Undefined,
                message,
                reason,
            };
        }
        Admission::Open { request, replaced }
    }

    /// Starts what `admit` let in, once its file is at hand. `length` is what goes over the wire.
    pub fn open(
        &mut self,
        peer: Peer,
        request: Request,
        file: F,
        length: u64,
        now: Duration,
    ) -> (usize, Send) {
        let agreed = self.agree(*peer.ip(), &request, now);
        let (transfer, send) = Transfer::start(length, agreed, now);
        let birth = self.births;
        self.births += 1;
        let port = usize::try_from(birth).unwrap_or(0) % self.limits.ports.max(1);
        let deadline = transfer.deadline();
        let session = Session {
            peer,
            port,
            request,
            file,
            transfer,
            started: now,
            birth,
            alarm: deadline,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        self.sessions[id] = Some(session);
        self.by_peer.insert(peer, id);
        *self.per_client.entry(*peer.ip()).or_default() += 1;
        self.alarms.push(Reverse((deadline, id, birth)));
        (id, send)
    }

    /// A datagram to one of the transfers' ports.
    pub fn packet(&mut self, port: usize, peer: Peer, bytes: &[u8], now: Duration) -> Turn<F> {
        // RFC 1350, section 4, would have a stranger answered with ERROR 5. The strangers met here are
        // late copies of a transfer that just ended, and a client's next transfer dies of that ERROR.
        let Some(id) = self.by_peer.get(&peer).copied() else {
            return Turn::Ignored(Ignored::UnknownTransfer);
        };
        let Some(session) = self.sessions[id]
            .as_mut()
            .filter(|session| session.port == port)
        else {
            return Turn::Ignored(Ignored::UnknownTransfer);
        };
        match parse(bytes) {
            Ok(Packet::Ack(block)) => {
                let step = session.transfer.acknowledge(block, now);
                self.arm(id);
                self.turn(id, step, now)
            }
            Ok(Packet::Error { code, message }) => self.aborted(id, code, message, now),
            Ok(Packet::Foreign) => Turn::Ignored(Ignored::Foreign),
            Ok(Packet::Read(_) | Packet::Write) => Turn::Ignored(Ignored::Astray),
            Err(fault) => Turn::Ignored(Ignored::Malformed(fault)),
        }
    }

    /// When `expire` has something to do at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.alarms.peek().map(|Reverse((deadline, ..))| *deadline)
    }

    /// The next transfer whose time has come, if any; to be called until it says none.
    pub fn expire(&mut self, now: Duration) -> Option<Turn<F>> {
        while let Some(Reverse((alarm, id, birth))) = self.alarms.peek().copied() {
            if alarm > now {
                return None;
            }
            self.alarms.pop();
            let current =
                |session: &&mut Session<F>| session.birth == birth && session.alarm == alarm;
            let Some(session) = self.sessions[id].as_mut().filter(current) else {
                continue;
            };
            // Forget the entry just popped, so that `arm` makes the next one.
            session.alarm = Duration::MAX;
            if session.transfer.deadline() > now {
                self.arm(id);
                continue;
            }
            let step = session.transfer.expire(now);
            self.arm(id);
            return Some(self.turn(id, step, now));
        }
        None
    }

    /// Ends everything, for a stop.
    pub fn clear(&mut self) -> Vec<Session<F>> {
        let ids: Vec<usize> = self.by_peer.values().copied().collect();
        ids.into_iter().filter_map(|id| self.close(id)).collect()
    }

    fn arm(&mut self, id: usize) {
        if let Some(session) = self.sessions[id].as_mut() {
            let deadline = session.transfer.deadline();
            if deadline < session.alarm {
                session.alarm = deadline;
                self.alarms.push(Reverse((deadline, id, session.birth)));
            }
        }
    }

    fn turn(&mut self, id: usize, step: Step, now: Duration) -> Turn<F> {
        let outcome = match step {
            Step::Go(send) => return Turn::Send(id, send),
            Step::Stale => return Turn::Ignored(Ignored::Stale),
            Step::Complete => Outcome::Complete,
            Step::Unconfirmed => Outcome::Unconfirmed,
            Step::Silent => Outcome::Silent,
        };
        self.end(id, outcome, now)
    }

    fn end(&mut self, id: usize, outcome: Outcome, now: Duration) -> Turn<F> {
        let Some(session) = self.close(id) else {
            return Turn::Ignored(Ignored::UnknownTransfer);
        };
        let stumbled = session.transfer.limps()
            || (outcome == Outcome::Silent && session.transfer.stuck_early());
        if stumbled {
            self.caution(&session, now);
        }
        Turn::Ended(Box::new(session), outcome)
    }

    fn aborted(&mut self, id: usize, code: u16, message: String, now: Duration) -> Turn<F> {
        let Some(session) = self.session(id) else {
            return Turn::Ignored(Ignored::UnknownTransfer);
        };
        let untouched = session.transfer.bytes_acknowledged() == 0;
        let asked_size = session.request.asked.contains(&Offer::Size);
        // RFC 2347: ERROR 8 ends a transfer whose options the client will not have. EDK2 sends the same
        // code when all it wanted was the size, so only a client that asked for no size is taken
        // at its word.
        if untouched && code == 8 && !asked_size {
            let client = *session.peer.ip();
            self.remember(
                client,
                Caution {
                    level: Level::Plain,
                    until: now + CAUTION,
                },
            );
        }
        if untouched && asked_size {
            return self.end(id, Outcome::SizeOnly, now);
        }
        self.end(id, Outcome::Aborted { code, message }, now)
    }

    /// What a request means to the transfer its client already has, or nothing where it starts anew.
    fn repeats(&mut self, id: usize, request: &Request, now: Duration) -> Option<Admission<F>> {
        let session = self.sessions[id].as_mut()?;
        if session.request != *request {
            return None;
        }
        match session.transfer.greet_again(now) {
            Send::Nothing => {
                let fresh = now.saturating_sub(session.transfer.idle_since()) < COPY_WINDOW;
                fresh.then_some(Admission::Ignore(Ignored::Copy))
            }
            send @ (Send::Options | Send::Blocks { .. }) => {
                self.arm(id);
                Some(Admission::Again(id, send))
            }
        }
    }

    fn replace(&mut self, id: usize, now: Duration) -> Option<Box<Session<F>>> {
        let session = self.close(id)?;
        if session.transfer.unanswered() && session.transfer.stuck_early() {
            self.caution(&session, now);
        }
        Some(Box::new(session))
    }

    fn full(&self, client: Ipv4Addr) -> Option<(&'static str, Ignored)> {
        if self.len() >= self.limits.transfers {
            return Some((
                "server busy: all transfers are taken, ask again",
                Ignored::Busy,
            ));
        }
        let held = self.per_client.get(&client).copied().unwrap_or(0);
        if held >= self.limits.transfers_per_client {
            return Some((
                "too many transfers from this address, ask again",
                Ignored::BusyClient,
            ));
        }
        None
    }

    fn close(&mut self, id: usize) -> Option<Session<F>> {
        let session = self.sessions.get_mut(id)?.take()?;
        self.free.push(id);
        self.by_peer.remove(&session.peer);
        if let Some(held) = self.per_client.get_mut(session.peer.ip()) {
            *held -= 1;
            if *held == 0 {
                self.per_client.remove(session.peer.ip());
            }
        }
        // The alarm of a closed transfer would stay until its time; many short transfers in a row
        // must not pile them up.
        if self.alarms.len() > 2 * self.by_peer.len() + 64 {
            let sessions = &self.sessions;
            self.alarms.retain(|Reverse((alarm, id, birth))| {
                sessions[*id]
                    .as_ref()
                    .is_some_and(|session| session.birth == *birth && session.alarm == *alarm)
            });
        }
        Some(session)
    }

    fn agree(&mut self, client: Ipv4Addr, request: &Request, now: Duration) -> Agreed {
        let level = match self.cautions.get(&client) {
            Some(caution) if caution.until > now => Some(caution.level),
            Some(_) => {
                self.cautions.remove(&client);
                None
            }
            None => None,
        };
        let (block_size, window) = match level {
            None => (self.limits.block_size, self.limits.window),
            Some(Level::NoWindow) => (self.limits.block_size, 1),
            Some(Level::SmallBlocks) => (PLAIN_BLOCK_SIZE, 1),
            // RFC 2347: a server that supports no option sends no OACK.
            Some(Level::Plain) => return Agreed::plain(),
        };
        request.agree(block_size, window, self.limits.timeout)
    }

    /// One step down from what this client had, where there is a step.
    fn caution(&mut self, session: &Session<F>, now: Duration) {
        let agreed = session.transfer.agreed();
        let level = if agreed.window > 1 {
            Level::NoWindow
        } else if agreed.block_size > PLAIN_BLOCK_SIZE {
            Level::SmallBlocks
        } else if !agreed.answered.is_empty() {
            Level::Plain
        } else {
            return;
        };
        self.remember(
            *session.peer.ip(),
            Caution {
                level,
                until: now + CAUTION,
            },
        );
    }

    fn remember(&mut self, client: Ipv4Addr, caution: Caution) {
        if self.cautions.len() >= CAUTIONS_MAX && !self.cautions.contains_key(&client) {
            let oldest = self
                .cautions
                .iter()
                .min_by_key(|(_, caution)| caution.until)
                .map(|(client, _)| *client);
            if let Some(oldest) = oldest {
                self.cautions.remove(&oldest);
            }
        }
        self.cautions.insert(client, caution);
    }
}

/// How far a client is trusted after a stumble.
#[derive(Debug, Clone, Copy)]
struct Caution {
    level: Level,
    until: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    NoWindow,
    SmallBlocks,
    Plain,
}

impl Outcome {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Unconfirmed => "unconfirmed",
            Self::SizeOnly => "size only",
            Self::Aborted { .. } => "aborted by the client",
            Self::Silent => "client fell silent",
            Self::Replaced => "client started over",
            Self::Stopped => "server stopped",
        }
    }
}

fn refuse<F>(code: ErrorCode, message: &'static str, reason: Ignored) -> Admission<F> {
    Admission::Refuse {
        path: String::new(),
        code,
        message,
        reason,
    }
}

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the one case it expects"
)]
mod tests {
    use super::*;

    const RRQ: &[u8] = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
    const PLAIN: &[u8] = b"\0\x01undionly.kpxe\0octet\0";

    #[test]
    fn edk2_asks_for_the_size_leaves_and_comes_back_from_the_same_port() {
        let mut desk = desk(Limits::default());
        let (id, send) = ask(&mut desk, client(1), RRQ, at(0));
        assert_eq!(send, Send::Options);
        let port = desk.session(id).unwrap().port;
        let error = b"\0\x05\0\x08User aborted the transfer\0";
        let Turn::Ended(session, outcome) = desk.packet(port, client(1), error, at(1)) else {
            panic!("the transfer goes on");
        };
        assert_eq!(
            (session.request.path.as_str(), outcome),
            ("snponly.efi", Outcome::SizeOnly)
        );
        assert!(desk.is_empty());
        let (again, send) = ask(&mut desk, client(1), RRQ, at(2));
        assert_eq!(send, Send::Options);
        let session = desk.session(again).unwrap();
        assert_ne!(session.port, port);
        assert_eq!(session.transfer.agreed().window, 4);
    }

    #[test]
    fn a_repeated_request_gets_its_first_packet_again_and_a_late_copy_nothing() {
        let mut desk = desk(Limits::default());
        let (id, _) = ask(&mut desk, client(1), RRQ, at(0));
        let port = desk.session(id).unwrap().port;
        assert!(
            matches!(desk.admit(client(1), RRQ, at(5)), Admission::Again(again, Send::Options) if again == id)
        );
        assert!(matches!(
            desk.packet(port, client(1), &ack(0), at(6)),
            Turn::Send(_, Send::Blocks { .. })
        ));
        assert!(matches!(
            desk.admit(client(1), RRQ, at(7)),
            Admission::Ignore(Ignored::Copy)
        ));
        assert_eq!(desk.len(), 1);
    }

    #[test]
    fn a_client_that_starts_over_replaces_its_transfer_on_another_port() {
        let mut desk = desk(Limits::default());
        let (id, _) = ask(&mut desk, client(1), RRQ, at(0));
        let port = desk.session(id).unwrap().port;
        desk.packet(port, client(1), &ack(0), at(1));
        match desk.admit(client(1), PLAIN, at(2)) {
            Admission::Open { request, replaced } => {
                assert_eq!(request.path, "undionly.kpxe");
                assert_eq!(replaced.unwrap().request.path, "snponly.efi");
                desk.open(client(1), request, (), 1000, at(2));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            desk.packet(port, client(1), &ack(4), at(3)),
            Turn::Ignored(Ignored::UnknownTransfer)
        ));
        assert_eq!(desk.len(), 1);
    }

    #[test]
    fn limits_hold_for_all_and_for_one_client() {
        let mut desk = desk(Limits {
            transfers: 4,
            transfers_per_client: 2,
            ..Limits::default()
        });
        for port in 1..=2 {
            ask(&mut desk, client(port), PLAIN, at(0));
        }
        refused(&mut desk, client(3), Ignored::BusyClient);
        for host in 2..=3 {
            ask(
                &mut desk,
                Peer::new([10, 7, 0, host].into(), 1),
                PLAIN,
                at(0),
            );
        }
        refused(&mut desk, Peer::new([10, 7, 0, 9].into(), 1), Ignored::Busy);
        assert_eq!(desk.len(), 4);
        let mut turns = 0;
        while !desk.is_empty() {
            let now = desk.next_deadline().unwrap();
            desk.expire(now);
            turns += 1;
            assert!(turns < 1000);
        }
        assert!(desk.per_client.is_empty());
        ask(&mut desk, client(3), PLAIN, at(100_000));
    }

    #[test]
    fn nothing_is_written_and_nothing_stray_is_answered() {
        let mut desk = desk(Limits::default());
        assert!(matches!(
            desk.admit(client(1), b"\0\x02a\0octet\0", at(0)),
            Admission::Refuse {
                code: ErrorCode::Denied,
                reason: Ignored::Write,
                ..
            }
        ));
        for stray in [
            &b""[..],
            b"\0",
            b"\0\x04\0\x01",
            b"\0\x05\0\0\0",
            b"\0\x03\0\x01data",
            b"GET / HTTP/1.1",
        ] {
            assert!(
                matches!(desk.admit(client(1), stray, at(0)), Admission::Ignore(_)),
                "{stray:?}"
            );
        }
        assert!(matches!(
            desk.packet(0, client(1), &ack(1), at(0)),
            Turn::Ignored(Ignored::UnknownTransfer)
        ));
    }

    #[test]
    fn a_client_that_stumbles_gets_less_each_time_and_is_forgiven_later() {
        let mut desk = desk(Limits::default());
        let mut now = at(0);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let (id, _) = ask(&mut desk, client(1), RRQ, now);
            let agreed = desk.session(id).unwrap().transfer.agreed().clone();
            seen.push((agreed.window, agreed.block_size, agreed.answered.len()));
            while !desk.is_empty() {
                now = desk.next_deadline().unwrap().max(now);
                desk.expire(now);
            }
        }
        assert_eq!(seen, [(4, 1468, 3), (1, 1468, 2), (1, 512, 2), (1, 512, 0)]);
        let (id, _) = ask(&mut desk, client(2), RRQ, now + CAUTION);
        assert_eq!(desk.session(id).unwrap().transfer.agreed().window, 4);
    }

    #[test]
    fn a_client_that_rejects_the_options_is_served_without_them() {
        let mut desk = desk(Limits::default());
        let request = b"\0\x01a\0octet\0blksize\x001468\0";
        let (id, _) = ask(&mut desk, client(1), request, at(0));
        let port = desk.session(id).unwrap().port;
        desk.packet(port, client(1), b"\0\x05\0\x08no\0", at(1));
        let (_, send) = ask(&mut desk, client(1), request, at(2));
        assert_eq!(send, Send::Blocks { first: 1, count: 1 });
    }

    #[test]
    fn the_clock_runs_by_the_round_trip_as_soon_as_it_is_known() {
        let mut desk = desk(Limits::default());
        let (id, _) = ask(&mut desk, client(1), RRQ, at(0));
        let port = desk.session(id).unwrap().port;
        assert_eq!(desk.next_deadline(), Some(at(250)));
        desk.packet(port, client(1), &ack(0), at(1));
        assert_eq!(desk.next_deadline(), Some(at(6)));
        desk.packet(port, client(1), &ack(4), at(2));
        assert!(
            desk.expire(at(6)).is_none(),
            "the window of the first ACK is long answered"
        );
        assert_eq!(desk.next_deadline(), Some(at(7)));
        assert!(matches!(
            desk.expire(at(7)),
            Some(Turn::Send(_, Send::Blocks { first: 5, count: 4 }))
        ));
    }

    #[test]
    fn short_transfers_in_a_row_leave_nothing_behind() {
        let mut desk = desk(Limits::default());
        for round in 0..10_000 {
            let (id, _) = ask(&mut desk, client(1), PLAIN, at(round));
            let port = desk.session(id).unwrap().port;
            desk.packet(port, client(1), b"\0\x05\0\0\0", at(round));
        }
        assert!(desk.alarms.len() < 100 && desk.sessions.len() == 1 && desk.cautions.is_empty());
    }

    fn desk(limits: Limits) -> Desk<()> {
        Desk::new(limits)
    }

    fn ask(desk: &mut Desk<()>, peer: Peer, bytes: &[u8], now: Duration) -> (usize, Send) {
        match desk.admit(peer, bytes, now) {
            Admission::Open { request, .. } => desk.open(peer, request, (), 1_000_000, now),
            other => panic!("not opened: {other:?}"),
        }
    }

    fn refused(desk: &mut Desk<()>, peer: Peer, why: Ignored) {
        match desk.admit(peer, PLAIN, at(0)) {
            Admission::Refuse { reason, .. } => assert_eq!(reason, why),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn client(port: u16) -> Peer {
        Peer::new([10, 7, 0, 1].into(), port)
    }

    fn ack(block: u16) -> [u8; 4] {
        let [high, low] = block.to_be_bytes();
        [0, 4, high, low]
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }
}
