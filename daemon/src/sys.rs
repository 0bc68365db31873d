//! The one room with `unsafe`: batches of datagrams, a link-layer socket address, a neighbour, a peer's groups, the
//! clock's state, what of a stream arrived, what TCP knows of a peer, accepting without a second call, descriptors that a service manager passed.
//!
//! Nothing here decides anything. Each block says why it is sound; what it offers is safe to call
//! with any arguments. The batches exist because one system call a packet costs more than all of
//! our own work on it, and because the safe wrapper at hand cannot keep its headers between calls
//! or give each message its own source address.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use netboot::ntp::{Clock, Leap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Room for one `IP_PKTINFO` and one `SCM_TIMESTAMPNS`, aligned as a control header must be.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

/// Which frames of a link the kernel gives to a [`frame_socket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// None: it only sends.
    None,
    /// Every one, also those that this host sends.
    All,
}

/// Opens a socket that sends whole Ethernet frames out of one link.
///
/// # Errors
/// What the kernel answered: without CAP_NET_RAW this is `EPERM`.
pub fn frame_socket(link_index: u32, heard: Frames) -> io::Result<OwnedFd> {
    // Protocol 0 keeps the kernel from queueing a copy of every frame of every link to us; binding names the
    // frames and the link at once.
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // SAFETY: `sockaddr_ll` is plain old data, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(link_index).map_err(io::Error::other)?;
    address.sll_protocol = match heard {
        Frames::None => 0,
        Frames::All => (libc::ETH_P_ALL as u16).to_be(),
    };
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Buffers for receiving many datagrams by one system call.
pub struct Inbox {
    buffers: Vec<u8>,
    size: usize,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

/// One received datagram.
pub struct Datagram<'a> {
    pub bytes: &'a [u8],
    pub from: SocketAddrV4,
    /// Where it was sent to; unspecified when the socket does not ask for that.
    pub to: Ipv4Addr,
    /// The kernel's number of the link it came in by; 0 when the socket does not ask for that.
    pub link: u32,
    /// When the kernel queued it, in nanoseconds since 1970; 0 when timestamps are off.
    pub queued_at: u64,
}

// SAFETY: the raw pointers inside `vectors` and `headers` point into the heap storage of the same
// value only, and are written anew before each call.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Room for `count` datagrams of at most `size` bytes; longer ones are cut.
    #[must_use]
    pub fn new(count: usize, size: usize) -> Self {
        // SAFETY: all three are plain old data, for which all zeroes is a valid value.
        let (name, vector, header): (libc::sockaddr_in, libc::iovec, libc::mmsghdr) =
            unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            buffers: vec![0; count * size],
            size,
            names: vec![name; count],
            controls: vec![Control([0; 64]); count],
            vectors: vec![vector; count],
            headers: vec![header; count],
        }
    }

    /// Takes what is queued, up to the capacity, without waiting.
    ///
    /// # Errors
    /// What the kernel answered; an empty queue is `Ok(0)`.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let size = self.size;
        for (at, header) in self.headers.iter_mut().enumerate() {
            self.vectors[at] = libc::iovec {
                iov_base: self.buffers[at * size..].as_mut_ptr().cast(),
                iov_len: size,
            };
            let message = &mut header.msg_hdr;
            message.msg_name = (&raw mut self.names[at]).cast();
            message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            message.msg_iov = &raw mut self.vectors[at];
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut self.controls[at]).cast();
            message.msg_controllen = size_of::<Control>();
            message.msg_flags = 0;
        }
        // SAFETY: every header was pointed at storage of this value just now, which stays borrowed
        // for the call and is as long as each length says.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        if received >= 0 {
            return Ok(received as usize);
        }
        let error = io::Error::last_os_error();
        let empty = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind());
        if empty { Ok(0) } else { Err(error) }
    }

    /// The datagram at a place below what `receive` returned.
    #[must_use]
    pub fn datagram(&self, at: usize) -> Datagram<'_> {
        let header = &self.headers[at];
        let length = (header.msg_len as usize).min(self.size);
        let name = &self.names[at];
        let (queued_at, to, link) = controls(&header.msg_hdr);
        Datagram {
            bytes: &self.buffers[at * self.size..at * self.size + length],
            from: SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)),
                u16::from_be(name.sin_port),
            ),
            to,
            link,
            queued_at,
        }
    }
}

/// Reads the two control messages that a socket of ours asks for: when, and to which address by which link.
fn controls(message: &libc::msghdr) -> (u64, Ipv4Addr, u32) {
    let mut found = (0, Ipv4Addr::UNSPECIFIED, 0);
    // SAFETY: the control buffer belongs to the inbox that holds this header, the kernel filled it
    // up to `msg_controllen`, and CMSG_FIRSTHDR is null when no whole header fits in that.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: `next` is not null, so it points at a whole, aligned header in the buffer.
        let header = unsafe { &*next };
        let body = header.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
        // SAFETY: the body begins right behind the header, in the same buffer.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) if body >= size_of::<libc::timespec>() => {
                // SAFETY: the body holds a whole `timespec` as just checked; it may be unaligned.
                let time = unsafe { ptr::read_unaligned(data.cast::<libc::timespec>()) };
                let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
                found.0 = seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if body >= size_of::<libc::in_pktinfo>() => {
                // SAFETY: the body holds a whole `in_pktinfo` as just checked; it may be unaligned.
                let info = unsafe { ptr::read_unaligned(data.cast::<libc::in_pktinfo>()) };
                found.1 = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                found.2 = u32::try_from(info.ipi_ifindex).unwrap_or(0);
            }
            _ => {}
        }
        // SAFETY: `next` came from this very message; the result is null behind the last header.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    found
}

/// Datagrams or frames collected to be sent by one system call.
pub struct Outbox {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

struct Part {
    from: usize,
    to: usize,
    /// Where to and from which of our addresses; a frame carries both inside itself.
    route: Option<(SocketAddrV4, Ipv4Addr)>,
}

// SAFETY: as for `Inbox`, the raw pointers never outlive one call of `send`.
unsafe impl Send for Outbox {}

impl Outbox {
    /// An empty outbox that allocates room for `count` messages of `size` bytes once.
    #[must_use]
    pub fn new(count: usize, size: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(count * size),
            parts: Vec::with_capacity(count),
            names: Vec::with_capacity(count),
            controls: Vec::with_capacity(count),
            vectors: Vec::with_capacity(count),
            headers: Vec::with_capacity(count),
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds a datagram to `to`, sent from our address `source`.
    pub fn push_datagram(&mut self, bytes: &[u8], to: SocketAddrV4, source: Ipv4Addr) {
        self.push(bytes, Some((to, source)));
    }

    /// Adds a whole frame, for a socket that is bound to its link.
    pub fn push_frame(&mut self, bytes: &[u8]) {
        self.push(bytes, None);
    }

    fn push(&mut self, bytes: &[u8], route: Option<(SocketAddrV4, Ipv4Addr)>) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.parts.push(Part {
            from,
            to: self.bytes.len(),
            route,
        });
    }

    /// Sends everything and empties the outbox; calls `failed` for each message the kernel refused
    /// (an unreachable client must not hold back the ones behind it).
    pub fn send(&mut self, socket: impl AsFd, mut failed: impl FnMut(io::Error)) -> usize {
        self.address();
        let mut at = 0;
        let mut sent = 0;
        while at < self.headers.len() {
            let rest = &mut self.headers[at..];
            // SAFETY: `address` pointed every header at storage of this value, none of which has
            // moved since; it stays borrowed for the call.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            if count > 0 {
                at += count as usize;
                sent += count as usize;
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                failed(error);
                at += 1;
            }
        }
        self.bytes.clear();
        self.parts.clear();
        sent
    }

    fn address(&mut self) {
        self.names.clear();
        self.controls.clear();
        self.vectors.clear();
        self.headers.clear();
        for part in &self.parts {
            let (to, source) = part.route.unwrap_or((
                SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
                Ipv4Addr::UNSPECIFIED,
            ));
            // SAFETY: plain old data, for which all zeroes is a valid value.
            let mut name: libc::sockaddr_in = unsafe { zeroed() };
            name.sin_family = libc::AF_INET as u16;
            name.sin_port = to.port().to_be();
            name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
            self.names.push(name);
            self.controls.push(source_control(source));
            self.vectors.push(libc::iovec {
                iov_base: self.bytes[part.from..part.to].as_ptr().cast_mut().cast(),
                iov_len: part.to - part.from,
            });
        }
        // Pointers are taken only now, when no vector grows any more.
        for (at, part) in self.parts.iter().enumerate() {
            // SAFETY: plain old data, for which all zeroes is a valid value.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iov = &raw mut self.vectors[at];
            header.msg_hdr.msg_iovlen = 1;
            if part.route.is_some() {
                header.msg_hdr.msg_name = (&raw mut self.names[at]).cast();
                header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                header.msg_hdr.msg_control = (&raw mut self.controls[at]).cast();
                header.msg_hdr.msg_controllen = SOURCE_CONTROL;
            }
            self.headers.push(header);
        }
    }
}

// SAFETY: CMSG_SPACE only computes a length.
const SOURCE_CONTROL: usize =
    unsafe { libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as libc::c_uint) } as usize;

/// The control message that makes the kernel send from `source`.
fn source_control(source: Ipv4Addr) -> Control {
    let mut control = Control([0; 64]);
    let header = libc::cmsghdr {
        // SAFETY: CMSG_LEN only computes a length.
        cmsg_len: unsafe { libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as libc::c_uint) } as usize,
        cmsg_level: libc::IPPROTO_IP,
        cmsg_type: libc::IP_PKTINFO,
    };
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from(source).to_be(),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let at = control.0.as_mut_ptr();
    // SAFETY: the buffer is aligned for a control header and its 64 bytes hold header and body.
    unsafe {
        ptr::write(at.cast(), header);
        ptr::write_unaligned(at.add(size_of::<libc::cmsghdr>()).cast(), info);
    }
    control
}

/// The supplementary groups of the process at the other end of a Unix socket, as they were when it
/// connected (socket(7), `SO_PEERGROUPS`). nix knows only the primary one.
///
/// # Errors
/// What the kernel answered; a process in more than 65,536 groups, which Linux allows nobody.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    /// `NGROUPS_MAX` of Linux.
    const GROUPS_MAX: usize = 65_536;
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(groups.as_slice()))
            .expect("a quarter of a megabyte fits");
        // SAFETY: the pointer and the length describe `groups`, which outlives the call, and the
        // kernel writes whole group numbers, for which any bits are valid.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if answer == 0 {
            groups.truncate(length as usize / size_of::<libc::gid_t>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || groups.len() >= GROUPS_MAX {
            return Err(error);
        }
        groups.resize(GROUPS_MAX, 0);
    }
}

/// How many bytes of those written to a TCP socket its peer has not acknowledged yet (tcp(7), `SIOCOUTQ`).
///
/// # Errors
/// What the kernel answered: `EINVAL` for a listening socket.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request, by its other name, writes one int, and `count` outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(count).map_err(io::Error::other)
}

/// What TCP knows of the other end of a connection (tcp(7), `TCP_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Packets under way to it that it has not acknowledged.
    pub unacknowledged: u32,
    /// Bytes for it that could not even be sent.
    pub unsent: u32,
    /// Bytes that it had room for when it spoke last; 0 where the kernel doesn't say, before Linux 5.4.
    pub window: u32,
    /// How long ago its last acknowledgement came.
    pub silent: Duration,
}

/// What TCP knows of the other end of a connected socket.
///
/// # Errors
/// What the kernel answered: `EOPNOTSUPP` for what is no TCP socket.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    // SAFETY: `tcp_info` is plain old data, for which all zeroes is a valid value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `info`, which outlives the call; an older kernel writes less of it.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer {
        unacknowledged: info.tcpi_unacked,
        unsent: info.tcpi_notsent_bytes,
        window: info.tcpi_snd_wnd,
        silent: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

/// The Ethernet address that the kernel's neighbour table has for an address of a link, in the network namespace of
/// this very thread (arp(7), `SIOCGARP`). `None` while there is no complete entry.
///
/// # Errors
/// What the kernel answered: `ENODEV` when there is no such link.
pub fn neighbour(link: &str, address: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `arpreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::arpreq = unsafe { zeroed() };
    let [a, b, c, d] = address.octets().map(u8::cast_signed);
    request.arp_pa.sa_family = libc::AF_INET as u16;
    // A `sockaddr_in`: two bytes of port, then the address.
    request.arp_pa.sa_data[2..6].copy_from_slice(&[a, b, c, d]);
    // The last byte stays zero and ends the name.
    if link.len() >= request.arp_dev.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.arp_dev.iter_mut().zip(link.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the kernel reads and writes one `arpreq`, which outlives the call.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGARP, &raw mut request) };
    if answer < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENXIO) {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let complete = request.arp_flags & libc::ATF_COM != 0;
    let octets = request.arp_ha.sa_data[..6]
        .iter()
        .map(|byte| byte.cast_unsigned());
    let mut mac = [0; 6];
    mac.iter_mut()
        .zip(octets)
        .for_each(|(place, byte)| *place = byte);
    Ok(complete.then_some(mac))
}

/// What the kernel knows of its clock (adjtimex(2)).
///
/// # Errors
/// What the kernel answered, which is nothing but `EFAULT` and `EPERM` of calls that are not made here.
pub fn clock() -> io::Result<Clock> {
    // SAFETY: `timex` is plain old data, for which all zeroes is a valid value; zero modes only read.
    let mut timex: libc::timex = unsafe { zeroed() };
    // SAFETY: the kernel writes one `timex`, which outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Clock {
        synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        leap: match state {
            libc::TIME_INS => Leap::Insert,
            libc::TIME_DEL => Leap::Delete,
            _ => Leap::None,
        },
        error_micros: u32::try_from(timex.maxerror).unwrap_or(u32::MAX),
    })
}

/// Takes the next connection of a listening IPv4 socket: non-blocking, closed on exec, and from whom.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddrV4)> {
    // SAFETY: `sockaddr_in` is plain old data, for which all zeroes is a valid value.
    let mut peer: libc::sockaddr_in = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and the length says how long the first is.
    let accepted = unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut peer).cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if accepted < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
    let address = Ipv4Addr::from(u32::from_be(peer.sin_addr.s_addr));
    Ok((
        socket,
        SocketAddrV4::new(address, u16::from_be(peer.sin_port)),
    ))
}

/// Takes over the descriptors that a service manager passed (sd_listen_fds(3)), each with its name.
#[must_use]
pub fn adopt(passed: Vec<(RawFd, String)>) -> Vec<(String, OwnedFd)> {
    let owned = |(number, name)| {
        // SAFETY: the service manager opened this descriptor for this process before it began and names it to us
        // alone; the caller reads that word once, so nobody else owns it.
        (name, unsafe { OwnedFd::from_raw_fd(number) })
    };
    passed.into_iter().map(owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_batch_arrives_whole_in_order_and_from_the_chosen_address() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(to) = receiver.local_addr().unwrap() else {
            panic!("bound to an IPv4 address")
        };
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut outbox = Outbox::new(2, 16);
        for word in [&b"one"[..], b"two", b"three"] {
            outbox.push_datagram(word, to, Ipv4Addr::new(127, 0, 0, 5));
        }
        assert_eq!(outbox.send(&sender, |error| panic!("{error}")), 3);
        assert!(outbox.is_empty());
        let mut inbox = Inbox::new(8, 4);
        let mut words = Vec::new();
        while words.len() < 3 {
            for at in 0..inbox.receive(&receiver).unwrap() {
                let datagram = inbox.datagram(at);
                assert_eq!(*datagram.from.ip(), Ipv4Addr::new(127, 0, 0, 5));
                words.push(datagram.bytes.to_vec());
            }
        }
        assert_eq!(words, [&b"one"[..], b"two", b"thre"]);
    }

    #[test]
    fn one_refused_datagram_does_not_hold_back_the_next() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(to) = receiver.local_addr().unwrap() else {
            panic!("bound to an IPv4 address")
        };
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut outbox = Outbox::new(2, 16);
        // A socket without SO_BROADCAST may not send there.
        let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9);
        outbox.push_datagram(b"no", everybody, Ipv4Addr::LOCALHOST);
        outbox.push_datagram(b"yes", to, Ipv4Addr::LOCALHOST);
        let mut refused = 0;
        assert_eq!(outbox.send(&sender, |_| refused += 1), 1);
        assert_eq!(refused, 1);
    }
}
