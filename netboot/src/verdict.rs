//! Why a machine is where it is: its record and the ledger's latest entries, read as the hops of one boot.
//!
//! ```text
//! dhcp -> proxy -> loader -> ipxe-dhcp -> script -> artefacts -> config -> report
//! ```
//!
//! A boot always walks these in order, so the last hop that left a trace tells how far it came: if that
//! hop failed, it is the verdict; if it went well, the hop after it is being waited for, and when it has
//! been silent for longer than machines take, that silence is the verdict. What a machine does between two
//! hops is not seen from here, so the sentence of a silent hop names the causes that people find there, and
//! the words that firmware shows for them (`PXE-E…`).
//!
//! Entries may be missing: the ledger drops them before it makes a machine wait. The record is durable,
//! so where the two differ the record is believed. Nothing is decided by a verdict.

mod hops;

use crate::attempt::{Entry, Fact};
use crate::boot::{BootDecision, BootRequest, Hold, Refusal};
use crate::loader::{Architecture, Client};
use crate::net::Timestamp;
use crate::node::{Attempt, NodeRecord, NodeSpec, Report, WipePermit};
use crate::site::Site;
use crate::spec::{Mode, Network, Profile, Purpose};

/// A pause after which firmware that asks again has been started again, and is not merely repeating
/// itself: it gives up after 4 + 8 + 16 + 32 seconds.
const RESTART_MILLIS: u64 = 120_000;
/// Entries shown as evidence.
const EVIDENCE_MAX: usize = 6;

/// What is known of a machine's present or last boot.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What it comes down to.
    pub code: Code,
    /// The same as a sentence about this machine.
    pub sentence: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
    /// The entries it rests on, the oldest first; none where it rests on the record or on silence.
    pub evidence: Vec<Entry>,
    /// The way, in order.
    pub hops: Vec<Hop>,
}

/// One part of the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Hop {
    /// Which.
    pub name: HopName,
    /// How it stands.
    pub state: HopState,
    /// When it last left a trace.
    pub at: Option<Timestamp>,
    /// What the trace says; empty without one.
    pub detail: String,
}

/// The parts of the way, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HopName {
    /// The firmware's own DHCP.
    Dhcp,
    /// The boot server's port 4011, beside another DHCP server.
    Proxy,
    /// The network boot program.
    Loader,
    /// iPXE's own DHCP.
    IpxeDhcp,
    /// The boot script.
    Script,
    /// Kernel and initial ramdisks.
    Artefacts,
    /// The config.
    Config,
    /// What the machine says of itself.
    Report,
}

/// How a hop stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopState {
    /// It went well.
    Ok,
    /// It is under way, or next.
    Waiting,
    /// It failed, or is silent for too long.
    Failed,
    /// It left no trace, and nothing rests on it.
    Unseen,
}

/// The closed list of verdicts. Their words are promises to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// All is well so far; the next hop is due.
    UnderWay,
    /// It went as far as its profile goes.
    Done,
    /// Its install was acknowledged; it is sent to its disk.
    InstalledBootsDisk,
    /// It was never heard.
    NoDhcpSeen,
    /// It was heard and not answered.
    DhcpIgnored,
    /// It was offered an address and did not take it.
    OfferNotTaken,
    /// There is no loader for its firmware.
    NoLoader,
    /// It has its address and does not fetch its loader.
    LoaderNotFetched,
    /// It asked for a file that is not served.
    LoaderRefused,
    /// It began to fetch its loader and stopped.
    LoaderAborted,
    /// It fetches its loader again and again.
    ChainLoop,
    /// Its loader runs and does not ask for a script.
    ScriptNotAsked,
    /// It asked for its script and got none.
    ScriptRefused,
    /// It has its script and does not fetch its kernel.
    KernelNotFetched,
    /// It asked for a file that the depot can't give.
    ArtefactRefused,
    /// It was too slow and was cut off.
    ArtefactSlow,
    /// It did not fetch all it needs.
    ArtefactIncomplete,
    /// Its kernel runs and does not ask for its config.
    ConfigNotAsked,
    /// Its config was asked for and stayed.
    ConfigWithheld,
    /// Its config with secrets was asked for after it was spent.
    ConfigAskedAgain,
    /// It has all it needs and does not report.
    NoReport,
    /// It reported and was not believed.
    ReportRefused,
    /// It says itself that it failed.
    FailedByMachine,
    /// A person must admit it.
    HeldForApproval,
    /// A person set it aside.
    HeldCordoned,
    /// It used up its attempts.
    HeldAttemptsUsedUp,
    /// Its cluster is not ready for it.
    HeldForTurn,
    /// No cluster wants it, and it has no profile of its own.
    HeldUnclaimed,
    /// What its disk holds is of a cluster, or a place in one, that it left.
    HeldLeftCluster,
    /// A person rejected it.
    Rejected,
    /// It contradicts the inventory.
    IdentityConflict,
    /// Its profile is gone from the site.
    ProfileGone,
}

impl HopName {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Proxy => "proxy",
            Self::Loader => "loader",
            Self::IpxeDhcp => "ipxe-dhcp",
            Self::Script => "script",
            Self::Artefacts => "artefacts",
            Self::Config => "config",
            Self::Report => "report",
        }
    }
}

impl HopState {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Unseen => "unseen",
        }
    }
}

impl Code {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::UnderWay => "under-way",
            Self::Done => "done",
            Self::InstalledBootsDisk => "installed-boots-disk",
            Self::NoDhcpSeen => "no-dhcp-seen",
            Self::DhcpIgnored => "dhcp-ignored",
            Self::OfferNotTaken => "offer-not-taken",
            Self::NoLoader => "no-loader",
            Self::LoaderNotFetched => "loader-not-fetched",
            Self::LoaderRefused => "loader-refused",
            Self::LoaderAborted => "loader-aborted",
            Self::ChainLoop => "chain-loop",
            Self::ScriptNotAsked => "script-not-asked",
            Self::ScriptRefused => "script-refused",
            Self::KernelNotFetched => "kernel-not-fetched",
            Self::ArtefactRefused => "artefact-refused",
            Self::ArtefactSlow => "artefact-slow",
            Self::ArtefactIncomplete => "artefact-incomplete",
            Self::ConfigNotAsked => "config-not-asked",
            Self::ConfigWithheld => "config-withheld",
            Self::ConfigAskedAgain => "config-asked-again",
            Self::NoReport => "no-report",
            Self::ReportRefused => "report-refused",
            Self::FailedByMachine => "failed-by-machine",
            Self::HeldForApproval => "held-for-approval",
            Self::HeldCordoned => "held-cordoned",
            Self::HeldAttemptsUsedUp => "held-attempts-used-up",
            Self::HeldForTurn => "held-for-turn",
            Self::HeldUnclaimed => "held-unclaimed",
            Self::HeldLeftCluster => "held-left-cluster",
            Self::Rejected => "rejected",
            Self::IdentityConflict => "identity-conflict",
            Self::ProfileGone => "profile-gone",
        }
    }
}

/// Why something is as it is.
#[derive(Clone, Debug, PartialEq)]
struct Finding {
    code: Code,
    sentence: String,
    remedy: String,
}

impl Finding {
    fn new(code: Code, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            sentence: sentence.into(),
            remedy: remedy.into(),
        }
    }
}

/// The last boot, cut out of the ledger.
struct Boot<'a> {
    node: &'a NodeSpec,
    network: &'a Network,
    profile: Option<&'a Profile>,
    entries: &'a [Entry],
    /// The record's attempt, if it belongs to this boot.
    attempt: Option<&'a Attempt>,
}

impl Boot<'_> {
    fn proxied(&self) -> bool {
        self.network.mode == Mode::Proxy
    }
}

impl Site {
    /// Explains where `node` stands at `now`. `entries` are the ledger's of this node, the oldest first.
    #[must_use]
    pub fn explain(&self, node: &NodeSpec, entries: &[Entry], now: Timestamp) -> Explanation {
        let record = self.record(&node.name);
        let Some(network) = self.spec().network(&node.boot_link().network) else {
            let finding = Finding::new(
                Code::DhcpIgnored,
                format!("network {} is gone from the site", node.boot_link().network),
                "list it in site.yaml, or give the machine another network",
            );
            return told(finding, Vec::new(), Vec::new());
        };
        let entries = last_boot(entries);
        let begun = entries
            .first()
            .map_or(Timestamp::default(), |entry| entry.at);
        let boot = Boot {
            node,
            network,
            profile: self.profile_of(node).map(AsRef::as_ref),
            entries,
            attempt: record
                .attempt
                .as_ref()
                .filter(|attempt| attempt.started >= begun),
        };
        let (mut hops, reached) = hops::walk(&boot, now);
        let permit = record
            .permit
            .as_ref()
            .filter(|permit| permit.is_open(now))
            .filter(|permit| entries.last().is_none_or(|entry| entry.at < permit.given))
            .map(|permit| permitted(node, permit));
        let standing = permit.or_else(|| self.standing(node, record, now));
        let (finding, evidence) = match (reached.finding, standing) {
            (Some(finding), _) if finding.code == Code::IdentityConflict => {
                (finding, reached.evidence)
            }
            (found, Some(mut standing)) => {
                if let Some(found) = found.filter(|_| standing.code == Code::HeldAttemptsUsedUp) {
                    standing.sentence =
                        format!("{}; the last one: {}", standing.sentence, found.sentence);
                    standing.remedy = format!("{}; then {}", found.remedy, standing.remedy);
                } else {
                    // What a machine is not supposed to do now is not missing.
                    soften(&mut hops);
                }
                (standing, reached.evidence)
            }
            (Some(finding), None) => (finding, reached.evidence),
            (None, None) => (under_way(&boot, &hops), reached.evidence),
        };
        told(finding, evidence, hops)
    }

    /// What the durable facts alone say, where they say that it boots nothing.
    fn standing(&self, node: &NodeSpec, record: &NodeRecord, now: Timestamp) -> Option<Finding> {
        let name = &node.name;
        let link = node.boot_link();
        let request = BootRequest {
            mac: *link.macs.first()?,
            client: Client::Ipxe(Architecture::BIOS),
            network: &link.network,
            uuid: None,
            serial: None,
            chainloads: 0,
        };
        let waits = |code, hold: &Hold, remedy: String| {
            Some(Finding::new(code, format!("{name} {hold}"), remedy))
        };
        match self.decide(&request, now).answer {
            BootDecision::LocalDisk => {
                let install = record.installed.as_ref()?;
                let sentence = format!(
                    "{name} acknowledged its install in attempt {} and is sent to its disk",
                    install.attempt
                );
                Some(Finding::new(Code::InstalledBootsDisk, sentence, ""))
            }
            BootDecision::Hold(hold @ Hold::NeedsApproval(_)) => waits(
                Code::HeldForApproval,
                &hold,
                format!("see what is on its disk, then `reveille node approve {name}`"),
            ),
            BootDecision::Hold(hold @ Hold::Cordoned) => waits(
                Code::HeldCordoned,
                &hold,
                format!("`reveille node uncordon {name}`"),
            ),
            BootDecision::Hold(Hold::AttemptsUsedUp(count)) => Some(Finding::new(
                Code::HeldAttemptsUsedUp,
                format!("{name} was served {count} boots without a success"),
                format!("`reveille node approve {name}` lets it try again"),
            )),
            BootDecision::Hold(hold @ Hold::NotItsTurn(_)) => {
                waits(Code::HeldForTurn, &hold, String::new())
            }
            BootDecision::Hold(hold @ Hold::Unclaimed) => waits(
                Code::HeldUnclaimed,
                &hold,
                format!(
                    "give {name} a profile in machines.yaml, or write a cluster that has room for it"
                ),
            ),
            BootDecision::Hold(hold @ Hold::Retired(_)) => waits(
                Code::HeldLeftCluster,
                &hold,
                format!("power {name} off, or give it a profile or a cluster that has room for it"),
            ),
            BootDecision::Hold(hold @ Hold::FormerInstall(_)) => waits(
                Code::HeldLeftCluster,
                &hold,
                format!(
                    "`reveille node reinstall {name} --disk SERIAL` gives up what its disk holds"
                ),
            ),
            BootDecision::Refuse(Refusal::Rejected) => Some(Finding::new(
                Code::Rejected,
                format!("{name} was rejected by a person"),
                format!("`reveille node approve {name}` admits it again"),
            )),
            BootDecision::Refuse(refusal @ Refusal::NoProfile(_)) => Some(Finding::new(
                Code::ProfileGone,
                refusal.to_string(),
                format!("write the profile, or give {name} another one in the inventory"),
            )),
            BootDecision::Chainload(_) | BootDecision::Boot(_) | BootDecision::Refuse(_) => None,
        }
    }
}

fn permitted(node: &NodeSpec, permit: &WipePermit) -> Finding {
    let name = &node.name;
    Finding::new(
        Code::UnderWay,
        format!(
            "{name} may be installed again and lose disk {}; it was not heard since {} said so",
            permit.disk, permit.by
        ),
        format!("power-cycle {name}, with network boot first"),
    )
}

/// The entries of the last boot: from the last time the machine began anew.
fn last_boot(entries: &[Entry]) -> &[Entry] {
    let mut start = 0;
    let mut far = Reach::Nothing;
    let mut last = Timestamp::default();
    for (index, entry) in entries.iter().enumerate() {
        let Some(reach) = reach_of(&entry.fact) else {
            continue;
        };
        let pause = entry.at.millis_since(last) > RESTART_MILLIS;
        let again = match reach {
            Reach::Firmware => far > Reach::Firmware || pause,
            Reach::Ipxe => far > Reach::Ipxe || (far == Reach::Ipxe && pause),
            Reach::Nothing | Reach::Beyond => false,
        };
        if again {
            start = index;
            far = reach;
        }
        far = far.max(reach);
        last = entry.at;
    }
    entries.get(start..).unwrap_or_default()
}

/// How far a boot came, as coarsely as a restart can be told from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Nothing,
    Firmware,
    Ipxe,
    Beyond,
}

/// `None` for what a person did, or the bastion, or what nothing proves.
fn reach_of(fact: &Fact) -> Option<Reach> {
    match fact {
        Fact::Dhcp {
            client, message, ..
        } => Some(match client {
            // Only a DISCOVER begins anything.
            _ if message != "DISCOVER" => Reach::Nothing,
            Client::Pxe(_) | Client::HttpBoot(_) => Reach::Firmware,
            Client::Ipxe(_) => Reach::Ipxe,
            Client::System => Reach::Nothing,
        }),
        Fact::DhcpIgnored { .. } | Fact::Transfer { .. } | Fact::TransferRefused { .. } => {
            Some(Reach::Nothing)
        }
        Fact::Script { .. }
        | Fact::Config { .. }
        | Fact::Delivery { .. }
        | Fact::DeviceFlow { .. }
        | Fact::Report { .. } => Some(Reach::Beyond),
        Fact::Progress { .. } | Fact::Person { .. } | Fact::Host { .. } | Fact::Bastion { .. } => {
            None
        }
    }
}

fn under_way(boot: &Boot<'_>, hops: &[Hop]) -> Finding {
    let name = &boot.node.name;
    match hops.iter().find(|hop| hop.state == HopState::Waiting) {
        Some(next) => Finding::new(
            Code::UnderWay,
            format!("{name} is under way; next is its {}", next.name.word()),
            "",
        ),
        None => {
            let sentence = match boot.attempt.and_then(|attempt| attempt.report.as_ref()) {
                Some(Report::Ready) => format!("{name} reported that it is ready"),
                Some(Report::Joined) => format!("{name} reported that it joined its cluster"),
                Some(_) => format!("{name} reported that its boot went well"),
                None => format!("{name} fetched all that its profile gives it"),
            };
            Finding::new(Code::Done, sentence, "")
        }
    }
}

fn soften(hops: &mut [Hop]) {
    for hop in hops {
        if hop.at.is_none() && matches!(hop.state, HopState::Failed | HopState::Waiting) {
            hop.state = HopState::Unseen;
        }
    }
}

fn told(finding: Finding, evidence: Vec<Entry>, hops: Vec<Hop>) -> Explanation {
    let Finding {
        code,
        sentence,
        remedy,
    } = finding;
    let spare = evidence.len().saturating_sub(EVIDENCE_MAX);
    Explanation {
        code,
        sentence,
        remedy,
        evidence: evidence.into_iter().skip(spare).collect(),
        hops,
    }
}

/// Whether its profile makes a machine report when it is done; a live boot may, an install must.
fn must_report(profile: &Profile) -> bool {
    profile.purpose == Purpose::Install
}
