//! One DHCP packet from the wire, taken apart without trusting it.
//!
//! ```text
//!   op htype hlen hops | xid | secs flags | ciaddr yiaddr siaddr giaddr | chaddr 16 | sname 64 | file 128 | cookie | options
//!   0                    4     8            12                            28          44         108        236      240
//! ```
//!
//! A client may split an option into pieces (RFC 3396) and may continue its options inside `file`
//! and `sname` (option 52), so an option is looked up over all three, in that order.
//!
//! Ugly facts. The codec we build replies with panics on a hardware address length above 16, stops
//! reading at the first option it cannot decode and keeps only the last of two pieces; so nothing
//! here asks it to read a packet: the bounds, the cookie and the walk are our own, and each option
//! is understood alone. iPXE writes its user class (option 77) without the length byte that
//! RFC 3004 wants, so 77 stays raw.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use crate::net::MacAddress;

const OPTIONS_AT: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// More pieces than any client sends (the longest seen is 15); beyond it a packet is hostile.
const PIECES_MAX: usize = 96;
/// RFC 1542, section 4.1.1 has relays discard what crossed more than 16 of them: relays in a ring.
const HOPS_MAX: u8 = 16;

const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const END: u8 = 255;

/// What a client asks for: the messages of RFC 2131 that a server answers or notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// Why a packet was thrown away before anything was asked about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Malformed {
    TooShort,
    NotFromClient,
    HardwareType,
    HardwareAddress,
    TooManyHops,
    NoCookie,
    OptionPastEnd,
    TooManyOptions,
    MessageType,
    OptionLength,
}

impl Malformed {
    /// The reason as a label of a counter.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::NotFromClient => "not_from_client",
            Self::HardwareType => "hardware_type",
            Self::HardwareAddress => "hardware_address",
            Self::TooManyHops => "too_many_hops",
            Self::NoCookie => "no_cookie",
            Self::OptionPastEnd => "option_past_end",
            Self::TooManyOptions => "too_many_options",
            Self::MessageType => "message_type",
            Self::OptionLength => "option_length",
        }
    }
}

/// One piece of one option: where its bytes lie in the packet.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    code: u8,
    length: u8,
    at: u16,
}

/// A packet that passed every bounds check; it borrows the receive buffer.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    bytes: &'a [u8],
    pieces: [Piece; PIECES_MAX],
    count: usize,
    mac: MacAddress,
    ask: Ask,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl<'a> Request<'a> {
    /// Reads one packet.
    ///
    /// # Errors
    /// The first reason why it cannot be a request of a DHCP client on Ethernet.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < OPTIONS_AT || bytes.len() > usize::from(u16::MAX) {
            return Err(Malformed::TooShort);
        }
        if bytes[0] != 1 {
            return Err(Malformed::NotFromClient);
        }
        if bytes[1] != 1 || bytes[2] != 6 {
            return Err(Malformed::HardwareType);
        }
        if bytes[3] > HOPS_MAX {
            return Err(Malformed::TooManyHops);
        }
        if bytes[236..OPTIONS_AT] != COOKIE {
            return Err(Malformed::NoCookie);
        }
        // A reply is sent to this address: a group address would multiply it over the whole link.
        let mut octets = [0; 6];
        octets.copy_from_slice(&bytes[28..34]);
        let mac = MacAddress::from_octets(octets).ok_or(Malformed::HardwareAddress)?;
        let mut request = Self {
            bytes,
            pieces: [Piece::default(); PIECES_MAX],
            count: 0,
            mac,
            ask: Ask::Discover,
            requested: None,
            server: None,
        };
        request.walk(OPTIONS_AT, bytes.len())?;
        // RFC 2131, section 4.1: "The options in the 'options' field MUST be interpreted first, so
        // that any 'option overload' options may be interpreted. The 'file' field MUST be
        // interpreted next [...], followed by the 'sname' field."
        let overload = request.first(OVERLOAD).and_then(|v| v.first().copied());
        if matches!(overload, Some(1 | 3)) {
            request.walk(108, 236)?;
        }
        if matches!(overload, Some(2 | 3)) {
            request.walk(44, 108)?;
        }
        request.ask = match request.option(53).as_deref() {
            Some([1]) => Ask::Discover,
            Some([3]) => Ask::Request,
            Some([4]) => Ask::Decline,
            Some([7]) => Ask::Release,
            Some([8]) => Ask::Inform,
            _ => return Err(Malformed::MessageType),
        };
        request.requested = request.address(50)?;
        request.server = request.address(54)?;
        // It goes back whole, so it may not fill the reply; no relay needs more than one piece.
        if request.option(82).is_some_and(|relay| relay.len() > 255) {
            return Err(Malformed::OptionLength);
        }
        Ok(request)
    }

    fn walk(&mut self, from: usize, to: usize) -> Result<(), Malformed> {
        let mut at = from;
        while at < to {
            let code = self.bytes[at];
            at += 1;
            match code {
                PAD => continue,
                END => return Ok(()),
                _ => {}
            }
            if at >= to {
                return Err(Malformed::OptionPastEnd);
            }
            let length = self.bytes[at];
            at += 1;
            if at + usize::from(length) > to {
                return Err(Malformed::OptionPastEnd);
            }
            if self.count == PIECES_MAX {
                return Err(Malformed::TooManyOptions);
            }
            self.pieces[self.count] = Piece {
                code,
                length,
                // `parse` refuses packets that do not fit 16 bits.
                at: at as u16,
            };
            self.count += 1;
            at += usize::from(length);
        }
        Ok(())
    }

    fn piece(&self, piece: Piece) -> &'a [u8] {
        let at = usize::from(piece.at);
        &self.bytes[at..at + usize::from(piece.length)]
    }

    fn first(&self, code: u8) -> Option<&'a [u8]> {
        self.pieces[..self.count]
            .iter()
            .find(|piece| piece.code == code)
            .map(|piece| self.piece(*piece))
    }

    fn address(&self, code: u8) -> Result<Option<Ipv4Addr>, Malformed> {
        let Some(value) = self.option(code) else {
            return Ok(None);
        };
        let four: [u8; 4] = value
            .as_ref()
            .try_into()
            .map_err(|_| Malformed::OptionLength)?;
        Ok(Some(Ipv4Addr::from(four)))
    }

    /// An option's bytes, its pieces joined.
    ///
    /// RFC 3396, section 7: the pieces are one option, reassembled in the order they were written.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<Cow<'a, [u8]>> {
        let mut pieces = self.pieces[..self.count]
            .iter()
            .filter(|piece| piece.code == code);
        let first = self.piece(*pieces.next()?);
        let mut whole = Cow::Borrowed(first);
        for piece in pieces {
            whole.to_mut().extend_from_slice(self.piece(*piece));
        }
        Some(whole)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn address_at(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        )
    }

    #[must_use]
    pub fn ask(&self) -> Ask {
        self.ask
    }

    #[must_use]
    pub fn xid(&self) -> u32 {
        u32::from_be_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
    }

    #[must_use]
    pub fn secs(&self) -> u16 {
        self.word(8)
    }

    #[must_use]
    pub fn flags(&self) -> u16 {
        self.word(10)
    }

    /// The client cannot take unicast before it has an address (RFC 2131, section 2).
    #[must_use]
    pub fn wants_broadcast(&self) -> bool {
        self.flags() & 0x8000 != 0
    }

    #[must_use]
    pub fn client_address(&self) -> Ipv4Addr {
        self.address_at(12)
    }

    #[must_use]
    pub fn relay_address(&self) -> Ipv4Addr {
        self.address_at(24)
    }

    #[must_use]
    pub fn hardware_address(&self) -> MacAddress {
        self.mac
    }

    /// Option 50.
    #[must_use]
    pub fn requested(&self) -> Option<Ipv4Addr> {
        self.requested
    }

    /// Option 54: the server this client speaks to.
    #[must_use]
    pub fn server(&self) -> Option<Ipv4Addr> {
        self.server
    }

    /// Option 55, empty when the client asked for nothing by name.
    #[must_use]
    pub fn wanted(&self) -> Cow<'a, [u8]> {
        self.option(55).unwrap_or_default()
    }

    /// Option 57. RFC 2132, section 9.10: "The minimum legal value is 576 octets."
    #[must_use]
    pub fn size_max(&self) -> Option<u16> {
        let value = self.option(57)?;
        let two: [u8; 2] = value.as_ref().try_into().ok()?;
        Some(u16::from_be_bytes(two).max(576))
    }

    /// A sub-option of option 82, whose inside has the same code-length-value shape.
    #[must_use]
    pub fn relay_suboption(&self, code: u8) -> Option<Ipv4Addr> {
        let information = self.option(82)?;
        let value = suboption(&information, code)?;
        let four: [u8; 4] = value.try_into().ok()?;
        Some(Ipv4Addr::from(four))
    }
}

/// Finds one sub-option in an encapsulated list (options 43, 82 and 175); a list that runs past
/// its end stops being read there.
#[must_use]
pub fn suboption(list: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = list;
    while let [code, tail @ ..] = rest {
        match *code {
            PAD => rest = tail,
            END => return None,
            _ => {
                let (length, tail) = tail.split_first()?;
                let value = tail.get(..usize::from(*length))?;
                if *code == wanted {
                    return Some(value);
                }
                rest = &tail[usize::from(*length)..];
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; OPTIONS_AT];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0xaa, 0, 1]);
        bytes[236..].copy_from_slice(&COOKIE);
        bytes.extend_from_slice(options);
        bytes
    }

    fn reason(bytes: &[u8]) -> Option<Malformed> {
        Request::parse(bytes).err()
    }

    #[test]
    fn a_split_option_is_joined_even_when_another_lies_between() {
        let bytes = packet(&[
            53, 1, 1, 77, 2, b'i', b'P', 12, 1, b'x', 77, 2, b'X', b'E', 255,
        ]);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.option(77).unwrap().as_ref(), b"iPXE");
    }

    #[test]
    fn options_go_on_in_file_and_then_in_sname() {
        let mut bytes = packet(&[53, 1, 3, 52, 1, 3, 60, 1, b'a', 255]);
        bytes[108..112].copy_from_slice(&[60, 1, b'b', 255]);
        bytes[44..48].copy_from_slice(&[60, 1, b'c', 255]);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.option(60).unwrap().as_ref(), b"abc");
        assert_eq!(request.ask(), Ask::Request);
    }

    #[test]
    fn an_undecodable_hostname_does_not_hide_the_architecture() {
        let bytes = packet(&[53, 1, 1, 12, 2, 0xff, 0xfe, 93, 2, 0, 7, 255]);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.option(93).unwrap().as_ref(), [0, 7]);
    }

    #[test]
    fn each_kind_of_nonsense_has_its_own_reason() {
        let good = packet(&[53, 1, 1, 255]);
        let broken = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            reason(&bytes)
        };
        assert_eq!(reason(&good), None);
        assert_eq!(reason(&good[..239]), Some(Malformed::TooShort));
        assert_eq!(broken(0, 2), Some(Malformed::NotFromClient));
        assert_eq!(broken(2, 17), Some(Malformed::HardwareType));
        assert_eq!(broken(3, 17), Some(Malformed::TooManyHops));
        assert_eq!(broken(28, 0x53), Some(Malformed::HardwareAddress));
        assert_eq!(broken(238, 0), Some(Malformed::NoCookie));
        assert_eq!(broken(241, 9), Some(Malformed::OptionPastEnd));
        assert_eq!(broken(242, 2), Some(Malformed::MessageType));
        assert_eq!(
            reason(&packet(&[53, 1, 3, 50, 3, 1, 2, 3, 255])),
            Some(Malformed::OptionLength)
        );
        let mut many = vec![53, 1, 1];
        many.extend([200, 0].repeat(PIECES_MAX));
        assert_eq!(reason(&packet(&many)), Some(Malformed::TooManyOptions));
    }

    #[test]
    fn a_suboption_is_found_or_absent_and_never_read_past_the_end() {
        assert_eq!(suboption(&[1, 1, 9, 5, 2, 7, 8], 5), Some(&[7, 8][..]));
        assert_eq!(suboption(&[1, 1, 9, 5, 3, 7, 8], 5), None);
        assert_eq!(suboption(&[1, 1, 9, 255, 5, 1, 7], 5), None);
        assert_eq!(suboption(&[5], 5), None);
    }
}
