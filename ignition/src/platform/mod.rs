//! The platforms a cluster may be of: what each makes of a machine, and the only room that tells them apart.
//!
//! ```text
//!   platformConfig ──judge──▶ faults, each with its JSON pointer
//!   Membership + secrets ──document──▶ what one member reads
//! ```
//!
//! Above this room a platform is a word in a file, below it plain data: nothing else of the house asks which it is.

pub mod talos;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use netboot::csr::{Bootstrapper, CsrPolicy};
use netboot::net::{Hostname, Malformed, Subnet};

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
}

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
        value: &serde_json::Value,
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

/// What a machine is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The machine this program runs on.
    Bastion,
    /// Starts the cluster and leaves.
    Bootstrap,
    /// Bears the API and etcd.
    ControlPlane,
    /// Bears the load.
    Worker,
    /// A worker for the cluster's own load.
    Infra,
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
    /// All control planes in listing order; never empty. The first starts the cluster.
    pub control_planes: &'a [Peer<'a>],
    /// `platformConfig`, judged when the definition was read.
    pub settings: &'a serde_json::Value,
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

    /// True of the one control plane that starts the cluster: the first that is listed, whoever powers on first.
    #[must_use]
    pub fn starts_the_cluster(&self) -> bool {
        self.role == Role::ControlPlane && self.index == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
