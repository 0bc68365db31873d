//! `platformConfig` of a Talos cluster: what an operator may say beyond the definition's own fields.

use serde_json::Value;

use super::patch::{self, Audience};
use super::version::{Contract, Version, numbers};
use crate::platform::{Role, SettingFault};

/// Where installers without a name come from.
const INSTALLER: &str = "ghcr.io/siderolabs/installer";
/// The most entries any list may have.
const LIST_MAX: usize = 64;

/// `platformConfig` of a Talos cluster, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `kubernetesVersion`, without a `v`. By default the first release of the newest minor that the Talos release runs.
    pub kubernetes: String,
    /// `installImage` with its tag. By default the project's own.
    pub install_image: String,
    /// `discovery`: whether members find each other by way of `https://discovery.talos.dev`. True by default, as it is upstream.
    pub discovery: bool,
    /// `timeServers`: host names or addresses; by default Talos' own choice.
    pub time_servers: Vec<String>,
    /// `certSANs`: further names and addresses of the API.
    pub cert_sans: Vec<String>,
    /// `patches`.
    patches: Vec<Value>,
    /// `controlPlanePatches`.
    control_plane_patches: Vec<Value>,
    /// `workerPatches`.
    worker_patches: Vec<Value>,
}

impl Settings {
    /// The documents of the patches for a role, in the order in which they are laid on.
    pub fn patches(&self, role: Role) -> impl Iterator<Item = &Value> {
        let own = match role {
            Role::ControlPlane => &self.control_plane_patches[..],
            Role::Worker | Role::Infra => &self.worker_patches[..],
            Role::Bastion | Role::Bootstrap => &[],
        };
        self.patches.iter().chain(own)
    }
}

/// Judges `platformConfig` for a release.
///
/// # Errors
/// Every fault, each with its JSON pointer.
pub fn judge(settings: &Value, version: Version) -> Result<Settings, Vec<SettingFault>> {
    let mut judged = Settings {
        kubernetes: format!("1.{}.0", version.contract().kubernetes().1),
        install_image: format!("{INSTALLER}:{version}"),
        discovery: true,
        time_servers: Vec::new(),
        cert_sans: Vec::new(),
        patches: Vec::new(),
        control_plane_patches: Vec::new(),
        worker_patches: Vec::new(),
    };
    let mut faults = Vec::new();
    let keys = match settings {
        Value::Null => return Ok(judged),
        Value::Object(keys) => keys,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let fault = SettingFault::new("", settings, "is no map", "write keys and values");
            return Err(vec![fault]);
        }
    };
    for (key, value) in keys {
        let pointer = format!("/{}", patch::escape(key));
        let mut judge = Judge {
            pointer,
            value,
            contract: version.contract(),
            faults: &mut faults,
        };
        match key.as_str() {
            "kubernetesVersion" => judge.kubernetes(&mut judged.kubernetes),
            "installImage" => judge.image(version, &mut judged.install_image),
            "discovery" => match value.as_bool() {
                Some(wanted) => judged.discovery = wanted,
                None => judge.fault("is neither true nor false", "write one of the two"),
            },
            "timeServers" => judged.time_servers = judge.hosts(),
            "certSANs" => judged.cert_sans = judge.hosts(),
            "patches" => judged.patches = judge.patches(Audience::Everybody),
            "controlPlanePatches" => {
                judged.control_plane_patches = judge.patches(Audience::ControlPlanes);
            }
            "workerPatches" => judged.worker_patches = judge.patches(Audience::Workers),
            _ => judge.fault(
                "stands under a key that Talos clusters don't have",
                "they have kubernetesVersion, installImage, discovery, timeServers, certSANs, patches, controlPlanePatches and workerPatches",
            ),
        }
    }
    if faults.is_empty() {
        Ok(judged)
    } else {
        Err(faults)
    }
}

/// One key being judged.
struct Judge<'a> {
    pointer: String,
    value: &'a Value,
    contract: Contract,
    faults: &'a mut Vec<SettingFault>,
}

impl<'a> Judge<'a> {
    fn fault(&mut self, problem: &str, remedy: &str) {
        self.faults.push(SettingFault::new(
            self.pointer.clone(),
            self.value,
            problem,
            remedy,
        ));
    }

    fn kubernetes(&mut self, wanted: &mut String) {
        let Some([major, minor, patch]) = self.value.as_str().and_then(numbers) else {
            return self.fault(
                "is no release of Kubernetes",
                "write it in full, such as 1.32.3",
            );
        };
        let (oldest, newest) = self.contract.kubernetes();
        if major != 1 || !(oldest..=newest).contains(&minor) {
            let ours = self.contract.minor();
            let problem = format!("is not run by Talos 1.{ours}");
            return self.fault(&problem, &format!("choose one of 1.{oldest} to 1.{newest}"));
        }
        *wanted = format!("{major}.{minor}.{patch}");
    }

    /// An image with a tag of another release would install that release, and with it another contract.
    fn image(&mut self, version: Version, wanted: &mut String) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
        let image = self.value.as_str().unwrap_or_default();
        if image.is_empty() || image.contains('@') || !image.bytes().all(plain) {
            return self.fault(
                "is no name of an installer's image",
                "write registry/name, with or without the release as its tag",
            );
        }
        let (name, tag) = match image.rsplit_once(':') {
            // What follows the last colon is a registry's port.
            Some((_, port)) if port.contains('/') => (image, None),
            Some((name, tag)) => (name, Some(tag)),
            None => (image, None),
        };
        if tag.is_some_and(|tag| tag != version.to_string()) {
            let remedy =
                format!("write the tag {version}, or none; the release is the cluster's `version`");
            return self.fault("is an image of another release", &remedy);
        }
        *wanted = format!("{name}:{version}");
    }

    fn list(&mut self, what: &str) -> &'a [Value] {
        let list = self.value.as_array().filter(|list| list.len() <= LIST_MAX);
        let Some(list) = list else {
            let remedy = format!("write a list of at most {LIST_MAX} {what}");
            self.fault("is no such list", &remedy);
            return &[];
        };
        list
    }

    fn hosts(&mut self) -> Vec<String> {
        let mut hosts = Vec::new();
        for (index, host) in self.list("host names or addresses").iter().enumerate() {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:*".contains(&byte);
            match host.as_str() {
                Some(text) if !text.is_empty() && text.len() <= 253 && text.bytes().all(plain) => {
                    hosts.push(text.to_owned());
                }
                _ => self.faults.push(SettingFault::new(
                    format!("{}/{index}", self.pointer),
                    host,
                    "is no host name or address",
                    "correct or remove it",
                )),
            }
        }
        hosts
    }

    fn patches(&mut self, audience: Audience) -> Vec<Value> {
        let mut documents = Vec::new();
        for (index, patch) in self.list("patches").iter().enumerate() {
            let pointer = format!("{}/{index}", self.pointer);
            documents.extend(patch::read(
                &pointer,
                patch,
                audience,
                self.contract,
                self.faults,
            ));
        }
        documents
    }
}
