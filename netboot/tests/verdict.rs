//! What `node why` says: each way a boot is known to end has its verdict, and no ledger, however torn,
//! makes the explanation fail.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use netboot::attempt::{Entry, Fact, TransferOutcome};
use netboot::event::{Event, ScriptAsked};
use netboot::loader::{Architecture, Client};
use netboot::net::{Digest, MacAddress, Timestamp};
use netboot::node::{NodeLink, NodeSpec, Report};
use netboot::release::Asker;
use netboot::site::{Memory, Site};
use netboot::spec::{Artifact, ConfigSource, Mode, Network, Profile, Purpose, SiteParts, SiteSpec};
use netboot::verdict::{Code, Explanation, HopName, HopState};
use proptest::prelude::*;

const START: u64 = 1_800_000_000_000;
const PXE: Client = Client::Pxe(Architecture::BIOS);
const IPXE: Client = Client::Ipxe(Architecture::BIOS);

/// A boot being told: each line of the story is a second later than the one before.
struct Story {
    site: Site,
    entries: Vec<Entry>,
    now: u64,
}

impl Story {
    fn new() -> Self {
        Self::on(Mode::Reservation, Purpose::Install)
    }

    fn on(mode: Mode, purpose: Purpose) -> Self {
        let spec = Arc::new(spec(mode, purpose));
        Self {
            site: Site::restore(spec, Memory::default()),
            entries: Vec::new(),
            now: START,
        }
    }

    fn later(mut self, seconds: u64) -> Self {
        self.now += seconds * 1000;
        self
    }

    fn noted(mut self, fact: Fact) -> Self {
        self.now += 1000;
        self.entries.push(Entry {
            at: Timestamp::from_millis(self.now),
            mac: Some(mac()),
            node: Some("node".parse().unwrap()),
            fact,
        });
        self
    }

    fn happened(mut self, event: Event) -> Self {
        self.now += 1000;
        self.site = self
            .site
            .apply(event, Timestamp::from_millis(self.now))
            .site;
        self
    }

    fn dhcp(self, client: Client, message: &'static str, reply: &'static str) -> Self {
        self.ruled(client, message, reply, 67, "firmware-needs-loader")
    }

    fn ruled(
        self,
        client: Client,
        message: &'static str,
        reply: &'static str,
        port: u16,
        rule: &'static str,
    ) -> Self {
        self.noted(Fact::Dhcp {
            port,
            message: message.into(),
            reply: reply.into(),
            client,
            xid: 1,
            address: None,
            rule: Some(rule.into()),
        })
    }

    fn leased(self, client: Client) -> Self {
        self.dhcp(client, "DISCOVER", "OFFER")
            .dhcp(client, "REQUEST", "ACK")
    }

    fn file(self, file: &str, digest: Option<u8>, outcome: TransferOutcome) -> Self {
        let size = 1000;
        let bytes = if outcome == TransferOutcome::Complete {
            size
        } else {
            100
        };
        self.noted(Fact::Transfer {
            protocol: "http".into(),
            file: file.to_owned(),
            digest: digest.map(|byte| Digest::from_bytes([byte; 32])),
            offset: 0,
            bytes,
            size,
            millis: 20,
            retransmits: 0,
            outcome,
        })
    }

    fn loaded(self) -> Self {
        self.leased(PXE)
            .file("undionly.kpxe", None, TransferOutcome::Complete)
    }

    fn asking(self) -> Self {
        self.loaded().leased(IPXE)
    }

    fn script(self, answer: &'static str, rule: &'static str, reason: Option<&str>) -> Self {
        self.noted(Fact::Script {
            answer: answer.into(),
            rule: rule.into(),
            attempt: None,
            reason: reason.map(str::to_owned),
        })
    }

    fn scripted(self) -> Self {
        self.happened(script_asked())
            .script("boot", "boot-profile", None)
    }

    fn served(self) -> Self {
        self.asking()
            .scripted()
            .file("vmlinuz", Some(1), TransferOutcome::Complete)
            .file("initrd", Some(2), TransferOutcome::Complete)
    }

    fn configured(self) -> Self {
        self.served()
            .happened(Event::ConfigAsked(asker()))
            .noted(Fact::Config {
                document: "ignition".into(),
                attempt: Some(1),
                withheld: None,
            })
    }

    fn explain(&self) -> Explanation {
        let node = self.site.spec().nodes().next().unwrap();
        self.site
            .explain(node, &self.entries, Timestamp::from_millis(self.now))
    }
}

fn check(story: Story, code: Code, hop: HopName, state: HopState) -> Explanation {
    let told = story.explain();
    let at = told
        .hops
        .iter()
        .find(|seen| seen.name == hop)
        .map(|hop| hop.state);
    assert_eq!((told.code, at), (code, Some(state)), "{told:#?}");
    told
}

#[test]
fn a_machine_that_was_never_heard_is_looked_for_at_its_port() {
    let told = check(
        Story::new(),
        Code::NoDhcpSeen,
        HopName::Dhcp,
        HopState::Failed,
    );
    assert!(told.remedy.contains("VLAN of eth1") && told.remedy.contains("PXE-E61"));
}

#[test]
fn each_hop_that_stays_silent_is_named_once_patience_is_over() {
    use HopName::{Artefacts, Config, Dhcp, IpxeDhcp, Loader, Script};
    let offered = || Story::new().dhcp(PXE, "DISCOVER", "OFFER");
    let sized = || {
        Story::new()
            .leased(PXE)
            .file("undionly.kpxe", None, TransferOutcome::SizeOnly)
    };
    let partly = || {
        Story::new()
            .asking()
            .scripted()
            .file("vmlinuz", Some(1), TransferOutcome::Complete)
    };
    let rows: [(Story, Code, HopName); 9] = [
        (offered(), Code::OfferNotTaken, Dhcp),
        (Story::new().leased(PXE), Code::LoaderNotFetched, Loader),
        (sized(), Code::LoaderNotFetched, Loader),
        (Story::new().loaded(), Code::ScriptNotAsked, IpxeDhcp),
        (Story::new().asking(), Code::ScriptNotAsked, Script),
        (
            Story::new().asking().scripted(),
            Code::KernelNotFetched,
            Artefacts,
        ),
        (partly(), Code::ArtefactIncomplete, Artefacts),
        (Story::new().served(), Code::ConfigNotAsked, Config),
        (Story::new().configured(), Code::NoReport, HopName::Report),
    ];
    for (story, code, hop) in rows {
        let early = story.explain();
        assert_eq!(early.code, Code::UnderWay, "{early:#?}");
        assert!(
            early
                .hops
                .iter()
                .any(|seen| seen.name == hop && seen.state == HopState::Waiting)
        );
        let told = check(story.later(3601), code, hop, HopState::Failed);
        assert!(!told.evidence.is_empty() && !told.remedy.is_empty());
    }
}

#[test]
fn another_dhcp_server_is_named_when_it_wins() {
    let lost = Story::new()
        .dhcp(PXE, "DISCOVER", "OFFER")
        .noted(Fact::DhcpIgnored {
            message: "REQUEST".into(),
            reason: "other_server".into(),
        });
    let told = check(lost, Code::OfferNotTaken, HopName::Dhcp, HopState::Failed);
    assert!(told.sentence.contains("another DHCP server"));
    let elsewhere = Story::new().noted(Fact::DhcpIgnored {
        message: "DISCOVER".into(),
        reason: "other_network".into(),
    });
    check(
        elsewhere,
        Code::DhcpIgnored,
        HopName::Dhcp,
        HopState::Failed,
    );
}

#[test]
fn a_proxied_machine_that_falls_silent_is_sent_to_port_4011() {
    let story = Story::on(Mode::Proxy, Purpose::Install).dhcp(PXE, "DISCOVER", "OFFER");
    let told = check(
        story.later(60),
        Code::LoaderNotFetched,
        HopName::Loader,
        HopState::Failed,
    );
    assert_eq!(told.hops[1].state, HopState::Unseen);
    let story = Story::on(Mode::Proxy, Purpose::Install)
        .dhcp(PXE, "DISCOVER", "OFFER")
        .ruled(PXE, "REQUEST", "ACK", 4011, "firmware-needs-loader");
    assert_eq!(story.explain().hops[1].state, HopState::Ok);
}

#[test]
fn a_loader_that_does_not_arrive_has_its_reason() {
    for (outcome, words) in [
        (TransferOutcome::Aborted, "PXE-E23"),
        (TransferOutcome::TimedOut, "PXE-E35"),
    ] {
        let story = Story::new()
            .leased(PXE)
            .file("undionly.kpxe", None, outcome);
        let told = check(
            story,
            Code::LoaderAborted,
            HopName::Loader,
            HopState::Failed,
        );
        assert!(told.remedy.contains(words), "{told:?}");
    }
    let refused = Story::new().leased(PXE).noted(Fact::TransferRefused {
        protocol: "tftp".into(),
        file: "pxelinux.0".to_owned(),
        reason: "not_found".into(),
    });
    check(
        refused,
        Code::LoaderRefused,
        HopName::Loader,
        HopState::Failed,
    );
    let none = Story::new().ruled(PXE, "DISCOVER", "OFFER", 67, "no-loader");
    check(none, Code::NoLoader, HopName::Dhcp, HopState::Failed);
}

#[test]
fn a_loader_that_starts_itself_again_is_a_loop() {
    let story = Story::new().loaded().loaded().loaded();
    check(story, Code::ChainLoop, HopName::Loader, HopState::Failed);
    let broken = Story::new()
        .loaded()
        .ruled(PXE, "DISCOVER", "OFFER", 67, "chain-loop");
    assert_eq!(
        broken.explain().code,
        Code::UnderWay,
        "a loader was fetched and may yet ask"
    );
    let told = Story::new().ruled(PXE, "DISCOVER", "OFFER", 67, "chain-loop");
    check(told, Code::ChainLoop, HopName::Dhcp, HopState::Failed);
}

#[test]
fn a_retry_that_works_out_forgives_what_failed_before() {
    let story = Story::new()
        .leased(PXE)
        .file("undionly.kpxe", None, TransferOutcome::TimedOut)
        .loaded()
        .leased(IPXE);
    check(story, Code::UnderWay, HopName::Loader, HopState::Ok);
}

#[test]
fn a_machine_that_was_started_again_is_judged_by_its_new_start() {
    let story = Story::new().configured().later(30).leased(PXE);
    let told = check(
        story.later(40),
        Code::LoaderNotFetched,
        HopName::Loader,
        HopState::Failed,
    );
    assert!(
        told.hops
            .iter()
            .all(|hop| hop.name <= HopName::Loader || hop.state == HopState::Unseen)
    );
}

#[test]
fn artefacts_that_do_not_arrive_have_their_reason() {
    use TransferOutcome::{Aborted, TimedOut};
    for (outcome, code) in [
        (Aborted, Code::ArtefactIncomplete),
        (TimedOut, Code::ArtefactSlow),
    ] {
        let story = Story::new()
            .asking()
            .scripted()
            .file("vmlinuz", Some(1), outcome);
        check(story, code, HopName::Artefacts, HopState::Failed);
    }
    let live_root = Story::new()
        .served()
        .file("root.squashfs", Some(3), Aborted);
    let told = check(
        live_root,
        Code::ArtefactIncomplete,
        HopName::Artefacts,
        HopState::Failed,
    );
    assert!(told.sentence.contains("root.squashfs"));
    assert!(told.remedy.contains("its console"), "{}", told.remedy);
    let missing = Story::new()
        .asking()
        .scripted()
        .noted(Fact::TransferRefused {
            protocol: "http".into(),
            file: "initrd".to_owned(),
            reason: "unknown_artifact".into(),
        });
    check(
        missing,
        Code::ArtefactRefused,
        HopName::Artefacts,
        HopState::Failed,
    );
}

#[test]
fn a_config_that_stayed_and_a_report_that_was_not_believed_say_why() {
    let withheld = Story::new().served().noted(Fact::Config {
        document: "ignition".into(),
        attempt: None,
        withheld: Some("10.107.0.99 is not the address reserved for node".to_owned()),
    });
    let told = check(
        withheld,
        Code::ConfigWithheld,
        HopName::Config,
        HopState::Failed,
    );
    assert!(told.sentence.contains("10.107.0.99"));
    let refused = Story::new().configured().noted(Fact::Report {
        report: "installed".into(),
        detail: Some("the token is of no boot script in force".to_owned()),
        taken: false,
    });
    check(
        refused,
        Code::ReportRefused,
        HopName::Report,
        HopState::Failed,
    );
}

#[test]
fn the_machines_own_words_are_passed_on() {
    let report = Report::Failed("no disk with serial S1".to_owned());
    let story = Story::new().configured().happened(Event::Reported {
        asker: asker(),
        report,
    });
    let told = check(
        story,
        Code::FailedByMachine,
        HopName::Report,
        HopState::Failed,
    );
    assert!(told.sentence.ends_with("no disk with serial S1"));
}

#[test]
fn an_installed_machine_is_well_whatever_its_ledger_lacks() {
    let mut story = Story::new().configured().happened(Event::Reported {
        asker: asker(),
        report: Report::Installed,
    });
    check(
        story,
        Code::InstalledBootsDisk,
        HopName::Report,
        HopState::Ok,
    );
    story = Story::new().configured().happened(Event::Reported {
        asker: asker(),
        report: Report::Installed,
    });
    story.entries.clear();
    check(
        story.later(86_400),
        Code::InstalledBootsDisk,
        HopName::Script,
        HopState::Ok,
    );
}

#[test]
fn an_open_permit_asks_for_a_power_cycle_until_the_machine_is_heard() {
    let story = Story::new()
        .configured()
        .happened(Event::Reported {
            asker: asker(),
            report: Report::Installed,
        })
        .happened(Event::PermitGiven {
            node: "node".parse().unwrap(),
            disk: "S1".to_owned(),
            seconds: 3600,
            by: "root".to_owned(),
        });
    let told = story.explain();
    assert_eq!(told.code, Code::UnderWay);
    assert!(told.sentence.contains("lose disk S1") && told.remedy.contains("power-cycle"));
    assert_eq!(
        story.later(60).leased(PXE).later(60).explain().code,
        Code::LoaderNotFetched
    );
}

#[test]
fn a_live_boot_is_done_when_its_config_left() {
    let story = Story::on(Mode::Reservation, Purpose::Live).configured();
    check(
        story.later(86_400),
        Code::Done,
        HopName::Config,
        HopState::Ok,
    );
}

#[test]
fn what_a_person_must_do_comes_before_what_a_machine_does_not() {
    let node = || "node".parse().unwrap();
    let cordoned = Story::new().happened(Event::Cordoned(node()));
    check(
        cordoned,
        Code::HeldCordoned,
        HopName::Dhcp,
        HopState::Unseen,
    );
    let rejected = Story::new().happened(Event::Rejected(node())).asking();
    check(rejected, Code::Rejected, HopName::IpxeDhcp, HopState::Ok);
    let memory = Memory {
        recovered: Some("the store was lost".into()),
        ..Memory::default()
    };
    let mut lost = Story::new();
    lost.site = Site::restore(Arc::clone(lost.site.spec()), memory);
    let told = check(
        lost.asking().script("hold", "needs-approval", None),
        Code::HeldForApproval,
        HopName::Script,
        HopState::Waiting,
    );
    assert!(told.sentence.contains("the store was lost"));
}

#[test]
fn a_machine_that_used_up_its_attempts_tells_why_the_last_one_failed() {
    let mut story = Story::new();
    for _ in 0..3 {
        story = story
            .asking()
            .scripted()
            .file("vmlinuz", Some(1), TransferOutcome::Aborted)
            .later(200);
    }
    let told = check(
        story,
        Code::HeldAttemptsUsedUp,
        HopName::Artefacts,
        HopState::Failed,
    );
    assert!(
        told.sentence.contains("3 boots") && told.sentence.contains("hung up"),
        "{told:?}"
    );
    assert!(told.remedy.contains("node approve"));
}

#[test]
fn an_identity_conflict_outweighs_everything() {
    let story = Story::new().asking().script(
        "refuse",
        "identity-conflict",
        Some("listed with serial A and shows B"),
    );
    let told = check(
        story,
        Code::IdentityConflict,
        HopName::Script,
        HopState::Failed,
    );
    assert!(told.sentence.contains("shows B"));
}

#[test]
fn a_gone_profile_is_named() {
    let story = Story::new();
    let gone = SiteSpec::new(SiteParts {
        networks: story
            .site
            .spec()
            .networks()
            .map(|n| Network::clone(n))
            .collect(),
        nodes: Vec::new(),
        profiles: Vec::new(),
        ..SiteParts::default()
    })
    .unwrap();
    let node = Arc::clone(story.site.spec().nodes().next().unwrap());
    let site = Site::restore(Arc::new(gone), Memory::default());
    let told = site.explain(&node, &[], Timestamp::from_millis(START));
    assert!(!told.sentence.is_empty() && told.hops.len() > 3);
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let client = prop_oneof![
        Just(Client::System),
        Just(PXE),
        Just(IPXE),
        Just(Client::HttpBoot(Architecture::X64_HTTP))
    ];
    let word = |words: &'static [&'static str]| proptest::sample::select(words);
    let outcome = prop_oneof![
        Just(TransferOutcome::Complete),
        Just(TransferOutcome::SizeOnly),
        Just(TransferOutcome::Aborted),
        Just(TransferOutcome::TimedOut)
    ];
    let dhcp = (
        client,
        word(&["DISCOVER", "REQUEST", "INFORM"]),
        word(&["OFFER", "ACK", "NAK"]),
        prop_oneof![Just(67u16), Just(4011)],
        word(&[
            "firmware-needs-loader",
            "chain-loop",
            "no-loader",
            "identity-conflict",
        ]),
    )
        .prop_map(|(client, message, reply, port, rule)| Fact::Dhcp {
            port,
            message: message.into(),
            reply: reply.into(),
            client,
            xid: 0,
            address: None,
            rule: Some(rule.into()),
        });
    let transfer = (
        proptest::option::of(1u8..4),
        outcome,
        any::<u64>(),
        any::<u64>(),
        word(&["a.efi", "b.ipxe"]),
    )
        .prop_map(|(digest, outcome, bytes, size, file)| Fact::Transfer {
            protocol: "tftp".into(),
            file: file.to_owned(),
            digest: digest.map(|d| Digest::from_bytes([d; 32])),
            offset: size,
            bytes,
            size,
            millis: bytes,
            retransmits: 1,
            outcome,
        });
    prop_oneof![
        dhcp,
        transfer,
        word(&[
            "other_server",
            "released",
            "other_network",
            "new in a later version"
        ])
        .prop_map(|reason| Fact::DhcpIgnored {
            message: "REQUEST".into(),
            reason: reason.into()
        }),
        word(&["boot", "hold", "disk", "refuse", "else"]).prop_map(|answer| Fact::Script {
            answer: answer.into(),
            rule: "x".into(),
            attempt: None,
            reason: None
        }),
        any::<bool>().prop_map(|stayed| Fact::Config {
            document: "meta-data".into(),
            attempt: None,
            withheld: stayed.then(|| "why".to_owned())
        }),
        any::<bool>().prop_map(|taken| Fact::Report {
            report: "ready".into(),
            detail: None,
            taken
        }),
        Just(Fact::TransferRefused {
            protocol: "tftp".into(),
            file: "x".to_owned(),
            reason: "y".into()
        }),
        Just(Fact::Person {
            act: "approve".into(),
            by: "root".to_owned(),
            detail: None
        }),
    ]
}

proptest! {
    #[test]
    fn any_ledger_has_one_verdict_that_names_the_machine(
        facts in proptest::collection::vec((any_fact(), 0u64..400), 0..60),
        attempted in any::<bool>(),
        mode in prop_oneof![Just(Mode::Reservation), Just(Mode::Proxy)],
        later in 0u64..10_000,
    ) {
        let mut story = Story::on(mode, Purpose::Install);
        for (index, (fact, pause)) in facts.into_iter().enumerate() {
            story = story.later(pause).noted(fact);
            if attempted && index == 20 {
                story = story.happened(script_asked());
            }
        }
        let story = story.later(later);
        let told = story.explain();
        prop_assert_eq!(&told, &story.explain());
        prop_assert!(told.sentence.contains("node"), "{}", told.sentence);
        prop_assert!(told.hops.is_sorted_by(|a, b| a.name < b.name));
        prop_assert!(told.hops.iter().filter(|hop| hop.state == HopState::Waiting).count() <= 1);
        prop_assert!(told.evidence.len() <= 6 && told.evidence.is_sorted_by_key(|entry| entry.at));
        let well = matches!(told.code, Code::UnderWay | Code::Done | Code::InstalledBootsDisk);
        prop_assert!(well || !told.remedy.is_empty(), "{:?}", told.code);
    }
}

fn script_asked() -> Event {
    Event::ScriptAsked(ScriptAsked {
        mac: mac(),
        client: IPXE,
        network: "lab".parse().unwrap(),
        uuid: None,
        serial: None,
        token: Digest::from_bytes([9; 32]),
    })
}

fn asker() -> Asker {
    Asker {
        token: Digest::from_bytes([9; 32]),
        address: "10.107.0.11".parse().unwrap(),
        neighbour: Some(mac()),
    }
}

fn mac() -> MacAddress {
    "52:54:00:aa:00:01".parse().unwrap()
}

fn spec(mode: Mode, purpose: Purpose) -> SiteSpec {
    let artifact = |file: &str, byte| Artifact {
        file: file.to_owned(),
        digest: Digest::from_bytes([byte; 32]),
        size: 1000,
    };
    let network = Network {
        mode,
        lease_seconds: 600,
        ..Network::plain(
            "lab".parse().unwrap(),
            "eth1".parse().unwrap(),
            "10.107.0.0/24".parse().unwrap(),
        )
    };
    let profile = Profile {
        name: "worker".parse().unwrap(),
        kernel: artifact("vmlinuz", 1),
        initrds: vec![artifact("initrd", 2)],
        artifacts: BTreeMap::from([("root".to_owned(), artifact("root.squashfs", 3))]),
        arguments: Vec::new(),
        config: ConfigSource::Ignition("{}".into()),
        purpose,
        disk: None,
    };
    let node = NodeSpec {
        name: "node".parse().unwrap(),
        links: vec![NodeLink {
            macs: vec![mac()],
            network: "lab".parse().unwrap(),
            address: "10.107.0.11".parse().unwrap(),
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: "node".parse().unwrap(),
        profile: Some("worker".parse().unwrap()),
        labels: BTreeMap::default(),
        rack: None,
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    };
    SiteSpec::new(SiteParts {
        networks: vec![network],
        nodes: vec![node],
        profiles: vec![profile],
        ..SiteParts::default()
    })
    .unwrap()
}
