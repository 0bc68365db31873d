//! What real firmware and real clients sent, and what each of their messages is answered.
//!
//! `tests/wire/NAME.pcap` holds the messages to ports 67 and 4011, captured from the machine that the name says;
//! `NAME.txt` the answers, in words of the codec's own decoder. `UPDATE_GOLDEN=1` writes the answers anew; the ignored
//! test below makes the captures that are missing: delete one to have it made anew.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that does not parse fails its test"
)]

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use dhcproto::v4::{DhcpOption as O, Message};
use dhcproto::{Decodable, Decoder};
use netboot::dhcp::{Heard, LinkContext, Port, Request, Verdict, answer};
use netboot::net::Timestamp;
use netboot::site::Site;
use netboot::spec::{Mode, Network, SiteSpec};
use nix::sys::signal::Signal;
use tests::dhcp::{self, Bastion, mac};
use tests::lab::{LINK, Lab, until};
use tests::process;
use tests::qemu::{Firmware, Hardware};
use tests::wire;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 11);

fn network(mode: Mode) -> Network {
    let mut network = dhcp::network(mode);
    network.link = LINK.parse().unwrap();
    network.subnet = "10.107.0.0/24".parse().unwrap();
    (network.range, network.router) = (None, None);
    network
}

/// The site that the captures were made on: node 1, and U-Boot's one and only address.
fn site(mode: Mode) -> SiteSpec {
    let network = network(mode);
    let nodes = vec![
        dhcp::node("node-1", mac(1), &network, ADDRESS),
        dhcp::node(
            "u-boot",
            "52:52:52:52:52:52".parse().unwrap(),
            &network,
            Ipv4Addr::new(10, 107, 0, 12),
        ),
    ];
    dhcp::site_of(vec![network], nodes)
}

fn told(mode: Mode, captured: &[wire::Captured]) -> String {
    let site = Site::new(Arc::new(site(mode)));
    let link = LinkContext {
        name: LINK.parse().unwrap(),
        server: dhcp::SERVER,
        http_port: 8080,
        mtu: 1500,
    };
    let mut story = String::new();
    for message in captured {
        let request = Request::parse(&message.bytes).expect("real clients send sound packets");
        let heard = Heard {
            port: if message.port == 4011 {
                Port::BootServer
            } else {
                Port::Server
            },
            unicast: message.unicast,
            chainloads: 0,
        };
        let mut reply = Vec::new();
        let now = Timestamp::from_millis(0);
        let answer = answer(&site, &link, &request, heard, now, &mut reply);
        writeln!(
            story,
            "{:?} to {} from {}, {}",
            request.ask(),
            message.port,
            answer.mac,
            answer.client
        )
        .unwrap();
        match answer.verdict {
            Verdict::Reply(told) => {
                writeln!(
                    story,
                    "  {:?} to {:?}, rule {:?}",
                    told.kind, told.destination, told.rule
                )
                .unwrap();
                let said = Message::decode(&mut Decoder::new(&reply)).expect("a sound reply");
                writeln!(
                    story,
                    "  yours {}, next server {}, {} bytes",
                    said.yiaddr(),
                    said.siaddr(),
                    reply.len()
                )
                .unwrap();
                if let Some(file) = said.fname() {
                    writeln!(story, "  file {:?}", String::from_utf8_lossy(file)).unwrap();
                }
                let mut options: Vec<_> = said.opts().iter().collect();
                options.sort_by_key(|(code, _)| u8::from(**code));
                for (code, option) in options {
                    if let O::ClassIdentifier(text)
                    | O::TFTPServerName(text)
                    | O::BootfileName(text) = option
                    {
                        let text = String::from_utf8_lossy(text);
                        writeln!(story, "  {:3} {text:?}", u8::from(*code)).unwrap();
                        continue;
                    }
                    writeln!(story, "  {:3} {option:?}", u8::from(*code)).unwrap();
                }
            }
            other @ (Verdict::Ignore(_) | Verdict::Declined(..) | Verdict::Released(..)) => {
                writeln!(story, "  {other:?}").unwrap();
            }
        }
    }
    story
}

#[test]
fn every_captured_message_gets_its_expected_answer() {
    let names = wire::names();
    assert!(names.len() >= 8, "the captures are there: {names:?}");
    let mut different = Vec::new();
    for name in names {
        let captured = wire::read(&name);
        assert!(captured.len() >= 2, "{name} holds a whole exchange");
        let mut story = format!("== gives addresses\n{}", told(Mode::Reservation, &captured));
        write!(
            story,
            "== beside another server\n{}",
            told(Mode::Proxy, &captured)
        )
        .unwrap();
        let file = wire::directory().join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &story).unwrap();
        }
        if fs::read_to_string(&file).unwrap_or_default() != story {
            different.push(format!("{name} is now told:\n{story}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn tcpdump(lab: &Lab, name: &str) -> process::Process {
    let file = wire::directory().join(format!("{name}.pcap"));
    let mut tcpdump = process::command("tcpdump");
    tcpdump
        .args([
            "-i",
            LINK,
            "-U",
            "-Z",
            "root",
            "--print",
            "--immediate-mode",
            "-w",
        ])
        .arg(&file);
    tcpdump.arg("udp dst port 67 or udp dst port 4011");
    let tcpdump = lab.netns.start(&lab.timeline, "tcpdump", tcpdump);
    tcpdump.wait_for("listening on", Duration::from_secs(10));
    tcpdump
}

/// Captures what `speak` makes happen, until so many acknowledgements left.
fn capture(name: &str, speak: impl FnOnce(&Lab) -> Vec<process::Process>) {
    if wire::names().contains(&name.to_owned()) {
        return;
    }
    let lab = Lab::flat(3);
    let bastion = Bastion::serving(&lab.netns, site(Mode::Reservation));
    let mut tcpdump = tcpdump(&lab, name);
    let _speakers = speak(&lab);
    let acknowledged = || bastion.total("ack") >= 1;
    let limit = Duration::from_secs(100);
    until("an acknowledgement", limit, acknowledged);
    until("a whole exchange", limit, || wire::read(name).len() >= 2);
    tcpdump.signal(Signal::SIGINT);
    tcpdump.wait(Duration::from_secs(10));
}

/// EDK2 asks port 4011 when an offer has option 60 alone; dnsmasq can be made to offer so, and does not answer there
/// what it is asked.
fn capture_boot_server(name: &str) {
    if wire::names().contains(&name.to_owned()) {
        return;
    }
    let lab = Lab::flat(2);
    let mut dnsmasq = process::command("dnsmasq");
    dnsmasq.args([
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
        "--dhcp-range=10.107.0.11,10.107.0.11,255.255.255.0,1h",
        "--dhcp-option-force=60,PXEClient",
        "--dhcp-boot=snponly.efi",
    ]);
    let dnsmasq = lab.netns.start(&lab.timeline, "dnsmasq", dnsmasq);
    dnsmasq.wait_for("DHCP, IP range", Duration::from_secs(10));
    let mut tcpdump = tcpdump(&lab, name);
    let machine = Hardware::numbered(1, Firmware::UefiPxe).power_on(&lab);
    until(
        "a question to port 4011",
        machine.firmware.patience(),
        || wire::read(name).iter().any(|message| message.port == 4011),
    );
    tcpdump.signal(Signal::SIGINT);
    tcpdump.wait(Duration::from_secs(10));
}

#[test]
#[ignore = "makes the captures that are missing: `cargo test -p tests --test wire -- --ignored`"]
fn captures_are_made_from_real_firmware_and_clients() {
    let firmware = [
        ("ipxe-bios", Firmware::Bios),
        ("edk2-pxe", Firmware::UefiPxe),
        ("edk2-http", Firmware::UefiHttp),
        ("u-boot-arm64", Firmware::UbootArm64),
        ("edk2-arm64", Firmware::UefiArm64),
    ];
    for (name, firmware) in firmware {
        capture(name, |lab| {
            vec![Hardware::numbered(1, firmware).power_on(lab).process]
        });
    }
    capture_boot_server("edk2-boot-server");
    let clients = [
        ("udhcpc", "busybox udhcpc -f -q -n -i eth0 -s /bin/true"),
        (
            "dhclient",
            "mount -t tmpfs none /var/lib; mkdir /var/lib/dhcp; dhclient -1 -d -sf /bin/true eth0",
        ),
        (
            "dhcpcd",
            "mount -t tmpfs none /run; mount -t tmpfs none /var/lib; mkdir /var/lib/dhcpcd; dhcpcd -1 -B -4 --noarp eth0",
        ),
    ];
    for (name, command) in clients {
        let machine = tests::netns::Netns::new();
        capture(name, |lab| {
            lab.netns.cable("port9", &machine, "eth0");
            lab.netns.ip(&format!("link set port9 master {LINK}"));
            machine.ip("link set eth0 down");
            machine.ip(&format!("link set eth0 address {} up", mac(1)));
            let mut shell = process::family("unshare");
            shell.args(["--mount", "sh", "-c", command]);
            vec![machine.start(&lab.timeline, name, shell)]
        });
    }
}
