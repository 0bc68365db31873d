//! How many replies a source's network gets a second, where anybody may ask.
//!
//! A reply is larger than its question, and a question's source is whatever it says it is: without a limit a stranger
//! could have us flood his victim. What is over the limit is dropped, but for some that are cut down to the hint to ask
//! by TCP: a real client behind a busy resolver gets through, a victim gets next to nothing.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;

/// Replies a second, and at once, to each /24.
const PER_SECOND: u32 = 100;
const BURST: u32 = 200;
/// Every so-manieth reply over the limit is a hint.
const HINT_EVERY: u32 = 10;
/// Networks that share a slot share a limit.
const SLOTS: usize = 4096;

/// What may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// The reply.
    Whole,
    /// The question alone, with TC.
    Hint,
    /// Nothing.
    Nothing,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The last millisecond it was used.
    at: u64,
    /// Thousandths of a reply left.
    left: u32,
    over: u32,
}

/// The limits of one socket.
pub(super) struct Limits {
    slots: Vec<Slot>,
    /// Chosen anew at each start, so that nobody can aim at another network's slot.
    hash: RandomState,
}

impl Limits {
    pub(super) fn new() -> Self {
        let fresh = Slot {
            left: BURST * 1000,
            ..Slot::default()
        };
        Self {
            slots: vec![fresh; SLOTS],
            hash: RandomState::new(),
        }
    }

    /// Counts one reply to `source` at a time in milliseconds.
    pub(super) fn count(&mut self, source: Ipv4Addr, now: u64) -> Allowed {
        let [a, b, c, _] = source.octets();
        // The remainder is below the number of slots.
        let index = (self.hash.hash_one([a, b, c]) % SLOTS as u64) as usize;
        let slot = &mut self.slots[index];
        let passed = u32::try_from(now.saturating_sub(slot.at)).unwrap_or(u32::MAX);
        let earned = passed.saturating_mul(PER_SECOND);
        slot.left = slot.left.saturating_add(earned).min(BURST * 1000);
        slot.at = now;
        if slot.left >= 1000 {
            slot.left -= 1000;
            return Allowed::Whole;
        }
        slot.over = slot.over.wrapping_add(1);
        if slot.over.is_multiple_of(HINT_EVERY) {
            Allowed::Hint
        } else {
            Allowed::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_gets_its_burst_then_its_rate_and_others_are_not_touched() {
        let mut limits = Limits::new();
        let source = |last| Ipv4Addr::new(198, 51, 100, last);
        let mut whole = |count: u32, now| {
            let counted = (0..count).map(|at| limits.count(source((at % 250) as u8), now));
            counted.filter(|allowed| *allowed == Allowed::Whole).count()
        };
        assert_eq!(whole(1000, 1_000_000), 200);
        assert_eq!(whole(1000, 1_000_500), 50);
        assert_eq!(whole(1000, 1_100_000), 200);
        let hints = (0..1000).map(|_| limits.count(source(1), 1_100_000));
        assert_eq!(
            hints.filter(|allowed| *allowed == Allowed::Hint).count(),
            100
        );
        assert_eq!(
            limits.count([203, 0, 113, 1].into(), 1_100_000),
            Allowed::Whole
        );
    }
}
