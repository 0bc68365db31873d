//! Fake machines that ask one network for their addresses without end, so that whatever becomes of the server's link
//! becomes of it under load.
//!
//! Those with an even number are iPXE and take what they are offered; those with an odd one are PXE firmware and only look.
//! The transaction id is the number of the DISCOVER, so that every answer is known to be one to a question asked before or
//! after a moment.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dhcproto::v4::{
    Architecture, DhcpOption, Flags, Message, MessageType, OptionCode, UnknownOption,
};
use dhcproto::{Decodable, Decoder, Encodable};
use netboot::net::MacAddress;
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Netns;
use crate::qemu::mac;

/// Between two DISCOVERs of the whole crowd.
const PACE: Duration = Duration::from_millis(10);
/// How long the listener stays deaf to the end.
const TURN: Duration = Duration::from_millis(100);

/// Dropping it ends it.
pub struct Crowd {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    seen: Mutex<Seen>,
    news: Condvar,
}

#[derive(Default)]
struct Seen {
    /// When each DISCOVER left, by its number.
    asked: Vec<Instant>,
    /// When the last one that was answered had left, and when its answer came.
    answered: Option<(Instant, Instant)>,
    acknowledged: u64,
}

impl Crowd {
    /// Machines with the MAC addresses of `qemu::mac(first)` and up, on the card `eth0` of a namespace.
    pub fn start(netns: &Netns, first: u8, count: u8) -> Self {
        let socket = netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68)).expect("the client's port");
            setsockopt(&socket, sockopt::BindToDevice, &"eth0".into()).expect("a card");
            socket.set_broadcast(true).expect("the right to broadcast");
            socket
        });
        socket.set_read_timeout(Some(TURN)).expect("a timeout");
        let macs: Vec<MacAddress> = (first..first + count)
            .map(|number| mac(number).parse().expect("a MAC address"))
            .collect();
        let shared = Arc::<Shared>::default();
        let speaker = {
            let (shared, macs) = (Arc::clone(&shared), macs.clone());
            let socket = socket.try_clone().expect("a second handle");
            std::thread::spawn(move || speak(&socket, &macs, &shared))
        };
        let listener = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || listen(&socket, &macs, &shared))
        };
        Self {
            shared,
            threads: vec![speaker, listener],
        }
    }

    /// When a DISCOVER that left after this moment was answered; `None` when none was within the limit from now.
    pub fn answer_since(&self, moment: Instant, limit: Duration) -> Option<Instant> {
        let seen = self.shared.seen.lock().expect("no holder panics");
        let (seen, _) = (self.shared.news)
            .wait_timeout_while(seen, limit, |seen| {
                seen.answered.is_none_or(|(asked, _)| asked < moment)
            })
            .expect("no holder panics");
        let (asked, answered) = seen.answered?;
        (asked >= moment).then_some(answered)
    }

    /// How many took an address.
    pub fn acknowledged(&self) -> u64 {
        let seen = self.shared.seen.lock().expect("no holder panics");
        seen.acknowledged
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn speak(socket: &UdpSocket, macs: &[MacAddress], shared: &Shared) {
    while !shared.ends.load(Ordering::Relaxed) {
        let number = {
            let mut seen = shared.seen.lock().expect("no holder panics");
            seen.asked.push(Instant::now());
            seen.asked.len() - 1
        };
        send(socket, &discover(macs, number));
        std::thread::sleep(PACE);
    }
}

fn listen(socket: &UdpSocket, macs: &[MacAddress], shared: &Shared) {
    let mut bytes = [0; 1500];
    while !shared.ends.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut bytes) else {
            continue;
        };
        let now = Instant::now();
        let Ok(reply) = Message::decode(&mut Decoder::new(&bytes[..length])) else {
            panic!("a reply that nobody understands: {:?}", &bytes[..length]);
        };
        let number = reply.xid() as usize;
        let mut seen = shared.seen.lock().expect("no holder panics");
        let Some(asked) = seen.asked.get(number).copied() else {
            continue;
        };
        if seen.answered.is_none_or(|(before, _)| before < asked) {
            seen.answered = Some((asked, now));
        }
        match reply.opts().msg_type() {
            Some(MessageType::Offer) if is_ipxe(macs, number) => {
                drop(seen);
                send(socket, &request(macs, number, &reply));
            }
            Some(MessageType::Ack) => seen.acknowledged += 1,
            _ => {}
        }
        shared.news.notify_all();
    }
}

/// A card whose other end is gone takes nothing for a moment; the next machine asks anyway.
fn send(socket: &UdpSocket, message: &Message) {
    let bytes = message.to_vec().expect("a packet");
    let _ = socket.send_to(&bytes, (Ipv4Addr::BROADCAST, 67));
}

fn is_ipxe(macs: &[MacAddress], number: usize) -> bool {
    (number % macs.len()).is_multiple_of(2)
}

fn discover(macs: &[MacAddress], number: usize) -> Message {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mac = macs[number % macs.len()];
    let mut message = Message::new(zero, zero, zero, zero, &mac.octets());
    message.set_xid(u32::try_from(number).expect("a test ends before four billion packets"));
    message.set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Discover));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::DomainName,
        OptionCode::TFTPServerName,
        OptionCode::BootfileName,
    ]));
    let class = b"PXEClient:Arch:00007:UNDI:003000".to_vec();
    options.insert(DhcpOption::ClassIdentifier(class));
    options.insert(DhcpOption::ClientSystemArchitecture(Architecture::from(7)));
    if is_ipxe(macs, number) {
        let class = UnknownOption::new(OptionCode::from(77), b"iPXE".to_vec());
        options.insert(DhcpOption::Unknown(class));
    }
    message
}

fn request(macs: &[MacAddress], number: usize, offer: &Message) -> Message {
    let mut message = discover(macs, number);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Request));
    options.insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
    if let Some(server) = offer.opts().get(OptionCode::ServerIdentifier) {
        options.insert(server.clone());
    }
    message
}
