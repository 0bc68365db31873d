//! Quiet IPv6: a machine that asks for a router is told at once that there is none.
//!
//! iPXE waits some thirteen seconds in every stage for a router advertisement. On a network without
//! IPv6 it gets one that configures nothing: router lifetime 0, no prefix, no other configuration.
//!
//! ```text
//!   RFC 4861, 4.1  solicitation : type 133 | code 0 | checksum | reserved 4 | options
//!   RFC 4861, 4.2  advertisement: type 134 | code 0 | checksum | hop limit 0 | flags 0
//!                                 | lifetime 0 | reachable time 0 | retransmit timer 0
//! ```
//!
//! The kernel fills in the checksum. Where a router speaks, its word is the machines' truth and this
//! one is silent for as long as that router's own lifetime says, and half an hour at least.

use crate::net::Timestamp;

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const PREFIX_INFORMATION: u8 = 3;
/// RFC 4861, section 6.2.1: a router advertises itself at least every 1800 seconds.
const ROUTER_SECONDS_MIN: u64 = 1800;

/// "There is no router here": what is sent to a machine that asks.
pub const NO_ROUTER: [u8; 16] = [ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What an ICMPv6 message of the link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A machine asks for a router.
    Solicitation,
    /// A router speaks, and is to be believed for so many seconds.
    Router { seconds: u64 },
    /// Neither; among them another one's word that there is no router.
    Nothing,
}

/// Reads one ICMPv6 message, from its type on.
#[must_use]
pub fn hear(message: &[u8]) -> Heard {
    match message {
        // RFC 4861, section 6.1.1: 8 octets at least, code 0, and no option of length 0.
        [SOLICITATION, 0, _, _, _, _, _, _, options @ ..] => match has_prefix(options) {
            Some(_) => Heard::Solicitation,
            None => Heard::Nothing,
        },
        [
            ADVERTISEMENT,
            0,
            _,
            _,
            _,
            _,
            high,
            low,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            options @ ..,
        ] => {
            let lifetime = u64::from(u16::from_be_bytes([*high, *low]));
            match has_prefix(options) {
                Some(prefix) if prefix || lifetime > 0 => Heard::Router {
                    seconds: lifetime.max(ROUTER_SECONDS_MIN),
                },
                Some(_) | None => Heard::Nothing,
            }
        }
        _ => Heard::Nothing,
    }
}

/// Whether the options give a prefix; `None` when they are malformed.
fn has_prefix(mut options: &[u8]) -> Option<bool> {
    let mut found = false;
    while let [kind, eights, ..] = options {
        let length = usize::from(*eights) * 8;
        if length == 0 || length > options.len() {
            return None;
        }
        found |= *kind == PREFIX_INFORMATION;
        options = &options[length..];
    }
    options.is_empty().then_some(found)
}

/// Whether this link is quiet because a router spoke on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    until: Timestamp,
}

impl Silence {
    /// A router spoke; true when it is the first word of it.
    pub fn router_spoke(&mut self, seconds: u64, now: Timestamp) -> bool {
        let first = !self.holds(now);
        self.until = self.until.max(now.plus_seconds(seconds));
        first
    }

    /// True while a router is believed to be there.
    #[must_use]
    pub fn holds(self, now: Timestamp) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solicitation_is_heard_with_and_without_its_senders_address() {
        let bare = [133, 0, 0xab, 0xcd, 0, 0, 0, 0];
        assert_eq!(hear(&bare), Heard::Solicitation);
        let with_address = [&bare[..], &[1, 1, 0x52, 0x54, 0, 0xaa, 0, 1]].concat();
        assert_eq!(hear(&with_address), Heard::Solicitation);
        assert_eq!(hear(&with_address[..15]), Heard::Nothing);
        assert_eq!(hear(&[&bare[..], &[1, 0]].concat()), Heard::Nothing);
    }

    #[test]
    fn our_own_word_is_nobodys_router() {
        assert_eq!(hear(&NO_ROUTER), Heard::Nothing);
    }

    #[test]
    fn a_router_is_believed_for_its_lifetime_and_half_an_hour_at_least() {
        let mut router = NO_ROUTER;
        router[6..8].copy_from_slice(&9000_u16.to_be_bytes());
        assert_eq!(hear(&router), Heard::Router { seconds: 9000 });
        router[6..8].copy_from_slice(&1_u16.to_be_bytes());
        assert_eq!(hear(&router), Heard::Router { seconds: 1800 });
        let mut prefix = [0; 32];
        prefix[..2].copy_from_slice(&[3, 4]);
        let with_prefix = [&NO_ROUTER[..], &prefix].concat();
        assert_eq!(hear(&with_prefix), Heard::Router { seconds: 1800 });
    }

    #[test]
    fn silence_ends_when_the_router_has_been_silent_long_enough() {
        let start = Timestamp::from_millis(1_000_000);
        let mut silence = Silence::default();
        assert!(!silence.holds(start));
        assert!(silence.router_spoke(1800, start));
        assert!(!silence.router_spoke(1800, start.plus_seconds(10)));
        assert!(silence.holds(start.plus_seconds(1809)));
        assert!(!silence.holds(start.plus_seconds(1810)));
    }
}
