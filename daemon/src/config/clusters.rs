//! Cluster definitions: those of the site's `clusters/`, those that were applied and lie in `<state>/clusters`, and
//! one that somebody offers. To the core's [`ClusterSpec`]s, each with the places of what it says.
//!
//! Defaults that people can leave to their platform are those of the platforms' own projects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignition::platform::Platform;
use netboot::cluster::{ClusterName, ClusterSpec, GroupName};
use netboot::link::LinkKind;
use netboot::net::{Hostname, Malformed, ProfileName, Subnet, VlanId};
use netboot::spec::{Mode, Network};

use super::fault::{Faults, Place, suggestion};
use super::file::{self, BootMethod, ClusterType};
use super::free::Free;
use super::groups::{Grouped, warn_of_quorum};
use super::judge::{missing, need, parse};
use super::read::{self, Given};
use super::services::{Served, validation};
use super::site::{SiteFile, Written};
use super::source::Source;
use super::{shape, yaml};

/// Where the daemon keeps applied definitions, below its state directory.
pub(crate) const APPLIED: &str = "clusters";
/// The longest `version`.
const VERSION_MAX: usize = 64;

/// What happens to the applied definitions, if it is to happen: the site as it would be then is judged.
#[derive(Clone, Debug, Default)]
pub enum Change {
    /// Nothing.
    #[default]
    None,
    /// One comes, or takes the place of the one with its name.
    Put(Offer),
    /// One goes.
    Remove(ClusterName),
}

/// A definition that nobody has kept yet.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What faults call its file.
    pub file: PathBuf,
    /// YAML, or JSON, which is YAML.
    pub text: Arc<str>,
}

/// Where a definition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The site's `clusters/`.
    Site,
    /// `<state>/clusters`.
    Applied,
    /// [`Change::Put`].
    Offered,
}

/// A definition as it was read.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Where it comes from.
    pub origin: Origin,
    /// Its file.
    pub file: PathBuf,
    /// Line and column of each of its groups.
    pub(super) groups: BTreeMap<GroupName, Place>,
}

/// The definitions of a site, side by side with what was written.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) clusters: Vec<ClusterSpec>,
    pub(super) written: Vec<WrittenCluster>,
}

/// A definition, and the parts of it that were judged sound, side by side with the spec's.
pub(super) struct WrittenCluster {
    origin: Origin,
    cluster: Written<Box<file::Cluster>>,
    groups: Vec<Written<Box<file::NodeGroup>>>,
    services: Vec<Written<Box<file::Service>>>,
}

/// What a definition is judged beside.
pub(super) struct Beside<'a> {
    pub(super) site: &'a SiteFile,
    pub(super) profiles: &'a BTreeSet<ProfileName>,
}

/// Reads and judges every definition.
pub(super) fn read(
    source: &mut Source<'_>,
    state: &Path,
    change: &Change,
    beside: &Beside<'_>,
    faults: &Faults,
) -> Clusters {
    let mut read = Clusters::default();
    let offered = match change {
        Change::Put(offer) => {
            let place = faults.open(&offer.file);
            entry(&offer.text, place, faults)
        }
        Change::None | Change::Remove(_) => None,
    };
    let name_of = |entry: &file::Cluster| entry.name.value().cloned();
    let gone = match change {
        Change::Remove(name) => Some(name.to_string()),
        Change::Put(_) => offered.as_ref().and_then(|written| name_of(&written.entry)),
        Change::None => None,
    };
    let mut of_site = BTreeMap::new();
    for text in source.definitions(None) {
        if let Some(written) = entry(&text.text, text.place, faults) {
            if let Some(name) = name_of(&written.entry) {
                of_site.insert(name, text.place);
            }
            read.take(Origin::Site, written, beside, faults);
        }
    }
    let mut of_api = Vec::new();
    for text in source.definitions(Some(&state.join(APPLIED))) {
        if gone.as_ref() != Some(&text.stem)
            && let Some(written) = entry(&text.text, text.place, faults)
        {
            of_api.push((Origin::Applied, written));
        }
    }
    of_api.extend(offered.map(|written| (Origin::Offered, written)));
    for (origin, written) in of_api {
        let name = name_of(&written.entry);
        let twice = name.and_then(|name| Some((of_site.get(&name)?, name)));
        if let Some((first, name)) = twice {
            let place = written.entry.name.place().unwrap_or(written.place);
            let problem = format!(
                "is defined in the site too, in {}",
                faults.file(*first).display()
            );
            let remedy = match origin {
                Origin::Applied => "delete one of the two files, then `reveille reload`",
                Origin::Site | Origin::Offered => {
                    "change that file and `reveille reload`, or delete it first"
                }
            };
            faults.add(place, "name", &name, problem, remedy);
            continue;
        }
        read.take(origin, written, beside, faults);
    }
    read
}

impl Clusters {
    fn take(
        &mut self,
        origin: Origin,
        cluster: Written<Box<file::Cluster>>,
        beside: &Beside<'_>,
        faults: &Faults,
    ) {
        let mut written = WrittenCluster {
            origin,
            cluster,
            groups: Vec::new(),
            services: Vec::new(),
        };
        if let Some(spec) = judge(&mut written, beside, faults) {
            self.clusters.push(spec);
            self.written.push(written);
        }
    }

    /// What is kept of the definitions once they are judged.
    pub(super) fn definitions(&self, faults: &Faults) -> BTreeMap<ClusterName, Definition> {
        let both = self.clusters.iter().zip(&self.written);
        both.map(|(spec, written)| {
            let groups = spec.groups.iter().zip(&written.groups);
            let definition = Definition {
                origin: written.origin,
                file: faults.file(written.cluster.place),
                groups: groups
                    .map(|(group, written)| {
                        let count = written.entry.count.place();
                        (group.name.clone(), count.unwrap_or(written.place))
                    })
                    .collect(),
            };
            (spec.name.clone(), definition)
        })
        .collect()
    }

    /// Where the value stands that a contradiction is about; `part` is a group or a service.
    pub(super) fn place_of(
        &self,
        cluster: usize,
        part: Option<Part>,
        field: &str,
        value: &str,
    ) -> Option<Place> {
        let written = self.written.get(cluster)?;
        let place = match part {
            None => written.cluster_place(field),
            Some(Part::Group(index)) => {
                let group = written.groups.get(index)?;
                group_place(&group.entry, field, value).or(Some(group.place))
            }
            Some(Part::Service(index)) => {
                let service = written.services.get(index)?;
                let place = match field {
                    "name" => service.entry.name.place(),
                    _ => {
                        named(&service.entry.depends_on, value).or(service.entry.depends_on.place())
                    }
                };
                place.or(Some(service.place))
            }
        };
        place.or(Some(written.cluster.place))
    }
}

/// A part of a definition by its place in the spec.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Group(usize),
    Service(usize),
}

impl WrittenCluster {
    fn cluster_place(&self, field: &str) -> Option<Place> {
        let entry = &self.cluster.entry;
        let network = entry.network.value();
        match field {
            "name" => entry.name.place(),
            "nodeGroups" => entry.node_groups.place(),
            "podCIDR" => network.and_then(|network| network.pod_cidr.place()),
            "serviceCIDR" => network.and_then(|network| network.service_cidr.place()),
            "dependsOn" => entry.services.place(),
            _ => None,
        }
        .or_else(|| entry.network.place().filter(|_| field != "name"))
    }
}

fn group_place(entry: &file::NodeGroup, field: &str, value: &str) -> Option<Place> {
    let placement = entry.placement.value();
    match field {
        "name" => entry.name.place(),
        "role" => entry.role.place(),
        "configTemplate" => entry.boot.value()?.config_template.place(),
        "becomes" => entry.lifecycle.value()?.becomes.place(),
        "preferredNodes" => named(&placement?.preferred_nodes, value),
        "targetNodes" => named(&placement?.target_nodes, value),
        _ => None,
    }
}

/// Where a name stands in a list.
fn named(list: &Given<Vec<Given<String>>>, name: &str) -> Option<Place> {
    let mut names = list.value()?.iter().filter_map(Given::good);
    names
        .find(|(_, text)| *text == name)
        .map(|(place, _)| place)
}

fn entry(text: &str, place: Place, faults: &Faults) -> Option<Written<Box<file::Cluster>>> {
    let tree = yaml::parse(text, place, faults)?;
    match read::read::<Box<file::Cluster>>(&tree, faults) {
        Given::Good(place, entry) => Some(Written { place, entry }),
        Given::Absent => {
            faults.add(place, "", "", "is empty", "begin with `name:`");
            None
        }
        Given::Bad(_) => None,
    }
}

/// Judges one definition; `None` when it is too faulty to be compared with others.
fn judge(
    written: &mut WrittenCluster,
    beside: &Beside<'_>,
    faults: &Faults,
) -> Option<ClusterSpec> {
    let WrittenCluster {
        cluster: Written { place, entry },
        groups: sound_groups,
        services: sound_services,
        origin: _,
    } = written;
    let place = *place;
    let file::Cluster {
        name,
        kind,
        version,
        boot_method,
        network,
        node_groups,
        services,
        security: _,
        validation: followed,
        platform_config,
    } = &**entry;
    let name: Option<ClusterName> = need(faults, "name", name, place);
    let platform = platform(kind, place, faults);
    let version = release(platform, version, place, faults);
    let by_template = !from_network("bootMethod", boot_method, faults);
    let absent = file::ClusterNetwork::default();
    let said = network.value().unwrap_or(&absent);
    let where_network = network.place().unwrap_or(place);
    let network = the_network(said, where_network, beside.site, faults);
    let domain = domain(
        said,
        where_network,
        network,
        beside.site,
        name.as_ref(),
        faults,
    );
    let (pods, services_range) = ranges(said, platform, faults);
    let public = said.public_access.value().copied().unwrap_or(true);
    let mut course = platform.map(Platform::course).unwrap_or_default();
    let validation = validation(followed, platform, &mut course, faults);
    if node_groups.is_absent() {
        missing(faults, "nodeGroups", place);
    }
    let mut groups = Vec::new();
    for given in node_groups.value().into_iter().flatten() {
        let Some((place, entry)) = given.good() else {
            continue;
        };
        let judged = Grouped {
            by_template,
            platform,
            network,
            public,
            beside,
            faults,
        };
        if let Some(group) = judged.group(entry, place) {
            groups.push(group);
            sound_groups.push(Written {
                place,
                entry: entry.clone(),
            });
        }
    }
    let mut needs = Vec::new();
    for (place, entry) in services
        .value()
        .into_iter()
        .flatten()
        .filter_map(Given::good)
    {
        let judged = Served {
            site: beside.site,
            network,
            faults,
        };
        if let Some(service) = judged.service(entry, place) {
            needs.push(service);
            sound_services.push(Written {
                place,
                entry: entry.clone(),
            });
        }
    }
    let settings = platform_config
        .value()
        .map_or(serde_json::Value::Null, Free::plain);
    if let (Some(platform), Some(version)) = (platform, &version) {
        for fault in platform.judge(version, &settings) {
            let at = platform_config.good();
            let at = at.and_then(|(place, free)| free.place_of(&fault.pointer).or(Some(place)));
            let key = fault
                .pointer
                .rsplit('/')
                .next()
                .filter(|key| !key.is_empty());
            let key = key.unwrap_or("platformConfig");
            let at = at.unwrap_or(place);
            faults.add(at, key, &fault.value, fault.problem, fault.remedy);
        }
    }
    let every_group = node_groups
        .value()
        .is_some_and(|all| all.len() == groups.len());
    if let Some((place, _)) = node_groups.good().filter(|_| every_group) {
        warn_of_quorum(&groups, place, faults);
    }
    // What a faulty part would have been is not guessed: its neighbours would be blamed for it.
    let every_service = services.value().map_or(0, Vec::len) == needs.len();
    if !every_group || !every_service {
        return None;
    }
    Some(ClusterSpec {
        name: name?,
        platform: platform?.word().into(),
        version: version?.into(),
        domain: domain?,
        network: network?.name.clone(),
        pods: pods?,
        services: services_range?,
        course,
        groups,
        needs,
        public,
        validation,
        settings: Arc::new(settings),
    })
}

fn platform(kind: &Given<ClusterType>, item: Place, faults: &Faults) -> Option<Platform> {
    if kind.is_absent() {
        missing(faults, "type", item);
    }
    let (place, kind) = kind.good()?;
    let word = match kind {
        ClusterType::Okd => "OKD",
        ClusterType::Talos => "TALOS",
        ClusterType::K3s => "K3S",
        ClusterType::Rke2 => "RKE2",
        ClusterType::Vanilla => "VANILLA",
    };
    let parsed = word.parse();
    if let Err(Malformed { rule, .. }) = parsed {
        faults.add(place, "type", word, "is not supported yet", rule);
    }
    parsed.ok()
}

fn release(
    platform: Option<Platform>,
    version: &Given<String>,
    item: Place,
    faults: &Faults,
) -> Option<String> {
    if version.is_absent() {
        missing(faults, "version", item);
    }
    let (place, text) = version.good()?;
    let sound = (1..=VERSION_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
    if !sound {
        let remedy = "write it as the platform's project does, such as 4.19.0 or v1.32.0+k3s1";
        faults.add(place, "version", text, "is no release", remedy);
        return None;
    }
    if let Some(Err(malformed)) = platform.map(|platform| platform.release(text)) {
        faults.add_malformed(place, "version", &malformed);
        return None;
    }
    Some(text.clone())
}

/// False after a fault: the machines would not boot from the network.
pub(super) fn from_network(key: &str, method: &Given<BootMethod>, faults: &Faults) -> bool {
    let Some((place, method)) = method.good() else {
        return true;
    };
    let (word, problem, remedy) = match method {
        BootMethod::Pxe => return true,
        BootMethod::Iso => (
            "ISO",
            "comes later",
            "write PXE, and set the machines to boot from their network",
        ),
        BootMethod::Template => (
            "TEMPLATE",
            "makes virtual machines, and these are of metal",
            "write PXE, take `template` out of the groups, and let `boot.configTemplate` name a profile of the site",
        ),
        BootMethod::Hybrid => (
            "HYBRID",
            "comes later",
            "write PXE, which every group may use",
        ),
    };
    faults.add(place, key, word, problem, remedy);
    false
}

/// Where the machines are.
pub(super) fn the_network<'a>(
    said: &file::ClusterNetwork,
    item: Place,
    site: &'a SiteFile,
    faults: &Faults,
) -> Option<&'a Network> {
    let found = named_network(said, item, site, faults)?;
    if let Some((place, file::Isolation::Vlan)) = said.isolation.good()
        && vlan_of(found, site).is_none()
    {
        let link = &found.link;
        let problem = format!(
            "is not what network {} has: its link {link} is no VLAN",
            found.name
        );
        let remedy = "name a network whose link is one, or write NONE";
        faults.add(place, "isolation", "VLAN", problem, remedy);
    }
    Some(found)
}

fn named_network<'a>(
    said: &file::ClusterNetwork,
    item: Place,
    site: &'a SiteFile,
    faults: &Faults,
) -> Option<&'a Network> {
    let names = || site.networks.iter().map(|network| network.name.as_str());
    let vlan = said.private_vlan.good();
    if let Some((place, name)) = said.network.good() {
        let found = site
            .networks
            .iter()
            .find(|network| network.name.as_str() == name);
        if found.is_none() && !site.broken.contains(name) && !site.incomplete {
            let remedy = suggestion(name, names());
            faults.add(place, "network", name, "is no network of the site", remedy);
        }
        if let (Some(network), Some((place, id))) = (found, vlan)
            && vlan_of(network, site).is_some_and(|there| there != *id)
        {
            let problem = format!(
                "is not the VLAN of network {name}, whose link is {}",
                network.link
            );
            let remedy = "name the network of that VLAN, or leave `privateVLAN` out";
            faults.add(place, "privateVLAN", &id.to_string(), problem, remedy);
        }
        return found;
    }
    let (place, key, value, able): (_, _, _, Vec<&Network>) = match vlan {
        Some((place, id)) => {
            let on_it = |network: &&Network| vlan_of(network, site) == Some(*id);
            let able = site.networks.iter().filter(on_it).collect();
            (place, "privateVLAN", id.to_string(), able)
        }
        None => {
            let answers = |network: &&Network| network.mode != Mode::Off;
            let able = site.networks.iter().filter(answers).collect();
            (item, "", "this cluster".to_owned(), able)
        }
    };
    match able[..] {
        [network] => return Some(network),
        _ if !site.broken.is_empty() || site.incomplete => {}
        [] if vlan.is_some() => {
            let remedy =
                "add a network of that VLAN to site.yaml, or name another one by `network:`";
            faults.add(
                place,
                key,
                &value,
                "is the VLAN of no network of the site",
                remedy,
            );
        }
        [] => faults.add(
            place,
            key,
            &value,
            "finds no network that answers",
            "add one to site.yaml",
        ),
        _ => {
            let able: Vec<&str> = able.iter().map(|network| network.name.as_str()).collect();
            let problem = format!("may be on any of {}", able.join(", "));
            faults.add(
                place,
                key,
                &value,
                problem,
                "name one by `network: { network: … }`",
            );
        }
    }
    None
}

/// The VLAN of a network's link: what the site makes it with, else the end of its name.
fn vlan_of(network: &Network, site: &SiteFile) -> Option<u16> {
    let mut links = site.host.spec.links.iter().map(|link| &link.link);
    let made = links.find(|link| link.name == network.link);
    match made.map(|link| &link.kind) {
        Some(LinkKind::Vlan { id, .. }) => Some(id.get()),
        Some(LinkKind::Bridge { ports, .. }) => {
            let links = site.host.spec.links.iter().map(|link| shape(&link.link));
            let mut ports = links.filter(|(name, _)| ports.contains(name));
            ports.find_map(|(_, id)| id).map(VlanId::get)
        }
        Some(LinkKind::Bond { .. }) => None,
        Some(LinkKind::Card { .. }) | None => {
            let name = network.link.as_str();
            let end = name.rsplit_once('.').map(|(_, id)| id);
            end.or(name.strip_prefix("vlan"))?.parse().ok()
        }
    }
}

fn domain(
    said: &file::ClusterNetwork,
    item: Place,
    network: Option<&Network>,
    site: &SiteFile,
    name: Option<&ClusterName>,
    faults: &Faults,
) -> Option<Hostname> {
    if !said.domain.is_absent() {
        return parse(faults, "domain", &said.domain);
    }
    let network = network?;
    if let Some(domain) = &network.domain {
        return Some(domain.clone());
    }
    // ICANN keeps `internal` out of the public DNS for such use (resolution 2024.07.29.06).
    let domain: Hostname = format!("{}.internal", site.settings.site).parse().ok()?;
    let problem = format!(
        "takes the domain {domain}, for neither it nor network {} names one",
        network.name
    );
    let remedy = "write `domain:` there: a cluster's domain can't be changed once it is made";
    let value = name.map_or("this cluster", ClusterName::as_str);
    faults.warn(item, "", value, &problem, remedy);
    Some(domain)
}

type Ranges = (Option<Vec<Subnet>>, Option<Vec<Subnet>>);

/// Addresses of pods and services, those of the platform where none are given.
fn ranges(said: &file::ClusterNetwork, platform: Option<Platform>, faults: &Faults) -> Ranges {
    let one = |key, given: &Given<String>, default: fn(Platform) -> Subnet| {
        let subnet = match given.is_absent() {
            true => Some(default(platform?)),
            false => parse(faults, key, given),
        };
        subnet.map(|subnet| vec![subnet])
    };
    (
        one("podCIDR", &said.pod_cidr, Platform::default_pods),
        one(
            "serviceCIDR",
            &said.service_cidr,
            Platform::default_services,
        ),
    )
}
