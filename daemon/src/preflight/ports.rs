//! The ports that are served: ours, free, or somebody else's, and whose.
//!
//! The kernel lists its sockets with the link each is bound to (sock_diag(7)), which `/proc/net/udp` does not say: a
//! DHCP server of virtual machines on `virbr0` is no rival of one on `eth1.107`.
//!
//! Ugly facts. A socket's process is found by its inode among the open files in `/proc`, and the daemon's unit lets it
//! see its own user's processes only: then the user is named, and the command that names the process. A port that two
//! servers share (SO_REUSEADDR) is open to both, and each gets some of the packets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::Arc;

use netboot::host::Transport;
use netboot::net::LinkName;
use netboot::zone::DnsMode;
use nix::unistd::{Uid, User};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Check, Id, Scene, listed};
use crate::probe::talos::sink;

/// A program of this name is taken for the daemon, whose ports these are.
const DAEMON: &str = "reveille";
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
struct Holder {
    transport: Transport,
    port: u16,
    /// Unspecified for every address.
    address: IpAddr,
    /// The link it is bound to; 0 for all.
    link: u32,
    user: u32,
    inode: u32,
}

/// A process with an open socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    id: u32,
    name: String,
}

/// A port that the site serves on a link.
#[derive(Clone, Debug)]
struct Wanted {
    link: LinkName,
    index: u32,
    addresses: Vec<Ipv4Addr>,
}

/// Looks at every port on every served link.
pub(super) async fn check(scene: Arc<Scene>) -> Vec<Check> {
    // Reading every process' open files is work for a thread that may block.
    let checked = tokio::task::spawn_blocking(move || look(&scene));
    checked
        .await
        .expect("looking at sockets does not panic, and nobody aborts it")
}

fn look(scene: &Scene) -> Vec<Check> {
    let wanted = wanted(scene);
    let names: Vec<Wanted> = wanted.iter().cloned().chain(public(scene)).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let mut holders = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        for domain in [Domain::IPV4, Domain::IPV6] {
            match sockets(transport, domain) {
                Ok(more) => holders.extend(more),
                Err(error) => {
                    return vec![Check::warn(
                        Id::Ports,
                        "this host",
                        format!("the kernel does not list its sockets: {error}"),
                        "load its modules (modprobe -a inet_diag udp_diag tcp_diag), or look yourself: ss -lunp; ss -ltnp",
                    )];
                }
            }
        }
    }
    let inodes = holders.iter().map(|holder| holder.inode).collect();
    let processes = processes(&inodes);
    let events = sink::is_wanted(&scene.spec).then_some((Transport::Tcp, scene.ports.events));
    let ports = [
        (Transport::Udp, 67),
        (Transport::Udp, 4011),
        (Transport::Udp, 69),
        (Transport::Tcp, scene.ports.plain),
        (Transport::Tcp, scene.ports.tls),
    ];
    let serves_names = scene.spec.dns().mode == DnsMode::Serve;
    let dns = [(Transport::Udp, 53), (Transport::Tcp, 53)];
    let dns = dns.into_iter().filter(|_| serves_names);
    let ntp = scene.spec.serves_time().then_some((Transport::Udp, 123));
    let judged = ports
        .into_iter()
        .chain(events)
        .chain(ntp)
        .map(|port| (port, &wanted));
    let judged = judged.chain(dns.map(|port| (port, &names)));
    judged
        .filter(|(_, wanted)| !wanted.is_empty())
        .map(|((transport, port), wanted)| judge(transport, port, wanted, &holders, &processes))
        .collect()
}

/// Who listens where a TCP socket was refused this address, as far as the kernel tells.
pub(crate) fn holder(at: SocketAddrV4) -> Option<String> {
    let listed = [Domain::IPV4, Domain::IPV6].map(|domain| sockets(Transport::Tcp, domain));
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
fn who(process: Option<&Process>, holder: &Holder) -> String {
    match process {
        Some(Process { id, name }) => format!("{name} (process {id})"),
        None => format!("a process of user {}", user(holder.user)),
    }
}

fn wanted(scene: &Scene) -> Vec<Wanted> {
    let links: BTreeSet<&LinkName> = scene.networks().map(|network| &network.link).collect();
    there(scene, links)
}

/// The links on which everybody may ask for names.
fn public(scene: &Scene) -> Vec<Wanted> {
    there(scene, scene.spec.dns().public.iter())
}

fn there<'a>(scene: &Scene, links: impl IntoIterator<Item = &'a LinkName>) -> Vec<Wanted> {
    let there = links.into_iter().filter_map(|name| {
        let link = scene.links.get(name.as_str())?;
        Some(Wanted {
            link: name.clone(),
            index: link.index,
            addresses: link.addresses.iter().map(ipnet::Ipv4Net::addr).collect(),
        })
    });
    there.collect()
}

impl Wanted {
    /// A socket that gets packets of this link.
    fn is_met_by(&self, holder: &Holder) -> bool {
        let by_link = holder.link == 0 || holder.link == self.index;
        let by_address = match holder.address {
            IpAddr::V4(address) => address.is_unspecified() || self.addresses.contains(&address),
            // An unspecified IPv6 socket takes IPv4 too, unless it was told otherwise.
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(address) => self.addresses.contains(&address),
                None => address.is_unspecified(),
            },
        };
        by_link && by_address
    }
}

fn judge(
    transport: Transport,
    port: u16,
    wanted: &[Wanted],
    holders: &[Holder],
    processes: &BTreeMap<u32, Process>,
) -> Check {
    let word = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let (id, subject) = (Id::Ports, format!("{word} {port}"));
    let mut ours = BTreeSet::new();
    let mut others = BTreeMap::<String, BTreeSet<&LinkName>>::new();
    let of_port = |holder: &&Holder| holder.transport == transport && holder.port == port;
    for holder in holders.iter().filter(of_port) {
        for link in wanted.iter().filter(|link| link.is_met_by(holder)) {
            match processes.get(&holder.inode) {
                Some(process) if process.name == DAEMON => {
                    ours.insert(&link.link);
                }
                process => {
                    let who = who(process, holder);
                    others.entry(who).or_default().insert(&link.link);
                }
            }
        }
    }
    let links = |links: &BTreeSet<&LinkName>| {
        let links: Vec<&str> = links.iter().map(|link| link.as_str()).collect();
        links.join(", ")
    };
    if others.is_empty() {
        let evidence = if ours.is_empty() {
            "free".to_owned()
        } else {
            format!("ours on {}", links(&ours))
        };
        return Check::pass(id, subject, evidence);
    }
    let evidence = others
        .iter()
        .map(|(who, on)| format!("{who} has it on {}", links(on)));
    let flag = match transport {
        Transport::Tcp => "-ltnp",
        Transport::Udp => "-lunp",
    };
    let remedy = format!(
        "stop that program or bind it to another link; `ss {flag} sport = :{port}` shows it; its unit: systemctl \
         status PROCESS"
    );
    Check::fail(id, subject, listed(evidence), remedy)
}

fn user(id: u32) -> String {
    let user = User::from_uid(Uid::from_raw(id)).ok().flatten();
    user.map_or_else(|| id.to_string(), |user| user.name)
}

/// The processes with these sockets, by inode, as far as this process may see them.
fn processes(inodes: &BTreeSet<u32>) -> BTreeMap<u32, Process> {
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
fn sockets(transport: Transport, domain: Domain) -> io::Result<Vec<Holder>> {
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
    use super::super::Outcome;
    use super::*;

    fn wanted() -> [Wanted; 1] {
        [Wanted {
            link: "eth1.107".parse().expect("a name"),
            index: 7,
            addresses: vec![Ipv4Addr::new(10, 107, 0, 1)],
        }]
    }

    fn holder(address: &str, link: u32) -> Holder {
        Holder {
            transport: Transport::Udp,
            port: 67,
            address: address.parse().expect("an address"),
            link,
            user: 0,
            inode: 5,
        }
    }

    fn judged(holder: Holder, process: Option<&str>) -> Check {
        let named = |name: &str| {
            let name = name.to_owned();
            BTreeMap::from([(5, Process { id: 9, name })])
        };
        let processes = process.map_or(BTreeMap::new(), named);
        judge(Transport::Udp, 67, &wanted(), &[holder], &processes)
    }

    #[test]
    fn whoever_gets_packets_of_our_link_is_named_and_whoever_does_not_is_no_rival() {
        for (address, link) in [("0.0.0.0", 0), ("10.107.0.1", 0), ("0.0.0.0", 7), ("::", 0)] {
            let check = judged(holder(address, link), Some("dnsmasq"));
            assert_eq!(check.result, Outcome::Fail, "{address} on {link}");
            assert_eq!(check.evidence, "dnsmasq (process 9) has it on eth1.107");
        }
        for (address, link) in [("0.0.0.0", 8), ("192.0.2.1", 0), ("::1", 0)] {
            let check = judged(holder(address, link), Some("dnsmasq"));
            assert_eq!(check.result, Outcome::Pass, "{address} on {link}");
        }
        let hidden = judged(holder("0.0.0.0", 0), None);
        assert_eq!(hidden.evidence, "a process of user root has it on eth1.107");
        let daemon = judged(holder("0.0.0.0", 7), Some(DAEMON));
        assert_eq!(
            (daemon.result, daemon.evidence.as_str()),
            (Outcome::Pass, "ours on eth1.107")
        );
    }

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
            let found = sockets(transport, domain).expect("a list");
            let ours = found
                .iter()
                .find(|holder| holder.port == at.port() && holder.address == at.ip())
                .unwrap_or_else(|| panic!("{at} is in {found:?}"));
            let processes = processes(&BTreeSet::from([ours.inode]));
            assert_eq!(processes[&ours.inode].id, std::process::id());
        }
    }
}
