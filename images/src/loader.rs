//! The network boot programs of the distribution's `ipxe` package, found by themselves and held
//! in memory.
//!
//! Debian keeps them in /usr/lib/ipxe, where `ipxe.efi` is a link into /boot; Fedora in
//! /usr/share/ipxe, partly under `arm64-efi` and the like. Loaders are under 2 MiB each; anything
//! larger in there is an ISO or a USB image and is left alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use bytes::Bytes;

/// Where distributions keep their network boot programs; the first that has a file wins.
pub const PACKAGE_DIRECTORIES: [&str; 2] = ["/usr/lib/ipxe", "/usr/share/ipxe"];

const LOADER_BYTES_MAX: u64 = 2 * 1024 * 1024 - 1;
const SUFFIXES: [&str; 5] = [".efi", ".kpxe", ".kkpxe", ".pxe", ".lkrn"];

/// Loaders by file name (`snponly.efi`, `arm64-efi/snponly.efi`).
#[derive(Clone, Debug, Default)]
pub struct Loaders(BTreeMap<String, Bytes>);

impl Loaders {
    /// Reads every loader under the given directories and one level of directories below them.
    /// A directory that isn't there, or a link to nothing, is passed over.
    pub fn read<P: AsRef<Path>>(directories: &[P]) -> Self {
        let mut loaders = BTreeMap::new();
        for directory in directories {
            gather(directory.as_ref(), "", &mut loaders);
        }
        Self(loaders)
    }

    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.get(name)
    }

    /// Adds one under a name, in place of any that has it: an operator's own build.
    pub fn insert(&mut self, name: String, bytes: Bytes) {
        self.0.insert(name, bytes);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), bytes))
    }
}

fn gather(directory: &Path, prefix: &str, loaders: &mut BTreeMap<String, Bytes>) {
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
        if metadata.is_dir() && prefix.is_empty() && file.ends_with("-efi") {
            gather(&path, &format!("{file}/"), loaders);
        } else if metadata.is_file()
            && metadata.len() <= LOADER_BYTES_MAX
            && SUFFIXES.iter().any(|suffix| file.ends_with(suffix))
            && let Some(bytes) = read_bounded(&path)
        {
            loaders.entry(format!("{prefix}{file}")).or_insert(bytes);
        }
    }
}

fn read_bounded(path: &Path) -> Option<Bytes> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(LOADER_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    (!bytes.is_empty() && bytes.len() as u64 <= LOADER_BYTES_MAX).then(|| bytes.into())
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
                ("arm64-efi/snponly.efi", &b"arm"[..]),
                ("ipxe.efi", b"efi"),
                ("undionly.kpxe", b"bios"),
            ]
        );
    }
}
