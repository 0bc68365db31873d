//! From the site's files to [`Settings`] and a [`SiteSpec`], or every fault at once.
//!
//! ```text
//! source  bytes of a file      yaml   text to a tree with places
//! read    tree to file types   judge  words to the core's types, in networks, links, machines, profiles, clusters
//! SiteSpec::new                what contradicts between the parts
//! rehearsal                    what the templates make of the machines
//! ```
//!
//! Reads the site directory, the applied definitions and the depot's listing, and writes nothing. A part that is faulty is left out
//! where its neighbours are compared, so that one slip is one fault.

mod balancer;
mod build;
pub mod check;
pub mod clusters;
mod dns;
mod fault;
mod file;
mod free;
mod groups;
mod host;
mod judge;
mod links;
mod machines;
mod networks;
mod node_links;
mod profiles;
mod read;
mod services;
mod site;
mod source;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ignition::platform::{self, Platform};
use netboot::cluster::{Before, ClusterName, PlacementFault, Seats, place};
use netboot::event::Event;
use netboot::link::{Link, LinkKind};
use netboot::net::{LinkName, Timestamp, VlanId};
use netboot::node::NodeSpec;
use netboot::site::Site;
use netboot::spec::{ConfigSource, Item, Mode, NODES_MAX, Profile, SiteParts, SiteSpec, SpecFault};

use crate::clusters::member;
use crate::http::Ports;

use clusters::{Beside, Change, Clusters, Definition, Part};
pub use fault::{Fault, Report};
use fault::{Faults, Place};
use host::HostFile;
use profiles::Profiles;
use read::Given;
use site::{SiteFile, Written};
use source::Source;

/// Groups of like machines whose templates are rehearsed, at the most.
const REHEARSALS_MAX: usize = 256;

/// What `site.yaml` says of the daemon itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The site's name.
    pub site: String,
    /// The boot HTTP server's TCP port.
    pub http_port: u16,
    /// The same over TLS.
    pub tls_port: u16,
    /// Where Talos machines tell how far they are.
    pub events_port: u16,
    /// Who moves TFTP's blocks.
    pub tftp_engine: TftpEngine,
    /// Who takes connections for the clusters.
    pub balancer: BalancerEngine,
    /// Links on which the clusters' public ports are taken too.
    pub public_links: Vec<LinkName>,
    /// The group that may do everything on the control socket.
    pub group: String,
    /// The group that may look.
    pub read_group: Option<String>,
    /// Where the API is served over TCP too, on loopback.
    pub listen: Option<SocketAddr>,
}

/// Who moves TFTP's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TftpEngine {
    /// `netboot`'s transfer core.
    #[default]
    Builtin,
    /// The `async-tftp` crate.
    AsyncTftp,
}

/// Who takes connections for the clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancerEngine {
    /// The daemon itself.
    #[default]
    Embedded,
    /// A HAProxy that the daemon configures.
    Haproxy,
    /// One elsewhere, which is looked after.
    External,
    /// Nobody here.
    Off,
}

impl BalancerEngine {
    /// Whether the bastion itself takes connections.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Embedded | Self::Haproxy)
    }
}

impl Settings {
    /// The ports of boot HTTP.
    #[must_use]
    pub fn ports(&self) -> Ports {
        Ports {
            plain: self.http_port,
            tls: self.tls_port,
            events: self.events_port,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            site: "site".to_owned(),
            http_port: 8080,
            tls_port: 8443,
            events_port: 8444,
            tftp_engine: TftpEngine::Builtin,
            balancer: BalancerEngine::Embedded,
            public_links: Vec::new(),
            group: "reveille".to_owned(),
            read_group: None,
            listen: None,
        }
    }
}

/// A site that was read.
#[derive(Debug)]
pub struct Loaded {
    /// What it says of the daemon itself.
    pub settings: Settings,
    /// Everything else.
    pub spec: SiteSpec,
    /// What people had better know of it.
    pub warnings: Vec<Fault>,
    /// Where its clusters come from.
    pub definitions: BTreeMap<ClusterName, Definition>,
    /// Why its clusters can't be filled by a bastion that has seen nothing yet.
    unplaced: Vec<PlacementFault>,
}

impl Loaded {
    /// Groups that can't be filled, as faults of their definitions.
    ///
    /// # Errors
    /// The faults, if there are any.
    pub fn must_place(&self, unplaced: &[PlacementFault]) -> Result<(), Report> {
        if unplaced.is_empty() {
            return Ok(());
        }
        let fault = |unplaced: &PlacementFault| {
            let definition = self.definitions.get(&unplaced.cluster);
            let place = definition.and_then(|definition| definition.groups.get(&unplaced.group));
            let place = place.copied().unwrap_or_default();
            Fault {
                file: definition
                    .map_or_else(Default::default, |definition| definition.file.clone()),
                line: place.line,
                column: place.column,
                key: "group".to_owned(),
                value: unplaced.group.to_string(),
                problem: unplaced.problem.clone(),
                remedy: unplaced.remedy.clone(),
            }
        };
        Err(Report {
            faults: unplaced.iter().map(fault).collect(),
            more: 0,
        })
    }

    /// The same by a bastion that has seen nothing yet.
    ///
    /// # Errors
    /// The faults, if there are any.
    pub fn must_place_afresh(&self) -> Result<(), Report> {
        self.must_place(&self.unplaced)
    }
}

/// Loads the site in `site`; artefacts are looked up in the depot below `state`, and applied definitions there too.
///
/// # Errors
/// Every fault that was found, in file order.
pub fn load(site: &Path, state: &Path) -> Result<(Settings, SiteSpec), Report> {
    let loaded = load_changed(site, state, &Change::None)?;
    Ok((loaded.settings, loaded.spec))
}

/// Loads the site as it would be after a change of the applied definitions.
///
/// # Errors
/// Every fault that was found, in file order.
pub fn load_changed(site: &Path, state: &Path, change: &Change) -> Result<Loaded, Report> {
    let faults = Faults::default();
    let loaded = gather(site, state, change, &faults);
    match (faults.into_report(), loaded) {
        (None, Some(loaded)) => Ok(loaded),
        (Some(report), _) => Err(report),
        (None, None) => unreachable!("a site is given up only after a fault"),
    }
}

fn gather(root: &Path, state: &Path, change: &Change, faults: &Faults) -> Option<Loaded> {
    let mut source = Source::new(root, faults);
    let site = site_file(&mut source, faults);
    let profiles = profiles::read(&mut source, &state.join("depot"), faults);
    let (nodes, machines) = inventory(&mut source, &site, faults);
    let names: BTreeSet<_> = profiles
        .profiles
        .iter()
        .map(|profile| profile.name.clone())
        .collect();
    let beside = Beside {
        site: &site,
        profiles: &names,
    };
    let clusters = clusters::read(&mut source, state, change, &beside, faults);
    balancer::no_port_twice(&site, &clusters, faults);
    source.strays();
    let SiteFile {
        settings,
        admission,
        networks,
        written,
        host,
        dns,
        serve_time,
        proxied,
        ..
    } = site;
    let parts = SiteParts {
        networks,
        nodes,
        profiles: profiles.profiles.clone(),
        clusters: clusters.clusters.clone(),
        admission,
        host: host.spec.clone(),
        dns,
        serve_time,
        proxied,
    };
    match SiteSpec::new(parts) {
        Ok(spec) => {
            let seats = place(&spec, &Before::default());
            // Templates are rehearsed only on a site that holds together: the rest would be noise.
            if faults.count() == 0 {
                rehearse(&spec, seats.as_ref().ok(), &profiles, faults);
            }
            (faults.count() == 0).then(|| Loaded {
                settings,
                spec,
                warnings: faults.warnings(),
                definitions: clusters.definitions(faults),
                unplaced: seats.err().unwrap_or_default(),
            })
        }
        Err(found) => {
            let places = Places {
                networks: &written,
                host: &host,
                machines: &machines,
                profiles: &profiles,
                clusters: &clusters,
            };
            for contradiction in found {
                places.report(contradiction, faults);
            }
            None
        }
    }
}

fn site_file(source: &mut Source<'_>, faults: &Faults) -> SiteFile {
    let broken = SiteFile {
        incomplete: true,
        ..SiteFile::default()
    };
    let Some(text) = source.site() else {
        return broken;
    };
    match yaml::parse(&text.text, text.place, faults) {
        Some(tree) => networks::judge(read::read(&tree, faults), text.place, faults),
        None => broken,
    }
}

type Inventory = (Vec<NodeSpec>, Vec<Written<Box<file::Machine>>>);

fn inventory(source: &mut Source<'_>, site: &SiteFile, faults: &Faults) -> Inventory {
    let (mut nodes, mut machines) = (Vec::new(), Vec::new());
    source.inventory(|text| {
        let Some(tree) = yaml::parse(&text.text, text.place, faults) else {
            return;
        };
        let given: Given<file::Machines> = read::read(&tree, faults);
        if given.is_absent() {
            faults.add(text.place, "", "", "is empty", "begin with `machines:`");
        }
        let Given::Good(place, file::Machines { machines: listed }) = given else {
            return;
        };
        if listed.is_absent() {
            judge::missing(faults, "machines", place);
        }
        let Given::Good(_, listed) = listed else {
            return;
        };
        for given in listed {
            let Given::Good(place, entry) = given else {
                continue;
            };
            let written = Written { place, entry };
            let judged = machines::judge(&written, site, faults);
            // One too many is enough for the core to refuse the site.
            if let Some(node) = judged.filter(|_| nodes.len() <= NODES_MAX) {
                nodes.push(node);
                machines.push(written);
            }
        }
    });
    (nodes, machines)
}

/// Where the parts of a site stand, by their index in [`SiteParts`].
struct Places<'a> {
    networks: &'a [Written<Box<file::Network>>],
    host: &'a HostFile,
    machines: &'a [Written<Box<file::Machine>>],
    profiles: &'a Profiles,
    clusters: &'a Clusters,
}

impl Places<'_> {
    fn report(&self, contradiction: SpecFault, faults: &Faults) {
        let SpecFault {
            item,
            field,
            value,
            mut problem,
            remedy,
            earlier,
        } = contradiction;
        if let Some(earlier) = earlier.filter(|_| !faults.is_full()) {
            let place = self.place_of(earlier, field, &value);
            problem = format!("{problem}, first at {}", faults.say(place));
        }
        let place = self.place_of(item, field, &value);
        faults.add(place, field, &value, problem, remedy);
    }

    fn place_of(&self, item: Item, field: &str, value: &str) -> Place {
        let place = match item {
            Item::Network(index) => self.networks.get(index).map(|w| w.place_of(field)),
            Item::Node(index) => self.machines.get(index).map(|w| w.place_of(field, value)),
            Item::Cluster(index) => self.clusters.place_of(index, None, field, value),
            Item::Group(index, group) => {
                let part = Some(Part::Group(group));
                self.clusters.place_of(index, part, field, value)
            }
            Item::Service(index, service) => {
                let part = Some(Part::Service(service));
                self.clusters.place_of(index, part, field, value)
            }
            Item::Profile(index) => self.profiles.written.get(index).map(|w| w.place),
            Item::Link(index) => self.host.link_place(index, field, value),
            Item::Host => self.host.host_place(field, value),
        };
        place.unwrap_or_default()
    }
}

/// What templates and formats may stumble over in a link: its name, and what makes it.
fn shape(link: &Link) -> (&LinkName, Option<VlanId>) {
    let id = match link.kind {
        LinkKind::Vlan { id, .. } => Some(id),
        LinkKind::Card { .. } | LinkKind::Bridge { .. } | LinkKind::Bond { .. } => None,
    };
    (&link.name, id)
}

/// What its platform could not write for a cluster's member.
fn member_faults(
    site: &Site,
    node: &NodeSpec,
    profile: &Profile,
    subject: &ignition::Subject<'_>,
) -> Vec<ignition::Fault> {
    let ConfigSource::Platform(_) = profile.config else {
        return Vec::new();
    };
    let written = site.member(&node.name).and_then(|place| {
        let (spec, state) = site.cluster(&place.cluster)?;
        let platform: Platform = spec.platform.parse().ok()?;
        let (peers, server) = (member::peers(site, place), subject.network.subnet.network());
        let member = member::membership(spec, state, place, node, server, &peers)?;
        Some(platform::rehearse(platform, &member, profile, subject))
    });
    written.unwrap_or_default()
}

/// Renders each profile for one machine of each kind that its templates could tell apart by more than values.
fn rehearse(spec: &SiteSpec, seats: Option<&Seats>, profiles: &Profiles, faults: &Faults) {
    let of_group = |node: &NodeSpec| {
        let (cluster, seat) = seats?.get(&node.name)?;
        Some(&spec.cluster(cluster)?.group(&seat.group)?.profile)
    };
    // As a bastion that has seen nothing yet would have it.
    let filled = Event::SpecReplaced(Arc::new(spec.clone()));
    let site = Site::default().apply(filled, Timestamp::default()).site;
    let rank = |node: &NodeSpec| {
        let member = site.member(&node.name)?;
        Some((&member.cluster, member.role, member.index == 0))
    };
    let mut kinds = BTreeMap::new();
    for node in spec.nodes() {
        let Some(profile) = node.profile.as_ref().or_else(|| of_group(node)) else {
            continue;
        };
        let kind = (
            profile,
            &node.boot_link().network,
            node.system.iter().map(shape).collect::<Vec<_>>(),
            node.variables.keys().collect::<Vec<_>>(),
            (node.uuid.is_some(), node.serial.is_some()),
            node.disk.as_ref().map(|disk| disk.device().is_some()),
            rank(node),
        );
        kinds.entry(kind).or_insert((profile, node));
    }
    let subjects = kinds.values().map(|(profile, node)| {
        let link = node.boot_link();
        (*profile, Some((&***node, link)), &link.network)
    });
    let discoveries = spec.networks().filter(|network| network.mode == Mode::Pool);
    let discoveries =
        discoveries.filter_map(|network| Some((network.discovery.as_ref()?, None, &network.name)));
    for (profile, machine, network) in subjects.take(REHEARSALS_MAX).chain(discoveries) {
        let (Some(profile), Some(network)) = (spec.profile(profile), spec.network(network)) else {
            continue;
        };
        let node = machine.map(|(node, _)| node);
        let server = network.subnet.network();
        let subject = ignition::Subject {
            site: spec,
            node,
            link: machine.map(|(_, link)| link),
            network,
            disk: node
                .and_then(|node| node.disk.as_ref())
                .or(profile.disk.as_ref()),
            generation: 0,
            urls: &ignition::sample_urls(server),
        };
        let mut found = ignition::rehearse(profile, &subject);
        found.extend(node.map_or_else(Vec::new, |node| {
            member_faults(&site, node, profile, &subject)
        }));
        for fault in found {
            let place = profiles.place_of(&profile.name, fault.field, fault.line);
            let asker = match node {
                Some(node) => format!("machine {}", node.name),
                None => format!("machines not listed on network {}", network.name),
            };
            let problem = format!("does not serve {asker}: {}", fault.problem);
            faults.add(place, fault.field, "", problem, fault.remedy);
        }
    }
}
