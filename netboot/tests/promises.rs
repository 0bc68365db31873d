//! The promises of the boot decision, the release rule and the lending of addresses, for whatever
//! records and requests there are.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use netboot::boot::{ATTEMPTS_MAX, BootDecision, BootRequest, Refusal};
use netboot::delivery::Deliveries;
use netboot::event::{Event, LeaseAsked, Outcome, ScriptAsked};
use netboot::loader::{Architecture, Client};
use netboot::net::{Digest, MacAddress, NodeName, Timestamp};
use netboot::node::{
    Admission, Attempt, BootState, DiskRule, Install, NodeLink, NodeRecord, NodeSpec, WipePermit,
};
use netboot::release::{Asker, WINDOW_SECONDS};
use netboot::site::{Memory, Site};
use netboot::spec::{
    AdmissionPolicy, Artifact, ConfigSource, Mode, Network, Profile, Purpose, SiteParts, SiteSpec,
};
use proptest::prelude::*;
use uuid::Uuid;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

fn mac(last: u8) -> MacAddress {
    MacAddress::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn name() -> NodeName {
    "node".parse().unwrap()
}

fn spec(purpose: Purpose, admission: AdmissionPolicy, mode: Mode) -> SiteSpec {
    let network = Network {
        mode,
        range: Some("10.107.0.100-109".parse().unwrap()),
        lease_seconds: 600,
        discovery: (purpose == Purpose::Live).then(|| "only".parse().unwrap()),
        ..Network::plain(
            "lab".parse().unwrap(),
            "eth1".parse().unwrap(),
            "10.107.0.0/24".parse().unwrap(),
        )
    };
    let profile = Profile {
        name: "only".parse().unwrap(),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: digest(1),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::Ignition("{}".into()),
        purpose,
        disk: Some(DiskRule::Serial("SN".to_owned())),
    };
    let node = |name: &str, last: u8| NodeSpec {
        name: name.parse().unwrap(),
        links: vec![NodeLink {
            macs: vec![mac(last)],
            network: "lab".parse().unwrap(),
            address: Ipv4Addr::new(10, 107, 0, last),
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: Some(Uuid::from_u128(0x1070 + u128::from(last))),
        serial: Some(format!("SN{last}")),
        hostname: name.parse().unwrap(),
        profile: Some("only".parse().unwrap()),
        labels: BTreeMap::default(),
        rack: None,
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    };
    let nodes = vec![node("node", 11), node("other", 12)];
    SiteSpec::new(SiteParts {
        networks: vec![network],
        nodes,
        profiles: vec![profile],
        admission,
        ..SiteParts::default()
    })
    .unwrap()
}

prop_compose! {
    fn permits()(disk in "[A-Z0-9]{1,8}", given in 0..2_000_000_u64, lasts in 0..2_000_000_u64) -> WipePermit {
        let given = Timestamp::from_millis(NOW.millis() - 1_000_000 + given);
        WipePermit { disk, given, expires: Timestamp::from_millis(given.millis() + lasts), by: "root".to_owned() }
    }
}

prop_compose! {
    fn attempts()(number in 1..9_u32, started in 0..8_000_000_u64, released in any::<bool>()) -> Attempt {
        Attempt {
            number,
            token: digest(7),
            mac: mac(11),
            profile: "only".parse().unwrap(),
            started: Timestamp::from_millis(NOW.millis() - started),
            released: released.then_some(NOW),
            deliveries: Deliveries::default(),
            report: None,
        }
    }
}

prop_compose! {
    fn records()(
        admission in prop_oneof![Just(Admission::Listed), Just(Admission::Approved), Just(Admission::Rejected)],
        cordoned in any::<bool>(),
        state in prop_oneof![Just(BootState::Registered), Just(BootState::Installing), Just(BootState::Failed)],
        generation in 0..4_u32,
        installed in any::<bool>(),
        permit in proptest::option::of(permits()),
        failed_attempts in 0..6_u8,
        attempt in proptest::option::of(attempts()),
    ) -> NodeRecord {
        NodeRecord {
            admission,
            cordoned,
            state,
            generation,
            configured: None,
            installed: installed.then_some(Install { generation, attempt: 1, at: NOW }),
            permit,
            consented_disk: None,
            failed_attempts,
            attempts_ever: attempt.as_ref().map_or(0, |attempt| attempt.number),
            attempt,
        }
    }
}

fn clients() -> impl Strategy<Value = Client> {
    let arch =
        prop_oneof![Just(0), Just(7), Just(11), Just(16), any::<u16>()].prop_map(Architecture);
    (0..4, arch).prop_map(|(kind, arch)| match kind {
        0 => Client::System,
        1 => Client::Pxe(arch),
        2 => Client::HttpBoot(arch),
        _ => Client::Ipxe(arch),
    })
}

fn purposes() -> impl Strategy<Value = Purpose> {
    prop_oneof![Just(Purpose::Install), Just(Purpose::Live)]
}

fn policies() -> impl Strategy<Value = AdmissionPolicy> {
    prop_oneof![Just(AdmissionPolicy::Listed), Just(AdmissionPolicy::Manual)]
}

fn site(purpose: Purpose, policy: AdmissionPolicy, record: NodeRecord, recovered: bool) -> Site {
    let memory = Memory {
        generation: 1,
        recovered: recovered.then(|| "the store was lost".into()),
        records: vec![(name(), record)],
        leases: Vec::new(),
        ..Memory::default()
    };
    Site::restore(Arc::new(spec(purpose, policy, Mode::Pool)), memory)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_installed_disk_is_offered_an_installer_only_under_an_open_permit(
        record in records(), client in clients(), policy in policies(), recovered in any::<bool>(), chainloads in 0..9_u8,
    ) {
        let site = site(Purpose::Install, policy, record.clone(), recovered);
        let network = "lab".parse().unwrap();
        let request = BootRequest { mac: mac(11), client, network: &network, uuid: None, serial: None, chainloads };
        let answer = site.decide(&request, NOW).answer;
        let open = record.permit.as_ref().is_some_and(|permit| permit.is_open(NOW));
        if record.installed.is_some() && !open {
            prop_assert!(!matches!(answer, BootDecision::Boot(_)), "{answer:?}");
        }
        if let BootDecision::Boot(boot) = &answer {
            prop_assert!(record.admission != Admission::Rejected && !record.cordoned);
            prop_assert!(open || record.failed_attempts < ATTEMPTS_MAX);
            prop_assert!(record.admission == Admission::Approved || (policy == AdmissionPolicy::Listed && !recovered));
            prop_assert_eq!(boot.uses_permit, open);
        }
    }

    #[test]
    fn a_machine_that_is_unknown_or_contradicts_is_never_installed(
        last in any::<u8>(), uuid in proptest::option::of(0x1070..0x10a0_u128), serial in proptest::option::of("SN[0-9]{1,2}"),
        client in clients(), purpose in purposes(),
    ) {
        let site = Site::new(Arc::new(spec(purpose, AdmissionPolicy::Listed, Mode::Pool)));
        let network = "lab".parse().unwrap();
        let uuid = uuid.map(Uuid::from_u128);
        let request = BootRequest { mac: mac(last), client, network: &network, uuid, serial: serial.as_deref(), chainloads: 0 };
        if let BootDecision::Boot(boot) = site.decide(&request, NOW).answer
            && boot.profile.purpose == Purpose::Install
        {
            let node = boot.node.expect("only a listed machine is installed");
            prop_assert!(node.macs().any(|listed| listed == mac(last)));
            prop_assert!(uuid.is_none() || node.uuid == uuid);
            prop_assert!(serial.is_none() || node.serial == serial);
        }
    }

    #[test]
    fn firmware_that_reads_no_scripts_is_never_told_anything_but_a_loader_or_no(
        record in records(), arch in any::<u16>(), http in any::<bool>(), chainloads in any::<u8>(),
    ) {
        let site = site(Purpose::Install, AdmissionPolicy::Listed, record, false);
        let network = "lab".parse().unwrap();
        let client = if http { Client::HttpBoot(Architecture(arch)) } else { Client::Pxe(Architecture(arch)) };
        let request = BootRequest { mac: mac(11), client, network: &network, uuid: None, serial: None, chainloads };
        let answer = site.decide(&request, NOW).answer;
        let sound = matches!(answer, BootDecision::Chainload(_) | BootDecision::Refuse(Refusal::NoLoader(_) | Refusal::ChainLoop(_)));
        prop_assert!(sound, "{answer:?}");
    }

    #[test]
    fn a_config_leaves_only_for_the_token_address_and_mac_of_one_open_attempt(
        record in records(), token in 6..9_u8, address in 10..14_u8, neighbour in proptest::option::of(10..14_u8),
        purpose in purposes(),
    ) {
        let site = site(purpose, AdmissionPolicy::Listed, record.clone(), false);
        let asker = Asker {
            token: digest(token),
            address: Ipv4Addr::new(10, 107, 0, address),
            neighbour: neighbour.map(mac),
        };
        let allowed = site.may_release(&asker, NOW).is_ok();
        let fresh = record.attempt.as_ref().is_some_and(|a| NOW.millis_since(a.started) <= WINDOW_SECONDS * 1000);
        let finished = purpose == Purpose::Install && record.installed.is_some();
        let admitted = record.admission != Admission::Rejected;
        let its_own = token == 7 && address == 11 && neighbour == Some(11);
        prop_assert_eq!(allowed, its_own && fresh && !finished && admitted);
    }

    #[test]
    fn an_event_on_a_snapshot_leaves_the_snapshot_as_it_was(record in records(), token in any::<u8>()) {
        let before = site(Purpose::Install, AdmissionPolicy::Listed, record.clone(), false);
        let asked = ScriptAsked {
            mac: mac(11),
            client: Client::Ipxe(Architecture::BIOS),
            network: "lab".parse().unwrap(),
            uuid: None,
            serial: None,
            token: digest(token),
        };
        let applied = before.apply(Event::ScriptAsked(asked), NOW);
        prop_assert_eq!(before.record(&name()), &record);
        let served = matches!(applied.outcome, Outcome::Script(Some(_)));
        prop_assert_eq!(served, !applied.changes.is_empty(), "what is served is written down, and nothing else is");
        let after = applied.site.record(&name());
        prop_assert_eq!(after.attempts_ever, record.attempts_ever + u32::from(served));
        if served {
            prop_assert!(after.permit.is_none() || after.permit == record.permit);
            prop_assert!(after.installed.is_none());
        }
    }

    #[test]
    fn no_address_is_lent_twice(asks in proptest::collection::vec((20..40_u8, proptest::option::of(95..115_u8), 0..900_u64), 1..60)) {
        let mut site = Site::new(Arc::new(spec(Purpose::Live, AdmissionPolicy::Listed, Mode::Pool)));
        let network = Arc::clone(site.spec().networks().next().unwrap());
        let mut now = NOW;
        for (last, wanted, later) in asks {
            now = now.plus_seconds(later);
            let wanted = wanted.map(|wanted| Ipv4Addr::new(10, 107, 0, wanted));
            let Some(address) = site.address_to_lend(&network, mac(last), wanted, now) else { continue };
            prop_assert!(network.range.unwrap().contains(address));
            let asked = LeaseAsked { mac: mac(last), network: network.name.clone(), address };
            let applied = site.apply(Event::LeaseAsked(asked), now);
            prop_assert!(matches!(applied.outcome, Outcome::Lease(true)));
            site = applied.site;
            let holders = site.leases().filter(|(_, lease)| lease.mac == mac(last)).count();
            prop_assert_eq!(holders, 1, "one machine, one lease");
            let again = site.address_to_lend(&network, mac(last), None, now);
            prop_assert_eq!(again, Some(address), "the same machine is offered the same address");
        }
    }
}
