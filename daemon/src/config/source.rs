//! The site directory, and the definitions that the daemon keeps beside it: which files belong to a site, and reading them without trusting them. Sizes are bounded,
//! pipes and devices are not waited for, and a document that a profile names must lie inside the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::fault::{Faults, Place};

/// Bytes of `site.yaml`, of a profile and of a document.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of one inventory file.
const INVENTORY_BYTES_MAX: u64 = 32 << 20;
/// Bytes of a whole site.
const SITE_BYTES_MAX: u64 = 128 << 20;
/// Files in one directory of a site.
const FILES_MAX: usize = 4096;

/// A site directory while it is read.
pub(super) struct Source<'f> {
    root: PathBuf,
    faults: &'f Faults,
    bytes_left: u64,
}

/// One file of the site.
pub(super) struct Text {
    /// The file as a whole.
    pub(super) place: Place,
    /// The file's name without `.yaml`.
    pub(super) stem: String,
    pub(super) text: String,
}

impl<'f> Source<'f> {
    pub(super) fn new(root: &Path, faults: &'f Faults) -> Self {
        Self {
            root: root.to_owned(),
            faults,
            bytes_left: SITE_BYTES_MAX,
        }
    }

    /// `site.yaml`; a fault when it isn't there.
    pub(super) fn site(&mut self) -> Option<Text> {
        let path = self.root.join("site.yaml");
        self.read(&path, FILE_BYTES_MAX)
    }

    /// `machines.yaml` and `machines.d/*.yaml`, those that are there, one after the other.
    pub(super) fn inventory(&mut self, mut each: impl FnMut(Text)) {
        let single = self.root.join("machines.yaml");
        let mut files = self.directory(&self.root.join("machines.d"), &["yaml"]);
        if fs::symlink_metadata(&single).is_ok() {
            files.insert(0, single);
        }
        for path in files {
            if let Some(text) = self.read(&path, INVENTORY_BYTES_MAX) {
                each(text);
            }
        }
    }

    /// `profiles/*.yaml`.
    pub(super) fn profiles(&mut self) -> Vec<Text> {
        let files = self.directory(&self.root.join("profiles"), &["yaml"]);
        files
            .iter()
            .filter_map(|path| self.read(path, FILE_BYTES_MAX))
            .collect()
    }

    /// `clusters/*.yaml` and `clusters/*.json` of the site, or those of another directory.
    pub(super) fn definitions(&mut self, elsewhere: Option<&Path>) -> Vec<Text> {
        let own = self.root.join("clusters");
        let files = self.directory(elsewhere.unwrap_or(&own), &["json", "yaml"]);
        files
            .iter()
            .filter_map(|path| self.read(path, FILE_BYTES_MAX))
            .collect()
    }

    /// A document that a profile names, relative to the profile's directory. Names the fault at `place`.
    pub(super) fn document(
        &mut self,
        key: &str,
        name: &str,
        place: Place,
    ) -> Option<(Place, String)> {
        let plain = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path = self.root.join("profiles").join(name);
        let inside = fs::canonicalize(&path).and_then(|real| {
            let root = fs::canonicalize(&self.root)?;
            Ok(real.starts_with(root))
        });
        let refuse =
            |problem: &str, remedy: &str| self.faults.add(place, key, name, problem, remedy);
        match inside {
            _ if !plain => refuse(
                "leaves the profile's directory",
                "name a file beside the profile or below it",
            ),
            Ok(true) => {
                let mut left = self.bytes_left;
                match read_text(&path, FILE_BYTES_MAX, &mut left) {
                    Ok(text) => {
                        self.bytes_left = left;
                        return Some((self.faults.open(&path), text));
                    }
                    Err(problem) => refuse(&problem, "correct the file"),
                }
            }
            Ok(false) => refuse(
                "is a link that leaves the site's directory",
                "put the file itself into the site's directory",
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse("is not there", &self.neighbours(&path));
            }
            Err(error) => refuse(
                &format!("can't be opened: {error}"),
                "check the owner and mode of the file and its directories",
            ),
        }
        None
    }

    /// Names files in the site's directory that look like part of the site and aren't.
    pub(super) fn strays(&self) {
        const READ: [&str; 2] = ["site.yaml", "machines.yaml"];
        for name in self.names(&self.root) {
            let suffix = Path::new(&name).extension().and_then(|s| s.to_str());
            if matches!(suffix, Some("yaml" | "yml")) && !READ.contains(&name.as_str()) {
                let file = self.faults.open(&self.root.join(&name));
                let near = netboot::net::nearest(&name, READ);
                let remedy = near.map_or(
                    "a site is site.yaml, machines.yaml, machines.d, profiles and clusters; move this file away"
                        .to_owned(),
                    |near| format!("did you mean {near}?"),
                );
                self.faults
                    .add(file, "", "", "this file is not read", remedy);
            }
        }
    }

    /// The files of a directory with one of the suffixes, in order; none when it isn't there.
    fn directory(&self, directory: &Path, suffixes: &[&str]) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for name in self.names(directory) {
            let path = directory.join(&name);
            match path.extension().and_then(|suffix| suffix.to_str()) {
                _ if name.starts_with('.') => {}
                Some(suffix) if suffixes.contains(&suffix) => files.push(path),
                Some("yml") => {
                    let file = self.faults.open(&path);
                    self.faults.add(
                        file,
                        "",
                        "",
                        "this file is not read",
                        "end its name in .yaml",
                    );
                }
                _ => {}
            }
        }
        files.sort();
        if files.len() > FILES_MAX {
            let file = self.faults.open(directory);
            self.faults.add(
                file,
                "",
                "",
                format!("holds more than {FILES_MAX} files"),
                "join some of them",
            );
            files.clear();
        }
        files
    }

    /// The names in a directory as text, at most one more than may be used.
    fn names(&self, directory: &Path) -> Vec<String> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                let file = self.faults.open(directory);
                let problem = format!("can't be listed: {error}");
                self.faults
                    .add(file, "", "", problem, "check its owner and mode");
                return Vec::new();
            }
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .take(4 * FILES_MAX)
            .collect()
    }

    fn neighbours(&self, path: &Path) -> String {
        let wanted = path.file_name().unwrap_or_default().to_string_lossy();
        let names = path.parent().map(|directory| self.names(directory));
        let near = netboot::net::nearest(&wanted, names.iter().flatten().map(String::as_str));
        near.map_or("write it, or correct the name".to_owned(), |name| {
            format!("did you mean {name}?")
        })
    }

    fn read(&mut self, path: &Path, bytes_max: u64) -> Option<Text> {
        let place = self.faults.open(path);
        match read_text(path, bytes_max, &mut self.bytes_left) {
            Ok(text) => Some(Text {
                place,
                stem: path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                text,
            }),
            Err(problem) => {
                let remedy = if problem.ends_with("is not there") {
                    "write it, or name the right directory with --site"
                } else {
                    "correct the file, or check its owner and mode"
                };
                self.faults.add(place, "", "", problem, remedy);
                None
            }
        }
    }
}

/// The text of a regular file, or what is wrong with it.
fn read_text(path: &Path, bytes_max: u64, bytes_left: &mut u64) -> Result<String, String> {
    let file = open(path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            "is not there".to_owned()
        } else {
            format!("can't be read: {error}")
        }
    })?;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let limit = bytes_max.min(*bytes_left);
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(limit)).unwrap_or(0));
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("can't be read: {error}"))?;
    let length = bytes.len() as u64;
    if length > limit {
        return Err(if limit < bytes_max {
            format!("makes the site larger than {} MiB", SITE_BYTES_MAX >> 20)
        } else {
            format!("is larger than {} MiB", bytes_max >> 20)
        });
    }
    *bytes_left -= length;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        format!("is not UTF-8 text at line {line}")
    })
}

/// Opens a regular file and nothing else: opening a pipe would wait for its writer.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}
