//! What `site.yaml` wants of the bastion itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::link::Link;
use crate::net::{LinkName, Subnet};

/// What the site wants of the bastion's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSpec {
    /// Who makes the links.
    pub policy: LinkPolicy,
    /// The links, in file order. Those of networks that are not among them are only looked at.
    pub links: Vec<HostLink>,
    /// Which networks reach the outside, and by which link.
    pub masquerade: Vec<Masquerade>,
    /// Which ports are open on which links only; empty when the firewall is off.
    pub services: Vec<Service>,
    /// How long an apply waits to be confirmed, in seconds, 10 to 3600.
    pub confirm_seconds: u32,
}

/// Who makes the bastion's links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkPolicy {
    /// This daemon makes and keeps what the site lists.
    #[default]
    Managed,
    /// Others do; the daemon only says what differs.
    Unmanaged,
}

/// One of the bastion's links as the site wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// The link. One that is not of kind card is made when it isn't there.
    pub link: Link,
    /// Whether packets that come in by it are forwarded; `None` leaves what is there.
    pub forwarding: Option<bool>,
    /// How strictly the sources of its packets are checked; `None` leaves what is there.
    pub rp_filter: Option<ReversePath>,
}

/// How strictly the source of an incoming packet is checked (Linux
/// `Documentation/networking/ip-sysctl.rst`, `rp_filter`). The kernel takes the higher of a link's and all links'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReversePath {
    /// Not at all.
    #[default]
    Off,
    /// The way back must be the link it came by.
    Strict,
    /// There must be a way back, by any link.
    Loose,
}

impl ReversePath {
    /// The site's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Strict => "strict",
            Self::Loose => "loose",
        }
    }
}

/// Machines of one network reach the outside under an address of the bastion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Their addresses.
    pub from: Subnet,
    /// The bastion's link they are on.
    pub inside: LinkName,
    /// The link they leave by.
    pub out: LinkName,
}

/// A port of the bastion that is open on some links and closed on all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is, for people: `dhcp`.
    pub name: &'static str,
    /// Over what.
    pub transport: Transport,
    /// Where.
    pub port: u16,
    /// The links it is open on. Loopback always is.
    pub links: BTreeSet<LinkName>,
}

/// The protocol under a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl HostSpec {
    /// Whether nothing is wanted, so that nothing can be missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.masquerade.is_empty() && self.services.is_empty()
    }

    /// A link that the site lists.
    #[must_use]
    pub fn link(&self, name: &LinkName) -> Option<&HostLink> {
        self.links.iter().find(|wanted| wanted.link.name == *name)
    }
}
