//! The bastion's clock for machines: NTP on UDP 123, on the addresses that DNS and DHCP speak from; see `netboot::ntp`.
//!
//! One task an address; a task above them follows the kernel's links and the site. An answer is as long as its question,
//! so nobody can be flooded through us; what is over the limit is dropped and asked again.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netboot::net::{LinkName, Subnet};
use netboot::ntp::{Clock, answer};
use netboot::site::Site;
use netboot::spec::Mode;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{debug, info, warn};

use crate::controller::Controller;
use crate::link::Links;
use crate::sys;

const PORT: u16 = 123;
const LOOK_AT_SITE: Duration = Duration::from_secs(1);
/// A rack of a thousand that starts at once asks four times each.
const ANSWERS_PER_SECOND: u32 = 5000;
/// A question with the extensions that some clients send.
const QUESTION_MAX: usize = 512;

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct Time {
    counters: Arc<Counters>,
    faults: Arc<Mutex<BTreeMap<LinkName, String>>>,
    following: AbortHandle,
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

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    link: LinkName,
    address: Ipv4Addr,
    clients: Vec<Subnet>,
}

/// Starts serving every link that the site names, as soon as the kernel has it.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(controller: Controller, links: watch::Receiver<Arc<Links>>) -> (Time, JoinHandle<()>) {
    let counters = Arc::<Counters>::default();
    let faults = Arc::default();
    let follower = Follower {
        controller,
        counters: Arc::clone(&counters),
        faults: Arc::clone(&faults),
        running: BTreeMap::new(),
    };
    let following = tokio::spawn(follower.follow(links));
    let running = Time {
        counters,
        faults,
        following: following.abort_handle(),
    };
    (running, following)
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
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Time {
    fn drop(&mut self) {
        self.following.abort();
    }
}

struct Follower {
    controller: Controller,
    counters: Arc<Counters>,
    faults: Arc<Mutex<BTreeMap<LinkName, String>>>,
    running: BTreeMap<Place, Running>,
}

struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    async fn follow(mut self, mut links: watch::Receiver<Arc<Links>>) {
        let mut look = tokio::time::interval(LOOK_AT_SITE);
        loop {
            let known = links.borrow_and_update().clone();
            self.converge(&known).await;
            tokio::select! {
                changed = links.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
        }
    }

    async fn converge(&mut self, links: &Links) {
        let wanted = wanted(&self.controller.snapshot().load(), links);
        self.running
            .retain(|place, running| wanted.contains(place) && !running.0.is_finished());
        let mut found = BTreeMap::new();
        for place in wanted {
            if self.running.contains_key(&place) {
                continue;
            }
            match UdpSocket::bind((place.address, PORT)).await {
                Ok(socket) => {
                    info!(link = %place.link, address = %place.address, "serving NTP");
                    let task = serve(place.clone(), socket, Arc::clone(&self.counters));
                    self.running.insert(place, Running(tokio::spawn(task)));
                }
                Err(error) => {
                    let fault = format!(
                        "opening UDP port 123 on {}; is another NTP server running here?: {error}",
                        place.address
                    );
                    found.insert(place.link, fault);
                }
            }
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for (link, fault) in &found {
            if faults.get(link) != Some(fault) {
                warn!(%link, "not serving NTP: {fault}; tried again every second");
            }
        }
        *faults = found;
    }
}

fn wanted(site: &Site, links: &Links) -> Vec<Place> {
    if !site.spec().serves_time() {
        return Vec::new();
    }
    let mut of_link = BTreeMap::<&LinkName, Vec<Subnet>>::new();
    for network in site.spec().networks().filter(|n| n.mode != Mode::Off) {
        of_link
            .entry(&network.link)
            .or_default()
            .push(network.subnet);
    }
    let places = of_link.into_iter().filter_map(|(name, clients)| {
        let link = links.get(name.as_str())?;
        let own = clients
            .iter()
            .find_map(|subnet| link.address_in(subnet.net()));
        let address = own.or_else(|| link.addresses.first().map(ipnet::Ipv4Net::addr))?;
        Some(Place {
            link: name.clone(),
            address,
            clients,
        })
    });
    places.collect()
}

async fn serve(place: Place, socket: UdpSocket, counters: Arc<Counters>) {
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
        budget.1 += 1;
        let source = *from.ip();
        let ours =
            source == place.address || place.clients.iter().any(|subnet| subnet.contains(source));
        if !ours || from.port() == 0 || budget.1 > ANSWERS_PER_SECOND {
            count(&counters.ignored);
            continue;
        }
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
