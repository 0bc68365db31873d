//! The shapes on disk: what a record and a lease look like as JSON, in the database and in exports.
//! Pure. [`SCHEMA`] counts shapes that an older program would misread; a field that is only added gets a
//! default and no new number. Every conversion names every field, so a new one asks to be considered.

use std::net::Ipv4Addr;

use netboot::cluster::ClusterName;
use netboot::delivery::Deliveries;
use netboot::net::{Digest, MacAddress, NodeName, ProfileName, Timestamp};
use netboot::node::{Admission, Attempt, BootState, Install, NodeRecord, Report, WipePermit};
use netboot::site::{Lease, Memory, Site};
use serde::{Deserialize, Serialize};

use super::cluster::{ClusterShape, MemberShape};

/// The shapes this program writes, and the newest it can read.
pub const SCHEMA: u32 = 2;

/// A value that is not what its key promises.
#[derive(Debug, thiserror::Error)]
#[error("not a {what} of schema {SCHEMA}: {why}")]
pub struct Unreadable {
    what: &'static str,
    why: String,
}

/// One line of an export, and the way there from a record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Line {
    /// The first.
    Head(Head),
    /// A node's record.
    Node(NodeName, Box<RecordShape>),
    /// A lease.
    Lease(Ipv4Addr, LeaseShape),
    /// A cluster's record.
    Cluster(ClusterName, Box<ClusterShape>),
    /// What it holds of one machine.
    Member(ClusterName, NodeName, Box<MemberShape>),
    /// The last.
    End(End),
}

/// What a database or an export says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) schema: u32,
    pub(super) generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recovered: Option<String>,
}

/// Proof that an export is whole.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    /// Of every byte before this line.
    pub(super) sha256: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RecordShape {
    admission: AdmissionShape,
    cordoned: bool,
    state: StateShape,
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    configured: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    installed: Option<InstallShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permit: Option<PermitShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consented_disk: Option<String>,
    failed_attempts: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<AttemptShape>,
    attempts_ever: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AdmissionShape {
    Listed,
    Approved,
    Rejected,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StateShape {
    Registered,
    Booting,
    Installing,
    Provisioned,
    Joined,
    Ready,
    Failed,
}

#[derive(Debug, Serialize, Deserialize)]
struct InstallShape {
    generation: u32,
    attempt: u32,
    at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct PermitShape {
    disk: String,
    given: Timestamp,
    expires: Timestamp,
    by: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct AttemptShape {
    number: u32,
    token: Digest,
    mac: MacAddress,
    profile: ProfileName,
    started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<Timestamp>,
    #[serde(default)]
    begun: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivered: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked_again: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    report: Option<ReportShape>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReportShape {
    Installed,
    Booted,
    Joined,
    Ready,
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseShape {
    mac: MacAddress,
    expires: Timestamp,
    #[serde(default)]
    declined: bool,
}

/// A record as the database keeps it.
#[must_use]
pub fn record_to_json(record: &NodeRecord) -> Vec<u8> {
    to_json(&RecordShape::from(record.clone()))
}

/// The record that [`record_to_json`] wrote.
///
/// # Errors
/// [`Unreadable`] for anything else.
pub fn record_from_json(bytes: &[u8]) -> Result<NodeRecord, Unreadable> {
    from_json::<RecordShape>("node record", bytes).map(NodeRecord::from)
}

/// A lease as the database keeps it.
#[must_use]
pub fn lease_to_json(lease: &Lease) -> Vec<u8> {
    to_json(&LeaseShape::from(lease.clone()))
}

/// The lease that [`lease_to_json`] wrote.
///
/// # Errors
/// [`Unreadable`] for anything else.
pub fn lease_from_json(bytes: &[u8]) -> Result<Lease, Unreadable> {
    from_json::<LeaseShape>("lease", bytes).map(Lease::from)
}

/// The schema a head names, whatever else it says: later versions may say it in ways unknown here.
pub(super) fn schema_of(head: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    serde_json::from_slice::<Schema>(head)
        .ok()
        .map(|head| head.schema)
}

pub(super) fn to_json(shape: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(shape).expect("shapes have text keys only, so JSON can say them")
}

pub(super) fn from_json<'a, Shape: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<Shape, Unreadable> {
    serde_json::from_slice(bytes).map_err(|error| Unreadable {
        what,
        why: error.to_string(),
    })
}

impl Head {
    pub(super) fn of(site: &Site) -> Self {
        Self {
            schema: SCHEMA,
            generation: site.generation(),
            recovered: site.recovered().map(str::to_owned),
        }
    }
}

impl From<Head> for Memory {
    fn from(head: Head) -> Self {
        let Head {
            schema: _,
            generation,
            recovered,
        } = head;
        Self {
            generation,
            recovered: recovered.map(Into::into),
            ..Self::default()
        }
    }
}

impl From<NodeRecord> for RecordShape {
    fn from(record: NodeRecord) -> Self {
        let NodeRecord {
            admission,
            cordoned,
            state,
            generation,
            configured,
            installed,
            permit,
            consented_disk,
            failed_attempts,
            attempt,
            attempts_ever,
        } = record;
        Self {
            admission: match admission {
                Admission::Listed => AdmissionShape::Listed,
                Admission::Approved => AdmissionShape::Approved,
                Admission::Rejected => AdmissionShape::Rejected,
            },
            cordoned,
            state: match state {
                BootState::Registered => StateShape::Registered,
                BootState::Booting => StateShape::Booting,
                BootState::Installing => StateShape::Installing,
                BootState::Provisioned => StateShape::Provisioned,
                BootState::Joined => StateShape::Joined,
                BootState::Ready => StateShape::Ready,
                BootState::Failed => StateShape::Failed,
            },
            generation,
            configured,
            installed: installed.map(InstallShape::from),
            permit: permit.map(PermitShape::from),
            consented_disk,
            failed_attempts,
            attempt: attempt.map(AttemptShape::from),
            attempts_ever,
        }
    }
}

impl From<RecordShape> for NodeRecord {
    fn from(shape: RecordShape) -> Self {
        let RecordShape {
            admission,
            cordoned,
            state,
            generation,
            configured,
            installed,
            permit,
            consented_disk,
            failed_attempts,
            attempt,
            attempts_ever,
        } = shape;
        Self {
            admission: match admission {
                AdmissionShape::Listed => Admission::Listed,
                AdmissionShape::Approved => Admission::Approved,
                AdmissionShape::Rejected => Admission::Rejected,
            },
            cordoned,
            state: match state {
                StateShape::Registered => BootState::Registered,
                StateShape::Booting => BootState::Booting,
                StateShape::Installing => BootState::Installing,
                StateShape::Provisioned => BootState::Provisioned,
                StateShape::Joined => BootState::Joined,
                StateShape::Ready => BootState::Ready,
                StateShape::Failed => BootState::Failed,
            },
            generation,
            configured,
            installed: installed.map(Install::from),
            permit: permit.map(WipePermit::from),
            consented_disk,
            failed_attempts,
            attempt: attempt.map(Attempt::from),
            attempts_ever,
        }
    }
}

impl From<Install> for InstallShape {
    fn from(install: Install) -> Self {
        let Install {
            generation,
            attempt,
            at,
        } = install;
        Self {
            generation,
            attempt,
            at,
        }
    }
}

impl From<InstallShape> for Install {
    fn from(shape: InstallShape) -> Self {
        let InstallShape {
            generation,
            attempt,
            at,
        } = shape;
        Self {
            generation,
            attempt,
            at,
        }
    }
}

impl From<WipePermit> for PermitShape {
    fn from(permit: WipePermit) -> Self {
        let WipePermit {
            disk,
            given,
            expires,
            by,
        } = permit;
        Self {
            disk,
            given,
            expires,
            by,
        }
    }
}

impl From<PermitShape> for WipePermit {
    fn from(shape: PermitShape) -> Self {
        let PermitShape {
            disk,
            given,
            expires,
            by,
        } = shape;
        Self {
            disk,
            given,
            expires,
            by,
        }
    }
}

impl From<Attempt> for AttemptShape {
    fn from(attempt: Attempt) -> Self {
        let Attempt {
            number,
            token,
            mac,
            profile,
            started,
            released,
            deliveries,
            report,
        } = attempt;
        let Deliveries {
            begun,
            delivered,
            asked_again,
        } = deliveries;
        Self {
            number,
            token,
            mac,
            profile,
            started,
            released,
            begun,
            delivered,
            asked_again,
            report: report.map(|report| match report {
                Report::Installed => ReportShape::Installed,
                Report::Booted => ReportShape::Booted,
                Report::Joined => ReportShape::Joined,
                Report::Ready => ReportShape::Ready,
                Report::Failed(words) => ReportShape::Failed(words),
            }),
        }
    }
}

impl From<AttemptShape> for Attempt {
    fn from(shape: AttemptShape) -> Self {
        let AttemptShape {
            number,
            token,
            mac,
            profile,
            started,
            released,
            begun,
            delivered,
            asked_again,
            report,
        } = shape;
        Self {
            number,
            token,
            mac,
            profile,
            started,
            released,
            deliveries: Deliveries {
                begun,
                delivered,
                asked_again,
            },
            report: report.map(|report| match report {
                ReportShape::Installed => Report::Installed,
                ReportShape::Booted => Report::Booted,
                ReportShape::Joined => Report::Joined,
                ReportShape::Ready => Report::Ready,
                ReportShape::Failed(words) => Report::Failed(words),
            }),
        }
    }
}

impl From<Lease> for LeaseShape {
    fn from(lease: Lease) -> Self {
        let Lease {
            mac,
            expires,
            declined,
        } = lease;
        Self {
            mac,
            expires,
            declined,
        }
    }
}

impl From<LeaseShape> for Lease {
    fn from(shape: LeaseShape) -> Self {
        let LeaseShape {
            mac,
            expires,
            declined,
        } = shape;
        Self {
            mac,
            expires,
            declined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_record() -> NodeRecord {
        let at = Timestamp::from_millis;
        NodeRecord {
            admission: Admission::Approved,
            cordoned: true,
            state: BootState::Failed,
            generation: 2,
            configured: Some(Timestamp::from_millis(9)),
            installed: Some(Install {
                generation: 1,
                attempt: 4,
                at: at(5),
            }),
            permit: Some(WipePermit {
                disk: "S1".to_owned(),
                given: at(6),
                expires: at(7),
                by: "root".to_owned(),
            }),
            consented_disk: Some("S0".to_owned()),
            failed_attempts: 3,
            attempt: Some(Attempt {
                number: 9,
                token: Digest::from_bytes([7; 32]),
                mac: "52:54:00:aa:00:01".parse().unwrap(),
                profile: "worker".parse().unwrap(),
                started: at(8),
                released: Some(at(9)),
                deliveries: Deliveries {
                    begun: 2,
                    delivered: Some(at(10)),
                    asked_again: Some(at(11)),
                },
                report: Some(Report::Failed("no \"disk\"\n".to_owned())),
            }),
            attempts_ever: 9,
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for record in [NodeRecord::default(), full_record()] {
            assert_eq!(record_from_json(&record_to_json(&record)).unwrap(), record);
        }
    }

    #[test]
    fn a_record_of_schema_1_stays_readable() {
        let written = include_bytes!("record-1.json");
        let mut record = full_record();
        // What came later begins with its default.
        record.configured = None;
        if let Some(attempt) = &mut record.attempt {
            attempt.deliveries = Deliveries::default();
        }
        assert_eq!(record_from_json(written).unwrap(), record);
    }

    #[test]
    fn a_value_out_of_its_range_is_refused_not_bent() {
        let text = String::from_utf8(record_to_json(&full_record())).unwrap();
        for (good, bad) in [
            ("52:54:00:aa:00:01", "01:00:5e:00:00:01"),
            ("worker", "../worker"),
            ("\"failed\",\"gen", "\"lost\",\"gen"),
            ("\"failed_attempts\":3", "\"failed_attempts\":300"),
        ] {
            let bent = text.replace(good, bad);
            assert_ne!(bent, text, "{good}");
            assert!(record_from_json(bent.as_bytes()).is_err(), "{bad}");
        }
    }
}
