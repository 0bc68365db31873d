//! The way to one node's apid: TLS by the cluster's own authority on both sides, then gRPC.
//!
//! ```text
//!   TCP ──▶ TLS: its certificate by the cluster's OS CA and for its address, ours with O=os:admin ──▶ gRPC over HTTP/2
//! ```
//!
//! The connection is made before gRPC begins, so that each way to fail has words of its own. One connection serves one
//! look or one act; nothing reconnects by itself, since a call must not be made twice unasked.
//!
//! Ugly facts. Talos writes Ed25519 keys as PKCS #8 under a label of its own, `ED25519 PRIVATE KEY`
//! (siderolabs/crypto `x509/constants.go`). A node that waits for its config serves the same port with a certificate that
//! it signed itself. With TLS 1.3 a client learns that its certificate was refused only when it reads.

use std::error::Error;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use ignition::secret::Secret;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore, crypto};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// apid's TCP port (siderolabs/talos `pkg/machinery/constants/constants.go`).
pub const PORT: u16 = 50000;
/// A reply may have this many bytes; a full list of services has a tenth of it.
pub const REPLY_BYTES_MAX: usize = 1 << 20;
/// The head of a reply, in which errors stand.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// To reach a node and to agree on TLS with it.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// What a node says is shown up to here, in characters.
const WORDS_MAX: usize = 300;

/// What opens the machine API of one cluster's nodes. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    tls: TlsConnector,
}

/// Why an [`Access`] can't be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessFault {
    #[error("the cluster's OS CA is not a certificate in PEM")]
    Authority,
    #[error("the administrator's certificate is not a certificate in PEM")]
    Certificate,
    #[error("the administrator's key is not a private key in PEM")]
    Key,
    #[error("the administrator's certificate and key do not fit")]
    Tls(#[source] rustls::Error),
}

impl Access {
    /// An access by the cluster's OS CA, and a certificate (O=os:admin) that it signed, with its key; all PEM.
    ///
    /// # Errors
    /// When one of them is not what it should be, or key and certificate do not belong together.
    pub fn new(
        authority: &str,
        certificate: &str,
        key: &Secret<String>,
    ) -> Result<Self, AccessFault> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(authority.as_bytes());
        authority
            .ok()
            .and_then(|der| roots.add(der).ok())
            .ok_or(AccessFault::Authority)?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| AccessFault::Certificate)?;
        let key = Secret::new(key.expose().replace("ED25519 PRIVATE KEY", "PRIVATE KEY"));
        let key =
            PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| AccessFault::Key)?;
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(AccessFault::Tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .map_err(AccessFault::Tls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Connects to a node's apid.
    ///
    /// # Errors
    /// `Unavailable`, with words: nobody answers, or its certificate is not this cluster's for this address.
    pub(super) async fn connect(&self, to: SocketAddr) -> Result<Conversation, Status> {
        let reached = timeout(CONNECT_TIME, self.reach(to)).await;
        let stream = reached.unwrap_or_else(|_| Err(silent(CONNECT_TIME)))?;
        // The scheme is what tonic would choose its own TLS by; this stream is past that.
        let endpoint = Endpoint::from_shared(format!("http://{to}"))
            .expect("a socket address is an authority")
            .http2_max_header_list_size(HEAD_BYTES_MAX);
        let channel = endpoint.connect_with_connector(Once(Some(stream))).await;
        let channel = channel.map_err(|error| Status::unavailable(broken(&error)))?;
        let grpc = Grpc::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        Ok(Conversation { grpc })
    }

    async fn reach(&self, to: SocketAddr) -> Result<TlsStream<TcpStream>, Status> {
        let stream = TcpStream::connect(to).await.map_err(|error| {
            Status::unavailable(format!("TCP port {} does not answer: {error}", to.port()))
        })?;
        let name = ServerName::IpAddress(to.ip().into());
        let agreed = self.tls.connect(name, stream).await;
        agreed.map_err(|error| Status::unavailable(no_trust(&error)))
    }
}

/// Why a node is not talked to, though it answers.
fn no_trust(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(fault)) = inner else {
        return format!("no TLS: {}", words(error));
    };
    let time = matches!(
        fault,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    );
    let name = matches!(
        fault,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
    );
    if time {
        format!("{fault}: compare its clock with the bastion's")
    } else if name {
        format!("its certificate is for another address: {fault}")
    } else {
        "its certificate is not of this cluster: the node waits for its config (maintenance mode), or belongs to another cluster"
            .to_owned()
    }
}

/// One connection to one node's apid.
pub(super) struct Conversation {
    grpc: Grpc<Channel>,
}

impl Conversation {
    /// One question, one answer.
    pub(super) async fn ask<Q, A>(&mut self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.ready().await?;
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.grpc.unary(Request::new(question), path, codec).await?;
        Ok(answer.into_inner())
    }

    /// One question, answers one after the other.
    pub(super) async fn ask_for_many<Q, A>(
        &mut self,
        path: &'static str,
        question: Q,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.ready().await?;
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<Q, A>::default();
        let question = Request::new(question);
        let answers = self.grpc.server_streaming(question, path, codec).await?;
        Ok(answers.into_inner())
    }

    async fn ready(&mut self) -> Result<(), Status> {
        let ready = self.grpc.ready().await;
        ready.map_err(|error| Status::unavailable(broken(&error)))
    }
}

/// Gives gRPC the stream that is there already, and no other.
struct Once(Option<TlsStream<TcpStream>>);

impl Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().map(TokioIo::new);
        ready(stream.ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Nothing came in time.
pub(super) fn silent(limit: Duration) -> Status {
    Status::unavailable(format!("no answer within {} s", limit.as_secs()))
}

/// What a node said, or what the way to it did, in one bounded line.
pub(super) fn told(status: &Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match status.source() {
        None => one_line(message),
        Some(source) => one_line(&format!("{message}: {}", broken(source))),
    }
}

/// Why a conversation broke off. A server that refuses our certificate says so by an alert after the handshake (RFC 8446,
/// section 4.4.2), and the connection may be over before anybody reads it.
fn broken(error: &(dyn Error + 'static)) -> String {
    let said = words(error);
    match said.contains("alert") {
        true => said,
        false => one_line(&format!(
            "the connection ended early, for it restarts or does not take our certificate: {said}"
        )),
    }
}

/// An error with its causes.
fn words(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_said = cause.to_string();
        if !said.contains(&cause_said) {
            said = format!("{said}: {cause_said}");
        }
        next = cause.source();
    }
    one_line(&said)
}

/// Foreign words, fit to be shown and kept.
pub(super) fn one_line(text: &str) -> String {
    let sound = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    sound.take(WORDS_MAX).collect()
}
