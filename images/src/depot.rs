//! Files on disk by digest.
//!
//! ```text
//! depot/sha256/<64 hex>      immutable, mode 0444: never opened for writing again
//! depot/names/<name>.json    one small record a name; '/' in a name is ':' here
//! depot/incoming/…           files on their way in, renamed into place when whole
//! depot/lock                 shared while something comes in, exclusive while gc sweeps
//! ```
//!
//! Safe for processes side by side: whatever has a final name is whole, because it got that name
//! by a rename after an fsync. A crash leaves at most something in `incoming`, which `gc` removes.
//! Blocking: callers on an async runtime use a blocking task.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use netboot::net::Digest;

use crate::artifact::{Artifact, ArtifactKind, ArtifactName};

/// A directory of artefacts. Cheap to clone; every clone and every process sees the same files.
#[derive(Clone, Debug)]
pub struct Depot {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    #[error("{act} {path}: look at the directory's owner, mode and free space")]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the file for {name} has digest {found}, not {wanted}: it is damaged or another release; fetch it again"
    )]
    Digest {
        name: ArtifactName,
        wanted: Digest,
        found: Digest,
    },
    #[error(
        "the depot has no artefact named {0}: import or pull it first, `image list` shows what is there"
    )]
    Unknown(ArtifactName),
}

/// Something wrong with one stored thing, found by `verify`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The record in `names/` can't be read as one.
    Record { file: String },
    /// The name stands for a file that isn't there.
    Missing { artifact: Artifact },
    /// The bytes aren't those the digest names.
    Damaged { digest: Digest, found: Digest },
    /// The size differs from the record.
    Size { artifact: Artifact, found: u64 },
}

/// What `gc` removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub files: u64,
    pub bytes: u64,
}

impl Depot {
    /// Opens the depot, making its directories where they aren't there yet.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DepotError> {
        let depot = Self { root: root.into() };
        for directory in [
            depot.root.clone(),
            depot.root.join("sha256"),
            depot.root.join("names"),
            depot.incoming(),
        ] {
            fs::create_dir_all(&directory)
                .map_err(at("making the depot's directory", &directory))?;
        }
        Ok(depot)
    }

    /// Opens the file that a digest names, for reading. `None` when the depot hasn't got it.
    pub fn file(&self, digest: &Digest) -> io::Result<Option<File>> {
        match File::open(self.path(digest)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the file that a digest names lies, whether or not it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("sha256").join(digest.to_string())
    }

    /// The artefact that a name stands for now.
    pub fn lookup(&self, name: &ArtifactName) -> Result<Option<Artifact>, DepotError> {
        let path = self.record(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Artifact::from_json(&text).filter(|artifact| artifact.name == *name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("reading the record", &path)(error)),
        }
    }

    /// Brings in a file under a name; `wanted` refuses any other content.
    pub fn import(
        &self,
        name: &ArtifactName,
        source: &Path,
        wanted: Option<Digest>,
    ) -> Result<Artifact, DepotError> {
        let file = File::open(source).map_err(at("opening the file to import", source))?;
        self.import_from(name, file, wanted)
    }

    /// Brings in all that a reader yields under a name; `wanted` refuses any other content.
    pub fn import_from(
        &self,
        name: &ArtifactName,
        source: impl Read,
        wanted: Option<Digest>,
    ) -> Result<Artifact, DepotError> {
        let lock = self.lock()?;
        lock.lock_shared()
            .map_err(at("locking the depot", &self.root))?;
        let beside = Beside::new(&self.incoming());
        let (found, size) = copy_beside(source, &beside.0)?;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            return Err(DepotError::Digest {
                name: name.clone(),
                wanted,
                found,
            });
        }
        self.settle(&beside.0, found)?;
        self.point(name, found, size)
    }

    /// Gives a name to a file that the depot already has. The last writer of a name wins.
    pub fn name(
        &self,
        name: &ArtifactName,
        digest: Digest,
    ) -> Result<Option<Artifact>, DepotError> {
        let lock = self.lock()?;
        lock.lock_shared()
            .map_err(at("locking the depot", &self.root))?;
        let path = self.path(&digest);
        match fs::metadata(&path) {
            Ok(metadata) => self.point(name, digest, metadata.len()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("looking at", &path)(error)),
        }
    }

    /// Takes a name away. Its file stays until `gc`.
    pub fn forget(&self, name: &ArtifactName) -> Result<(), DepotError> {
        let path = self.record(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(&self.root.join("names")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DepotError::Unknown(name.clone()))
            }
            Err(error) => Err(at("removing the record", &path)(error)),
        }
    }

    /// Every readable name, in order.
    pub fn list(&self) -> Result<Vec<Artifact>, DepotError> {
        Ok(self
            .records()?
            .into_iter()
            .filter_map(|(_, artifact)| artifact)
            .collect())
    }

    /// Reads and hashes every file, and compares every record. Nothing is changed.
    pub fn verify(&self) -> Result<Vec<Fault>, DepotError> {
        let mut faults = Vec::new();
        for (file, artifact) in self.records()? {
            let Some(artifact) = artifact else {
                faults.push(Fault::Record { file });
                continue;
            };
            match fs::metadata(self.path(&artifact.digest)) {
                Ok(metadata) if metadata.len() == artifact.size => {}
                Ok(metadata) => faults.push(Fault::Size {
                    artifact,
                    found: metadata.len(),
                }),
                Err(_) => faults.push(Fault::Missing { artifact }),
            }
        }
        for digest in self.digests()? {
            let found = self.content(&digest)?;
            if found != digest {
                faults.push(Fault::Damaged { digest, found });
            }
        }
        Ok(faults)
    }

    /// Reads the file that a digest names: the digest of what is really in it.
    pub fn content(&self, digest: &Digest) -> Result<Digest, DepotError> {
        let path = self.path(digest);
        let mut file = File::open(&path).map_err(at("opening", &path))?;
        let (found, _) = hash(&mut file, &mut io::sink()).map_err(at("reading", &path))?;
        Ok(found)
    }

    /// Removes files that neither a name nor `keep` needs, and whatever a crash left half done.
    pub fn gc(&self, keep: &BTreeSet<Digest>) -> Result<Swept, DepotError> {
        let lock = self.lock()?;
        lock.lock().map_err(at("locking the depot", &self.root))?;
        let mut wanted = keep.clone();
        wanted.extend(self.list()?.into_iter().map(|artifact| artifact.digest));
        let mut swept = Swept::default();
        for digest in self
            .digests()?
            .into_iter()
            .filter(|digest| !wanted.contains(digest))
        {
            swept.remove(&self.path(&digest))?;
        }
        for entry in entries(&self.incoming())? {
            let path = self.incoming().join(entry);
            // A download under way holds its part file locked for as long as it runs.
            let busy = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
            if !busy {
                swept.remove(&path)?;
            }
        }
        Ok(swept)
    }

    /// A download's part file, locked for this process alone; what an earlier try left is kept.
    pub(crate) fn part(&self, digest: &Digest) -> Result<(File, PathBuf), DepotError> {
        let lock = self.lock()?;
        lock.lock_shared()
            .map_err(at("locking the depot", &self.root))?;
        let path = self.incoming().join(format!("{digest}.part"));
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(at("opening the part file", &path))?;
        file.try_lock().map_err(|error| {
            at(
                "locking the part file (is another pull of it running?)",
                &path,
            )(io::Error::from(error))
        })?;
        Ok((file, path))
    }

    /// Turns a whole part file into an artefact.
    pub(crate) fn adopt(
        &self,
        name: &ArtifactName,
        part: &Path,
        digest: Digest,
    ) -> Result<Artifact, DepotError> {
        let lock = self.lock()?;
        lock.lock_shared()
            .map_err(at("locking the depot", &self.root))?;
        let size = fs::metadata(part).map_err(at("looking at", part))?.len();
        self.settle(part, digest)?;
        self.point(name, digest, size)
    }

    fn settle(&self, whole: &Path, digest: Digest) -> Result<(), DepotError> {
        let path = self.path(&digest);
        fs::set_permissions(whole, fs::Permissions::from_mode(0o444))
            .map_err(at("write-protecting", whole))?;
        File::open(whole)
            .and_then(|file| file.sync_all())
            .map_err(at("flushing", whole))?;
        fs::rename(whole, &path).map_err(at("moving into place", &path))?;
        sync_directory(&self.root.join("sha256"))
    }

    fn point(
        &self,
        name: &ArtifactName,
        digest: Digest,
        size: u64,
    ) -> Result<Artifact, DepotError> {
        let artifact = Artifact {
            name: name.clone(),
            digest,
            size,
            kind: ArtifactKind::of(name),
        };
        let beside = Beside::new(&self.incoming());
        copy_beside(artifact.to_json().as_bytes(), &beside.0)?;
        let path = self.record(name);
        fs::rename(&beside.0, &path).map_err(at("moving into place", &path))?;
        sync_directory(&self.root.join("names"))?;
        Ok(artifact)
    }

    fn records(&self) -> Result<Vec<(String, Option<Artifact>)>, DepotError> {
        let names = self.root.join("names");
        let mut records = Vec::new();
        for file in entries(&names)? {
            let path = names.join(&file);
            let artifact = match fs::read_to_string(&path) {
                Ok(text) => Artifact::from_json(&text).filter(|a| self.record(&a.name) == path),
                // Removed by another process between the listing and the reading.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => None,
            };
            records.push((file, artifact));
        }
        Ok(records)
    }

    fn digests(&self) -> Result<Vec<Digest>, DepotError> {
        let names = entries(&self.root.join("sha256"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn record(&self, name: &ArtifactName) -> PathBuf {
        self.root
            .join("names")
            .join(format!("{}.json", name.as_str().replace('/', ":")))
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn lock(&self) -> Result<File, DepotError> {
        let path = self.root.join("lock");
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(at("opening the lock file", &path))
    }
}

impl Swept {
    fn remove(&mut self, path: &Path) -> Result<(), DepotError> {
        let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
        fs::remove_file(path).map_err(at("removing", path))?;
        self.files += 1;
        self.bytes += size;
        Ok(())
    }
}

/// Reads all of `source` into `sink`, hashing on the way.
pub(crate) fn hash(source: &mut impl Read, sink: &mut impl Write) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        sink.write_all(&buffer[..read])?;
        size += read as u64;
    }
    Ok((Digest::from_bytes(hasher.finalize().into()), size))
}

/// A file on its way in; gone with this value unless it was renamed into place.
struct Beside(PathBuf);

impl Beside {
    fn new(directory: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(directory.join(format!("{}-{number}.new", std::process::id())))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Renamed away in the good case; in a bad one the error that led here is the one to tell.
        let _ = fs::remove_file(&self.0);
    }
}

fn copy_beside(mut source: impl Read, beside: &Path) -> Result<(Digest, u64), DepotError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(beside)
        .map_err(at("creating", beside))?;
    let copied = hash(&mut source, &mut file).map_err(at("copying into", beside))?;
    file.sync_all().map_err(at("flushing", beside))?;
    Ok(copied)
}

fn entries(directory: &Path) -> Result<Vec<String>, DepotError> {
    let listed = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut names: Vec<String> = listed
        .map_err(at("listing", directory))?
        .into_iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn sync_directory(path: &Path) -> Result<(), DepotError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at("flushing", path))
}

fn at(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DepotError {
    move |source| DepotError::Io {
        act,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn name(text: &str) -> ArtifactName {
        text.parse().expect("a good name")
    }

    fn depot() -> (tempfile::TempDir, Depot) {
        let directory = tempfile::tempdir().expect("a directory");
        let depot = Depot::open(directory.path().join("depot")).expect("a depot");
        (directory, depot)
    }

    #[test]
    fn what_was_imported_is_found_by_name_and_by_digest_after_a_restart() {
        let (directory, depot) = depot();
        let artifact = depot
            .import_from(&name("a/vmlinuz"), &b"hello"[..], None)
            .expect("imported");
        assert_eq!(
            (artifact.digest.to_string().as_str(), artifact.size),
            (HELLO, 5)
        );
        let again = Depot::open(directory.path().join("depot")).expect("a depot");
        assert_eq!(
            again.lookup(&name("a/vmlinuz")).expect("read"),
            Some(artifact.clone())
        );
        assert_eq!(
            again.list().expect("listed"),
            std::slice::from_ref(&artifact)
        );
        let mut text = String::new();
        let mut file = again
            .file(&artifact.digest)
            .expect("opened")
            .expect("there");
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");
    }

    #[test]
    fn other_content_than_the_wanted_digest_is_refused_and_leaves_nothing() {
        let (_directory, depot) = depot();
        let wanted = Some(HELLO.parse().expect("a digest"));
        let refused = depot.import_from(&name("a"), &b"hellO"[..], wanted);
        assert!(
            matches!(refused, Err(DepotError::Digest { .. })),
            "{refused:?}"
        );
        assert_eq!(depot.list().expect("listed"), []);
        assert_eq!(depot.digests().expect("listed"), []);
        assert_eq!(entries(&depot.incoming()).expect("listed"), [""; 0]);
    }

    #[test]
    fn verify_tells_damage_a_lost_file_and_a_broken_record_apart() {
        let (_directory, depot) = depot();
        let bad = depot
            .import_from(&name("bad"), &b"hello"[..], None)
            .expect("imported");
        let lost = depot
            .import_from(&name("lost"), &b"gone"[..], None)
            .expect("imported");
        depot
            .import_from(&name("good"), &b"fine"[..], None)
            .expect("imported");
        assert_eq!(depot.verify().expect("verified"), []);
        fs::remove_file(depot.path(&bad.digest)).expect("removed");
        fs::write(depot.path(&bad.digest), b"jello").expect("written");
        fs::remove_file(depot.path(&lost.digest)).expect("removed");
        fs::write(depot.root.join("names/odd.json"), b"{}").expect("written");
        let faults = depot.verify().expect("verified");
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults.contains(&Fault::Missing { artifact: lost }));
        assert!(faults.contains(&Fault::Record {
            file: "odd.json".into()
        }));
        assert!(
            faults
                .iter()
                .any(|f| matches!(f, Fault::Damaged { digest, .. } if *digest == bad.digest))
        );
    }

    #[test]
    fn gc_keeps_what_a_name_or_the_caller_needs_and_sweeps_the_rest() {
        let (_directory, depot) = depot();
        let named = depot
            .import_from(&name("named"), &b"one"[..], None)
            .expect("imported");
        let kept = depot
            .import_from(&name("moved"), &b"two"[..], None)
            .expect("imported");
        let stale = depot
            .import_from(&name("moved"), &b"three"[..], None)
            .expect("imported");
        depot.forget(&name("moved")).expect("forgotten");
        fs::write(depot.incoming().join("1-1.new"), b"half").expect("written");
        let swept = depot.gc(&BTreeSet::from([kept.digest])).expect("swept");
        assert_eq!(swept, Swept { files: 2, bytes: 9 });
        assert!(depot.file(&named.digest).expect("opened").is_some());
        assert!(depot.file(&kept.digest).expect("opened").is_some());
        assert!(depot.file(&stale.digest).expect("opened").is_none());
    }

    #[test]
    fn a_running_download_survives_gc() {
        let (_directory, depot) = depot();
        let digest: Digest = HELLO.parse().expect("a digest");
        let (part, path) = depot.part(&digest).expect("a part");
        assert!(
            depot.part(&digest).is_err(),
            "two pulls of one file at once"
        );
        assert_eq!(depot.gc(&BTreeSet::new()).expect("swept"), Swept::default());
        drop(part);
        assert_eq!(depot.gc(&BTreeSet::new()).expect("swept").files, 1);
        assert!(!path.exists());
    }

    #[test]
    fn importing_the_same_file_from_many_threads_ends_with_one_whole_file() {
        let (_directory, depot) = depot();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    depot
                        .import_from(&name("a"), &b"hello"[..], None)
                        .expect("imported")
                });
            }
        });
        assert_eq!(depot.list().expect("listed").len(), 1);
        assert_eq!(depot.verify().expect("verified"), []);
        assert_eq!(entries(&depot.incoming()).expect("listed"), [""; 0]);
    }
}
