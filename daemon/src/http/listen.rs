//! Where boot HTTP listens: on the bastion's address in each provisioning network, on that link alone,
//! plain and over TLS. Where Talos machines boot, the port for their events is opened beside it.
//!
//! A task follows the kernel's links and the site's networks. A place that is gone is given up (its
//! connections end by themselves), a new one is taken, one that can't be had yet is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use ipnet::Ipv4Net;
use netboot::net::LinkName;
use netboot::site::Site;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{Counters, Origin, Parts, Seat, Server};
use crate::link::Links;
use crate::probe::talos::sink::{self, Sink};

const LOOK_AT_SITE: Duration = Duration::from_secs(1);
/// Connections that the kernel completes before we accept them: a rack's worth.
const BACKLOG: i32 = 1024;

/// The running listeners; dropping it closes them.
pub struct Http {
    server: Arc<Server>,
    state: Arc<Mutex<State>>,
    following: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    served: BTreeSet<SocketAddrV4>,
    faults: BTreeMap<LinkName, String>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    link: LinkName,
    /// A link that was deleted and made again keeps its name, but a socket bound to it is dead.
    index: u32,
    address: SocketAddrV4,
    door: Door,
}

/// What is spoken at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    Plain,
    Tls,
    /// gRPC of Talos' event sink.
    Events,
}

/// Starts listening on every link that the site's networks name, as soon as the kernel has it.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(mut parts: Parts, links: watch::Receiver<Arc<Links>>) -> (Http, JoinHandle<()>) {
    parts.limits.connections_max = room_for(parts.limits.connections_max);
    let server = Arc::new(Server::new(parts));
    let state = Arc::new(Mutex::new(State::default()));
    let follower = Follower {
        server: Arc::clone(&server),
        state: Arc::clone(&state),
        running: BTreeMap::new(),
    };
    let following = tokio::spawn(follower.follow(links));
    let running = Http {
        server,
        state,
        following: following.abort_handle(),
    };
    (running, following)
}

impl Http {
    /// What was answered and refused since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.server.counters
    }

    /// Where Talos machines tell how far they are.
    #[must_use]
    pub fn sink(&self) -> &Sink {
        &self.server.sink
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// Why a link that should be served is not, by link.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<LinkName, String> {
        self.state().faults.clone()
    }

    /// The addresses that are listened on now.
    #[must_use]
    pub fn served(&self) -> BTreeSet<SocketAddrV4> {
        self.state().served.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.following.abort();
    }
}

struct Follower {
    server: Arc<Server>,
    state: Arc<Mutex<State>>,
    running: BTreeMap<Place, Listening>,
}

/// An accepting task that ends with this value.
struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    async fn follow(mut self, mut links: watch::Receiver<Arc<Links>>) {
        let mut look = tokio::time::interval(LOOK_AT_SITE);
        loop {
            let seen = Arc::clone(&links.borrow_and_update());
            self.converge(&seen);
            tokio::select! {
                changed = links.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
        }
    }

    fn converge(&mut self, links: &Links) {
        let site = self.server.controller.snapshot().load();
        let (wanted, mut faults) = wanted(&site, links, self.server.ports);
        self.running.retain(|place, _| wanted.contains(place));
        for place in wanted {
            if self.running.contains_key(&place) {
                continue;
            }
            match self.open(&place) {
                Ok(listening) => {
                    info!(link = %place.link, address = %place.address, door = ?place.door, "serving boot HTTP");
                    self.running.insert(place, listening);
                }
                Err(error) => {
                    faults.insert(place.link.clone(), format!("{error:#}"));
                }
            }
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (link, fault) in &faults {
            if state.faults.get(link) != Some(fault) {
                warn!(link = %link, "not serving boot HTTP: {fault}");
            }
        }
        *state = State {
            served: self.running.keys().map(|place| place.address).collect(),
            faults,
        };
    }

    fn open(&self, place: &Place) -> anyhow::Result<Listening> {
        let listener = open(place).with_context(|| {
            format!(
                "listening on {}: see with `ss -ltnp` who else does",
                place.address
            )
        })?;
        let tls = match place.door {
            Door::Tls => Some(self.server.ca.acceptor(IpAddr::V4(*place.address.ip()))?),
            Door::Plain | Door::Events => None,
        };
        let accepting = accept(Arc::clone(&self.server), listener, place.clone(), tls);
        Ok(Listening(tokio::spawn(accepting)))
    }
}

/// As many connections as there are descriptors for: each may hold a socket and a file.
fn room_for(connections: usize) -> usize {
    /// For everything else of the daemon.
    const ELSEWHERE: u64 = 256;
    let wanted = connections as u64 * 2 + ELSEWHERE;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return connections;
    };
    let limit = wanted.max(soft).min(hard);
    // Refused only to a process without the right to its own hard limit; then the soft one stands.
    let limit = setrlimit(Resource::RLIMIT_NOFILE, limit, hard).map_or(soft, |()| limit);
    let room = usize::try_from(limit.saturating_sub(ELSEWHERE) / 2).unwrap_or(usize::MAX);
    if room < connections {
        warn!(
            room,
            "fewer connections than wanted: raise LimitNOFILE to {wanted}"
        );
    }
    room.min(connections)
}

/// The places to listen on now, and why some networks have none.
fn wanted(
    site: &Site,
    links: &Links,
    ports: super::Ports,
) -> (BTreeSet<Place>, BTreeMap<LinkName, String>) {
    let (mut wanted, mut faults) = (BTreeSet::new(), BTreeMap::new());
    let events = sink::is_wanted(site.spec());
    for network in site.spec().networks() {
        let name = &network.link;
        let Some(link) = links.get(name.as_str()) else {
            faults.insert(
                name.clone(),
                format!("there is no link {name}; it is served as soon as it appears"),
            );
            continue;
        };
        // A relayed network has no address of ours in it: its machines reach the link's own.
        let address = match (
            Ipv4Net::new(network.subnet.network(), network.subnet.prefix()),
            network.relayed,
        ) {
            (Ok(subnet), false) => link.address_in(subnet),
            _ => link.addresses.first().map(Ipv4Net::addr),
        };
        let Some(address) = address else {
            faults.insert(
                name.clone(),
                format!(
                    "link {name} has no address in {}; give it one",
                    network.subnet
                ),
            );
            continue;
        };
        let events = events.then_some((ports.events, Door::Events));
        let boot = [(ports.plain, Door::Plain), (ports.tls, Door::Tls)];
        for (port, door) in boot.into_iter().chain(events) {
            let address = SocketAddrV4::new(address, port);
            wanted.insert(Place {
                link: name.clone(),
                index: link.index,
                address,
                door,
            });
        }
    }
    (wanted, faults)
}

/// Accepts until it is dropped; connections under way then finish by themselves.
async fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    place: Place,
    tls: Option<TlsAcceptor>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                // Out of descriptors, mostly: the pause lets connections end instead of spinning.
                warn!(link = %place.link, %error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer: Ipv4Addr = match peer {
            IpAddr::V4(peer) => peer,
            IpAddr::V6(_) => continue,
        };
        if place.door == Door::Events {
            tokio::spawn(Arc::clone(&server.sink).serve(stream, peer));
            continue;
        }
        match Seat::take(&server, peer) {
            Ok(seat) => {
                let origin = Origin {
                    peer,
                    local: place.address,
                    link: place.link.clone(),
                };
                tokio::spawn(seat.serve(stream, origin, tls.clone()));
            }
            Err(refusal) => {
                server.counters.refuse(refusal);
                debug!(%peer, reason = refusal.word(), "connection refused");
            }
        }
    }
}

/// A listening socket that hears one link alone. What is set on it, accepted ones inherit.
fn open(place: &Place) -> std::io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // The address alone doesn't do: Linux accepts a packet for any of its addresses on any link.
    socket.bind_device(Some(place.link.as_str().as_bytes()))?;
    socket.bind(&place.address.into())?;
    socket.set_tcp_nodelay(true)?;
    // A machine that lost power says nothing: after a minute and a half its connection goes too.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(90)))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
