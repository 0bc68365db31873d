//! DNS rows: names of ours, and names of others that are kept, against dnsmasq; the load is dnsperf's.
//!
//! Touches: the lab's namespaces, configuration files in its scratch directory, a dnsmasq on the load's side that knows
//! the names of others.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::process;

use crate::Plan;
use crate::dhcp_load::{Machine, machines};
use crate::lab::{CLIENT, Lab, SERVER, SERVER_LINK};
use crate::table::{Column, Table};

const COLUMNS: &[Column] = &[
    Column("queries/s", 0),
    Column("CPU µs/query", 2),
    Column("mean ms", 2),
    Column("lost %", 2),
    Column("MiB resident", 0),
];
const NAMES: u32 = 1000;
/// Under way at once: what dnsperf asks by default.
const UNDER_WAY: &str = "100";
const SECONDS: &str = "3";
pub(crate) const DOMAIN: &str = "bench.example";
const OTHERS: &str = "others.example";

type Configure = fn(&Path, &[Machine]) -> Result<Command>;

const SERVERS: &[(&str, Configure)] = &[("Reveille", crate::reveille::dns), ("dnsmasq", dnsmasq)];

pub(crate) fn measure(lab: &Lab, plan: &Plan) -> Result<Vec<Table>> {
    let mut table = Table::new("DNS, 1,000 names, 100 questions under way", COLUMNS);
    let machines = machines(NAMES);
    let cases = [("names of ours", true), ("names of others, kept", false)];
    let cases = cases.into_iter().filter(|(case, _)| plan.has_case(case));
    for (case, ours) in cases {
        for _ in 0..plan.rounds {
            for (name, configure) in SERVERS.iter().filter(|server| plan.wants(server.0)) {
                let directory = lab.directory(name)?;
                let command = configure(&directory, &machines)?;
                let figures = one(lab, &directory, &command, ours)
                    .with_context(|| format!("measuring {name}"))?;
                table.add(case, name, &figures);
            }
        }
    }
    Ok(vec![table])
}

fn one(lab: &Lab, directory: &Path, command: &Command, ours: bool) -> Result<Vec<f64>> {
    let upstream = Upstream::start(lab, directory)?;
    let mut server = lab.serve(command, &directory.join("log"))?;
    let list = directory.join("queries");
    let mut lines = String::new();
    for index in 0..NAMES {
        if ours {
            writeln!(lines, "node-{index:05}.{DOMAIN} A")?;
        } else {
            writeln!(lines, "host-{index:05}.{OTHERS} A")?;
        }
    }
    fs::write(&list, lines).context("writing dnsperf's questions")?;
    let list = list.to_str().context("paths are text")?.to_owned();
    let name = format!("node-00000.{DOMAIN}");
    server.wait(|| {
        let name = name.clone();
        lab.load(move || {
            let at = format!("@{SERVER}");
            let mut dig = Command::new("dig");
            dig.args([&at, "+short", "+tries=1", "+time=1", &name]);
            Ok(!dig.output()?.stdout.is_empty())
        })
    })?;
    // Every name once, so that what is kept is there.
    dnsperf(lab, &list, &["-n", "1"])?;
    let meter = server.meter();
    let before = meter.cpu()?;
    let said = dnsperf(lab, &list, &["-l", SECONDS])?;
    let cpu = meter.cpu()? - before;
    server.alive()?;
    drop(upstream);
    let done = field(&said, "Queries completed:")?;
    let sent = field(&said, "Queries sent:")?;
    ensure!(
        said.contains("NOERROR") && !said.contains("SERVFAIL") && !said.contains("REFUSED"),
        "wrong answers: {said}"
    );
    Ok(vec![
        field(&said, "Queries per second:")?,
        cpu.as_secs_f64() * 1e6 / done,
        field(&said, "Average Latency (s):")? * 1e3,
        100.0 * (sent - done) / sent,
        meter.resident()?,
    ])
}

fn dnsperf(lab: &Lab, list: &str, until: &[&str]) -> Result<String> {
    let server = SERVER.to_string();
    let words = ["-s", &server, "-d", list, "-q", UNDER_WAY, "-c", "10"];
    let said = lab.load_output("dnsperf", &[&words, until].concat());
    Ok(said)
}

fn field(said: &str, name: &str) -> Result<f64> {
    let (_, rest) = said
        .split_once(name)
        .with_context(|| format!("no {name} in: {said}"))?;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("{name} is {word}"))
}

fn dnsmasq(directory: &Path, machines: &[Machine]) -> Result<Command> {
    let hosts = directory.join("hosts");
    let line = |(index, machine): (usize, &Machine)| {
        format!("{} node-{index:05}.{DOMAIN}\n", machine.address)
    };
    let lines: String = machines.iter().enumerate().map(line).collect();
    fs::write(&hosts, lines).context("writing dnsmasq's hosts")?;
    let mut command = bare("dnsmasq");
    command.arg(format!("--addn-hosts={}", hosts.display()));
    command.args(["--cache-size=10000", "--dns-forward-max=1000"]);
    command.arg(format!("--server={CLIENT}"));
    command.arg(format!("--interface={SERVER_LINK}"));
    Ok(command)
}

fn bare(program: &str) -> Command {
    let mut command = Command::new(program);
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
    ]);
    command.args([
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--log-facility=-",
    ]);
    command
}

/// The server that knows the names of others, for an hour each.
struct Upstream(Child);

impl Upstream {
    fn start(lab: &Lab, directory: &Path) -> Result<Self> {
        let hosts = directory.join("others");
        let line = |index: u32| {
            let address = format!("198.18.{}.{}", index / 250, index % 250 + 1);
            format!("{address} host-{index:05}.{OTHERS}\n")
        };
        let lines: String = (0..NAMES).map(line).collect();
        fs::write(&hosts, lines).context("writing the upstream's hosts")?;
        let child = lab.load(move || {
            let mut command = process::command("dnsmasq");
            command.args(bare("dnsmasq").get_args());
            command.arg(format!("--addn-hosts={}", hosts.display()));
            command.arg(format!("--listen-address={CLIENT}"));
            command.args(["--local-ttl=3600", "--cache-size=10000"]);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().context("starting the upstream")
        })?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(Self(child))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
