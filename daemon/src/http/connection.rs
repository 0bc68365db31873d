//! One connection of a node: requests in, replies out, nothing that a client does or leaves undone
//! can hold it for ever.
//!
//! ```text
//!   head (bounded bytes, bounded time) -> body (the same) -> answer -> reply (a slowest pace) -+
//!     ^                                                                                        |
//!     +------------------------------ keep-alive, bounded idleness ---------------------------+
//! ```
//!
//! Scripts, configs and artefacts share this one loop because iPXE fetches all of them over one
//! connection, and sendfile needs the bare socket between two requests.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::artifact::{self, Cut};
use super::wire::{self, Method, Parsed, Request};
use super::{Body, Origin, Refusal, Reply, Server, Wire};

/// Bodies up to this size leave with their head in one write.
const JOINED_BYTES_MAX: usize = 16 * 1024;
/// What a read may bring at once while a head or a body is awaited.
const READ_BYTES: usize = 2 * 1024;

/// Why no further request is read.
enum End {
    /// The client closed, broke off, or stayed idle: nothing to say.
    Quiet,
    Refused(Refusal),
}

/// Serves requests until the client or a limit ends it.
pub(super) async fn converse(server: &Server, mut wire: Wire, origin: &Origin) {
    let mut input = BytesMut::new();
    let mut first = true;
    loop {
        let refusal = match read_request(server, &mut wire, &mut input, first).await {
            Ok((request, body)) => {
                let stay = serve(server, &mut wire, origin, &request, body).await;
                if stay {
                    first = false;
                    continue;
                }
                if !request.keep_alive && matches!(wire, Wire::Left(_)) {
                    // The client said that it sends no more, so there is nothing that a close could destroy.
                    return;
                }
                break;
            }
            Err(End::Quiet) => return,
            Err(End::Refused(refusal)) => refusal,
        };
        server.counters.refuse(refusal);
        let reply = Reply::refused(refusal);
        let sent = AtomicU64::new(0);
        // The connection ends here whether or not this arrives.
        let _ = send(server, &mut wire, &reply, Method::Get, false, &sent).await;
        break;
    }
    linger(&mut wire, &mut input).await;
}

/// Answers one request; true when the connection may carry another.
async fn serve(
    server: &Server,
    wire: &mut Wire,
    origin: &Origin,
    request: &Request,
    body: Bytes,
) -> bool {
    let started = Instant::now();
    let mut reply = match server.answer(origin, request, body).await {
        Ok(reply) => reply,
        Err(refusal) => {
            server.counters.refuse(refusal);
            Reply::refused(refusal)
        }
    };
    server.counters.answered(reply.status);
    let stay = request.keep_alive && !server.crowded();
    let sent = AtomicU64::new(0);
    let outcome = send(server, wire, &reply, request.method, stay, &sent).await;
    let slow = matches!(outcome, Err(Cut::Slow));
    if slow {
        server.counters.refuse(Refusal::ReaderTooSlow);
    }
    if let Some(delivery) = reply.delivery.take() {
        server.settle(origin, wire, delivery, outcome.is_ok()).await;
    }
    if let Some(told) = &reply.transfer {
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        server.note_transfer(origin, request, told, sent.into_inner(), &outcome, millis);
    }
    stay && outcome.is_ok()
}

async fn read_request(
    server: &Server,
    wire: &mut Wire,
    input: &mut BytesMut,
    first: bool,
) -> Result<(Request, Bytes), End> {
    let limits = &server.limits;
    if input.is_empty() {
        // An idle connection keeps no more than this.
        if input.capacity() > 2 * READ_BYTES {
            *input = BytesMut::new();
        }
        let patience = match (first, server.crowded()) {
            (true, _) => limits.head_time,
            (false, true) => limits.idle_time_crowded,
            (false, false) => limits.idle_time,
        };
        match timeout(patience, fill(wire, input)).await {
            Ok(Ok(true)) => {}
            Ok(_) => return Err(End::Quiet),
            Err(_) => {
                if first {
                    server.counters.refuse(Refusal::HeadTooSlow);
                }
                return Err(End::Quiet);
            }
        }
    }
    let head = timeout(limits.head_time, read_head(wire, input)).await;
    let request = head.map_err(|_| End::Refused(Refusal::HeadTooSlow))??;
    if request.content_length == 0 {
        return Ok((request, Bytes::new()));
    }
    let body = timeout(limits.body_time, read_body(wire, input, &request)).await;
    let body = body.map_err(|_| End::Refused(Refusal::BodyTooSlow))??;
    Ok((request, body))
}

async fn read_head(wire: &mut Wire, input: &mut BytesMut) -> Result<Request, End> {
    loop {
        match wire::parse(input) {
            Parsed::Whole(request, length) => {
                let _ = input.split_to(length);
                return Ok(*request);
            }
            Parsed::Refused(refusal) => return Err(End::Refused(refusal)),
            Parsed::Partial => {}
        }
        if !fill(wire, input).await.map_err(|_| End::Quiet)? {
            return Err(End::Quiet);
        }
    }
}

async fn read_body(wire: &mut Wire, input: &mut BytesMut, request: &Request) -> Result<Bytes, End> {
    // RFC 9110 section 10.1.1: "A server that receives a 100-continue expectation ... MUST send
    // either a 100 (Continue) response and continue" or a final status code.
    if request.expects_continue && input.is_empty() {
        let go_on = wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        go_on.map_err(|_| End::Quiet)?;
        wire.flush().await.map_err(|_| End::Quiet)?;
    }
    let length = usize::try_from(request.content_length)
        .expect("a parsed body length is at most BODY_BYTES_MAX");
    while input.len() < length {
        if !fill(wire, input).await.map_err(|_| End::Quiet)? {
            return Err(End::Quiet);
        }
    }
    Ok(input.split_to(length).freeze())
}

/// Reads what has come; false at the end of the stream.
async fn fill(wire: &mut Wire, input: &mut BytesMut) -> io::Result<bool> {
    input.reserve(READ_BYTES);
    Ok(wire.read_buf(input).await? > 0)
}

async fn send(
    server: &Server,
    wire: &mut Wire,
    reply: &Reply,
    method: Method,
    stay: bool,
    sent: &AtomicU64,
) -> Result<(), Cut> {
    let (body, length) = match &reply.body {
        Body::Bytes(bytes) => (Some(bytes), bytes.len() as u64),
        Body::File(slice) => (None, slice.length),
    };
    let mut out =
        BytesMut::with_capacity(512 + body.map_or(0, |body| body.len().min(JOINED_BYTES_MAX)));
    let headers: Vec<(&str, &str)> = reply
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_ref()))
        .collect();
    wire::write_head(&mut out, reply.status, &headers, length, stay);
    // RFC 9110 section 9.3.2: "the server MUST NOT send content in the response" to a HEAD; and
    // section 15.4.5 says the same of a 304.
    let bodiless = method == Method::Head || reply.status == 304;
    let pace = server.limits.pace;
    match &reply.body {
        Body::Bytes(bytes) if !bodiless && bytes.len() <= JOINED_BYTES_MAX => {
            out.extend_from_slice(bytes)
        }
        Body::Bytes(bytes) if !bodiless => {
            let transfer = async {
                wire.write_all(&out).await?;
                write_counted(wire, bytes, sent).await
            };
            return artifact::paced(transfer, pace, sent).await;
        }
        Body::File(slice) if !bodiless && slice.length > 0 => {
            let head = send_head(wire, &out);
            artifact::paced(head, pace, sent).await?;
            return artifact::send(wire, slice, pace, sent).await;
        }
        Body::Bytes(_) | Body::File(_) => {}
    }
    let whole = async {
        wire.write_all(&out).await?;
        wire.flush().await
    };
    artifact::paced(whole, pace, sent).await
}

/// Sends a head that a file follows, so that both share the first packet.
async fn send_head(wire: &mut Wire, head: &[u8]) -> io::Result<()> {
    match wire {
        Wire::Left(stream) => send_more(stream, head).await,
        Wire::Right(stream) => stream.write_all(head).await,
    }
}

async fn send_more(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let moved = stream
            .async_io(Interest::WRITABLE, || {
                SockRef::from(stream).send_with_flags(bytes, libc::MSG_MORE)
            })
            .await?;
        bytes = &bytes[moved..];
    }
    Ok(())
}

async fn write_counted(
    wire: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    sent: &AtomicU64,
) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let moved = wire.write(rest).await?;
        rest = &rest[moved..];
        sent.fetch_add(moved as u64, Ordering::Relaxed);
    }
    wire.flush().await
}

/// Ends our side and reads on for a moment.
///
/// RFC 9112 section 9.6: a server that closes with unread data makes the kernel send a reset, which
/// may destroy the reply on its way; so it closes "in stages".
async fn linger(wire: &mut Wire, input: &mut BytesMut) {
    const TIME: Duration = Duration::from_secs(2);
    const BYTES: usize = 256 * 1024;
    let drain = async {
        wire.shutdown().await?;
        let mut read = 0;
        while read < BYTES && fill(wire, input).await? {
            read += input.len();
            input.clear();
        }
        io::Result::Ok(())
    };
    // Whatever goes wrong here, the connection is over.
    let _ = timeout(TIME, drain).await;
}
