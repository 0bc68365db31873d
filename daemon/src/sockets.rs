//! Who has which socket on this host.
//!
//! The kernel lists its sockets with the link each is bound to (sock_diag(7)), which `/proc/net/udp` does not say.
//!
//! Ugly fact: a socket's process is found by its inode among the open files in `/proc`, and the daemon's unit lets it see
//! its own user's processes only: then the user is named.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use netboot::host::Transport;
use nix::unistd::{Uid, User};
use socket2::{Domain, Protocol, Socket, Type};

/// Linux `include/uapi/linux/netlink.h` and `sock_diag.h`.
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct inet_diag_msg` (Linux `include/uapi/linux/inet_diag.h`).
const RECORD: usize = 72;
/// A listening TCP socket; a UDP socket that is connected to nobody.
const TCP_LISTEN: u8 = 10;
const TCP_CLOSE: u8 = 7;

/// A socket that takes packets on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) transport: Transport,
    pub(crate) port: u16,
    /// Unspecified for every address.
    pub(crate) address: IpAddr,
    /// The link it is bound to; 0 for all.
    pub(crate) link: u32,
    pub(crate) user: u32,
    pub(crate) inode: u32,
}

/// A process with an open socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) name: String,
}

/// Who listens where a TCP socket was refused this address, as far as the kernel tells.
pub(crate) fn holder(at: SocketAddrV4) -> Option<String> {
    let listed = [Domain::IPV4, Domain::IPV6].map(|domain| list(Transport::Tcp, domain));
    let meets = |holder: &Holder| {
        let by_address = match holder.address {
            IpAddr::V4(address) => address.is_unspecified() || address == *at.ip(),
            IpAddr::V6(address) => address
                .to_ipv4_mapped()
                .map_or(address.is_unspecified(), |address| address == *at.ip()),
        };
        holder.port == at.port() && by_address
    };
    let found = listed.into_iter().flatten().flatten().find(meets)?;
    let named = processes(&BTreeSet::from([found.inode])).remove(&found.inode);
    Some(who(named.as_ref(), &found))
}

/// The holder of a socket, in words.
pub(crate) fn who(process: Option<&Process>, holder: &Holder) -> String {
    match process {
        Some(Process { id, name }) => format!("{name} (process {id})"),
        None => format!("a process of user {}", user(holder.user)),
    }
}

fn user(id: u32) -> String {
    let user = User::from_uid(Uid::from_raw(id)).ok().flatten();
    user.map_or_else(|| id.to_string(), |user| user.name)
}

/// The processes with these sockets, by inode, as far as this process may see them.
pub(crate) fn processes(inodes: &BTreeSet<u32>) -> BTreeMap<u32, Process> {
    let mut found = BTreeMap::new();
    let numbers = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let listing = |path: String| std::fs::read_dir(path).into_iter().flatten().flatten();
    // A process that ends meanwhile, or is not ours to see, has no open files.
    for id in listing("/proc".to_owned()).filter_map(numbers) {
        for file in listing(format!("/proc/{id}/fd")) {
            let Ok(target) = std::fs::read_link(file.path()) else {
                continue;
            };
            let inode = target
                .to_str()
                .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'))
                .and_then(|inode| inode.parse().ok());
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
                let name = name.trim().to_owned();
                found.insert(inode, Process { id, name });
            }
        }
    }
    found
}

/// Every socket of this host that takes packets over a transport and a family.
pub(crate) fn list(transport: Transport, domain: Domain) -> io::Result<Vec<Holder>> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    let (protocol, state) = match transport {
        Transport::Tcp => (libc::IPPROTO_TCP, TCP_LISTEN),
        Transport::Udp => (libc::IPPROTO_UDP, TCP_CLOSE),
    };
    let family = if domain == Domain::IPV4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    socket.send(&question(family as u8, protocol as u8, state))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = io::Read::read(&mut &socket, &mut buffer)?;
        if length == 0 || read(&buffer[..length], transport, &mut found)? {
            return Ok(found);
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`: every socket in one state.
fn question(family: u8, protocol: u8, state: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(72);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and sender: one question, and the kernel knows who asks.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend((1_u32 << state).to_ne_bytes());
    // No particular socket.
    bytes.resize(72, 0);
    bytes
}

/// Reads one datagram of the kernel's answer; true when it was the last.
fn read(mut bytes: &[u8], transport: Transport, found: &mut Vec<Holder>) -> io::Result<bool> {
    while bytes.len() >= HEADER {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
        if length < HEADER || length > bytes.len() {
            return Err(io::Error::other(
                "an answer of the kernel's that is cut off",
            ));
        }
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR if length >= HEADER + 4 => {
                let code = i32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            SOCK_DIAG_BY_FAMILY => {
                found.extend(record(&bytes[HEADER..length], transport));
            }
            _ => {}
        }
        // Messages begin at multiples of four.
        let next = length.next_multiple_of(4).min(bytes.len());
        bytes = &bytes[next..];
    }
    Ok(false)
}

fn record(bytes: &[u8], transport: Transport) -> Option<Holder> {
    let bytes: &[u8; RECORD] = bytes.get(..RECORD)?.try_into().ok()?;
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut address = [0; 16];
    address.copy_from_slice(&bytes[8..24]);
    let address = if i32::from(bytes[0]) == libc::AF_INET {
        let [a, b, c, d, ..] = address;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(address))
    };
    Some(Holder {
        transport,
        port: u16::from_be_bytes([bytes[4], bytes[5]]),
        address,
        link: word(40),
        user: word(64),
        inode: word(68),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_a_socket_of_ours_with_its_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let listener = std::net::TcpListener::bind("[::1]:0").expect("a socket");
        let udp = socket.local_addr().expect("bound");
        let tcp = listener.local_addr().expect("bound");
        for (transport, domain, at) in [
            (Transport::Udp, Domain::IPV4, udp),
            (Transport::Tcp, Domain::IPV6, tcp),
        ] {
            let found = list(transport, domain).expect("a list");
            let ours = found
                .iter()
                .find(|holder| holder.port == at.port() && holder.address == at.ip())
                .unwrap_or_else(|| panic!("{at} is in {found:?}"));
            let processes = processes(&BTreeSet::from([ours.inode]));
            assert_eq!(processes[&ours.inode].id, std::process::id());
        }
    }
}
