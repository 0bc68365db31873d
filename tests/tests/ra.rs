//! Quiet IPv6, judged by the kernel's own router discovery, by real firmware and beside a real router (dnsmasq).

use std::net::TcpListener;
use std::time::{Duration, Instant};

use netboot::spec::Mode;
use tests::dhcp::{self, Bastion};
use tests::lab::{self, LINK, Lab};
use tests::netns::Netns;
use tests::process;
use tests::qemu::{Firmware, Hardware};
use tests::timeline::Timeline;

/// A served link, and two more stations on it, whose kernels ask for routers without delay.
fn link() -> (Netns, Netns, Netns) {
    let (server, machine, other) = (Netns::new(), Netns::new(), Netns::new());
    for netns in [&server, &machine, &other] {
        netns.sysctl("ipv6/conf/default/accept_dad", "0");
        netns.sysctl("ipv6/conf/default/router_solicitation_delay", "0");
    }
    server.sysctl("ipv6/conf/default/accept_ra", "0");
    server.bridge("eth0", dhcp::SERVER, 16);
    for (port, station) in [("port1", &machine), ("port2", &other)] {
        server.cable(port, station, "eth0");
        server.ip(&format!("link set {port} master eth0"));
    }
    (server, machine, other)
}

fn advertisements_taken(machine: &Netns) -> u64 {
    let counters = machine.output("cat", &["/proc/self/net/snmp6"]);
    let line = counters
        .lines()
        .find(|line| line.starts_with("Icmp6InRouterAdvertisements"))
        .expect("the kernel counts advertisements");
    line.split_whitespace()
        .nth(1)
        .and_then(|count| count.parse().ok())
        .expect("a count")
}

fn until(what: &str, is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "not within 20 seconds: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes the kernel ask again.
fn ask_again(machine: &Netns) {
    machine.ip("link set eth0 down");
    machine.ip("link set eth0 up");
}

#[test]
fn a_machine_that_asks_for_a_router_is_told_there_is_none_and_configures_nothing() {
    let (server, machine, _) = link();
    let bastion = Bastion::serving(&server, dhcp::site(dhcp::network(Mode::Reservation), 1));
    until("the first word", || {
        if bastion.quiet.counters().answered() == 0 {
            ask_again(&machine);
            std::thread::sleep(Duration::from_millis(200));
        }
        advertisements_taken(&machine) > 0
    });
    assert_eq!(machine.ip("-6 route show default"), "");
    assert_eq!(machine.ip("-6 addr show dev eth0 scope global"), "");
}

#[test]
fn beside_a_real_router_nothing_is_said() {
    let (server, machine, other) = link();
    let mut bastion = Bastion::serving(&server, dhcp::site(dhcp::network(Mode::Reservation), 1));
    other.ip("-6 addr add fd00:107::9/64 dev eth0 nodad");
    let timeline = Timeline::default();
    let mut router = process::command("dnsmasq");
    router.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=eth0",
        "--bind-interfaces",
        "--enable-ra",
        "--ra-param=eth0,4,1800",
        "--dhcp-range=fd00:107::,ra-only",
        "--dhcp-leasefile=/dev/null",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
    ]);
    let _router = other.start(&timeline, "router", router);
    until("a question is withheld", || {
        ask_again(&machine);
        std::thread::sleep(Duration::from_millis(200));
        bastion.quiet.counters().withheld() > 0
    });
    let answered = bastion.quiet.counters().answered();
    let withheld = bastion.quiet.counters().withheld();
    until("another question is withheld", || {
        ask_again(&machine);
        std::thread::sleep(Duration::from_millis(100));
        bastion.quiet.counters().withheld() > withheld
    });
    assert_eq!(bastion.quiet.counters().answered(), answered);
    let told = std::iter::from_fn(|| bastion.entries.try_recv().ok())
        .any(|entry| format!("{:?}", entry.fact).contains("speaks on eth0"));
    assert!(told, "the ledger says why");
}

/// Without an answer iPXE waits about thirteen seconds between its address and its script.
#[test]
fn real_firmware_does_not_wait_for_a_router() {
    let lab = Lab::flat(2);
    let mut network = dhcp::network(Mode::Reservation);
    network.link = LINK.parse().unwrap();
    network.subnet = "10.107.0.0/24".parse().unwrap();
    let node = dhcp::node(
        "node-1",
        dhcp::mac(1),
        &network,
        "10.107.0.11".parse().unwrap(),
    );
    let bastion = Bastion::serving(&lab.netns, dhcp::site_of(vec![network], vec![node]));
    // Stands where the boot HTTP server would: only that somebody comes matters here.
    let http = lab
        .netns
        .run(|| TcpListener::bind((dhcp::SERVER, 8080)).unwrap());
    http.set_nonblocking(true).unwrap();
    let machine = Hardware::numbered(1, Firmware::Bios).power_on(&lab);
    let patience = machine.firmware.patience();
    lab::until("an address", patience, || bastion.total("ack") > 0);
    let addressed = Instant::now();
    lab::until("a question for the script", patience, || {
        http.accept().is_ok()
    });
    let waited = addressed.elapsed();
    assert!(bastion.quiet.counters().answered() > 0);
    assert!(waited < Duration::from_secs(10), "it waited {waited:?}");
}
