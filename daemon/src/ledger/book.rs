//! The chunks of the ledger: which there are, which speak of whom, and the newest one itself.
//!
//! A chunk is some 64 KiB of JSON lines, packed by LZ4 under a big-endian number, whoever they speak of: a
//! storm costs a few writes a second and not one for each machine, and sled, which takes about twice as
//! much memory as it holds, holds little. An index in memory knows which chunks speak
//! of which node. When the chunks outgrow their bound the oldest is dropped, but lines that are still
//! among the latest of their node move to the newest chunk: a machine that booted once, long ago, keeps its
//! story while a noisy one overwrites its own. Machines that are not listed share one bounded part.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use netboot::attempt::Entry;
use netboot::net::{NodeName, Timestamp};
use serde::Deserialize;

use super::HISTORY_MAX;
use crate::store::engine::{Engine, EngineError};

/// A chunk is closed when it has grown to this.
const CHUNK_BYTES: usize = 64 * 1024;
/// Entries a node may note in one minute: one attempt. Beyond it they are dropped and counted.
pub(super) const NODE_MINUTE_MAX: u32 = 256;
/// The same for all machines together that are not listed, and for the bastion's own.
pub(super) const OTHERS_MINUTE_MAX: u32 = 1024;
/// Latest entries of a node that survive the chunk they were in.
pub(super) const CARRIED_MAX: usize = 64;
/// Credit for moving lines on that may gather.
const CARRY_MAX: usize = 8 * CHUNK_BYTES;

/// A chunk's number as sled sorts it.
pub(super) type Key = [u8; 8];
/// A chunk's text by its number; none when it is dropped.
pub(super) type Pair = (Key, Option<Vec<u8>>);

/// What is known of the chunks, and the newest one itself.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// `None` until the writer has opened it, and after a failure: then only the tail is kept.
    pub(super) engine: Option<Arc<Engine>>,
    chunks: VecDeque<Chunk>,
    pub(super) bytes: usize,
    bytes_max: usize,
    index: BTreeMap<NodeName, VecDeque<Mention>>,
    pub(super) tail: Tail,
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
pub(super) struct Tail {
    number: u64,
    pub(super) text: Vec<u8>,
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
pub(super) struct Line {
    pub(super) at: Timestamp,
    #[serde(default)]
    pub(super) node: Option<NodeName>,
}

/// Where a reader finds its lines once it has let go of the book: the newest first.
pub(super) struct Source {
    engine: Option<Arc<Engine>>,
    chunks: Vec<Place>,
}

enum Place {
    Memory(Vec<u8>),
    Disk(u64),
}

impl Source {
    /// The latest `count` entries whose line `wanted` takes, the oldest first.
    pub(super) fn read(self, count: usize, wanted: impl Fn(&Line) -> bool) -> Vec<Entry> {
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
    pub(super) fn read(engine: Engine, bytes_max: usize) -> Result<Self, EngineError> {
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
    pub(super) fn add(&mut self, entry: &Entry) -> bool {
        if !self.minute.admits(entry) {
            return false;
        }
        let mut line = serde_json::to_vec(entry).expect("an entry has text keys only");
        line.push(b'\n');
        self.append(&line, entry.at, entry.node.clone());
        true
    }

    /// Appends one line to the tail and closes that when it is full.
    pub(super) fn append(&mut self, line: &[u8], at: Timestamp, node: Option<NodeName>) {
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
    pub(super) fn lose_disk(&mut self) {
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
    pub(super) fn unwritten(&mut self) -> (Option<Arc<Engine>>, Vec<Pair>) {
        let closed = self.unwritten.iter();
        let mut pairs: Vec<_> = closed
            .map(|(number, text)| (number.to_be_bytes(), text.as_deref().map(pack)))
            .collect();
        if std::mem::take(&mut self.tail.changed) {
            pairs.push((self.tail.number.to_be_bytes(), Some(pack(&self.tail.text))));
        }
        (self.engine.clone(), pairs)
    }

    pub(super) fn forget_written(&mut self, written: &[(Key, bool)]) {
        self.unwritten
            .retain(|(number, text)| !written.contains(&(number.to_be_bytes(), text.is_some())));
    }

    /// Where the lines of `node`, or of everybody, since `from` are.
    pub(super) fn source(&self, node: Option<&NodeName>, from: Timestamp) -> Source {
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
