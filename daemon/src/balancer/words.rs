//! What the balancer says of itself: one shape for every engine, for people and for scripts.

use std::net::SocketAddrV4;

use netboot::net::NodeName;
use serde::{Deserialize, Serialize};

/// One listener and who is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The cluster.
    pub cluster: String,
    /// The port's name, such as `api`.
    pub name: String,
    /// The TCP port.
    pub port: u16,
    /// Where connections are taken now.
    pub addresses: Vec<SocketAddrV4>,
    /// Why they are not taken somewhere they should be.
    pub fault: Option<String>,
    /// Open now.
    pub connections: u64,
    /// What was counted since the start, by what it is.
    pub totals: Totals,
    /// Who is behind it, and who has left and still finishes.
    pub backends: Vec<BackendStatus>,
}

/// What was counted of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Connections taken.
    pub accepted: u64,
    /// Given to another backend because the first did not take them.
    pub retried: u64,
    /// Closed because no backend took them.
    pub unserved: u64,
    /// Closed because there were too many.
    pub crowded: u64,
    /// Ended by a limit on silence or on finishing.
    pub expired: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The machine.
    pub node: NodeName,
    /// Where.
    pub address: SocketAddrV4,
    /// `up`, `down`, `unknown`, or `leaving` when it only finishes what it has.
    pub health: String,
    /// Serves only while nobody else does.
    pub spare: bool,
    /// Open now.
    pub connections: u64,
    /// Connections it took.
    pub served: u64,
    /// Connections it did not take.
    pub failed: u64,
    /// What its last check said.
    pub detail: String,
}

impl ListenerStatus {
    /// What is wrong with it, if anything: no place, or nobody healthy behind it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if let Some(fault) = &self.fault {
            return Some(fault.clone());
        }
        if self.backends.iter().any(|backend| backend.health == "up") {
            return None;
        }
        let said = self
            .backends
            .iter()
            .map(|b| format!("{}: {}", b.node, b.detail));
        let said: Vec<String> = said.take(3).collect();
        Some(match said.is_empty() {
            true => "no machine is behind it yet".to_owned(),
            false => format!("nobody behind it is up: {}", said.join("; ")),
        })
    }
}
