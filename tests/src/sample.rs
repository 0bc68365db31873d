//! The sample site of the documentation, and a state directory whose depot has what it names. The artefacts are
//! fakes: a few bytes each, which is all that judging a site asks of them.

use std::path::{Path, PathBuf};

use images::Depot;

/// Every artefact that the sample site names.
pub const ARTIFACTS: [&str; 7] = [
    "fedora-coreos/44/vmlinuz",
    "fedora-coreos/44/initramfs.img",
    "fedora-coreos/44/rootfs.img",
    "debian-13/vmlinuz",
    "debian-13/initrd.img",
    "talos/1.11.5/vmlinuz",
    "talos/1.11.5/initramfs.xz",
];

/// What the sample site's unnamed kernel holds.
const UNNAMED: &str = "the kernel of the inventory\n";

/// The root of the source tree.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("the crate lies in the source tree")
        .to_owned()
}

/// The sample site.
pub fn site() -> PathBuf {
    repository().join("daemon/docs/example-site")
}

/// A state directory whose depot has these names, and the sample's unnamed kernel.
pub fn state(names: &[&str]) -> tempfile::TempDir {
    let state = tempfile::tempdir().expect("a directory");
    let depot = Depot::open(state.path().join("depot")).expect("an empty depot");
    for name in names {
        let parsed = name.parse().expect("an artefact's name");
        depot
            .import_from(&parsed, name.as_bytes(), None)
            .expect("imported");
    }
    let passing = "passing".parse().expect("an artefact's name");
    depot
        .import_from(&passing, UNNAMED.as_bytes(), None)
        .expect("imported");
    depot.forget(&passing).expect("forgotten");
    state
}
