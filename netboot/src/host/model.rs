//! The kernel as this project knows it: what each operation changes, what the kernel does besides, and
//! when it refuses.
//!
//! Ugly facts, from Linux 6.1 to 6.12 (`net/8021q/vlan.c`, `net/bridge/br_if.c`, `drivers/net/bonding/bond_main.c`,
//! `net/ipv4/devinet.c`, `net/ipv4/fib_semantics.c`, `net/ipv6/addrconf.c`):
//! - a link that goes down loses its routes and its IPv6 addresses, and takes the VLANs on it along; coming up, it
//!   brings all of them up;
//! - a VLAN never has a larger MTU than its parent, and shrinks with it;
//! - a port joins a bond only while it is down; the bond brings it up and gives it its own MTU, and
//!   leaves it down when it lets it go;
//! - the first IPv4 address of a subnet takes the others along, unless `promote_secondaries` is set;
//! - an IPv4 route goes with the address that it names as its source, an IPv6 one stays and names none, and the last
//!   IPv4 address of a link takes all IPv4 routes. Which tables that reaches differs by version, so plans remove such
//!   routes first.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::operation::Operation;
use super::state::{Address, HostState, LinkState, Owned, PresentKind};
use crate::link::{LinkKind, MAIN_TABLE, Route};
use crate::net::{LinkName, MacAddress};

/// Bytes that a link may carry at most: `ETH_MIN_MTU` to `ETH_MAX_MTU`.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;
/// What an Ethernet link starts with (`ETH_DATA_LEN`).
const MTU_DEFAULT: u32 = 1500;

const TOO_SMALL: &str = "the VLAN's parent has a smaller MTU";

/// Why the kernel would refuse an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inapplicable(&'static str);

/// Passes when `holds`.
fn need(holds: bool, otherwise: &'static str) -> Result<(), Inapplicable> {
    holds.then_some(()).ok_or(Inapplicable(otherwise))
}

impl HostState {
    /// Changes this state as the kernel would.
    ///
    /// # Errors
    /// When the kernel would refuse, or the operation touches what is not ours; then nothing has changed.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), Inapplicable> {
        match operation {
            Operation::AddLink {
                link,
                kind,
                index,
                mac,
            } => self.add_link(link, kind, *index, *mac),
            Operation::RemoveLink { link } => {
                need(self.link(link)?.ours, "the link is not ours")?;
                self.remove_link(link);
                Ok(())
            }
            Operation::SetUp { link, up: true } => self.bring_up(link),
            Operation::SetUp { link, up: false } => {
                self.link(link)?;
                self.bring_down(link);
                Ok(())
            }
            Operation::SetMtu { link, mtu } => self.set_mtu(link, *mtu),
            Operation::SetMaster { link, master } => self.set_master(link, master.as_ref()),
            Operation::AddAddress { link, address } => {
                let addresses = &mut self.link_mut(link)?.addresses;
                let fresh = addresses.iter().all(|there| there.net != *address);
                need(fresh, "the link has that address")?;
                insert_address(addresses, *address, true);
                Ok(())
            }
            Operation::RemoveAddress { link, address } => self.remove_address(link, *address),
            Operation::AddRoute { link, route } => {
                self.can_route(link, route)?;
                let route = owned(*route);
                self.link_mut(link)?.routes.insert(route);
                Ok(())
            }
            Operation::RemoveRoute { link, route } => {
                let there = self.link_mut(link)?.routes.remove(&owned(*route));
                need(there, "there is no such route of ours")
            }
            Operation::AddRule { rule } => {
                let fresh = self.rules.iter().all(|there| there.what != *rule);
                need(fresh, "there is such a rule")?;
                self.rules.insert(owned(*rule));
                Ok(())
            }
            Operation::RemoveRule { rule } => {
                let there = self.rules.remove(&owned(*rule));
                need(there, "there is no such rule of ours")
            }
            Operation::SetForwarding { link, on } => {
                self.link_mut(link)?.forwarding = *on;
                Ok(())
            }
            Operation::SetReversePath { link, rp_filter } => {
                self.link_mut(link)?.rp_filter = *rp_filter;
                Ok(())
            }
            Operation::SetRuleset { ruleset } => {
                self.ruleset.clone_from(ruleset);
                Ok(())
            }
        }
    }

    fn link(&self, name: &LinkName) -> Result<&LinkState, Inapplicable> {
        self.links
            .get(name)
            .ok_or(Inapplicable("there is no such link"))
    }

    fn link_mut(&mut self, name: &LinkName) -> Result<&mut LinkState, Inapplicable> {
        self.links
            .get_mut(name)
            .ok_or(Inapplicable("there is no such link"))
    }

    fn add_link(
        &mut self,
        name: &LinkName,
        kind: &LinkKind,
        index: Option<u32>,
        mac: Option<MacAddress>,
    ) -> Result<(), Inapplicable> {
        need(!self.links.contains_key(name), "there is such a link")?;
        let mut links = self.links.values();
        let taken = index.is_some_and(|index| links.any(|link| link.index == index));
        need(!taken, "another link has that index")?;
        match kind {
            LinkKind::Card { .. } => return Err(Inapplicable("nobody can make a card")),
            LinkKind::Vlan { parent, .. } => {
                self.link(parent)?;
                let wanted = PresentKind::of(kind);
                let taken = self.links.values().any(|link| link.kind == wanted);
                need(!taken, "the parent has a VLAN of that id")?;
            }
            LinkKind::Bridge { .. } | LinkKind::Bond { .. } => {}
        }
        let link = self.fresh_link(kind, index, mac);
        self.links.insert(name.clone(), link);
        Ok(())
    }

    /// A link as the kernel makes it: down, and bare.
    pub(super) fn fresh_link(
        &self,
        kind: &LinkKind,
        index: Option<u32>,
        mac: Option<MacAddress>,
    ) -> LinkState {
        let parent = kind.parent().and_then(|parent| self.links.get(parent));
        LinkState {
            index: index.unwrap_or_default(),
            ours: true,
            kind: PresentKind::of(kind),
            mac: mac.or(parent.and_then(|parent| parent.mac)),
            up: false,
            mtu: parent.map_or(MTU_DEFAULT, |parent| parent.mtu),
            master: None,
            addresses: Vec::new(),
            routes: BTreeSet::new(),
            forwarding: self.defaults.forwarding,
            rp_filter: self.defaults.rp_filter,
        }
    }

    fn remove_link(&mut self, name: &LinkName) {
        let above: Vec<_> = self.vlans_on(name).map(|(vlan, _)| vlan.clone()).collect();
        for vlan in &above {
            self.remove_link(vlan);
        }
        let ports: Vec<_> = self.ports_of(name).map(|(port, _)| port.clone()).collect();
        for port in &ports {
            self.free(port);
        }
        self.links.remove(name);
    }

    fn bring_up(&mut self, name: &LinkName) -> Result<(), Inapplicable> {
        if let Some(parent) = self.link(name)?.kind.parent() {
            need(self.link(parent)?.up, "the VLAN's parent is down")?;
        }
        self.raise(name);
        Ok(())
    }

    /// Brings a link up, and with it the VLANs on it.
    pub(super) fn raise(&mut self, name: &LinkName) {
        let Some(link) = self.links.get_mut(name) else {
            return;
        };
        if std::mem::replace(&mut link.up, true) {
            return;
        }
        let above: Vec<_> = self.vlans_on(name).map(|(vlan, _)| vlan.clone()).collect();
        for vlan in &above {
            self.raise(vlan);
        }
    }

    fn bring_down(&mut self, name: &LinkName) {
        let Some(link) = self.links.get_mut(name) else {
            return;
        };
        link.up = false;
        link.routes.clear();
        link.addresses
            .retain(|address| address.net.addr().is_ipv4());
        let above: Vec<_> = self.vlans_on(name).map(|(vlan, _)| vlan.clone()).collect();
        for vlan in &above {
            self.bring_down(vlan);
        }
    }

    fn set_mtu(&mut self, name: &LinkName, mtu: u32) -> Result<(), Inapplicable> {
        need(MTU.contains(&mtu), "an MTU is 68 to 65535")?;
        let link = self.link(name)?;
        let ports = self.ports_of(name).filter(|_| link.kind.is_bond());
        let most = ports.map(|(_, port)| port).chain([link]);
        let most = most.filter_map(|link| self.most_of(link)).min();
        need(most.is_none_or(|most| mtu <= most), TOO_SMALL)?;
        let is_bond = link.kind.is_bond();
        self.resize(name, mtu);
        if is_bond {
            let ports: Vec<_> = self.ports_of(name).map(|(port, _)| port.clone()).collect();
            for port in &ports {
                self.resize(port, mtu);
            }
        }
        Ok(())
    }

    /// Whether a link is another or lies on it, as its VLAN, its bridge or bond, or through such ones.
    pub(super) fn lies_on(&self, upper: &LinkName, lower: &LinkName) -> bool {
        let (mut seen, mut next) = (BTreeSet::new(), vec![upper]);
        while let Some(name) = next.pop() {
            if seen.insert(name) {
                let link = self.links.get(name);
                next.extend(link.and_then(|link| link.kind.parent()));
                next.extend(self.ports_of(name).map(|(port, _)| port));
            }
        }
        seen.contains(lower)
    }

    /// The largest MTU that a link can have: a VLAN's is its parent's.
    pub(super) fn most_of(&self, link: &LinkState) -> Option<u32> {
        let parent = self.links.get(link.kind.parent()?)?;
        Some(parent.mtu)
    }

    /// Sets the MTU of a link, and shrinks the VLANs on it to it.
    pub(super) fn resize(&mut self, name: &LinkName, mtu: u32) {
        let Some(link) = self.links.get_mut(name) else {
            return;
        };
        link.mtu = mtu;
        let above: Vec<_> = self
            .vlans_on(name)
            .filter(|(_, vlan)| vlan.mtu > mtu)
            .map(|(vlan, _)| vlan.clone())
            .collect();
        for vlan in &above {
            self.resize(vlan, mtu);
        }
    }

    fn set_master(
        &mut self,
        name: &LinkName,
        master: Option<&LinkName>,
    ) -> Result<(), Inapplicable> {
        let link = self.link(name)?;
        let Some(master) = master else {
            need(link.master.is_some(), "the link is nobody's port")?;
            self.free(name);
            return Ok(());
        };
        need(link.master.is_none(), "the link is a port already")?;
        need(!self.lies_on(name, master), "the link would lie on itself")?;
        let up = link.up;
        let joined = self.link(master)?;
        let mtu = joined.mtu;
        match &joined.kind {
            PresentKind::Known(LinkKind::Bond { .. }) => {
                need(!up, "a port joins a bond while it is down")?;
                let most = self.most_of(link);
                need(most.is_none_or(|most| mtu <= most), TOO_SMALL)?;
                self.bring_up(name)?;
                self.resize(name, mtu);
            }
            PresentKind::Known(LinkKind::Bridge { .. }) => {}
            PresentKind::Known(LinkKind::Card { .. } | LinkKind::Vlan { .. })
            | PresentKind::Other(_) => {
                return Err(Inapplicable("only bridges and bonds have ports"));
            }
        }
        self.link_mut(name)?.master = Some(master.clone());
        Ok(())
    }

    fn free(&mut self, name: &LinkName) {
        let master = self.links.get_mut(name).and_then(|link| link.master.take());
        if master.is_some_and(|master| self.is_bond(&master)) {
            self.bring_down(name);
        }
    }

    fn remove_address(&mut self, name: &LinkName, net: IpNet) -> Result<(), Inapplicable> {
        let addresses = &mut self.link_mut(name)?.addresses;
        let place = addresses
            .iter()
            .position(|there| there.net == net && there.ours)
            .ok_or(Inapplicable("the link has no such address of ours"))?;
        let first = addresses
            .iter()
            .position(|there| same_subnet(there.net, net));
        let mut gone = vec![addresses.remove(place)];
        if first == Some(place) && net.addr().is_ipv4() {
            gone.extend(addresses.extract_if(.., |there| same_subnet(there.net, net)));
        }
        if net.addr().is_ipv4() && addresses.iter().all(|there| there.net.addr().is_ipv6()) {
            let routes = &mut self.link_mut(name)?.routes;
            routes.retain(|route| route.what.to.addr().is_ipv6());
        }
        let named = |route: &Owned<Route>| {
            let mut gone = gone.iter().map(|address| Some(address.net.addr()));
            gone.any(|address| address == route.what.source)
        };
        for link in self.links.values_mut() {
            let routes = std::mem::take(&mut link.routes).into_iter();
            link.routes = routes
                .filter(|route| !named(route) || route.what.to.addr().is_ipv6())
                .map(|mut route| {
                    if named(&route) {
                        route.what.source = None;
                    }
                    route
                })
                .collect();
        }
        Ok(())
    }

    /// The routes of ours that the kernel may remove with an address.
    pub(super) fn leaning_on(&self, name: &LinkName, net: IpNet) -> Vec<(LinkName, Route)> {
        let of_family = |other: IpNet| other.addr().is_ipv4() == net.addr().is_ipv4();
        let mut leaning = Vec::new();
        for (other, link) in &self.links {
            let near = other == name;
            let mut addresses = link.addresses.iter();
            let last = near && !addresses.any(|there| there.net != net && of_family(there.net));
            let routes = link.routes.iter().filter(|route| route.ours);
            let routes = routes.map(|route| route.what).filter(|route| {
                let by = route.via.is_some_and(|via| net.contains(&via));
                route.source == Some(net.addr()) || near && by || last && of_family(route.to)
            });
            leaning.extend(routes.map(|route| (other.clone(), route)));
        }
        leaning
    }

    /// Whether the kernel would take a route that leaves by this link.
    pub(super) fn can_route(&self, name: &LinkName, route: &Route) -> Result<(), Inapplicable> {
        let link = self.link(name)?;
        need(link.up, "the link is down")?;
        let rival = self.routes_like(route).next();
        need(rival.is_none(), "a route of that key is there")?;
        if let Some(via) = route.via {
            need(
                link.reaches(via, route.table),
                "the gateway is on no network of the link",
            )?;
        }
        if let Some(source) = route.source {
            let mut addresses = self.links.values().flat_map(|link| &link.addresses);
            let borne = addresses.any(|address| address.net.addr() == source);
            need(borne, "no link has the route's source address")?;
        }
        Ok(())
    }

    /// The routes that can't stand beside this one: the kernel tells them apart by destination, metric and
    /// table.
    pub(super) fn routes_like(
        &self,
        route: &Route,
    ) -> impl Iterator<Item = (&LinkName, &Owned<Route>)> {
        let key = |route: &Route| (route.to, route.metric, route.table);
        let wanted = key(route);
        self.links.iter().flat_map(move |(name, link)| {
            let routes = link.routes.iter();
            routes
                .filter(move |there| key(&there.what) == wanted)
                .map(move |there| (name, there))
        })
    }
}

impl LinkState {
    /// Whether a gateway is on the link itself, as the kernel sees it when it takes a route of this table.
    fn reaches(&self, gateway: std::net::IpAddr, table: u32) -> bool {
        let near = self.routes.iter().map(|route| &route.what);
        let mut near = near.filter(|route| {
            route.via.is_none() && (route.table == table || route.table == MAIN_TABLE)
        });
        link_local(gateway)
            || self
                .addresses
                .iter()
                .any(|address| address.net.contains(&gateway))
            || near.any(|route| route.to.contains(&gateway))
    }
}

fn link_local(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(_) => false,
        std::net::IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn owned<T>(what: T) -> Owned<T> {
    Owned { what, ours: true }
}

/// Whether two addresses lie in the same network under the same mask.
pub(super) fn same_subnet(one: IpNet, other: IpNet) -> bool {
    one.trunc() == other.trunc()
}

/// Puts an address where it is read: an IPv4 one behind the others of its subnet at the end, or behind the other
/// subnets' first ones, as the kernel does; an IPv6 one in order, which matters to nobody.
pub(super) fn insert_address(addresses: &mut Vec<Address>, net: IpNet, ours: bool) {
    let v4: Vec<IpNet> = addresses
        .iter()
        .map(|address| address.net)
        .filter(|there| there.addr().is_ipv4())
        .collect();
    let firsts = v4
        .iter()
        .enumerate()
        .take_while(|(at, there)| !v4[..*at].iter().any(|other| same_subnet(*other, **there)))
        .count();
    let place = match net {
        IpNet::V4(_) if v4.iter().any(|there| same_subnet(*there, net)) => v4.len(),
        IpNet::V4(_) => firsts,
        IpNet::V6(_) => {
            let lower = addresses[v4.len()..].iter();
            v4.len() + lower.take_while(|there| there.net < net).count()
        }
    };
    addresses.insert(place, Address { net, ours });
}
