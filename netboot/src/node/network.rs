//! A machine's own network: what its system makes of its cards, the addresses on it, and the one way out.
//!
//! ```text
//!   lan0 (card)  10.107.0.21  provisioning, the boot link
//!     `- lan0.200 (VLAN)  10.200.0.21  storage
//!   lan1, lan2 (cards) -> bond0  203.0.113.21  public, `default_route: true`: the only default route
//! ```
//!
//! DHCP and the documents are made from the same answer here, so a machine that asks on every leg and one that is
//! told by a file come to the same routes.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::link::{Link, LinkKind, MAIN_TABLE, Route};
use crate::net::{Destination, Hostname, LinkName};
use crate::node::{NodeLink, NodeSpec};
use crate::spec::{Network, SiteSpec};

/// Ethernet's own largest packet; a card that nothing is said of carries this much (IEEE 802.3, 3.2.7).
const ETHERNET_MTU: u32 = 1500;

/// What one machine's system is told of its network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// Its links, in the inventory's order.
    pub links: Vec<Link>,
    /// Servers of the network that leads out, else of the boot network.
    pub dns: Vec<IpAddr>,
    /// Domains in which short names are looked up, of the same network.
    pub search: Vec<Hostname>,
}

/// What a card is called whose name the inventory does not give, by its place in the list: `lan0`.
#[must_use]
pub fn card_name(index: usize) -> LinkName {
    let name = format!("lan{}", index % 1_000_000);
    name.parse()
        .expect("three letters and six digits are a link's name")
}

impl Network {
    /// The router for everything that no other route leads to. A route that the site gives for everywhere goes
    /// before `router`, as it does in every client (RFC 3442).
    #[must_use]
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        let everywhere = Destination::everywhere();
        let named = self.routes.iter().find(|(to, _)| *to == everywhere);
        named.map(|(_, via)| *via).or(self.router)
    }
}

impl SiteSpec {
    /// The one link of a machine that leads out, and its gateway: the link that the inventory names, else the
    /// boot link, else the first whose network has a router.
    #[must_use]
    pub fn way_out<'n>(&self, node: &'n NodeSpec) -> Option<(&'n NodeLink, Ipv4Addr)> {
        let led = |link: &'n NodeLink| Some((link, self.network(&link.network)?.gateway()?));
        match node.links.iter().find(|link| link.default_route) {
            Some(named) => led(named),
            None => node.links.iter().find_map(led),
        }
    }

    /// What a machine's system is told of its network.
    #[must_use]
    pub fn network_of(&self, node: &NodeSpec) -> NodeNetwork {
        let out = self.way_out(node).map(|(link, _)| link);
        let mut links = if node.system.is_empty() {
            node.links.iter().enumerate().map(plain_card).collect()
        } else {
            node.system.clone()
        };
        for (index, link) in links.iter_mut().enumerate() {
            let bears = |leg: &&NodeLink| match &leg.name {
                Some(name) => *name == link.name,
                None => node.links.get(index).is_some_and(|here| here == *leg),
            };
            let leg = node.links.iter().find(bears);
            if let Some((leg, network)) =
                leg.and_then(|leg| Some((leg, self.network(&leg.network)?)))
            {
                attach(link, leg, network, out == Some(leg));
            }
        }
        raise_parents(&mut links);
        let home = out.unwrap_or_else(|| node.boot_link());
        let home = self.network(&home.network);
        let (dns, search) = home.map_or((Vec::new(), Vec::new()), |network| {
            let domain = network.domain.iter().filter(|_| network.search.is_empty());
            (
                network.dns.iter().copied().map(IpAddr::V4).collect(),
                network.search.iter().chain(domain).cloned().collect(),
            )
        });
        NodeNetwork { links, dns, search }
    }
}

fn plain_card((index, leg): (usize, &NodeLink)) -> Link {
    Link {
        name: card_name(index),
        kind: LinkKind::Card {
            macs: leg.macs.clone(),
        },
        mtu: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    }
}

/// Puts on a link what its network gives it.
fn attach(link: &mut Link, leg: &NodeLink, network: &Network, leads_out: bool) {
    let net = Ipv4Net::new(leg.address, network.subnet.prefix())
        .expect("a subnet's prefix is at most 30 bits");
    link.addresses.push(IpNet::V4(net));
    link.mtu = link.mtu.or(network.mtu.map(u32::from));
    let route = |to: Destination, via| Route {
        to: IpNet::V4(to.prefix()),
        via: Some(IpAddr::V4(via)),
        source: None,
        metric: 0,
        table: MAIN_TABLE,
    };
    let everywhere = Destination::everywhere();
    let gateway = network.gateway().filter(|_| leads_out);
    let named = network.routes.iter().filter(|(to, _)| *to != everywhere);
    let routes = named
        .copied()
        .chain(gateway.map(|gateway| (everywhere, gateway)));
    link.routes.extend(routes.map(|(to, via)| route(to, via)));
}

/// A VLAN can't carry more than its parent, so a parent of which nothing is said carries as much as its VLANs.
fn raise_parents(links: &mut [Link]) {
    let wanted: Vec<(LinkName, u32)> = links
        .iter()
        .filter_map(|link| Some((link.kind.parent()?.clone(), link.mtu?)))
        .filter(|(_, mtu)| *mtu > ETHERNET_MTU)
        .collect();
    for (parent, mtu) in wanted {
        let parent = links.iter_mut().find(|link| link.name == parent);
        if let Some(parent) = parent.filter(|parent| parent.mtu.is_none_or(|has| has < mtu)) {
            parent.mtu = Some(mtu);
        }
    }
}
