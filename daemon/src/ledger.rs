//! The ledger: servers drop facts in without ever waiting; one writer numbers them into chunks and writes
//! those behind; readers ask by node or by time, or follow.
//!
//! The facts are evidence, not memory: a full queue drops them and counts the drops, a crash may lose the
//! last second, and a database that can't be opened is moved aside and begun anew.

mod book;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netboot::attempt::{Entry, Fact};
use netboot::net::{MacAddress, NodeName, Timestamp};
use tokio::sync::{broadcast, mpsc};

use crate::controller::now;
use crate::store::engine::{Engine, EngineError};
use book::{Book, Line};

/// Entries that may wait for the writer.
pub const QUEUE_MAX: usize = 16_384;
/// Entries of one node that are read back: ten attempts of 256.
pub const HISTORY_MAX: usize = 2560;
/// Entries that may wait for somebody who follows.
const FOLLOW_MAX: usize = 4096;
/// All chunks together, unpacked; a tenth of it on disk.
const TOTAL_BYTES: usize = 48 << 20;
/// DHCP entries of all machines together in one second: thousands that ask at once must not have the core
/// busy with their story when it should answer them.
const DHCP_SECOND_MAX: u64 = 8192;
/// The writer gathers for this long.
const GATHER: Duration = Duration::from_millis(20);
/// Between two writes.
const WRITE_PAUSE: Duration = Duration::from_millis(500);
/// Between two attempts to open a database that refused.
const REOPEN_PAUSE: Duration = Duration::from_secs(30);
/// Chunks in one batch.
const BATCH: usize = 16;
/// sled's cache for the ledger.
const CACHE_BYTES: u64 = 2 << 20;

/// Takes facts and gives them back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    queue: mpsc::Sender<Entry>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dropped: AtomicU64,
    crowded: AtomicU64,
    packets: AtomicU64,
    follow: broadcast::Sender<Arc<Entry>>,
    book: Mutex<Book>,
}

impl Ledger {
    /// A ledger and the end its writer reads from.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Entry>) {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared {
            dropped: AtomicU64::default(),
            crowded: AtomicU64::default(),
            packets: AtomicU64::default(),
            follow: broadcast::Sender::new(FOLLOW_MAX),
            book: Mutex::default(),
        });
        (Self { queue, shared }, entries)
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
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether one more DHCP packet may be noted in this second. Asked before the fact is made, because a
    /// storm should not pay for what is thrown away.
    #[must_use]
    pub fn takes_packet(&self, at: Timestamp) -> bool {
        // The second in the upper half, the count in the lower. Two links that ask at the same moment may
        // count as one, which costs nothing.
        let second = (at.millis() / 1000) << 32;
        let before = self.shared.packets.load(Ordering::Relaxed);
        let count = if before & !0xffff_ffff == second {
            before & 0xffff_ffff
        } else {
            0
        };
        if count >= DHCP_SECOND_MAX {
            self.shared.crowded.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.shared
            .packets
            .store(second | (count + 1), Ordering::Relaxed);
        true
    }

    /// Facts dropped since the start because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Facts dropped since the start because their machine noted too many in one minute, or DHCP in one second.
    #[must_use]
    pub fn crowded(&self) -> u64 {
        self.shared.crowded.load(Ordering::Relaxed)
    }

    /// Starts the writer, which keeps its database in the state directory `dir`. It ends, with everything
    /// written, when every `Ledger` is dropped.
    #[must_use = "the writer has written everything when this is done"]
    pub fn start_writer(
        &self,
        entries: mpsc::Receiver<Entry>,
        dir: &Path,
    ) -> tokio::task::JoinHandle<()> {
        let (shared, dir) = (Arc::clone(&self.shared), dir.to_owned());
        tokio::task::spawn_blocking(move || write_behind(&shared, entries, &dir))
    }

    /// The latest entries of `node`, at most [`HISTORY_MAX`], the oldest first. Reads the disk.
    #[must_use]
    pub fn history(&self, node: &NodeName) -> Vec<Entry> {
        let source = self.shared.book().source(Some(node), Timestamp::default());
        source.read(HISTORY_MAX, |line| line.node.as_ref() == Some(node))
    }

    /// The latest entries since `from`, at most `count`, the oldest first. Reads the disk.
    #[must_use]
    pub fn since(&self, from: Timestamp, count: usize) -> Vec<Entry> {
        let source = self.shared.book().source(None, from);
        source.read(count, |line| line.at >= from)
    }

    /// Entries from now on, as they are taken. Who falls behind by more than a few thousand is told how many
    /// it missed.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<Entry>> {
        self.shared.follow.subscribe()
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A reader that panicked left nothing half done: readers change nothing.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, entry: Entry) {
        if self.book().add(&entry) {
            // Nobody follows most of the time.
            let _ = self.follow.send(Arc::new(entry));
        } else {
            self.crowded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_behind(shared: &Shared, mut entries: mpsc::Receiver<Entry>, dir: &Path) {
    let runtime = tokio::runtime::Handle::current();
    open_book(shared, dir, TOTAL_BYTES);
    let mut group = Vec::new();
    let (mut written, mut opened) = (Instant::now(), Instant::now());
    let mut open = true;
    while open {
        let receive = async {
            tokio::time::timeout(WRITE_PAUSE, entries.recv_many(&mut group, QUEUE_MAX)).await
        };
        open = runtime.block_on(receive) != Ok(0);
        let took = !group.is_empty();
        for entry in group.drain(..) {
            shared.take(entry);
        }
        if written.elapsed() >= WRITE_PAUSE || !open {
            if shared.book().engine.is_none() && opened.elapsed() >= REOPEN_PAUSE {
                open_book(shared, dir, TOTAL_BYTES);
                opened = Instant::now();
            }
            write_book(shared);
            written = Instant::now();
        }
        if open && took {
            // Waiting at once would have the very next entry wake this thread, and the next one again.
            std::thread::sleep(GATHER);
        }
    }
}

fn open_book(shared: &Shared, dir: &Path, bytes_max: usize) {
    let path = dir.join("ledger");
    let opened = Engine::open(&path, CACHE_BYTES).or_else(|error| match error {
        EngineError::Damaged { .. } => {
            tracing::warn!(%error, "the ledger is begun anew; the old one is kept as ledger-lost");
            begin_anew(&path)
        }
        EngineError::World { .. } => Err(error),
    });
    match opened.and_then(|(engine, _)| Book::read(engine, bytes_max)) {
        Ok(book) => {
            // What was noted while there was no disk comes after what was on it.
            let kept = std::mem::replace(&mut *shared.book(), book).tail.text;
            let mut book = shared.book();
            for line in kept.split_inclusive(|byte| *byte == b'\n') {
                if let Ok(Line { at, node }) = serde_json::from_slice(line) {
                    book.append(line, at, node);
                }
            }
        }
        Err(error) => {
            tracing::error!(%error, "the ledger is kept in memory only, and little of it");
        }
    }
}

fn begin_anew(path: &Path) -> Result<(Engine, Option<String>), EngineError> {
    let aside: PathBuf = path.with_file_name("ledger-lost");
    let moved = match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::rename(path, &aside),
    };
    moved.map_err(|source| EngineError::World {
        act: "moving the ledger aside to",
        path: aside,
        source,
    })?;
    Engine::open(path, CACHE_BYTES)
}

/// Writes what is new. The book is not held while the disk works.
fn write_book(shared: &Shared) {
    let (engine, pairs) = shared.book().unwritten();
    let Some(engine) = engine.filter(|_| !pairs.is_empty()) else {
        return;
    };
    let numbers: Vec<_> = pairs
        .iter()
        .map(|(key, text)| (*key, text.is_some()))
        .collect();
    // Each batch stays in memory as a whole, and chunks owe each other nothing.
    let written = pairs
        .chunks(BATCH)
        .try_for_each(|pairs| engine.write(pairs.iter().cloned()));
    match written.and_then(|()| engine.sync()) {
        Ok(()) => shared.book().forget_written(&numbers),
        Err(error) => {
            tracing::warn!(%error, "the ledger can't be written; it is kept in memory only, and little of it");
            shared.book().lose_disk();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::book::{CARRIED_MAX, NODE_MINUTE_MAX, OTHERS_MINUTE_MAX};
    use super::*;

    const TEST_BYTES: usize = 2 << 20;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn fact(number: usize) -> Fact {
        Fact::Bastion {
            room: "test".into(),
            what: format!("{number:0200}"),
        }
    }

    fn entry(minute: u64, node: Option<&str>, number: usize) -> Entry {
        Entry {
            at: Timestamp::from_millis(minute * 60_000),
            mac: None,
            node: node.map(name),
            fact: fact(number),
        }
    }

    fn open(dir: &Path) -> Arc<Shared> {
        let shared = Ledger::channel().0.shared;
        open_book(&shared, dir, TEST_BYTES);
        shared
    }

    fn history(shared: &Shared, node: &str) -> Vec<Entry> {
        let node = name(node);
        let source = shared.book().source(Some(&node), Timestamp::default());
        source.read(HISTORY_MAX, |line| line.node.as_ref() == Some(&node))
    }

    #[test]
    fn a_storm_of_packets_has_its_share_of_a_second_and_no_more() {
        let (ledger, _entries) = Ledger::channel();
        let at = Timestamp::from_millis(5_000);
        let taken = (0..DHCP_SECOND_MAX + 10).filter(|_| ledger.takes_packet(at));
        assert_eq!(taken.count() as u64, DHCP_SECOND_MAX);
        assert_eq!(ledger.crowded(), 10);
        assert!(ledger.takes_packet(at.plus_seconds(1)));
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let noted: Vec<Entry> = (0..250)
            .map(|i| entry(i / 100, Some("a"), i as usize))
            .collect();
        let shared = open(dir.path());
        for one in &noted {
            shared.take(one.clone());
        }
        assert_eq!(history(&shared, "a"), noted, "before it was written");
        write_book(&shared);
        assert_eq!(history(&shared, "a"), noted, "once it was written");
        drop(shared);
        let shared = open(dir.path());
        assert_eq!(history(&shared, "a"), noted, "after a restart");
        let since = shared.book().source(None, Timestamp::from_millis(120_000));
        assert_eq!(
            since.read(1000, |line| line.at.millis() >= 120_000),
            noted[200..]
        );
    }

    #[test]
    fn a_quiet_machine_keeps_its_story_while_noisy_ones_overwrite_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path());
        let story: Vec<Entry> = (0..40).map(|i| entry(0, Some("quiet"), i)).collect();
        for one in &story {
            shared.take(one.clone());
        }
        let rounds = 2 * TEST_BYTES / (250 * 200 * 10) + 2;
        for minute in 1..rounds as u64 {
            for noisy in 0..10 {
                for i in 0..200 {
                    shared.take(entry(minute, Some(&format!("noisy-{noisy}")), i));
                }
            }
            write_book(&shared);
        }
        assert!(history(&shared, "quiet") == story);
        assert!(shared.book().bytes <= TEST_BYTES);
        assert!(history(&shared, "noisy-3").len() >= CARRIED_MAX);
        drop(shared);
        assert!(history(&open(dir.path()), "quiet") == story);
    }

    #[test]
    fn one_machine_or_a_million_unlisted_ones_cannot_fill_the_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path());
        for i in 0..5000 {
            shared.take(entry(1, Some("babbler"), i));
            shared.take(entry(1, None, i));
        }
        let kept = 10_000 - shared.crowded.load(Ordering::Relaxed);
        assert_eq!(kept, u64::from(NODE_MINUTE_MAX + OTHERS_MINUTE_MAX));
        shared.take(entry(2, Some("babbler"), 0));
        assert_eq!(
            history(&shared, "babbler").len(),
            NODE_MINUTE_MAX as usize + 1
        );
    }

    #[test]
    fn a_damaged_ledger_is_begun_anew_and_the_old_one_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("ledger")).unwrap();
        std::fs::write(dir.path().join("ledger/conf"), "no such thing").unwrap();
        let shared = open(dir.path());
        shared.take(entry(1, Some("a"), 1));
        write_book(&shared);
        drop(shared);
        assert_eq!(history(&open(dir.path()), "a").len(), 1);
        assert!(dir.path().join("ledger-lost").exists());
    }

    #[test]
    fn without_a_disk_the_latest_entries_are_still_told() {
        let shared = Ledger::channel().0.shared;
        for i in 0..250 {
            shared.take(entry(1, Some("a"), i));
        }
        let told = history(&shared, "a");
        assert!(!told.is_empty() && told.last() == Some(&entry(1, Some("a"), 249)));
        assert!(shared.book().bytes == 0, "nothing piles up");
    }

    #[test]
    fn a_disk_that_comes_back_is_told_what_happened_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path());
        let noted: Vec<Entry> = (0..4).map(|i| entry(i, Some("a"), 0)).collect();
        for one in &noted[..2] {
            shared.take(one.clone());
        }
        write_book(&shared);
        shared.book().lose_disk();
        shared.book().tail.text.clear();
        for one in &noted[2..] {
            shared.take(one.clone());
        }
        open_book(&shared, dir.path(), TEST_BYTES);
        assert_eq!(history(&shared, "a"), noted);
    }

    #[tokio::test]
    async fn who_follows_hears_each_entry_and_the_writer_ends_with_all_of_them_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, entries) = Ledger::channel();
        let mut heard = ledger.follow();
        let writer = ledger.start_writer(entries, dir.path());
        let node = name("a");
        for number in 0..3 {
            ledger.note(None, Some(&node), fact(number));
        }
        for number in 0..3 {
            assert_eq!(heard.recv().await.unwrap().fact, fact(number));
        }
        drop(ledger);
        writer.await.unwrap();
        assert_eq!(history(&open(dir.path()), "a").len(), 3);
    }
}
