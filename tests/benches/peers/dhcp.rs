//! DHCP rows: closed loop, one at a time, and three times the peak, against dnsmasq, Kea and coredhcp.
//!
//! Touches: the lab's namespaces, configuration files in its scratch directory.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::lab::asset;

use crate::Plan;
use crate::dhcp_load::{Clients, Machine, Pace, ensure_right, machines};
use crate::lab::{Lab, SERVER, SERVER_LINK};
use crate::table::{Column, Table};

const COLUMNS: &[Column] = &[
    Column("32 in flight, exchanges/s", 0),
    Column("CPU µs/exchange", 1),
    Column("one at a time p50 ms", 2),
    Column("offered/s", 0),
    Column("of peak, %", 0),
    Column("p50 ms", 1),
    Column("p99 ms", 1),
    Column("first ACK after s", 2),
    Column("MiB at start", 0),
    Column("MiB after", 0),
];

type Configure = fn(&Path, &[Machine]) -> Result<Command>;

const SERVERS: &[(&str, Configure)] = &[
    ("Reveille", crate::reveille::dhcp),
    ("dnsmasq, lease file", dnsmasq_persisted),
    ("dnsmasq --leasefile-ro", dnsmasq_forgetful),
    ("Kea, memfile persisted", kea),
    ("coredhcp", coredhcp),
];

pub(crate) fn measure(lab: &Lab, plan: &Plan) -> Result<Vec<Table>> {
    let title = "DHCP: discover, offer, request, ack through a relay; the middle figures at three times the peak";
    let mut table = Table::new(title, COLUMNS);
    for count in [10_000, 10] {
        let machines: Arc<[Machine]> = machines(count).into();
        for _ in 0..plan.rounds {
            for (name, configure) in SERVERS.iter().filter(|server| plan.wants(server.0)) {
                let figures =
                    one(lab, *configure, &machines).with_context(|| format!("measuring {name}"))?;
                table.add(&format!("{count} reservations"), name, &figures);
            }
        }
    }
    Ok(vec![table])
}

fn one(lab: &Lab, configure: Configure, machines: &Arc<[Machine]>) -> Result<Vec<f64>> {
    let directory = lab.directory("dhcp")?;
    let command = configure(&directory, machines)?;
    let mut server = lab.serve(&command, &directory.join("log"))?;
    let ready = server.wait(|| {
        let machines = machines.clone();
        lab.load(|| Clients::new(machines)?.answered(Duration::from_millis(50)))
    })?;
    let meter = server.meter();
    let fresh = meter.resident()?;
    let run = |pace, warm_up, window| {
        let (machines, meter) = (machines.clone(), meter.clone());
        let report = lab.load(move || {
            let (warm_up, window) = (
                Duration::from_millis(warm_up),
                Duration::from_millis(window),
            );
            Clients::new(machines)?.run(pace, warm_up, window, || meter.cpu())
        })?;
        ensure_right(&report)?;
        Ok::<_, anyhow::Error>(report)
    };
    let peak = run(Pace::InFlight(32), 300, 1500)?;
    let single = run(Pace::InFlight(1), 50, 400)?;
    let storm = run(Pace::PerSecond(3.0 * peak.done_per_second), 1200, 2000)?;
    server.alive()?;
    Ok(vec![
        peak.done_per_second,
        peak.cpu_per_exchange.as_secs_f64() * 1e6,
        single.p50.as_secs_f64() * 1e3,
        storm.begun_per_second,
        100.0 * storm.done_per_second / peak.done_per_second,
        storm.p50.as_secs_f64() * 1e3,
        storm.p99.as_secs_f64() * 1e3,
        ready.as_secs_f64(),
        fresh,
        meter.resident()?,
    ])
}

fn dnsmasq_persisted(directory: &Path, machines: &[Machine]) -> Result<Command> {
    let mut command = dnsmasq(directory, machines)?;
    command.arg(format!(
        "--dhcp-leasefile={}",
        directory.join("leases").display()
    ));
    Ok(command)
}

fn dnsmasq_forgetful(directory: &Path, machines: &[Machine]) -> Result<Command> {
    let mut command = dnsmasq(directory, machines)?;
    command.arg("--leasefile-ro");
    Ok(command)
}

fn dnsmasq(directory: &Path, machines: &[Machine]) -> Result<Command> {
    let hosts = directory.join("hosts");
    let line = |machine: &Machine| format!("{},{},1h\n", mac(machine), machine.address);
    fs::write(&hosts, machines.iter().map(line).collect::<String>())
        .context("writing dnsmasq's hosts")?;
    let mut command = Command::new("dnsmasq");
    command.args([
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--port=0",
        "--user=root",
        "--no-ping",
    ]);
    command.args([
        "--bind-interfaces",
        "--quiet-dhcp",
        "--log-facility=-",
        "--dhcp-authoritative",
    ]);
    command.args([
        "--dhcp-range=10.77.0.0,static,255.255.0.0,1h",
        "--dhcp-lease-max=20000",
    ]);
    command.arg(format!("--interface={SERVER_LINK}"));
    command.arg(format!("--dhcp-hostsfile={}", hosts.display()));
    command.arg("--pid-file");
    Ok(command)
}

fn kea(directory: &Path, machines: &[Machine]) -> Result<Command> {
    let mut reservations = String::new();
    for machine in machines {
        let separator = if reservations.is_empty() { "" } else { "," };
        write!(
            reservations,
            "{separator}{{\"hw-address\":\"{}\",\"ip-address\":\"{}\"}}",
            mac(machine),
            machine.address
        )?;
    }
    let text = format!(
        r#"{{"Dhcp4":{{
        "interfaces-config":{{"interfaces":["{SERVER_LINK}"],"dhcp-socket-type":"udp"}},
        "lease-database":{{"type":"memfile","persist":true,"name":"{leases}","lfc-interval":0}},
        "host-reservation-identifiers":["hw-address"],
        "valid-lifetime":3600,
        "loggers":[{{"name":"kea-dhcp4","severity":"ERROR","output_options":[{{"output":"stderr"}}]}}],
        "subnet4":[{{"subnet":"10.77.0.0/16","option-data":[{{"name":"routers","data":"{SERVER}"}}],
            "reservations":[{reservations}]}}]
        }}}}"#,
        leases = directory.join("leases.csv").display(),
    );
    let file = directory.join("kea.json");
    fs::write(&file, text).context("writing Kea's configuration")?;
    let mut command = Command::new("kea-dhcp4");
    command.arg("-c").arg(file);
    command
        .env("KEA_PIDFILE_DIR", directory)
        .env("KEA_LOCKFILE_DIR", directory);
    Ok(command)
}

fn coredhcp(directory: &Path, machines: &[Machine]) -> Result<Command> {
    let leases = directory.join("leases");
    let line = |machine: &Machine| format!("{} {}\n", mac(machine), machine.address);
    fs::write(&leases, machines.iter().map(line).collect::<String>())
        .context("writing coredhcp's leases")?;
    let file = directory.join("coredhcp.yml");
    let text = format!(
        "server4:\n    listen:\n        - \"{SERVER}\"\n    plugins:\n        - lease_time: 3600s\n        \
         - server_id: {SERVER}\n        - router: {SERVER}\n        - netmask: 255.255.0.0\n        \
         - file: {}\n",
        leases.display()
    );
    fs::write(&file, text).context("writing coredhcp's configuration")?;
    let mut command = Command::new(asset("peers/coredhcp-server/usr/bin/coredhcp"));
    command
        .args(["--nostdout", "--loglevel", "error", "--conf"])
        .arg(file);
    Ok(command)
}

pub(crate) fn mac(machine: &Machine) -> String {
    machine.mac.map(|byte| format!("{byte:02x}")).join(":")
}
