//! Whatever stands in a store's files, reading it neither panics nor grows beyond its bounds, and what is
//! accepted is accepted for good: written again and read again, it is the same. A bounded count of
//! mutations, the same ones in each run.

use std::fs;

use daemon::store::disk::{lease_from_json, lease_to_json, record_from_json, record_to_json};
use daemon::store::{Store, export};

const ROUNDS: u32 = 60_000;
const RECORDS: [&str; 3] = [
    r#"{"admission":"listed","cordoned":false,"state":"registered","generation":0,"failed_attempts":0,"attempts_ever":0}"#,
    r#"{"admission":"approved","cordoned":true,"state":"failed","generation":2,"installed":{"generation":1,"attempt":4,"at":5},"permit":{"disk":"S1","given":6,"expires":7,"by":"root"},"consented_disk":"S0","failed_attempts":3,"attempts_ever":9}"#,
    r#"{"admission":"rejected","cordoned":false,"state":"installing","generation":1,"failed_attempts":1,"attempt":{"number":9,"token":"0707070707070707070707070707070707070707070707070707070707070707","mac":"52:54:00:aa:00:01","profile":"worker","started":8,"released":9,"report":{"failed":"no \"disk\"\n"}},"attempts_ever":9}"#,
];
const LEASE: &str = r#"{"mac":"52:54:00:aa:00:01","expires":99,"declined":true}"#;
const WORDS: [&str; 12] = [
    "null",
    "-1",
    "1e999",
    "18446744073709551616",
    "\"",
    "{",
    "}",
    "[[[[",
    "\\u0000",
    "\"failed\"",
    "true",
    ":",
];

#[test]
fn no_record_and_no_lease_however_bent_makes_reading_panic() {
    let mut random = Random(11);
    let (mut read, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let seed = RECORDS[random.below(RECORDS.len())];
        match record_from_json(&bent(seed, &mut random)) {
            Ok(record) => {
                let again = record_from_json(&record_to_json(&record)).unwrap();
                assert_eq!(again, record, "round {round}");
                read += 1;
            }
            Err(error) => {
                assert!(error.to_string().len() < 1000, "round {round}");
                refused += 1;
            }
        }
        if let Ok(lease) = lease_from_json(&bent(LEASE, &mut random)) {
            assert_eq!(lease_from_json(&lease_to_json(&lease)).unwrap(), lease);
        }
    }
    assert!(
        read > 1000 && refused > 1000,
        "{read} read, {refused} refused"
    );
}

#[test]
fn an_export_that_was_changed_by_a_single_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export");
    let site = netboot::site::Site::restore(
        std::sync::Arc::default(),
        netboot::site::Memory {
            generation: 3,
            records: RECORDS
                .iter()
                .enumerate()
                .map(|(number, text)| {
                    let name = format!("node-{number}").parse().unwrap();
                    (name, record_from_json(text.as_bytes()).unwrap())
                })
                .collect(),
            leases: vec![(
                "10.107.0.9".parse().unwrap(),
                lease_from_json(LEASE.as_bytes()).unwrap(),
            )],
            ..Default::default()
        },
    );
    let written = export::write(dir.path(), &site).unwrap();
    assert_eq!(export::read(&written).unwrap().records.len(), 3);
    let whole = fs::read(&written).unwrap();
    let (body, _) = whole.split_at(whole.len() - 1);
    let end = body.iter().rposition(|byte| *byte == b'\n').unwrap();
    let mut random = Random(5);
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        let at = random.below(bytes.len() - 1);
        bytes[at] ^= 1 << random.below(8);
        fs::write(&file, &bytes).unwrap();
        // The digest's own letters may change their case without changing their meaning.
        let same_digest = at > end && bytes.eq_ignore_ascii_case(&whole);
        assert!(same_digest || export::read(&file).is_err(), "byte {at}");
    }
}

#[test]
fn no_file_beside_the_database_keeps_the_store_closed() {
    let mut random = Random(9);
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let mut files: Vec<_> = fs::read_dir(dir.path().join("store"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        files.push(dir.path().join("store.mark"));
        files.sort();
        let file = &files[random.below(files.len())];
        let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        fs::write(file, bent(&text, &mut random)).unwrap();
        let opened = Store::open(dir.path());
        assert!(
            opened.is_ok(),
            "round {round}, {}: {:?}",
            file.display(),
            opened.err()
        );
    }
}

/// One to four changes: bytes flipped, cut out, doubled, or replaced by a word that parsers trip over.
fn bent(text: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len().max(1));
        let end = bytes.len().min(at + 1 + random.below(12));
        match random.below(5) {
            _ if bytes.is_empty() => bytes.push(b'x'),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => bytes.truncate(at),
            _ => drop(bytes.splice(at..end, WORDS[random.below(WORDS.len())].bytes())),
        }
    }
    bytes
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }
}
