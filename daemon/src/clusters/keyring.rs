//! The secrets of clusters while the daemon runs: out of the vault, made first where a platform's are made here.
//!
//! | platform | where they come from |
//! |---|---|
//! | Talos | made when a definition first wants the cluster, or imported before |
//! | k3s | the same |
//! | OKD | imported: `openshift-install` makes them |
//!
//! What is made is in the vault before anybody can boot from it. A kubeconfig, and for Talos a talosconfig, are put beside
//! them for whoever administers the cluster.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ignition::platform::{Platform, Secrets, okd, talos};
use ignition::secret::Secret;
use netboot::cluster::{ClusterName, ClusterSpec};
use netboot::net::Timestamp;

use crate::mint;
use crate::probe::kube::KubeAccess;
use crate::probe::talos::Access;
use crate::vault::{KUBECONFIG, TALOSCONFIG, Vault, VaultError};

/// The keys that are in use.
pub struct Keyring {
    vault: Arc<Vault>,
    open: Mutex<BTreeMap<ClusterName, Arc<Keys>>>,
    /// Held from looking into the vault until what is there is in use, so that secrets which are being made never replace
    /// those that a person imports meanwhile.
    changing: Mutex<()>,
    /// Clusters that were destroyed, by the moment that the last of each name was taken in: whoever still works on one of
    /// them makes no secrets any more.
    destroyed: Mutex<BTreeMap<ClusterName, Timestamp>>,
}

/// What opens one cluster.
pub(crate) struct Keys {
    /// What its members' documents are made from.
    pub(crate) secrets: Secrets,
    /// Its API, as its administrator.
    pub(crate) kubeconfig: Secret<Vec<u8>>,
    /// Its machines' own API, where the platform has one.
    pub(crate) machines: Option<Access>,
}

/// Why a cluster's secrets can't be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoKeys(String);

impl Keyring {
    /// A keyring that has asked for nothing yet.
    #[must_use]
    pub fn new(vault: Arc<Vault>) -> Self {
        Self {
            vault,
            open: Mutex::default(),
            changing: Mutex::default(),
            destroyed: Mutex::default(),
        }
    }

    /// Where they are at rest.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// The keys of a cluster, where [`Keyring::prepare`] found them.
    pub(crate) fn keys(&self, cluster: &ClusterName) -> Option<Arc<Keys>> {
        self.held().get(cluster).cloned()
    }

    /// Forgets what is in memory, so that the vault is asked again: its content was replaced.
    pub(crate) fn forget(&self, cluster: &ClusterName) {
        self.held().remove(cluster);
    }

    /// Forgets what is in memory and in the vault of the cluster that was taken in at `founded`. Blocks on the disk.
    ///
    /// # Errors
    /// [`VaultError`]; asked again, it goes on where it stopped.
    pub(crate) fn destroy(
        &self,
        cluster: &ClusterName,
        founded: Timestamp,
    ) -> Result<(), VaultError> {
        let _one_at_a_time = self.changing();
        self.destroyed().insert(cluster.clone(), founded);
        self.forget(cluster);
        self.vault.forget(cluster)
    }

    /// The keys of a cluster, taken in at `founded`, out of the vault; made first where they are ours to make. Blocks on the
    /// disk, and for the length of making an RSA key.
    ///
    /// # Errors
    /// [`NoKeys`], in words for `status`.
    pub(crate) fn prepare(
        &self,
        spec: &ClusterSpec,
        founded: Timestamp,
        planes: &[Ipv4Addr],
        now: Timestamp,
    ) -> Result<Arc<Keys>, NoKeys> {
        let platform: Platform = spec
            .platform
            .parse()
            .map_err(|error| said("reading the platform", &error))?;
        let held = || {
            let keys = self.keys(&spec.name);
            keys.filter(|keys| keys.secrets.platform() == platform)
        };
        if let Some(keys) = held() {
            return Ok(keys);
        }
        let _one_at_a_time = self.changing();
        if let Some(keys) = held() {
            return Ok(keys);
        }
        self.must_live(spec, founded)?;
        let sealed = self.vault.get(&spec.name, platform.word());
        let secrets = match sealed.map_err(|error| said("opening its secrets", &error))? {
            Some(sealed) => platform.unseal(&sealed).map_err(NoKeys)?,
            None => self.make(platform, spec, now)?,
        };
        let keys = Arc::new(self.admin(spec, secrets, planes, now)?);
        self.held().insert(spec.name.clone(), Arc::clone(&keys));
        Ok(keys)
    }

    /// Keeps secrets that others made, in the place of what is there. Blocks on the disk.
    ///
    /// # Errors
    /// [`NoKeys`]: everything that is wrong with them, or the disk's refusal; nothing changed.
    pub(crate) fn import(
        &self,
        spec: &ClusterSpec,
        founded: Timestamp,
        sealed: &Secret<Vec<u8>>,
        now: Timestamp,
    ) -> Result<String, NoKeys> {
        let platform: Platform = spec
            .platform
            .parse()
            .map_err(|error| said("reading the platform", &error))?;
        let secrets = platform.unseal(sealed).map_err(NoKeys)?;
        let told = match &secrets {
            Secrets::Okd(set) => {
                let foreign = set.foreign(spec.name.as_str(), &spec.domain);
                refuse(&foreign)?;
                // Nobody could ask the cluster anything, and that would show only once it runs.
                let kubeconfig = set.file(okd::File::Kubeconfig).to_bytes();
                KubeAccess::from_kubeconfig(&kubeconfig, &[]).map_err(|fault| {
                    let file = okd::File::Kubeconfig.path();
                    NoKeys(format!(
                        "{file}: {fault}; take it as openshift-install wrote it"
                    ))
                })?;
                let age = set.life().age(now);
                if !age.may_install() {
                    return Err(NoKeys(format!("the set can't be used: {age}")));
                }
                format!("the installer's set of {} is kept: {age}", spec.name)
            }
            Secrets::Talos(bundle) => {
                refuse(&mint::talos::inspect(bundle, now))?;
                format!("the secrets bundle of {} is kept", spec.name)
            }
            Secrets::K3s(_) => format!("the secrets of {} are kept", spec.name),
        };
        let _one_at_a_time = self.changing();
        self.must_live(spec, founded)?;
        self.vault
            .put(&spec.name, platform.word(), &secrets.seal())
            .map_err(|error| said("keeping its secrets", &error))?;
        self.forget(&spec.name);
        Ok(told)
    }

    fn make(
        &self,
        platform: Platform,
        spec: &ClusterSpec,
        now: Timestamp,
    ) -> Result<Secrets, NoKeys> {
        let made = match platform {
            Platform::Okd => {
                return Err(NoKeys(format!(
                    "waits for `reveille cluster import {0} DIRECTORY` with what openshift-install made, or `reveille cluster import {0} --installer PROGRAM`",
                    spec.name
                )));
            }
            Platform::Talos => mint::talos::bundle(now)
                .map(Secrets::Talos)
                .map_err(|error| said("making its secrets", &error))?,
            Platform::K3s => mint::k3s::secrets(now)
                .map(Secrets::K3s)
                .map_err(|error| said("making its secrets", &error))?,
        };
        self.vault
            .put(&spec.name, platform.word(), &made.seal())
            .map_err(|error| said("keeping its secrets", &error))?;
        Ok(made)
    }

    /// What administers the cluster, put into the vault for whoever asks for it.
    fn admin(
        &self,
        spec: &ClusterSpec,
        secrets: Secrets,
        planes: &[Ipv4Addr],
        now: Timestamp,
    ) -> Result<Keys, NoKeys> {
        let api = format!("api.{}", spec.fqdn());
        let failed =
            |error: &dyn std::error::Error| said("making its administrator's certificate", error);
        let mut machines = None;
        let kubeconfig = match &secrets {
            Secrets::Okd(set) => set.file(okd::File::Kubeconfig).clone(),
            Secrets::K3s(secrets) => mint::k3s::kubeconfig(secrets, spec.name.as_str(), &api, now)
                .map_err(|error| failed(&error))?,
            Secrets::Talos(bundle) => {
                let admin = mint::talos::admin(bundle, now).map_err(|error| failed(&error))?;
                let access = Access::new(&bundle.os.certificate, &admin.certificate, &admin.key);
                machines = Some(access.map_err(|error| failed(&error))?);
                let talosconfig =
                    talos::talosconfig(spec.name.as_str(), planes, planes, bundle, &admin);
                self.put(spec, TALOSCONFIG, &talosconfig)?;
                let admin =
                    mint::talos::kubernetes_admin(bundle, now).map_err(|error| failed(&error))?;
                talos::kubeconfig(spec.name.as_str(), &api, bundle, &admin)
            }
        };
        self.put(spec, KUBECONFIG, &kubeconfig)?;
        Ok(Keys {
            secrets,
            kubeconfig: kubeconfig.to_bytes(),
            machines,
        })
    }

    fn put(&self, spec: &ClusterSpec, kind: &str, text: &Secret<String>) -> Result<(), NoKeys> {
        let put = self.vault.put(&spec.name, kind, &text.to_bytes());
        put.map_err(|error| said("keeping what administers it", &error))
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // It guards the vault, whose writes are whole or not at all.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn must_live(&self, spec: &ClusterSpec, founded: Timestamp) -> Result<(), NoKeys> {
        match self.destroyed().get(&spec.name) {
            Some(gone) if *gone == founded => Err(NoKeys(format!(
                "{0} was destroyed meanwhile; apply it again to make it anew",
                spec.name
            ))),
            _ => Ok(()),
        }
    }

    fn destroyed(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Timestamp>> {
        // Each write is one insertion, so what a panicking holder left is whole.
        self.destroyed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Arc<Keys>>> {
        // Each write is one assignment, so what a panicking holder left is whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse<Fault: ToString>(faults: &[Fault]) -> Result<(), NoKeys> {
    if faults.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Err(NoKeys(words.join("; ")))
}

fn said(act: &str, error: &dyn std::error::Error) -> NoKeys {
    let mut words = format!("{act}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    NoKeys(words)
}
