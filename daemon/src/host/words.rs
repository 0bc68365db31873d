//! What the control API says of the host's network: shapes that scripts rely on, and their sentences.

use netboot::host::{self, HostSpec, HostState, Obstacle, ObstacleKind, Operation};
use netboot::net::{LinkName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::host::kernel::Failed;
use crate::host::rivals::Rival;
use crate::show::moment;

/// What differs from the site's files, and so what an apply would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order they would be done.
    pub changes: Vec<Change>,
    /// What keeps parts of the site, or all of it, from being made.
    pub obstacles: Vec<Obstructed>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// For people.
    pub what: String,
    /// The link it is about, where it is about one.
    pub link: Option<LinkName>,
    /// For programs.
    pub operation: Operation,
}

/// Why a link of the site can't be made, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstructed {
    /// The link.
    pub link: LinkName,
    /// `waits`: it is left out until this is settled; `refused`: nothing at all is changed until then.
    pub kind: String,
    /// What is in the way.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// A wish to carry out what the site's files want of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wish {
    /// Seconds until it is undone unless it is confirmed or proven, 10 to 3600; the site's otherwise.
    pub within: Option<u32>,
    /// Only a person's confirmation keeps it.
    pub ask: bool,
    /// The administrator's connection as `SSH_CONNECTION` has it; it is part of the control path.
    pub session: Option<String>,
}

/// What became of an apply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// How it stands.
    pub outcome: Outcome,
    /// The same in words, with what proved it or what is missing.
    pub sentence: String,
    /// Each operation of the plan.
    pub steps: Vec<Step>,
    /// What it took to go back, where it was undone.
    pub undone: Vec<Step>,
    /// What keeps parts of the site from being made.
    pub obstacles: Vec<Obstructed>,
    /// When it is undone, while it waits.
    pub deadline: Option<Timestamp>,
}

/// How an apply stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything was so already.
    Nothing,
    /// Done, and it stays.
    Kept,
    /// Done, and undone at the deadline unless it is proven or confirmed before.
    Waiting,
    /// An operation failed; what was done before it is undone.
    Failed,
    /// Done, and undone.
    RolledBack,
}

/// One operation, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// For people.
    pub what: String,
    /// What became of it.
    pub result: Done,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// Carried out.
    Done,
    /// The kernel would not.
    Failed,
    /// Not tried, because one before it failed.
    Left,
}

/// The host's network as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The whole in one sentence.
    pub sentence: String,
    /// False while something differs from the site, waits, or was undone.
    pub healthy: bool,
    /// `managed` or `unmanaged`.
    pub policy: String,
    /// How the last apply stands.
    pub last: Option<Last>,
    /// What differs from the site in force.
    pub plan: Plan,
    /// The links of the site, and those of its networks.
    pub links: Vec<LinkRow>,
    /// Programs that configure these links too.
    pub rivals: Vec<Rivalry>,
}

/// How the last apply stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When that was decided.
    pub at: Timestamp,
    /// How it stands.
    pub outcome: Outcome,
    /// Why, in words.
    pub why: String,
    /// When it is undone, while it waits.
    pub deadline: Option<Timestamp>,
}

/// One link of the bastion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRow {
    /// Its name.
    pub name: LinkName,
    /// What it is, such as `VLAN 107 on eth1`.
    pub kind: String,
    /// `up`, `down` or `absent`.
    pub state: String,
    /// With their prefixes.
    pub addresses: Vec<String>,
    /// `reveille` when this daemon made it, else `others`.
    pub made_by: String,
}

/// A program that configures links of ours too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rivalry {
    /// Its name.
    pub program: String,
    /// The links.
    pub links: Vec<LinkName>,
    /// How to keep it off them.
    pub remedy: String,
}

impl Wish {
    /// What [`Self::within`] may be.
    pub const WITHIN: std::ops::RangeInclusive<u32> = 10..=3600;
}

impl Plan {
    /// What carrying out `spec` would change of `present`.
    #[must_use]
    pub fn of(spec: &HostSpec, present: &HostState) -> Self {
        let target = host::target(spec, present);
        Self {
            changes: host::diff(present, &target.state)
                .into_iter()
                .map(Change::from)
                .collect(),
            obstacles: target.obstacles.iter().map(Obstructed::from).collect(),
        }
    }

    /// What keeps everything from being changed.
    pub fn refused(&self) -> impl Iterator<Item = &Obstructed> {
        let refused = |obstacle: &&Obstructed| obstacle.kind == Obstructed::REFUSED;
        self.obstacles.iter().filter(refused)
    }
}

impl From<Rival> for Rivalry {
    fn from(rival: Rival) -> Self {
        let Rival {
            program,
            links,
            remedy,
        } = rival;
        Self {
            program: program.to_owned(),
            links,
            remedy,
        }
    }
}

impl From<Operation> for Change {
    fn from(operation: Operation) -> Self {
        Self {
            what: operation.to_string(),
            link: operation.link().cloned(),
            operation,
        }
    }
}

impl Obstructed {
    /// The word for what keeps everything from being changed.
    pub const REFUSED: &str = "refused";
    /// The word for what is left out until it is settled.
    pub const WAITS: &str = "waits";
}

impl From<&Obstacle> for Obstructed {
    fn from(obstacle: &Obstacle) -> Self {
        let kind = match obstacle.kind {
            ObstacleKind::Waits => Self::WAITS,
            ObstacleKind::Refused => Self::REFUSED,
        };
        Self {
            link: obstacle.link.clone(),
            kind: kind.to_owned(),
            problem: obstacle.problem.clone(),
            remedy: obstacle.remedy.clone(),
        }
    }
}

impl Step {
    /// What became of an operation that needs no more words.
    pub(crate) fn new(operation: &Operation, result: Done) -> Self {
        Self {
            what: operation.to_string(),
            result,
            cause: None,
            remedy: None,
        }
    }
}

impl Step {
    /// What stands for all that would have followed from a look at the host.
    pub(crate) fn unread(failed: Failed) -> Self {
        Self {
            what: "look at the host's network".to_owned(),
            result: Done::Failed,
            cause: Some(failed.cause),
            remedy: Some(failed.remedy),
        }
    }
}

impl Last {
    /// How it stands, in words.
    #[must_use]
    pub fn sentence(&self) -> String {
        let why = &self.why;
        match (self.outcome, self.deadline) {
            (Outcome::Nothing, _) => why.clone(),
            (Outcome::Kept, _) => format!("kept: {why}"),
            (Outcome::Failed | Outcome::RolledBack, _) => format!("undone: {why}"),
            (Outcome::Waiting, None) => format!("waits for {why}"),
            (Outcome::Waiting, Some(deadline)) => format!(
                "waits for {why}; at {} it is undone, unless `reveille host confirm` keeps it",
                moment(deadline)
            ),
        }
    }
}
