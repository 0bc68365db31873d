//! The six packets, the name in a request and the options around it (RFC 1350, 2347, 2348, 2349, 7440).

use std::net::SocketAddrV4;
use std::time::Duration;

/// A request longer than this is not a boot file's name. RFC 2347 allows 512 octets; some ROMs pad.
const REQUEST_OCTETS_MAX: usize = 1024;
const PATH_OCTETS_MAX: usize = 255;
/// "If the option is omitted, blocks of 512 octets are sent" (RFC 1350, section 2).
pub(super) const PLAIN_BLOCK_SIZE: u16 = 512;
/// RFC 2348: "Valid values range between "8" and "65464" octets, inclusive."
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 8..=65464;

/// One packet as a client may send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Read(Request),
    Write,
    Ack(u16),
    Error {
        code: u16,
        message: String,
    },
    /// DATA and OACK are a server's words; from a client they mean nothing to a read-only server.
    Foreign,
}

/// A read request: a clean name, how to send it, and what was asked, in the order it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub mode: Mode,
    pub asked: Vec<Offer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Octet,
    Netascii,
}

/// An option with a value we understand. Anything else in a request is left unanswered, as
/// RFC 2347 wants: "options not acknowledged by the server must be ignored".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    BlockSize(u16),
    Window(u16),
    TimeoutSeconds(u8),
    Size,
}

/// Why bytes were no packet, or a request no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    Short,
    Opcode,
    Long,
    Unterminated,
    Mode,
    Name,
    /// The name climbs out of its root. Said apart, because it is answered with another code.
    Climbs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    Undefined = 0,
    NotFound = 1,
    Denied = 2,
    Illegal = 4,
}

/// What both sides hold to for one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    pub block_size: u16,
    pub window: u16,
    /// The client's own word on patience, where it gave one.
    pub timeout: Option<Duration>,
    /// What the OACK says, in the order of the request; empty means the transfer opens with DATA 1.
    pub answered: Vec<Offer>,
}

/// Reads one datagram from a client.
pub fn parse(bytes: &[u8]) -> Result<Packet, Malformed> {
    let (Some(opcode), Some(rest)) = (bytes.first_chunk::<2>(), bytes.get(2..)) else {
        return Err(Malformed::Short);
    };
    match u16::from_be_bytes(*opcode) {
        1 => request(rest).map(Packet::Read),
        2 => Ok(Packet::Write),
        3 | 6 => Ok(Packet::Foreign),
        4 => match rest.first_chunk::<2>() {
            Some(block) => Ok(Packet::Ack(u16::from_be_bytes(*block))),
            None => Err(Malformed::Short),
        },
        5 => match rest.first_chunk::<2>() {
            Some(code) => Ok(Packet::Error {
                code: u16::from_be_bytes(*code),
                message: printable(rest.get(2..).unwrap_or_default()),
            }),
            None => Err(Malformed::Short),
        },
        _ => Err(Malformed::Opcode),
    }
}

/// The four octets in front of a block of data.
pub fn data_header(block: u64) -> [u8; 4] {
    let [high, low] = wire_block(block).to_be_bytes();
    [0, 3, high, low]
}

/// Blocks are numbered from 1 and the wire keeps the low sixteen bits, so 65535 is followed by 0.
/// RFC 1350 is silent about it; every server that carries large files does the same.
pub(super) fn wire_block(block: u64) -> u16 {
    (block & 0xffff) as u16
}

pub fn encode_error(code: ErrorCode, message: &str) -> Vec<u8> {
    let mut bytes = vec![0, 5, 0, code as u8];
    bytes.extend(message.bytes().filter(|byte| *byte != 0));
    bytes.push(0);
    bytes
}

pub fn encode_options(agreed: &Agreed, length: u64) -> Vec<u8> {
    let mut bytes = vec![0, 6];
    for offer in &agreed.answered {
        let (name, value) = match *offer {
            Offer::BlockSize(size) => ("blksize", u64::from(size)),
            Offer::Window(blocks) => ("windowsize", u64::from(blocks)),
            Offer::TimeoutSeconds(seconds) => ("timeout", u64::from(seconds)),
            Offer::Size => ("tsize", length),
        };
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(value.to_string().as_bytes());
        bytes.push(0);
    }
    bytes
}

impl Request {
    /// What we grant of what was asked: never more than asked, never more than the two limits.
    ///
    /// RFC 2348: "the value must be less than or equal to the value specified by the client".
    /// RFC 7440, section 3: "The value included by the server MUST be less than or equal to the
    /// requested value."
    pub fn agree(&self, block_size_max: u16, window_max: u16, timeout_max: Duration) -> Agreed {
        let mut agreed = Agreed::plain();
        for offer in &self.asked {
            match *offer {
                Offer::BlockSize(asked) => {
                    agreed.block_size = asked.min(block_size_max);
                    agreed.answered.push(Offer::BlockSize(agreed.block_size));
                }
                // A window of one is what silence means too, and some clients trip over "1".
                Offer::Window(asked) if asked.min(window_max) > 1 => {
                    agreed.window = asked.min(window_max);
                    agreed.answered.push(Offer::Window(agreed.window));
                }
                Offer::Window(_) => {}
                // RFC 2349: "the specified timeout value must match the value specified by the
                // client", so a longer one than we would wait is left out instead of lowered.
                Offer::TimeoutSeconds(asked) => {
                    let timeout = Duration::from_secs(u64::from(asked));
                    if timeout <= timeout_max {
                        agreed.timeout = Some(timeout);
                        agreed.answered.push(*offer);
                    }
                }
                Offer::Size => agreed.answered.push(Offer::Size),
            }
        }
        agreed
    }
}

impl Agreed {
    /// RFC 1350 as it was: 512 octets, one block at a time, no option acknowledged.
    pub fn plain() -> Self {
        Self {
            block_size: PLAIN_BLOCK_SIZE,
            window: 1,
            timeout: None,
            answered: Vec::new(),
        }
    }
}

impl ErrorCode {
    /// The code and the words a client sees for a request that was none.
    pub fn of(fault: Malformed) -> (Self, &'static str) {
        match fault {
            Malformed::Climbs => (Self::Denied, "name leaves the boot directory"),
            Malformed::Mode => (Self::Illegal, "unknown mode: use octet or netascii"),
            Malformed::Name => (Self::Illegal, "name is empty, too long or not printable"),
            Malformed::Short | Malformed::Opcode | Malformed::Long | Malformed::Unterminated => {
                (Self::Illegal, "malformed request")
            }
        }
    }
}

impl Malformed {
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Opcode => "opcode",
            Self::Long => "long",
            Self::Unterminated => "unterminated",
            Self::Mode => "mode",
            Self::Name => "name",
            Self::Climbs => "climbs",
        }
    }
}

/// The text form of a file, or nothing where it is the same bytes.
///
/// RFC 764's end of line: a line feed goes out as CR LF and a bare carriage return as CR NUL. A client
/// in netascii mode undoes this, so a loader fetched that way arrives whole.
pub fn netascii(bytes: &[u8]) -> Option<Vec<u8>> {
    let extra = bytes
        .iter()
        .filter(|byte| matches!(byte, b'\n' | b'\r'))
        .count();
    if extra == 0 {
        return None;
    }
    let mut text = Vec::with_capacity(bytes.len() + extra);
    for byte in bytes {
        match byte {
            b'\n' => text.extend_from_slice(b"\r\n"),
            b'\r' => text.extend_from_slice(b"\r\0"),
            other => text.push(*other),
        }
    }
    Some(text)
}

/// Who asked, as a report prints it.
pub(super) type Peer = SocketAddrV4;

fn request(bytes: &[u8]) -> Result<Request, Malformed> {
    if bytes.len() > REQUEST_OCTETS_MAX {
        return Err(Malformed::Long);
    }
    let (name, rest) = word(bytes).ok_or(Malformed::Unterminated)?;
    let (mode, mut rest) = word(rest).ok_or(Malformed::Unterminated)?;
    let mode = if mode.eq_ignore_ascii_case(b"octet") {
        Mode::Octet
    } else if mode.eq_ignore_ascii_case(b"netascii") {
        Mode::Netascii
    } else {
        return Err(Malformed::Mode);
    };
    let path = clean_path(name)?;
    let mut asked: Vec<Offer> = Vec::with_capacity(4);
    // Padding after the last option and an option cut short are met in the field: what was whole counts.
    while let Some((name, after)) = word(rest) {
        let Some((value, after)) = word(after) else {
            break;
        };
        if let Some(offer) = offer(name, value) {
            let known =
                |seen: &Offer| std::mem::discriminant(seen) == std::mem::discriminant(&offer);
            // RFC 2347: "An option may only be specified once." The first one wins.
            if !asked.iter().any(known) {
                asked.push(offer);
            }
        }
        rest = after;
    }
    Ok(Request { path, mode, asked })
}

fn offer(name: &[u8], value: &[u8]) -> Option<Offer> {
    let number = decimal(value)?;
    if name.eq_ignore_ascii_case(b"blksize") {
        // A larger wish than the RFC allows is a wish for the most there is; a smaller one is noise.
        let most = number.min(*BLOCK_SIZES.end());
        BLOCK_SIZES
            .contains(&most)
            .then(|| Offer::BlockSize(u16::try_from(most).unwrap_or(u16::MAX)))
    } else if name.eq_ignore_ascii_case(b"windowsize") {
        let blocks = u16::try_from(number).unwrap_or(u16::MAX);
        (blocks > 0).then_some(Offer::Window(blocks))
    } else if name.eq_ignore_ascii_case(b"timeout") {
        let seconds = u8::try_from(number).ok()?;
        (seconds > 0).then_some(Offer::TimeoutSeconds(seconds))
    } else if name.eq_ignore_ascii_case(b"tsize") {
        Some(Offer::Size)
    } else {
        None
    }
}

/// A name as the source knows it: no leading slash, forward slashes only, no empty or `.` parts.
pub fn clean_path(name: &[u8]) -> Result<String, Malformed> {
    let end = name
        .iter()
        .rposition(|byte| *byte != 0xff)
        .map_or(0, |last| last + 1);
    let name = std::str::from_utf8(&name[..end]).map_err(|_| Malformed::Name)?;
    if name.chars().any(char::is_control) || name.len() > PATH_OCTETS_MAX {
        return Err(Malformed::Name);
    }
    let mut path = String::with_capacity(name.len());
    for part in name.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => return Err(Malformed::Climbs),
            part => {
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(part);
            }
        }
    }
    if path.is_empty() {
        Err(Malformed::Name)
    } else {
        Ok(path)
    }
}

/// The octets up to the next NUL and what follows it.
fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// A decimal number; one too long for the machine is as large as there is.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| {
        sum.saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    };
    Some(digits.iter().fold(0, add))
}

/// A client's words, short and safe for a log line.
fn printable(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end.min(100)])
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edk2_asks_for_size_block_and_window() {
        let request =
            read(b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0");
        assert_eq!(request.path, "snponly.efi");
        assert_eq!(
            request.asked,
            [Offer::Size, Offer::BlockSize(1468), Offer::Window(4)]
        );
        let agreed = request.agree(1468, 64, Duration::from_secs(30));
        assert_eq!(
            encode_options(&agreed, 1_000_000),
            b"\0\x06tsize\x001000000\0blksize\x001468\0windowsize\x004\0"
        );
    }

    #[test]
    fn a_name_is_cleaned_before_anybody_looks_at_it() {
        for (name, path) in [
            (&b"/ipxe.efi"[..], "ipxe.efi"),
            (b"\\boot\\x64\\ipxe.efi", "boot/x64/ipxe.efi"),
            (b"//boot/./ipxe.efi", "boot/ipxe.efi"),
            (b"undionly.kpxe\xff", "undionly.kpxe"),
            (b"a..b/..c", "a..b/..c"),
        ] {
            assert_eq!(read(&rrq(name, b"octet", &[])).path, path);
        }
    }

    #[test]
    fn a_name_never_climbs() {
        for name in [
            &b"../etc/shadow"[..],
            b"/..",
            b"a/../../b",
            b"a\\..\\b",
            b"..\\..\\boot.ini",
        ] {
            assert_eq!(parse(&rrq(name, b"octet", &[])), Err(Malformed::Climbs));
        }
        for name in [
            &b""[..],
            b"/",
            b"\xff\xff",
            b"a\nb",
            b"\xc3\x28",
            &[b'a'; 256],
        ] {
            assert_eq!(parse(&rrq(name, b"octet", &[])), Err(Malformed::Name));
        }
    }

    #[test]
    fn options_are_read_in_any_case_once_and_only_when_they_make_sense() {
        let asked = |options: &[(&[u8], &[u8])]| read(&rrq(b"a", b"OcTeT", options)).asked;
        assert_eq!(
            asked(&[(b"BLKSIZE", b"1024"), (b"blksize", b"8")]),
            [Offer::BlockSize(1024)]
        );
        assert_eq!(
            asked(&[
                (b"blksize", b"7"),
                (b"windowsize", b"0"),
                (b"timeout", b"0")
            ]),
            []
        );
        assert_eq!(
            asked(&[
                (b"timeout", b"256"),
                (b"multicast", b""),
                (b"utimeout", b"5")
            ]),
            []
        );
        assert_eq!(
            asked(&[
                (b"blksize", b"-1"),
                (b"blksize", b"99999999999999999999999")
            ]),
            [Offer::BlockSize(65464)]
        );
        assert_eq!(asked(&[(b"windowsize", b"70000")]), [Offer::Window(65535)]);
    }

    #[test]
    fn nothing_is_granted_beyond_the_limits() {
        let request = read(&rrq(
            b"a",
            b"octet",
            &[
                (b"blksize", b"65464"),
                (b"windowsize", b"65535"),
                (b"timeout", b"255"),
            ],
        ));
        let agreed = request.agree(1468, 64, Duration::from_secs(30));
        assert_eq!(
            (agreed.block_size, agreed.window, agreed.timeout),
            (1468, 64, None)
        );
        assert_eq!(agreed.answered, [Offer::BlockSize(1468), Offer::Window(64)]);
        assert_eq!(
            request.agree(512, 1, Duration::ZERO).answered,
            [Offer::BlockSize(512)]
        );
    }

    #[test]
    fn packets_cut_anywhere_are_refused_or_read_without_harm() {
        let whole = rrq(
            b"ipxe.efi",
            b"octet",
            &[(b"tsize", b"0"), (b"blksize", b"1432")],
        );
        for end in 0..whole.len() {
            match parse(&whole[..end]) {
                Ok(Packet::Read(request)) => assert_eq!(request.path, "ipxe.efi"),
                Ok(other) => panic!("a request cut at {end} was read as {other:?}"),
                Err(fault) => assert!(matches!(fault, Malformed::Short | Malformed::Unterminated)),
            }
        }
        assert_eq!(parse(&[0, 4, 1]), Err(Malformed::Short));
        assert_eq!(parse(&[0, 9, 0, 0]), Err(Malformed::Opcode));
        assert_eq!(
            parse(&rrq(&[b'a'; 1200], b"octet", &[])),
            Err(Malformed::Long)
        );
        assert_eq!(parse(&rrq(b"a", b"mail", &[])), Err(Malformed::Mode));
        assert_eq!(parse(b"\0\x02a\0octet\0"), Ok(Packet::Write));
    }

    #[test]
    fn netascii_survives_the_way_there_and_back() {
        assert_eq!(netascii(b"no ends here"), None);
        assert_eq!(
            netascii(b"a\nb\r\n").as_deref(),
            Some(&b"a\r\nb\r\0\r\n"[..])
        );
    }

    #[test]
    fn block_numbers_wrap_to_zero() {
        assert_eq!(data_header(65535), [0, 3, 0xff, 0xff]);
        assert_eq!(data_header(65536), [0, 3, 0, 0]);
    }

    fn read(bytes: &[u8]) -> Request {
        match parse(bytes) {
            Ok(Packet::Read(request)) => request,
            other => panic!("not a read request: {other:?}"),
        }
    }

    fn rrq(name: &[u8], mode: &[u8], options: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        for part in [name, mode]
            .into_iter()
            .chain(options.iter().flat_map(|(name, value)| [*name, *value]))
        {
            bytes.extend_from_slice(part);
            bytes.push(0);
        }
        bytes
    }
}
