//! OKD's Ignition brought in: from a directory that somebody's `openshift-install` filled, or made here by running one.
//!
//! ```text
//!   definition ─▶ install-config.yaml ─▶ create manifests ─▶ mastersSchedulable ─▶ create ignition-configs ─▶ InstallerSet
//!                 └───────────── one empty directory of our own, removed whatever happens ─────────────┘
//! ```
//!
//! What comes out goes into the vault and nowhere else.
//!
//! Ugly fact: the installer hides state beside its files and uses it again, so a second run in one directory gives
//! certificates of the first. Hence a new directory each time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use ignition::platform::SettingFault;
use ignition::platform::okd::{
    Definition, InstallerSet, SetFault, install_config, judge, schedule_masters, set,
    with_pull_secret,
};
use ignition::secret::Secret;
use netboot::cluster::{ClusterSpec, Role};
use netboot::site::Site;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;

/// One run of the installer at the most; it works for seconds.
const RUN_MAX: Duration = Duration::from_secs(600);
/// What is shown of a failed run's words.
const TAIL: usize = 2000;
/// Where the installer says whether control planes take ordinary load.
const SCHEDULER: &str = "manifests/cluster-scheduler-02-config.yml";

/// Why there is no set.
#[derive(Debug, thiserror::Error)]
pub enum OkdError {
    #[error("{act} {}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the set in {} can't be used: {}", directory.display(), listed(faults))]
    Set {
        directory: PathBuf,
        faults: Vec<SetFault>,
    },
    #[error(
        "others than its owner can read {}: chmod 600 it, it is the key to somebody's images",
        path.display()
    )]
    Open { path: PathBuf },
    #[error("{} create {act} {how}: {words}", installer.display())]
    Run {
        installer: PathBuf,
        act: &'static str,
        how: String,
        words: String,
    },
    #[error(
        "{SCHEDULER}, as the installer wrote it, {problem}: it is of a release that this program doesn't know"
    )]
    Scheduler { problem: &'static str },
}

fn listed(faults: &[SetFault]) -> String {
    let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
    words.join("; ")
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OkdError {
    let path = path.to_owned();
    move |source| OkdError::Io { act, path, source }
}

/// Reads the set that `openshift-install` left in a directory.
///
/// # Errors
/// [`OkdError`]; everything that is wrong with the set at once.
pub fn import(directory: &Path) -> Result<InstallerSet, OkdError> {
    let mut failed = None;
    let read = InstallerSet::read(|file| {
        let path = directory.join(file.path());
        match read_bounded(&path, set::FILE_MAX) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                failed.get_or_insert_with(|| io_error("reading", &path)(error));
                None
            }
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    read.map_err(|faults| OkdError::Set {
        directory: directory.to_owned(),
        faults,
    })
}

/// One byte more than `most` at the most, so that too long is seen as such.
fn read_bounded(path: &Path, most: usize) -> io::Result<Secret<String>> {
    let mut text = String::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(Secret::new(text))
}

/// What a definition that is in force says to the installer. No secret is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// `install-config.yaml` but for its pull secret.
    pub install_config: Value,
    /// A file of the bastion that holds one.
    pub pull_secret_file: Option<PathBuf>,
    /// Whether control planes take ordinary load: where there are workers, they don't.
    pub masters_schedulable: bool,
}

impl Wanted {
    /// What a definition with its `platformConfig` comes to; `site` is the directory that relative files stand below.
    ///
    /// # Errors
    /// What is wrong with `platformConfig`, or a pod network without room.
    pub fn of(
        definition: &Definition<'_>,
        settings: &Value,
        site: &Path,
    ) -> Result<Self, Vec<SettingFault>> {
        let settings = judge(settings)?;
        let made = install_config(definition, &settings).map_err(|fault| vec![fault])?;
        Ok(Self {
            install_config: made,
            pull_secret_file: settings.pull_secret_file.map(|file| site.join(file)),
            masters_schedulable: definition.workers == 0,
        })
    }

    /// The same for a cluster of the site.
    ///
    /// # Errors
    /// As [`Wanted::of`].
    pub(crate) fn of_cluster(
        site: &Site,
        spec: &ClusterSpec,
        directory: &Path,
    ) -> Result<Self, Vec<SettingFault>> {
        let count = |wanted: Role| -> usize {
            let groups = spec.groups.iter().filter(|group| group.role == wanted);
            groups.map(|group| usize::from(group.count)).sum()
        };
        let network = site.spec().network(&spec.network);
        let network = network.expect("a cluster's network was judged to be there");
        let definition = Definition {
            cluster: spec.name.as_str(),
            domain: &spec.domain,
            machines: network.subnet,
            pods: &spec.pods,
            services: &spec.services,
            control_planes: count(Role::ControlPlane),
            workers: count(Role::Worker) + count(Role::Infra),
        };
        Self::of(&definition, &spec.settings, directory)
    }
}

/// Has `installer` make a set, below `scratch`, where nothing of it stays. Dropping it ends the installer.
///
/// # Errors
/// [`OkdError`]
pub async fn generate(
    installer: &Path,
    wanted: &Wanted,
    scratch: &Path,
) -> Result<InstallerSet, OkdError> {
    let secret = match &wanted.pull_secret_file {
        Some(file) => Some(pull_secret(file)?),
        None => None,
    };
    let config = with_pull_secret(wanted.install_config.clone(), secret.as_ref());
    let directory = Scratch::new(scratch)?;
    let path = directory.0.join("install-config.yaml");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(config.expose().as_bytes()))
        .map_err(io_error("writing", &path))?;
    run(installer, "manifests", &directory.0).await?;
    schedule(&directory.0, wanted.masters_schedulable)?;
    run(installer, "ignition-configs", &directory.0).await?;
    import(&directory.0)
}

fn pull_secret(path: &Path) -> Result<Secret<String>, OkdError> {
    let reading = || io_error("reading the pull secret", path);
    if fs::metadata(path).map_err(reading())?.mode() & 0o077 != 0 {
        return Err(OkdError::Open {
            path: path.to_owned(),
        });
    }
    read_bounded(path, set::FILE_MAX).map_err(reading())
}

/// A directory that is gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(below: &Path) -> Result<Self, OkdError> {
        let name = u64::from_le_bytes(crate::tls::random());
        let path = below.join(format!("openshift-install-{name:016x}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(io_error("making", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            let path = self.0.display();
            tracing::error!(%path, %error, "the installer's directory holds secrets and can't be removed; remove it");
        }
    }
}

async fn run(installer: &Path, act: &'static str, directory: &Path) -> Result<(), OkdError> {
    let log = directory.join(format!("{act}.log"));
    let file = || File::options().create(true).append(true).open(&log);
    let [out, err] = [file(), file()].map(|file| file.map_err(io_error("writing", &log)));
    let mut command = Command::new(installer);
    command
        .args(["create", act, "--dir"])
        .arg(directory)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(out?)
        .stderr(err?)
        .kill_on_drop(true);
    let failed = |how: String| OkdError::Run {
        installer: installer.to_owned(),
        act,
        how,
        words: tail(&log),
    };
    let mut child = command.spawn().map_err(io_error("running", installer))?;
    let ended = tokio::time::timeout(RUN_MAX, child.wait()).await;
    let status: ExitStatus = ended
        .map_err(|_| failed(format!("did not end within {} s", RUN_MAX.as_secs())))?
        .map_err(io_error("waiting for", installer))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(format!("ended with {status}")))
    }
}

/// The last words of a log.
fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(TAIL);
    String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
}

/// Says whether control planes take ordinary load.
fn schedule(directory: &Path, masters: bool) -> Result<(), OkdError> {
    let path = directory.join(SCHEDULER);
    let text = fs::read_to_string(&path).map_err(io_error("reading", &path))?;
    let text =
        schedule_masters(&text, masters).map_err(|problem| OkdError::Scheduler { problem })?;
    fs::write(&path, text).map_err(io_error("writing", &path))
}
