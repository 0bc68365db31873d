//! The daemon's balancer behind listeners from a file: `balance DIRECTORY ENGINE`. SIGHUP reads the file again, SIGTERM ends it
//! as the daemon is ended; the status is written beside it ten times a second.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use daemon::balancer::haproxy::Haproxy;
use daemon::balancer::{self, Limits};
use daemon::handover::Inheritance;
use daemon::link;
use netboot::endpoint::Listener;
use tests::balance::{Wanted, files};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(engine)) = (arguments.next(), arguments.next()) else {
        bail!("balance DIRECTORY embedded|haproxy");
    };
    let directory = PathBuf::from(directory);
    let (wanted, status) = files(&directory);
    let limits = Limits {
        connect: Duration::from_millis(500),
        // HAProxy begins only where it may open two descriptors for each.
        house: 2048,
        connections: 2048,
        ..Limits::default()
    };
    let (publish, listeners) = watch::channel(Arc::new(read(&wanted)?));
    let stop = CancellationToken::new();
    let mut hangups = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let links = link::start().await?;
    let (balancer, serving) = if engine == "haproxy" {
        let (balancer, haproxy) = Haproxy::new(directory, limits);
        (
            balancer,
            tokio::spawn(haproxy.run(listeners, links, stop.clone())),
        )
    } else {
        let (balancer, balancing) = balancer::start(limits, Inheritance::take())?;
        (
            balancer,
            tokio::spawn(balancing.run(listeners, links, stop.clone())),
        )
    };
    let mut beats = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = hangups.recv() => drop(publish.send_replace(Arc::new(read(&wanted)?))),
            _ = beats.tick() => {
                let beside = status.with_extension("new");
                std::fs::write(&beside, serde_json::to_string(&balancer.status())?)?;
                std::fs::rename(&beside, &status)?;
            }
        }
        if serving.is_finished() {
            break;
        }
    }
    stop.cancel();
    serving.await?.map_err(|why| anyhow!(why))
}

fn read(wanted: &Path) -> anyhow::Result<Vec<Listener>> {
    let text = std::fs::read_to_string(wanted).context("reading what is wanted")?;
    let wanted: Vec<Wanted> = serde_json::from_str(&text)?;
    Ok(wanted.iter().map(Wanted::listener).collect())
}
