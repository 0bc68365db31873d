//! The way from one state of the host's network to another, and the way back.
//!
//! Every operation is tried on the model first; so each stage sees what the kernel does by itself, and
//! nothing is ever planned that the kernel would refuse at its place.

use std::collections::BTreeSet;

use super::model::{insert_address, same_subnet};
use super::operation::Operation;
use super::state::{Address, HostState, LinkState, PresentKind};
use crate::link::Route;
use crate::net::LinkName;

/// The ordered operations that lead from what is `present` to what is `wanted`. What is not ours and differs in kind,
/// number or being there stays different; no operation removes it.
#[must_use]
pub fn diff(present: &HostState, wanted: &HostState) -> Vec<Operation> {
    let mut way = Way {
        now: present.clone(),
        wanted,
        operations: Vec::new(),
    };
    // The firewall closes before an address appears.
    if way.now.ruleset != wanted.ruleset {
        let ruleset = wanted.ruleset.clone();
        way.go(Operation::SetRuleset { ruleset });
    }
    way.shed_rules_and_routes();
    way.shed_links();
    way.free_ports();
    way.shed_addresses();
    way.grow_mtus(false);
    way.add_links();
    way.set_switches();
    way.join_ports();
    way.bring_up();
    way.add_addresses();
    way.add_routes();
    way.add_rules();
    way.shrink_mtus();
    way.grow_mtus(true);
    way.bring_down();
    way.operations
}

/// The operations that bring back what was `before` some `operations` were begun, however far they came, from
/// what is `present`. Of what is not ours only links that an operation reaches are touched, and only what operations change of
/// a link.
#[must_use]
pub fn restore(
    before: &HostState,
    operations: &[Operation],
    present: &HostState,
) -> Vec<Operation> {
    diff(present, &before_among(before, operations, present))
}

/// What is present, with everything of ours as it was.
fn before_among(before: &HostState, operations: &[Operation], present: &HostState) -> HostState {
    let touched = reached(before, operations);
    let mut wanted = present.clone();
    wanted
        .links
        .retain(|name, link| !link.ours || before.is_ours(name));
    for (name, was) in &before.links {
        match present.links.get(name) {
            None if !was.ours => {}
            None => {
                let mut was = was.clone();
                was.addresses.retain(|address| address.ours);
                was.routes.retain(|route| route.ours);
                wanted.links.insert(name.clone(), was);
            }
            // Others made one of that name meanwhile, or removed theirs.
            Some(is) if is.ours != was.ours => {}
            Some(is) => {
                let mut back = if is.ours || touched.contains(name) {
                    was.clone()
                } else {
                    is.clone()
                };
                if !is.ours {
                    back.index = is.index;
                    back.kind = is.kind.clone();
                    back.mac = is.mac;
                    back.up |= is.up && present.is_leant_on(name);
                }
                back.addresses = addresses_before(was, is);
                let (ours, others) = (was.routes.iter(), is.routes.iter());
                let ours = ours.filter(|route| route.ours);
                let others = others.filter(|route| !route.ours);
                back.routes = ours.chain(others).copied().collect();
                wanted.links.insert(name.clone(), back);
            }
        }
    }
    let there: BTreeSet<LinkName> = wanted.links.keys().cloned().collect();
    for link in wanted.links.values_mut() {
        link.master.take_if(|master| !there.contains(master));
    }
    let ours = before.rules.iter().filter(|rule| rule.ours);
    let others = present.rules.iter().filter(|rule| !rule.ours);
    wanted.rules = ours.chain(others).copied().collect();
    wanted.ruleset.clone_from(&before.ruleset);
    wanted
}

/// The links that operations name, and those that the kernel changes with them: their ports and the VLANs on them.
fn reached<'a>(before: &'a HostState, operations: &'a [Operation]) -> BTreeSet<&'a LinkName> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&LinkName> = operations.iter().filter_map(Operation::link).collect();
    while let Some(name) = next.pop() {
        if reached.insert(name) {
            next.extend(before.ports_of(name).map(|(port, _)| port));
            next.extend(before.vlans_on(name).map(|(vlan, _)| vlan));
        }
    }
    reached
}

fn addresses_before(was: &LinkState, is: &LinkState) -> Vec<Address> {
    let there = |address: &Address| is.addresses.contains(address);
    let mut addresses: Vec<Address> = was.addresses.clone();
    addresses.retain(|address| address.ours || there(address));
    for address in is.addresses.iter().filter(|address| !address.ours) {
        if !addresses.contains(address) {
            insert_address(&mut addresses, address.net, false);
        }
    }
    addresses
}

/// Whether what others put on links is still there: links, addresses and routes.
fn spares_others(before: &HostState, after: &HostState) -> bool {
    before.links.iter().all(|(name, was)| {
        let is = after.links.get(name);
        let bears = |address: &Address| is.is_some_and(|is| is.addresses.contains(address));
        let leads = |route| is.is_some_and(|is| is.routes.contains(route));
        let mut addresses = was.addresses.iter().filter(|address| !address.ours);
        let mut routes = was.routes.iter().filter(|route| !route.ours);
        (was.ours || is.is_some()) && addresses.all(bears) && routes.all(leads)
    })
}

struct Way<'a> {
    now: HostState,
    wanted: &'a HostState,
    operations: Vec<Operation>,
}

impl Way<'_> {
    /// Takes a step, if the kernel would and others lose nothing by it.
    fn go(&mut self, operation: Operation) -> bool {
        let mut next = self.now.clone();
        let taken = next.apply(&operation).is_ok() && spares_others(&self.now, &next);
        if taken {
            self.now = next;
            self.operations.push(operation);
        }
        taken
    }

    /// The links that are there and wanted, as they are and as they should be, the lowest first.
    fn pairs(&self) -> Vec<(LinkName, LinkState, LinkState)> {
        let names = self.wanted.bottom_up();
        names
            .into_iter()
            .filter_map(|name| {
                let is = self.now.links.get(&name)?.clone();
                let wanted = self.wanted.links.get(&name)?.clone();
                Some((name, is, wanted))
            })
            .collect()
    }

    fn shed_rules_and_routes(&mut self) {
        for rule in self.now.rules.clone() {
            if rule.ours && !self.wanted.rules.contains(&rule) {
                self.go(Operation::RemoveRule { rule: rule.what });
            }
        }
        for (name, is, wanted) in self.pairs() {
            for route in is.routes.difference(&wanted.routes) {
                self.remove_route(&name, route.what);
            }
        }
    }

    fn remove_route(&mut self, link: &LinkName, route: Route) {
        let link = link.clone();
        self.go(Operation::RemoveRoute { link, route });
    }

    fn shed_links(&mut self) {
        let lost = |name: &LinkName, is: &LinkState| {
            let stays = self.wanted.links.get(name).is_some_and(|wanted| {
                !wanted.ours
                    || wanted.kind == is.kind && (wanted.index == 0 || wanted.index == is.index)
            });
            is.ours && !stays
        };
        let mut doomed: BTreeSet<LinkName> = BTreeSet::new();
        for name in self.now.bottom_up() {
            let Some(is) = self.now.links.get(&name) else {
                continue;
            };
            let parent = is.kind.parent();
            let falls = parent.is_some_and(|parent| doomed.contains(parent)) && is.ours;
            if falls || lost(&name, is) {
                doomed.insert(name);
            }
        }
        for name in self.now.bottom_up().into_iter().rev() {
            if !doomed.contains(&name) {
                continue;
            }
            // Said one by one, so that whoever undoes it knows which links it touched.
            let ports: Vec<_> = self
                .now
                .ports_of(&name)
                .map(|(port, _)| port.clone())
                .collect();
            for link in ports {
                self.go(Operation::SetMaster { link, master: None });
            }
            self.go(Operation::RemoveLink { link: name });
        }
    }

    fn free_ports(&mut self) {
        for (link, is, wanted) in self.pairs() {
            if is.master.is_some() && is.master != wanted.master {
                self.go(Operation::SetMaster { link, master: None });
            }
        }
    }

    fn shed_addresses(&mut self) {
        for (name, is, wanted) in self.pairs() {
            let rebuilt = |address: &Address| {
                let first = |link: &LinkState| {
                    let mut ours = link.addresses.iter().filter(|there| there.ours);
                    ours.find(|there| same_subnet(there.net, address.net))
                        .map(|there| there.net)
                };
                address.net.addr().is_ipv4() && first(&is) != first(&wanted)
            };
            // From behind: the first of a subnet takes the others along.
            for address in is.addresses.iter().rev() {
                let stays = wanted
                    .addresses
                    .iter()
                    .any(|there| there.net == address.net);
                if address.ours && (!stays || rebuilt(address)) {
                    self.remove_address(&name, *address);
                }
            }
        }
    }

    /// Removes an address, and first the routes of ours that the kernel may remove with it.
    fn remove_address(&mut self, name: &LinkName, address: Address) {
        let net = address.net;
        let mut leaning = self.now.leaning_on(name, net);
        // Those with a gateway first: they rest on those without.
        leaning.sort_by_key(|(_, route)| route.via.is_none());
        for (other, route) in leaning {
            self.remove_route(&other, route);
        }
        self.go(Operation::RemoveAddress {
            link: name.clone(),
            address: net,
        });
    }

    /// A bond sets its ports' itself; one that somebody gave another nevertheless gets it when all else `is_done`.
    fn grow_mtus(&mut self, is_done: bool) {
        for (link, is, wanted) in self.pairs() {
            let led = !is_done
                && is.master == wanted.master
                && is.master.is_some_and(|master| self.now.is_bond(&master));
            if wanted.mtu > is.mtu && !led {
                let mtu = wanted.mtu;
                self.go(Operation::SetMtu { link, mtu });
            }
        }
    }

    fn shrink_mtus(&mut self) {
        for (link, _, wanted) in self.pairs().into_iter().rev() {
            let is = self.now.links.get(&link).map(|is| is.mtu);
            if is.is_some_and(|is| is > wanted.mtu) {
                let mtu = wanted.mtu;
                self.go(Operation::SetMtu { link, mtu });
            }
        }
    }

    fn add_links(&mut self) {
        for name in self.wanted.bottom_up() {
            let Some(wanted) = self.wanted.links.get(&name) else {
                continue;
            };
            let PresentKind::Known(kind) = &wanted.kind else {
                continue;
            };
            if !wanted.ours || self.now.links.contains_key(&name) {
                continue;
            }
            let taken = self.now.links.values().any(|is| is.index == wanted.index);
            let index = (wanted.index != 0 && !taken).then_some(wanted.index);
            let inherited = self.now.fresh_link(kind, None, None).mac;
            let mac = wanted.mac.filter(|mac| Some(*mac) != inherited);
            let added = self.go(Operation::AddLink {
                link: name.clone(),
                kind: kind.clone(),
                index,
                mac,
            });
            let mtu = wanted.mtu;
            if added && self.now.links.get(&name).is_some_and(|is| is.mtu != mtu) {
                self.go(Operation::SetMtu { link: name, mtu });
            }
        }
    }

    fn set_switches(&mut self) {
        for (link, is, wanted) in self.pairs() {
            if is.rp_filter != wanted.rp_filter {
                let rp_filter = wanted.rp_filter;
                let link = link.clone();
                self.go(Operation::SetReversePath { link, rp_filter });
            }
            if is.forwarding != wanted.forwarding {
                let on = wanted.forwarding;
                self.go(Operation::SetForwarding { link, on });
            }
        }
    }

    fn join_ports(&mut self) {
        for (link, is, wanted) in self.pairs() {
            let Some(master) = wanted.master.filter(|_| is.master.is_none()) else {
                continue;
            };
            // The bond brings it up, which a VLAN of a link that is down can't be. And a port that joined before may have
            // brought this one up.
            if self.now.is_bond(&master) {
                self.bring_up_below(&is);
            }
            let up = self.now.links.get(&link).is_some_and(|link| link.up);
            if up && self.now.is_bond(&master) {
                let link = link.clone();
                self.go(Operation::SetUp { link, up: false });
            }
            let master = Some(master);
            self.go(Operation::SetMaster { link, master });
        }
    }

    fn bring_up_below(&mut self, link: &LinkState) {
        let Some(parent) = link.kind.parent() else {
            return;
        };
        if let Some(below) = self.now.links.get(parent).cloned() {
            self.bring_up_below(&below);
        }
        // One that should be down goes down again at the end.
        if self.now.links.get(parent).is_some_and(|below| !below.up) {
            let link = parent.clone();
            self.go(Operation::SetUp { link, up: true });
        }
    }

    fn bring_up(&mut self) {
        for name in self.wanted.bottom_up() {
            self.set_up(name, true);
        }
    }

    fn bring_down(&mut self) {
        for name in self.wanted.bottom_up().into_iter().rev() {
            self.set_up(name, false);
        }
    }

    fn set_up(&mut self, link: LinkName, up: bool) {
        let (is, wanted) = (self.now.links.get(&link), self.wanted.links.get(&link));
        if is.is_some_and(|is| is.up != up) && wanted.is_some_and(|wanted| wanted.up == up) {
            self.go(Operation::SetUp { link, up });
        }
    }

    fn add_addresses(&mut self) {
        for (name, is, wanted) in self.pairs() {
            let there = |net| is.addresses.iter().any(|address| address.net == net);
            let missing = |address: &&Address| address.ours && !there(address.net);
            for address in wanted.addresses.iter().filter(missing) {
                self.go(Operation::AddAddress {
                    link: name.clone(),
                    address: address.net,
                });
            }
        }
    }

    fn add_routes(&mut self) {
        let mut missing = Vec::new();
        for (name, is, wanted) in self.pairs() {
            let routes = wanted.routes.difference(&is.routes);
            let routes = routes.filter(|route| route.ours);
            missing.extend(routes.map(|route| (name.clone(), route.what)));
        }
        missing.sort_by_key(|(_, route)| route.via.is_some());
        for (link, route) in missing {
            self.go(Operation::AddRoute { link, route });
        }
    }

    fn add_rules(&mut self) {
        for rule in self.wanted.rules.difference(&self.now.rules.clone()) {
            if rule.ours {
                self.go(Operation::AddRule { rule: rule.what });
            }
        }
    }
}
