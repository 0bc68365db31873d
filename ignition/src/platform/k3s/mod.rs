//! k3s: servers that bear the API and etcd, and agents that bear the load.
//!
//! ```text
//!   Secrets ──document──▶ config.yaml, units, binary and images by digest     as Ignition  (Flatcar, Fedora CoreOS)
//!           ├──token────▶ K10<sha256 of the CA>::server:… and ::node:…        or user-data (Debian, Ubuntu)
//!           └──kubeconfig▶ the admin's
//! ```
//!
//! The cluster's authorities are made before any machine boots, so the first server is told them instead of inventing
//! them, and every joiner can know the cluster that it gives its token to (k3s, docs/cli/token.md, "Secure").
//! Only the first server gets the authorities' keys: the others have them from etcd, sealed with the server token.
//! Agents get a token of their own, with which nobody becomes a server.
//!
//! Ugly facts. k3s hashes the bytes of `server-ca.crt` as they lie on disk where the file has one certificate, and the
//! root's DER where it has several (pkg/clientaccess/token.go): one certificate a file here. `token` and `agent-token`
//! are cut to their passwords only where the token names the right user (pkg/passwd/passwd.go). etcd takes one learner
//! at a time, so servers that join side by side refuse each other.

mod secrets;
mod settings;
mod write;

use std::collections::BTreeMap;

use netboot::spec::Profile;
use serde_json::{Map, Value, json};

pub use secrets::Secrets;
pub use settings::{Settings, judge};

use super::{Membership, Role, coreos};
use crate::{Document, Fault, Subject, format, own};

/// The profile's artefact that is the program.
const BINARY: &str = "k3s";
/// The profile's artefact with the images of its own parts, for machines that reach no registry.
const IMAGES: &str = "k3s_images";

/// What one member reads; `None` for what its profile's format has no file for.
///
/// # Errors
/// The profile lacks the program, or the machine's own links cannot be said.
pub fn document(
    member: &Membership<'_>,
    secrets: &Secrets,
    profile: &Profile,
    subject: &Subject<'_>,
    wanted: Document,
) -> Result<Option<String>, Fault> {
    if matches!(member.role, Role::Bastion | Role::Bootstrap) {
        return Ok(None);
    }
    let parts = || Parts::of(member, secrets, profile, subject);
    Ok(Some(match wanted {
        Document::IgnitionPointer => format::ignition::pointer(subject.urls),
        Document::Ignition => {
            let config = own::ignition(write::ignition(&parts()?), subject)?;
            coreos::fetched(config, profile, subject)?
        }
        Document::UserData => write::user_data(&parts()?),
        Document::MetaData => format::cloud_init::meta_data(subject),
        Document::VendorData => String::new(),
        Document::NetworkConfig => own::network_config(subject)?,
        Document::Talos => return Ok(None),
    }))
}

/// What a member is made of, whatever its format.
struct Parts<'a> {
    hostname: &'a str,
    /// Path, mode, content.
    files: Vec<(String, u32, String)>,
    /// From the depot.
    program: Fetched,
    images: Option<Fetched>,
    /// `server` or `agent`.
    command: &'static str,
    ssh_keys: Vec<String>,
    urls: &'a crate::Urls,
}

/// A file of the depot.
struct Fetched {
    file: String,
    url: String,
    sha256: String,
}

const CONFIG: &str = "/etc/rancher/k3s/config.yaml";
const TLS: &str = "/var/lib/rancher/k3s/server/tls";

impl<'a> Parts<'a> {
    fn of(
        member: &Membership<'a>,
        secrets: &Secrets,
        profile: &Profile,
        subject: &Subject<'a>,
    ) -> Result<Self, Fault> {
        // The definition was refused when they were not sound.
        let settings = judge(member.settings).unwrap_or_default();
        let fetched = |name: &str| {
            profile.artifacts.get(name).map(|artifact| Fetched {
                file: artifact.file.clone(),
                url: artifact.url(&subject.urls.base),
                sha256: artifact.digest.to_string(),
            })
        };
        let program = fetched(BINARY).ok_or_else(|| Fault {
            field: "artifacts",
            line: None,
            problem: format!("has no {BINARY}"),
            remedy: format!(
                "bring the k3s binary of {} into the depot and name it: `artifacts: {{ {BINARY}: k3s/{}/k3s }}`",
                member.version, member.version
            ),
        })?;
        let server = member.role == Role::ControlPlane;
        let config = format::yaml_unfolded(&config(member, secrets, &settings));
        let mut files = vec![(CONFIG.to_owned(), 0o600, config)];
        if member.founds {
            for (path, mode, text) in secrets.files() {
                files.push((format!("{TLS}/{path}"), mode, text));
            }
        }
        Ok(Self {
            hostname: member.hostname.as_str(),
            files,
            program,
            images: fetched(IMAGES),
            command: if server { "server" } else { "agent" },
            ssh_keys: settings.ssh_keys,
            urls: subject.urls,
        })
    }

    fn unit(&self) -> &'static str {
        match self.command {
            "server" => "k3s.service",
            _ => "k3s-agent.service",
        }
    }
}

/// `config.yaml`, each key of it a flag of `k3s server` or `k3s agent`.
fn config(member: &Membership<'_>, secrets: &Secrets, settings: &Settings) -> Value {
    let join = format!("https://{}:6443", member.api());
    let mut config: BTreeMap<&str, Value> = BTreeMap::from([
        ("node-ip", json!(member.address.to_string())),
        ("node-name", json!(member.hostname.as_str())),
    ]);
    if settings.selinux {
        config.insert("selinux", true.into());
    }
    let more = if member.role == Role::ControlPlane {
        let list = |subnets: &[netboot::net::Subnet]| {
            let each: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            json!(each.join(","))
        };
        let mut names = vec![member.api(), member.api_address.to_string()];
        names.extend(settings.tls_sans.iter().cloned());
        config.insert("token", json!(secrets.server_token().expose()));
        config.insert("agent-token", json!(secrets.agent_token().expose()));
        config.insert("tls-san", json!(names));
        config.insert("cluster-cidr", list(member.pods));
        config.insert("service-cidr", list(member.services));
        if !settings.disable.is_empty() {
            config.insert("disable", json!(settings.disable));
        }
        if let Some(backend) = &settings.flannel_backend {
            config.insert("flannel-backend", json!(backend));
        }
        if member.founds {
            config.insert("cluster-init", true.into());
        } else {
            config.insert("server", join.into());
        }
        &settings.server
    } else {
        config.insert("token", json!(secrets.agent_token().expose()));
        config.insert("server", join.into());
        &settings.agent
    };
    let own = config
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    let more = more.iter().map(|(key, value)| (key.clone(), value.clone()));
    Value::Object(more.chain(own).collect::<Map<_, _>>())
}
