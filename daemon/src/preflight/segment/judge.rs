//! What the evidence of one link means. Pure: no frame, no clock, no file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netboot::net::{LinkName, MacAddress, NetworkName};
use netboot::spec::Mode;

use super::{Evidence, PROBES_MAX, Reserved, Segment, ours_in};
use crate::link::Link;
use crate::preflight::frames::Offer;
use crate::preflight::{Check, Id, listed};

impl Segment {
    /// Whether a served link is there, is up and has our addresses: needs no frame.
    pub(super) fn judge_link(&self) -> Vec<Check> {
        if self.networks.is_empty() {
            return Vec::new();
        }
        let subject = format!("link {}", self.name);
        let by_daemon = "see that the daemon runs, which makes what the site lists under `links`";
        let Some(link) = &self.link else {
            let remedy = match self.vlan.zip(self.name.as_str().rsplit_once('.')) {
                _ if self.managed => by_daemon.to_owned(),
                Some((id, (parent, _))) => format!(
                    "make it: ip link add link {parent} name {} type vlan id {id}; or list it under `links`",
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
            let remedy = if self.managed {
                by_daemon.to_owned()
            } else {
                format!("give it one: ip addr add ADDRESS/PREFIX dev {}", self.name)
            };
            let evidence = format!("has no address in {}", listed(lacking));
            Check::fail(Id::HostLinks, &*subject, evidence, remedy)
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

    pub(super) fn judge(&self, link: &Link, evidence: &Evidence) -> Vec<Check> {
        let mut checks = vec![judge_ours(&self.name, link, &self.ours6, evidence)];
        if !self.networks.is_empty() {
            checks.push(judge_traffic(&self.name, self.vlan, evidence));
        }
        let mut gateways = self.gateways.clone();
        for network in &self.networks {
            checks.push(judge_offers(
                network.mode,
                &network.name,
                &self.ours,
                &evidence.offers,
            ));
            checks.extend(judge_reserved(
                &network.name,
                &self.reserved,
                self.unasked,
                evidence,
            ));
            gateways.extend(network.router.map(IpAddr::V4));
        }
        for gateway in gateways {
            let is_ours = match gateway {
                IpAddr::V4(gateway) => self.ours.contains(&gateway),
                IpAddr::V6(gateway) => self.ours6.contains(&gateway),
            };
            if !is_ours {
                checks.push(judge_gateway(&self.name, gateway, evidence));
            }
        }
        checks
    }
}

fn judge_traffic(link: &LinkName, vlan: Option<u16>, evidence: &Evidence) -> Check {
    let (id, subject) = (Id::VlanCarriesFrames, format!("link {link}"));
    let stations = evidence.stations.len() + evidence.stations6.len();
    let frames = evidence.frames.unwrap_or(0);
    if stations > 0 || frames > 0 || !evidence.offers.is_empty() {
        let evidence =
            format!("frames heard within 5 s: {frames}; addresses that answered: {stations}");
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
    network: &NetworkName,
    reserved: &BTreeMap<Ipv4Addr, Reserved>,
    unasked: usize,
    evidence: &Evidence,
) -> Option<Check> {
    let (id, subject) = (Id::DuplicateAddress, format!("network {network}"));
    let here: Vec<_> = reserved
        .iter()
        .filter(|(_, reserved)| reserved.network == *network)
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
            "reserved: {}; used by their machines: {answered}; nobody else uses any",
            here.len()
        );
        Check::pass(id, subject, evidence)
    })
}

fn judge_offers(
    mode: Mode,
    network: &NetworkName,
    ours: &BTreeSet<Ipv4Addr>,
    offers: &BTreeSet<Offer>,
) -> Check {
    let (id, subject) = (Id::RogueDhcp, format!("network {network}"));
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
    match (mode, servers.len()) {
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

#[cfg(test)]
mod tests {
    use super::super::super::Outcome;
    use super::*;

    fn mac(last: u8) -> MacAddress {
        MacAddress::from_octets([0x52, 0x54, 0, 0, 0, last]).expect("a station's address")
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 107, 0, last)
    }

    fn network() -> NetworkName {
        "provisioning".parse().expect("a name")
    }

    /// An offer by server 1, which is ours, or another one; of address 0 means none.
    fn offers(of: &[(u8, u8)]) -> BTreeSet<Offer> {
        let offer = |(server, given): &(u8, u8)| Offer {
            mac: mac(*server),
            server: address(*server),
            address: match given {
                0 => Ipv4Addr::UNSPECIFIED,
                given => address(*given),
            },
        };
        of.iter().map(offer).collect()
    }

    #[test]
    fn only_our_own_offers_are_welcome_and_in_mode_proxy_exactly_one_other_servers() {
        let judged = |mode, of: &[(u8, u8)]| {
            judge_offers(mode, &network(), &[address(1)].into(), &offers(of)).result
        };
        for mode in [Mode::Reservation, Mode::Pool] {
            assert_eq!(judged(mode, &[]), Outcome::Pass);
            assert_eq!(judged(mode, &[(1, 50)]), Outcome::Pass, "it is ours");
            assert_eq!(judged(mode, &[(2, 50)]), Outcome::Fail);
            assert_eq!(
                judged(mode, &[(2, 0)]),
                Outcome::Fail,
                "it says what to boot"
            );
        }
        assert_eq!(judged(Mode::Proxy, &[]), Outcome::Fail);
        assert_eq!(judged(Mode::Proxy, &[(1, 50)]), Outcome::Fail);
        assert_eq!(judged(Mode::Proxy, &[(2, 50)]), Outcome::Pass);
        assert_eq!(judged(Mode::Proxy, &[(2, 50), (2, 51)]), Outcome::Pass);
        assert_eq!(judged(Mode::Proxy, &[(2, 50), (3, 51)]), Outcome::Warn);
        assert_eq!(judged(Mode::Proxy, &[(2, 50), (3, 0)]), Outcome::Fail);
    }

    #[test]
    fn a_rogue_server_is_shown_with_its_mac_its_address_and_its_offer() {
        let check = judge_offers(Mode::Pool, &network(), &[].into(), &offers(&[(2, 50)]));
        let shown = "server 10.107.0.2 at 52:54:00:00:00:02 offered 10.107.0.50";
        assert_eq!(check.evidence, shown);
    }

    /// Machine N has address N and the MAC address N; these addresses answered from these.
    fn reserved(answers: &[(u8, u8)], unasked: usize) -> Option<Check> {
        let machine = |number: u8| {
            let reserved = Reserved {
                network: network(),
                node: format!("node-{number}").parse().expect("a name"),
                macs: vec![mac(number)],
            };
            (address(number), reserved)
        };
        let mut evidence = Evidence::default();
        for (at, from) in answers {
            let macs = evidence.stations.entry(address(*at)).or_default();
            macs.insert(mac(*from));
        }
        judge_reserved(
            &network(),
            &(11..20).map(machine).collect(),
            unasked,
            &evidence,
        )
    }

    #[test]
    fn an_address_that_answers_from_another_machine_fails_and_from_its_own_passes() {
        let result = |answers: &[(u8, u8)]| reserved(answers, 0).map(|check| check.result);
        assert_eq!(result(&[]), Some(Outcome::Pass));
        assert_eq!(result(&[(11, 11), (12, 12)]), Some(Outcome::Pass));
        assert_eq!(result(&[(11, 12)]), Some(Outcome::Fail));
        assert_eq!(
            result(&[(11, 11), (11, 99)]),
            Some(Outcome::Fail),
            "both answer"
        );
        assert_eq!(
            reserved(&[], 1).map(|check| check.result),
            Some(Outcome::Warn)
        );
        assert_eq!(
            reserved(&[(11, 12)], 1).map(|check| check.result),
            Some(Outcome::Fail)
        );
    }

    #[test]
    fn one_station_that_answers_for_many_is_taken_for_a_router_with_proxy_arp() {
        let remedy = |answers: &[(u8, u8)]| reserved(answers, 0).and_then(|check| check.remedy);
        let many = remedy(&[(11, 99), (12, 99), (13, 99)]).expect("a remedy");
        assert!(many.contains("proxy ARP"), "{many}");
        let few = remedy(&[(11, 99), (12, 99)]).expect("a remedy");
        assert!(!few.contains("proxy ARP"), "{few}");
    }

    #[test]
    fn a_silent_link_warns_and_names_its_vlan_where_it_has_one() {
        let link: LinkName = "eth1.107".parse().expect("a name");
        let mut evidence = Evidence::default();
        let silent = judge_traffic(&link, Some(107), &evidence);
        assert_eq!(silent.result, Outcome::Warn);
        assert!(
            silent
                .remedy
                .is_some_and(|remedy| remedy.contains("VLAN 107"))
        );
        evidence.frames = Some(1);
        assert_eq!(judge_traffic(&link, None, &evidence).result, Outcome::Pass);
    }

    #[test]
    fn a_gateway_answers_once() {
        let link: LinkName = "eth0".parse().expect("a name");
        let mut evidence = Evidence::default();
        let judged = |evidence: &Evidence| judge_gateway(&link, address(254).into(), evidence);
        assert_eq!(judged(&evidence).result, Outcome::Fail);
        evidence.stations.insert(address(254), [mac(1)].into());
        assert_eq!(judged(&evidence).result, Outcome::Pass);
        evidence
            .stations
            .insert(address(254), [mac(1), mac(2)].into());
        assert_eq!(judged(&evidence).result, Outcome::Fail);
    }
}
