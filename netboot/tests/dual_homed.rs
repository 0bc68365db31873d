//! Machines with links on several networks, for whatever networks and links there are: each leg gets its own
//! address, and the whole machine one default route, over DHCP as in its documents.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use dhcproto::{Decodable, Decoder};
use netboot::dhcp::{Heard, LinkContext, Port, Request, Verdict, answer};
use netboot::link::{Link, LinkKind};
use netboot::net::{Destination, Digest, MacAddress, NetworkName, Timestamp};
use netboot::node::{NodeLink, NodeSpec};
use netboot::site::Site;
use netboot::spec::{Artifact, ConfigSource, Network, Profile, Purpose, SiteParts, SiteSpec};
use proptest::prelude::*;

const NETWORKS: u8 = 4;

fn mac(last: u8) -> MacAddress {
    MacAddress::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).unwrap()
}

fn name(network: u8) -> NetworkName {
    format!("net-{network}").parse().unwrap()
}

/// What differs between networks: a router, a route for everywhere, one for somewhere.
type Ways = (bool, bool, bool);

fn network(number: u8, (router, everywhere, elsewhere): Ways) -> Network {
    let host = |last| Ipv4Addr::new(10, number, 0, last);
    let mut routes = Vec::new();
    if everywhere {
        routes.push((Destination::everywhere(), host(253)));
    }
    if elsewhere {
        routes.push(("192.0.2.0/24".parse().unwrap(), host(252)));
    }
    Network {
        router: router.then(|| host(254)),
        dns: vec![host(1)],
        routes,
        lease_seconds: 3600,
        ..Network::plain(
            name(number),
            format!("eth{number}").parse().unwrap(),
            format!("10.{number}.0.0/24").parse().unwrap(),
        )
    }
}

/// A machine whose legs are a network and a MAC each; one of them may be named as its way out.
fn node(legs: &[(u8, u8)], named: Option<usize>) -> NodeSpec {
    let link = |(index, (number, last)): (usize, &(u8, u8))| NodeLink {
        macs: vec![mac(*last)],
        network: name(*number),
        address: Ipv4Addr::new(10, *number, 0, 10 + *last),
        name: None,
        default_route: named == Some(index),
    };
    NodeSpec {
        name: "node".parse().unwrap(),
        links: legs.iter().enumerate().map(link).collect(),
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: "node".parse().unwrap(),
        profile: Some("live".parse().unwrap()),
        labels: BTreeMap::default(),
        rack: None,
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    }
}

fn site(networks: Vec<Network>, node: NodeSpec) -> Site {
    let profile = Profile {
        name: "live".parse().unwrap(),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::None,
        purpose: Purpose::Live,
        disk: None,
    };
    let parts = SiteParts {
        networks,
        nodes: vec![node],
        profiles: vec![profile],
        ..SiteParts::default()
    };
    Site::new(Arc::new(SiteSpec::new(parts).unwrap()))
}

/// What a DISCOVER gets that asks for options 3 and 121; `class` is option 60, `relay` the relay's address.
fn discover(
    site: &Site,
    mac: MacAddress,
    link: &str,
    class: &[u8],
    relay: Ipv4Addr,
) -> Option<Message> {
    let mut packet = vec![0; 240];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[24..28].copy_from_slice(&relay.octets());
    packet[28..34].copy_from_slice(&mac.octets());
    packet[236..].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend([53, 1, 1, 55, 2, 121, 3]);
    if !class.is_empty() {
        packet.extend([60, u8::try_from(class.len()).unwrap()]);
        packet.extend(class);
    }
    packet.push(255);
    let request = Request::parse(&packet).unwrap();
    let link = LinkContext {
        name: link.parse().unwrap(),
        server: Ipv4Addr::new(10, 99, 0, 1),
        http_port: 8080,
        mtu: 1500,
    };
    let heard = Heard {
        port: Port::Server,
        unicast: false,
        chainloads: 0,
    };
    let mut bytes = Vec::new();
    let now = Timestamp::from_millis(1_800_000_000_000);
    match answer(site, &link, &request, heard, now, &mut bytes).verdict {
        Verdict::Reply(_) => Some(Message::decode(&mut Decoder::new(&bytes)).unwrap()),
        Verdict::Ignore(_) | Verdict::Declined(..) | Verdict::Released(..) => None,
    }
}

/// The gateway that a client takes from a reply (RFC 3442: from option 121 alone, where it is there).
fn default_of(reply: &Message) -> Option<Ipv4Addr> {
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) =
        reply.opts().get(OptionCode::ClasslessStaticRoute)
    {
        let default = routes.iter().find(|(to, _)| to.prefix_len() == 0);
        return default.map(|(_, via)| *via);
    }
    match reply.opts().get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    }
}

fn direct() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

fn default_routes(link: &Link) -> Vec<IpAddr> {
    let everywhere = link
        .routes
        .iter()
        .filter(|route| route.to.prefix_len() == 0);
    everywhere.filter_map(|route| route.via).collect()
}

fn legs() -> impl Strategy<Value = Vec<(u8, u8)>> {
    let leg = (0..NETWORKS, 1..=3_u8);
    proptest::collection::vec(leg, 1..6).prop_map(|mut legs| {
        let mut seen = BTreeSet::new();
        legs.retain(|leg| seen.insert(*leg));
        legs
    })
}

proptest! {
    #[test]
    fn every_leg_has_its_address_and_the_machine_one_way_out(
        ways in proptest::collection::vec(any::<Ways>(), usize::from(NETWORKS)),
        legs in legs(),
        named in proptest::option::of(0..5_usize),
    ) {
        let networks: Vec<Network> =
            (0..NETWORKS).zip(&ways).map(|(number, ways)| network(number, *ways)).collect();
        // The site refuses a default route by a network without a router.
        let named = named.filter(|index| {
            let leg = legs.get(*index);
            leg.is_some_and(|(number, _)| networks[usize::from(*number)].gateway().is_some())
        });
        let node = node(&legs, named);
        let led = |leg: &(u8, u8)| networks[usize::from(leg.0)].gateway().is_some();
        let expected = named.or_else(|| legs.iter().position(led));
        let site = site(networks.clone(), node.clone());

        let told = site.spec().network_of(&node);
        for (index, (number, last)) in legs.iter().enumerate() {
            let reply = discover(&site, mac(*last), &format!("eth{number}"), b"", direct());
            let reply = reply.expect("a reservation is answered");
            prop_assert_eq!(reply.yiaddr(), node.links[index].address);
            let gateway = networks[usize::from(*number)].gateway();
            let gateway = gateway.filter(|_| expected == Some(index));
            prop_assert_eq!(default_of(&reply), gateway, "leg {}", index);
            prop_assert!(gateway.is_some() || reply.opts().get(OptionCode::Router).is_none());

            let link = &told.links[index];
            prop_assert_eq!(link.addresses.len(), 1);
            prop_assert_eq!(link.addresses[0].addr(), IpAddr::V4(node.links[index].address));
            let routes: Vec<IpAddr> = gateway.into_iter().map(IpAddr::V4).collect();
            prop_assert_eq!(default_routes(link), routes);
        }
        let served: BTreeSet<(u8, u8)> = legs.iter().copied().collect();
        for number in 0..NETWORKS {
            for last in (1..=3).filter(|last| !served.contains(&(number, *last))) {
                let reply = discover(&site, mac(last), &format!("eth{number}"), b"", direct());
                prop_assert!(reply.is_none(), "{last} has no address on {number}");
            }
        }
    }
}

#[test]
fn behind_a_relay_firmware_learns_its_router_and_a_system_the_way_to_the_bastion() {
    let mut far = network(1, (true, false, false));
    far.relayed = true;
    let networks = vec![network(0, (true, false, false)), far];
    let site = site(networks, node(&[(1, 1), (0, 2)], Some(1)));
    let relay = Ipv4Addr::new(10, 1, 0, 254);
    let ask = |class: &[u8]| discover(&site, mac(1), "eth1", class, relay).unwrap();

    let firmware = ask(b"PXEClient:Arch:00007:UNDI:003016");
    assert_eq!(default_of(&firmware), Some(relay));
    let system = ask(b"udhcp 1.35.0");
    assert_eq!(default_of(&system), None);
    let routes = system.opts().get(OptionCode::ClasslessStaticRoute);
    let bastion = ("10.99.0.1/32".parse().unwrap(), relay);
    assert_eq!(
        routes,
        Some(&DhcpOption::ClasslessStaticRoute(vec![bastion]))
    );
}

#[test]
fn the_links_of_a_system_bear_what_their_networks_give() {
    let mut inner = network(1, (false, false, true));
    inner.mtu = Some(9000);
    let networks = vec![network(0, (true, false, false)), inner];
    let link = |name: &str, kind| Link {
        name: name.parse().unwrap(),
        kind,
        mtu: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    };
    let tag = LinkKind::Vlan {
        parent: "lan0".parse().unwrap(),
        id: netboot::net::VlanId::new(7).unwrap(),
    };
    let mut node = node(&[(0, 1), (1, 1)], None);
    node.system = vec![
        link("lan0.7", tag),
        link("lan0", LinkKind::Card { macs: vec![mac(1)] }),
    ];
    node.links[0].name = Some("lan0".parse().unwrap());
    node.links[1].name = Some("lan0.7".parse().unwrap());
    let site = site(networks, node.clone());

    let told = site.spec().network_of(&node);
    let [tagged, card] = &told.links[..] else {
        panic!("{told:?}");
    };
    assert_eq!(card.addresses, ["10.0.0.11/24".parse().unwrap()]);
    assert_eq!(tagged.addresses, ["10.1.0.11/24".parse().unwrap()]);
    assert_eq!(default_routes(card).len(), 1);
    assert_eq!(tagged.routes.len(), 1, "the network's own route");
    // A VLAN can't carry more than its parent.
    assert_eq!((tagged.mtu, card.mtu), (Some(9000), Some(9000)));
    assert_eq!(told.dns, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}
