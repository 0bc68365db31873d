//! From text to the core's types, one value at a time; what fails becomes a fault at its own place.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;
use netboot::loader::LoaderTable;
use netboot::net::Malformed;
use netboot::node::DiskRule;

use super::fault::{Faults, Place};
use super::file;
use super::read::{Given, Table};

/// Parses a value that may be absent.
pub(super) fn parse<T: FromStr<Err = Malformed>>(
    faults: &Faults,
    key: &str,
    given: &Given<String>,
) -> Option<T> {
    let (place, text) = given.good()?;
    judged(faults, key, place, text.parse())
}

/// Parses a value that must be there; `item` is where to complain when it isn't.
pub(super) fn need<T: FromStr<Err = Malformed>>(
    faults: &Faults,
    key: &str,
    given: &Given<String>,
    item: Place,
) -> Option<T> {
    if given.is_absent() {
        missing(faults, key, item);
    }
    parse(faults, key, given)
}

/// A key of a map whose entries templates know by name; 1 to 64 letters.
pub(super) fn template_name<'a>(
    faults: &Faults,
    key: &str,
    given: &'a Given<String>,
) -> Option<(Place, &'a str)> {
    let (place, name) = given.good()?;
    let sound = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !sound {
        let remedy = "use letters, digits and underscores, a letter first";
        let problem = "is not a name that templates can use";
        faults.add(place, key, name, problem, remedy);
    }
    sound.then_some((place, name))
}

/// Names a key that must be there and isn't.
pub(super) fn missing(faults: &Faults, key: &str, item: Place) {
    let problem = format!("has no {key}");
    faults.add(item, "", "this entry", problem, format!("add `{key}:`"));
}

/// Parses an IPv4 address that may be absent.
pub(super) fn address(faults: &Faults, key: &str, given: &Given<String>) -> Option<Ipv4Addr> {
    let (place, text) = given.good()?;
    let parsed = text.parse().map_err(|_| {
        Malformed::new(
            "IPv4 address",
            text,
            "write four numbers from 0 to 255, such as 10.107.0.20",
        )
    });
    judged(faults, key, place, parsed)
}

/// Parses an address of either kind that may be absent.
pub(super) fn ip_address(faults: &Faults, key: &str, given: &Given<String>) -> Option<IpAddr> {
    let (place, text) = given.good()?;
    let rule = "write it without a prefix, such as 10.107.0.254 or 2001:db8::1";
    let parsed = text
        .parse()
        .map_err(|_| Malformed::new("IP address", text, rule));
    judged(faults, key, place, parsed)
}

/// Parses an address of either kind with the prefix of its network.
pub(super) fn network_of(faults: &Faults, key: &str, place: Place, text: &str) -> Option<IpNet> {
    let rule = "write it with the prefix of its network, such as 10.107.0.1/24 or 2001:db8::1/64";
    let parsed = text
        .parse()
        .map_err(|_| Malformed::new("address with a prefix", text, rule));
    judged(faults, key, place, parsed)
}

/// `90s`, `30m`, `12h` or `7d` in seconds.
pub(super) fn seconds(text: &str) -> Option<u32> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    text.strip_suffix(unit)?
        .parse::<u32>()
        .ok()?
        .checked_mul(seconds)
}

/// Parses each value of a list; those that fail are left out.
pub(super) fn list<T>(
    faults: &Faults,
    key: &str,
    given: &Given<Vec<Given<String>>>,
    one: impl Fn(&Faults, &str, &Given<String>) -> Option<T>,
) -> Vec<T> {
    let values = given.value().map(Vec::as_slice).unwrap_or_default();
    values
        .iter()
        .filter_map(|value| one(faults, key, value))
        .collect()
}

/// Loaders by architecture code.
pub(super) fn loaders(faults: &Faults, given: &Given<Table<String>>) -> LoaderTable {
    let mut table = LoaderTable::new();
    for (key, value) in given.value().map_or(&[][..], |table| &table.0) {
        let Some((place, text)) = key.good() else {
            continue;
        };
        let Ok(code) = text.parse::<u16>() else {
            faults.add(
                place,
                "loaders",
                text,
                "is not an architecture code",
                "write a number of DHCP option 93, such as 7 for x86_64 UEFI or 0 for BIOS",
            );
            continue;
        };
        if let Some(loader) = parse(faults, "loaders", value) {
            table.insert(code, loader);
        }
    }
    table
}

/// A disk rule: one of its three keys.
pub(super) fn disk(faults: &Faults, given: &Given<file::Disk>) -> Option<DiskRule> {
    let (place, disk) = given.good()?;
    let file::Disk { serial, wwn, path } = disk;
    let rules: Vec<_> = [("serial", serial), ("wwn", wwn), ("path", path)]
        .into_iter()
        .filter_map(|(key, given)| given.good().map(|(place, text)| (key, place, text)))
        .collect();
    let [(key, at, text)] = rules[..] else {
        let bad = [serial, wwn, path]
            .into_iter()
            .any(|g| matches!(g, Given::Bad(_)));
        if !bad {
            faults.add(
                place,
                "disk",
                "",
                "must be told by exactly one of serial, wwn and path",
                "keep the one that holds for this drive alone",
            );
        }
        return None;
    };
    let refuse = |problem, remedy| {
        faults.add(at, key, text, problem, remedy);
        None
    };
    let printable = text.bytes().all(|b| b.is_ascii_graphic());
    match key {
        _ if text.is_empty() || text.len() > 128 || !printable => refuse(
            "is not 1 to 128 printable letters",
            "copy it from `lsblk -o NAME,SERIAL,WWN` on the machine",
        ),
        "serial" => Some(DiskRule::Serial(text.clone())),
        "wwn" => {
            let digits = text.strip_prefix("0x").unwrap_or_default();
            if (16..=32).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                Some(DiskRule::Wwn(text.to_ascii_lowercase()))
            } else {
                refuse(
                    "is not a World Wide Name",
                    "write 0x and 16 or 32 hexadecimal digits, as `lsblk -o NAME,WWN` shows it",
                )
            }
        }
        _ if text.starts_with("/dev/disk/by-") && !text.contains("..") => {
            Some(DiskRule::Path(text.clone()))
        }
        _ => refuse(
            "may mean another disk after a reboot",
            "name a path under /dev/disk/by-id or /dev/disk/by-path",
        ),
    }
}

fn judged<T>(faults: &Faults, key: &str, place: Place, parsed: Result<T, Malformed>) -> Option<T> {
    parsed
        .inspect_err(|malformed| faults.add_malformed(place, key, malformed))
        .ok()
}
