//! The bastion's own disk: room for the records, the artefacts as they were, certificates that last.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use images::Depot;
use netboot::net::{Digest, Timestamp};
use netboot::spec::{Artifact, Profile};
use nix::sys::statvfs::statvfs;

use super::{Check, Focus, Id, Scene, listed};
use crate::image;
use crate::tls::{SiteCa, Validity};

const MIB: u64 = 1 << 20;
const ROOM_WARN: u64 = 1024 * MIB;
const ROOM_FAIL: u64 = 200 * MIB;
/// Files that can still be made; a file system without a fixed number of them says 0 of 0.
const INODES_WARN: u64 = 1000;
const INODES_FAIL: u64 = 100;
const DAY: u64 = 86_400;
const LIFE_WARN: u64 = 30 * DAY;
const LIFE_FAIL: u64 = 7 * DAY;
/// How long artefacts are read; what is left is read the next time.
const READ_TIME: Duration = Duration::from_secs(9);

/// What is left on a file system.
#[derive(Clone, Copy, Debug)]
struct Room {
    bytes: u64,
    inodes: Option<u64>,
}

/// Looks at the state directory's file system.
pub(super) async fn disk(scene: Arc<Scene>) -> Vec<Check> {
    let looked =
        tokio::task::spawn_blocking(move || vec![judge_disk(&scene.state, room(&scene.state))]);
    looked
        .await
        .expect("asking for free space does not panic, and nobody aborts it")
}

fn room(state: &Path) -> io::Result<Room> {
    let found = statvfs(state)?;
    let inodes = (found.files() > 0).then(|| found.files_available());
    Ok(Room {
        bytes: found
            .blocks_available()
            .saturating_mul(found.fragment_size()),
        inodes,
    })
}

fn judge_disk(state: &Path, room: io::Result<Room>) -> Check {
    let (id, subject) = (Id::DiskSpace, state.display().to_string());
    let room = match room {
        Ok(room) => room,
        Err(error) => {
            let remedy = "make the state directory, or name it with --state";
            return Check::fail(id, subject, format!("can't be looked at: {error}"), remedy);
        }
    };
    let inodes = room.inodes.unwrap_or(u64::MAX);
    let mut evidence = format!("{} MiB free", room.bytes / MIB);
    if let Some(inodes) = room.inodes {
        evidence += &format!(", room for {inodes} more files");
    }
    let remedy = "`reveille image gc` removes artefacts that nothing needs; then make the file system larger. On a full \
                  disk no boot is recorded, and so none is served";
    if room.bytes < ROOM_FAIL || inodes < INODES_FAIL {
        Check::fail(id, subject, evidence, remedy)
    } else if room.bytes < ROOM_WARN || inodes < INODES_WARN {
        Check::warn(id, subject, evidence, remedy)
    } else {
        Check::pass(id, subject, evidence)
    }
}

/// Artefacts that were read and found whole, so that an unchanged file is not read again. Holds as many as the site has.
#[derive(Debug, Default)]
pub struct Verified(Mutex<BTreeMap<Digest, Stamp>>);

/// What a file can't change without: its number, size and times of writing and of any change.
type Stamp = (u64, u64, (i64, i64), (i64, i64));

/// What became of one artefact.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Whole,
    Missing,
    Damaged(Digest),
    Unreadable(String),
    /// There was no time left to read it.
    Unread,
}

/// Reads every artefact that the site's profiles name.
pub(super) async fn artefacts(scene: Arc<Scene>, verified: Arc<Verified>) -> Vec<Check> {
    let read = tokio::task::spawn_blocking(move || {
        let mut wanted = BTreeMap::<Digest, Artifact>::new();
        let cluster = scene.focus.as_ref().and_then(Focus::cluster);
        let groups = cluster.map(|(spec, _)| &spec.groups);
        let matters = |profile: &&Arc<Profile>| {
            groups.is_none_or(|all| all.iter().any(|group| group.profile == profile.name))
        };
        for profile in scene.spec.profiles().filter(matters) {
            for artifact in profile.files() {
                wanted.insert(artifact.digest, artifact.clone());
            }
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let depot = match image::depot(&scene.state) {
            Ok(depot) => depot,
            Err(error) => {
                let remedy = "look at the state directory's owner, mode and free space";
                return vec![Check::fail(
                    Id::Artefacts,
                    "depot",
                    error.to_string(),
                    remedy,
                )];
            }
        };
        vec![judge_artefacts(&read_all(&depot, wanted, &verified))]
    });
    read.await
        .expect("reading artefacts does not panic, and nobody aborts it")
}

fn read_all(
    depot: &Depot,
    wanted: BTreeMap<Digest, Artifact>,
    verified: &Verified,
) -> Vec<(Artifact, Found)> {
    let mut known = verified
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    known.retain(|digest, _| wanted.contains_key(digest));
    let deadline = Instant::now() + READ_TIME;
    let mut found = Vec::new();
    for (digest, artifact) in wanted {
        let stamp = match std::fs::metadata(depot.path(&digest)) {
            Ok(file) => (
                file.ino(),
                file.size(),
                (file.mtime(), file.mtime_nsec()),
                (file.ctime(), file.ctime_nsec()),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                found.push((artifact, Found::Missing));
                continue;
            }
            Err(error) => {
                found.push((artifact, Found::Unreadable(error.to_string())));
                continue;
            }
        };
        let state = if known.get(&digest) == Some(&stamp) {
            Found::Whole
        } else if Instant::now() > deadline {
            Found::Unread
        } else {
            match depot.content(&digest) {
                Ok(content) if content == digest => {
                    known.insert(digest, stamp);
                    Found::Whole
                }
                Ok(content) => Found::Damaged(content),
                Err(error) => Found::Unreadable(error.to_string()),
            }
        };
        found.push((artifact, state));
    }
    *verified.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
    found
}

fn judge_artefacts(found: &[(Artifact, Found)]) -> Check {
    let (id, subject) = (Id::Artefacts, "depot");
    let (mut bad, mut unread) = (Vec::new(), Vec::new());
    for (Artifact { file, digest, .. }, state) in found {
        match state {
            Found::Whole => {}
            Found::Missing => bad.push(format!("{file} ({digest}) is not there")),
            Found::Damaged(content) => {
                bad.push(format!(
                    "{file} has the content of {content}, not of {digest}"
                ));
            }
            Found::Unreadable(why) => bad.push(format!("{file} ({digest}) can't be read: {why}")),
            Found::Unread => unread.push(file.clone()),
        }
    }
    if !bad.is_empty() {
        let remedy = "import or pull it again: reveille image import FILE --name NAME; `reveille image list` has the names";
        return Check::fail(id, subject, listed(bad), remedy);
    }
    if !unread.is_empty() {
        let evidence = format!("not read in {} s: {}", READ_TIME.as_secs(), listed(unread));
        let remedy = "run it again, for what was read is remembered; `reveille image verify` reads everything";
        return Check::warn(id, subject, evidence, remedy);
    }
    Check::pass(id, subject, format!("there and whole: {}", found.len()))
}

/// Looks at the site's authority, whose end is the end of every certificate it signed.
pub(super) async fn certificates(scene: Arc<Scene>) -> Vec<Check> {
    let looked = tokio::task::spawn_blocking(move || {
        let (id, subject) = (Id::Certificates, "site CA");
        match SiteCa::existing(&scene.state).map(|ca| ca.map(|ca| ca.validity())) {
            Ok(Some(Ok(validity))) => vec![judge_certificate(validity, scene.at)],
            Ok(None) => vec![Check::pass(
                id,
                subject,
                "is made when the daemon first starts",
            )],
            Ok(Some(Err(error))) | Err(error) => {
                let remedy =
                    "restore site-ca.pem from a backup; machines that trust it need the same one";
                vec![Check::fail(id, subject, error.to_string(), remedy)]
            }
        }
    });
    looked
        .await
        .expect("reading a certificate does not panic, and nobody aborts it")
}

fn judge_certificate(validity: Validity, at: Timestamp) -> Check {
    let (id, subject) = (Id::Certificates, "site CA");
    let Validity { from, until } = validity;
    let now = i64::try_from(at.millis() / 1000).unwrap_or(i64::MAX);
    if now < from {
        let evidence = format!(
            "is valid only in {} days: the bastion's clock is wrong",
            (from - now) as u64 / DAY
        );
        return Check::fail(
            id,
            subject,
            evidence,
            "set the clock: timedatectl set-ntp true",
        );
    }
    let left = u64::try_from(until - now).unwrap_or(0);
    let remedy = "move site-ca.pem in the state directory away and restart the daemon, which makes a new one; machines \
                  that trust the old one must be installed again";
    let evidence = if until < now {
        "is no longer valid".to_owned()
    } else {
        format!("is valid for {} more days", left / DAY)
    };
    if left < LIFE_FAIL {
        Check::fail(id, subject, evidence, remedy)
    } else if left < LIFE_WARN {
        Check::warn(id, subject, evidence, remedy)
    } else {
        Check::pass(id, subject, evidence)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn little_room_warns_and_hardly_any_fails_be_it_bytes_or_files() {
        let result = |mib: u64, inodes: Option<u64>| {
            let bytes = mib * MIB;
            judge_disk(Path::new("/state"), Ok(Room { bytes, inodes })).result
        };
        assert_eq!(result(2000, None), Outcome::Pass);
        assert_eq!(result(2000, Some(5000)), Outcome::Pass);
        assert_eq!(result(1023, None), Outcome::Warn);
        assert_eq!(result(2000, Some(999)), Outcome::Warn);
        assert_eq!(result(199, None), Outcome::Fail);
        assert_eq!(result(2000, Some(99)), Outcome::Fail);
    }

    #[test]
    fn a_certificate_warns_a_month_before_its_end_and_fails_a_week_before() {
        let days = |days: i64| days * 86_400;
        let result = |from: i64, until: i64| {
            let at = Timestamp::from_millis(1_000_000_000_000);
            let now = 1_000_000_000;
            let validity = Validity {
                from: now + days(from),
                until: now + days(until),
            };
            judge_certificate(validity, at).result
        };
        assert_eq!(result(-1, 31), Outcome::Pass);
        assert_eq!(result(-1, 29), Outcome::Warn);
        assert_eq!(result(-1, 6), Outcome::Fail);
        assert_eq!(result(-30, -1), Outcome::Fail);
        assert_eq!(
            result(1, 365),
            Outcome::Fail,
            "the clock is before its beginning"
        );
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let depot = image::depot(directory.path()).expect("a depot");
        let name = "a/kernel".parse().expect("a name");
        let kept = depot
            .import_from(&name, &b"kernel"[..], None)
            .expect("imported");
        let artifact = Artifact {
            file: "kernel".into(),
            digest: kept.digest,
            size: 6,
        };
        let wanted = || BTreeMap::from([(kept.digest, artifact.clone())]);
        let verified = Verified::default();
        let state = || read_all(&depot, wanted(), &verified)[0].1.clone();
        assert_eq!(state(), Found::Whole);
        assert_eq!(verified.0.lock().expect("unpoisoned").len(), 1);
        assert_eq!(state(), Found::Whole);
        let path = depot.path(&kept.digest);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("writable");
        std::fs::write(&path, "kerneL").expect("written");
        assert!(matches!(state(), Found::Damaged(_)));
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(state(), Found::Missing);
    }
}
