//! Whether backends may get connections, asked again and again.
//!
//! One task for each target looks, counts good and bad answers in a row and turns the target's health. A connection that
//! failed makes it look at once, so a backend that died is out after a moment and not after `fall` intervals.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use netboot::endpoint::{Check, Probe};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use super::flow::local_header;
use super::pool::{Health, Target};
use crate::probe::glance::{glance, untrusting};
use crate::probe::kube::TrustedCa;

/// Between two looks, however many connections fail.
const SHORTEST: Duration = Duration::from_millis(200);

/// Who must answer: a server whose certificate comes from this CA and bears this name.
#[derive(Clone, Debug)]
pub struct Known {
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Known {
    /// `None` where no certificate may bear the name.
    pub(crate) fn new(ca: &TrustedCa, name: &str) -> Option<Self> {
        let name = ServerName::try_from(name.to_owned()).ok()?;
        let tls = ca.tls();
        Some(Self { tls, name })
    }
}

/// Good and bad answers in a row, and what they make of a backend.
#[derive(Debug, Default)]
struct Streak {
    good: u8,
    bad: u8,
}

impl Streak {
    /// The health after one more answer. The first answer of all decides by itself: a daemon that was just started
    /// has connections waiting.
    fn health(&mut self, before: Health, good: bool, check: &Check) -> Health {
        if good {
            (self.good, self.bad) = (self.good.saturating_add(1), 0);
        } else {
            (self.good, self.bad) = (0, self.bad.saturating_add(1));
        }
        match before {
            Health::Unknown if good => Health::Up,
            Health::Unknown => Health::Down,
            Health::Down if self.good >= check.rise => Health::Up,
            Health::Up if self.bad >= check.fall => Health::Down,
            Health::Up | Health::Down => before,
        }
    }
}

/// Looks at a target for ever.
pub(super) async fn watch(target: Arc<Target>, check: Check, proxy_protocol: bool, label: String) {
    let interval = Duration::from_millis(u64::from(check.interval)).max(SHORTEST);
    let mut streak = Streak::default();
    loop {
        let looked = look(target.address, &check.probe, proxy_protocol, None);
        let looked = match timeout(interval, looked).await {
            Ok(looked) => looked,
            Err(_) => Err(format!("no answer within {} ms", interval.as_millis())),
        };
        let before = target.health();
        let health = streak.health(before, looked.is_ok(), &check);
        let words = looked.unwrap_or_else(|why| why);
        if health != before {
            let (node, address) = (&target.node, target.address);
            match health {
                Health::Up => info!(listener = %label, %node, %address, "backend is up: {words}"),
                Health::Unknown | Health::Down => {
                    warn!(listener = %label, %node, %address, "backend is down: {words}");
                }
            }
        }
        target.words.store(Arc::new(words));
        target.set_health(health);
        sleep(SHORTEST).await;
        tokio::select! {
            () = sleep(interval - SHORTEST) => {}
            () = target.suspicion.notified() => {}
        }
    }
}

/// One look: what was seen, good or bad. Where it must be somebody known, it is.
pub(crate) async fn look(
    address: SocketAddrV4,
    probe: &Probe,
    proxy_protocol: bool,
    known: Option<&Known>,
) -> Result<String, String> {
    let said = |error: std::io::Error| format!("{address}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(said)?;
    if proxy_protocol {
        stream.write_all(&local_header()).await.map_err(said)?;
    }
    match probe {
        Probe::Tcp => Ok(format!("{address} takes connections")),
        Probe::HttpsReadyz { path } => readyz(stream, address, path, known).await,
    }
}

async fn readyz(
    stream: TcpStream,
    address: SocketAddrV4,
    path: &str,
    known: Option<&Known>,
) -> Result<String, String> {
    let said = |error: std::io::Error| format!("{address}: {error}");
    let (config, name) = match known {
        Some(Known { tls, name }) => (TlsConnector::from(Arc::clone(tls)), name.clone()),
        None => (
            untrusting().map_err(|error| error.to_string())?,
            ServerName::IpAddress((*address.ip()).into()),
        ),
    };
    let mut stream = config.connect(name, stream).await.map_err(said)?;
    match glance(&mut stream, &address, path).await {
        Ok(Some(200)) => Ok(format!("200 from {address}{path}")),
        // An API server that answers nobody it does not know; one that does not serve says nothing at all.
        Ok(Some(401)) => Ok(format!(
            "401 from {address}{path}, which serves only those it knows"
        )),
        Ok(Some(status)) => Err(format!("{status} from {address}{path}")),
        Ok(None) => Err(format!("{address}{path} answers no HTTP")),
        Err(error) => Err(said(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_answers_in_a_row_to_turn_a_backend_and_the_first_one_decides() {
        let check = Check::tcp();
        let (mut streak, mut health) = (Streak::default(), Health::Unknown);
        let mut told = Vec::new();
        for good in [
            true, false, false, true, false, false, false, true, false, true, true,
        ] {
            health = streak.health(health, good, &check);
            told.push(health == Health::Up);
        }
        let up = [
            true, true, true, true, true, true, false, false, false, false, true,
        ];
        assert_eq!(told, up);
    }
}
