//! One HTTPS connection to one server of a cluster, bounded in time and size, and the words for how it went wrong.
//!
//! Requests are made by `kube`'s own builder and sent over a connection of our own: its client takes TLS from whatever the
//! process set as default, keeps idle connections for as long as it lives, reads answers of any length and logs what it can't
//! parse. Here a connection lasts one look, and dropping it ends everything that belongs to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{HOST, HeaderValue};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kube::core::Status;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// To connect and to greet. A control plane that lives answers in milliseconds.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// From a request to the end of its answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// No page of a list comes near this: fifty nodes that each list fifty images are 2 MiB.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Longest piece of a server's own text that is repeated, in characters.
const SHOWN_CHARS_MAX: usize = 160;

/// Where a server of the cluster listens, and the name its certificate must bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address, such as `10.1.107.11:6443`.
    pub address: SocketAddr,
    /// The name asked for in TLS.
    pub name: ServerName<'static>,
}

/// Why a server gave no usable answer. Its words are what `status` shows.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(String);

impl Trouble {
    fn new(what: String) -> Self {
        Self(what)
    }

    /// What we would say can't be written down.
    pub(super) fn unsaid(error: &serde_json::Error) -> Self {
        Self::new(format!("writing a request: {error}"))
    }

    /// There is no server to ask.
    pub(super) fn nobody() -> Self {
        Self::new("no control plane can be asked yet".to_owned())
    }
}

/// An open connection.
pub(super) struct Session {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    host: HeaderValue,
    /// Drives the connection; ended when dropped.
    _driver: JoinSet<()>,
}

impl Session {
    /// Connects, and checks that the server is who it should be.
    pub(super) async fn open(server: &Server, tls: &Arc<ClientConfig>) -> Result<Self, Trouble> {
        let address = server.address;
        let silent = |_| Trouble::new(format!("no answer from {address} within 3 s"));
        timeout(CONNECT_TIME, Self::greet(server, tls))
            .await
            .map_err(silent)?
    }

    async fn greet(server: &Server, tls: &Arc<ClientConfig>) -> Result<Self, Trouble> {
        let address = server.address;
        let refused = |error: io::Error| Trouble::new(connecting(address, &error));
        let stream = TcpStream::connect(address).await.map_err(refused)?;
        let connector = TlsConnector::from(Arc::clone(tls));
        let greeted = connector.connect(server.name.clone(), stream).await;
        let stream = greeted.map_err(|error| Trouble::new(greeting(address, &error)))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| speaking(address, &error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // How it ended is what the request says.
            let _ = connection.await;
        });
        let host = format!("{}:{}", server.name.to_str(), address.port());
        Ok(Self {
            sender,
            address,
            host: HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("kubernetes")),
            _driver: driver,
        })
    }

    /// Sends one request and reads the answer's body to its end; an answer that isn't a success is trouble.
    pub(super) async fn ask(&mut self, request: Request<Vec<u8>>) -> Result<Bytes, Trouble> {
        let address = self.address;
        let silent = |_| Trouble::new(format!("no whole answer from {address} within 5 s"));
        timeout(ANSWER_TIME, self.exchange(request))
            .await
            .map_err(silent)?
    }

    async fn exchange(&mut self, request: Request<Vec<u8>>) -> Result<Bytes, Trouble> {
        let address = self.address;
        let mut request = request.map(|body| Full::new(Bytes::from(body)));
        request.headers_mut().insert(HOST, self.host.clone());
        let failed = |error: hyper::Error| speaking(address, &error);
        self.sender.ready().await.map_err(failed)?;
        let answer = self.sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
        let body = body.await.map_err(|error| {
            let what = format!(
                "reading the answer of {address}: {}",
                shown(&error.to_string())
            );
            Trouble::new(what)
        })?;
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        // A failed answer of the API carries a `Status` that says why; those of proxies and probes don't.
        let why = serde_json::from_slice::<Status>(&body).map(|status| status.message);
        let why = why.map_or(String::new(), |why| format!(": {}", shown(&why)));
        let status = status.as_u16();
        Err(Trouble::new(format!("{status} from {address}{why}")))
    }

    /// Sends one request and reads the answer as JSON.
    pub(super) async fn json<T: DeserializeOwned>(
        &mut self,
        request: Request<Vec<u8>>,
    ) -> Result<T, Trouble> {
        let path = request.uri().path().to_owned();
        let body = self.ask(request).await?;
        // serde_json's words may repeat a value; a place is enough.
        serde_json::from_slice(&body).map_err(|error| {
            let (address, line, column) = (self.address, error.line(), error.column());
            let what =
                format!("{address} answers {path} with no object of that kind ({line}:{column})");
            Trouble::new(what)
        })
    }
}

/// A request that can be made of what the API's own names allow.
pub(super) fn built(
    request: Result<Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Request<Vec<u8>>, Trouble> {
    request.map_err(|error| Trouble::new(format!("asking the API: {error}")))
}

/// Somebody else's text on one line, cut.
pub(super) fn shown(text: &str) -> String {
    let mut one_line: String = text
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(SHOWN_CHARS_MAX)
        .collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        one_line.push('…');
    }
    one_line
}

fn connecting(address: SocketAddr, error: &io::Error) -> String {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let kind = error.kind();
    if kind == ConnectionRefused {
        format!("connection refused by {address}")
    } else if matches!(kind, HostUnreachable | NetworkUnreachable) {
        format!("{address} can't be reached")
    } else {
        format!("connecting to {address}: {error}")
    }
}

fn greeting(address: SocketAddr, error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => greeting_failed(address, tls),
        None => format!("{address} ended the TLS greeting: {error}"),
    }
}

fn greeting_failed(address: SocketAddr, error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(why) = error else {
        return format!("TLS with {address}: {error}");
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is rare has words of its own"
    )]
    let why = match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is not of this cluster's CA".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet; compare the clocks".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for other names".to_owned()
        }
        other => format!("is refused: {other}"),
    };
    format!("the certificate of {address} {why}")
}

/// What went wrong after the greeting. With TLS 1.3 a server refuses our certificate only here.
fn speaking(address: SocketAddr, error: &hyper::Error) -> Trouble {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let tls = inner
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            let what = format!("{address} refused our certificate ({alert:?})");
            return Trouble::new(what);
        }
        source = inner.source();
    }
    Trouble::new(format!("{address} broke off: {error}"))
}
