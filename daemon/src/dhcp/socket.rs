//! The sockets of one link, and which packet waits in which of them.
//!
//! Under overload it matters which packets are dropped. A DISCOVER that is dropped costs nothing: its
//! machine asks again. A REQUEST that is dropped throws away the work of its DISCOVER too. So the two
//! wait in queues of their own, and the kernel drops from the queue of DISCOVERs before we ever spend
//! a cycle on them.
//!
//! ```text
//!   unicast to :67   -- reuseport program --+--> express   (everything but DISCOVER), drained first
//!   broadcast to :67 -- a copy to each, ----+--> discover  (short: what waits long is stale)
//!                       filtered by each
//! ```
//!
//! Ugly fact. The kernel runs the reuseport program for unicast only; a broadcast is given to every
//! socket of the port, and each must throw away the other's share by a filter.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tracing::warn;

use crate::sys;

/// Bytes of kernel memory for waiting packets; a packet costs about 800.
const EXPRESS_QUEUE: usize = 8 << 20;
const DISCOVER_QUEUE: usize = 384 << 10;
const BOOT_SERVER_QUEUE: usize = 1 << 20;

// Instructions of classic BPF (linux/bpf_common.h) that both programs use.
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The open sockets of one link.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) express: Socket,
    pub(super) discover: Socket,
    pub(super) boot_server: Socket,
    /// For frames to stations without an address; none without CAP_NET_RAW, then they are broadcast.
    pub(super) frames: Option<OwnedFd>,
}

/// Opens the sockets of the link with this name and kernel index.
pub(super) fn open(link: &str, index: u32) -> anyhow::Result<Sockets> {
    let port_67 =
        || format!("opening UDP port 67 on link {link}; is another DHCP server running here?");
    // The order is what the reuseport program's answer counts: 0 is express, 1 is discover.
    let express = bind(link, 67, EXPRESS_QUEUE, Some(Share::Express)).with_context(port_67)?;
    let discover = bind(link, 67, DISCOVER_QUEUE, Some(Share::Discover)).with_context(port_67)?;
    steer(&discover).with_context(port_67)?;
    let boot_server = bind(link, 4011, BOOT_SERVER_QUEUE, None)
        .with_context(|| format!("opening UDP port 4011 on link {link}"))?;
    let frames = match sys::frame_socket(index, sys::Frames::None) {
        Ok(frames) => Some(frames),
        Err(error) => {
            warn!(link, %error, "no raw socket, so machines without an address are answered by broadcast: grant CAP_NET_RAW");
            None
        }
    };
    Ok(Sockets {
        express,
        discover,
        boot_server,
        frames,
    })
}

/// Which of the two queues of port 67 a socket is.
#[derive(Clone, Copy)]
enum Share {
    Express,
    Discover,
}

fn bind(link: &str, port: u16, queue: usize, share: Option<Share>) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(link.as_bytes()))?;
    // Beyond net.core.rmem_max this takes CAP_NET_ADMIN; without it the queue is merely shorter.
    if setsockopt(&socket, sockopt::RcvBufForce, &queue).is_err() {
        socket.set_recv_buffer_size(queue)?;
    }
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    if let Some(share) = share {
        socket.set_reuse_port(true)?;
        let (discover, other) = match share {
            Share::Express => (0, u32::MAX),
            Share::Discover => (u32::MAX, 0),
        };
        socket.attach_filter(&own_broadcasts(discover, other))?;
    }
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    socket.bind(&any.into())?;
    Ok(socket)
}

fn steer(socket: &Socket) -> anyhow::Result<()> {
    // The reuseport program sees the message alone.
    let mut program = by_message_type(0, 1, 0);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).context("a program of eight steps")?,
        // `SockFilter` is a transparent wrapper of the kernel's own instruction.
        filter: program.as_mut_ptr().cast(),
    };
    setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?;
    Ok(())
}

/// A socket's filter: of broadcasts its share, of unicast all that it is given. Should the kernel ever
/// count the two sockets the other way round, packets are sorted badly, and none is lost.
fn own_broadcasts(discover: u32, other: u32) -> Vec<SockFilter> {
    const LOAD_PACKET_TYPE: (u16, u32) = (0x30, 0xffff_f000 + 4);
    const BROADCAST: u32 = 1;
    let mut program = vec![
        SockFilter::new(LOAD_PACKET_TYPE.0, 0, 0, LOAD_PACKET_TYPE.1),
        SockFilter::new(JUMP_EQUAL, 1, 0, BROADCAST),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    // The filter sees the UDP header before the message.
    program.extend(by_message_type(8, discover, other));
    program
}

/// A classic BPF program: `discover` for a message whose first option says DHCPDISCOVER, `other` for
/// everything else. Every client seen puts option 53 first; one that does not is merely not sorted.
fn by_message_type(offset: u32, discover: u32, other: u32) -> [SockFilter; 8] {
    const LOAD_LENGTH: u16 = 0x80;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const FIRST_OPTION: u32 = 240;
    let step = SockFilter::new;
    [
        step(LOAD_LENGTH, 0, 0, 0),
        step(JUMP_GREATER_EQUAL, 0, 4, offset + FIRST_OPTION + 3),
        step(LOAD_HALF, 0, 0, offset + FIRST_OPTION),
        step(JUMP_EQUAL, 0, 2, 0x3501),
        step(LOAD_BYTE, 0, 0, offset + FIRST_OPTION + 2),
        step(JUMP_EQUAL, 1, 0, 1),
        step(RETURN, 0, 0, other),
        step(RETURN, 0, 0, discover),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Inbox;
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn ip(words: &str) {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }

    fn first_types(inbox: &mut Inbox, socket: &Socket, expected: usize) -> Vec<u8> {
        let mut types = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        while types.len() < expected && Instant::now() < deadline {
            for at in 0..inbox.receive(socket).unwrap() {
                types.push(inbox.datagram(at).bytes.get(242).copied().unwrap_or(0));
            }
        }
        types
    }

    /// In a network namespace that ends with its thread, because it takes port 67.
    #[test]
    fn discovers_wait_in_one_queue_and_everything_else_in_the_other() {
        let sorted = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("this test makes a network namespace: run it as root");
            ip("link add eth0 type veth peer name far0");
            ip("link set eth0 up");
            ip("link set far0 up");
            let sockets = open("eth0", 0).unwrap();
            let client = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            client.bind_device(Some(b"far0")).unwrap();
            client.set_broadcast(true).unwrap();
            let client = UdpSocket::from(client);
            let mut message = vec![0; 300];
            for first_option in [[53, 1, 1], [53, 1, 3], [53, 1, 1], [61, 1, 1], [53, 1, 8]] {
                message[240..243].copy_from_slice(&first_option);
                client.send_to(&message, "255.255.255.255:67").unwrap();
            }
            client.send_to(b"short", "255.255.255.255:67").unwrap();
            let mut inbox = Inbox::new(8, 512);
            let discover = first_types(&mut inbox, &sockets.discover, 2);
            let express = first_types(&mut inbox, &sockets.express, 4);
            let left = inbox.receive(&sockets.discover).unwrap();
            (discover, express, left)
        });
        let (discover, express, left) = sorted.join().unwrap();
        assert_eq!(discover, [1, 1]);
        assert_eq!(express, [3, 1, 8, 0], "the second has another option first");
        assert_eq!(left, 0, "nothing is queued twice");
    }
}
