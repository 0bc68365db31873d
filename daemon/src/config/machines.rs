//! The inventory to nodes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netboot::net::{MacAddress, Malformed, NetworkName};
use netboot::node::{NodeLink, NodeSpec};
use uuid::Uuid;

use super::fault::{Faults, Place};
use super::file;
use super::judge::{address, disk, list, loaders, missing, need, parse, template_name};
use super::networks::{SiteFile, Written};
use super::read::{Given, Table};

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
        mac,
        macs,
        address,
        network,
        links,
        profile,
        uuid,
        serial,
        hostname,
        variables: given_variables,
        loaders: table,
        disk: rule,
    } = &**entry;
    let name_parsed = need(faults, "name", name, place);
    let profile = need(faults, "profile", profile, place);
    let hostname = parse(faults, "hostname", hostname);
    let links = match links.good() {
        Some((place, links)) => {
            if let Some(flat) = [mac.place(), macs.place(), address.place(), network.place()]
                .into_iter()
                .flatten()
                .next()
            {
                faults.add(
                    flat,
                    "",
                    "this key",
                    "stands beside `links:`, which says the same",
                    "keep one of the two: move it into the first link",
                );
            }
            several(links, place, site, faults)
        }
        None if links.is_absent() => {
            let flat = Attachment {
                mac,
                macs,
                address,
                network,
            };
            flat.judge(place, site, faults).map(|link| vec![link])
        }
        None => None,
    };
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
    let variables = variables(given_variables, faults);
    let loaders = loaders(faults, table);
    let disk = disk(faults, rule);
    let name: netboot::net::NodeName = name_parsed?;
    Some(NodeSpec {
        // Every node's name is a sound label, so this parse never fails.
        hostname: hostname.or_else(|| name.as_str().parse().ok())?,
        name,
        links: links?,
        uuid,
        serial,
        profile: profile?,
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

fn several(
    links: &[Given<file::Link>],
    place: Place,
    site: &SiteFile,
    faults: &Faults,
) -> Option<Vec<NodeLink>> {
    if links.is_empty() {
        faults.add(
            place,
            "links",
            "",
            "is empty",
            "list the link the machine boots from",
        );
        return None;
    }
    // Each is judged before any is missed, so that all faults are named.
    let judged: Vec<Option<NodeLink>> = links
        .iter()
        .map(|given| {
            let (place, link) = given.good()?;
            let file::Link {
                mac,
                macs,
                address,
                network,
            } = link;
            let link = Attachment {
                mac,
                macs,
                address,
                network,
            };
            link.judge(place, site, faults)
        })
        .collect();
    judged.into_iter().collect()
}

struct Attachment<'a> {
    mac: &'a Given<String>,
    macs: &'a Given<Vec<Given<String>>>,
    address: &'a Given<String>,
    network: &'a Given<String>,
}

impl Attachment<'_> {
    fn judge(&self, place: Place, site: &SiteFile, faults: &Faults) -> Option<NodeLink> {
        let macs = self.mac_addresses(place, faults);
        if self.address.is_absent() {
            missing(faults, "address", place);
        }
        let network = self.network(site, faults);
        let address = address(faults, "address", self.address);
        Some(NodeLink {
            macs: macs?,
            network: network?,
            address: address?,
        })
    }

    fn mac_addresses(&self, place: Place, faults: &Faults) -> Option<Vec<MacAddress>> {
        let one: Option<MacAddress> = parse(faults, "mac", self.mac);
        let many = self.macs.value().map(Vec::as_slice).unwrap_or_default();
        let mut macs: Vec<MacAddress> = one.into_iter().collect();
        macs.extend(list(faults, "macs", self.macs, parse::<MacAddress>));
        let given = !self.mac.is_absent() || !many.is_empty() || matches!(self.macs, Given::Bad(_));
        if !given {
            missing(faults, "mac", place);
        }
        (!macs.is_empty()).then_some(macs)
    }

    /// The network that is named, else the one whose subnet holds the address.
    fn network(&self, site: &SiteFile, faults: &Faults) -> Option<NetworkName> {
        if let Some((_, name)) = self.network.good() {
            if site.broken.contains(name) {
                return None;
            }
            return parse(faults, "network", self.network);
        }
        if matches!(self.network, Given::Bad(_)) {
            return None;
        }
        let (place, text) = self.address.good()?;
        let address: Ipv4Addr = text.parse().ok()?;
        let holder = site
            .networks
            .iter()
            .find(|network| network.subnet.contains(address));
        let guessable = site.broken.is_empty() && !site.incomplete;
        if holder.is_none() && guessable {
            let subnets: Vec<String> = site
                .networks
                .iter()
                .take(10)
                .map(|network| format!("{} ({})", network.subnet, network.name))
                .collect();
            let remedy = format!("choose one in {}", subnets.join(", "));
            faults.add(
                place,
                "address",
                text,
                "is in no network of the site",
                remedy,
            );
        }
        holder.map(|network| network.name.clone())
    }
}

fn variables(given: &Given<Table<file::Text>>, faults: &Faults) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (key, value) in given.value().map_or(&[][..], |table| &table.0) {
        let Some((place, name)) = template_name(faults, "variables", key) else {
            continue;
        };
        let Some((place, file::Text(value))) = value.good() else {
            if value.is_absent() {
                faults.add(
                    place,
                    "variables",
                    name,
                    "has no value",
                    "write one, or \"\" for the empty text",
                );
            }
            continue;
        };
        if value.len() > VARIABLE_BYTES_MAX {
            let problem = format!("is {} bytes long", value.len());
            faults.add(place, name, "", problem, "keep a variable within 64 KiB");
            continue;
        }
        if variables.len() == VARIABLES_MAX {
            let remedy = "keep machines apart by profiles instead";
            faults.add(place, "variables", name, "is one too many", remedy);
            break;
        }
        variables.insert(name.to_owned(), value.clone());
    }
    variables
}
