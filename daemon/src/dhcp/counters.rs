//! What became of every packet, by reason.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use netboot::dhcp::Kind;

/// Counts since the start. The counters of the fast path are plain atomics; a reason's label is
/// static text, so the table of reasons is as long as the list of reasons in the code.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    offers: AtomicU64,
    acks: AtomicU64,
    naks: AtomicU64,
    reasons: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub(super) fn received(&self, count: u64) {
        self.received.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn replied(&self, kind: Kind) {
        let counter = match kind {
            Kind::Offer => &self.offers,
            Kind::Ack => &self.acks,
            Kind::Nak => &self.naks,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ignored(&self, reason: &'static str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons.entry(reason).or_default() += 1;
    }

    /// Messages received, offers, acknowledgements and refusals sent.
    #[must_use]
    pub fn totals(&self) -> [(&'static str, u64); 4] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("received", read(&self.received)),
            ("offer", read(&self.offers)),
            ("ack", read(&self.acks)),
            ("nak", read(&self.naks)),
        ]
    }

    /// Messages that got no reply, by reason.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&'static str, u64> {
        self.reasons
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
