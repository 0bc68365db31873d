//! The closed list of what can be done to the host's network, and the words for it.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::host::{ReversePath, Ruleset, TABLE};
use crate::link::{LinkKind, MAIN_TABLE, Route, Rule};
use crate::net::{LinkName, MacAddress};

/// One change of the host's network. Each is done whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Makes a link, down, marked as ours.
    AddLink {
        /// Its name.
        link: LinkName,
        /// What it is, without ports: they join it by [`Operation::SetMaster`].
        kind: LinkKind,
        /// The number it had before; the kernel's choice otherwise.
        index: Option<u32>,
        /// The MAC address it had before; the kernel's choice otherwise.
        mac: Option<MacAddress>,
    },
    /// Removes a link of ours, and with it what hangs on it.
    RemoveLink {
        /// Its name.
        link: LinkName,
    },
    /// Brings a link up or down.
    SetUp {
        /// Its name.
        link: LinkName,
        /// Up or down.
        up: bool,
    },
    /// Sets the largest packet.
    SetMtu {
        /// Of this link.
        link: LinkName,
        /// Bytes.
        mtu: u32,
    },
    /// Makes a link a port, or frees it.
    SetMaster {
        /// The port.
        link: LinkName,
        /// The bridge or bond.
        master: Option<LinkName>,
    },
    /// Adds an address, marked as ours; an IPv6 one without duplicate address detection, because until that
    /// has ended no route can name it as its source.
    AddAddress {
        /// To this link.
        link: LinkName,
        /// With its prefix.
        address: IpNet,
    },
    /// Removes an address of ours.
    RemoveAddress {
        /// From this link.
        link: LinkName,
        /// With its prefix.
        address: IpNet,
    },
    /// Adds a route, marked as ours.
    AddRoute {
        /// It leaves by this link.
        link: LinkName,
        /// The route.
        route: Route,
    },
    /// Removes a route of ours.
    RemoveRoute {
        /// It leaves by this link.
        link: LinkName,
        /// The route.
        route: Route,
    },
    /// Adds a rule, marked as ours.
    AddRule {
        /// The rule.
        rule: Rule,
    },
    /// Removes a rule of ours.
    RemoveRule {
        /// The rule.
        rule: Rule,
    },
    /// Sets IPv4 forwarding of what comes in by a link.
    SetForwarding {
        /// The link.
        link: LinkName,
        /// On or off.
        on: bool,
    },
    /// Sets how strictly sources are checked.
    SetReversePath {
        /// Of packets that come in by this link.
        link: LinkName,
        /// How strictly.
        rp_filter: ReversePath,
    },
    /// Puts our table of the firewall in the place of the one there is, in one transaction.
    SetRuleset {
        /// The table; `None` removes it.
        ruleset: Option<Ruleset>,
    },
}

impl Operation {
    /// The link it changes, if it is about one.
    #[must_use]
    pub fn link(&self) -> Option<&LinkName> {
        match self {
            Self::AddLink { link, .. }
            | Self::RemoveLink { link }
            | Self::SetUp { link, .. }
            | Self::SetMtu { link, .. }
            | Self::SetMaster { link, .. }
            | Self::AddAddress { link, .. }
            | Self::RemoveAddress { link, .. }
            | Self::AddRoute { link, .. }
            | Self::RemoveRoute { link, .. }
            | Self::SetForwarding { link, .. }
            | Self::SetReversePath { link, .. } => Some(link),
            Self::AddRule { .. } | Self::RemoveRule { .. } | Self::SetRuleset { .. } => None,
        }
    }
}

/// One line for people.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink { link, kind, .. } => match kind {
                LinkKind::Card { .. } => write!(f, "add {link}"),
                LinkKind::Vlan { parent, id } => {
                    write!(f, "add VLAN {} on {parent} as {link}", id.get())
                }
                LinkKind::Bridge { stp, .. } => {
                    let stp = if *stp { " with STP" } else { "" };
                    write!(f, "add bridge {link}{stp}")
                }
                LinkKind::Bond { mode, .. } => write!(f, "add bond {link} ({})", mode.word()),
            },
            Self::RemoveLink { link } => write!(f, "remove {link}"),
            Self::SetUp { link, up } => {
                write!(f, "bring {link} {}", if *up { "up" } else { "down" })
            }
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::SetMaster {
                link,
                master: Some(master),
            } => write!(f, "make {link} a port of {master}"),
            Self::SetMaster { link, master: None } => write!(f, "make {link} a port of nothing"),
            Self::AddAddress { link, address } => write!(f, "add {address} to {link}"),
            Self::RemoveAddress { link, address } => write!(f, "remove {address} from {link}"),
            Self::AddRoute { link, route } => write!(f, "add route {route} by {link}"),
            Self::RemoveRoute { link, route } => write!(f, "remove route {route} by {link}"),
            Self::AddRule { rule } => write!(f, "add rule {rule}"),
            Self::RemoveRule { rule } => write!(f, "remove rule {rule}"),
            Self::SetForwarding { link, on } => {
                let whether = if *on { "forward" } else { "do not forward" };
                write!(f, "{whether} what comes in by {link}")
            }
            Self::SetReversePath { link, rp_filter } => {
                write!(f, "set rp_filter of {link} to {}", rp_filter.word())
            }
            Self::SetRuleset {
                ruleset: Some(ruleset),
            } => {
                let count = ruleset
                    .0
                    .iter()
                    .filter(|object| object.get("rule").is_some());
                let count = count.count();
                write!(
                    f,
                    "put the {count} rules of nftables table inet {TABLE} in place"
                )
            }
            Self::SetRuleset { ruleset: None } => {
                write!(f, "remove nftables table inet {TABLE}")
            }
        }
    }
}

/// As `ip route` writes it, without the link.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.to.prefix_len() == 0 {
            f.write_str("default")?;
        } else {
            write!(f, "{}", self.to)?;
        }
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// As `ip rule` writes it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} lookup {}", self.from, self.table)?;
        write!(f, " priority {}", self.priority)
    }
}
