//! One request of the daemon, over its control socket.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::cli::Socket;
use crate::failure::{Exit, Failure};
use crate::http::words::Problem;

/// A reload of a large site reads and checks every file first.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// No answer that is read whole comes near this: 100,000 machines are about 50 MiB of JSON.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// One request.
pub(crate) struct Ask<'a> {
    method: Method,
    path: &'a str,
    body: Bytes,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            body: Bytes::new(),
        }
    }

    pub(crate) fn delete(path: &'a str) -> Self {
        Self {
            method: Method::DELETE,
            path,
            body: Bytes::new(),
        }
    }

    pub(crate) fn post(path: &'a str, body: &[u8]) -> Self {
        Self {
            method: Method::POST,
            path,
            body: Bytes::copy_from_slice(body),
        }
    }
}

/// Asks the daemon and reads its answer whole.
pub(crate) fn ask<Answer: DeserializeOwned>(
    socket: &Socket,
    ask: &Ask<'_>,
) -> Result<Answer, Failure> {
    runtime()?.block_on(async {
        let answer = tokio::time::timeout(ANSWER_TIME, async {
            let body = send(&socket.socket, ask).await?;
            let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX);
            let bytes = body.collect().await.map_err(|error| {
                Failure::of(Exit::Failed, "reading the daemon's answer", error.as_ref())
            })?;
            Ok::<Bytes, Failure>(bytes.to_bytes())
        });
        let bytes = answer.await.map_err(|_| {
            Failure::new(
                Exit::Failed,
                format!("the daemon did not answer within {} s", ANSWER_TIME.as_secs()),
            )
            .with_remedy("look at its log: journalctl -u reveille")
        })??;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::of(
                Exit::Failed,
                "understanding the daemon's answer",
                &error,
            )
            .with_remedy("use the `reveille` of the daemon's own version; `systemctl restart reveille` after an upgrade")
        })
    })
}

/// Sends a request; the body of a good answer.
pub(crate) async fn send(socket: &Path, ask: &Ask<'_>) -> Result<Incoming, Failure> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| no_connection(socket, &error))?;
    let broken = |error: hyper::Error| {
        Failure::of(
            Exit::Failed,
            "talking to the daemon over its control socket",
            &error,
        )
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(ask.method.clone())
        .uri(ask.path)
        .header(http::header::HOST, "reveille")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(ask.body.clone()))
        .map_err(|error| Failure::of(Exit::Failed, "writing the request", &error))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer.into_body());
    }
    let bytes = answer.into_body().collect().await.map_err(broken)?;
    Err(refused(status, &bytes.to_bytes()))
}

/// A runtime for one request.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of(Exit::Failed, "starting the runtime", &error))
}

fn no_connection(socket: &Path, error: &std::io::Error) -> Failure {
    let act = format!("connecting to the daemon at {}", socket.display());
    if error.kind() == ErrorKind::PermissionDenied {
        Failure::of(Exit::NotPermitted, act, error)
            .with_remedy("run it as root, or join the group reveille")
    } else {
        Failure::of(Exit::Unreachable, act, error).with_remedy(
            "start it with `systemctl start reveille`, or name its socket with --socket",
        )
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let exit = match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Exit::NotPermitted,
        StatusCode::UNPROCESSABLE_ENTITY => Exit::Configuration,
        _ => Exit::Failed,
    };
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Failure {
            exit,
            causes: std::iter::once(problem.detail)
                .chain(problem.causes)
                .collect(),
            remedy: problem.remedy,
        },
        Err(_) => Failure::new(exit, format!("the daemon answered {status}")),
    }
}
