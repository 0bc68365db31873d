//! OAuth 2.0's device flow (RFC 8628), as Talos asks for it before it fetches its machine config.
//!
//! ```text
//!   POST /device/code   by its address, its neighbour entry, its latest boot -> device_code
//!   POST /token         authorization_pending ... until policy, or a person by `node approve`, lets it -> access_token
//!   GET  talos.yaml     with Authorization: Bearer
//! ```
//!
//! Nothing is kept but who polls how fast: a code and a token belong to one boot, and the edge derives both from that boot and
//! a key of its own, so a daemon that was killed in between knows them again.
//!
//! Ugly facts of the client (golang.org/x/oauth2, deviceauth.go and internal/token.go; Talos, platform/metal/oauth2):
//! - It polls at once, before the first interval is over, and sends each poll twice, the client's id in a header and then in
//!   the form, until one succeeds. Whoever counts these as too fast makes it slower and slower.
//! - Any error but `authorization_pending` and `slow_down` ends the flow, and the machine starts anew.
//! - It speaks to where its config is, so in clear; what is proven is who asks, not that nobody listens.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::boot::{BootDecision, BootRequest, Hold};
use crate::loader::{Architecture, Client};
use crate::net::{Digest, MacAddress, NodeName, Timestamp};
use crate::node::NodeSpec;
use crate::release::{WINDOW_SECONDS, Withheld};
use crate::site::Site;
use crate::spec::Profile;

/// Seconds between two polls (RFC 8628, 3.2).
pub const INTERVAL_SECONDS: u64 = 5;
/// Requests in one interval that are still at the right pace: two polls, each sent twice.
const REQUESTS_MAX: u8 = 4;
/// The kernel argument that makes Talos ask (Talos, reference/kernel: `talos.config.oauth.client_id`).
const ASKED_BY: &str = "talos.config.oauth.client_id=";

/// Who asks, as the edge saw it, and what it says of itself (`talos.config.oauth.extra_variable`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The connection's source.
    pub address: Ipv4Addr,
    /// The MAC the kernel has for that source.
    pub neighbour: Option<MacAddress>,
    /// The MAC it names.
    pub mac: Option<MacAddress>,
    /// The UUID it names.
    pub uuid: Option<Uuid>,
    /// The serial number it names.
    pub serial: Option<String>,
}

/// The boot that a device flow is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applicant {
    /// Which machine.
    pub node: NodeName,
    /// Which of its attempts.
    pub attempt: u32,
    /// SHA-256 of that attempt's token.
    pub token: Digest,
    /// When codes and tokens of this boot end.
    pub expires: Timestamp,
}

/// Whether a machine may have its config, as far as policy and people go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consent {
    /// It may.
    Given,
    /// Not yet, and what it waits for.
    Awaited(String),
    /// It may not, and why.
    Refused(String),
}

/// The answer to a poll (RFC 8628, 3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Poll {
    /// The access token.
    Granted,
    /// `authorization_pending`, and what for; `first` for an attempt's first.
    Pending {
        /// What it waits for.
        why: String,
        /// Nothing was said of this before.
        first: bool,
    },
    /// `slow_down`
    SlowDown,
    /// `access_denied`, and why.
    Denied(String),
}

impl Profile {
    /// True when its kernel arguments make Talos go through the device flow; then its config needs the token.
    #[must_use]
    pub fn asks_for_device_flow(&self) -> bool {
        self.arguments
            .iter()
            .any(|argument| argument.trim_start().starts_with(ASKED_BY))
    }
}

impl Site {
    /// The boot that a device's flow is for at `now`.
    ///
    /// # Errors
    /// It is no machine's address, not that machine, or its boot is over.
    pub fn applicant(&self, device: &Device, now: Timestamp) -> Result<Applicant, Withheld> {
        let node = self
            .spec
            .node_by_address(device.address)
            .ok_or(Withheld::UnknownToken)?;
        self.came_from(node, device.address, device.neighbour)?;
        let attempt = self.record(&node.name).attempt.as_ref();
        let attempt = attempt.ok_or(Withheld::UnknownToken)?;
        let expires = attempt.started.plus_seconds(WINDOW_SECONDS);
        if expires < now {
            return Err(Withheld::TooLate(node.name.clone()));
        }
        Ok(Applicant {
            node: node.name.clone(),
            attempt: attempt.number,
            token: attempt.token,
            expires,
        })
    }

    /// Whether `applicant` may have its config at `now`, after what `device` says of itself.
    #[must_use]
    pub fn consent(&self, applicant: &Applicant, device: &Device, now: Timestamp) -> Consent {
        let Some(node) = self.spec.node(&applicant.node) else {
            return Consent::Refused("it is not listed any more".to_owned());
        };
        let mac = device.mac.or_else(|| own_mac(node, device.address));
        let Some(mac) = mac.filter(|mac| node.link_of(*mac).is_some()) else {
            return Consent::Refused(format!(
                "it names a MAC address that is not of {}",
                node.name
            ));
        };
        let request = BootRequest {
            mac,
            client: Client::Ipxe(Architecture::BIOS),
            network: &node.boot_link().network,
            uuid: device.uuid,
            serial: device.serial.as_deref(),
            chainloads: 0,
        };
        match self.decide(&request, now).answer {
            // The script that it runs may have been its last one.
            BootDecision::Boot(_) | BootDecision::Hold(Hold::AttemptsUsedUp(_)) => Consent::Given,
            BootDecision::Hold(hold) => Consent::Awaited(hold.to_string()),
            BootDecision::Refuse(refused) => Consent::Refused(refused.to_string()),
            BootDecision::LocalDisk => Consent::Refused(
                "its install was acknowledged, and it boots from its disk".to_owned(),
            ),
            BootDecision::Chainload(_) => Consent::Refused("it has no script to run".to_owned()),
        }
    }
}

fn own_mac(node: &NodeSpec, address: Ipv4Addr) -> Option<MacAddress> {
    node.link_at(address)?.macs.first().copied()
}

/// Who polls how fast, at most one entry for each machine that is listed.
#[derive(Debug, Default)]
pub struct Desk(BTreeMap<NodeName, Pace>);

#[derive(Debug)]
struct Pace {
    attempt: u32,
    since: Timestamp,
    requests: u8,
}

impl Desk {
    /// Answers a poll with the right code.
    pub fn poll(&mut self, applicant: &Applicant, consent: Consent, now: Timestamp) -> Poll {
        let why = match consent {
            Consent::Awaited(why) => why,
            Consent::Given => {
                self.0.remove(&applicant.node);
                return Poll::Granted;
            }
            Consent::Refused(why) => {
                self.0.remove(&applicant.node);
                return Poll::Denied(why);
            }
        };
        let begin = |attempt| Pace {
            attempt,
            since: now,
            requests: 0,
        };
        let mut first = false;
        let pace = self.0.entry(applicant.node.clone()).or_insert_with(|| {
            first = true;
            begin(applicant.attempt)
        });
        if pace.attempt != applicant.attempt {
            (*pace, first) = (begin(applicant.attempt), true);
        }
        if now.millis_since(pace.since) >= INTERVAL_SECONDS * 1000 {
            *pace = begin(applicant.attempt);
        }
        pace.requests = pace.requests.saturating_add(1);
        if pace.requests > REQUESTS_MAX {
            return Poll::SlowDown;
        }
        Poll::Pending { why, first }
    }
}
