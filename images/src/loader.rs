//! The network boot programs of the distribution's `ipxe` package, found by themselves and held
//! in memory.
//!
//! Debian keeps them in /usr/lib/ipxe, where `ipxe.efi` is a link into /boot; Fedora in
//! /usr/share/ipxe, partly under `arm64-efi` and the like: those get the flat name
//! `snponly-arm64.efi`. Loaders there are under 2 MiB each; anything larger is an ISO or a USB image and
//! is left alone. What an operator imports may be larger: Debian's signed GRUB has 4 MiB.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use bytes::Bytes;

use crate::depot::{Depot, DepotError};

/// Where distributions keep their network boot programs; the first that has a file wins.
pub const PACKAGE_DIRECTORIES: [&str; 2] = ["/usr/lib/ipxe", "/usr/share/ipxe"];

const PACKAGED_BYTES_MAX: u64 = (2 << 20) - 1;
const IMPORTED_BYTES_MAX: u64 = 16 << 20;
const SUFFIXES: [&str; 5] = [".efi", ".kpxe", ".kkpxe", ".pxe", ".lkrn"];

/// Loaders by file name (`snponly.efi`, `snponly-arm64.efi`).
#[derive(Clone, Debug, Default)]
pub struct Loaders(BTreeMap<String, Bytes>);

impl Loaders {
    /// Reads every loader under the given directories and one level of directories below them.
    /// A directory that isn't there, or a link to nothing, is passed over.
    pub fn read<P: AsRef<Path>>(directories: &[P]) -> Self {
        let mut loaders = BTreeMap::new();
        for directory in directories {
            gather(directory.as_ref(), None, &mut loaders);
        }
        Self(loaders)
    }

    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.get(name)
    }

    /// Adds what the depot has under `loaders/`, in place of the package's of the same name: an
    /// operator's own build, or one for a processor that the package leaves out.
    pub fn add_imported(&mut self, depot: &Depot) -> Result<(), DepotError> {
        for artifact in depot.list()? {
            if let Some(("loaders", file)) = artifact.name.as_str().split_once('/')
                && let Some(bytes) = read_bounded(&depot.path(&artifact.digest), IMPORTED_BYTES_MAX)
            {
                self.0.insert(file.to_owned(), bytes);
            }
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), bytes))
    }
}

fn gather(directory: &Path, processor: Option<&str>, loaders: &mut BTreeMap<String, Bytes>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(file) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        // Metadata follows links: Debian's ipxe.efi is one.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && processor.is_none() {
            if let Some(processor) = file.strip_suffix("-efi") {
                gather(&path, Some(processor), loaders);
            }
        } else if metadata.is_file()
            && metadata.len() <= PACKAGED_BYTES_MAX
            && let Some(suffix) = SUFFIXES.iter().find(|suffix| file.ends_with(**suffix))
            && let Some(bytes) = read_bounded(&path, PACKAGED_BYTES_MAX)
        {
            let stem = file.trim_end_matches(suffix);
            let name = processor.map(|processor| format!("{stem}-{processor}{suffix}"));
            loaders.entry(name.unwrap_or(file)).or_insert(bytes);
        }
    }
}

fn read_bounded(path: &Path, most: u64) -> Option<Bytes> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(most + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    (!bytes.is_empty() && bytes.len() as u64 <= most).then(|| bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_are_found_through_links_and_one_directory_down_and_the_first_place_wins() {
        let directory = tempfile::tempdir().expect("a directory");
        let (first, second) = (directory.path().join("lib"), directory.path().join("share"));
        fs::create_dir_all(&first).expect("made");
        fs::create_dir_all(second.join("arm64-efi")).expect("made");
        fs::write(first.join("undionly.kpxe"), b"bios").expect("written");
        fs::write(second.join("undionly.kpxe"), b"other").expect("written");
        fs::write(second.join("arm64-efi/snponly.efi"), b"arm").expect("written");
        fs::write(directory.path().join("boot"), b"efi").expect("written");
        std::os::unix::fs::symlink("../boot", first.join("ipxe.efi")).expect("linked");
        std::os::unix::fs::symlink("/nowhere", first.join("gone.efi")).expect("linked");
        fs::write(first.join("ipxe.iso"), b"iso").expect("written");
        fs::write(first.join("huge.efi"), vec![0; 3 << 20]).expect("written");
        let loaders = Loaders::read(&[first, second, directory.path().join("absent")]);
        let found: Vec<_> = loaders
            .iter()
            .map(|(name, bytes)| (name, bytes.as_ref()))
            .collect();
        assert_eq!(
            found,
            [
                ("ipxe.efi", &b"efi"[..]),
                ("snponly-arm64.efi", b"arm"),
                ("undionly.kpxe", b"bios"),
            ]
        );
    }

    #[test]
    fn an_imported_loader_goes_before_the_packages() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("snponly.efi"), b"package").expect("written");
        let mut loaders = Loaders::read(&[directory.path()]);
        let depot = Depot::open(directory.path().join("depot")).expect("a depot");
        for (name, bytes) in [
            ("loaders/snponly.efi", &b"own"[..]),
            ("debian-12/vmlinuz", b"no"),
        ] {
            let name = name.parse().expect("a good name");
            depot.import_from(&name, bytes, None).expect("imported");
        }
        loaders.add_imported(&depot).expect("read");
        let found: Vec<_> = loaders
            .iter()
            .map(|(name, bytes)| (name, bytes.as_ref()))
            .collect();
        assert_eq!(found, [("snponly.efi", &b"own"[..])]);
    }
}
