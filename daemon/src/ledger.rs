//! The ledger's front door: servers drop facts in without ever waiting. The facts are evidence, not
//! memory: a full queue drops them and counts the drops, and a crash may lose the last second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netboot::attempt::{Entry, Fact};
use netboot::net::{MacAddress, NodeName};
use tokio::sync::mpsc;

use crate::controller::now;

/// Entries that may wait for the writer.
pub const QUEUE_MAX: usize = 16_384;

/// Takes facts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    queue: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Ledger {
    /// A ledger and the end its writer reads from.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Entry>) {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        (
            Self {
                queue,
                dropped: Arc::default(),
            },
            entries,
        )
    }

    /// Notes `fact`, unless the queue is full.
    pub fn note(&self, mac: Option<MacAddress>, node: Option<&NodeName>, fact: Fact) {
        let entry = Entry {
            at: now(),
            mac,
            node: node.cloned(),
            fact,
        };
        if self.queue.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Facts dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
