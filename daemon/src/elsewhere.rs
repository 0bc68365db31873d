//! What others must serve in the bastion's place, looked at all the time: the clusters' names in somebody else's DNS, and
//! their ports on somebody else's balancer.
//!
//! ```text
//!   site ──questions()──> Question ──look()──> answers ──judge──> Finding ──> status, conditions, preflight
//! ```
//!
//! A name is right where the server's set of addresses is the wanted one. A port is right where it leads to this very
//! cluster, proven by its CA once there is one; and wrong only where a machine behind it answers and the balancer doesn't:
//! before that nobody can tell. What gives secrets away must not be met under the public addresses.
//!
//! Ugly facts. The looks are this host's: a firewall may treat users otherwise. A balancer may take a connection before
//! it knows anybody to give it to, so one that is closed at once is no answer.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use netboot::cluster::{ClusterName, ClusterSpec, ServiceKind};
use netboot::endpoint::{Endpoint, Probe, Sides};
use netboot::net::{NodeName, Timestamp};
use netboot::site::Site;
use netboot::zone::{DnsMode, DomainName, Names};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::balancer::check::{self, Known};
use crate::balancer::feed;
use crate::clusters::keyring::Keyring;
use crate::controller::{Controller, now};
use crate::dns;
use crate::health::Health;
use crate::link::Links;
use crate::preflight::names::{Answer, ask};
use crate::probe::kube::TrustedCa;
use crate::tls;

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(30);
/// The first, so that `status` says something soon.
const FIRST: Duration = Duration::from_secs(2);
/// Of one look at one port.
const PATIENCE: Duration = Duration::from_secs(3);
/// A balancer that has nobody to give a connection to closes it sooner.
const AT_ONCE_TIME: Duration = Duration::from_millis(300);
/// Looks under way at once.
const AT_ONCE: usize = 32;
/// What conditions about others begin with.
const SUBJECT: &str = "elsewhere ";

/// One thing that must be so elsewhere.
#[derive(Clone, Debug)]
pub enum Question {
    /// A server's answer for a name.
    Resolves {
        /// Whose name.
        cluster: ClusterName,
        /// Who is asked.
        server: Ipv4Addr,
        /// `api.okd.lab.example.`, or the asterisk that stands for any name there.
        name: DomainName,
        /// These addresses and no others.
        wanted: BTreeSet<Ipv4Addr>,
    },
    /// A balancer's port.
    Leads {
        /// What is behind it.
        endpoint: Arc<Endpoint>,
        /// Where the balancer takes connections.
        at: SocketAddrV4,
        /// What its certificate must prove.
        known: Option<Known>,
    },
    /// A port that gives secrets away, under a public address.
    Closed {
        /// Which.
        endpoint: Arc<Endpoint>,
        /// Where it must not be.
        at: SocketAddrV4,
    },
}

/// How something elsewhere is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it must be.
    Right,
    /// Nobody can tell before a machine answers.
    Waits,
    /// Machines or users will miss it, or others get what they must not.
    Wrong,
}

/// What was found of one [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whose.
    pub cluster: String,
    /// `api.okd.lab.example by 10.0.0.53`, `api at 10.107.0.250:6443`.
    pub subject: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do about it; only of what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// The latest findings, for whoever asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere(Arc<Mutex<Vec<Finding>>>);

impl Elsewhere {
    /// What was found last, by cluster and subject; empty while nothing is served elsewhere.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks until `stop`, and tells conditions of what is wrong.
    pub async fn follow(
        self,
        controller: Controller,
        links: tokio::sync::watch::Receiver<Arc<Links>>,
        keyring: Arc<Keyring>,
        health: Health,
        stop: CancellationToken,
    ) -> Result<(), &'static str> {
        let mut pause = FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = PERIOD;
            let site = controller.snapshot().load();
            let there = Arc::clone(&links.borrow());
            let asked = questions(&site, &there, |cluster| trust(&keyring, cluster));
            let found = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                found = look(asked, now()) => found,
            };
            tell(&found, &health);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = found;
        }
    }
}

/// The CA of a cluster, once there is one.
pub(crate) fn trust(keyring: &Keyring, cluster: &ClusterName) -> Option<TrustedCa> {
    let keys = keyring.keys(cluster)?;
    TrustedCa::from_kubeconfig(&keys.kubeconfig).ok()
}

fn tell(found: &[Finding], health: &Health) {
    let wrong = || found.iter().filter(|finding| finding.state == State::Wrong);
    let subject = |finding: &Finding| format!("{SUBJECT}{} {}", finding.cluster, finding.subject);
    let subjects: BTreeSet<String> = wrong().map(subject).collect();
    health.retain(|said| !said.starts_with(SUBJECT) || subjects.contains(said));
    for finding in wrong() {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        health.ill(&subject(finding), format!("{}: {remedy}", finding.detail));
    }
}

/// How a service is that these were all looked at for: its faults, or else that there are none. What nobody can tell before a
/// machine answers is no fault, or no machine would ever begin.
pub(crate) fn sum(found: &[Finding]) -> Result<String, String> {
    let of = |state: State| found.iter().filter(move |finding| finding.state == state);
    let said = |finding: &Finding| format!("{}: {}", finding.subject, finding.detail);
    let wrong: Vec<String> = of(State::Wrong).map(said).collect();
    if let Some(first) = of(State::Wrong).next() {
        // What is wrong with one is mostly wrong with all, and so is what to do.
        let remedy = first.remedy.as_deref().unwrap_or("look there");
        return Err(format!("{}: {remedy}", wrong.join("; ")));
    }
    Ok(match (of(State::Right).count(), of(State::Waits).count()) {
        (0, 0) => "nothing of it can be looked at from here".to_owned(),
        (right, 0) => format!("as it must be: {right}"),
        (right, waits) => format!("as it must be: {right}; once machines answer: {waits}"),
    })
}

/// Everything that must be so elsewhere; nothing where this bastion serves it.
pub(crate) fn questions(
    site: &Site,
    links: &Links,
    trust: impl Fn(&ClusterName) -> Option<TrustedCa>,
) -> Vec<Question> {
    let names = dns::names(site, links);
    let mut questions = Vec::new();
    for (spec, state) in site.clusters() {
        questions.extend(resolutions(site, spec, &names));
        let Some(balanced) = &site.spec().dns().balanced else {
            continue;
        };
        let known =
            trust(&spec.name).and_then(|ca| Known::new(&ca, &format!("api.{}", spec.fqdn())));
        for endpoint in feed::of_cluster(site.spec(), spec, state) {
            let endpoint = Arc::new(endpoint);
            let port = endpoint.port.port;
            // Under a public address that isn't this cluster's, another one may be met.
            let met = spec.public || endpoint.port.sides == Sides::Private;
            let public = balanced.outside.iter().filter(|_| met);
            let public = public.map(|address| (*address, true));
            let private = balanced.inside.iter().map(|address| (*address, false));
            for (address, public) in private.chain(public) {
                let (at, endpoint) = (SocketAddrV4::new(address, port), Arc::clone(&endpoint));
                questions.push(if public && endpoint.port.sides == Sides::Private {
                    Question::Closed { endpoint, at }
                } else {
                    let known = known.clone();
                    Question::Leads {
                        endpoint,
                        at,
                        known,
                    }
                });
            }
        }
    }
    questions
}

/// What the servers of a cluster's network must say of it.
fn resolutions(site: &Site, spec: &ClusterSpec, names: &Names) -> Vec<Question> {
    let network = site.spec().network(&spec.network);
    let servers = match site.spec().dns().mode {
        DnsMode::External => network.map_or(&[][..], |network| &network.dns),
        DnsMode::Serve | DnsMode::Off => &[],
    };
    let base = DomainName::from(&spec.domain);
    let Some(domain) = DomainName::under(spec.name.as_str(), &base) else {
        return Vec::new();
    };
    let of_cluster = names.clusters.iter().find(|names| names.domain == domain);
    let wanted: BTreeSet<Ipv4Addr> = of_cluster
        .into_iter()
        .flat_map(|names| names.inside.iter().copied())
        .collect();
    // Its names are not told before its DNS is started.
    if wanted.is_empty() {
        return Vec::new();
    }
    let apps = DomainName::under("apps", &domain).and_then(|apps| DomainName::under("*", &apps));
    let hosts = ["api", "api-int"].map(|host| DomainName::under(host, &domain));
    let all = hosts.into_iter().chain([apps]).flatten();
    all.flat_map(|name| {
        let question = |server: &Ipv4Addr| Question::Resolves {
            cluster: spec.name.clone(),
            server: *server,
            name: name.clone(),
            wanted: wanted.clone(),
        };
        servers.iter().map(question).collect::<Vec<_>>()
    })
    .collect()
}

/// Looks at everything, a few at a time.
pub(crate) async fn look(questions: Vec<Question>, at: Timestamp) -> Vec<Finding> {
    let (mut waiting, mut looks, mut found) = (questions.into_iter(), JoinSet::new(), Vec::new());
    loop {
        while looks.len() < AT_ONCE {
            let Some(question) = waiting.next() else {
                break;
            };
            looks.spawn(question.look(at));
        }
        match looks.join_next().await {
            Some(finding) => {
                found.push(finding.expect("a look does not panic, and nobody aborts one"))
            }
            None => break,
        }
    }
    found.sort_by(|one: &Finding, other| {
        (&one.cluster, &one.subject).cmp(&(&other.cluster, &other.subject))
    });
    found
}

/// What became of asking a machine, or a balancer.
type Said = Result<String, String>;

impl Question {
    async fn look(self, at: Timestamp) -> Finding {
        let (cluster, subject) = self.subject();
        let judged = match self {
            Self::Resolves {
                server,
                name,
                wanted,
                ..
            } => judge_name(&answer(server, &name).await, &wanted),
            Self::Leads {
                endpoint,
                at,
                known,
            } => {
                let by_balancer = through(&endpoint, at, known.as_ref());
                let direct = behind(&endpoint, known.as_ref());
                let (by_balancer, direct) = tokio::join!(by_balancer, direct);
                judge_port(by_balancer, &direct, known.is_some())
            }
            Self::Closed { endpoint, at } => {
                let opened = timeout(PATIENCE, TcpStream::connect(at)).await;
                judge_closed(matches!(opened, Ok(Ok(_))), &endpoint.port.name)
            }
        };
        let (state, detail, remedy) = judged;
        Finding {
            cluster,
            subject,
            state,
            detail,
            remedy,
            at,
        }
    }

    /// Whether it is about what this kind of service does for this cluster.
    pub(crate) fn concerns(&self, name: &ClusterName, kind: ServiceKind) -> bool {
        match self {
            Self::Resolves { cluster, .. } => kind == ServiceKind::Dns && cluster == name,
            Self::Leads { endpoint, .. } | Self::Closed { endpoint, .. } => {
                kind == ServiceKind::LoadBalancer && endpoint.cluster == name.as_str()
            }
        }
    }

    fn subject(&self) -> (String, String) {
        match self {
            Self::Resolves {
                cluster,
                server,
                name,
                ..
            } => {
                let name = name.to_string();
                let name = name.trim_end_matches('.');
                (cluster.to_string(), format!("{name} by {server}"))
            }
            Self::Leads { endpoint, at, .. } => (
                endpoint.cluster.clone(),
                format!("{} at {at}", endpoint.port.name),
            ),
            Self::Closed { endpoint, at } => (
                endpoint.cluster.clone(),
                format!("{} not at {at}", endpoint.port.name),
            ),
        }
    }
}

async fn answer(server: Ipv4Addr, name: &DomainName) -> Result<BTreeSet<Ipv4Addr>, String> {
    // An asterisk is asked for by a name that nobody gave.
    let label = format!("reveille-{:016x}", u64::from_be_bytes(tls::random()));
    let text = name.to_string().replacen('*', &label, 1);
    let name = Name::from_ascii(text).map_err(|error| error.to_string())?;
    match ask(server, name, RecordType::A).await? {
        Answer::Records(records) => Ok(records
            .iter()
            .filter_map(|record| {
                let RData::A(address) = record else {
                    return None;
                };
                Some(address.0)
            })
            .collect()),
        Answer::Nothing => Ok(BTreeSet::new()),
        Answer::Refused(why) => Err(why),
    }
}

/// What a balancer gives whoever connects to it.
async fn through(endpoint: &Endpoint, at: SocketAddrV4, known: Option<&Known>) -> Said {
    match &endpoint.port.check.probe {
        Probe::Tcp => bounded(stays_open(at)).await,
        probe @ Probe::HttpsReadyz { .. } => bounded(check::look(at, probe, false, known)).await,
    }
}

/// A connection that is not closed before the client has spoken.
async fn stays_open(at: SocketAddrV4) -> Said {
    let said = |error: std::io::Error| format!("{at}: {error}");
    let mut stream = TcpStream::connect(at).await.map_err(said)?;
    match timeout(AT_ONCE_TIME, stream.read(&mut [0])).await {
        Ok(Ok(0)) => Err(format!("{at} closes connections at once")),
        Ok(Err(error)) => Err(said(error)),
        Ok(Ok(_)) | Err(_) => Ok(format!("{at} takes connections")),
    }
}

/// What the machines behind a port say themselves.
async fn behind(endpoint: &Endpoint, known: Option<&Known>) -> Vec<(NodeName, Said)> {
    let mut looks = JoinSet::new();
    for backend in endpoint.backends.clone() {
        let (probe, known) = (endpoint.port.check.probe.clone(), known.cloned());
        let proxied = endpoint.port.proxy_protocol;
        looks.spawn(async move {
            let look = check::look(backend.address, &probe, proxied, known.as_ref());
            (backend.node, bounded(look).await)
        });
    }
    looks.join_all().await
}

async fn bounded(look: impl Future<Output = Said>) -> Said {
    timeout(PATIENCE, look)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

type Judged = (State, String, Option<String>);

fn judge_name(answer: &Result<BTreeSet<Ipv4Addr>, String>, wanted: &BTreeSet<Ipv4Addr>) -> Judged {
    let said = |addresses: &BTreeSet<Ipv4Addr>| {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        match addresses.is_empty() {
            true => "no address".to_owned(),
            false => addresses.join(" and "),
        }
    };
    let remedy = || Some("enter what `reveille dns records` lists into that server".to_owned());
    match answer {
        Ok(addresses) if addresses == wanted => (State::Right, format!("is {}", said(wanted)), None),
        Ok(addresses) => {
            let detail = format!("is {}, not {}", said(addresses), said(wanted));
            (State::Wrong, detail, remedy())
        }
        Err(why) => (
            State::Wrong,
            format!("no answer: {why}"),
            Some("start a DNS server there, let UDP 53 pass, or correct the network's `dns` in site.yaml".to_owned()),
        ),
    }
}

fn judge_port(by_balancer: Said, behind: &[(NodeName, Said)], proven: bool) -> Judged {
    let answering: Vec<&str> = behind
        .iter()
        .filter(|(_, said)| said.is_ok())
        .map(|(node, _)| node.as_str())
        .collect();
    match by_balancer {
        Ok(_) if answering.is_empty() => (
            State::Waits,
            "takes connections; no machine behind it answers yet".to_owned(),
            None,
        ),
        Ok(said) if proven => (State::Right, format!("{said}; it is this cluster"), None),
        Ok(said) => (State::Right, said, None),
        Err(_) if answering.is_empty() => (
            State::Waits,
            "can't be told before a machine behind it answers".to_owned(),
            None,
        ),
        Err(why) => (
            State::Wrong,
            format!("{why}, though {} answers", answering.join(" and ")),
            Some("compare it with `reveille balancer requirements`: its listener, its backends, and the way there from this host".to_owned()),
        ),
    }
}

fn judge_closed(open: bool, name: &str) -> Judged {
    match open {
        false => (State::Right, "is closed".to_owned(), None),
        true => (
            State::Wrong,
            format!(
                "takes connections under a public address, and {name} gives secrets to whoever asks"
            ),
            Some("close it there at once; machines reach it under `balancer.addresses`".to_owned()),
        ),
    }
}

/// What a probe asks, in words for whoever sets up another balancer.
pub(crate) fn probe_words(probe: &Probe) -> String {
    match probe {
        Probe::Tcp => "TCP connect".to_owned(),
        Probe::HttpsReadyz { path } => format!("GET {path} over TLS, unverified: 200 or 401"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(good: bool) -> Said {
        match good {
            true => Ok("200".to_owned()),
            false => Err("refused".to_owned()),
        }
    }

    #[test]
    fn a_balancer_is_wrong_only_where_a_machine_behind_it_answers_and_it_does_not() {
        let judged = |by_balancer, behind: &[bool]| {
            let machine = |good: &bool| ("cp-1".parse().expect("a name"), said(*good));
            let behind: Vec<_> = behind.iter().map(machine).collect();
            judge_port(said(by_balancer), &behind, false).0
        };
        assert_eq!(judged(false, &[]), State::Waits);
        assert_eq!(judged(false, &[false, false]), State::Waits);
        // It takes connections for nobody.
        assert_eq!(judged(true, &[false]), State::Waits);
        assert_eq!(judged(false, &[false, true]), State::Wrong);
        assert_eq!(judged(true, &[false, true]), State::Right);
    }

    #[tokio::test]
    async fn a_balancer_that_has_nobody_to_give_a_connection_to_is_no_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let std::net::SocketAddr::V4(at) = listener.local_addr().expect("an address") else {
            panic!("bound to an IPv4 address");
        };
        // The kernel completes the handshake, and nobody closes.
        assert!(stays_open(at).await.is_ok());
        let closing = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        let said = stays_open(at).await;
        assert!(
            said.as_ref().is_err_and(|why| why.contains("at once")),
            "{said:?}"
        );
        closing.abort();
    }

    #[test]
    fn a_name_has_the_wanted_addresses_and_no_others() {
        let addresses = |last: &[u8]| -> BTreeSet<Ipv4Addr> {
            last.iter()
                .map(|last| Ipv4Addr::new(10, 0, 0, *last))
                .collect()
        };
        let wanted = addresses(&[1, 2]);
        let judged = |answer| judge_name(&answer, &wanted).0;
        assert_eq!(judged(Ok(addresses(&[2, 1]))), State::Right);
        for wrong in [&[1][..], &[1, 2, 3], &[]] {
            assert_eq!(judged(Ok(addresses(wrong))), State::Wrong);
        }
        assert_eq!(judged(Err("silent".to_owned())), State::Wrong);
    }

    #[test]
    fn what_gives_secrets_away_is_wrong_where_it_is_open_to_the_public() {
        assert_eq!(judge_closed(false, "machine-config").0, State::Right);
        let (state, _, remedy) = judge_closed(true, "machine-config");
        assert_eq!(state, State::Wrong);
        assert!(remedy.is_some_and(|remedy| remedy.contains("close it")));
    }
}
