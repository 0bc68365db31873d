//! The house's walls: which crate may know which, what the pure ones never touch, where `unsafe` lives,
//! and that every file says what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CRATES: [&str; 6] = ["netboot", "ignition", "images", "agents", "daemon", "tests"];
const PURE: [&str; 2] = ["netboot", "ignition"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the repository")
}

/// What each crate depends on, tests and benchmarks left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(repository())
        .output()
        .expect("cargo can be run");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| {
            let wanted = package["dependencies"].as_array().expect("a list");
            let wanted = wanted
                .iter()
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]))
                .collect();
            (text(&package["name"]), wanted)
        })
        .collect()
}

fn sources(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).expect("a readable directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources_of(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in ["src", "tests", "benches", "examples", "build.rs"] {
        let path = repository().join(name).join(part);
        if path.is_dir() {
            sources(&path, &mut found);
        }
    }
    assert!(!found.is_empty(), "{name} has sources");
    found
}

/// The lines that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn every_arrow_between_crates_is_one_of_the_house() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("netboot", &[][..]),
        ("ignition", &["netboot"][..]),
        ("images", &["netboot"][..]),
        ("agents", &["netboot"][..]),
        ("daemon", &["netboot", "ignition", "images"][..]),
        ("tests", &["netboot", "ignition", "images", "daemon"][..]),
    ]);
    let dependencies = dependencies();
    assert_eq!(
        dependencies.len(),
        CRATES.len(),
        "{:?}",
        dependencies.keys()
    );
    for (name, wanted) in dependencies {
        let ours = wanted
            .iter()
            .filter(|other| CRATES.contains(&other.as_str()));
        for other in ours {
            let arrows = allowed[name.as_str()];
            assert!(
                arrows.contains(&other.as_str()),
                "{name} may not know {other}"
            );
        }
    }
}

#[test]
fn the_pure_crates_depend_on_nothing_that_touches_the_world() {
    let worldly = [
        "tokio",
        "hyper",
        "axum",
        "nix",
        "libc",
        "socket2",
        "sled",
        "tracing",
        "rustls",
        "rtnetlink",
        "clap",
        "jiff",
        "tempfile",
        "memmap2",
    ];
    let dependencies = dependencies();
    for name in PURE {
        for other in &dependencies[name] {
            assert!(
                !worldly.contains(&other.as_str()),
                "{name} must not know {other}"
            );
        }
    }
}

#[test]
fn the_pure_crates_touch_no_clock_file_socket_environment_or_log() {
    let forbidden = [
        "std::fs",
        "std::env",
        "std::io",
        "std::process",
        "std::thread",
        "std::os",
        "SystemTime",
        "Instant",
        "UdpSocket",
        "TcpStream",
        "TcpListener",
        "HashMap",
        "HashSet",
        "println!",
        "eprintln!",
        "tracing::",
        "tokio::",
        "async fn",
        "unsafe",
    ];
    for path in PURE.iter().map(|name| repository().join(name).join("src")) {
        let mut found = Vec::new();
        sources(&path, &mut found);
        for path in found {
            let text = fs::read_to_string(&path).expect("a readable source");
            let tests_from = text.find("#[cfg(test)]").unwrap_or(text.len());
            for (number, line) in code(&text[..tests_from]) {
                for word in forbidden {
                    let place = format!("{}:{number}", path.display());
                    assert!(
                        !line.contains(word),
                        "{place}: {word} is not for a pure crate"
                    );
                }
            }
        }
    }
}

#[test]
fn unsafe_code_lives_in_one_room_and_each_block_says_why_it_is_sound() {
    let room = repository().join("daemon/src/sys.rs");
    for path in CRATES.iter().flat_map(|name| sources_of(name)) {
        // This file speaks of it.
        if path.ends_with("tests/tests/tidy.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a readable source");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(&text) {
            let opens = ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"]
                .iter()
                .any(|word| line.contains(word));
            if !opens {
                continue;
            }
            let place = format!("{}:{number}", path.display());
            let product = !path.starts_with(repository().join("tests"));
            assert!(!product || path == room, "{place}: unsafe outside its room");
            let above = lines[..number - 1].iter().rev().take(6);
            let said = above.clone().any(|line| line.contains("SAFETY:"))
                || line.contains("allow(unsafe_code");
            assert!(said, "{place}: no SAFETY above it");
        }
    }
}

#[test]
fn secrets_are_opened_in_the_rooms_that_must_and_nowhere_else() {
    // Each of these hands a secret to what is meant to have it. Who only passes one on has no place here.
    let rooms = [
        "daemon/src/vault.rs",              // sealed, to the disk
        "daemon/src/http/handout.rs",       // to an administrator
        "daemon/src/handout.rs",            // from an administrator, to the daemon
        "daemon/src/mint/",                 // into what it signs, as it is made
        "daemon/src/okd.rs",                // from and to the installer's own files
        "daemon/src/probe/kube/access.rs",  // to the API that it opens
        "daemon/src/probe/talos/access.rs", // the same
        "ignition/src/platform/",           // into the documents of nodes and administrators
    ];
    let product = ["netboot", "ignition", "images", "agents", "daemon"];
    for path in product.iter().flat_map(|name| sources_of(name)) {
        let inside = path
            .strip_prefix(repository())
            .expect("a path of the house");
        let inside = inside.to_str().expect("paths are text");
        if rooms.iter().any(|room| inside.starts_with(room)) || inside.contains("/tests/") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a readable source");
        let tests_from = text.find("#[cfg(test)]").unwrap_or(text.len());
        for (number, line) in code(&text[..tests_from]) {
            let opens = line.contains(".expose()");
            assert!(!opens, "{inside}:{number}: this room may not open secrets");
        }
    }
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    for path in CRATES.iter().flat_map(|name| sources_of(name)) {
        let text = fs::read_to_string(&path).expect("a readable source");
        assert!(
            text.starts_with("//! "),
            "{} has no head comment",
            path.display()
        );
    }
}
