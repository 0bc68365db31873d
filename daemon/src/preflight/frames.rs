//! Whole Ethernet frames on one link: what preflight asks there, and what it hears.
//!
//! ```text
//!   ARP probe, ARP request, neighbour solicitation, DHCPDISCOVER, ping with "don't fragment"  --> link
//!   ARP, neighbour advertisement, DHCPOFFER, ping's answer                                    <-- link
//! ```
//!
//! Frames are made and read by pure functions; [`Ear`] is the socket under them. Nothing of it touches the host's
//! neighbour table, its addresses or its ports.
//!
//! Ugly facts. A socket that hears every frame of a trunk also hears the tagged ones, with the tag taken off and put
//! aside: without the filter below, a DHCP server of another VLAN would look like one of this. A switch may drop
//! frames whose sender it doesn't know, so the DISCOVER of a made-up machine leaves from the link's own MAC address
//! and bears the made-up one inside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use dhcproto::v4::{self, Architecture, DhcpOption, Flags, HType, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice,
};
use netboot::dhcp::suboption;
use netboot::net::MacAddress;
use socket2::{SockFilter, Socket};
use tokio::net::UdpSocket;

use crate::sys;

const BROADCAST: [u8; 6] = [0xff; 6];
/// The largest frame that can be sent or heard: the largest packet of any link, and its header.
const FRAME_MAX: usize = 65_535 + 14;
/// Bytes of an IPv4 header without options and of an ICMP echo header: what a ping's data leaves to them.
const PING_HEADERS: usize = 28;

/// Something that was heard and means something here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A station says that this address is its own.
    Station { address: Ipv4Addr, mac: MacAddress },
    /// The same, in IPv6.
    Station6 { address: Ipv6Addr, mac: MacAddress },
    /// A DHCP server offers something to the machine that was made up.
    Offer(Offer),
    /// A ping of this many bytes, headers included, was answered.
    Pong { from: Ipv4Addr, size: u16 },
}

/// What a DHCP server offered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Offer {
    /// Where the frame came from: the server, or the relay before it.
    pub(super) mac: MacAddress,
    /// Option 54, or the packet's source where that is missing.
    pub(super) server: Ipv4Addr,
    /// The address it would give; unspecified when it only says what to boot.
    pub(super) address: Ipv4Addr,
}

/// The one question that a made-up machine asks every DHCP server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stranger {
    mac: [u8; 6],
    transaction: u32,
}

impl Stranger {
    /// A machine nobody listed, under a MAC address that no vendor gave (its second bit says so) and that
    /// begins with the letters REV.
    pub(super) fn new(random: [u8; 7]) -> Self {
        let [a, b, c, d, e, f, g] = random;
        Self {
            mac: [b'R', b'E', b'V', a, b, c],
            transaction: u32::from_be_bytes([d, e, f, g]),
        }
    }

    /// The DISCOVER of UEFI firmware that netboots: servers that give addresses answer it, and so do
    /// servers that only say what to boot.
    fn discover(self) -> Option<Vec<u8>> {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message =
            v4::Message::new_with_id(self.transaction, none, none, none, none, &self.mac);
        message.set_opcode(Opcode::BootRequest);
        message.set_htype(HType::Eth);
        // Without this the answer would go to a MAC address that no card of ours listens for.
        message.set_flags(Flags::default().set_broadcast());
        let mut identifier = vec![0];
        identifier.extend([self.mac.as_slice(), &self.mac, &[0; 4]].concat());
        for option in [
            DhcpOption::MessageType(MessageType::Discover),
            DhcpOption::ParameterRequestList(vec![
                OptionCode::SubnetMask,
                OptionCode::Router,
                OptionCode::TFTPServerName,
                OptionCode::BootfileName,
            ]),
            DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007:UNDI:003016".to_vec()),
            DhcpOption::ClientSystemArchitecture(Architecture::from(7)),
            DhcpOption::ClientNetworkInterface(1, 3, 16),
            DhcpOption::ClientMachineIdentifier(identifier),
        ] {
            message.opts_mut().insert(option);
        }
        let mut bytes = Vec::with_capacity(400);
        message.encode(&mut Encoder::new(&mut bytes)).ok()?;
        // BOOTP relays and servers may drop what is shorter (RFC 1542, section 2.1).
        bytes.resize(bytes.len().max(300), 0);
        Some(bytes)
    }

    /// Its question as a frame out of a link with this MAC address.
    pub(super) fn discover_frame(self, link: MacAddress) -> Option<Vec<u8>> {
        let message = self.discover()?;
        let mut frame = Vec::with_capacity(message.len() + 42);
        PacketBuilder::ethernet2(link.octets(), BROADCAST)
            .ipv4([0; 4], [255; 4], 64)
            .udp(68, 67)
            .write(&mut frame, &message)
            .ok()?;
        Some(frame)
    }

    /// What a DHCP message from a server offers to this machine, if it is an OFFER at all.
    fn offer(self, message: &[u8], mac: MacAddress, source: Ipv4Addr) -> Option<Offer> {
        const OPTIONS_AT: usize = 240;
        let options = message.get(OPTIONS_AT..)?;
        let four = |at: usize| {
            let bytes: Option<[u8; 4]> = message[at..at + 4].try_into().ok();
            bytes
        };
        let answers = message[0] == 2
            && four(4) == Some(self.transaction.to_be_bytes())
            && message[28..34] == self.mac
            && suboption(options, 53) == Some(&[2]);
        if !answers {
            return None;
        }
        let server = suboption(options, 54).and_then(|value| <[u8; 4]>::try_from(value).ok());
        Some(Offer {
            mac,
            server: server.map_or(source, Ipv4Addr::from),
            address: Ipv4Addr::from(four(16)?),
        })
    }
}

/// Asks who has an address. `from` is ours, or unspecified for a probe that leaves no trace in anybody's
/// table (RFC 5227, section 2.1.1).
pub(super) fn who_has(link: MacAddress, from: Ipv4Addr, wanted: Ipv4Addr) -> Option<Vec<u8>> {
    let question = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &link.octets(),
        &from.octets(),
        &[0; 6],
        &wanted.octets(),
    )
    .ok()?;
    let mut frame = Vec::with_capacity(60);
    PacketBuilder::ethernet2(link.octets(), BROADCAST)
        .arp(question)
        .write(&mut frame)
        .ok()?;
    Some(frame)
}

/// Asks who has an IPv6 address, from nowhere, as duplicate address detection does (RFC 4862, section 5.4.2).
pub(super) fn who_has6(link: MacAddress, wanted: Ipv6Addr) -> Option<Vec<u8>> {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    let [.., x, y, z] = wanted.octets();
    // The solicited-node group of the address (RFC 4291, section 2.7.1) and the group's MAC address.
    let last = u16::from_be_bytes([y, z]);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), last);
    let group_mac = [0x33, 0x33, 0xff, x, y, z];
    let mut frame = Vec::with_capacity(86);
    PacketBuilder::ethernet2(link.octets(), group_mac)
        // RFC 4861, section 7.1.1: receivers drop it unless the hop limit is 255.
        .ipv6([0; 16], group.octets(), 255)
        .icmpv6(Icmpv6Type::Unknown {
            type_u8: NEIGHBOUR_SOLICITATION,
            code_u8: 0,
            bytes5to8: [0; 4],
        })
        .write(&mut frame, &wanted.octets())
        .ok()?;
    Some(frame)
}

/// A ping as one packet of `size` bytes that nobody may fragment, 28 to 65535.
pub(super) fn ping(
    link: MacAddress,
    from: Ipv4Addr,
    station: MacAddress,
    to: Ipv4Addr,
    id: u16,
    size: u16,
) -> Option<Vec<u8>> {
    let data = vec![0; usize::from(size).checked_sub(PING_HEADERS)?];
    let mut header = etherparse::Ipv4Header::new(
        u16::try_from(data.len() + 8).ok()?,
        64,
        etherparse::IpNumber::ICMP,
        from.octets(),
        to.octets(),
    )
    .ok()?;
    header.dont_fragment = true;
    let mut frame = Vec::with_capacity(usize::from(size) + 14);
    PacketBuilder::ethernet2(link.octets(), station.octets())
        .ip(etherparse::IpHeaders::Ipv4(
            header,
            etherparse::Ipv4Extensions::default(),
        ))
        // The size comes back in the sequence number, so that no reply needs to be measured.
        .icmpv4_echo_request(id, size)
        .write(&mut frame, &data)
        .ok()?;
    Some(frame)
}

/// Understands a frame that came to a link with this MAC address; `None` for what means nothing here.
pub(super) fn read(
    frame: &[u8],
    link: MacAddress,
    stranger: Stranger,
    ping_id: u16,
) -> Option<Heard> {
    let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    let mac = MacAddress::from_octets(source).filter(|mac| *mac != link)?;
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match (packet.net?, packet.transport) {
        (NetSlice::Arp(arp), _) => {
            let arp = arp.to_packet().try_eth_ipv4().ok()?;
            let address = Ipv4Addr::from(arp.sender_ipv4);
            // What the sender says of itself inside counts: a bridge or a switch may have passed it on.
            let mac = MacAddress::from_octets(arp.sender_mac).filter(|mac| *mac != link)?;
            (!address.is_unspecified()).then_some(Heard::Station { address, mac })
        }
        (NetSlice::Ipv4(ip), Some(TransportSlice::Udp(udp))) if udp.destination_port() == 68 => {
            let source = ip.header().source_addr();
            stranger.offer(udp.payload(), mac, source).map(Heard::Offer)
        }
        (NetSlice::Ipv4(ip), Some(TransportSlice::Icmpv4(icmp))) => {
            let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else {
                return None;
            };
            let from = ip.header().source_addr();
            let size = echo.seq;
            (echo.id == ping_id).then_some(Heard::Pong { from, size })
        }
        (NetSlice::Ipv6(ip), Some(TransportSlice::Icmpv6(icmp))) => {
            const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
            let genuine =
                icmp.type_u8() == NEIGHBOUR_ADVERTISEMENT && ip.header().hop_limit() == 255;
            let target: [u8; 16] = icmp.payload().get(..16)?.try_into().ok()?;
            genuine.then_some(Heard::Station6 {
                address: Ipv6Addr::from(target),
                mac,
            })
        }
        _ => None,
    }
}

/// A socket that hears what preflight understands on one link, and speaks there.
#[derive(Debug)]
pub(super) struct Ear {
    socket: UdpSocket,
}

impl Ear {
    /// Begins to listen on the link with this index.
    ///
    /// # Errors
    /// What the kernel answered: without CAP_NET_RAW this is `EPERM`.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let socket = Socket::from(sys::frame_socket(index, sys::Frames::All)?);
        socket.attach_filter(&filter())?;
        // A packet socket, which the runtime drives as the datagram socket that it is.
        let socket = UdpSocket::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { socket })
    }

    /// Room for any frame.
    pub(super) fn buffer() -> Vec<u8> {
        vec![0; FRAME_MAX]
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// `EMSGSIZE` when it is larger than the link takes, `ENETDOWN` when the link is down.
    pub(super) async fn say(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).await.map(drop)
    }

    /// The next frame that passed the filter.
    ///
    /// # Errors
    /// `ENETDOWN` when the link went down.
    pub(super) async fn hear<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = self.socket.recv(buffer).await?;
        Ok(&buffer[..length])
    }
}

/// A classic BPF program (Linux `Documentation/networking/filter.rst`): untagged ARP, UDP to port 68, ICMP and
/// neighbour advertisements pass, so that a busy link costs nothing.
fn filter() -> [SockFilter; 20] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_BEHIND: u16 = 0x48;
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const EQUAL: u16 = 0x15;
    const ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    /// `SKF_AD_OFF` and `SKF_AD_VLAN_TAG_PRESENT`.
    const TAGGED: u32 = 0xffff_f000 + 48;
    const TAKE: u8 = 18;
    const DROP: u8 = 19;
    let step = SockFilter::new;
    // A jump counts from the step behind it.
    [
        step(LOAD_WORD, 0, 0, TAGGED),
        step(EQUAL, 0, DROP - 2, 0),
        step(LOAD_HALF, 0, 0, 12),
        step(EQUAL, TAKE - 4, 0, 0x0806),
        step(EQUAL, 14 - 5, 0, 0x86dd),
        step(EQUAL, 0, DROP - 6, 0x0800),
        // IPv4: the protocol; of UDP no later fragment, for it has no ports; the port.
        step(LOAD_BYTE, 0, 0, 23),
        step(EQUAL, TAKE - 8, 0, 1),
        step(EQUAL, 0, DROP - 9, 17),
        step(LOAD_HALF, 0, 0, 20),
        step(ANY_BIT, DROP - 11, 0, 0x1fff),
        step(LOAD_HEADER_LENGTH, 0, 0, 14),
        step(LOAD_HALF_BEHIND, 0, 0, 16),
        step(EQUAL, TAKE - 14, DROP - 14, 68),
        // IPv6: the next header; the type of ICMPv6.
        step(LOAD_BYTE, 0, 0, 20),
        step(EQUAL, 0, DROP - 16, 58),
        step(LOAD_BYTE, 0, 0, 54),
        step(EQUAL, TAKE - 18, DROP - 18, 136),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

    fn mac(octets: [u8; 6]) -> MacAddress {
        MacAddress::from_octets(octets).expect("a station's address")
    }

    fn stranger() -> Stranger {
        Stranger::new([1, 2, 3, 4, 5, 6, 7])
    }

    fn heard(frame: &[u8]) -> Option<Heard> {
        read(frame, mac(LINK), stranger(), 9)
    }

    /// The DISCOVER turned into what a server at 10.0.0.2 sends back.
    fn offer() -> Vec<u8> {
        let mut message = stranger().discover().expect("a message");
        message[0] = 2;
        message[16..20].copy_from_slice(&[10, 0, 0, 50]);
        message[240..].fill(0);
        message[240..249].copy_from_slice(&[53, 1, 2, 54, 4, 10, 0, 0, 2]);
        message
    }

    fn udp(message: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(OTHER, BROADCAST)
            .ipv4([10, 0, 0, 3], [255; 4], 64)
            .udp(67, 68)
            .write(&mut frame, message)
            .expect("a frame");
        frame
    }

    #[test]
    fn an_offer_to_our_stranger_is_understood_and_no_other_message_is() {
        let server = Ipv4Addr::new(10, 0, 0, 2);
        let expected = Offer {
            mac: mac(OTHER),
            server,
            address: Ipv4Addr::new(10, 0, 0, 50),
        };
        assert_eq!(heard(&udp(&offer())), Some(Heard::Offer(expected)));
        for (at, byte) in [(0, 1), (4, 0xff), (33, 0xff), (242, 5)] {
            let mut other = offer();
            other[at] = byte;
            assert_eq!(heard(&udp(&other)), None, "byte {at}");
        }
        assert_eq!(heard(&udp(&offer()[..200])), None);
    }

    #[test]
    fn the_stranger_asks_as_firmware_does_and_by_broadcast() {
        let message = stranger().discover().expect("a message");
        let request = netboot::dhcp::Request::parse(&message).expect("a request");
        assert!(request.wants_broadcast());
        assert_eq!(request.hardware_address().octets(), *b"REV\x01\x02\x03");
        assert!(
            request
                .option(60)
                .expect("a class")
                .starts_with(b"PXEClient")
        );
        assert_eq!(
            request.option(93).expect("an architecture").as_ref(),
            [0, 7]
        );
    }

    #[test]
    fn a_station_is_heard_by_its_arp_and_our_own_frames_are_not() {
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let wanted = Ipv4Addr::new(10, 0, 0, 8);
        let theirs = who_has(mac(OTHER), address, wanted).expect("a frame");
        let station = Heard::Station {
            address,
            mac: mac(OTHER),
        };
        assert_eq!(heard(&theirs), Some(station));
        assert_eq!(
            heard(&who_has(mac(LINK), address, wanted).expect("a frame")),
            None
        );
        let probe = who_has(mac(OTHER), Ipv4Addr::UNSPECIFIED, wanted).expect("a frame");
        assert_eq!(heard(&probe), None, "a probe claims nothing");
    }

    #[test]
    fn a_ping_has_the_size_it_was_asked_for_and_its_answer_says_it_again() {
        let to = Ipv4Addr::new(10, 0, 0, 2);
        let frame = ping(mac(LINK), Ipv4Addr::LOCALHOST, mac(OTHER), to, 9, 1400);
        let frame = frame.expect("a frame");
        assert_eq!(frame.len(), 1414);
        assert_eq!(frame[20] & 0x40, 0x40, "nobody may fragment it");
        let mut answer = Vec::new();
        PacketBuilder::ethernet2(OTHER, LINK)
            .ipv4(to.octets(), [10, 0, 0, 1], 64)
            .icmpv4_echo_reply(9, 1400)
            .write(&mut answer, &[])
            .expect("a frame");
        assert_eq!(
            heard(&answer),
            Some(Heard::Pong {
                from: to,
                size: 1400
            })
        );
        assert!(ping(mac(LINK), to, mac(OTHER), to, 9, 27).is_none());
    }

    #[test]
    fn no_frame_makes_the_reader_panic() {
        for good in [
            udp(&offer()),
            who_has6(mac(OTHER), Ipv6Addr::LOCALHOST).expect("a frame"),
        ] {
            for length in 0..good.len() {
                heard(&good[..length]);
                let mut bent = good.clone();
                bent[length] ^= 0xff;
                heard(&bent);
            }
        }
    }
}
