//! Addresses and what is made of them: of stations, VLANs, subnets and ranges.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{Malformed, read_text};

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
    fn a_range_takes_the_short_and_the_long_form() {
        let short: AddressRange = "10.1.107.100-150".parse().unwrap();
        assert_eq!(short, "10.1.107.100-10.1.107.150".parse().unwrap());
        assert_eq!((short.count(), short.nth(51)), (51, short.first()));
        assert!("10.1.107.150-100".parse::<AddressRange>().is_err());
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
