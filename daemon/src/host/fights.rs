//! How often something of ours may be put back before we step aside: pure, the clock is handed in.
//!
//! Another program that wants the same link undoes each repair, and both would go on for ever. An object
//! that was put back three times in half a minute and is gone again is left alone for ten seconds; then it is tried
//! once, and each time that is undone too the pause doubles, up to five minutes. Half a minute of peace forgets it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Repairs of one object within [`WINDOW`] that are taken for chance.
const REPAIRS: usize = 3;
/// The span they are counted in.
const WINDOW: Duration = Duration::from_secs(30);
/// The first pause.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What was put back lately, by object.
#[derive(Debug, Default)]
pub(crate) struct Fights(BTreeMap<String, Fight>);

#[derive(Debug, Default)]
struct Fight {
    repairs: VecDeque<Instant>,
    /// The last pause, zero before the first.
    pause: Duration,
    until: Option<Instant>,
}

impl Fight {
    fn over(&self, now: Instant) -> bool {
        let last = self.until.max(self.repairs.back().copied());
        last.is_none_or(|last| last + WINDOW <= now)
    }
}

/// Whether an object may be repaired now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It may, and is counted.
    Repair,
    /// It was undone too often: leave it until then, and say so.
    StepAside(Instant),
    /// As said before.
    Wait,
}

impl Fights {
    /// Asks for one repair of `object`.
    pub(crate) fn turn(&mut self, object: &str, now: Instant) -> Turn {
        self.0.retain(|_, fight| !fight.over(now));
        let fight = self.0.entry(object.to_owned()).or_default();
        if fight.until.is_some_and(|until| until > now) {
            return Turn::Wait;
        }
        fight.repairs.retain(|at| *at + WINDOW > now);
        let most = if fight.pause.is_zero() { REPAIRS } else { 1 };
        if fight.repairs.len() < most {
            fight.repairs.push_back(now);
            return Turn::Repair;
        }
        fight.repairs.clear();
        fight.pause = (fight.pause * 2).clamp(PAUSE, PAUSE_MAX);
        let until = now + fight.pause;
        fight.until = Some(until);
        Turn::StepAside(until)
    }

    /// When the next pause ends.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let pauses = self.0.values().filter_map(|fight| fight.until);
        pauses.filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_rival_that_undoes_every_repair_is_met_ever_less_often() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        let mut now = start;
        let mut pauses = Vec::new();
        let mut repairs = 0;
        while pauses.len() < 8 {
            match fights.turn("link eth1.107", now) {
                Turn::Repair => repairs += 1,
                Turn::StepAside(until) => {
                    pauses.push((until - now).as_secs());
                    assert_eq!(fights.turn("link eth1.107", now), Turn::Wait);
                    assert_eq!(fights.next(now), Some(until));
                    now = until;
                }
                Turn::Wait => panic!("asked before the pause was over"),
            }
            now += Duration::from_millis(100);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(repairs, 3 + 7);
    }

    #[test]
    fn what_is_deleted_now_and_then_is_always_put_back() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        for count in 0..1000 {
            let now = start + SECOND * 10 * count;
            assert_eq!(fights.turn("link eth1.107", now), Turn::Repair);
        }
    }

    #[test]
    fn a_fight_over_one_object_leaves_the_others_alone_and_is_forgotten() {
        let (mut fights, now) = (Fights::default(), Instant::now());
        for _ in 0..REPAIRS {
            assert_eq!(fights.turn("link eth1.107", now), Turn::Repair);
        }
        assert!(matches!(
            fights.turn("link eth1.107", now),
            Turn::StepAside(_)
        ));
        assert_eq!(fights.turn("link br107", now), Turn::Repair);
        let later = now + PAUSE + WINDOW;
        for _ in 0..REPAIRS {
            assert_eq!(fights.turn("link eth1.107", later), Turn::Repair);
        }
    }
}
