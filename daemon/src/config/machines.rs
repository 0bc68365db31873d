//! The inventory to nodes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netboot::net::{MacAddress, Malformed};
use netboot::node::NodeSpec;
use uuid::Uuid;

use super::fault::{Faults, Place};
use super::file;
use super::judge::{disk, loaders, need, parse, template_name};
use super::node_links::{self, NodeLinks};
use super::read::{Given, Table};
use super::site::{SiteFile, Written};

/// Values for templates on one machine, and bytes of one value.
const VARIABLES_MAX: usize = 256;
const VARIABLE_BYTES_MAX: usize = 64 << 10;

/// Judges one machine; `None` when it is too faulty to be compared with others.
pub(super) fn judge(
    written: &Written<Box<file::Machine>>,
    site: &SiteFile,
    faults: &Faults,
) -> Option<NodeSpec> {
    let Written { place, entry } = written;
    let place = *place;
    let file::Machine {
        name,
        profile,
        labels: given_labels,
        rack,
        uuid,
        serial,
        hostname,
        variables: given_variables,
        loaders: table,
        disk: rule,
        // How it is wired is judged on its own.
        mac: _,
        macs: _,
        address: _,
        network: _,
        links: _,
    } = &**entry;
    let name_parsed = need(faults, "name", name, place);
    let profile_parsed = parse(faults, "profile", profile);
    let hostname = parse(faults, "hostname", hostname);
    let links = node_links::judge(entry, place, site, faults);
    let uuid = uuid.good().and_then(|(place, text)| {
        let rule = "write it as `dmidecode -s system-uuid` prints it";
        Uuid::try_parse(text)
            .inspect_err(|_| {
                faults.add_malformed(place, "uuid", &Malformed::new("UUID", text, rule));
            })
            .ok()
    });
    let serial = serial.good().and_then(|(place, text)| {
        let sound = (1..=64).contains(&text.trim().len()) && !text.chars().any(char::is_control);
        if !sound {
            faults.add(
                place,
                "serial",
                text,
                "is not 1 to 64 printable letters",
                "write it as `dmidecode -s system-serial-number` prints it",
            );
        }
        sound.then(|| text.trim().to_owned())
    });
    let variables = texts("variables", given_variables, faults);
    let labels = texts("labels", given_labels, faults);
    let rack = rack.good().map(|(_, text)| text.trim().to_owned());
    let loaders = loaders(faults, table);
    let disk = disk(faults, rule);
    let name: netboot::net::NodeName = name_parsed?;
    // A faulty name of a profile is told once, and must not make the machine one of the pool.
    if profile_parsed.is_none() && !profile.is_absent() {
        return None;
    }
    let NodeLinks { links, system } = links?;
    Some(NodeSpec {
        // Every node's name is a sound label, so this parse never fails.
        hostname: hostname.or_else(|| name.as_str().parse().ok())?,
        name,
        links,
        system,
        uuid,
        serial,
        profile: profile_parsed,
        labels,
        rack: rack.filter(|rack| !rack.is_empty()),
        variables,
        loaders,
        disk,
    })
}

impl Written<Box<file::Machine>> {
    /// Where the value stands that a contradiction is about.
    pub(super) fn place_of(&self, field: &str, value: &str) -> Place {
        let entry = &self.entry;
        let place = match field {
            "name" => entry.name.place(),
            "hostname" => entry.hostname.place().or(entry.name.place()),
            "profile" => entry.profile.place(),
            "uuid" => entry.uuid.place(),
            "macs" => self.mac_place(value),
            "address" => self.address_place(value),
            "network" => self.network_place(value),
            "variables" => entry.variables.place(),
            "labels" => entry.labels.place(),
            "default_route" => self.link_place(|link| match link.default_route.good() {
                Some((place, true)) => Some(place),
                Some((_, false)) | None => None,
            }),
            "id" => self.link_place(|link| {
                let (place, id) = link.vlan.value()?.id.good()?;
                (id.to_string() == value).then_some(place)
            }),
            _ => None,
        };
        place.unwrap_or(self.place)
    }

    fn links(&self) -> impl Iterator<Item = &file::Link> {
        self.entry
            .links
            .value()
            .into_iter()
            .flatten()
            .filter_map(Given::value)
    }

    fn link_place(&self, place: impl Fn(&file::Link) -> Option<Place>) -> Option<Place> {
        self.links().find_map(place)
    }

    fn mac_place(&self, value: &str) -> Option<Place> {
        let wanted: MacAddress = value.parse().ok()?;
        let single = std::iter::once(&self.entry.mac).chain(self.links().map(|link| &link.mac));
        let lists = std::iter::once(&self.entry.macs).chain(self.links().map(|link| &link.macs));
        // The last, since a MAC that one machine bears twice is at fault where it comes again.
        single
            .chain(lists.filter_map(Given::value).flatten())
            .filter_map(Given::good)
            .filter(|(_, text)| text.parse() == Ok(wanted))
            .map(|(place, _)| place)
            .max()
    }

    fn address_place(&self, value: &str) -> Option<Place> {
        let wanted: Ipv4Addr = value.parse().ok()?;
        std::iter::once(&self.entry.address)
            .chain(self.links().map(|link| &link.address))
            .filter_map(Given::good)
            .filter(|(_, text)| text.parse() == Ok(wanted))
            .map(|(place, _)| place)
            .max()
    }

    fn network_place(&self, value: &str) -> Option<Place> {
        std::iter::once(&self.entry.network)
            .chain(self.links().map(|link| &link.network))
            .filter_map(Given::good)
            .find(|(_, text)| *text == value)
            .map(|(place, _)| place)
    }
}

/// Values by name: the templates' variables, or the labels that clusters choose by.
pub(super) fn texts(
    field: &'static str,
    given: &Given<Table<file::Text>>,
    faults: &Faults,
) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for (key, value) in given.value().map_or(&[][..], |table| &table.0) {
        let Some((place, name)) = template_name(faults, field, key) else {
            continue;
        };
        let Some((place, file::Text(value))) = value.good() else {
            if value.is_absent() {
                let remedy = "write one, or \"\" for the empty text";
                faults.add(place, field, name, "has no value", remedy);
            }
            continue;
        };
        if value.len() > VARIABLE_BYTES_MAX {
            let problem = format!("is {} bytes long", value.len());
            faults.add(place, name, "", problem, "keep a value within 64 KiB");
            continue;
        }
        if texts.len() == VARIABLES_MAX {
            let remedy = "keep machines apart by profiles instead";
            faults.add(place, field, name, "is one too many", remedy);
            break;
        }
        texts.insert(name.to_owned(), value.clone());
    }
    texts
}
