//! `reveille cluster kubeconfig` and `talosconfig`: what opens a cluster, for whoever administers it; and `import`, the way
//! in for secrets that others made.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ignition::platform::Secrets;
use ignition::platform::okd::InstallerSet;
use ignition::secret::Secret;
use netboot::cluster::ClusterName;

use crate::cli::{HandOutOptions, Socket};
use crate::client::{Ask, ask, runtime};
use crate::failure::{Exit, Failure, print};
use crate::http::handout::{HandedOut, Imported};
use crate::okd;
use crate::vault::SECRET_BYTES_MAX;

/// `reveille cluster kubeconfig` and `talosconfig`; `what` is one of these words.
///
/// # Errors
/// [`Failure`]
pub fn run(options: &HandOutOptions, what: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/clusters/{}/{what}", options.name);
    let asked = || ask(&options.socket, &Ask::post(&path, b""));
    let Some(output) = &options.output else {
        let HandedOut { file } = asked()?;
        return print(&file);
    };
    let act = || format!("writing {}", output.display());
    // What can't be kept is not asked for: each time it leaves is a line of the ledger.
    let mut new = OpenOptions::new();
    let made = new.write(true).create_new(true).mode(0o600).open(output);
    let mut made = made.map_err(|error| {
        Failure::of(Exit::Failed, act(), &error)
            .with_remedy("name a file that is not there yet, in a directory that is yours")
    })?;
    let written = asked().and_then(|HandedOut { file }| {
        let written = made.write_all(file.as_bytes());
        written.map_err(|error| Failure::of(Exit::Failed, act(), &error))
    });
    if written.is_err() {
        // Half a file is worth nothing, and the failure says more than this one's would.
        let _ = std::fs::remove_file(output);
    }
    written
}

/// Where imported secrets come from.
pub enum Given {
    /// A directory is an OKD installer's, a file is Talos' secrets bundle.
    Path(PathBuf),
    /// OKD's installer itself, which is run here, as whoever asks.
    Installer(PathBuf),
}

/// `reveille cluster import`
///
/// # Errors
/// [`Failure`]
pub fn import(name: &ClusterName, given: &Given, socket: &Socket) -> Result<(), Failure> {
    let sealed = match given {
        Given::Installer(installer) => Secrets::Okd(made(name, installer, socket)?).seal(),
        Given::Path(path) if path.is_dir() => {
            let set = okd::import(path).map_err(|error| {
                Failure::of(Exit::Configuration, "reading the installer's set", &error)
            })?;
            Secrets::Okd(set).seal()
        }
        Given::Path(path) => read(path).map_err(|error| {
            let act = format!("reading {}", path.display());
            Failure::of(Exit::Failed, act, &error)
                .with_remedy("name openshift-install's directory, or Talos' secrets.yaml")
        })?,
    };
    let path = format!("/api/v1/clusters/{name}/secrets");
    let Imported { words } = ask(socket, &Ask::post(&path, sealed.expose()))?;
    print(&format!("{words}\n"))
}

/// What the installer makes of the definition that is in force. An interrupt ends it, and its directory is gone all the same.
fn made(name: &ClusterName, installer: &Path, socket: &Socket) -> Result<InstallerSet, Failure> {
    let definition: okd::Wanted = ask(
        socket,
        &Ask::get(&format!("/api/v1/clusters/{name}/installer")),
    )?;
    eprintln!(
        "{} makes the Ignition of {name}; this takes seconds",
        installer.display()
    );
    let scratch = std::env::temp_dir();
    runtime()?.block_on(async {
        tokio::select! {
            made = okd::generate(installer, &definition, &scratch) => made.map_err(|error| {
                Failure::of(Exit::Failed, "having the set made", &error)
            }),
            _ = tokio::signal::ctrl_c() => Err(Failure::new(
                Exit::Failed,
                "interrupted; nothing was imported".to_owned(),
            )),
        }
    })
}

fn read(path: &Path) -> io::Result<Secret<Vec<u8>>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX);
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    let bytes = Secret::new(bytes);
    if bytes.expose().len() > SECRET_BYTES_MAX {
        return Err(io::Error::other("it is larger than any set of secrets"));
    }
    Ok(bytes)
}
