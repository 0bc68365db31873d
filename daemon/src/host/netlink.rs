//! Talking with the kernel over netlink: a question and its answers, a change and its verdict, and word of
//! what others changed.
//!
//! ```text
//!   ask:    socket -> request -> answers … done | refused (errno, the kernel's own words)
//!   listen: socket in groups -> any datagram means: look again
//! ```
//!
//! Ugly facts. Each conversation has a socket of its own, so a lost answer ends one conversation and none
//! of the others. What an event says is never used: events are lost when a queue overflows, and some (of
//! IPv4 settings, of nftables) have no type in the library. So an event is only a reason to look. A dump that the kernel
//! marks as interrupted mixes two moments and is asked for again.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_OVERRUN, NetlinkBuffer, NetlinkSerializable, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

/// The kernel answers at once; who waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest datagram the kernel sends is 32 KiB (`netlink_dump` in Linux `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 * 1024;
/// Events come in bursts (a link brings its addresses); one look after this pause sees them all.
const SETTLE: Duration = Duration::from_millis(20);
/// A look without an event, for the events that were lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// Between two attempts at opening a socket.
const REOPEN: Duration = Duration::from_secs(1);
/// How often a dump is asked for again that others changed meanwhile.
const DUMPS: usize = 5;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG` of Linux `include/uapi/linux/netlink.h`.
const ERROR_TEXT: u16 = 1;
/// `NFNLGRP_NFTABLES` of Linux `include/uapi/linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 7;

/// Why the kernel gave no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// No socket, or it broke.
    #[error("the kernel's route socket: {0}")]
    Socket(#[from] io::Error),
    /// Nothing came in [`PATIENCE`].
    #[error("the kernel did not answer in {} s", PATIENCE.as_secs())]
    Silent,
    /// It would not.
    #[error("{}", words(*.errno, .said.as_deref()))]
    Refused {
        /// The reason.
        errno: Errno,
        /// The reason in the kernel's words, where it gave any (extended acknowledgement).
        said: Option<String>,
    },
}

fn words(errno: Errno, said: Option<&str>) -> String {
    match said {
        Some(said) => format!("{said} ({errno:?})"),
        None => format!("{} ({errno:?})", errno.desc()),
    }
}

/// One question: its type and what follows the netlink header.
pub(crate) struct Request {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

impl From<RouteNetlinkMessage> for Request {
    fn from(message: RouteNetlinkMessage) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        Self {
            kind: message.message_type(),
            payload,
        }
    }
}

impl Request {
    fn message(&self, flags: u16) -> Vec<u8> {
        let length = HEADER + self.payload.len();
        let mut bytes = vec![0; length];
        let mut message = NetlinkBuffer::new(&mut bytes);
        message.set_length(u32::try_from(length).expect("a request is a few hundred bytes"));
        message.set_message_type(self.kind);
        message.set_flags(NLM_F_REQUEST | flags);
        bytes[HEADER..].copy_from_slice(&self.payload);
        bytes
    }
}

/// One answer: what follows the netlink header.
pub(crate) struct Answer {
    pub(crate) payload: Vec<u8>,
}

/// Every object of the kind that `request` asks for.
///
/// # Errors
/// The kernel refuses, or can't be asked.
pub(crate) async fn dump(request: RouteNetlinkMessage) -> Result<Vec<Answer>, NetlinkError> {
    let request = Request::from(request);
    for _ in 1..DUMPS {
        let (answers, interrupted) = converse(&request, NLM_F_DUMP).await?;
        if !interrupted {
            return Ok(answers);
        }
    }
    // Somebody changes things without a pause; what is read now is as good as it gets.
    Ok(converse(&request, NLM_F_DUMP).await?.0)
}

/// The one object that `request` names.
///
/// # Errors
/// The kernel refuses, or can't be asked.
pub(crate) async fn ask(request: impl Into<Request>) -> Result<Vec<Answer>, NetlinkError> {
    Ok(converse(&request.into(), NLM_F_ACK).await?.0)
}

/// Asks for one change; `flags` are those of a "new" request (`NLM_F_CREATE`, `NLM_F_EXCL`).
///
/// # Errors
/// The kernel refuses, or can't be asked.
pub(crate) async fn change(request: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
    let request = Request::from(request);
    converse(&request, flags | NLM_F_ACK).await.map(drop)
}

async fn converse(request: &Request, flags: u16) -> Result<(Vec<Answer>, bool), NetlinkError> {
    let socket = TokioSocket::new(NETLINK_ROUTE)?;
    // The kernel's own words, without a copy of what was asked.
    socket.socket_ref().set_ext_ack(true)?;
    socket.socket_ref().set_cap_ack(true)?;
    let bytes = request.message(flags);
    let answered = async {
        socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            datagram.clear();
            socket.recv(&mut datagram).await?;
            if take(&datagram, &mut answers, &mut interrupted)? {
                return Ok((answers, interrupted));
            }
        }
    };
    timeout(PATIENCE, answered)
        .await
        .unwrap_or(Err(NetlinkError::Silent))
}

/// Takes the messages of one datagram; true when the conversation is over.
fn take(
    mut datagram: &[u8],
    answers: &mut Vec<Answer>,
    interrupted: &mut bool,
) -> Result<bool, NetlinkError> {
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        *interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
        match message.message_type() {
            // A number, and after an error the header of the request.
            NLMSG_DONE => return verdict(message.payload(), message.flags(), 4).map(|()| true),
            NLMSG_ERROR => return verdict(message.payload(), message.flags(), 20).map(|()| true),
            NLMSG_OVERRUN => return Err(io::Error::from(Errno::ENOBUFS).into()),
            _ => answers.push(Answer {
                payload: message.payload().to_vec(),
            }),
        }
        let whole = (message.length() as usize).next_multiple_of(4);
        datagram = datagram.get(whole..).unwrap_or_default();
    }
    Ok(false)
}

/// The verdict at the end of a conversation: a number, and from `words_at` perhaps the kernel's words
/// (Linux `Documentation/userspace-api/netlink/intro.rst`, "Extended ACK").
fn verdict(payload: &[u8], flags: u16, words_at: usize) -> Result<(), NetlinkError> {
    let code = payload
        .first_chunk::<4>()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 {
        return Ok(());
    }
    let mut said = None;
    if flags & NLM_F_ACK_TLVS != 0 {
        let text = NlasIterator::new(payload.get(words_at..).unwrap_or_default())
            .map_while(Result::ok)
            .find(|attribute| attribute.kind() == ERROR_TEXT);
        said = text.map(|text| {
            let text = String::from_utf8_lossy(text.value());
            text.trim_end_matches('\0').to_owned()
        });
    }
    Err(NetlinkError::Refused {
        errno: Errno::from_raw(code.wrapping_neg()),
        said,
    })
}

/// Word from the kernel that something changed.
pub struct Changes {
    route: Listener,
    firewall: Option<Listener>,
    /// The first event that nobody was told of yet, so that a caller who stops waiting loses nothing.
    heard: Option<Instant>,
}

impl Changes {
    /// Of everything that a [`netboot::host::HostState`] holds.
    pub(crate) fn of_host() -> Self {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Netconf,
        ];
        Self {
            route: Listener::new("route", NETLINK_ROUTE, groups.map(|group| group as u32)),
            firewall: Some(Listener::new(
                "netfilter",
                NETLINK_NETFILTER,
                [NFTABLES_GROUP],
            )),
            heard: None,
        }
    }

    /// Of links and their addresses only.
    pub(crate) fn of_links() -> Self {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        Self {
            route: Listener::new("route", NETLINK_ROUTE, groups.map(|group| group as u32)),
            firewall: None,
            heard: None,
        }
    }

    /// Returns 20 ms after the first of a burst of changes, and every 30 seconds in any case, for what was lost.
    /// A socket that breaks is opened again, and counts as a change. Safe to cancel.
    pub async fn next(&mut self) {
        if self.heard.is_none() {
            let firewall = self.firewall.as_mut();
            tokio::select! {
                () = self.route.hear() => {}
                () = hear_if_any(firewall) => {}
                () = sleep(LOOK_ANYWAY) => {}
            }
        }
        let settled = *self.heard.get_or_insert_with(Instant::now) + SETTLE;
        loop {
            let firewall = self.firewall.as_mut();
            tokio::select! {
                biased;
                () = sleep_until(settled) => break,
                () = self.route.hear() => {}
                () = hear_if_any(firewall) => {}
            }
        }
        self.heard = None;
    }
}

async fn hear_if_any(listener: Option<&mut Listener>) {
    match listener {
        Some(listener) => listener.hear().await,
        None => std::future::pending().await,
    }
}

/// A socket in groups of the kernel's events, opened again whenever it breaks.
struct Listener {
    name: &'static str,
    protocol: isize,
    groups: Vec<u32>,
    socket: Option<TokioSocket>,
    /// Why it can't be opened, as last said in the log.
    trouble: Option<io::ErrorKind>,
}

impl Listener {
    /// Opens the socket at once where it can, so that what changes from now on is heard.
    fn new(name: &'static str, protocol: isize, groups: impl Into<Vec<u32>>) -> Self {
        let mut listener = Self {
            name,
            protocol,
            groups: groups.into(),
            socket: None,
            trouble: None,
        };
        listener.open();
        listener
    }

    fn open(&mut self) {
        let opened = TokioSocket::new(self.protocol).and_then(|mut socket| {
            socket.socket_mut().bind_auto()?;
            for group in &self.groups {
                socket.socket_ref().add_membership(*group)?;
            }
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                (self.socket, self.trouble) = (Some(socket), None);
            }
            Err(error) if self.trouble == Some(error.kind()) => {}
            Err(error) => {
                warn!(
                    "the kernel's {} events can't be heard ({error}), so they are looked for twice a minute",
                    self.name
                );
                self.trouble = Some(error.kind());
            }
        }
    }

    /// Waits for an event, or for what may have swallowed one.
    async fn hear(&mut self) {
        while self.socket.is_none() {
            sleep(REOPEN).await;
            self.open();
            if self.socket.is_some() {
                return;
            }
        }
        let Some(socket) = &self.socket else { return };
        // What it says is not read; the rest of a longer one is dropped by the kernel.
        let mut start = [0; 64];
        match socket.recv(&mut &mut start[..]).await {
            Ok(()) => {}
            // The queue was full: events were lost, which is a reason to look like any other.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) => {
                warn!("the kernel's {} events broke off: {error}", self.name);
                self.socket = None;
            }
        }
    }
}
