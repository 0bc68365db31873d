//! A client that comes many times a second to a cluster's API, each time by a connection of its own, and counts.
//!
//! Every twentieth visit is a TLS handshake and a request of the API. The others speak plain HTTP and want the sentence
//! that a server with TLS has for that: a balancer moves either kind without looking at it, and handshakes of a debug build
//! would have the machine to themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::kube_fake::NOT_TLS;
use crate::netns::Netns;

const HANDSHAKE_EVERY: usize = 20;
/// For one visit: longer than a balancer takes to try all backends, shorter than a person waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Visits under way; more than that is a failure too.
const AT_ONCE_MAX: usize = 4000;
const FAILURES_SHOWN: usize = 10;

/// A visitor that is under way. Dropping it ends its visits.
pub struct Visitor {
    stop: Option<DropGuard>,
    thread: Option<JoinHandle<Visits>>,
}

/// What became of the visits.
#[derive(Debug, Default)]
pub struct Visits {
    pub made: usize,
    pub failed: usize,
    /// The first failures, with the moment since the beginning.
    pub failures: Vec<String>,
    pub slowest: Duration,
    pub lasted: Duration,
}

struct Door {
    at: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Visitor {
    /// Begins at once, out of a namespace, so often, to the server with this name in a certificate of this CA, which
    /// answers `/version` with `answer`.
    pub fn start(
        netns: &Netns,
        every: Duration,
        at: &str,
        name: &str,
        ca: &str,
        answer: &str,
    ) -> Self {
        let provider = Arc::new(crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).expect("a certificate");
        roots.add(ca).expect("an authority");
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let door = Door {
            at: at.parse().expect("an address"),
            name: ServerName::try_from(name.to_owned()).expect("a name"),
            tls: TlsConnector::from(Arc::new(config)),
        };
        let (stop, answer) = (CancellationToken::new(), answer.to_owned());
        let stopped = stop.clone();
        // A thread of the namespace's thread is in the namespace too.
        let thread = netns.run(move || {
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().expect("a runtime");
                runtime.block_on(visit_until(stopped, every, Arc::new(door), answer.into()))
            })
        });
        Self {
            stop: Some(stop.drop_guard()),
            thread: Some(thread),
        }
    }

    /// No more visits begin; those under way are waited for.
    pub fn end(mut self) -> Visits {
        drop(self.stop.take());
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("no visit panics")
    }
}

async fn visit_until(
    stop: CancellationToken,
    every: Duration,
    door: Arc<Door>,
    answer: Arc<str>,
) -> Visits {
    let mut visits = Visits::default();
    let mut under_way = JoinSet::new();
    // Ticks that were missed are made up for, so the rate holds on a busy machine.
    let mut ticks = tokio::time::interval(every);
    let began = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = under_way.join_next() => visits.note(began, done.expect("no panic")),
            _ = ticks.tick() => {
                let (door, answer) = (Arc::clone(&door), Arc::clone(&answer));
                let handshake = visits.made % HANDSHAKE_EVERY == 0;
                visits.made += 1;
                if under_way.len() < AT_ONCE_MAX {
                    under_way.spawn(async move { door.visit(handshake, &answer).await });
                } else {
                    visits.note(began, Err("too many visits are under way".to_owned()));
                }
            }
        }
    }
    visits.lasted = began.elapsed();
    while let Some(done) = under_way.join_next().await {
        visits.note(began, done.expect("no panic"));
    }
    visits
}

impl Visits {
    fn note(&mut self, began: Instant, done: Result<Duration, String>) {
        match done {
            Ok(took) => self.slowest = self.slowest.max(took),
            Err(why) => {
                self.failed += 1;
                if self.failures.len() < FAILURES_SHOWN {
                    let at = began.elapsed().as_secs_f32();
                    self.failures.push(format!("{at:.1} s: {why}"));
                }
            }
        }
    }
}

impl Door {
    async fn visit(&self, handshake: bool, answer: &str) -> Result<Duration, String> {
        let began = Instant::now();
        let visit = async {
            let act = |act: &'static str| move |error| format!("{act}: {error}");
            let mut stream = TcpStream::connect(self.at)
                .await
                .map_err(act("connecting"))?;
            let heard = if handshake {
                let stream = self.tls.connect(self.name.clone(), stream).await;
                let mut stream = stream.map_err(act("shaking hands"))?;
                ask(&mut stream, answer).await
            } else {
                ask(&mut stream, NOT_TLS).await
            };
            heard.map_err(act("asking"))
        };
        let done = tokio::time::timeout(PATIENCE, visit).await;
        let heard = done.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
        match heard.ends_with(if handshake { answer } else { NOT_TLS }) {
            true => Ok(began.elapsed()),
            false => Err(format!("an answer of {} bytes: {heard:?}", heard.len())),
        }
    }
}

/// What was answered, until it ends with what is wanted.
async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    wanted: &str,
) -> std::io::Result<String> {
    stream
        .write_all(b"GET /version HTTP/1.1\r\nhost: api\r\n\r\n")
        .await?;
    stream.flush().await?;
    let mut heard = Vec::new();
    loop {
        let count = stream.read_buf(&mut heard).await?;
        let text = String::from_utf8_lossy(&heard).into_owned();
        if count == 0 || text.ends_with(wanted) {
            return Ok(text);
        }
    }
}
