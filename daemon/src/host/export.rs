//! `reveille host export`: the bastion's own network as files of the system that is to make it. Needs no daemon.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ignition::network::export::{Export, Format, export};
use ignition::network::{File, is_ours};

use crate::config;
use crate::failure::{Exit, Failure, faulty_site, print};
use crate::places::{SITE, STATE};

/// What is written, and where.
#[derive(Debug, Args)]
pub struct ExportOptions {
    /// What shall make the links
    #[arg(long, value_name = "FORMAT")]
    format: Maker,
    /// The directory of the site's files
    #[arg(long, env = "REVEILLE_SITE", default_value = SITE, value_name = "DIR")]
    site: PathBuf,
    /// The state directory whose depot the site is judged with
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    state: PathBuf,
    /// Write the files below this directory (/ puts them in their places) instead of printing them
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// The formats by their words.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Maker {
    Networkd,
    #[value(name = "networkmanager")]
    NetworkManager,
    Ifupdown,
    Nmstate,
}

/// Prints the files, or writes them.
///
/// # Errors
/// A faulty site, one without links, and files of others that stand in the way: then nothing is written.
pub fn run(options: &ExportOptions) -> Result<(), Failure> {
    let (_, spec) = config::load(&options.site, &options.state).map_err(faulty_site)?;
    if spec.host().links.is_empty() {
        let cause = format!(
            "{} lists no links of the bastion",
            options.site.join("site.yaml").display()
        );
        return Err(Failure::new(Exit::Failed, cause).with_remedy("list them under `links:`"));
    }
    let format = match options.format {
        Maker::Networkd => Format::Networkd,
        Maker::NetworkManager => Format::NetworkManager,
        Maker::Ifupdown => Format::Ifupdown,
        Maker::Nmstate => Format::Nmstate,
    };
    let exported = export(spec.host(), format).map_err(|faults| Failure {
        exit: Exit::Configuration,
        causes: faults.iter().map(ToString::to_string).collect(),
        remedy: Some("mend `links:` in site.yaml".to_owned()),
    })?;
    match &options.output {
        None => print(&printed(&exported)),
        Some(directory) => {
            write_all(directory, &exported.files.said)?;
            print(&told(directory, &exported))
        }
    }
}

/// All of it as one text, which nmstate's reader takes as it is.
fn printed(exported: &Export) -> String {
    let mut text = String::new();
    for File {
        path,
        mode,
        text: body,
    } in &exported.files.said
    {
        text += &format!("# ==> {path} (mode {mode:04o})\n{body}\n");
    }
    text + &after(exported, "# ")
}

fn told(directory: &Path, exported: &Export) -> String {
    let files = exported.files.said.iter();
    let mut text: String = files
        .map(|file| format!("wrote {}\n", below(directory, &file.path).display()))
        .collect();
    for path in left_over(directory, &exported.files.said) {
        text += &format!("remove {}, which the site no longer says\n", path.display());
    }
    text + &after(exported, "")
}

fn after(exported: &Export, lead: &str) -> String {
    let mut text = String::new();
    for unsaid in &exported.files.unsaid {
        text += &format!("{lead}not said: {unsaid}\n");
    }
    for (number, step) in (1..).zip(&exported.steps) {
        text += &format!("{lead}{number}. {step}\n");
    }
    text
}

fn below(directory: &Path, path: &str) -> PathBuf {
    directory.join(path.trim_start_matches('/'))
}

/// Each file whole or not at all; none when one is somebody else's.
fn write_all(directory: &Path, files: &[File]) -> Result<(), Failure> {
    // Only what is surely not there, or surely ours, is written over.
    let may_write = |path: &PathBuf| {
        let absent = path
            .symlink_metadata()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        absent || path.is_file() && fs::read_to_string(path).is_ok_and(|text| is_ours(&text))
    };
    let foreign: Vec<String> = files
        .iter()
        .map(|file| below(directory, &file.path))
        .filter(|path| !may_write(path))
        .map(|path| {
            format!(
                "{} is there and was not written by this command",
                path.display()
            )
        })
        .collect();
    if !foreign.is_empty() {
        return Err(Failure {
            exit: Exit::Failed,
            causes: foreign,
            remedy: Some("move it away, or write elsewhere with --output".to_owned()),
        });
    }
    for file in files {
        let path = below(directory, &file.path);
        write(&path, file).map_err(|error| {
            Failure::of(Exit::Failed, format!("writing {}", path.display()), &error)
        })?;
    }
    Ok(())
}

fn write(path: &Path, file: &File) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(parent)?;
    // A name that none of the readers takes for one of theirs.
    let part = parent.join(format!(
        ".{}.part",
        path.file_name().unwrap_or_default().display()
    ));
    fs::write(&part, "")?;
    fs::set_permissions(&part, fs::Permissions::from_mode(file.mode))?;
    fs::write(&part, &file.text)?;
    fs::rename(&part, path)
}

/// Files of an earlier export beside these.
fn left_over(directory: &Path, files: &[File]) -> Vec<PathBuf> {
    let written: Vec<PathBuf> = files
        .iter()
        .map(|file| below(directory, &file.path))
        .collect();
    let mut parents: Vec<&Path> = written.iter().filter_map(|path| path.parent()).collect();
    parents.sort_unstable();
    parents.dedup();
    let mut found: Vec<PathBuf> = parents
        .into_iter()
        .filter_map(|parent| fs::read_dir(parent).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && !written.contains(path))
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| is_ours(&text)))
        .collect();
    found.sort();
    found
}
