//! The promises of the DHCP answer, one table of message and verdict each.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::event::{Event, Outcome};
use crate::loader::Client;
use crate::net::{Digest, MacAddress, Timestamp};
use crate::node::{NodeLink, NodeSpec};
use crate::site::Site;
use crate::spec::{Artifact, ConfigSource, Mode, Network, Profile, Purpose, SiteParts, SiteSpec};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
const RESERVED: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 11);
const LISTED: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0, 1];
const STRANGER: [u8; 6] = [0x52, 0x54, 0, 0xbb, 0, 1];

const HEARD: Heard = Heard {
    port: Port::Server,
    unicast: false,
    chainloads: 0,
};
const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;
const PXE: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";

fn now() -> Timestamp {
    Timestamp::from_millis(1_000_000)
}

fn network(mode: Mode) -> Network {
    Network {
        mode,
        range: (mode == Mode::Pool).then(|| "10.107.0.100-150".parse().unwrap()),
        router: Some(Ipv4Addr::new(10, 107, 0, 254)),
        dns: vec![SERVER],
        domain: Some("lab.example".parse().unwrap()),
        search: vec!["lab.example".parse().unwrap()],
        mtu: Some(1400),
        routes: vec![("192.0.2.0/24".parse().unwrap(), SERVER)],
        lease_seconds: 3600,
        options: [(125, vec![1, 2]), (54, vec![9, 9, 9, 9])].into(),
        ..Network::plain(
            "lab".parse().unwrap(),
            "eth1".parse().unwrap(),
            "10.107.0.0/24".parse().unwrap(),
        )
    }
}

fn site(networks: Vec<Network>) -> Site {
    let node = NodeSpec {
        name: "node-1".parse().unwrap(),
        links: vec![NodeLink {
            macs: vec![MacAddress::from_octets(LISTED).unwrap()],
            network: "lab".parse().unwrap(),
            address: RESERVED,
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: "node-1.lab.example".parse().unwrap(),
        profile: Some("live".parse().unwrap()),
        labels: Default::default(),
        rack: None,
        variables: [].into(),
        loaders: [].into(),
        disk: None,
    };
    let kernel = Artifact {
        file: "vmlinuz".to_owned(),
        digest: Digest::from_bytes([1; 32]),
        size: 1,
    };
    let profile = Profile {
        name: "live".parse().unwrap(),
        kernel,
        initrds: Vec::new(),
        artifacts: std::collections::BTreeMap::new(),
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

fn lab(mode: Mode) -> Site {
    site(vec![network(mode)])
}

/// A message under construction: what differs from an empty DISCOVER of the listed machine.
#[derive(Clone)]
struct Message(Vec<u8>);

impl Message {
    fn of(kind: u8) -> Self {
        let mut bytes = vec![0; 240];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
        bytes[28..34].copy_from_slice(&LISTED);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        Self(bytes).with(53, &[kind])
    }

    fn at(mut self, place: usize, value: &[u8]) -> Self {
        self.0[place..place + value.len()].copy_from_slice(value);
        self
    }

    fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.0.extend([code, u8::try_from(value.len()).unwrap()]);
        self.0.extend_from_slice(value);
        self
    }

    fn from(self, mac: [u8; 6]) -> Self {
        self.at(28, &mac)
    }

    fn bearing(self, address: Ipv4Addr) -> Self {
        self.at(12, &address.octets())
    }

    fn through(self, relay: Ipv4Addr) -> Self {
        self.at(24, &relay.octets())
    }

    fn asking(self, address: Ipv4Addr) -> Self {
        self.with(50, &address.octets())
    }

    fn to(self, server: Ipv4Addr) -> Self {
        self.with(54, &server.octets())
    }
}

struct Told {
    verdict: Verdict,
    bytes: Vec<u8>,
    client: Client,
}

impl Told {
    fn reply(&self) -> &Reply {
        match &self.verdict {
            Verdict::Reply(reply) => reply,
            other @ (Verdict::Ignore(_) | Verdict::Declined(..) | Verdict::Released(..)) => {
                panic!("no reply: {other:?}")
            }
        }
    }

    fn is(&self, kind: Kind) -> bool {
        matches!(&self.verdict, Verdict::Reply(reply) if reply.kind == kind)
    }

    fn ignored(&self) -> Ignored {
        match &self.verdict {
            Verdict::Ignore(reason) => *reason,
            other @ (Verdict::Reply(_) | Verdict::Declined(..) | Verdict::Released(..)) => {
                panic!("not ignored: {other:?}")
            }
        }
    }

    fn option(&self, code: u8) -> Option<Vec<u8>> {
        let mut found: Option<Vec<u8>> = None;
        for (option, value) in self.options() {
            if option == code {
                found.get_or_insert_default().extend(value);
            }
        }
        found
    }

    fn options(&self) -> Vec<(u8, Vec<u8>)> {
        let mut list = Vec::new();
        let mut at = 240;
        while self.bytes[at] != 255 {
            let length = usize::from(self.bytes[at + 1]);
            list.push((self.bytes[at], self.bytes[at + 2..at + 2 + length].to_vec()));
            at += 2 + length;
        }
        list
    }

    fn file(&self) -> String {
        let field = &self.bytes[108..236];
        let end = field.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(field[..end].to_vec()).unwrap()
    }
}

fn tell(site: &Site, message: &Message, heard: Heard) -> Told {
    let link = LinkContext {
        name: "eth1".parse().unwrap(),
        server: SERVER,
        http_port: 8080,
        mtu: 1500,
    };
    let mut bytes = message.0.clone();
    bytes.push(255);
    let request = Request::parse(&bytes).unwrap();
    let mut reply = Vec::new();
    let answer = answer(site, &link, &request, heard, now(), &mut reply);
    Told {
        verdict: answer.verdict,
        client: answer.client,
        bytes: reply,
    }
}

fn ask(site: &Site, message: &Message) -> Told {
    tell(site, message, HEARD)
}

#[test]
fn a_listed_machine_is_offered_its_address_whatever_its_client_id_says() {
    let site = lab(Mode::Reservation);
    for id in [&[1, 2, 3][..], &[255, 9, 9, 9, 9], &[0; 17]] {
        let told = ask(&site, &Message::of(DISCOVER).with(61, id));
        assert_eq!(told.reply().address, Some(RESERVED));
        assert_eq!(told.bytes[16..20], RESERVED.octets());
        assert_eq!(told.option(61).as_deref(), Some(id), "RFC 6842");
        assert_eq!(told.option(54), Some(SERVER.octets().to_vec()));
        assert_eq!(told.option(51), Some(3600_u32.to_be_bytes().to_vec()));
        assert!(told.bytes.len() >= 300, "the least a BOOTP client takes");
    }
}

#[test]
fn each_state_of_a_request_has_its_own_answer() {
    let site = lab(Mode::Reservation);
    let elsewhere = Ipv4Addr::new(192, 168, 1, 5);
    let unmanaged = Ipv4Addr::new(10, 107, 0, 77);
    let request = || Message::of(REQUEST);
    let (offered, other) = (
        Message::of(REQUEST).asking(RESERVED),
        Ipv4Addr::new(10, 107, 0, 2),
    );

    assert!(
        ask(&site, &offered.clone().to(SERVER)).is(Kind::Ack),
        "selecting"
    );
    assert!(
        ask(&site, &request().asking(unmanaged).to(SERVER)).is(Kind::Nak),
        "selecting another"
    );
    assert_eq!(
        ask(&site, &offered.clone().to(other)).ignored(),
        Ignored::OtherServer
    );
    assert!(ask(&site, &offered).is(Kind::Ack), "init-reboot");
    assert!(
        ask(&site, &request().asking(elsewhere)).is(Kind::Nak),
        "from another subnet"
    );
    assert_eq!(
        ask(&site, &request().asking(unmanaged)).ignored(),
        Ignored::OtherServersClient
    );
    assert_eq!(ask(&site, &request()).ignored(), Ignored::NoAddressNamed);

    let renewed = ask(&site, &request().bearing(RESERVED));
    assert!(renewed.is(Kind::Ack));
    assert_eq!(renewed.reply().destination, Destination::Client(RESERVED));
    assert_eq!(renewed.bytes[12..16], RESERVED.octets());
    let rebinding = request().bearing(unmanaged);
    assert_eq!(
        ask(&site, &rebinding).ignored(),
        Ignored::OtherServersClient
    );
    let to_us_alone = Heard {
        unicast: true,
        ..HEARD
    };
    assert!(
        tell(&site, &rebinding, to_us_alone).is(Kind::Nak),
        "renewing with us"
    );
}

#[test]
fn a_stranger_is_met_with_silence_in_every_message() {
    let site = lab(Mode::Reservation);
    for kind in [1, 3, 4, 7, 8] {
        let message = Message::of(kind)
            .from(STRANGER)
            .bearing(Ipv4Addr::new(10, 107, 0, 50))
            .asking(Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(ask(&site, &message).ignored(), Ignored::NotListed, "{kind}");
    }
}

#[test]
fn a_reply_goes_where_its_client_can_hear_it() {
    let site = lab(Mode::Reservation);
    let to = |message: &Message| ask(&site, message).reply().destination;
    let mac = MacAddress::from_octets(LISTED).unwrap();
    let relay = Ipv4Addr::new(10, 107, 0, 253);
    let plain = Message::of(DISCOVER);
    assert_eq!(to(&plain), Destination::Station(mac, RESERVED));
    assert_eq!(
        to(&plain.clone().at(10, &[0x80, 0])),
        Destination::Broadcast
    );
    assert_eq!(to(&plain.clone().through(relay)), Destination::Relay(relay));
    let wrong = Message::of(REQUEST).asking(Ipv4Addr::new(192, 168, 1, 5));
    assert_eq!(to(&wrong), Destination::Broadcast);
    assert_eq!(to(&wrong.clone().through(relay)), Destination::Relay(relay));
    let nak = ask(&site, &wrong.through(relay));
    assert_eq!(nak.bytes[10] & 0x80, 0x80, "the relay must broadcast it");
}

#[test]
fn an_inform_is_answered_without_a_lease() {
    let site = lab(Mode::Reservation);
    let own = Ipv4Addr::new(10, 107, 0, 33);
    let told = ask(&site, &Message::of(8).bearing(own).with(55, &[1, 3, 6, 51]));
    assert_eq!(told.reply().destination, Destination::Client(own));
    assert_eq!(told.bytes[16..20], [0; 4], "no address");
    assert_eq!(told.option(51), None);
    assert!(told.option(1).is_some() && told.option(6).is_some());
}

#[test]
fn an_address_in_use_and_an_address_given_back_are_noted() {
    let site = lab(Mode::Reservation);
    let decline = Message::of(4).asking(RESERVED).to(SERVER);
    assert!(matches!(
        ask(&site, &decline).verdict,
        Verdict::Declined(RESERVED, None)
    ));
    let release = Message::of(7).bearing(RESERVED).to(SERVER);
    assert!(matches!(
        ask(&site, &release).verdict,
        Verdict::Released(RESERVED, None)
    ));
    let others = Message::of(7)
        .bearing(RESERVED)
        .to(Ipv4Addr::new(10, 107, 0, 2));
    assert_eq!(ask(&site, &others).ignored(), Ignored::OtherServer);
}

#[test]
fn the_pool_lends_to_strangers_and_remembers_them() {
    let site = lab(Mode::Pool);
    let discover = Message::of(DISCOVER).from(STRANGER);
    let offered = ask(&site, &discover).reply().address.unwrap();
    assert!(offered >= Ipv4Addr::new(10, 107, 0, 100) && offered <= Ipv4Addr::new(10, 107, 0, 150));
    let request = Message::of(REQUEST).from(STRANGER).asking(offered);
    assert_eq!(
        ask(&site, &request).ignored(),
        Ignored::OtherServersClient,
        "no record yet"
    );
    let told = ask(&site, &request.clone().to(SERVER));
    let lease = told.reply().lease.clone().unwrap();
    assert_eq!(lease.address, offered);

    let applied = site.apply(Event::LeaseAsked(lease), now());
    assert!(matches!(applied.outcome, Outcome::Lease(true)));
    let site = applied.site;
    assert!(
        ask(&site, &request).is(Kind::Ack),
        "init-reboot with a record"
    );
    let renew = Message::of(REQUEST).from(STRANGER).bearing(offered);
    assert!(ask(&site, &renew).reply().lease.is_some());
    let thief = Message::of(REQUEST).from([2; 6]).asking(offered).to(SERVER);
    assert!(ask(&site, &thief).is(Kind::Nak));
    let declined = Message::of(4).from(STRANGER).asking(offered);
    assert!(matches!(
        ask(&site, &declined).verdict,
        Verdict::Declined(_, Some(_))
    ));
    let wrong = Message::of(REQUEST)
        .from(STRANGER)
        .asking(Ipv4Addr::new(10, 107, 0, 120));
    assert!(
        ask(&site, &wrong).is(Kind::Nak),
        "an address of the pool, and not its own"
    );
}

#[test]
fn options_come_from_the_request_list_and_from_the_site() {
    let site = lab(Mode::Reservation);
    let list = [3, 6, 12, 15, 26, 28, 54, 119, 121, 125, 200];
    let told = ask(
        &site,
        &Message::of(DISCOVER).with(57, &[5, 220]).with(55, &list),
    );
    assert_eq!(told.option(12).unwrap(), b"node-1.lab.example");
    assert_eq!(told.option(15).unwrap(), b"lab.example");
    assert_eq!(told.option(26).unwrap(), 1400_u16.to_be_bytes());
    assert_eq!(told.option(28).unwrap(), [10, 107, 0, 255]);
    assert_eq!(told.option(119).unwrap(), b"\x03lab\x07example\0");
    // RFC 3442: a client that takes 121 ignores 3, so the default route is in it.
    let routes = [24, 192, 0, 2, 10, 107, 0, 1, 0, 10, 107, 0, 254];
    assert_eq!(told.option(121).unwrap(), routes);
    assert_eq!(told.option(125).unwrap(), [1, 2], "raw, from the site");
    assert_eq!(
        told.option(54).unwrap(),
        SERVER.octets(),
        "not the site's to replace"
    );
    assert_eq!(told.option(42), None, "nothing to tell");
    assert_eq!(told.option(67), None, "nothing to boot");
    let codes: Vec<u8> = told.options().into_iter().map(|(code, _)| code).collect();
    let once: std::collections::BTreeSet<u8> = codes.iter().copied().collect();
    assert_eq!(codes.len(), once.len(), "each option once: {codes:?}");
}

#[test]
fn a_small_client_loses_the_least_important_options() {
    let mut network = network(Mode::Reservation);
    network
        .options
        .extend([(224, vec![7; 250]), (225, vec![8; 250])]);
    let site = site(vec![network]);
    let message = Message::of(DISCOVER)
        .with(55, &[224, 225, 6])
        .with(82, &[1, 40, 0]);
    let told = ask(&site, &message.clone().with(57, &[2, 64]));
    assert!(told.bytes.len() <= 576 - 28, "{}", told.bytes.len());
    assert_eq!(told.reply().omitted, Some(225));
    assert!(told.option(51).is_some() && told.option(224).is_some() && told.option(6).is_some());
    assert_eq!(
        ask(&site, &message.with(57, &[5, 220])).reply().omitted,
        None
    );
}

#[test]
fn relay_information_goes_back_unchanged_and_last() {
    let site = lab(Mode::Reservation);
    let information = [1, 3, b'e', b'0', b'1', 151, 2, 7, 7, 2, 0];
    let message = Message::of(DISCOVER)
        .through(Ipv4Addr::new(10, 107, 0, 253))
        .with(82, &information)
        .with(61, &[1, 2])
        .with(55, &[6, 125]);
    let told = ask(&site, &message);
    assert_eq!(told.options().last().unwrap(), &(82, information.to_vec()));
}

#[test]
fn a_relay_names_the_subnet_and_may_stand_in_for_the_server() {
    let mut far = network(Mode::Reservation);
    far.name = "far".parse().unwrap();
    far.subnet = "10.200.0.0/24".parse().unwrap();
    far.relayed = true;
    far.router = None;
    let mut networks = vec![network(Mode::Reservation), far];
    networks[1].mode = Mode::Off;
    let site = site(networks);
    let relay = Ipv4Addr::new(10, 200, 0, 1);
    let plain = Message::of(DISCOVER).through(relay);
    assert_eq!(ask(&site, &plain).ignored(), Ignored::NetworkOff);
    let selected = plain
        .clone()
        .with(82, &[5, 4, 10, 107, 0, 0, 11, 4, 10, 107, 0, 253]);
    let told = ask(&site, &selected);
    assert_eq!(told.reply().address, Some(RESERVED), "RFC 3527");
    assert_eq!(told.option(54).unwrap(), [10, 107, 0, 253], "RFC 5107");
    let unknown = Message::of(DISCOVER).through(Ipv4Addr::new(172, 16, 0, 1));
    assert_eq!(ask(&site, &unknown).ignored(), Ignored::NoNetwork);
}

#[test]
fn pxe_firmware_is_told_a_name_in_every_place_it_may_look() {
    let site = lab(Mode::Reservation);
    let uuid = [&[0][..], &[7; 16]].concat();
    let message = Message::of(DISCOVER)
        .with(60, PXE)
        .with(93, &[0, 7])
        .with(97, &uuid)
        .with(55, &[1, 3, 43, 60, 66, 67]);
    let told = ask(&site, &message);
    assert_eq!(told.file(), "snponly.efi");
    assert_eq!(told.bytes[20..24], SERVER.octets(), "next server");
    assert_eq!(told.option(67).unwrap(), b"snponly.efi\0");
    assert_eq!(told.option(66).unwrap(), b"10.107.0.1");
    assert_eq!(told.option(60).unwrap(), b"PXEClient");
    assert_eq!(told.option(43).unwrap(), [6, 1, 8, 255]);
    assert_eq!(told.option(97).unwrap(), uuid);
    assert_eq!(told.reply().rule, Some("firmware-needs-loader"));
}

#[test]
fn http_boot_is_told_a_uri_under_its_own_class() {
    let site = lab(Mode::Reservation);
    let told = ask(
        &site,
        &Message::of(DISCOVER).with(60, HTTP).with(93, &[0, 16]),
    );
    assert_eq!(told.option(60).unwrap(), b"HTTPClient");
    assert_eq!(told.file(), "http://10.107.0.1:8080/loader/snponly.efi");
    assert_eq!(told.option(43), None);
}

#[test]
fn ipxe_is_known_by_its_raw_class_by_the_listed_one_and_by_its_features() {
    let site = lab(Mode::Reservation);
    let pxe = Message::of(DISCOVER).with(60, PXE).with(93, &[0, 7]);
    for (code, value) in [
        (77, &b"iPXE"[..]),
        (77, b"\x04iPXE"),
        (175, &[177, 5, 1, 2, 3, 4, 5]),
    ] {
        let told = ask(&site, &pxe.clone().with(code, value));
        let name = String::from_utf8(told.option(67).unwrap()).unwrap();
        assert!(
            name.contains("/boot/52-54-00-aa-00-01/script.ipxe"),
            "{name}"
        );
        assert_eq!(told.option(175).unwrap(), [176, 1, 1]);
        assert_eq!(told.option(60), None, "it need not look for a proxy");
    }
    let other = ask(&site, &pxe.with(77, b"\x05other"));
    assert_eq!(other.file(), "snponly.efi");
}

#[test]
fn the_first_architecture_we_know_counts_and_the_class_speaks_without_option_93() {
    let site = lab(Mode::Reservation);
    let client = |message: Message| ask(&site, &message).client;
    let arch = crate::loader::Architecture;
    let discover = || Message::of(DISCOVER);
    assert_eq!(
        client(discover().with(93, &[0, 200, 0, 11])),
        Client::Pxe(arch(11))
    );
    assert_eq!(
        client(discover().with(93, &[0, 7, 9])),
        Client::Pxe(arch(7))
    );
    assert_eq!(
        client(discover().with(60, b"PXEClient:Arch:00007:UNDI:003016")),
        Client::Pxe(arch(7))
    );
    assert_eq!(
        client(discover().with(60, b"PXEClient")),
        Client::Pxe(arch(0))
    );
    assert_eq!(client(discover().with(60, b"udhcp 1.35.0")), Client::System);
}

#[test]
fn a_chain_loop_is_broken_and_named() {
    let site = lab(Mode::Reservation);
    let message = Message::of(DISCOVER).with(60, PXE).with(93, &[0, 7]);
    let again = Heard {
        chainloads: crate::boot::CHAINLOADS_MAX,
        ..HEARD
    };
    let told = tell(&site, &message, again);
    assert_eq!(told.reply().rule, Some("chain-loop"));
    assert_eq!(
        (told.option(67), told.option(60), told.file()),
        (None, None, String::new())
    );
    assert_eq!(
        told.reply().address,
        Some(RESERVED),
        "the address is its own all the same"
    );
}

#[test]
fn beside_another_server_only_the_boot_file_is_said() {
    let site = lab(Mode::Proxy);
    let discover = Message::of(DISCOVER).with(60, PXE).with(93, &[0, 7]);
    let told = ask(&site, &discover);
    assert_eq!(told.reply().destination, Destination::Broadcast);
    assert_eq!(told.bytes[16..20], [0; 4]);
    assert_eq!(told.option(60).unwrap(), b"PXEClient");
    assert_eq!(told.option(43).unwrap(), [6, 1, 8, 255]);
    assert!(told.option(51).is_none() && told.option(1).is_none());
    let ipxe = ask(&site, &discover.clone().with(77, b"iPXE"));
    assert_eq!(ipxe.option(60).unwrap(), b"PXEClient");
    assert_eq!(
        ipxe.option(175),
        None,
        "or iPXE would pass this very offer by"
    );
    assert_eq!(
        ask(&site, &Message::of(DISCOVER)).ignored(),
        Ignored::NothingToBoot
    );
    assert_eq!(
        ask(&site, &discover.clone().from(STRANGER)).ignored(),
        Ignored::NotListed
    );
    let request = Message::of(REQUEST).with(60, PXE).asking(RESERVED);
    assert_eq!(ask(&site, &request).ignored(), Ignored::ProxyOnly);
}

#[test]
fn the_boot_servers_port_answers_whoever_asked_it() {
    let own = Ipv4Addr::new(10, 107, 0, 66);
    let item = [71, 4, 0, 0, 0, 0, 255];
    let message = Message::of(REQUEST)
        .with(60, PXE)
        .with(93, &[0, 7])
        .with(43, &item)
        .bearing(own);
    let there = Heard {
        port: Port::BootServer,
        unicast: true,
        chainloads: 0,
    };
    for mode in [Mode::Reservation, Mode::Proxy] {
        let told = tell(&lab(mode), &message, there);
        assert!(told.is(Kind::Ack));
        assert_eq!(told.reply().destination, Destination::Sender);
        assert_eq!(told.file(), "snponly.efi");
        assert_eq!(told.option(43).unwrap(), [6, 1, 8, 71, 4, 0, 0, 0, 0, 255]);
        assert_eq!(told.option(51), None);
    }
}

#[test]
fn nothing_is_said_on_a_link_or_network_that_is_not_served() {
    assert_eq!(
        ask(&lab(Mode::Off), &Message::of(DISCOVER)).ignored(),
        Ignored::NetworkOff
    );
    let mut elsewhere = network(Mode::Reservation);
    elsewhere.link = "eth2".parse().unwrap();
    let there = site(vec![elsewhere]);
    assert_eq!(
        ask(&there, &Message::of(DISCOVER)).ignored(),
        Ignored::NoNetwork
    );
    let relayed = Message::of(DISCOVER).through(Ipv4Addr::new(10, 107, 0, 253));
    assert_eq!(ask(&there, &relayed).ignored(), Ignored::NoNetwork);
}
