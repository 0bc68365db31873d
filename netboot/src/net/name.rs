//! Names of machines, hosts and links.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use super::{Malformed, read_text};

/// A name of one kind of thing, one DNS label: letters, digits and hyphens, 1 to 63 (RFC 1123, 2.1).
///
/// The kind is a type parameter, so a profile's name can't be given where a node's is asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<Kind>(Arc<str>, PhantomData<Kind>);

/// The kind of [`NodeName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfNode {}
/// The kind of [`NetworkName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfNetwork {}
/// The kind of [`ProfileName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfProfile {}

/// A machine's name in the inventory.
pub type NodeName = Name<OfNode>;
/// A network's name in `site.yaml`.
pub type NetworkName = Name<OfNetwork>;
/// A profile's name: its file's name without the suffix.
pub type ProfileName = Name<OfProfile>;

impl<Kind> Name<Kind> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<Kind> FromStr for Name<Kind> {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str =
            "use 1 to 63 lowercase letters, digits and hyphens, with no hyphen at either end";
        if label_is_sound(text) && !text.bytes().any(|b| b.is_ascii_uppercase()) {
            Ok(Self(text.into(), PhantomData))
        } else {
            Err(Malformed::new("name", text, RULE))
        }
    }
}

impl<Kind> fmt::Display for Name<Kind> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<Kind> fmt::Debug for Name<Kind> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host name: one label or a full domain name, at most 253 characters (RFC 1123, 2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first dot.
    #[must_use]
    pub fn label(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
}

impl FromStr for Hostname {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "use dot-separated labels of 1 to 63 letters, digits and hyphens, 253 characters in all";
        if text.len() <= 253 && text.split('.').all(label_is_sound) {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(Malformed::new("host name", text, RULE))
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network link's name as the kernel allows it: 1 to 15 bytes, no slash, colon or white space, not `.` or `..`
/// (`dev_valid_name` in Linux `net/core/dev.c`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(Arc<str>);

impl LinkName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let sound = (1..=15).contains(&text.len())
            && !matches!(text, "." | "..")
            && !text.contains(|c: char| c.is_whitespace() || c == '/' || c == ':');
        if sound {
            Ok(Self(text.into()))
        } else {
            Err(Malformed::new(
                "link name",
                text,
                "the kernel takes 1 to 15 bytes without slash, colon or space",
            ))
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for LinkName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LinkName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)
    }
}

impl<Kind> serde::Serialize for Name<Kind> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, Kind> serde::Deserialize<'de> for Name<Kind> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)
    }
}

fn label_is_sound(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::VlanId;

    #[test]
    fn names_links_and_vlans_follow_their_rules() {
        assert!("worker-1".parse::<NodeName>().is_ok());
        for text in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
        assert!("eth1.107".parse::<LinkName>().is_ok());
        assert!("sixteen-letters-".parse::<LinkName>().is_err());
        assert!(
            VlanId::new(0).is_none() && VlanId::new(4095).is_none() && VlanId::new(107).is_some()
        );
        assert_eq!(
            "Worker-1.Lab.example".parse::<Hostname>().unwrap().label(),
            "worker-1"
        );
    }
}
