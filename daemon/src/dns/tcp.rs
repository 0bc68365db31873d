//! DNS over TCP (RFC 7766): what is too long for a datagram, and clients that want it.
//!
//! Connections are bounded, in all and for each source, and one that says nothing is closed. Questions of one connection
//! are answered in their order.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use netboot::zone::Answered;
use netboot::zone::packet::{Code, Question, Unanswerable, refuse};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::cache::{self, Key};
use super::serve::{Client, Desk, refused};
use super::{Count, PORT, Place};

/// Connections of one address, and of one source to it.
const CONNECTIONS_MAX: usize = 512;
const CONNECTIONS_EACH: usize = 16;
/// RFC 7766, section 6.2.3: a few seconds.
const IDLE: Duration = Duration::from_secs(10);
/// A question with everything that EDNS may carry; longer ones close the connection.
const QUESTION_MAX: usize = 4096;
/// The length field has 16 bits.
const REPLY_MAX: usize = 65_535;
const BACKLOG: i32 = 128;

/// Opens the listening socket of a place.
pub(super) fn open(place: &Place) -> anyhow::Result<TcpListener> {
    let at = SocketAddrV4::new(place.front.address, PORT);
    let open = || {
        let socket = Socket::new(
            Domain::IPV4,
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        anyhow::Ok(TcpListener::from_std(socket.into())?)
    };
    open().with_context(|| {
        format!("opening TCP port 53 on {at}; is another DNS server running here?")
    })
}

type Sources = Arc<Mutex<HashMap<Ipv4Addr, usize>>>;

/// Accepts until it is aborted, and with it every connection: who a client is may be said anew then.
pub(super) async fn run(place: Arc<Place>, listener: TcpListener, desk: Arc<Desk>) {
    let sources = Sources::default();
    let mut conversations = JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, SocketAddr::V4(from))) => (stream, from),
            Ok(_) => continue,
            Err(error) => {
                // Out of files, most likely: those there are end by themselves.
                debug!(address = %place.front.address, %error, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while conversations.try_join_next().is_some() {}
        let Some(seat) = Seat::take(&sources, *from.ip()) else {
            desk.counters.add(Count::Limited, 1);
            continue;
        };
        let (place, desk) = (Arc::clone(&place), Arc::clone(&desk));
        conversations.spawn(async move {
            let _seat = seat;
            if let Err(error) = converse(&place, stream, *from.ip(), &desk).await {
                debug!(%from, %error, "a DNS connection ended");
            }
        });
    }
}

/// One connection's place among all.
struct Seat {
    sources: Sources,
    source: Ipv4Addr,
}

impl Seat {
    fn take(sources: &Sources, source: Ipv4Addr) -> Option<Self> {
        let mut counted = sources.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.values().sum::<usize>() >= CONNECTIONS_MAX {
            return None;
        }
        let each = counted.entry(source).or_default();
        if *each >= CONNECTIONS_EACH {
            return None;
        }
        *each += 1;
        let sources = Arc::clone(sources);
        Some(Self { sources, source })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counted = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(each) = counted.get_mut(&self.source) {
            *each -= 1;
            if *each == 0 {
                counted.remove(&self.source);
            }
        }
    }
}

async fn converse(
    place: &Place,
    mut stream: TcpStream,
    source: Ipv4Addr,
    desk: &Desk,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut page = desk.book.page();
    let client = place.client(source);
    loop {
        let mut length = [0; 2];
        match timeout(IDLE, stream.read_exact(&mut length)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        }
        let length = usize::from(u16::from_be_bytes(length));
        if length > QUESTION_MAX {
            desk.counters.add(Count::Malformed, 1);
            return Ok(());
        }
        let mut bytes = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        desk.book.turn_to(&mut page);
        // The length comes first; it is filled in when it is known.
        let mut reply = vec![0, 0];
        desk.counters.add(Count::Received, 1);
        let counted = answer(place, desk, &page, client, source, &bytes, &mut reply).await;
        desk.counters.add(counted, 1);
        let Ok(length) = u16::try_from(reply.len() - 2) else {
            return Ok(());
        };
        if length == 0 {
            return Ok(());
        }
        reply[..2].copy_from_slice(&length.to_be_bytes());
        timeout(IDLE, stream.write_all(&reply)).await??;
    }
}

async fn answer(
    place: &Place,
    desk: &Desk,
    page: &super::book::Page,
    client: Client,
    source: Ipv4Addr,
    bytes: &[u8],
    reply: &mut Vec<u8>,
) -> Count {
    let question = match Question::parse(bytes) {
        Ok(question) => question,
        Err(Unanswerable::Silent) => return Count::Dropped,
        Err(Unanswerable::Refused(code)) => {
            refuse(bytes, code, reply);
            return Count::Malformed;
        }
    };
    let recursion = client == Client::Ours && page.forwards();
    if client == Client::Foreign {
        return refused(&question, recursion, REPLY_MAX, reply);
    }
    let zones = page.zones();
    match zones.answer(place.side, &question, recursion, REPLY_MAX, reply) {
        Answered::Here(Code::Refused) => return Count::Refused,
        Answered::Here(_) => return Count::Own,
        Answered::Elsewhere => {}
    }
    if !recursion || !question.wants_recursion() {
        return refused(&question, recursion, REPLY_MAX, reply);
    }
    let mut key = Key::new();
    cache::key(&question, &mut key);
    if let Some((kept, age)) = desk.forwarder.kept(page.servers(), &key, Instant::now()) {
        kept.write(&question, age, REPLY_MAX, reply);
        return Count::Kept;
    }
    let Some(_turn) = desk.forwarder.turn(source) else {
        return Count::Limited;
    };
    let kept = desk.forwarder.ask(page.servers(), &question).await;
    kept.write(&question, 0, REPLY_MAX, reply);
    Count::Asked
}
