//! The administrator's door: HTTP and JSON under `/api/v1`, on a Unix socket and, where the site asks
//! for it, on a loopback TCP port.
//!
//! On the socket everybody may connect and the kernel says who they are: user 0 and members of one
//! group may look and change, members of another may look, everybody else is told 403 and why. The
//! site names the groups. On TCP a bearer token says the same as membership in the first. A handler
//! that answers takes a [`Reader`] or a [`Changer`], and neither can be had without the right to it.
//!
//! Errors are problem documents (RFC 9457) with two members of our own: `causes`, one sentence
//! each, and `remedy`.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use netboot::attempt::Fact;
use netboot::event::{Event, Outcome};
use netboot::net::{Digest, NodeName};
use nix::unistd::{Group, Uid, User};
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::clusters::cluster_name;
use super::rights::{Caller, Changer, Reader, Rights, to_its_end};
use super::words::{Consent, Exported, Problem, Reloaded};
use super::{clusters, events};
use crate::balancer::command::RequirementsReport;
use crate::bastion::Bastion;
use crate::controller::now;
use crate::dns::command::NamesReport;
use crate::host::words::{Applied, HostReport, Last, Plan, Wish};
use crate::plan::{self, OtherSite};
use crate::preflight::Report;
use crate::simulate::{Question, Simulation, simulate};
use crate::status::{NodeDetail, NodeStatus, Status, Why};

/// Connections answered at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How long an answer under way may take once the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(2);
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The API, without the door it is reached through: whoever serves it adds a [`Caller`] to each request.
pub fn api(bastion: Arc<Bastion>) -> Router {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{name}", get(node))
        .route("/api/v1/nodes/{name}/why", get(why))
        .route("/api/v1/nodes/{name}/approve", post(approve))
        .route("/api/v1/nodes/{name}/reject", post(reject))
        .route("/api/v1/nodes/{name}/cordon", post(cordon))
        .route("/api/v1/nodes/{name}/uncordon", post(uncordon))
        .route("/api/v1/nodes/{name}/reinstall", post(reinstall))
        .route("/api/v1/artifacts", get(artifacts))
        .route("/api/v1/events", get(events::events))
        .route("/api/v1/simulate", post(simulated))
        .route("/api/v1/preflight", post(preflight))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/plan", get(plan).post(plan_of))
        .route("/api/v1/dns", get(names))
        .route("/api/v1/balancer", get(requirements))
        .route("/api/v1/host", get(host))
        .route("/api/v1/host/plan", get(host_plan))
        .route("/api/v1/host/apply", post(host_apply))
        .route("/api/v1/host/confirm", post(host_confirm))
        .route("/api/v1/state/accept", post(accept_state))
        .route("/api/v1/state/export", post(export_state))
        .merge(clusters::routes())
        .fallback(|| async {
            Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path")
                .with_remedy("the README lists the paths under /api/v1")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take that method",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(bastion)
}

/// Binds the control socket, in place of one that a dead daemon left.
///
/// # Errors
/// When a living daemon answers there, or the directory can't be written.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(std::io::Error::other(
                "another daemon answers on this socket; stop it first, or choose another --socket",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // The kernel's word on the peer is the lock, so that a caller without rights is told why.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves the API on the control socket until `stop`.
///
/// # Errors
/// When the socket can't accept any more.
pub async fn run(
    listener: UnixListener,
    api: Router,
    groups: Groups,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            permit = Arc::clone(&room).acquire_owned() => permit.map_err(std::io::Error::other)?,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted?.0,
        };
        let caller = groups.caller(&stream);
        let (api, stop) = (api.clone().layer(Extension(caller)), stop.clone());
        tokio::spawn(async move {
            serve_connection(TokioIo::new(stream), api, stop).await;
            drop(permit);
        });
    }
}

/// Answers one connection; when the daemon stops, an answer under way may finish.
pub(crate) async fn serve_connection<Stream>(stream: Stream, api: Router, stop: CancellationToken)
where
    Stream: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(stream, TowerToHyperService::new(api));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(STOP_TIME, connection)
                .await
                .unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an administrator's connection ended early");
    }
}

/// The two groups by number, as this host knows them; a group that doesn't exist has no members.
#[derive(Debug)]
pub struct Groups {
    changers: Option<u32>,
    readers: Option<u32>,
    /// What a stranger is told.
    how: String,
}

impl Groups {
    /// Looks both up by name.
    #[must_use]
    pub fn look_up(changers: &str, readers: Option<&str>) -> Self {
        let number = |name: &str| {
            let group = Group::from_name(name).ok().flatten();
            if group.is_none() {
                tracing::info!(
                    group = name,
                    "no such group on this host; it lets nobody in"
                );
            }
            group.map(|group| group.gid.as_raw())
        };
        let look = readers.map_or(String::new(), |group| format!(", or {group} (to look)"));
        Self {
            changers: number(changers),
            readers: readers.and_then(number),
            how: format!(
                "run it as root, or have an administrator add you to the group {changers} (to look and change){look}"
            ),
        }
    }

    fn caller(&self, stream: &UnixStream) -> Caller {
        let none = || Rights::None(self.how.clone());
        let Ok(credentials) = stream.peer_cred() else {
            return Caller {
                name: "unknown".to_owned(),
                rights: none(),
            };
        };
        let uid = credentials.uid();
        let mut groups = crate::sys::peer_groups(stream.as_fd()).unwrap_or_default();
        groups.push(credentials.gid());
        let member = |group: Option<u32>| group.is_some_and(|group| groups.contains(&group));
        let rights = if uid == 0 || member(self.changers) {
            Rights::Change
        } else if member(self.readers) {
            Rights::Read
        } else {
            none()
        };
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        Caller {
            name: user.map_or_else(|| format!("uid {uid}"), |user| user.name),
            rights,
        }
    }
}

type Shared = State<Arc<Bastion>>;

async fn status(_: Reader, State(bastion): Shared) -> Json<Status> {
    Json(bastion.status())
}

async fn nodes(_: Reader, State(bastion): Shared) -> Json<Vec<NodeStatus>> {
    let (site, now) = (bastion.controller.snapshot().load(), now());
    let status = |node| {
        let mut status = NodeStatus::of(&site, node, now);
        bastion.add_hint(&mut status);
        status
    };
    let nodes = site.spec().nodes().map(AsRef::as_ref);
    Json(nodes.map(status).collect())
}

async fn node(
    _: Reader,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    let name = node_name(&name)?;
    detail(&bastion, &name).map(Json)
}

async fn why(
    _: Reader,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
) -> Result<Json<Why>, Problem> {
    let name = node_name(&name)?;
    let site = bastion.controller.snapshot().load();
    let node = Arc::clone(site.spec().node(&name).ok_or_else(|| unlisted(&name))?);
    let ledger = bastion.ledger.clone();
    // The ledger reads the disk, so not on a thread that answers others.
    let why = tokio::task::spawn_blocking(move || {
        Why::of(&site, &node, &ledger.history(&node.name), now())
    });
    Ok(Json(why.await.expect(
        "judging a boot does not panic, and nobody aborts it",
    )))
}

async fn simulated(
    _: Reader,
    State(bastion): Shared,
    question: Result<Json<Question>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<Simulation>, Problem> {
    let Json(question) =
        question.map_err(|refused| Problem::new(StatusCode::BAD_REQUEST, refused.body_text()))?;
    let site = bastion.controller.snapshot().load();
    simulate(&site, &bastion.stand(), &question, now())
        .map(Json)
        .map_err(|why| Problem::new(StatusCode::BAD_REQUEST, why))
}

/// The digests that the site in force may serve.
async fn artifacts(_: Reader, State(bastion): Shared) -> Json<BTreeSet<Digest>> {
    let site = bastion.controller.snapshot().load();
    let files = site.spec().profiles().flat_map(|profile| profile.files());
    Json(files.map(|file| file.digest).collect())
}

async fn approve(
    by: Changer,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    act(&bastion, &name, by, "approve", None, Event::Approved).await
}

async fn reject(
    by: Changer,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    act(&bastion, &name, by, "reject", None, Event::Rejected).await
}

async fn cordon(
    by: Changer,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    act(&bastion, &name, by, "cordon", None, Event::Cordoned).await
}

async fn uncordon(
    by: Changer,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    act(&bastion, &name, by, "uncordon", None, Event::Uncordoned).await
}

async fn reinstall(
    by: Changer,
    State(bastion): Shared,
    name: axum::extract::Path<String>,
    consent: Result<Json<Consent>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<NodeDetail>, Problem> {
    let Json(consent) = consent.map_err(|refused| {
        Problem::new(StatusCode::BAD_REQUEST, refused.body_text())
            .with_remedy("send {\"disk\": SERIAL, \"seconds\": NUMBER} as application/json")
    })?;
    let Consent { disk, seconds } = consent;
    let who = by.0.clone();
    let said = format!("disk {disk} may be lost within {seconds} s");
    act(&bastion, &name, by, "reinstall", Some(said), |node| {
        Event::PermitGiven {
            node,
            disk,
            seconds,
            by: who,
        }
    })
    .await
}

/// It changes nothing, and it sends: whoever may only look may not have the daemon speak.
async fn preflight(
    by: Changer,
    State(bastion): Shared,
    Query(WhichCluster { cluster }): Query<WhichCluster>,
) -> Result<Json<Report>, Problem> {
    let Changer(by) = by;
    let cluster = cluster.as_deref().map(cluster_name).transpose()?;
    bastion.preflight(&by, cluster).await.map(Json)
}

/// What a preflight may be narrowed to.
#[derive(Debug, Deserialize)]
struct WhichCluster {
    cluster: Option<String>,
}

async fn reload(by: Changer, State(bastion): Shared) -> Result<Json<Reloaded>, Problem> {
    let reload = async move { bastion.reload(&by.0).await };
    to_its_end(reload).await.map(Json)
}

async fn plan(_: Reader, State(bastion): Shared) -> Result<Json<plan::Plan>, Problem> {
    bastion.plan(None).await.map(Json)
}

/// The daemon reads what the caller names, so this is for those who may change.
async fn plan_of(
    _: Changer,
    State(bastion): Shared,
    other: Result<Json<OtherSite>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<plan::Plan>, Problem> {
    let Json(other) = other.map_err(|refused| {
        Problem::new(StatusCode::BAD_REQUEST, refused.body_text())
            .with_remedy("send {\"site\": DIRECTORY} as application/json")
    })?;
    bastion.plan(Some(other.site)).await.map(Json)
}

async fn names(_: Reader, State(bastion): Shared) -> Json<NamesReport> {
    Json(bastion.names())
}

async fn requirements(_: Reader, State(bastion): Shared) -> Json<RequirementsReport> {
    Json(bastion.requirements())
}

async fn host(_: Reader, State(bastion): Shared) -> Result<Json<HostReport>, Problem> {
    Ok(Json(bastion.keeper.report().await?))
}

async fn host_plan(_: Reader, State(bastion): Shared) -> Result<Json<Plan>, Problem> {
    bastion.plan_host().await.map(Json)
}

async fn host_apply(
    by: Changer,
    State(bastion): Shared,
    wish: Result<Json<Wish>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<Applied>, Problem> {
    let bad = |what: String| {
        Problem::new(StatusCode::BAD_REQUEST, what).with_remedy(
            "send {\"within\": SECONDS, \"ask\": BOOL, \"session\": TEXT} as application/json, each of them optional",
        )
    };
    let Json(wish) = wish.map_err(|refused| bad(refused.body_text()))?;
    if wish
        .within
        .is_some_and(|seconds| !Wish::WITHIN.contains(&seconds))
    {
        return Err(bad("within is 10 to 3600 seconds".to_owned()));
    }
    let apply = async move { bastion.apply_host(wish, &by.0).await };
    to_its_end(apply).await.map(Json)
}

async fn host_confirm(by: Changer, State(bastion): Shared) -> Result<Json<Last>, Problem> {
    bastion.confirm_host(&by.0).await.map(Json)
}

async fn accept_state(by: Changer, State(bastion): Shared) -> Result<Json<()>, Problem> {
    if let Outcome::Refused(why) = bastion.controller.apply(Event::RecoveryAccepted).await? {
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let Changer(by) = by;
    tracing::info!(%by, "a person accepted the recovered state");
    let fact = Fact::Person {
        act: "accept-state".into(),
        by,
        detail: None,
    };
    bastion.ledger.note(None, None, fact);
    Ok(Json(()))
}

async fn export_state(by: Changer, State(bastion): Shared) -> Result<Json<Exported>, Problem> {
    let Some(file) = bastion.export().await else {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Err(
            Problem::new(status, "the state could not be exported").with_remedy(
                "the daemon's log says why; look at the space left on the state directory's disk",
            ),
        );
    };
    tracing::info!(by = %by.0, file = %file.display(), "the state was exported");
    Ok(Json(Exported { file }))
}

/// Applies what a person wants of one machine; it is on disk before they are told.
async fn act(
    bastion: &Bastion,
    name: &str,
    by: Changer,
    act: &'static str,
    said: Option<String>,
    event: impl FnOnce(NodeName) -> Event,
) -> Result<Json<NodeDetail>, Problem> {
    let name = node_name(name)?;
    // Also tells an unknown machine from a refusal.
    detail(bastion, &name)?;
    let event = event(name.clone());
    if let Outcome::Refused(why) = bastion.controller.apply(event).await? {
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let Changer(by) = by;
    tracing::info!(node = %name, %by, act, "a person acted");
    let fact = Fact::Person {
        act: act.into(),
        by,
        detail: said,
    };
    bastion.ledger.note(None, Some(&name), fact);
    detail(bastion, &name).map(Json)
}

fn node_name(text: &str) -> Result<NodeName, Problem> {
    text.parse().map_err(|malformed: netboot::net::Malformed| {
        Problem::new(StatusCode::BAD_REQUEST, malformed.to_string())
    })
}

fn detail(bastion: &Bastion, name: &NodeName) -> Result<NodeDetail, Problem> {
    let site = bastion.controller.snapshot().load();
    let node = site.spec().node(name).ok_or_else(|| unlisted(name))?;
    let mut detail = NodeDetail::of(&site, node, now());
    bastion.add_hint(&mut detail.status);
    Ok(detail)
}

fn unlisted(name: &NodeName) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("{name} is not listed"))
        .with_remedy("`reveille node list` shows who is")
}
