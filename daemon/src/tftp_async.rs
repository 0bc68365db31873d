//! TFTP by the packaged engine, async-tftp, behind the same source and reports as the builtin one.
//!
//! It brings its own executor, so it runs on a thread of its own. Its bounds, and why they are needed:
//! - A client's ERROR is ignored and its port locked out until the transfer dies, so a transfer that nobody
//!   answers dies after 7 s, whatever the client asked.
//! - Windows and blocks have no limit of their own; windows are off, blocks fit an Ethernet frame.
//! - Files open one at a time, so the source answers from memory and nothing here waits.
//! - The last acknowledgement is not visible: a file read to its end counts as unconfirmed, never as complete.
//! - It stops at the first receive error, and is started again.
//! - It counts no retransmits and serves netascii as octet.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_tftp::packet;
use async_tftp::server::{Handler, TftpServerBuilder};
use bytes::Bytes;
use futures_lite::future::{block_on, race};
use futures_lite::{AsyncRead, io::Sink};
use netboot::tftp::{Agreed, Limits, Outcome, clean_path};
use tokio::sync::oneshot;

use crate::tftp::{
    Answer, Counters, LinkBinding, Progress, Report, Reports, Source, Stage, TftpRequest,
};

const WAIT: Duration = Duration::from_secs(1);
const RETRIES_MAX: u32 = 6;
/// Between a receive error and the next start.
const PAUSE: Duration = Duration::from_millis(100);

/// The thread of one link, and the word that stops it.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn stop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn start(
    link: &LinkBinding,
    socket: UdpSocket,
    limits: &Limits,
    source: Source,
    reports: Reports,
) -> io::Result<(Arc<Counters>, Running)> {
    let counters = Arc::new(Counters::default());
    let desk = Desk {
        link: link.clone(),
        source,
        reports,
        counters: counters.clone(),
        limits: limits.clone(),
        open: Arc::default(),
    };
    let (stop, mut stopped) = oneshot::channel::<()>();
    let name: String = format!("tftp-{}", link.name).chars().take(15).collect();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        // The sender says nothing: that it is gone is the word to stop.
        let stopped = async {
            let _ = (&mut stopped).await;
        };
        block_on(race(stopped, serve(desk, socket)));
    })?;
    let running = Running {
        stop: Some(stop),
        thread: Some(thread),
    };
    Ok((counters, running))
}

async fn serve(desk: Desk, socket: UdpSocket) {
    loop {
        if let Err(error) = serve_until_error(desk.clone(), &socket).await {
            tracing::warn!(link = desk.link.name, %error, "serving TFTP; starting again");
        }
        std::thread::sleep(PAUSE);
    }
}

async fn serve_until_error(desk: Desk, socket: &UdpSocket) -> Result<(), async_tftp::Error> {
    let block_size = desk.limits.block_size;
    TftpServerBuilder::with_handler(desk)
        .std_socket(socket.try_clone()?)?
        .timeout(WAIT)
        .max_send_retries(RETRIES_MAX)
        .block_size_limit(block_size)
        .ignore_client_timeout()
        .ignore_client_window_size()
        .build()
        .await?
        .serve()
        .await
}

/// What every request and every reader of a link shares.
#[derive(Clone)]
struct Desk {
    link: LinkBinding,
    source: Source,
    reports: Reports,
    counters: Arc<Counters>,
    limits: Limits,
    open: Arc<AtomicUsize>,
}

impl Handler for Desk {
    type Reader = Reader;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Reader, Option<u64>), packet::Error> {
        Counters::add(&self.counters.requests, 1);
        let SocketAddr::V4(peer) = *client else {
            return Err(packet::Error::PermissionDenied);
        };
        let asked = path.to_string_lossy();
        let Ok(path) = clean_path(asked.as_bytes()) else {
            self.refused(
                peer,
                &asked,
                &self.counters.malformed,
                "name leaves the boot directory or is none",
            );
            return Err(packet::Error::PermissionDenied);
        };
        let content = match (self.source)(&TftpRequest {
            peer,
            local: self.link.address,
            link: &self.link.name,
            path: &path,
        }) {
            Answer::Bytes(content) => content,
            Answer::NotFound(reason) => {
                self.refused(peer, &path, &self.counters.not_found, &reason);
                return Err(packet::Error::FileNotFound);
            }
            Answer::Denied => {
                self.refused(peer, &path, &self.counters.denied, "access denied");
                return Err(packet::Error::PermissionDenied);
            }
        };
        if self.open.load(Ordering::Relaxed) >= self.limits.transfers {
            let busy = "server busy: all transfers are taken, ask again";
            self.refused(peer, &path, &self.counters.busy, busy);
            return Err(packet::Error::Msg(busy.to_owned()));
        }
        let length = content.len() as u64;
        Ok((
            Reader::open(self.clone(), peer, path, content),
            Some(length),
        ))
    }

    async fn write_req_open(
        &mut self,
        _client: &SocketAddr,
        _path: &Path,
        _size: Option<u64>,
    ) -> Result<Sink, packet::Error> {
        Counters::add(&self.counters.write, 1);
        Err(packet::Error::PermissionDenied)
    }
}

impl Desk {
    fn refused(&self, peer: SocketAddrV4, path: &str, counter: &AtomicU64, reason: &str) {
        Counters::add(counter, 1);
        self.report(peer, path, Stage::Refused(reason.to_owned()));
    }

    fn report(&self, peer: SocketAddrV4, path: &str, stage: Stage) {
        (self.reports)(Report {
            peer,
            link: self.link.name.clone(),
            path: path.to_owned(),
            stage,
        });
    }
}

/// The file of one transfer. How far it was read is all this engine tells about progress.
struct Reader {
    content: Bytes,
    read: usize,
    peer: SocketAddrV4,
    path: String,
    desk: Desk,
    started: Instant,
}

impl Reader {
    fn open(desk: Desk, peer: SocketAddrV4, path: String, content: Bytes) -> Self {
        Counters::add(&desk.counters.started, 1);
        desk.open.fetch_add(1, Ordering::Relaxed);
        let reader = Self {
            content,
            read: 0,
            peer,
            path,
            desk,
            started: Instant::now(),
        };
        reader
            .desk
            .report(peer, &reader.path, Stage::Started(reader.progress()));
        reader
    }

    fn progress(&self) -> Progress {
        Progress {
            bytes: self.read as u64,
            total: self.content.len() as u64,
            agreed: Agreed::plain(),
            retransmits: 0,
            elapsed: self.started.elapsed(),
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let rest = &self.content[self.read..];
        let octets = rest.len().min(buffer.len());
        buffer[..octets].copy_from_slice(&rest[..octets]);
        self.read += octets;
        Poll::Ready(Ok(octets))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.desk.open.fetch_sub(1, Ordering::Relaxed);
        let outcome = if self.read == self.content.len() {
            Outcome::Unconfirmed
        } else {
            Outcome::Silent
        };
        self.desk.counters.ended(&outcome);
        Counters::add(&self.desk.counters.bytes, self.read as u64);
        self.desk.report(
            self.peer,
            &self.path,
            Stage::Ended(self.progress(), outcome),
        );
    }
}
