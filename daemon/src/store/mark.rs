//! The mark beside the store: what tells a fresh state directory from one whose store was lost, and a
//! whole store from one that silently forgot its latest commits.
//!
//! `store.mark` says `creating` from before the store's first file is made until its first commit is on
//! disk; from then on it says the highest generation that was ever acknowledged, in twenty digits that
//! are written over in place. It is raised after the store's own sync and before the acknowledgement, and
//! not synced itself: behind a power cut it may lag, and then it only notices less. It never runs ahead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::sync_dir;

const CREATING: &str = "creating\n";

/// What the mark said when the daemon started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// There is none.
    Absent,
    /// No commit was ever acknowledged.
    Creating,
    /// Commits up to this generation were acknowledged, as far as the mark knows.
    At(u64),
}

/// The mark's file.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
}

pub(super) fn look(dir: &Path) -> io::Result<Marked> {
    match fs::read(path(dir)) {
        Ok(bytes) if bytes == CREATING.as_bytes() => Ok(Marked::Creating),
        Ok(bytes) => {
            let text = str::from_utf8(&bytes).unwrap_or_default();
            // A mark that can't be read still proves that there was a store.
            Ok(Marked::At(text.trim().parse().unwrap_or(0)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Marked::Absent),
        Err(error) => Err(error),
    }
}

/// Notes, before the store's first file is made, that it is being made.
pub(super) fn creating(dir: &Path) -> io::Result<()> {
    replace(dir, CREATING)
}

impl Mark {
    /// Sets the mark durably.
    pub(super) fn set(dir: &Path, generation: u64) -> io::Result<Self> {
        replace(dir, &digits(generation))?;
        let file = OpenOptions::new().write(true).open(path(dir))?;
        Ok(Self { file })
    }

    /// Raises the mark.
    pub(super) fn raise(&self, generation: u64) -> io::Result<()> {
        self.file.write_all_at(digits(generation).as_bytes(), 0)
    }
}

fn replace(dir: &Path, text: &str) -> io::Result<()> {
    let draft = dir.join("store.mark.draft");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path(dir))?;
    sync_dir(dir)
}

fn digits(generation: u64) -> String {
    format!("{generation:020}\n")
}

fn path(dir: &Path) -> PathBuf {
    dir.join("store.mark")
}
