//! The store's promises, kept against kills at any instant, damaged files and a full disk:
//! what was acknowledged is there; nothing is there that did not happen; opening never fails for damaged
//! files; and where facts may be missing, the site says so for ever after.
//!
//! The daemon's part is played by a child of this test: the real controller on the real store. It commits
//! events as fast as it can and prints each one that was acknowledged, until it is killed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::controller::{Controller, now};
use daemon::ledger::Ledger;
use daemon::store::disk::SCHEMA;
use daemon::store::{Opened, Store, StoreError, export, exports, import};
use netboot::attempt::Fact;
use netboot::event::{Event, LeaseAsked, Outcome, ScriptAsked};
use netboot::loader::{Architecture, Client};
use netboot::net::{Digest, MacAddress, NodeName};
use netboot::node::{NodeLink, NodeRecord, NodeSpec, Report};
use netboot::release::Asker;
use netboot::site::{Memory, Site};
use netboot::spec::{Artifact, ConfigSource, Mode, Network, Profile, Purpose, SiteParts, SiteSpec};

const NODES: u8 = 12;
const ROUNDS: usize = 200;
const CHILD_STATE: &str = "STORE_CRASH_STATE";

#[test]
fn a_kill_at_any_instant_loses_nothing_acknowledged_and_invents_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec());
    let mut random = Random(7);
    let mut before = open_whole(dir.path(), &spec);
    let (mut acknowledged, mut grown) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = child("the_child_commits_until_it_is_killed", dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut acks = BTreeMap::new();
        if round % 2 == 0 {
            // While it starts, which is when snapshots are written.
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
        } else {
            // While it works, however long the machine took to get there.
            // The first two lines are the test harness speaking.
            for _ in 0..3 + random.below(40) {
                hear(&mut lines, &mut acks);
            }
            std::thread::sleep(Duration::from_micros(random.below(2_000)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while hear(&mut lines, &mut acks) {}
        let after = open_whole(dir.path(), &spec);
        assert!(after.generation() >= before.generation(), "round {round}");
        for node in spec.nodes() {
            let acks = acks.get(&node.name).copied().unwrap_or(0);
            check_node(&before, &after, node, acks, round);
            acknowledged += acks;
        }
        grown += u64::from(after.generation() > before.generation());
        before = after;
    }
    assert!(
        grown >= ROUNDS as u64 / 2 && acknowledged > ROUNDS,
        "the child got to work in {grown} rounds only, {acknowledged} acknowledged"
    );
}

#[test]
#[ignore = "the child of a_kill_at_any_instant_loses_nothing_acknowledged_and_invents_nothing"]
fn the_child_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_STATE) else {
        return;
    };
    let spec = Arc::new(spec());
    let Opened {
        mut store, memory, ..
    } = Store::open(Path::new(&dir)).unwrap();
    let site = Site::restore(Arc::clone(&spec), memory);
    runtime().block_on(async {
        let (controller, _writer) = Controller::start(site, move |site, changes| {
            store
                .commit(site, changes)
                .map_err(|error| error.to_string())
        });
        let mut machines = tokio::task::JoinSet::new();
        for node in spec.nodes() {
            let (controller, node) = (controller.clone(), Arc::clone(node));
            machines.spawn(async move {
                loop {
                    let event = next_event(&node, controller.snapshot().load().record(&node.name));
                    let outcome = controller.apply(event).await.unwrap();
                    assert!(took(&outcome), "{outcome:?}");
                    let line = format!("acknowledged {}\n", node.name);
                    // Nobody listens any more: the test is over.
                    if std::io::stdout().write_all(line.as_bytes()).is_err() {
                        std::process::exit(1);
                    }
                }
            });
        }
        machines.join_next().await;
    });
}

/// After `acks` acknowledged events a node is where these lead, or one further: the one that was written
/// and not yet acknowledged.
fn check_node(before: &Site, after: &Site, node: &Arc<NodeSpec>, acks: usize, round: usize) {
    let found = facts(after.record(&node.name));
    let mut site = before.clone();
    for _ in 0..acks {
        let event = next_event(node, site.record(&node.name));
        site = site.apply(event, now()).site;
    }
    let acknowledged = facts(site.record(&node.name));
    let event = next_event(node, site.record(&node.name));
    let one_more = facts(site.apply(event, now()).site.record(&node.name));
    assert!(
        found == acknowledged || found == one_more,
        "round {round}, {}: found {found:?} after {acks} acknowledged events, which lead to {acknowledged:?}",
        node.name
    );
}

/// A record without its times, which differ between the child and the replay.
fn facts(record: &NodeRecord) -> impl PartialEq + std::fmt::Debug + use<> {
    let install = record.installed.as_ref();
    let attempt = record.attempt.as_ref();
    (
        record.state,
        record.generation,
        install.map(|install| (install.generation, install.attempt)),
        record.permit.as_ref().map(|permit| permit.disk.clone()),
        record.consented_disk.clone(),
        record.failed_attempts,
        attempt.map(|attempt| {
            (
                attempt.number,
                attempt.token,
                attempt.released.is_some(),
                attempt.report.clone(),
            )
        }),
        record.attempts_ever,
    )
}

/// The story of one machine, told by its record alone: script, config, installed, permit, and again.
fn next_event(node: &NodeSpec, record: &NodeRecord) -> Event {
    let link = node.boot_link();
    let attempt = record.attempt.as_ref();
    if record.installed.is_some() && record.permit.is_none() {
        return Event::PermitGiven {
            node: node.name.clone(),
            disk: format!("S{}", record.generation),
            seconds: 7 * 86_400,
            by: "root".to_owned(),
        };
    }
    let asker = attempt
        .filter(|_| record.installed.is_none())
        .map(|attempt| Asker {
            token: attempt.token,
            address: link.address,
            neighbour: Some(link.macs[0]),
        });
    match (asker, attempt.and_then(|attempt| attempt.released)) {
        (Some(asker), None) => Event::ConfigAsked(asker),
        (Some(asker), Some(_)) => Event::Reported {
            asker,
            report: Report::Installed,
        },
        (None, _) => Event::ScriptAsked(ScriptAsked {
            mac: link.macs[0],
            client: Client::Ipxe(Architecture::X64_UEFI),
            network: link.network.clone(),
            uuid: None,
            serial: None,
            token: token(node, record.attempts_ever),
        }),
    }
}

fn took(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done | Outcome::Config(Ok(_)) | Outcome::Report(Ok(_)) => true,
        Outcome::Script(script) => script.is_some(),
        Outcome::Lease(lent) => *lent,
        Outcome::Bootstrap(node) => node.is_ok(),
        Outcome::Secret(config) => config.is_ok(),
        Outcome::Refused(_) | Outcome::Config(Err(_)) | Outcome::Report(Err(_)) => false,
    }
}

fn token(node: &NodeSpec, number: u32) -> Digest {
    let mut bytes = [0; 32];
    bytes[..6].copy_from_slice(&node.boot_link().macs[0].octets());
    bytes[6..10].copy_from_slice(&number.to_be_bytes());
    Digest::from_bytes(bytes)
}

/// Opens a store that nothing happened to but kills: nothing needs to be said about it.
fn open_whole(dir: &Path, spec: &Arc<SiteSpec>) -> Site {
    let opened = Store::open(dir).unwrap();
    assert_eq!(opened.memory.recovered, None, "{:?}", opened.story);
    Site::restore(Arc::clone(spec), opened.memory)
}

fn child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--quiet"])
        .env(CHILD_STATE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Counts the next acknowledgement; false at the end, or at a line that the kill cut short.
fn hear(lines: &mut impl BufRead, acks: &mut BTreeMap<NodeName, usize>) -> bool {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let name = line
        .strip_suffix('\n')
        .map(|line| line.strip_prefix("acknowledged "));
    if let Some(Some(name)) = name {
        *acks.entry(name.parse().unwrap()).or_default() += 1;
    }
    name.is_some()
}

#[test]
fn what_was_stored_gives_the_same_site_again() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec());
    let mut random = Random(1);
    let mut site = open_whole(dir.path(), &spec);
    for _ in 0..6 {
        let mut store = Store::open(dir.path()).unwrap().store;
        for _ in 0..120 {
            site = commit(&mut store, &site, any_event(&site, &mut random));
        }
        drop(store);
        assert_same(&open_whole(dir.path(), &spec), &site);
    }
    assert!(site.leases().count() > 3 && site.records().count() == usize::from(NODES));
}

#[test]
fn a_torn_or_empty_snapshot_costs_nothing() {
    for torn in ["snap.00000000FFFFFFFF", "snap.00000000FFFFFFFF.generating"] {
        let (dir, spec, site) = used_store();
        fs::write(dir.path().join("store").join(torn), "").unwrap();
        let opened = Store::open(dir.path()).unwrap();
        assert_eq!(opened.memory.recovered, None, "{torn}: {:?}", opened.story);
        assert!(
            opened.story[0].contains("full replay"),
            "{:?}",
            opened.story
        );
        assert_same(&Site::restore(spec, opened.memory), &site);
    }
}

#[test]
fn a_truncated_or_overwritten_database_opens_and_admits_what_it_lacks() {
    let mut random = Random(3);
    let (mut whole, mut doubtful) = (0, 0);
    for _ in 0..40 {
        let (dir, spec, site) = used_store();
        let path = dir.path().join("store/db");
        let mut bytes = fs::read(&path).unwrap();
        // sled fills its segments with zeros, and damage there is none.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        let at = random.below(used) as usize;
        if random.below(2) == 0 {
            bytes.truncate(at);
        } else {
            let end = bytes.len().min(at + 1 + random.below(4096) as usize);
            bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        }
        fs::write(&path, bytes).unwrap();
        let opened = Store::open(dir.path()).unwrap();
        if opened.memory.recovered.is_none() {
            assert_same(&Site::restore(spec, opened.memory), &site);
            whole += 1;
        } else {
            assert!(!opened.story.is_empty());
            doubtful += 1;
        }
    }
    assert!(doubtful > 5, "{doubtful} in doubt, {whole} whole");
}

#[test]
fn a_store_that_was_lost_is_told_from_one_that_never_was() {
    let (dir, spec, site) = used_store();
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    let opened = Store::open(dir.path()).unwrap();
    assert!(opened.memory.recovered.is_some() && opened.memory.records.is_empty());
    assert!(
        opened
            .story
            .iter()
            .any(|said| said.contains("STARTS EMPTY"))
    );
    assert_eq!(
        opened.memory.generation,
        site.generation(),
        "generations only grow"
    );
    drop(opened.store);
    let again = Store::open(dir.path()).unwrap();
    assert!(
        again.memory.recovered.is_some(),
        "the doubt outlives a restart"
    );
    let site = Site::restore(spec, again.memory);
    assert!(site.recovered().is_some());

    let fresh = Store::open(&dir.path().join("another")).unwrap();
    assert_eq!((fresh.memory.recovered, fresh.story.len()), (None, 0));
}

#[test]
fn a_creation_that_was_cut_short_is_begun_anew_without_doubt() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("store/db"), "half").unwrap();
    fs::write(dir.path().join("store.mark"), "creating\n").unwrap();
    let opened = Store::open(dir.path()).unwrap();
    assert_eq!(opened.memory.recovered, None, "{:?}", opened.story);
}

#[test]
fn garbage_in_place_of_the_database_falls_back_to_the_newest_whole_export() {
    let (dir, spec, site) = used_store();
    let newest = export::write(&exports(dir.path()), &site).unwrap();
    let rotten = newest.with_file_name("state-99999999999999999999.jsonl");
    fs::write(&rotten, &fs::read(&newest).unwrap()[..200]).unwrap();
    for garbage in ["db", "conf"] {
        fs::write(dir.path().join("store").join(garbage), [b'x'; 70_000]).unwrap();
    }
    let opened = Store::open(dir.path()).unwrap();
    assert!(opened.memory.recovered.is_some());
    assert!(
        opened.story.iter().any(|said| said.contains("restored")),
        "{:?}",
        opened.story
    );
    assert!(
        dir.path().join("lost-000001").exists(),
        "kept for whoever wants to look"
    );
    assert_same(&Site::restore(spec, opened.memory), &site);
}

#[test]
fn an_export_brings_everything_back_and_a_damaged_one_nothing() {
    let (dir, spec, site) = used_store();
    let file = export::write(&exports(dir.path()), &site).unwrap();
    let other = tempfile::tempdir().unwrap();
    import(other.path(), &file).unwrap();
    let opened = Store::open(other.path()).unwrap();
    assert!(
        opened.memory.recovered.is_some(),
        "what came after the export is unknown"
    );
    assert_same(&Site::restore(spec, opened.memory), &site);

    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for skip in 0..lines.len() {
        let damaged: String = lines
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != skip)
            .map(|(_, line)| *line)
            .collect();
        fs::write(&file, damaged).unwrap();
        assert!(export::read(&file).is_err(), "line {skip} is missing");
    }
    let (ours, newer) = (
        format!("\"schema\":{SCHEMA}"),
        format!("\"schema\":{}", SCHEMA + 1),
    );
    fs::write(&file, text.replacen(&ours, &newer, 1)).unwrap();
    let refused = import(other.path(), &file).unwrap_err().to_string();
    assert!(
        refused.contains("use the version that wrote it"),
        "{refused}"
    );
}

#[test]
fn only_the_newest_exports_stay() {
    let (dir, spec, mut site) = used_store();
    let mut store = Store::open(dir.path()).unwrap().store;
    let node = spec.nodes().next().unwrap();
    for _ in 0..8 {
        site = commit(&mut store, &site, Event::Cordoned(node.name.clone()));
        export::write(&exports(dir.path()), &site).unwrap();
    }
    assert_eq!(fs::read_dir(exports(dir.path())).unwrap().count(), 4);
}

#[test]
fn two_daemons_never_share_a_state_directory() {
    let (dir, ..) = used_store();
    let first = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Held(_))));
    drop(first);
    assert!(Store::open(dir.path()).is_ok());
}

#[test]
fn a_full_disk_refuses_commits_and_forgets_nothing() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a small disk: run `make test` as root"
    );
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=6m tmpfs \"$1\" && shift && exec \"$@\"";
    let mut command = tests::process::command("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_child_fills_its_disk",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_STATE, dir.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "the child of a_full_disk_refuses_commits_and_forgets_nothing"]
fn the_child_fills_its_disk() {
    let Some(dir) = std::env::var_os(CHILD_STATE) else {
        return;
    };
    let dir = Path::new(&dir);
    let spec = Arc::new(spec());
    let mut random = Random(5);
    let mut site = open_whole(dir, &spec);
    let mut store = Store::open(dir).unwrap().store;
    for _ in 0..100 {
        site = commit(&mut store, &site, any_event(&site, &mut random));
    }
    fill(&dir.join("ballast"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        let applied = site.apply(any_event(&site, &mut random), now());
        match store.commit(&applied.site, &applied.changes) {
            Ok(()) => site = applied.site,
            Err(error) => break error.to_string(),
        }
        assert!(Instant::now() < deadline, "the disk never got full");
    };
    assert!(refused.contains("space"), "{refused}");
    assert!(
        store.commit(&site, &[]).is_err(),
        "it is not asked again at once"
    );
    fs::remove_file(dir.join("ballast")).unwrap();
    let event = any_event(&site, &mut random);
    let applied = site.apply(event, now());
    while store.commit(&applied.site, &applied.changes).is_err() {
        assert!(Instant::now() < deadline, "the store did not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(store);
    assert_same(&open_whole(dir, &spec), &applied.site);
}

#[test]
fn ten_thousand_records_and_a_full_ledger_open_at_once_and_stay_small() {
    let (used, spec, site) = used_store();
    drop(used);
    let dir = tempfile::tempdir().unwrap();
    let record = NodeRecord::clone(site.records().next().unwrap().1);
    let records = many().map(|name| (name, record.clone())).collect();
    let memory = Memory {
        generation: 10,
        records,
        ..Memory::default()
    };
    let file = export::write(dir.path(), &Site::restore(spec, memory)).unwrap();
    import(dir.path(), &file).unwrap();
    fill_ledger(dir.path());
    let output = child("the_child_opens_ten_thousand_records", dir.path())
        .wait_with_output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let number = |word: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("{said}"))
            .trim()
            .parse()
            .unwrap()
    };
    assert_eq!(number("records"), 10_000);
    assert!(number("history") > 2, "{said}");
    // Of the processor's, so that a busy machine does not count.
    assert!(number("millis") < 1000, "{said}");
    assert!(
        number("kib") < 48 * 1024,
        "of 64 MiB for the whole daemon: {said}"
    );
}

#[test]
#[ignore = "the child of ten_thousand_records_and_a_full_ledger_open_at_once_and_stay_small"]
fn the_child_opens_ten_thousand_records() {
    let Some(dir) = std::env::var_os(CHILD_STATE) else {
        return;
    };
    let opened = Store::open(Path::new(&dir)).unwrap();
    println!("millis {}", cpu_millis());
    println!("records {}", opened.memory.records.len());
    let site = Site::restore(Arc::default(), opened.memory);
    runtime().block_on(async {
        let (ledger, entries) = Ledger::channel();
        let writer = ledger.start_writer(entries, Path::new(&dir));
        let mut heard = ledger.follow();
        let name = many().next().unwrap();
        ledger.note(None, Some(&name), fact());
        // The writer takes an entry only once it has read what was there.
        heard.recv().await.unwrap();
        println!("history {}", ledger.history(&name).len());
        drop(ledger);
        writer.await.unwrap();
    });
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    println!("kib {}", line.unwrap().trim_end_matches("kB").trim());
    assert_eq!(site.records().count(), 10_000);
}

/// What this process has used so far: fields 14 and 15 of proc(5)'s stat, in hundredths of a second.
fn cpu_millis() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap() * 10).sum()
}

/// As many entries as the ledger keeps, of ten thousand machines.
fn fill_ledger(dir: &Path) {
    runtime().block_on(async {
        let (ledger, entries) = Ledger::channel();
        let writer = ledger.start_writer(entries, dir);
        for _ in 0..25 {
            for (index, name) in many().enumerate() {
                ledger.note(None, Some(&name), fact());
                if index % 1000 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        drop(ledger);
        writer.await.unwrap();
    });
}

fn fact() -> Fact {
    Fact::Dhcp {
        port: 67,
        message: "DISCOVER".into(),
        reply: "OFFER".into(),
        client: Client::Pxe(Architecture::BIOS),
        xid: 7,
        address: Some(Ipv4Addr::new(10, 107, 0, 11)),
        rule: Some("firmware-needs-loader".into()),
    }
}

fn many() -> impl Iterator<Item = NodeName> {
    (0..10_000).map(|number| format!("machine-{number:05}").parse().unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

/// A store with a history, closed; and the site it must give again.
fn used_store() -> (tempfile::TempDir, Arc<SiteSpec>, Site) {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec());
    let mut random = Random(2);
    let mut site = open_whole(dir.path(), &spec);
    let mut store = Store::open(dir.path()).unwrap().store;
    for _ in 0..60 {
        site = commit(&mut store, &site, any_event(&site, &mut random));
    }
    (dir, spec, site)
}

fn commit(store: &mut Store, site: &Site, event: Event) -> Site {
    let applied = site.apply(event, now());
    if !applied.changes.is_empty() {
        store.commit(&applied.site, &applied.changes).unwrap();
    }
    applied.site
}

fn any_event(site: &Site, random: &mut Random) -> Event {
    let nodes: Vec<_> = site.spec().nodes().collect();
    let node = nodes[random.below(nodes.len() as u64) as usize];
    let mac = MacAddress::from_octets([2, 0, 0, 0, 1, random.below(20) as u8]).unwrap();
    let address = Ipv4Addr::new(10, 107, 0, 100 + random.below(20) as u8);
    match random.below(12) {
        0 => Event::Cordoned(node.name.clone()),
        1 => Event::Uncordoned(node.name.clone()),
        2 => Event::Approved(node.name.clone()),
        3 | 4 => Event::LeaseAsked(LeaseAsked {
            mac,
            network: node.boot_link().network.clone(),
            address,
        }),
        5 => Event::LeaseReleased { address, mac },
        6 => Event::AddressDeclined { address, mac },
        _ => next_event(node, site.record(&node.name)),
    }
}

fn assert_same(found: &Site, wanted: &Site) {
    assert_eq!(found.generation(), wanted.generation());
    assert!(found.records().eq(wanted.records()), "the records differ");
    assert!(found.leases().eq(wanted.leases()), "the leases differ");
}

fn spec() -> SiteSpec {
    let network = Network {
        mode: Mode::Pool,
        range: Some("10.107.0.100-150".parse().unwrap()),
        lease_seconds: 3600,
        ..Network::plain(
            "lab".parse().unwrap(),
            "eth1".parse().unwrap(),
            "10.107.0.0/24".parse().unwrap(),
        )
    };
    let profile = Profile {
        name: "worker".parse().unwrap(),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::Ignition("{}".into()),
        purpose: Purpose::Install,
        disk: None,
    };
    let nodes = (0..NODES).map(|number| NodeSpec {
        name: format!("worker-{number}").parse().unwrap(),
        links: vec![NodeLink {
            macs: vec![MacAddress::from_octets([2, 0, 0, 0, 0, number + 1]).unwrap()],
            network: "lab".parse().unwrap(),
            address: Ipv4Addr::new(10, 107, 0, 10 + number),
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: format!("worker-{number}").parse().unwrap(),
        profile: Some("worker".parse().unwrap()),
        labels: BTreeMap::default(),
        rack: None,
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    });
    SiteSpec::new(SiteParts {
        networks: vec![network],
        nodes: nodes.collect(),
        profiles: vec![profile],
        ..SiteParts::default()
    })
    .unwrap()
}

/// Knuth's MMIX generator: the tests differ only in when a kill falls.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
