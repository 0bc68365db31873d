//! DNS on the provisioning links, and on those that the site makes public: port 53, UDP and TCP.
//!
//! ```text
//!   Place (link, address, side) -- a thread: receive a batch --> ours?   netboot::zone answers
//!                                                            --> kept?   the cache answers
//!                                                            --> else    a task asks the servers of `forward`
//! ```
//!
//! Nobody but the machines of a place's networks, and this host, has names of others looked up. Everybody else is
//! refused, at a limited rate, or answered from the outside's view on public links.

mod book;
mod cache;
pub mod command;
mod forward;
mod limit;
mod serve;
mod tcp;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netboot::net::LinkName;
use netboot::site::Site;
use netboot::zone::{DnsMode, Side};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use crate::controller::Controller;
use crate::link::{Front, Links, fronts};
use crate::presence::{AbortOnDrop, Attend, Faults, Presence};
pub(crate) use book::names;
use forward::Forwarder;
use serve::Desk;

const PORT: u16 = 53;

/// An address that is served, and for whom; names of others are looked up for its clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    front: Front,
    side: Side,
}

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct Dns {
    counters: Arc<Counters>,
    presence: Presence<Place>,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Received,
    Own,
    Kept,
    Asked,
    Refused,
    Malformed,
    Limited,
    Dropped,
}

const COUNTS: [(Count, &str); 8] = [
    (Count::Received, "received"),
    (Count::Own, "own"),
    (Count::Kept, "cached"),
    (Count::Asked, "forwarded"),
    (Count::Refused, "refused"),
    (Count::Malformed, "malformed"),
    (Count::Limited, "limited"),
    (Count::Dropped, "dropped"),
];

/// Questions since the start, by what became of them.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; COUNTS.len()]);

impl Counters {
    fn add(&self, what: Count, count: u64) {
        self.0[what as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Each by its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let read = |what: Count| self.0[what as usize].load(Ordering::Relaxed);
        COUNTS.iter().map(move |(what, name)| (*name, read(*what)))
    }
}

/// Starts serving every link that the site names, as soon as the kernel has it.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(controller: Controller, links: watch::Receiver<Arc<Links>>) -> (Dns, JoinHandle<()>) {
    let counters = Arc::<Counters>::default();
    let desk = Desk {
        book: book::Book::new(controller.clone(), links.clone()),
        forwarder: Arc::new(Forwarder::new()),
        counters: Arc::clone(&counters),
    };
    let opener = Opener {
        controller,
        desk: Arc::new(desk),
    };
    let (presence, following) = Presence::begin(opener, links);
    (Dns { counters, presence }, following)
}

impl Dns {
    /// What became of every question since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why a link that should be served is not, by link.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<LinkName, String> {
        self.presence.faults()
    }
}

struct Opener {
    controller: Controller,
    desk: Arc<Desk>,
}

/// A place's thread and its TCP task.
struct Running {
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
    tcp: AbortOnDrop,
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
    const WHAT: &'static str = "DNS";
    type Place = Place;
    type Running = Running;

    fn wanted(&self, links: &Links) -> (Vec<Place>, Faults) {
        let (wanted, faults) = wanted(&self.controller.snapshot().load(), links);
        (wanted.into_iter().collect(), faults)
    }

    fn link(place: &Place) -> &LinkName {
        &place.front.link
    }

    fn open(&mut self, place: &Place) -> anyhow::Result<Running> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (udp, tcp) = (serve::open(place)?, tcp::open(place)?);
        let server = serve::Server::new(place.clone(), udp, Arc::clone(&self.desk));
        let until = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("dns {}", place.front.link))
            .spawn(move || server.run(&until))?;
        let tcp = tcp::run(Arc::new(place.clone()), tcp, Arc::clone(&self.desk));
        info!(link = %place.front.link, address = %place.front.address, side = %place.side, "serving DNS");
        Ok(Running {
            stop,
            thread: Some(thread),
            tcp: AbortOnDrop(tokio::spawn(tcp)),
        })
    }

    fn is_alive(running: &Running) -> bool {
        let thread = running.thread.as_ref();
        thread.is_some_and(|thread| !thread.is_finished()) && running.tcp.is_alive()
    }

    async fn end(mut running: Running) {
        running.tcp.end().await;
        // The thread ends as this is dropped, which waits for it.
        drop(running);
    }
}

/// The places to serve now, and why others are not.
fn wanted(site: &Site, links: &Links) -> (BTreeSet<Place>, Faults) {
    let (mut wanted, mut faults) = (BTreeSet::new(), Faults::new());
    let dns = site.spec().dns();
    if dns.mode != DnsMode::Serve {
        return (wanted, faults);
    }
    wanted.extend(fronts(site.spec(), links).into_iter().map(|front| Place {
        front,
        side: Side::Inside,
    }));
    for name in &dns.public {
        let Some(link) = links.get(name.as_str()) else {
            let fault =
                format!("there is no link {name}; names are served on it as soon as it appears");
            faults.insert(name.clone(), fault);
            continue;
        };
        wanted.extend(link.addresses.iter().map(|address| Place {
            front: Front {
                link: name.clone(),
                index: link.index,
                address: address.addr(),
                clients: Vec::new(),
            },
            side: Side::Outside,
        }));
    }
    (wanted, faults)
}
