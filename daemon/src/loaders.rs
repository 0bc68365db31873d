//! Loaders over TFTP, on the bastion's address of each provisioning link and nowhere else.
//!
//! Links come, go and change address while the daemon runs, and a reload may name others, so the
//! places are compared with what runs whenever the kernel tells of a change, and once a second for
//! the site. A place that can't be had (the port is somebody else's) is tried again and shown by
//! `status` until it can.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use images::Loaders;
use netboot::attempt::{Fact, TransferOutcome};
use netboot::ipxe;
use netboot::net::{LinkName, MacAddress};
use netboot::tftp::Outcome;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::config::Settings;
use crate::controller::Controller;
use crate::dhcp;
use crate::ledger::Ledger;
use crate::link::Links;
use crate::tftp::{self, Answer, LinkBinding, Report, Stage, TftpRequest};

const LOOK_AT_SITE: Duration = Duration::from_secs(1);
/// A reason or a file name of a machine that is kept, in characters.
const WORDS_MAX: usize = 128;

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct Tftp {
    state: Arc<Mutex<State>>,
    following: AbortHandle,
}

/// What the servers are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The files.
    pub loaders: Arc<Loaders>,
    /// Whose snapshots name the links.
    pub controller: Controller,
    /// Where facts go.
    pub ledger: Ledger,
    /// The engine, and the port of boot HTTP.
    pub settings: Settings,
}

#[derive(Debug, Default)]
struct State {
    /// What servers counted that ended.
    ended: BTreeMap<&'static str, u64>,
    running: BTreeMap<Place, Arc<tftp::Counters>>,
    faults: BTreeMap<LinkName, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    link: LinkName,
    /// A link that was deleted and made again keeps its name, but a socket bound to it is dead.
    index: u32,
    address: Ipv4Addr,
}

/// Starts serving every link that the site's networks name, as soon as the kernel has it.
///
/// The second value is the task that follows the links; that it ends before the first is dropped is a fault.
#[must_use]
pub fn start(parts: Parts, links: watch::Receiver<Arc<Links>>) -> (Tftp, JoinHandle<()>) {
    let state = Arc::<Mutex<State>>::default();
    let follower = Follower {
        parts,
        state: Arc::clone(&state),
        running: BTreeMap::new(),
    };
    let following = tokio::spawn(follower.follow(links));
    let running = Tftp {
        state,
        following: following.abort_handle(),
    };
    (running, following)
}

impl Tftp {
    /// Why a link that should be served is not, by link.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<LinkName, String> {
        lock(&self.state).faults.clone()
    }

    /// Every counter by name, over all links and over servers that ended.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let state = lock(&self.state);
        let mut sums = state.ended.clone();
        for counters in state.running.values() {
            add(&mut sums, counters);
        }
        sums
    }
}

impl Drop for Tftp {
    fn drop(&mut self) {
        self.following.abort();
    }
}

struct Follower {
    parts: Parts,
    state: Arc<Mutex<State>>,
    running: BTreeMap<Place, tftp::Server>,
}

impl Follower {
    async fn follow(mut self, mut links: watch::Receiver<Arc<Links>>) {
        let mut look = tokio::time::interval(LOOK_AT_SITE);
        loop {
            let now = links.borrow_and_update().clone();
            self.converge(&now);
            tokio::select! {
                changed = links.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
        }
    }

    fn converge(&mut self, links: &Links) {
        let site = self.parts.controller.snapshot().load();
        // A link that DHCP can't serve is DHCP's fault to tell.
        let (served, _) = dhcp::wanted(&site, links, self.parts.settings.http_port);
        let wanted: Vec<Place> = served
            .into_iter()
            .map(|(link, served)| Place {
                link,
                index: served.index,
                address: served.context.server,
            })
            .collect();
        let gone: Vec<Place> = self
            .running
            .keys()
            .filter(|place| !wanted.contains(place))
            .cloned()
            .collect();
        for place in gone {
            self.running.remove(&place);
            let mut state = lock(&self.state);
            if let Some(counters) = state.running.remove(&place) {
                add(&mut state.ended, &counters);
            }
        }
        let mut faults = BTreeMap::new();
        for place in wanted {
            if self.running.contains_key(&place) {
                continue;
            }
            match self.serve(&place) {
                Ok(server) => {
                    tracing::info!(link = %place.link, address = %place.address, "serving TFTP");
                    let counters = Arc::clone(server.counters());
                    lock(&self.state).running.insert(place.clone(), counters);
                    self.running.insert(place, server);
                }
                Err(error) => {
                    faults.insert(place.link, chain(&error));
                }
            }
        }
        let mut state = lock(&self.state);
        for (link, fault) in &faults {
            if state.faults.get(link) != Some(fault) {
                tracing::warn!(%link, "not serving TFTP: {fault}; tried again every second");
            }
        }
        state.faults = faults;
    }

    fn serve(&self, place: &Place) -> Result<tftp::Server, tftp::StartError> {
        let Parts {
            loaders,
            controller,
            ledger,
            settings,
        } = self.parts.clone();
        let binding = LinkBinding {
            name: place.link.to_string(),
            ifindex: place.index,
            address: place.address,
        };
        let engine = settings.tftp_engine;
        let http_port = settings.http_port;
        tftp::Server::start(
            &binding,
            &tftp::Settings {
                engine,
                ..tftp::Settings::default()
            },
            Arc::new(move |request| file(&loaders, http_port, request)),
            Arc::new(move |report| note(&controller, &ledger, report)),
        )
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Sums are added one by one; a panic between two leaves counters a little low.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(sums: &mut BTreeMap<&'static str, u64>, counters: &tftp::Counters) {
    for (name, count) in counters.each() {
        *sums.entry(name).or_default() += count;
    }
}

/// A loader from memory; or, for an iPXE that was told a path by hand, a script that fetches the
/// machine's own by HTTP, where it is decided and counted. Anything else is refused at once:
/// iPXE 2 looks for `autoexec.ipxe` before it asks DHCP, and silence costs it half a minute.
fn file(loaders: &Loaders, http_port: u16, request: &TftpRequest<'_>) -> Answer {
    if let Some(bytes) = loaders.get(request.path) {
        return Answer::Bytes(bytes.clone());
    }
    let machine = request
        .path
        .strip_prefix("boot/")
        .and_then(|rest| rest.strip_suffix("/script.ipxe"))
        .and_then(|mac| mac.parse::<MacAddress>().ok());
    match machine {
        Some(mac) => {
            let base = format!("http://{}:{http_port}", request.local);
            let script = format!("#!ipxe\nchain {}\n", ipxe::script_url(&base, mac));
            Answer::Bytes(script.into())
        }
        None => Answer::NotFound("no loader has this name; `reveille image list` and the distribution's ipxe package have those there are".to_owned()),
    }
}

/// Notes what ended. The machine is the one the address is reserved for: TFTP shows no MAC address.
fn note(controller: &Controller, ledger: &Ledger, report: Report) {
    let Report {
        peer, path, stage, ..
    } = report;
    let file: String = path.chars().take(WORDS_MAX).collect();
    let fact = match stage {
        Stage::Started(_) | Stage::Running(_) => return,
        Stage::Ended(progress, outcome) => Fact::Transfer {
            protocol: "tftp".into(),
            file,
            digest: None,
            offset: 0,
            bytes: progress.bytes,
            size: progress.total,
            millis: u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX),
            retransmits: u32::try_from(progress.retransmits).unwrap_or(u32::MAX),
            outcome: match outcome {
                Outcome::Complete | Outcome::Unconfirmed => TransferOutcome::Complete,
                Outcome::SizeOnly => TransferOutcome::SizeOnly,
                Outcome::Aborted { .. } | Outcome::Replaced | Outcome::Stopped => {
                    TransferOutcome::Aborted
                }
                Outcome::Silent => TransferOutcome::TimedOut,
            },
        },
        Stage::Refused(reason) => Fact::TransferRefused {
            protocol: "tftp".into(),
            file,
            reason: reason.chars().take(WORDS_MAX).collect::<String>().into(),
        },
    };
    let site = controller.snapshot().load();
    let node = site.spec().node_by_address(*peer.ip());
    let mac = node.and_then(|node| node.link_at(*peer.ip())?.macs.first().copied());
    ledger.note(mac, node.map(|node| &node.name), fact);
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(" ({error})");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> Answer {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("undionly.kpxe"), "loader").unwrap();
        let loaders = Loaders::read(&[directory.path()]);
        let request = TftpRequest {
            peer: "10.107.0.11:1024".parse().unwrap(),
            local: "10.107.0.1".parse().unwrap(),
            link: "eth1.107",
            path,
        };
        file(&loaders, 8080, &request)
    }

    #[test]
    fn tftp_gives_loaders_and_sends_scripts_to_http() {
        assert!(matches!(asked("undionly.kpxe"), Answer::Bytes(bytes) if bytes == "loader"));
        let Answer::Bytes(script) = asked("boot/52-54-00-aa-00-01/script.ipxe") else {
            panic!("a machine's script is there");
        };
        let script = String::from_utf8(script.to_vec()).unwrap();
        let url = "http://10.107.0.1:8080/boot/52-54-00-aa-00-01/script.ipxe?";
        assert!(
            script.starts_with(&format!("#!ipxe\nchain {url}")),
            "{script}"
        );
        for path in ["autoexec.ipxe", "boot/x/script.ipxe", "../etc/passwd", ""] {
            assert!(matches!(asked(path), Answer::NotFound(_)), "{path}");
        }
    }
}
