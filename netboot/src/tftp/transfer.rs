//! One transfer: which blocks to send next, and when to send them again.
//!
//! ```text
//!   acked            next            last
//!   --+----------------+---------------+     acked .. next   in flight, one window at most
//!     |<-- in flight ->|                     next .. last    not sent yet
//! ```
//!
//! The clock follows the round trip (RFC 6298's estimate, Karn's rule) instead of waiting whole seconds:
//! on a provisioning link a round trip takes well under a millisecond, and a lost block should cost a few.
//! A client's `timeout` option bounds the clock from above.
//!
//! Which acknowledgements are believed to report a loss:
//! - window 1: none. A repeated ACK never repeats data (RFC 1123, section 4.2.3.1).
//! - an ACK inside the window: the client met a gap and names the last block before it (RFC 7440,
//!   section 4). Sending goes back there, unless the ACK came sooner than any answer to what was just
//!   sent could have come.
//! - a repeated ACK with nothing of the window received: only when no copy of ours can have provoked
//!   it, that is, when the window before went out exactly once.

use std::ops::Range;
use std::time::Duration;

use super::packet::Agreed;

/// Until the round trip is known.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Firmware looks at its network card from a timer; asking again sooner only doubles the traffic.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A client that never answered at all is given up sooner: it will ask again by itself.
const PATIENCE_UNHEARD: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(20);
/// Clients leave without a word once they hold everything, so a lost last ACK is not mourned for long.
const PATIENCE_AT_END: Duration = Duration::from_secs(3);
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// What goes out now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Send {
    Nothing,
    Options,
    Blocks { first: u64, count: u16 },
}

/// What an acknowledgement or the clock did to the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Go(Send),
    /// Everything was acknowledged.
    Complete,
    /// Everything was sent and the client fell silent before its last acknowledgement.
    Unconfirmed,
    Silent,
    /// The acknowledgement says nothing new.
    Stale,
}

/// The octets of a file of `length` that block `block` carries.
pub fn block_octets(length: u64, block_size: u16, block: u64) -> Range<usize> {
    let size = u64::from(block_size);
    let start = (block.saturating_sub(1) * size).min(length);
    let end = (start + size).min(length);
    let place = |offset: u64| usize::try_from(offset).expect("a file in memory has usize octets");
    place(start)..place(end)
}

#[derive(Debug, Clone)]
pub struct Transfer {
    agreed: Agreed,
    length: u64,
    last: u64,
    /// The OACK went out and ACK 0 has not come back.
    greeting: bool,
    heard: bool,
    acked: u64,
    next: u64,
    sent_at: Duration,
    /// The window in flight went out once, so its answer measures the round trip.
    fresh: bool,
    /// The window before was sent more than once; late copies may still provoke repeated ACKs.
    echoes: bool,
    tries: u32,
    progress_at: Duration,
    deadline: Duration,
    round_trip: RoundTrip,
    retransmits: u64,
    windows: u64,
    rewinds: u64,
}

impl Transfer {
    pub(super) fn start(length: u64, agreed: Agreed, now: Duration) -> (Self, Send) {
        let greeting = !agreed.answered.is_empty();
        // A last block shorter than the block size ends a transfer (RFC 1350, section 6), so a length
        // that fills its blocks exactly is followed by an empty one.
        let last = length / u64::from(agreed.block_size) + 1;
        let mut transfer = Self {
            agreed,
            length,
            last,
            greeting,
            heard: false,
            acked: 0,
            next: 1,
            sent_at: now,
            fresh: true,
            echoes: false,
            tries: 0,
            progress_at: now,
            deadline: now,
            round_trip: RoundTrip::default(),
            retransmits: 0,
            windows: 0,
            rewinds: 0,
        };
        transfer.deadline = now + transfer.wait();
        let send = if greeting {
            Send::Options
        } else {
            transfer.advance(now)
        };
        (transfer, send)
    }

    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn bytes_acknowledged(&self) -> u64 {
        (self.acked * u64::from(self.agreed.block_size)).min(self.length)
    }

    /// Packets that went out more than once.
    pub fn retransmits(&self) -> u64 {
        self.retransmits
    }

    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn acknowledge(&mut self, wire: u16, now: Duration) -> Step {
        self.heard = true;
        if self.greeting {
            if wire != 0 {
                return Step::Stale;
            }
            self.greeting = false;
            self.measure(now);
            self.progress(now);
            return Step::Go(self.advance(now));
        }
        let newly = u64::from(wire.wrapping_sub(super::packet::wire_block(self.acked)));
        if newly > self.next - 1 - self.acked {
            return Step::Stale;
        }
        if newly == 0 {
            return self.repeated(now);
        }
        self.acked += newly;
        self.progress(now);
        if self.acked == self.last {
            return Step::Complete;
        }
        if self.acked + 1 == self.next {
            self.measure(now);
            self.echoes = !self.fresh;
            return Step::Go(self.advance(now));
        }
        // RFC 7440, section 4: the sender goes on from the block after the acknowledged one. Copies
        // already on their way make a client acknowledge in between as well; those come too early
        // to know about the last sending.
        if self.too_early(now) {
            self.deadline = now + self.wait();
            return Step::Stale;
        }
        Step::Go(self.rewind(now))
    }

    /// The clock reached the deadline.
    pub(super) fn expire(&mut self, now: Duration) -> Step {
        let waited = now.saturating_sub(self.progress_at);
        let all_sent = !self.greeting && self.next > self.last;
        let at_end = self
            .agreed
            .timeout
            .map_or(PATIENCE_AT_END, |asked| PATIENCE_AT_END.max(asked * 2));
        if all_sent && self.heard && waited >= at_end {
            return Step::Unconfirmed;
        }
        if waited >= self.patience() {
            return Step::Silent;
        }
        self.tries += 1;
        if self.greeting {
            self.retransmits += 1;
            self.sent_at = now;
            self.fresh = false;
            self.deadline = now + self.wait();
            return Step::Go(Send::Options);
        }
        // The whole window, always: a client that holds some of it answers only when it ends.
        Step::Go(self.rewind(now))
    }

    /// The first packet again, for a client that repeats its request because it saw none.
    pub(super) fn greet_again(&mut self, now: Duration) -> Send {
        if self.acked > 0 || (self.heard && !self.greeting) {
            return Send::Nothing;
        }
        if self.greeting {
            self.retransmits += 1;
            self.fresh = false;
            self.sent_at = now;
            self.deadline = now + self.wait();
            Send::Options
        } else {
            self.rewind(now)
        }
    }

    /// The client never got far: what was agreed may be more than it can do.
    pub(super) fn stuck_early(&self) -> bool {
        self.acked <= 4 * u64::from(self.agreed.window)
    }

    /// As many windows went out again as went out: this client or its path cannot take them. A path that
    /// merely loses a packet in a hundred stays below that, and keeps its windows.
    pub(super) fn limps(&self) -> bool {
        self.windows >= 16 && self.rewinds >= self.windows
    }

    pub(super) fn unanswered(&self) -> bool {
        self.tries > 0
    }

    pub(super) fn idle_since(&self) -> Duration {
        self.progress_at
    }

    fn repeated(&mut self, now: Duration) -> Step {
        let believed = self.agreed.window > 1 && self.fresh && !self.echoes && !self.too_early(now);
        // ACK 0 after the OACK may be repeated by a client that got the OACK twice.
        if !believed || self.acked == 0 {
            return Step::Stale;
        }
        Step::Go(self.rewind(now))
    }

    /// The next window, for the first time.
    fn advance(&mut self, now: Duration) -> Send {
        let first = self.next;
        let count = (self.last + 1 - first).min(u64::from(self.agreed.window));
        self.next = first + count;
        self.windows += 1;
        self.fresh = true;
        self.sent_at = now;
        self.deadline = now + self.wait();
        blocks(first, count)
    }

    /// Back to the block after the last acknowledged one.
    fn rewind(&mut self, now: Duration) -> Send {
        let first = self.acked + 1;
        let count = (self.last - self.acked).min(u64::from(self.agreed.window));
        self.retransmits += count.min(self.next - first);
        self.next = first + count;
        self.rewinds += 1;
        self.fresh = false;
        self.sent_at = now;
        self.deadline = now + self.wait();
        blocks(first, count)
    }

    fn progress(&mut self, now: Duration) {
        self.tries = 0;
        self.progress_at = now;
    }

    fn measure(&mut self, now: Duration) {
        if self.fresh {
            self.round_trip.observe(now.saturating_sub(self.sent_at));
        }
    }

    fn too_early(&self, now: Duration) -> bool {
        now.saturating_sub(self.sent_at) < self.round_trip.least * 3 / 4
    }

    fn wait(&self) -> Duration {
        let longest = self.agreed.timeout.unwrap_or(LONGEST_WAIT);
        let estimate = self.round_trip.wait().max(SHORTEST_WAIT);
        estimate
            .saturating_mul(1 << self.tries.min(12))
            .min(longest)
    }

    fn patience(&self) -> Duration {
        let asked = self
            .agreed
            .timeout
            .map_or(Duration::ZERO, |timeout| timeout * 6);
        let usual = if self.heard {
            PATIENCE
        } else {
            PATIENCE_UNHEARD
        };
        usual.max(asked).min(PATIENCE_MAX)
    }
}

/// RFC 6298, section 2, without its one-second floor: these links are local.
#[derive(Debug, Clone, Copy, Default)]
struct RoundTrip {
    smooth: Option<Duration>,
    varies: Duration,
    least: Duration,
}

impl RoundTrip {
    fn observe(&mut self, sample: Duration) {
        match self.smooth {
            None => {
                self.smooth = Some(sample);
                self.varies = sample / 2;
                self.least = sample;
            }
            Some(smooth) => {
                self.varies = self.varies * 3 / 4 + smooth.abs_diff(sample) / 4;
                self.smooth = Some(smooth * 7 / 8 + sample / 8);
                self.least = self.least.min(sample);
            }
        }
    }

    fn wait(&self) -> Duration {
        self.smooth
            .map_or(FIRST_WAIT, |smooth| smooth + self.varies * 4)
    }
}

fn blocks(first: u64, count: u64) -> Send {
    let count = u16::try_from(count).expect("a window is at most 65535 blocks");
    Send::Blocks { first, count }
}

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the one case it expects"
)]
mod tests {
    use super::*;
    use crate::tftp::packet::Offer;

    #[test]
    fn a_transfer_without_options_goes_block_by_block() {
        let (mut transfer, send) = Transfer::start(1024, Agreed::plain(), at(0));
        assert_eq!(send, one(1));
        assert_eq!(transfer.acknowledge(1, at(1)), Step::Go(one(2)));
        assert_eq!(block_octets(1024, 512, 2), 512..1024);
        assert_eq!(transfer.acknowledge(2, at(2)), Step::Go(one(3)));
        assert_eq!(block_octets(1024, 512, 3), 1024..1024);
        assert_eq!(transfer.acknowledge(3, at(3)), Step::Complete);
        assert_eq!(transfer.bytes_acknowledged(), 1024);
    }

    #[test]
    fn an_empty_file_is_one_empty_block() {
        let (mut transfer, send) = Transfer::start(0, Agreed::plain(), at(0));
        assert_eq!(send, one(1));
        assert_eq!(block_octets(0, 512, 1), 0..0);
        assert_eq!(transfer.acknowledge(1, at(1)), Step::Complete);
    }

    #[test]
    fn a_repeated_ack_never_repeats_a_block_without_windows() {
        let (mut transfer, _) = Transfer::start(10_000, Agreed::plain(), at(0));
        assert_eq!(transfer.acknowledge(1, at(1)), Step::Go(one(2)));
        for _ in 0..100 {
            assert_eq!(transfer.acknowledge(1, at(2)), Step::Stale);
        }
        assert_eq!(transfer.retransmits(), 0);
    }

    #[test]
    fn a_gap_in_a_window_sends_again_from_the_gap_once() {
        let (mut transfer, _) = windowed(8, 100);
        assert_eq!(transfer.acknowledge(0, at(10)), Step::Go(many(1, 8)));
        assert_eq!(transfer.acknowledge(3, at(30)), Step::Go(many(4, 8)));
        // Blocks of the first sending that arrive after the gap provoke the same words again.
        for _ in 0..4 {
            assert_eq!(transfer.acknowledge(3, at(31)), Step::Stale);
        }
        assert_eq!(transfer.acknowledge(11, at(50)), Step::Go(many(12, 8)));
        assert_eq!(transfer.retransmits(), 5);
    }

    #[test]
    fn a_lost_first_block_of_a_window_is_believed_once_and_echoes_are_not() {
        let (mut transfer, _) = windowed(4, 100);
        assert_eq!(transfer.acknowledge(0, at(10)), Step::Go(many(1, 4)));
        assert_eq!(transfer.acknowledge(4, at(20)), Step::Go(many(5, 4)));
        assert_eq!(transfer.acknowledge(4, at(30)), Step::Go(many(5, 4)));
        assert_eq!(transfer.acknowledge(4, at(40)), Step::Stale);
        assert_eq!(transfer.acknowledge(8, at(41)), Step::Go(many(9, 4)));
        // The second copies of 5 to 8 arrive now, and the client says 8 for each.
        for late in 42..60 {
            assert_eq!(transfer.acknowledge(8, at(late)), Step::Stale);
        }
        assert_eq!(transfer.acknowledge(12, at(60)), Step::Go(many(13, 4)));
        assert_eq!(transfer.acknowledge(12, at(80)), Step::Go(many(13, 4)));
    }

    #[test]
    fn the_clock_follows_the_round_trip_and_backs_off() {
        let (mut transfer, _) = windowed(1, 100);
        assert_eq!(transfer.acknowledge(0, at(2)), Step::Go(one(1)));
        let mut now = at(2);
        let mut waits = Vec::new();
        for _ in 0..5 {
            waits.push(transfer.deadline() - now);
            now = transfer.deadline();
            assert_eq!(transfer.expire(now), Step::Go(one(1)));
        }
        assert_eq!(waits, [6, 12, 24, 48, 96].map(Duration::from_millis));
        assert_eq!(transfer.retransmits(), 5);
    }

    #[test]
    fn a_client_that_falls_silent_is_given_up_after_a_bounded_number_of_packets() {
        let (mut transfer, _) = windowed(64, 1000);
        assert_eq!(transfer.acknowledge(0, at(1)), Step::Go(many(1, 64)));
        let mut packets = 0;
        let silent_at = loop {
            let now = transfer.deadline();
            match transfer.expire(now) {
                Step::Go(Send::Blocks { count, .. }) => packets += u32::from(count),
                Step::Silent => break now,
                other => panic!("unexpected {other:?}"),
            }
        };
        assert!(
            silent_at >= PATIENCE && silent_at < PATIENCE * 2,
            "{silent_at:?}"
        );
        assert!(packets < 64 * 30, "{packets} packets to a dead client");
    }

    #[test]
    fn a_lost_last_ack_ends_soon_and_is_no_failure() {
        let (mut transfer, _) = Transfer::start(600, Agreed::plain(), at(0));
        assert_eq!(transfer.acknowledge(1, at(1)), Step::Go(one(2)));
        let end = loop {
            let now = transfer.deadline();
            match transfer.expire(now) {
                Step::Go(send) => assert_eq!(send, one(2)),
                other => break (other, now),
            }
        };
        assert_eq!(end.0, Step::Unconfirmed);
        assert!(end.1 < at(5_000));
    }

    #[test]
    fn the_clients_timeout_bounds_the_wait() {
        let agreed = Agreed {
            timeout: Some(Duration::from_secs(2)),
            ..Agreed::plain()
        };
        let (mut transfer, _) = Transfer::start(10_000, agreed, at(0));
        let mut longest = Duration::ZERO;
        let mut now = at(0);
        while !matches!(transfer.expire(transfer.deadline()), Step::Silent) {
            longest = longest.max(transfer.deadline().saturating_sub(now));
            now = transfer.deadline();
        }
        assert_eq!(longest, Duration::from_secs(2));
    }

    #[test]
    fn an_ack_of_blocks_sent_before_going_back_is_believed() {
        let (mut transfer, _) = windowed(8, 100);
        assert_eq!(transfer.acknowledge(0, at(1)), Step::Go(many(1, 8)));
        assert_eq!(transfer.acknowledge(3, at(5)), Step::Go(many(4, 8)));
        assert_eq!(transfer.acknowledge(11, at(9)), Step::Go(many(12, 8)));
        assert_eq!(transfer.acknowledge(12, at(9)), Step::Stale);
        assert_eq!(transfer.acknowledge(19, at(12)), Step::Go(many(20, 8)));
    }

    #[test]
    fn blocks_roll_over_past_65535() {
        let agreed = Agreed {
            block_size: 8,
            ..Agreed::plain()
        };
        let (mut transfer, mut send) = Transfer::start(8 * 140_000, agreed, at(0));
        let mut now = 0;
        for block in 1..=140_001_u64 {
            assert_eq!(send, one(block));
            now += 1;
            match transfer.acknowledge((block % 65536) as u16, at(now)) {
                Step::Go(next) => send = next,
                other => assert_eq!((other, block), (Step::Complete, 140_001)),
            }
        }
    }

    #[test]
    fn an_ack_outside_the_window_changes_nothing() {
        let (mut transfer, _) = windowed(4, 100);
        assert_eq!(transfer.acknowledge(7, at(1)), Step::Stale);
        assert_eq!(transfer.acknowledge(0, at(10)), Step::Go(many(1, 4)));
        for wire in [5, 6, 100, 32768, 65535] {
            assert_eq!(transfer.acknowledge(wire, at(20)), Step::Stale);
        }
        assert_eq!(transfer.acknowledge(4, at(21)), Step::Go(many(5, 4)));
    }

    fn windowed(window: u16, blocks: u64) -> (Transfer, Send) {
        let answered = vec![Offer::Window(window)];
        let agreed = Agreed {
            window,
            answered,
            ..Agreed::plain()
        };
        Transfer::start((blocks - 1) * 512, agreed, at(0))
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn one(block: u64) -> Send {
        many(block, 1)
    }

    fn many(first: u64, count: u16) -> Send {
        Send::Blocks { first, count }
    }
}
