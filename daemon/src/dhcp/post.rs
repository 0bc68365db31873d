//! What leaves a link: datagrams through its port 67, frames to stations that have no address yet.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use etherparse::PacketBuilder;
use netboot::dhcp::{Destination, Port};
use netboot::net::MacAddress;
use tracing::debug;

use super::Served;
use super::counters::Counters;
use super::socket::Sockets;
use crate::sys::Outbox;

const TIME_TO_LIVE: u8 = 64;

/// Replies collected for one link.
pub(super) struct Post {
    served: Served,
    sockets: Arc<Sockets>,
    counters: Arc<Counters>,
    datagrams: Outbox,
    boot_server: Outbox,
    frames: Outbox,
    frame: Vec<u8>,
}

impl Post {
    /// With room for `count` replies of `size` bytes.
    pub(super) fn new(
        served: Served,
        sockets: Arc<Sockets>,
        counters: Arc<Counters>,
        count: usize,
        size: usize,
    ) -> Self {
        Self {
            served,
            sockets,
            counters,
            datagrams: Outbox::new(count, size),
            boot_server: Outbox::new(count.min(4), size),
            frames: Outbox::new(count, size),
            frame: Vec::with_capacity(size),
        }
    }

    /// Adds a reply to a message that came to `port` from `from`.
    pub(super) fn put(
        &mut self,
        reply: &[u8],
        destination: Destination,
        port: Port,
        from: SocketAddrV4,
    ) {
        let server = self.served.context.server;
        let to = match destination {
            Destination::Relay(relay) => SocketAddrV4::new(relay, 67),
            Destination::Client(client) => SocketAddrV4::new(client, 68),
            Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, 68),
            Destination::Sender => from,
            Destination::Station(mac, address) => {
                if self.sockets.frames.is_some() && self.build_frame(reply, mac, address) {
                    self.frames.push_frame(&self.frame);
                    return;
                }
                SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)
            }
        };
        // PXE clients take an answer of port 4011 from port 4011 alone.
        let outbox = match port {
            Port::Server => &mut self.datagrams,
            Port::BootServer => &mut self.boot_server,
        };
        outbox.push_datagram(reply, to, server);
    }

    fn build_frame(&mut self, reply: &[u8], mac: MacAddress, address: Ipv4Addr) -> bool {
        self.frame.clear();
        let server = self.served.context.server.octets();
        PacketBuilder::ethernet2(self.served.mac, mac.octets())
            .ipv4(server, address.octets(), TIME_TO_LIVE)
            .udp(67, 68)
            .write(&mut self.frame, reply)
            .is_ok()
    }

    /// Sends everything.
    pub(super) fn flush(&mut self) {
        let link = &self.served.context.name;
        let failed = |error: std::io::Error| {
            self.counters.ignored("send_failed");
            debug!(%link, %error, "a DHCP reply could not be sent");
        };
        if !self.datagrams.is_empty() {
            self.datagrams.send(&self.sockets.express, failed);
        }
        if !self.boot_server.is_empty() {
            self.boot_server.send(&self.sockets.boot_server, failed);
        }
        if let Some(frames) = &self.sockets.frames
            && !self.frames.is_empty()
        {
            self.frames.send(frames, failed);
        }
    }
}
