//! What hangs on the links of the target: addresses, routes and rules. Ours come and go with the site; those of others, and what
//! they rest on, stay.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Plan;
use crate::host::model::{insert_address, same_subnet};
use crate::host::state::{Address, LinkState, Owned};
use crate::link::{IPV6_METRIC, Route};
use crate::net::LinkName;

impl<'a> Plan<'a> {
    fn wanted_addresses(&self, name: &LinkName) -> &'a [IpNet] {
        let wanted = self
            .spec
            .link(name)
            .map_or(&[][..], |wanted| &wanted.link.addresses);
        match self.placed.get(name) {
            Some(true) => wanted,
            Some(false) | None => &[],
        }
    }

    pub(super) fn drop_addresses(&mut self, name: &LinkName) {
        let wanted = self.wanted_addresses(name);
        let Some(link) = self.state.links.get(name) else {
            return;
        };
        let there = link.addresses.clone();
        let mut kept = there.clone();
        let none = BTreeSet::new();
        for address in there.iter().copied() {
            if !address.ours || wanted.contains(&address.net) {
                continue;
            }
            match self.needing(name, &address, &none) {
                None => kept.retain(|there| *there != address),
                Some(needing) => {
                    let problem = format!(
                        "{} is no longer wanted, but {needing} needs it",
                        address.net
                    );
                    let remedy = format!(
                        "remove that first, or `ip address delete {} dev {name}`",
                        address.net
                    );
                    self.waits(name, problem, remedy);
                }
            }
        }
        // The first of a subnet is the one that packets leave from: where another is, all of ours are given anew.
        for net in wanted.iter().filter(|net| net.addr().is_ipv4()) {
            let near = |there: &&Address| same_subnet(there.net, *net);
            let first = wanted.iter().find(|there| same_subnet(**there, *net));
            let right = kept
                .iter()
                .find(near)
                .is_none_or(|there| Some(&there.net) == first);
            let free = kept.iter().filter(near).all(|there| {
                there.ours
                    && wanted.contains(&there.net)
                    && self.needing(name, there, &none).is_none()
            });
            if !right && free {
                kept.retain(|there| !same_subnet(there.net, *net));
            }
        }
        for address in there.into_iter().rev() {
            if !kept.contains(&address) {
                self.drop_address(name, address);
            }
        }
        if let Some(link) = self.state.links.get_mut(name) {
            link.addresses = kept;
        }
    }

    /// Routes that go with an address come back only where they have a way without it.
    fn drop_address(&mut self, name: &LinkName, address: Address) {
        for (bearer, what) in self.state.leaning_on(name, address.net) {
            if let Some(link) = self.state.links.get_mut(&bearer) {
                link.routes.remove(&Owned { what, ours: true });
            }
        }
        if let Some(link) = self.state.links.get_mut(name) {
            link.addresses.retain(|there| *there != address);
        }
    }

    pub(super) fn add_addresses(&mut self, name: &LinkName) {
        for net in self.wanted_addresses(name) {
            let bears = |link: &LinkState| {
                let mut addresses = link.addresses.iter();
                addresses.any(|there| there.net.addr() == net.addr())
            };
            let mut links = self.state.links.iter();
            let elsewhere = links.find(|(other, link)| *other != name && bears(link));
            if let Some((other, _)) = elsewhere {
                let problem = format!("{net} is on {other} already");
                let remedy =
                    format!("`ip address delete {net} dev {other}`, or take it out of the site");
                self.waits(name, problem, remedy);
                continue;
            }
            let Some(link) = self.state.links.get_mut(name) else {
                continue;
            };
            if link.addresses.iter().all(|there| there.net != *net) {
                insert_address(&mut link.addresses, *net, true);
            }
        }
    }

    fn wanted_routes(&self) -> Vec<(LinkName, Route)> {
        let had = self.had().into_iter();
        let routes = had.flat_map(|wanted| {
            let routes = wanted.link.routes.iter();
            routes.map(|route| (wanted.link.name.clone(), as_read(route)))
        });
        let mut routes: Vec<_> = routes.collect();
        routes.sort_by_key(|(_, route)| route.via.is_some());
        routes
    }

    pub(super) fn drop_routes(&mut self) {
        let wanted = self.wanted_routes();
        let mut left = Vec::new();
        for (name, link) in &self.state.links {
            for route in link.routes.iter().filter(|route| route.ours) {
                if !wanted.contains(&(name.clone(), route.what)) {
                    left.push((name.clone(), *route, self.stays(route)));
                }
            }
        }
        for (name, route, stays) in left {
            if stays {
                let problem = format!(
                    "bears the route {}, which the site no longer names",
                    route.what
                );
                let remedy = format!(
                    "name a default route, or `ip route delete {} dev {name}`",
                    route.what
                );
                self.waits(&name, problem, remedy);
            } else if let Some(link) = self.state.links.get_mut(&name) {
                link.routes.remove(&route);
            }
        }
    }

    pub(super) fn add_routes(&mut self) {
        for (name, route) in self.wanted_routes() {
            let same = |there: &Owned<Route>| {
                let via = there.what.via == route.via;
                there.what == route || !there.ours && via
            };
            let rival = self
                .state
                .routes_like(&route)
                .next()
                .map(|(other, there)| (*other == name && same(there), other.clone(), *there));
            if let Some((satisfied, other, there)) = rival {
                if !satisfied {
                    let problem = format!(
                        "the route {route} has no room beside {} by {other}",
                        there.what
                    );
                    let remedy =
                        "give one of the two another metric, or remove the other".to_owned();
                    self.waits(&name, problem, remedy);
                }
            } else if let Err(why) = self.state.can_route(&name, &route) {
                let problem = format!("the route {route} can't be added: {why}");
                let remedy = "give the link an address in the gateway's network".to_owned();
                self.waits(&name, problem, remedy);
            } else if let Some(link) = self.state.links.get_mut(&name) {
                link.routes.insert(Owned {
                    what: route,
                    ours: true,
                });
            }
        }
    }

    pub(super) fn set_rules(&mut self) {
        let had = self.had().into_iter();
        let wanted: BTreeSet<_> = had
            .flat_map(|wanted| wanted.link.rules.iter().copied())
            .collect();
        self.state
            .rules
            .retain(|rule| !rule.ours || wanted.contains(&rule.what));
        for what in wanted {
            if self.state.rules.iter().all(|there| there.what != what) {
                self.state.rules.insert(Owned { what, ours: true });
            }
        }
    }
}

/// A route as it is read once it is there: the metric that the kernel gives an IPv6 route without one is read as none.
fn as_read(route: &Route) -> Route {
    let none = route.to.addr().is_ipv6() && route.metric == IPV6_METRIC;
    Route {
        metric: if none { 0 } else { route.metric },
        ..*route
    }
}
