//! Secrets at rest against what happens to disks and daemons: kills at any instant, keys that are gone, and the real `age`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::vault::{KUBECONFIG, Vault};
use ignition::secret::Secret;
use netboot::net::ProfileName;
use tests::bastion::{Bastion, reveille, site};
use tests::chance::Chance;
use tests::lab::{Lab, until};

const ROUNDS: usize = 40;
const CHILD_STATE: &str = "VAULT_CRASH_STATE";
/// Large enough that writing it takes a while.
const BYTES: usize = 40_000;

/// A name of the kind that a cluster has.
fn cluster(name: &str) -> ProfileName {
    name.parse().unwrap()
}

/// A secret that shows whether it is whole: its first four bytes say what all the others are.
fn version(number: u32) -> Secret<Vec<u8>> {
    Secret::new(number.to_be_bytes().repeat(BYTES / 4))
}

fn number(secret: &Secret<Vec<u8>>) -> u32 {
    let bytes = secret.expose();
    assert_eq!(bytes.len(), BYTES);
    assert!(bytes.chunks(4).all(|chunk| chunk == &bytes[..4]), "mixed");
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

#[test]
fn a_kill_at_any_instant_leaves_the_old_secret_or_the_new_one_whole() {
    let state = tempfile::tempdir().unwrap();
    let lab = cluster("lab");
    let mut chance = Chance::new(7);
    let (mut last, mut grown) = (0, 0);
    for _ in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child_puts_until_it_is_killed"])
            .args(["--ignored", "--nocapture", "--quiet"])
            .env(CHILD_STATE, state.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = last;
        let mut hear = |line: String| {
            if let Some(put) = line.strip_prefix("put ") {
                acknowledged = put.parse().unwrap();
            }
        };
        // The harness's own lines are among them, so that a kill also meets the start.
        for _ in 0..chance.below(6) {
            lines.next().map(Result::unwrap).map(&mut hear);
        }
        std::thread::sleep(Duration::from_micros(chance.below(20_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map(Result::unwrap).for_each(hear);

        let vault = Vault::open(state.path(), None).unwrap();
        assert!(vault.damaged().is_empty(), "{:?}", vault.damaged());
        let found = vault.get(&lab, "talos").unwrap();
        let found = found.map_or(0, |secret| number(&secret));
        // What was put may be there before its acknowledgement was heard; never the other way round.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "{found} after {acknowledged}"
        );
        grown += usize::from(found > last);
        last = found;
        let left = fs::read_dir(state.path().join("vault")).unwrap().count();
        assert_eq!(left, usize::from(found > 0), "something half is left");
    }
    assert!(
        grown > ROUNDS / 4,
        "hardly any child came to put anything: {grown}"
    );
}

#[test]
#[ignore = "the child of a_kill_at_any_instant_leaves_the_old_secret_or_the_new_one_whole"]
fn the_child_puts_until_it_is_killed() {
    let Some(state) = std::env::var_os(CHILD_STATE) else {
        return;
    };
    let (vault, lab) = (
        Vault::open(Path::new(&state), None).unwrap(),
        cluster("lab"),
    );
    let before = vault.get(&lab, "talos").unwrap();
    for next in before.map_or(0, |secret| number(&secret)) + 1.. {
        vault.put(&lab, "talos", &version(next)).unwrap();
        println!("put {next}");
        std::io::stdout().flush().unwrap();
    }
}

/// Runs `age` with something on its standard input.
fn age(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("age")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("age is installed by `make packages`");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn the_real_age_opens_what_we_seal_and_we_open_what_it_seals() {
    let state = tempfile::tempdir().unwrap();
    let lab = cluster("lab");
    let vault = Vault::open(state.path(), None).unwrap();
    vault.put(&lab, "talos", &version(5)).unwrap();
    let key = state.path().join("vault.key");
    let sealed = state.path().join("vault/lab.talos.age");
    let key = key.to_str().unwrap();
    let opened = age(&["--decrypt", "-i", key, sealed.to_str().unwrap()], b"");
    assert_eq!(number(&Secret::new(opened)), 5);

    let theirs = age(&["--encrypt", "-i", key], version(6).expose());
    fs::write(&sealed, theirs).unwrap();
    assert_eq!(number(&vault.get(&lab, "talos").unwrap().unwrap()), 6);
}

#[test]
fn the_daemon_does_not_start_without_the_key_of_its_secrets_and_says_what_to_do() {
    let lab = Lab::flat(0);
    let mut bastion = Bastion::new(&lab, &site("rehearsal"));
    tests::site::import_images(&bastion);
    bastion.start();
    assert!(bastion.stop().success());
    let key = bastion.state.join("vault.key");
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let vault = Vault::open(&bastion.state, None).unwrap();
    vault.put(&cluster("lab"), "talos", &version(1)).unwrap();
    let away = bastion.state.join("away");
    fs::rename(&key, &away).unwrap();

    let [site, state, socket] =
        [&bastion.site, &bastion.state, &bastion.socket].map(|path| path.to_str().unwrap());
    let said = lab.netns.try_output(
        reveille(),
        &[
            "serve", "--site", site, "--state", state, "--socket", socket,
        ],
    );
    let said = said.expect_err("it started");
    assert!(
        said.contains("vault.key is missing") && said.contains("restore the key"),
        "{said}"
    );
    assert!(said.contains("78"), "{said}");

    fs::rename(&away, &key).unwrap();
    bastion.start();
    let status = bastion.client(&["status", "--json"]);
    assert!(status.contains("its key is"), "{status}");
}

#[test]
fn what_opens_a_cluster_is_handed_to_an_administrator_noted_and_never_logged() {
    let lab = Lab::flat(0);
    let mut bastion = Bastion::new(&lab, &site("rehearsal"));
    tests::site::import_images(&bastion);
    let vault = Vault::open(&bastion.state, None).unwrap();
    let words = "apiVersion: v1\nkind: Config\n# client-key-data\n";
    let secret = Secret::new(words.as_bytes().to_vec());
    vault.put(&cluster("lab"), KUBECONFIG, &secret).unwrap();
    bastion.start();
    assert_eq!(bastion.client(&["cluster", "kubeconfig", "lab"]), words);

    let file = lab.path("kubeconfig");
    let to = file.to_str().unwrap();
    bastion.client(&["cluster", "kubeconfig", "lab", "--output", to]);
    assert_eq!(fs::read_to_string(&file).unwrap(), words);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let operator = bastion.operator();
    for (wanted, remedy) in [
        (
            &["cluster", "kubeconfig", "lab", "--output", to][..],
            "not there yet",
        ),
        (&["cluster", "talosconfig", "lab"], "imported"),
        (&["cluster", "kubeconfig", "lab-2"], "imported"),
    ] {
        let error = operator.command(wanted).expect_err("it was handed out");
        assert!(error.contains(remedy), "{error}");
    }
    until("the ledger to tell", Duration::from_secs(10), || {
        let events = bastion.client(&["events", "--json"]);
        events.matches("\"kubeconfig\"").count() == 2
    });
    assert!(!lab.timeline.told().contains("client-key-data"));
}
