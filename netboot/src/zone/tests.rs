//! The zone's promises, with hickory-proto reading what was written.

use std::str::FromStr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;

use super::*;
use packet::{Code, Question, Unanswerable, refuse};

const BASTION: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn names() -> Names {
    let members = (1..=3u8).map(|last| {
        let member = name(&format!("master-{last}.okd.lab.example"));
        (member, Ipv4Addr::new(10, 107, 0, 10 + last))
    });
    Names {
        serial: 7,
        ttl_seconds: 60,
        clusters: vec![ClusterNames {
            domain: name("okd.lab.example"),
            inside: vec![BASTION],
            outside: vec![PUBLIC],
            members: members.collect(),
        }],
        machines: vec![(name("rack-1.lab.example"), [10, 107, 0, 200].into())],
        extra: vec![
            (name("registry.lab.example"), IpAddr::V4(BASTION)),
            (name("registry.lab.example"), "fd00::1".parse().unwrap()),
            (name("*.web.lab.example"), IpAddr::V4(BASTION)),
        ],
        partial: BTreeSet::from([name("lab.example")]),
    }
}

fn question(text: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(text).unwrap(), kind));
    message.to_vec().unwrap()
}

fn asked(zones: &Zones, side: Side, bytes: &[u8]) -> Option<Message> {
    let question = Question::parse(bytes).unwrap();
    let mut out = b"before".to_vec();
    let answered = zones.answer(side, &question, true, question.datagram_max(), &mut out);
    if answered == Answered::Elsewhere {
        assert_eq!(out, b"before");
        return None;
    }
    Some(Message::from_vec(&out[6..]).unwrap())
}

/// The code, the answers' data and the types of the authorities; `elsewhere` for a name of others.
fn said(side: Side, text: &str, kind: RecordType) -> String {
    let Some(message) = asked(&Zones::new(&names()), side, &question(text, kind)) else {
        return "elsewhere".to_owned();
    };
    assert_eq!(message.metadata.id, 4711);
    assert!(message.metadata.recursion_desired);
    let owner = Name::from_str(text).unwrap();
    assert!(message.answers.iter().all(|record| record.name == owner));
    let code = message.metadata.response_code;
    let mut words = vec![if code == ResponseCode::NoError {
        "ok".to_owned()
    } else {
        format!("{code:?}")
    }];
    words.extend(message.answers.iter().map(|record| record.data.to_string()));
    words.extend(message.authorities.iter().map(|record| {
        assert_eq!(record.ttl, 60);
        format!("{} {}", record.record_type(), record.name)
    }));
    words.join(" ")
}

#[test]
fn each_side_hears_its_own_addresses_and_api_int_is_never_heard_outside() {
    use RecordType::A;
    use Side::{Inside, Outside};
    for (text, inside, outside) in [
        ("api.okd.lab.example.", "ok 10.107.0.1", "ok 203.0.113.1"),
        ("API.okd.LAB.example.", "ok 10.107.0.1", "ok 203.0.113.1"),
        ("a.apps.okd.lab.example.", "ok 10.107.0.1", "ok 203.0.113.1"),
        (
            "api-int.okd.lab.example.",
            "ok 10.107.0.1",
            "NXDomain SOA okd.lab.example.",
        ),
        (
            "master-1.okd.lab.example.",
            "ok 10.107.0.11",
            "NXDomain SOA okd.lab.example.",
        ),
        ("rack-1.lab.example.", "ok 10.107.0.200", "elsewhere"),
        ("registry.lab.example.", "ok 10.107.0.1", "elsewhere"),
        ("www.lab.example.", "elsewhere", "elsewhere"),
        ("example.org.", "elsewhere", "elsewhere"),
        (".", "elsewhere", "elsewhere"),
    ] {
        assert_eq!(said(Inside, text, A), inside, "{text} inside");
        assert_eq!(said(Outside, text, A), outside, "{text} outside");
    }
}

#[test]
fn what_has_no_such_record_says_so_with_the_soa_of_its_domain() {
    use RecordType::{A, AAAA, ANY, AXFR, NS, PTR, SOA, TXT};
    for (text, kind, expected) in [
        ("api.okd.lab.example.", AAAA, "ok SOA okd.lab.example."),
        (
            "nobody.okd.lab.example.",
            A,
            "NXDomain SOA okd.lab.example.",
        ),
        (
            "a.nobody.okd.lab.example.",
            A,
            "NXDomain SOA okd.lab.example.",
        ),
        ("okd.lab.example.", A, "ok SOA okd.lab.example."),
        ("okd.lab.example.", NS, "ok ns.okd.lab.example."),
        ("rack-1.lab.example.", TXT, "ok SOA lab.example."),
        ("below.rack-1.lab.example.", A, "elsewhere"),
        ("lab.example.", A, "elsewhere"),
        ("registry.lab.example.", AAAA, "ok fd00::1"),
        (
            "11.0.107.10.in-addr.arpa.",
            PTR,
            "ok master-1.okd.lab.example.",
        ),
        (
            "1.0.107.10.in-addr.arpa.",
            PTR,
            "ok api.okd.lab.example. api-int.okd.lab.example.",
        ),
        ("99.0.107.10.in-addr.arpa.", PTR, "elsewhere"),
        ("okd.lab.example.", AXFR, "Refused"),
        ("example.org.", AXFR, "Refused"),
        ("example.org.", ANY, "Refused"),
    ] {
        assert_eq!(said(Side::Inside, text, kind), expected, "{text} {kind}");
    }
    let soa = said(Side::Inside, "okd.lab.example.", SOA);
    let numbers = "7 3600 600 604800 60";
    assert_eq!(
        soa,
        format!("ok ns.okd.lab.example. hostmaster.okd.lab.example. {numbers}")
    );
    assert!(said(Side::Inside, "api.okd.lab.example.", ANY).contains("RFC8482"));
}

/// RFC 4592, sections 2.2.1 and 3.3.1.
#[test]
fn a_wildcard_lends_itself_to_names_that_do_not_exist_and_to_no_others() {
    use RecordType::{A, TXT};
    for (text, kind, expected) in [
        ("console.apps.okd.lab.example.", A, "ok 10.107.0.1"),
        ("a.b.apps.okd.lab.example.", A, "ok 10.107.0.1"),
        ("*.apps.okd.lab.example.", A, "ok 10.107.0.1"),
        (
            "console.apps.okd.lab.example.",
            TXT,
            "ok SOA okd.lab.example.",
        ),
        ("apps.okd.lab.example.", A, "ok SOA okd.lab.example."),
        (
            "ghost.*.apps.okd.lab.example.",
            A,
            "NXDomain SOA okd.lab.example.",
        ),
        ("shop.web.lab.example.", A, "ok 10.107.0.1"),
        ("web.lab.example.", A, "elsewhere"),
    ] {
        assert_eq!(said(Side::Inside, text, kind), expected, "{text} {kind}");
    }
}

#[test]
fn edns_is_answered_in_kind_and_an_unknown_version_is_refused() {
    let zones = Zones::new(&names());
    let mut bytes = question("api.okd.lab.example.", RecordType::A);
    let plain = asked(&zones, Side::Inside, &bytes).unwrap();
    assert!(plain.edns.is_none());
    bytes[11] = 1;
    bytes.extend([0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 0]);
    let spoken = asked(&zones, Side::Inside, &bytes).unwrap().edns.unwrap();
    assert_eq!((spoken.max_payload(), spoken.version()), (1232, 0));
    assert!(spoken.flags().dnssec_ok);
    let length = bytes.len();
    bytes[length - 5] = 1;
    let refused = asked(&zones, Side::Inside, &bytes).unwrap();
    // The same number; which of the two it is depends on where it stands (RFC 6895, section 2.3).
    assert_eq!(refused.metadata.response_code, ResponseCode::BADSIG);
    bytes[11] = 2;
    bytes.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    let twice = Question::parse(&bytes).unwrap_err();
    assert_eq!(twice, Unanswerable::Refused(Code::FormErr));
}

#[test]
fn what_does_not_fit_is_cut_down_to_a_hint_to_ask_by_tcp() {
    let mut many = names();
    let addresses = (1..=100).map(|last| IpAddr::V4([10, 107, 1, last].into()));
    many.extra = addresses
        .map(|address| (name("many.lab.example"), address))
        .collect();
    let zones = Zones::new(&many);
    let bytes = question("many.lab.example.", RecordType::A);
    let cut = asked(&zones, Side::Inside, &bytes).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let (question, mut out) = (Question::parse(&bytes).unwrap(), Vec::new());
    zones.answer(Side::Inside, &question, true, 65_535, &mut out);
    assert_eq!(Message::from_vec(&out).unwrap().answers.len(), 100);
}

#[test]
fn a_packet_that_is_no_question_is_dropped_or_told_why() {
    let good = question("api.okd.lab.example.", RecordType::A);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Question::parse(&bytes).err()
    };
    let code = |code| Some(Unanswerable::Refused(code));
    assert_eq!(with(0, 0), None);
    assert_eq!(with(2, 0x80), Some(Unanswerable::Silent), "a reply");
    assert_eq!(with(2, 0x28), code(Code::NotImp), "an update");
    assert_eq!(with(5, 2), code(Code::FormErr), "two questions");
    assert_eq!(with(7, 1), code(Code::FormErr), "an answer");
    assert_eq!(with(12, 0xc0), code(Code::FormErr), "a pointer to itself");
    assert_eq!(with(12, 64), code(Code::FormErr), "an extended label");
    assert_eq!(with(good.len() - 1, 3), code(Code::Refused), "class CH");
    assert_eq!(
        with(11, 1),
        code(Code::FormErr),
        "a record that isn't there"
    );
    assert_eq!(
        Question::parse(&good[..11]).err(),
        Some(Unanswerable::Silent)
    );
    let mut out = Vec::new();
    refuse(&good, Code::FormErr, &mut out);
    let told = Message::from_vec(&out).unwrap();
    assert_eq!(told.metadata.response_code, ResponseCode::FormErr);
    assert_eq!((told.metadata.id, told.queries.len()), (4711, 0));
}

#[test]
fn a_zone_file_has_every_record_of_its_side_and_the_clusters_heads() {
    let outside = names().zone_file(Side::Outside);
    let expected = "; outside records
$TTL 60
okd.lab.example. IN SOA ns.okd.lab.example. hostmaster.okd.lab.example. 7 3600 600 604800 60
okd.lab.example. IN NS ns.okd.lab.example.
1.113.0.203.in-addr.arpa. IN PTR api.okd.lab.example.
*.apps.okd.lab.example. IN A 203.0.113.1
ns.okd.lab.example. IN A 203.0.113.1
api.okd.lab.example. IN A 203.0.113.1
";
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&outside), sorted(expected));
}

fn label() -> impl Strategy<Value = String> {
    proptest::sample::select(vec![
        "api", "api-int", "apps", "ns", "a", "b", "node-1", "node-2",
    ])
    .prop_map(str::to_owned)
}

fn any_name() -> impl Strategy<Value = DomainName> {
    let domain =
        proptest::sample::select(vec!["okd.lab.example", "k3s.lab.example", "lab.example"]);
    (proptest::collection::vec(label(), 0..3), domain).prop_map(|(mut labels, domain)| {
        labels.push(domain.to_owned());
        name(&labels.join("."))
    })
}

fn any_address() -> impl Strategy<Value = Ipv4Addr> {
    (0..2u8, 1..6u8).prop_map(|(net, last)| Ipv4Addr::new(10, 107, net, last))
}

fn any_hosts() -> impl Strategy<Value = Vec<(DomainName, Ipv4Addr)>> {
    proptest::collection::vec((any_name(), any_address()), 0..5).prop_map(|hosts| {
        // One name, one address: what a site holds machines to.
        let hosts: BTreeMap<_, _> = hosts.into_iter().collect();
        hosts.into_iter().collect()
    })
}

fn any_names() -> impl Strategy<Value = Names> {
    let cluster = |domain: &'static str| {
        let some = || proptest::collection::vec(any_address(), 0..3);
        (some(), some(), any_hosts()).prop_map(move |(inside, outside, members)| ClusterNames {
            domain: name(domain),
            inside,
            outside,
            members,
        })
    };
    let extra = proptest::collection::vec((any_name(), any_address()), 0..4);
    let clusters = (cluster("okd.lab.example"), cluster("k3s.lab.example"));
    (clusters, any_hosts(), extra).prop_map(|((one, other), machines, extra)| Names {
        serial: 1,
        ttl_seconds: 60,
        clusters: vec![one, other],
        machines,
        extra: extra
            .into_iter()
            .map(|(name, a)| (name, IpAddr::V4(a)))
            .collect(),
        partial: BTreeSet::from([name("lab.example")]),
    })
}

const KINDS: [RecordType; 6] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::ANY,
    RecordType::TXT,
];

proptest! {
    #[test]
    fn every_pointer_back_has_its_address_on_the_same_side(names in any_names()) {
        let records = names.records();
        for record in &records {
            let Data::Name(to) = &record.data else { continue };
            let back = records.iter().any(|other| {
                other.side == record.side && other.name == *to
                    && matches!(other.data, Data::Address(IpAddr::V4(address))
                        if DomainName::reverse(address) == record.name)
            });
            prop_assert!(back, "{record}");
        }
    }

    #[test]
    fn outside_there_is_nothing_but_api_and_apps(names in any_names()) {
        for record in names.records().iter().filter(|record| record.side == Side::Outside) {
            let text = match &record.data {
                Data::Name(name) => name.to_string(),
                Data::Address(_) => record.name.to_string(),
            };
            let first = text.split('.').next();
            prop_assert!(matches!(first, Some("api" | "*" | "ns")), "{record}");
        }
    }

    #[test]
    fn every_record_is_answered_and_every_answer_is_a_record(
        names in any_names(), asked_for in any_name(), kind in proptest::sample::select(KINDS.to_vec()),
    ) {
        let (zones, records) = (Zones::new(&names), names.records());
        for record in &records {
            let kind = match record.data.word() { "A" => RecordType::A, "PTR" => RecordType::PTR, _ => RecordType::AAAA };
            let message = asked(&zones, record.side, &question(&record.name.to_string(), kind)).unwrap();
            let wanted = record.data.to_string();
            prop_assert!(message.answers.iter().any(|answer| answer.data.to_string() == wanted));
        }
        for side in [Side::Inside, Side::Outside] {
            let Some(message) = asked(&zones, side, &question(&asked_for.to_string(), kind)) else {
                let whole = names.clusters.iter().any(|cluster| {
                    (side == Side::Inside || !cluster.outside.is_empty()) && asked_for.is_in(&cluster.domain)
                });
                prop_assert!(!whole || kind == RecordType::ANY, "{asked_for} is ours");
                continue;
            };
            for answer in &message.answers {
                let RData::A(address) = &answer.data else { continue };
                let ours = records.iter().any(|record| record.side == side
                    && record.data == Data::Address(IpAddr::V4(address.0)));
                prop_assert!(ours, "{answer}");
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_what_it_writes_can_be_read(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..80), good in any::<bool>(),
        at in 0..60usize, byte in any::<u8>(),
    ) {
        if good {
            bytes = question("console.apps.okd.lab.example.", RecordType::A);
            bytes[11] = 1;
            bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
            let place = at % bytes.len();
            bytes[place] = byte;
        }
        let zones = Zones::new(&names());
        let mut out = Vec::new();
        match Question::parse(&bytes) {
            Ok(question) => {
                let limit = question.datagram_max();
                zones.answer(Side::Inside, &question, true, limit, &mut out);
                prop_assert!(out.len() <= limit);
            }
            Err(Unanswerable::Refused(code)) => refuse(&bytes, code, &mut out),
            Err(Unanswerable::Silent) => {}
        }
        if !out.is_empty() {
            prop_assert!(Message::from_vec(&out).is_ok());
            prop_assert!(out[2] & 0x80 != 0, "a reply is marked as one");
        }
    }
}
