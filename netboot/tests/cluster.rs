//! What clusters promise: machines are placed the same way each time and stay, turns come from evidence alone and
//! never go away again, and what a power cut leaves is the same cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netboot::boot::{BootDecision, BootRequest, Hold};
use netboot::cluster::{
    Admit, AntiAffinity, ClusterName, ClusterSpec, Course, FactKey, Gate, NodeGroup, Order, Phase,
    Placement, Provider, Role, Seen, Service, ServiceKind, Stage, Validation, place,
};
use netboot::event::{Event, Outcome, ScriptAsked};
use netboot::loader::{Architecture, Client};
use netboot::net::{Digest, LinkName, NodeName, Timestamp};
use netboot::node::{BootState, NodeLink, NodeSpec, Report};
use netboot::release::{Asker, Withheld};
use netboot::site::{Memory, Site};
use netboot::spec::{
    Artifact, ConfigSource, Format, Network, Profile, Purpose, SiteParts, SiteSpec,
};
use proptest::prelude::*;
use uuid::Uuid;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn machine(number: u8, rack: Option<&str>, labels: &[(&str, &str)]) -> NodeSpec {
    let own = format!("m-{number:02}");
    NodeSpec {
        name: name(&own),
        links: vec![NodeLink {
            macs: vec![name(&format!("52:54:00:aa:00:{number:02x}"))],
            network: name("lab"),
            address: name(&format!("10.107.0.{}", 10 + number)),
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: name(&own),
        profile: None,
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        rack: rack.map(str::to_owned),
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    }
}

fn group(own: &str, role: Role, count: u16) -> NodeGroup {
    NodeGroup {
        name: name(own),
        role,
        count,
        profile: name("system"),
        placement: Placement::default(),
        temporary: false,
        becomes: None,
        tags: Vec::new(),
        metadata: BTreeMap::new(),
    }
}

/// Bootstrap and control planes at once, workers two by two, and a last look.
fn course() -> Course {
    let admit = |role, order| Admit { role, order };
    let phase = |stage, admits, gates, retires| Phase {
        stage,
        admits,
        gates,
        retires,
    };
    let ready: netboot::cluster::FactName = name("node-ready");
    Course {
        phases: vec![
            phase(
                Stage::Bootstrap,
                vec![
                    admit(Role::Bootstrap, Order::Together),
                    admit(Role::ControlPlane, Order::Together),
                ],
                vec![
                    Gate::Fact(name("bootstrap-complete")),
                    Gate::Every(Role::ControlPlane, ready.clone()),
                ],
                Some(Role::Bootstrap),
            ),
            phase(
                Stage::Worker,
                vec![admit(
                    Role::Worker,
                    Order::Batches {
                        size: 2,
                        until: vec![ready.clone()],
                    },
                )],
                vec![Gate::Every(Role::Worker, ready)],
                None,
            ),
            phase(Stage::Ready, Vec::new(), Vec::new(), None),
        ],
    }
}

fn cluster(own: &str, groups: Vec<NodeGroup>) -> ClusterSpec {
    ClusterSpec {
        name: name(own),
        platform: "sample".into(),
        version: "1".into(),
        domain: name("lab.example"),
        network: name("lab"),
        pods: Vec::new(),
        services: Vec::new(),
        groups,
        needs: Vec::new(),
        course: course(),
        public: true,
        validation: Validation::default(),
        settings: serde_json::Value::Null.into(),
    }
}

fn parts(machines: Vec<NodeSpec>, clusters: Vec<ClusterSpec>) -> SiteParts {
    let link: LinkName = name("eth0");
    let profile = Profile {
        name: name("system"),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::Platform(Format::Ignition),
        purpose: Purpose::Install,
        disk: None,
    };
    SiteParts {
        networks: vec![Network::plain(name("lab"), link, name("10.107.0.0/24"))],
        nodes: machines,
        profiles: vec![profile],
        clusters,
        ..SiteParts::default()
    }
}

fn spec(machines: Vec<NodeSpec>, clusters: Vec<ClusterSpec>) -> Arc<SiteSpec> {
    Arc::new(SiteSpec::new(parts(machines, clusters)).unwrap())
}

/// A site with its machines seated and its secrets at hand.
fn seated(spec: Arc<SiteSpec>) -> Site {
    let site = happens(&Site::new(Arc::clone(&spec)), Event::SpecReplaced(spec));
    happens(&site, seen("secrets", None))
}

fn happens(site: &Site, event: Event) -> Site {
    let applied = site.apply(event, NOW);
    assert!(
        !matches!(applied.outcome, Outcome::Refused(_)),
        "{:?}",
        applied.outcome
    );
    applied.site
}

fn seats(site: &Site, cluster: &str) -> Vec<(String, String)> {
    let (_, state) = site.cluster(&name(cluster)).unwrap();
    let seat = |member: &Arc<netboot::cluster::Member>| {
        (member.group.to_string(), member.node.to_string())
    };
    state.members.iter().map(seat).collect()
}

fn seen(fact: &str, node: Option<&str>) -> Event {
    Event::Seen {
        cluster: name("prod"),
        founded: NOW,
        seen: vec![Seen {
            key: FactKey {
                node: node.map(name),
                fact: name(fact),
            },
            holds: true,
            words: "seen".to_owned(),
            boot: None,
        }],
    }
}

fn decides(site: &Site, node: &str) -> Result<(), Option<Hold>> {
    let node = site.spec().node(&name(node)).unwrap();
    let link = node.boot_link();
    let request = BootRequest {
        mac: link.macs[0],
        client: Client::Ipxe(Architecture::BIOS),
        network: &link.network,
        uuid: None,
        serial: None,
        chainloads: 0,
    };
    match site.decide(&request, NOW).answer {
        BootDecision::Boot(_) => Ok(()),
        BootDecision::Hold(hold) => Err(Some(hold)),
        BootDecision::LocalDisk | BootDecision::Refuse(_) | BootDecision::Chainload(_) => Err(None),
    }
}

fn boots(site: &Site, node: &str) -> (Site, Asker) {
    let machine = Arc::clone(site.spec().node(&name(node)).unwrap());
    let link = machine.boot_link();
    let mut token = [0; 32];
    token[0] = link.address.octets()[3];
    token[1] = u8::try_from(site.record(&machine.name).attempts_ever).unwrap();
    let asked = ScriptAsked {
        mac: link.macs[0],
        client: Client::Ipxe(Architecture::BIOS),
        network: link.network.clone(),
        uuid: None,
        serial: None,
        token: Digest::from_bytes(token),
    };
    let site = happens(site, Event::ScriptAsked(asked));
    let asker = Asker {
        token: Digest::from_bytes(token),
        address: link.address,
        neighbour: Some(link.macs[0]),
    };
    (site, asker)
}

fn installs(site: &Site, node: &str) -> Site {
    let (site, asker) = boots(site, node);
    let site = happens(&site, Event::ConfigAsked(asker));
    let report = Report::Installed;
    happens(&site, Event::Reported { asker, report })
}

fn prod() -> ClusterSpec {
    let mut bootstrap = group("bootstrap", Role::Bootstrap, 1);
    bootstrap.temporary = true;
    cluster(
        "prod",
        vec![
            bootstrap,
            group("masters", Role::ControlPlane, 3),
            group("workers", Role::Worker, 3),
        ],
    )
}

fn fleet(count: u8) -> Vec<NodeSpec> {
    (1..=count)
        .map(|number| machine(number, None, &[]))
        .collect()
}

#[test]
fn a_worker_waits_for_the_control_plane_and_then_for_the_batch_before_it() {
    let mut site = seated(spec(fleet(7), vec![prod()]));
    assert_eq!(decides(&site, "m-01"), Ok(()), "bootstrap");
    assert_eq!(
        decides(&site, "m-02"),
        Ok(()),
        "control planes come with it"
    );
    let Err(Some(hold)) = decides(&site, "m-05") else {
        panic!("a worker boots before its turn");
    };
    assert_eq!(
        hold.to_string(),
        "waits its turn in prod (bootstrap phase): bootstrap-complete not seen yet, 0 of 3 control planes node-ready"
    );
    site = happens(&site, seen("bootstrap-complete", None));
    for node in ["m-02", "m-03", "m-04"] {
        assert!(decides(&site, "m-05").is_err(), "before {node}");
        site = happens(&site, seen("node-ready", Some(node)));
    }
    assert_eq!(decides(&site, "m-05"), Ok(()));
    assert_eq!(decides(&site, "m-06"), Ok(()));
    assert!(decides(&site, "m-07").is_err(), "the second batch");
    for node in ["m-05", "m-06"] {
        site = happens(&site, seen("node-ready", Some(node)));
    }
    assert_eq!(decides(&site, "m-07"), Ok(()));
    site = happens(&site, seen("node-ready", Some("m-07")));
    let (_, state) = site.cluster(&name("prod")).unwrap();
    assert_eq!(state.record.stage, Stage::Ready);
}

#[test]
fn nobody_boots_without_secrets_nor_with_those_that_grew_too_old() {
    let spec = spec(fleet(7), vec![prod()]);
    let site = happens(&Site::new(Arc::clone(&spec)), Event::SpecReplaced(spec));
    let Err(Some(hold)) = decides(&site, "m-01") else {
        panic!("it boots without secrets");
    };
    assert_eq!(
        hold.to_string(),
        "waits its turn in prod (bootstrap phase): secrets not seen yet"
    );
    let site = happens(&site, seen("secrets", None));
    assert_eq!(decides(&site, "m-01"), Ok(()));
    let Event::Seen {
        cluster,
        founded,
        mut seen,
    } = seen("secrets", None)
    else {
        unreachable!()
    };
    seen[0].holds = false;
    let site = happens(
        &site,
        Event::Seen {
            cluster,
            founded,
            seen,
        },
    );
    assert!(
        decides(&site, "m-01").is_err(),
        "they are too old for an install"
    );
}

#[test]
fn a_required_service_that_is_down_holds_whoever_has_got_nothing_and_the_phase() {
    let down = |fact: &str, words: &str| {
        let Event::Seen {
            cluster,
            founded,
            mut seen,
        } = seen(fact, None)
        else {
            unreachable!()
        };
        (seen[0].holds, seen[0].words) = (false, words.to_owned());
        Event::Seen {
            cluster,
            founded,
            seen,
        }
    };
    let mut wanted = prod();
    wanted.needs = vec![Service {
        name: name("api"),
        kind: ServiceKind::LoadBalancer,
        provider: Provider::Builtin,
        depends_on: Vec::new(),
        required: true,
        startup_order: 0,
        configuration: serde_json::Value::Null.into(),
    }];
    let site = seated(spec(fleet(7), vec![wanted]));
    let site = happens(
        &site,
        down("service-api", "10.107.0.1:6443 is taken by nginx"),
    );
    let Err(Some(hold)) = decides(&site, "m-01") else {
        panic!("it boots without its balancer");
    };
    assert_eq!(
        hold.to_string(),
        "waits its turn in prod (bootstrap phase): service api (required): 10.107.0.1:6443 is taken by nginx"
    );
    let site = happens(&site, seen("service-api", None));
    let (site, asker) = boots(&site, "m-01");
    // Between its script and its config the balancer dies: the installer that runs is not left without its config.
    let site = happens(&site, down("service-api", "gone"));
    let released = site.apply(Event::ConfigAsked(asker), NOW);
    assert!(
        matches!(released.outcome, Outcome::Config(Ok(_))),
        "{:?}",
        released.outcome
    );
    let mut site = released.site;
    assert_eq!(decides(&site, "m-01"), Ok(()), "its turn is used");
    assert!(decides(&site, "m-02").is_err());
    let installed = Event::Reported {
        asker,
        report: Report::Installed,
    };
    site = happens(&site, installed);
    assert_eq!(decides(&site, "m-01"), Err(None), "it boots its disk");
    site = happens(&site, seen("bootstrap-complete", None));
    for node in ["m-02", "m-03", "m-04"] {
        site = happens(&site, seen("node-ready", Some(node)));
    }
    let stage = |site: &Site| site.cluster(&name("prod")).unwrap().1.record.stage;
    assert_eq!(
        stage(&site),
        Stage::Bootstrap,
        "the phase waits for the service"
    );
    site = happens(&site, seen("service-api", None));
    assert_eq!(stage(&site), Stage::Worker);
    assert_eq!(decides(&site, "m-05"), Ok(()));
}

#[test]
fn a_cluster_that_takes_longer_than_its_definition_gives_is_late_until_it_is_ready() {
    let mut given = prod();
    given.validation.timeout_minutes = Some(45);
    let late = |site: &Site, minutes: u64| {
        let (spec, state) = site.cluster(&name("prod")).unwrap();
        let now = Timestamp::from_millis(NOW.millis() + minutes * 60_000);
        state
            .late(spec, now)
            .map(|(minutes, begun)| (minutes, begun.words.clone()))
    };
    let site = seated(spec(fleet(7), vec![given]));
    assert_eq!(late(&site, 1000), None, "nobody has begun");
    let mut site = happens(&site, seen("begun", None));
    assert_eq!(late(&site, 44), None);
    assert_eq!(late(&site, 45), Some((45, "seen".to_owned())));
    for fact in ["secrets", "bootstrap-complete"] {
        site = happens(&site, seen(fact, None));
    }
    for number in 2..=7 {
        site = happens(&site, seen("node-ready", Some(&format!("m-{number:02}"))));
    }
    assert_eq!(late(&site, 45), None, "{:?}", site.cluster(&name("prod")));
}

#[test]
fn a_config_stays_until_the_turn_of_its_machine() {
    let both = vec![
        group("masters", Role::ControlPlane, 1),
        group("workers", Role::Worker, 1),
    ];
    let site = seated(spec(fleet(2), vec![cluster("prod", both)]));
    let (site, asker) = boots(&site, "m-01");
    let asked = |site: &Site| {
        let outcome = site.apply(Event::ConfigAsked(asker), NOW).outcome;
        let Outcome::Config(Err(withheld)) = outcome else {
            panic!("the config left: {outcome:?}");
        };
        withheld
    };
    // Its installer's set grew too old between its script and its config.
    let Event::Seen {
        cluster: prod,
        founded,
        mut seen,
    } = seen("secrets", None)
    else {
        unreachable!("made above");
    };
    seen[0].holds = false;
    let old = happens(
        &site,
        Event::Seen {
            cluster: prod,
            founded,
            seen,
        },
    );
    assert!(matches!(asked(&old), Withheld::NotItsTurn(node, _) if node == name("m-01")));
    // Its seat is another's now: that script was of another life.
    let mut swapped = cluster(
        "prod",
        vec![
            group("masters", Role::ControlPlane, 1),
            group("workers", Role::Worker, 1),
        ],
    );
    swapped.groups[0].name = name("heads");
    swapped.groups[0].placement.targets = vec![name("m-02")];
    swapped.groups[1].placement.targets = vec![name("m-01")];
    let site = happens(&site, Event::SpecReplaced(spec(fleet(2), vec![swapped])));
    assert!(matches!(asked(&site), Withheld::UnknownToken));
}

#[test]
fn a_bootstrap_machine_leaves_and_what_is_on_its_disk_does_not_come_up_again() {
    let mut site = installs(&seated(spec(fleet(7), vec![prod()])), "m-01");
    assert_eq!(decides(&site, "m-01"), Err(None), "it boots its disk");
    site = happens(&site, seen("bootstrap-complete", None));
    for node in ["m-02", "m-03", "m-04"] {
        site = happens(&site, seen("node-ready", Some(node)));
    }
    assert_eq!(
        decides(&site, "m-01"),
        Err(Some(Hold::Retired(name("prod"))))
    );
    assert!(
        !seats(&site, "prod")
            .iter()
            .any(|(group, _)| group == "bootstrap")
    );
    // A reload doesn't fill the group again.
    let again = Arc::clone(site.spec());
    let site = happens(&site, Event::SpecReplaced(again));
    assert!(
        !seats(&site, "prod")
            .iter()
            .any(|(group, _)| group == "bootstrap")
    );
}

#[test]
fn what_a_newcomer_installed_elsewhere_does_not_come_up_in_its_new_cluster() {
    let site = installs(&seated(spec(fleet(7), vec![prod()])), "m-02");
    let site = happens(&site, Event::SpecReplaced(spec(fleet(7), Vec::new())));
    let site = happens(&site, Event::ClusterForgotten(name("prod")));
    let wanted = spec(fleet(7), vec![prod()]);
    let site = happens(&site, Event::SpecReplaced(Arc::clone(&wanted)));
    let site = happens(&site, seen("secrets", None));
    let left = Err(Some(Hold::FormerInstall(name("prod"))));
    assert_eq!(decides(&site, "m-02"), left);
    let site = happens(&site, Event::SpecReplaced(wanted));
    assert_eq!(decides(&site, "m-02"), left, "nor after a reload");
}

#[test]
fn a_bootstrap_machine_that_becomes_a_worker_is_wiped_only_by_consent() {
    let mut wanted = prod();
    wanted.groups[0].becomes = Some(name("workers"));
    let mut site = installs(&seated(spec(fleet(6), vec![wanted])), "m-01");
    assert_eq!(
        seats(&site, "prod")
            .iter()
            .filter(|(group, _)| group == "workers")
            .count(),
        2
    );
    site = happens(&site, seen("bootstrap-complete", None));
    for node in ["m-02", "m-03", "m-04", "m-05", "m-06"] {
        site = happens(&site, seen("node-ready", Some(node)));
    }
    assert!(seats(&site, "prod").contains(&("workers".to_owned(), "m-01".to_owned())));
    assert_eq!(
        decides(&site, "m-01"),
        Err(Some(Hold::FormerInstall(name("prod"))))
    );
    let permit = Event::PermitGiven {
        node: name("m-01"),
        disk: "SN-1".to_owned(),
        seconds: 600,
        by: "root".to_owned(),
    };
    site = happens(&site, permit);
    assert_eq!(decides(&site, "m-01"), Ok(()));
    let site = installs(&site, "m-01");
    assert_eq!(
        decides(&site, "m-01"),
        Err(None),
        "now its disk is a worker's"
    );
}

#[test]
fn what_the_system_before_shows_is_no_evidence_of_the_one_that_is_being_installed() {
    let ready = |site: &Site| {
        let (_, state) = site.cluster(&name("prod")).unwrap();
        let key = (name("node-ready"), name("m-02"));
        (
            state.knows(&key.0, Some(&key.1)),
            state.looks[&FactKey {
                node: Some(key.1),
                fact: key.0,
            }]
                .clone(),
        )
    };
    let mut site = installs(&seated(spec(fleet(7), vec![prod()])), "m-02");
    site = happens(&site, seen("node-ready", Some("m-02")));
    assert!(ready(&site).0);
    let permit = Event::PermitGiven {
        node: name("m-02"),
        disk: "SN-1".to_owned(),
        seconds: 600,
        by: "root".to_owned(),
    };
    site = happens(&site, permit);
    assert!(ready(&site).0, "it runs until somebody resets it");
    let (site, asker) = boots(&site, "m-02");
    // The cluster's API has not noticed yet that it is gone.
    let site = happens(&site, seen("node-ready", Some("m-02")));
    let (known, look) = ready(&site);
    assert!(!known && !look.holds, "{look:?}");
    assert_eq!(look.words, "that is the install before this one: seen");
    assert_ne!(site.record(&name("m-02")).state, BootState::Ready);
    let site = happens(&site, Event::ConfigAsked(asker));
    let site = happens(&site, seen("node-ready", Some("m-02")));
    assert!(ready(&site).0);
}

#[test]
fn what_is_still_seen_of_a_destroyed_cluster_is_not_of_the_next_one_of_its_name() {
    let late = seen("bootstrap-complete", None);
    let site = installs(&seated(spec(fleet(7), vec![prod()])), "m-02");
    let site = happens(&site, Event::SpecReplaced(spec(fleet(7), Vec::new())));
    let site = happens(&site, Event::ClusterForgotten(name("prod")));
    let again = Event::SpecReplaced(spec(fleet(7), vec![prod()]));
    let site = site.apply(again, NOW.plus_seconds(5)).site;
    let after = site.apply(late, NOW.plus_seconds(6));
    assert!(after.changes.is_empty());
    let (_, state) = after.site.cluster(&name("prod")).unwrap();
    assert!(state.looks.is_empty() && state.record.facts.is_empty());
    let done = Event::BootstrapDone(name("prod"), NOW);
    assert!(site.apply(done, NOW.plus_seconds(6)).changes.is_empty());
    let gone = seated(spec(fleet(7), Vec::new()));
    let done = gone.apply(Event::BootstrapDone(name("prod"), NOW), NOW);
    assert!(done.site.cluster_record(&name("prod")).is_none());
    // Nor is what a machine fetched in the one before a config of this one's.
    assert_eq!(site.record(&name("m-02")).configured, None);
    assert_eq!(site.record(&name("m-02")).attempt, None);
}

#[test]
fn a_machine_that_takes_another_role_begins_anew() {
    let mut site = seated(spec(fleet(7), vec![prod()]));
    site = happens(&site, seen("bootstrap-complete", None));
    for node in ["m-02", "m-03", "m-04"] {
        site = happens(&site, seen("node-ready", Some(node)));
    }
    let site = installs(&site, "m-05");
    let site = happens(&site, seen("node-ready", Some("m-05")));
    assert_eq!(decides(&site, "m-05"), Err(None), "it boots its disk");
    let mut other = prod();
    other.groups[1].count = 6;
    other
        .groups
        .retain(|group| group.role == Role::ControlPlane);
    let site = happens(&site, Event::SpecReplaced(spec(fleet(7), vec![other])));
    assert!(seats(&site, "prod").contains(&("masters".to_owned(), "m-05".to_owned())));
    let (_, state) = site.cluster(&name("prod")).unwrap();
    assert!(!state.knows(&name("node-ready"), Some(&name("m-05"))));
    assert_eq!(
        decides(&site, "m-05"),
        Err(Some(Hold::FormerInstall(name("prod"))))
    );
}

#[test]
fn a_second_cluster_is_never_started_beside_one_that_others_are_in() {
    let site = seated(spec(fleet(7), vec![prod()]));
    let founds = |site: &Site| -> Vec<String> {
        let (_, state) = site.cluster(&name("prod")).unwrap();
        let members = state.members.iter().filter(|member| state.founds(member));
        members.map(|member| member.node.to_string()).collect()
    };
    assert_eq!(founds(&site), ["m-02"]);
    // It is in the database itself, and is made anew: there is nobody else to lose.
    let site = happens(&site, seen("etcd-member", Some("m-02")));
    assert_eq!(founds(&site), ["m-02"]);
    let site = happens(&site, seen("etcd-member", Some("m-03")));
    assert_eq!(founds(&site), Vec::<String>::new());
}

#[test]
fn a_boot_that_the_system_before_showed_is_of_it_however_late_the_api_notices() {
    let shows = |site: &Site, boot: u128| {
        let Event::Seen {
            cluster,
            founded,
            mut seen,
        } = seen("node-ready", Some("m-02"))
        else {
            unreachable!("made above");
        };
        seen[0].boot = Some(Uuid::from_u128(boot));
        happens(
            site,
            Event::Seen {
                cluster,
                founded,
                seen,
            },
        )
    };
    let ready = |site: &Site| {
        let (_, state) = site.cluster(&name("prod")).unwrap();
        state.knows(&name("node-ready"), Some(&name("m-02")))
    };
    let reinstalls = |site: &Site| {
        let permit = Event::PermitGiven {
            node: name("m-02"),
            disk: "SN-1".to_owned(),
            seconds: 600,
            by: "root".to_owned(),
        };
        let (site, asker) = boots(&happens(site, permit), "m-02");
        remembered(&happens(&site, Event::ConfigAsked(asker)))
    };
    let site = installs(&seated(spec(fleet(7), vec![prod()])), "m-02");
    let site = shows(&site, 1);
    assert!(ready(&site));
    // It was started again meanwhile, which is the same install.
    let site = shows(&remembered(&site), 2);
    let site = reinstalls(&site);
    assert!(!ready(&shows(&site, 2)));
    // Nor when it comes to nothing and is done once more, before anything of the new system was seen.
    let site = reinstalls(&installs(&site, "m-02"));
    assert!(!ready(&shows(&site, 2)));
    let site = shows(&site, 3);
    assert!(ready(&site));
    assert!(!ready(&shows(&reinstalls(&site), 3)));
}

#[test]
fn the_first_control_plane_is_the_only_one_the_database_is_started_on() {
    let site = seated(spec(fleet(7), vec![prod()]));
    let intended = |site: &Site| {
        let event = Event::BootstrapIntended(name("prod"));
        let outcome = site.apply(event, NOW).outcome;
        let Outcome::Bootstrap(answer) = outcome else {
            panic!("{outcome:?}");
        };
        answer
    };
    assert!(
        intended(&site)
            .unwrap_err()
            .contains("not fetched its config")
    );
    let (site, asker) = boots(&site, "m-02");
    let site = happens(&site, Event::ConfigAsked(asker));
    assert_eq!(intended(&site), Ok(name("m-02")));
    let site = happens(&site, Event::BootstrapIntended(name("prod")));
    // Even if the definition gives the first place to another machine meanwhile.
    let mut moved = prod();
    moved.groups[1].name = name("heads");
    moved.groups[1].placement.preferred = vec![name("m-04")];
    let site = happens(&site, Event::SpecReplaced(spec(fleet(7), vec![moved])));
    assert_eq!(intended(&site), Ok(name("m-02")));
    let site = happens(&site, Event::BootstrapDone(name("prod"), NOW));
    assert!(
        intended(&site)
            .unwrap_err()
            .contains("was bootstrapped on m-02")
    );
}

#[test]
fn machines_of_a_cluster_that_was_taken_away_are_nobody_elses_until_it_is_destroyed() {
    let site = seated(spec(fleet(7), vec![prod()]));
    let other = cluster("other", vec![group("masters", Role::ControlPlane, 1)]);
    let without = spec(fleet(7), vec![other.clone()]);
    let refused = site.apply(Event::SpecReplaced(Arc::clone(&without)), NOW);
    let Outcome::Refused(why) = refused.outcome else {
        panic!("a machine was taken");
    };
    assert!(why.contains("none is free"), "{why}");
    let site = happens(&site, Event::SpecReplaced(spec(fleet(7), Vec::new())));
    assert_eq!(decides(&site, "m-01"), Err(Some(Hold::Unclaimed)));
    let site = happens(&site, Event::ClusterForgotten(name("prod")));
    let site = happens(&site, Event::SpecReplaced(without));
    assert_eq!(
        seats(&site, "other"),
        [("masters".to_owned(), "m-01".to_owned())]
    );
}

#[test]
fn labels_targets_preferences_and_racks_choose_and_the_rest_goes_by_name() {
    let mut heads = group("heads", Role::ControlPlane, 3);
    heads.placement.anti_affinity = AntiAffinity::Hard;
    heads.placement.preferred = vec![name("m-05")];
    let mut workers = group("workers", Role::Worker, 2);
    workers.placement.labels = BTreeMap::from([("disk".to_owned(), "nvme".to_owned())]);
    let machines = vec![
        machine(1, Some("a"), &[]),
        machine(2, Some("a"), &[]),
        machine(3, Some("b"), &[("disk", "nvme")]),
        machine(4, Some("b"), &[("disk", "nvme")]),
        machine(5, Some("c"), &[("disk", "nvme")]),
        machine(6, Some("b"), &[]),
    ];
    let site = seated(spec(machines, vec![cluster("prod", vec![heads, workers])]));
    let mut found = seats(&site, "prod");
    found.sort();
    let heads: BTreeSet<&str> = found
        .iter()
        .filter(|(group, _)| group == "heads")
        .map(|(_, node)| node.as_str())
        .collect();
    assert_eq!(heads.len(), 3);
    let rack = |node: &str| site.spec().node(&name(node)).unwrap().rack.clone();
    let racks: BTreeSet<Option<String>> = heads.iter().map(|node| rack(node)).collect();
    assert_eq!(racks.len(), 3, "{found:?}");
}

#[test]
fn a_group_that_cannot_be_filled_says_what_it_lacks() {
    let mut heads = group("heads", Role::ControlPlane, 3);
    heads.placement.labels = BTreeMap::from([("disk".to_owned(), "nvme".to_owned())]);
    let machines = vec![machine(1, None, &[("disk", "nvme")]), machine(2, None, &[])];
    let spec = spec(machines, vec![cluster("prod", vec![heads])]);
    let faults = place(&spec, &netboot::cluster::Before::default()).unwrap_err();
    assert_eq!(
        faults[0].problem,
        "wants 3 more machines on network lab with disk=nvme, and only m-01 is free"
    );
}

#[test]
fn what_contradicts_in_a_definition_is_told_at_once() {
    let mut none = cluster("none", vec![group("workers", Role::Worker, 1)]);
    none.pods = vec![name("10.107.0.0/16")];
    let mut one = prod();
    one.groups[1].placement.targets = vec![name("m-02"), name("m-03"), name("m-04")];
    let mut two = cluster("two", vec![group("masters", Role::ControlPlane, 1)]);
    two.groups[0].placement.targets = vec![name("m-02")];
    two.pods = vec![name("10.128.0.0/14")];
    one.pods = vec![name("10.130.0.0/16")];
    let mut listed = fleet(9);
    listed[8].profile = Some(name("system"));
    let faults = SiteSpec::new(parts(listed, vec![none, one, two])).unwrap_err();
    let told: Vec<String> = faults
        .iter()
        .map(|fault| format!("{} {}", fault.value, fault.problem))
        .collect();
    for wanted in [
        "none has no control plane",
        "10.107.0.0/16 overlaps 10.107.0.0/24, network lab",
        "10.128.0.0/14 overlaps 10.130.0.0/16, the podCIDR of cluster prod",
        "m-02 is also claimed by cluster prod",
        "system has no config of its own, for it is a cluster's to write",
    ] {
        assert!(
            told.iter().any(|told| told == wanted),
            "{wanted}: {told:#?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is seen, in whatever order and with whatever power cuts, a turn that came stays, phases only grow, a
    /// worker never comes before the control plane, and the disk holds what memory holds.
    #[test]
    fn turns_never_go_away_and_a_power_cut_loses_nothing(
        steps in prop::collection::vec((0u8..8, 0u8..3, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut site = seated(spec(fleet(7), vec![prod()]));
        let mut came: BTreeSet<NodeName> = BTreeSet::new();
        let mut stage = Stage::Bootstrap;
        for (node, fact, holds, cut) in steps {
            let fact = ["node-ready", "bootstrap-complete", "nonsense"][usize::from(fact)];
            let node = (node > 0).then(|| name(&format!("m-{node:02}")));
            let seen = vec![Seen {
                key: FactKey { node, fact: name(fact) },
                holds,
                words: "so".to_owned(),
                boot: None,
            }];
            site = happens(&site, Event::Seen { cluster: name("prod"), founded: NOW, seen });
            if cut {
                site = remembered(&site);
            }
            let (spec, state) = site.cluster(&name("prod")).unwrap();
            prop_assert!(state.record.stage >= stage);
            stage = state.record.stage;
            for member in &state.members {
                let turn = state.turn(spec, member);
                prop_assert!(turn.is_ok() || !came.contains(&member.node), "{}", member.node);
                if turn.is_ok() {
                    came.insert(member.node.clone());
                    let heads = || state.of_role(Role::ControlPlane);
                    let ready = heads().all(|head| state.knows(&name("node-ready"), Some(&head.node)));
                    prop_assert!(member.role != Role::Worker || ready);
                }
            }
        }
    }

    /// The same inventory and history give the same seats; adding a machine moves nobody.
    #[test]
    fn placement_is_deterministic_and_sticky(count in 7u8..20, racks in prop::collection::vec(0u8..4, 20), soft in any::<bool>()) {
        let listed = |count: u8| -> Vec<NodeSpec> {
            (1..=count).map(|number| {
                let rack = racks[usize::from(number) % racks.len()];
                machine(number, (rack > 0).then(|| format!("r{rack}")).as_deref(), &[])
            }).collect()
        };
        let mut wanted = prod();
        if soft {
            wanted.groups[1].placement.anti_affinity = AntiAffinity::Soft;
        }
        let first = seated(spec(listed(count), vec![wanted.clone()]));
        let second = seated(spec(listed(count), vec![wanted.clone()]));
        prop_assert_eq!(seats(&first, "prod"), seats(&second, "prod"));
        let mut more = listed(count);
        more.insert(0, machine(99, None, &[]));
        let grown = happens(&first, Event::SpecReplaced(spec(more, vec![wanted])));
        prop_assert_eq!(seats(&first, "prod"), seats(&grown, "prod"));
        let members = seats(&first, "prod");
        let machines: BTreeSet<&String> = members.iter().map(|(_, node)| node).collect();
        prop_assert_eq!(machines.len(), members.len());
    }
}

/// The site as its disk remembers it.
fn remembered(site: &Site) -> Site {
    let mut memory = Memory {
        generation: site.generation(),
        records: site
            .records()
            .map(|(name, record)| (name.clone(), (**record).clone()))
            .collect(),
        ..Memory::default()
    };
    for (name, record) in site.cluster_records() {
        for node in record.machines() {
            memory.take_member(name.clone(), node, record.of_machine(node));
        }
        let name: ClusterName = name.clone();
        memory.take_cluster(name, record.head());
    }
    let again = Site::restore(Arc::clone(site.spec()), memory);
    let records = |site: &Site| -> Vec<_> {
        site.cluster_records()
            .map(|(name, record)| (name.clone(), record.clone()))
            .collect()
    };
    assert_eq!(records(site), records(&again));
    again
}
