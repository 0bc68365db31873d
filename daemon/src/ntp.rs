//! The bastion's clock for machines: NTP on UDP 123, on the addresses that DNS and DHCP speak from; see `netboot::ntp`.
//!
//! One task an address. An answer is as long as its question, so nobody can be flooded through us; what is over the limit is
//! dropped and asked again.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use netboot::net::LinkName;
use netboot::ntp::{Clock, answer};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::controller::Controller;
use crate::link::{Front, Links, fronts};
use crate::presence::{AbortOnDrop, Attend, Faults, Presence};
use crate::sys;

const PORT: u16 = 123;
/// A rack of a thousand that starts at once asks four times each.
const ANSWERS_PER_SECOND: u32 = 5000;
/// A question with the extensions that some clients send.
const QUESTION_MAX: usize = 512;

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct Time {
    counters: Arc<Counters>,
    presence: Presence<Front>,
}

/// Questions since the start, by what became of them.
#[derive(Debug, Default)]
pub struct Counters {
    answered: AtomicU64,
    unsynchronised: AtomicU64,
    ignored: AtomicU64,
}

impl Counters {
    /// Each by its name: answered with the time, told that there is none, no question of a machine's.
    #[must_use]
    pub fn all(&self) -> [(&'static str, u64); 3] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("answered", read(&self.answered)),
            ("unsynchronised", read(&self.unsynchronised)),
            ("ignored", read(&self.ignored)),
        ]
    }
}

/// Starts serving every link that the site names, as soon as the kernel has it.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(controller: Controller, links: watch::Receiver<Arc<Links>>) -> (Time, JoinHandle<()>) {
    let counters = Arc::<Counters>::default();
    let opener = Opener {
        controller,
        counters: Arc::clone(&counters),
    };
    let (presence, following) = Presence::begin(opener, links);
    (Time { counters, presence }, following)
}

impl Time {
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
    counters: Arc<Counters>,
}

impl Attend for Opener {
    const WHAT: &'static str = "NTP";
    type Place = Front;
    type Running = AbortOnDrop;

    fn wanted(&self, links: &Links) -> (Vec<Front>, Faults) {
        let site = self.controller.snapshot().load();
        let spec = site.spec();
        let wanted = spec.serves_time().then(|| fronts(spec, links));
        (wanted.unwrap_or_default(), Faults::new())
    }

    fn link(place: &Front) -> &LinkName {
        &place.link
    }

    fn open(&mut self, place: &Front) -> anyhow::Result<AbortOnDrop> {
        let address = place.address;
        let socket = open(address).with_context(|| {
            format!("opening UDP port {PORT} on {address}; is another NTP server running here?")
        })?;
        info!(link = %place.link, %address, "serving NTP");
        let task = serve(place.clone(), socket, Arc::clone(&self.counters));
        Ok(AbortOnDrop(tokio::spawn(task)))
    }

    fn is_alive(running: &AbortOnDrop) -> bool {
        running.is_alive()
    }

    async fn end(mut running: AbortOnDrop) {
        running.end().await;
    }
}

fn open(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((address, PORT))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn serve(place: Front, socket: UdpSocket, counters: Arc<Counters>) {
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let (mut budget, mut well) = ((0, 0), None);
    let mut question = [0; QUESTION_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut question).await {
            Ok((length, SocketAddr::V4(from))) => (length, from),
            Ok(_) => continue,
            // What an earlier answer met on its way, told by ICMP.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                // The follower opens another socket when it finds the task ended.
                debug!(address = %place.address, %error, "receiving NTP failed");
                return;
            }
        };
        let came = nanos();
        let second = came / 1_000_000_000;
        if budget.0 != second {
            budget = (second, 0);
        }
        let source = *from.ip();
        let ours =
            source == place.address || place.clients.iter().any(|subnet| subnet.contains(source));
        if !ours || from.port() == 0 || budget.1 >= ANSWERS_PER_SECOND {
            count(&counters.ignored);
            continue;
        }
        // Only now: what strangers send must not use up what machines get.
        budget.1 += 1;
        let clock = sys::clock().unwrap_or(Clock {
            synchronised: false,
            leap: netboot::ntp::Leap::None,
            error_micros: u32::MAX,
        });
        if well != Some(clock.synchronised) {
            well = Some(clock.synchronised);
            if !clock.synchronised {
                warn!(link = %place.link, "machines are told that there is no time, because this host's clock follows no source: let chrony or systemd-timesyncd do so (`timedatectl`)");
            }
        }
        let Some(answer) = answer(&question[..length], clock, came, nanos()) else {
            count(&counters.ignored);
            continue;
        };
        match socket.send_to(&answer, from).await {
            Ok(_) if clock.synchronised => count(&counters.answered),
            Ok(_) => count(&counters.unsynchronised),
            Err(error) => {
                debug!(%from, %error, "an NTP answer could not be sent");
                count(&counters.ignored)
            }
        };
    }
}

fn nanos() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}
