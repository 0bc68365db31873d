//! What a turn of the loop wants sent, sent with as few system calls as the kernel offers.
//!
//! Datagrams for all clients of one port leave in one `sendmmsg`. A window for one client leaves as a
//! single large send that the kernel cuts into its datagrams (UDP segmentation offload), where link and
//! kernel can. A block is a slice of header and a slice of the file, so a file is never copied here.
//! A capture on this machine may show such a window as one large datagram; on the wire it is many.

use std::io::IoSlice;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use bytes::Bytes;
use netboot::tftp::{Session, block_octets, data_header};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, sendmsg};

use super::Served;

/// Datagrams in one `sendmmsg`, and in one segmented send: what older kernels take.
const BATCH: usize = 64;
/// Octets of one segmented send: a UDP datagram's most, less room for headers.
const SEGMENTED_OCTETS_MAX: usize = 65_000;
/// A full send queue drains in this time, or the rest counts as lost and the clock repeats it.
const DRAIN_MILLISECONDS: u8 = 20;

/// Parcels that wait for the end of a turn: one box for port 69, one per port of the ring.
pub(super) struct Outbox {
    headers: MultiHeaders<SockaddrIn>,
    boxes: Vec<Vec<Parcel>>,
    segmented: bool,
}

enum Parcel {
    /// A packet of its own: OACK or ERROR.
    Packet { peer: SocketAddrV4, bytes: Vec<u8> },
    /// `count` blocks of a file.
    Blocks {
        peer: SocketAddrV4,
        content: Bytes,
        block_size: u16,
        first: u64,
        count: u16,
    },
}

impl Outbox {
    pub(super) fn new(ring: usize) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            boxes: (0..=ring).map(|_| Vec::new()).collect(),
            segmented: true,
        }
    }

    /// An ERROR for a request, from the port that heard it.
    pub(super) fn refusal(&mut self, peer: SocketAddrV4, bytes: Vec<u8>) {
        self.boxes[0].push(Parcel::Packet { peer, bytes });
    }

    pub(super) fn packet(&mut self, port: usize, peer: SocketAddrV4, bytes: Vec<u8>) {
        self.boxes[port + 1].push(Parcel::Packet { peer, bytes });
    }

    pub(super) fn blocks(&mut self, session: &Session<Served>, first: u64, count: u16) {
        self.boxes[session.port + 1].push(Parcel::Blocks {
            peer: session.peer,
            content: session.file.content.clone(),
            block_size: session.transfer.agreed().block_size,
            first,
            count,
        });
    }

    /// Sends everything. Returns how many datagrams the kernel would not take.
    pub(super) fn flush(&mut self, door: &UdpSocket, ring: &[UdpSocket]) -> u64 {
        let mut failed = 0;
        for (place, socket) in std::iter::once(door).chain(ring).enumerate() {
            if self.boxes[place].is_empty() {
                continue;
            }
            let mut parcels = std::mem::take(&mut self.boxes[place]);
            if self.segmented {
                parcels.retain(|parcel| match self.send_segmented(socket, parcel) {
                    Some(lost) => {
                        failed += lost;
                        false
                    }
                    None => true,
                });
            }
            failed += self.send_batches(socket, &parcels);
            parcels.clear();
            self.boxes[place] = parcels;
        }
        failed
    }

    /// Sends a window in one or two calls and says how many blocks were lost; none where this must be done
    /// block by block.
    fn send_segmented(&mut self, socket: &UdpSocket, parcel: &Parcel) -> Option<u64> {
        let Parcel::Blocks {
            peer,
            content,
            block_size,
            first,
            count,
        } = parcel
        else {
            return None;
        };
        let segment = block_size + 4;
        let per_send = (SEGMENTED_OCTETS_MAX / usize::from(segment)).min(BATCH);
        if *count < 2 || per_send < 2 {
            return None;
        }
        let mut lost = 0;
        let peer = SockaddrIn::from(*peer);
        let blocks: Vec<u64> = (*first..*first + u64::from(*count)).collect();
        for run in blocks.chunks(per_send) {
            let mut numbers = [[0; 4]; BATCH];
            for (number, block) in numbers.iter_mut().zip(run) {
                *number = data_header(*block);
            }
            let mut slices = [IoSlice::new(&[]); 2 * BATCH];
            for ((pair, number), block) in slices.chunks_exact_mut(2).zip(&numbers).zip(run) {
                let octets = block_octets(content.len() as u64, *block_size, *block);
                pair[0] = IoSlice::new(number);
                pair[1] = IoSlice::new(&content[octets]);
            }
            let control = [ControlMessage::UdpGsoSegments(&segment)];
            let slices = &slices[..2 * run.len()];
            let send = || {
                sendmsg(
                    socket.as_raw_fd(),
                    slices,
                    &control,
                    MsgFlags::MSG_DONTWAIT,
                    Some(&peer),
                )
            };
            match drained(socket, send) {
                Ok(_) => {}
                // No checksum in hardware, a block larger than a frame, a kernel without it.
                Err(
                    Errno::EIO
                    | Errno::EINVAL
                    | Errno::EMSGSIZE
                    | Errno::EOPNOTSUPP
                    | Errno::ENOPROTOOPT,
                ) => {
                    self.segmented = false;
                    return None;
                }
                // A full queue or a route that is gone: the clock repeats what is lost.
                Err(_) => lost += run.len() as u64,
            }
        }
        Some(lost)
    }

    fn send_batches(&mut self, socket: &UdpSocket, parcels: &[Parcel]) -> u64 {
        let datagrams: Vec<Datagram<'_>> = parcels
            .iter()
            .flat_map(|parcel| (0..parcel.datagrams()).map(|at| parcel.datagram(at)))
            .collect();
        datagrams
            .chunks(BATCH)
            .map(|batch| self.send_batch(socket, batch))
            .sum()
    }

    fn send_batch(&mut self, socket: &UdpSocket, batch: &[Datagram<'_>]) -> u64 {
        let peers: Vec<_> = batch
            .iter()
            .map(|datagram| Some(SockaddrIn::from(datagram.peer)))
            .collect();
        let slices: Vec<_> = batch
            .iter()
            .map(|datagram| {
                let header = &datagram.header[..datagram.header_octets];
                [IoSlice::new(header), IoSlice::new(datagram.body)]
            })
            .collect();
        let fd = socket.as_raw_fd();
        let (mut sent, mut failed) = (0, 0);
        while sent < batch.len() {
            let (slices, peers) = (&slices[sent..], &peers[sent..]);
            let headers = &mut self.headers;
            let mut send = || {
                let none: [ControlMessage<'_>; 0] = [];
                sendmmsg(fd, headers, slices, peers, none, MsgFlags::MSG_DONTWAIT)
                    .map(Iterator::count)
            };
            match drained(socket, &mut send) {
                Ok(count) => sent += count,
                Err(Errno::EAGAIN) => return failed + (batch.len() - sent) as u64,
                Err(_) => {
                    failed += 1;
                    sent += 1;
                }
            }
        }
        failed
    }
}

/// One datagram as slices of what the parcel holds.
#[derive(Clone, Copy)]
struct Datagram<'a> {
    peer: SocketAddrV4,
    header: [u8; 4],
    header_octets: usize,
    body: &'a [u8],
}

impl Datagram<'_> {
    const NONE: Self = Self {
        peer: SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0),
        header: [0; 4],
        header_octets: 0,
        body: &[],
    };
}

impl Parcel {
    fn datagrams(&self) -> u16 {
        match self {
            Self::Packet { .. } => 1,
            Self::Blocks { count, .. } => *count,
        }
    }

    fn datagram(&self, at: u16) -> Datagram<'_> {
        match self {
            Self::Packet { peer, bytes } => Datagram {
                peer: *peer,
                body: bytes,
                ..Datagram::NONE
            },
            Self::Blocks {
                peer,
                content,
                block_size,
                first,
                ..
            } => {
                let block = first + u64::from(at);
                Datagram {
                    peer: *peer,
                    header: data_header(block),
                    header_octets: 4,
                    body: &content[block_octets(content.len() as u64, *block_size, block)],
                }
            }
        }
    }
}

/// Sends, and where the queue is full waits shortly and sends once more.
fn drained<T>(socket: &UdpSocket, mut send: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    match send() {
        Err(Errno::EAGAIN) => {
            let mut writable = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            poll(&mut writable, DRAIN_MILLISECONDS)?;
            send()
        }
        done => done,
    }
}
