//! DHCP on the provisioning links: UDP 67 and 4011.
//!
//! Each link has a thread and sockets of its own, bound to that link: what was heard on one is never
//! answered on another.
//!
//! ```text
//!   links, site --presence--> one thread a link: receive a batch, ask netboot::dhcp::answer, send a batch
//!                               | leases of the pool: written down first, then sent
//!                               | facts to the ledger, sightings to the controller: never waited for
//! ```
//!
//! Ugly fact. A socket bound to a link that was deleted is dead for ever, also when a link of the
//! same name appears again: the kernel's index tells them apart.

mod counters;
mod post;
mod serve;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netboot::dhcp::LinkContext;
use netboot::net::LinkName;
use netboot::site::Site;
use netboot::spec::Mode;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use crate::controller::Controller;
use crate::ledger::Ledger;
use crate::link::{Link, Links, met_at};
use crate::presence::{Attend, Faults, Presence};
pub use counters::Counters;

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
    presence: Presence<Served>,
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
    let opener = Opener {
        controller,
        ledger,
        http_port,
        counters: Arc::clone(&counters),
    };
    let (presence, following) = Presence::begin(opener, links);
    (Dhcp { counters, presence }, following)
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
        self.presence.faults()
    }

    /// The links that are served now.
    #[must_use]
    pub fn served(&self) -> BTreeSet<LinkName> {
        let served = self.presence.served().into_iter();
        served.map(|served| served.context.name).collect()
    }
}

struct Opener {
    controller: Controller,
    ledger: Ledger,
    http_port: u16,
    counters: Arc<Counters>,
}

/// A link's thread.
struct Running {
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

impl Attend for Opener {
    const WHAT: &'static str = "DHCP";
    type Place = Served;
    type Running = Running;

    fn wanted(&self, links: &Links) -> (Vec<Served>, Faults) {
        let site = self.controller.snapshot().load();
        let (wanted, faults) = wanted(&site, links, self.http_port);
        (wanted.into_values().collect(), faults)
    }

    fn link(place: &Served) -> &LinkName {
        &place.context.name
    }

    fn open(&mut self, served: &Served) -> anyhow::Result<Running> {
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
        info!(link = %served.context.name, server = %served.context.server, "serving DHCP");
        Ok(Running {
            stop,
            thread: Some(thread),
        })
    }

    fn is_alive(running: &Running) -> bool {
        let thread = running.thread.as_ref();
        thread.is_some_and(|thread| !thread.is_finished())
    }
}

/// The links to serve now, and why others are not.
pub(crate) fn wanted(
    site: &Site,
    links: &Links,
    http_port: u16,
) -> (BTreeMap<LinkName, Served>, Faults) {
    let (mut wanted, mut faults) = (BTreeMap::new(), Faults::new());
    for network in site.spec().networks().filter(|n| n.mode != Mode::Off) {
        let name = &network.link;
        match met_at(site.spec(), links, name) {
            Ok((link, server)) => {
                wanted.insert(name.clone(), served(name, link, server, http_port));
            }
            Err(fault) => {
                faults.insert(name.clone(), fault);
            }
        }
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
