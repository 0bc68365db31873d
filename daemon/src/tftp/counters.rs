//! What becomes of requests and transfers, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use netboot::tftp::{Ignored, Outcome};

/// What was counted, by reason. Names are what the metrics page shows.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub started: AtomicU64,
    pub complete: AtomicU64,
    pub unconfirmed: AtomicU64,
    pub size_only: AtomicU64,
    pub aborted: AtomicU64,
    pub silent: AtomicU64,
    pub replaced: AtomicU64,
    pub not_found: AtomicU64,
    pub denied: AtomicU64,
    pub busy: AtomicU64,
    pub busy_client: AtomicU64,
    pub write: AtomicU64,
    pub malformed: AtomicU64,
    pub astray: AtomicU64,
    pub copies: AtomicU64,
    pub unknown_transfer: AtomicU64,
    pub stale: AtomicU64,
    pub retransmits: AtomicU64,
    pub bytes: AtomicU64,
    pub send_failed: AtomicU64,
}

impl Counters {
    pub fn each(&self) -> [(&'static str, u64); 21] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("requests", get(&self.requests)),
            ("started", get(&self.started)),
            ("complete", get(&self.complete)),
            ("unconfirmed", get(&self.unconfirmed)),
            ("size_only", get(&self.size_only)),
            ("aborted", get(&self.aborted)),
            ("silent", get(&self.silent)),
            ("replaced", get(&self.replaced)),
            ("not_found", get(&self.not_found)),
            ("denied", get(&self.denied)),
            ("busy", get(&self.busy)),
            ("busy_client", get(&self.busy_client)),
            ("write", get(&self.write)),
            ("malformed", get(&self.malformed)),
            ("astray", get(&self.astray)),
            ("copies", get(&self.copies)),
            ("unknown_transfer", get(&self.unknown_transfer)),
            ("stale", get(&self.stale)),
            ("retransmits", get(&self.retransmits)),
            ("bytes", get(&self.bytes)),
            ("send_failed", get(&self.send_failed)),
        ]
    }

    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn ignored(&self, reason: Ignored) {
        let counter = match reason {
            Ignored::Malformed(_) => &self.malformed,
            Ignored::Write => &self.write,
            Ignored::Astray | Ignored::Foreign => &self.astray,
            Ignored::Copy => &self.copies,
            Ignored::UnknownTransfer => &self.unknown_transfer,
            Ignored::Stale => &self.stale,
            Ignored::Busy => &self.busy,
            Ignored::BusyClient => &self.busy_client,
        };
        Self::add(counter, 1);
    }

    pub(crate) fn ended(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Complete => &self.complete,
            Outcome::Unconfirmed => &self.unconfirmed,
            Outcome::SizeOnly => &self.size_only,
            Outcome::Aborted { .. } | Outcome::Stopped => &self.aborted,
            Outcome::Silent => &self.silent,
            Outcome::Replaced => &self.replaced,
        };
        Self::add(counter, 1);
    }
}
