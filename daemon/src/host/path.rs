//! The control path: what an administrator's words travel over, asked whether it is alive.
//!
//! A gateway is asked through the kernel's own neighbour table, ARP and neighbour discovery alike: an entry
//! put into state PROBE (or looked up, where there is none) makes the kernel ask at once, and REACHABLE is the
//! neighbour's answer. Nothing that `ip addr`, `link`, `route` or `rule` shows is touched by it.
//!
//! The administrator's connection is known by its two ends (ssh(1), `SSH_CONNECTION`). Its proof is
//! the kernel's count of bytes that the peer has acknowledged: the command prints what was done, and the
//! count grows when that has arrived at the other end. A connection that merely still stands proves nothing.
//!
//! Ugly facts. A neighbour in state STALE would be asked only after five seconds of use (DELAY), hence PROBE.
//! An exact question of `sock_diag` may be answered by a listening socket on the same port.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netboot::host::{ControlPath, HostState, Judgement, Session, SessionSign, Signs, judge};
use netboot::net::LinkName;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr as Nobody, TokioSocket};
use tokio::time::{Instant, sleep, timeout};

use crate::host::kernel::Kernel;
use crate::host::netlink::{self, NetlinkError};

/// A neighbour on the same link answers in a millisecond, one behind a slow radio bridge in a few hundred.
const PATIENCE: Duration = Duration::from_millis(700);
/// Between two looks at the neighbour table, which announces less than it knows.
const LOOK: Duration = Duration::from_millis(20);

/// The control path of one change, and how to ask it.
pub(crate) struct Path {
    before: ControlPath,
    /// The administrator's connection, where the kernel can be asked about it.
    connection: Option<Connection>,
}

impl Path {
    /// Asks what is alive before a change: the gateways of routes that `wanted` still has, and the connection
    /// `SSH_CONNECTION` tells of. Takes 0.7 s when a gateway is silent.
    pub(crate) async fn record(
        present: &HostState,
        wanted: &HostState,
        session: Option<&str>,
    ) -> Self {
        let still: BTreeSet<IpAddr> = routed(wanted).map(|(_, address)| address).collect();
        let asked: BTreeMap<Neighbour, LinkName> = routed(present)
            .filter(|(_, address)| still.contains(address))
            .filter_map(|(link, address)| {
                let index = present.links.get(link)?.index;
                Some(((index, address), link.clone()))
            })
            .collect();
        // Who can't be asked did not answer.
        let answers = answering(asked.keys().copied().collect())
            .await
            .unwrap_or_default();
        let answered = asked
            .into_iter()
            .filter(|(neighbour, _)| answers.contains(neighbour));
        Self {
            before: ControlPath {
                gateways: answered
                    .map(|((_, address), link)| (address, link))
                    .collect(),
                session: session.map(|ends| Session {
                    ends: ends.to_owned(),
                    acknowledged: None,
                }),
            },
            connection: session.and_then(Connection::parse),
        }
    }

    /// Takes note that the change is done: what the administrator's end acknowledges from here on has come by
    /// the new way.
    pub(crate) async fn changed(&mut self) {
        if let (Some(session), Some(connection)) = (&mut self.before.session, self.connection) {
            session.acknowledged = connection.acknowledged().await.unwrap_or_default();
        }
    }

    /// Asks all of it again, and judges. With `ask` nothing is asked: only a person's word counts.
    pub(crate) async fn judge(&self, kernel: &Kernel, ask: bool, late: bool) -> Judgement {
        let mut signs = Signs {
            late,
            ..Signs::default()
        };
        if !ask {
            signs.gateways = self.answering_now(kernel).await;
            signs.session = match self.connection {
                Some(connection) => connection.sign().await,
                None => SessionSign::Unknown,
            };
        }
        judge(&self.before, ask, &signs)
    }

    /// The gateways that answer, on whatever link the routes to them leave by now.
    async fn answering_now(&self, kernel: &Kernel) -> BTreeSet<IpAddr> {
        let gateways = &self.before.gateways;
        if gateways.is_empty() {
            return BTreeSet::new();
        }
        let Ok(present) = kernel.read().await else {
            return BTreeSet::new();
        };
        let asked = routed(&present)
            .filter(|(_, address)| gateways.contains_key(address))
            .filter_map(|(link, address)| Some((present.links.get(link)?.index, address)))
            .collect();
        let answers = answering(asked).await.unwrap_or_default();
        answers.into_iter().map(|(_, address)| address).collect()
    }
}

/// The gateways of all routes, with the link they are on.
fn routed(host: &HostState) -> impl Iterator<Item = (&LinkName, IpAddr)> {
    host.links.iter().flat_map(|(name, link)| {
        let gateways = link.routes.iter().filter_map(|route| route.what.via);
        gateways.map(move |gateway| (name, gateway))
    })
}

/// A neighbour: the number of its link, and its address.
type Neighbour = (u32, IpAddr);

/// Which of `wanted` answer now. Takes 0.7 s when one doesn't.
async fn answering(wanted: BTreeSet<Neighbour>) -> Result<BTreeSet<Neighbour>, NetlinkError> {
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let known = neighbours().await?;
    let mut asked = BTreeSet::new();
    for neighbour in wanted {
        // A link that is down or gone takes no neighbours, and an answer from before is none.
        if ask(neighbour, known.get(&neighbour).copied()).await.is_ok() {
            asked.insert(neighbour);
        }
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let known = neighbours().await?;
        let mut answers = asked.clone();
        answers.retain(|neighbour| known.get(neighbour) == Some(&NeighbourState::Reachable));
        if answers.len() == asked.len() || Instant::now() >= end {
            return Ok(answers);
        }
        sleep(LOOK).await;
    }
}

/// Has the kernel ask one neighbour now.
async fn ask(
    (link, address): Neighbour,
    state: Option<NeighbourState>,
) -> Result<(), NetlinkError> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    match state {
        Some(
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe,
        ) => message.header.state = NeighbourState::Probe,
        _ => message.header.flags = NeighbourFlags::Use,
    }
    let message = RouteNetlinkMessage::NewNeighbour(message);
    netlink::change(message, NLM_F_CREATE | NLM_F_REPLACE).await
}

async fn neighbours() -> Result<BTreeMap<Neighbour, NeighbourState>, NetlinkError> {
    let all = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = netlink::dump(all).await?;
    Ok(answers
        .iter()
        .filter_map(|answer| {
            // An entry that the library can't read is of a family that is no gateway's.
            let message = NeighbourMessage::parse(&answer.payload).ok()?;
            let address = message.attributes.iter().find_map(|attribute| {
                if let NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) = attribute {
                    Some(IpAddr::V4(*to))
                } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) =
                    attribute
                {
                    Some(IpAddr::V6(*to))
                } else {
                    None
                }
            })?;
            Some(((message.header.ifindex, address), message.header.state))
        })
        .collect())
}

/// The two ends of an administrator's TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    /// The administrator's end.
    peer: SocketAddr,
    /// Ours.
    local: SocketAddr,
}

impl Connection {
    /// From the four words of `SSH_CONNECTION`: "client IP address, client port number, server IP address, and
    /// server port number" (ssh(1)). `None` for what we can't look up, such as link-local addresses with a zone.
    fn parse(words: &str) -> Option<Self> {
        let mut words = words.split_ascii_whitespace();
        let mut end = || -> Option<SocketAddr> {
            let address: IpAddr = words.next()?.parse().ok()?;
            let port = words.next()?.parse().ok()?;
            Some((address.to_canonical(), port).into())
        };
        let (peer, local) = (end()?, end()?);
        let whole = words.next().is_none() && peer.is_ipv4() == local.is_ipv4();
        whole.then_some(Self { peer, local })
    }

    async fn sign(self) -> SessionSign {
        match self.acknowledged().await {
            Ok(Some(bytes)) => SessionSign::Acknowledged(bytes),
            Ok(None) => SessionSign::Ended,
            Err(_) => SessionSign::Unknown,
        }
    }

    /// How many bytes the peer has acknowledged; `None` when the connection is no more.
    async fn acknowledged(self) -> io::Result<Option<u64>> {
        let ask = async {
            let socket = TokioSocket::new(SOCK_DIAG)?;
            socket.send_to(&self.question(), &Nobody::new(0, 0)).await?;
            let mut answer = Vec::with_capacity(4096);
            socket.recv(&mut answer).await?;
            Ok(acknowledged(&answer))
        };
        timeout(PATIENCE, ask)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A request for this very socket (sock_diag(7), `struct inet_diag_req_v2`) with its `tcp_info`.
    fn question(&self) -> Vec<u8> {
        const LENGTH: u32 = 72;
        const REQUEST: u16 = 1;
        const ANY_COOKIE: [u8; 8] = [0xff; 8];
        let family = if self.local.is_ipv4() { 2 } else { 10 };
        let mut bytes = Vec::with_capacity(LENGTH as usize);
        bytes.extend(LENGTH.to_ne_bytes());
        bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend(REQUEST.to_ne_bytes());
        bytes.extend([0; 8]);
        // The family, TCP, and the extension INET_DIAG_INFO by its bit.
        bytes.extend([family, 6, 1 << (INET_DIAG_INFO - 1), 0]);
        bytes.extend(u32::MAX.to_ne_bytes());
        bytes.extend(self.local.port().to_be_bytes());
        bytes.extend(self.peer.port().to_be_bytes());
        for end in [self.local, self.peer] {
            let mut octets = [0; 16];
            match end.ip() {
                IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => octets = address.octets(),
            }
            bytes.extend(octets);
        }
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(ANY_COOKIE);
        bytes
    }
}

/// Of Linux `include/uapi/linux/netlink.h`, `sock_diag.h` and `inet_diag.h`.
const SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;

/// `tcpi_bytes_acked` of an established connection, from the answer of `sock_diag`.
fn acknowledged(answer: &[u8]) -> Option<u64> {
    /// The netlink header, then `struct inet_diag_msg`, whose second byte is the state.
    const HEADER: usize = 16;
    const MESSAGE: usize = 72;
    const ESTABLISHED: u8 = 1;
    /// `tcpi_bytes_acked` in `struct tcp_info` (Linux `include/uapi/linux/tcp.h`).
    const BYTES_ACKED: usize = 120;
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    if kind != SOCK_DIAG_BY_FAMILY || *answer.get(HEADER + 1)? != ESTABLISHED {
        return None;
    }
    let mut attributes = answer.get(HEADER + MESSAGE..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        if kind == INET_DIAG_INFO {
            let bytes = attributes
                .get(4..length)?
                .get(BYTES_ACKED..)?
                .first_chunk()?;
            return Some(u64::from_ne_bytes(*bytes));
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn words(peer: SocketAddr, local: SocketAddr) -> String {
        format!(
            "{} {} {} {}",
            peer.ip(),
            peer.port(),
            local.ip(),
            local.port()
        )
    }

    #[test]
    fn a_session_is_four_words() {
        let session = Connection::parse("198.51.100.7 50022 203.0.113.5 22").unwrap();
        assert_eq!(session.peer, "198.51.100.7:50022".parse().unwrap());
        assert_eq!(session.local, "203.0.113.5:22".parse().unwrap());
        // A daemon that listens on both families says it so.
        let mapped = Connection::parse("::ffff:198.51.100.7 50022 ::ffff:203.0.113.5 22");
        assert_eq!(mapped, Some(session));
        for text in [
            "",
            "198.51.100.7 50022 203.0.113.5",
            "198.51.100.7 50022 203.0.113.5 22 more",
            "198.51.100.7 50022 2001:db8::1 22",
            "fe80::1%eth0 50022 fe80::2%eth0 22",
            "198.51.100.7 66000 203.0.113.5 22",
        ] {
            assert_eq!(Connection::parse(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_session_lives_by_what_its_peer_acknowledges_and_ends_with_its_connection() {
        for (bound, reached) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("::", "127.0.0.1"),
        ] {
            let listener = TcpListener::bind((bound, 0)).unwrap();
            let to = (reached, listener.local_addr().unwrap().port());
            let mut peer = TcpStream::connect(to).unwrap();
            let (mut local, from) = listener.accept().unwrap();
            let session = words(from, local.local_addr().unwrap());
            let session = Connection::parse(&session).unwrap();

            let before = session.acknowledged().await.unwrap().unwrap();
            local.write_all(b"seven b").unwrap();
            peer.read_exact(&mut [0; 7]).unwrap();
            // Its acknowledgement may be held back for a moment (RFC 1122, 4.2.3.2).
            let end = Instant::now() + PATIENCE;
            while session.acknowledged().await.unwrap() != Some(before + 7) {
                assert!(Instant::now() < end, "{reached} at {bound}");
                sleep(LOOK).await;
            }

            // Both ends are closed; the listener on the same port is no session.
            drop((peer, local));
            assert_eq!(session.acknowledged().await.unwrap(), None, "{reached}");
        }
    }

    #[test]
    fn a_malformed_answer_is_no_proof() {
        let mut answer = vec![0; 88];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[17] = 1;
        for tail in [
            &[][..],
            &[0; 4],
            &[8, 0, 2, 0, 1, 2, 3, 4],
            &[1; 3],
            &[0xff; 9],
        ] {
            assert_eq!(acknowledged(&[&answer, tail].concat()), None);
        }
        for cut in 0..answer.len() {
            assert_eq!(acknowledged(&answer[..cut]), None);
        }
    }
}
