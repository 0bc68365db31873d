//! `reveille check` on sites in files: a good one is clean, a bad one names every fault at its place, and the
//! committed schemas are those of the types.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use daemon::config::check::{Kind, schema};
use tests::bastion::reveille;
use tests::sample::{ARTIFACTS, repository, site, state};

/// What the faulty site names rightly.
const ON_THE_SHELF: [&str; 2] = ["debian-13/vmlinuz", "debian-13/initrd.img"];

/// What the command prints and its exit code.
fn checked(site: &Path, state: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(reveille());
    command.arg("check").arg("--site").arg(site);
    command.arg("--state").arg(state).args(more);
    let output = command.output().expect("the command runs");
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("a verdict is text");
    (output.status.code(), text)
}

/// Compares with a committed file, or rewrites it where `UPDATE_GOLDEN` is set.
fn golden(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).expect("written");
    }
    let wanted = std::fs::read_to_string(path).unwrap_or_default();
    let hint = "run again with UPDATE_GOLDEN=1 and look at the difference";
    assert!(
        wanted == text,
        "{} differs; {hint}:\n{text}",
        path.display()
    );
}

#[test]
fn the_sample_site_is_clean() {
    let state = state(&ARTIFACTS);
    let verdict = checked(&site(), state.path(), &[]);
    let clean = "site lab: 3 networks, 3 machines, 4 profiles, no faults\n";
    assert_eq!(verdict, (Some(0), clean.to_owned()));
}

#[test]
fn every_seeded_fault_is_named_with_its_place_value_and_remedy() {
    let state = state(&ON_THE_SHELF);
    let (code, text) = checked(Path::new("fixtures/faulty-site"), state.path(), &[]);
    assert_eq!(code, Some(78));
    golden(Path::new("fixtures/faulty-site.txt"), &text);
}

#[test]
fn scripts_get_the_same_faults_as_people() {
    let state = state(&ON_THE_SHELF);
    let site = Path::new("fixtures/faulty-site");
    let (code, json) = checked(site, state.path(), &["--json"]);
    let (_, text) = checked(site, state.path(), &[]);
    let verdict: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &verdict["clean"]), (Some(78), &false.into()));
    let faults = verdict["faults"].as_array().unwrap();
    assert!(faults.len() >= 12, "{}", faults.len());
    for fault in faults {
        let word = |key: &str| fault[key].as_str().unwrap().to_owned();
        let mut place = word("file");
        if fault["line"] != 0 {
            write!(place, ":{}:{}", fault["line"], fault["column"]).unwrap();
        }
        let said = text
            .lines()
            .any(|line| line.starts_with(&format!("{place}:")) && line.ends_with(&word("problem")));
        assert!(said, "{fault}");
        assert!(!word("remedy").is_empty(), "{fault}");
    }
}

#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for kind in Kind::ALL {
        let path = format!("daemon/docs/schema/{}.schema.json", kind.word());
        golden(&repository().join(path), &schema(kind));
    }
}
