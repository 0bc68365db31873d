//! Names and numbers of the wire. Each type here can be made only by a parse that states its rule,
//! so nothing below the door ever asks again whether a VLAN id is in range.

use std::fmt;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

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

/// An Ethernet address of one station (never a group, never all zero).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Accepts six octets of a station; `None` for a group address or all zero (IEEE 802-2014, 8.2).
    #[must_use]
    pub fn from_octets(octets: [u8; 6]) -> Option<Self> {
        (octets[0] & 1 == 0 && octets != [0; 6]).then_some(Self(octets))
    }

    /// The six octets in transmission order.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// `52-54-00-aa-00-01`, the spelling of iPXE's `${mac:hexhyp}` and of our URLs.
    #[must_use]
    pub fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl FromStr for MacAddress {
    type Err = Malformed;

    /// Takes every common spelling: colons, hyphens, Cisco's dotted groups, or twelve bare digits.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "write six octets, such as 52:54:00:aa:00:01";
        let refuse = |rule| Malformed::new("MAC address", text, rule);
        let groups: Vec<&str> = text.trim().split([':', '-', '.']).collect();
        let width = match groups.len() {
            6 => 2,
            3 => 4,
            1 => 12,
            _ => return Err(refuse(RULE)),
        };
        let mut digits = String::with_capacity(12);
        for group in groups {
            let short_octet = width == 2 && group.len() == 1;
            if (group.len() != width && !short_octet)
                || !group.bytes().all(|b| b.is_ascii_hexdigit())
            {
                return Err(refuse(RULE));
            }
            if short_octet {
                digits.push('0');
            }
            digits.push_str(group);
        }
        let mut octets = [0; 6];
        for (octet, pair) in octets.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| refuse(RULE))?;
            *octet = u8::from_str_radix(pair, 16).map_err(|_| refuse(RULE))?;
        }
        Self::from_octets(octets)
            .ok_or_else(|| refuse("a machine's address is neither all zero nor a group address"))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IEEE 802.1Q VLAN id, 1 to 4094 (0 is "priority only", 4095 is reserved).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// Accepts 1 to 4094.
    #[must_use]
    pub fn new(id: u16) -> Option<Self> {
        (1..=4094).contains(&id).then_some(Self(id))
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

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

/// An IPv4 network, written with its own base address and a prefix of 1 to 30 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet(ipnet::Ipv4Net);

impl Subnet {
    /// True when a station may bear `address`: inside, and neither the base nor the broadcast address.
    #[must_use]
    pub fn has_station(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address) && address != self.0.network() && address != self.0.broadcast()
    }

    /// True when `address` is inside, whatever it is there.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// True when the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0.network()) || other.0.contains(&self.0.network())
    }

    /// As the routing code takes it.
    #[must_use]
    pub fn net(self) -> ipnet::Ipv4Net {
        self.0
    }

    /// The base address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The directed broadcast address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// The mask as DHCP option 1 carries it.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        self.0.netmask()
    }

    /// Bits of the prefix, 1 to 30.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.0.prefix_len()
    }
}

impl FromStr for Subnet {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let refuse = |rule| Malformed::new("subnet", text, rule);
        let net: ipnet::Ipv4Net = text
            .parse()
            .map_err(|_| refuse("write it as 10.107.0.0/24"))?;
        if !(1..=30).contains(&net.prefix_len()) {
            return Err(refuse(
                "the prefix is 1 to 30 bits, so that two stations fit",
            ));
        }
        if net.addr() != net.network() {
            return Err(refuse(
                "the bits after the prefix must be zero, as in 10.107.0.0/24",
            ));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Where a static route leads: any prefix, 0 to 32 bits, written with its own base address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination(ipnet::Ipv4Net);

impl Destination {
    /// Everywhere: `0.0.0.0/0`.
    #[must_use]
    pub fn everywhere() -> Self {
        Self(ipnet::Ipv4Net::default())
    }

    /// The prefix as the packet codec takes it.
    #[must_use]
    pub fn prefix(self) -> ipnet::Ipv4Net {
        self.0
    }
}

impl FromStr for Destination {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "write it as 10.0.0.0/8, with zero bits after the prefix; a host is /32";
        let refuse = || Malformed::new("destination", text, RULE);
        let net: ipnet::Ipv4Net = text.parse().map_err(|_| refuse())?;
        if net.addr() == net.network() {
            Ok(Self(net))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An inclusive run of addresses; the first is not above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl AddressRange {
    /// Accepts `first` at or below `last`.
    #[must_use]
    pub fn new(first: Ipv4Addr, last: Ipv4Addr) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The highest address.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        self.last
    }

    /// True when `address` is one of them.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// How many addresses there are, at least 1.
    #[must_use]
    pub fn count(self) -> u64 {
        u64::from(u32::from(self.last) - u32::from(self.first)) + 1
    }

    /// The address `index` places after the first, wrapping at the end.
    #[must_use]
    pub fn nth(self, index: u64) -> Ipv4Addr {
        let offset = u32::try_from(index % self.count())
            .expect("an index below the count of a 32-bit range");
        Ipv4Addr::from(u32::from(self.first) + offset)
    }
}

impl FromStr for AddressRange {
    type Err = Malformed;

    /// Takes `10.1.107.100-10.1.107.150` and the short `10.1.107.100-150`.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: &str =
            "write it as 10.107.0.100-10.107.0.150 or 10.107.0.100-150, low end first";
        let refuse = || Malformed::new("address range", text, RULE);
        let (low, high) = text.split_once('-').ok_or_else(refuse)?;
        let first: Ipv4Addr = low.trim().parse().map_err(|_| refuse())?;
        let high = high.trim();
        let last = match high.parse::<u8>() {
            Ok(octet) => {
                let [a, b, c, _] = first.octets();
                Ipv4Addr::new(a, b, c, octet)
            }
            Err(_) => high.parse().map_err(|_| refuse())?,
        };
        Self::new(first, last).ok_or_else(refuse)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
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

impl serde::Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)
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

impl serde::Serialize for VlanId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.get())
    }
}

impl<'de> serde::Deserialize<'de> for VlanId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = u16::deserialize(deserializer)?;
        Self::new(id).ok_or_else(|| serde::de::Error::custom("a VLAN id is 1 to 4094"))
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

    #[test]
    fn every_common_spelling_of_a_mac_is_the_same_mac() {
        let spellings = [
            "52:54:00:aa:00:01",
            "52-54-00-AA-00-01",
            "5254.00aa.0001",
            "525400AA0001",
            " 52:54:0:aa:0:1 ",
        ];
        for spelling in spellings {
            assert_eq!(
                spelling.parse::<MacAddress>().unwrap().to_string(),
                "52:54:00:aa:00:01",
                "{spelling}"
            );
        }
    }

    #[test]
    fn what_is_no_station_is_refused_as_a_mac() {
        for text in [
            "",
            "52:54:00:aa:00",
            "52:54:00:aa:00:01:02",
            "01:00:5e:00:00:01",
            "0:0:0:0:0:0",
            "5254.00aa.00é1",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

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

    #[test]
    fn a_range_takes_the_short_and_the_long_form() {
        let short: AddressRange = "10.1.107.100-150".parse().unwrap();
        assert_eq!(short, "10.1.107.100-10.1.107.150".parse().unwrap());
        assert_eq!((short.count(), short.nth(51)), (51, short.first()));
        assert!("10.1.107.150-100".parse::<AddressRange>().is_err());
    }

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

    #[test]
    fn a_subnet_has_no_host_bits_and_room_for_two_stations() {
        let subnet: Subnet = "10.107.0.0/24".parse().unwrap();
        assert!(subnet.has_station("10.107.0.1".parse().unwrap()));
        assert!(!subnet.has_station(subnet.broadcast()) && !subnet.has_station(subnet.network()));
        for text in [
            "10.107.0.1/24",
            "10.107.0.0/31",
            "10.107.0.0/0",
            "10.107.0.0",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
