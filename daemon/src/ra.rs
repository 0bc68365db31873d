//! Router solicitations on the provisioning links are answered "no router", so that no boot stage
//! waits for one; see `netboot::ra` for the words and for when this is silent.
//!
//! One task a link, with a raw ICMPv6 socket bound to it. The kernel refuses the socket without CAP_NET_RAW,
//! and a link without a link-local address has nothing to speak from: neither keeps anything else from working.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use netboot::attempt::Fact;
use netboot::net::LinkName;
use netboot::ra::{Heard, NO_ROUTER, Silence, hear};
use netboot::site::Site;
use netboot::spec::Mode;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::controller::{Controller, now};
use crate::ledger::Ledger;
use crate::link::Links;
use crate::presence::{AbortOnDrop, Attend, Faults, Presence};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MESSAGE_MAX: usize = 1500;
/// A flood of solicitations gets no flood of answers.
const ANSWERS_PER_SECOND: u64 = 200;

/// The running tasks; dropping it stops them.
#[derive(Debug)]
pub struct QuietIpv6 {
    counters: Arc<Counters>,
    _presence: Presence<Place>,
}

#[derive(Clone, Debug, PartialEq)]
struct Place {
    link: LinkName,
    /// A link that was deleted and made again keeps its name, but a socket bound to it is dead.
    index: u32,
}

/// Solicitations since the start, by what became of them.
#[derive(Debug, Default)]
pub struct Counters {
    answered: AtomicU64,
    withheld: AtomicU64,
}

impl Counters {
    /// Answered "no router".
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Left to the router that speaks there, or too many at once.
    #[must_use]
    pub fn withheld(&self) -> u64 {
        self.withheld.load(Ordering::Relaxed)
    }
}

/// Starts answering on every link whose network asks for it.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(
    controller: Controller,
    ledger: Ledger,
    links: watch::Receiver<Arc<Links>>,
) -> (QuietIpv6, JoinHandle<()>) {
    let counters = Arc::new(Counters::default());
    let opener = Opener {
        controller,
        ledger,
        counters: Arc::clone(&counters),
    };
    let (presence, following) = Presence::begin(opener, links);
    let running = QuietIpv6 {
        counters,
        _presence: presence,
    };
    (running, following)
}

impl QuietIpv6 {
    /// What was answered and what was not.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

struct Opener {
    controller: Controller,
    ledger: Ledger,
    counters: Arc<Counters>,
}

impl Attend for Opener {
    const WHAT: &'static str = "quiet IPv6";
    type Place = Place;
    type Running = AbortOnDrop;

    fn wanted(&self, links: &Links) -> (Vec<Place>, Faults) {
        (
            wanted(&self.controller.snapshot().load(), links),
            Faults::new(),
        )
    }

    fn link(place: &Place) -> &LinkName {
        &place.link
    }

    fn open(&mut self, place: &Place) -> anyhow::Result<AbortOnDrop> {
        let socket = open(place.link.as_str(), place.index).context(
            "router solicitations stay unanswered, so iPXE waits 13 seconds a stage: grant CAP_NET_RAW",
        )?;
        let (ledger, counters) = (self.ledger.clone(), Arc::clone(&self.counters));
        let task = answer(place.clone(), socket, ledger, counters);
        Ok(AbortOnDrop(tokio::spawn(task)))
    }

    fn is_alive(running: &AbortOnDrop) -> bool {
        running.is_alive()
    }

    async fn end(mut running: AbortOnDrop) {
        running.end().await;
    }
}

fn wanted(site: &Site, links: &Links) -> Vec<Place> {
    let mut wanted: Vec<_> = site
        .spec()
        .networks()
        .filter(|network| network.quiet_ipv6 && !network.relayed && network.mode != Mode::Off)
        .filter_map(|network| {
            let link = links.get(network.link.as_str())?;
            link.link_local?;
            Some(Place {
                link: network.link.clone(),
                index: link.index,
            })
        })
        .collect();
    wanted.dedup();
    wanted
}

async fn answer(place: Place, socket: UdpSocket, ledger: Ledger, counters: Arc<Counters>) {
    let Place { link, index } = place;
    let mut silence = Silence::default();
    let mut budget = (0, 0);
    let mut buffer = [0; MESSAGE_MAX];
    loop {
        let (length, from) = match receive(&socket, &mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // The follower opens another socket when it finds the task ended.
                debug!(%link, %error, "the ICMPv6 socket failed");
                return;
            }
        };
        let at = now();
        match hear(&buffer[..length]) {
            Heard::Nothing => {}
            Heard::Router { seconds } => {
                if silence.router_spoke(seconds, at) {
                    let what =
                        format!("router {from} speaks on {link}; quiet IPv6 is silent there");
                    info!(%link, "{what}");
                    let room = "ra".into();
                    ledger.note(None, None, Fact::Bastion { room, what });
                }
            }
            Heard::Solicitation if silence.holds(at) => {
                counters.withheld.fetch_add(1, Ordering::Relaxed);
            }
            Heard::Solicitation => {
                let second = at.millis() / 1000;
                if budget.0 != second {
                    budget = (second, 0);
                }
                budget.1 += 1;
                if budget.1 > ANSWERS_PER_SECOND {
                    counters.withheld.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                // RFC 4861, section 6.2.6: a sender without an address is answered by multicast.
                let to = if from.is_unspecified() {
                    ALL_NODES
                } else {
                    from
                };
                let to = SocketAddrV6::new(to, 0, 0, index);
                match socket.send_to(&NO_ROUTER, to).await {
                    Ok(_) => {
                        counters.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => debug!(%link, %error, "an advertisement could not be sent"),
                }
            }
        }
    }
}

/// The next message and its sender; what does not come from the link itself is passed over.
async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Ipv6Addr)> {
    loop {
        let (length, SocketAddr::V6(from)) = socket.recv_from(buffer).await? else {
            continue;
        };
        if from.ip().is_unspecified() || from.ip().is_unicast_link_local() {
            return Ok((length, *from.ip()));
        }
    }
}

/// A raw socket, which the runtime drives as the datagram socket that it is.
fn open(link: &str, index: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::IPV6,
        Type::RAW.nonblocking(),
        Some(Protocol::ICMPV6),
    )?;
    socket.bind_device(Some(link.as_bytes()))?;
    // Solicitations and advertisements only: the type is the first byte.
    let step = SockFilter::new;
    socket.attach_filter(&[
        step(0x30, 0, 0, 0),
        step(0x15, 1, 0, 133),
        step(0x15, 0, 1, 134),
        step(0x06, 0, 0, u32::MAX),
        step(0x06, 0, 0, 0),
    ])?;
    // RFC 4861, section 6.1.2: receivers drop an advertisement whose hop limit is not 255.
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    UdpSocket::from_std(OwnedFd::from(socket).into())
}
