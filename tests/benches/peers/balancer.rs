//! Balancer rows: bulk, short connections and what is added to a round trip, against HAProxy with splice.
//!
//! Touches: the lab's namespaces, configuration files in its scratch directory, an nginx on the load's side that has
//! something to fetch.
//!
//! Ours is the daemon's engine with listeners from a file (`src/bin/balance.rs`): no cluster has to come up first. Both look
//! after their backend twice a second.

use std::fs;
use std::net::{SocketAddrV4, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::balance::{Wanted, files};
use tests::process;

use crate::Plan;
use crate::balancer_load::{Load, Report, exchange};
use crate::http;
use crate::http_load::{answered, read};
use crate::lab::{CLIENT, Lab, SERVER, SERVER_LINK, Server};
use crate::table::{Column, Table};

const BULK: &[Column] = &[
    Column("MB/s", 0),
    Column("CPU s/GiB", 2),
    Column("MiB resident", 0),
];
const SHORT: &[Column] = &[Column("connections/s", 0), Column("CPU µs/connection", 1)];
const LATENCY: &[Column] = &[Column("p50 µs", 0), Column("p99 µs", 0)];
const WINDOW: Duration = Duration::from_secs(2);
/// Where a balancer listens, and where what it balances does.
const PORT: u16 = 6443;
const ENDS: u16 = 9000;
const BULKS: u16 = 9001;

type Configure = fn(&Path, SocketAddrV4) -> Result<Command>;

const SERVERS: &[(&str, Configure)] = &[("Reveille", reveille), ("HAProxy, splice", haproxy)];

pub(crate) fn measure(lab: &Lab, plan: &Plan) -> Result<Vec<Table>> {
    let mut bulk = Table::new("Balancer, one TCP port", BULK);
    let mut short = Table::new(
        "Balancer, a connection for each exchange of 64 bytes",
        SHORT,
    );
    let mut latency = Table::new("Balancer, one exchange at a time", LATENCY);
    let servers = || SERVERS.iter().filter(|server| plan.wants(server.0));
    let rounds = |case: &str| 0..if plan.has_case(case) { plan.rounds } else { 0 };
    for clients in [1, 20] {
        let case = format!("80 MiB, {clients} at once");
        for _ in rounds(&case) {
            for (name, configure) in servers() {
                let figures = fetch(lab, name, *configure, clients)
                    .with_context(|| format!("measuring {name}"))?;
                bulk.add(&case, name, &figures);
            }
        }
    }
    let ends = |at_once, anew, to| Load {
        to,
        at_once,
        anew,
        window: WINDOW,
    };
    let (balanced, direct) = (
        SocketAddrV4::new(SERVER, PORT),
        SocketAddrV4::new(CLIENT, ENDS),
    );
    let case = "50 at once";
    for _ in rounds(case) {
        for (name, configure) in servers() {
            let report = exchanges(lab, name, *configure, ends(50, true, balanced))?;
            let count = report.exchanges as f64;
            let figures = [
                count / report.elapsed.as_secs_f64(),
                report.cpu.as_secs_f64() * 1e6 / count,
            ];
            short.add(case, name, &figures);
        }
    }
    for (case, anew) in [("on one connection", false), ("on a connection each", true)] {
        for _ in rounds(case) {
            let load = ends(1, anew, direct);
            let report = lab.load(move || exchange(listen()?, &load, || Ok(Duration::ZERO)))?;
            latency.add(
                case,
                "nobody between, both on loopback",
                &latencies(&report),
            );
            for (name, configure) in servers() {
                let report = exchanges(lab, name, *configure, ends(1, anew, balanced))?;
                latency.add(case, name, &latencies(&report));
            }
        }
    }
    Ok(vec![bulk, short, latency])
}

fn latencies(report: &Report) -> [f64; 2] {
    [report.latency_micros(0.5), report.latency_micros(0.99)]
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((CLIENT, ENDS)).context("listening as a backend")
}

fn exchanges(lab: &Lab, name: &str, configure: Configure, load: Load) -> Result<Report> {
    // Before the balancer, which looks whether it is there.
    let listener = lab.load(listen)?;
    let mut server = start(lab, name, configure, ENDS)?;
    let meter = server.meter();
    let report = lab.load(move || exchange(listener, &load, || meter.cpu()));
    server.alive()?;
    report.with_context(|| format!("measuring {name}"))
}

fn fetch(lab: &Lab, name: &str, configure: Configure, clients: usize) -> Result<Vec<f64>> {
    let bulk = Bulk::start(lab)?;
    let mut server = start(lab, name, configure, BULKS)?;
    let (meter, cpu) = (server.meter(), server.meter());
    let path = format!("/{}", http::FILES[0].0);
    let report = lab.load(move || read(PORT, &path, clients, WINDOW, || cpu.cpu()))?;
    server.alive()?;
    drop(bulk);
    Ok(vec![
        report.bytes as f64 / 1e6 / report.elapsed.as_secs_f64(),
        report.cpu.as_secs_f64() / (report.bytes as f64 / f64::from(1 << 30)),
        meter.resident()?,
    ])
}

fn start(lab: &Lab, name: &str, configure: Configure, behind: u16) -> Result<Server> {
    let directory = lab.directory(name)?;
    let command = configure(&directory, SocketAddrV4::new(CLIENT, behind))?;
    let mut server = lab.serve(&command, &directory.join("log"))?;
    server.wait(|| lab.load(|| Ok(answered(PORT))))?;
    Ok(server)
}

fn reveille(directory: &Path, backend: SocketAddrV4) -> Result<Command> {
    let wanted = Wanted {
        name: "bench".to_owned(),
        port: PORT,
        private: false,
        places: vec![(SERVER_LINK.to_owned(), SERVER)],
        backends: vec![("load".to_owned(), backend, false)],
        source_hash: false,
        proxy_protocol: false,
    };
    fs::write(files(directory).0, serde_json::to_string(&[wanted])?)
        .context("writing what is wanted")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_balance"));
    command.arg(directory).arg("embedded");
    Ok(command)
}

/// One thread, because it has one core.
fn haproxy(directory: &Path, backend: SocketAddrV4) -> Result<Command> {
    let configuration = directory.join("haproxy.cfg");
    let text = format!(
        "global\n    nbthread 1\n    maxconn 4096\n\
         defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 1m\n    timeout server 1m\n    \
         option splice-auto\n\
         listen bench\n    bind {SERVER}:{PORT}\n    balance leastconn\n    server load {backend} check inter 500ms\n"
    );
    fs::write(&configuration, text).context("writing HAProxy's configuration")?;
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(configuration);
    Ok(command)
}

/// An nginx on the load's side with a big file: its sendfile costs that core the least.
struct Bulk(Child);

impl Bulk {
    fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory("bulk")?;
        let (name, bytes) = http::FILES[0];
        http::file(&directory.join(name), bytes)?;
        let text = format!(
            "daemon off; master_process off; user root; pid {directory}/pid; error_log stderr;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             server {{ listen {CLIENT}:{BULKS}; root {directory}; }} }}\n",
            directory = directory.display(),
        );
        let configuration = directory.join("nginx.conf");
        fs::write(&configuration, text).context("writing nginx's configuration")?;
        let child = lab.load(move || {
            let mut command = process::command("nginx");
            command.args(["-e", "stderr", "-c"]).arg(configuration);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().context("starting the backend's nginx")
        })?;
        let bulk = Self(child);
        // A balancer begins by looking whether it is there.
        let there = || lab.load(|| Ok(std::net::TcpStream::connect((CLIENT, BULKS)).is_ok()));
        for _ in 0..500 {
            if there()? {
                return Ok(bulk);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the backend's nginx doesn't answer")
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
