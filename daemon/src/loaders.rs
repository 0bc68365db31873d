//! Loaders over TFTP, on the bastion's address of each provisioning link and nowhere else.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use images::Loaders;
use netboot::attempt::{Fact, TransferOutcome};
use netboot::ipxe;
use netboot::net::{LinkName, MacAddress};
use netboot::tftp::Outcome;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Settings;
use crate::controller::Controller;
use crate::dhcp;
use crate::ledger::Ledger;
use crate::link::Links;
use crate::presence::{Attend, Faults, Presence};
use crate::tftp::{self, Answer, LinkBinding, Report, Stage, TftpRequest};

/// A reason or a file name of a machine that is kept, in characters.
const WORDS_MAX: usize = 128;

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct Tftp {
    tally: Arc<Mutex<Tally>>,
    presence: Presence<Place>,
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

/// What was counted.
#[derive(Debug, Default)]
struct Tally {
    /// By servers that ended.
    ended: BTreeMap<&'static str, u64>,
    running: Vec<Arc<tftp::Counters>>,
}

#[derive(Clone, Debug, PartialEq)]
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
    let tally = Arc::<Mutex<Tally>>::default();
    let opener = Opener {
        parts,
        tally: Arc::clone(&tally),
    };
    let (presence, following) = Presence::begin(opener, links);
    (Tftp { tally, presence }, following)
}

impl Tftp {
    /// Why a link that should be served is not, by link.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<LinkName, String> {
        self.presence.faults()
    }

    /// Every counter by name, over all links and over servers that ended.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let tally = lock(&self.tally);
        let mut sums = tally.ended.clone();
        for counters in &tally.running {
            add(&mut sums, counters);
        }
        sums
    }
}

struct Opener {
    parts: Parts,
    tally: Arc<Mutex<Tally>>,
}

/// One server, and where its counts go when it ends.
struct Running {
    tally: Arc<Mutex<Tally>>,
    server: tftp::Server,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut tally = lock(&self.tally);
        let counters = self.server.counters();
        tally.running.retain(|other| !Arc::ptr_eq(other, counters));
        add(&mut tally.ended, counters);
    }
}

impl Attend for Opener {
    const WHAT: &'static str = "TFTP";
    type Place = Place;
    type Running = Running;

    fn wanted(&self, links: &Links) -> (Vec<Place>, Faults) {
        let site = self.parts.controller.snapshot().load();
        // A link that DHCP can't serve is DHCP's fault to tell.
        let (served, _) = dhcp::wanted(&site, links, self.parts.settings.http_port);
        let place = |(link, served): (LinkName, dhcp::Served)| Place {
            link,
            index: served.index,
            address: served.context.server,
        };
        (served.into_iter().map(place).collect(), Faults::new())
    }

    fn link(place: &Place) -> &LinkName {
        &place.link
    }

    fn open(&mut self, place: &Place) -> anyhow::Result<Running> {
        let server = self.serve(place)?;
        tracing::info!(link = %place.link, address = %place.address, "serving TFTP");
        let counters = Arc::clone(server.counters());
        lock(&self.tally).running.push(counters);
        Ok(Running {
            tally: Arc::clone(&self.tally),
            server,
        })
    }

    fn is_alive(_: &Running) -> bool {
        true
    }
}

impl Opener {
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

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    // Sums are added one by one; a panic between two leaves counters a little low.
    tally.lock().unwrap_or_else(PoisonError::into_inner)
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
