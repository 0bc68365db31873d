//! Clusters for whoever asks the daemon: definitions that are planned, applied and taken away, and how clusters are.
//!
//! ```text
//!   definition --judge with the site's files--> plan      what it would come to; nothing changes
//!                                           --> apply     kept in <state>/clusters, then in force as by a reload
//!   destroy    --> definition gone --> machines free --> record and secrets forgotten; no disk is written
//! ```
//!
//! ```text
//!   keyring.rs     secrets out of the vault, made first where a platform's are made here
//!   member.rs      a snapshot to one member's place, as platforms take it
//!   conductor.rs   the loop: look at each cluster, say what was seen, start its database once, approve certificates
//!   looks.rs       what is worth asking of a cluster now
//!   services.rs    the loop: look at what each cluster leans on, tell what is late
//! ```
//!
//! A definition is on disk before it is in force, and the site with it was judged before it is on disk. Each act ends
//! where it would have ended had it not been cut short, when it is asked for again.

pub mod command;
pub(crate) mod conductor;
pub mod keyring;
mod looks;
pub(crate) mod member;
pub mod plan;
pub(crate) mod services;
pub mod status;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::StatusCode;
use netboot::cluster::ClusterName;
use netboot::event::{Event, Outcome};
use netboot::net::NodeName;
use netboot::site::Site;
use serde::{Deserialize, Serialize};

use crate::bastion::{Bastion, load_changed};
use crate::config::clusters::{APPLIED, Change, Offer, Origin};
use crate::config::{Loaded, Report};
use crate::controller::now;
use crate::http::words::Problem;
use plan::ClusterPlan;

/// What an apply did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterApplied {
    /// Which cluster.
    pub name: ClusterName,
    /// False when the same definition was in force already.
    pub changed: bool,
    /// What was done to whom, as it was planned.
    pub plan: ClusterPlan,
}

/// What a destroy did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterDestroyed {
    /// Which cluster.
    pub name: ClusterName,
    /// Machines that others may have now; their disks are as they were.
    pub released: Vec<NodeName>,
}

impl Bastion {
    /// What a definition would come to; nothing changes.
    ///
    /// # Errors
    /// Its faults, and those of the site's files.
    pub(crate) async fn plan_cluster(&self, offer: Offer) -> Result<ClusterPlan, Problem> {
        let site = self.controller.snapshot().load();
        let loaded = load_changed(&self.options, Change::Put(offer)).await;
        let loaded = loaded.map_err(|report| not_taken(&report))?;
        planned(&loaded, &site)
    }

    /// Keeps a definition and puts it in force, with the site's files as a reload would. A cluster that has not begun is
    /// checked before, unless somebody takes that on himself.
    ///
    /// # Errors
    /// Faults or failed checks, in which case nothing changed; or the disk's refusal.
    pub(crate) async fn apply_cluster(
        &self,
        offer: Offer,
        ignore_preflight: bool,
        by: &str,
    ) -> Result<ClusterApplied, Problem> {
        if !ignore_preflight {
            let site = self.controller.snapshot().load();
            let loaded = load_changed(&self.options, Change::Put(offer.clone())).await;
            let loaded = loaded.map_err(|report| not_taken(&report))?;
            let plan = planned(&loaded, &site)?;
            if plan.changed {
                self.must_pass(&plan.name, loaded.spec).await?;
            }
        }
        let _one_at_a_time = self.reloads.lock().await;
        let site = self.controller.snapshot().load();
        let loaded = load_changed(&self.options, Change::Put(offer.clone())).await;
        let loaded = loaded.map_err(|report| not_taken(&report))?;
        let plan = planned(&loaded, &site)?;
        let name = plan.name.clone();
        let path = path_of(&self.options.state, &name);
        let before = fs::read_to_string(&path).ok();
        if !plan.changed && before.as_deref() == Some(&*offer.text) {
            return Ok(ClusterApplied {
                name,
                changed: false,
                plan,
            });
        }
        let kept = keep(path.clone(), offer.text).await;
        kept.map_err(|error| disk("keeping the definition", &path, &error))?;
        if let Err(problem) = self.take_whole(loaded.settings, loaded.spec, by).await {
            let undone = match before {
                Some(text) => keep(path.clone(), text.into()).await,
                None => remove(path.clone()).await,
            };
            undone.map_err(|error| disk("taking the definition back", &path, &error))?;
            return Err(problem);
        }
        tracing::info!(%by, cluster = %name, "a definition was applied");
        self.person("cluster-apply", by, Some(name.to_string()));
        Ok(ClusterApplied {
            name,
            changed: true,
            plan,
        })
    }

    /// Takes an applied definition away, frees its machines, and forgets what was known of the cluster and its secrets.
    ///
    /// # Errors
    /// The site still defines it, nobody knows it, or the disk refuses; asked again, it goes on where it stopped.
    pub(crate) async fn destroy_cluster(
        &self,
        name: &ClusterName,
        by: &str,
    ) -> Result<ClusterDestroyed, Problem> {
        let _one_at_a_time = self.reloads.lock().await;
        let loaded = load_changed(&self.options, Change::Remove(name.clone())).await;
        let loaded = loaded.map_err(|report| not_taken(&report))?;
        if let Some(definition) = loaded.definitions.get(name) {
            let file = definition.file.display();
            let what = format!("cluster {name} is defined in the site, in {file}");
            let remedy = format!(
                "delete {file}, then `reveille cluster destroy {name} --confirm {name}` again"
            );
            return Err(Problem::new(StatusCode::CONFLICT, what).with_remedy(remedy));
        }
        let site = self.controller.snapshot().load();
        let path = path_of(&self.options.state, name);
        let record = site.cluster_record(name);
        if record.is_none() && !path.exists() {
            return Err(unknown(name));
        }
        let released =
            record.map_or_else(Vec::new, |record| record.seats.keys().cloned().collect());
        let removed = remove(path.clone()).await;
        removed.map_err(|error| disk("removing the definition", &path, &error))?;
        if site.spec().cluster(name).is_some() {
            self.take_whole(loaded.settings, loaded.spec, by).await?;
        }
        // The record is the last to go: as long as it is there, whoever asks again finishes what was left.
        let founded = record.map(|record| record.founded).unwrap_or_default();
        let (keyring, whose) = (Arc::clone(&self.keyring), name.clone());
        let forgotten = on_disk(move || keyring.destroy(&whose, founded)).await;
        forgotten.map_err(|error| {
            let what = format!("the secrets of {name} could not be removed: {error}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what)
                .with_remedy("mend the disk and destroy the cluster again")
        })?;
        if record.is_some() {
            let forgotten = Event::ClusterForgotten(name.clone());
            if let Outcome::Refused(why) = self.controller.apply(forgotten).await? {
                return Err(Problem::new(StatusCode::CONFLICT, why));
            }
        }
        tracing::info!(%by, cluster = %name, "a cluster was destroyed");
        self.person("cluster-destroy", by, Some(name.to_string()));
        Ok(ClusterDestroyed {
            name: name.clone(),
            released,
        })
    }

    /// Whether a cluster's definition was applied, and is none of the site's.
    pub(crate) fn is_applied(&self, name: &ClusterName) -> bool {
        path_of(&self.options.state, name).exists()
    }
}

/// A cluster that nobody knows.
pub(crate) fn unknown(name: &ClusterName) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no cluster {name}"))
        .with_remedy("`reveille cluster list` shows those there are")
}

/// What the offered definition would come to, placed by the bastion's own history.
fn planned(loaded: &Loaded, site: &Site) -> Result<ClusterPlan, Problem> {
    if let Err(unplaced) = site.seats_under(&loaded.spec) {
        let placed = loaded.must_place(&unplaced);
        placed.map_err(|report| not_taken(&report))?;
    }
    let mut definitions = loaded.definitions.iter();
    let offered = definitions.find(|(_, definition)| definition.origin == Origin::Offered);
    let (name, definition) = offered.ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "no definition was sent")
            .with_remedy("send one cluster's definition, YAML or JSON, as the body")
    })?;
    let of_it = |warning: &&crate::config::Fault| warning.file == definition.file;
    let warnings = loaded.warnings.iter().filter(of_it);
    let warnings = warnings.map(ToString::to_string).collect();
    let spec = Arc::new(loaded.spec.clone());
    ClusterPlan::of(site, spec, name, warnings, now()).ok_or_else(|| unknown(name))
}

fn not_taken(report: &Report) -> Problem {
    let count = report.faults.len() + report.more;
    let plural = if count == 1 { "" } else { "s" };
    let what = format!("{count} fault{plural}; nothing changed");
    Problem {
        causes: report.faults.iter().map(ToString::to_string).collect(),
        ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what)
            .with_remedy("mend what is named above, and ask again")
    }
}

fn disk(act: &str, path: &Path, error: &io::Error) -> Problem {
    let what = format!("{act}, {}: {error}", path.display());
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what)
        .with_remedy("look at the space and the permissions of the state directory, and ask again")
}

/// Where an applied definition lies, JSON or YAML: JSON is YAML, and one name leaves no two files to choose from.
fn path_of(state: &Path, name: &ClusterName) -> PathBuf {
    state.join(APPLIED).join(format!("{name}.yaml"))
}

/// Does what waits for the disk, away from the threads that answer.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("writing and removing files does not panic, and nobody aborts it")
}

/// Writes a definition, whole and durable or not at all.
async fn keep(path: PathBuf, text: Arc<str>) -> io::Result<()> {
    on_disk(move || write(&path, &text)).await
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    // The directory may be new too.
    for above in directory.ancestors().take(2) {
        File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// Removes a definition, durably; one that is gone stays gone.
async fn remove(path: PathBuf) -> io::Result<()> {
    on_disk(move || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => done?,
        }
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })
    .await
}
