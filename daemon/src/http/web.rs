//! The optional door on loopback: the API for whoever has the token, and for every local user the
//! status page and the metrics, which show what a look at the machines' screens would.
//!
//! The token is in a file of the state directory that only the daemon's user can read. A browser may
//! be tricked into asking loopback for a page of somebody else's making (DNS rebinding), so a
//! request whose `Host` is not this very address is refused.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::control;
use super::rights::{Caller, Rights};
use super::words::Problem;
use crate::bastion::Bastion;
use crate::metrics;
use crate::status::Status;

const TOKEN_FILE: &str = "api-token";
const CONNECTIONS_MAX: usize = 64;

/// SHA-256 of the bearer token: comparing digests tells nobody how much of a guess was right.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Reads the token of the state directory, or makes one.
    ///
    /// # Errors
    /// When the file can't be read or made.
    pub fn open(state: &Path) -> std::io::Result<Self> {
        let path = state.join(TOKEN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = URL_SAFE_NO_PAD.encode(crate::tls::random::<32>()) + "\n";
                let mut options = OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                text
            }
            Err(error) => return Err(error),
        };
        let text = text.trim();
        if text.len() < 20 {
            let what = format!(
                "{} holds no token; delete it to have one made",
                path.display()
            );
            return Err(std::io::Error::other(what));
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    fn is(&self, given: &str) -> bool {
        Sha256::digest(given).as_slice() == self.0
    }
}

/// The API behind its token, the page and the metrics.
pub fn routes(bastion: Arc<Bastion>, address: SocketAddr, token: Token) -> Router {
    let open = Router::new()
        .route("/", get(page))
        .route("/metrics", get(counters))
        .with_state(Arc::clone(&bastion));
    control::api(bastion)
        .layer(from_fn_with_state(token, with_caller))
        .merge(open)
        .layer(from_fn_with_state(address, for_this_host))
}

/// Serves until `stop`.
///
/// # Errors
/// When the socket can't accept any more.
pub async fn run(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            permit = Arc::clone(&room).acquire_owned() => permit.map_err(std::io::Error::other)?,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted?.0,
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        tokio::spawn(async move {
            control::serve_connection(TokioIo::new(stream), routes, stop).await;
            drop(permit);
        });
    }
}

async fn with_caller(State(token): State<Token>, mut request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if !given.is_some_and(|given| token.is(given.trim())) {
        return Problem::new(StatusCode::UNAUTHORIZED, "this needs the bearer token")
            .with_remedy("send `Authorization: Bearer TOKEN`; the token is in the state directory's file api-token, or use the control socket")
            .into_response();
    }
    request.extensions_mut().insert(Caller {
        name: "token".to_owned(),
        rights: Rights::Change,
    });
    next.run(request).await
}

async fn for_this_host(
    State(address): State<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|value| value.to_str().ok());
    let ours = [address.to_string(), format!("localhost:{}", address.port())];
    if !host.is_some_and(|host| ours.iter().any(|our| our == host)) {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "this is served under its own address only",
        )
        .with_remedy(format!("ask for http://{address}/"))
        .into_response();
    }
    next.run(request).await
}

async fn counters(State(bastion): State<Arc<Bastion>>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, metrics::MEDIA_TYPE)],
        metrics::page(&bastion),
    )
}

async fn page(State(bastion): State<Arc<Bastion>>) -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    (
        [(CONTENT_SECURITY_POLICY, policy)],
        Html(html(&bastion.status())),
    )
}

/// One page by hand; it asks for itself again every ten seconds.
fn html(status: &Status) -> String {
    let mut rows = String::new();
    for node in &status.nodes {
        let class = if node.needs_person {
            " class=person"
        } else {
            ""
        };
        let cells = [
            node.name.as_str(),
            &node.state,
            &node.next_boot,
            &node.address.to_string(),
            node.profile.as_ref().map_or("", |profile| profile.as_str()),
            &node.waiting(),
        ];
        let cells: String = cells
            .iter()
            .map(|cell| format!("<td>{}</td>", escaped(cell)))
            .collect();
        rows += &format!("<tr{class}>{cells}</tr>\n");
    }
    let health = if status.healthy { "well" } else { "ill" };
    let site = escaped(&status.site.directory);
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta http-equiv=refresh content=10>\n\
         <title>Reveille</title>\n<style>\
         body{{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse;width:100%}}\
         th,td{{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #ddd}}\
         .person,.ill{{color:#a00}}</style>\n\
         <h1>Reveille</h1>\n<p class={health}>{}</p>\n<table>\n\
         <tr><th>Name<th>State<th>Next boot<th>Address<th>Profile<th>Waits for</tr>\n{rows}</table>\n\
         <p>Reveille {}, site {site}</p></html>\n",
        escaped(&status.sentence),
        escaped(&status.version),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let token = Token::open(directory.path()).unwrap();
        let path = directory.path().join(TOKEN_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(token.is(text.trim()) && !token.is("") && !token.is(&text[1..]));
        assert!(Token::open(directory.path()).unwrap().is(text.trim()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn words_of_machines_are_shown_as_words() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
