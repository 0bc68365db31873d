//! The bastion's own network on a real 8021q kernel with real systemd: the daemon's unit makes VLAN 107 from `site.yaml`, answers
//! each side by the way it came, lets machines out under its public address, and goes on serving whatever becomes of the link. See
//! `tests/src/host.rs` for the laboratory. One boot of the bastion serves all the promises, in the order of the test.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use tests::bastion::{copy_tree, site};
use tests::crowd::Crowd;
use tests::host::{Capture, FAR, Gateway, Host, INSIDE, OUTSIDE, PUBLIC, Shell, installed};
use tests::lab::{BASTION, Lab, until};
use tests::netns::Netns;
use tests::site::{add_machines, rehearsed, sha256};
use tests::switch::{Port, Switch};

const SITE: &str = "site: rehearsal
links:
  - name: eth1.107
    vlan: { parent: eth1, id: 107 }
    addresses: [10.107.0.1/24]
    gateway: 10.107.0.254
  - name: eth0
    addresses: [203.0.113.5/24]
    gateway: 203.0.113.1
    default_route: true
host:
  masquerade: [{ network: provisioning, out: eth0 }]
networks:
  - name: provisioning
    link: eth1.107
    subnet: 10.107.0.0/24
    router: 10.107.0.1
    domain: rehearsal.example
";
/// What lies outside, and what is said there.
const ERRAND: &str = "http://198.51.100.9/errand";
const WORDS: &str = "hello from outside";
/// `add_machines` begins with this number.
const CROWD: (u8, u8) = (100, 20);
/// Links are deleted, renamed, flapped and made anew, so many times in all.
const BLOWS: usize = 50;
/// What the daemon promises after the kernel says RUNNING.
const PROMISED: Duration = Duration::from_secs(1);
/// It also promises to make a link anew in a second; `host_apply.rs` holds it to that. An emulated processor that asks nft for
/// the firewall while a crowd asks for addresses gets more.
const REPAIRED: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);
/// TCP ports that are never open on the public side: boot HTTP, the same over TLS, and two that clusters need.
const CLOSED: [u16; 4] = [8080, 8443, 22623, 9345];

#[test]
fn the_unit_makes_vlan_107_and_serves_it_whatever_becomes_of_it() {
    let lab = Lab::empty();
    let switch = Switch::start(&lab);
    let mut outside = Gateway::outside(&lab, &switch);
    let inside = Gateway::inside(&lab, &switch);
    let crowd = Netns::new();
    let _cable = switch.plug(&lab, &crowd, Port::Inside(8), "52:54:00:aa:04:01");
    let mut capture = Capture::start(&lab, &crowd, "crowd");
    let overlay = installed(&lab, &dual_homed(&lab), &["bastion"]);
    let host = Host::boot(&lab, &switch, &overlay);

    let mut shell = host.shell(&outside, OUTSIDE);
    shell.must("systemctl start reveille");
    the_links_are_there(&mut shell);
    each_side_is_answered_by_the_way_it_came(&host, &outside, &inside);
    the_services_are_closed_on_the_public_side(&mut shell, &outside, &inside);
    a_machine_boots_and_reaches_the_outside(&lab, &switch, &outside);

    let crowd = Crowd::start(&crowd, CROWD.0, CROWD.1);
    let monitor = host.shell(&outside, OUTSIDE);
    let blows = Blows::watched(monitor, &mut shell, &crowd);
    what_is_taken_away_comes_back(&mut shell, &blows);
    service_goes_on_after_every_blow(&mut shell, &blows, &inside);
    assert!(
        crowd.acknowledged() > 0,
        "the crowd never took an address; it was no load"
    );
    drop(crowd);
    no_side_ever_heard_the_other_ones_address(&outside.frames(), &capture.end());
}

/// The rehearsal site, with the bastion's own links, a crowd of machines, and an errand outside for each machine.
fn dual_homed(lab: &Lab) -> PathBuf {
    let files = lab.path("site");
    copy_tree(&site("rehearsal"), &files);
    fs::write(files.join("site.yaml"), SITE).expect("the site can be written");
    let profile = files.join("profiles/ignition.yaml");
    let text = fs::read_to_string(&profile).expect("the profile can be read");
    let text = text.replace(
        "arguments:\n",
        &format!("arguments:\n  - lab.fetch={ERRAND}\n"),
    );
    fs::write(profile, text).expect("the profile can be written");
    add_machines(&files, "crowd", CROWD.1, "live");
    files
}

/// `systemctl start` returned, so everything is there: no waiting.
fn the_links_are_there(shell: &mut Shell) {
    let vlan = shell.must("cat /proc/net/vlan/config");
    assert!(vlan.contains("eth1.107       | 107  | eth1"), "{vlan}");
    let links = shell.must("ip link show dev eth1.107; ip address show dev eth1.107");
    for word in ["10.107.0.1/24", "alias reveille", "LOWER_UP"] {
        assert!(links.contains(word), "{word} is missing: {links}");
    }
    let unit = shell.must("systemctl show reveille --property=ActiveState,User");
    assert!(unit.contains("ActiveState=active"), "{unit}");
    assert!(unit.contains("User=reveille"), "{unit}");
}

/// One far host asks both addresses, each through the gateway of that side. The way back can't be told by where it leads.
fn each_side_is_answered_by_the_way_it_came(host: &Host, outside: &Gateway, inside: &Gateway) {
    let mut far = host.shell(outside, FAR);
    assert_eq!(far.must("echo hello"), "hello\n");
    let mut stream = (inside.connect(FAR, (BASTION, 8080), LIMIT))
        .unwrap_or_else(|error| panic!("the far host by the inner gateway: {error}"));
    (stream
        .write_all(b"GET /autoexec.ipxe HTTP/1.1\r\nHost: bastion\r\nConnection: close\r\n\r\n"))
    .expect("a request leaves");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer comes");
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
}

fn the_services_are_closed_on_the_public_side(
    shell: &mut Shell,
    outside: &Gateway,
    inside: &Gateway,
) {
    // No cluster is defined here, so something else stands in.
    for port in &CLOSED[2..] {
        shell.must(&format!(
            "systemd-run --quiet --unit=port-{port} systemd-socket-activate --accept --listen={port} /bin/true; \
             until ss -Hltn sport = :{port} | grep -q LISTEN; do :; done"
        ));
    }
    // The bastion's inner address, asked from outside, as a neighbour may: Linux answers on any link by itself.
    let route = format!("route add {BASTION}/32 via {PUBLIC}");
    outside.netns.ip(&route);
    for port in CLOSED {
        let open = inside.connect(INSIDE, (BASTION, port), LIMIT);
        if let Err(error) = open {
            panic!("port {port} is closed on VLAN 107: {error}");
        }
    }
    let probe = outside.netns.run(|| {
        let probe = UdpSocket::bind((OUTSIDE, 0)).expect("a port");
        probe.set_broadcast(true).expect("the right to broadcast");
        probe
    });
    // A TFTP client's first message, and a DHCP client's with a listed MAC address, as short as RFC 951 allows.
    let read = b"\0\x01snponly.efi\0octet\0".to_vec();
    let mut discover = vec![0; 300];
    discover[..4].copy_from_slice(&[1, 1, 6, 0]);
    discover[28..34].copy_from_slice(&[0x52, 0x54, 0, 0xaa, 0, 1]);
    discover[236..244].copy_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
    for to in [PUBLIC, BASTION, Ipv4Addr::new(203, 0, 113, 255)] {
        for (port, message) in [(67, &discover), (4011, &discover), (69, &read)] {
            (probe.send_to(message, (to, port))).expect("a probe leaves");
        }
    }
    for to in [PUBLIC, BASTION] {
        for port in CLOSED {
            let open = outside.connect(OUTSIDE, (to, port), Duration::from_millis(500));
            assert!(open.is_err(), "{to}:{port} is open on the public side");
        }
    }
    // Those probes took four seconds; what would have answered has.
    probe
        .set_nonblocking(true)
        .expect("a probe that won't wait");
    assert!(
        probe.recv(&mut [0; 1500]).is_err(),
        "DHCP or TFTP answered on the public side"
    );
    outside.netns.ip(&route.replace("add", "del"));
}

fn a_machine_boots_and_reaches_the_outside(lab: &Lab, switch: &Switch, outside: &Gateway) {
    let peers = serve_errands(outside);
    let mut hardware = rehearsed("bios-01");
    hardware.cable = switch.cable(Port::Inside(1));
    let machine = hardware.power_on(lab);
    machine.wait_for("node: address 10.107.0.11/24");
    machine.wait_for(&format!("node: fetched {}", sha256(WORDS)));
    let peer = peers.try_recv().expect("somebody came");
    assert_eq!(peer.ip(), PUBLIC, "the machine came under another address");
    machine.wait_for(&format!("node: file /etc/hostname {}", sha256("bios-01")));
    machine.wait_for("node: phoned home");
}

/// A fake web server on the far host, outside. Says who came.
fn serve_errands(outside: &Gateway) -> Receiver<SocketAddr> {
    let listener = outside
        .netns
        .run(|| TcpListener::bind((FAR, 80)).expect("port 80 of the far host"));
    let (sender, peers) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let peer = stream.peer_addr().expect("a peer has an address");
            if sender.send(peer).is_err() {
                break;
            }
            let length = WORDS.len();
            // The request is small and comes at once; what it says does not matter.
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{WORDS}"
            );
        }
    });
    peers
}

/// What happens to the link, and how the crowd fares.
struct Blows<'a> {
    /// `ip monitor link` on the bastion.
    links: Receiver<(Instant, String)>,
    crowd: &'a Crowd,
}

impl<'a> Blows<'a> {
    fn watched(monitor: Shell, shell: &mut Shell, crowd: &'a Crowd) -> Self {
        let links = monitor.follow("ip monitor link");
        // It does not say when it begins to listen, so something happens until it is heard.
        let mut mtu = 60_000;
        while links.recv_timeout(Duration::from_millis(100)).is_err() {
            mtu += 1;
            shell.must(&format!("ip link set lo mtu {mtu}"));
        }
        Self { links, crowd }
    }

    /// The moments at which `eth1.107` stopped to be what it was, and at which it was RUNNING again.
    fn recovery(&self, blow: &str) -> (Instant, Instant) {
        let deadline = Instant::now() + LIMIT;
        let (mut gone, mut told) = (None, String::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((at, line)) = self.links.recv_timeout(left) else {
                panic!("{blow}: eth1.107 did not come back: {told}");
            };
            told += &format!("{line}\n");
            // The second line of a message, its hardware address, does not name it.
            let running = line.contains("eth1.107@") && line.contains(",LOWER_UP");
            let there = running && !line.starts_with("Deleted");
            match gone {
                None if line.contains("eth1.107@") && !there => gone = Some(at),
                Some(gone) if there => return (gone, at),
                None | Some(_) => {}
            }
        }
    }

    /// Lets go of what was said before.
    fn forget(&self) {
        while self.links.try_recv().is_ok() {}
    }

    /// Between RUNNING and the answer to a DISCOVER that was sent after it.
    fn served_after(&self, running: Instant, blow: &str) -> Duration {
        let answered = self.crowd.answer_since(running, LIMIT);
        let answered = answered.unwrap_or_else(|| panic!("{blow}: nobody is answered any more"));
        answered - running
    }
}

/// A link of the daemon's own is repaired by it, with all that hung on it.
fn what_is_taken_away_comes_back(shell: &mut Shell, blows: &Blows<'_>) {
    for blow in [
        "ip link delete eth1.107",
        "ip link set eth1.107 down; ip link set eth1.107 name gone",
    ] {
        blows.forget();
        shell.must(blow);
        let (gone, running) = blows.recovery(blow);
        let repaired = running - gone;
        assert!(repaired < REPAIRED, "{blow}: repaired after {repaired:?}");
        let served = blows.served_after(running, blow);
        assert!(served < PROMISED, "{blow}: served after {served:?}");
        println!("{blow}: repaired after {repaired:?}, served {served:?} after RUNNING");
    }
    let routes = shell.must("ip route show table 1107; ip rule");
    for word in ["default via 10.107.0.254", "from 10.107.0.1 lookup 1107"] {
        assert!(routes.contains(word), "{word} did not come back: {routes}");
    }
    let links = shell.must("ip link");
    assert!(!links.contains("gone@"), "{links}");
}

/// Where others keep the links, the daemon follows them.
fn service_goes_on_after_every_blow(shell: &mut Shell, blows: &Blows<'_>, inside: &Gateway) {
    shell.must(
        "sed -i 's/^host:/host:\\n  links: unmanaged/' /etc/reveille/site.yaml; reveille reload",
    );
    let make = "ip link add link eth1 name eth1.107 type vlan id 107; ip address add 10.107.0.1/24 dev eth1.107; ip link set eth1.107 up";
    let delete = format!("ip link delete eth1.107; {make}");
    let kinds = [
        // The same name, another index.
        delete.clone(),
        // Out of sight under another name, and back.
        "ip link set eth1.107 down; ip link set eth1.107 name gone; ip link set gone name eth1.107; ip link set eth1.107 up"
            .to_owned(),
        "ip link set eth1.107 down; ip link set eth1.107 up".to_owned(),
        // The new one is there before the old one goes, as an operator who moves a VLAN does it.
        format!("ip link set eth1.107 down; ip link set eth1.107 name gone; ip link delete gone; {make}"),
    ];
    let (mut dhcp, mut web) = (Duration::ZERO, Duration::ZERO);
    for (round, blow) in kinds.iter().cycle().take(BLOWS).enumerate() {
        blows.forget();
        shell.must(blow);
        let (_, running) = blows.recovery(blow);
        let served = blows.served_after(running, blow);
        assert!(served < PROMISED, "{blow}: served after {served:?}");
        dhcp = dhcp.max(served);
        let what = format!("HTTP after round {round}, {blow}");
        until(&what, PROMISED.saturating_sub(running.elapsed()), || {
            (inside.connect(INSIDE, (BASTION, 8080), PROMISED)).is_ok()
        });
        web = web.max(running.elapsed());
    }
    println!("{BLOWS} blows; after RUNNING, DHCP answered within {dhcp:?}, HTTP within {web:?}");
}

/// By capture: nothing that the bastion sent bore an address of its other side, in the header or anywhere in a DHCP reply.
fn no_side_ever_heard_the_other_ones_address(outside: &[Vec<u8>], inside: &[Vec<u8>]) {
    let public_card = [0x52, 0x54, 0, 0xaa, 2, 3];
    let trunk_card = [0x52, 0x54, 0, 0xaa, 1, 7];
    let from = |frames: &[Vec<u8>], card: [u8; 6]| -> Vec<(Ipv4Addr, Option<u16>, Vec<u8>)> {
        let frames = frames.iter().filter(|frame| frame[6..12] == card);
        frames.filter_map(|frame| told(frame)).collect()
    };
    let outside = from(outside, public_card);
    assert!(!outside.is_empty(), "nothing was captured outside");
    for (source, port, _) in &outside {
        assert_eq!(*source, PUBLIC, "the public side saw an inner address");
        assert!(
            !matches!(port, Some(67 | 68 | 69 | 4011)),
            "the public side heard DHCP or TFTP"
        );
    }
    let replies: Vec<_> = (from(inside, trunk_card).into_iter())
        .filter(|(_, port, _)| *port == Some(67))
        .collect();
    assert!(replies.len() > BLOWS, "few replies: {}", replies.len());
    for (source, _, payload) in &replies {
        assert_eq!(*source, BASTION, "a reply came from another address");
        let text = String::from_utf8_lossy(payload);
        let other = payload.windows(4).any(|four| four == PUBLIC.octets());
        assert!(
            !other && !text.contains("203.0.113."),
            "a reply names the public address: {text:?}"
        );
        let server = payload
            .windows(6)
            .any(|option| option[..2] == [54, 4] && option[2..] == BASTION.octets());
        assert!(server, "a reply names another server: {text:?}");
    }
    let urls = replies.iter().filter(|(_, _, payload)| {
        String::from_utf8_lossy(payload).contains("http://10.107.0.1:8080/")
    });
    assert!(urls.count() > 0, "no reply named a script");
    println!("{} replies captured", replies.len());
}

/// Source, UDP source port and UDP payload of an IPv4 frame.
fn told(frame: &[u8]) -> Option<(Ipv4Addr, Option<u16>, Vec<u8>)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        return None;
    };
    let source = ip.header().source_addr();
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            Some((source, Some(udp.source_port()), udp.payload().to_vec()))
        }
        _ => Some((source, None, Vec::new())),
    }
}
