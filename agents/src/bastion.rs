//! The one request a node makes: POST its report, again and again until it is acknowledged.
//!
//! Any 2xx is the acknowledgement: by then the bastion has the report on disk. A connection that
//! fails, a 5xx or a timeout is tried again for ever unless told otherwise. Of the refusals only 403
//! may heal by itself (the bastion's neighbour table may not know this machine yet), so it is tried
//! for a minute; any other 4xx is final.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

const TRY_TIME: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
const REFUSED_TIME: Duration = Duration::from_secs(60);

/// The report as it is sent.
#[derive(Debug, Serialize)]
pub(crate) struct Said {
    pub(crate) report: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Acknowledged,
    Refused(String),
    GaveUp(String),
}

/// Where to report.
pub(crate) struct Bastion {
    host: String,
    port: u16,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Bastion {
    /// Reads the URL, and the authority that an https URL needs.
    pub(crate) fn new(url: &str, ca: Option<&Path>) -> Result<Self, String> {
        let wrong = || format!("{url:?} is no http or https URL; copy it from the boot script");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?.to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let (port, tls) = match uri.scheme_str() {
            Some("http") => (80, None),
            Some("https") => {
                let ca =
                    ca.ok_or("an https URL needs the authority's certificate; name it with --ca")?;
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                (443, Some((trusting(ca)?, name)))
            }
            _ => return Err(wrong()),
        };
        Ok(Self {
            port: uri.port_u16().unwrap_or(port),
            path: path.to_owned(),
            host,
            tls,
        })
    }

    /// Reports until it is acknowledged, refused for good, or `patience` is over.
    pub(crate) async fn report(&self, said: &Said, patience: Option<Duration>) -> Ended {
        let body = Bytes::from(serde_json::to_vec(said).expect("two texts are always JSON"));
        let (start, mut pause) = (Instant::now(), PAUSE_FIRST);
        loop {
            let why = match timeout(TRY_TIME, self.post(body.clone())).await {
                Ok(Ok(status)) if status.is_success() => return Ended::Acknowledged,
                Ok(Ok(status)) if status == StatusCode::FORBIDDEN => {
                    if start.elapsed() > REFUSED_TIME {
                        return Ended::Refused(status.to_string());
                    }
                    format!("it answered {status}")
                }
                Ok(Ok(status)) if status.is_client_error() => {
                    return Ended::Refused(status.to_string());
                }
                Ok(Ok(status)) => format!("it answered {status}"),
                Ok(Err(error)) => error,
                Err(_) => format!("no answer within {} s", TRY_TIME.as_secs()),
            };
            if patience.is_some_and(|patience| start.elapsed() + pause > patience) {
                return Ended::GaveUp(why);
            }
            eprintln!("{}:{}: {why}; trying again", self.host, self.port);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn post(&self, body: Bytes) -> Result<StatusCode, String> {
        let stream = TcpStream::connect((self.host.trim_matches(['[', ']']), self.port))
            .await
            .map_err(|error| format!("connecting: {error}"))?;
        match &self.tls {
            None => self.exchange(stream, body).await,
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await;
                let stream = stream.map_err(|error| format!("agreeing on TLS: {error}"))?;
                self.exchange(stream, body).await
            }
        }
    }

    async fn exchange<S>(&self, stream: S, body: Bytes) -> Result<StatusCode, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| format!("exchanging HTTP: {error}");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::post(&self.path)
            .header(http::header::HOST, format!("{}:{}", self.host, self.port))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| format!("writing the request: {error}"))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        Ok(answer.status())
    }
}

fn trusting(ca: &Path) -> Result<TlsConnector, String> {
    let act =
        |error: &dyn std::fmt::Display| format!("reading the CA file {}: {error}", ca.display());
    let pem = fs::read(ca).map_err(|error| act(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| act(&error))?;
        roots.add(certificate).map_err(|error| act(&error))?;
    }
    if roots.is_empty() {
        return Err(act(&"it holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring offers the suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A bastion that gives these answers, one a connection, and returns the bodies it was sent.
    fn answering(
        answers: &'static [&'static str],
    ) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!(
            "http://{}/agent/v1/report/t",
            listener.local_addr().unwrap()
        );
        let bodies = std::thread::spawn(move || {
            let mut bodies = Vec::new();
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let (mut reader, mut length) = (BufReader::new(stream), 0);
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    if let Some(count) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = count.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                bodies.push(String::from_utf8(body).unwrap());
                reader
                    .into_inner()
                    .write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                    .unwrap();
            }
            bodies
        });
        (url, bodies)
    }

    #[tokio::test]
    async fn a_report_is_sent_until_it_is_acknowledged() {
        let (url, bodies) = answering(&["503 Busy", "403 Not yet", "200 OK"]);
        let said = Said {
            report: "failed",
            detail: "no disk".to_owned(),
        };
        let ended = Bastion::new(&url, None).unwrap().report(&said, None).await;
        assert!(matches!(ended, Ended::Acknowledged), "{ended:?}");
        let body = r#"{"report":"failed","detail":"no disk"}"#;
        assert_eq!(bodies.join().unwrap(), [body; 3]);
    }

    #[tokio::test]
    async fn a_final_refusal_ends_it_at_once() {
        let (url, bodies) = answering(&["404 Not Found"]);
        let said = Said {
            report: "installed",
            detail: String::new(),
        };
        let ended = Bastion::new(&url, None).unwrap().report(&said, None).await;
        assert!(matches!(ended, Ended::Refused(_)), "{ended:?}");
        assert_eq!(bodies.join().unwrap(), [r#"{"report":"installed"}"#]);
    }

    #[test]
    fn an_https_url_needs_an_authority() {
        assert!(Bastion::new("https://10.0.0.1:8443/x", None).is_err());
        assert!(Bastion::new("ftp://10.0.0.1/x", None).is_err());
        assert!(Bastion::new("10.0.0.1", None).is_err());
    }
}
