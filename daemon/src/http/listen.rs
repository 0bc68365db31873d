//! Where boot HTTP listens: on the bastion's address in each provisioning network, on that link alone,
//! plain and over TLS. Where Talos machines boot, the port for their events is opened beside it.
//! The connections of a place that is given up end by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use netboot::net::LinkName;
use netboot::site::Site;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{Counters, Origin, Parts, Seat, Server};
use crate::link::{Links, met_at};
use crate::presence::{AbortOnDrop, Attend, Faults, Presence};
use crate::probe::talos::sink::{self, Sink};

/// Connections that the kernel completes before we accept them: a rack's worth.
const BACKLOG: i32 = 1024;

/// The running listeners; dropping it closes them.
pub struct Http {
    server: Arc<Server>,
    presence: Presence<Place>,
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
    let (presence, following) = Presence::begin(Opener(Arc::clone(&server)), links);
    (Http { server, presence }, following)
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
        self.presence.faults()
    }

    /// The addresses that are listened on now.
    #[must_use]
    pub fn served(&self) -> BTreeSet<SocketAddrV4> {
        let served = self.presence.served().into_iter();
        served.map(|place| place.address).collect()
    }
}

struct Opener(Arc<Server>);

impl Attend for Opener {
    const WHAT: &'static str = "boot HTTP";
    type Place = Place;
    type Running = AbortOnDrop;

    fn wanted(&self, links: &Links) -> (Vec<Place>, Faults) {
        let site = self.0.controller.snapshot().load();
        let (wanted, faults) = wanted(&site, links, self.0.ports);
        (wanted.into_iter().collect(), faults)
    }

    fn link(place: &Place) -> &LinkName {
        &place.link
    }

    fn open(&mut self, place: &Place) -> anyhow::Result<AbortOnDrop> {
        let listener = open(place).with_context(|| {
            format!(
                "listening on {}: see with `ss -ltnp` who else does",
                place.address
            )
        })?;
        let tls = match place.door {
            Door::Tls => Some(self.0.ca.acceptor(IpAddr::V4(*place.address.ip()))?),
            Door::Plain | Door::Events => None,
        };
        info!(link = %place.link, address = %place.address, door = ?place.door, "serving boot HTTP");
        let accepting = accept(Arc::clone(&self.0), listener, place.clone(), tls);
        Ok(AbortOnDrop(tokio::spawn(accepting)))
    }

    fn is_alive(running: &AbortOnDrop) -> bool {
        running.is_alive()
    }

    async fn end(mut running: AbortOnDrop) {
        running.end().await;
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
fn wanted(site: &Site, links: &Links, ports: super::Ports) -> (BTreeSet<Place>, Faults) {
    let (mut wanted, mut faults) = (BTreeSet::new(), Faults::new());
    let events = sink::is_wanted(site.spec());
    for network in site.spec().networks() {
        let name = &network.link;
        let (link, address) = match met_at(site.spec(), links, name) {
            Ok(met) => met,
            Err(fault) => {
                faults.insert(name.clone(), fault);
                continue;
            }
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
