//! The store: what was seen, durably. Touches the state directory only.
//!
//! ```text
//! lock                 held while a daemon runs
//! store.mark           fresh, or the highest generation ever acknowledged (mark.rs)
//! store/               the database (engine.rs), shapes in disk.rs
//! exports/             the newest few exports (export.rs)
//! lost-<number>/       databases that could not be opened, for whoever wants to look
//! ```
//!
//! Keys are text: `meta`, `node/<name>`, `lease/<address>`, `cluster/<name>`,
//! `member/<cluster>/<name>`. A commit is one atomic batch of all values
//! that changed and of `meta`, synced to the disk before [`Store::commit`] returns.
//!
//! Opening never gives up on damaged files. It deletes snapshots, then falls back to the newest export,
//! then starts empty. Where acknowledged facts may be missing, [`Memory::recovered`] says so from then on,
//! and machines that are merely listed wait for a person: an install that was forgotten must not be
//! repeated. It does give up on a schema it does not know and on a world that refuses (no space, no
//! permission), because there a person can mend things without losing any.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netboot::event::Change;
use netboot::net::NodeName;
use netboot::node::NodeRecord;
use netboot::site::{Lease, Memory, Site};

use self::disk::{Head, SCHEMA};
use self::engine::{Engine, EngineError, LOCK_PATIENCE, LOCK_PAUSE};
use self::mark::{Mark, Marked};

pub mod cluster;
pub mod disk;
pub(crate) mod engine;
pub mod export;
mod mark;

/// sled's cache; the working set is the few pages that change.
const CACHE_BYTES: u64 = 4 << 20;
/// The key of the head: schema, generation, and what is known to be missing.
const HEAD: &[u8] = b"meta";
/// Values that can't be read and are named one by one.
const UNREAD_TOLD: usize = 10;
/// What a database that was moved aside is called.
const LOST_PREFIX: &str = "lost-";
/// Databases moved aside that are kept.
const LOST_KEPT: usize = 3;
/// Between two attempts to open a database that refused a write.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Writes what changed.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// `None` after a write that failed: what the database holds then is unknown until it is opened again.
    engine: Option<Engine>,
    reopen_after: Option<Instant>,
    mark: Mark,
    _lock: File,
}

/// A store and what it remembers.
#[derive(Debug)]
pub struct Opened {
    /// For the controller.
    pub store: Store,
    /// For [`Site::restore`].
    pub memory: Memory,
    /// What had to be done, one sentence each; empty when nothing was amiss. To be logged and shown.
    pub story: Vec<String>,
}

/// Why the store stays closed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The world refused.
    #[error("{0}")]
    World(String),
    /// A later version wrote it.
    #[error(
        "the store has schema {0} and this version reads up to {SCHEMA}; install the version that wrote it, or move the state directory's `store`, `store.mark` and `exports` away to start anew"
    )]
    Newer(u32),
    /// Another daemon has it.
    #[error("another reveille holds {0}; stop it first, or give this one another --state")]
    Held(PathBuf),
    /// The export to import is of no use.
    #[error(transparent)]
    Export(#[from] export::ExportError),
}

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The database refused.
    #[error("the store refused generation {generation}: {why}")]
    Refused {
        /// Which.
        generation: u64,
        /// Why, with the remedy.
        why: String,
    },
    /// It refused a moment ago and is not asked again so soon.
    #[error("the store refused a moment ago; it is tried again within a second")]
    Pausing,
}

impl Store {
    /// Opens the store in the state directory `dir`, making it if there never was one.
    ///
    /// # Errors
    /// [`StoreError`] when only a person can help. Damaged files are no reason.
    pub fn open(dir: &Path) -> Result<Opened, StoreError> {
        let lock = lock(dir)?;
        let mut story = Vec::new();
        let marked =
            mark::look(dir).map_err(|error| refused("reading the mark in", dir, &error))?;
        let nothing_here = !database(dir).exists() && !export::any(&exports(dir));
        let fresh = match marked {
            Marked::Creating => true,
            Marked::Absent => nothing_here,
            Marked::At(_) => false,
        };
        let (engine, memory) = if fresh {
            (create(dir)?, Memory::default())
        } else {
            let floor = match marked {
                Marked::At(generation) => generation,
                Marked::Absent | Marked::Creating => 0,
            };
            recover(dir, floor, &mut story)?
        };
        let mark = Mark::set(dir, memory.generation)
            .map_err(|error| refused("writing the mark in", dir, &error))?;
        let store = Self {
            dir: dir.to_owned(),
            engine: Some(engine),
            reopen_after: None,
            mark,
            _lock: lock,
        };
        Ok(Opened {
            store,
            memory,
            story,
        })
    }

    /// Makes the `changes` that led to `site` durable. When this fails, the caller keeps the site from
    /// before; the next commit first makes the database agree with what it is given, whatever the failed
    /// one left behind.
    ///
    /// # Errors
    /// [`CommitError`]; nobody may rely on the changes.
    pub fn commit(&mut self, site: &Site, changes: &[Change]) -> Result<(), CommitError> {
        let generation = site.generation();
        if self
            .reopen_after
            .is_some_and(|moment| Instant::now() < moment)
        {
            return Err(CommitError::Pausing);
        }
        let written = match &self.engine {
            Some(engine) => write_changes(engine, site, changes),
            None => self.reopen(site),
        };
        match written {
            Ok(()) => {
                self.reopen_after = None;
                if let Err(error) = self.mark.raise(generation) {
                    // The commit itself stands; the mark only notices less.
                    tracing::warn!(generation, %error, "raising the store's mark failed");
                }
                Ok(())
            }
            Err(error) => {
                self.engine = None;
                self.reopen_after = Some(Instant::now() + REOPEN_PAUSE);
                let why = error.to_string();
                Err(CommitError::Refused { generation, why })
            }
        }
    }

    /// Opens the database again and makes it agree with `site`. The site in memory is the whole truth, so a
    /// database that turns out damaged is made anew from it.
    fn reopen(&mut self, site: &Site) -> Result<(), EngineError> {
        let path = database(&self.dir);
        let opened = Engine::open(&path, CACHE_BYTES).and_then(|(engine, _)| {
            write_site(&engine, site)?;
            Ok(engine)
        });
        let engine = match opened {
            Err(EngineError::Damaged { what, .. }) => {
                tracing::error!(what, "the store is damaged and is made anew from memory");
                rebuild(&self.dir, site)?
            }
            other => other?,
        };
        self.engine = Some(engine);
        Ok(())
    }
}

/// Replaces what the stopped daemon in `dir` remembers by an export. The database that was there is moved
/// aside. What happened after the export is unknown, so listed machines wait for a person.
///
/// # Errors
/// When the export is not whole, a daemon runs there, or the world refuses; what was there then stays.
pub fn import(dir: &Path, file: &Path) -> Result<Memory, StoreError> {
    let mut memory = export::read(file)?;
    let _lock = lock(dir)?;
    let marked = mark::look(dir).map_err(|error| refused("reading the mark in", dir, &error))?;
    if let Marked::At(generation) = marked {
        memory.generation = memory.generation.max(generation);
    }
    memory.recovered = Some(Arc::from(FROM_EXPORT));
    Mark::set(dir, memory.generation)
        .map_err(|error| refused("writing the mark in", dir, &error))?;
    rebuild(dir, &Site::restore(Arc::default(), memory.clone()))?;
    Ok(memory)
}

/// Where the exports of the state directory `dir` are.
#[must_use]
pub fn exports(dir: &Path) -> PathBuf {
    dir.join("exports")
}

// The console of a waiting machine shows one of these.
const FROM_EXPORT: &str =
    "the store was restored from an export and may have forgotten its install";
const LOST: &str = "the store was lost and may have forgotten its install";
const SHORT: &str = "the store lost its latest commits and may have forgotten its install";
const UNREAD: &str = "a record of the store can't be read, so an install may be forgotten";

/// What the files held.
enum Found {
    /// Everything that was acknowledged.
    Whole(Engine, Memory),
    /// Less than that; its memory says so.
    Short(Engine, Memory),
    /// Nothing.
    Lost,
}

/// Opens a store that has been used before; `floor` is the highest generation known to be acknowledged.
fn recover(
    dir: &Path,
    floor: u64,
    story: &mut Vec<String>,
) -> Result<(Engine, Memory), StoreError> {
    let short = match look(dir, floor, story)? {
        Found::Whole(engine, memory) => return Ok((engine, memory)),
        Found::Short(engine, memory) => Some((engine, memory)),
        Found::Lost => None,
    };
    let (export, faults) = export::newest(&exports(dir));
    story.extend(faults);
    story.push("listed machines wait for `reveille node approve`, for nobody knows which of them were installed since".to_owned());
    let mut memory = match (short, export) {
        (Some((engine, mut memory)), export)
            if export
                .as_ref()
                .is_none_or(|(_, export)| export.generation <= memory.generation) =>
        {
            memory.generation = memory.generation.max(floor);
            write_head(&engine, &memory)?;
            return Ok((engine, memory));
        }
        // The database is closed here, so that it can be moved aside.
        (_, Some((path, mut memory))) => {
            story.push(format!(
                "restored {} records of generation {} from {}; the last generation known to be acknowledged was {floor}",
                memory.records.len(),
                memory.generation,
                path.display()
            ));
            memory.recovered = Some(Arc::from(FROM_EXPORT));
            memory
        }
        (_, None) => {
            story.push(format!(
                "THE STORE STARTS EMPTY: there is no export to restore it from, and {floor} generations are forgotten"
            ));
            Memory {
                recovered: Some(Arc::from(LOST)),
                ..Memory::default()
            }
        }
    };
    memory.generation = memory.generation.max(floor);
    let engine = rebuild(dir, &Site::restore(Arc::default(), memory.clone()))?;
    Ok((engine, memory))
}

/// Opens and reads the database as it is.
fn look(dir: &Path, floor: u64, story: &mut Vec<String>) -> Result<Found, StoreError> {
    let path = database(dir);
    if !path.exists() {
        story.push(format!("the database {} is gone", path.display()));
        return Ok(Found::Lost);
    }
    let (engine, repaired) = match Engine::open(&path, CACHE_BYTES) {
        Ok(opened) => opened,
        Err(error @ EngineError::Damaged { .. }) => {
            story.push(error.to_string());
            return Ok(Found::Lost);
        }
        Err(error @ EngineError::World { .. }) => return Err(error.into()),
    };
    story.extend(repaired);
    let Some((mut memory, all_read)) = read_memory(&engine, story)? else {
        story.push(format!("the database {} holds nothing", path.display()));
        return Ok(Found::Lost);
    };
    if memory.generation < floor {
        story.push(format!(
            "the database ends at generation {} although {floor} was acknowledged",
            memory.generation
        ));
        memory.recovered = Some(Arc::from(SHORT));
    } else if !all_read {
        memory.recovered = Some(Arc::from(UNREAD));
    } else {
        return Ok(Found::Whole(engine, memory));
    }
    Ok(Found::Short(engine, memory))
}

/// What the database remembers, and whether every value in it could be read; `None` when it lacks even
/// its head, which is written last.
fn read_memory(
    engine: &Engine,
    story: &mut Vec<String>,
) -> Result<Option<(Memory, bool)>, StoreError> {
    let Some(head) = engine.get(HEAD)? else {
        return Ok(None);
    };
    let newer = disk::schema_of(&head).filter(|schema| *schema > SCHEMA);
    if let Some(schema) = newer {
        return Err(StoreError::Newer(schema));
    }
    let Ok(head) = disk::from_json::<Head>("head", &head) else {
        return Ok(None);
    };
    let mut memory = Memory::from(head);
    let mut unread = 0usize;
    engine.scan(b"", |key, value| {
        let understood = match split(key) {
            Some(("node", name)) => read_node(name, value).map(|node| memory.records.push(node)),
            Some(("lease", address)) => {
                read_lease(address, value).map(|lease| memory.leases.push(lease))
            }
            Some(("cluster", name)) => read_cluster(name, value, &mut memory),
            Some(("member", names)) => read_member(names, value, &mut memory),
            _ if key == HEAD => Some(()),
            _ => None,
        };
        if understood.is_none() {
            unread += 1;
            if unread <= UNREAD_TOLD {
                story.push(format!("{} can't be read", String::from_utf8_lossy(key)));
            }
        }
    })?;
    if unread > UNREAD_TOLD {
        story.push(format!("{unread} values can't be read in all"));
    }
    Ok(Some((memory, unread == 0)))
}

fn read_node(name: &str, value: &[u8]) -> Option<(NodeName, NodeRecord)> {
    Some((name.parse().ok()?, disk::record_from_json(value).ok()?))
}

fn read_lease(address: &str, value: &[u8]) -> Option<(Ipv4Addr, Lease)> {
    Some((address.parse().ok()?, disk::lease_from_json(value).ok()?))
}

fn read_cluster(name: &str, value: &[u8], memory: &mut Memory) -> Option<()> {
    let (name, head) = (name.parse().ok()?, cluster::cluster_from_json(value).ok()?);
    memory.take_cluster(name, head);
    Some(())
}

fn read_member(names: &str, value: &[u8], memory: &mut Memory) -> Option<()> {
    let (name, node) = names.split_once('/')?;
    let member = cluster::member_from_json(value).ok()?;
    memory.take_member(name.parse().ok()?, &node.parse().ok()?, member);
    Some(())
}

fn split(key: &[u8]) -> Option<(&str, &str)> {
    str::from_utf8(key).ok()?.split_once('/')
}

/// Makes the very first database. A kill on the way leaves the mark at `creating`, and then it is made
/// again from nothing: no commit can have been acknowledged.
fn create(dir: &Path) -> Result<Engine, StoreError> {
    let path = database(dir);
    let made = mark::creating(dir).and_then(|()| match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    made.map_err(|error| refused("making a new store in", dir, &error))?;
    Ok(make(dir, &Site::default())?)
}

/// Moves the database aside and makes a new one that holds `site`.
fn rebuild(dir: &Path, site: &Site) -> Result<Engine, EngineError> {
    let aside = |source| EngineError::World {
        act: "moving the database aside in",
        path: dir.to_owned(),
        source,
    };
    let path = database(dir);
    let mut lost = lost(dir);
    let number = lost
        .last()
        .map_or(1, |(number, _)| number.saturating_add(1));
    let to = dir.join(format!("{LOST_PREFIX}{number:06}"));
    match fs::rename(&path, &to) {
        Ok(()) => lost.push((number, to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(aside(error)),
    }
    for (_, old) in lost.iter().rev().skip(LOST_KEPT) {
        // One too many costs only space.
        let _ = fs::remove_dir_all(old);
    }
    make(dir, site)
}

/// Databases that were moved aside, the oldest first.
fn lost(dir: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut lost: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(LOST_PREFIX)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    lost.sort();
    lost
}

fn make(dir: &Path, site: &Site) -> Result<Engine, EngineError> {
    let path = database(dir);
    let (engine, _) = Engine::open(&path, CACHE_BYTES)?;
    write_site(&engine, site)?;
    // sled syncs its files, not the directories that name them.
    for made in [&path, dir] {
        sync_dir(made).map_err(|source| EngineError::World {
            act: "syncing",
            path: made.to_owned(),
            source,
        })?;
    }
    Ok(engine)
}

/// Makes the database hold exactly `site`, writing only what differs.
fn write_site(engine: &Engine, site: &Site) -> Result<(), EngineError> {
    let nodes = site.records().map(|(name, _)| Change::Record(name.clone()));
    let leases = site.leases().map(|(address, _)| Change::Lease(*address));
    let clusters = site.cluster_records().flat_map(|(name, record)| {
        let machines = record.machines().into_iter();
        let members = machines.map(|node| Change::Member(name.clone(), node.clone()));
        members.chain([Change::Cluster(name.clone())])
    });
    let mut wanted: BTreeMap<Vec<u8>, Option<Vec<u8>>> = nodes
        .chain(leases)
        .chain(clusters)
        .filter_map(|change| pair(site, &change))
        .collect();
    wanted.insert(HEAD.to_vec(), Some(disk::to_json(&Head::of(site))));
    engine.scan(b"", |key, value| match wanted.get(key) {
        Some(Some(right)) if right == value => {
            wanted.remove(key);
        }
        Some(_) => {}
        None => {
            wanted.insert(key.to_vec(), None);
        }
    })?;
    engine.write(wanted)?;
    engine.sync()
}

fn write_changes(engine: &Engine, site: &Site, changes: &[Change]) -> Result<(), EngineError> {
    let head = (HEAD.to_vec(), Some(disk::to_json(&Head::of(site))));
    let changed = changes.iter().filter_map(|change| pair(site, change));
    engine.write(changed.chain([head]))?;
    engine.sync()
}

/// Writes the generation and the doubt of `memory` and leaves everything else as it is, also what could
/// not be read.
fn write_head(engine: &Engine, memory: &Memory) -> Result<(), EngineError> {
    let bare = Memory {
        generation: memory.generation,
        recovered: memory.recovered.clone(),
        ..Memory::default()
    };
    write_changes(engine, &Site::restore(Arc::default(), bare), &[])
}

/// The key of what changed and its value in `site`; no value when it is gone, and no pair for what the
/// head says, which every commit writes.
fn pair(site: &Site, change: &Change) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    match change {
        Change::Record(name) => Some((
            format!("node/{name}").into_bytes(),
            Some(disk::record_to_json(site.record(name))),
        )),
        Change::Lease(address) => Some((
            format!("lease/{address}").into_bytes(),
            site.lease(*address).map(disk::lease_to_json),
        )),
        Change::Cluster(name) => Some((
            format!("cluster/{name}").into_bytes(),
            site.cluster_record(name).map(cluster::cluster_to_json),
        )),
        Change::Member(cluster, node) => {
            let record = site.cluster_record(cluster);
            Some((
                format!("member/{cluster}/{node}").into_bytes(),
                record.and_then(|record| cluster::member_to_json(record, node)),
            ))
        }
        Change::Recovery => None,
    }
}

/// Makes the state directory and takes its lock. Only its owner may look inside: tokens' digests and
/// people's names are nobody else's business.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let file = made
        .and_then(|()| File::create(dir.join("lock")))
        .map_err(|error| refused("opening", dir, &error))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Held(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(refused("locking", dir, &error)),
        }
    }
}

fn database(dir: &Path) -> PathBuf {
    dir.join("store")
}

fn refused(act: &str, dir: &Path, error: &io::Error) -> StoreError {
    StoreError::World(format!(
        "{act} {} failed ({error}); see that it is writable and has space left",
        dir.display()
    ))
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        Self::World(error.to_string())
    }
}

/// Makes names in `dir` durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
