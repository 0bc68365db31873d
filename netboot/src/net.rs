//! Names and numbers of the wire. Each type here can be made only by a parse that states its rule,
//! so nothing below the door ever asks again whether a VLAN id is in range.

mod address;
mod name;

use std::fmt;
use std::str::FromStr;

pub use address::{AddressRange, Destination, MacAddress, Subnet, VlanId};
pub use name::{
    Hostname, LinkName, Name, NetworkName, NodeName, OfNetwork, OfNode, OfProfile, ProfileName,
};

/// A value refused at the door: what it should have been, what it was, and the rule it broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}: {rule}")]
pub struct Malformed {
    /// The field's word for the value, such as "MAC address".
    pub what: &'static str,
    /// The text as it was given, cut to 64 characters.
    pub value: String,
    /// The rule in one clause, which is also the remedy.
    pub rule: &'static str,
}

impl Malformed {
    /// Refuses `value` as a `what`.
    #[must_use]
    pub fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self {
            what,
            value: value.chars().take(64).collect(),
            rule,
        }
    }
}

/// A moment: milliseconds since 1970-01-01T00:00:00Z. Always handed in, never asked for, below the daemon.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A moment from its count of milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The count of milliseconds.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0
    }

    /// Milliseconds from `earlier` to here; 0 when the clock stepped back.
    #[must_use]
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `seconds` later.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }
}

/// The digest that names an artefact: SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// A digest from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let refuse = || Malformed::new("SHA-256 digest", text, "write 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| refuse())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A type that is text on every wire and disk: written by its `Display`, read by its `FromStr`.
fn read_text<'de, T: FromStr<Err = Malformed>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)
    }
}

/// The candidate that `word` was probably meant to be: at most a third of its letters away, and two.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LETTERS_MAX: usize = 40;
    let letters: Vec<char> = word.chars().take(LETTERS_MAX + 1).collect();
    let allowed = 2.min(letters.len() / 3 + 1);
    if letters.len() > LETTERS_MAX {
        return None;
    }
    let near = candidates.into_iter().filter_map(|candidate| {
        // A candidate's bytes are never fewer than its letters, so this only skips what is too short.
        let comparable = candidate.len() + allowed >= letters.len() && candidate.len() <= 200;
        let apart = comparable.then(|| letters_apart(&letters, candidate))?;
        (apart <= allowed).then_some((apart, candidate))
    });
    near.min_by_key(|(apart, _)| *apart)
        .map(|(_, candidate)| candidate)
}

/// Letters to add, remove or replace between two words (Levenshtein's distance).
fn letters_apart(word: &[char], other: &str) -> usize {
    let mut row: Vec<usize> = (0..=word.len()).collect();
    for (index, letter) in other.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, expected) in word.iter().enumerate() {
            let replaced = diagonal + usize::from(*expected != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[word.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_another_word_is_not() {
        let keys = ["address", "subnet", "macs", "mac"];
        for (word, meant) in [
            ("adress", Some("address")),
            ("subnets", Some("subnet")),
            ("mcas", Some("macs")),
            ("profile", None),
            ("x", None),
            (&"a".repeat(1000), None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
    }
}
