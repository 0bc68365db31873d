//! What the site wants of the balancer now: its clusters' ports, who is behind each by what was seen, and the bastion's
//! links to take connections on.

use std::sync::Arc;
use std::time::Duration;

use ignition::platform::Platform;
use netboot::cluster::{ClusterSpec, ClusterState, ServiceKind};
use netboot::endpoint::{Endpoint, Ground, Listener, Member, Place, Taken, endpoints, placed};
use netboot::net::{LinkName, NodeName};
use netboot::site::Site;
use netboot::spec::SiteSpec;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::controller::Controller;
use crate::health::Health;
use crate::link::{Links, met_at};

/// How often the newest snapshot is looked at.
const LOOK_AT_SITE: Duration = Duration::from_millis(250);
/// What `status` calls a contradiction between clusters.
const SUBJECT: &str = "ports of clusters";

/// Where what is wanted follows from.
pub struct Wishes {
    /// Whose snapshots have the clusters.
    pub controller: Controller,
    /// The bastion's links.
    pub links: watch::Receiver<Arc<Links>>,
    /// Those that the site makes public.
    pub public: Vec<LinkName>,
    /// Where a contradiction is told that the site's files did not show, since the kernel alone knows an address.
    pub health: Health,
}

impl Wishes {
    /// What is wanted now.
    #[must_use]
    pub fn now(&self) -> Vec<Listener> {
        let site = self.controller.snapshot().load();
        wanted(&site, &self.links.borrow(), &self.public).0
    }

    /// Publishes what is wanted, as the site and the links change, until `stop`.
    ///
    /// # Errors
    /// Nobody follows the links any more.
    pub async fn follow(
        mut self,
        publish: watch::Sender<Arc<Vec<Listener>>>,
        stop: CancellationToken,
    ) -> Result<(), &'static str> {
        let mut look = tokio::time::interval(LOOK_AT_SITE);
        let mut told = Vec::new();
        loop {
            let seen = Arc::clone(&self.links.borrow_and_update());
            let site = self.controller.snapshot().load();
            let (listeners, taken) = wanted(&site, &seen, &self.public);
            if taken != told {
                self.tell(&taken);
                told = taken;
            }
            publish.send_if_modified(|published| {
                let changed = **published != listeners;
                if changed {
                    *published = Arc::new(listeners);
                }
                changed
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                changed = self.links.changed() => changed.map_err(|_| "nobody follows the links")?,
                _ = look.tick() => {}
            }
        }
    }

    fn tell(&self, taken: &[Taken]) {
        let words: Vec<String> = taken.iter().map(ToString::to_string).collect();
        if words.is_empty() {
            self.health.forget(SUBJECT);
            return;
        }
        let words = words.join("; ");
        warn!("{words}");
        self.health.ill(SUBJECT, words);
    }
}

/// The listeners that the site wants, of clusters whose balancer is not listed as a service or is started, and the addresses
/// that two clusters want.
fn wanted(site: &Site, links: &Links, public: &[LinkName]) -> (Vec<Listener>, Vec<Taken>) {
    let started = |(spec, state): &(&Arc<ClusterSpec>, &Arc<ClusterState>)| {
        state.does(ServiceKind::LoadBalancer, spec)
    };
    let clusters: Vec<(Vec<Endpoint>, Ground)> = site
        .clusters()
        .filter(started)
        .map(|(spec, state)| {
            let ground = ground(site.spec(), spec, links, public);
            (of_cluster(site.spec(), spec, state), ground)
        })
        .collect();
    placed(
        clusters
            .iter()
            .map(|(endpoints, ground)| (endpoints.as_slice(), ground)),
    )
}

/// A cluster's ports, and who is behind each by what was seen.
pub(crate) fn of_cluster(
    site: &SiteSpec,
    spec: &ClusterSpec,
    state: &ClusterState,
) -> Vec<Endpoint> {
    let mut ports = spec
        .platform
        .parse::<Platform>()
        .map_or(Vec::new(), Platform::ports);
    for port in &mut ports {
        port.proxy_protocol = site.proxied().contains(&port.port);
    }
    let members: Vec<Member> = members(site, spec, state);
    let holds = |fact: &str, node: Option<&NodeName>| {
        fact.parse().is_ok_and(|fact| state.knows(&fact, node))
    };
    endpoints(spec.name.as_str(), &ports, &members, &holds)
}

fn members(site: &SiteSpec, spec: &ClusterSpec, state: &ClusterState) -> Vec<Member> {
    let member = |member: &Arc<netboot::cluster::Member>| {
        let node = site.node(&member.node)?;
        let mut links = node.links.iter();
        let link = links.find(|link| link.network == spec.network);
        Some(Member {
            node: member.node.clone(),
            role: member.role,
            address: link.unwrap_or(node.boot_link()).address,
        })
    };
    state.members.iter().filter_map(member).collect()
}

/// Where a cluster's ports are listened on.
pub(crate) fn ground(
    site: &SiteSpec,
    spec: &ClusterSpec,
    links: &Links,
    public: &[LinkName],
) -> Ground {
    let network = site.network(&spec.network);
    let private = network.and_then(|network| {
        let (_, address) = met_at(site, links, &network.link).ok()?;
        Some(Place {
            link: network.link.clone(),
            address,
        })
    });
    let public = public.iter().filter_map(|name| {
        Some(Place {
            link: name.clone(),
            address: links.get(name.as_str())?.first_address()?,
        })
    });
    Ground {
        private: private.into_iter().collect(),
        public: public.collect(),
        open: spec.public,
    }
}
