//! May this config leave now, to this address? A config may hold secrets, and knowing a URL proves
//! nothing on a shared wire, so three things must agree: the token of the node's latest boot script,
//! the address it was reserved, and the MAC that the kernel's neighbour table has for that address.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::boot::writable_disk;
use crate::cluster::Waits;
use crate::delivery::Spent;
use crate::net::{Digest, MacAddress, NodeName, Timestamp};
use crate::node::{Admission, Attempt, DiskRule, NodeRecord, NodeSpec};
use crate::site::Site;
use crate::spec::{Network, Profile, Purpose};

/// Seconds after its boot script in which a node may fetch its config.
pub const WINDOW_SECONDS: u64 = 3600;

/// Who asks for a config, as the edge saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// SHA-256 of the token in the URL.
    pub token: Digest,
    /// The connection's source.
    pub address: Ipv4Addr,
    /// The MAC the kernel has for that source on the link that heard it.
    pub neighbour: Option<MacAddress>,
}

/// A config that may leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Release {
    /// Whose.
    pub node: Arc<NodeSpec>,
    /// Of which profile.
    pub profile: Arc<Profile>,
    /// For which attempt.
    pub attempt: u32,
    /// The disk that may be written.
    pub disk: Option<DiskRule>,
    /// Of which install.
    pub generation: u32,
    /// The attempt's config left before, so nothing durable changes.
    pub repeated: bool,
}

/// Why a config stays. The node is told only "refused"; this is for the ledger and `node why`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// No node's latest boot script bears the token.
    UnknownToken,
    /// The node already acknowledged its install.
    Finished(NodeName),
    /// A person said no since.
    Rejected(NodeName),
    /// The window after the boot script is over.
    TooLate(NodeName),
    /// Its cluster is not ready for it.
    NotItsTurn(NodeName, Waits),
    /// It leaves no more in this boot.
    Spent(NodeName, Spent),
    /// The source is not the node's address.
    OtherAddress {
        /// Whose config was asked for.
        node: NodeName,
        /// From where.
        from: Ipv4Addr,
    },
    /// The neighbour behind the address is another machine, or unknown.
    OtherMachine {
        /// Whose config was asked for.
        node: NodeName,
        /// By which MAC, where the kernel knew one.
        mac: Option<MacAddress>,
    },
}

impl Withheld {
    /// The node whose token is used up: whoever still asks by it, once the config left, is an alarm.
    #[must_use]
    pub fn spent(&self) -> Option<&NodeName> {
        match self {
            Self::Finished(node) | Self::TooLate(node) | Self::Spent(node, _) => Some(node),
            Self::UnknownToken
            | Self::Rejected(_)
            | Self::NotItsTurn(..)
            | Self::OtherAddress { .. }
            | Self::OtherMachine { .. } => None,
        }
    }

    /// The node whose config was asked for, where the token told.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::UnknownToken => None,
            Self::Finished(node)
            | Self::Rejected(node)
            | Self::TooLate(node)
            | Self::NotItsTurn(node, _)
            | Self::Spent(node, _) => Some(node),
            Self::OtherAddress { node, .. } | Self::OtherMachine { node, .. } => Some(node),
        }
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToken => f.write_str("the token is of no boot script in force"),
            Self::Finished(node) => write!(f, "{node} already acknowledged its install"),
            Self::Rejected(node) => write!(
                f,
                "{node} was rejected; `reveille node approve {node}` lets it in"
            ),
            Self::TooLate(node) => write!(
                f,
                "{node} was served its boot script too long ago; boot it again"
            ),
            Self::NotItsTurn(node, waits) => write!(f, "{node} {waits}"),
            Self::Spent(node, spent) => write!(f, "the config of {node} {spent}"),
            Self::OtherAddress { node, from } => {
                write!(f, "{from} is not the address reserved for {node}")
            }
            Self::OtherMachine {
                node,
                mac: Some(mac),
            } => write!(f, "{mac} is not a MAC address of {node}"),
            Self::OtherMachine { node, mac: None } => {
                write!(f, "the kernel knows no neighbour at the address of {node}")
            }
        }
    }
}

impl Site {
    /// May the config that `asker` wants leave at `now`?
    ///
    /// # Errors
    /// The first reason why not.
    pub fn may_release(&self, asker: &Asker, now: Timestamp) -> Result<Release, Withheld> {
        let (node, record, attempt) = self
            .attempt_of(&asker.token)
            .ok_or(Withheld::UnknownToken)?;
        let name = || node.name.clone();
        let profile = self
            .spec
            .profile(&attempt.profile)
            .ok_or(Withheld::UnknownToken)?;
        if profile.purpose == Purpose::Install && record.installed.is_some() {
            return Err(Withheld::Finished(name()));
        }
        if record.admission == Admission::Rejected {
            return Err(Withheld::Rejected(name()));
        }
        if now.millis_since(attempt.started) > WINDOW_SECONDS * 1000 {
            return Err(Withheld::TooLate(name()));
        }
        self.came_from(node, asker.address, asker.neighbour)?;
        self.turn(node)
            .map_err(|waits| Withheld::NotItsTurn(name(), waits))?;
        let (node, profile) = (Arc::clone(node), Arc::clone(profile));
        Ok(Release {
            disk: writable_disk(record.consented_disk.as_ref(), &node, &profile),
            generation: record.generation,
            node,
            profile,
            attempt: attempt.number,
            repeated: attempt.released.is_some(),
        })
    }

    /// May `node` be told to boot by a request whose source has this MAC in the neighbour table? Anybody
    /// can ask for a machine's script; only its own asking counts as an attempt and carries a token.
    ///
    /// # Errors
    /// The source is another machine, or the kernel doesn't know it.
    pub fn may_boot_from(
        &self,
        node: &NodeSpec,
        network: &Network,
        neighbour: Option<MacAddress>,
    ) -> Result<(), Withheld> {
        match neighbour {
            Some(mac) if node.link_of(mac).is_some() => Ok(()),
            _ if network.relayed => Ok(()),
            mac => Err(Withheld::OtherMachine {
                node: node.name.clone(),
                mac,
            }),
        }
    }

    /// The node, record and attempt that a token belongs to.
    pub(crate) fn attempt_of(
        &self,
        token: &Digest,
    ) -> Option<(&Arc<NodeSpec>, &NodeRecord, &Attempt)> {
        let node = self.node_by_token(token)?;
        let record = self.record(&node.name);
        Some((node, record, record.attempt.as_ref()?))
    }

    /// True to `node` is a source that bears one of its addresses and, where no relay lies between, the
    /// MAC of that very link.
    pub(crate) fn came_from(
        &self,
        node: &NodeSpec,
        from: Ipv4Addr,
        neighbour: Option<MacAddress>,
    ) -> Result<(), Withheld> {
        let Some(link) = node.link_at(from) else {
            return Err(Withheld::OtherAddress {
                node: node.name.clone(),
                from,
            });
        };
        let relayed = self
            .spec
            .network(&link.network)
            .is_some_and(|network| network.relayed);
        match neighbour {
            Some(mac) if link.macs.contains(&mac) => Ok(()),
            // A relay's own MAC stands in the table there, so it can neither prove nor disprove.
            _ if relayed => Ok(()),
            mac => Err(Withheld::OtherMachine {
                node: node.name.clone(),
                mac,
            }),
        }
    }
}
