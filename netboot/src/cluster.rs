//! A cluster: what its definition wants, which machines serve it, and what is known of it.
//!
//! ```text
//!   ClusterSpec   what the definition says          placement.rs   groups to machines, sticky
//!   Course        phases, gates, turns: as data     course.rs      whose turn it is, which gate is open
//!   ClusterRecord what was decided and learned      record.rs      events to records; only forward
//!   Service       what the cluster leans on         services.rs    their start order, how they are, who holds
//!   Settling      for how long looks were alike     settling.rs    nothing opens by a clock alone
//! ```
//!
//! No platform is named here. What differs between platforms is data, made once when a definition is read.

mod course;
mod draft;
mod faults;
mod placement;
mod record;
mod services;
mod settling;
mod target;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::net::{Hostname, Name, NetworkName, NodeName, ProfileName, Subnet};

pub use course::{Admit, Course, Gate, Order, Phase, Stage, Unmet, Waits};
pub(crate) use draft::ClusterDraft;
pub(crate) use faults::cluster_faults;
pub use placement::{Before, PlacementFault, Seats, place};
pub use record::{
    Boots, BootstrapCall, ClusterRecord, ClusterState, FactKey, Known, Look, MemberRecord, Seat,
    Seen,
};
pub use services::{
    Down, Provider, SERVICE_NAME_MAX, Service, ServiceFault, ServiceKind, ServiceName,
    ServiceState, start_order,
};
pub use settling::Settling;
pub use target::{Get, Host, Target};

/// The fact that a member is ready for work; any other fact of a member says no more than that its system runs.
pub const NODE_READY: &str = "node-ready";
/// What is known of a control plane that is a member of the cluster's database.
pub const ETCD_MEMBER: &str = "etcd-member";

/// The fact that what the members' documents are made from is at hand and not too old for an install. Nobody boots
/// before it was seen, nor after a look that denies it while the cluster has not passed its first phase.
pub const SECRETS: &str = "secrets";

/// The fact that a machine of the cluster was served its boot.
pub const BEGUN: &str = "begun";

/// Machines that one group may want.
pub const COUNT_MAX: u16 = 5000;

/// The kind of [`ClusterName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfCluster {}
/// The kind of [`GroupName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfGroup {}
/// The kind of [`FactName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfFact {}

/// A cluster's name: the first label of its domain.
pub type ClusterName = Name<OfCluster>;
/// A node group's name in its cluster.
pub type GroupName = Name<OfGroup>;
/// What can be known of a cluster or of one of its nodes, such as `node-ready`.
pub type FactName = Name<OfFact>;

/// What a definition says of one cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSpec {
    /// Unique in the site.
    pub name: ClusterName,
    /// The platform's word, for people and for the crate that knows platforms.
    pub platform: Arc<str>,
    /// The platform's release, as its own project writes it.
    pub version: Arc<str>,
    /// The domain below which the cluster's own lies: `lab.example` for `api.<name>.lab.example`.
    pub domain: Hostname,
    /// Where its machines have their addresses.
    pub network: NetworkName,
    /// Pod addresses.
    pub pods: Vec<Subnet>,
    /// Service addresses.
    pub services: Vec<Subnet>,
    /// In file order.
    pub groups: Vec<NodeGroup>,
    /// What it leans on, in file order.
    pub needs: Vec<Service>,
    /// Its phases.
    pub course: Course,
    /// Whether its ports and names are there for people outside, on the site's public links.
    pub public: bool,
    /// How its making is followed.
    pub validation: Validation,
    /// The definition's `platformConfig`, sound in the eyes of its platform.
    pub settings: Arc<serde_json::Value>,
}

impl ClusterSpec {
    /// `<name>.<domain>`.
    #[must_use]
    pub fn fqdn(&self) -> String {
        format!("{}.{}", self.name, self.domain)
    }

    /// A group by name.
    #[must_use]
    pub fn group(&self, name: &GroupName) -> Option<&NodeGroup> {
        self.groups.iter().find(|group| group.name == *name)
    }

    /// How many machines it wants of a role.
    #[must_use]
    pub fn count(&self, role: Role) -> usize {
        let of_role = self.groups.iter().filter(|group| group.role == role);
        of_role.map(|group| usize::from(group.count)).sum()
    }
}

/// How a cluster's making is followed. No gate opens or closes by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    /// Whoever applies the definition by the command waits for the end.
    pub wait: bool,
    /// Minutes from the first machine's boot after which people are told that it isn't ready.
    pub timeout_minutes: Option<u16>,
}

/// Machines of one role that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroup {
    /// Unique in its cluster.
    pub name: GroupName,
    /// What they do there.
    pub role: Role,
    /// How many, 0 to [`COUNT_MAX`].
    pub count: u16,
    /// What they boot.
    pub profile: ProfileName,
    /// Which machines may serve.
    pub placement: Placement,
    /// Its machines leave the cluster when their work is done.
    pub temporary: bool,
    /// The group that a machine joins when it leaves this one; its last seats are kept free for that.
    pub becomes: Option<GroupName>,
    /// Words for people.
    pub tags: Vec<String>,
    /// Words for people, by key.
    pub metadata: BTreeMap<String, String>,
}

/// What a machine does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The host of the daemon itself: nothing is placed.
    Bastion,
    /// Gives the control plane its first breath, then leaves.
    Bootstrap,
    /// Runs the API and the cluster's database.
    ControlPlane,
    /// Runs workloads.
    Worker,
    /// Runs the cluster's own workloads; boots with the workers.
    Infra,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Bastion,
        Self::Bootstrap,
        Self::ControlPlane,
        Self::Worker,
        Self::Infra,
    ];

    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bastion => "bastion",
            Self::Bootstrap => "bootstrap",
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
            Self::Infra => "infra",
        }
    }

    /// Several of them, in a sentence.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Bastion => "bastions",
            Self::Bootstrap => "bootstrap machines",
            Self::ControlPlane => "control planes",
            Self::Worker => "workers",
            Self::Infra => "infra nodes",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Which machines may serve in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Labels that the machine must bear in the inventory.
    pub labels: BTreeMap<String, String>,
    /// Whether machines of one group share a rack.
    pub anti_affinity: AntiAffinity,
    /// These first, in this order.
    pub preferred: Vec<NodeName>,
    /// None but these; any, when empty.
    pub targets: Vec<NodeName>,
}

/// Whether machines of one group may share a rack. A machine without a rack shares with nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AntiAffinity {
    /// They may.
    #[default]
    Off,
    /// Rather not.
    Soft,
    /// Never.
    Hard,
}

/// A machine's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which cluster.
    pub cluster: ClusterName,
    /// Which group.
    pub group: GroupName,
    /// What it does.
    pub role: Role,
    /// Its rank among the cluster's members of that role, from 0, in the order of the definition: number 0 of the
    /// control plane is the first, whoever powers on first.
    pub index: u16,
    /// The machine.
    pub node: NodeName,
    /// What it boots.
    pub profile: ProfileName,
    /// It held another seat before, and what it installed then, in this generation or an earlier one, is not this
    /// seat's.
    pub former: Option<u32>,
}
