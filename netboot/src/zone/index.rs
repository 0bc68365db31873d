//! The records of both sides by name, and the replies that follow: every record is kept as the bytes it is sent as.
//!
//! A name is looked up whole, then label by label towards the root until one exists: that is the closest encloser of
//! RFC 4592, section 3.3.1, and the way there tells in whose domain the name lies.

use std::collections::BTreeMap;

use super::name;
use super::packet::{Code, Flags, Question, Reply, kind};
use super::{Data, Names, Record, Side};

/// A pointer to the question's name: every owner we answer for is that name, or a part of its end.
const OWNER: [u8; 2] = [0xc0, 0x0c];
/// Seconds, for secondaries that we have none of: RFC 1912, section 2.2.
pub(super) const REFRESH: u32 = 3600;
pub(super) const RETRY: u32 = 600;
pub(super) const EXPIRE: u32 = 86_400 * 7;

/// The records of both sides, ready to be looked up.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    inside: Tree,
    outside: Tree,
    serial: u32,
    ttl_seconds: u32,
}

/// Each name of a side by its octets.
#[derive(Clone, Debug, Default)]
struct Tree(BTreeMap<Box<[u8]>, Place>);

/// What is at a name. One with nothing at all has names below it (RFC 4592, section 2.2.2).
#[derive(Clone, Debug, Default)]
struct Place {
    domain: Option<Domain>,
    sets: Vec<Set>,
    wildcard: Vec<Set>,
}

/// A name at which a domain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Domain {
    /// All names in it are ours.
    Whole,
    /// Some are.
    Partial,
}

/// The records of one type at one name, as they stand in a packet whose question has that name.
#[derive(Clone, Debug)]
struct Set {
    kind: u16,
    count: u16,
    bytes: Vec<u8>,
}

/// What is known of a question's name.
struct Found<'a> {
    /// `None` when there is no such name.
    sets: Option<&'a [Set]>,
    /// Where its domain begins, in octets from the name's start; the domain is the whole rest.
    domain: usize,
    /// The domain begins here, and is all ours.
    is_apex: bool,
}

/// Whether a reply was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It was, with this code.
    Here(Code),
    /// The name isn't ours; nothing was written.
    Elsewhere,
}

impl Zones {
    /// Builds the index.
    #[must_use]
    pub fn new(names: &Names) -> Self {
        let mut zones = Self {
            serial: names.serial,
            ttl_seconds: names.ttl_seconds,
            ..Self::default()
        };
        for cluster in &names.clusters {
            for (side, tree) in [
                (Side::Inside, &mut zones.inside),
                (Side::Outside, &mut zones.outside),
            ] {
                if cluster.is_seen(side) {
                    tree.place(cluster.domain.wire()).domain = Some(Domain::Whole);
                }
            }
        }
        for domain in &names.partial {
            let place = zones.inside.place(domain.wire());
            place.domain.get_or_insert(Domain::Partial);
        }
        for record in names.records() {
            let tree = match record.side {
                Side::Inside => &mut zones.inside,
                Side::Outside => &mut zones.outside,
            };
            tree.add(&record, names.ttl_seconds);
        }
        zones
    }

    /// Writes the reply to a question of a side behind what `out` holds, at most `limit` bytes of it. `recursion`
    /// says whether this client's other names are looked up.
    pub fn answer(
        &self,
        side: Side,
        question: &Question<'_>,
        recursion: bool,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Answered {
        let tree = match side {
            Side::Inside => &self.inside,
            Side::Outside => &self.outside,
        };
        let flags = Flags {
            authoritative: true,
            recursion,
            authentic: false,
        };
        let plain = Flags {
            authoritative: false,
            ..flags
        };
        let bare = |code, out| {
            Reply::new(out, question, plain, limit).finish(code);
            Answered::Here(code)
        };
        if question.edns.is_some_and(|edns| edns.version > 0) {
            return bare(Code::BadVers, out);
        }
        match question.kind {
            kind::AXFR | kind::IXFR => return bare(Code::Refused, out),
            kind::MAILA | kind::MAILB => return bare(Code::NotImp, out),
            _ => {}
        }
        let Some(found) = tree.find(question.name()) else {
            if question.kind == kind::ANY {
                // One question with a hundred answers is an amplifier; nobody needs it (RFC 8482).
                return bare(Code::Refused, out);
            }
            return Answered::Elsewhere;
        };
        let mut reply = Reply::new(out, question, flags, limit);
        let soa = |kind_wanted| found.is_apex && question.kind == kind_wanted;
        let code = if soa(kind::SOA) {
            reply.answers(1, &self.soa(found.domain));
            Code::NoError
        } else if soa(kind::NS) {
            reply.answers(1, &self.ns(found.domain));
            Code::NoError
        } else if let Some(sets) = found.sets {
            let any = question.kind == kind::ANY;
            match sets.iter().find(|set| set.kind == question.kind) {
                Some(set) => reply.answers(set.count, &set.bytes),
                None if any => reply.answers(1, &self.no_any()),
                None => reply.authorities(1, &self.soa(found.domain)),
            }
            Code::NoError
        } else {
            reply.authorities(1, &self.soa(found.domain));
            Code::NxDomain
        };
        reply.finish(code);
        Answered::Here(code)
    }

    /// How many names a side sees, those with nothing but others below them included.
    #[must_use]
    pub fn len(&self, side: Side) -> usize {
        match side {
            Side::Inside => self.inside.0.len(),
            Side::Outside => self.outside.0.len(),
        }
    }

    fn soa(&self, domain: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let owner = pointer(domain);
        out.extend_from_slice(&owner);
        // Ours and a mailbox, each below the domain; serial and times behind them.
        let (ns, hostmaster) = (&b"\x02ns"[..], &b"\x0ahostmaster"[..]);
        let length = ns.len() + hostmaster.len() + 4 + 20;
        fixed(&mut out, kind::SOA, self.ttl_seconds, length);
        for label in [ns, hostmaster] {
            out.extend_from_slice(label);
            out.extend_from_slice(&owner);
        }
        // RFC 2308, section 4: the last is how long a negative answer may be kept.
        for number in [self.serial, REFRESH, RETRY, EXPIRE, self.ttl_seconds] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out
    }

    fn ns(&self, domain: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        let owner = pointer(domain);
        out.extend_from_slice(&owner);
        fixed(&mut out, kind::NS, self.ttl_seconds, 5);
        out.extend_from_slice(b"\x02ns");
        out.extend_from_slice(&owner);
        out
    }

    /// RFC 8482, section 4.2: ANY is answered by one HINFO record that names the RFC.
    fn no_any(&self) -> Vec<u8> {
        const TEXT: &[u8] = b"\x07RFC8482\0";
        let mut out = OWNER.to_vec();
        fixed(&mut out, kind::HINFO, self.ttl_seconds, TEXT.len());
        out.extend_from_slice(TEXT);
        out
    }
}

/// A pointer to the octet of the question's name at `at`; a name is shorter than a pointer can reach.
fn pointer(at: usize) -> [u8; 2] {
    (0xc000 | (12 + at) as u16).to_be_bytes()
}

/// What stands between a record's owner and its data: type, class IN, time to live, length.
fn fixed(out: &mut Vec<u8>, kind: u16, ttl_seconds: u32, length: usize) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&ttl_seconds.to_be_bytes());
    // Names and addresses: at most 255 octets.
    out.extend_from_slice(&(length as u16).to_be_bytes());
}

impl Tree {
    fn place(&mut self, wire: &[u8]) -> &mut Place {
        self.0.entry(wire.into()).or_default()
    }

    fn add(&mut self, record: &Record, ttl_seconds: u32) {
        let wire = record.name.wire();
        let mut above = name::parent(wire);
        while let Some(parent) = above.filter(|parent| parent.len() > 1) {
            self.place(parent);
            above = name::parent(parent);
        }
        put(&mut self.place(wire).sets, &record.data, ttl_seconds);
        if record.name.is_wildcard() {
            put(
                &mut self.place(&wire[2..]).wildcard,
                &record.data,
                ttl_seconds,
            );
        }
    }

    /// What is known of a name; `None` for a name of others.
    fn find(&self, name: &[u8]) -> Option<Found<'_>> {
        let exact = self.0.get(name);
        let mut sets = exact.map(|place| &place.sets[..]);
        let (mut closest, mut at, mut partial) = (exact.is_some(), 0, None);
        let mut place = exact;
        loop {
            if let Some(here) = place {
                // RFC 4592, section 3.3.1: only the closest name that exists lends its wildcard.
                if !closest {
                    closest = true;
                    sets = Some(&here.wildcard[..]).filter(|sets| !sets.is_empty());
                }
                match here.domain {
                    Some(Domain::Whole) => {
                        return Some(Found {
                            sets,
                            domain: at,
                            is_apex: at == 0,
                        });
                    }
                    Some(Domain::Partial) => {
                        partial.get_or_insert(at);
                    }
                    None => {}
                }
            }
            at += 1 + usize::from(*name.get(at)?);
            match name.get(at) {
                Some(0) | None => break,
                Some(_) => place = self.0.get(&name[at..]),
            }
        }
        // Outside of our own domains a name is ours only when it has something.
        let ours = sets.filter(|sets| !sets.is_empty());
        ours.map(|sets| Found {
            sets: Some(sets),
            domain: partial.unwrap_or(0),
            is_apex: false,
        })
    }
}

/// Adds a record to the set of its type.
fn put(sets: &mut Vec<Set>, data: &Data, ttl_seconds: u32) {
    let kind = data.kind();
    let index = sets.iter().position(|set| set.kind == kind);
    let index = index.unwrap_or_else(|| {
        let (count, bytes) = (0, Vec::new());
        sets.push(Set { kind, count, bytes });
        sets.len() - 1
    });
    let set = &mut sets[index];
    let mut octets = Vec::new();
    data.write(&mut octets);
    set.count += 1;
    set.bytes.extend_from_slice(&OWNER);
    fixed(&mut set.bytes, kind, ttl_seconds, octets.len());
    set.bytes.append(&mut octets);
}
