//! Many DHCP clients behind one relay address, on one thread.
//!
//! Touches: one UDP socket on port 67 of the load's namespace, the monotonic clock.
//!
//! ```text
//!   DISCOVER ──▶  patience runs   ──▶ OFFER ──▶ REQUEST ──▶ patience runs ──▶ ACK: one exchange
//! ```
//!
//! Closed loop: a fixed number of exchanges is under way, a step without its answer is sent again
//! as a client would, and the exchange is given up after three tries. Open loop: exchanges arrive at a fixed rate
//! whatever the server does; one that has waited its patience is given up, and the machine's next try
//! is one of the later arrivals, so that the offered rate stays what it says.
//! The transaction id carries the slot and its age, so a late answer to a given-up exchange is never counted.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt,
};

use crate::lab::{CLIENT, SERVER};

const BATCH: usize = 64;
const PACKET: usize = 300;
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u8 = 3;
const SLOT_BITS: u32 = 20;

/// One reserved machine.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
}

/// `count` machines from 10.77.16.1 upwards.
pub(crate) fn machines(count: u32) -> Vec<Machine> {
    let first = u32::from(Ipv4Addr::new(10, 77, 16, 1));
    let machine = |index: u32| {
        let [_, high, middle, low] = index.to_be_bytes();
        Machine {
            mac: [0x52, 0x54, 0x00, high, middle, low],
            address: Ipv4Addr::from(first + index),
        }
    };
    (0..count).map(machine).collect()
}

/// How exchanges begin.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    InFlight(usize),
    PerSecond(f64),
}

/// What the window between warm-up and end saw.
pub(crate) struct Report {
    pub(crate) begun_per_second: f64,
    pub(crate) done_per_second: f64,
    pub(crate) cpu_per_exchange: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Answers with another address than the reserved one, and NAKs.
    pub(crate) wrong: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Idle,
    Discover,
    Request,
}

#[derive(Clone, Copy)]
struct Slot {
    step: Step,
    tries: u8,
    age: u32,
    machine: u32,
    begun: Instant,
    offered: [u8; 4],
    server: [u8; 4],
}

/// The generator: a socket, the machines, and what is under way.
pub(crate) struct Clients {
    socket: UdpSocket,
    machines: Arc<[Machine]>,
    next_machine: usize,
    slots: Vec<Slot>,
    idle: Vec<u32>,
    deadlines: VecDeque<(Instant, u32, Step)>,
    outbox: VecDeque<u32>,
    packets: Vec<[u8; PACKET]>,
    inbox: Vec<[u8; 1500]>,
    received: MultiHeaders<SockaddrIn>,
    sending: MultiHeaders<SockaddrIn>,
    begun: u64,
    took: Vec<Duration>,
    wrong: u64,
}

impl Clients {
    pub(crate) fn new(machines: Arc<[Machine]>) -> Result<Self> {
        let socket =
            UdpSocket::bind(SocketAddrV4::new(CLIENT, 67)).context("binding the relay's port")?;
        socket
            .connect(SocketAddrV4::new(SERVER, 67))
            .context("connecting to the DHCP server")?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))
            .context("raising the receive buffer")?;
        setsockopt(&socket, sockopt::SndBufForce, &(8 << 20)).context("raising the send buffer")?;
        Ok(Self {
            socket,
            machines,
            next_machine: 0,
            slots: Vec::new(),
            idle: Vec::new(),
            deadlines: VecDeque::new(),
            outbox: VecDeque::new(),
            packets: vec![template(); BATCH],
            inbox: vec![[0; 1500]; BATCH],
            received: MultiHeaders::preallocate(BATCH, None),
            sending: MultiHeaders::preallocate(BATCH, None),
            begun: 0,
            took: Vec::new(),
            wrong: 0,
        })
    }

    /// One exchange, tried for `patience`: is the server there?
    pub(crate) fn answered(&mut self, patience: Duration) -> Result<bool> {
        let start = Instant::now();
        self.begin(start);
        while start.elapsed() < patience && self.took.is_empty() {
            self.flush()?;
            self.receive()?;
        }
        Ok(!self.took.is_empty())
    }

    /// Drives the load for `warm_up` and then `window`, reading the server's CPU at both ends of the window.
    pub(crate) fn run(
        &mut self,
        pace: Pace,
        warm_up: Duration,
        window: Duration,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Report> {
        self.drive(pace, warm_up)?;
        self.forget_counts();
        let (before, start) = (cpu()?, Instant::now());
        self.drive(pace, window)?;
        let (elapsed, used) = (start.elapsed().as_secs_f64(), cpu()?.saturating_sub(before));
        self.took.sort();
        let done = self.took.len();
        let quantile = |share: usize| {
            self.took
                .get(done * share / 100)
                .copied()
                .unwrap_or_default()
        };
        Ok(Report {
            begun_per_second: self.begun as f64 / elapsed,
            done_per_second: done as f64 / elapsed,
            cpu_per_exchange: used.checked_div(done as u32).unwrap_or_default(),
            p50: quantile(50),
            p99: quantile(99),
            wrong: self.wrong,
        })
    }

    fn drive(&mut self, pace: Pace, period: Duration) -> Result<()> {
        let start = Instant::now();
        let mut arrived = 0;
        loop {
            let now = Instant::now();
            let elapsed = now.duration_since(start);
            if elapsed >= period {
                return Ok(());
            }
            match pace {
                Pace::InFlight(count) => {
                    while self.slots.len() - self.idle.len() < count {
                        self.begin(now);
                    }
                }
                Pace::PerSecond(rate) => {
                    let due = (elapsed.as_secs_f64() * rate) as u64 - arrived;
                    let room = BATCH.saturating_sub(self.outbox.len()) as u64;
                    for _ in 0..due.min(room) {
                        self.begin(now);
                        arrived += 1;
                    }
                }
            }
            self.flush()?;
            self.receive()?;
            self.expire(Instant::now(), matches!(pace, Pace::InFlight(_)));
        }
    }

    fn forget_counts(&mut self) {
        (self.begun, self.wrong) = (0, 0);
        self.took.clear();
    }

    fn begin(&mut self, now: Instant) {
        let machine = self.next_machine as u32;
        self.next_machine = (self.next_machine + 1) % self.machines.len();
        let slot = self.idle.pop().unwrap_or_else(|| {
            let empty = Slot {
                step: Step::Idle,
                tries: 0,
                age: 0,
                machine,
                begun: now,
                offered: [0; 4],
                server: [0; 4],
            };
            self.slots.push(empty);
            self.slots.len() as u32 - 1
        });
        let state = &mut self.slots[slot as usize];
        state.age = state.age.wrapping_add(1);
        (state.step, state.tries, state.machine, state.begun) = (Step::Discover, 0, machine, now);
        self.begun += 1;
        self.outbox.push_back(slot);
    }

    /// Sends what is due, a batch at a time; a full device queue keeps the rest for the next turn.
    fn flush(&mut self) -> Result<()> {
        while !self.outbox.is_empty() {
            let count = self.outbox.len().min(BATCH);
            for (at, slot) in self.outbox.iter().take(count).enumerate() {
                let state = &self.slots[*slot as usize];
                write(
                    &mut self.packets[at],
                    *slot,
                    state,
                    &self.machines[state.machine as usize],
                );
            }
            let slices: Vec<[IoSlice; 1]> = self.packets[..count]
                .iter()
                .map(|packet| [IoSlice::new(packet)])
                .collect();
            let none: [Option<SockaddrIn>; BATCH] = [None; BATCH];
            let nothing: [ControlMessage; 0] = [];
            let fd = self.socket.as_raw_fd();
            let sent = sendmmsg(
                fd,
                &mut self.sending,
                &slices,
                &none[..count],
                nothing,
                MsgFlags::MSG_DONTWAIT,
            );
            let sent = match sent {
                Ok(results) => results.count(),
                Err(nix::Error::EAGAIN | nix::Error::ENOBUFS) => return Ok(()),
                // The port was closed for a moment: the packet counts as lost, as it would on a wire.
                Err(nix::Error::ECONNREFUSED) => count,
                Err(error) => return Err(error).context("sending DHCP packets"),
            };
            let due = Instant::now() + PATIENCE;
            for slot in self.outbox.drain(..sent) {
                let state = &self.slots[slot as usize];
                self.deadlines
                    .push_back((due, xid(slot, state.age), state.step));
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut inbox = std::mem::take(&mut self.inbox);
        let lengths: Vec<usize> = {
            let mut slices: Vec<[IoSliceMut; 1]> = inbox
                .iter_mut()
                .map(|packet| [IoSliceMut::new(packet)])
                .collect();
            let fd = self.socket.as_raw_fd();
            let results = recvmmsg(
                fd,
                &mut self.received,
                slices.iter_mut(),
                MsgFlags::MSG_DONTWAIT,
                None,
            );
            match results {
                Ok(results) => results.map(|message| message.bytes).collect(),
                Err(nix::Error::EAGAIN | nix::Error::ECONNREFUSED) => Vec::new(),
                Err(error) => return Err(error).context("receiving DHCP packets"),
            }
        };
        let now = if lengths.is_empty() {
            None
        } else {
            Some(Instant::now())
        };
        for (packet, length) in inbox.iter().zip(lengths) {
            if let (Some(reply), Some(now)) = (Reply::read(&packet[..length]), now) {
                self.take(&reply, now);
            }
        }
        self.inbox = inbox;
        Ok(())
    }

    fn take(&mut self, reply: &Reply, now: Instant) {
        let slot = reply.xid & ((1 << SLOT_BITS) - 1);
        let Some(state) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if state.step == Step::Idle || reply.xid != xid(slot, state.age) {
            return;
        }
        let right = reply.address == self.machines[state.machine as usize].address.octets();
        match (state.step, reply.kind) {
            (Step::Discover, 2) => {
                (state.step, state.tries) = (Step::Request, 0);
                (state.offered, state.server) = (reply.address, reply.server);
                self.outbox.push_back(slot);
            }
            (Step::Request, 5) => {
                self.took.push(now.duration_since(state.begun));
                self.wrong += u64::from(!right);
                self.end(slot);
            }
            (Step::Request, 6) => {
                self.wrong += 1;
                self.end(slot);
            }
            _ => {}
        }
    }

    fn expire(&mut self, now: Instant, again: bool) {
        while let Some((due, id, step)) = self.deadlines.front().copied() {
            if due > now {
                return;
            }
            self.deadlines.pop_front();
            let slot = id & ((1 << SLOT_BITS) - 1);
            let state = &mut self.slots[slot as usize];
            if state.step != step || id != xid(slot, state.age) {
                continue;
            }
            state.tries += 1;
            if again && state.tries < TRIES {
                self.outbox.push_back(slot);
            } else {
                self.end(slot);
            }
        }
    }

    fn end(&mut self, slot: u32) {
        self.slots[slot as usize].step = Step::Idle;
        self.idle.push(slot);
    }
}

fn xid(slot: u32, age: u32) -> u32 {
    age << SLOT_BITS | slot
}

/// A relayed client's packet with everything but the machine and the message in place:
/// parameter list 1 3 6 12 15 51 54, client identifier from the MAC, as iPXE and udhcpc send it.
fn template() -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[..4].copy_from_slice(&[1, 1, 6, 1]);
    packet[24..28].copy_from_slice(&CLIENT.octets());
    packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
    packet[240..243].copy_from_slice(&[53, 1, 1]);
    packet[243..246].copy_from_slice(&[61, 7, 1]);
    packet[252..261].copy_from_slice(&[55, 7, 1, 3, 6, 12, 15, 51, 54]);
    packet[261] = 255;
    packet
}

fn write(packet: &mut [u8; PACKET], slot: u32, state: &Slot, machine: &Machine) {
    packet[4..8].copy_from_slice(&xid(slot, state.age).to_be_bytes());
    packet[28..34].copy_from_slice(&machine.mac);
    packet[246..252].copy_from_slice(&machine.mac);
    if state.step == Step::Request {
        packet[242] = 3;
        packet[261..263].copy_from_slice(&[50, 4]);
        packet[263..267].copy_from_slice(&state.offered);
        packet[267..269].copy_from_slice(&[54, 4]);
        packet[269..273].copy_from_slice(&state.server);
        packet[273] = 255;
    } else {
        packet[242] = 1;
        packet[261] = 255;
        // Strict readers refuse a packet with anything but padding behind its end.
        packet[262..274].fill(0);
    }
}

struct Reply {
    xid: u32,
    kind: u8,
    address: [u8; 4],
    server: [u8; 4],
}

impl Reply {
    fn read(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| packet.get(at..at + 4)?.try_into().ok();
        let (mut kind, mut server) = (0, [0; 4]);
        let mut at = 240;
        while let Some(code) = packet.get(at).copied().filter(|code| *code != 255) {
            if code == 0 {
                at += 1;
                continue;
            }
            match code {
                53 => kind = *packet.get(at + 2)?,
                54 => server = word(at + 2)?,
                _ => {}
            }
            at += 2 + usize::from(*packet.get(at + 1)?);
        }
        Some(Self {
            xid: u32::from_be_bytes(word(4)?),
            kind,
            address: word(16)?,
            server,
        })
    }
}

/// Refuses a run whose answers were not the reservations.
pub(crate) fn ensure_right(report: &Report) -> Result<()> {
    ensure!(
        report.wrong == 0,
        "{} answers were not the reserved address",
        report.wrong
    );
    Ok(())
}
