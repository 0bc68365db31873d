//! The firewall that is planned, against the real nft and the real kernel: it is read back as it was written, and drops what
//! it says and nothing else.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use daemon::host::kernel::Kernel;
use netboot::host::{HostSpec, Masquerade, Operation, Ruleset, Service, Transport, ruleset};
use netboot::net::LinkName;
use tests::netns::Netns;

/// How long a dropped connection is waited for; one that is let through takes a millisecond.
const PATIENCE: Duration = Duration::from_millis(300);
const JOINS: u16 = 9345;
const SSH: u16 = 22;

fn links(names: &[&str]) -> BTreeSet<LinkName> {
    let names = names.iter();
    names.map(|name| name.parse().expect("a name")).collect()
}

fn service(name: &'static str, transport: Transport, port: u16, on: &[&str]) -> Service {
    Service {
        name,
        transport,
        port,
        links: links(on),
    }
}

fn masquerade(from: &str, inside: &str, out: &str) -> Masquerade {
    Masquerade {
        from: from.parse().expect("a subnet"),
        inside: inside.parse().expect("a name"),
        out: out.parse().expect("a name"),
    }
}

/// Sets the table by the daemon's own hands, and reads it back.
fn set(netns: &Netns, ruleset: Option<Ruleset>) -> Option<Ruleset> {
    netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let kernel = Kernel::open().await.expect("a kernel that can be read");
            let operation = Operation::SetRuleset { ruleset };
            let done = kernel.carry_out(&operation).await;
            done.unwrap_or_else(|failed| panic!("{failed}: {}", failed.remedy));
            kernel
                .read()
                .await
                .expect("a kernel that can be read")
                .ruleset
        })
    })
}

#[test]
fn nft_reads_the_table_back_as_it_was_written() {
    let netns = Netns::new();
    let inside = ["eth1.107", "br0", "enp0s31f6.4094", "a-b_c", "e"];
    let services = vec![
        service("dhcp", Transport::Udp, 67, &inside),
        service("tftp", Transport::Udp, 69, &inside[..1]),
        service("rke2-supervisor", Transport::Tcp, JOINS, &inside[1..3]),
        service("machine-config", Transport::Tcp, 22623, &[]),
    ];
    let masquerade = vec![
        masquerade("10.107.0.0/24", "eth1.107", "eth0"),
        masquerade("10.108.0.0/30", "br0", "eth0"),
        masquerade("128.0.0.0/1", "br0", "wan"),
    ];
    let whole = HostSpec {
        services,
        masquerade,
        ..HostSpec::default()
    };
    let filtering = HostSpec {
        masquerade: Vec::new(),
        ..whole.clone()
    };
    let routing = HostSpec {
        services: Vec::new(),
        ..whole.clone()
    };
    for spec in [whole, filtering, routing, HostSpec::default()] {
        let wanted = ruleset(&spec);
        assert_eq!(set(&netns, wanted.clone()), wanted);
    }
}

/// A machine on a cable to the bastion, which is its router.
fn neighbour(bastion: &Netns, link: &str, network: &str) -> Netns {
    let there = Netns::new();
    bastion.cable(link, &there, "eth0");
    bastion.ip(&format!("address add {network}.1/24 dev {link}"));
    there.ip(&format!("address add {network}.2/24 dev eth0"));
    there
}

fn serve(netns: &Netns, port: u16) -> TcpListener {
    netns.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a free port"))
}

/// Whether a connection is let through.
fn reaches(netns: &Netns, to: &str, port: u16) -> bool {
    let to = SocketAddr::new(to.parse().expect("an address"), port);
    netns.run(move || TcpStream::connect_timeout(&to, PATIENCE).is_ok())
}

#[test]
fn a_service_is_closed_on_other_links_and_nothing_else_is() {
    let bastion = Netns::new();
    let outside = neighbour(&bastion, "wan", "203.0.113");
    let inside = neighbour(&bastion, "lan", "10.107.0");
    let _listening = [serve(&bastion, JOINS), serve(&bastion, SSH)];
    assert!(reaches(&outside, "203.0.113.1", JOINS));

    let spec = HostSpec {
        services: vec![service("rke2-supervisor", Transport::Tcp, JOINS, &["lan"])],
        ..HostSpec::default()
    };
    set(&bastion, ruleset(&spec));
    assert!(!reaches(&outside, "203.0.113.1", JOINS), "closed outside");
    assert!(reaches(&inside, "10.107.0.1", JOINS), "open inside");
    assert!(reaches(&bastion, "203.0.113.1", JOINS), "open to itself");
    assert!(
        reaches(&outside, "203.0.113.1", SSH),
        "SSH is never filtered"
    );
}

#[test]
fn the_inside_leaves_under_the_bastions_address_and_nobody_comes_in() {
    let bastion = Netns::new();
    let outside = neighbour(&bastion, "wan", "203.0.113");
    let inside = neighbour(&bastion, "lan", "10.107.0");
    inside.ip("route add default via 10.107.0.1");
    outside.ip("route add 10.107.0.0/24 via 203.0.113.1");
    for link in ["wan", "lan"] {
        bastion.sysctl(&format!("ipv4/conf/{link}/forwarding"), "1");
    }
    let (abroad, home) = (serve(&outside, SSH), serve(&inside, SSH));
    assert!(reaches(&outside, "10.107.0.2", SSH), "the way in is there");

    let spec = HostSpec {
        masquerade: vec![masquerade("10.107.0.0/24", "lan", "wan")],
        ..HostSpec::default()
    };
    set(&bastion, ruleset(&spec));
    inside.run(|| {
        let mut out = TcpStream::connect("203.0.113.2:22").expect("the way out");
        out.write_all(b"hello").expect("the way out");
    });
    let (_, from) = abroad.accept().expect("a connection");
    assert_eq!(from.ip(), Ipv4Addr::new(203, 0, 113, 1));
    assert!(!reaches(&outside, "10.107.0.2", SSH), "no way in");
    drop(home);
}
