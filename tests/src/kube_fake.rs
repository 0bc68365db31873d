//! A fake of a cluster's servers: it answers by path, to whoever trusts its CA, and keeps what it was asked.
//!
//! It stands in for what no real server here can show: OKD's operators, newer fields, a server that is silent or endless, a
//! cluster that comes up and falls while a test looks on.
//!
//! ```text
//!   let ca = Authority::of(&pem, &key);                  // a cluster's own, or Authority::default()
//!   let answers = Answers::default();                    // one map, of as many servers as share a database
//!   answers.say("/readyz", Answer::Says(200, "ok".into()));
//!   let api = Fake::at(&machine, "10.107.0.11:6443", &ca.server(&["api.lab.example.test"]), &answers);
//!   answers.say("/readyz", Answer::Silence);             // from the next request on
//!   drop(api);                                           // the machine died: its connections break, new ones are refused
//! ```
//!
//! Each server runs in the background, in the namespace it was made in, and needs no runtime of the test's.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::probe::kube::{KubeAccess, Server};
use ignition::secret::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, crypto};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::background::Background;
use crate::netns::Netns;

/// What is answered to a path, without its query.
#[derive(Clone)]
pub enum Answer {
    /// A status and a body.
    Says(u16, String),
    /// Nothing, for longer than anybody waits.
    Silence,
    /// A body that does not end.
    Endless,
}

/// What is answered now, by path, and 404 to others. Clones are the same map.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<BTreeMap<String, Answer>>>);

impl Answers {
    /// Answers this from now on.
    pub fn say(&self, path: impl Into<String>, answer: Answer) {
        self.held().insert(path.into(), answer);
    }

    /// Knows nothing of the path from now on.
    pub fn forget(&self, path: &str) {
        self.held().remove(path);
    }

    fn to(&self, head: &str) -> Answer {
        let path = head.split_whitespace().nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let known = self.held().get(path).cloned();
        known.unwrap_or_else(|| Answer::Says(404, NOT_FOUND.to_owned()))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An authority that vouches for fakes.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Authority {
    fn default() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "a fake's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }
}

impl Authority {
    /// One that is there already, in PEM.
    pub fn of(certificate: &str, key: &str) -> Self {
        let key = KeyPair::from_pem(key).expect("a key");
        Self {
            pem: certificate.to_owned(),
            issuer: Issuer::from_ca_cert_pem(certificate, key).expect("a certificate"),
        }
    }

    /// A server with these names and addresses in its certificate.
    pub fn server(&self, names: &[&str]) -> Serving {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("sound names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a PKCS #8 key");
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("key and certificate fit");
        Serving {
            tls: Some(TlsAcceptor::from(Arc::new(config))),
            ca: self.pem.clone(),
        }
    }
}

/// How connections begin.
#[derive(Clone, Default)]
pub struct Serving {
    /// None: without TLS.
    tls: Option<TlsAcceptor>,
    ca: String,
}

/// One server. Dropping it closes its socket and all its connections.
pub struct Fake {
    pub address: SocketAddr,
    ca: String,
    asked: Arc<Mutex<Vec<String>>>,
    _background: Background,
}

impl Fake {
    /// On loopback, by a CA of its own.
    pub fn start(given: Vec<(&'static str, Answer)>) -> Self {
        let (ca, answers) = (Authority::default(), Answers::default());
        for (path, answer) in given {
            answers.say(path, answer);
        }
        let serving = ca.server(&["127.0.0.1"]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        Self::on(listener, serving, answers)
    }

    /// At an address of a namespace; `Serving::default()` is plain HTTP.
    pub fn at(netns: &Netns, address: &str, serving: &Serving, answers: &Answers) -> Self {
        let (address, serving, answers) = (address.to_owned(), serving.clone(), answers.clone());
        netns.run(move || {
            let listener = TcpListener::bind(&address);
            let listener = listener.unwrap_or_else(|error| panic!("binding {address}: {error}"));
            Self::on(listener, serving, answers)
        })
    }

    fn on(listener: TcpListener, serving: Serving, answers: Answers) -> Self {
        let address = listener.local_addr().expect("it is bound");
        listener
            .set_nonblocking(true)
            .expect("a socket can be told");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (heard, ca) = (Arc::clone(&asked), serving.ca.clone());
        let background = Background::start(move || serve(listener, serving, answers, heard));
        Self {
            address,
            ca,
            asked,
            _background: background,
        }
    }

    /// The CA that vouches for it, in PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    pub fn server(&self) -> Server {
        Server::new(self.address, "127.0.0.1").expect("a server")
    }

    /// Access to this fake, by a certificate that it doesn't look at.
    pub fn access(&self) -> KubeAccess {
        access(self.ca(), vec![self.server()])
    }

    /// The requests so far: heads, and what of a body came with them.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("whole").clone()
    }
}

/// Access by a certificate that nobody signed.
pub fn access(ca: &str, servers: Vec<Server>) -> KubeAccess {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(Vec::new()).expect("no names");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let key = Secret::new(key.serialize_pem().into_bytes());
    KubeAccess::new(ca.as_bytes(), certificate.as_bytes(), &key, servers).expect("access")
}

async fn serve(
    listener: TcpListener,
    serving: Serving,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, asked) = (serving.tls.clone(), Arc::clone(&asked));
        let answers = answers.clone();
        tokio::spawn(async move {
            match tls {
                None => converse(stream, &answers, &asked).await,
                Some(_) if speaks_plainly(&stream).await => {
                    // What is left unread would turn the end into a reset.
                    let mut stream = stream;
                    if head(&mut stream).await.is_some() {
                        let _ = stream.write_all(NOT_TLS.as_bytes()).await;
                    }
                }
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, &answers, &asked).await;
                    }
                }
            }
        });
    }
}

/// What servers written in Go say over a port with TLS to who speaks HTTP there (golang/go, `net/http/server.go`).
pub const NOT_TLS: &str =
    "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// A handshake begins with the type of its record, 22 (RFC 8446 section 5.1).
async fn speaks_plainly(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0] != 22
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: &Answers,
    asked: &Mutex<Vec<String>>,
) {
    while let Some(head) = head(&mut stream).await {
        let answer = answers.to(&head);
        let only_head = head.starts_with("HEAD ");
        let last = head
            .to_ascii_lowercase()
            .contains("\r\nconnection: close\r\n");
        asked.lock().expect("whole").push(head);
        if !reply(&mut stream, answer, only_head).await || last {
            break;
        }
    }
    // Who speaks TLS says so before it goes.
    let _ = stream.shutdown().await;
}

/// One request with its body; nothing when the peer is done.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_ascii_lowercase();
            let length = length
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// What an API server says of a path that it does not know, as 1.20.2 said it.
const NOT_FOUND: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server could not find the requested resource","reason":"NotFound","details":{},"code":404}"#;

async fn reply(stream: &mut (impl AsyncWrite + Unpin), answer: Answer, only_head: bool) -> bool {
    match answer {
        Answer::Says(status, body) => {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Recorded\r\ncontent-length: {length}\r\n\r\n");
            let whole = if only_head { head } else { head + &body };
            stream.write_all(whole.as_bytes()).await.is_ok() && stream.flush().await.is_ok()
        }
        Answer::Silence => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            false
        }
        Answer::Endless => {
            let mut sent = stream.write_all(b"HTTP/1.1 200 Recorded\r\n\r\n").await;
            while sent.is_ok() {
                sent = stream.write_all(&[b'x'; 65_536]).await;
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(netns: &Netns, ca: &std::path::Path, address: &str) -> Result<String, String> {
        let url = "https://api.lab.example:6443/readyz";
        let resolve = format!("api.lab.example:6443:{address}");
        let ca = ca.to_str().expect("paths are text");
        let limit = ["--silent", "--show-error", "--max-time", "5"];
        let words = [
            "--fail-with-body",
            "--cacert",
            ca,
            "--resolve",
            &resolve,
            url,
        ];
        netns.try_output("curl", &[&limit[..], &words].concat())
    }

    #[test]
    fn what_a_fake_says_changes_while_it_runs_and_ends_with_it() {
        let netns = Netns::new();
        let (ca, answers) = (Authority::default(), Answers::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &ca.pem).unwrap();
        let serving = ca.server(&["api.lab.example"]);
        let fake = Fake::at(&netns, "127.0.0.2:6443", &serving, &answers);
        let ask = || get(&netns, file.path(), "127.0.0.2");
        assert!(ask().unwrap_err().contains("404"));
        answers.say("/readyz", Answer::Says(200, "ok".to_owned()));
        assert_eq!(ask().unwrap(), "ok");
        assert_eq!(fake.asked().len(), 2);
        drop(fake);
        assert!(ask().unwrap_err().contains("Failed to connect"));
    }
}
