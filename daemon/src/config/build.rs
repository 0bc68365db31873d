//! CoreOS' kernel, initramfs and root are of one build, or the machine stops: the initramfs knows the hash of the only
//! root it takes. A build is a directory of the depot, as `image pull --stream` makes it.

use super::fault::{Faults, Place};
use super::file;
use super::read::{Given, Table};

/// Names the files of another build than the kernel's. What has no directory, or no name at all, is not judged.
pub(super) fn is_one(
    kernel: &Given<file::Artifact>,
    initrds: &Given<Vec<Given<file::Artifact>>>,
    artifacts: &Given<Table<file::Artifact>>,
    arguments: &[String],
    faults: &Faults,
) {
    let mut roots = arguments
        .iter()
        .filter_map(|argument| argument.strip_prefix("coreos.live.rootfs_url="));
    let (Some(root), Some((_, build))) = (roots.next(), directory(kernel)) else {
        return;
    };
    let listed = artifacts.value().map_or(&[][..], |table| &table.0);
    let root = listed
        .iter()
        .find(|(key, _)| key.value().is_some_and(|name| speaks_of(root, name)));
    let initramfs = initrds.value().and_then(|initrds| initrds.first());
    let others = [
        ("initrds", initramfs),
        ("artifacts", root.map(|(_, artifact)| artifact)),
    ];
    for (key, given) in others {
        let Some(given) = given else { continue };
        let Some((place, other)) = directory(given) else {
            continue;
        };
        if other != build {
            let problem = "is of another build than the kernel";
            let remedy = format!(
                "name the file of {build}/; `reveille image pull --stream` brings in all three"
            );
            faults.add(place, key, other, problem, remedy);
        }
    }
}

/// True when a template names this artefact.
fn speaks_of(template: &str, name: &str) -> bool {
    template.match_indices("artifacts.").any(|(at, word)| {
        let rest = &template[at + word.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        rest[..end.unwrap_or(rest.len())] == *name
    })
}

fn directory(given: &Given<file::Artifact>) -> Option<(Place, &str)> {
    match given.good()? {
        (place, file::Artifact::Name(name)) => Some((place, name.rsplit_once('/')?.0)),
        (_, file::Artifact::Digest(_)) => None,
    }
}
