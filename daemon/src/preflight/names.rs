//! The DNS servers that machines are told of: do they know the machines, and do they keep silent about the rest?
//!
//! Each server is asked itself, not the host's resolver: an answer from a hosts file or another server would prove
//! nothing about what the machines will hear.
//!
//! The wildcard trap: a machine looks up `api.example.org` with `lab.example.org` in its search list, and a wildcard
//! under that domain answers for `api.example.org.lab.example.org`. Clusters then reach some web server.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use netboot::net::{Hostname, NetworkName};
use netboot::spec::{Network, SiteSpec};
use netboot::zone::{Data, DnsMode, DomainName, Names, Side};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Check, Id, Scene, listed};
use crate::tls;

const PORT: u16 = 53;
const ANSWER_TIME: Duration = Duration::from_millis(1500);
const TRIES: usize = 2;
/// RFC 6891, section 6.2.5: what passes everywhere in one piece, and more than these answers need.
const ANSWER_BYTES_MAX: usize = 4096;
/// Questions under way at once, to one server.
const AT_ONCE: usize = 32;
/// Names asked for, of one network: two questions each.
const NAMES_MAX: usize = 1000;

/// What a server is asked, for one network.
#[derive(Debug)]
pub(super) struct Server {
    network: NetworkName,
    address: Ipv4Addr,
    /// By full name. Names without a domain can't be looked up and are left out.
    names: BTreeMap<Name, Wanted>,
    unasked: usize,
    /// The domain and the search list.
    domains: BTreeSet<Name>,
    /// The site says that this server has every record.
    must: bool,
}

/// What a name must say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    addresses: BTreeSet<Ipv4Addr>,
    /// The names that its first address leads back to; none where nobody asks for one.
    back: BTreeSet<Name>,
}

/// What a server answered to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// These records, of the wanted type.
    Records(Vec<RData>),
    /// There is no such name, or none with such a record.
    Nothing,
    /// An error of the server's, in its word.
    Refused(String),
}

/// What is known of one name: its answers to address and name.
#[derive(Debug)]
struct Known {
    name: Name,
    wanted: Wanted,
    forward: Result<Answer, String>,
    backward: Result<Answer, String>,
}

/// Every server that the machines of a network are told of.
pub(super) fn servers(scene: &Scene) -> Vec<Server> {
    let spec = &scene.spec;
    let mode = spec.dns().mode;
    let servers = scene.networks().flat_map(|network| {
        let addresses = match scene.our_address(network) {
            Some(ours) => spec.dns_servers(network, ours),
            None => network.dns.clone(),
        };
        let mut names = match mode {
            // Nobody promised more than the network's own machines.
            DnsMode::Off => machines_of(spec, network),
            DnsMode::Serve | DnsMode::External => wanted(&scene.names),
        };
        let unasked = names.len().saturating_sub(NAMES_MAX);
        names.truncate(NAMES_MAX);
        let names: BTreeMap<Name, Wanted> = names.into_iter().collect();
        let domains = network.domain.iter().chain(&network.search);
        let domains: BTreeSet<Name> = domains.filter_map(|domain| name_of(domain, None)).collect();
        addresses.into_iter().map(move |address| Server {
            network: network.name.clone(),
            address,
            names: names.clone(),
            unasked,
            domains: domains.clone(),
            must: mode == DnsMode::External,
        })
    });
    servers.collect()
}

fn machines_of(spec: &SiteSpec, network: &Network) -> Vec<(Name, Wanted)> {
    let nodes = spec.nodes().filter_map(|node| {
        let link = node.boot_link();
        let here = link.network == network.name;
        let name = name_of(&node.hostname, network.domain.as_ref())?;
        let wanted = Wanted {
            addresses: BTreeSet::from([link.address]),
            back: BTreeSet::from([name.clone()]),
        };
        here.then_some((name, wanted))
    });
    nodes.collect()
}

/// What the site's records say inside.
fn wanted(names: &Names) -> Vec<(Name, Wanted)> {
    let records = names.records();
    let inside = || records.iter().filter(|record| record.side == Side::Inside);
    let mut by_name = BTreeMap::<&DomainName, BTreeSet<Ipv4Addr>>::new();
    let mut backs = BTreeMap::<&DomainName, BTreeSet<Name>>::new();
    for record in inside() {
        match &record.data {
            Data::Address(IpAddr::V4(address)) => {
                by_name.entry(&record.name).or_default().insert(*address);
            }
            Data::Address(IpAddr::V6(_)) => {}
            Data::Name(to) => {
                let to = Name::from_ascii(to.to_string()).ok();
                backs.entry(&record.name).or_default().extend(to);
            }
        }
    }
    let wanted = by_name.into_iter().filter_map(|(name, addresses)| {
        // Any name will do where a wildcard is.
        let said = name.to_string().replacen("*.", "reveille-preflight.", 1);
        let said = Name::from_ascii(said).ok()?;
        let first = addresses.first()?;
        let back = backs.get(&DomainName::reverse(*first)).cloned();
        // Only a name that its address leads back to is asked about both ways.
        let back = back
            .filter(|names| names.contains(&said))
            .unwrap_or_default();
        Some((said, Wanted { addresses, back }))
    });
    wanted.collect()
}

/// A full name: one without a dot is in the domain.
fn name_of(host: &Hostname, domain: Option<&Hostname>) -> Option<Name> {
    let full = match domain {
        _ if host.as_str().contains('.') => format!("{host}."),
        Some(domain) => format!("{host}.{domain}."),
        None => format!("{host}."),
    };
    Name::from_ascii(full)
        .ok()
        .filter(|name| name.num_labels() > 1 || domain.is_some())
}

impl Server {
    pub(super) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Asks for every machine and for a name that nobody gave.
    pub(super) async fn check(self) -> Vec<Check> {
        let mut checks = Vec::new();
        let wild = self.ask_wild().await;
        if let Some(Err(why)) = wild.values().next() {
            // It is asked nothing more: each question would wait as long.
            return vec![self.judge_silent(why)];
        }
        checks.extend(self.judge_wild(&wild));
        if !self.names.is_empty() {
            let known = self.ask_names().await;
            checks.push(self.judge_names(&known));
        }
        checks
    }

    /// The answers for names that nobody can have given, by domain.
    async fn ask_wild(&self) -> BTreeMap<Name, Result<Answer, String>> {
        let random: [u8; 8] = tls::random();
        let label = format!("reveille-{:016x}", u64::from_be_bytes(random));
        let mut answers = BTreeMap::new();
        // With no domain at all the question still shows whether anybody is there.
        let root = BTreeSet::from([Name::root()]);
        let domains = if self.domains.is_empty() {
            &root
        } else {
            &self.domains
        };
        for domain in domains {
            if let Ok(name) = domain.prepend_label(label.as_str()) {
                let answer = ask(self.address, name, RecordType::A).await;
                answers.insert(domain.clone(), answer);
            }
        }
        answers
    }

    async fn ask_names(&self) -> Vec<Known> {
        let server = self.address;
        let mut waiting = self.names.clone().into_iter();
        let (mut questions, mut known) = (JoinSet::new(), Vec::new());
        loop {
            while questions.len() < AT_ONCE {
                let Some((name, wanted)) = waiting.next() else {
                    break;
                };
                questions.spawn(async move {
                    let first = wanted.addresses.first().filter(|_| !wanted.back.is_empty());
                    let backward = async {
                        match first {
                            Some(first) => {
                                let name = Name::from(IpAddr::V4(*first));
                                ask(server, name, RecordType::PTR).await
                            }
                            None => Ok(Answer::Nothing),
                        }
                    };
                    let forward = ask(server, name.clone(), RecordType::A);
                    let (forward, backward) = tokio::join!(forward, backward);
                    Known {
                        name,
                        wanted,
                        forward,
                        backward,
                    }
                });
            }
            let Some(answered) = questions.join_next().await else {
                known.sort_by(|one: &Known, other| one.name.cmp(&other.name));
                return known;
            };
            known.push(answered.expect("a question does not panic, and nobody aborts one"));
        }
    }

    fn subject(&self) -> String {
        format!("network {}, server {}", self.network, self.address)
    }

    fn judge_silent(&self, why: &str) -> Check {
        Check::fail(
            Id::DnsRecords,
            self.subject(),
            format!("does not answer: {why}"),
            "start a DNS server there, let UDP 53 pass, or correct `dns` in site.yaml",
        )
    }

    fn judge_wild(&self, answers: &BTreeMap<Name, Result<Answer, String>>) -> Option<Check> {
        if self.domains.is_empty() {
            return None;
        }
        let wild = answers.iter().filter_map(|(domain, answer)| match answer {
            Ok(Answer::Records(records)) => {
                let what = records.first().map_or(String::new(), ToString::to_string);
                Some(format!("any name under {domain} is {what}"))
            }
            _ => None,
        });
        let wild: Vec<String> = wild.collect();
        if wild.is_empty() {
            let evidence = "names that nobody gave have no address";
            return Some(Check::pass(Id::DnsWildcard, self.subject(), evidence));
        }
        Some(Check::fail(
            Id::DnsWildcard,
            self.subject(),
            listed(wild),
            "take the wildcard out of that domain (only *.apps of a cluster may have one), or take the domain out of \
             `domain` and `search` in site.yaml",
        ))
    }

    fn judge_names(&self, known: &[Known]) -> Check {
        let (mut wrong, mut missing) = (Vec::new(), Vec::new());
        for name in known {
            let (faults, gaps) = judge_name(name);
            wrong.extend(faults);
            missing.extend(gaps);
        }
        if self.unasked > 0 {
            missing.push(format!("{} names were not asked for", self.unasked));
        }
        let (id, subject) = (Id::DnsRecords, self.subject());
        if !wrong.is_empty() {
            wrong.extend(missing);
            let remedy = "correct the zone: one A record and one PTR record for each machine, as `reveille dns records` lists them";
            Check::fail(id, subject, listed(wrong), remedy)
        } else if self.must && !missing.is_empty() {
            let remedy = "enter what `reveille dns records` lists into that server, or let this bastion serve it (`dns: { mode: serve }`)";
            Check::fail(id, subject, listed(missing), remedy)
        } else if !missing.is_empty() {
            let remedy = "add A and PTR records to the zone; without them the machines' names work on the bastion only";
            Check::warn(id, subject, listed(missing), remedy)
        } else {
            let evidence = format!("{} names and addresses agree", known.len());
            Check::pass(id, subject, evidence)
        }
    }
}

/// What is wrong and what is missing of one name.
fn judge_name(known: &Known) -> (Vec<String>, Vec<String>) {
    let Known {
        name,
        wanted,
        forward,
        backward,
    } = known;
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    match forward {
        Ok(Answer::Records(records)) => {
            let addresses = records.iter().filter_map(|record| {
                let RData::A(address) = record else {
                    return None;
                };
                Some(address.0)
            });
            let addresses: BTreeSet<Ipv4Addr> = addresses.collect();
            if addresses != wanted.addresses {
                let (found, wanted) = (said(&addresses), said(&wanted.addresses));
                wrong.push(format!("{name} is {found}, not {wanted}"));
            }
        }
        Ok(Answer::Nothing) => missing.push(format!("{name} has no address")),
        Ok(Answer::Refused(why)) | Err(why) => missing.push(format!("{name}: {why}")),
    }
    let Some(first) = wanted.addresses.first().filter(|_| !wanted.back.is_empty()) else {
        return (wrong, missing);
    };
    match backward {
        Ok(Answer::Records(records)) => {
            let names = records.iter().filter_map(|record| {
                let RData::PTR(name) = record else {
                    return None;
                };
                Some(name.0.clone())
            });
            let others = names.filter(|other| !wanted.back.contains(other));
            let others: Vec<String> = others.map(|other| other.to_string()).collect();
            if !others.is_empty() {
                wrong.push(format!("{first} is {}, not {name}", others.join(" and ")));
            }
        }
        Ok(Answer::Nothing) => missing.push(format!("{first} has no name")),
        Ok(Answer::Refused(why)) | Err(why) => missing.push(format!("{first}: {why}")),
    }
    (wrong, missing)
}

fn said(addresses: &BTreeSet<Ipv4Addr>) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(" and ")
}

/// Where a server says that a name is; empty where it says that there is no such name.
///
/// # Errors
/// It is silent, or refuses, in words.
pub(crate) async fn addresses_of(server: Ipv4Addr, name: &str) -> Result<Vec<Ipv4Addr>, String> {
    let name = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
    match ask(server, name, RecordType::A).await? {
        Answer::Records(records) => {
            let address = |record: RData| {
                let RData::A(address) = record else {
                    return None;
                };
                Some(address.0)
            };
            Ok(records.into_iter().filter_map(address).collect())
        }
        Answer::Nothing => Ok(Vec::new()),
        Answer::Refused(word) => Err(word),
    }
}

/// Asks a server one question.
pub(crate) async fn ask(server: Ipv4Addr, name: Name, kind: RecordType) -> Result<Answer, String> {
    let mut last = None;
    for _ in 0..TRIES {
        match timeout(ANSWER_TIME, ask_once(server, &name, kind)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = Some(error.to_string()),
            Err(_) => {}
        }
    }
    Err(last.unwrap_or_else(|| format!("silent for {} s", ANSWER_TIME.as_secs() * 2)))
}

async fn ask_once(server: Ipv4Addr, name: &Name, kind: RecordType) -> io::Result<Answer> {
    let id = u16::from_be_bytes(tls::random());
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let question = question.to_vec().map_err(io::Error::other)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((server, PORT)).await?;
    socket.send(&question).await?;
    let mut bytes = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = socket.recv(&mut bytes).await?;
        let Ok(message) = Message::from_vec(&bytes[..length]) else {
            continue;
        };
        let ours = message.metadata.id == id
            && message
                .queries
                .first()
                .is_some_and(|query| query.name() == name);
        if ours {
            return Ok(understand(&message, kind));
        }
    }
}

fn understand(message: &Message, kind: RecordType) -> Answer {
    let code = message.metadata.response_code;
    if code == ResponseCode::NXDomain {
        return Answer::Nothing;
    }
    if code != ResponseCode::NoError {
        return Answer::Refused(code.to_string());
    }
    let records = message.answers.iter();
    // Aliases come along; the records they lead to are what was asked for.
    let records: Vec<RData> = records
        .filter(|record| record.record_type() == kind)
        .map(|record| record.data.clone())
        .collect();
    if records.is_empty() {
        Answer::Nothing
    } else {
        Answer::Records(records)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use hickory_proto::rr::rdata::{A, PTR};

    const WANTED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn addresses(last: &[u8]) -> Result<Answer, String> {
        let record = |last: &u8| RData::A(A(Ipv4Addr::new(10, 0, 0, *last)));
        Ok(Answer::Records(last.iter().map(record).collect()))
    }

    fn names(of: &[&str]) -> Result<Answer, String> {
        let record = |of: &&str| RData::PTR(PTR(name(of)));
        Ok(Answer::Records(of.iter().map(record).collect()))
    }

    fn server() -> Server {
        Server {
            network: "provisioning".parse().expect("a name"),
            address: Ipv4Addr::LOCALHOST,
            names: BTreeMap::new(),
            unasked: 0,
            domains: BTreeSet::from([name("lab.example.")]),
            must: false,
        }
    }

    fn known(forward: Result<Answer, String>, backward: Result<Answer, String>) -> Known {
        Known {
            name: name("node-1.lab.example."),
            wanted: Wanted {
                addresses: BTreeSet::from([WANTED]),
                back: BTreeSet::from([name("node-1.lab.example.")]),
            },
            forward,
            backward,
        }
    }

    fn judged(forward: Result<Answer, String>, backward: Result<Answer, String>) -> Outcome {
        server().judge_names(&[known(forward, backward)]).result
    }

    #[test]
    fn a_missing_record_fails_where_the_site_says_that_it_is_there() {
        let mut server = server();
        server.must = true;
        let gone = known(Ok(Answer::Nothing), names(&["node-1.lab.example."]));
        assert_eq!(server.judge_names(&[gone]).result, Outcome::Fail);
        let right = known(addresses(&[1]), names(&["node-1.lab.example."]));
        assert_eq!(server.judge_names(&[right]).result, Outcome::Pass);
    }

    #[test]
    fn a_wrong_or_second_record_fails_and_a_missing_one_warns() {
        let right = || names(&["Node-1.lab.example."]);
        let nothing = || Ok(Answer::Nothing);
        assert_eq!(judged(addresses(&[1]), right()), Outcome::Pass);
        assert_eq!(judged(addresses(&[2]), right()), Outcome::Fail);
        assert_eq!(judged(addresses(&[1, 2]), right()), Outcome::Fail);
        assert_eq!(
            judged(addresses(&[1]), names(&["other.lab.example."])),
            Outcome::Fail
        );
        assert_eq!(judged(nothing(), right()), Outcome::Warn);
        assert_eq!(judged(addresses(&[1]), nothing()), Outcome::Warn);
        assert_eq!(judged(Err("silent".into()), nothing()), Outcome::Warn);
        assert_eq!(
            judged(nothing(), names(&["other.lab.example."])),
            Outcome::Fail
        );
    }

    #[test]
    fn a_name_that_nobody_gave_has_no_address() {
        let judged = |answer| {
            let answers = BTreeMap::from([(name("lab.example."), answer)]);
            server().judge_wild(&answers).map(|check| check.result)
        };
        assert_eq!(judged(Ok(Answer::Nothing)), Some(Outcome::Pass));
        assert_eq!(
            judged(Ok(Answer::Refused("Refused".into()))),
            Some(Outcome::Pass)
        );
        assert_eq!(judged(addresses(&[9])), Some(Outcome::Fail));
    }

    #[test]
    fn a_host_name_with_a_dot_is_whole_and_one_without_is_in_the_domain() {
        let of = |host: &str, domain: Option<&str>| {
            let host: Hostname = host.parse().expect("a host name");
            let domain: Option<Hostname> = domain.map(|d| d.parse().expect("a domain"));
            name_of(&host, domain.as_ref()).map(|name| name.to_string())
        };
        let full = Some("node-1.lab.example.".to_owned());
        assert_eq!(of("node-1", Some("lab.example")), full);
        assert_eq!(of("node-1.lab.example", Some("other.example")), full);
        assert_eq!(of("node-1.lab.example", None), full);
        assert_eq!(of("node-1", None), None, "nobody can look it up");
    }
}
