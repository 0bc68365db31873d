//! HTTP rows: big artefacts at one and fifty readers, and small requests, against nginx with sendfile.
//!
//! Touches: the lab's namespaces, files in its scratch directory.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Plan;
use crate::http_load::{answered, read};
use crate::lab::{Lab, SERVER, Server};
use crate::table::{Column, Table};

const BIG: &[Column] = &[
    Column("MB/s", 0),
    Column("CPU s/GiB", 2),
    Column("MiB resident", 0),
];
const SMALL: &[Column] = &[Column("requests/s", 0), Column("CPU µs/request", 1)];
const WINDOW: Duration = Duration::from_secs(2);

/// A server with the files of [`FILES`]: its command, the port, and a file's path by its place in that list.
pub(crate) struct Site {
    pub(crate) command: Command,
    pub(crate) port: u16,
    pub(crate) paths: Vec<String>,
    /// What is made for each asker; nobody else here has such a thing.
    pub(crate) script: Option<String>,
}

type Configure = fn(&Path) -> Result<Site>;

const SERVERS: &[(&str, Configure)] = &[
    ("Reveille", crate::reveille::http),
    ("nginx, sendfile", nginx),
];

/// Names and sizes of the artefacts that every server offers.
pub(crate) const FILES: &[(&str, u64)] = &[
    ("kernel", 80 << 20),
    ("rootfs", 900 << 20),
    ("small", 4 << 10),
];

pub(crate) fn measure(lab: &Lab, plan: &Plan) -> Result<Vec<Table>> {
    let mut big = Table::new("HTTP artefacts", BIG);
    let mut small = Table::new("HTTP, small answers", SMALL);
    let mut servers = Vec::new();
    for (name, configure) in SERVERS.iter().filter(|server| plan.wants(server.0)) {
        let site = configure(&lab.directory(name)?).with_context(|| format!("preparing {name}"))?;
        servers.push((*name, site));
    }
    for (file, label) in [(0, "80 MiB"), (1, "900 MiB")] {
        for clients in [1, 50] {
            let case = format!("{label}, {clients} at once");
            for _ in 0..if plan.has_case(&case) { plan.rounds } else { 0 } {
                for (name, site) in &servers {
                    let figures = artefact(lab, site, file, clients)
                        .with_context(|| format!("measuring {name}"))?;
                    big.add(&case, name, &figures);
                }
            }
        }
    }
    let kept = "Connection: keep-alive";
    for (case, script, header) in [
        ("4 KiB, 50 connections kept alive", false, kept),
        (
            "4 KiB, a new connection each, 50 at once",
            false,
            "Connection: close",
        ),
        ("a boot script, 50 connections kept alive", true, kept),
    ] {
        for _ in 0..if plan.has_case(case) { plan.rounds } else { 0 } {
            for (name, site) in &servers {
                let path = if script {
                    site.script.as_ref()
                } else {
                    site.paths.last()
                };
                let Some(path) = path else { continue };
                let figures = requests(lab, site, path, header)
                    .with_context(|| format!("measuring {name}"))?;
                small.add(case, name, &figures);
            }
        }
    }
    Ok(vec![big, small])
}

fn artefact(lab: &Lab, site: &Site, file: usize, clients: usize) -> Result<Vec<f64>> {
    let mut server = start(lab, site)?;
    let meter = server.meter();
    let (port, path, cpu) = (site.port, site.paths[file].clone(), meter.clone());
    let report = lab.load(move || read(port, &path, clients, WINDOW, || cpu.cpu()))?;
    server.alive()?;
    let gib = report.bytes as f64 / f64::from(1 << 30);
    Ok(vec![
        report.bytes as f64 / 1e6 / report.elapsed.as_secs_f64(),
        report.cpu.as_secs_f64() / gib,
        meter.resident()?,
    ])
}

/// wrk on one thread: its own count of requests, and the server's CPU over the whole of its run.
fn requests(lab: &Lab, site: &Site, path: &str, header: &str) -> Result<Vec<f64>> {
    let mut server = start(lab, site)?;
    let url = format!("http://{SERVER}:{}{path}", site.port);
    let meter = server.meter();
    let before = meter.cpu()?;
    let said = lab.load_output("wrk", &["-t1", "-c50", "-d2s", "-H", header, &url]);
    let used = meter.cpu()?.saturating_sub(before);
    server.alive()?;
    anyhow::ensure!(
        !said.contains("Non-2xx"),
        "not every answer was good: {said}"
    );
    let figure = |name: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    let rate = figure("Requests/sec:").context("wrk named no rate")?;
    let total = said.lines().find_map(|line| {
        line.trim()
            .split_once(" requests in ")?
            .0
            .parse::<f64>()
            .ok()
    });
    Ok(vec![
        rate,
        used.as_secs_f64() * 1e6 / total.context("wrk named no total")?,
    ])
}

fn start(lab: &Lab, site: &Site) -> Result<Server> {
    let mut server = lab.serve(&site.command, &lab.directory("http-log")?.join("log"))?;
    let port = site.port;
    server.wait(|| lab.load(move || Ok(answered(port))))?;
    Ok(server)
}

/// Makes a file of [`FILES`]; the cache of its pages is warm because it was just written.
pub(crate) fn file(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path).context("creating a file to serve")?;
    let chunk: Vec<u8> = (0..1_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(chunk.len() as u64);
        std::io::Write::write_all(&mut file, &chunk[..usize::try_from(part)?])
            .context("filling a file to serve")?;
        left -= part;
    }
    Ok(())
}

/// One worker, because it has one core.
fn nginx(directory: &Path) -> Result<Site> {
    let root = directory.join("root");
    fs::create_dir(&root)?;
    for (name, bytes) in FILES {
        file(&root.join(name), *bytes)?;
    }
    let text = format!(
        "daemon off; user root; worker_processes 1; pid {directory}/pid; error_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
         server {{ listen {SERVER}:80 backlog=4096; root {root}; }} }}\n",
        directory = directory.display(),
        root = root.display(),
    );
    let configuration = directory.join("nginx.conf");
    fs::write(&configuration, text).context("writing nginx's configuration")?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(configuration);
    let paths = FILES.iter().map(|file| format!("/{}", file.0)).collect();
    Ok(Site {
        command,
        port: 80,
        paths,
        script: None,
    })
}
