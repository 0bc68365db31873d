//! The promises of the device flow's pace, whatever polls come: the real client's are never too fast, faster ones are always
//! told so, and who may have its token is never made to wait.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use netboot::device_flow::{Applicant, Consent, Desk, INTERVAL_SECONDS, Poll};
use netboot::net::{Digest, Timestamp};
use proptest::prelude::*;

fn applicant(attempt: u32) -> Applicant {
    Applicant {
        node: "node".parse().unwrap(),
        attempt,
        token: Digest::from_bytes([1; 32]),
        expires: Timestamp::from_millis(u64::MAX),
    }
}

fn waits() -> Consent {
    Consent::Awaited("a person".to_owned())
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + millis)
}

proptest! {
    #[test]
    fn a_client_that_polls_twice_at_once_and_then_each_interval_is_never_told_to_slow_down(
        late in proptest::collection::vec((0..900_u64, 0..90_u64), 1..100)
    ) {
        let mut desk = Desk::default();
        let (mut time, mut seen) = (0, 0);
        for (lateness, twin) in late {
            for offset in [0, twin] {
                let answer = desk.poll(&applicant(1), waits(), at(time + offset));
                let Poll::Pending { first, .. } = answer else {
                    return Err(TestCaseError::fail(format!("{answer:?} at {time}")));
                };
                prop_assert_eq!(first, seen == 0);
                seen += 1;
            }
            time += INTERVAL_SECONDS * 1000 + lateness;
        }
    }

    #[test]
    fn in_no_interval_are_more_than_four_polls_of_one_machine_left_unpunished(
        steps in proptest::collection::vec((0..2000_u64, 1..3_u32), 1..200)
    ) {
        let mut desk = Desk::default();
        let (mut time, mut attempt, mut since, mut count) = (0, 0, 0, 0_u32);
        for (pause, of) in steps {
            time += pause;
            if of != attempt || time - since >= INTERVAL_SECONDS * 1000 {
                (attempt, since, count) = (of, time, 0);
            }
            count += 1;
            let answer = desk.poll(&applicant(of), waits(), at(time));
            prop_assert_eq!(answer == Poll::SlowDown, count > 4, "{:?}", answer);
        }
    }

    #[test]
    fn what_is_decided_is_answered_at_once_however_fast_it_is_asked(polls in 0..50_u64) {
        let mut desk = Desk::default();
        for poll in 0..polls {
            desk.poll(&applicant(1), waits(), at(poll));
        }
        prop_assert_eq!(desk.poll(&applicant(1), Consent::Given, at(polls)), Poll::Granted);
        let refused = Consent::Refused("rejected".to_owned());
        prop_assert_eq!(desk.poll(&applicant(1), refused, at(polls)), Poll::Denied("rejected".to_owned()));
    }
}
