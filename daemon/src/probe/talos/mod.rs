//! The hands on Talos' machine API: one act, which makes a node the first of its etcd, and looks, which gather what
//! each node says of itself.
//!
//! ```text
//!   access   the way to one apid: TLS both ways, gRPC        wire     the messages
//!   look     nodes asked side by side ──▶ witnesses           health   witnesses ──▶ checks (pure)
//!   facts    witnesses ──▶ what is known of nodes and cluster
//!   sink     what machines tell unasked, as hints
//! ```
//!
//! Talos leaves no room for an agent, so what is known of a node is what its own API and its etcd say. Every call goes
//! to the node itself and never through another one's apid: an answer is that node's.
//!
//! Ugly facts. Bootstrap answers before etcd runs, and its failure later is told by etcd alone. Asked of two nodes
//! it makes two clusters; whoever calls it sees to it that there is one. A data directory of an older cluster makes it
//! answer `AlreadyExists` too.

mod access;
pub mod health;
pub mod sink;
pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use netboot::cluster::{FactKey, Seen};
use netboot::net::NodeName;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Code, Status};

pub use access::{Access, AccessFault, PORT, REPLY_BYTES_MAX};
use access::{Conversation, one_line, silent, told};
use health::{Check, Member, Service, Stage, Told, Witness, checks, votes};
use wire::{
    Bootstrap, Diagnostic, EtcdMemberListRequest, EtcdMembers, MachineStatus, Metadata, Reply,
    ResourceReply, ResourceRequest, ServiceInfo, ServiceList, Version,
};

/// For one question of a look.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// For Bootstrap, which itself waits for the time (5 s) and for etcd to stop.
const BOOTSTRAP_TIME: Duration = Duration::from_secs(30);
/// Nodes that are asked at the same moment.
const AT_ONCE_MAX: usize = 32;
/// Services, members and warnings of one node that are kept.
const PARTS_MAX: usize = 64;
/// The namespace of the node's own resources (siderolabs/talos `pkg/machinery/resources/runtime`).
const RUNTIME: &str = "runtime";

/// What became of the call to Bootstrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootstrapAnswer {
    /// The node makes an etcd of its own.
    Done,
    /// The node has data of etcd already: an earlier call went well, though its answer may have been lost.
    AlreadyDone,
    /// Not this time, for these reasons; the same call may go well later. It may have gone well now, too, and then the
    /// next one answers [`Self::AlreadyDone`].
    NotYet(String),
    /// Never, as things are: a person has to change something.
    Refused(String),
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub node: NodeName,
    /// Its apid, at [`PORT`].
    pub api: SocketAddr,
    /// Whether etcd belongs on it.
    pub control_plane: bool,
}

/// Calls Bootstrap of one node, once. Codes as upstream sets them (siderolabs/talos
/// `internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go`, `Bootstrap`).
pub async fn bootstrap(access: &Access, api: SocketAddr) -> BootstrapAnswer {
    let call = async {
        let mut talk = access.connect(api).await?;
        let path = "/machine.MachineService/Bootstrap";
        one(talk.ask::<_, Reply<Bootstrap>>(path, ()).await?)
    };
    let answer = timeout(BOOTSTRAP_TIME, call).await;
    match answer.unwrap_or_else(|_| Err(silent(BOOTSTRAP_TIME))) {
        Ok(_) => BootstrapAnswer::Done,
        Err(status) if status.code() == Code::AlreadyExists => BootstrapAnswer::AlreadyDone,
        Err(status) => {
            // Nothing that a node waits for by itself has one of these.
            let never = matches!(
                status.code(),
                Code::InvalidArgument
                    | Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::Unimplemented
            );
            match never {
                true => BootstrapAnswer::Refused(told(&status)),
                false => BootstrapAnswer::NotYet(told(&status)),
            }
        }
    }
}

/// Asks every machine what it says of itself, some of them at a time. Takes a minute at the most for each
/// [`AT_ONCE_MAX`] of them that are silent.
pub async fn look(access: &Access, machines: &[Machine]) -> Vec<Witness> {
    let seats = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let mut asked = JoinSet::new();
    for (place, machine) in machines.iter().cloned().enumerate() {
        let (access, seats) = (access.clone(), Arc::clone(&seats));
        asked.spawn(async move {
            let _seat = seats.acquire().await;
            let told = ask(&access, &machine).await;
            let witness = Witness {
                node: machine.node,
                address: machine.api.ip(),
                control_plane: machine.control_plane,
                told: told.map_err(|status| access::told(&status)),
            };
            (place, witness)
        });
    }
    let mut witnesses = asked.join_all().await;
    witnesses.sort_by_key(|(place, _)| *place);
    witnesses.into_iter().map(|(_, witness)| witness).collect()
}

/// What is known by what the nodes of one cluster said: `machine-api` of each node, `etcd-member` of each control
/// plane, `bootstrapped` and `healthy` of the cluster.
#[must_use]
pub fn facts(witnesses: &[Witness]) -> Vec<Seen> {
    let api = witnesses.iter().map(|witness| {
        let said = witness.told.as_ref().map_err(Clone::clone);
        let said = said.map(|told| format!("Talos {} answers", told.version));
        seen("machine-api", Some(&witness.node), said)
    });
    let planes = || witnesses.iter().filter(|witness| witness.control_plane);
    let voted = |witness: &Witness| {
        let told = witness.told.as_ref().map_err(Clone::clone);
        told.and_then(|told| votes(told, witness.address))
    };
    let members = planes().map(|witness| {
        let said = voted(witness).map(|count| format!("one of {count} votes in etcd"));
        seen("etcd-member", Some(&witness.node), said)
    });
    let first = planes().find_map(|witness| Some((&witness.node, voted(witness).ok()?)));
    let bootstrapped = first
        .map(|(node, count)| format!("etcd of {node} counts {count} votes"))
        .ok_or_else(|| "no control plane has a vote in etcd".to_owned());
    let checks = checks(witnesses);
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
    let healthy = match failed.as_slice() {
        [] => Ok(format!("{} checks passed", checks.len())),
        [Check { name, words, .. }] => Err(format!("waits for {name}: {words}")),
        [Check { name, words, .. }, more @ ..] => {
            let count = more.len();
            Err(format!(
                "waits for {name}: {words}; and {count} more checks fail"
            ))
        }
    };
    let cluster = [
        seen("bootstrapped", None, bootstrapped),
        seen("healthy", None, healthy),
    ];
    api.chain(members).chain(cluster).collect()
}

fn seen(fact: &'static str, node: Option<&NodeName>, said: Result<String, String>) -> Seen {
    let holds = said.is_ok();
    let (Ok(words) | Err(words)) = said;
    let key = FactKey {
        node: node.cloned(),
        fact: fact.parse().expect("a fact's name is one label"),
    };
    Seen {
        key,
        holds,
        words: one_line(&words),
        boot: None,
    }
}

async fn ask(access: &Access, machine: &Machine) -> Result<Told, Status> {
    let mut talk = access.connect(machine.api).await?;
    let version = in_time(talk.ask("/machine.MachineService/Version", ())).await?;
    let version = one::<Version>(version)?.version.unwrap_or_default().tag;
    let services = in_time(talk.ask("/machine.MachineService/ServiceList", ())).await;
    let services = services.and_then(one::<ServiceList>).map(|list| {
        let services = list.services.into_iter().take(PARTS_MAX);
        services.map(Service::from).collect()
    });
    let stage = in_time(talk.ask(
        "/cosi.resource.State/Get",
        resource("MachineStatuses", "machine"),
    ));
    let stage = stage.await.and_then(spec::<MachineStatus>);
    let diagnostics = in_time(diagnostics(&mut talk)).await;
    let members = match machine.control_plane {
        true => in_time(members(&mut talk)).await,
        false => Err(Status::not_found("no etcd on this node")),
    };
    let words = |status: Status| told(&status);
    Ok(Told {
        version: one_line(&version),
        services: services.map_err(words),
        stage: stage.map(Stage::from).map_err(words),
        diagnostics: diagnostics.map_err(words),
        members: members.map_err(words),
    })
}

async fn diagnostics(talk: &mut Conversation) -> Result<Vec<String>, Status> {
    let list = resource("Diagnostics", "");
    let mut found = talk.ask_for_many("/cosi.resource.State/List", list).await?;
    let mut warnings = Vec::new();
    while let Some(reply) = found.message().await? {
        if warnings.len() < PARTS_MAX {
            warnings.push(one_line(&spec::<Diagnostic>(reply)?.message));
        }
    }
    Ok(warnings)
}

async fn members(talk: &mut Conversation) -> Result<Vec<Member>, Status> {
    // Its own etcd, and not whichever answers at the endpoint: a node that made a cluster of its own must not hide.
    let local = EtcdMemberListRequest { query_local: true };
    let path = "/machine.MachineService/EtcdMemberList";
    let list = one::<EtcdMembers>(talk.ask(path, local).await?)?;
    let members = list.members.into_iter().take(PARTS_MAX);
    let member = |member: wire::EtcdMember| Member {
        id: member.id,
        hostname: one_line(&member.hostname),
        learner: member.is_learner,
        addresses: member
            .peer_urls
            .iter()
            .filter_map(|url| host(url))
            .collect(),
    };
    Ok(members.map(member).collect())
}

/// The address in `https://10.107.0.11:2380`.
fn host(url: &str) -> Option<IpAddr> {
    let url: Uri = url.parse().ok()?;
    let host = url.host()?;
    host.trim_matches(['[', ']']).parse().ok()
}

/// One of the node's own resources, or all of a kind.
fn resource(kind: &str, id: &str) -> ResourceRequest {
    ResourceRequest {
        namespace: RUNTIME.to_owned(),
        kind: format!("{kind}.{RUNTIME}.talos.dev"),
        id: id.to_owned(),
    }
}

fn spec<M: Message + Default>(reply: ResourceReply) -> Result<M, Status> {
    let spec = reply.resource.and_then(|resource| resource.spec);
    let bytes = spec.unwrap_or_default().proto_spec;
    M::decode(&*bytes).map_err(|error| Status::internal(format!("an unreadable resource: {error}")))
}

async fn in_time<A>(answer: impl Future<Output = Result<A, Status>>) -> Result<A, Status> {
    let answer = timeout(ANSWER_TIME, answer).await;
    answer.unwrap_or_else(|_| Err(silent(ANSWER_TIME)))
}

/// The one message of a reply.
fn one<M: Part>(reply: Reply<M>) -> Result<M, Status> {
    let message = reply.messages.into_iter().next();
    let message = message.ok_or_else(|| Status::internal("the reply is empty"))?;
    let Some(metadata) = message.metadata().filter(|told| !told.error.is_empty()) else {
        return Ok(message);
    };
    let code = metadata
        .status
        .as_ref()
        .map(|status| Code::from_i32(status.code));
    let code = code
        .filter(|code| *code != Code::Ok)
        .unwrap_or(Code::Unknown);
    Err(Status::new(code, metadata.error.clone()))
}

/// A message of a reply, which may be an error instead.
trait Part: Message + Default + std::fmt::Debug {
    fn metadata(&self) -> Option<&Metadata>;
}

impl Part for Bootstrap {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Part for Version {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Part for ServiceList {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Part for EtcdMembers {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl From<ServiceInfo> for Service {
    fn from(told: ServiceInfo) -> Self {
        let latest = told.events.unwrap_or_default().events.pop();
        let message = latest.as_ref().map(|event| one_line(&event.msg));
        Self {
            id: one_line(&told.id),
            state: latest.map(|event| one_line(&event.state)),
            message: message.unwrap_or_default(),
            healthy: told.health.unwrap_or_default().healthy,
        }
    }
}

impl From<MachineStatus> for Stage {
    fn from(told: MachineStatus) -> Self {
        let stage = told.stage();
        let status = told.status.unwrap_or_default();
        let unmet = status.unmet_conditions.iter().take(PARTS_MAX);
        Self {
            running: stage == wire::Stage::Running,
            word: stage.word(),
            ready: status.ready,
            unmet: unmet
                .map(|unmet| one_line(&format!("{}: {}", unmet.name, unmet.reason)))
                .collect(),
        }
    }
}
