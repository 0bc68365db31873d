//! The names in force: the zones that follow from the newest site, made anew when it changes.
//!
//! Every server holds a page of it and compares two pointers a batch; the first that finds its page old makes the new
//! zones, and the others take them. So a name is answered as soon as the site that has it is published.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netboot::net::LinkName;
use netboot::site::Site;
use netboot::zone::{Names, Source, Zones};
use tokio::sync::watch;

use crate::controller::Controller;
use crate::link::{Link, Links, met_at};

/// Whose site the names follow from, and the newest page.
pub(super) struct Book {
    controller: Controller,
    links: watch::Receiver<Arc<Links>>,
    newest: Mutex<Page>,
}

/// The zones of one site on one set of links.
#[derive(Clone, Default)]
pub(super) struct Page {
    source: Source,
    links: Arc<Links>,
    zones: Arc<Zones>,
}

/// The names that follow from a site on these links.
pub(crate) fn names(site: &Site, links: &Links) -> Names {
    let dns = site.spec().dns();
    let there = |names: &BTreeSet<LinkName>| -> Vec<&Link> {
        let there = names.iter().filter_map(|name| links.get(name.as_str()));
        there.collect()
    };
    let outside: Vec<Ipv4Addr> = if dns.met_on.is_empty() {
        // Somebody leads connections from there to the clusters, if not the balancer.
        let addresses = there(&dns.public)
            .into_iter()
            .flat_map(|link| &link.addresses);
        addresses.map(ipnet::Ipv4Net::addr).collect()
    } else {
        let met = there(&dns.met_on).into_iter();
        met.filter_map(Link::first_address).collect()
    };
    let inside = |network: &netboot::spec::Network| {
        let (_, address) = met_at(site.spec(), links, &network.link).ok()?;
        Some(address)
    };
    // A serial number wraps around (RFC 1982).
    Names::of(site, site.generation() as u32, inside, &outside)
}

impl Book {
    pub(super) fn new(controller: Controller, links: watch::Receiver<Arc<Links>>) -> Self {
        Self {
            controller,
            links,
            // An empty page is nobody's site, so the first look makes a real one.
            newest: Mutex::default(),
        }
    }

    /// The newest page.
    pub(super) fn page(&self) -> Page {
        let mut page = self.newest().clone();
        self.turn_to(&mut page);
        page
    }

    /// Makes a page the newest one.
    pub(super) fn turn_to(&self, page: &mut Page) {
        let site = self.controller.snapshot().peek();
        let links = Arc::clone(&self.links.borrow());
        if page.is_of(&site, &links) {
            return;
        }
        // Others wait here while one builds, rather than build the same.
        let mut newest = self.newest();
        if !newest.is_of(&site, &links) {
            let zones = Arc::new(Zones::new(&names(&site, &links)));
            let source = Source::of(&site);
            *newest = Page {
                source,
                links,
                zones,
            };
        }
        page.clone_from(&newest);
    }

    fn newest(&self) -> MutexGuard<'_, Page> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    fn is_of(&self, site: &Site, links: &Arc<Links>) -> bool {
        Arc::ptr_eq(&self.links, links) && self.source.is_of(site)
    }

    pub(super) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// Whether names of others are looked up at all.
    pub(super) fn forwards(&self) -> bool {
        !self.source.dns().forward.is_empty()
    }

    /// The servers that know the names of others.
    pub(super) fn servers(&self) -> &[SocketAddr] {
        &self.source.dns().forward
    }
}
