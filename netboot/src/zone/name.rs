//! A domain name as it stands in a packet: lower-case labels, each behind its length, ending with the root.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use crate::net::{Hostname, Malformed};

/// Octets of a name in a packet (RFC 1035, section 3.1).
pub const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;

/// A full domain name, in lower case and uncompressed (RFC 1035, section 3.1); `*` may be its first label (RFC 4592).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Arc<[u8]>);

impl DomainName {
    /// The octets.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// This name below another: `api` in `okd.lab.example`. `None` when that is longer than a name may be.
    #[must_use]
    pub fn under(label: &str, parent: &Self) -> Option<Self> {
        let length = u8::try_from(label.len()).ok()?;
        let sound = (1..=LABEL_MAX).contains(&label.len());
        let mut wire = Vec::with_capacity(1 + label.len() + parent.0.len());
        wire.push(length);
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        wire.extend_from_slice(&parent.0);
        (sound && wire.len() <= NAME_MAX).then(|| Self(wire.into()))
    }

    /// A host's full name: a host name without a dot is in the domain. `None` for one that is in none.
    #[must_use]
    pub fn of_host(host: &Hostname, domain: Option<&Self>) -> Option<Self> {
        if host.as_str().contains('.') {
            host.as_str().parse().ok()
        } else {
            Self::under(host.as_str(), domain?)
        }
    }

    /// The name under which an address is looked up (RFC 1035, section 3.5).
    #[must_use]
    pub fn reverse(address: Ipv4Addr) -> Self {
        let mut wire = Vec::with_capacity(30);
        for octet in address.octets().iter().rev() {
            let text = octet.to_string();
            // An octet has at most three digits.
            wire.push(text.len() as u8);
            wire.extend_from_slice(text.as_bytes());
        }
        wire.extend_from_slice(b"\x07in-addr\x04arpa\0");
        Self(wire.into())
    }

    /// The name without its first label; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        parent(&self.0).map(|rest| Self(rest.into()))
    }

    /// True when this is the other name, or lies below it.
    #[must_use]
    pub fn is_in(&self, other: &Self) -> bool {
        let mut at = Some(&self.0[..]);
        while let Some(name) = at {
            if name == &other.0[..] {
                return true;
            }
            at = parent(name);
        }
        false
    }

    /// True when the first label is `*`.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }
}

/// The octets of a name without its first label.
pub(super) fn parent(wire: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*wire.first()?);
    (length > 0).then(|| wire.get(1 + length..)).flatten()
}

impl From<&Hostname> for DomainName {
    /// A host name has at most 253 characters of sound labels, which is a name of at most 255 octets.
    fn from(host: &Hostname) -> Self {
        Self(encode(host.as_str()).into())
    }
}

fn encode(text: &str) -> Vec<u8> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        // Labels were measured before: at most 63 octets.
        wire.push(label.len() as u8);
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    wire
}

impl FromStr for DomainName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "write a full name of labels of 1 to 63 letters, digits, hyphens and underscores, such as \
                            registry.lab.example; the first label may be *";
        let full = text.strip_suffix('.').unwrap_or(text);
        let sound = |(place, label): (usize, &str)| {
            let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=LABEL_MAX).contains(&label.len())
                && (label.bytes().all(letters) || place == 0 && label == "*")
        };
        if full.len() <= 253 && full.split('.').enumerate().all(sound) {
            Ok(Self(encode(full).into()))
        } else {
            Err(Malformed::new("domain name", text, RULE))
        }
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        if rest == [0] {
            return f.write_str(".");
        }
        while let [length @ 1..=63, tail @ ..] = rest {
            let (label, next) = tail.split_at(usize::from(*length).min(tail.len()));
            for &byte in label {
                write!(f, "{}", byte.escape_ascii())?;
            }
            f.write_str(".")?;
            rest = next;
        }
        Ok(())
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_labels_in_lower_case() {
        let name: DomainName = "API.Lab.example".parse().unwrap();
        assert_eq!(name.wire(), b"\x03api\x03lab\x07example\0");
        assert_eq!(name.to_string(), "api.lab.example.");
        assert_eq!(name, "api.lab.example.".parse().unwrap());
        assert!(name.is_in(&"example".parse().unwrap()) && name.is_in(&name));
        assert!(!name.is_in(&"ab.example".parse().unwrap()));
        let reverse = DomainName::reverse([10, 107, 0, 11].into());
        assert_eq!(reverse.to_string(), "11.0.107.10.in-addr.arpa.");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("{}.example", "a".repeat(64));
        for text in ["", ".", "a..b", "a b", "x.*.example", "ü.example", &long] {
            assert!(text.parse::<DomainName>().is_err(), "{text}");
        }
        for text in ["*.apps.lab.example", "_x._tcp.example", "a"] {
            assert!(text.parse::<DomainName>().is_ok(), "{text}");
        }
        let full: DomainName = vec!["a".repeat(63); 3].join(".").parse().unwrap();
        assert!(DomainName::under(&"b".repeat(61), &full).is_some());
        assert!(DomainName::under(&"b".repeat(62), &full).is_none());
    }
}
