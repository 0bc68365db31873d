//! CoreOS written to a disk, from a live boot that reads a config of its own.
//!
//! ```text
//!   config.ign ──▶ node.ign, for the live system:   /etc/coreos/dest.ign           the config of the installed system
//!                                                   /etc/coreos/installer.d/*.yaml  which disk, which config
//!                                                   a unit that reports, then the reboot
//! ```
//!
//! Any file in `/etc/coreos/installer.d` makes the live system install and reboot (coreos-installer,
//! docs/customizing-install.md); what must happen in between is a unit between `coreos-installer.service` and
//! `coreos-installer.target` (src/live/customize.rs, `post_install`). So the machine's secrets travel once and over TLS, and
//! the last act of an install is an acknowledged report: whatever boots first from then on, the network sends it to its disk.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use netboot::spec::{Profile, Purpose};
use serde_json::json;

use super::report;
use crate::{Fault, Subject};

/// The config that a machine of this profile fetches, for an installed system that is to read `config`: the same where it
/// runs from memory.
pub(super) fn fetched(
    config: String,
    profile: &Profile,
    subject: &Subject<'_>,
) -> Result<String, Fault> {
    if profile.purpose == Purpose::Live {
        return Ok(config);
    }
    let fault = |problem: &str, remedy: &str| Fault {
        field: "disk",
        line: None,
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    };
    let flatcar = |argument: &String| argument.starts_with("flatcar.");
    if profile.arguments.iter().any(flatcar) {
        return Err(Fault {
            field: "arguments",
            ..fault(
                "boot Flatcar, which has no CoreOS installer, and the profile's purpose is install",
                "say `purpose: live`: Flatcar runs from memory and keeps its data on a disk that its config formats",
            )
        });
    }
    let disk = subject.disk.ok_or_else(|| {
        fault(
            "is not named, and CoreOS' installer takes none of its own choice",
            "give the machine or the profile `disk: { path: /dev/disk/by-… }` or `{ wwn: … }`",
        )
    })?;
    let device = disk.device().ok_or_else(|| {
        fault(
            "is named by its serial number, which CoreOS' installer can't look for",
            "name it by `path: /dev/disk/by-…` or `wwn:`",
        )
    })?;
    let installer = json!({ "dest-device": device, "ignition-file": "/etc/coreos/dest.ign" });
    let file = |path: &str, text: &str| {
        let source = format!("data:;base64,{}", STANDARD.encode(text));
        json!({ "path": path, "mode": 0o600, "overwrite": true, "contents": { "source": source } })
    };
    Ok(json!({
        "ignition": { "version": "3.2.0" },
        "storage": { "files": [
            file("/etc/coreos/dest.ign", &config),
            file("/etc/coreos/installer.d/50-reveille.yaml", &format!("{installer}\n")),
        ] },
        "systemd": { "units": [report::installer_unit(subject.urls)] },
    })
    .to_string())
}
