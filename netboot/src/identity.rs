//! Which machine is asking: MAC first, then whatever else the firmware shows must agree with it.
//!
//! SMBIOS is filled in by people: boards ship with UUIDs of all zeros, all ones or a vendor's sample,
//! and with serial numbers like "Default string". Such values say nothing, so they neither identify
//! nor contradict. A sound value that contradicts stops the machine: guessing wrong wipes a disk.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::net::{MacAddress, NodeName};
use crate::node::{NodeSpec, uuid_is_sound};
use crate::spec::SiteSpec;

/// The answer to "which machine is this?".
#[derive(Clone, Debug, PartialEq)]
pub enum Identity<'a> {
    /// The inventory lists it and nothing contradicts.
    Known(&'a Arc<NodeSpec>),
    /// Nothing about it is listed.
    Unknown,
    /// What it shows contradicts the inventory.
    Conflict(Conflict),
}

/// How a machine contradicts the inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The MAC is one machine's and the UUID another's.
    TwoMachines {
        /// By MAC.
        mac: NodeName,
        /// By UUID.
        uuid: NodeName,
    },
    /// The UUID is a listed machine's, the MAC nobody's.
    UnlistedMac {
        /// By UUID.
        node: NodeName,
    },
    /// The machine shows another UUID than the inventory gives it.
    OtherUuid {
        /// By MAC.
        node: NodeName,
        /// Listed.
        listed: Uuid,
        /// Shown.
        shown: Uuid,
    },
    /// The machine shows another serial number than the inventory gives it.
    OtherSerial {
        /// By MAC.
        node: NodeName,
        /// Listed.
        listed: String,
        /// Shown, at most 64 characters.
        shown: String,
    },
}

impl Conflict {
    /// The machine whose entry should be looked at first.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        match self {
            Self::TwoMachines { mac, .. } => mac,
            Self::UnlistedMac { node }
            | Self::OtherUuid { node, .. }
            | Self::OtherSerial { node, .. } => node,
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoMachines { mac, uuid } => write!(f, "MAC address of {mac}, UUID of {uuid}"),
            Self::UnlistedMac { node } => {
                write!(f, "UUID of {node}, but a MAC address that is not listed")
            }
            Self::OtherUuid {
                node,
                listed,
                shown,
            } => write!(f, "{node} is listed with UUID {listed} and shows {shown}"),
            Self::OtherSerial {
                node,
                listed,
                shown,
            } => {
                write!(
                    f,
                    "{node} is listed with serial {listed:?} and shows {shown:?}"
                )
            }
        }
    }
}

/// Matches what a machine shows with the inventory.
#[must_use]
pub fn identify<'a>(
    spec: &'a SiteSpec,
    mac: MacAddress,
    uuid: Option<Uuid>,
    serial: Option<&str>,
) -> Identity<'a> {
    let uuid = uuid.filter(|uuid| uuid_is_sound(*uuid));
    let by_uuid = uuid.and_then(|uuid| spec.node_by_uuid(uuid));
    let Some(node) = spec.node_by_mac(mac) else {
        return match by_uuid {
            Some(node) => Identity::Conflict(Conflict::UnlistedMac {
                node: node.name.clone(),
            }),
            None => Identity::Unknown,
        };
    };
    if let Some(other) = by_uuid.filter(|other| other.name != node.name) {
        return Identity::Conflict(Conflict::TwoMachines {
            mac: node.name.clone(),
            uuid: other.name.clone(),
        });
    }
    if let (Some(listed), Some(shown)) = (node.uuid, uuid)
        && listed != shown
    {
        return Identity::Conflict(Conflict::OtherUuid {
            node: node.name.clone(),
            listed,
            shown,
        });
    }
    if let (Some(listed), Some(shown)) = (&node.serial, serial)
        && serial_is_sound(shown)
        && !listed.trim().eq_ignore_ascii_case(shown.trim())
    {
        let shown = shown.trim().chars().take(64).collect();
        return Identity::Conflict(Conflict::OtherSerial {
            node: node.name.clone(),
            listed: listed.clone(),
            shown,
        });
    }
    Identity::Known(node)
}

fn serial_is_sound(serial: &str) -> bool {
    const EMPTY: [&str; 8] = [
        "default string",
        "to be filled by o.e.m.",
        "system serial number",
        "not specified",
        "none",
        "n/a",
        "0123456789",
        "123456789",
    ];
    let serial = serial.trim().to_ascii_lowercase();
    serial
        .chars()
        .any(|c| c.is_ascii_alphanumeric() && c != '0')
        && !EMPTY.contains(&serial.as_str())
}
