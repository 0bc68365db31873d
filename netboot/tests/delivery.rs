//! The promises of a config with secrets, for whatever machines, wires and daemons do to it: for each boot at most one
//! acknowledged delivery, at most three begun, none to anybody but the machine, and none after the first that was acknowledged.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use netboot::attempt::{Entry, Fact};
use netboot::delivery::{DELIVERIES_MAX, Spent, UnderWay};
use netboot::event::{Event, Outcome, ScriptAsked};
use netboot::loader::{Architecture, Client};
use netboot::net::{Digest, MacAddress, NodeName, Timestamp};
use netboot::node::{NodeLink, NodeSpec};
use netboot::release::{Asker, Release, WINDOW_SECONDS, Withheld};
use netboot::site::{Memory, Site};
use netboot::spec::{Artifact, ConfigSource, Network, Profile, Purpose, SiteParts, SiteSpec};
use netboot::verdict::Code;
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 11);

fn mac(last: u8) -> MacAddress {
    MacAddress::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).unwrap()
}

fn token(attempt: u32) -> Digest {
    Digest::from_bytes([u8::try_from(attempt).unwrap(); 32])
}

fn node() -> NodeName {
    "node".parse().unwrap()
}

fn spec() -> SiteSpec {
    let network = Network::plain(
        "lab".parse().unwrap(),
        "eth1".parse().unwrap(),
        "10.107.0.0/24".parse().unwrap(),
    );
    let profile = Profile {
        name: "only".parse().unwrap(),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: token(1),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::Ignition("{}".into()),
        // So that attempts don't run out.
        purpose: Purpose::Live,
        disk: None,
    };
    let node = NodeSpec {
        name: node(),
        links: vec![NodeLink {
            macs: vec![mac(11)],
            network: "lab".parse().unwrap(),
            address: ADDRESS,
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: "node".parse().unwrap(),
        profile: Some("only".parse().unwrap()),
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
        labels: BTreeMap::new(),
        rack: None,
    };
    SiteSpec::new(SiteParts {
        networks: vec![network],
        nodes: vec![node],
        profiles: vec![profile],
        ..SiteParts::default()
    })
    .unwrap()
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    /// The machine is started anew and fetches its script.
    Boot,
    /// Somebody asks for the config; only the machine itself has all three.
    Ask {
        latest_token: bool,
        own_address: bool,
        neighbour: Option<bool>,
    },
    /// The oldest delivery under way ends: acknowledged, or not.
    End { acknowledged: bool },
    /// The daemon dies, and its successor remembers what is on disk. Bytes under way may still arrive.
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let often = |usual: bool| prop_oneof![4 => Just(usual), 1 => Just(!usual)];
    let ask = (
        often(true),
        often(true),
        prop_oneof![6 => Just(Some(true)), 1 => Just(Some(false)), 1 => Just(None)],
    )
        .prop_map(|(latest_token, own_address, neighbour)| Step::Ask {
            latest_token,
            own_address,
            neighbour,
        });
    let step = prop_oneof![
        1 => Just(Step::Boot),
        6 => ask,
        4 => any::<bool>().prop_map(|acknowledged| Step::End { acknowledged }),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 1..60)
}

/// A daemon as its HTTP server uses the rules.
struct Daemon {
    site: Site,
    under_way: UnderWay,
    /// The attempts whose bytes are on the wire.
    wire: Vec<u32>,
    now: Timestamp,
}

impl Daemon {
    fn new() -> Self {
        Self {
            site: Site::restore(Arc::new(spec()), Memory::default()),
            under_way: UnderWay::default(),
            wire: Vec::new(),
            now: NOW,
        }
    }

    fn apply(&mut self, event: Event) -> Outcome {
        self.now = self.now.plus_seconds(1);
        let applied = self.site.apply(event, self.now);
        self.site = applied.site;
        applied.outcome
    }

    fn boot(&mut self) -> u32 {
        // A person who lets it try again and again.
        self.apply(Event::Approved(node()));
        let next = self.site.record(&node()).attempts_ever + 1;
        let asked = ScriptAsked {
            mac: mac(11),
            client: Client::Ipxe(Architecture::BIOS),
            network: "lab".parse().unwrap(),
            uuid: None,
            serial: None,
            token: token(next),
        };
        let Outcome::Script(Some(served)) = self.apply(Event::ScriptAsked(asked)) else {
            panic!("a listed machine boots");
        };
        served.attempt
    }

    fn ask(&mut self, asker: Asker) -> Option<Result<(Release, u8), Withheld>> {
        let may = self.site.may_deliver(&asker, self.now);
        if let Ok((release, _)) = &may
            && !self.under_way.begin(&release.node.name, release.attempt)
        {
            return None;
        }
        let Outcome::Secret(answer) = self.apply(Event::SecretAsked(asker)) else {
            panic!("the controller answers what it is asked");
        };
        if let Ok((release, _)) = &answer {
            self.wire.push(release.attempt);
        }
        Some(answer)
    }

    fn end(&mut self, acknowledged: bool) {
        if self.wire.is_empty() {
            return;
        }
        let attempt = self.wire.remove(0);
        if acknowledged {
            self.apply(Event::Delivered {
                node: node(),
                attempt,
            });
        }
        self.under_way.end(&node(), attempt);
    }

    fn kill(&mut self) {
        let records = self.site.records();
        let records = records
            .map(|(name, record)| (name.clone(), (**record).clone()))
            .collect();
        let memory = Memory {
            generation: self.site.generation(),
            records,
            ..Memory::default()
        };
        *self = Self {
            site: Site::restore(Arc::new(spec()), memory),
            now: self.now,
            ..Self::new()
        };
    }
}

fn own(attempt: u32) -> Asker {
    Asker {
        token: token(attempt),
        address: ADDRESS,
        neighbour: Some(mac(11)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_config_with_secrets_leaves_once_for_each_boot_and_only_to_its_machine(steps in steps()) {
        let mut daemon = Daemon::new();
        let mut latest = daemon.boot();
        let (mut begun, mut acknowledged) = (BTreeMap::<u32, u8>::new(), BTreeMap::<u32, u32>::new());
        for step in steps {
            match step {
                Step::Boot if latest < 200 => latest = daemon.boot(),
                Step::Boot => {}
                Step::Ask { latest_token, own_address, neighbour } => {
                    let asker = Asker {
                        token: if latest_token { token(latest) } else { token(latest - 1) },
                        address: if own_address { ADDRESS } else { Ipv4Addr::new(10, 107, 0, 12) },
                        neighbour: neighbour.map(|own| if own { mac(11) } else { mac(12) }),
                    };
                    let genuine = latest_token && own_address && neighbour == Some(true);
                    let spent = acknowledged.contains_key(&latest);
                    match daemon.ask(asker) {
                        Some(Ok((release, number))) => {
                            prop_assert!(genuine && !spent);
                            prop_assert_eq!(release.attempt, latest);
                            let count = begun.entry(latest).or_default();
                            *count += 1;
                            prop_assert_eq!(number, *count);
                            prop_assert!(*count <= DELIVERIES_MAX);
                        }
                        Some(Err(Withheld::Spent(_, why))) => {
                            prop_assert!(genuine);
                            prop_assert_eq!(why == Spent::Delivered, spent);
                            let attempt = daemon.site.record(&node()).attempt.clone().unwrap();
                            prop_assert!(attempt.deliveries.asked_again.is_some());
                        }
                        Some(Err(_)) => prop_assert!(!genuine),
                        None => prop_assert!(genuine && daemon.wire.contains(&latest)),
                    }
                }
                Step::End { acknowledged: told } => {
                    let ends = daemon.wire.first().copied();
                    daemon.end(told);
                    if let Some(attempt) = ends.filter(|_| told) {
                        *acknowledged.entry(attempt).or_default() += 1;
                        prop_assert_eq!(acknowledged[&attempt], 1);
                    }
                }
                Step::Kill => daemon.kill(),
            }
        }
    }
}

#[test]
fn a_machine_whose_connections_break_gets_its_config_by_the_third_and_a_new_boot_begins_anew() {
    let mut daemon = Daemon::new();
    let attempt = daemon.boot();
    for number in 1..=DELIVERIES_MAX {
        let answer = daemon.ask(own(attempt)).unwrap();
        assert_eq!(answer.map(|(_, number)| number), Ok(number));
        daemon.end(false);
    }
    let answer = daemon.ask(own(attempt)).unwrap();
    assert_eq!(
        answer.unwrap_err(),
        Withheld::Spent(node(), Spent::TriedOut)
    );
    let attempt = daemon.boot();
    assert!(matches!(daemon.ask(own(attempt)), Some(Ok((_, 1)))));
}

#[test]
fn a_token_that_is_used_up_is_an_alarm_where_its_config_left() {
    let asked_again = |daemon: &Daemon| {
        let attempt = daemon.site.record(&node()).attempt.clone().unwrap();
        attempt.deliveries.asked_again.is_some()
    };
    for delivered in [true, false] {
        let mut daemon = Daemon::new();
        let attempt = daemon.boot();
        if delivered {
            daemon.ask(own(attempt)).unwrap().unwrap();
            daemon.end(true);
        }
        daemon.now = daemon.now.plus_seconds(WINDOW_SECONDS + 1);
        let answer = daemon.ask(own(attempt)).unwrap();
        assert!(matches!(answer, Err(Withheld::TooLate(_))));
        assert_eq!(asked_again(&daemon), delivered);
    }
}

#[test]
fn a_config_that_is_asked_for_again_is_an_alarm_until_a_person_or_a_new_boot_settles_it() {
    let settled = [None, Some(Event::Approved(node()))];
    for settle in settled {
        let mut daemon = Daemon::new();
        let attempt = daemon.boot();
        daemon.ask(own(attempt)).unwrap().unwrap();
        daemon.end(true);
        assert!(daemon.ask(own(attempt)).unwrap().is_err());
        let entry = |at, fact| Entry {
            at,
            mac: None,
            node: Some(node()),
            fact,
        };
        let script = Fact::Script {
            answer: "boot".into(),
            rule: "x".into(),
            attempt: Some(attempt),
            reason: None,
        };
        let delivery = Fact::Delivery {
            document: "talos.yaml".into(),
            attempt,
            number: 1,
            acknowledged: true,
        };
        let entries = [entry(NOW, script), entry(daemon.now, delivery)];
        let explain = |daemon: &Daemon| {
            let spec = daemon.site.spec().node(&node()).unwrap();
            daemon.site.explain(spec, &entries, daemon.now)
        };
        let told = explain(&daemon);
        assert_eq!(told.code, Code::ConfigAskedAgain, "{told:?}");
        assert!(told.remedy.contains("power-cycle node"), "{told:?}");
        match settle {
            Some(event) => drop(daemon.apply(event)),
            None => drop(daemon.boot()),
        }
        assert_ne!(explain(&daemon).code, Code::ConfigAskedAgain);
    }
}
