//! Conditions: what works and what doesn't, as each room says of itself. `status` shows them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What one room says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is about, such as `link eth1.107`.
    pub subject: String,
    /// True while it works.
    pub healthy: bool,
    /// One sentence.
    pub detail: String,
}

/// Where rooms say how they are. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, (bool, String)>>>);

impl Health {
    /// It works.
    pub fn well(&self, subject: &str, detail: impl Into<String>) {
        self.set(subject, true, detail.into());
    }

    /// It doesn't, and why.
    pub fn ill(&self, subject: &str, detail: impl Into<String>) {
        self.set(subject, false, detail.into());
    }

    /// It is no more.
    pub fn forget(&self, subject: &str) {
        self.lock().remove(subject);
    }

    /// Forgets what no longer matters.
    pub fn retain(&self, mut keep: impl FnMut(&str) -> bool) {
        self.lock().retain(|subject, _| keep(subject));
    }

    /// What every room said last.
    #[must_use]
    pub fn conditions(&self) -> Vec<Condition> {
        let said = self.lock();
        said.iter()
            .map(|(subject, (healthy, detail))| Condition {
                subject: subject.clone(),
                healthy: *healthy,
                detail: detail.clone(),
            })
            .collect()
    }

    fn set(&self, subject: &str, healthy: bool, detail: String) {
        self.lock().insert(subject.to_owned(), (healthy, detail));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (bool, String)>> {
        // Each write is whole, so what a panicking holder left is still right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
