//! Ignition configs, spec 3.0 to 3.6: the pointer we write, and a lint for the documents others wrote.
//!
//! A node fetches its first config under a two-minute limit and whatever that merges without one
//! (coreos/ignition, internal/exec/engine.go), so the first is a tiny pointer that is always answered
//! at once. The real document follows over TLS, verified against the CA inside the pointer.
//!
//! `ignition-config` knows the types and leaves the rules to us: what Ignition itself would refuse on
//! the node (config/validate and config/shared/errors upstream) is refused here, where a person reads it.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ignition_config::Config;
use serde_json::{Value, json};

use crate::{Fault, Urls};

const FIELD: &str = "config.file";

/// The first config: merge the node's own from the TLS side, or from the clear side where there is no CA.
pub(crate) fn pointer(urls: &Urls) -> String {
    let mut ignition = json!({ "version": "3.0.0" });
    if urls.ca_pem.is_empty() {
        ignition["config"] = json!({ "merge": [{ "source": format!("{}node.ign", urls.config) }] });
    } else {
        let authority = format!(
            "data:text/plain;charset=utf-8;base64,{}",
            STANDARD.encode(&urls.ca_pem)
        );
        ignition["config"] =
            json!({ "merge": [{ "source": format!("{}node.ign", urls.config_tls) }] });
        ignition["security"] =
            json!({ "tls": { "certificateAuthorities": [{ "source": authority }] } });
    }
    json!({ "ignition": ignition }).to_string()
}

/// Refuses what Ignition would refuse.
pub(crate) fn lint(text: &str) -> Result<(), Fault> {
    let (_, unused) = Config::parse_str(text).map_err(|error| {
        let line = if let ignition_config::Error::Serialization(error) = &error {
            Some(error.line())
        } else {
            None
        };
        let remedy = "write Ignition JSON of a stable spec, 3.0.0 to 3.6.0".to_owned();
        Fault {
            field: FIELD,
            line,
            problem: format!("is no Ignition config: {error}"),
            remedy,
        }
    })?;
    if let Some(key) = unused.first() {
        return Err(fault(
            format!("{key} in its spec version"),
            "remove the key, or raise ignition.version",
        ));
    }
    let value: Value =
        serde_json::from_str(text).map_err(|error| fault(error.to_string(), "mend the JSON"))?;
    let version = value
        .pointer("/ignition/version")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    sources(&value)?;
    nodes(&value, &version)?;
    units(&value)?;
    users(&value)?;
    disks(&value)
}

fn fault(problem: String, remedy: &str) -> Fault {
    Fault {
        field: FIELD,
        line: None,
        problem,
        remedy: remedy.to_owned(),
    }
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Every resource: URL schemes, verification hashes, header names.
fn sources(value: &Value) -> Result<(), Fault> {
    match value {
        Value::Object(map) => {
            if let Some(source) = map.get("source").and_then(Value::as_str) {
                let scheme = source
                    .split(':')
                    .next()
                    .unwrap_or_default()
                    .to_ascii_lowercase();
                let known = ["http", "https", "tftp", "data", "s3", "gs", "arn"];
                if !source.is_empty() && !known.contains(&scheme.as_str()) {
                    let near: String = source.chars().take(60).collect();
                    return Err(fault(
                        format!("has source {near:?}"),
                        "use http, https, tftp, data, s3, gs or arn",
                    ));
                }
            }
            if let Some(hash) = map.get("hash").and_then(Value::as_str) {
                let (kind, digits) = hash.split_once('-').unwrap_or_default();
                let length = match kind {
                    "sha256" => 64,
                    "sha512" => 128,
                    _ => 0,
                };
                if digits.len() != length
                    || length == 0
                    || !digits.bytes().all(|b| b.is_ascii_hexdigit())
                {
                    return Err(fault(
                        format!("has hash {hash:?}"),
                        "write sha256- or sha512- and the hexadecimal digest",
                    ));
                }
            }
            map.values().try_for_each(sources)
        }
        Value::Array(items) => items.iter().try_for_each(sources),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Files, directories and links: clean absolute paths, each once, none below a link; sane modes.
fn nodes(value: &Value, version: &str) -> Result<(), Fault> {
    let mut paths = BTreeSet::new();
    let links: Vec<&str> = list(value, "/storage/links")
        .iter()
        .map(|link| text(link, "path"))
        .collect();
    for kind in ["files", "directories", "links"] {
        for node in list(value, &format!("/storage/{kind}")) {
            let path = text(node, "path");
            let clean = path.starts_with('/')
                && (path == "/"
                    || path[1..]
                        .split('/')
                        .all(|part| !matches!(part, "" | "." | "..")));
            if !clean {
                return Err(fault(
                    format!("has path {path:?} in storage.{kind}"),
                    "write it absolute, without //, . or ..",
                ));
            }
            if !paths.insert(path) {
                return Err(fault(
                    format!("has path {path:?} twice"),
                    "keep one of the two",
                ));
            }
            if let Some(link) = links
                .iter()
                .find(|link| path.starts_with(&format!("{link}/")))
            {
                return Err(fault(
                    format!("has {path:?} below the link {link:?}"),
                    "write to the link's target",
                ));
            }
            mode(node, path, version)?;
            owner(node, path)?;
            if kind == "files"
                && node.get("overwrite") == Some(&Value::Bool(true))
                && node.pointer("/contents/source").is_none()
            {
                return Err(fault(
                    format!("overwrites {path:?} with nothing"),
                    "give contents.source, \"data:,\" for an empty file",
                ));
            }
            if kind == "links" && text(node, "target").is_empty() {
                return Err(fault(
                    format!("has a link {path:?} without target"),
                    "give its target",
                ));
            }
        }
    }
    Ok(())
}

fn mode(node: &Value, path: &str, version: &str) -> Result<(), Fault> {
    let Some(mode) = node.get("mode").and_then(Value::as_i64) else {
        return Ok(());
    };
    let special_fits = version == "3.6.0";
    if !(0..=0o7777).contains(&mode) {
        return Err(fault(
            format!("has mode {mode} for {path:?}"),
            "JSON counts in tens: 0644 is 420, 0755 is 493",
        ));
    }
    if mode > 0o777 && !special_fits {
        return Err(fault(
            format!("has special mode bits {mode:#o} for {path:?}"),
            "raise ignition.version to 3.6.0 or drop them",
        ));
    }
    Ok(())
}

fn owner(node: &Value, path: &str) -> Result<(), Fault> {
    for key in ["user", "group"] {
        let both = node
            .get(key)
            .is_some_and(|who| !who["id"].is_null() && !who["name"].is_null());
        if both {
            return Err(fault(
                format!("names the {key} of {path:?} by id and by name"),
                "keep one of the two",
            ));
        }
    }
    Ok(())
}

fn units(value: &Value) -> Result<(), Fault> {
    const SUFFIXES: [&str; 11] = [
        ".service",
        ".socket",
        ".device",
        ".mount",
        ".automount",
        ".swap",
        ".target",
        ".path",
        ".timer",
        ".slice",
        ".scope",
    ];
    let mut names = BTreeSet::new();
    for unit in list(value, "/systemd/units") {
        let name = text(unit, "name");
        if !SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) || name.contains('/') {
            return Err(fault(
                format!("has unit {name:?}"),
                "end its name with .service or another suffix of systemd's",
            ));
        }
        if !names.insert(name) {
            return Err(fault(
                format!("has unit {name:?} twice"),
                "keep one of the two",
            ));
        }
        unit_text(name, text(unit, "contents"))?;
        for dropin in list(unit, "/dropins") {
            let part = text(dropin, "name");
            if !part.ends_with(".conf") || part.contains('/') {
                return Err(fault(
                    format!("has drop-in {part:?} for {name}"),
                    "end its name with .conf",
                ));
            }
            unit_text(part, text(dropin, "contents"))?;
        }
    }
    Ok(())
}

/// A unit is sections, settings, comments and continued lines (systemd.syntax(7)).
fn unit_text(name: &str, contents: &str) -> Result<(), Fault> {
    let (mut section, mut continued) = (false, false);
    for line in contents.lines() {
        let trimmed = line.trim();
        let comment = trimmed.starts_with(['#', ';']);
        if !trimmed.is_empty() && !comment && !continued {
            if trimmed.starts_with('[') && trimmed.ends_with(']') {
                section = true;
            } else if !section || !trimmed.contains('=') {
                return Err(fault(
                    format!("has the line {trimmed:?} in {name}"),
                    "write [Section] first, then Key=value lines",
                ));
            }
        }
        if !comment {
            continued = line.ends_with('\\');
        }
    }
    Ok(())
}

fn users(value: &Value) -> Result<(), Fault> {
    for kind in ["users", "groups"] {
        let mut names = BTreeSet::new();
        for entry in list(value, &format!("/passwd/{kind}")) {
            let name = text(entry, "name");
            if name.is_empty() || !names.insert(name) {
                return Err(fault(
                    format!("has {name:?} empty or twice in passwd.{kind}"),
                    "name each once",
                ));
            }
        }
    }
    Ok(())
}

fn disks(value: &Value) -> Result<(), Fault> {
    for disk in list(value, "/storage/disks") {
        let device = text(disk, "device");
        if !device.starts_with('/') {
            return Err(fault(
                format!("has disk {device:?}"),
                "name its device by an absolute path",
            ));
        }
        let (mut numbers, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for partition in list(disk, "/partitions") {
            let number = partition.get("number").and_then(Value::as_i64).unwrap_or(0);
            let label = text(partition, "label");
            if number == 0 && label.is_empty() {
                return Err(fault(
                    format!("has a partition of {device} without number and label"),
                    "give it one of the two",
                ));
            }
            if number < 0
                || (number > 0 && !numbers.insert(number))
                || (!label.is_empty() && !labels.insert(label))
            {
                return Err(fault(
                    format!("has partition {number} {label:?} of {device} twice"),
                    "number and label each once",
                ));
            }
            if label.chars().count() > 36 || label.contains(':') {
                return Err(fault(
                    format!("has partition label {label:?}"),
                    "GPT takes 36 characters, Ignition no colon",
                ));
            }
        }
    }
    for filesystem in list(value, "/storage/filesystems") {
        let format = text(filesystem, "format");
        let longest = match format {
            "ext4" => 16,
            "xfs" => 12,
            "btrfs" => 255,
            "vfat" => 11,
            "swap" => 15,
            "" | "none" => usize::MAX,
            _ => {
                return Err(fault(
                    format!("has filesystem format {format:?}"),
                    "use ext4, xfs, btrfs, vfat, swap or none",
                ));
            }
        };
        let label = text(filesystem, "label");
        if label.len() > longest {
            return Err(fault(
                format!("has label {label:?} for {format}"),
                "shorten it to what the file system holds",
            ));
        }
        let device = text(filesystem, "device");
        if !device.starts_with('/') {
            return Err(fault(
                format!("has a filesystem on {device:?}"),
                "name its device by an absolute path",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, problem: Option<&str>) {
        let text = format!(r#"{{"ignition":{{"version":"3.3.0"}},{body}}}"#);
        let found = lint(&text).err().map(|fault| fault.to_string());
        match problem {
            None => assert_eq!(found, None, "{body}"),
            Some(words) => assert!(
                found.as_deref().is_some_and(|f| f.contains(words)),
                "{body}: {found:?}"
            ),
        }
    }

    #[test]
    fn what_ignition_refuses_on_the_node_is_refused_here() {
        check(
            r#""storage":{"files":[{"path":"/etc/hostname","mode":420,"contents":{"source":"data:,a"}}]}"#,
            None,
        );
        check(
            r#""storage":{"files":[{"path":"etc/x"}]}"#,
            Some("absolute"),
        );
        check(
            r#""storage":{"files":[{"path":"/etc/../x"}]}"#,
            Some("absolute"),
        );
        check(
            r#""storage":{"files":[{"path":"/x"}],"directories":[{"path":"/x"}]}"#,
            Some("twice"),
        );
        check(
            r#""storage":{"files":[{"path":"/l/x"}],"links":[{"path":"/l","target":"/t"}]}"#,
            Some("below the link"),
        );
        check(
            r#""storage":{"files":[{"path":"/x","mode":64644}]}"#,
            Some("mode"),
        );
        check(
            r#""storage":{"files":[{"path":"/x","mode":2541}]}"#,
            Some("special mode"),
        );
        check(
            r#""storage":{"files":[{"path":"/x","overwrite":true}]}"#,
            Some("with nothing"),
        );
        check(
            r#""storage":{"files":[{"path":"/x","contents":{"source":"ftp://h/x"}}]}"#,
            Some("source"),
        );
        check(
            r#""storage":{"files":[{"path":"/x","contents":{"source":"data:,","verification":{"hash":"sha256-12"}}}]}"#,
            Some("hash"),
        );
        check(
            r#""storage":{"files":[{"path":"/x","owner":1}]}"#,
            Some("owner"),
        );
        check(
            r#""storage":{"disks":[{"device":"sda"}]}"#,
            Some("absolute"),
        );
        check(
            r#""storage":{"filesystems":[{"device":"/dev/sda1","format":"ntfs"}]}"#,
            Some("ntfs"),
        );
        check(r#""systemd":{"units":[{"name":"a"}]}"#, Some("unit"));
        check(
            r#""systemd":{"units":[{"name":"a.service","contents":"ExecStart=/bin/true"}]}"#,
            Some("ExecStart"),
        );
        check(
            r#""systemd":{"units":[{"name":"a.service","contents":"[Service]\nExecStart=/bin/sh -c \\\n true\n"}]}"#,
            None,
        );
        check(
            r#""passwd":{"users":[{"name":"core"},{"name":"core"}]}"#,
            Some("twice"),
        );
    }

    #[test]
    fn the_pointer_leads_to_the_tls_side_once_there_is_a_ca() {
        let mut urls = crate::sample_urls([10, 107, 0, 1].into());
        assert!(pointer(&urls).contains("http://10.107.0.1:8080/config/"));
        urls.ca_pem = "PEM".to_owned();
        let text = pointer(&urls);
        assert!(
            text.contains("https://10.107.0.1:8443/config/") && text.contains("UEVN"),
            "{text}"
        );
        assert_eq!(lint(&text), Ok(()));
    }
}
