//! `site.yaml`'s `balancer`, and the addresses and ports that two want.
//!
//! Where a listener will be follows from the site alone as long as the site makes the link or names the address; where it
//! does not, two that name the same network or link meet all the same. What can't be known here is seen when the link
//! has its addresses: the second of the two is left out, and logged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ignition::platform::Platform;
use netboot::cluster::ClusterSpec;
use netboot::endpoint::Sides;
use netboot::net::{LinkName, NetworkName};
use netboot::spec::{Mode, Network};
use netboot::zone::Balanced;

use super::BalancerEngine;
use super::clusters::Clusters;
use super::dns::links_without_machines;
use super::fault::{Faults, Place};
use super::file;
use super::judge::{address, list, missing};
use super::read::Given;
use super::site::SiteFile;

/// More addresses than these are no balancer's.
const ADDRESSES_MAX: usize = 8;
/// The ports whose servers may be told to expect the PROXY protocol (openshift/api, operator/v1/types_ingress.go,
/// `HostNetworkStrategy.Protocol`); Kubernetes' API and OKD's machine-config server know none.
const INGRESS: [u16; 2] = [80, 443];

/// Judges `balancer` into the site's settings; its networks are judged already.
pub(super) fn judge(given: &Given<file::Balancer>, site: &mut SiteFile, faults: &Faults) {
    let Some((item, balancer)) = given.good() else {
        return;
    };
    let file::Balancer {
        engine,
        public,
        proxy_protocol,
        addresses,
        public_addresses,
    } = balancer;
    site.settings.balancer = match engine.value() {
        Some(file::BalancerEngine::Off) => BalancerEngine::Off,
        Some(file::BalancerEngine::External) => BalancerEngine::External,
        Some(file::BalancerEngine::Haproxy) => BalancerEngine::Haproxy,
        Some(file::BalancerEngine::Embedded) | None => BalancerEngine::Embedded,
    };
    let links = links_without_machines(
        public,
        &site.networks,
        "name a link on which no machine boots: machines reach every port without it, and there 22623 would be public",
        faults,
    );
    site.settings.public_links = links.iter().cloned().collect();
    if site.settings.balancer.is_ours() {
        site.dns.met_on = links;
    }
    for (place, port) in proxy_protocol
        .value()
        .into_iter()
        .flatten()
        .filter_map(Given::good)
    {
        if INGRESS.contains(port) {
            site.proxied.insert(*port);
            continue;
        }
        let problem = "is answered by servers that don't know the PROXY protocol";
        let remedy = "name 80 and 443, and set the routers to expect it: `endpointPublishingStrategy.hostNetwork.protocol: PROXY`";
        faults.add(place, "proxy_protocol", &port.to_string(), problem, remedy);
    }
    let elsewhere = site.settings.balancer == BalancerEngine::External;
    let (inside, outside) = (
        list(faults, "addresses", addresses, address),
        list(faults, "public_addresses", public_addresses, address),
    );
    let keys = [
        ("addresses", addresses.place(), elsewhere),
        ("public_addresses", public_addresses.place(), elsewhere),
        ("public", public.place(), !elsewhere),
    ];
    for (key, place, may) in keys {
        if let Some(place) = place.filter(|_| !may) {
            let (problem, remedy) = match elsewhere {
                true => (
                    "is for a balancer of this bastion's",
                    "write `public_addresses` of the other balancer instead",
                ),
                false => (
                    "is of a balancer elsewhere",
                    "set `engine: external`, or remove it",
                ),
            };
            faults.add(place, key, "", problem, remedy);
        }
    }
    for (key, given, found) in [
        ("addresses", addresses, &inside),
        ("public_addresses", public_addresses, &outside),
    ] {
        let unlike = given.value().map_or(0, Vec::len) > ADDRESSES_MAX
            || (given.value().is_some_and(Vec::is_empty) && found.is_empty());
        if let Some(place) = given.place().filter(|_| unlike) {
            let problem = format!("has {} addresses", given.value().map_or(0, Vec::len));
            faults.add(place, key, "", problem, "give it 1 to 8");
        }
    }
    if elsewhere && addresses.is_absent() {
        missing(faults, "addresses", item);
    }
    site.dns.balanced = elsewhere.then_some(Balanced { inside, outside });
}

/// Where something listens, as far as the site says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spot<'a> {
    Address(Ipv4Addr),
    /// The bastion's address in this network.
    In(&'a NetworkName),
    /// The first address of this link.
    First(&'a LinkName),
}

/// Who listens there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owner<'a> {
    Cluster(&'a str),
    Site(&'static str),
}

/// Refuses definitions whose ports another one has already, or the site itself.
pub(super) fn no_port_twice(site: &SiteFile, clusters: &Clusters, faults: &Faults) {
    if site.settings.balancer == BalancerEngine::Off {
        return;
    }
    let mut owners: BTreeMap<(Spot<'_>, u16), Owner<'_>> = BTreeMap::new();
    if site.settings.balancer != BalancerEngine::External {
        let settings = &site.settings;
        let ports = [
            ("http.port", settings.http_port),
            ("http.tls_port", settings.tls_port),
            ("the port of Talos' events", settings.events_port),
        ];
        for network in site.networks.iter().filter(|n| n.mode != Mode::Off) {
            for (key, port) in ports {
                owners.insert((private(site, network), port), Owner::Site(key));
            }
        }
    }
    let mut told = BTreeSet::new();
    for (index, cluster) in clusters.clusters.iter().enumerate() {
        let place = clusters.place_of(index, None, "network", "");
        for (spot, port) in listeners(site, cluster) {
            let owner = Owner::Cluster(cluster.name.as_str());
            match owners.get(&(spot.clone(), port)) {
                None => drop(owners.insert((spot, port), owner)),
                Some(first) if *first == owner => {}
                Some(first) => {
                    if told.insert((first.clone(), owner)) {
                        refuse(
                            &spot,
                            port,
                            first,
                            cluster,
                            place.unwrap_or_default(),
                            faults,
                        );
                    }
                }
            }
        }
    }
}

fn refuse(
    spot: &Spot<'_>,
    port: u16,
    first: &Owner<'_>,
    cluster: &ClusterSpec,
    place: Place,
    faults: &Faults,
) {
    let (who, remedy) = match first {
        Owner::Cluster(name) => (
            format!("cluster {name} does"),
            match spot {
                Spot::First(link) => format!(
                    "take {link} out of `balancer.public`: only one cluster of the two can be met there"
                ),
                Spot::In(_) => "give one of the two a network of its own".to_owned(),
                Spot::Address(_) => {
                    "give one of the two a network of its own; by `balancer.addresses` and `public` only one can be met"
                        .to_owned()
                }
            },
        ),
        Owner::Site(key) => (
            format!("this bastion itself does ({key})"),
            format!("set {key} in site.yaml to a port that no cluster has, such as 8080"),
        ),
    };
    let problem = format!("would listen on port {port} {spot}, where {who}");
    faults.add(place, "network", cluster.name.as_str(), problem, remedy);
}

fn listeners<'a>(site: &'a SiteFile, cluster: &'a ClusterSpec) -> Vec<(Spot<'a>, u16)> {
    let ports = cluster.platform.parse().map_or(Vec::new(), Platform::ports);
    let network = site.networks.iter();
    let network = network
        .filter(|network| network.name == cluster.network)
        .map(|network| private(site, network));
    let (inside, outside): (Vec<_>, Vec<_>) = match &site.dns.balanced {
        Some(Balanced { inside, outside }) => {
            let all =
                |addresses: &[Ipv4Addr]| addresses.iter().copied().map(Spot::Address).collect();
            (all(inside), all(outside))
        }
        None => {
            let links = site.settings.public_links.iter();
            (
                network.collect(),
                links.map(|link| first(site, link)).collect(),
            )
        }
    };
    let of_port = |port: &netboot::endpoint::Port| {
        let outside = match port.sides {
            Sides::Both if cluster.public => &outside[..],
            Sides::Both | Sides::Private => &[],
        };
        let spots = inside.iter().chain(outside).cloned();
        spots.map(|spot| (spot, port.port)).collect::<Vec<_>>()
    };
    ports.iter().flat_map(of_port).collect()
}

/// Where the bastion is met by a network's machines.
fn private<'a>(site: &SiteFile, network: &'a Network) -> Spot<'a> {
    if network.relayed {
        return first(site, &network.link);
    }
    let addresses = addresses(site, &network.link);
    let inside = |address: &Ipv4Addr| network.subnet.net().contains(address);
    match addresses.into_iter().find(inside) {
        Some(address) => Spot::Address(address),
        None => Spot::In(&network.name),
    }
}

fn first<'a>(site: &SiteFile, link: &'a LinkName) -> Spot<'a> {
    match addresses(site, link).first() {
        Some(address) => Spot::Address(*address),
        None => Spot::First(link),
    }
}

/// The addresses that the site gives a link.
fn addresses(site: &SiteFile, link: &LinkName) -> Vec<Ipv4Addr> {
    let made = site.host.spec.links.iter();
    let made = made.filter(|made| made.link.name == *link);
    made.flat_map(|made| &made.link.addresses)
        .filter_map(|address| match address {
            ipnet::IpNet::V4(address) => Some(address.addr()),
            ipnet::IpNet::V6(_) => None,
        })
        .collect()
}

impl fmt::Display for Spot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "of {address}"),
            Self::In(network) => write!(f, "of this bastion's address in network {network}"),
            Self::First(link) => write!(f, "of link {link}"),
        }
    }
}
