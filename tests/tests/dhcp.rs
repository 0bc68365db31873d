//! Real DHCP clients against the daemon, each in a namespace of its own: what they end up with is what counts.

#![expect(clippy::unwrap_used, reason = "what a test can not set up fails it")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use dhcproto::{Decodable, Decoder};
use netboot::boot::CHAINLOADS_MAX;
use netboot::net::MacAddress;
use netboot::site::SIGHTINGS_MAX;
use netboot::spec::{Mode, SiteSpec};
use tests::dhcp::{self, Bastion, address, mac};
use tests::lab::{LINK, Lab, until};
use tests::netns::Netns;
use tests::process;
use tests::qemu::{Firmware, Hardware};

const UDHCPC: &str = "busybox udhcpc -f -q -n -t 4 -T 2 -i eth0 -s /bin/true";
const DHCLIENT: &str = "dhclient -1 -v eth0; dhclient -x eth0; ip addr flush dev eth0";
const DHCPCD: &str = "timeout 25 dhcpcd --oneshot --nobackground --ipv4only --noarp --debug eth0; ip addr flush dev eth0";
/// systemd-networkd by hand: it wants its directories, and udev's word unless /sys is read-only.
const NETWORKD: &str = "mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/systemd/netif/state
    printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=no\\n' > /run/systemd/network/10-eth0.network
    chown -R systemd-network /run/systemd/netif
    /lib/systemd/systemd-networkd & networkd=$!
    for try in $(seq 200); do ip -4 addr show eth0 | grep inet && break; sleep 0.1; done
    kill $networkd; wait $networkd; ip addr flush dev eth0; true";

/// A served namespace, and a client's namespace on the same cable whose card has this MAC address.
fn cable(client_mac: &str) -> (Netns, Netns) {
    let (server, client) = (Netns::new(), Netns::new());
    plug(&server, "eth0", &client, client_mac);
    server.ip("addr add 10.107.0.1/16 dev eth0");
    (server, client)
}

fn plug(server: &Netns, link: &str, client: &Netns, client_mac: &str) {
    server.cable(link, client, "eth0");
    client.ip("link set eth0 down");
    client.ip(&format!("link set eth0 address {client_mac} up"));
}

/// What a client says that is given half a minute, with scratch directories, a host name and processes of its own.
fn client(netns: &Netns, command: &str) -> String {
    let script = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /var/lib/dhcp /var/lib/dhcpcd && ({command}) 2>&1"
    );
    // A client that stays behind dies with the shell, which is the first process of its own namespace.
    let arguments = [
        "--mount",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        "--",
        "timeout",
        "30",
        "sh",
        "-c",
        &script,
    ];
    netns
        .try_output("unshare", &arguments)
        .unwrap_or_else(|said| said)
}

fn reserved() -> SiteSpec {
    dhcp::site(dhcp::network(Mode::Reservation), 3)
}

#[test]
fn every_client_on_one_card_gets_the_one_reserved_address() {
    let (server, machine) = cable(&mac(1).to_string());
    let bastion = Bastion::serving(&server, reserved());
    for command in [UDHCPC, DHCLIENT, DHCPCD, NETWORKD] {
        let said = client(&machine, command);
        assert!(said.contains(&address(1).to_string()), "{command}: {said}");
        assert!(!said.contains("10.107.1.2"), "{command}: {said}");
    }
    assert_eq!(bastion.total("nak"), 0);
}

#[test]
fn a_client_takes_routes_mtu_and_resolver_from_the_site() {
    let (server, machine) = cable(&mac(1).to_string());
    let _bastion = Bastion::serving(&server, reserved());
    let said = client(
        &machine,
        "dhclient -1 eth0; ip -4 addr show eth0; ip route; cat /etc/resolv.conf; dhclient -x eth0",
    );
    for expected in [
        "mtu 1400",
        "inet 10.107.1.1/16",
        "default via 10.107.0.254",
        "192.0.2.0/24 via 10.107.0.253",
        "nameserver 10.107.0.1",
        "search lab.example",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn a_machine_that_gives_its_address_back_and_one_that_only_informs_itself_are_heard() {
    let (server, machine) = cable(&mac(2).to_string());
    let bastion = Bastion::serving(&server, reserved());
    let said = client(&machine, "dhclient -1 eth0; dhclient -r -v eth0");
    assert!(said.contains("DHCPRELEASE"), "{said}");
    bastion.wait_until("the release is noted", |bastion| {
        bastion.ignored("released") == 1
    });
    machine.ip("addr replace 10.107.1.2/16 dev eth0");
    let inform = format!("dhcping -v -i -s 10.107.0.1 -c 10.107.1.2 -h {}", mac(2));
    let said = client(&machine, &inform);
    assert!(said.contains("Got answer from: 10.107.0.1"), "{said}");
}

#[test]
fn a_stranger_is_not_answered_and_is_remembered() {
    let (server, machine) = cable("52:54:00:bb:00:09");
    let bastion = Bastion::serving(&server, reserved());
    let said = client(
        &machine,
        "busybox udhcpc -f -q -n -t 2 -T 1 -i eth0 -s /bin/true",
    );
    assert!(!said.contains("obtained"), "{said}");
    assert!(bastion.ignored("not_listed") >= 2);
    assert_eq!(bastion.total("offer"), 0);
    bastion.wait_until("it is sighted", |bastion| {
        let site = bastion.controller.snapshot().load();
        site.sightings()
            .any(|(mac, _)| mac.to_string() == "52:54:00:bb:00:09")
    });
}

#[test]
fn a_pool_lends_a_stranger_one_address_and_writes_it_down_before_it_says_so() {
    let (server, machine) = cable("52:54:00:bb:00:09");
    let bastion = Bastion::serving(&server, dhcp::site(dhcp::network(Mode::Pool), 1));
    let lease = |said: &str| {
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "obtained")?;
        words[at - 1].trim_end_matches(',').parse::<Ipv4Addr>().ok()
    };
    let first = client(&machine, UDHCPC);
    let lent = lease(&first).unwrap_or_else(|| panic!("{first}"));
    assert!(lent.octets()[2] == 200, "{lent} is of the range");
    assert_eq!(bastion.commits.load(std::sync::atomic::Ordering::SeqCst), 1);
    let second = client(&machine, UDHCPC);
    assert_eq!(lease(&second), Some(lent), "{second}");
}

/// Asks on a link and does what it is told there, as systems do: busybox leaves that to a script.
const UDHCPC_OBEYS: &str = r#"cat > /run/obey <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
for via in ${staticroutes:+none} $router; do [ $via = none ] && break; ip route add default via $via dev "$interface"; done
set -- $staticroutes
while [ $# -ge 2 ]; do ip route add "$1" via "$2" dev "$interface"; shift 2; done
END
chmod +x /run/obey
ask() { busybox udhcpc -f -q -n -t 4 -T 2 -i $1 -O staticroutes -s /run/obey; }
"#;

#[test]
fn a_dual_homed_system_that_asks_on_every_leg_has_one_default_route() {
    // One MAC address on both legs, as an untagged card and its VLAN have.
    let (server, machine) = cable(&mac(1).to_string());
    server.cable("eth1", &machine, "eth1");
    machine.ip("link set eth1 down");
    machine.ip(&format!("link set eth1 address {} up", mac(1)));
    server.ip("addr add 10.200.0.1/16 dev eth1");
    let near = dhcp::network(Mode::Reservation);
    let mut far = dhcp::network(Mode::Reservation);
    far.name = "far".parse().unwrap();
    far.link = "eth1".parse().unwrap();
    far.subnet = "10.200.0.0/16".parse().unwrap();
    far.router = Some(Ipv4Addr::new(10, 200, 0, 254));
    far.routes = vec![(
        "198.51.100.0/24".parse().unwrap(),
        Ipv4Addr::new(10, 200, 0, 253),
    )];
    let mut node = dhcp::node("node-1", mac(1), &near, address(1));
    let second = dhcp::node("node-1", mac(1), &far, Ipv4Addr::new(10, 200, 0, 11));
    node.links.extend(second.links);
    let _bastion = Bastion::serving(&server, dhcp::site_of(vec![near, far], vec![node]));

    let said = client(
        &machine,
        &format!("{UDHCPC_OBEYS} ask eth1; ask eth0; ip -4 route"),
    );
    let routes: Vec<&str> = said.lines().map(str::trim).collect();
    for route in [
        "default via 10.107.0.254 dev eth0",
        "192.0.2.0/24 via 10.107.0.253 dev eth0",
        "198.51.100.0/24 via 10.200.0.253 dev eth1",
        "10.200.0.0/16 dev eth1 proto kernel scope link src 10.200.0.11",
    ] {
        assert!(routes.contains(&route), "{route}: {said}");
    }
    let defaults = routes.iter().filter(|line| line.starts_with("default"));
    assert_eq!(defaults.count(), 1, "{said}");
}

#[test]
fn a_link_that_no_network_names_is_not_even_heard() {
    let (server, machine) = cable(&mac(1).to_string());
    let other = Netns::new();
    plug(&server, "eth1", &other, &mac(2).to_string());
    server.ip("addr add 10.108.0.1/16 dev eth1");
    let bastion = Bastion::serving(&server, reserved());
    let said = client(
        &other,
        "busybox udhcpc -f -q -n -t 2 -T 1 -i eth0 -s /bin/true",
    );
    assert!(!said.contains("obtained"), "{said}");
    assert_eq!(bastion.total("received"), 0);
    let said = client(&machine, UDHCPC);
    assert!(said.contains("obtained"), "{said}");
}

#[test]
fn a_link_is_served_when_it_appears_when_it_is_made_anew_and_when_its_address_changes() {
    let (server, machine) = (Netns::new(), Netns::new());
    let bastion = Bastion::start(&server, reserved());
    let served = |bastion: &Bastion| !bastion.dhcp.served().is_empty();
    bastion.wait_until("the missing link is named", |bastion| {
        bastion
            .dhcp
            .faults()
            .values()
            .any(|fault| fault.contains("no link eth0"))
    });
    plug(&server, "eth0", &machine, &mac(1).to_string());
    bastion.wait_until("the missing address is named", |bastion| {
        bastion
            .dhcp
            .faults()
            .values()
            .any(|fault| fault.contains("no address in 10.107.0.0/16"))
    });
    for round in 0..2 {
        server.ip("addr add 10.107.0.1/16 dev eth0");
        bastion.wait_until("the link is served", served);
        let said = client(&machine, UDHCPC);
        assert!(said.contains("server 10.107.0.1"), "round {round}: {said}");
        server.ip("addr add 10.107.0.2/16 dev eth0");
        server.sysctl("ipv4/conf/eth0/promote_secondaries", "1");
        server.ip("addr del 10.107.0.1/16 dev eth0");
        client_until(&machine, "server 10.107.0.2");
        server.ip("link del eth0");
        bastion.wait_until("the vanished link is not served", |bastion| {
            !served(bastion)
        });
        plug(&server, "eth0", &machine, &mac(1).to_string());
    }
}

/// Asks until the answer says this: the daemon follows an address within moments, not at once.
fn client_until(machine: &Netns, expected: &str) {
    let mut said = String::new();
    for _ in 0..10 {
        said = client(machine, UDHCPC);
        if said.contains(expected) {
            return;
        }
    }
    panic!("never {expected}: {said}");
}

/// A machine on a network of its own, a relay between it and the bastion, and what they are told.
struct Far {
    relay: Netns,
    machine: Netns,
    timeline: tests::timeline::Timeline,
    _server: Netns,
    _bastion: Bastion,
}

impl Far {
    fn new() -> Self {
        let (server, relay, machine) = (Netns::new(), Netns::new(), Netns::new());
        plug(&server, "eth0", &relay, "52:54:00:cc:00:01");
        server.ip("addr add 10.107.0.1/16 dev eth0");
        server.ip("route add 10.200.0.0/24 via 10.107.0.9");
        relay.ip("addr add 10.107.0.9/16 dev eth0");
        plug(&relay, "far0", &machine, &mac(7).to_string());
        relay.ip("addr add 10.200.0.1/24 dev far0");
        let mut far = dhcp::network(Mode::Reservation);
        far.name = "far".parse().unwrap();
        far.subnet = "10.200.0.0/24".parse().unwrap();
        far.router = Some(Ipv4Addr::new(10, 200, 0, 1));
        (far.relayed, far.routes) = (true, Vec::new());
        let node = dhcp::node("far-7", mac(7), &far, Ipv4Addr::new(10, 200, 0, 7));
        let near = dhcp::network(Mode::Reservation);
        let bastion = Bastion::serving(&server, dhcp::site_of(vec![near, far], vec![node]));
        Self {
            relay,
            machine,
            timeline: tests::timeline::Timeline::default(),
            _server: server,
            _bastion: bastion,
        }
    }

    fn is_served_through(&self, program: &str, arguments: &[&str], ready: &str) {
        let mut agent = process::command(program);
        agent.args(arguments);
        let agent = self.relay.start(&self.timeline, "relay", agent);
        agent.wait_for(ready, Duration::from_secs(10));
        let said = client(&self.machine, UDHCPC);
        assert!(said.contains("lease of 10.200.0.7 obtained"), "{said}");
    }
}

#[test]
fn a_machine_behind_a_relay_gets_the_address_of_its_own_network() {
    let arguments = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
        "--log-dhcp",
        "--dhcp-leasefile=/dev/null",
        "--dhcp-relay=10.200.0.1,10.107.0.1",
    ];
    Far::new().is_served_through("dnsmasq", &arguments, "DHCP relay");
}

/// This relay names the machine's network by its link selection (RFC 3527), gives an address of the
/// bastion's own network as its own, and knows by the echo alone where a reply belongs.
#[test]
fn a_relay_that_selects_the_link_is_understood_and_gets_its_agent_information_back() {
    let arguments = "-4 -d --no-pid -a -U eth0 -i far0 10.107.0.1".split(' ');
    let arguments: Vec<&str> = arguments.collect();
    Far::new().is_served_through("dhcrelay", &arguments, "Sending on   Socket");
}

#[test]
fn a_lent_address_that_somebody_else_bears_is_declined_and_lent_no_more() {
    let (server, machine) = cable("52:54:00:bb:00:09");
    let bastion = Bastion::serving(&server, dhcp::site(dhcp::network(Mode::Pool), 1));
    let lent = |said: &str| {
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().rposition(|word| *word == "leased");
        at.and_then(|at| words.get(at + 1)?.parse::<Ipv4Addr>().ok())
    };
    let first = client(&machine, &DHCPCD.replace("--noarp ", ""));
    let address = lent(&first).unwrap_or_else(|| panic!("{first}"));
    // Whoever asks by ARP who bears it is answered from now on.
    server.ip(&format!("addr add {address}/32 dev eth0"));
    let second = client(&machine, &DHCPCD.replace("--noarp ", ""));
    assert!(second.contains("sending DECLINE"), "{second}");
    let other = lent(&second).unwrap_or_else(|| panic!("{second}"));
    assert_ne!(other, address);
    assert_eq!(bastion.ignored("declined"), 1);
}

/// dnsmasq as the server that was there first: it gives addresses and knows nothing of booting.
fn first_server(lab: &Lab) -> (Netns, process::Process) {
    let netns = Netns::new();
    lab.netns.cable("port9", &netns, "eth0");
    lab.netns.ip(&format!("link set port9 master {LINK}"));
    netns.ip("addr add 10.107.0.2/24 dev eth0");
    let mut command = process::command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
        "--log-dhcp",
        "--no-ping",
        "--dhcp-authoritative",
        "--dhcp-leasefile=/dev/null",
        "--dhcp-range=10.107.0.50,10.107.0.60,255.255.255.0,1h",
    ]);
    let process = netns.start(&lab.timeline, "dnsmasq", command);
    process.wait_for("DHCP, IP range", Duration::from_secs(10));
    (netns, process)
}

#[test]
fn beside_a_running_server_real_firmware_takes_the_address_there_and_the_script_here() {
    let lab = Lab::flat(2);
    let mut network = dhcp::network(Mode::Proxy);
    network.link = LINK.parse().unwrap();
    network.subnet = "10.107.0.0/24".parse().unwrap();
    network.router = None;
    let node = dhcp::node("node-1", mac(1), &network, Ipv4Addr::new(10, 107, 0, 11));
    let bastion = Bastion::serving(&lab.netns, dhcp::site_of(vec![network], vec![node]));
    let (_first, dnsmasq) = first_server(&lab);
    // Stands where the boot HTTP server would: only the first line of the first question matters here.
    let http = lab
        .netns
        .run(|| TcpListener::bind((dhcp::SERVER, 8080)).unwrap());
    let asked = std::thread::spawn(move || {
        let (mut connection, from) = http.accept().unwrap();
        let mut question = [0; 256];
        let length = connection.read(&mut question).unwrap();
        let _ = connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        (
            from.ip(),
            String::from_utf8_lossy(&question[..length]).into_owned(),
        )
    });
    let machine = Hardware::numbered(1, Firmware::Bios).power_on(&lab);
    dnsmasq.wait_for("DHCPACK", machine.firmware.patience());
    let (from, question) = asked.join().unwrap();
    assert!(
        from.to_string().starts_with("10.107.0.5"),
        "{from} is of the first server's range"
    );
    assert!(
        question.starts_with("GET /boot/52-54-00-aa-00-01/script.ipxe"),
        "{question}"
    );
    assert_eq!((bastion.total("ack"), bastion.total("nak")), (0, 0));
}

/// Messages of machines that nobody built, sent as a relay would: for counts that no real client reaches in a test.
struct Relay {
    socket: UdpSocket,
    next: u32,
}

impl Relay {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 66);

    fn on(netns: &Netns) -> Self {
        netns.ip(&format!("addr add {}/16 dev eth0", Self::ADDRESS));
        let socket = netns.run(|| UdpSocket::bind((Self::ADDRESS, 67)).unwrap());
        socket.connect((dhcp::SERVER, 67)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Self { socket, next: 1 }
    }

    /// Sends a message of this type with these options under a transaction of its own.
    fn send(&mut self, mac: [u8; 6], kind: u8, options: &[u8]) {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 1]);
        bytes[4..8].copy_from_slice(&self.next.to_be_bytes());
        bytes[24..28].copy_from_slice(&Self::ADDRESS.octets());
        bytes[28..34].copy_from_slice(&mac);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, kind]);
        bytes.extend(options);
        bytes.push(255);
        self.next += 1;
        self.socket.send(&bytes).unwrap();
    }

    /// The boot file of the reply to a REQUEST with these options.
    fn boot_file(&mut self, mac: MacAddress, address: Ipv4Addr, options: &[u8]) -> String {
        let mut all = [
            &[54, 4],
            &dhcp::SERVER.octets()[..],
            &[50, 4],
            &address.octets(),
        ]
        .concat();
        all.extend(options);
        self.send(mac.octets(), 3, &all);
        let mut reply = [0; 1500];
        let length = self.socket.recv(&mut reply).unwrap();
        let said = Message::decode(&mut Decoder::new(&reply[..length])).unwrap();
        match said.opts().get(OptionCode::BootfileName) {
            Some(DhcpOption::BootfileName(name)) => String::from_utf8_lossy(name).into_owned(),
            _ => String::new(),
        }
    }
}

#[test]
fn a_machine_that_is_sent_a_loader_again_and_again_is_stopped_until_it_asks_as_ipxe() {
    let (server, other) = cable("52:54:00:cc:00:02");
    let mut bastion = Bastion::serving(&server, reserved());
    let mut relay = Relay::on(&other);
    let pxe = [&[93, 2, 0, 7, 60, 9][..], b"PXEClient"].concat();
    for count in 0..CHAINLOADS_MAX {
        assert_eq!(
            relay.boot_file(mac(1), address(1), &pxe),
            "snponly.efi\0",
            "loader {count}"
        );
    }
    assert_eq!(relay.boot_file(mac(1), address(1), &pxe), "");
    until(
        "the ledger to name the loop",
        Duration::from_secs(10),
        || {
            std::iter::from_fn(|| bastion.entries.try_recv().ok())
                .any(|entry| format!("{:?}", entry.fact).contains("chain-loop"))
        },
    );
    assert_eq!(
        relay.boot_file(mac(2), address(2), &pxe),
        "snponly.efi\0",
        "another machine"
    );
    let ipxe = [&pxe[..], &[77, 4], b"iPXE"].concat();
    assert!(
        relay
            .boot_file(mac(1), address(1), &ipxe)
            .contains("script.ipxe")
    );
    assert_eq!(
        relay.boot_file(mac(1), address(1), &pxe),
        "snponly.efi\0",
        "a new count"
    );
}

#[test]
fn strangers_by_the_thousand_are_counted_and_not_remembered() {
    const STRANGERS: u32 = 20_000;
    let (server, other) = cable("52:54:00:cc:00:02");
    let bastion = Bastion::serving(&server, reserved());
    let mut relay = Relay::on(&other);
    for number in 0..STRANGERS {
        let [a, b, c, d] = number.to_be_bytes();
        relay.send([0x52, 0xee, a, b, c, d], 3, &[50, 4, 10, 107, 9, 9]);
        if number % 256 == 0 {
            bastion.wait_until("the queue is short", |bastion| {
                bastion.ignored("not_listed") + 512 > u64::from(number)
            });
        }
    }
    bastion.wait_until("all are counted", |bastion| {
        bastion.ignored("not_listed") == u64::from(STRANGERS)
    });
    assert!(bastion.controller.snapshot().load().sightings().count() <= SIGHTINGS_MAX);
    let pxe = [&[93, 2, 0, 7, 60, 9][..], b"PXEClient"].concat();
    assert_eq!(
        relay.boot_file(mac(1), address(1), &pxe),
        "snponly.efi\0",
        "and machines are served"
    );
}
