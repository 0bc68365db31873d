//! Secrets at rest: the keys and tokens of clusters, each sealed in a file of its own.
//!
//! ```text
//! <state>/vault.key                      0600  the key, unless systemd hands one over
//! <state>/vault/            0700
//!               <cluster>.<kind>.age     0600  one secret, sealed (age, X25519)
//! ```
//!
//! The key is an age identity: the systemd credential `vault` where the unit loads one, else `vault.key`, made at the first
//! start. `age --decrypt --identity vault.key FILE` opens a file without the daemon. A key file may hold several identities,
//! one a line: the first seals, any opens, so a key is replaced by putting the new one above the old.
//!
//! A file is written beside, synced and renamed, so it is always the whole old secret or the whole new one. What this key
//! can't open is never written over: it is somebody's only copy.
//!
//! Ugly fact: age 0.12 is called a beta by its authors. Its format is the stable one (age-encryption.org/v1).

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use age::{DecryptError, Decryptor};
use ignition::secret::Secret;
use netboot::net::Name;
use sha2::{Digest as _, Sha256};

/// The credential's name, as in `LoadCredentialEncrypted=vault:…`.
const CREDENTIAL: &str = "vault";
/// The key's name in the state directory.
const KEY: &str = "vault.key";
/// What a sealed file's name ends with.
const SEALED: &str = "age";
/// What a file is called before it is whole.
const DRAFT: &str = "draft";
/// The kind of what kubectl opens a cluster with.
pub const KUBECONFIG: &str = "admin-kubeconfig";
/// The kind of what talosctl opens a cluster with.
pub const TALOSCONFIG: &str = "admin-talosconfig";
/// The largest secret. An installer's whole directory is a few MiB.
pub const SECRET_BYTES_MAX: usize = 32 << 20;
/// A key file holds a few lines.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// The sealed files of a state directory, and the key to them.
pub struct Vault {
    directory: PathBuf,
    identities: Vec<Identity>,
    /// Where the key came from, for people.
    key: PathBuf,
    damaged: Vec<VaultError>,
    /// One writer at a time: two of them would share a draft.
    writing: Mutex<()>,
}

/// Why the vault, or one file of it, stays closed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Sealed files, and nothing to open them with.
    #[error(
        "{key} is missing and {sealed} sealed files are in {directory}: restore the key from a backup or load the unit's \
         credential `{CREDENTIAL}`; without either their secrets are lost, and moving {directory} away starts with none"
    )]
    KeyMissing {
        /// Where it should be.
        key: String,
        /// How many files it seals.
        sealed: usize,
        /// Where they are.
        directory: String,
    },
    /// Others may have read the key.
    #[error(
        "{path} has mode {mode:03o}, so others on this host may read every secret: run `chmod 600 {path}`, and if they may \
         have read it already, renew the secrets of every cluster"
    )]
    KeyOpenToOthers {
        /// The key.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// Not a key.
    #[error(
        "{path}:{line}: not an age identity (AGE-SECRET-KEY-1…): restore the file from a backup; if no file is in the \
         directory vault beside it, removing it lets a new one be made"
    )]
    KeyMalformed {
        /// The key.
        path: String,
        /// Which line; 0 when there is none at all.
        line: usize,
    },
    /// Sealed to another key.
    #[error(
        "{key} doesn't open {files}: restore the key that sealed them, as a second line of it if it was replaced; if that key \
         is lost so are their secrets, and moving the files away lets new ones be made"
    )]
    OtherKey {
        /// The key there is.
        key: String,
        /// What it doesn't open.
        files: String,
    },
    /// Not what was once written.
    #[error(
        "{path} is damaged ({why}): restore it from a backup, or move it away to have its secrets made anew"
    )]
    Damaged {
        /// The file.
        path: String,
        /// How it shows.
        why: String,
    },
    /// Not a word that can be part of a file's name.
    #[error("{0:?} is no kind of secret: a kind is 1 to 32 lowercase letters, digits and hyphens")]
    Kind(String),
    /// Larger than anything that is kept here.
    #[error(
        "a secret of {0} bytes is more than the {SECRET_BYTES_MAX} that are kept: look at what it was read from"
    )]
    TooLarge(usize),
    /// The disk refused.
    #[error("{act} {path}: look at the state directory's owner and free space")]
    File {
        /// Doing what.
        act: &'static str,
        /// To what.
        path: String,
        /// The answer.
        source: io::Error,
    },
}

impl Vault {
    /// Opens the vault in the state directory `state`, making key and directory if there never was one. The key comes from
    /// `credentials` where that directory has one; see [`credentials_directory`]. Blocks on the disk.
    ///
    /// # Errors
    /// [`VaultError`] when the key is missing, malformed, open to others, or another one than that of the sealed files.
    /// Damaged files are no reason: [`Vault::damaged`] names them.
    pub fn open(state: &Path, credentials: Option<&Path>) -> Result<Self, VaultError> {
        let directory = state.join("vault");
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)))
            .map_err(disk("making", &directory))?;
        let sealed = tidy_up(&directory)?;
        let (key, identities) = the_key(state, credentials, &directory, sealed.len())?;
        let mut vault = Self {
            directory,
            identities,
            key,
            damaged: Vec::new(),
            writing: Mutex::default(),
        };
        vault.damaged = vault.look_over(&sealed)?;
        Ok(vault)
    }

    /// The files that could not be opened when the vault was, though the key is theirs.
    #[must_use]
    pub fn damaged(&self) -> &[VaultError] {
        &self.damaged
    }

    /// Where the key was found.
    #[must_use]
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// A key for one purpose of the daemon's own, the same for as long as the vault's key is.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = self.identities[0].to_string();
        let digest = Sha256::new()
            .chain_update(key.expose_secret())
            .chain_update(purpose);
        digest.finalize().into()
    }

    /// Seals a secret of a cluster in place of the one there was; whole and on disk when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// [`VaultError`]; then the old one stands. Also when there is an old one that this key can't open.
    pub fn put<Kind>(
        &self,
        cluster: &Name<Kind>,
        kind: &str,
        secret: &Secret<Vec<u8>>,
    ) -> Result<(), VaultError> {
        let path = self.path(cluster, kind)?;
        let bytes = secret.expose();
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(VaultError::TooLarge(bytes.len()));
        }
        let sealed = age::encrypt(&self.identities[0].to_public(), bytes)
            .map_err(|error| disk("sealing", &path)(io::Error::other(error)))?;
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.unseal(&path)?;
        let draft = draft_of(&path);
        write_new(&draft, &sealed)
            .and_then(|()| fs::rename(&draft, &path))
            .and_then(|()| sync(&self.directory))
            .map_err(disk("writing", &path))
    }

    /// A secret of a cluster, if there is one. Blocks on the disk.
    ///
    /// # Errors
    /// [`VaultError`] when there is one that can't be opened.
    pub fn get<Kind>(
        &self,
        cluster: &Name<Kind>,
        kind: &str,
    ) -> Result<Option<Secret<Vec<u8>>>, VaultError> {
        self.unseal(&self.path(cluster, kind)?)
    }

    /// Removes every secret of a cluster; gone from the directory when this returns. Backups and the disk's own spare blocks
    /// may still hold the sealed bytes. Blocks on the disk.
    ///
    /// # Errors
    /// [`VaultError`] when the disk refuses; then some may be left.
    pub fn forget<Kind>(&self, cluster: &Name<Kind>) -> Result<(), VaultError> {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for path in files(&self.directory)? {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            // A cluster's name is one label, so the first dot ends it.
            if name
                .split_once('.')
                .is_some_and(|(of, _)| of == cluster.as_str())
            {
                fs::remove_file(&path).map_err(disk("removing", &path))?;
            }
        }
        sync(&self.directory).map_err(disk("syncing", &self.directory))
    }

    fn path<Kind>(&self, cluster: &Name<Kind>, kind: &str) -> Result<PathBuf, VaultError> {
        let sound = (1..=32).contains(&kind.len())
            && kind
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !sound {
            return Err(VaultError::Kind(kind.to_owned()));
        }
        Ok(self.directory.join(format!("{cluster}.{kind}.{SEALED}")))
    }

    /// Which of the files are damaged.
    fn look_over(&self, sealed: &[PathBuf]) -> Result<Vec<VaultError>, VaultError> {
        let (mut damaged, mut foreign) = (Vec::new(), Vec::new());
        for path in sealed {
            match self.unseal(path) {
                Ok(_) => {}
                Err(VaultError::OtherKey { files, .. }) => foreign.push(files),
                Err(error @ VaultError::Damaged { .. }) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        if foreign.is_empty() {
            return Ok(damaged);
        }
        Err(self.other_key(foreign.join(", ")))
    }

    fn unseal(&self, path: &Path) -> Result<Option<Secret<Vec<u8>>>, VaultError> {
        let sealed = match fs::read(path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk("reading", path)(error)),
        };
        // As large as it may become, so that growing leaves no copies behind.
        let mut opened = Vec::with_capacity(sealed.len());
        let read = Decryptor::new_buffered(&sealed[..])
            .and_then(|file| file.decrypt(self.identities.iter().map(|key| key as _)))
            .and_then(|mut reader| Ok(reader.read_to_end(&mut opened)?));
        // Overwritten when it is dropped, also where it is only the beginning.
        let opened = Secret::new(opened);
        match read {
            Ok(_) => Ok(Some(opened)),
            Err(DecryptError::NoMatchingKeys) => Err(self.other_key(path.display().to_string())),
            Err(error) => Err(VaultError::Damaged {
                path: path.display().to_string(),
                why: error.to_string(),
            }),
        }
    }

    fn other_key(&self, files: String) -> VaultError {
        VaultError::OtherKey {
            key: self.key.display().to_string(),
            files,
        }
    }
}

/// Where systemd put the unit's credentials, if it loads any (systemd.exec(5), `LoadCredential=`).
#[must_use]
pub fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The key and where it was found; made where nothing was ever sealed.
fn the_key(
    state: &Path,
    credentials: Option<&Path>,
    directory: &Path,
    sealed: usize,
) -> Result<(PathBuf, Vec<Identity>), VaultError> {
    let (handed, own) = (
        credentials.map(|directory| directory.join(CREDENTIAL)),
        state.join(KEY),
    );
    if let Some(handed) = handed
        && let Some(identities) = read_key(&handed)?
    {
        if own.exists() {
            let (handed, own) = (handed.display(), own.display());
            tracing::warn!(
                "the vault's key is {handed}; {own} is not read: remove it, lest it go where copies of the directory go"
            );
        }
        return Ok((handed, identities));
    }
    let refused = disk("reading", &own);
    match fs::metadata(&own).map(|data| data.permissions().mode() & 0o777) {
        Ok(mode) if mode & 0o077 != 0 => {
            return Err(VaultError::KeyOpenToOthers {
                path: own.display().to_string(),
                mode,
            });
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    if let Some(identities) = read_key(&own)? {
        return Ok((own, identities));
    }
    if sealed > 0 {
        return Err(VaultError::KeyMissing {
            key: own.display().to_string(),
            sealed,
            directory: directory.display().to_string(),
        });
    }
    let identity = make_key(&own).map_err(disk("making", &own))?;
    Ok((own, vec![identity]))
}

/// The identities in a file, one a line as `age-keygen` writes them; `None` without the file.
fn read_key(path: &Path) -> Result<Option<Vec<Identity>>, VaultError> {
    let mut text = Vec::with_capacity(1024);
    let read = File::open(path).and_then(|file| file.take(KEY_BYTES_MAX).read_to_end(&mut text));
    let text = Secret::new(text);
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk("reading", path)(error)),
        Ok(_) => {}
    }
    let malformed = |line| VaultError::KeyMalformed {
        path: path.display().to_string(),
        line,
    };
    let text = str::from_utf8(text.expose()).map_err(|_| malformed(0))?;
    let lines = text.lines().map(str::trim).enumerate();
    let identities = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| line.parse().map_err(|_| malformed(index + 1)))
        .collect::<Result<Vec<Identity>, VaultError>>()?;
    if identities.is_empty() {
        return Err(malformed(0));
    }
    Ok(Some(identities))
}

/// Makes the key. Its name appears with the whole of it, and never in place of another.
fn make_key(path: &Path) -> io::Result<Identity> {
    let identity = Identity::generate();
    let (public, secret) = (identity.to_public(), identity.to_string());
    let secret = secret.expose_secret();
    let text = Secret::new(format!(
        "# Opens every secret in the directory vault beside it. Keep a copy elsewhere.\n# public key: {public}\n{secret}\n"
    ));
    let draft = draft_of(path);
    write_new(&draft, text.expose().as_bytes())?;
    fs::hard_link(&draft, path)?;
    fs::remove_file(&draft)?;
    sync(path.parent().unwrap_or(Path::new(".")))?;
    Ok(identity)
}

/// The sealed files, after what a kill left half written is gone.
fn tidy_up(directory: &Path) -> Result<Vec<PathBuf>, VaultError> {
    let mut sealed = Vec::new();
    for path in files(directory)? {
        match path.extension().and_then(OsStr::to_str) {
            Some(DRAFT) => fs::remove_file(&path).map_err(disk("removing", &path))?,
            Some(SEALED) => sealed.push(path),
            _ => {
                let path = path.display();
                tracing::warn!("{path} is nothing of the vault's and is left alone");
            }
        }
    }
    Ok(sealed)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, VaultError> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
    });
    let mut paths = entries.map_err(disk("reading", directory))?;
    paths.sort();
    Ok(paths)
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(DRAFT);
    PathBuf::from(name)
}

/// Writes a file that is on disk, and nobody else's to read, when this returns. One of that name was a kill's leftover.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn disk(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VaultError + use<> {
    let path = path.display().to_string();
    move |source| VaultError::File { act, path, source }
}

#[cfg(test)]
mod tests {
    use netboot::net::ProfileName;

    use super::*;

    /// Any name will do.
    fn cluster(name: &str) -> ProfileName {
        name.parse().unwrap()
    }

    fn secret(text: &str) -> Secret<Vec<u8>> {
        Secret::new(text.as_bytes().to_vec())
    }

    fn text(found: Option<Secret<Vec<u8>>>) -> Option<String> {
        found.map(|found| String::from_utf8(found.expose().clone()).unwrap())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn everything_below(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => everything_below(&path, found),
                false => found.push(path),
            }
        }
    }

    #[test]
    fn what_was_put_is_got_by_a_later_start_and_only_under_its_own_name() {
        let state = tempfile::tempdir().unwrap();
        let (lab, other) = (cluster("lab"), cluster("lab-2"));
        let vault = Vault::open(state.path(), None).unwrap();
        vault.put(&lab, "talos", &secret("old")).unwrap();
        vault.put(&lab, "talos", &secret("new")).unwrap();
        vault.put(&lab, "admin", &secret("")).unwrap();
        vault.put(&other, "talos", &secret("other")).unwrap();
        drop(vault);

        let vault = Vault::open(state.path(), None).unwrap();
        let got = |cluster, kind| text(vault.get(cluster, kind).unwrap());
        assert_eq!(got(&lab, "talos").as_deref(), Some("new"));
        assert_eq!(got(&lab, "admin").as_deref(), Some(""));
        assert_eq!(got(&lab, "k3s"), None);
        vault.forget(&lab).unwrap();
        assert_eq!(got(&lab, "talos"), None);
        assert_eq!(got(&lab, "admin"), None);
        assert_eq!(got(&other, "talos").as_deref(), Some("other"));
    }

    #[test]
    fn no_file_of_the_state_directory_holds_a_secret_in_clear_or_is_for_others() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("vault")).unwrap();
        fs::set_permissions(state.path().join("vault"), Permissions::from_mode(0o755)).unwrap();
        let vault = Vault::open(state.path(), None).unwrap();
        let words = "an-etcd-key-that-nobody-may-read".repeat(5000);
        vault
            .put(&cluster("lab"), "talos", &secret(&words))
            .unwrap();
        assert_eq!(mode(&state.path().join("vault")), 0o700);
        let mut found = Vec::new();
        everything_below(state.path(), &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
        for path in found {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            let bytes = fs::read(&path).unwrap();
            let part = b"nobody-may-read";
            assert!(!bytes.windows(part.len()).any(|window| window == part));
        }
    }

    #[test]
    fn a_missing_key_stops_the_start_while_there_are_sealed_files_and_makes_no_new_one() {
        let state = tempfile::tempdir().unwrap();
        let key = state.path().join("vault.key");
        let vault = Vault::open(state.path(), None).unwrap();
        let put = |vault: &Vault| vault.put(&cluster("lab"), "talos", &secret("x"));
        put(&vault).unwrap();
        let kept = fs::read(&key).unwrap();
        fs::remove_file(&key).unwrap();
        let error = Vault::open(state.path(), None).err().unwrap();
        assert!(matches!(error, VaultError::KeyMissing { sealed: 1, .. }));
        assert!(error.to_string().contains("restore the key"), "{error}");
        assert!(!key.exists());

        // Without sealed files there is nothing to lose.
        fs::rename(state.path().join("vault"), state.path().join("away")).unwrap();
        put(&Vault::open(state.path(), None).unwrap()).unwrap();
        assert_ne!(fs::read(&key).unwrap(), kept);
    }

    #[test]
    fn a_wrong_key_stops_the_start_and_names_what_it_does_not_open() {
        let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (lab, edge) = (cluster("lab"), cluster("edge"));
        let vault = Vault::open(state.path(), None).unwrap();
        vault.put(&lab, "talos", &secret("x")).unwrap();
        vault.put(&edge, "k3s", &secret("y")).unwrap();
        Vault::open(other.path(), None).unwrap();
        let (right, wrong) = (state.path().join(KEY), other.path().join(KEY));
        let (right_text, wrong_text) = (
            fs::read_to_string(&right).unwrap(),
            fs::read_to_string(wrong).unwrap(),
        );
        fs::write(&right, &wrong_text).unwrap();
        let error = Vault::open(state.path(), None).err().unwrap().to_string();
        for word in [
            "vault.key doesn't open",
            "edge.k3s.age",
            "lab.talos.age",
            "restore",
        ] {
            assert!(error.contains(word), "{error}");
        }

        // A new key above the old one seals, and both open.
        fs::write(&right, format!("{wrong_text}{right_text}")).unwrap();
        let vault = Vault::open(state.path(), None).unwrap();
        vault.put(&edge, "k3s", &secret("z")).unwrap();
        assert_eq!(
            text(vault.get(&lab, "talos").unwrap()).as_deref(),
            Some("x")
        );
        fs::write(&right, &wrong_text).unwrap();
        let error = Vault::open(state.path(), None).err().unwrap().to_string();
        assert!(
            error.contains("lab.talos.age") && !error.contains("edge"),
            "{error}"
        );
    }

    #[test]
    fn a_credential_goes_before_the_key_of_the_state_directory() {
        let (state, handed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_key(&handed.path().join("vault")).unwrap();
        let vault = Vault::open(state.path(), Some(handed.path())).unwrap();
        vault.put(&cluster("lab"), "talos", &secret("x")).unwrap();
        assert!(!state.path().join(KEY).exists());
        assert_eq!(vault.key(), handed.path().join("vault"));
        // Started without its credential it says what is missing instead of beginning anew.
        let error = Vault::open(state.path(), None).err().unwrap().to_string();
        assert!(error.contains("credential `vault`"), "{error}");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_with_its_remedy() {
        let state = tempfile::tempdir().unwrap();
        Vault::open(state.path(), None).unwrap();
        let key = state.path().join(KEY);
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        let error = Vault::open(state.path(), None).err().unwrap().to_string();
        assert!(
            error.contains("640") && error.contains("chmod 600"),
            "{error}"
        );
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        for (content, place) in [("", ":0:"), ("# one\nAGE-SECRET-KEY-1Q\n", ":2:")] {
            fs::write(&key, content).unwrap();
            let error = Vault::open(state.path(), None).err().unwrap().to_string();
            assert!(
                error.contains(place) && error.contains("restore"),
                "{error}"
            );
            assert!(!error.contains("KEY-1Q"), "{error}");
        }
    }

    #[test]
    fn a_damaged_file_is_named_kept_and_no_reason_to_lose_the_others() {
        let state = tempfile::tempdir().unwrap();
        let (lab, edge) = (cluster("lab"), cluster("edge"));
        let vault = Vault::open(state.path(), None).unwrap();
        vault
            .put(&lab, "talos", &secret(&"x".repeat(100_000)))
            .unwrap();
        vault.put(&edge, "k3s", &secret("y")).unwrap();
        let path = state.path().join("vault/lab.talos.age");
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for torn in [
            &whole[..whole.len() - 1],
            &whole[..70_000],
            &whole[..50],
            b"",
            &flipped,
        ] {
            fs::write(&path, torn).unwrap();
            let vault = Vault::open(state.path(), None).unwrap();
            let [damaged] = vault.damaged() else {
                panic!("{:?}", vault.damaged());
            };
            let said = damaged.to_string();
            assert!(
                said.contains("lab.talos.age is damaged") && said.contains("restore"),
                "{said}"
            );
            assert!(vault.get(&lab, "talos").is_err());
            assert!(vault.put(&lab, "talos", &secret("new")).is_err());
            assert_eq!(fs::read(&path).unwrap(), torn, "it was written over");
            assert_eq!(text(vault.get(&edge, "k3s").unwrap()).as_deref(), Some("y"));
        }
    }

    #[test]
    fn what_a_kill_left_half_written_is_gone_after_the_next_start() {
        let state = tempfile::tempdir().unwrap();
        let vault = Vault::open(state.path(), None).unwrap();
        vault.put(&cluster("lab"), "talos", &secret("x")).unwrap();
        let draft = state.path().join("vault/lab.talos.age.draft");
        fs::write(&draft, "half").unwrap();
        let vault = Vault::open(state.path(), None).unwrap();
        assert!(!draft.exists());
        assert_eq!(
            text(vault.get(&cluster("lab"), "talos").unwrap()).as_deref(),
            Some("x")
        );
    }

    #[test]
    fn a_kind_is_a_word_and_never_a_way_out_of_the_directory() {
        let state = tempfile::tempdir().unwrap();
        let vault = Vault::open(state.path(), None).unwrap();
        for kind in ["", "..", "a/b", "a.b", "Talos", &"k".repeat(33)] {
            let put = vault.put(&cluster("lab"), kind, &secret("x"));
            assert!(matches!(put, Err(VaultError::Kind(_))), "{kind}");
        }
        let large = Secret::new(vec![0; SECRET_BYTES_MAX + 1]);
        let put = vault.put(&cluster("lab"), "okd", &large);
        assert!(matches!(put, Err(VaultError::TooLarge(_))));
    }
}
