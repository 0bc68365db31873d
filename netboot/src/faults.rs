//! The contradictions that only show when a site's parts are put side by side. Every one is reported
//! at once, each with the item, the value and the remedy; [`SiteSpec::new`] refuses a
//! site that has any.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::cluster::cluster_faults;
use crate::host::{HostSpec, host_faults};
use crate::link::LinkKind;
use crate::net::{NetworkName, nearest};
use crate::node::{NodeLink, NodeSpec, uuid_is_sound};
use crate::spec::{
    ConfigSource, Item, Mode, NODES_MAX, Network, Profile, Purpose, SiteParts, SiteSpec, SpecFault,
};

impl SiteSpec {
    /// Joins the parts, or names every contradiction between them.
    ///
    /// # Errors
    /// All faults at once: names, MACs, UUIDs or addresses used twice; an address outside its subnet, inside
    /// a lending range, or equal to a gateway; networks that overlap or share a link; unknown names; links of the bastion
    /// that stand in each other's way.
    pub fn new(parts: SiteParts) -> Result<Self, Vec<SpecFault>> {
        let faults = faults(&parts);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut spec = Self {
            admission: parts.admission,
            host: Arc::new(parts.host),
            dns: Arc::new(parts.dns),
            serve_time: parts.serve_time,
            proxied: parts.proxied,
            ..Self::default()
        };
        spec.clusters = parts
            .clusters
            .into_iter()
            .map(|cluster| (cluster.name.clone(), Arc::new(cluster)))
            .collect();
        spec.networks = parts
            .networks
            .into_iter()
            .map(|n| (n.name.clone(), Arc::new(n)))
            .collect();
        spec.profiles = parts
            .profiles
            .into_iter()
            .map(|p| (p.name.clone(), Arc::new(p)))
            .collect();
        for node in parts.nodes.into_iter().map(Arc::new) {
            for mac in node.macs() {
                spec.by_mac.insert(mac, Arc::clone(&node));
            }
            for link in &node.links {
                spec.by_address.insert(link.address, Arc::clone(&node));
            }
            if let Some(uuid) = node.uuid {
                spec.by_uuid.insert(uuid, Arc::clone(&node));
            }
            spec.nodes.insert(node.name.clone(), node);
        }
        Ok(spec)
    }
}

/// Everything that is wrong between the parts.
fn faults(parts: &SiteParts) -> Vec<SpecFault> {
    let mut found = Vec::new();
    let networks: BTreeMap<&NetworkName, &Network> = parts
        .networks
        .iter()
        .map(|network| (&network.name, network))
        .collect();
    if parts.nodes.len() > NODES_MAX {
        found.push(fault(
            Item::Node(NODES_MAX),
            "name",
            &parts.nodes[NODES_MAX].name,
            format!("is one machine more than the {NODES_MAX} that one bastion serves"),
            "split the site over several bastions",
        ));
    }
    network_faults(&parts.networks, &mut found);
    cluster_faults(parts, &mut found);
    host_faults(parts, &mut found);
    uniqueness_faults(parts, &mut found);
    for (index, node) in parts.nodes.iter().enumerate() {
        node_faults(Item::Node(index), node, &networks, parts, &mut found);
    }
    for (index, network) in parts.networks.iter().enumerate() {
        let Some(discovery) = &network.discovery else {
            continue;
        };
        let item = Item::Network(index);
        match parts
            .profiles
            .iter()
            .find(|profile| profile.name == *discovery)
        {
            None => found.push(unknown_profile(
                item,
                "discovery",
                discovery.as_str(),
                &parts.profiles,
            )),
            Some(profile) if profile.purpose == Purpose::Install => {
                let problem = "writes a disk, and a machine that is not listed must never lose one"
                    .to_owned();
                found.push(fault(
                    item,
                    "discovery",
                    discovery,
                    problem,
                    "give the profile `purpose: live`",
                ));
            }
            Some(_) => {}
        }
    }
    found
}

pub(crate) fn fault(
    item: Item,
    field: &'static str,
    value: &impl ToString,
    problem: String,
    remedy: impl Into<String>,
) -> SpecFault {
    SpecFault {
        item,
        field,
        value: value.to_string(),
        problem,
        remedy: remedy.into(),
        earlier: None,
    }
}

fn network_faults(networks: &[Network], found: &mut Vec<SpecFault>) {
    for (index, network) in networks.iter().enumerate() {
        let item = Item::Network(index);
        for earlier in &networks[..index] {
            if earlier.subnet.overlaps(network.subnet) {
                let problem = format!("overlaps {} of network {}", earlier.subnet, earlier.name);
                found.push(fault(
                    item,
                    "subnet",
                    &network.subnet,
                    problem,
                    "give each network addresses of its own",
                ));
            }
            if earlier.link == network.link && !earlier.relayed && !network.relayed {
                let problem = format!("is already the link of network {}", earlier.name);
                let remedy = "put each network on a link of its own, or mark one as relayed";
                found.push(fault(item, "link", &network.link, problem, remedy));
            }
        }
        if let Some(range) = network.range {
            let inside = network.subnet.has_station(range.first())
                && network.subnet.has_station(range.last());
            if !inside {
                let problem = format!("reaches outside subnet {}", network.subnet);
                found.push(fault(
                    item,
                    "range",
                    &range,
                    problem,
                    "choose both ends inside the subnet",
                ));
            }
            for taken in network
                .router
                .iter()
                .chain(&network.dns)
                .filter(|address| range.contains(**address))
            {
                let problem =
                    format!("lends {taken}, which the network's router or DNS server bears");
                found.push(fault(
                    item,
                    "range",
                    &range,
                    problem,
                    "move the range off that address",
                ));
            }
        }
        if network.mode == Mode::Pool && network.range.is_none() {
            let problem = "lends addresses and has no range".to_owned();
            found.push(fault(
                item,
                "mode",
                &"pool",
                problem,
                "add a range, or choose mode reservation",
            ));
        }
        if let Some(router) = network
            .router
            .filter(|router| !network.subnet.has_station(*router))
        {
            let problem = format!("is outside subnet {}", network.subnet);
            found.push(fault(
                item,
                "router",
                &router,
                problem,
                "name a router inside the subnet",
            ));
        }
    }
}

fn uniqueness_faults(parts: &SiteParts, found: &mut Vec<SpecFault>) {
    let mut again = |item, earlier, field, value: &dyn ToString, problem: String, remedy: &str| {
        found.push(SpecFault {
            earlier: Some(earlier),
            ..fault(item, field, &value.to_string(), problem, remedy)
        });
    };
    let mut seen = BTreeMap::new();
    for (index, network) in parts.networks.iter().enumerate() {
        let item = Item::Network(index);
        if let Some(earlier) = seen.insert(&network.name, item) {
            let problem = "names two networks".to_owned();
            again(
                item,
                earlier,
                "name",
                &network.name,
                problem,
                "rename one of them",
            );
        }
    }
    let mut seen = BTreeMap::new();
    for (index, profile) in parts.profiles.iter().enumerate() {
        let item = Item::Profile(index);
        if let Some(earlier) = seen.insert(&profile.name, item) {
            let problem = "names two profiles".to_owned();
            again(
                item,
                earlier,
                "name",
                &profile.name,
                problem,
                "rename one of them",
            );
        }
    }
    let (mut names, mut macs, mut addresses, mut uuids, mut hosts) = (
        BTreeMap::new(),
        BTreeMap::new(),
        BTreeMap::new(),
        BTreeMap::new(),
        BTreeMap::new(),
    );
    let owner = |earlier: usize| (Item::Node(earlier), &parts.nodes[earlier].name);
    for (index, node) in parts.nodes.iter().enumerate() {
        let item = Item::Node(index);
        let namesake = names.insert(&node.name, index);
        if let Some(earlier) = namesake {
            let problem = "names two machines".to_owned();
            again(
                item,
                Item::Node(earlier),
                "name",
                &node.name,
                problem,
                "rename one of them",
            );
        }
        // Two machines of one name have one host name too, which is no second fault.
        if let Some(earlier) = hosts
            .insert(&node.hostname, index)
            .filter(|_| namesake.is_none())
        {
            let (earlier, name) = owner(earlier);
            let problem = format!("is already the host name of machine {name}");
            let remedy = "give each machine a host name of its own";
            again(item, earlier, "hostname", &node.hostname, problem, remedy);
        }
        let mut legs = BTreeSet::new();
        for (mac, network) in node.links.iter().flat_map(|link| {
            let macs = link.macs.iter().copied();
            macs.map(|mac| (mac, &link.network))
        }) {
            // One card may have an address untagged and others on its VLANs, but not two on one network.
            let twice = !legs.insert((mac, network));
            if let Some(earlier) = macs
                .insert(mac, index)
                .filter(|earlier| *earlier != index || twice)
            {
                let (earlier, name) = owner(earlier);
                let problem = format!("is already a MAC address of machine {name}");
                again(
                    item,
                    earlier,
                    "macs",
                    &mac,
                    problem,
                    "remove it from one of the two",
                );
            }
        }
        for link in &node.links {
            if let Some(earlier) = addresses.insert(link.address, index) {
                let (earlier, name) = owner(earlier);
                let problem = format!("is already the address of machine {name}");
                let remedy = "give one of the two another address";
                again(item, earlier, "address", &link.address, problem, remedy);
            }
        }
        if let Some((uuid, earlier)) = node
            .uuid
            .and_then(|uuid| Some((uuid, uuids.insert(uuid, index)?)))
        {
            let (earlier, name) = owner(earlier);
            let problem = format!("is already the UUID of machine {name}");
            let remedy = "read both with `dmidecode -s system-uuid`; leave out one that lies";
            again(item, earlier, "uuid", &uuid, problem, remedy);
        }
    }
}

fn node_faults(
    item: Item,
    node: &NodeSpec,
    by_name: &BTreeMap<&NetworkName, &Network>,
    parts: &SiteParts,
    found: &mut Vec<SpecFault>,
) {
    let profiles = &parts.profiles;
    if node.links.is_empty() || node.links.iter().any(|link| link.macs.is_empty()) {
        let problem = "has a link without a MAC address".to_owned();
        found.push(fault(
            item,
            "macs",
            &node.name,
            problem,
            "list the MAC address of each of its links",
        ));
    }
    for link in &node.links {
        let Some(network) = by_name.get(&link.network) else {
            let known = by_name.keys().map(|name| name.as_str());
            let remedy = known_names(link.network.as_str(), known)
                + " otherwise add the network to site.yaml";
            found.push(fault(
                item,
                "network",
                &link.network,
                "is not a network of site.yaml".to_owned(),
                remedy,
            ));
            continue;
        };
        address_faults(item, link.address, network, &parts.networks, found);
        if link.default_route && network.gateway().is_none() {
            let problem = format!("is asked of network {}, which has no router", network.name);
            let remedy = "give the network a `router:`, or name another link";
            found.push(fault(item, "default_route", &true, problem, remedy));
        }
        tag_faults(item, node, link, network, &parts.host, found);
    }
    let own = node.profile.as_ref();
    let profile = own.map(|name| (name, profiles.iter().find(|profile| profile.name == *name)));
    match profile {
        Some((name, None)) => {
            found.push(unknown_profile(item, "profile", name.as_str(), profiles));
        }
        Some((name, Some(profile))) if matches!(profile.config, ConfigSource::Platform(_)) => {
            let problem = "has no config of its own, for it is a cluster's to write".to_owned();
            let remedy = "take `profile` out and let a cluster place the machine";
            found.push(fault(item, "profile", name, problem, remedy));
        }
        Some(_) | None => {}
    }
    if let Some(uuid) = node.uuid.filter(|uuid| !uuid_is_sound(*uuid)) {
        let problem = "is a UUID that many machines share".to_owned();
        found.push(fault(
            item,
            "uuid",
            &uuid,
            problem,
            "leave it out; the MAC address identifies the machine",
        ));
    }
}

/// Where the bastion's own link is a VLAN, whoever tags frames for its network must use that VLAN's id.
fn tag_faults(
    item: Item,
    node: &NodeSpec,
    leg: &NodeLink,
    network: &Network,
    host: &HostSpec,
    found: &mut Vec<SpecFault>,
) {
    let system = node
        .system
        .iter()
        .find(|link| leg.name.as_ref() == Some(&link.name));
    let bastion = host.link(&network.link);
    let (Some(LinkKind::Vlan { id, .. }), Some(LinkKind::Vlan { id: wanted, .. })) = (
        system.map(|link| &link.kind),
        bastion.map(|wanted| &wanted.link.kind),
    ) else {
        return;
    };
    if id != wanted {
        let problem = format!(
            "is not the VLAN of network {}: the bastion's {} has {}",
            network.name,
            network.link,
            wanted.get()
        );
        let remedy = "write the same id in both places";
        found.push(fault(item, "id", &id.get(), problem, remedy));
    }
}

fn address_faults(
    item: Item,
    address: Ipv4Addr,
    network: &Network,
    networks: &[Network],
    found: &mut Vec<SpecFault>,
) {
    if !network.subnet.has_station(address) {
        let problem = format!(
            "is not a station's address in subnet {} of network {}",
            network.subnet, network.name
        );
        found.push(fault(
            item,
            "address",
            &address,
            problem,
            "choose an address inside the subnet",
        ));
    }
    let lender = networks
        .iter()
        .find(|other| other.range.is_some_and(|range| range.contains(address)));
    if let Some((lender, range)) = lender.and_then(|lender| Some((lender, lender.range?))) {
        let problem = format!(
            "lies in the range {range} that network {} lends out",
            lender.name
        );
        found.push(fault(
            item,
            "address",
            &address,
            problem,
            "move it, or shrink the range",
        ));
    }
    if network.router == Some(address) || network.dns.contains(&address) {
        let problem = format!(
            "is the router's or a DNS server's in network {}",
            network.name
        );
        found.push(fault(
            item,
            "address",
            &address,
            problem,
            "choose an address of the machine's own",
        ));
    }
}

fn unknown_profile(item: Item, field: &'static str, name: &str, profiles: &[Profile]) -> SpecFault {
    let known = known_names(name, profiles.iter().map(|profile| profile.name.as_str()));
    fault(
        item,
        field,
        &name,
        "is not a profile of this site".to_owned(),
        format!("{known} otherwise write profiles/{name}.yaml"),
    )
}

/// What the unknown `name` may have been meant to be, from the names there are.
fn known_names<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    const LISTED_MAX: usize = 20;
    let known: Vec<&str> = known.collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "the site has none yet;".to_owned(),
        None if known.len() > LISTED_MAX => {
            format!("none of the {} there are is near;", known.len())
        }
        None => format!("choose one of {};", known.join(", ")),
    }
}
