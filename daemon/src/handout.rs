//! `reveille cluster kubeconfig` and `talosconfig`: what opens a cluster, for whoever administers it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::cli::HandOutOptions;
use crate::client::{Ask, ask};
use crate::failure::{Exit, Failure, print};
use crate::http::handout::HandedOut;

/// `reveille cluster kubeconfig` and `talosconfig`; `what` is one of these words.
///
/// # Errors
/// [`Failure`]
pub fn run(options: &HandOutOptions, what: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/clusters/{}/{what}", options.name);
    let HandedOut { file } = ask(&options.socket, &Ask::post(&path, b""))?;
    let Some(output) = &options.output else {
        return print(&file);
    };
    let mut new = OpenOptions::new();
    let written = new
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(output)
        .and_then(|mut new| new.write_all(file.as_bytes()));
    written.map_err(|error| {
        let act = format!("writing {}", output.display());
        Failure::of(Exit::Failed, act, &error)
            .with_remedy("name a file that is not there yet, in a directory that is yours")
    })
}
