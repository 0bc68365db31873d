//! The journal: what the host's network was before it was changed, on disk before the first operation.
//!
//! ```text
//!   absent --apply--> pending --proven or confirmed--> absent
//!                        '-----undone--------> held --another site, or `host apply`--> absent
//! ```
//!
//! Whoever finds `pending` at the start follows a daemon that died in between, and undoes. `held` remembers
//! links that cost the control path, so that no restart tries them again behind the administrator's back. The
//! file is replaced whole (a draft, synced, renamed, the directory synced), so it is always one of the two.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use netboot::host::{HostSpec, HostState, Operation};
use netboot::net::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What the journal says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Page {
    /// A change is under way and nobody has said that it is good.
    Pending(Entry),
    /// A change was undone; it is not tried again by itself.
    Held(Entry),
}

/// A change and the way back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When it began, or when it was undone.
    pub(crate) at: Timestamp,
    /// Which links the site wanted; see [`fingerprint`].
    pub(crate) wanted: Digest,
    /// Who asked for it, or why it was undone.
    pub(crate) why: String,
    /// The network to go back to.
    pub(crate) before: HostState,
    /// What was to be done to it.
    pub(crate) operations: Vec<Operation>,
}

/// What the start calls itself.
pub(crate) const START: &str = "the start of the daemon";
/// What a parent that came late calls itself.
pub(crate) const ARRIVAL: &str = "what the site waited for";

impl Entry {
    /// Nobody asked for it by hand.
    pub(crate) fn is_by_itself(&self) -> bool {
        [START, ARRIVAL].contains(&self.why.as_str())
    }
}

/// Tells one site's wishes for the host from another's. An upgrade that words them differently only
/// means that held ones are tried once more.
pub(crate) fn fingerprint(spec: &HostSpec) -> Digest {
    Digest::from_bytes(Sha256::digest(format!("{spec:?}")).into())
}

/// Why the journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk.
    #[error("{act} {path}: {source}; look at the space and the rights of the state directory")]
    File {
        /// What was tried.
        act: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not one of ours, or a later version's.
    #[error(
        "{path} can't be understood: {source}; compare `ip -d addr` with the site, then remove the file"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The journal's file in the state directory.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// The journal in the state directory `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// What it says.
    pub(crate) fn read(&self) -> Result<Option<Page>, JournalError> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| JournalError::Unreadable { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JournalError::File {
                act: "reading",
                path,
                source,
            }),
        }
    }

    /// Replaces what it says; on disk when this returns.
    pub(crate) async fn write(&self, page: Page) -> Result<(), JournalError> {
        let journal = self.clone();
        beside(move || journal.replace(&page)).await
    }

    /// Forgets; gone from the disk when this returns.
    pub(crate) async fn clear(&self) -> Result<(), JournalError> {
        let journal = self.clone();
        beside(move || journal.remove()).await
    }

    fn replace(&self, page: &Page) -> Result<(), JournalError> {
        let draft = self.path().with_extension("draft");
        let text = serde_json::to_vec(page).expect("our own shapes are always JSON");
        let written = File::create(&draft)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&draft, self.path()))
            .and_then(|()| self.sync());
        written.map_err(|source| JournalError::File {
            act: "writing",
            path: self.path(),
            source,
        })
    }

    fn remove(&self) -> Result<(), JournalError> {
        let removed = match fs::remove_file(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        };
        removed.map_err(|source| JournalError::File {
            act: "removing",
            path: self.path(),
            source,
        })
    }

    fn path(&self) -> PathBuf {
        self.directory.join("host-pending.json")
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

/// On a thread that may wait for the disk.
async fn beside(
    work: impl FnOnce() -> Result<(), JournalError> + Send + 'static,
) -> Result<(), JournalError> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("writing the journal does not panic, and nobody aborts it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            at: Timestamp::from_millis(7),
            wanted: fingerprint(&HostSpec::default()),
            why: "root".to_owned(),
            before: HostState::default(),
            operations: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_was_cleared_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path());
        assert_eq!(journal.read().unwrap(), None);
        for page in [Page::Pending(entry()), Page::Held(entry())] {
            journal.replace(&page).unwrap();
            assert_eq!(journal.read().unwrap(), Some(page));
        }
        journal.remove().unwrap();
        journal.remove().unwrap();
        assert_eq!(journal.read().unwrap(), None);
    }

    #[test]
    fn a_torn_journal_is_told_from_none() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("host-pending.json"), "{\"pend").unwrap();
        let error = Journal::new(directory.path()).read().unwrap_err();
        assert!(matches!(error, JournalError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn another_wish_has_another_fingerprint() {
        let confirm = HostSpec {
            confirm_seconds: 61,
            ..HostSpec::default()
        };
        assert_ne!(fingerprint(&confirm), fingerprint(&HostSpec::default()));
    }
}
