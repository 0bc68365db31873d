//! Boot HTTP asked by clients that we did not write: curl, wget, Ignition. What they end up with is what counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daemon::http::{Limits, Pace, Refusal};
use netboot::attempt::{Fact, TransferOutcome};
use netboot::event::Event;
use netboot::spec::Mode;
use tests::http::{
    BASE, Bastion, CLOUD_INIT, IGNITION, LIVE, SERVER, TALOS, address, argument, curl, mac, read,
    script, url,
};
use tests::lab::until;
use tests::netns::Netns;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn curl_fetches_a_file_whole_in_part_and_resumed() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let file = bastion.artifact("big/kernel.efi", 5_000_001);
    let (stored, url) = (read(&bastion.depot.path(&file.digest)), url(&file));
    let target = bastion.path("got");
    let to = target.to_str().expect("text");

    assert_eq!(curl(&machine, &["-o", to, &url]).0, 200);
    assert!(read(&target) == stored, "the whole file");
    assert_eq!(curl(&machine, &["-o", to, "-r", "1000-1999", &url]).0, 206);
    assert!(read(&target) == stored[1000..2000], "a range");
    assert_eq!(curl(&machine, &["-o", to, "-r", "-7", &url]).0, 206);
    assert!(read(&target) == stored[5_000_001 - 7..], "a suffix");
    std::fs::write(&target, &stored[..1_234_567]).expect("written");
    assert_eq!(curl(&machine, &["-o", to, "-C", "-", &url]).0, 206);
    assert!(read(&target) == stored, "a resumed download");
    assert_eq!(curl(&machine, &["-r", "5000001-", &url]).0, 416);

    let tag = format!("\"{}\"", file.digest);
    assert_eq!(
        curl(&machine, &["-H", &format!("If-None-Match: {tag}"), &url]),
        (304, String::new())
    );
    let (status, _) = curl(
        &machine,
        &["-o", to, "-r", "0-9", "-H", "If-Range: \"other\"", &url],
    );
    assert_eq!(
        (status, read(&target).len()),
        (200, 5_000_001),
        "an If-Range of another file"
    );
    assert_eq!(
        curl(
            &machine,
            &[
                "-o",
                to,
                "-r",
                "0-9",
                "-H",
                &format!("If-Range: {tag}"),
                &url
            ]
        )
        .0,
        206
    );
    assert_eq!(curl(&machine, &["-H", "If-Match: \"other\"", &url]).0, 412);

    let (status, head) = curl(&machine, &["-I", &url]);
    let head = head.to_lowercase();
    assert_eq!(status, 200);
    for line in [
        "content-length: 5000001",
        "content-type: application/efi",
        "accept-ranges: bytes",
        &format!("etag: {tag}"),
    ] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert!(!head.contains("location:"), "{head}");
}

#[test]
fn every_part_that_left_is_in_the_ledger_under_the_machine_that_took_it() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let file = bastion.artifact("big/initrd", 100_000);
    assert_eq!(
        curl(&machine, &["-o", "/dev/null", "-r", "100-299", &url(&file)]).0,
        206
    );
    assert_eq!(curl(&machine, &["-I", &url(&file)]).0, 200);
    assert_eq!(
        curl(
            &machine,
            &[&format!("{BASE}/artifacts/{}/x", "0".repeat(64))]
        )
        .0,
        404
    );
    let mut told = Vec::new();
    until("three entries", LIMIT, || {
        told.extend(bastion.facts());
        told.len() == 3
    });
    for entry in &told {
        assert_eq!(
            entry.node.as_ref().map(|node| node.as_str()),
            Some("node-4")
        );
        assert_eq!(entry.mac, Some(mac(LIVE)));
    }
    let Fact::Transfer {
        digest,
        offset,
        bytes,
        size,
        outcome,
        ..
    } = &told[0].fact
    else {
        panic!("{told:?}")
    };
    assert_eq!(
        (*digest, *offset, *bytes, *size),
        (Some(file.digest), 100, 200, 100_000)
    );
    assert_eq!(*outcome, TransferOutcome::Complete);
    assert!(
        matches!(
            &told[1].fact,
            Fact::Transfer {
                outcome: TransferOutcome::SizeOnly,
                bytes: 0,
                ..
            }
        ),
        "{told:?}"
    );
    assert!(
        matches!(&told[2].fact, Fact::TransferRefused { reason, .. } if reason == "unknown-artifact"),
        "{told:?}"
    );
}

/// What iPXE asks when it follows the script of a hold: its own URL, with the mark of the reason it shows.
fn asked_again(url: &str, shown: &str) -> String {
    let (_, mark) = shown.split_once("&held=").expect("a way to ask again");
    format!("{url}?held={}", &mark[..8])
}

#[test]
fn wget_resumes_and_busybox_wget_fetches() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let file = bastion.artifact("big/rootfs.img", 3_000_000);
    let stored = read(&bastion.depot.path(&file.digest));
    let target = bastion.path("rootfs.img");
    let to = target.to_str().expect("text");
    std::fs::write(&target, &stored[..999_999]).expect("written");
    machine.output("wget", &["-q", "-c", "-O", to, &url(&file)]);
    assert!(read(&target) == stored);
    machine.output("busybox", &["wget", "-q", "-O", to, &url(&file)]);
    assert!(read(&target) == stored);
}

#[test]
fn a_machine_boots_three_times_waits_and_has_its_disk_once_it_reported() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(IGNITION);
    let url = script(IGNITION);
    assert_eq!(curl(&machine, &["-I", &url]).0, 200);
    assert_eq!(
        bastion.commits.load(Ordering::SeqCst),
        0,
        "a HEAD is no attempt"
    );
    let mut last = String::new();
    for attempt in 1..=3 {
        let (status, text) = curl(&machine, &[&url]);
        assert_eq!(
            (status, bastion.commits.load(Ordering::SeqCst)),
            (200, attempt),
            "{text}"
        );
        assert!(
            text.starts_with("#!ipxe\necho Reveille: node-1 boots ignition\n"),
            "{text}"
        );
        last = text;
    }
    let (status, shown) = curl(&machine, &[&url]);
    assert_eq!(status, 200, "{shown}");
    assert!(
        shown.contains("echo Reveille: 3 boots without a success"),
        "{shown}"
    );
    let (status, text) = curl(&machine, &["-i", &asked_again(&url, &shown)]);
    assert_eq!(status, 503, "{text}");
    let seconds: u8 = text
        .lines()
        .find_map(|line| line.strip_prefix("Retry-After: "))
        .expect("a time")
        .parse()
        .expect("whole seconds");
    assert!((5..=15).contains(&seconds));
    let report = argument(&last, "report=").to_owned();
    assert_eq!(
        curl(&machine, &["-d", "", &report]),
        (200, "taken\n".to_owned())
    );
    let (status, text) = curl(&machine, &[&url]);
    assert_eq!(status, 200);
    assert!(
        text.contains("sanboot --no-describe --drive 0x80"),
        "{text}"
    );
}

#[test]
fn an_answer_that_could_not_be_written_down_does_not_leave() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(IGNITION);
    let (_, text) = curl(&machine, &[&script(IGNITION)]);
    let (config, report) = (
        argument(&text, "ignition.config.url=").to_owned(),
        argument(&text, "report=").to_owned(),
    );
    bastion.broken_disk.store(true, Ordering::SeqCst);
    for words in [
        &["-i", &script(IGNITION)][..],
        &["-i", &config],
        &["-i", "-d", "installed", &report],
    ] {
        let (status, text) = curl(&machine, words);
        assert_eq!(status, 503, "{words:?}: {text}");
        assert!(
            text.contains("Retry-After: 5\r\n") && !text.contains("#!ipxe"),
            "{text}"
        );
    }
    bastion.broken_disk.store(false, Ordering::SeqCst);
    assert_eq!(curl(&machine, &[&config]).0, 200);
    assert_eq!(curl(&machine, &["-d", "installed", &report]).0, 200);
    assert_eq!(bastion.http.counters().refused(Refusal::NotWritten), 3);
}

#[test]
fn a_disk_that_hangs_keeps_nobody_waiting() {
    let limits = Limits {
        write_time: Duration::from_millis(200),
        ..Limits::default()
    };
    let bastion = Bastion::start(limits);
    let machine = bastion.machine(IGNITION);
    bastion.stuck_disk.store(true, Ordering::SeqCst);
    let (status, text) = curl(&machine, &["-i", &script(IGNITION)]);
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("Retry-After: 5\r\n"), "{text}");
    let stranger = format!("{BASE}/boot/52-54-00-bb-00-09/script.ipxe");
    assert_eq!(
        curl(&machine, &[&stranger]).0,
        200,
        "what needs no disk is answered"
    );
    bastion.stuck_disk.store(false, Ordering::SeqCst);
    assert_eq!(curl(&machine, &[&script(IGNITION)]).0, 200);
}

#[test]
fn nobody_else_opens_a_machines_attempt_or_gets_its_config() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(IGNITION);
    let thief = bastion.stranger(
        "52:54:00:bb:00:01",
        "10.107.9.9".parse().expect("an address"),
    );
    let (status, text) = curl(&thief, &[&script(IGNITION)]);
    assert_eq!(status, 200);
    assert!(
        text.contains("is not a MAC address of node-1") && text.ends_with("exit 1\n"),
        "{text}"
    );
    assert_eq!(
        bastion.commits.load(Ordering::SeqCst),
        0,
        "no attempt was counted"
    );

    let (_, text) = curl(&machine, &[&script(IGNITION)]);
    let config = argument(&text, "ignition.config.url=").to_owned();
    let report = argument(&text, "report=").to_owned();
    assert_eq!(
        curl(&thief, &[&config]),
        (403, "refused\n".to_owned()),
        "another address"
    );
    assert_eq!(curl(&thief, &["-d", "installed", &report]).0, 403);
    machine.ip("link set eth0 down");
    thief.ip("addr del 10.107.9.9/16 dev eth0");
    thief.ip(&format!("addr add {}/16 dev eth0", address(IGNITION)));
    // As a thief would: tell the neighbours whose address this is now.
    bastion
        .netns
        .try_output("ip", &["neigh", "flush", "dev", "eth0"])
        .expect("flushed");
    assert_eq!(
        curl(&thief, &[&config]).0,
        403,
        "the address, and another machine behind it"
    );
    assert_eq!(
        curl(
            &thief,
            &[&format!("{BASE}/config/{}/config.ign", "0".repeat(32))]
        )
        .0,
        403
    );
    assert_eq!(bastion.http.counters().refused(Refusal::ConfigWithheld), 3);
}

#[test]
fn ignition_is_pointed_to_its_config_over_tls_and_an_old_token_is_worth_nothing() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(IGNITION);
    let (_, first) = curl(&machine, &[&script(IGNITION)]);
    let old = argument(&first, "ignition.config.url=").to_owned();
    let (_, second) = curl(&machine, &[&script(IGNITION)]);
    let config = argument(&second, "ignition.config.url=").to_owned();
    assert_eq!(curl(&machine, &[&old]).0, 403);
    let (status, pointer) = curl(&machine, &["-i", &config]);
    assert_eq!(status, 200);
    assert!(
        pointer.contains("Content-Type: application/vnd.coreos.ignition+json\r\n"),
        "{pointer}"
    );
    let body = pointer.split_once("\r\n\r\n").expect("a body").1;
    let pointer: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let merge = pointer
        .pointer("/ignition/config/merge/0/source")
        .and_then(|v| v.as_str())
        .expect("a merge")
        .to_owned();
    assert!(
        merge.starts_with("https://10.107.0.1:8443/config/") && merge.ends_with("/node.ign"),
        "{merge}"
    );
    let (status, document) = curl(&machine, &["--cacert", &bastion.ca(), &merge]);
    assert_eq!(status, 200);
    assert!(document.contains("data:,node-1"), "{document}");
    assert!(
        machine
            .try_output("curl", &["-sS", "--max-time", "10", &merge])
            .is_err(),
        "curl without our CA"
    );
    let artifact = bastion.artifact("a/b", 300_000);
    let secure = url(&artifact).replace("http://10.107.0.1:8080", "https://10.107.0.1:8443");
    let target = bastion.path("over-tls");
    let to = target.to_str().expect("text");
    assert_eq!(
        curl(&machine, &["--cacert", &bastion.ca(), "-o", to, &secure]).0,
        200
    );
    assert!(read(&target) == read(&bastion.depot.path(&artifact.digest)));
}

#[test]
fn the_real_ignition_fetches_and_merges_its_config() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(IGNITION);
    let binary = tests::lab::asset("ignition/usr/lib/dracut/modules.d/30ignition/ignition");
    let (_, text) = curl(&machine, &[&script(IGNITION)]);
    let line = bastion.path("cmdline");
    let config = argument(&text, "ignition.config.url=");
    std::fs::write(
        &line,
        format!("ignition.firstboot ignition.platform.id=metal ignition.config.url={config}\n"),
    )
    .expect("written");
    let (root, cache) = (bastion.path("root"), bastion.path("cache"));
    std::fs::create_dir(&root).expect("made");
    let run = format!(
        "mount --bind {line} /proc/cmdline && mount -t tmpfs none /run && for stage in fetch-offline fetch; do \
         {binary} --platform metal --stage $stage --root {root} --config-cache {cache} --state-file {root}/state \
         --neednet {root}/neednet --log-to-stdout --fetch-timeout 20s || exit 1; done",
        line = line.display(),
        binary = binary.display(),
        root = root.display(),
        cache = cache.display(),
    );
    machine.output(
        "unshare",
        &["--mount", "--", "timeout", "60", "sh", "-c", &run],
    );
    let fetched = String::from_utf8(read(&cache)).expect("text");
    assert!(fetched.contains("data:,node-1"), "{fetched}");
}

#[test]
fn nocloud_finds_its_four_files_and_talos_its_one() {
    let bastion = Bastion::start(Limits::default());
    let cloud = bastion.machine(CLOUD_INIT);
    let (_, text) = curl(&cloud, &[&script(CLOUD_INIT)]);
    let base = argument(&text, "ds=nocloud;s=").to_owned();
    assert!(base.ends_with('/'), "{base}");
    for (file, content) in [
        ("user-data", "#cloud-config\nhostname: node-2\n"),
        (
            "meta-data",
            "{\"instance-id\":\"node-2-g0\",\"local-hostname\":\"node-2\"}\n",
        ),
        ("vendor-data", ""),
        ("network-config", ""),
    ] {
        assert_eq!(
            curl(&cloud, &[&format!("{base}{file}")]),
            (200, content.to_owned()),
            "{file}"
        );
    }
    assert_eq!(curl(&cloud, &[&format!("{base}config.ign")]).0, 404);
    let talos = bastion.machine(TALOS);
    let (_, text) = curl(&talos, &[&script(TALOS)]);
    let (status, document) = curl(&talos, &[argument(&text, "talos.config=")]);
    assert_eq!(
        (status, document.as_str()),
        (200, "version: v1alpha1\nmachine:\n  type: worker\n")
    );
}

#[test]
fn firmware_finds_loaders_and_strangers_a_polite_script() {
    let mut bastion = Bastion::start(Limits::default());
    let stranger = bastion.stranger(
        "52:54:00:bb:00:02",
        "10.107.9.8".parse().expect("an address"),
    );
    let loader = format!("{BASE}/loader/snponly.efi");
    let (status, head) = curl(&stranger, &["-I", &loader]);
    assert_eq!(status, 200);
    let size = std::fs::metadata(tests::lab::packaged("/usr/lib/ipxe/snponly.efi"))
        .expect("the package's file")
        .len();
    assert!(head.contains("Content-Type: application/efi\r\n"), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {size}\r\n")),
        "{head}"
    );
    let target = bastion.path("loader");
    assert_eq!(
        curl(&stranger, &["-o", target.to_str().expect("text"), &loader]).0,
        200
    );
    assert!(read(&target) == read("/usr/lib/ipxe/snponly.efi".as_ref()));
    assert_eq!(
        curl(
            &stranger,
            &[&format!("{BASE}/loader/../../etc/passwd"), "--path-as-is"]
        )
        .0,
        404
    );

    let (status, text) = curl(
        &stranger,
        &[&format!("{BASE}/boot/52-54-00-bb-00-02/script.ipxe")],
    );
    assert_eq!(status, 200);
    assert!(
        text.contains("not listed") && text.ends_with("exit 1\n"),
        "{text}"
    );
    assert_eq!(
        curl(&stranger, &[&format!("{BASE}/healthz")]),
        (200, "ok\n".to_owned())
    );
    let (status, text) = curl(&stranger, &[&format!("{BASE}/autoexec.ipxe")]);
    assert_eq!(status, 200);
    assert!(
        text.starts_with("#!ipxe\n") && text.contains("/boot/${netX/mac:hexhyp}/script.ipxe"),
        "{text}"
    );
    let script = bastion
        .facts()
        .into_iter()
        .find(|entry| matches!(entry.fact, Fact::Script { .. }))
        .expect("an entry");
    assert!(
        matches!(&script.fact, Fact::Script { answer, rule, .. } if answer == "refuse" && rule == "not-listed"),
        "{script:?}"
    );
}

#[test]
fn a_person_s_word_is_in_force_with_the_next_script() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let say = |event| {
        let controller = bastion.controller.clone();
        let told = bastion.netns.run(move || controller.tell(event));
        assert!(told);
    };
    say(Event::Cordoned("node-4".parse().expect("a name")));
    until("the cordon to be shown on the console", LIMIT, || {
        curl(&machine, &[&script(LIVE)])
            .1
            .contains("echo Reveille: set aside")
    });
    let (_, shown) = curl(&machine, &[&script(LIVE)]);
    let again = asked_again(&script(LIVE), &shown);
    let (status, headers) = curl(&machine, &["--include", &again]);
    assert_eq!(status, 503, "{headers}");
    assert!(headers.contains("Retry-After: "), "{headers}");
    say(Event::Uncordoned("node-4".parse().expect("a name")));
    until("it to boot again", LIMIT, || {
        curl(&machine, &[&again]).0 == 200
    });
    let (status, text) = curl(&machine, &[&format!("{}?serial=OTHER", script(LIVE))]);
    assert_eq!(status, 200);
    assert!(text.contains("identity conflict"), "{text}");
}

#[test]
fn a_machine_that_is_not_listed_boots_what_the_site_has_for_it_and_leaves_no_record() {
    let bastion = Bastion::of(Limits::default(), |site| {
        let network = &mut site.networks[0];
        network.mode = Mode::Pool;
        network.range = Some("10.107.9.1-10.107.9.99".parse().expect("a range"));
        network.discovery = Some("live".parse().expect("a name"));
    });
    let stranger = bastion.stranger(
        "52:54:00:bb:00:03",
        "10.107.9.3".parse().expect("an address"),
    );
    let url = format!("{BASE}/boot/52-54-00-bb-00-03/script.ipxe");
    let (status, text) = curl(&stranger, &[&url]);
    assert_eq!(status, 200);
    assert!(
        text.contains("52:54:00:bb:00:03 is not listed, boots live") && text.contains("\nkernel "),
        "{text}"
    );
    until("the sighting", LIMIT, || {
        bastion.controller.snapshot().load().sightings().count() == 1
    });
    assert_eq!(bastion.controller.snapshot().load().records().count(), 0);
    assert_eq!(bastion.commits.load(Ordering::SeqCst), 0);
}

#[test]
fn behind_a_relay_the_token_and_the_address_must_do() {
    let bastion = Bastion::of(Limits::default(), |site| {
        let mut far = site.networks[0].clone();
        far.name = "far".parse().expect("a name");
        far.subnet = "10.200.0.0/24".parse().expect("a subnet");
        far.relayed = true;
        let node = &mut site.nodes[usize::from(CLOUD_INIT) - 1];
        node.links[0].network = far.name.clone();
        node.links[0].address = "10.200.0.5".parse().expect("an address");
        site.networks.push(far);
    });
    let router = bastion.stranger(
        "52:54:00:bb:00:04",
        "10.107.9.4".parse().expect("an address"),
    );
    router.sysctl("ipv4/ip_forward", "1");
    bastion.netns.ip("route add 10.200.0.0/24 via 10.107.9.4");
    let far = Netns::new();
    router.cable("eth1", &far, "eth0");
    router.ip("addr add 10.200.0.1/24 dev eth1");
    far.ip("addr add 10.200.0.5/24 dev eth0");
    far.ip("addr add 10.200.0.6/24 dev eth0");
    far.ip("route add default via 10.200.0.1");
    let own = ["--interface", "10.200.0.5"];
    let (status, text) = curl(&far, &[&own[..], &[&script(CLOUD_INIT)]].concat());
    assert_eq!(status, 200);
    let meta_data = format!("{}meta-data", argument(&text, "ds=nocloud;s="));
    assert_eq!(
        curl(&far, &["--interface", "10.200.0.6", &meta_data]).0,
        403
    );
    assert_eq!(curl(&far, &[&own[..], &[&meta_data]].concat()).0, 200);
}

#[test]
fn only_the_provisioning_link_is_answered() {
    let bastion = Bastion::start(Limits::default());
    let outside = Netns::new();
    bastion.netns.cable("wan0", &outside, "wan0");
    bastion.netns.ip("addr add 192.0.2.1/24 dev wan0");
    outside.ip("addr add 192.0.2.2/24 dev wan0");
    outside.ip("route add 10.107.0.0/16 via 192.0.2.1");
    for target in ["192.0.2.1:8080", "10.107.0.1:8080", "10.107.0.1:8443"] {
        let target: SocketAddr = target.parse().expect("an address");
        let error = outside.run(move || {
            TcpStream::connect_timeout(&target, Duration::from_secs(5))
                .map(|_| ())
                .unwrap_err()
        });
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{target}"
        );
    }
}

#[test]
fn listeners_follow_the_address_and_the_link() {
    let bastion = Bastion::start(Limits::default());
    bastion.netns.ip("addr del 10.107.0.1/16 dev eth0");
    until("the listeners to go", LIMIT, || {
        bastion.http.served().is_empty()
    });
    assert!(
        bastion
            .http
            .faults()
            .values()
            .any(|fault| fault.contains("has no address in 10.107.0.0/16"))
    );
    bastion.netns.ip("addr add 10.107.0.7/16 dev eth0");
    until("the listeners to come back", LIMIT, || {
        bastion.http.served().len() == 3
    });
    let machine = bastion.machine(LIVE);
    assert_eq!(curl(&machine, &["http://10.107.0.7:8080/healthz"]).0, 200);
    drop(machine);
    bastion.netns.ip("link del eth0");
    until("the listeners to go", LIMIT, || {
        bastion.http.served().is_empty()
    });
    bastion.netns.bridge("eth0", SERVER, 16);
    until("the listeners to come back", LIMIT, || {
        bastion.http.served().len() == 3
    });
    // Another machine: the kernel takes the first one's cable away when it gets to it.
    let other = bastion.machine(IGNITION);
    assert_eq!(curl(&other, &[&format!("{BASE}/healthz")]).0, 200);
}

#[test]
fn who_reads_or_writes_too_slowly_is_cut_off_and_counted() {
    let limits = Limits {
        head_time: Duration::from_millis(300),
        body_time: Duration::from_millis(300),
        pace: Pace {
            window: Duration::from_millis(500),
            bytes: 64 * 1024,
        },
        ..Limits::default()
    };
    let mut bastion = Bastion::start(limits);
    let machine = bastion.machine(LIVE);
    let file = bastion.artifact("big/rootfs", 64 << 20);
    let path = format!("/artifacts/{}/rootfs", file.digest);
    let streams = machine.run(move || {
        let connect = || TcpStream::connect((SERVER, 8080)).expect("connected");
        let say = |text: &str| {
            let mut stream = connect();
            stream.write_all(text.as_bytes()).expect("sent");
            stream
        };
        let silent = connect();
        let half = say("GET / HTTP/1.1\r\nHost: a\r\nX-");
        let body =
            say("POST /agent/v1/report/x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
        let reader = say(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        [silent, half, body, reader]
    });
    let counters = bastion.http.counters();
    until("each of them to be cut off", LIMIT, || {
        counters.refused(Refusal::HeadTooSlow) == 2
            && counters.refused(Refusal::BodyTooSlow) == 1
            && counters.refused(Refusal::ReaderTooSlow) == 1
    });
    until("their places to be free", LIMIT, || {
        bastion.http.connections() == 0
    });
    let [_, half, _, _] = streams;
    let mut said = String::new();
    (&half).read_to_string(&mut said).expect("an answer");
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    let cut = bastion.facts().into_iter().any(|entry| {
        matches!(entry.fact, Fact::Transfer { outcome: TransferOutcome::TimedOut, bytes, .. } if bytes < 64 << 20)
    });
    assert!(cut, "the ledger knows of the reader that was cut off");
}

#[test]
fn one_address_can_not_take_every_connection() {
    let limits = Limits {
        connections_max: 12,
        connections_of_peer_max: 8,
        ..Limits::default()
    };
    let bastion = Bastion::start(limits);
    let (greedy, modest) = (bastion.machine(LIVE), bastion.machine(TALOS));
    let open = |netns: &Netns, count: usize| -> Vec<TcpStream> {
        netns.run(move || {
            (0..count)
                .map(|_| TcpStream::connect((SERVER, 8080)).expect("connected"))
                .collect()
        })
    };
    let held = open(&greedy, 11);
    let counters = bastion.http.counters();
    until("three to be refused", LIMIT, || {
        counters.refused(Refusal::TooManyOfPeer) == 3
    });
    assert_eq!(curl(&modest, &[&format!("{BASE}/healthz")]).0, 200);
    let more = open(&modest, 6);
    until("two to be refused", LIMIT, || {
        counters.refused(Refusal::TooManyConnections) == 2
    });
    drop((held, more));
    until("the places to be free", LIMIT, || {
        bastion.http.connections() == 0
    });
    assert_eq!(curl(&greedy, &[&format!("{BASE}/healthz")]).0, 200);
}

#[test]
fn thousands_of_idle_connections_cost_little_and_each_still_works() {
    const COUNT: usize = 3000;
    let limits = Limits {
        connections_of_peer_max: COUNT,
        ..Limits::default()
    };
    let bastion = Bastion::start(limits);
    let machine = bastion.machine(LIVE);
    let ask = |stream: &TcpStream| {
        let mut stream = stream;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("sent");
        let mut reply = Vec::new();
        let mut chunk = [0; 512];
        while !reply.ends_with(b"\r\n\r\nok\n") {
            let read = stream.read(&mut chunk).expect("an answer");
            assert!(read > 0, "{}", String::from_utf8_lossy(&reply));
            reply.extend_from_slice(&chunk[..read]);
        }
    };
    let before = resident_bytes();
    let streams: Vec<TcpStream> = machine.run(move || {
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
                .expect("a limit");
        let enough = (COUNT as u64 * 2 + 500).max(soft);
        nix::sys::resource::setrlimit(
            nix::sys::resource::Resource::RLIMIT_NOFILE,
            enough,
            hard.max(enough),
        )
        .expect("raised");
        (0..COUNT)
            .map(|_| TcpStream::connect((SERVER, 8080)).expect("connected"))
            .collect()
    });
    for round in 0..2 {
        let started = Instant::now();
        streams.iter().for_each(ask);
        assert!(started.elapsed() < LIMIT, "round {round}");
    }
    assert_eq!(bastion.http.connections(), COUNT);
    let each = resident_bytes().saturating_sub(before) / COUNT;
    // The other tests of this process grow it too, so the bound leaves them room.
    assert!(each < 32 * 1024, "{each} bytes a connection");
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("read");
    let pages: usize = status
        .split_whitespace()
        .nth(1)
        .expect("a field")
        .parse()
        .expect("a number");
    pages * 4096
}
