//! The bytes of a reply: the fixed header, then options in the order of their importance until the
//! client's size limit is reached, then option 82.
//!
//! ```text
//!   header 236, cookie 4 | 53 54 51 58 59 1 | boot | 61 | asked for | 82 | 255 | zeroes to 300
//! ```
//!
//! Each option is encoded by itself, because the order is ours to choose: a reply that does not fit
//! loses the last ones. RFC 3046, section 2.2 wants option 82 at the end, and an old relay finds it
//! nowhere else.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, HType, Message, Opcode};
use dhcproto::{Encodable, Encoder};

use super::packet::Request;

/// Old relays and boot ROMs drop what is shorter than a BOOTP packet (RFC 951, section 3).
const BOOTP_SIZE: usize = 300;
/// The IP and UDP headers, which option 57 counts in.
const HEADERS: usize = 28;

/// The four addresses and the file name of a reply's header.
#[derive(Debug, Clone, Default)]
pub(super) struct Header<'a> {
    pub(super) client: Option<Ipv4Addr>,
    pub(super) yours: Option<Ipv4Addr>,
    pub(super) next_server: Option<Ipv4Addr>,
    pub(super) file: Option<&'a [u8]>,
    /// A NAK through a relay must be broadcast by the relay, whatever the client asked for.
    pub(super) broadcast: bool,
}

/// A reply being written.
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    relay: &'a [u8],
    written: [u64; 4],
    scratch: Vec<u8>,
    omitted: Option<u8>,
}

impl<'a> Writer<'a> {
    /// Starts a reply to `request`: `relay` is option 82 as it came, `mtu` the link's.
    pub(super) fn new(
        out: &'a mut Vec<u8>,
        request: &Request<'_>,
        header: &Header<'_>,
        relay: &'a [u8],
        mtu: u16,
    ) -> Self {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(
            request.xid(),
            header.client.unwrap_or(zero),
            header.yours.unwrap_or(zero),
            header.next_server.unwrap_or(zero),
            request.relay_address(),
            &request.hardware_address().octets(),
        );
        let mut flags = Flags::from(request.flags());
        if header.broadcast {
            flags = flags.set_broadcast();
        }
        message
            .set_opcode(Opcode::BootReply)
            .set_htype(HType::Eth)
            .set_secs(request.secs())
            .set_flags(flags);
        // The field holds 128 bytes with the NUL; what is longer travels in option 67 alone.
        if let Some(file) = header.file.filter(|file| file.len() < 128) {
            message.set_fname(file);
        }
        out.clear();
        // An empty option set encodes to nothing, not even an end, so this is the header alone.
        message
            .encode(&mut Encoder::new(out))
            .expect("a header without options always encodes");
        let size = request.size_max().unwrap_or(576).min(mtu.max(576));
        let relay_room = if relay.is_empty() {
            0
        } else {
            relay.len() + 2 * relay.len().div_ceil(255)
        };
        Self {
            out,
            limit: (usize::from(size) - HEADERS).saturating_sub(1 + relay_room),
            relay,
            written: [0; 4],
            scratch: Vec::with_capacity(64),
            omitted: None,
        }
    }

    pub(super) fn has(&self, code: u8) -> bool {
        self.written[usize::from(code) / 64] & (1 << (code % 64)) != 0
    }

    /// Writes an option that the codec knows.
    pub(super) fn put(&mut self, code: u8, option: &DhcpOption) {
        self.scratch.clear();
        let encoded = option.encode(&mut Encoder::new(&mut self.scratch));
        if encoded.is_err() || self.has(code) {
            return;
        }
        self.append(code);
    }

    /// Writes an option as raw bytes, in pieces of 255 when it is longer (RFC 3396).
    pub(super) fn put_raw(&mut self, code: u8, value: &[u8]) {
        if self.has(code) {
            return;
        }
        self.scratch.clear();
        split(&mut self.scratch, code, value);
        self.append(code);
    }

    fn append(&mut self, code: u8) {
        if self.out.len() + self.scratch.len() > self.limit {
            self.omitted.get_or_insert(code);
            return;
        }
        self.out.extend_from_slice(&self.scratch);
        self.written[usize::from(code) / 64] |= 1 << (code % 64);
    }

    /// Ends the reply; tells the first option that did not fit.
    pub(super) fn finish(self) -> Option<u8> {
        if !self.relay.is_empty() {
            split(self.out, 82, self.relay);
        }
        self.out.push(255);
        if self.out.len() < BOOTP_SIZE {
            self.out.resize(BOOTP_SIZE, 0);
        }
        self.omitted
    }
}

fn split(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    if value.is_empty() {
        out.extend([code, 0]);
    }
    for piece in value.chunks(255) {
        // A piece has at most 255 bytes.
        out.extend([code, piece.len() as u8]);
        out.extend_from_slice(piece);
    }
}
