//! DHCP on the provisioning links: UDP 67 and 4011.
//!
//! Each link has a thread and sockets of its own, bound to that link: what was heard on one is never
//! answered on another. A task follows the kernel's links and the site's networks, and starts, moves
//! and stops those threads.
//!
//! ```text
//!   links, site --follow--> one thread a link: receive a batch, ask netboot::dhcp::answer, send a batch
//!                               | leases of the pool: written down first, then sent
//!                               | facts to the ledger, sightings to the controller: never waited for
//! ```
//!
//! Ugly facts. A socket bound to a link that was deleted is dead for ever, also when a link of the
//! same name appears again: the kernel's index tells them apart. The site's snapshot does not call
//! when its files were read again, so the task looks at it every second.

mod counters;
mod post;
mod serve;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use netboot::dhcp::LinkContext;
use netboot::net::LinkName;
use netboot::site::Site;
use netboot::spec::Mode;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{info, warn};

use crate::controller::Controller;
use crate::ledger::Ledger;
use crate::link::{Link, Links};
pub use counters::Counters;

const LOOK_AT_SITE: Duration = Duration::from_secs(1);

/// A link that is served, and as what.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Served {
    pub(crate) context: LinkContext,
    pub(crate) index: u32,
    pub(crate) mac: [u8; 6],
}

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct Dhcp {
    counters: Arc<Counters>,
    state: Arc<Mutex<State>>,
    following: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    served: BTreeSet<LinkName>,
    faults: BTreeMap<LinkName, String>,
}

/// Starts serving every link that the site's networks name, as soon as the kernel has it. `http_port`
/// is where the boot URLs lead.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(
    controller: Controller,
    ledger: Ledger,
    links: watch::Receiver<Arc<Links>>,
    http_port: u16,
) -> (Dhcp, JoinHandle<()>) {
    let counters = Arc::new(Counters::default());
    let state = Arc::new(Mutex::new(State::default()));
    let follower = Follower {
        controller,
        ledger,
        http_port,
        counters: Arc::clone(&counters),
        state: Arc::clone(&state),
        running: BTreeMap::new(),
    };
    let following = tokio::spawn(follower.follow(links));
    let running = Dhcp {
        counters,
        state,
        following: following.abort_handle(),
    };
    (running, following)
}

impl Dhcp {
    /// What was received, answered and thrown away since the start.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Why a link that should be served is not, by link.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<LinkName, String> {
        self.state().faults.clone()
    }

    /// The links that are served now.
    #[must_use]
    pub fn served(&self) -> BTreeSet<LinkName> {
        self.state().served.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        self.following.abort();
    }
}

struct Follower {
    controller: Controller,
    ledger: Ledger,
    http_port: u16,
    counters: Arc<Counters>,
    state: Arc<Mutex<State>>,
    running: BTreeMap<LinkName, Running>,
}

struct Running {
    served: Served,
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // An eventfd takes a write until its counter overflows, which one write does not do.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Follower {
    async fn follow(mut self, mut links: watch::Receiver<Arc<Links>>) {
        let mut look = tokio::time::interval(LOOK_AT_SITE);
        loop {
            self.converge(&links.borrow_and_update().clone());
            tokio::select! {
                changed = links.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
        }
    }

    fn converge(&mut self, links: &Links) {
        let site = self.controller.snapshot().load();
        let (wanted, mut faults) = wanted(&site, links, self.http_port);
        self.running.retain(|name, running| {
            let alive = running
                .thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished());
            alive && wanted.get(name) == Some(&running.served)
        });
        for (name, served) in wanted {
            if self.running.contains_key(&name) {
                continue;
            }
            match self.run(served) {
                Ok(running) => {
                    info!(link = %name, server = %running.served.context.server, "serving DHCP");
                    self.running.insert(name, running);
                }
                Err(error) => {
                    faults.insert(name, format!("{error:#}"));
                }
            }
        }
        let served = self.running.keys().cloned().collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, fault) in &faults {
            if state.faults.get(name) != Some(fault) {
                warn!(link = %name, "not serving DHCP: {fault}");
            }
        }
        *state = State { served, faults };
    }

    fn run(&self, served: Served) -> anyhow::Result<Running> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let sockets = socket::open(served.context.name.as_str(), served.index)?;
        let server = serve::Server::new(
            served.clone(),
            sockets,
            self.controller.clone(),
            self.ledger.clone(),
            Arc::clone(&self.counters),
        );
        let until = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("dhcp {}", served.context.name))
            .spawn(move || server.run(&until))?;
        Ok(Running {
            served,
            stop,
            thread: Some(thread),
        })
    }
}

/// The links to serve now, and why others are not.
pub(crate) fn wanted(
    site: &Site,
    links: &Links,
    http_port: u16,
) -> (BTreeMap<LinkName, Served>, BTreeMap<LinkName, String>) {
    let (mut wanted, mut faults) = (BTreeMap::new(), BTreeMap::new());
    for network in site.spec().networks().filter(|n| n.mode != Mode::Off) {
        let name = &network.link;
        let Some(link) = links.get(name.as_str()) else {
            faults.insert(
                name.clone(),
                format!("there is no link {name}; it is served as soon as it appears"),
            );
            continue;
        };
        // A relayed network has no address of ours in it; its link's own network decides, or the
        // link's first address.
        let direct = site.spec().network_on(name, None);
        let server = match direct {
            Some(direct) => Ipv4Net::new(direct.subnet.network(), direct.subnet.prefix())
                .ok()
                .and_then(|subnet| link.address_in(subnet)),
            None => link.addresses.first().map(Ipv4Net::addr),
        };
        let Some(server) = server else {
            let subnet = direct.map_or(network.subnet, |direct| direct.subnet);
            faults.insert(
                name.clone(),
                format!("link {name} has no address in {subnet}; give it one"),
            );
            continue;
        };
        wanted.insert(name.clone(), served(name, link, server, http_port));
    }
    (wanted, faults)
}

fn served(name: &LinkName, link: &Link, server: std::net::Ipv4Addr, http_port: u16) -> Served {
    Served {
        context: LinkContext {
            name: name.clone(),
            server,
            http_port,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        },
        index: link.index,
        mac: link.mac,
    }
}
