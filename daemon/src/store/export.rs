//! Exports: the records as JSON lines, made from a snapshot, without the database's help.
//!
//! `exports/state-<generation>.jsonl` beside the store holds a head, one line for each record and lease,
//! and an end with the SHA-256 of all lines before it. A file is written under another name, synced, and
//! renamed, so one that bears the name is whole; the digest finds what rotted since. The newest few stay.
//! They are what a damaged store is made from again, and what a person can read.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use netboot::cluster::{ClusterRecord, MemberRecord};
use netboot::net::Digest;
use netboot::node::NodeRecord;
use netboot::site::{Lease, Memory, Site};
use sha2::{Digest as _, Sha256};

use super::cluster::{ClusterShape, MemberShape};
use super::disk::{self, End, Head, LeaseShape, Line, RecordShape, SCHEMA, Unreadable};
use super::engine::VALUE_BYTES_MAX;
use super::sync_dir;

/// Exports kept beside the store.
const KEPT: usize = 4;
/// Lines an export may have: every machine, as many leases, and room to spare.
const LINES_MAX: usize = 400_000;

/// Why an export was not written or is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file could not be written or read.
    #[error("{act} export {path}: {source}")]
    File {
        /// What was tried.
        act: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not one of an export.
    #[error("line {line} of export {path}: {source}; use an older export")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: Unreadable,
    },
    /// The file is not whole.
    #[error("export {path} is not whole ({what}); use an older export")]
    NotWhole {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// A later version wrote it.
    #[error(
        "export {path} has schema {schema} and this version reads up to {SCHEMA}; use the version that wrote it"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// What its head says.
        schema: u32,
    },
}

/// Writes `site` as an export into `dir`, drops the oldest ones, and returns the file's name.
///
/// # Errors
/// When the file can't be written; the exports that were there stay.
pub fn write(dir: &Path, site: &Site) -> Result<PathBuf, ExportError> {
    let path = dir.join(format!("state-{:020}.jsonl", site.generation()));
    let draft = dir.join("draft");
    let written = fs::create_dir_all(dir)
        .and_then(|()| write_lines(&draft, site))
        .and_then(|()| fs::rename(&draft, &path))
        .and_then(|()| sync_dir(dir));
    if let Err(source) = written {
        // Whatever stands of the draft would only fill the disk.
        let _ = fs::remove_file(&draft);
        return Err(ExportError::File {
            act: "writing",
            path,
            source,
        });
    }
    for old in listed(dir).into_iter().skip(KEPT) {
        // One too many is tried again at the next export.
        let _ = fs::remove_file(old);
    }
    Ok(path)
}

fn write_lines(path: &Path, site: &Site) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut hasher = Sha256::new();
    let mut put = |line: &Line| {
        let mut bytes = disk::to_json(line);
        bytes.push(b'\n');
        hasher.update(&bytes);
        file.write_all(&bytes)
    };
    put(&Line::Head(Head::of(site)))?;
    for (name, record) in site.records() {
        let shape = RecordShape::from(NodeRecord::clone(record));
        put(&Line::Node(name.clone(), Box::new(shape)))?;
    }
    for (address, lease) in site.leases() {
        put(&Line::Lease(*address, LeaseShape::from(lease.clone())))?;
    }
    for (name, record) in site.cluster_records() {
        let shape = ClusterShape::from(record.head());
        put(&Line::Cluster(name.clone(), Box::new(shape)))?;
        for node in record.machines() {
            let shape = MemberShape::from(record.of_machine(node));
            put(&Line::Member(name.clone(), node.clone(), Box::new(shape)))?;
        }
    }
    let sha256 = Digest::from_bytes(hasher.finalize().into());
    let mut end = disk::to_json(&Line::End(End { sha256 }));
    end.push(b'\n');
    file.write_all(&end)?;
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()
}

/// Reads a whole export.
///
/// # Errors
/// When anything at all is wrong with it: half an export could pass an installed machine off as new.
pub fn read(path: &Path) -> Result<Memory, ExportError> {
    let failed = |source| ExportError::File {
        act: "reading",
        path: path.to_owned(),
        source,
    };
    let not_whole = |what| ExportError::NotWhole {
        path: path.to_owned(),
        what,
    };
    let mut lines = BufReader::new(File::open(path).map_err(failed)?);
    let mut hasher = Sha256::new();
    let mut memory: Option<Memory> = None;
    let mut bytes = Vec::new();
    for number in 1..=LINES_MAX {
        bytes.clear();
        let limit = u64::try_from(VALUE_BYTES_MAX + 1024).unwrap_or(u64::MAX);
        let length = lines.by_ref().take(limit).read_until(b'\n', &mut bytes);
        if length.map_err(failed)? == 0 {
            break;
        }
        let line = disk::from_json("line", &bytes).map_err(|source| ExportError::Line {
            path: path.to_owned(),
            line: number,
            source,
        })?;
        match (line, &mut memory) {
            (Line::Head(head), None) if head.schema > SCHEMA => {
                return Err(ExportError::Newer {
                    path: path.to_owned(),
                    schema: head.schema,
                });
            }
            (Line::Head(head), None) => memory = Some(head.into()),
            (Line::Node(name, shape), Some(memory)) => {
                memory.records.push((name, NodeRecord::from(*shape)));
            }
            (Line::Lease(address, shape), Some(memory)) => {
                memory.leases.push((address, Lease::from(shape)));
            }
            (Line::Cluster(name, shape), Some(memory)) => {
                memory.take_cluster(name, ClusterRecord::from(*shape));
            }
            (Line::Member(name, node, shape), Some(memory)) => {
                memory.take_member(name, &node, MemberRecord::from(*shape));
            }
            (Line::End(end), Some(_)) if *end.sha256.bytes() == *hasher.finalize_reset() => {
                return memory.ok_or_else(|| not_whole("it has no head"));
            }
            (Line::End(_), Some(_)) => return Err(not_whole("its digest differs")),
            (Line::Head(_), Some(_)) => return Err(not_whole("it has two heads")),
            (
                Line::Node(..)
                | Line::Lease(..)
                | Line::Cluster(..)
                | Line::Member(..)
                | Line::End(_),
                None,
            ) => {
                return Err(not_whole("it has no head"));
            }
        }
        hasher.update(&bytes);
    }
    Err(not_whole("it has no end"))
}

/// The newest export in `dir` that is whole, and a sentence for each newer one that isn't.
pub(super) fn newest(dir: &Path) -> (Option<(PathBuf, Memory)>, Vec<String>) {
    let mut faults = Vec::new();
    for path in listed(dir) {
        match read(&path) {
            Ok(memory) => return (Some((path, memory)), faults),
            Err(error) => faults.push(error.to_string()),
        }
    }
    (None, faults)
}

/// True when there is any export in `dir`, whole or not.
pub(super) fn any(dir: &Path) -> bool {
    !listed(dir).is_empty()
}

/// The exports in `dir`, the newest generation first.
fn listed(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("state-") && name.ends_with(".jsonl"))
        })
        .collect();
    paths.sort();
    paths.reverse();
    paths
}
