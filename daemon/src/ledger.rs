//! The ledger: servers drop facts in without ever waiting; one writer numbers them into chunks and writes
//! those behind; readers ask by node or by time, or follow.
//!
//! The facts are evidence, not memory: a full queue drops them and counts the drops, a crash may lose the
//! last second, and a database that can't be opened is moved aside and begun anew.
//!
//! A chunk is some 64 KiB of JSON lines, packed by LZ4 under a big-endian number, whoever they speak of: a
//! storm costs a few writes a second and not one for each machine, and sled, which takes about twice as
//! much memory as it holds, holds little. An index in memory knows which chunks speak
//! of which node. When the chunks outgrow their bound the oldest is dropped, but lines that are still
//! among the latest of their node move to the newest chunk: a machine that booted once, long ago, keeps its
//! story while a noisy one overwrites its own. Machines that are not listed share one bounded part.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netboot::attempt::{Entry, Fact};
use netboot::net::{MacAddress, NodeName, Timestamp};
use serde::Deserialize;
use tokio::sync::{broadcast, mpsc};

use crate::controller::now;
use crate::store::engine::{Engine, EngineError};

/// Entries that may wait for the writer.
pub const QUEUE_MAX: usize = 16_384;
/// Entries of one node that are read back: ten attempts of 256.
pub const HISTORY_MAX: usize = 2560;
/// Entries that may wait for somebody who follows.
const FOLLOW_MAX: usize = 4096;
/// A chunk is closed when it has grown to this.
const CHUNK_BYTES: usize = 64 * 1024;
/// All chunks together, unpacked; a tenth of it on disk.
const TOTAL_BYTES: usize = 48 << 20;
/// Entries a node may note in one minute: one attempt. Beyond it they are dropped and counted.
const NODE_MINUTE_MAX: u32 = 256;
/// The same for all machines together that are not listed, and for the bastion's own.
const OTHERS_MINUTE_MAX: u32 = 1024;
/// DHCP entries of all machines together in one second: thousands that ask at once must not have the core
/// busy with their story when it should answer them.
const DHCP_SECOND_MAX: u64 = 8192;
/// Latest entries of a node that survive the chunk they were in.
const CARRIED_MAX: usize = 64;
/// Credit for moving lines on that may gather.
const CARRY_MAX: usize = 8 * CHUNK_BYTES;
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

/// A chunk's number as sled sorts it.
type Key = [u8; 8];
/// A chunk's text by its number; none when it is dropped.
type Pair = (Key, Option<Vec<u8>>);

/// What is known of the chunks, and the newest one itself.
#[derive(Debug, Default)]
struct Book {
    /// `None` until the writer has opened it, and after a failure: then only the tail is kept.
    engine: Option<Arc<Engine>>,
    chunks: VecDeque<Chunk>,
    bytes: usize,
    bytes_max: usize,
    index: BTreeMap<NodeName, VecDeque<Mention>>,
    tail: Tail,
    /// Chunks closed and not yet on disk; chunks dropped and not yet gone from there.
    unwritten: Vec<(u64, Option<Vec<u8>>)>,
    minute: Minute,
    /// Bytes that may move on from chunks that are dropped.
    carry_credit: usize,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    number: u64,
    bytes: usize,
    last: Timestamp,
}

/// A chunk that speaks of a node, and how often.
#[derive(Clone, Copy, Debug)]
struct Mention {
    number: u64,
    count: usize,
}

/// The chunk that still grows.
#[derive(Debug, Default)]
struct Tail {
    number: u64,
    text: Vec<u8>,
    last: Timestamp,
    changed: bool,
}

/// Counts what each node noted since the minute began.
#[derive(Debug, Default)]
struct Minute {
    begun: Timestamp,
    nodes: BTreeMap<NodeName, u32>,
    others: u32,
}

/// The part of a line that the index needs.
#[derive(Deserialize)]
struct Line {
    at: Timestamp,
    #[serde(default)]
    node: Option<NodeName>,
}

/// Where a reader finds its lines once it has let go of the book: the newest first.
struct Source {
    engine: Option<Arc<Engine>>,
    chunks: Vec<Place>,
}

enum Place {
    Memory(Vec<u8>),
    Disk(u64),
}

impl Source {
    /// The latest `count` entries whose line `wanted` takes, the oldest first.
    fn read(self, count: usize, wanted: impl Fn(&Line) -> bool) -> Vec<Entry> {
        let mut entries = Vec::new();
        for place in self.chunks {
            let text = match (place, &self.engine) {
                (Place::Memory(text), _) => text,
                // A chunk that can't be read, or was dropped since, is evidence lost and no more.
                (Place::Disk(number), Some(engine)) => unpacked(engine, number),
                (Place::Disk(_), None) => continue,
            };
            let lines = text.split(|byte| *byte == b'\n').rev();
            entries.extend(lines.filter_map(|line| {
                let seen = serde_json::from_slice::<Line>(line).ok()?;
                wanted(&seen)
                    .then(|| serde_json::from_slice::<Entry>(line).ok())
                    .flatten()
            }));
            if entries.len() >= count {
                break;
            }
        }
        // Lines that moved on are older than their neighbours. The sort is stable, so what happened in one
        // millisecond stays in its order.
        entries.reverse();
        entries.sort_by_key(|entry: &Entry| entry.at);
        entries.split_off(entries.len().saturating_sub(count))
    }
}

impl Minute {
    fn admits(&mut self, entry: &Entry) -> bool {
        if entry.at < self.begun || entry.at >= self.begun.plus_seconds(60) {
            *self = Self {
                begun: entry.at,
                ..Self::default()
            };
        }
        let (noted, most) = match &entry.node {
            Some(node) => (self.nodes.entry(node.clone()).or_default(), NODE_MINUTE_MAX),
            None => (&mut self.others, OTHERS_MINUTE_MAX),
        };
        *noted = noted.saturating_add(1);
        *noted <= most
    }
}

impl Book {
    /// Reads the chunks that are there. A line that can't be read is no evidence and is skipped.
    fn read(engine: Engine, bytes_max: usize) -> Result<Self, EngineError> {
        let mut book = Self {
            bytes_max,
            ..Self::default()
        };
        engine.scan(b"", |key, value| {
            let Ok(number) = key.try_into().map(u64::from_be_bytes) else {
                return;
            };
            let text = unpack(value);
            let mut last = Timestamp::default();
            for line in lines_of(&text) {
                last = last.max(line.at);
                book.mention(number, line.node);
            }
            book.keep(number, text.len(), last);
            book.tail.number = number + 1;
        })?;
        book.engine = Some(Arc::new(engine));
        Ok(book)
    }

    /// Takes an entry; false when too many were noted already.
    fn add(&mut self, entry: &Entry) -> bool {
        if !self.minute.admits(entry) {
            return false;
        }
        let mut line = serde_json::to_vec(entry).expect("an entry has text keys only");
        line.push(b'\n');
        self.append(&line, entry.at, entry.node.clone());
        true
    }

    /// Appends one line to the tail and closes that when it is full.
    fn append(&mut self, line: &[u8], at: Timestamp, node: Option<NodeName>) {
        self.mention(self.tail.number, node);
        self.tail.text.extend_from_slice(line);
        self.tail.last = self.tail.last.max(at);
        self.tail.changed = true;
        if self.tail.text.len() >= CHUNK_BYTES {
            self.close_tail();
        }
    }

    /// Notes that a chunk, the newest so far, speaks of `node`.
    fn mention(&mut self, number: u64, node: Option<NodeName>) {
        let Some(node) = node else { return };
        let mentions = self.index.entry(node).or_default();
        match mentions.back_mut() {
            Some(mention) if mention.number == number => mention.count += 1,
            _ => mentions.push_back(Mention { number, count: 1 }),
        }
    }

    fn keep(&mut self, number: u64, bytes: usize, last: Timestamp) {
        self.bytes += bytes;
        self.chunks.push_back(Chunk {
            number,
            bytes,
            last,
        });
    }

    fn close_tail(&mut self) {
        let next = Tail {
            number: self.tail.number + 1,
            ..Tail::default()
        };
        let Tail {
            number, text, last, ..
        } = std::mem::replace(&mut self.tail, next);
        self.keep(number, text.len(), last);
        self.unwritten.push((number, Some(text)));
        // Half a chunk for each that is closed: so dropping frees more than moving on takes.
        self.carry_credit = CARRY_MAX.min(self.carry_credit + CHUNK_BYTES / 2);
        if self.engine.is_none() {
            self.lose_disk();
        }
        while self.bytes > self.bytes_max && self.chunks.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Drops the oldest chunk. Of its lines, those still among the latest of their node move on, the later
    /// ones first, as far as the credit goes.
    fn drop_oldest(&mut self) {
        let Some(chunk) = self.chunks.pop_front() else {
            return;
        };
        self.bytes -= chunk.bytes;
        let text = self.text_of(chunk.number).unwrap_or_default();
        self.unwritten.retain(|(number, _)| *number != chunk.number);
        self.unwritten.push((chunk.number, None));
        let mut carried = Vec::new();
        let mut later: BTreeMap<NodeName, usize> = BTreeMap::new();
        for line in text.split_inclusive(|byte| *byte == b'\n').rev() {
            let Ok(Line {
                at,
                node: Some(node),
            }) = serde_json::from_slice(line)
            else {
                continue;
            };
            let count = later
                .entry(node.clone())
                .or_insert_with(|| self.unmention(&node, chunk.number));
            *count += 1;
            if *count <= CARRIED_MAX && line.len() <= self.carry_credit {
                self.carry_credit -= line.len();
                carried.push((line, at, node));
            }
        }
        for (line, at, node) in carried.into_iter().rev() {
            self.append(line, at, Some(node));
        }
    }

    /// Takes the oldest chunk out of a node's mentions and counts the others.
    fn unmention(&mut self, node: &NodeName, number: u64) -> usize {
        let Some(mentions) = self.index.get_mut(node) else {
            return 0;
        };
        mentions.retain(|mention| mention.number != number);
        let count = mentions.iter().map(|mention| mention.count).sum();
        if mentions.is_empty() {
            self.index.remove(node);
        }
        count
    }

    /// Goes on with what is in memory: the tail.
    fn lose_disk(&mut self) {
        self.engine = None;
        self.chunks.clear();
        self.bytes = 0;
        self.unwritten.clear();
        self.index.clear();
        let tail = std::mem::take(&mut self.tail.text);
        for line in lines_of(&tail) {
            self.mention(self.tail.number, line.node);
        }
        self.tail.text = tail;
    }

    fn text_of(&self, number: u64) -> Option<Vec<u8>> {
        match self.unwritten.iter().find(|(closed, _)| *closed == number) {
            Some((_, text)) => text.clone(),
            None => Some(unpacked(self.engine.as_ref()?, number)),
        }
    }

    /// The database, and what it does not have yet.
    fn unwritten(&mut self) -> (Option<Arc<Engine>>, Vec<Pair>) {
        let closed = self.unwritten.iter();
        let mut pairs: Vec<_> = closed
            .map(|(number, text)| (number.to_be_bytes(), text.as_deref().map(pack)))
            .collect();
        if std::mem::take(&mut self.tail.changed) {
            pairs.push((self.tail.number.to_be_bytes(), Some(pack(&self.tail.text))));
        }
        (self.engine.clone(), pairs)
    }

    fn forget_written(&mut self, written: &[(Key, bool)]) {
        self.unwritten
            .retain(|(number, text)| !written.contains(&(number.to_be_bytes(), text.is_some())));
    }

    /// Where the lines of `node`, or of everybody, since `from` are.
    fn source(&self, node: Option<&NodeName>, from: Timestamp) -> Source {
        let numbers: Vec<u64> = match node {
            Some(node) => {
                let mentions = self.index.get(node).into_iter().flatten().rev();
                let enough = mentions.scan(0, |seen, mention| {
                    let before = *seen;
                    *seen += mention.count;
                    (before < HISTORY_MAX).then_some(mention.number)
                });
                enough.collect()
            }
            None => {
                let chunks = self.chunks.iter().rev();
                let recent = chunks.filter(|chunk| chunk.last >= from);
                std::iter::once(self.tail.number)
                    .chain(recent.map(|chunk| chunk.number))
                    .collect()
            }
        };
        let chunks = numbers.into_iter().map(|number| self.place_of(number));
        Source {
            engine: self.engine.clone(),
            chunks: chunks.collect(),
        }
    }

    fn place_of(&self, number: u64) -> Place {
        let closed = self.unwritten.iter().find(|(closed, _)| *closed == number);
        match closed {
            _ if number == self.tail.number => Place::Memory(self.tail.text.clone()),
            Some((_, Some(text))) => Place::Memory(text.clone()),
            Some((_, None)) | None => Place::Disk(number),
        }
    }
}

fn pack(text: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress_prepend_size(text)
}

/// The text of a chunk; none of it when it is damaged. The size that a damaged one names is not believed.
fn unpack(packed: &[u8]) -> Vec<u8> {
    let size = packed.first_chunk().map(|size| u32::from_le_bytes(*size));
    if size.is_none_or(|size| size as usize > 4 * CHUNK_BYTES) {
        return Vec::new();
    }
    lz4_flex::block::decompress_size_prepended(packed).unwrap_or_default()
}

fn unpacked(engine: &Engine, number: u64) -> Vec<u8> {
    let packed = engine.get(&number.to_be_bytes()).ok().flatten();
    packed.map(|packed| unpack(&packed)).unwrap_or_default()
}

fn lines_of(text: &[u8]) -> impl Iterator<Item = Line> + '_ {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}

#[cfg(test)]
mod tests {
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
