//! A server's presence: it is wherever the site and the kernel's links want it, as both change.
//!
//! ```text
//!   links, site --wanted--> places --minus what runs--> open: the place is served, or has a fault
//!                                  --what runs, minus--> ended first, and with it its sockets
//! ```
//!
//! Links come, go and change address while the daemon runs, and a reload may name others. A place that can't be had (the
//! port is somebody else's, the link has no address) is tried again every second and shown by `status` until it can.
//!
//! Ugly fact. The site's snapshot does not call when its files were read again, so it is looked at every second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netboot::net::LinkName;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::warn;

use crate::link::Links;

const LOOK_AT_SITE: Duration = Duration::from_secs(1);

/// Why a link that should be served is not, by link.
pub(crate) type Faults = BTreeMap<LinkName, String>;

/// A server that has places.
pub(crate) trait Attend: Send + 'static {
    /// What is served, for the log.
    const WHAT: &'static str;
    /// Where, and everything else that a running one can't be told later.
    type Place: Clone + PartialEq + Send + 'static;
    /// What serves a place until it is dropped.
    type Running: Send + 'static;

    /// The places to serve now, each once, and why some links have none.
    fn wanted(&self, links: &Links) -> (Vec<Self::Place>, Faults);

    /// The link whose fault it is when a place can't be had.
    fn link(place: &Self::Place) -> &LinkName;

    /// Serves a place, and says so in the log.
    ///
    /// # Errors
    /// It can't be had, in words for `status`.
    fn open(&mut self, place: &Self::Place) -> anyhow::Result<Self::Running>;

    /// Whether it still serves; one that ended by itself is opened again.
    fn is_alive(running: &Self::Running) -> bool;

    /// Ends it, and returns when its sockets are closed: the next may want the same port.
    fn end(running: Self::Running) -> impl Future<Output = ()> + Send {
        drop(running);
        std::future::ready(())
    }
}

/// A task that ends with this value.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl AbortOnDrop {
    pub(crate) fn is_alive(&self) -> bool {
        !self.0.is_finished()
    }

    /// Ends it, and returns when everything that it held is gone; an aborted task alone is gone some time later.
    pub(crate) async fn end(&mut self) {
        self.0.abort();
        // How it ended is nobody's business any more.
        let _ = (&mut self.0).await;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The places of a server; dropping it gives them up.
#[derive(Debug)]
pub(crate) struct Presence<Place> {
    state: Arc<Mutex<State<Place>>>,
    following: AbortHandle,
}

#[derive(Debug)]
struct State<Place> {
    served: Vec<Place>,
    faults: Faults,
}

impl<Place: Clone + PartialEq + Send + 'static> Presence<Place> {
    /// Begins to serve. The second value is the task that follows links and site; that it ends before the first is dropped
    /// is a fault.
    pub(crate) fn begin<Server: Attend<Place = Place>>(
        server: Server,
        links: watch::Receiver<Arc<Links>>,
    ) -> (Self, JoinHandle<()>) {
        let state = Arc::new(Mutex::new(State {
            served: Vec::new(),
            faults: Faults::new(),
        }));
        let follower = Follower {
            server,
            running: Vec::new(),
            state: Arc::clone(&state),
        };
        let following = tokio::spawn(follower.follow(links));
        let presence = Self {
            state,
            following: following.abort_handle(),
        };
        (presence, following)
    }

    /// Why a link that should be served is not, by link.
    pub(crate) fn faults(&self) -> Faults {
        lock(&self.state).faults.clone()
    }

    /// The places that are served now.
    pub(crate) fn served(&self) -> Vec<Place> {
        lock(&self.state).served.clone()
    }
}

impl<Place> Drop for Presence<Place> {
    fn drop(&mut self) {
        self.following.abort();
    }
}

struct Follower<Server: Attend> {
    server: Server,
    running: Vec<(Server::Place, Server::Running)>,
    state: Arc<Mutex<State<Server::Place>>>,
}

impl<Server: Attend> Follower<Server> {
    async fn follow(mut self, mut links: watch::Receiver<Arc<Links>>) {
        let mut look = tokio::time::interval(LOOK_AT_SITE);
        loop {
            let known = Arc::clone(&links.borrow_and_update());
            self.converge(&known).await;
            tokio::select! {
                changed = links.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
        }
    }

    async fn converge(&mut self, links: &Links) {
        let (wanted, mut faults) = self.server.wanted(links);
        let stays = |(place, running): &(Server::Place, Server::Running)| {
            wanted.contains(place) && Server::is_alive(running)
        };
        let (stay, go) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(stays);
        self.running = stay;
        // First: a place that takes over an address of one that is gone finds it free.
        let go: Vec<(Server::Place, Server::Running)> = go;
        for (_, running) in go {
            Server::end(running).await;
        }
        for place in wanted {
            if self.running.iter().any(|(served, _)| *served == place) {
                continue;
            }
            match self.server.open(&place) {
                Ok(running) => self.running.push((place, running)),
                Err(error) => {
                    drop(faults.insert(Server::link(&place).clone(), format!("{error:#}")))
                }
            }
        }
        let served = self.running.iter().map(|(place, _)| place.clone());
        let served = served.collect();
        let mut state = lock(&self.state);
        for (link, fault) in &faults {
            if state.faults.get(link) != Some(fault) {
                warn!(%link, "not serving {}: {fault}; tried again every second", Server::WHAT);
            }
        }
        *state = State { served, faults };
    }
}

fn lock<Place>(state: &Mutex<State<Place>>) -> MutexGuard<'_, State<Place>> {
    // It is replaced whole, so a panic leaves none half written.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
