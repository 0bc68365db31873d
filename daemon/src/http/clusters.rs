//! The administrator's paths about clusters, under `/api/v1/clusters`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use netboot::cluster::ClusterName;
use serde::Deserialize;

use super::rights::{Changer, Reader, to_its_end};
use super::words::Problem;
use crate::bastion::Bastion;
use crate::clusters::plan::ClusterPlan;
use crate::clusters::status::{ClusterStatus, ClusterSummary};
use crate::clusters::{ClusterApplied, ClusterDestroyed, unknown};
use crate::config::clusters::Offer;
use crate::controller::now;
use crate::preflight::Report;

/// Bytes of a definition.
pub const DEFINITION_BYTES_MAX: usize = 4 << 20;
/// Letters of a file's name in faults.
const FILE_LETTERS_MAX: usize = 256;

type Shared = State<Arc<Bastion>>;

/// The paths.
pub fn routes() -> Router<Arc<Bastion>> {
    Router::new()
        .route("/api/v1/clusters", get(list))
        .route("/api/v1/clusters/provision", post(provision))
        .route("/api/v1/clusters/plan", post(plan))
        .route("/api/v1/clusters/{name}", get(one).delete(destroy))
        .route("/api/v1/clusters/{name}/validate", post(validate))
        .layer(DefaultBodyLimit::max(DEFINITION_BYTES_MAX))
}

/// What else may be said of a definition that is sent.
#[derive(Debug, Deserialize)]
struct Sent {
    /// What its faults call its file.
    file: Option<String>,
    /// A failed check refuses nothing.
    #[serde(default, rename = "ignore-preflight")]
    ignore_preflight: bool,
}

/// What a destroy must be asked with.
#[derive(Debug, Deserialize)]
struct Confirmation {
    /// The name once more.
    confirm: Option<String>,
}

fn offer(sent: Sent, body: &Bytes) -> Result<Offer, Problem> {
    let text = str::from_utf8(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the definition is not text: {error}"),
        )
        .with_remedy("send it in UTF-8")
    })?;
    let file: String = match sent.file {
        Some(file) => file
            .chars()
            .filter(|c| !c.is_control())
            .take(FILE_LETTERS_MAX)
            .collect(),
        None => "definition".to_owned(),
    };
    Ok(Offer {
        file: PathBuf::from(file),
        text: text.into(),
    })
}

async fn list(_: Reader, State(bastion): Shared) -> Json<Vec<ClusterSummary>> {
    let (site, now) = (bastion.controller.snapshot().load(), now());
    let clusters = site.clusters();
    Json(
        clusters
            .map(|(spec, state)| ClusterSummary::of(&site, spec, state, now))
            .collect(),
    )
}

async fn one(
    _: Reader,
    State(bastion): Shared,
    name: Path<String>,
) -> Result<Json<ClusterStatus>, Problem> {
    let name = cluster_name(&name)?;
    let site = bastion.controller.snapshot().load();
    let status = ClusterStatus::of(&site, &name, bastion.is_applied(&name), now());
    status.map(Json).ok_or_else(|| unknown(&name))
}

async fn plan(
    _: Reader,
    State(bastion): Shared,
    Query(sent): Query<Sent>,
    body: Bytes,
) -> Result<Json<ClusterPlan>, Problem> {
    bastion.plan_cluster(offer(sent, &body)?).await.map(Json)
}

async fn provision(
    by: Changer,
    State(bastion): Shared,
    Query(sent): Query<Sent>,
    body: Bytes,
) -> Result<Json<ClusterApplied>, Problem> {
    let ignore_preflight = sent.ignore_preflight;
    let offer = offer(sent, &body)?;
    let apply = async move {
        let applied = bastion.apply_cluster(offer, ignore_preflight, &by.0);
        applied.await
    };
    to_its_end(apply).await.map(Json)
}

async fn validate(
    by: Changer,
    State(bastion): Shared,
    name: Path<String>,
) -> Result<Json<Report>, Problem> {
    let name = cluster_name(&name)?;
    bastion.preflight(&by.0, Some(name)).await.map(Json)
}

async fn destroy(
    by: Changer,
    State(bastion): Shared,
    name: Path<String>,
    Query(Confirmation { confirm }): Query<Confirmation>,
) -> Result<Json<ClusterDestroyed>, Problem> {
    let name = cluster_name(&name)?;
    if confirm.as_deref() != Some(name.as_str()) {
        let what = format!("destroying {name} must be confirmed by its name");
        return Err(Problem::new(StatusCode::BAD_REQUEST, what)
            .with_remedy(format!("add ?confirm={name}, or --confirm {name}")));
    }
    let destroy = async move { bastion.destroy_cluster(&name, &by.0).await };
    to_its_end(destroy).await.map(Json)
}

pub(super) fn cluster_name(text: &str) -> Result<ClusterName, Problem> {
    text.parse().map_err(|malformed: netboot::net::Malformed| {
        Problem::new(StatusCode::BAD_REQUEST, malformed.to_string())
    })
}
