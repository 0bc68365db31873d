//! One question out of a packet, and the bytes of a reply to it.
//!
//! ```text
//!   header 12 | question: name, type, class | answers | SOA | OPT
//!                         ^ offset 12, so every owner is a pointer into the question
//! ```
//!
//! Only what a server needs is read: names of a question are never compressed (there is nothing before them to point
//! to), and records behind it are walked over for the one OPT. Each step consumes bytes, so no packet can loop.

use super::name::NAME_MAX;

/// RFC 1035, section 4.1.1.
const HEADER: usize = 12;
/// What we say we take, and at most send, in one datagram: it passes everywhere unfragmented (DNS flag day 2020).
pub const DATAGRAM_MAX: u16 = 1232;
/// What a client without EDNS takes (RFC 1035, section 4.2.1).
const DATAGRAM_PLAIN: u16 = 512;
const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;

/// Record types that decide something here.
pub mod kind {
    #![allow(missing_docs)]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const AAAA: u16 = 28;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const MAILB: u16 = 253;
    pub const MAILA: u16 = 254;
    pub const ANY: u16 = 255;
}

/// Response codes (RFC 1035, section 4.1.1; RFC 6891, section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Answered, perhaps by nothing.
    NoError = 0,
    /// Not understood.
    FormErr = 1,
    /// The servers behind us failed.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// A kind of question that isn't answered here.
    NotImp = 4,
    /// Not for this client, or not ours.
    Refused = 5,
    /// An EDNS version that isn't known here.
    BadVers = 16,
}

/// EDNS of a question (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// What the client takes in one datagram, in bytes.
    pub payload: u16,
    /// Only 0 is known.
    pub version: u8,
    /// It wants DNSSEC's records (DO).
    pub dnssec: bool,
}

/// One question of class IN.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// To be repeated.
    pub id: u16,
    /// The header's second 16 bits.
    flags: u16,
    /// Name, type and class as they were sent: a client that mixes cases wants the same mix back.
    raw: &'a [u8],
    lower: [u8; NAME_MAX],
    /// The type asked for.
    pub kind: u16,
    /// Its EDNS.
    pub edns: Option<Edns>,
}

/// Why there is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswerable {
    /// Nothing must be sent: a reply, or too short to say whose it is.
    Silent,
    /// A header with this code is sent.
    Refused(Code),
}

impl<'a> Question<'a> {
    /// Reads the question of a packet.
    ///
    /// # Errors
    /// See [`Unanswerable`]; [`refuse`] makes the reply.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Unanswerable> {
        const FORM: Unanswerable = Unanswerable::Refused(Code::FormErr);
        let header = packet.get(..HEADER).ok_or(Unanswerable::Silent)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = word(2);
        if flags & 0x8000 != 0 {
            return Err(Unanswerable::Silent);
        }
        if flags & 0x7800 != 0 {
            return Err(Unanswerable::Refused(Code::NotImp));
        }
        // A question comes alone: several have no meaning (RFC 9619), and answers belong to updates and notices.
        if word(4) != 1 || word(6) != 0 {
            return Err(FORM);
        }
        let mut lower = [0; NAME_MAX];
        let length = name(&packet[HEADER..], &mut lower).ok_or(FORM)?;
        let end = HEADER + length + 4;
        let raw = packet.get(HEADER..end).ok_or(FORM)?;
        let tail = |at: usize| u16::from_be_bytes([raw[length + at], raw[length + at + 1]]);
        let (kind, class) = (tail(0), tail(2));
        // A transfer has a record of its own among the authorities.
        let records = u32::from(word(8)) + u32::from(word(10));
        let edns = additional(&packet[end..], records).ok_or(FORM)?;
        if kind == TYPE_OPT {
            return Err(FORM);
        }
        if class != CLASS_IN {
            return Err(Unanswerable::Refused(Code::Refused));
        }
        Ok(Self {
            id: word(0),
            flags,
            raw,
            lower,
            kind,
            edns,
        })
    }

    /// The name in lower case.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.lower[..self.raw.len() - 4]
    }

    /// The client wants it looked up elsewhere (RD).
    #[must_use]
    pub fn wants_recursion(&self) -> bool {
        self.flags & 0x0100 != 0
    }

    /// The client checks signatures itself (CD, RFC 4035).
    #[must_use]
    pub fn checks_itself(&self) -> bool {
        self.flags & 0x0010 != 0
    }

    /// The client wants DNSSEC's records.
    #[must_use]
    pub fn wants_dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec)
    }

    /// How large a datagram to it may be, in bytes.
    #[must_use]
    pub fn datagram_max(&self) -> usize {
        let payload = self.edns.map_or(DATAGRAM_PLAIN, |edns| edns.payload);
        usize::from(payload.clamp(DATAGRAM_PLAIN, DATAGRAM_MAX))
    }

    /// Name, type and class as they were sent.
    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }
}

/// Reads a name without pointers; its length in the packet.
fn name(packet: &[u8], lower: &mut [u8; NAME_MAX]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*packet.get(at)?);
        if length > 63 {
            return None;
        }
        let end = at + 1 + length;
        // The root's octet follows, or is this one.
        if end > NAME_MAX {
            return None;
        }
        lower
            .get_mut(at..end)?
            .copy_from_slice(packet.get(at..end)?);
        if length == 0 {
            // A length is below 64, so no letter's case can be changed in it.
            lower[..end].make_ascii_lowercase();
            return Some(end);
        }
        at = end;
    }
}

/// Walks over the records behind the question: `Some(None)` without an OPT, `None` for what is malformed.
fn additional(mut packet: &[u8], count: u32) -> Option<Option<Edns>> {
    let mut edns = None;
    for _ in 0..count {
        let owner = skip_name(packet)?;
        let fixed = packet.get(owner..owner + 10)?;
        let word = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let end = owner + 10 + usize::from(word(8));
        packet.get(..end)?;
        if word(0) == TYPE_OPT {
            // RFC 6891, section 6.1.1: the root's, and one.
            if owner != 1 || edns.is_some() {
                return None;
            }
            edns = Some(Edns {
                payload: word(2),
                version: fixed[5],
                dnssec: fixed[6] & 0x80 != 0,
            });
        }
        packet = &packet[end..];
    }
    Some(edns)
}

/// The length of a name that may end with a pointer.
#[must_use]
pub fn skip_name(packet: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*packet.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            192.. => return Some(at + 2).filter(|end| *end <= packet.len()),
            _ => return None,
        }
        if at > NAME_MAX {
            return None;
        }
    }
}

/// The flags of a reply that are not the question's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// We hold these records (AA).
    pub authoritative: bool,
    /// We look names up elsewhere for this client (RA).
    pub recursion: bool,
    /// Signatures were checked by the server behind us (AD).
    pub authentic: bool,
}

/// A reply being written into a buffer.
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    question: usize,
    edns: Option<bool>,
    limit: usize,
    counts: [u16; 2],
}

impl<'a> Reply<'a> {
    /// Begins a reply of at most `limit` bytes behind what the buffer holds.
    pub fn new(out: &'a mut Vec<u8>, question: &Question<'_>, flags: Flags, limit: usize) -> Self {
        let start = out.len();
        let own = u16::from(flags.authoritative) << 10
            | u16::from(flags.recursion) << 7
            | u16::from(flags.authentic) << 5;
        // Opcode 0; RD and CD are repeated (RFC 1035, section 4.1.1; RFC 4035, section 3.1.6).
        let word = 0x8000 | question.flags & 0x0110 | own;
        out.extend_from_slice(&question.id.to_be_bytes());
        out.extend_from_slice(&word.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(question.raw);
        Self {
            out,
            start,
            question: question.raw.len(),
            edns: question.edns.map(|edns| edns.dnssec),
            limit,
            counts: [0, 0],
        }
    }

    /// Adds whole records to the answers.
    pub fn answers(&mut self, count: u16, records: &[u8]) {
        self.counts[0] += count;
        self.out.extend_from_slice(records);
    }

    /// Adds whole records to the authorities.
    pub fn authorities(&mut self, count: u16, records: &[u8]) {
        self.counts[1] += count;
        self.out.extend_from_slice(records);
    }

    /// Ends it. What is too long is cut down to the question with TC, so that the client asks by TCP.
    pub fn finish(self, code: Code) {
        const OPT: usize = 11;
        let Self {
            out,
            start,
            question,
            edns,
            limit,
            counts,
        } = self;
        let room = limit.saturating_sub(if edns.is_some() { OPT } else { 0 });
        let code = code as u8;
        if out.len() - start > room {
            out.truncate(start + HEADER + question);
            out[start + 2] |= 0x02;
        } else {
            let [answers, authorities] = counts.map(u16::to_be_bytes);
            out[start + 6..start + 8].copy_from_slice(&answers);
            out[start + 8..start + 10].copy_from_slice(&authorities);
        }
        out[start + 3] |= code & 0x0f;
        if let Some(dnssec) = edns {
            out[start + 11] = 1;
            let [high, low] = DATAGRAM_MAX.to_be_bytes();
            let wanted = if dnssec { 0x80 } else { 0 };
            out.extend_from_slice(&[0, 0, 41, high, low, code >> 4, 0, wanted, 0, 0, 0]);
        }
    }
}

/// The reply to a packet without a question that could be repeated: its header and a code.
pub fn refuse(packet: &[u8], code: Code, out: &mut Vec<u8>) {
    let Some(header) = packet.get(..4) else {
        return;
    };
    // The opcode and RD are the client's.
    out.extend_from_slice(&[header[0], header[1], 0x80 | header[2] & 0x79, code as u8]);
    out.extend_from_slice(&[0; 8]);
}

/// A reply of another server that is kept: everything behind the question, and where its times to live stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    code: Code,
    authentic: bool,
    counts: [u16; 2],
    records: Box<[u8]>,
    times: Box<[u16]>,
    /// How long it may be kept, in seconds: the shortest of its records' times.
    pub seconds: u32,
}

impl Kept {
    /// Takes the records of a whole reply to a question of `question` bytes, answers and authorities; the rest is left
    /// out. `seconds_max` bounds each time to live. `None` for a malformed one.
    #[must_use]
    pub fn read(
        reply: &[u8],
        question: usize,
        code: Code,
        authentic: bool,
        seconds_max: u32,
    ) -> Option<Self> {
        let count = |at: usize| Some(u16::from_be_bytes([*reply.get(at)?, *reply.get(at + 1)?]));
        let counts = [count(6)?, count(8)?];
        let mut records = reply.get(HEADER + question..)?.to_vec();
        let (mut times, mut at, mut seconds) = (Vec::new(), 0, seconds_max);
        for _ in 0..counts.iter().map(|count| u32::from(*count)).sum() {
            let fixed = at + skip_name(&records[at..])?;
            let octets = records.get_mut(fixed + 4..fixed + 8)?;
            let time = u32::from_be_bytes(octets.try_into().ok()?);
            // RFC 2181, section 8: the highest bit makes it zero.
            let time = if time > i32::MAX as u32 {
                0
            } else {
                time.min(seconds_max)
            };
            octets.copy_from_slice(&time.to_be_bytes());
            seconds = seconds.min(time);
            times.push(u16::try_from(fixed + 4).ok()?);
            let length = records.get(fixed + 8..fixed + 10)?;
            at = fixed + 10 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            records.get(..at)?;
        }
        records.truncate(at);
        Some(Self {
            code,
            authentic,
            counts,
            records: records.into(),
            times: times.into(),
            seconds,
        })
    }

    /// A reply without records, such as one that says that every server failed.
    #[must_use]
    pub fn bare(code: Code, seconds: u32) -> Self {
        Self {
            code,
            authentic: false,
            counts: [0, 0],
            records: Box::default(),
            times: Box::default(),
            seconds,
        }
    }

    /// Memory that it takes, about, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.records.len() + 2 * self.times.len()
    }

    /// Writes it as the reply to a question like the one it answered, `age` seconds old.
    pub fn write(&self, question: &Question<'_>, age: u32, limit: usize, out: &mut Vec<u8>) {
        let flags = Flags {
            authoritative: false,
            recursion: true,
            authentic: self.authentic,
        };
        let mut reply = Reply::new(out, question, flags, limit);
        let base = reply.out.len();
        reply.answers(self.counts[0], &self.records);
        reply.authorities(self.counts[1], &[]);
        for &at in &self.times {
            let place = base + usize::from(at);
            if let Some(octets) = reply.out.get_mut(place..place + 4)
                && let Ok(time) = <[u8; 4]>::try_from(&*octets)
            {
                let left = u32::from_be_bytes(time).saturating_sub(age);
                octets.copy_from_slice(&left.to_be_bytes());
            }
        }
        reply.finish(self.code);
    }
}
