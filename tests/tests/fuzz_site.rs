//! Site files that nobody would write: mutations of the sample site from a fixed seed, bombs, and files that are no
//! files. Judging them never panics, always ends, and takes bounded time and memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use daemon::config::{Report, load};
use nix::sys::stat::Mode;
use tests::sample;

/// Mutated sites that are judged; `REVEILLE_FUZZ_ROUNDS` asks for another number.
const ROUNDS: usize = 2_000;
/// Far more than any of these takes on a busy machine, and far less than one that never ends.
const LIMIT: Duration = Duration::from_secs(60);
/// The whole test process, KiB. Its tests run side by side, so this is what they take together.
const PEAK_KIB_MAX: u64 = 512 << 10;

/// What breaks parsers: structure, extremes, and words that mean something here.
const SHARDS: [&str; 40] = [
    ":",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\n    ",
    "\t",
    "[",
    "]",
    "{",
    "}",
    ",",
    "#",
    "&a ",
    "*a",
    "!!int ",
    "!x ",
    "|\n",
    ">-\n",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "'",
    "\"",
    "\\",
    "\0",
    "\u{feff}",
    "é",
    "\u{10ffff}",
    "~",
    "<<: *a\n",
    "? ",
    "18446744073709551616",
    "-1",
    "0x10",
    ".inf",
    "{{ ",
    "{% for x in range(99999) %}",
    "../",
    "/",
];

/// Xorshift, so that a round is the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides.max(1) as u64).expect("less than the sides")
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let start = self.roll(bytes.len() + 1);
        let end = (start + self.roll(40)).min(bytes.len());
        match self.roll(7) {
            0 => drop(bytes.drain(start..end)),
            1 => {
                let again = bytes[start..end].to_vec();
                let at = self.roll(bytes.len() + 1);
                drop(bytes.splice(at..at, again));
            }
            2 => bytes.truncate(start),
            3 => {
                let byte = u8::try_from(self.roll(256)).expect("less than 256");
                bytes
                    .get_mut(start)
                    .map(|old| *old = byte)
                    .unwrap_or_default();
            }
            4 => {
                // A line to another place, where its indentation means something else.
                let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
                let line = lines.remove(self.roll(lines.len()));
                lines.insert(self.roll(lines.len() + 1), line);
                *bytes = lines.join(&b'\n');
            }
            _ => {
                let shard = SHARDS[self.roll(SHARDS.len())].bytes();
                drop(bytes.splice(start..end.min(start + 3), shard));
            }
        }
    }
}

/// A copy of the sample site that may be spoilt.
fn copy_of_the_sample() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("made");
        for entry in fs::read_dir(from).expect("listed") {
            let entry = entry.expect("an entry");
            let to = to.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).expect("copied");
            }
        }
    }
    let site = tempfile::tempdir().expect("a directory");
    copy(&sample::site(), site.path());
    site
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let digits = peak.expect("Linux tells").trim().trim_end_matches(" kB");
    digits.parse().expect("a number")
}

/// Judges a site that may be anything; what it says must be of use whatever it is.
fn judged(site: &Path, state: &Path, what: &str) -> Option<Report> {
    let begun = Instant::now();
    let loaded = load(site, state);
    assert!(begun.elapsed() < LIMIT, "{what}: {:?}", begun.elapsed());
    assert!(peak_kib() < PEAK_KIB_MAX, "{what}: {} KiB", peak_kib());
    match loaded {
        Ok((_, spec)) => {
            for node in spec.nodes() {
                assert!(
                    node.profile
                        .as_ref()
                        .is_none_or(|profile| spec.profile(profile).is_some()),
                    "{what}: {}",
                    node.name
                );
                for link in &node.links {
                    let network = spec.network(&link.network);
                    assert!(
                        network.is_some_and(|network| network.subnet.has_station(link.address)),
                        "{what}: {link:?}"
                    );
                }
            }
            None
        }
        Err(report) => {
            assert!(!report.faults.is_empty(), "{what}");
            for fault in &report.faults {
                assert!(!fault.problem.is_empty(), "{what}: {fault:?}");
                assert!(
                    !fault.remedy.is_empty() || report.faults.len() > 1000,
                    "{what}: {fault:?}"
                );
                assert!(fault.value.chars().count() <= 81, "{what}: {fault:?}");
            }
            assert!(report.to_string().len() < 1 << 20, "{what}");
            Some(report)
        }
    }
}

#[test]
fn no_mutation_of_a_site_takes_the_daemon_down() {
    let rounds = std::env::var("REVEILLE_FUZZ_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let (site, state) = (copy_of_the_sample(), sample::state(&sample::ARTIFACTS));
    let files = [
        "site.yaml",
        "machines.yaml",
        "clusters/lab.yaml",
        "profiles/coreos.yaml",
        "profiles/debian.yaml",
        "profiles/debian/user-data",
        "profiles/coreos/node.ign",
    ];
    let (mut dice, mut clean) = (Dice(0x5eed_051e), 0);
    for round in 0..rounds {
        let path = site.path().join(files[dice.roll(files.len())]);
        let sound = fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        for _ in 0..=dice.roll(4) {
            dice.mutate(&mut bytes);
        }
        fs::write(&path, &bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let what = format!("round {round}, {}:\n{text}", path.display());
        clean += usize::from(judged(site.path(), state.path(), &what).is_none());
        fs::write(&path, sound).unwrap();
    }
    // Some mutations hit a comment and most don't: a judge that says one thing to all of them judges nothing.
    assert!(
        (rounds / 50..rounds / 2).contains(&clean),
        "{clean} of {rounds}"
    );
}

#[test]
fn a_bomb_of_aliases_names_or_brackets_is_refused_in_bounded_time_and_memory() {
    let mut laughs = "machines: []\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = format!("*a{}, ", level - 1).repeat(10);
        laughs += &format!("a{level}: &a{level} [{inner}]\n");
    }
    let machine = "{ name: a, mac: 52:54:00:00:00:01, address: 10.107.0.9, profile: talos }";
    let aliases = "*m, ".repeat(1_000_000);
    let bombs = [
        ("laughs", laughs),
        (
            "one machine a million times",
            format!("machines: [&m {machine}, {aliases}]"),
        ),
        ("itself", "machines: &m [*m, *m]".to_owned()),
        ("brackets", "[".repeat(1 << 20)),
        ("braces", "{a: ".repeat(1 << 20)),
        ("dashes", "- ".repeat(1 << 20)),
        (
            "a million values",
            format!("machines: [{}]", "a,".repeat(1 << 20)),
        ),
        (
            "keys",
            (0..200_000).map(|key| format!("k{key}: 1\n")).collect(),
        ),
        ("the same key", "machines: []\n".repeat(200_000)),
        ("a long word", format!("machines: {}", "é".repeat(8 << 20))),
        ("a long key", format!("{}: 1", "a".repeat(8 << 20))),
        ("quotes", "\"".repeat((1 << 20) + 1)),
        ("anchors", "- &a x\n".repeat(1 << 20)),
        ("documents", "---\nmachines: []\n".repeat(1 << 18)),
        ("comments", "# nothing\n".repeat(1 << 20)),
        (
            "variables",
            format!(
                "machines: [{{ variables: {{ {} }} }}]",
                (0..200_000)
                    .map(|key| format!("v{key}: 1, "))
                    .collect::<String>()
            ),
        ),
    ];
    let state = sample::state(&sample::ARTIFACTS);
    for (name, bomb) in bombs {
        let site = copy_of_the_sample();
        fs::write(site.path().join("machines.yaml"), &bomb).unwrap();
        assert!(judged(site.path(), state.path(), name).is_some(), "{name}");
    }
}

#[test]
fn a_file_that_is_huge_or_no_file_is_refused_without_reading_it() {
    let state = sample::state(&sample::ARTIFACTS);
    for name in [
        "site.yaml",
        "machines.yaml",
        "profiles/talos.yaml",
        "profiles/talos/machine.yaml",
    ] {
        let site = copy_of_the_sample();
        let path = site.path().join(name);
        let refused = |what: &str| {
            let report = judged(site.path(), state.path(), what).unwrap();
            let said = report
                .faults
                .iter()
                .any(|fault| fault.file == path || fault.value == "talos/machine.yaml");
            assert!(said, "{name}: {what}\n{report}");
        };
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        refused("a terabyte");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRUSR).unwrap();
        refused("a pipe that nobody writes");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("a directory");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused("a device");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        refused("a link to itself");
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"site: lab\n\xff\xfe\n").unwrap();
        refused("another encoding");
    }
}

#[test]
fn a_document_never_comes_from_outside_the_site() {
    let (site, state) = (copy_of_the_sample(), sample::state(&sample::ARTIFACTS));
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "#cloud-config\n").unwrap();
    let profiles = site.path().join("profiles");
    std::os::unix::fs::symlink(outside.path(), profiles.join("link")).unwrap();
    std::os::unix::fs::symlink("/", profiles.join("root")).unwrap();
    let absolute = outside.path().to_str().unwrap();
    for name in [
        absolute,
        "../../../../../../../../etc/passwd",
        "link",
        &format!("root{absolute}"),
    ] {
        let profile = format!(
            "kernel: debian-13/vmlinuz\nconfig: {{ format: cloud-init, user_data: {name} }}\n"
        );
        fs::write(profiles.join("debian.yaml"), profile).unwrap();
        let report = judged(site.path(), state.path(), name).unwrap();
        assert!(
            report.faults.iter().any(|fault| fault.key == "user_data"),
            "{name}\n{report}"
        );
    }
}

#[test]
fn an_editor_of_another_system_does_no_harm() {
    let (site, state) = (copy_of_the_sample(), sample::state(&sample::ARTIFACTS));
    for name in ["site.yaml", "machines.yaml", "profiles/debian.yaml"] {
        let path = site.path().join(name);
        let text = fs::read_to_string(&path).unwrap().replace('\n', "\r\n");
        fs::write(&path, format!("\u{feff}{text}")).unwrap();
    }
    assert_eq!(
        judged(site.path(), state.path(), "CRLF and a byte order mark"),
        None
    );
}
