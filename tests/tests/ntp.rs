//! The daemon's time, asked by real clients.
//!
//! The kernel's clock belongs to the machine that runs the tests, and no test sets it: the daemon must say of it what the
//! kernel says, whichever that is. That clients take the answer of a synchronised clock is shown with the same answers from
//! a socket of the test's own.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netboot::ntp::{Clock, Leap, answer};
use tests::bastion::Bastion;
use tests::lab::{BASTION, Lab, asset, until};
use tests::netns::Netns;

const LIMIT: Duration = Duration::from_secs(20);
const SITE: &str = "site: lab
networks:
  - { name: provisioning, link: eth1, subnet: 10.107.0.0/24 }
ntp: { serve: true }
";

fn cabled() -> (Lab, Netns) {
    let (lab, machine) = (Lab::empty(), Netns::new());
    lab.netns.cable("eth1", &machine, "eth0");
    lab.netns.ip("addr add 10.107.0.1/24 dev eth1");
    machine.ip("addr add 10.107.0.11/24 dev eth0");
    (lab, machine)
}

/// One question of version 4 and its answer.
fn ask(netns: &Netns, source: Ipv4Addr) -> Option<[u8; 48]> {
    netns.run(move || {
        let socket = UdpSocket::bind((source, 0)).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a limit");
        let mut question = [0; 48];
        question[0] = 0b00_100_011;
        question[40..].copy_from_slice(b"whenever");
        socket
            .send_to(&question, (BASTION, 123))
            .expect("it leaves");
        let mut answer = [0; 48];
        (socket.recv(&mut answer).ok()? == 48).then_some(answer)
    })
}

fn nanos() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is later than 1970").as_nanos()
}

#[test]
fn the_daemon_says_of_its_clock_what_the_kernel_says_and_only_to_machines() {
    let (lab, machine) = cabled();
    let site = lab.path("made");
    fs::create_dir_all(site.join("profiles")).expect("a site directory");
    fs::write(site.join("site.yaml"), SITE).expect("a site file");
    fs::write(site.join("machines.yaml"), "machines: []\n").expect("a site file");
    let mut bastion = Bastion::new(&lab, &site);
    bastion.start();
    let machines = Ipv4Addr::new(10, 107, 0, 11);
    let mut heard = None;
    until("an answer", LIMIT, || {
        heard = ask(&machine, machines);
        heard.is_some()
    });
    let heard = heard.expect("an answer");
    let clock = daemon::sys::clock().expect("the kernel's word");
    let (leap, stratum) = (heard[0] >> 6, heard[1]);
    if clock.synchronised {
        assert!(leap != 3 && stratum == 4, "{heard:?}");
    } else {
        assert_eq!((leap, stratum), (3, 16));
    }
    assert_eq!(&heard[24..32], b"whenever");
    let told = u32::from_be_bytes([heard[40], heard[41], heard[42], heard[43]]);
    let here = (nanos() / 1_000_000_000) as u64 + 2_208_988_800;
    assert!(here.abs_diff(u64::from(told)) <= 2, "{told}");
    let client = machine.try_output("ntpdig", &["-t", "2", "10.107.0.1"]);
    assert_eq!(
        client.is_ok_and(|said| said.contains("10.107.0.1")),
        clock.synchronised
    );
    // This host asks by loopback; a source that is no machine's gets nothing.
    assert!(ask(&lab.netns, BASTION).is_some());
    machine.ip("addr add 192.0.2.7/32 dev eth0");
    lab.netns.ip("route add 192.0.2.7/32 dev eth1");
    assert!(ask(&machine, Ipv4Addr::new(192, 0, 2, 7)).is_none());
}

#[test]
fn a_real_client_takes_the_time_of_a_synchronised_clock_and_no_other() {
    for synchronised in [true, false] {
        let (lab, machine) = cabled();
        let socket = lab
            .netns
            .run(|| UdpSocket::bind((BASTION, 123)).expect("a free port"));
        std::thread::spawn(move || {
            let clock = Clock {
                synchronised,
                leap: Leap::None,
                error_micros: 1000,
            };
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let came = nanos();
                if let Some(answer) = answer(&question[..length], clock, came, nanos()) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        let said = machine.try_output("ntpdig", &["-t", "2", "10.107.0.1"]);
        let taken = said.as_ref().is_ok_and(|said| said.contains("+/-"));
        assert_eq!(taken, synchronised, "ntpdig: {said:?}");
        // It only says how wrong the clock is; nobody sets it.
        let chronyd = asset("chrony").join("usr/sbin/chronyd");
        let chronyd = chronyd.to_str().expect("paths are text");
        let words = ["-u", "root", "-Q", "-t", "12", "server 10.107.0.1 iburst"];
        let said = machine.try_output(chronyd, &words);
        assert_eq!(said.is_ok(), synchronised, "chronyd: {said:?}");
        let refused = said.err().unwrap_or_default();
        assert!(
            synchronised || refused.contains("No suitable source"),
            "{refused}"
        );
    }
}
