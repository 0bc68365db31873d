//! `site.yaml`'s `links` and `host` together: what the site wants of the bastion's own network.
//!
//! Each link is judged by itself in `links.rs`. What two links, or a link and a network, contradict each other in is
//! found when the site is joined.

use std::collections::{BTreeMap, BTreeSet};

use netboot::host::{HostSpec, LinkPolicy, Masquerade, Service, Transport};
use netboot::net::{LinkName, Malformed, NetworkName};
use netboot::spec::{Mode, Network};
use netboot::zone::DnsMode;

use super::fault::{Faults, Place, suggestion};
use super::file;
use super::judge::{need, seconds};
use super::links::link;
use super::read::Given;
use super::site::{SiteFile, Written};

const CONFIRM_SECONDS: u32 = 60;
const CONFIRM_SECONDS_MIN: u32 = 10;
const CONFIRM_SECONDS_MAX: u32 = 3600;
/// Ports of clusters that must never be seen from outside: OpenShift's machine configs, RKE2's joins.
const CLUSTER_PORTS: [(&str, u16); 2] = [("machine-config", 22623), ("rke2-supervisor", 9345)];

/// What `links` and `host` say.
#[derive(Default)]
pub(super) struct HostFile {
    pub(super) spec: HostSpec,
    /// Side by side with the spec's links.
    pub(super) written: Vec<Written<Box<file::HostLink>>>,
    /// `host`, for the places in it.
    pub(super) host: Given<file::Host>,
}

/// Judges both keys; networks and ports are those of the rest of the file.
pub(super) fn judge(
    links: Given<file::Links>,
    host: Given<file::Host>,
    site: &SiteFile,
    faults: &Faults,
) -> HostFile {
    let absent = file::Host::default();
    let said = host.value().unwrap_or(&absent);
    let file::Host {
        links: policy,
        masquerade,
        firewall,
        confirm,
    } = said;
    let managed = !matches!(&links, Given::Good(_, file::Links::Word(_)))
        && !matches!(policy.value(), Some(file::LinkPolicy::Unmanaged));
    let listed = listed(links, policy, faults);
    let (mut wanted, mut written) = (Vec::new(), Vec::new());
    for (place_in_list, given) in (1..).zip(listed) {
        let Given::Good(place, entry) = given else {
            continue;
        };
        if let Some(link) = link(&entry, place, place_in_list, faults) {
            wanted.push(link);
            written.push(Written { place, entry });
        }
    }
    let firewall = firewall
        .value()
        .copied()
        .unwrap_or(managed && !wanted.is_empty());
    let mut spec = HostSpec {
        policy: if managed {
            LinkPolicy::Managed
        } else {
            LinkPolicy::Unmanaged
        },
        links: wanted,
        masquerade: masquerades(masquerade, site, faults),
        services: if firewall { services(site) } else { Vec::new() },
        confirm_seconds: confirm_seconds(confirm, faults),
    };
    forward(&mut spec, &written, faults);
    HostFile {
        spec,
        written,
        host,
    }
}

impl HostFile {
    /// Where the value stands that a contradiction about the link at `index` is about.
    pub(super) fn link_place(&self, index: usize, field: &str, value: &str) -> Option<Place> {
        let written = self.written.get(index)?;
        Some(written.place_of(field, value))
    }

    /// The same for what `host` says.
    pub(super) fn host_place(&self, field: &str, value: &str) -> Option<Place> {
        let (place, host) = self.host.good()?;
        let entries = || host.masquerade.value().into_iter().flatten();
        let inner = match field {
            "links" => host.links.place(),
            "masquerade" => host.masquerade.place(),
            "network" | "out" => entries()
                .filter_map(Given::value)
                .flat_map(|entry| [&entry.network, &entry.out])
                .find(|given| given.value().is_some_and(|text| text == value))
                .and_then(Given::place),
            "firewall" => host.firewall.place(),
            "confirm" => host.confirm.place(),
            _ => None,
        };
        Some(inner.unwrap_or(place))
    }
}

/// The entries of `links`; none where it says `unmanaged`.
fn listed(
    links: Given<file::Links>,
    policy: &Given<file::LinkPolicy>,
    faults: &Faults,
) -> Vec<Given<Box<file::HostLink>>> {
    match links {
        Given::Good(_, file::Links::Listed(links)) => links,
        Given::Good(place, file::Links::Word(word)) => {
            if word != "unmanaged" {
                let remedy = "list the links, or write `unmanaged`";
                faults.add(place, "links", &word, "is not a list", remedy);
            } else if let Some((place, file::LinkPolicy::Managed)) = policy.good() {
                let problem = "contradicts `links: unmanaged`";
                let remedy = "list the links that are to be made, or remove this";
                faults.add(place, "links", "managed", problem, remedy);
            }
            Vec::new()
        }
        Given::Absent | Given::Bad(_) => Vec::new(),
    }
}

fn masquerades(
    given: &Given<Vec<Given<file::Masquerade>>>,
    site: &SiteFile,
    faults: &Faults,
) -> Vec<Masquerade> {
    let mut wanted: Vec<Masquerade> = Vec::new();
    for (place, entry) in given.value().into_iter().flatten().filter_map(Given::good) {
        let network: Option<NetworkName> = need(faults, "network", &entry.network, place);
        let out = need(faults, "out", &entry.out, place);
        let (Some(name), Some(out)) = (network, out) else {
            continue;
        };
        let Some(network) = site.networks.iter().find(|network| network.name == name) else {
            if !site.broken.contains(name.as_str()) && !site.incomplete {
                let known = site.networks.iter().map(|network| network.name.as_str());
                let remedy = suggestion(name.as_str(), known);
                let place = entry.network.place().unwrap_or(place);
                let problem = "is not a network of this file";
                faults.add(place, "network", name.as_str(), problem, remedy);
            }
            continue;
        };
        let masquerade = Masquerade {
            from: network.subnet,
            inside: network.link.clone(),
            out,
        };
        if wanted.contains(&masquerade) {
            let problem = "leaves by this link already";
            let remedy = "remove one of the two";
            faults.add(place, "network", name.as_str(), problem, remedy);
        } else {
            wanted.push(masquerade);
        }
    }
    wanted
}

/// Masquerade needs forwarding on both its links; a link that is told otherwise is a contradiction.
fn forward(spec: &mut HostSpec, written: &[Written<Box<file::HostLink>>], faults: &Faults) {
    let HostSpec {
        links, masquerade, ..
    } = spec;
    for (wanted, written) in links.iter_mut().zip(written) {
        let name = &wanted.link.name;
        if !masquerade
            .iter()
            .any(|way| [&way.inside, &way.out].contains(&name))
        {
            continue;
        }
        if let Some((place, false)) = written.entry.forwarding.good() {
            let problem = "stops what `host: masquerade` forwards by this link";
            let remedy = "remove it, or the masquerade";
            faults.add(place, "forwarding", "false", problem, remedy);
        }
        wanted.forwarding = Some(true);
    }
}

/// Each port of the bastion and the links it is open on; one that is served nowhere is left alone.
fn services(site: &SiteFile) -> Vec<Service> {
    let links_of = |asked: fn(&Network) -> bool| -> BTreeSet<LinkName> {
        let networks = site.networks.iter().filter(|network| asked(network));
        networks.map(|network| network.link.clone()).collect()
    };
    let (answered, all) = (
        links_of(|network| network.mode != Mode::Off),
        links_of(|_| true),
    );
    let mut named = answered.clone();
    named.extend(site.dns.public.iter().cloned());
    let (serves_names, serves_time) = (site.dns.mode == DnsMode::Serve, site.serve_time);
    let boot = [
        ("boot-http", site.settings.http_port),
        ("boot-https", site.settings.tls_port),
        ("talos-events", site.settings.events_port),
    ];
    let udp = [("dhcp", 67), ("proxy-dhcp", 4011), ("tftp", 69)];
    let udp = udp.into_iter().chain(serves_time.then_some(("ntp", 123)));
    let udp = udp.map(|(name, port)| (name, Transport::Udp, port, &answered));
    let tcp = boot.into_iter().chain(CLUSTER_PORTS);
    let tcp = tcp.map(|(name, port)| (name, Transport::Tcp, port, &all));
    let dns = [Transport::Udp, Transport::Tcp].map(|transport| ("dns", transport, 53, &named));
    let dns = dns.into_iter().filter(|_| serves_names);
    // By transport and port, since one port in two rows would be closed wherever one of them is.
    let services: BTreeMap<_, _> = udp
        .into_iter()
        .chain(tcp)
        .chain(dns)
        .filter(|(.., links)| !links.is_empty())
        .map(|(name, transport, port, links)| {
            let links = links.clone();
            let service = Service {
                name,
                transport,
                port,
                links,
            };
            ((transport, port), service)
        })
        .collect();
    services.into_values().collect()
}

fn confirm_seconds(given: &Given<String>, faults: &Faults) -> u32 {
    let Some((place, text)) = given.good() else {
        return CONFIRM_SECONDS;
    };
    let range = CONFIRM_SECONDS_MIN..=CONFIRM_SECONDS_MAX;
    seconds(text)
        .filter(|seconds| range.contains(seconds))
        .unwrap_or_else(|| {
            let rule = "write 10s to 1h; 60s is usual";
            faults.add_malformed(
                place,
                "confirm",
                &Malformed::new("time to confirm", text, rule),
            );
            CONFIRM_SECONDS
        })
}
