//! What a file of the depot is called by people and profiles, and what kind of file it is.
//! Its identity is the digest of its bytes.

use std::fmt;
use std::str::FromStr;

use netboot::net::{Digest, Malformed};
use serde::{Deserialize, Serialize};

/// What people and profiles call an artefact: `debian-12/vmlinuz`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName(String);

impl ArtifactName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last word, which is what a URL ends with.
    pub fn file(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for ArtifactName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "use words of letters, digits, '.', '_', '+', '~' and '-' parted by '/', each beginning with a letter or digit, 200 bytes at most, as in debian-12/vmlinuz";
        let word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
        };
        if text.len() <= 200 && text.split('/').all(word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed::new("depot name", text, RULE))
        }
    }
}

/// What a file is for. It orders listings and decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactKind {
    Kernel,
    Initrd,
    Rootfs,
    Loader,
    Disk,
    Iso,
    Other,
}

impl ArtifactKind {
    /// The kind that the field's habits of naming suggest.
    pub fn of(name: &ArtifactName) -> Self {
        let file = name.file().to_ascii_lowercase();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| file.ends_with(suffix));
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| file.starts_with(prefix));
        if ends(&[".efi", ".kpxe", ".kkpxe", ".pxe", ".lkrn", ".0"]) {
            Self::Loader
        } else if ends(&[".iso"]) {
            Self::Iso
        } else if file.contains("rootfs") || ends(&[".squashfs", ".erofs"]) {
            Self::Rootfs
        } else if begins(&["initrd", "initramfs"])
            || file.contains("initramfs")
            || file.contains("cpio")
        {
            Self::Initrd
        } else if begins(&["vmlinuz", "linux", "kernel", "bzimage"]) || file.contains("-kernel") {
            Self::Kernel
        } else if ends(&[".raw", ".qcow2", ".img", ".raw.xz", ".raw.zst", ".raw.gz"]) {
            Self::Disk
        } else {
            Self::Other
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Rootfs => "rootfs",
            Self::Loader => "loader",
            Self::Disk => "disk",
            Self::Iso => "iso",
            Self::Other => "other",
        }
    }
}

/// One name in the depot and the file it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub name: ArtifactName,
    pub digest: Digest,
    pub size: u64,
    pub kind: ArtifactKind,
}

/// The JSON that `names/` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    name: String,
    sha256: String,
    size: u64,
    kind: ArtifactKind,
}

impl Artifact {
    pub(crate) fn to_json(&self) -> String {
        let Self {
            name,
            digest,
            size,
            kind,
        } = self;
        let shape = OnDisk {
            version: 1,
            name: name.to_string(),
            sha256: digest.to_string(),
            size: *size,
            kind: *kind,
        };
        serde_json::to_string_pretty(&shape)
            .expect("a flat record of text and numbers is always JSON")
            + "\n"
    }

    /// `None` when the text isn't a record of a version that this code knows.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        let OnDisk {
            version,
            name,
            sha256,
            size,
            kind,
        } = serde_json::from_str(text).ok()?;
        if version != 1 {
            return None;
        }
        Some(Self {
            name: name.parse().ok()?,
            digest: sha256.parse().ok()?,
            size,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for text in [
            "",
            "/",
            "a//b",
            "../a",
            "a/..",
            "a/.b",
            ".a",
            "a b",
            "a\0",
            "a/",
            "/a",
            "é",
            &"a".repeat(201),
        ] {
            assert!(text.parse::<ArtifactName>().is_err(), "{text:?}");
        }
        for text in [
            "a",
            "debian-12/vmlinuz",
            "fcos/40.2/x86_64/rootfs.img",
            "v1.9+up~1",
        ] {
            assert_eq!(
                text.parse::<ArtifactName>().map(|n| n.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn the_kind_follows_the_habits_of_the_field() {
        for (name, kind) in [
            ("debian-12/linux", ArtifactKind::Kernel),
            ("debian-12/initrd.gz", ArtifactKind::Initrd),
            (
                "fcos/fedora-coreos-40-live-kernel-x86_64",
                ArtifactKind::Kernel,
            ),
            (
                "fcos/fedora-coreos-40-live-initramfs.x86_64.img",
                ArtifactKind::Initrd,
            ),
            (
                "fcos/fedora-coreos-40-live-rootfs.x86_64.img",
                ArtifactKind::Rootfs,
            ),
            ("ipxe/snponly.efi", ArtifactKind::Loader),
            ("ubuntu/live-server-amd64.iso", ArtifactKind::Iso),
            ("debian-12/genericcloud.qcow2", ArtifactKind::Disk),
            ("site/notes.txt", ArtifactKind::Other),
        ] {
            assert_eq!(
                ArtifactKind::of(&name.parse().expect("a good name")),
                kind,
                "{name}"
            );
        }
    }
}
