//! sled, tamed: the only file that imports it. Touches one directory.
//!
//! One engine is one sled database used as one ordered map of bytes. It is opened, repaired, written
//! and synced here; what the bytes mean is the business of the rooms above.
//!
//! Ugly facts about sled 0.34.7 that this file lives with:
//! - It panics on some corrupt files, so each call runs inside `catch_unwind`.
//! - A snapshot (`snap.*`) is rewritten at each open, and one torn by a kill makes every later open
//!   fail. The log alone is enough: without snapshots it is replayed in full.
//! - `flush` asks the kernel to start writing (`sync_file_range`) and waits for neither the disk's cache
//!   nor the file's size, so [`Engine::sync`] calls `fdatasync` on a handle of its own.
//! - A log whose tail or head is garbage opens without a word and lacks what was there. The room above
//!   must know by itself how much there should be.
//! - After a failed write the database refuses everything until it is opened again.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Values above this would leave the log for files of their own.
pub(crate) const VALUE_BYTES_MAX: usize = 64 * 1024;

/// How long a lock is waited for. A process that is being forked off holds a copy of every lock until it
/// becomes another program.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at a lock.
pub(crate) const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// What sled says of a lock that it can't have.
const LOCKED: &str = "could not acquire lock";

/// One open database.
#[derive(Debug)]
pub(crate) struct Engine {
    db: sled::Db,
    file: File,
    dir: PathBuf,
}

/// What went wrong below.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The world around the files: space, permissions, a lock. The files themselves may be sound.
    #[error("{act} {path} failed ({source}); see that it is writable and has space left")]
    World {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The files themselves.
    #[error("{act} {path} failed, its files are damaged ({what})")]
    Damaged {
        act: &'static str,
        path: PathBuf,
        what: String,
    },
}

impl Engine {
    /// Opens the database in `dir`, making it if need be. Deletes snapshots and opens again when they stand
    /// in the way; the second value says so.
    pub(crate) fn open(
        dir: &Path,
        cache_bytes: u64,
    ) -> Result<(Self, Option<String>), EngineError> {
        match Self::try_open(dir, cache_bytes) {
            Ok(engine) => Ok((engine, None)),
            Err(EngineError::Damaged { what, .. }) => {
                let deleted = delete_snapshots(dir)?;
                let engine = Self::try_open(dir, cache_bytes)?;
                let said = format!(
                    "the database in {} did not open ({what}); it opened by full replay after {deleted} snapshot files were deleted",
                    dir.display()
                );
                Ok((engine, Some(said)))
            }
            Err(world @ EngineError::World { .. }) => Err(world),
        }
    }

    fn try_open(dir: &Path, cache_bytes: u64) -> Result<Self, EngineError> {
        const ACT: &str = "opening the database";
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace);
        let deadline = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            match guarded(ACT, dir, || config.open()) {
                Err(EngineError::Damaged { what, .. })
                    if what.contains(LOCKED) && Instant::now() < deadline =>
                {
                    thread::sleep(LOCK_PAUSE);
                }
                opened => break opened?,
            }
        };
        let file = File::open(dir.join("db")).map_err(|error| world(ACT, dir, error))?;
        let dir = dir.to_owned();
        let engine = Self { db, file, dir };
        // Corruption deeper in the log shows when a page is read, so each is read before anybody relies
        // on it.
        engine.scan(b"", |_, _| ())?;
        Ok(engine)
    }

    /// Calls `each` with every key that starts with `prefix` and its value, in key order.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), EngineError> {
        guarded("reading", &self.dir, || {
            self.db.scan_prefix(prefix).try_for_each(|entry| {
                let (key, value) = entry?;
                each(&key, &value);
                Ok(())
            })
        })
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        guarded("reading", &self.dir, || {
            Ok(self.db.get(key)?.map(|value| value.to_vec()))
        })
    }

    /// Writes values, and removes the keys that have none, all or nothing.
    pub(crate) fn write<Key: AsRef<[u8]>>(
        &self,
        pairs: impl IntoIterator<Item = (Key, Option<Vec<u8>>)>,
    ) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in pairs {
            match value {
                Some(value) => batch.insert(key.as_ref(), value),
                None => batch.remove(key.as_ref()),
            }
        }
        guarded("writing", &self.dir, || self.db.apply_batch(batch))
    }

    /// Returns when everything written is on the disk.
    pub(crate) fn sync(&self) -> Result<(), EngineError> {
        const ACT: &str = "flushing";
        guarded(ACT, &self.dir, || self.db.flush())?;
        self.file
            .sync_data()
            .map_err(|error| world(ACT, &self.dir, error))
    }
}

/// Removes `snap.*`, and `conf` when it is empty: all of it is made again from the log.
fn delete_snapshots(dir: &Path) -> Result<usize, EngineError> {
    const ACT: &str = "deleting the snapshots of";
    let mut deleted = 0;
    for entry in fs::read_dir(dir).map_err(|error| world(ACT, dir, error))? {
        let entry = entry.map_err(|error| world(ACT, dir, error))?;
        let torn_conf =
            entry.file_name() == "conf" && entry.metadata().is_ok_and(|meta| meta.len() == 0);
        if torn_conf || entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(entry.path()).map_err(|error| world(ACT, dir, error))?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

fn world(act: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::World {
        act,
        path: path.to_owned(),
        source,
    }
}

/// Calls sled so that a panic of its own is an error like any other.
fn guarded<T>(
    act: &'static str,
    path: &Path,
    call: impl FnOnce() -> sled::Result<T>,
) -> Result<T, EngineError> {
    let damaged = |what: String| EngineError::Damaged {
        act,
        path: path.to_owned(),
        what,
    };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) if is_of_the_world(&error) => Err(world(act, path, error)),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(panic) => {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(damaged(format!(
                "sled panicked: {}",
                said.unwrap_or("no reason given")
            )))
        }
    }
}

/// True for errors that say nothing about the content of the files. Moving the store aside for one of
/// these would throw away a sound store. A lock that sled can't have in all that time is damage: the state
/// directory's own lock keeps others out, so only a thread that a panic of sled left behind can hold it.
fn is_of_the_world(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof};
    let about_content = matches!(
        error.kind(),
        InvalidData | InvalidInput | NotFound | Other | UnexpectedEof
    );
    !about_content && error.raw_os_error() != Some(libc::EIO)
}
