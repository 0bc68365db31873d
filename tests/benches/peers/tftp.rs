//! TFTP rows: one, fifty and two hundred readers, windows where the server has them, one per cent loss.
//!
//! Touches: the lab's namespaces, files in its scratch directory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::lab::asset;

use crate::Plan;
use crate::lab::{Lab, SERVER, SERVER_LINK};
use crate::table::{Column, Table};
use crate::tftp_load::{Case, answered, read};

const COLUMNS: &[Column] = &[
    Column("MB/s", 1),
    Column("CPU s/GiB", 1),
    Column("transfers failed", 0),
];

type Configure = fn(&Path) -> Result<Command>;

struct Peer {
    name: &'static str,
    configure: Configure,
    windows: bool,
}

const PEERS: &[Peer] = &[
    Peer {
        name: "Reveille",
        configure: crate::reveille::tftp,
        windows: true,
    },
    Peer {
        name: "tftpd-hpa",
        configure: tftpd_hpa,
        windows: false,
    },
    Peer {
        name: "dnsmasq",
        configure: dnsmasq,
        windows: false,
    },
    Peer {
        name: "atftpd",
        configure: atftpd,
        windows: true,
    },
];

/// Case, readers, MiB of the file, window, loss in per mille, seconds at most.
const CASES: &[(&str, usize, usize, u16, u32, u64)] = &[
    ("1 client, 16 MiB, window 1", 1, 16, 1, 0, 2),
    ("1 client, 16 MiB, window 16", 1, 16, 16, 0, 2),
    ("1 client, 16 MiB, window 64", 1, 16, 64, 0, 2),
    ("50 clients, 1 MiB, window 1", 50, 1, 1, 0, 4),
    ("50 clients, 1 MiB, window 16", 50, 1, 16, 0, 4),
    ("100 clients, 1 MiB, window 1", 100, 1, 1, 0, 5),
    ("200 clients, 1 MiB, window 1", 200, 1, 1, 0, 6),
    ("200 clients, 16 MiB, window 16", 200, 16, 16, 0, 4),
    ("20 clients, 1 MiB, window 1, 1 % loss", 20, 1, 1, 10, 6),
    ("20 clients, 1 MiB, window 16, 1 % loss", 20, 1, 16, 10, 6),
];

/// The sizes of the files that every server offers, in MiB; the file of size 1 is called `1`.
pub(crate) const FILES: &[usize] = &[1, 16];

pub(crate) fn measure(lab: &Lab, plan: &Plan) -> Result<Vec<Table>> {
    let mut table = Table::new("TFTP, block size 1468", COLUMNS);
    let mut servers = Vec::new();
    for peer in PEERS.iter().filter(|peer| plan.wants(peer.name)) {
        let directory = lab.directory(peer.name)?;
        servers.push((
            peer,
            (peer.configure)(&directory).with_context(|| format!("preparing {}", peer.name))?,
        ));
    }
    let cases = CASES.iter().filter(|case| plan.has_case(case.0));
    for (name, clients, size, window, lost_per_mille, seconds) in cases {
        let case = Case {
            clients: *clients,
            file: size.to_string(),
            window: *window,
            lost_per_mille: *lost_per_mille,
            limit: Duration::from_secs(*seconds),
        };
        for _ in 0..plan.rounds {
            for (peer, command) in &servers {
                if case.window > 1 && !peer.windows {
                    continue;
                }
                let figures =
                    one(lab, command, &case).with_context(|| format!("measuring {}", peer.name))?;
                table.add(name, peer.name, &figures);
            }
        }
    }
    Ok(vec![table])
}

fn one(lab: &Lab, command: &Command, case: &Case) -> Result<Vec<f64>> {
    let mut server = lab.serve(command, &lab.directory("tftp-log")?.join("log"))?;
    server.wait(|| lab.load(|| answered("1")))?;
    let meter = server.meter();
    let before = meter.cpu()?;
    let (mut bytes, mut elapsed, mut failed, mut run) = (0, Duration::ZERO, 0, 0);
    // What is over in a moment is done again, for a figure of a second at least.
    while elapsed < Duration::from_secs(1) {
        let load = case.clone();
        let report = lab.load(move || read(&load, run))?;
        run += 1;
        bytes += report.bytes;
        elapsed += report.elapsed;
        failed += report.failed;
    }
    let used = meter.cpu()?.saturating_sub(before).as_secs_f64();
    server.alive()?;
    let gib = bytes as f64 / f64::from(1 << 30);
    let rate = bytes as f64 / 1e6 / elapsed.as_secs_f64();
    Ok(vec![rate, used / gib, failed as f64])
}

/// Fills `directory` with the files of [`FILES`].
pub(crate) fn files(directory: &Path) -> Result<()> {
    for size in FILES {
        let content: Vec<u8> = (0..size << 20).map(|at| ((at * 31) >> 7) as u8).collect();
        fs::write(directory.join(size.to_string()), content).context("writing a file to serve")?;
    }
    Ok(())
}

fn tftpd_hpa(directory: &Path) -> Result<Command> {
    files(directory)?;
    let mut command = Command::new(asset("peers/tftpd-hpa/usr/sbin/in.tftpd"));
    command.args(["--foreground", "--user", "root", "--secure", "--address"]);
    command.arg(format!("{SERVER}:69")).arg(directory);
    Ok(command)
}

fn dnsmasq(directory: &Path) -> Result<Command> {
    files(directory)?;
    let mut command = Command::new("dnsmasq");
    command.args([
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--port=0",
        "--user=root",
    ]);
    command.args([
        "--enable-tftp",
        "--tftp-max=1000",
        "--bind-interfaces",
        "--quiet-tftp",
    ]);
    command.arg(format!("--interface={SERVER_LINK}"));
    command.arg(format!("--tftp-root={}", directory.display()));
    command.args(["--log-facility=-", "--pid-file"]);
    Ok(command)
}

fn atftpd(directory: &Path) -> Result<Command> {
    files(directory)?;
    let mut command = Command::new(asset("peers/atftpd/usr/sbin/atftpd"));
    command.args([
        "--daemon",
        "--no-fork",
        "--user",
        "root.root",
        "--maxthread",
        "1000",
    ]);
    command.args([
        "--logfile",
        "/dev/null",
        "--verbose=0",
        "--port",
        "69",
        "--bind-address",
    ]);
    command.arg(SERVER.to_string()).arg(directory);
    Ok(command)
}
