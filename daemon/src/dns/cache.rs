//! Replies of other servers that are still good, by question.
//!
//! Two generations bound it: when the young one is full it becomes the old one, and the old one is forgotten. What is
//! asked again moves back, so names in use stay and a flood of random ones washes through.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use netboot::zone::packet::{Kept, Question};

/// Memory of one generation, in bytes; a reply is some 200.
const GENERATION_MAX: usize = 4 << 20;
/// What the tables take for each entry besides.
const ENTRY: usize = 96;

/// What a reply depends on: name, type, and whether DNSSEC's records and checks were asked for.
pub(super) type Key = Vec<u8>;

/// Writes a question's key into a buffer.
pub(super) fn key(question: &Question<'_>, key: &mut Key) {
    key.clear();
    key.extend_from_slice(question.name());
    key.extend_from_slice(&question.kind.to_be_bytes());
    key.push(u8::from(question.wants_dnssec()) | u8::from(question.checks_itself()) << 1);
}

/// A reply and when it came.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) reply: Arc<Kept>,
    since: Instant,
}

impl Entry {
    pub(super) fn new(reply: Arc<Kept>, since: Instant) -> Self {
        Self { reply, since }
    }

    /// Its age in seconds while it is good.
    pub(super) fn age(&self, now: Instant) -> Option<u32> {
        let age = now.saturating_duration_since(self.since).as_secs();
        u32::try_from(age)
            .ok()
            .filter(|age| *age < self.reply.seconds)
    }
}

/// The replies kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
    young_size: usize,
}

impl Cache {
    /// A good reply and its age.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<(Arc<Kept>, u32)> {
        if let Some(entry) = self.young.get(key) {
            return entry.age(now).map(|age| (Arc::clone(&entry.reply), age));
        }
        let entry = self.old.remove(key)?;
        let age = entry.age(now)?;
        let reply = Arc::clone(&entry.reply);
        self.put(key.clone(), entry);
        Some((reply, age))
    }

    /// Keeps a reply.
    pub(super) fn put(&mut self, key: Key, entry: Entry) {
        if entry.reply.seconds == 0 {
            return;
        }
        let size = entry.reply.size() + key.len() + ENTRY;
        if self.young_size + size > GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_size = 0;
        }
        self.young_size += size;
        if let Some(before) = self.young.insert(key, entry) {
            // The key was counted twice, which only turns the generation a little early.
            self.young_size = self.young_size.saturating_sub(before.reply.size());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netboot::zone::packet::Code;

    use super::*;

    fn entry(seconds: u32, since: Instant) -> Entry {
        Entry::new(Arc::new(Kept::bare(Code::NxDomain, seconds)), since)
    }

    #[test]
    fn a_reply_is_good_for_its_time_and_no_longer() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.put(b"a".to_vec(), entry(10, start));
        cache.put(b"zero".to_vec(), entry(0, start));
        let age = |cache: &mut Cache, key: &[u8], seconds| {
            let at = start + Duration::from_secs(seconds);
            cache.get(&key.to_vec(), at).map(|(_, age)| age)
        };
        assert_eq!(age(&mut cache, b"a", 9), Some(9));
        assert_eq!(age(&mut cache, b"a", 10), None);
        assert_eq!(age(&mut cache, b"zero", 0), None);
    }

    #[test]
    fn a_flood_of_names_takes_bounded_room_and_spares_those_in_use() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let used = b"used".to_vec();
        cache.put(used.clone(), entry(60, now));
        for number in 0..200_000u32 {
            cache.put(number.to_be_bytes().to_vec(), entry(60, now));
            if number % 1000 == 0 {
                assert!(cache.get(&used, now).is_some(), "{number}");
            }
        }
        assert!(cache.young.len() + cache.old.len() < 2 * GENERATION_MAX / ENTRY);
        assert!(cache.get(&0u32.to_be_bytes().to_vec(), now).is_none());
    }
}
