//! What an administrator needs to use a cluster: its kubeconfig, its talosconfig. Both open everything, so they leave over the
//! control socket alone, for those who may change, and each time is a person's act in the ledger. By the same way come in the
//! secrets that others made.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ignition::platform::Platform;
use ignition::secret::Secret;
use netboot::attempt::Fact;
use netboot::cluster::{ClusterName, Member, Role};
use netboot::net::Malformed;
use serde::{Deserialize, Serialize};

use super::rights::{Changer, Reader};
use super::words::Problem;
use crate::bastion::Bastion;
use crate::clusters::keyring::NoKeys;
use crate::clusters::member;
use crate::controller::now;
use crate::okd::Wanted;
use crate::vault::{KUBECONFIG, SECRET_BYTES_MAX, TALOSCONFIG, VaultError};

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
        .route("/api/v1/clusters/{name}/installer", get(installer))
        .route(
            "/api/v1/clusters/{name}/secrets",
            post(import).layer(DefaultBodyLimit::max(SECRET_BYTES_MAX)),
        )
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

/// What OKD's installer is told for a cluster. It holds no secret: the pull secret is named by its file.
async fn installer(
    _: Reader,
    State(bastion): State<Arc<Bastion>>,
    name: Path<String>,
) -> Result<Json<Wanted>, Problem> {
    let cluster: ClusterName = name.parse().map_err(|malformed: Malformed| {
        Problem::new(StatusCode::BAD_REQUEST, malformed.to_string())
    })?;
    let site = bastion.controller.snapshot().load();
    let Some((spec, _)) = site.cluster(&cluster) else {
        return Err(nobody(&cluster));
    };
    if &*spec.platform != Platform::Okd.word() {
        let other = format!(
            "{cluster} is a cluster of {}, which has no openshift-install",
            spec.platform
        );
        return Err(Problem::new(StatusCode::CONFLICT, other)
            .with_remedy("its secrets are made here; nothing needs to be imported"));
    }
    let wanted = Wanted::of_cluster(&site, spec, &bastion.options.site);
    wanted.map(Json).map_err(|faults| {
        let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Problem::new(StatusCode::CONFLICT, words.join("; "))
            .with_remedy("mend the definition and apply it again")
    })
}

fn nobody(cluster: &ClusterName) -> Problem {
    let none = format!("no definition wants a cluster {cluster}");
    Problem::new(StatusCode::NOT_FOUND, none)
        .with_remedy("`reveille cluster apply` its definition first")
}

/// What an import did.
#[derive(Serialize, Deserialize)]
pub struct Imported {
    /// One sentence.
    pub words: String,
}

/// Takes in the secrets of a cluster that others made. They are judged as the platform would judge them, and never put in
/// the place of those that a machine was given.
async fn import(
    Changer(by): Changer,
    State(bastion): State<Arc<Bastion>>,
    name: Path<String>,
    body: Bytes,
) -> Result<Json<Imported>, Problem> {
    let cluster: ClusterName = name.parse().map_err(|malformed: Malformed| {
        Problem::new(StatusCode::BAD_REQUEST, malformed.to_string())
    })?;
    let site = bastion.controller.snapshot().load();
    let Some((spec, state)) = site.cluster(&cluster) else {
        return Err(nobody(&cluster));
    };
    let given = |member: &Arc<Member>| site.record(&member.node).configured.is_some();
    if let Some(member) = state.members.iter().find(|member| given(member)) {
        let taken = format!(
            "{} was already given a config that was made from the secrets that are there",
            member.node
        );
        return Err(Problem::new(StatusCode::CONFLICT, taken)
            .with_remedy("destroy the cluster and apply it again, or keep its secrets"));
    }
    let planes = member::of_role(&site, spec, state, Role::ControlPlane);
    let planes: Vec<_> = planes.map(|(_, _, address)| address).collect();
    let (spec, founded) = (Arc::clone(spec), state.record.founded);
    let secret = Secret::new(body.to_vec());
    let keyring = Arc::clone(&bastion.keyring);
    // What administers the cluster is there as soon as the answer is.
    let taken = tokio::task::spawn_blocking(move || {
        let words = keyring.import(&spec, founded, &secret, now())?;
        keyring.prepare(&spec, founded, &planes, now())?;
        Ok::<_, NoKeys>(words)
    })
    .await;
    let taken = taken.expect("keeping secrets does not panic, and nobody aborts it");
    let words = taken.map_err(|why| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why.to_string())
            .with_remedy("mend what was named and import it again; nothing changed")
    })?;
    tracing::info!(%cluster, %by, "secrets were imported");
    let fact = Fact::Person {
        act: "import".into(),
        by,
        detail: Some(format!("secrets of cluster {cluster}")),
    };
    bastion.ledger.note(None, None, fact);
    Ok(Json(Imported { words }))
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
