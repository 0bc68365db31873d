//! A fake of a cluster's HTTPS servers: it gives recorded answers by path, to whoever trusts its CA, and keeps what it was asked.
//!
//! It stands in for what no real server here can show: OKD's operators, newer fields, a server that is silent or endless.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::probe::kube::{KubeAccess, Server};
use daemon::tls::SiteCa;
use ignition::secret::Secret;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

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

pub struct Fake {
    pub address: SocketAddr,
    ca: SiteCa,
    asked: Arc<Mutex<Vec<String>>>,
    _state: TempDir,
}

impl Fake {
    /// Listens on loopback; its tasks end with the runtime of the test.
    pub async fn start(answers: Vec<(&'static str, Answer)>) -> Self {
        let state = tempfile::tempdir().expect("a directory");
        let ca = SiteCa::open(state.path()).expect("a CA");
        let acceptor = ca.acceptor(HERE).expect("a server");
        let listener = TcpListener::bind((HERE, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let fake = Self {
            address,
            ca,
            asked: Arc::clone(&asked),
            _state: state,
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, asked) = (acceptor.clone(), Arc::clone(&asked));
                let answers = answers.clone();
                tokio::spawn(async move {
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        while let Some(head) = head(&mut stream).await {
                            let answer = answer_to(&head, &answers);
                            asked.lock().expect("whole").push(head);
                            if !reply(&mut stream, answer).await {
                                break;
                            }
                        }
                    }
                });
            }
        });
        fake
    }

    /// The CA that vouches for it, in PEM.
    pub fn ca(&self) -> &str {
        self.ca.pem()
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

fn answer_to(head: &str, answers: &[(&'static str, Answer)]) -> Answer {
    let path = head.split_whitespace().nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let known = answers.iter().find(|(known, _)| *known == path);
    known.map_or_else(
        || Answer::Says(404, not_found(path)),
        |(_, answer)| answer.clone(),
    )
}

/// What an API server says of a path that it does not know, as 1.20.2 said it.
fn not_found(_: &str) -> String {
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server could not find the requested resource","reason":"NotFound","details":{},"code":404}"#.to_owned()
}

async fn reply(stream: &mut (impl AsyncWriteExt + Unpin), answer: Answer) -> bool {
    match answer {
        Answer::Says(status, body) => {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Recorded\r\ncontent-length: {length}\r\n\r\n");
            let whole = format!("{head}{body}");
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
