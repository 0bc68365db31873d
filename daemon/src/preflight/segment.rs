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

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use netboot::host::HostSpec;
use netboot::link::LinkKind;
use netboot::net::{LinkName, MacAddress, NetworkName, NodeName};
use netboot::spec::{Mode, Network};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::frames::{Ear, Heard, Offer, Stranger, read, who_has, who_has6};
use super::{Check, Id, Scene, listed, path};
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
    let served = spec
        .networks()
        .filter(|network| network.mode != Mode::Off && !network.relayed);
    let mut networks = BTreeMap::<LinkName, Vec<Arc<Network>>>::new();
    for network in served {
        let here = networks.entry(network.link.clone()).or_default();
        here.push(Arc::clone(network));
    }
    for wanted in &host.links {
        networks.entry(wanted.link.name.clone()).or_default();
    }
    let ours6 = addresses6();
    let mut segments: Vec<Segment> = networks
        .into_iter()
        .map(|(name, networks)| {
            let link = scene.links.get(name.as_str()).cloned();
            let index = link.as_ref().map(|link| link.index);
            let mine = |of: &&(u32, Ipv6Addr)| Some(of.0) == index;
            Segment {
                vlan: vlan_of(host, &name),
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

    /// Whether the link is there, is up and has our addresses: needs no frame.
    fn judge_link(&self) -> Vec<Check> {
        let subject = format!("link {}", self.name);
        let Some(link) = &self.link else {
            let remedy = match self.vlan.zip(self.name.as_str().rsplit_once('.')) {
                Some((id, (parent, _))) => format!(
                    "make it: ip link add link {parent} name {} type vlan id {id}",
                    self.name
                ),
                None => "make it, or correct `link` in site.yaml; `ip link` shows what there is"
                    .to_owned(),
            };
            let evidence = "there is no link of this name";
            return vec![Check::fail(Id::HostLinks, subject, evidence, remedy)];
        };
        let mut checks = Vec::new();
        let lacking: Vec<String> = self
            .networks
            .iter()
            .filter(|network| ours_in(link, network).is_none())
            .map(|network| network.subnet.to_string())
            .collect();
        checks.push(if lacking.is_empty() {
            let addresses = link.addresses.iter().map(ToString::to_string);
            Check::pass(
                Id::HostLinks,
                &*subject,
                format!("has {}", listed(addresses)),
            )
        } else {
            Check::fail(
                Id::HostLinks,
                &*subject,
                format!("has no address in {}", listed(lacking)),
                format!("give it one: ip addr add ADDRESS/PREFIX dev {}", self.name),
            )
        });
        if !link.up {
            checks.push(Check::fail(
                Id::VlanCarriesFrames,
                subject,
                "is down or has no carrier",
                format!(
                    "ip link set {} up; then look at the cable and at the switch's port",
                    self.name
                ),
            ));
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
        let ours = link.addresses.iter().map(ipnet::Ipv4Net::addr);
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
                    asked(near.map(ipnet::Ipv4Net::addr), *gateway).collect()
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

    fn judge(&self, link: &Link, evidence: &Evidence) -> Vec<Check> {
        let mut checks = vec![
            judge_traffic(&self.name, self.vlan, evidence),
            judge_ours(&self.name, link, &self.ours6, evidence),
        ];
        let ours: Vec<Ipv4Addr> = link.addresses.iter().map(ipnet::Ipv4Net::addr).collect();
        let mut gateways = self.gateways.clone();
        for network in &self.networks {
            checks.push(judge_offers(network, &ours, &evidence.offers));
            checks.extend(judge_reserved(
                network,
                &self.reserved,
                self.unasked,
                evidence,
            ));
            gateways.extend(network.router.map(IpAddr::V4));
        }
        for gateway in gateways {
            let is_ours = match gateway {
                IpAddr::V4(gateway) => ours.contains(&gateway),
                IpAddr::V6(gateway) => self.ours6.contains(&gateway),
            };
            if !is_ours {
                checks.push(judge_gateway(&self.name, gateway, evidence));
            }
        }
        checks
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
    let ours = link.addresses.iter().map(ipnet::Ipv4Net::addr);
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

fn judge_traffic(link: &LinkName, vlan: Option<u16>, evidence: &Evidence) -> Check {
    let (id, subject) = (Id::VlanCarriesFrames, format!("link {link}"));
    let stations = evidence.stations.len() + evidence.stations6.len();
    let frames = evidence.frames.unwrap_or(0);
    if stations > 0 || frames > 0 || !evidence.offers.is_empty() {
        let evidence = format!("{frames} frames came in within 5 s, {stations} addresses answered");
        return Check::pass(id, subject, evidence);
    }
    let remedy = match vlan {
        Some(vlan) => format!(
            "the switch's port must carry VLAN {vlan} tagged, and allow it; with every machine off this is no fault"
        ),
        None => "the switch's port must carry the machines' VLAN untagged (an access port); with every machine off \
                 this is no fault"
            .to_owned(),
    };
    Check::warn(id, subject, "not one frame came in within 5 s", remedy)
}

fn judge_ours(name: &LinkName, link: &Link, ours6: &[Ipv6Addr], evidence: &Evidence) -> Check {
    let (id, subject) = (Id::DuplicateAddress, format!("link {name}"));
    let ours = link.addresses.iter().map(ipnet::Ipv4Net::addr);
    let others = ours.filter_map(|address| {
        let macs = evidence.stations.get(&address)?;
        Some(format!("{address} is also used by {}", said(macs)))
    });
    let others6 = ours6.iter().filter_map(|address| {
        let macs = evidence.stations6.get(address)?;
        Some(format!("{address} is also used by {}", said(macs)))
    });
    let duplicates: Vec<String> = others.chain(others6).collect();
    if duplicates.is_empty() {
        let count = link.addresses.len() + ours6.len();
        return Check::pass(
            id,
            subject,
            format!("nobody else uses our {count} addresses"),
        );
    }
    let remedy = "find the station by its MAC address in the switch's table and give it another address, or give \
                  the bastion one";
    Check::fail(id, subject, listed(duplicates), remedy)
}

fn judge_reserved(
    network: &Network,
    reserved: &BTreeMap<Ipv4Addr, Reserved>,
    unasked: usize,
    evidence: &Evidence,
) -> Option<Check> {
    let (id, subject) = (Id::DuplicateAddress, format!("network {}", network.name));
    let here: Vec<_> = reserved
        .iter()
        .filter(|(_, reserved)| reserved.network == network.name)
        .collect();
    let mut strangers = BTreeMap::<MacAddress, usize>::new();
    let mut duplicates = Vec::new();
    for (address, reserved) in &here {
        let Some(macs) = evidence.stations.get(address) else {
            continue;
        };
        let others = macs.iter().filter(|mac| !reserved.macs.contains(mac));
        let others: BTreeSet<MacAddress> = others.copied().collect();
        if !others.is_empty() {
            let node = &reserved.node;
            duplicates.push(format!("{address} of {node} is used by {}", said(&others)));
        }
        for mac in others {
            *strangers.entry(mac).or_default() += 1;
        }
    }
    if let Some((mac, count)) = strangers.into_iter().max_by_key(|(_, count)| *count) {
        let remedy = if count > 2 {
            format!(
                "{mac} answers for {count} addresses: turn off proxy ARP on that router (`ip proxy-arp`, \
                 net.ipv4.conf.*.proxy_arp)"
            )
        } else {
            "find the station by its MAC address in the switch's table and give it another address; if it is the \
             machine itself, correct `mac` in machines.yaml"
                .to_owned()
        };
        return Some(Check::fail(id, subject, listed(duplicates), remedy));
    }
    if unasked > 0 {
        return Some(Check::warn(
            id,
            subject,
            format!(
                "of the link's reserved addresses {unasked} were not asked for, of {PROBES_MAX} nobody is used twice"
            ),
            "part the network: so many machines on one link are too many broadcasts",
        ));
    }
    (!here.is_empty()).then(|| {
        let answered = here
            .iter()
            .filter(|(address, _)| evidence.stations.contains_key(address))
            .count();
        let evidence = format!(
            "{} reserved addresses: {answered} used by their machines, the others free",
            here.len()
        );
        Check::pass(id, subject, evidence)
    })
}

fn judge_offers(network: &Network, ours: &[Ipv4Addr], offers: &BTreeSet<Offer>) -> Check {
    let (id, subject) = (Id::RogueDhcp, format!("network {}", network.name));
    let others: Vec<&Offer> = offers
        .iter()
        .filter(|offer| !ours.contains(&offer.server))
        .collect();
    let said = listed(others.iter().map(|offer| {
        let Offer {
            mac,
            server,
            address,
        } = offer;
        if address.is_unspecified() {
            format!("server {server} at {mac} offered something to boot")
        } else {
            format!("server {server} at {mac} offered {address}")
        }
    }));
    let servers: BTreeSet<Ipv4Addr> = others
        .iter()
        .filter(|offer| !offer.address.is_unspecified())
        .map(|offer| offer.server)
        .collect();
    let boots = others.iter().any(|offer| offer.address.is_unspecified());
    match (network.mode, servers.len()) {
        (Mode::Proxy, 0) => Check::fail(
            id,
            subject,
            "no server gives addresses, and mode proxy needs one",
            "start the DHCP server of this network, or let Reveille give the addresses: mode: reservation",
        ),
        (Mode::Proxy, _) if boots => Check::fail(
            id,
            subject,
            said,
            "stop the other server that says what to boot (next-server, proxyDHCP): machines obey either",
        ),
        (Mode::Proxy, 1) => Check::pass(id, subject, said),
        (Mode::Proxy, _) => Check::warn(
            id,
            subject,
            said,
            "machines take the first offer: leave one server, unless the two share their leases",
        ),
        (Mode::Reservation | Mode::Pool | Mode::Off, 0) if !boots => {
            Check::pass(id, subject, "nobody else answered a DISCOVER within 5 s")
        }
        (Mode::Reservation | Mode::Pool | Mode::Off, _) => Check::fail(
            id,
            subject,
            said,
            "find that server by its MAC address in the switch's table and stop it, turn on DHCP snooping, or \
             serve beside it: mode: proxy",
        ),
    }
}

fn judge_gateway(link: &LinkName, gateway: IpAddr, evidence: &Evidence) -> Check {
    let (id, subject) = (Id::Gateway, format!("router {gateway} on {link}"));
    let macs = match gateway {
        IpAddr::V4(gateway) => evidence.stations.get(&gateway),
        IpAddr::V6(gateway) => evidence.stations6.get(&gateway),
    };
    match macs {
        Some(macs) if macs.len() > 1 => Check::fail(
            id,
            subject,
            format!("is claimed by {}", said(macs)),
            "find both stations by their MAC addresses and leave one of them",
        ),
        Some(macs) => Check::pass(id, subject, format!("answers from {}", said(macs))),
        None => Check::fail(
            id,
            subject,
            "does not answer within 5 s",
            "see that the router is on and has this address on this VLAN, or correct `router` in site.yaml",
        ),
    }
}

fn said(macs: &BTreeSet<MacAddress>) -> String {
    let macs: Vec<String> = macs.iter().map(ToString::to_string).collect();
    macs.join(" and ")
}
