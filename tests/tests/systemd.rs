//! The units and `make install`, judged by systemd's own tools. Nothing is started.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::bastion::reveille;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the repository")
}

/// What a command prints, both ways; it must go well.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        output.status
    );
    text
}

/// The whole installed below a directory, as a packager would.
fn installed() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    let binaries = Path::new(reveille())
        .parent()
        .expect("a directory of binaries");
    run(Command::new("make")
        .args(["--no-print-directory", "install", "prefix=/usr"])
        .arg(format!("DESTDIR={}", root.path().display()))
        .arg(format!("built={}", binaries.display()))
        .current_dir(repository()));
    root
}

#[test]
fn the_service_is_exposed_by_little_more_than_two_of_ten() {
    let unit = repository().join("systemd/reveille.service");
    // The threshold is in tenths; above it the command fails. Two tenths are the price of reading adjtimex(2).
    run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=22"])
        .arg(unit));
}

#[test]
fn the_service_asks_for_what_its_sockets_need_and_no_more() {
    let unit = fs::read_to_string(repository().join("systemd/reveille.service")).expect("the unit");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("the unit has {key}"))
            .to_owned()
    };
    let capabilities = "CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE";
    assert_eq!(value("AmbientCapabilities="), capabilities);
    assert_eq!(value("CapabilityBoundingSet="), capabilities);
    let families = value("RestrictAddressFamilies=");
    for family in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"] {
        assert!(families.split(' ').any(|word| word == family), "{family}");
    }
}

/// The system calls of a filter's names, sets (`@network-io`) taken apart.
fn system_calls(names: &str) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    let mut sets: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    while let Some(name) = sets.pop() {
        if !name.starts_with('@') {
            calls.insert(name);
            continue;
        }
        let listing = run(Command::new("systemd-analyze").args(["syscall-filter", &name]));
        let lines = listing.lines().skip(1).map(str::trim);
        sets.extend(
            lines
                .filter(|line| !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    calls
}

#[test]
fn the_firewalls_program_makes_no_system_call_that_the_service_forbids() {
    let unit = fs::read_to_string(repository().join("systemd/reveille.service")).expect("the unit");
    let mut allowed = BTreeSet::new();
    for filter in unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
    {
        match filter.strip_prefix('~') {
            Some(forbidden) => allowed = &allowed - &system_calls(forbidden),
            None => allowed.extend(system_calls(filter)),
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let trace = directory.path().join("trace");
    let rules = directory.path().join("rules.json");
    let text = r#"{"nftables": [{"add": {"table": {"family": "inet", "name": "reveille"}}}]}"#;
    fs::write(&rules, text).expect("a file");
    for arguments in ["-j -f", "-j list ruleset"] {
        let mut nft = Command::new("unshare");
        nft.args(["--net", "strace", "-f", "-qq", "-o"]).arg(&trace);
        nft.arg("nft").args(arguments.split(' '));
        if arguments.ends_with("-f") {
            nft.arg(&rules);
        }
        run(&mut nft);
        let trace = fs::read_to_string(&trace).expect("a trace");
        // "4711  openat(AT_FDCWD, ...": signals and ends have no parenthesis after one word.
        let made: BTreeSet<String> = trace
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('))
            .map(|(call, _)| call.to_owned())
            .collect();
        assert!(
            made.contains("sendto") || made.contains("sendmsg"),
            "{made:?}"
        );
        let forbidden: Vec<_> = made.difference(&allowed).collect();
        assert!(forbidden.is_empty(), "nft {arguments}: {forbidden:?}");
    }
}

#[test]
fn an_installed_tree_has_everything_where_debian_and_fedora_look() {
    let root = installed();
    let path = |name: &str| -> PathBuf { root.path().join("usr").join(name) };
    let zsh = if Path::new("/etc/debian_version").exists() {
        "share/zsh/vendor-completions/_reveille"
    } else {
        "share/zsh/site-functions/_reveille"
    };
    for name in [
        "lib/systemd/system/reveille.service",
        "lib/sysusers.d/reveille.conf",
        "lib/tmpfiles.d/reveille.conf",
        "lib/reveille/reveille-agent.service",
        "share/man/man1/reveille.1",
        "share/man/man1/reveille-serve.1",
        "share/man/man1/reveille-node-why.1",
        "share/bash-completion/completions/reveille",
        "share/fish/vendor_completions.d/reveille.fish",
        "share/doc/reveille/example-site/site.yaml",
        zsh,
    ] {
        let metadata = fs::metadata(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(metadata.len() > 0, "{name} is empty");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o644, "{name}");
    }
    for name in ["bin/reveille", "lib/reveille/reveille-agent"] {
        let mode = fs::metadata(path(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    run(Command::new("bash")
        .arg("-n")
        .arg(path("share/bash-completion/completions/reveille")));
    let unit = fs::read_to_string(path("lib/systemd/system/reveille.service")).expect("the unit");
    assert!(unit.contains("ExecStart=/usr/bin/reveille serve"), "{unit}");
}

#[test]
fn systemd_takes_the_unit_the_user_and_the_directories() {
    let root = installed();
    let below = format!("--root={}", root.path().display());
    fs::create_dir(root.path().join("etc")).expect("a place for users");
    run(Command::new("systemd-sysusers")
        .arg(&below)
        .arg("reveille.conf"));
    let users = fs::read_to_string(root.path().join("etc/passwd")).expect("users were made");
    assert!(
        users.lines().any(|line| line.starts_with("reveille:")),
        "{users}"
    );
    let groups = fs::read_to_string(root.path().join("etc/group")).expect("groups were made");
    for group in ["reveille:", "reveille-read:"] {
        assert!(
            groups.lines().any(|line| line.starts_with(group)),
            "{groups}"
        );
    }
    run(Command::new("systemd-tmpfiles").args([&below, "--create", "reveille.conf"]));
    let mode = |name: &str| {
        let metadata = fs::metadata(root.path().join(name)).expect(name);
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("etc/reveille"), 0o755);
    assert_eq!(mode("etc/reveille/secrets"), 0o750);
    assert_eq!(mode("var/lib/reveille"), 0o750);

    // The same unit with the binary where it is now, so that systemd finds what it names.
    let unit = root.path().join("usr/lib/systemd/system/reveille.service");
    let text = fs::read_to_string(&unit).expect("the unit");
    let here = root.path().join("usr/bin/reveille");
    let text = text.replace("/usr/bin/reveille", &here.display().to_string());
    fs::write(&unit, text).expect("a changed unit");
    let said = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit));
    assert!(!said.contains("reveille.service"), "{said}");
}
