//! `reveille image …`: the depot of artefacts, worked on directly, whether or not a daemon runs.
//!
//! The daemon only ever reads the depot, and whatever has a name there is whole, so nothing has to be
//! asked of it but one thing: which files the site in force still serves, before `gc` removes any.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use images::{Artifact, Depot, DepotError, Fault, Pull, Roots, STREAM_MAX};
use indicatif::{ProgressBar, ProgressStyle};
use netboot::net::Digest;
use serde::Serialize;

use crate::cli::{DepotOf, ImageCommand, Socket};
use crate::client::{Ask, ask, runtime};
use crate::failure::{Exit, Failure, print};
use crate::show::{json, table, table_text};

/// One name, as `list` shows it.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    kind: &'a str,
    size: u64,
    sha256: Digest,
}

/// One fault, as `verify` shows it.
#[derive(Serialize)]
struct Wrong {
    subject: String,
    problem: String,
    remedy: &'static str,
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`]
pub fn run(command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Import {
            file,
            name,
            sha256,
            state,
        } => {
            let imported = open(&state)?.import(&name, &file, sha256);
            let artifact = imported.map_err(|error| failed("importing the file", &error))?;
            print(&kept(&artifact))
        }
        ImageCommand::Pull {
            name,
            url,
            sha256,
            stream,
            arch,
            ca,
            state,
        } => {
            let one = name.zip(url).zip(sha256);
            let one = one.map(|((name, url), digest)| Pull { name, url, digest });
            let files = match stream {
                Some(stream) => of_stream(&stream, &arch)?,
                None => one.into_iter().collect(),
            };
            let depot = open(&state)?;
            files
                .iter()
                .try_for_each(|file| pull(&depot, file, ca.as_deref()))
        }
        ImageCommand::List { json: true, state } => {
            let artifacts = list(&state)?;
            print(&json(&artifacts.iter().map(listed).collect::<Vec<_>>()))
        }
        ImageCommand::List { json: false, state } => {
            let artifacts = list(&state)?;
            let mut rows = table(&["name", "kind", "size", "sha256"]);
            for artifact in artifacts.iter().map(listed) {
                rows.add_row([
                    artifact.name.to_owned(),
                    artifact.kind.to_owned(),
                    artifact.size.to_string(),
                    artifact.sha256.to_string(),
                ]);
            }
            print(&table_text(&rows))
        }
        ImageCommand::Verify { json, state } => verify(&open(&state)?, json),
        ImageCommand::Forget { name, state } => open(&state)?
            .forget(&name)
            .map_err(|error| failed("taking the name away", &error)),
        ImageCommand::Gc { state, socket } => gc(&open(&state)?, &socket),
    }
}

/// The depot below a state directory.
///
/// # Errors
/// The depot's own.
pub fn depot(state: &Path) -> Result<Depot, DepotError> {
    Depot::open(state.join("depot"))
}

fn open(state: &DepotOf) -> Result<Depot, Failure> {
    depot(&state.state).map_err(|error| failed("opening the depot", &error))
}

fn list(state: &DepotOf) -> Result<Vec<Artifact>, Failure> {
    open(state)?
        .list()
        .map_err(|error| failed("listing the depot", &error))
}

fn listed(artifact: &Artifact) -> Listed<'_> {
    Listed {
        name: artifact.name.as_str(),
        kind: artifact.kind.as_str(),
        size: artifact.size,
        sha256: artifact.digest,
    }
}

fn kept(artifact: &Artifact) -> String {
    format!(
        "{}  {}  {} bytes\n",
        artifact.digest, artifact.name, artifact.size
    )
}

fn of_stream(file: &Path, architecture: &str) -> Result<Vec<Pull>, Failure> {
    let act = || format!("reading the stream metadata {}", file.display());
    let mut text = String::new();
    let limit = u64::try_from(STREAM_MAX).unwrap_or(u64::MAX);
    File::open(file)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .map_err(|error| Failure::of(Exit::Failed, act(), &error))?;
    let files = images::boot_files(&text, architecture);
    files
        .map(Vec::from)
        .map_err(|error| Failure::of(Exit::Failed, act(), &error))
}

fn pull(depot: &Depot, wanted: &Pull, ca: Option<&Path>) -> Result<(), Failure> {
    let roots = match ca {
        Some(file) => Roots::of_file(file),
        None => Roots::of_system(),
    };
    let act = || format!("pulling {}", wanted.name);
    let roots = roots.map_err(|error| Failure::of(Exit::Failed, act(), &error))?;
    // Drawn on standard error, and only on a terminal.
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes} {eta}")
            .expect("the template is sound"),
    );
    let pulled = runtime()?.block_on(images::pull(depot, wanted, &roots, |progress| {
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
    }));
    bar.finish_and_clear();
    let artifact = pulled.map_err(|error| Failure::of(Exit::Failed, act(), &error))?;
    print(&kept(&artifact))
}

fn verify(depot: &Depot, as_json: bool) -> Result<(), Failure> {
    let faults = depot
        .verify()
        .map_err(|error| failed("reading the depot", &error))?;
    let wrongs: Vec<Wrong> = faults.into_iter().map(wrong).collect();
    if as_json {
        print(&json(&wrongs))?;
    }
    if wrongs.is_empty() {
        return if as_json {
            Ok(())
        } else {
            print("every artefact is whole\n")
        };
    }
    let count = wrongs.len();
    let mut failure = Failure::new(
        Exit::Failed,
        format!("{count} of the depot's files are not what they should be"),
    );
    let lines = wrongs
        .into_iter()
        .map(|wrong| format!("{} {}; {}", wrong.subject, wrong.problem, wrong.remedy));
    failure.causes.extend(lines);
    Err(failure)
}

fn wrong(fault: Fault) -> Wrong {
    const AGAIN: &str = "import or pull it again";
    let (subject, problem, remedy) = match fault {
        Fault::Record { file } => (
            format!("names/{file}"),
            "is no record of a name".to_owned(),
            "remove the file, then import the artefact again",
        ),
        Fault::Missing { artifact } => (artifact.name.to_string(), "has no file".to_owned(), AGAIN),
        Fault::Damaged { digest, found } => (
            format!("sha256/{digest}"),
            format!("has the content of {found}"),
            "remove the file, then import or pull it again",
        ),
        Fault::Size { artifact, found } => (
            artifact.name.to_string(),
            format!("has {found} bytes, not {}", artifact.size),
            AGAIN,
        ),
    };
    Wrong {
        subject,
        problem,
        remedy,
    }
}

fn gc(depot: &Depot, socket: &Socket) -> Result<(), Failure> {
    let in_force: BTreeSet<Digest> = match ask(socket, &Ask::get("/api/v1/artifacts")) {
        Ok(digests) => digests,
        // No daemon, so nothing is being served.
        Err(failure) if failure.exit == Exit::Unreachable => BTreeSet::new(),
        Err(failure) => return Err(failure),
    };
    let swept = depot
        .gc(&in_force)
        .map_err(|error| failed("sweeping the depot", &error))?;
    print(&format!(
        "removed {} files, {} bytes\n",
        swept.files, swept.bytes
    ))
}

fn failed(act: &str, error: &DepotError) -> Failure {
    use std::error::Error;
    let denied = error
        .source()
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|source| source.kind() == std::io::ErrorKind::PermissionDenied);
    if denied {
        Failure::of(Exit::NotPermitted, act, error)
            .with_remedy("run it as root, or name a depot of your own with --state")
    } else {
        Failure::of(Exit::Failed, act, error)
    }
}
