//! What the host's network should become: everything of ours as the site wants it, all else exactly as
//! it is. What can't be had is said as an [`Obstacle`], and nothing that others made is ever in the way of a plan: the plan
//! goes round it.
//!
//! A link that the site lists, or names as the parent or port of one, is brought up. Other than that, a link that others made gets
//! only what the site says of it.

mod addressing;

use std::collections::{BTreeMap, BTreeSet};

use super::firewall::ruleset;
use super::model::same_subnet;
use super::spec::{HostLink, HostSpec};
use super::state::{Address, HostState, LinkState, Owned, PresentKind};
use crate::link::{LinkKind, MAIN_TABLE, Route};
use crate::net::LinkName;

/// What the host's network should become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is there, with everything of ours made as wanted. Links that are yet to be made have index 0.
    pub state: HostState,
    /// Why parts of the site are left out of it.
    pub obstacles: Vec<Obstacle>,
}

impl Target {
    /// Whether nothing may be applied until a person has settled something.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let mut obstacles = self.obstacles.iter();
        obstacles.any(|obstacle| obstacle.kind == ObstacleKind::Refused)
    }
}

/// Something that keeps a part of the site from being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The link it is about.
    pub link: LinkName,
    /// What is wrong, in one clause: `its parent eth1 is not there`.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// What it means for the rest.
    pub kind: ObstacleKind,
}

/// What an obstacle means for the rest of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObstacleKind {
    /// That part, and what hangs on it, is left out until it goes away; the rest goes on.
    Waits,
    /// Nothing at all may be applied until it is settled: the site and the host contradict each other.
    Refused,
}

/// What the host's network should become, for this site.
#[must_use]
pub fn target(spec: &HostSpec, present: &HostState) -> Target {
    let mut plan = Plan {
        spec,
        present,
        state: present.clone(),
        placed: BTreeMap::new(),
        obstacles: Vec::new(),
    };
    plan.drop_leftovers();
    for wanted in &spec.links {
        plan.place(wanted);
    }
    plan.join_ports();
    // A bond that a link joined may have shrunk what lies on that link.
    for wanted in plan.had() {
        plan.size(wanted);
    }
    plan.raise();
    plan.switch();
    let names: Vec<LinkName> = plan.state.links.keys().cloned().collect();
    for name in &names {
        plan.drop_addresses(name);
    }
    for name in &names {
        plan.add_addresses(name);
    }
    plan.drop_routes();
    plan.add_routes();
    plan.set_rules();
    plan.state.ruleset = ruleset(spec);
    Target {
        state: plan.state,
        obstacles: plan.obstacles,
    }
}

struct Plan<'a> {
    spec: &'a HostSpec,
    present: &'a HostState,
    state: HostState,
    /// The links of the site that were looked at, and whether they can be had.
    placed: BTreeMap<LinkName, bool>,
    obstacles: Vec<Obstacle>,
}

impl<'a> Plan<'a> {
    fn say(&mut self, kind: ObstacleKind, link: &LinkName, problem: String, remedy: String) {
        let obstacle = Obstacle {
            link: link.clone(),
            problem,
            remedy,
            kind,
        };
        if !self.obstacles.contains(&obstacle) {
            self.obstacles.push(obstacle);
        }
    }

    fn waits(&mut self, link: &LinkName, problem: String, remedy: String) {
        self.say(ObstacleKind::Waits, link, problem, remedy);
    }

    fn refuse(&mut self, link: &LinkName, problem: String, remedy: String) {
        self.say(ObstacleKind::Refused, link, problem, remedy);
    }

    /// The site's links that can be had, in file order.
    fn had(&self) -> Vec<&'a HostLink> {
        let spec = self.spec;
        let links = spec.links.iter();
        links
            .filter(|wanted| self.placed.get(&wanted.link.name) == Some(&true))
            .collect()
    }

    /// Whether the site has a use for a link, itself or as what others lie on.
    fn is_named(&self, name: &LinkName) -> bool {
        self.spec.links.iter().any(|HostLink { link, .. }| {
            link.name == *name
                || link.kind.parent() == Some(name)
                || link.kind.ports().contains(name)
        })
    }

    /// Removes links of ours that the site no longer has a use for.
    fn drop_leftovers(&mut self) {
        let mut leftovers: BTreeSet<LinkName> = self
            .present
            .links
            .iter()
            .filter(|(name, link)| link.ours && !self.is_named(name))
            .map(|(name, _)| name.clone())
            .collect();
        loop {
            let blocked = leftovers
                .iter()
                .find_map(|name| Some((name.clone(), self.lost_with(name, &leftovers)?)));
            let Some((name, lost)) = blocked else { break };
            leftovers.remove(&name);
            let remedy = format!("remove that first, or both with `ip link delete {name}`");
            let problem = format!("is no longer wanted, but {lost} would go with it");
            self.waits(&name, problem, remedy);
        }
        for name in &leftovers {
            self.state.links.remove(name);
        }
        for link in self.state.links.values_mut() {
            link.master.take_if(|master| leftovers.contains(master));
        }
    }

    /// What of others would be lost with a link, when `gone` goes too.
    fn lost_with(&self, name: &LinkName, gone: &BTreeSet<LinkName>) -> Option<String> {
        let link = self.present.links.get(name)?;
        let address = link.addresses.iter().find(|address| !address.ours);
        let address =
            address.map(|address| format!("the address {} that others gave it", address.net));
        let needed = || {
            let mut ours = link.addresses.iter();
            ours.find_map(|address| self.needing(name, address, gone))
        };
        let route = || {
            let route = link.routes.iter().find(|route| self.stays(route))?;
            Some(format!("the route {}", route.what))
        };
        let vlan = || {
            let mut vlans = self.present.vlans_on(name);
            let (vlan, _) =
                vlans.find(|(vlan, state)| !gone.contains(*vlan) && !self.moves(vlan, state))?;
            Some(format!("the VLAN {vlan} on it"))
        };
        let port = || {
            let mut ports = self.present.ports_of(name).filter(|_| link.kind.is_bond());
            let (port, _) = ports.find(|(port, _)| self.is_leant_on(port))?;
            Some(format!("what others put on its port {port}"))
        };
        address
            .or_else(needed)
            .or_else(route)
            .or_else(vlan)
            .or_else(port)
    }

    /// Whether a VLAN of ours is wanted as something else than it is.
    fn moves(&self, name: &LinkName, link: &LinkState) -> bool {
        let wanted = self.spec.link(name).map(|wanted| &wanted.link.kind);
        link.ours
            && wanted.is_some_and(|kind| {
                !matches!(kind, LinkKind::Card { .. }) && PresentKind::of(kind) != link.kind
            })
    }

    /// Whether a route is not ours to remove: others made it, or it is a default route of the main table that the site
    /// doesn't speak of.
    fn stays(&self, route: &Owned<Route>) -> bool {
        let to = route.what.to;
        let same_kind =
            |named: &Route| is_default(named) && named.to.addr().is_ipv4() == to.addr().is_ipv4();
        let mut named = self
            .spec
            .links
            .iter()
            .flat_map(|wanted| &wanted.link.routes);
        !route.ours || is_default(&route.what) && !named.any(same_kind)
    }

    /// Whether a link can't be taken down for a moment: others, or a default route that has to stay, would lose by it.
    fn is_leant_on(&self, name: &LinkName) -> bool {
        let stays = |link: &LinkState| link.routes.iter().any(|route| self.stays(route));
        self.present.is_leant_on(name)
            || self.present.links.get(name).is_some_and(stays)
            || self
                .present
                .vlans_on(name)
                .any(|(vlan, _)| self.is_leant_on(vlan))
    }

    /// What of others rests on an address of ours.
    fn needing(
        &self,
        name: &LinkName,
        address: &Address,
        gone: &BTreeSet<LinkName>,
    ) -> Option<String> {
        let net = address.net;
        let is_v4 = net.addr().is_ipv4();
        let bearer = self.present.links.get(name)?;
        let mut near = bearer.addresses.iter();
        let first = near.find(|there| same_subnet(there.net, net));
        if is_v4 && first.is_some_and(|first| first.net == net) {
            let mut near = bearer.addresses.iter();
            let behind = near.find(|there| !there.ours && same_subnet(there.net, net));
            if let Some(behind) = behind {
                return Some(format!("the address {} behind it", behind.net));
            }
            let mut behind = bearer
                .addresses
                .iter()
                .filter(|there| there.net != net && same_subnet(there.net, net));
            if let Some(needing) = behind.find_map(|there| self.needing(name, there, gone)) {
                return Some(needing);
            }
        }
        let alone = !bearer
            .addresses
            .iter()
            .any(|there| !there.ours && there.net.addr().is_ipv4() == is_v4);
        let links = self.present.links.iter();
        let mut links = links.filter(|(link, _)| !gone.contains(*link));
        links.find_map(|(link, state)| {
            let mut routes = state.routes.iter().filter(|route| self.stays(route));
            let route = routes.find(|Owned { what, .. }| {
                let by = what.via.is_some_and(|via| net.contains(&via));
                let of_family = what.to.addr().is_ipv4() == is_v4;
                what.source == Some(net.addr()) || link == name && of_family && (by || alone)
            })?;
            Some(format!("the route {}", route.what))
        })
    }

    /// Gives a link of the site its place, after what it lies on. False when it can't be had now.
    fn place(&mut self, wanted: &'a HostLink) -> bool {
        let name = &wanted.link.name;
        if let Some(placed) = self.placed.get(name) {
            return *placed;
        }
        self.placed.insert(name.clone(), false);
        let placed = self.stand(wanted);
        self.placed.insert(name.clone(), placed);
        if placed {
            self.size(wanted);
        }
        placed
    }

    fn stand(&mut self, wanted: &'a HostLink) -> bool {
        let (name, kind) = (&wanted.link.name, &wanted.link.kind);
        let spec = self.spec;
        if let Some(parent) = kind.parent() {
            let listed = spec.link(parent);
            let there = listed.is_none_or(|listed| self.place(listed));
            if !there || !self.state.links.contains_key(parent) {
                let problem = format!("its parent {parent} is not there");
                self.waits(name, problem, absent(parent));
                return false;
            }
        }
        let present = PresentKind::of(kind);
        let Some(link) = self.state.links.get(name) else {
            if matches!(kind, LinkKind::Card { .. }) {
                self.waits(name, "is not there".to_owned(), absent(name));
                return false;
            }
            return self.make(name, kind);
        };
        if matches!(kind, LinkKind::Card { .. }) || link.kind == present {
            return true;
        }
        if !link.ours {
            // The spanning tree, and how a bond spreads its frames, are their owner's business.
            let alike = matches!(
                (&link.kind, kind),
                (
                    PresentKind::Known(LinkKind::Bridge { .. }),
                    LinkKind::Bridge { .. }
                ) | (
                    PresentKind::Known(LinkKind::Bond { .. }),
                    LinkKind::Bond { .. }
                )
            );
            if !alike {
                let problem = format!("is there as {}, made by others", said(&link.kind));
                let remedy =
                    format!("give the site's link another name, or `ip link delete {name}`");
                self.refuse(name, problem, remedy);
            }
            return alike;
        }
        let flapping = || {
            let into_bond = present.is_bond() && !link.kind.is_bond();
            let mut ports = self.present.ports_of(name).filter(|_| into_bond);
            let (port, _) = ports.find(|(port, _)| self.is_leant_on(port))?;
            Some(format!("what others put on its port {port}"))
        };
        if let Some(lost) = self.lost_with(name, &BTreeSet::new()).or_else(flapping) {
            let problem = format!("has to be made anew, and {lost} would go with it");
            let remedy = format!("remove that first, or both with `ip link delete {name}`");
            self.refuse(name, problem, remedy);
            return false;
        }
        self.make(name, kind)
    }

    fn make(&mut self, name: &LinkName, kind: &LinkKind) -> bool {
        let wanted = PresentKind::of(kind);
        let mut links = self.state.links.iter();
        let rival = links
            .find(|(other, link)| *other != name && kind.parent().is_some() && link.kind == wanted);
        if let Some((rival, _)) = rival {
            let problem = format!("{} is there already as {rival}", said(&wanted));
            let remedy = format!("name the site's link {rival}, or `ip link delete {rival}`");
            self.refuse(name, problem, remedy);
            return false;
        }
        let link = self.state.fresh_link(kind, None, None);
        self.state.links.insert(name.clone(), link);
        // A link that was a bridge or bond until now lets its ports go.
        if kind.parent().is_some() {
            for link in self.state.links.values_mut() {
                link.master.take_if(|master| master == name);
            }
        }
        true
    }

    fn size(&mut self, wanted: &HostLink) {
        let name = &wanted.link.name;
        let Some((mtu, link)) = wanted.link.mtu.zip(self.state.links.get(name)) else {
            return;
        };
        let is_bond = link.kind.is_bond();
        let bearers = self.state.ports_of(name).filter(|_| is_bond);
        let bearers: Vec<_> = bearers.chain([(name, link)]).collect();
        let low = bearers.iter().find_map(|(_, bearer)| {
            let most = self.state.most_of(bearer).filter(|most| *most < mtu)?;
            Some((bearer.kind.parent()?.clone(), most))
        });
        if let Some((parent, most)) = low {
            let problem = format!("can't have MTU {mtu}: its parent {parent} has {most}");
            let remedy = format!("list {parent} with `mtu: {mtu}`");
            self.waits(name, problem, remedy);
            return;
        }
        let shrunk = bearers
            .into_iter()
            .find_map(|(bearer, _)| self.shrunk_above(bearer, mtu));
        if let Some(other) = shrunk {
            let problem = format!("can't have MTU {mtu}: {other}, which others made, would shrink");
            let remedy = format!("`ip link set {other} mtu {mtu}` first");
            self.waits(name, problem, remedy);
            return;
        }
        self.lead(name, mtu);
    }

    /// Gives a link an MTU as the kernel does: its VLANs shrink with it, and a bond's ports follow it.
    fn lead(&mut self, name: &LinkName, mtu: u32) {
        self.state.resize(name, mtu);
        if self.state.is_bond(name) {
            let ports = self.state.ports_of(name);
            let ports: Vec<LinkName> = ports.map(|(port, _)| port.clone()).collect();
            for port in &ports {
                self.state.resize(port, mtu);
            }
        }
    }

    /// A VLAN that others made and that an MTU would shrink.
    fn shrunk_above(&self, name: &LinkName, mtu: u32) -> Option<LinkName> {
        let mut vlans = self
            .present
            .vlans_on(name)
            .filter(|(_, vlan)| vlan.mtu > mtu);
        vlans.find_map(|(vlan, state)| {
            if state.ours {
                self.shrunk_above(vlan, mtu)
            } else {
                Some(vlan.clone())
            }
        })
    }

    fn join_ports(&mut self) {
        for wanted in self.had() {
            let master = &wanted.link.name;
            for port in wanted.link.kind.ports() {
                self.join(port, master);
            }
            self.keep_other_ports(wanted);
        }
    }

    fn join(&mut self, port: &LinkName, master: &LinkName) {
        let Some(link) = self.state.links.get(port) else {
            // A listed one speaks for itself.
            if self.spec.link(port).is_none() {
                self.waits(
                    master,
                    format!("its port {port} is not there"),
                    absent(port),
                );
            }
            return;
        };
        let is_bond = self.state.is_bond(master);
        if self.placed.get(port) == Some(&false) {
            return;
        }
        let joined = link.master.as_ref() == Some(master);
        let other = link.master.as_ref().filter(|other| *other != master);
        let others = other.filter(|other| !self.state.is_ours(other));
        if let Some(other) = others {
            let problem = format!("its port {port} is a port of {other}, which others made");
            let remedy = format!("`ip link set {port} nomaster`, or leave it out of the ports");
            self.refuse(master, problem, remedy);
            return;
        }
        if !joined && self.state.lies_on(port, master) {
            let problem = format!("its port {port} lies on it");
            let remedy = format!("`ip link delete {port}`, or leave it out of the ports");
            self.refuse(master, problem, remedy);
            return;
        }
        let flaps = is_bond || other.is_some_and(|other| self.state.is_bond(other));
        let bears = link.addresses.iter().any(|address| !address.ours)
            || link.routes.iter().any(|route| self.stays(route));
        if !joined && (bears || flaps && self.is_leant_on(port)) {
            let problem = format!("its port {port} bears addresses, routes or VLANs of others");
            let remedy = format!("move them to {master}, or leave {port} out of the ports");
            self.refuse(master, problem, remedy);
            return;
        }
        let most = self.state.most_of(link);
        let mtu = self.state.links.get(master).map(|link| link.mtu);
        let led = mtu.filter(|_| is_bond && (!joined || self.is_made_anew(master)));
        let fits = led.zip(most).is_none_or(|(mtu, most)| mtu <= most);
        if let Some(link) = self.state.links.get_mut(port) {
            link.master = fits.then(|| master.clone());
        }
        if !fits {
            let problem = format!("its port {port} lies on a link with a smaller MTU");
            let remedy = format!("list that one with the MTU of {master}, or give {master} its");
            self.waits(master, problem, remedy);
            return;
        }
        if let Some(mtu) = led {
            self.state.resize(port, mtu);
        }
    }

    fn is_made_anew(&self, name: &LinkName) -> bool {
        let (is, wanted) = (self.present.links.get(name), self.state.links.get(name));
        is.map(|is| &is.kind) != wanted.map(|wanted| &wanted.kind)
    }

    /// Ports that the site doesn't list: ours are freed, others' stay, because virtual machines are plugged in that way.
    fn keep_other_ports(&mut self, wanted: &HostLink) {
        let master = &wanted.link.name;
        let others: Vec<(LinkName, LinkState)> = self
            .state
            .ports_of(master)
            .filter(|(port, _)| !wanted.link.kind.ports().contains(port))
            .map(|(port, link)| (port.clone(), link.clone()))
            .collect();
        for (port, link) in others {
            let flaps = self.state.is_bond(master) && self.is_leant_on(&port);
            if link.ours && self.state.is_ours(master) && !flaps {
                if let Some(link) = self.state.links.get_mut(&port) {
                    link.master = None;
                }
            } else if matches!(link.kind, PresentKind::Known(_)) {
                let problem = format!("has a port {port} that the site does not list");
                let remedy = format!("list it, or `ip link set {port} nomaster`");
                self.waits(master, problem, remedy);
            }
        }
    }

    /// Brings up the links of the site, and what they lie on.
    fn raise(&mut self) {
        for wanted in self.had() {
            let master = Some(&wanted.link.name);
            let joined = |port: &&LinkName| {
                let link = self.state.links.get(*port);
                link.is_some_and(|link| link.master.as_ref() == master)
            };
            let ports: Vec<_> = wanted.link.kind.ports().iter().filter(joined).collect();
            for port in ports {
                self.raise_from_below(port);
            }
            self.raise_from_below(&wanted.link.name);
        }
    }

    fn raise_from_below(&mut self, name: &LinkName) {
        let link = self.state.links.get(name).filter(|link| !link.up);
        let Some(link) = link else { return };
        if let Some(parent) = link.kind.parent().cloned() {
            self.raise_from_below(&parent);
        }
        self.state.raise(name);
    }

    fn switch(&mut self) {
        for wanted in self.had() {
            let Some(link) = self.state.links.get_mut(&wanted.link.name) else {
                continue;
            };
            link.forwarding = wanted.forwarding.unwrap_or(link.forwarding);
            link.rp_filter = wanted.rp_filter.unwrap_or(link.rp_filter);
        }
        for way in &self.spec.masquerade {
            for name in [&way.inside, &way.out] {
                if let Some(link) = self.state.links.get_mut(name) {
                    link.forwarding = true;
                } else if self.spec.link(name).is_none() {
                    let problem = "masquerades, and is not there".to_owned();
                    self.waits(name, problem, absent(name));
                }
            }
        }
    }
}

fn is_default(route: &Route) -> bool {
    route.to.prefix_len() == 0 && route.table == MAIN_TABLE
}

fn absent(name: &LinkName) -> String {
    format!(
        "plug it in or load its driver, or correct the name {name}: `ip -br link` lists what is there"
    )
}

fn said(kind: &PresentKind) -> String {
    match kind {
        PresentKind::Known(LinkKind::Card { .. }) => "a card".to_owned(),
        PresentKind::Known(LinkKind::Vlan { parent, id }) => {
            format!("VLAN {} on {parent}", id.get())
        }
        PresentKind::Known(LinkKind::Bridge { .. }) => "a bridge".to_owned(),
        PresentKind::Known(LinkKind::Bond { mode, .. }) => format!("a bond ({})", mode.word()),
        PresentKind::Other(word) => format!("a link of kind {word}"),
    }
}
