//! A cluster's record on disk, beside the shapes of `disk.rs` and by its rules.

use std::collections::BTreeMap;

use netboot::cluster::{
    Boots, BootstrapCall, ClusterRecord, FactKey, FactName, GroupName, Known, MemberRecord, Seat,
    Stage,
};
use netboot::net::{NodeName, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::disk::{Unreadable, from_json, to_json};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClusterShape {
    #[serde(default)]
    founded: Timestamp,
    stage: StageShape,
    since: Timestamp,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<FactName, KnownShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap: Option<BootstrapShape>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MemberShape {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seat: Option<SeatShape>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<FactName, KnownShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest_boot: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former_boot: Option<Uuid>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StageShape {
    Bootstrap,
    ControlPlane,
    Worker,
    Addon,
    Ready,
}

#[derive(Debug, Serialize, Deserialize)]
struct SeatShape {
    group: GroupName,
    ordinal: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KnownShape {
    at: Timestamp,
    words: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct BootstrapShape {
    node: NodeName,
    intended: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    done: Option<Timestamp>,
}

/// A cluster's record as the database keeps it, without what it holds of machines.
#[must_use]
pub fn cluster_to_json(record: &ClusterRecord) -> Vec<u8> {
    to_json(&ClusterShape::from(record.head()))
}

/// The record that [`cluster_to_json`] wrote.
///
/// # Errors
/// [`Unreadable`] for anything else.
pub fn cluster_from_json(bytes: &[u8]) -> Result<ClusterRecord, Unreadable> {
    from_json::<ClusterShape>("cluster record", bytes).map(ClusterRecord::from)
}

/// What a cluster's record holds of a machine, as the database keeps it; `None` when that is nothing.
#[must_use]
pub fn member_to_json(record: &ClusterRecord, node: &NodeName) -> Option<Vec<u8>> {
    let member = record.of_machine(node);
    (member != MemberRecord::default()).then(|| to_json(&MemberShape::from(member)))
}

/// What [`member_to_json`] wrote.
///
/// # Errors
/// [`Unreadable`] for anything else.
pub fn member_from_json(bytes: &[u8]) -> Result<MemberRecord, Unreadable> {
    from_json::<MemberShape>("cluster's member", bytes).map(MemberRecord::from)
}

impl From<ClusterRecord> for ClusterShape {
    fn from(record: ClusterRecord) -> Self {
        let ClusterRecord {
            founded,
            stage,
            since,
            // These are kept with their machines.
            seats: _,
            retired: _,
            boots: _,
            facts,
            bootstrap,
        } = record;
        Self {
            founded,
            stage: match stage {
                Stage::Bootstrap => StageShape::Bootstrap,
                Stage::ControlPlane => StageShape::ControlPlane,
                Stage::Worker => StageShape::Worker,
                Stage::Addon => StageShape::Addon,
                Stage::Ready => StageShape::Ready,
            },
            since,
            facts: facts
                .into_iter()
                .map(|(key, known)| (key.fact, known.into()))
                .collect(),
            bootstrap: bootstrap.map(|call| {
                let BootstrapCall {
                    node,
                    intended,
                    done,
                } = call;
                BootstrapShape {
                    node,
                    intended,
                    done,
                }
            }),
        }
    }
}

impl From<ClusterShape> for ClusterRecord {
    fn from(shape: ClusterShape) -> Self {
        let ClusterShape {
            founded,
            stage,
            since,
            facts,
            bootstrap,
        } = shape;
        Self {
            founded,
            stage: match stage {
                StageShape::Bootstrap => Stage::Bootstrap,
                StageShape::ControlPlane => Stage::ControlPlane,
                StageShape::Worker => Stage::Worker,
                StageShape::Addon => Stage::Addon,
                StageShape::Ready => Stage::Ready,
            },
            since,
            facts: facts
                .into_iter()
                .map(|(fact, known)| (FactKey { node: None, fact }, known.into()))
                .collect(),
            bootstrap: bootstrap.map(|shape| {
                let BootstrapShape {
                    node,
                    intended,
                    done,
                } = shape;
                BootstrapCall {
                    node,
                    intended,
                    done,
                }
            }),
            ..Self::default()
        }
    }
}

impl From<MemberRecord> for MemberShape {
    fn from(member: MemberRecord) -> Self {
        let MemberRecord {
            seat,
            facts,
            retired,
            boots: Boots { latest, former },
        } = member;
        Self {
            seat: seat.map(|seat| {
                let Seat {
                    group,
                    ordinal,
                    former,
                } = seat;
                SeatShape {
                    group,
                    ordinal,
                    former,
                }
            }),
            facts: facts
                .into_iter()
                .map(|(fact, known)| (fact, known.into()))
                .collect(),
            retired,
            latest_boot: latest,
            former_boot: former,
        }
    }
}

impl From<MemberShape> for MemberRecord {
    fn from(shape: MemberShape) -> Self {
        let MemberShape {
            seat,
            facts,
            retired,
            latest_boot,
            former_boot,
        } = shape;
        Self {
            seat: seat.map(|shape| {
                let SeatShape {
                    group,
                    ordinal,
                    former,
                } = shape;
                Seat {
                    group,
                    ordinal,
                    former,
                }
            }),
            facts: facts
                .into_iter()
                .map(|(fact, known)| (fact, known.into()))
                .collect(),
            retired,
            boots: Boots {
                latest: latest_boot,
                former: former_boot,
            },
        }
    }
}

impl From<Known> for KnownShape {
    fn from(known: Known) -> Self {
        let Known { at, words } = known;
        Self { at, words }
    }
}

impl From<KnownShape> for Known {
    fn from(shape: KnownShape) -> Self {
        let KnownShape { at, words } = shape;
        Self { at, words }
    }
}
