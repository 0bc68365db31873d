//! TFTP by real clients in namespaces, and by raw sockets where no client does what firmware does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use daemon::config::TftpEngine;
use daemon::tftp::{Answer, LinkBinding, Report, Server, Settings, Stage, TftpRequest};
use netboot::tftp::{Limits, Outcome};
use tests::netns::Netns;
use tests::tftp::{Wish, fetch, fetch_all};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
const SERVER: SocketAddrV4 = SocketAddrV4::new(ADDRESS, 69);

#[test]
fn real_clients_get_every_byte() {
    let world = World::new(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    for (name, size) in [
        ("small.efi", 511),
        ("even.efi", 1024),
        ("ipxe.efi", 1_100_000),
    ] {
        let file = world.file(name, size);
        for (client, program, words) in clients(name) {
            let target = scratch.path().join("got");
            let _ = std::fs::remove_file(&target);
            let words: Vec<String> = words
                .iter()
                .map(|word| word.replace("TARGET", target.to_str().unwrap()))
                .collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let said = world.node.try_output(program, &words);
            let got = std::fs::read(&target).unwrap_or_default();
            assert!(
                got == file,
                "{client} fetched {} of {size} octets of {name}: {said:?}",
                got.len()
            );
        }
    }
    let windows = world
        .ended()
        .iter()
        .filter(|(_, _, window)| *window == 8)
        .count();
    assert_eq!(windows, 3, "atftp was not granted its window");
}

#[test]
fn a_missing_file_is_refused_at_once_in_words_clients_show() {
    let world = World::new(Settings::default());
    let began = Instant::now();
    let reason = world.fetch(Wish::new(SERVER, "autoexec.ipxe")).unwrap_err();
    assert_eq!(reason, "autoexec.ipxe: ERROR 1: file not found");
    assert!(began.elapsed() < Duration::from_secs(1));
    let said = world.node.try_output(
        "atftp",
        &["-g", "-r", "nothing", "-l", "/dev/null", "10.107.0.1"],
    );
    assert!(said.unwrap_err().contains("file not found"));
    let reason = world
        .fetch(Wish::new(SERVER, "../../etc/shadow"))
        .unwrap_err();
    assert!(reason.contains("ERROR 2"), "{reason}");
    let reason = world.fetch(Wish::new(SERVER, "refused.efi")).unwrap_err();
    assert!(reason.contains("ERROR 2"), "{reason}");
}

#[test]
fn nothing_is_written() {
    let world = World::new(Settings::default());
    let scratch = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(scratch.path(), "mine").unwrap();
    let path = scratch.path().to_str().unwrap();
    let said = world
        .node
        .try_output("atftp", &["-p", "-l", path, "-r", "ipxe.efi", "10.107.0.1"]);
    assert!(said.unwrap_err().contains("read only"));
    assert_eq!(world.count("write"), 1);
}

#[test]
fn backslashes_and_leading_slashes_name_the_same_file() {
    let world = World::new(Settings::default());
    let file = world.file("boot/x64/ipxe.efi", 5000);
    for name in [
        "/boot/x64/ipxe.efi",
        "\\boot\\x64\\ipxe.efi",
        "boot//x64/./ipxe.efi",
    ] {
        assert_eq!(world.fetch(Wish::new(SERVER, name)).unwrap().bytes, file);
    }
}

#[test]
fn text_mode_arrives_as_it_was() {
    let world = World::new(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("got");
    let file = world.file("script.ipxe", 200_000);
    let words = ["-m", "netascii", "10.107.0.1", "-c", "get", "script.ipxe"];
    let words = [&words[..], &[target.to_str().unwrap()]].concat();
    world.node.output("tftp", &words);
    assert!(std::fs::read(&target).unwrap() == file);
}

#[test]
fn a_file_of_more_than_65535_blocks_wraps_and_arrives() {
    let world = World::new(Settings::default());
    let file = world.file("initrd.img", 8 * 140_000 + 3);
    for window in [1, 16] {
        let wish = Wish::new(SERVER, "initrd.img")
            .option("blksize", 8)
            .option("windowsize", window);
        assert!(world.fetch(wish).unwrap().bytes == file);
    }
}

#[test]
fn edk2s_size_query_ends_with_its_error_and_the_same_port_asks_again() {
    let world = World::new(Settings::default());
    let file = world.file("snponly.efi", 100_000);
    let request = Wish::new(SERVER, "snponly.efi")
        .option("tsize", 0)
        .option("blksize", 1468)
        .option("windowsize", 4)
        .request();
    let socket = world.socket();
    socket.send_to(&request, SERVER).unwrap();
    let (first, oack) = receive(&socket);
    assert_eq!(
        oack,
        b"\0\x06tsize\x00100000\0blksize\x001468\0windowsize\x004\0"
    );
    socket
        .send_to(b"\0\x05\0\x08User aborted the transfer\0", first)
        .unwrap();
    socket.send_to(&request, SERVER).unwrap();
    let (second, oack) = receive(&socket);
    assert_eq!(oack[..2], [0, 6]);
    assert_ne!(first, second, "the second transfer has a port of its own");
    socket.send_to(&[0, 4, 0, 0], second).unwrap();
    for block in 1..=4_u8 {
        let (from, data) = receive(&socket);
        assert_eq!((from, &data[..4]), (second, &[0, 3, 0, block][..]));
        let place = 1468 * (usize::from(block) - 1);
        assert!(data[4..] == file[place..place + 1468]);
    }
    world.await_count("size_only", 1);
}

#[test]
fn repeated_acks_do_not_repeat_data() {
    let world = World::new(Settings::default());
    world.file("ipxe.efi", 10_000);
    let socket = world.socket();
    socket
        .send_to(&Wish::new(SERVER, "ipxe.efi").request(), SERVER)
        .unwrap();
    let (server, _) = receive(&socket);
    // The answer to the first ACK teaches the clock; the next ones must come from ACKs alone.
    for _ in 0..5 {
        socket.send_to(&[0, 4, 0, 1], server).unwrap();
    }
    let mut blocks = Vec::new();
    socket
        .set_read_timeout(Some(Duration::from_millis(4)))
        .unwrap();
    let mut buffer = [0; 600];
    while let Ok((_, _)) = socket.recv_from(&mut buffer) {
        blocks.push(buffer[3]);
    }
    assert_eq!(blocks.first(), Some(&2));
    assert!(blocks.len() <= 3, "five ACKs made {} packets", blocks.len());
    world.await_count("stale", 4);
}

#[test]
fn a_client_beyond_the_limit_reads_why_and_others_go_on() {
    let limits = Limits {
        transfers: 3,
        transfers_per_client: 2,
        ..Limits::default()
    };
    let world = World::new(Settings {
        limits,
        ..Settings::default()
    });
    world.file("ipxe.efi", 10_000);
    let request = Wish::new(SERVER, "ipxe.efi").request();
    let open: Vec<UdpSocket> = (0..2).map(|_| world.socket()).collect();
    for socket in &open {
        socket.send_to(&request, SERVER).unwrap();
        assert_eq!(receive(socket).1[..2], [0, 3]);
    }
    let reason = world.fetch(Wish::new(SERVER, "ipxe.efi")).unwrap_err();
    assert!(
        reason.contains("too many transfers from this address"),
        "{reason}"
    );
    assert_eq!(world.count("busy_client"), 1);
    for socket in &open {
        socket.send_to(b"\0\x05\0\0\0", receive(socket).0).unwrap();
    }
    world.await_count("aborted", 2);
    world.fetch(Wish::new(SERVER, "ipxe.efi")).unwrap();
}

#[test]
fn lost_packets_cost_milliseconds() {
    let world = World::new(Settings::default());
    let file = world.file("ipxe.efi", 1 << 20);
    for window in [1, 4, 16, 64] {
        let wishes: Vec<Wish> = (0..8)
            .map(|seed| Wish {
                lost_per_mille: 20,
                seed: seed + 1,
                expected: Some(Bytes::from(file.clone())),
                ..Wish::new(SERVER, "ipxe.efi")
                    .option("blksize", 1468)
                    .option("windowsize", window)
            })
            .collect();
        let began = Instant::now();
        for fetched in world.fetch_all(wishes) {
            assert_eq!(fetched.unwrap().length, file.len());
        }
        // 700 blocks at a loss of 4 % a round trip: peers that wait a second take half a minute.
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(8),
            "window {window} took {took:?}"
        );
    }
}

#[test]
fn two_hundred_machines_at_once_are_all_served() {
    let world = World::new(Settings::default());
    let file = world.file("ipxe.efi", 300_000);
    let wish = Wish {
        expected: Some(Bytes::from(file.clone())),
        ..Wish::new(SERVER, "ipxe.efi")
            .option("blksize", 1432)
            .option("tsize", 0)
    };
    for fetched in world.fetch_all(vec![wish; 200]) {
        assert_eq!(fetched.unwrap().length, file.len());
    }
    world.await_count("complete", 200);
}

#[test]
fn a_link_too_narrow_for_its_blocks_still_carries_windows() {
    let world = World::new(Settings::default());
    let file = world.file("ipxe.efi", 300_000);
    // The kernel refuses to cut a window into frames that do not fit, so each block goes out by itself.
    world.host.ip("link set prov mtu 1000");
    let wish = Wish::new(SERVER, "ipxe.efi")
        .option("blksize", 1468)
        .option("windowsize", 8);
    for _ in 0..2 {
        assert!(world.fetch(wish.clone()).unwrap().bytes == file);
    }
    assert_eq!(world.count("send_failed"), 0);
}

#[test]
fn answers_come_from_the_address_and_link_that_were_asked() {
    let world = World::new(Settings::default());
    world.file("ipxe.efi", 5000);
    // A second link of the same host, with the same subnet's other address and no server.
    let other = Netns::new();
    world.host.cable("public", &other, "eth0");
    world.host.ip("addr add 192.0.2.1/24 dev public");
    other.ip("addr add 192.0.2.2/24 dev eth0");
    other.ip("route add 10.107.0.0/24 via 192.0.2.1");
    let fetched = world.fetch(Wish::new(SERVER, "ipxe.efi")).unwrap();
    assert_eq!(fetched.from.unwrap().ip(), ADDRESS);
    let socket = other.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let before = world.count("requests");
    let request = Wish::new(SERVER, "ipxe.efi").request();
    // Asked over the other link, the provisioning address is deaf: the request dies with an ICMP error.
    socket.connect(SERVER).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.send(&request).unwrap();
    let error = socket.recv(&mut [0; 600]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(world.count("requests"), before);
}

#[test]
fn a_server_stops_and_starts_within_moments_and_tells_its_clients() {
    let mut world = World::new(Settings::default());
    world.file("ipxe.efi", 10_000);
    let socket = world.socket();
    socket
        .send_to(&Wish::new(SERVER, "ipxe.efi").request(), SERVER)
        .unwrap();
    assert_eq!(receive(&socket).1[..2], [0, 3]);
    let began = Instant::now();
    world.stop();
    let (_, words) = std::iter::repeat_with(|| receive(&socket))
        .find(|(_, bytes)| bytes[1] == 5)
        .unwrap();
    assert!(String::from_utf8_lossy(&words).contains("stopping"));
    world.start(Settings::default());
    world.fetch(Wish::new(SERVER, "ipxe.efi")).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_transfer_is_told_from_start_to_end() {
    let world = World::new(Settings::default());
    world.file("ipxe.efi", 100_000);
    world
        .fetch(Wish::new(SERVER, "ipxe.efi").option("blksize", 1468))
        .unwrap();
    world.fetch(Wish::new(SERVER, "nothing")).unwrap_err();
    world.await_count("complete", 1);
    let told: Vec<String> = world
        .reports()
        .iter()
        .map(|report| match &report.stage {
            Stage::Started(progress) => format!("{} started {}", report.path, progress.total),
            Stage::Running(progress) => format!("{} running {}", report.path, progress.bytes),
            Stage::Ended(progress, outcome) => {
                format!("{} {} {}", report.path, outcome.name(), progress.bytes)
            }
            Stage::Refused(reason) => format!("{} refused: {reason}", report.path),
        })
        .collect();
    assert_eq!(
        told,
        [
            "ipxe.efi started 100000",
            "ipxe.efi complete 100000",
            "nothing refused: no such file here"
        ]
    );
}

#[test]
fn the_packaged_engine_serves_the_same_files() {
    let settings = Settings {
        engine: TftpEngine::AsyncTftp,
        ..Settings::default()
    };
    let mut world = World::new(settings.clone());
    let file = world.file("boot/ipxe.efi", 100_000);
    for name in ["boot/ipxe.efi", "\\boot\\ipxe.efi"] {
        let fetched = world
            .fetch(Wish::new(SERVER, name).option("blksize", 1468))
            .unwrap();
        assert!(fetched.bytes == file);
        assert_eq!(fetched.from.unwrap().ip(), ADDRESS);
    }
    assert!(
        world
            .fetch(Wish::new(SERVER, "nothing"))
            .unwrap_err()
            .contains("ERROR 1")
    );
    assert!(
        world
            .fetch(Wish::new(SERVER, "../secret"))
            .unwrap_err()
            .contains("ERROR 2")
    );
    world.await_count("unconfirmed", 2);
    world.stop();
    world.start(settings);
    world.fetch(Wish::new(SERVER, "boot/ipxe.efi")).unwrap();
}

/// A bastion and a node on one cable, and a server on the bastion's end.
struct World {
    host: Netns,
    node: Netns,
    server: Option<Server>,
    files: Arc<Mutex<Vec<(String, Bytes)>>>,
    reports: Arc<Mutex<Vec<Report>>>,
}

impl World {
    fn new(settings: Settings) -> Self {
        let (host, node) = (Netns::new(), Netns::new());
        host.cable("prov", &node, "eth0");
        host.ip("addr add 10.107.0.1/24 dev prov");
        node.ip("addr add 10.107.0.2/24 dev eth0");
        let mut world = Self {
            host,
            node,
            server: None,
            files: Arc::default(),
            reports: Arc::default(),
        };
        world.start(settings);
        world
    }

    fn start(&mut self, settings: Settings) {
        let files = self.files.clone();
        let source = move |request: &TftpRequest<'_>| {
            assert_eq!((request.local, request.link), (ADDRESS, "prov"));
            if request.path == "refused.efi" {
                return Answer::Denied;
            }
            let files = files.lock().unwrap();
            match files.iter().find(|(name, _)| name == request.path) {
                Some((_, bytes)) => Answer::Bytes(bytes.clone()),
                None => Answer::NotFound("no such file here".to_owned()),
            }
        };
        let reports = self.reports.clone();
        let server = self.host.run(move || {
            let link = LinkBinding {
                name: "prov".to_owned(),
                ifindex: 2,
                address: ADDRESS,
            };
            let reports = move |report| reports.lock().unwrap().push(report);
            Server::start(&link, &settings, Arc::new(source), Arc::new(reports)).unwrap()
        });
        self.server = Some(server);
    }

    fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }

    /// Serves a file of bytes that differ from block to block, line ends among them.
    fn file(&self, name: &str, size: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(size)
        .collect();
        let entry = (name.to_owned(), Bytes::from(bytes.clone()));
        self.files.lock().unwrap().push(entry);
        bytes
    }

    fn fetch(&self, wish: Wish) -> Result<tests::tftp::Fetched, String> {
        self.node.run(move || fetch(&wish))
    }

    fn fetch_all(&self, wishes: Vec<Wish>) -> Vec<Result<tests::tftp::Fetched, String>> {
        self.node.run(move || fetch_all(&wishes))
    }

    fn socket(&self) -> UdpSocket {
        let socket = self.node.run(|| UdpSocket::bind("10.107.0.2:0").unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket
    }

    fn reports(&self) -> Vec<Report> {
        self.reports.lock().unwrap().clone()
    }

    /// Path, how it ended, and the window of every ended transfer.
    fn ended(&self) -> Vec<(String, Outcome, u16)> {
        self.reports()
            .into_iter()
            .filter_map(|report| match report.stage {
                Stage::Ended(progress, outcome) => {
                    Some((report.path, outcome, progress.agreed.window))
                }
                Stage::Started(_) | Stage::Running(_) | Stage::Refused(_) => None,
            })
            .collect()
    }

    fn count(&self, name: &str) -> u64 {
        let counters = self.server.as_ref().unwrap().counters().each();
        counters.iter().find(|(each, _)| *each == name).unwrap().1
    }

    /// The server counts after it has answered, so a test that saw the answer waits for the count.
    fn await_count(&self, name: &str, wanted: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.count(name) != wanted {
            assert!(
                Instant::now() < deadline,
                "{name} is {}, not {wanted}",
                self.count(name)
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The command lines of the real clients, with TARGET where the file goes.
fn clients(name: &str) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let words = |line: String| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    vec![
        (
            "tftp-hpa",
            "tftp",
            words(format!("-m binary 10.107.0.1 -c get {name} TARGET")),
        ),
        (
            "curl",
            "curl",
            words(format!("-sS -o TARGET tftp://10.107.0.1/{name}")),
        ),
        (
            "curl with large blocks",
            "curl",
            words(format!(
                "-sS --tftp-blksize 8192 -o TARGET tftp://10.107.0.1/{name}"
            )),
        ),
        (
            "curl without options",
            "curl",
            words(format!(
                "-sS --tftp-no-options -o TARGET tftp://10.107.0.1/{name}"
            )),
        ),
        (
            "atftp",
            "atftp",
            words(format!("-g -r {name} -l TARGET 10.107.0.1")),
        ),
        (
            "atftp with windows",
            "atftp",
            [
                words("--option".to_owned()),
                vec![
                    "windowsize 8".to_owned(),
                    "--option".to_owned(),
                    "blksize 1428".to_owned(),
                ],
                words(format!("-g -r {name} -l TARGET 10.107.0.1")),
            ]
            .concat(),
        ),
        (
            "busybox",
            "busybox",
            words(format!("tftp -g -r {name} -l TARGET 10.107.0.1")),
        ),
        (
            "busybox with large blocks",
            "busybox",
            words(format!("tftp -b 8192 -g -r {name} -l TARGET 10.107.0.1")),
        ),
    ]
}

fn receive(socket: &UdpSocket) -> (std::net::SocketAddr, Vec<u8>) {
    let mut buffer = [0; 2000];
    let (length, from) = socket.recv_from(&mut buffer).expect("the server answers");
    (from, buffer[..length].to_vec())
}
