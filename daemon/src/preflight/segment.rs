//! One link and everything on it: who answers DHCP, who uses which address, whether anything is there at all.
//!
//! ```text
//!   0 s        1 s        3 s        5 s        at most 9 s
//!   DISCOVER   DISCOVER   DISCOVER
//!   ARP, ND    ARP, ND               judged     pings of the network's size
//!   |<------------- listening ------>|
//! ```
//!
//! A DHCP server may look for three seconds whether an address is free before it offers it, hence the five.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use netboot::host::{HostSpec, LinkPolicy};
use netboot::link::LinkKind;
use netboot::net::{LinkName, MacAddress, NetworkName, NodeName};
use netboot::spec::Network;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::frames::{Ear, Heard, Offer, Stranger, read, who_has, who_has6};
use super::{Check, Id, Scene, path};
use crate::link::Link;
use crate::tls;

const LISTEN: Duration = Duration::from_secs(5);
const DISCOVERS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(3),
];
const PROBES: [Duration; 2] = [Duration::ZERO, Duration::from_secs(1)];
/// Addresses asked for on one link. At the pace below two rounds of them end within the listening time.
const PROBES_MAX: usize = 4096;
const PROBES_AT_ONCE: usize = 64;
const PROBES_PAUSE: Duration = Duration::from_millis(30);
/// Stations that one address is remembered for, offers that are: more says nothing new.
const ANSWERS_MAX: usize = 16;

/// Whose an address is.
#[derive(Clone, Debug)]
struct Reserved {
    network: NetworkName,
    node: NodeName,
    macs: Vec<MacAddress>,
}

/// What is asked on one link.
#[derive(Debug)]
pub(super) struct Segment {
    name: LinkName,
    /// As the kernel has it; `None` when it is not there.
    link: Option<Link>,
    vlan: Option<u16>,
    /// The site lists it, and the daemon makes what it lists.
    managed: bool,
    /// Every address of this host: what is offered under one of them is offered by us.
    ours: BTreeSet<Ipv4Addr>,
    /// Those served on it.
    networks: Vec<Arc<Network>>,
    reserved: BTreeMap<Ipv4Addr, Reserved>,
    /// Addresses reserved beyond [`PROBES_MAX`].
    unasked: usize,
    gateways: BTreeSet<IpAddr>,
    ours6: Vec<Ipv6Addr>,
}

/// What was heard on one link.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) stations: BTreeMap<Ipv4Addr, BTreeSet<MacAddress>>,
    stations6: BTreeMap<Ipv6Addr, BTreeSet<MacAddress>>,
    offers: BTreeSet<Offer>,
    /// Frames that came in while listening, of whatever kind; `None` when the kernel didn't say.
    frames: Option<u64>,
}

/// The links that are served or have a gateway.
pub(super) fn segments(scene: &Scene) -> Vec<Segment> {
    let (spec, host) = (&scene.spec, scene.spec.host());
    let served = scene.networks().filter(|network| !network.relayed);
    let mut networks = BTreeMap::<LinkName, Vec<Arc<Network>>>::new();
    for network in served {
        let here = networks.entry(network.link.clone()).or_default();
        here.push(Arc::clone(network));
    }
    // A link without an address is a port or a parent, on which there is nothing to ask.
    for wanted in host
        .links
        .iter()
        .filter(|wanted| !wanted.link.addresses.is_empty() && scene.focus.is_none())
    {
        networks.entry(wanted.link.name.clone()).or_default();
    }
    let ours: BTreeSet<Ipv4Addr> = scene
        .links
        .values()
        .flat_map(|link| link.addresses.iter().map(Ipv4Net::addr))
        .collect();
    let ours6 = addresses6();
    let mut segments: Vec<Segment> = networks
        .into_iter()
        .map(|(name, networks)| {
            let link = scene.links.get(name.as_str()).cloned();
            let index = link.as_ref().map(|link| link.index);
            let mine = |of: &&(u32, Ipv6Addr)| Some(of.0) == index;
            Segment {
                vlan: vlan_of(host, &name),
                managed: host.policy == LinkPolicy::Managed && host.link(&name).is_some(),
                ours: ours.clone(),
                gateways: gateways(host, &name),
                ours6: ours6.iter().filter(mine).map(|of| of.1).collect(),
                reserved: BTreeMap::new(),
                unasked: 0,
                name,
                link,
                networks,
            }
        })
        .collect();
    for node in spec.nodes() {
        for attached in &node.links {
            let here = |segment: &&mut Segment| {
                let mut names = segment.networks.iter().map(|network| &network.name);
                names.any(|name| *name == attached.network)
            };
            let Some(segment) = segments.iter_mut().find(here) else {
                continue;
            };
            if segment.reserved.len() == PROBES_MAX {
                segment.unasked += 1;
                continue;
            }
            let reserved = Reserved {
                network: attached.network.clone(),
                node: node.name.clone(),
                // A machine may answer for one of its addresses by any of its cards.
                macs: node.macs().collect(),
            };
            segment.reserved.insert(attached.address, reserved);
        }
    }
    segments
}

/// The tag of a link's frames: by the site, or by the name that everybody gives such a link.
fn vlan_of(host: &HostSpec, name: &LinkName) -> Option<u16> {
    if let Some(LinkKind::Vlan { id, .. }) = host.link(name).map(|wanted| &wanted.link.kind) {
        return Some(id.get());
    }
    let (_, id) = name.as_str().rsplit_once('.')?;
    id.parse().ok().filter(|id| (1..=4094).contains(id))
}

/// Where the default routes of a link's tables lead.
fn gateways(host: &HostSpec, name: &LinkName) -> BTreeSet<IpAddr> {
    let routes = host
        .link(name)
        .map_or(&[][..], |wanted| &wanted.link.routes);
    let everywhere = |to: &IpNet| to.prefix_len() == 0;
    let defaults = routes.iter().filter(|route| everywhere(&route.to));
    defaults.filter_map(|route| route.via).collect()
}

/// This host's IPv6 addresses with the index of their links, from `/proc/net/if_inet6`: address, index, prefix
/// length, scope, flags and name, all but the last in hexadecimal.
fn addresses6() -> Vec<(u32, Ipv6Addr)> {
    // A host without IPv6 has no such file.
    let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        let index = u32::from_str_radix(words.next()?, 16).ok()?;
        Some((index, Ipv6Addr::from_bits(address)))
    };
    text.lines().filter_map(line).collect()
}

impl Segment {
    pub(super) fn name(&self) -> &LinkName {
        &self.name
    }

    /// Asks, listens and judges.
    pub(super) async fn check(self) -> Vec<Check> {
        let mut checks = self.judge_link();
        let subject = format!("link {}", self.name);
        let Some(link) = self.link.as_ref().filter(|link| link.up) else {
            return checks;
        };
        let Some(mac) = MacAddress::from_octets(link.mac) else {
            let evidence = "is no Ethernet link, so nothing can be asked there";
            let remedy = "serve machines on an Ethernet link, a VLAN or a bridge";
            checks.push(Check::fail(
                Id::VlanCarriesFrames,
                subject,
                evidence,
                remedy,
            ));
            return checks;
        };
        let stranger = Stranger::new(tls::random());
        let [high, low] = tls::random();
        let voice = path::Voice {
            mac,
            stranger,
            ping_id: u16::from_be_bytes([high, low]),
        };
        let heard = async {
            let ear = Ear::open(link.index)?;
            let evidence = self.listen(&ear, link, voice).await?;
            Ok::<_, io::Error>((ear, evidence))
        };
        match heard.await {
            Ok((ear, evidence)) => {
                checks.extend(self.judge(link, &evidence));
                for network in &self.networks {
                    checks.extend(path::check(network, link, &evidence, &ear, voice).await);
                }
            }
            Err(error) => checks.push(Check::fail(
                Id::VlanCarriesFrames,
                subject,
                format!("frames can't be sent or heard: {error}"),
                "run it as root or let the daemon do it (CAP_NET_RAW), with the link up",
            )),
        }
        checks
    }

    /// Speaks and listens for [`LISTEN`].
    async fn listen(&self, ear: &Ear, link: &Link, voice: path::Voice) -> io::Result<Evidence> {
        let start = Instant::now();
        let frames_before = frames_of(&self.name);
        let asks_dhcp = !self.networks.is_empty();
        let discovering = async {
            for at in DISCOVERS {
                sleep_until(start + at).await;
                if let Some(frame) = voice
                    .stranger
                    .discover_frame(voice.mac)
                    .filter(|_| asks_dhcp)
                {
                    ear.say(&frame).await?;
                }
            }
            Ok::<_, io::Error>(())
        };
        let probes = self.probes(link, voice.mac);
        let probing = async {
            for at in PROBES {
                sleep_until(start + at).await;
                for some in probes.chunks(PROBES_AT_ONCE) {
                    for frame in some {
                        ear.say(frame).await?;
                    }
                    sleep(PROBES_PAUSE).await;
                }
            }
            Ok(())
        };
        let mut evidence = Evidence::default();
        let mut buffer = Ear::buffer();
        let listening = async {
            loop {
                let frame = ear.hear(&mut buffer).await?;
                if let Some(heard) = read(frame, voice.mac, voice.stranger, voice.ping_id) {
                    evidence.note(heard, self, link);
                }
            }
        };
        let listening = async {
            // Time ends the listening, unless the link does.
            timeout(LISTEN, listening).await.unwrap_or(Ok(()))
        };
        tokio::try_join!(discovering, probing, listening)?;
        let frames_after = frames_of(&self.name);
        evidence.frames = frames_before
            .zip(frames_after)
            .map(|(before, after)| after.saturating_sub(before));
        Ok(evidence)
    }

    /// The frames of one round of questions about addresses.
    fn probes(&self, link: &Link, mac: MacAddress) -> Vec<Vec<u8>> {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        let ours = link.addresses.iter().map(Ipv4Net::addr);
        let claimed = ours.chain(self.reserved.keys().copied());
        let probes = claimed.filter_map(|address| who_has(mac, nowhere, address));
        // Some routers answer nobody who has no address, and a station that has ours answers nobody who has it too.
        let asked = |near: Option<Ipv4Addr>, router: Ipv4Addr| {
            let froms = near.into_iter().chain([nowhere]);
            froms.filter_map(move |from| who_has(mac, from, router))
        };
        let routers = self.networks.iter().flat_map(|network| {
            let near = ours_in(link, network);
            network
                .router
                .into_iter()
                .flat_map(move |router| asked(near, router))
        });
        let gateways = self.gateways.iter().flat_map(|gateway| {
            let frames: Vec<Vec<u8>> = match gateway {
                IpAddr::V4(gateway) => {
                    let near = link.addresses.iter().find(|net| net.contains(gateway));
                    asked(near.map(Ipv4Net::addr), *gateway).collect()
                }
                IpAddr::V6(gateway) => who_has6(mac, *gateway).into_iter().collect(),
            };
            frames
        });
        let probes6 = self.ours6.iter().filter_map(|ours| who_has6(mac, *ours));
        probes
            .chain(routers)
            .chain(gateways)
            .chain(probes6)
            .collect()
    }
}

impl Evidence {
    /// Remembers what was heard, if it was asked for. Bounded by what was asked.
    fn note(&mut self, heard: Heard, segment: &Segment, link: &Link) {
        match heard {
            Heard::Station { address, mac } => {
                let gateways = &segment.gateways;
                let asked = segment.reserved.contains_key(&address)
                    || link.addresses.iter().any(|ours| ours.addr() == address)
                    || gateways.contains(&IpAddr::V4(address))
                    || segment.networks.iter().any(|n| n.router == Some(address));
                let known = self.stations.get(&address).map_or(0, BTreeSet::len);
                if asked && known < ANSWERS_MAX {
                    self.stations.entry(address).or_default().insert(mac);
                }
            }
            Heard::Station6 { address, mac } => {
                let asked = segment.ours6.contains(&address)
                    || segment.gateways.contains(&IpAddr::V6(address));
                let known = self.stations6.get(&address).map_or(0, BTreeSet::len);
                if asked && known < ANSWERS_MAX {
                    self.stations6.entry(address).or_default().insert(mac);
                }
            }
            Heard::Offer(offer) => {
                if self.offers.len() < ANSWERS_MAX {
                    self.offers.insert(offer);
                }
            }
            Heard::Pong { .. } => {}
        }
    }
}

/// Our address in a network that is served on a link.
pub(super) fn ours_in(link: &Link, network: &Network) -> Option<Ipv4Addr> {
    let ours = link.addresses.iter().map(Ipv4Net::addr);
    ours.into_iter()
        .find(|address| network.subnet.contains(*address))
}

/// How many frames ever came in by a link: the second number behind its name in `/proc/net/dev`.
fn frames_of(link: &LinkName) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let mut lines = text.lines();
    let numbers = lines.find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == link.as_str()).then_some(numbers)
    })?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}
