//! For how long something has been settled, as looks in a row showed it.
//!
//! ```text
//!   looks     settled a   settled a   settled b   unsettled   settled b   settled b
//!   held for      0           2 s         0           -           0           2 s
//! ```
//!
//! A look sees one moment. What changed and came back between two looks is known by its shape: whatever is different
//! after a change, such as the moment at which a condition last changed. Nothing is counted from before the first look, so
//! whoever looks anew, after a restart too, begins at nothing.

use std::time::Duration;

/// Looks in a row that found the same settled shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settling<S> {
    since: Option<(Duration, S)>,
}

impl<S> Default for Settling<S> {
    fn default() -> Self {
        Self { since: None }
    }
}

impl<S: PartialEq> Settling<S> {
    /// Takes a look at moment `at` of a clock that is never set, with the shape that was found settled, if one was.
    /// Returns for how long looks have found that shape, and nothing when this one did not.
    pub fn look(&mut self, at: Duration, settled: Option<S>) -> Option<Duration> {
        let Some(shape) = settled else {
            self.since = None;
            return None;
        };
        match &self.since {
            Some((since, before)) if *before == shape => Some(at.saturating_sub(*since)),
            _ => {
                self.since = Some((at, shape));
                Some(Duration::ZERO)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_has_held_since_the_first_of_the_looks_in_a_row_that_found_what_the_last_one_found(
            looks in prop::collection::vec((0..40_u64, prop::option::of(0..2_u8)), 1..40),
        ) {
            let mut settling = Settling::default();
            let mut at = 0;
            let mut told: Vec<(u64, Option<u8>)> = Vec::new();
            for (pause, shape) in looks {
                at += pause;
                told.push((at, shape));
                let held = settling.look(Duration::from_secs(at), shape);
                let row = told.iter().rev().take_while(|(_, before)| *before == shape);
                let first = row.last().map(|(first, _)| *first);
                let wanted = shape.and(first).map(|first| Duration::from_secs(at - first));
                prop_assert_eq!(held, wanted);
            }
        }
    }
}
