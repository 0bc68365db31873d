//! HAProxy as the engine, for sites that trust it already: we write its configuration and say who is in, it moves bytes.
//!
//! HAProxy runs in a unit of its own, `reveille-haproxy.service`, so established connections outlive this daemon. In a
//! directory of the state lie its configuration and two sockets: the master's, for a reload, and the runtime API, by
//! which a backend leaves and comes back without one. A new backend or listener is a reload, which HAProxy makes without
//! losing a connection: it passes its listening sockets on, and the old worker finishes what it has.
//!
//! Ugly facts. `reload` says nothing about how it went before HAProxy 2.7, so a configuration is put in place only after
//! `haproxy -c` took it, and bears a fingerprint as its description, which HAProxy tells as long as it serves it. One address
//! that cannot be bound fails a whole configuration, and HAProxy refuses connections everywhere for the two seconds in which
//! it tries; so only places are written that are there and nobody else's, and what failed is tried again slowly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netboot::endpoint::{Balance, Listener, Probe};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::listen::{self, Spot};
use super::pool::Limits;
use super::{BackendStatus, Balancer, ListenerStatus, Totals, said, spot};
use crate::link::Links;

/// Other backends that a connection is offered to. HAProxy leaves out only the one that it tried last, so two dead ones
/// may each be tried again until its checks have found out.
const RETRIES: u8 = 10;
const LOOK: Duration = Duration::from_secs(1);
/// For an answer of HAProxy's: it answers at once or it hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// For HAProxy to serve what it was told to read.
const SETTLE: Duration = Duration::from_secs(5);
/// Before it is told again what it did not take.
const AGAIN: Duration = Duration::from_secs(60);
/// Of an answer: some hundred backends.
const ANSWER_MAX: u64 = 1 << 20;

/// A listener, and where it can be taken now.
struct Bound<'a> {
    listener: &'a Listener,
    spots: Vec<Spot>,
    fault: Option<String>,
}

/// What a configuration says: everything but the servers, and the servers by proxy and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Written {
    frame: String,
    servers: BTreeMap<String, BTreeMap<String, String>>,
}

/// That HAProxy was told to read its configuration.
struct Told {
    fingerprint: String,
    at: Instant,
    /// It was told before and didn't.
    again: bool,
    /// What HAProxy answered that is wrong, from 2.7.
    alert: Option<String>,
}

/// Writes HAProxy's configuration and tells it who is in.
pub struct Haproxy {
    balancer: Balancer,
    directory: PathBuf,
    limits: Limits,
    /// What HAProxy serves, if it is one of ours that we know.
    loaded: Option<Written>,
    told: Option<Told>,
    fault: Option<String>,
}

impl Haproxy {
    /// `directory` is where the configuration and the sockets lie.
    #[must_use]
    pub fn new(directory: PathBuf, limits: Limits) -> (Balancer, Self) {
        let balancer = Balancer::default();
        let engine = Self {
            balancer: balancer.clone(),
            directory,
            limits,
            loaded: None,
            told: None,
            fault: None,
        };
        (balancer, engine)
    }

    /// Keeps HAProxy at what is wanted until `stop`; then leaves it as it is.
    ///
    /// # Errors
    /// Nobody says any more what is wanted.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<Arc<Vec<Listener>>>,
        mut links: watch::Receiver<Arc<Links>>,
        stop: CancellationToken,
    ) -> Result<(), &'static str> {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let listeners = Arc::clone(&wanted.borrow_and_update());
            let there = Arc::clone(&links.borrow_and_update());
            let bound: Vec<Bound<'_>> = listeners.iter().map(|l| bound(l, &there)).collect();
            let fault = self.converge(&bound).await.err();
            if let Some(fault) = fault
                .as_ref()
                .filter(|fault| self.fault.as_ref() != Some(fault))
            {
                warn!("the balancer's HAProxy: {fault}");
            }
            self.fault = fault;
            self.tell(&bound).await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                changed = wanted.changed() => changed.map_err(|_| "nobody says what is wanted")?,
                changed = links.changed() => changed.map_err(|_| "nobody follows the links")?,
                _ = look.tick() => {}
            }
        }
    }

    async fn converge(&mut self, bound: &[Bound<'_>]) -> Result<(), String> {
        let written = render(bound, &self.directory.display().to_string(), &self.limits);
        let text = written.text();
        let path = self.directory.join("haproxy.cfg");
        let said = |act: &str, error: io::Error| format!("{act} {}: {error}", path.display());
        let before = tokio::fs::read_to_string(&path).await.unwrap_or_default();
        if before != text {
            tokio::fs::create_dir_all(&self.directory)
                .await
                .map_err(|e| said("making the directory of", e))?;
            let beside = self.directory.join("haproxy.cfg.new");
            tokio::fs::write(&beside, &text)
                .await
                .map_err(|e| said("writing", e))?;
            self.check(&beside).await?;
            tokio::fs::rename(&beside, &path)
                .await
                .map_err(|e| said("writing", e))?;
        }
        let serving = fingerprint(&self.ask("admin.sock", "show info").await?);
        if serving == Some(written.fingerprint()) {
            // Told to read it, or started since it lies there.
            self.loaded = Some(written.clone());
        } else if serving != self.loaded.as_ref().map(Written::fingerprint) {
            self.loaded = None;
        }
        if let Some(loaded) = &self.loaded {
            self.set_states(loaded, &written).await?;
            if loaded.holds(&written) {
                self.told = None;
                return Ok(());
            }
        }
        self.reload(written.fingerprint()).await
    }

    /// Has HAProxy read its configuration, which it does not serve yet.
    async fn reload(&mut self, fingerprint: String) -> Result<(), String> {
        let before = self.told.as_ref();
        let before = before.filter(|told| told.fingerprint == fingerprint);
        if let Some(told) = before {
            let waited = told.at.elapsed();
            if waited < SETTLE && !told.again {
                return Ok(());
            }
            if waited < AGAIN {
                let alert = told.alert.as_deref().unwrap_or("it serves an older one");
                return Err(format!(
                    "HAProxy did not take its configuration: {alert}: see `journalctl -u reveille-haproxy`; it is told again"
                ));
            }
        }
        let again = before.is_some();
        let answer = self.ask("master.sock", "reload").await?;
        info!("the balancer's HAProxy was told to read its configuration");
        self.told = Some(Told {
            fingerprint,
            at: Instant::now(),
            again,
            alert: alert(&answer).map(str::to_owned),
        });
        Ok(())
    }

    /// Those that left only finish what they have; those that came back are in again.
    async fn set_states(&self, loaded: &Written, wanted: &Written) -> Result<(), String> {
        let mut commands = String::new();
        for (proxy, servers) in &loaded.servers {
            for server in servers.keys() {
                let there = wanted
                    .servers
                    .get(proxy)
                    .is_some_and(|w| w.contains_key(server));
                let state = if there { "ready" } else { "drain" };
                let _ = write!(commands, "set server {proxy}/{server} state {state};");
            }
        }
        if commands.pop().is_none() {
            return Ok(());
        }
        let answer = self.ask("admin.sock", &commands).await?;
        // What goes well is answered by empty lines.
        match answer.split_whitespace().collect::<Vec<_>>().join(" ") {
            words if words.is_empty() => Ok(()),
            words => Err(format!("HAProxy does not take who is in: {words}")),
        }
    }

    async fn check(&self, path: &std::path::Path) -> Result<(), String> {
        let mut command = Command::new("haproxy");
        command.arg("-c").arg("-f").arg(path).kill_on_drop(true);
        let checked = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = match checked {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                return Err(format!("haproxy -c: {error}: install the package haproxy"));
            }
            Err(_) => return Err("haproxy -c gave no answer".to_owned()),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let alert = alert(&said).unwrap_or_default();
        Err(format!("haproxy -c refuses {}: {alert}", path.display()))
    }

    /// A command and its answer.
    async fn ask(&self, socket: &str, command: &str) -> Result<String, String> {
        let path = self.directory.join(socket);
        let asked = async {
            let mut stream = UnixStream::connect(&path).await?;
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!(
                "{}: {error}: start it with `systemctl enable --now reveille-haproxy`",
                path.display()
            )),
            Err(_) => Err(format!(
                "{} gives no answer: restart reveille-haproxy",
                path.display()
            )),
        }
    }

    async fn tell(&self, bound: &[Bound<'_>]) {
        let (stat, fault) = match self.ask("admin.sock", "show stat").await {
            Ok(stat) => (stat, self.fault.clone()),
            Err(error) => (String::new(), self.fault.clone().or(Some(error))),
        };
        let rows = rows(&stat);
        let status = bound
            .iter()
            .map(|bound| status(bound, &rows, fault.as_deref()));
        self.balancer.say(status.collect());
    }
}

impl Written {
    /// Tells it from every other.
    fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.body());
        digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn text(&self) -> String {
        let described = format!("global\n    description {MARK}{}\n", self.fingerprint());
        self.body().replacen("global\n", &described, 1)
    }

    fn body(&self) -> String {
        let mut text = String::new();
        for section in self.frame.split_inclusive("\n\n") {
            text.push_str(section.trim_end());
            text.push('\n');
            let name = section
                .strip_prefix("listen ")
                .and_then(|rest| rest.lines().next());
            for line in name
                .and_then(|name| self.servers.get(name))
                .into_iter()
                .flat_map(BTreeMap::values)
            {
                let _ = writeln!(text, "    {line}");
            }
            text.push('\n');
        }
        text
    }

    /// Everything of the other is here, and nothing but servers is here that is not there.
    fn holds(&self, other: &Self) -> bool {
        let servers = |(proxy, servers): (&String, &BTreeMap<String, String>)| {
            let ours = self.servers.get(proxy);
            servers
                .iter()
                .all(|(name, line)| ours.and_then(|ours| ours.get(name)) == Some(line))
        };
        self.frame == other.frame && other.servers.iter().all(servers)
    }
}

/// Before the fingerprint in a description.
const MARK: &str = "reveille-";

/// Of the configuration that HAProxy serves, by what `show info` says.
fn fingerprint(info: &str) -> Option<String> {
    let mark = format!("description: {MARK}");
    let found = info.lines().find_map(|line| line.strip_prefix(&mark))?;
    Some(found.trim().to_owned())
}

/// The first thing that HAProxy says is wrong.
fn alert(said: &str) -> Option<&str> {
    said.lines().find(|line| line.contains("[ALERT]"))
}

fn bound<'a>(listener: &'a Listener, links: &Links) -> Bound<'a> {
    let (mut spots, mut faults) = (Vec::new(), BTreeSet::new());
    for place in &listener.places {
        let free = |spot: Spot| match listen::try_bind(&spot) {
            Ok(()) => Ok(spot),
            Err(error) => Err(said(&spot, &error)),
        };
        match spot(place, listener, links).and_then(free) {
            Ok(spot) => spots.push(spot),
            Err(fault) => drop(faults.insert(fault)),
        }
    }
    let faults: Vec<String> = faults.into_iter().collect();
    Bound {
        listener,
        spots,
        fault: (!faults.is_empty()).then(|| faults.join("; ")),
    }
}

/// HAProxy's name of a listener; a cluster's name and a port's have no other letters.
fn proxy(listener: &Listener) -> String {
    format!("{}-{}-{}", listener.cluster, listener.name, listener.port)
}

fn render(bound: &[Bound<'_>], directory: &str, limits: &Limits) -> Written {
    let mut written = Written {
        frame: format!(
            "# Written by reveille, which writes it again: change the site instead.\n\n\
             global\n    stats socket {directory}/admin.sock mode 600 level admin expose-fd listeners\n    \
             maxconn {house}\n    hard-stop-after {drain}s\n\n\
             defaults\n    mode tcp\n    timeout connect {connect}ms\n    timeout client {idle}s\n    \
             timeout server {idle}s\n    timeout client-fin {half}s\n    retries {RETRIES}\n    option redispatch 1\n    option allbackups\n    \
             option splice-auto\n    option clitcpka\n    option srvtcpka\n\n",
            house = limits.house,
            drain = limits.drain.as_secs(),
            connect = limits.connect.as_millis(),
            idle = limits.idle.as_secs(),
            half = limits.half_closed.as_secs(),
        ),
        servers: BTreeMap::new(),
    };
    for Bound {
        listener, spots, ..
    } in bound.iter().filter(|bound| !bound.spots.is_empty())
    {
        let name = proxy(listener);
        let frame = &mut written.frame;
        let _ = writeln!(frame, "listen {name}");
        for spot in spots {
            let interface = spot
                .link
                .as_ref()
                .map_or(String::new(), |(link, _)| format!(" interface {link}"));
            let _ = writeln!(frame, "    bind {}{interface}", spot.at);
        }
        let _ = writeln!(frame, "    maxconn {}", limits.connections);
        let _ = match listener.balance {
            Balance::LeastConnections => writeln!(frame, "    balance leastconn"),
            Balance::SourceHash => writeln!(frame, "    balance source\n    hash-type consistent"),
        };
        let check = &listener.check;
        let mut options = format!(
            "check inter {}ms rise {} fall {}",
            check.interval, check.rise, check.fall
        );
        if let Probe::HttpsReadyz { path } = &check.probe {
            let _ = writeln!(
                frame,
                "    option httpchk GET {path}\n    http-check expect rstatus ^(200|401)$"
            );
            options.push_str(" check-ssl verify none");
        }
        if listener.proxy_protocol {
            options.push_str(" send-proxy-v2 check-send-proxy");
        }
        frame.push('\n');
        let server = |backend: &netboot::endpoint::Backend| {
            let spare = if backend.spare { " backup" } else { "" };
            let line = format!(
                "server {} {} {options}{spare}",
                backend.node, backend.address
            );
            (backend.node.to_string(), line)
        };
        written
            .servers
            .insert(name, listener.backends.iter().map(server).collect());
    }
    written
}

/// The rows of `show stat` by proxy and server, each by column (HAProxy's management guide, section 9.1).
type Rows<'a> = BTreeMap<(&'a str, &'a str), BTreeMap<&'a str, &'a str>>;

fn rows(stat: &str) -> Rows<'_> {
    let mut lines = stat.lines();
    let header: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .trim_start_matches("# ")
        .split(',')
        .collect();
    let row = |line| {
        let row: BTreeMap<&str, &str> = header.iter().copied().zip(str::split(line, ',')).collect();
        Some(((*row.get("pxname")?, *row.get("svname")?), row))
    };
    lines.filter_map(row).collect()
}

fn status(bound: &Bound<'_>, rows: &Rows<'_>, fault: Option<&str>) -> ListenerStatus {
    let listener = bound.listener;
    let proxy = proxy(listener);
    let number = |server: &str, column: &str| -> u64 {
        let row = rows.get(&(proxy.as_str(), server));
        row.and_then(|row| row.get(column)?.parse().ok())
            .unwrap_or(0)
    };
    let word = |server: &str, column: &str| {
        let row = rows.get(&(proxy.as_str(), server));
        row.and_then(|row| row.get(column).copied())
            .unwrap_or_default()
    };
    let backends = listener.backends.iter().map(|backend| {
        let server = backend.node.as_str();
        let health = match word(server, "status") {
            status if status.starts_with("UP") => "up",
            status if status.starts_with("DOWN") => "down",
            _ => "unknown",
        };
        BackendStatus {
            node: backend.node.clone(),
            address: backend.address,
            health: health.to_owned(),
            spare: backend.spare,
            connections: number(server, "scur"),
            served: number(server, "stot"),
            failed: number(server, "econ"),
            detail: format!(
                "{} {}",
                word(server, "check_status"),
                word(server, "last_chk")
            ),
        }
    });
    let faults = bound.fault.iter().map(String::as_str).chain(fault);
    let fault: Vec<&str> = faults.collect();
    ListenerStatus {
        cluster: listener.cluster.clone(),
        name: listener.name.clone(),
        port: listener.port,
        addresses: match rows.contains_key(&(proxy.as_str(), "FRONTEND")) {
            true => bound.spots.iter().map(|spot| spot.at).collect(),
            false => Vec::new(),
        },
        fault: (!fault.is_empty()).then(|| fault.join("; ")),
        connections: number("FRONTEND", "scur"),
        totals: Totals {
            accepted: number("FRONTEND", "stot"),
            retried: number("BACKEND", "wretr"),
            unserved: number("BACKEND", "econ"),
            // Where there are too many already, the kernel queues them: HAProxy closes none.
            crowded: 0,
            expired: 0,
            bytes_in: number("FRONTEND", "bin"),
            bytes_out: number("FRONTEND", "bout"),
        },
        backends: backends.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_haproxy_serves_is_known_by_its_description() {
        let frame = render(&[], "/var/lib/reveille/haproxy", &Limits::default()).frame
            + "listen lab-api-6443\n\n";
        let server = |name: &str| (name.to_owned(), format!("server {name} 10.107.0.11:6443"));
        let of = |servers: &[&str]| Written {
            frame: frame.clone(),
            servers: [(
                "lab-api-6443".to_owned(),
                servers.iter().copied().map(server).collect(),
            )]
            .into(),
        };
        let (one, both) = (of(&["cp-1"]), of(&["cp-1", "cp-2"]));
        assert_ne!(one.fingerprint(), both.fingerprint());
        let line = both
            .text()
            .lines()
            .find_map(|line| line.trim().strip_prefix("description ").map(str::to_owned));
        let info = format!(
            "Name: HAProxy\ndescription: {}\nCurrConns: 0\n",
            line.expect("one")
        );
        assert_eq!(fingerprint(&info), Some(both.fingerprint()));
        assert_eq!(fingerprint("Name: HAProxy\ndescription: \n"), None);
    }
}
