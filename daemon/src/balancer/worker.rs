//! The threads that move the bytes, each with an epoll of its own.
//!
//! Beside tokio and not on it: a flow needs edge-triggered readiness of two sockets and nothing else, and a wake-up of a
//! task costs more than the system calls it makes. A listening socket is one for all workers: whichever is idle accepts
//! (EPOLLEXCLUSIVE), and a socket of each worker's own (SO_REUSEPORT) would lose the connections queued on it whenever
//! the worker ends.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::Socket;
use tokio::sync::oneshot;
use tracing::warn;

use super::flow::{Flow, Side, Tools, Turn};
use super::pool::Gate;
use crate::sys;

/// Connections accepted before the flows have their turn.
const ACCEPTS: usize = 32;
const EVENTS: usize = 256;
/// How often flows are looked at that nothing happens to.
const SWEEP: Duration = Duration::from_secs(1);
/// How long accepting pauses when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);
/// A pause that comes sooner than this after another needs no word.
const EPISODE: Duration = Duration::from_secs(60);

/// Marks of what is no flow's.
const BELL: u64 = u64::MAX;
const LISTENER: u64 = 1 << 63;
const BACKEND: u64 = 1 << 62;

/// A listening socket, and what is behind it.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) socket: Arc<Socket>,
    pub(super) at: SocketAddrV4,
    pub(super) gate: Arc<Gate>,
}

enum Order {
    Open(u64, Door),
    Close(u64),
    /// Accept nothing more, and end when the flows did or at this moment.
    Finish(Instant),
}

/// One worker, for whoever gives it orders.
pub(super) struct Worker {
    orders: Arc<Mutex<Vec<Order>>>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts one. The receiver is told when it ended, however it did.
    pub(super) fn start(number: usize) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let bell = Arc::new(bell);
        epoll.add(&*bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let orders = Arc::new(Mutex::new(Vec::new()));
        let (alive, ended) = oneshot::channel::<()>();
        let state = State {
            epoll,
            bell: Arc::clone(&bell),
            orders: Arc::clone(&orders),
            doors: BTreeMap::new(),
            flows: Vec::new(),
            free: Vec::new(),
            count: 0,
            connecting: VecDeque::new(),
            unfinished: Vec::new(),
            finish: None,
            paused: None,
            crowded: None,
            tools: Tools::new(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("balancer-{number}"))
            .spawn(move || {
                // Dropped when the thread ends, by a panic too.
                let _alive = alive;
                state.run();
            })?;
        let worker = Self {
            orders,
            bell,
            thread: Some(thread),
        };
        Ok((worker, ended))
    }

    pub(super) fn open(&self, id: u64, door: Door) {
        self.order(Order::Open(id, door));
    }

    pub(super) fn close(&self, id: u64) {
        self.order(Order::Close(id));
    }

    pub(super) fn finish(&self, until: Instant) {
        self.order(Order::Finish(until));
    }

    fn order(&self, order: Order) {
        // A worker takes all orders at once, so a panic in between leaves none half taken.
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.push(order);
        drop(orders);
        let _ = self.bell.write(1);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.finish(Instant::now());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Slot {
    /// Counts the flows that had this slot: an event of an earlier one is not for the present one.
    age: u32,
    flow: Option<Box<Flow>>,
}

struct State {
    epoll: Epoll,
    bell: Arc<EventFd>,
    orders: Arc<Mutex<Vec<Order>>>,
    doors: BTreeMap<u64, Door>,
    flows: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
    /// Who waits for a backend, in the order of their deadlines.
    connecting: VecDeque<(Instant, u64)>,
    /// Who can go on without a word of the kernel's, each once.
    unfinished: Vec<u64>,
    finish: Option<Instant>,
    /// Out of descriptors until then.
    paused: Option<Instant>,
    /// When that was found last.
    crowded: Option<Instant>,
    tools: Tools,
}

impl State {
    fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        let mut swept = Instant::now();
        loop {
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // No other error is possible with an epoll and a buffer of our own (epoll_wait(2)).
                Err(error) => {
                    warn!(%error, "a worker of the balancer cannot wait");
                    return;
                }
            };
            let now = Instant::now();
            // Those that become unfinished in this round have had their turn.
            let unfinished = std::mem::take(&mut self.unfinished);
            for event in &events[..count] {
                self.event(event.data(), event.events(), now);
            }
            for token in unfinished {
                if let Some(flow) = self.flow(token) {
                    flow.queued = false;
                    self.turn(token);
                }
            }
            self.deadlines(now);
            if now.saturating_duration_since(swept) >= SWEEP {
                swept = now;
                self.sweep(now);
            }
            if self.paused.is_some_and(|until| until <= now) {
                self.paused = None;
                self.listen_again();
            }
            if self
                .finish
                .is_some_and(|until| self.count == 0 || until <= now)
            {
                // A stream that is cut must not look whole.
                let cut = self.flows.iter().filter_map(|slot| slot.flow.as_ref());
                cut.for_each(|flow| flow.reset());
                return;
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let millis = if !self.unfinished.is_empty() {
            0
        } else if self.paused.is_some() || self.finish.is_some() || !self.connecting.is_empty() {
            20
        } else {
            1000_u16
        };
        EpollTimeout::from(millis)
    }

    fn event(&mut self, token: u64, flags: EpollFlags, now: Instant) {
        if token == BELL {
            let _ = self.bell.read();
            self.take_orders();
        } else if token & LISTENER != 0 {
            self.accept(token & !LISTENER, now);
        } else {
            self.flow_event(token, flags, now);
        }
    }

    fn take_orders(&mut self) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *orders);
        drop(orders);
        for order in taken {
            match order {
                Order::Open(id, door) => {
                    if let Err(error) = self.listen(id, &door) {
                        warn!(at = %door.at, %error, "a worker of the balancer cannot listen");
                    }
                    self.doors.insert(id, door);
                }
                Order::Close(id) => {
                    if let Some(door) = self.doors.remove(&id) {
                        let _ = self.epoll.delete(&*door.socket);
                    }
                }
                Order::Finish(until) => {
                    // The first word counts: dropping a worker says it again, without patience.
                    self.finish.get_or_insert(until);
                    for door in std::mem::take(&mut self.doors).into_values() {
                        let _ = self.epoll.delete(&*door.socket);
                    }
                }
            }
        }
    }

    fn listen(&self, id: u64, door: &Door) -> nix::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        let event = EpollEvent::new(flags, LISTENER | id);
        self.epoll.add(&*door.socket, event)
    }

    fn listen_again(&self) {
        for (id, door) in &self.doors {
            let _ = self.listen(*id, door);
        }
    }

    fn accept(&mut self, id: u64, now: Instant) {
        let Some(door) = self.doors.get(&id).cloned() else {
            return;
        };
        for _ in 0..ACCEPTS {
            let (socket, from) = match sys::accept(&*door.socket) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if out_of_room(&error) => {
                    let before = self.crowded.replace(now);
                    if before.is_none_or(|before| now.saturating_duration_since(before) > EPISODE) {
                        warn!(at = %door.at, %error, "accepting pauses, now and then");
                    }
                    self.paused = Some(now + PAUSE);
                    for door in self.doors.values() {
                        let _ = self.epoll.delete(&*door.socket);
                    }
                    return;
                }
                // That connection is gone already; the next one is not.
                Err(_) => continue,
            };
            let (gate, counters) = (&door.gate, &door.gate.counters);
            counters.accepted.fetch_add(1, Relaxed);
            let limits = &gate.limits;
            if gate.house.load(Relaxed) >= limits.house
                || gate.open.load(Relaxed) >= limits.connections
                || gate.waiting.load(Relaxed) >= limits.waiting
            {
                counters.crowded.fetch_add(1, Relaxed);
                let socket = Socket::from(socket);
                let _ = socket.set_linger(Some(Duration::ZERO));
                continue;
            }
            let flow = Flow::new(Arc::clone(gate), socket.into(), from, door.at, now);
            let token = self.seat(flow);
            self.connect(token, now);
        }
    }

    fn seat(&mut self, flow: Flow) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.flows.push(Slot { age: 0, flow: None });
            // Descriptors run out long before: each flow has two.
            (self.flows.len() - 1) as u32
        });
        let slot = &mut self.flows[at as usize];
        slot.flow = Some(Box::new(flow));
        self.count += 1;
        u64::from(slot.age) << 32 | u64::from(at)
    }

    /// The flow of a token, unless it is gone.
    fn flow(&mut self, token: u64) -> Option<&mut Box<Flow>> {
        let slot = self.flows.get_mut(token as u32 as usize)?;
        (slot.age == (token >> 32) as u32).then_some(slot.flow.as_mut())?
    }

    fn end(&mut self, token: u64) {
        let at = token as u32;
        let Some(slot) = self.flows.get_mut(at as usize) else {
            return;
        };
        if slot.age == (token >> 32) as u32 && slot.flow.take().is_some() {
            // Two of a token's bits are marks.
            slot.age = (slot.age + 1) & 0x3fff_ffff;
            self.free.push(at);
            self.count -= 1;
        }
    }

    /// Gives a flow to the next backend, or ends it.
    fn connect(&mut self, token: u64, now: Instant) {
        let Some(flow) = self.flow(token) else { return };
        if flow.connect(now) {
            let deadline = flow.deadline;
            let registered = self.register(token, Side::Backend);
            self.connecting.push_back((deadline, token));
            if registered.is_ok() {
                return;
            }
        }
        if let Some(flow) = self.flow(token) {
            flow.gate.counters.unserved.fetch_add(1, Relaxed);
            flow.reset();
        }
        self.end(token);
    }

    fn register(&self, token: u64, side: Side) -> nix::Result<()> {
        let slot = &self.flows[token as u32 as usize];
        let Some(flow) = &slot.flow else {
            return Ok(());
        };
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLPRI
            | EpollFlags::EPOLLET;
        match (side, &flow.backend) {
            (Side::Client, _) => self.epoll.add(&flow.client, EpollEvent::new(flags, token)),
            (Side::Backend, Some((backend, _))) => self
                .epoll
                .add(backend, EpollEvent::new(flags, token | BACKEND)),
            (Side::Backend, None) => Ok(()),
        }
    }

    fn flow_event(&mut self, token: u64, flags: EpollFlags, now: Instant) {
        let side = match token & BACKEND {
            0 => Side::Client,
            _ => Side::Backend,
        };
        let token = token & !BACKEND;
        let Some(flow) = self.flow(token) else { return };
        let broken = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        if !flow.connected {
            // Only the backend is listened to before it took the connection.
            if broken {
                flow.refused();
                self.connect(token, now);
                return;
            }
            if !flags.contains(EpollFlags::EPOLLOUT) {
                return;
            }
            flow.connected();
            flow.hears(side, flags);
            if self.register(token, Side::Client).is_err() {
                self.end(token);
                return;
            }
        } else {
            flow.hears(side, flags);
            if flow.queued {
                return;
            }
        }
        self.turn(token);
    }

    fn turn(&mut self, token: u64) {
        let slot = self.flows.get_mut(token as u32 as usize);
        let Some(slot) = slot.filter(|slot| slot.age == (token >> 32) as u32) else {
            return;
        };
        let Some(flow) = &mut slot.flow else { return };
        match flow.turn(&mut self.tools) {
            Turn::Waits => {}
            Turn::Unfinished => {
                flow.queued = true;
                self.unfinished.push(token);
            }
            Turn::Done => self.end(token),
        }
    }

    /// Backends that did not answer in time.
    fn deadlines(&mut self, now: Instant) {
        while let Some((deadline, token)) = self.connecting.front().copied() {
            let late = deadline <= now;
            let Some(flow) = self.flow(token).filter(|flow| !flow.connected) else {
                self.connecting.pop_front();
                continue;
            };
            // One that was given to another backend meanwhile has a later deadline, further back.
            let present = flow.deadline == deadline;
            if present && !late {
                return;
            }
            self.connecting.pop_front();
            if let Some(flow) = self.flow(token).filter(|_| present) {
                flow.refused();
                self.connect(token, now);
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        for at in 0..self.flows.len() {
            let slot = &mut self.flows[at];
            let Some(flow) = &mut slot.flow else { continue };
            if !flow.may_stay(now) {
                flow.gate.counters.expired.fetch_add(1, Relaxed);
                flow.reset();
                let token = u64::from(slot.age) << 32 | at as u64;
                self.end(token);
            }
        }
    }
}

fn out_of_room(error: &io::Error) -> bool {
    let room = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|code| room.contains(&code))
}
