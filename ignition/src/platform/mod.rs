//! The platforms a cluster may be of: what each makes of a machine, and the only room that tells them apart.
//!
//! ```text
//!   platformConfig ──judge──▶ faults, each with its JSON pointer
//!   Membership + secrets ──document──▶ what one member reads
//! ```
//!
//! Above this room a platform is a word in a file, below it plain data: nothing else of the house asks which it is.

mod coreos;
mod course;
pub mod k3s;
mod kubeconfig;
pub mod okd;
mod report;
pub mod talos;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

pub use course::HealthCheck;
pub use netboot::cluster::Role;
use netboot::cluster::{Course, Gate};
use netboot::csr::{Bootstrapper, CsrPolicy};
use netboot::endpoint::Port;
use netboot::net::{Hostname, Malformed, Subnet};
use netboot::spec::{ConfigSource, Profile};
use serde_json::Value;

use crate::secret::Secret;
use crate::{Document, Fault, Subject};

/// What a cluster is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Platform {
    /// OKD and OpenShift on machines of one's own: Ignition made by `openshift-install`.
    Okd,
    /// Talos Linux: one machine config for each member.
    Talos,
    /// k3s on Flatcar, Fedora CoreOS, Debian or Ubuntu.
    K3s,
}

impl Platform {
    /// Every platform, in the order of help texts.
    pub const ALL: [Self; 3] = [Self::Okd, Self::Talos, Self::K3s];

    /// The word in tables, JSON and the site's specs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Okd => "okd",
            Self::Talos => "talos",
            Self::K3s => "k3s",
        }
    }

    /// The ports that the bastion takes for a cluster, and who is behind them.
    ///
    /// OKD's bootstrap machine leaves when etcd has let go of its member, and not when bootstrapping is complete: until
    /// then it may be needed for a quorum (openshift/installer, `cmd/openshift-install/create.go`).
    #[must_use]
    pub fn ports(self) -> Vec<Port> {
        const MEMBER_REMOVED: &str = "bootstrap-member-removed";
        match self {
            Self::Okd => vec![
                Port::api(Some(MEMBER_REMOVED)),
                Port::machine_config(MEMBER_REMOVED),
                Port::ingress(80, "ingress-http", "node-ready"),
                Port::ingress(443, "ingress", "node-ready"),
            ],
            Self::Talos | Self::K3s => vec![Port::api(None)],
        }
    }

    /// Which certificates of its nodes wait for an administrator.
    ///
    /// OKD's own approver knows machines by their Machine objects, which machines of one's own don't have
    /// (openshift/cluster-machine-approver, `README.md`). Talos' controller manager and k3s approve by themselves.
    #[must_use]
    pub fn csr_policy(self) -> CsrPolicy {
        match self {
            Self::Okd => CsrPolicy {
                client: Some(Bootstrapper::ServiceAccount {
                    namespace: "openshift-machine-config-operator".to_owned(),
                    name: "node-bootstrapper".to_owned(),
                }),
                serving: true,
            },
            Self::Talos | Self::K3s => CsrPolicy::default(),
        }
    }

    /// Whether `version` is written as the platform writes its releases.
    ///
    /// # Errors
    /// How it is written.
    pub fn release(self, version: &str) -> Result<(), Malformed> {
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let (sound, rule) = match self {
            Self::Talos => return version.parse::<talos::Version>().map(|_| ()),
            Self::Okd => (
                digits(version) && version.contains('.'),
                "write it as openshift-install does, 4.19.0-okd-scos.1",
            ),
            Self::K3s => (
                version.strip_prefix('v').is_some_and(digits) && version.contains("+k3s"),
                "write it as the release is tagged, v1.32.0+k3s1",
            ),
        };
        if sound {
            Ok(())
        } else {
            Err(Malformed::new("release", version, rule))
        }
    }

    /// What is wrong with a cluster's `platformConfig`; empty where the release is not sound, which is a fault of its own.
    #[must_use]
    pub fn judge(self, version: &str, settings: &Value) -> Vec<SettingFault> {
        let judged = match self {
            Self::Okd => okd::judge(settings).map(|_| ()),
            Self::K3s => k3s::judge(settings).map(|_| ()),
            Self::Talos => match version.parse() {
                Ok(version) => talos::judge(settings, version).map(|_| ()),
                Err(_) => Ok(()),
            },
        };
        judged.err().unwrap_or_default()
    }

    /// Its phases: who may boot when, and what is waited for.
    #[must_use]
    pub fn course(self) -> Course {
        match self {
            Self::Okd => course::okd(),
            Self::Talos => course::talos(),
            Self::K3s => course::k3s(),
        }
    }

    /// What must be seen for a check; `None` where the platform has no such thing.
    #[must_use]
    pub fn evidence(self, check: HealthCheck) -> Option<Vec<Gate>> {
        match (self, check) {
            (Self::Okd, HealthCheck::ClusterOperators) => Some(course::operators_settled()),
            _ => check.common(),
        }
    }

    /// Pod addresses where the definition gives none: the project's own default.
    #[must_use]
    pub fn default_pods(self) -> Subnet {
        subnet(match self {
            // openshift/installer, pkg/types/defaults/installconfig.go, defaultClusterNetwork
            Self::Okd => "10.128.0.0/14",
            // siderolabs/talos, pkg/machinery/constants, DefaultIPv4PodNet
            Self::Talos => "10.244.0.0/16",
            // k3s-io/docs, docs/cli/server.md, `--cluster-cidr`
            Self::K3s => "10.42.0.0/16",
        })
    }

    /// Service addresses where the definition gives none; sources as above.
    #[must_use]
    pub fn default_services(self) -> Subnet {
        subnet(match self {
            Self::Okd => "172.30.0.0/16",
            Self::Talos => "10.96.0.0/12",
            Self::K3s => "10.43.0.0/16",
        })
    }

    /// A cluster's secrets from the vault, where they lie under [`Platform::word`].
    ///
    /// # Errors
    /// Why they can't be used, in words.
    pub fn unseal(self, bytes: &Secret<Vec<u8>>) -> Result<Secrets, String> {
        let words = |faults: &[String]| faults.join("; ");
        match self {
            Self::Okd => okd::InstallerSet::unseal(bytes)
                .map(Secrets::Okd)
                .map_err(|faults| {
                    words(&faults.iter().map(ToString::to_string).collect::<Vec<_>>())
                }),
            Self::Talos => {
                let text = str::from_utf8(bytes.expose()).map_err(|error| error.to_string())?;
                let bundle = talos::Bundle::read(text);
                bundle.map(Secrets::Talos).map_err(|faults| {
                    words(&faults.iter().map(ToString::to_string).collect::<Vec<_>>())
                })
            }
            Self::K3s => k3s::Secrets::unseal(bytes)
                .map(Secrets::K3s)
                .ok_or_else(|| "they are of no version that this program knows".to_owned()),
        }
    }
}

fn subnet(text: &str) -> Subnet {
    text.parse().expect("the networks above are sound")
}

/// What the documents of a cluster's members are made from.
#[derive(Clone, Debug)]
pub enum Secrets {
    /// The set that openshift-install made.
    Okd(okd::InstallerSet),
    /// Talos' own secrets bundle.
    Talos(talos::Bundle),
    /// Authorities and passwords.
    K3s(k3s::Secrets),
}

impl Secrets {
    /// Whose they are.
    #[must_use]
    pub fn platform(&self) -> Platform {
        match self {
            Self::Okd(_) => Platform::Okd,
            Self::Talos(_) => Platform::Talos,
            Self::K3s(_) => Platform::K3s,
        }
    }

    /// Values that open nothing, for whoever wants to see or try the documents of a platform's members.
    #[must_use]
    pub fn stand_in(platform: Platform) -> Self {
        match platform {
            Platform::Okd => Self::Okd(okd::InstallerSet::stand_in()),
            Platform::Talos => Self::Talos(talos::Bundle::stand_in()),
            Platform::K3s => Self::K3s(k3s::Secrets::stand_in()),
        }
    }

    /// As the vault keeps them.
    #[must_use]
    pub fn seal(&self) -> Secret<Vec<u8>> {
        match self {
            Self::Okd(set) => set.seal(),
            Self::Talos(bundle) => Secret::new(bundle.yaml().expose().clone().into_bytes()),
            Self::K3s(secrets) => secrets.seal(),
        }
    }

    /// What one member reads; `None` for a document that its platform has no use for.
    ///
    /// # Errors
    /// Why there is none.
    pub fn document(
        &self,
        member: &Membership<'_>,
        profile: &Profile,
        subject: &Subject<'_>,
        wanted: Document,
    ) -> Result<Option<String>, Fault> {
        if profile.config != ConfigSource::Platform(wanted.format()) {
            return Ok(None);
        }
        match self {
            Self::Okd(set) => okd::document(member, set, profile, subject, wanted),
            Self::Talos(bundle) => talos::document(member, bundle, subject, wanted),
            Self::K3s(secrets) => k3s::document(member, secrets, profile, subject, wanted),
        }
    }
}

/// Writes everything that a member would read, with secrets that open nothing, and names what can't be written.
#[must_use]
pub fn rehearse(
    platform: Platform,
    member: &Membership<'_>,
    profile: &Profile,
    subject: &Subject<'_>,
) -> Vec<Fault> {
    let secrets = Secrets::stand_in(platform);
    Document::ALL
        .into_iter()
        .filter_map(|wanted| secrets.document(member, profile, subject, wanted).err())
        .collect()
}

/// What stands where a secret would, in documents that nobody boots from.
pub(crate) const STAND_IN: &str = "SECRET";

impl FromStr for Platform {
    type Err = Malformed;

    /// Takes the words of cluster definitions, in capitals or small letters.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let word = text.to_ascii_lowercase();
        let rule = match word.as_str() {
            "rke2" => "RKE2 comes later; use OKD, TALOS or K3S",
            "vanilla" | "kubeadm" => {
                "plain Kubernetes (kubeadm) comes later; use OKD, TALOS or K3S"
            }
            _ => "use OKD, TALOS or K3S",
        };
        let known = Self::ALL
            .into_iter()
            .find(|platform| platform.word() == word);
        known.ok_or_else(|| Malformed::new("cluster type", text, rule))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What is wrong with a key of `platformConfig`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("platformConfig{pointer}: {value} {problem}; {remedy}")]
pub struct SettingFault {
    /// Where it stands below `platformConfig`, as RFC 6901 writes it: `/etcd/quota`; empty for the whole.
    pub pointer: String,
    /// The offending value as JSON, cut to 64 characters.
    pub value: String,
    /// What is wrong, in one clause.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl SettingFault {
    /// A fault of the value at `pointer`.
    #[must_use]
    pub fn new(
        pointer: impl Into<String>,
        value: &Value,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            pointer: pointer.into(),
            value: value.to_string().chars().take(64).collect(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// One member's place in its cluster: all that a platform may know when it writes the member's document.
#[derive(Clone, Copy, Debug)]
pub struct Membership<'a> {
    /// The cluster's name, one label.
    pub cluster: &'a str,
    /// The domain that the cluster's name stands in: `lab.example`.
    pub domain: &'a Hostname,
    /// The wanted release, as its platform writes it: `4.19.0`, `v1.32.0+k3s1`.
    pub version: &'a str,
    /// The bastion's address, where [`Membership::api`] leads.
    pub api_address: Ipv4Addr,
    /// Networks of the pods; never empty.
    pub pods: &'a [Subnet],
    /// Networks of the services; never empty.
    pub services: &'a [Subnet],
    /// What the machine is here.
    pub role: Role,
    /// Counts the members of the role over the whole cluster from 0, in listing order.
    pub index: usize,
    /// Its own name.
    pub hostname: &'a Hostname,
    /// Its address on the cluster's network.
    pub address: Ipv4Addr,
    /// True of the one control plane that starts the cluster, while nobody else was seen to be in it
    /// (`netboot::cluster::ClusterState::founds`).
    pub founds: bool,
    /// All control planes in listing order; never empty.
    pub control_planes: &'a [Peer<'a>],
    /// `platformConfig`, judged when the definition was read.
    pub settings: &'a Value,
}

/// Another member, as far as it must be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Its name.
    pub hostname: &'a Hostname,
    /// Its address on the cluster's network.
    pub address: Ipv4Addr,
}

impl Membership<'_> {
    /// The name that everybody reaches the API by: `api.<cluster>.<domain>`.
    #[must_use]
    pub fn api(&self) -> String {
        format!("api.{}.{}", self.cluster, self.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_of_a_key_is_no_stand_in_of_a_token() {
        let Secrets::Talos(bundle) = Secrets::stand_in(Platform::Talos) else {
            unreachable!("Talos has a bundle");
        };
        for key in bundle.private_keys() {
            assert_ne!(key.expose(), bundle.trustd_token.expose());
        }
    }

    #[test]
    fn a_platform_that_comes_later_is_refused_by_its_name() {
        for (text, words) in [
            ("RKE2", "RKE2 comes later"),
            ("VANILLA", "(kubeadm) comes later"),
            ("nomad", "use OKD, TALOS or K3S"),
        ] {
            let refused = text.parse::<Platform>().unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
        for platform in Platform::ALL {
            assert_eq!(platform.word().to_uppercase().parse(), Ok(platform));
        }
    }
}
