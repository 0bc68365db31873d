//! OKD and OpenShift on machines of one's own (the installer's platform `none`).
//!
//! ```text
//!   definition ──install_config──▶ openshift-install ──▶ InstallerSet ──document──▶ node.ign
//!                                  (once, in an empty directory)          ours, which merges the set's file
//! ```
//!
//! `openshift-install` makes the cluster's Ignition; it is opaque here, and only what is the machine's own is laid under
//! it: host name, links, and a unit that reports. Ignition lets the merged config win wherever both speak of one path
//! (coreos/ignition, config/merge), so nothing that the cluster's own machine-config operator watches is ever changed.
//!
//! Ugly facts. The set is worth nothing after a day ([`set`]). The machine-config server of the bootstrap machine answers
//! control planes only, and a worker that asks there is told 500 until a control plane's server is up. A bootstrap machine
//! that leaves before etcd has let go of it takes etcd's quorum with it: `bootstrap-complete` alone is not enough.

mod install_config;
pub mod set;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use netboot::spec::Profile;
use serde_json::{Value, json};

pub use install_config::{
    Definition, Settings, install_config, judge, schedule_masters, with_pull_secret,
};
pub use set::{Age, File, InstallerSet, Life, SetFault};

use super::{Membership, Role, coreos, report};
use crate::{Document, Fault, Subject, format, own};

/// What one member reads; `None` for what OKD has no use for.
///
/// # Errors
/// The machine's own links cannot be said, or an install has no disk that CoreOS' installer could find.
pub fn document(
    member: &Membership<'_>,
    set: &InstallerSet,
    profile: &Profile,
    subject: &Subject<'_>,
    wanted: Document,
) -> Result<Option<String>, Fault> {
    let file = match member.role {
        Role::Bastion => return Ok(None),
        Role::Bootstrap => File::Bootstrap,
        Role::ControlPlane => File::Master,
        Role::Worker | Role::Infra => File::Worker,
    };
    match wanted {
        Document::IgnitionPointer => Ok(Some(format::ignition::pointer(subject.urls))),
        Document::Ignition => {
            let text = under(member, set, file, subject).to_string();
            coreos::fetched(own::ignition(text, subject)?, profile, subject).map(Some)
        }
        Document::UserData
        | Document::MetaData
        | Document::VendorData
        | Document::NetworkConfig
        | Document::Talos => Ok(None),
    }
}

/// Our config, which merges the set's.
fn under(member: &Membership<'_>, set: &InstallerSet, file: File, subject: &Subject<'_>) -> Value {
    let opaque = set.file(file).expose();
    let hostname = STANDARD.encode(format!("{}\n", member.hostname));
    json!({
        "ignition": {
            "version": set.version(file),
            "config": { "merge": [{ "source": format!("data:;base64,{}", STANDARD.encode(opaque)) }] },
        },
        "storage": { "files": [{
            "path": "/etc/hostname",
            "mode": 0o644,
            "overwrite": true,
            "contents": { "source": format!("data:;base64,{hostname}") },
        }] },
        "systemd": { "units": [report::ignition_unit(subject.urls)] },
    })
}
