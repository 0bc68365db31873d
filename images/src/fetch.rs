//! A resumable download over HTTPS into the depot.
//!
//! What arrives goes to `incoming/<digest>.part`; a later pull of the same digest hashes what is
//! there and asks for the rest. Nothing gets its final name before its digest is the expected
//! one, so a mirror that is wrong, cut short or changed half way can't put a bad file in place.
//!
//! HTTP/1.1 only, no proxy. Redirects are followed to HTTPS alone: mirrors and release pages of
//! the field answer with one or two.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, HOST, LOCATION, RANGE, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use netboot::net::Digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::artifact::{Artifact, ArtifactName};
use crate::depot::{Depot, DepotError};

const REDIRECTS_MAX: usize = 5;
const TRIES_MAX: u32 = 5;
const CONNECT_TIME: Duration = Duration::from_secs(20);
const SILENCE_TIME: Duration = Duration::from_secs(60);
/// No boot artefact of the field comes near this; a mirror that sends for ever is stopped here.
const BYTES_MAX: u64 = 64 << 30;

/// One file to bring in.
#[derive(Clone, Debug)]
pub struct Pull {
    pub name: ArtifactName,
    pub url: String,
    pub digest: Digest,
}

/// Bytes that the depot holds of the file so far, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: Option<u64>,
}

/// The certificate authorities that a download trusts.
#[derive(Clone)]
pub struct Roots(Arc<ClientConfig>);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{0:?} is not an https address with a host: give the file's full URL")]
    Url(String),
    #[error("no certificate authority found in {0}: install ca-certificates or name a CA file")]
    Roots(PathBuf),
    #[error("connecting to {host}: check the name, the route and the firewall")]
    Connect { host: String, source: io::Error },
    #[error("{host} went silent while {act}: try again, what arrived is kept")]
    Silence { host: String, act: &'static str },
    #[error("exchanging HTTP with {host}: try again, what arrived is kept")]
    Http { host: String, source: hyper::Error },
    #[error("{url} answered {status}: check the address")]
    Status { url: String, status: StatusCode },
    #[error("{url} leads through more than {REDIRECTS_MAX} redirects: give the final address")]
    Redirects { url: String },
    #[error("{url} sent more than {BYTES_MAX} bytes: this is no boot artefact")]
    Endless { url: String },
    #[error("writing what arrives to {path}: look at the free space")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{url} has digest {found}, not {wanted}: compare with the publisher's checksums, nothing was kept"
    )]
    Digest {
        url: String,
        wanted: Digest,
        found: Digest,
    },
    #[error("keeping {0} in the depot")]
    Depot(ArtifactName, #[source] DepotError),
}

impl Roots {
    /// The certificate authorities that this system trusts.
    pub fn of_system() -> Result<Self, FetchError> {
        const BUNDLES: [&str; 3] = [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/ca-bundle.pem",
        ];
        let found = BUNDLES.iter().map(Path::new).find(|path| path.exists());
        Self::of_file(found.unwrap_or(Path::new(BUNDLES[0])))
    }

    /// The certificate authorities of one PEM file, and no others.
    pub fn of_file(path: &Path) -> Result<Self, FetchError> {
        let mut store = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|_| FetchError::Roots(path.to_owned()))?;
        // System bundles hold the odd certificate that no verifier takes; the others count.
        store.add_parsable_certificates(certificates.filter_map(Result::ok));
        if store.is_empty() {
            return Err(FetchError::Roots(path.to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring offers the suites of TLS 1.2 and 1.3")
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

/// Brings one file into the depot, going on where an earlier pull of it stopped.
pub async fn pull(
    depot: &Depot,
    wanted: &Pull,
    roots: &Roots,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<Artifact, FetchError> {
    let inside = |source| FetchError::Depot(wanted.name.clone(), source);
    if let Some(artifact) = depot.name(&wanted.name, wanted.digest).map_err(inside)? {
        return Ok(artifact);
    }
    let (file, path) = depot.part(&wanted.digest).map_err(inside)?;
    let mut part = Part::open(File::from_std(file), path).await?;
    let resumed = part.size > 0;
    let mut found = fill(&mut part, wanted, roots, &mut progress).await?;
    if found != wanted.digest && resumed {
        // What an earlier pull left may be another release's beginning.
        part.restart().await?;
        found = fill(&mut part, wanted, roots, &mut progress).await?;
    }
    if found != wanted.digest {
        part.restart().await?;
        return Err(FetchError::Digest {
            url: wanted.url.clone(),
            wanted: wanted.digest,
            found,
        });
    }
    part.file
        .flush()
        .await
        .map_err(|source| part.fault(source))?;
    let (depot, name, digest) = (depot.clone(), wanted.name.clone(), wanted.digest);
    let Part { file, path, .. } = part;
    let adopted = tokio::task::spawn_blocking(move || {
        let adopted = depot.adopt(&name, &path, digest);
        drop(file);
        adopted
    });
    adopted
        .await
        .expect("adopting a file does not panic")
        .map_err(inside)
}

/// The part file and the hash of what is in it.
struct Part {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    size: u64,
}

impl Part {
    async fn open(mut file: File, path: PathBuf) -> Result<Self, FetchError> {
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    size += read as u64;
                }
                Err(source) => return Err(FetchError::Write { path, source }),
            }
        }
        Ok(Self {
            file,
            path,
            hasher,
            size,
        })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file
            .write_all(bytes)
            .await
            .map_err(|source| self.fault(source))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), FetchError> {
        self.file
            .set_len(0)
            .await
            .map_err(|source| self.fault(source))?;
        self.file
            .rewind()
            .await
            .map_err(|source| self.fault(source))?;
        self.hasher = Sha256::new();
        self.size = 0;
        Ok(())
    }

    fn fault(&self, source: io::Error) -> FetchError {
        FetchError::Write {
            path: self.path.clone(),
            source,
        }
    }
}

/// Whether another try may help.
fn passing(error: &FetchError) -> bool {
    match error {
        // A certificate that isn't trusted now won't be in ten seconds.
        FetchError::Connect { source, .. } => source.kind() != io::ErrorKind::InvalidData,
        FetchError::Silence { .. } | FetchError::Http { .. } => true,
        FetchError::Status { status, .. } => {
            status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
        }
        FetchError::Url(_)
        | FetchError::Roots(_)
        | FetchError::Redirects { .. }
        | FetchError::Endless { .. }
        | FetchError::Write { .. }
        | FetchError::Digest { .. }
        | FetchError::Depot(..) => false,
    }
}

/// Appends what is missing, over as many connections as it takes, and gives the digest of the whole.
async fn fill(
    part: &mut Part,
    wanted: &Pull,
    roots: &Roots,
    progress: &mut (impl FnMut(Progress) + Send),
) -> Result<Digest, FetchError> {
    let mut tries = 0;
    loop {
        let before = part.size;
        match append(part, &wanted.url, roots, progress).await {
            Ok(()) => return Ok(Digest::from_bytes(part.hasher.clone().finalize().into())),
            Err(error) if !passing(&error) => return Err(error),
            Err(error) => {
                // Only tries that bring nothing count: a slow and shaky line gets there.
                tries = if part.size > before { 1 } else { tries + 1 };
                if tries >= TRIES_MAX {
                    return Err(error);
                }
                tracing::warn!(url = wanted.url, have = part.size, error = %error, "download interrupted, going on");
                tokio::time::sleep(Duration::from_secs(1 << tries)).await;
            }
        }
    }
}

/// Asks for what is missing and appends it.
async fn append(
    part: &mut Part,
    url: &str,
    roots: &Roots,
    progress: &mut (impl FnMut(Progress) + Send),
) -> Result<(), FetchError> {
    let (host, response) = ask(url, part.size, roots).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(part.size) => {}
        // RFC 9110 section 15.5.17: the range begins at or after the end. Either the part is whole,
        // which the digest tells, or it is longer than the file and worth nothing.
        StatusCode::RANGE_NOT_SATISFIABLE if part.size > 0 => return Ok(()),
        StatusCode::OK => part.restart().await?,
        status => {
            return Err(FetchError::Status {
                url: url.to_owned(),
                status,
            });
        }
    }
    let length = hyper::body::Body::size_hint(response.body()).exact();
    let total = length.map(|length| part.size + length);
    let mut body = response.into_body();
    loop {
        let silence = |_| FetchError::Silence {
            host: host.clone(),
            act: "sending the file",
        };
        let Some(frame) = timeout(SILENCE_TIME, body.frame()).await.map_err(silence)? else {
            return Ok(());
        };
        let frame = frame.map_err(|source| FetchError::Http {
            host: host.clone(),
            source,
        })?;
        if let Ok(bytes) = frame.into_data() {
            part.write(&bytes).await?;
            progress(Progress {
                done: part.size,
                total,
            });
        }
        if part.size > BYTES_MAX {
            part.restart().await?;
            return Err(FetchError::Endless {
                url: url.to_owned(),
            });
        }
    }
}

/// Sends the request, following redirects; gives the host that answered.
async fn ask(
    url: &str,
    from: u64,
    roots: &Roots,
) -> Result<(String, Response<Incoming>), FetchError> {
    let mut next = url.to_owned();
    for _ in 0..=REDIRECTS_MAX {
        let uri: Uri = next.parse().map_err(|_| FetchError::Url(next.clone()))?;
        let Some(host) = uri.host().filter(|_| uri.scheme_str() == Some("https")) else {
            return Err(FetchError::Url(next));
        };
        let host = host.to_owned();
        let response = ask_once(&uri, &host, from, roots).await?;
        if !response.status().is_redirection() {
            return Ok((host, response));
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok());
        next = match location {
            Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                format!(
                    "https://{}{path}",
                    uri.authority()
                        .map_or(host.as_str(), |authority| authority.as_str())
                )
            }
            Some(absolute) => absolute.to_owned(),
            None => {
                return Err(FetchError::Status {
                    url: next,
                    status: response.status(),
                });
            }
        };
    }
    Err(FetchError::Redirects {
        url: url.to_owned(),
    })
}

async fn ask_once(
    uri: &Uri,
    host: &str,
    from: u64,
    roots: &Roots,
) -> Result<Response<Incoming>, FetchError> {
    let http = |source| FetchError::Http {
        host: host.to_owned(),
        source,
    };
    let connection = timeout(CONNECT_TIME, connect(uri, host, roots)).await;
    let silence = |act| {
        move |_| FetchError::Silence {
            host: host.to_owned(),
            act,
        }
    };
    let stream = connection.map_err(silence("connecting"))??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    // Ends by itself when the body was read or dropped.
    tokio::spawn(connection);
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("reveille/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT_ENCODING, "identity");
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Url(uri.to_string()))?;
    timeout(SILENCE_TIME, sender.send_request(request))
        .await
        .map_err(silence("answering"))?
        .map_err(http)
}

async fn connect(
    uri: &Uri,
    host: &str,
    roots: &Roots,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, FetchError> {
    let wrong = |source| FetchError::Connect {
        host: host.to_owned(),
        source,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name =
        ServerName::try_from(bare.to_owned()).map_err(|_| FetchError::Url(uri.to_string()))?;
    let stream = TcpStream::connect((bare, uri.port_u16().unwrap_or(443)))
        .await
        .map_err(wrong)?;
    TlsConnector::from(Arc::clone(&roots.0))
        .connect(name, stream)
        .await
        .map_err(wrong)
}

/// Where a partial answer begins: `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}
