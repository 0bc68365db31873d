//! What an administrator needs to use a cluster: its kubeconfig, its talosconfig. Both open everything, so they leave over the
//! control socket alone, for those who may change, and each time is a person's act in the ledger.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use netboot::attempt::Fact;
use netboot::cluster::ClusterName;
use netboot::net::Malformed;
use serde::{Deserialize, Serialize};

use super::control::Changer;
use super::words::Problem;
use crate::bastion::Bastion;
use crate::vault::{KUBECONFIG, TALOSCONFIG, VaultError};

/// A file that opens a cluster.
#[derive(Serialize, Deserialize)]
pub struct HandedOut {
    /// All of it.
    pub file: String,
}

/// The routes, for the control socket only: a token that a browser keeps is no person.
pub fn routes(bastion: Arc<Bastion>) -> Router {
    Router::new()
        .route("/api/v1/clusters/{name}/kubeconfig", post(kubeconfig))
        .route("/api/v1/clusters/{name}/talosconfig", post(talosconfig))
        .with_state(bastion)
}

async fn kubeconfig(
    by: Changer,
    State(bastion): State<Arc<Bastion>>,
    name: Path<String>,
) -> Result<Response, Problem> {
    hand_out(&bastion, by, &name, "kubeconfig", KUBECONFIG).await
}

async fn talosconfig(
    by: Changer,
    State(bastion): State<Arc<Bastion>>,
    name: Path<String>,
) -> Result<Response, Problem> {
    hand_out(&bastion, by, &name, "talosconfig", TALOSCONFIG).await
}

async fn hand_out(
    bastion: &Bastion,
    Changer(by): Changer,
    name: &str,
    what: &'static str,
    kind: &'static str,
) -> Result<Response, Problem> {
    let cluster: ClusterName = name.parse().map_err(|malformed: Malformed| {
        Problem::new(StatusCode::BAD_REQUEST, malformed.to_string())
    })?;
    let (vault, of) = (Arc::clone(&bastion.vault), cluster.clone());
    let kept = tokio::task::spawn_blocking(move || vault.get(&of, kind)).await;
    let kept = kept.expect("opening a secret does not panic, and nobody aborts it");
    let Some(secret) = kept.map_err(|error| closed(&error))? else {
        let none = format!("no {what} of cluster {cluster} is kept here");
        return Err(Problem::new(StatusCode::NOT_FOUND, none).with_remedy(
            "it is kept once the cluster's secrets are made or imported; look at the cluster's name and at `reveille status`",
        ));
    };
    let file = str::from_utf8(secret.expose()).map_err(|_| {
        let broken = format!("the {what} of cluster {cluster} is no text");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, broken)
            .with_remedy("restore the state directory's `vault` from a backup")
    })?;
    tracing::info!(%cluster, %by, what, "handed out");
    let fact = Fact::Person {
        act: what.into(),
        by,
        detail: Some(format!("of cluster {cluster}")),
    };
    bastion.ledger.note(None, None, fact);
    let file = file.to_owned();
    Ok(([(CACHE_CONTROL, "no-store")], Json(HandedOut { file })).into_response())
}

fn closed(error: &VaultError) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}
