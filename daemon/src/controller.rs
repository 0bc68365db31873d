//! The single writer. Events go in; each is applied to the newest site, made durable, and only then
//! published and answered. Readers take snapshots and never wait.
//!
//! Events that queue up while a commit is on its way to the disk are committed together, so a storm
//! costs one disk wait for many events.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use netboot::event::{Change, Event, Outcome};
use netboot::net::Timestamp;
use netboot::site::Site;
use tokio::sync::{mpsc, oneshot};

/// Events that may wait for the writer.
const QUEUE_MAX: usize = 1024;
/// Events that share one commit.
const GROUP_MAX: usize = 256;

/// The newest published site. Cheap to clone; [`Snapshot::load`] takes no lock.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<ArcSwap<Site>>);

impl Snapshot {
    /// Publishes a first site.
    #[must_use]
    pub fn new(site: Site) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(site)))
    }

    /// The newest site, unchanging while it is held.
    #[must_use]
    pub fn load(&self) -> Arc<Site> {
        self.0.load_full()
    }

    /// The newest site for the length of one packet: cheaper than [`Snapshot::load`], not to be held
    /// across an await.
    #[must_use]
    pub fn peek(&self) -> arc_swap::Guard<Arc<Site>> {
        self.0.load()
    }
}

/// An event that was not written down: nobody may rely on it.
#[derive(Debug, thiserror::Error)]
pub enum NotWritten {
    /// The store refused; the old site stays in force.
    #[error("writing the event down failed, nothing changed: {0}")]
    Store(String),
    /// The daemon is stopping.
    #[error("the daemon is stopping; ask again when it is back")]
    Stopping,
}

/// Sends events to the writer.
#[derive(Clone, Debug)]
pub struct Controller {
    queue: mpsc::Sender<Request>,
    snapshot: Snapshot,
}

#[derive(Debug)]
struct Request {
    /// `None` only asks whether the writer lives.
    event: Option<Event>,
    answer: oneshot::Sender<Result<Outcome, NotWritten>>,
}

impl Controller {
    /// Starts the writer. `commit` makes the changes of a new site durable before it returns; it may
    /// block, and runs on a thread for that. The writer ends when every `Controller` is dropped.
    pub fn start<Commit>(site: Site, mut commit: Commit) -> (Self, tokio::task::JoinHandle<()>)
    where
        Commit: FnMut(&Site, &[Change]) -> Result<(), String> + Send + 'static,
    {
        let (queue, mut requests) = mpsc::channel(QUEUE_MAX);
        let snapshot = Snapshot::new(site);
        let published = snapshot.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut group = Vec::new();
            while requests.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
                write_group(&published, &mut commit, std::mem::take(&mut group));
            }
        });
        (Self { queue, snapshot }, writer)
    }

    /// The published sites.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Applies `event`. When this returns `Ok`, what it changed is on disk and published.
    ///
    /// # Errors
    /// [`NotWritten`] when nothing changed.
    pub async fn apply(&self, event: Event) -> Result<Outcome, NotWritten> {
        self.ask(Some(event)).await
    }

    /// Waits until the writer has taken everything sent before.
    ///
    /// # Errors
    /// [`NotWritten::Stopping`] when it is gone.
    pub async fn alive(&self) -> Result<(), NotWritten> {
        self.ask(None).await.map(|_| ())
    }

    async fn ask(&self, event: Option<Event>) -> Result<Outcome, NotWritten> {
        let (answer, wait) = oneshot::channel();
        self.queue
            .send(Request { event, answer })
            .await
            .map_err(|_| NotWritten::Stopping)?;
        wait.await.map_err(|_| NotWritten::Stopping)?
    }

    /// Applies an event nobody waits for; dropped, and `false` returned, when the queue is full.
    #[must_use]
    pub fn tell(&self, event: Event) -> bool {
        let (answer, _) = oneshot::channel();
        let request = Request {
            event: Some(event),
            answer,
        };
        self.queue.try_send(request).is_ok()
    }
}

/// Now, as the rooms that touch the world hand it to those that don't.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn write_group<Commit>(published: &Snapshot, commit: &mut Commit, group: Vec<Request>)
where
    Commit: FnMut(&Site, &[Change]) -> Result<(), String>,
{
    let mut site = Site::clone(&published.load());
    let mut changes: Vec<Change> = Vec::new();
    let mut answers = Vec::with_capacity(group.len());
    for Request { event, answer } in group {
        let Some(event) = event else {
            answers.push((answer, Outcome::Done));
            continue;
        };
        let applied = site.apply(event, now());
        site = applied.site;
        for change in applied.changes {
            if !changes.contains(&change) {
                changes.push(change);
            }
        }
        answers.push((answer, applied.outcome));
    }
    let written = if changes.is_empty() {
        Ok(())
    } else {
        commit(&site, &changes)
    };
    if written.is_ok() {
        published.0.store(Arc::new(site));
    }
    for (answer, outcome) in answers {
        // Nobody waits for an event that was told, or whose asker hung up.
        let _ = answer.send(written.clone().map(|()| outcome).map_err(NotWritten::Store));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_site_whose_change_did_not_reach_the_disk_is_never_seen() {
        let (controller, _writer) =
            Controller::start(Site::default(), |_, _| Err("disk full".to_owned()));
        let before = controller.snapshot().load().generation();
        let event = Event::Sighted {
            mac: "52:54:00:aa:00:01".parse().unwrap(),
            network: "lab".parse().unwrap(),
            uuid: None,
        };
        assert!(
            controller.apply(event).await.is_ok(),
            "a sighting is not durable and needs no disk"
        );
        assert_eq!(controller.snapshot().load().generation(), before);
    }
}
