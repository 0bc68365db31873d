//! One look at a cluster: what is wanted to be known, asked of whichever control planes answer.
//!
//! A fact holds only when the cluster says so in as many words. No answer, an answer that isn't understood and a condition
//! that isn't there are all looks at something that doesn't hold yet, with the words for why.
//!
//! Sources: kubernetes.io "Node status" and "Kubernetes API health endpoints"; openshift/installer `cmd/openshift-install/create.go`
//! for what ends a bootstrap and an install, `waitfor.go` beside it for operators that are stable; k3s-io/k3s `pkg/etcd` for the condition `EtcdIsVoter`;
//! openshift/machine-config-operator `pkg/server/api.go`.
//!
//! Ugly facts: nodes list up to fifty images each, so they come in pages and little of them is kept; the machine-config server
//! answers `/config/worker` with 500 until the control plane's own configs are rendered, so its health alone says nothing; a
//! node's object speaks for a machine that was switched off until its lease is 40 s old, so the boot it speaks of is told too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request};
use kube::core::params::{GetParams, ListParams};
use kube::core::{ObjectList, Request as Build};
use netboot::cluster::{FactKey, Seen, Settling};
use netboot::net::NodeName;
use rustls::ClientConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use super::access::{KubeAccess, TrustedCa};
use super::wire::{Server, Session, Trouble, built, shown};

/// A whole look.
const LOOK_TIME: Duration = Duration::from_secs(15);
/// Nodes or operators of one page of a list.
const PAGE: u32 = 50;
/// Pages of one list: more nodes than a cluster may have (5,000, kubernetes.io "Considerations for large clusters").
const PAGES_MAX: usize = 120;
/// What is left to do is named for so many.
const NAMED_MAX: usize = 3;
/// For how long operators must have been settled: `coStabilityThreshold` of openshift-install.
const SETTLED: Duration = Duration::from_secs(30);

/// What somebody wants to know.
#[derive(Clone, Debug)]
pub enum Want {
    /// `api`: some control plane answers `/readyz` with 200, by a certificate of the cluster's CA.
    Api,
    /// `node-ready`: this node's condition Ready is True.
    NodeReady {
        /// The machine.
        node: NodeName,
        /// Its name in the cluster.
        name: String,
    },
    /// `etcd-member`: k3s labels this node as a member of etcd, and its condition `EtcdIsVoter` is True.
    EtcdVoter {
        /// The machine.
        node: NodeName,
        /// Its name in the cluster.
        name: String,
    },
    /// `bootstrap-complete`: the ConfigMap `kube-system/bootstrap` says so.
    BootstrapComplete,
    /// `bootstrap-member-removed`: the etcd operator's condition `EtcdBootstrapMemberRemoved` is True.
    BootstrapMemberRemoved,
    /// `version-available`: the ClusterVersion is Available, not Failing and not Progressing.
    VersionAvailable,
    /// `operators-settled`: there are ClusterOperators, and looks of the last 30 s have found every one Available, neither
    /// Progressing nor Degraded, and unchanged.
    OperatorsSettled(OperatorsWatch),
    /// `machine-config-server`: this control plane hands out the workers' config. Asked without a certificate.
    MachineConfigServer {
        /// The machine.
        node: NodeName,
        /// Where it listens; its certificate bears `api-int.CLUSTER.DOMAIN`.
        server: Server,
        /// The CA that pointer configs name.
        ca: TrustedCa,
    },
}

impl Want {
    /// What the look is at.
    #[must_use]
    pub fn key(&self) -> FactKey {
        let (fact, node) = match self {
            Self::Api => ("api", None),
            Self::NodeReady { node, .. } => ("node-ready", Some(node)),
            Self::EtcdVoter { node, .. } => ("etcd-member", Some(node)),
            Self::BootstrapComplete => ("bootstrap-complete", None),
            Self::BootstrapMemberRemoved => ("bootstrap-member-removed", None),
            Self::VersionAvailable => ("version-available", None),
            Self::OperatorsSettled(_) => ("operators-settled", None),
            Self::MachineConfigServer { node, .. } => ("machine-config-server", Some(node)),
        };
        FactKey {
            fact: fact.parse().expect("a fact's name is one label"),
            node: node.cloned(),
        }
    }
}

/// What earlier looks at the operators of one cluster showed, kept by whoever looks again. Clones are the same watch.
#[derive(Clone, Debug)]
pub struct OperatorsWatch {
    began: Instant,
    settling: Arc<Mutex<Settling<Operators>>>,
}

/// Each operator, and when its conditions last changed.
type Operators = BTreeMap<String, Vec<String>>;

impl Default for OperatorsWatch {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            settling: Arc::default(),
        }
    }
}

impl OperatorsWatch {
    fn look(&self, settled: Option<Operators>) -> Option<Duration> {
        // A look is one assignment, so what a panicking holder left is whole.
        let mut settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        settling.look(self.began.elapsed(), settled)
    }
}

/// Whether it is so, and the words; of a node, which boot of it that is of.
#[derive(Clone)]
struct Told {
    holds: bool,
    words: String,
    boot: Option<Uuid>,
}

impl Told {
    fn no(words: impl Into<String>) -> Self {
        Self::new(false, words)
    }

    fn yes(words: impl Into<String>) -> Self {
        Self::new(true, words)
    }

    fn new(holds: bool, words: impl Into<String>) -> Self {
        let (words, boot) = (words.into(), None);
        Self { holds, words, boot }
    }
}

/// Looks at what is wanted, once: one [`Seen`] for each want, in their order, after 15 s at the most. May be dropped at any
/// moment.
pub async fn look(access: &KubeAccess, wants: &[Want]) -> Vec<Seen> {
    let mut told: Vec<Option<Told>> = vec![None; wants.len()];
    let mut config_servers = JoinSet::new();
    for (index, want) in wants.iter().enumerate() {
        if let Want::MachineConfigServer { server, ca, .. } = want {
            let (server, tls) = (server.clone(), Arc::clone(&ca.0));
            config_servers.spawn(async move { (index, config_server(&server, &tls).await) });
        }
    }
    let asked = async {
        let of_the_api = |want: &Want| !matches!(want, Want::MachineConfigServer { .. });
        if wants.iter().any(of_the_api) {
            api(access, wants, &mut told).await;
        }
        while let Some(done) = config_servers.join_next().await {
            keep(done, &mut told);
        }
    };
    if timeout(LOOK_TIME, asked).await.is_err() {
        // What was told by then is kept.
        while let Some(done) = config_servers.try_join_next() {
            keep(done, &mut told);
        }
    }
    let seen = wants.iter().zip(told).map(|(want, told)| {
        let told = told.unwrap_or_else(|| Told::no("no answer within 15 s"));
        let Told { holds, words, boot } = told;
        let key = want.key();
        Seen {
            key,
            holds,
            words,
            boot,
        }
    });
    seen.collect()
}

fn keep(done: Result<(usize, Told), JoinError>, told: &mut [Option<Told>]) {
    if let Ok((index, seen)) = done {
        told[index] = Some(seen);
    }
}

async fn config_server(server: &Server, tls: &Arc<ClientConfig>) -> Told {
    let request = Request::builder()
        .method(Method::HEAD)
        .uri("/config/worker")
        .header(
            "accept",
            "application/vnd.coreos.ignition+json;version=3.2.0",
        )
        .body(Vec::new())
        .expect("these are sound headers");
    let asked = async { Session::open(server, tls).await?.ask(request).await };
    match asked.await {
        Ok(_) => Told::yes(format!("{} has the workers' config", server.address)),
        Err(trouble) => Told::no(trouble.to_string()),
    }
}

/// Everything that is asked of the API servers. Every server is asked whether it is ready, the rest of the first that is.
async fn api(access: &KubeAccess, wants: &[Want], told: &mut [Option<Told>]) {
    let (ready, words) = ready(access).await;
    let mut looks = Objects::new(&words, ready);
    for (want, told) in wants.iter().zip(told) {
        *told = match want {
            Want::Api => Some(Told::new(looks.session.is_some(), words.clone())),
            Want::MachineConfigServer { .. } => None,
            Want::NodeReady { name, .. } => Some(looks.node(name, is_ready).await),
            Want::EtcdVoter { name, .. } => Some(looks.node(name, is_voter).await),
            Want::BootstrapComplete => Some(looks.bootstrap_complete().await),
            Want::BootstrapMemberRemoved => Some(looks.member_removed().await),
            Want::VersionAvailable => Some(looks.version().await),
            Want::OperatorsSettled(watch) => Some(looks.operators(watch).await),
        };
    }
}

/// A session with the first listed server that is ready, and what all of them said.
async fn ready(access: &KubeAccess) -> (Option<Session>, String) {
    let mut looks = JoinSet::new();
    for (index, server) in access.servers.iter().enumerate() {
        let (server, tls) = (server.clone(), Arc::clone(&access.tls));
        looks.spawn(async move { (index, readyz(&server, &tls).await) });
    }
    let mut said = BTreeMap::new();
    let mut sessions = BTreeMap::new();
    while let Some(done) = looks.join_next().await {
        let Ok((index, answer)) = done else { continue };
        match answer {
            Ok(session) => {
                said.insert(index, format!("200 from {}", access.servers[index].address));
                sessions.insert(index, session);
            }
            Err(trouble) => {
                said.insert(index, trouble.to_string());
            }
        }
    }
    if said.is_empty() {
        return (None, Trouble::nobody().to_string());
    }
    let said: Vec<String> = said.into_values().collect();
    (
        sessions.pop_first().map(|(_, first)| first),
        said.join("; "),
    )
}

async fn readyz(server: &Server, tls: &Arc<ClientConfig>) -> Result<Session, Trouble> {
    let mut session = Session::open(server, tls).await?;
    session.ask(get("/readyz")).await?;
    Ok(session)
}

fn get(path: &'static str) -> Request<Vec<u8>> {
    let request = Request::get(path).body(Vec::new());
    request.expect("a path of ours is a sound URI")
}

/// What every look at an object reads of it.
#[derive(Clone, Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
    /// Of nodes.
    #[serde(default, rename = "nodeInfo")]
    info: NodeInfo,
}

/// What a kubelet tells of its machine (kubernetes/api, `core/v1/types.go`, `NodeSystemInfo`).
#[derive(Clone, Default, Deserialize)]
struct NodeInfo {
    #[serde(default, rename = "bootID")]
    boot: String,
}

/// The shape that conditions of every kind share.
#[derive(Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    /// `null` where whoever wrote the condition gave no moment.
    #[serde(rename = "lastTransitionTime")]
    changed: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Object {
    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.kind == kind)
    }

    /// Nothing when the condition has this status, or else its words.
    fn lacks(&self, kind: &str, wanted: &str) -> Option<String> {
        match self.condition(kind) {
            Some(condition) if condition.status == wanted => None,
            Some(Condition {
                status,
                reason,
                message,
                ..
            }) => {
                let why = if message.is_empty() { reason } else { message };
                Some(shown(&format!("{kind} is {status}: {why}")))
            }
            None => Some(format!("{kind} is not reported")),
        }
    }
}

fn is_ready(node: &Object) -> Told {
    let name = &node.metadata.name;
    match node.lacks("Ready", "True") {
        None => Told::yes(format!("{name} is Ready")),
        Some(why) => Told::no(format!("{name}: {why}")),
    }
}

fn is_voter(node: &Object) -> Told {
    let name = &node.metadata.name;
    let label = node.metadata.labels.get("node-role.kubernetes.io/etcd");
    if label.map(String::as_str) != Some("true") {
        return Told::no(format!("{name} is no member of etcd yet"));
    }
    match node.lacks("EtcdIsVoter", "True") {
        None => Told::yes(format!("{name} votes in etcd")),
        Some(why) => Told::no(format!("{name}: {why}")),
    }
}

/// Looks at objects over one session; a list is fetched once.
struct Objects<'a> {
    session: Option<Session>,
    nobody: &'a str,
    nodes: Option<Result<BTreeMap<String, Object>, String>>,
}

impl<'a> Objects<'a> {
    fn new(nobody: &'a str, session: Option<Session>) -> Self {
        let nodes = None;
        Self {
            session,
            nobody,
            nodes,
        }
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str, name: &str) -> Result<T, String> {
        let session = self.session.as_mut().ok_or(self.nobody)?;
        let request = built(Build::new(path).get(name, &GetParams::default()));
        let asked = async { session.json(request?).await };
        asked.await.map_err(|trouble| trouble.to_string())
    }

    async fn list(&mut self, path: &str) -> Result<Vec<Object>, String> {
        let session = self.session.as_mut().ok_or(self.nobody)?;
        let listed = list(session, path, PAGE, PAGES_MAX).await;
        let (items, _) = listed.map_err(|trouble| trouble.to_string())?;
        Ok(items)
    }

    async fn node(&mut self, name: &str, told: fn(&Object) -> Told) -> Told {
        if self.nodes.is_none() {
            let listed = self.list("/api/v1/nodes").await;
            let named = |node: Object| (node.metadata.name.clone(), node);
            self.nodes = Some(listed.map(|nodes| nodes.into_iter().map(named).collect()));
        }
        match self.nodes.as_ref() {
            Some(Ok(nodes)) => match nodes.get(name) {
                Some(node) => Told {
                    boot: node.status.info.boot.parse().ok(),
                    ..told(node)
                },
                None => Told::no(format!("{name} has not joined yet")),
            },
            Some(Err(words)) => Told::no(words.clone()),
            None => Told::no(self.nobody),
        }
    }

    async fn bootstrap_complete(&mut self) -> Told {
        let path = "/api/v1/namespaces/kube-system/configmaps";
        match self.get::<Object>(path, "bootstrap").await {
            Ok(map) => match map.data.get("status").map(String::as_str) {
                Some("complete") => Told::yes("kube-system/bootstrap says complete"),
                other => {
                    let said = shown(other.unwrap_or("nothing"));
                    Told::no(format!("kube-system/bootstrap says {said}"))
                }
            },
            Err(words) => Told::no(words),
        }
    }

    async fn member_removed(&mut self) -> Told {
        let path = "/apis/operator.openshift.io/v1/etcds";
        match self.get::<Object>(path, "cluster").await {
            Ok(etcd) => match etcd.lacks("EtcdBootstrapMemberRemoved", "True") {
                None => Told::yes("etcd runs without the bootstrap's member"),
                Some(why) => Told::no(why),
            },
            Err(words) => Told::no(words),
        }
    }

    async fn version(&mut self) -> Told {
        let path = "/apis/config.openshift.io/v1/clusterversions";
        let version = match self.get::<Object>(path, "version").await {
            Ok(version) => version,
            Err(words) => return Told::no(words),
        };
        let wanted = [
            ("Failing", "False"),
            ("Available", "True"),
            ("Progressing", "False"),
        ];
        let lacking = wanted
            .iter()
            .find_map(|(kind, status)| version.lacks(kind, status));
        match lacking {
            None => Told::yes("the version is available"),
            Some(why) => Told::no(why),
        }
    }

    async fn operators(&mut self, watch: &OperatorsWatch) -> Told {
        let path = "/apis/config.openshift.io/v1/clusteroperators";
        let operators = match self.list(path).await {
            Ok(operators) => operators,
            Err(words) => {
                watch.look(None);
                return Told::no(words);
            }
        };
        let unsettled: Vec<String> = operators.iter().filter_map(unsettled).collect();
        let (all, left) = (operators.len(), unsettled.len());
        let settled = (all > 0 && left == 0).then(|| operators.iter().map(shape).collect());
        match watch.look(settled) {
            None if all == 0 => Told::no("there are no operators yet"),
            None => {
                let named = unsettled[..left.min(NAMED_MAX)].join(", ");
                Told::no(format!(
                    "{left} of {all} operators are not settled: {named}"
                ))
            }
            Some(held) if held < SETTLED => {
                let (held, wanted) = (held.as_secs(), SETTLED.as_secs());
                Told::no(format!(
                    "all {all} operators are settled for {held} of {wanted} s"
                ))
            }
            Some(_) => Told::yes(format!("all {all} operators are settled")),
        }
    }
}

/// Nothing of an operator that is done, or else what it is about. One that doesn't say that it isn't degraded is taken
/// for degraded, as the cluster's own version operator takes it.
fn unsettled(operator: &Object) -> Option<String> {
    let wanted = [
        ("Available", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
    ];
    let lacking = wanted
        .iter()
        .find_map(|(kind, status)| operator.lacks(kind, status))?;
    Some(format!("{} ({lacking})", operator.metadata.name))
}

fn shape(operator: &Object) -> (String, Vec<String>) {
    let kinds = ["Available", "Progressing", "Degraded"];
    let conditions = kinds.iter().filter_map(|kind| operator.condition(kind));
    let changed = conditions.map(|condition| condition.changed.clone().unwrap_or_default());
    (operator.metadata.name.clone(), changed.collect())
}

/// A whole list, page by page, and whether it ended within `pages`.
///
/// A list that changes while it is read too long is refused by the API with 410, which is trouble like any other.
pub(super) async fn list<T: DeserializeOwned + Clone>(
    session: &mut Session,
    path: &str,
    page: u32,
    pages: usize,
) -> Result<(Vec<T>, bool), Trouble> {
    let mut items = Vec::new();
    let mut wanted = ListParams::default().limit(page);
    for _ in 0..pages {
        let list: ObjectList<T> = session.json(built(Build::new(path).list(&wanted))?).await?;
        items.extend(list.items);
        match list.metadata.continue_ {
            Some(next) if !next.is_empty() => wanted = wanted.continue_token(&next),
            _ => return Ok((items, true)),
        }
    }
    Ok((items, false))
}
