//! Where connections are taken: listening sockets, kept from one process to the next.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use netboot::net::LinkName;
use socket2::{Domain, Protocol, Socket, Type};

use super::peer::{CLIENT_GONE, keep_alive};

/// Connections that the kernel completes before a worker accepts them: some seconds' worth, for a restart.
const BACKLOG: i32 = 4096;

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) at: SocketAddrV4,
    /// Only packets that came in by this link, by its name and the kernel's number: one that was deleted and made
    /// again keeps its name, but a socket bound to it is dead.
    pub(super) link: Option<(LinkName, u32)>,
}

impl Spot {
    /// What it is called with the service manager.
    pub(super) fn name(&self) -> String {
        format!("balancer-{}-{}", self.at.ip(), self.at.port())
    }
}

/// The socket that the last process left, if it listens at this spot's address.
pub(super) fn adopt(spot: &Spot, left: OwnedFd) -> Option<Socket> {
    let socket = Socket::from(left);
    let at = socket.local_addr().ok()?.as_socket_ipv4()?;
    if at != spot.at || !socket.is_listener().ok()? {
        return None;
    }
    tie(&socket, spot).ok()?;
    prepare(&socket).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Has a socket take what comes in by the spot's link, or by any. One that listens goes on without refusing anybody.
pub(super) fn tie(socket: &Socket, spot: &Spot) -> io::Result<()> {
    // The address alone doesn't do: Linux accepts a packet for any of its addresses on any link.
    let link = spot.link.as_ref().map(|(name, _)| name.as_str().as_bytes());
    socket.bind_device(link)
}

/// Whether another process of this user could listen at a spot; one that shares its ports (SO_REUSEPORT) may do so already.
pub(super) fn try_bind(spot: &Spot) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    tie(&socket, spot)?;
    socket.bind(&spot.at.into())
}

/// What accepted connections inherit.
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    keep_alive(socket, CLIENT_GONE)?;
    // One that an earlier version left may have it, and a client that reads nothing for a while would be cut off by it.
    socket.set_tcp_user_timeout(None)
}

/// Opens a spot.
pub(super) fn open(spot: &Spot) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    tie(&socket, spot)?;
    socket.bind(&spot.at.into())?;
    prepare(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
