//! Our own table of the firewall, read and set through the `nft` program, in its JSON (libnftables-json(5)).
//!
//! Ugly facts. nft says "No such file or directory" of a table that isn't there. It inherits the capability it needs
//! (ambient CAP_NET_ADMIN of our unit). "add, delete, add" in one document is one transaction that works whether
//! the table was there or not, so no packet ever meets half of it.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use netboot::host::{Ruleset, TABLE};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::host::kernel::Failed;

/// nft ends in milliseconds; one that hangs is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where it is: by the path, and where an ordinary user's path doesn't lead.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// Why nft did not do its work.
enum Trouble {
    NotInstalled,
    Failed(String),
}

/// Our table, if it is there. Without an nft there can be none of ours.
///
/// # Errors
/// nft fails.
pub(crate) async fn read() -> Result<Option<Ruleset>, Failed> {
    let act = format!("reading the firewall's table inet {TABLE}");
    match run(&["-j", "list", "table", "inet", TABLE], "").await {
        Ok(listing) => inside(&listing)
            .map(Some)
            .ok_or_else(|| failed(&act, "nft printed what is not its JSON")),
        Err(Trouble::NotInstalled) => Ok(None),
        Err(Trouble::Failed(said)) if said.contains("No such file or directory") => Ok(None),
        // A kernel without nftables has no table either.
        Err(Trouble::Failed(said)) if said.contains("Protocol not supported") => Ok(None),
        Err(Trouble::Failed(said)) => Err(failed(&act, &said)),
    }
}

/// Puts this table in the place of the one there is, or removes it, in one transaction.
///
/// # Errors
/// nft is missing or refuses; then everything is as before.
pub(crate) async fn set(ruleset: Option<&Ruleset>) -> Result<(), Failed> {
    let act = match ruleset {
        Some(_) => format!("setting the firewall's table inet {TABLE}"),
        None => format!("removing the firewall's table inet {TABLE}"),
    };
    match run(&["-j", "-f", "-"], &document(ruleset)).await {
        Ok(_) => Ok(()),
        Err(Trouble::NotInstalled) if ruleset.is_none() => Ok(()),
        Err(Trouble::NotInstalled) => Err(Failed {
            cause: format!("{act}: the program nft is not installed"),
            remedy: "apt-get install nftables, or set host.firewall: false".into(),
        }),
        Err(Trouble::Failed(said)) => Err(failed(&act, &said)),
    }
}

fn failed(act: &str, said: &str) -> Failed {
    let remedy = if said.contains("Operation not permitted") {
        "run it as root or by its unit, which grants CAP_NET_ADMIN"
    } else if said.contains("Protocol not supported") {
        "load the kernel's nftables (modprobe nf_tables), or set host.firewall: false"
    } else {
        "see what nft -j list ruleset says, or set host.firewall: false"
    };
    Failed {
        cause: format!("{act}: {said}"),
        remedy: remedy.into(),
    }
}

/// What nft is fed.
fn document(ruleset: Option<&Ruleset>) -> String {
    let table = json!({ "table": { "family": "inet", "name": TABLE } });
    let mut commands = vec![json!({ "add": table }), json!({ "delete": table })];
    if let Some(Ruleset(objects)) = ruleset {
        commands.push(json!({ "add": table }));
        commands.extend(objects.iter().map(|object| json!({ "add": object })));
    }
    json!({ "nftables": commands }).to_string()
}

/// The objects of a listing without what differs from one moment to the next. The table itself is among
/// them only when it says more than its name (somebody made it dormant), so that this is seen.
fn inside(listing: &str) -> Option<Ruleset> {
    let mut listing: Value = serde_json::from_str(listing).ok()?;
    let mut objects = Vec::new();
    for object in listing.get_mut("nftables")?.as_array_mut()? {
        let (kind, body) = object.as_object_mut()?.iter_mut().next()?;
        let body = body.as_object_mut()?;
        body.remove("handle");
        if kind != "metainfo" && (kind != "table" || body.len() > 2) {
            objects.push(object.take());
        }
    }
    Some(Ruleset(objects))
}

async fn run(arguments: &[&str], input: &str) -> Result<String, Trouble> {
    let run = async {
        let mut child = start(arguments)?;
        if let Some(mut stdin) = child.stdin.take() {
            // An nft that ends early has said why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match timeout(PATIENCE, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Trouble::NotInstalled);
        }
        Ok(Err(error)) => return Err(Trouble::Failed(format!("running nft: {error}"))),
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(Trouble::Failed(format!("nft did not end in {seconds} s")));
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // The first line says what; the others draw where.
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("it failed without a word");
    Err(Trouble::Failed(format!("nft: {first}")))
}

/// A child that dies with the handle on it.
fn start(arguments: &[&str]) -> io::Result<Child> {
    let mut missing = io::Error::from(io::ErrorKind::NotFound);
    for program in PROGRAMS {
        let started = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        match started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing = error,
            started => return started,
        }
    }
    Err(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_loses_handles_and_keeps_what_filters() {
        let listing = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"table": {"family": "inet", "name": "reveille", "handle": 2}},
            {"chain": {"family": "inet", "table": "reveille", "name": "input", "handle": 1, "prio": 0}}
        ]}"#;
        let chain = json!({ "chain": { "family": "inet", "table": "reveille", "name": "input", "prio": 0 } });
        assert_eq!(inside(listing), Some(Ruleset(vec![chain])));
    }

    #[test]
    fn a_table_that_somebody_made_dormant_is_not_ours_as_we_made_it() {
        let listing = r#"{"nftables": [
            {"table": {"family": "inet", "name": "reveille", "handle": 2, "flags": ["dormant"]}}
        ]}"#;
        assert_ne!(inside(listing), Some(Ruleset(Vec::new())));
    }

    #[test]
    fn what_is_not_a_listing_is_no_table() {
        for listing in [
            "",
            "[]",
            "{}",
            r#"{"nftables": [3]}"#,
            r#"{"nftables": [{}]}"#,
        ] {
            assert_eq!(inside(listing), None, "{listing}");
        }
    }
}
