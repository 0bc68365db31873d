//! CoreOS' stream metadata: which kernel, initramfs and root file system are one build, where they are, and what they are.
//!
//! `openshift-install coreos print-stream-json` prints it for OKD, and Fedora CoreOS publishes it for its streams
//! (coreos/stream-metadata-go, stream/stream.go). File names change between builds, so they are read and never made.
//!
//! Ugly fact: the initramfs knows the hash of the one root that it takes, so files of two builds don't boot.

use netboot::net::{Digest, Malformed};
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::artifact::ArtifactName;
use crate::fetch::Pull;

/// Bytes of a stream's metadata at the most; today's have some 200 KiB.
pub const STREAM_MAX: usize = 8 << 20;

/// Why a stream gives nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(
        "it is no stream metadata: {0}; give the output of `openshift-install coreos print-stream-json`"
    )]
    Shape(#[from] serde_json::Error),
    #[error("it has nothing for {wanted}; it has {there}")]
    Architecture { wanted: String, there: String },
    #[error("it has no files for network boot on {0}")]
    NoPxe(String),
    #[error("its {file} can't be taken")]
    File {
        file: &'static str,
        source: Malformed,
    },
}

#[derive(Deserialize)]
struct Stream {
    architectures: BTreeMap<String, Architecture>,
}

#[derive(Deserialize)]
struct Architecture {
    artifacts: BTreeMap<String, Platform>,
}

#[derive(Deserialize)]
struct Platform {
    release: String,
    formats: BTreeMap<String, BTreeMap<String, File>>,
}

#[derive(Deserialize)]
struct File {
    location: String,
    sha256: String,
}

/// The three files of a stream's build for one architecture, as `x86_64` or `aarch64`. Their names in the depot are
/// `<os>/<release>/<architecture>/` and `vmlinuz`, `initramfs.img`, `rootfs.img`.
///
/// # Errors
/// [`StreamError`]
pub fn boot_files(stream: &str, architecture: &str) -> Result<[Pull; 3], StreamError> {
    let Stream { architectures } = serde_json::from_str(stream)?;
    let found = architectures.get(architecture);
    let found = found.ok_or_else(|| StreamError::Architecture {
        wanted: architecture.to_owned(),
        there: architectures.keys().cloned().collect::<Vec<_>>().join(", "),
    })?;
    let no_pxe = || StreamError::NoPxe(architecture.to_owned());
    let metal = found.artifacts.get("metal").ok_or_else(no_pxe)?;
    let pxe = metal.formats.get("pxe").ok_or_else(no_pxe)?;
    let pull = |key: &'static str, name: &str| {
        let file = pxe.get(key).ok_or_else(no_pxe)?;
        let refused = |source| StreamError::File { file: key, source };
        let os = os(&file.location, &metal.release);
        let name = format!("{os}/{}/{architecture}/{name}", metal.release);
        let name: ArtifactName = name.parse().map_err(refused)?;
        let digest: Digest = file.sha256.parse().map_err(refused)?;
        let url = file.location.clone();
        Ok::<_, StreamError>(Pull { name, url, digest })
    };
    Ok([
        pull("kernel", "vmlinuz")?,
        pull("initramfs", "initramfs.img")?,
        pull("rootfs", "rootfs.img")?,
    ])
}

/// What the files' names begin with: `fedora-coreos`, `scos`, `rhcos`.
fn os<'a>(location: &'a str, release: &str) -> &'a str {
    let file = location.rsplit('/').next().unwrap_or_default();
    let os = file.split_once(release).map_or("", |(os, _)| os);
    Some(os.trim_end_matches('-'))
        .filter(|os| !os.is_empty())
        .unwrap_or("coreos")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(release: &str, prefix: &str) -> String {
        let file = |part: &str| {
            serde_json::json!({
                "location": format!("https://mirror.example/{release}/{prefix}{release}-live-{part}"),
                "signature": "https://mirror.example/sig",
                "sha256": "a".repeat(64),
            })
        };
        serde_json::json!({
            "stream": "c10s",
            "metadata": { "last-modified": "2026-01-01T00:00:00Z" },
            "architectures": { "x86_64": { "artifacts": { "metal": {
                "release": release,
                "formats": {
                    "iso": { "disk": file("iso.x86_64.iso") },
                    "pxe": {
                        "kernel": file("kernel.x86_64"),
                        "initramfs": file("initramfs.x86_64.img"),
                        "rootfs": file("rootfs.x86_64.img"),
                    },
                },
            } } } },
        })
        .to_string()
    }

    #[test]
    fn the_three_files_of_a_build_get_one_directory_of_the_depot() {
        for (prefix, os) in [
            ("scos-", "scos"),
            ("fedora-coreos-", "fedora-coreos"),
            ("", "coreos"),
        ] {
            let files = boot_files(&stream("10.0.20250628-0", prefix), "x86_64").unwrap();
            let names = files.each_ref().map(|file| file.name.as_str());
            let wanted = ["vmlinuz", "initramfs.img", "rootfs.img"]
                .map(|file| format!("{os}/10.0.20250628-0/x86_64/{file}"));
            assert_eq!(names, wanted.each_ref().map(String::as_str));
            assert!(files[2].url.ends_with("-live-rootfs.x86_64.img"));
        }
    }

    #[test]
    fn what_a_stream_lacks_is_named() {
        let refused = |stream: &str, arch: &str| boot_files(stream, arch).unwrap_err().to_string();
        let sound = stream("44", "scos-");
        assert!(refused(&sound, "aarch64").contains("it has x86_64"));
        assert!(refused(&sound.replace("\"pxe\"", "\"raw\""), "x86_64").contains("network boot"));
        assert!(refused(&sound.replace(&"a".repeat(64), "12"), "x86_64").contains("kernel"));
        assert!(refused(&stream("../..", "scos-"), "x86_64").contains("can't be taken"));
        assert!(refused("[]", "x86_64").contains("print-stream-json"));
    }
}
