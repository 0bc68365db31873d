//! How often a config that holds a cluster's secrets leaves: once for each boot script, as far as can be known.
//!
//! ```text
//!   asked --> begun, on disk --> bytes leave --> all acknowledged: delivered, on disk; asked again, it stays
//!     ^                              |
//!     +---- not acknowledged: -------+   DELIVERIES_MAX in all
//! ```
//!
//! What counts is the acknowledgement of the machine's TCP, for no installer says "I have it" before it acts on it. Two
//! deliveries of one attempt never run at the same time ([`UnderWay`]), so never more than one is acknowledged. A daemon that
//! is killed between the acknowledgement and its record may deliver again, within the same bound.

use std::collections::BTreeMap;
use std::fmt;

use crate::event::Draft;
use crate::net::{Digest, NodeName, Timestamp};
use crate::release::{Asker, Release, Withheld};
use crate::site::Site;
use crate::spec::Profile;

/// How often a config may begin to leave in one attempt: a connection may break, and its daemon may be killed.
pub const DELIVERIES_MAX: u8 = 3;

/// What became of the config with secrets of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    /// How often it began to leave, at most [`DELIVERIES_MAX`].
    pub begun: u8,
    /// When the machine had acknowledged every byte of it.
    pub delivered: Option<Timestamp>,
    /// When it was first asked for though it was spent. Somebody may have what is not theirs.
    pub asked_again: Option<Timestamp>,
}

/// Why a config with secrets leaves no more in its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The machine has it.
    Delivered,
    /// It began to leave as often as it may, and was never acknowledged.
    TriedOut,
}

impl Deliveries {
    /// The number of the delivery that may begin, from 1.
    ///
    /// # Errors
    /// It is spent.
    pub fn next(&self) -> Result<u8, Spent> {
        match (self.delivered, self.begun) {
            (Some(_), _) => Err(Spent::Delivered),
            (None, begun) if begun >= DELIVERIES_MAX => Err(Spent::TriedOut),
            (None, begun) => Ok(begun + 1),
        }
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivered => f.write_str("was delivered and leaves once for each boot"),
            Self::TriedOut => write!(
                f,
                "left {DELIVERIES_MAX} times and was never acknowledged; boot it again"
            ),
        }
    }
}

impl Site {
    /// The profile of the boot that a token belongs to.
    #[must_use]
    pub fn profile_of_token(&self, token: &Digest) -> Option<&Profile> {
        let (_, _, attempt) = self.attempt_of(token)?;
        self.spec.profile(&attempt.profile).map(AsRef::as_ref)
    }

    /// May the config with secrets that `asker` wants leave at `now`? Says the delivery's number.
    ///
    /// # Errors
    /// As [`Site::may_release`], and when it is spent.
    pub fn may_deliver(&self, asker: &Asker, now: Timestamp) -> Result<(Release, u8), Withheld> {
        let release = self.may_release(asker, now)?;
        let attempt = self.record(&release.node.name).attempt.as_ref();
        let next = attempt.map_or(Ok(1), |attempt| attempt.deliveries.next());
        match next {
            Ok(number) => Ok((release, number)),
            Err(spent) => Err(Withheld::Spent(release.node.name.clone(), spent)),
        }
    }
}

impl Draft {
    /// A machine asked for its config with secrets; see [`crate::event::Event::SecretAsked`].
    pub(crate) fn secret_asked(
        &mut self,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<(Release, u8), Withheld> {
        let may = self.site.may_deliver(asker, now);
        match &may {
            Ok((_, number)) => {
                let release = self.config_asked(asker, now)?;
                self.deliveries(&release.node.name, |deliveries| deliveries.begun = *number);
            }
            Err(withheld) => {
                let had = |node: &&NodeName| {
                    let attempt = self.site.record(node).attempt.as_ref();
                    attempt.is_some_and(|attempt| attempt.deliveries.begun > 0)
                };
                if let Some(node) = withheld.spent().filter(had) {
                    self.deliveries(node, |deliveries| {
                        deliveries.asked_again.get_or_insert(now);
                    });
                }
            }
        }
        may
    }

    /// The machine acknowledged a delivery of this attempt.
    pub(crate) fn delivered(&mut self, node: &NodeName, attempt: u32, now: Timestamp) {
        let latest = self.site.record(node).attempt.as_ref();
        if latest.is_some_and(|latest| latest.number == attempt && latest.deliveries.begun > 0) {
            self.deliveries(node, |deliveries| {
                deliveries.delivered.get_or_insert(now);
            });
        }
    }

    /// Changes the deliveries of the latest attempt, if that makes a difference.
    fn deliveries(&mut self, node: &NodeName, edit: impl FnOnce(&mut Deliveries)) {
        let Some(latest) = &self.site.record(node).attempt else {
            return;
        };
        let mut deliveries = latest.deliveries.clone();
        edit(&mut deliveries);
        if deliveries != latest.deliveries {
            self.change(node, |record| {
                if let Some(attempt) = &mut record.attempt {
                    attempt.deliveries = deliveries;
                }
            });
        }
    }
}

/// The deliveries that run now, at most one for each machine. A daemon that dies has none.
#[derive(Debug, Default)]
pub struct UnderWay(BTreeMap<NodeName, u32>);

impl UnderWay {
    /// Begins one; false while one of the same attempt runs. One of an older attempt has lost its reader.
    pub fn begin(&mut self, node: &NodeName, attempt: u32) -> bool {
        match self.0.get(node) {
            Some(running) if *running >= attempt => false,
            _ => {
                self.0.insert(node.clone(), attempt);
                true
            }
        }
    }

    /// Ends one, unless a later attempt's has taken its place.
    pub fn end(&mut self, node: &NodeName, attempt: u32) {
        if self.0.get(node) == Some(&attempt) {
            self.0.remove(node);
        }
    }
}
