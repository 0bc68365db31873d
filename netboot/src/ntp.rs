//! The time as machines ask for it: one question, one answer of 48 bytes (RFC 5905, section 7.3; RFC 4330, section 6).
//!
//! The bastion only passes on its own clock, whose discipline is somebody else's work: chrony, timesyncd, ntpd. What
//! the kernel knows of that work is what is told. While the clock is not synchronised the answer says so, and no client
//! takes its time from it: a wrong time is worse than none.

/// An answer's length; a question's too, at least.
pub const PACKET: usize = 48;
/// Seconds from 1900, where NTP counts from, to 1970.
const EPOCH: u64 = 2_208_988_800;
/// Whose server the kernel's clock follows is not known here. A machine prefers whoever claims less, which is right.
const STRATUM: u8 = 4;
const UNSYNCHRONISED: u8 = 16;
/// A clock is read to about a microsecond: 2^-20 s.
const PRECISION: i8 = -20;
/// A server that is not itself a machine's reference names what its time comes from; a kernel's clock has no address.
const REFERENCE: [u8; 4] = [127, 127, 1, 1];

/// What the kernel says of its clock (adjtimex(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// It follows a source.
    pub synchronised: bool,
    /// The last minute of today has 61 or 59 seconds.
    pub leap: Leap,
    /// Its largest error, in microseconds.
    pub error_micros: u32,
}

/// What the day's last minute will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leap {
    /// 60 seconds.
    #[default]
    None = 0,
    /// 61 seconds.
    Insert = 1,
    /// 59 seconds.
    Delete = 2,
}

/// The answer to a client's question, which came and will leave at these nanoseconds since 1970. `None` for what is no
/// client's question.
#[must_use]
pub fn answer(question: &[u8], clock: Clock, came: u128, leaves: u128) -> Option<[u8; PACKET]> {
    let question: &[u8; PACKET] = question.get(..PACKET)?.try_into().ok()?;
    let (version, mode) = (question[0] >> 3 & 0b111, question[0] & 0b111);
    if mode != 3 || !(1..=4).contains(&version) {
        return None;
    }
    let mut answer = [0; PACKET];
    let (leap, stratum) = if clock.synchronised {
        (clock.leap as u8, STRATUM)
    } else {
        (3, UNSYNCHRONISED)
    };
    answer[..4].copy_from_slice(&[
        leap << 6 | version << 3 | 4,
        stratum,
        question[2],
        PRECISION.cast_unsigned(),
    ]);
    // Root dispersion in the short format: 16 bits of seconds, 16 of their fraction.
    let dispersion = (u64::from(clock.error_micros) << 16) / 1_000_000;
    let dispersion = u32::try_from(dispersion).unwrap_or(u32::MAX);
    answer[8..12].copy_from_slice(&dispersion.to_be_bytes());
    answer[12..16].copy_from_slice(&REFERENCE);
    if clock.synchronised {
        // When it was last corrected is not known; a source is asked about once a minute.
        let minute = came - came % 64_000_000_000;
        answer[16..24].copy_from_slice(&stamp(minute));
    }
    answer[24..32].copy_from_slice(&question[40..48]);
    answer[32..40].copy_from_slice(&stamp(came));
    answer[40..48].copy_from_slice(&stamp(leaves));
    Some(answer)
}

/// Nanoseconds since 1970 as a timestamp: 32 bits of seconds in their era, 32 of their fraction.
fn stamp(nanos: u128) -> [u8; 8] {
    let seconds = (nanos / 1_000_000_000) as u64;
    let fraction = ((nanos % 1_000_000_000) << 32) / 1_000_000_000;
    // An era has 2^32 seconds, and the next begins in 2036: the client knows which.
    let word = u64::from((seconds.wrapping_add(EPOCH)) as u32) << 32 | fraction as u64;
    word.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Clock = Clock {
        synchronised: true,
        leap: Leap::Insert,
        error_micros: 500_000,
    };
    const CAME: u128 = 1_800_000_000_250_000_000;

    fn question(first: u8) -> [u8; PACKET] {
        let mut question = [0; PACKET];
        question[0] = first;
        question[2] = 6;
        question[40..].copy_from_slice(b"whenever");
        question
    }

    #[test]
    fn a_client_gets_its_own_stamp_back_and_both_of_ours() {
        let answer = answer(&question(0b00_100_011), GOOD, CAME, CAME + 250_000_000).unwrap();
        assert_eq!(answer[..4], [0b01_100_100, 4, 6, 0xec]);
        assert_eq!(answer[8..12], [0, 0, 0x80, 0]);
        assert_eq!(&answer[24..32], b"whenever");
        let second = (1_800_000_000 + EPOCH) as u32;
        assert_eq!(answer[32..36], second.to_be_bytes());
        assert_eq!(answer[36..40], [0x40, 0, 0, 0]);
        assert_eq!(
            answer[40..48],
            [&second.to_be_bytes()[..], &[0x80, 0, 0, 0]].concat()
        );
    }

    #[test]
    fn a_clock_that_follows_nobody_says_so() {
        let clock = Clock {
            synchronised: false,
            ..GOOD
        };
        let answer = answer(&question(0b00_011_011), clock, CAME, CAME).unwrap();
        assert_eq!(answer[..2], [0b11_011_100, 16]);
        assert_eq!(answer[16..24], [0; 8]);
    }

    #[test]
    fn what_is_no_clients_question_gets_no_answer() {
        for first in [
            0b00_100_100,
            0b00_100_001,
            0b00_100_110,
            0b00_000_011,
            0b00_101_011,
        ] {
            assert_eq!(
                answer(&question(first), GOOD, CAME, CAME),
                None,
                "{first:08b}"
            );
        }
        assert_eq!(
            answer(&question(0b00_100_011)[..47], GOOD, CAME, CAME),
            None
        );
        let long = [&question(0b00_100_011)[..], &[0; 20]].concat();
        assert!(answer(&long, GOOD, CAME, CAME).is_some());
    }

    #[test]
    fn the_next_era_is_counted_from_its_own_start() {
        let era = (u128::from(u32::MAX) + 1 - u128::from(EPOCH)) * 1_000_000_000;
        assert_eq!(stamp(era), [0; 8]);
        assert_eq!(stamp(era - 1)[..4], [0xff; 4]);
    }
}
