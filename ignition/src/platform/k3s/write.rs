//! A member's parts as Ignition and as cloud-init's user-data.
//!
//! Flatcar's `/usr` cannot be written and CoreOS keeps `/opt` in `/var`: under Ignition the program lies in `/opt/bin`,
//! elsewhere in `/usr/local/bin`. Both sides verify what they fetch by its SHA-256, so plain HTTP will do for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Parts;
use crate::format::yaml_unfolded;
use crate::platform::report;

/// Where k3s looks for images before it asks a registry.
const IMAGES: &str = "/var/lib/rancher/k3s/agent/images";
/// Fetches one file, verifies it and puts it in its place.
const FETCH: &str = "/usr/local/lib/reveille/fetch";

pub(super) fn ignition(parts: &Parts<'_>) -> String {
    let program = "/opt/bin/k3s";
    let own = |path: &str, mode: u32, text: &str| {
        let source = format!("data:;base64,{}", STANDARD.encode(text));
        json!({ "path": path, "mode": mode, "overwrite": true, "contents": { "source": source } })
    };
    let fetched = |path: &str, mode: u32, url: &str, sha256: &str| {
        json!({ "path": path, "mode": mode, "contents": {
            "source": url,
            "verification": { "hash": format!("sha256-{sha256}") },
        } })
    };
    let mut files = vec![own(
        "/etc/hostname",
        0o644,
        &format!("{}\n", parts.hostname),
    )];
    let written = parts.files.iter();
    files.extend(written.map(|(path, mode, text)| own(path, *mode, text)));
    files.push(fetched(
        program,
        0o755,
        &parts.program.url,
        &parts.program.sha256,
    ));
    if let Some(images) = &parts.images {
        let path = format!("{IMAGES}/{}", images.file);
        files.push(fetched(&path, 0o644, &images.url, &images.sha256));
    }
    let unit = unit(parts.command, program, "");
    let mut config = json!({
        "ignition": { "version": "3.3.0" },
        "storage": { "files": files },
        "systemd": { "units": [
            { "name": parts.unit(), "enabled": true, "contents": unit },
            report::ignition_unit(parts.urls),
        ] },
    });
    if !parts.ssh_keys.is_empty() {
        config["passwd"] =
            json!({ "users": [{ "name": "core", "sshAuthorizedKeys": parts.ssh_keys }] });
    }
    config.to_string()
}

pub(super) fn user_data(parts: &Parts<'_>) -> String {
    let program = "/usr/local/bin/k3s";
    let file = |path: &str, mode: u32, text: &str| json!({ "path": path, "permissions": format!("{mode:04o}"), "content": text });
    let written = parts.files.iter();
    let mut files: Vec<Value> = written
        .map(|(path, mode, text)| file(path, *mode, text))
        .collect();
    let mut fetches = format!(
        "ExecStartPre={FETCH} {} {} 0755 {program}\n",
        parts.program.url, parts.program.sha256
    );
    if let Some(images) = &parts.images {
        fetches += &format!(
            "ExecStartPre={FETCH} {} {} 0644 {IMAGES}/{}\n",
            images.url, images.sha256, images.file
        );
    }
    let reporting = report::cloud_init_unit(parts.urls);
    for (name, text) in [
        (parts.unit(), unit(parts.command, program, &fetches)),
        (report::UNIT, reporting),
    ] {
        files.push(file(&format!("/etc/systemd/system/{name}"), 0o644, &text));
    }
    files.push(file(FETCH, 0o755, FETCHER));
    let mut config = json!({
        "hostname": parts.hostname.split('.').next(),
        "fqdn": parts.hostname,
        "write_files": files,
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "--no-block", parts.unit(), report::UNIT],
        ],
    });
    if !parts.ssh_keys.is_empty() {
        config["ssh_authorized_keys"] = json!(parts.ssh_keys);
    }
    format!("#cloud-config\n{}", yaml_unfolded(&config))
}

/// k3s' own unit in our words (install.sh upstream, `create_systemd_service_file`): a server says when it is ready, an
/// agent doesn't, containers outlive a restart.
fn unit(command: &str, program: &str, before: &str) -> String {
    let kind = if command == "server" {
        "notify"
    } else {
        "exec"
    };
    format!(
        "[Unit]\n\
         Description=k3s {command}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type={kind}\n\
         Delegate=yes\n\
         KillMode=process\n\
         LimitNOFILE=1048576\n\
         LimitNPROC=infinity\n\
         LimitCORE=infinity\n\
         TasksMax=infinity\n\
         TimeoutStartSec=0\n\
         Restart=always\n\
         RestartSec=5s\n\
         ExecStartPre=-/sbin/modprobe br_netfilter\n\
         ExecStartPre=-/sbin/modprobe overlay\n\
         {before}\
         ExecStart={program} {command}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// Python, because every system with cloud-init has it. A file that is there was verified before it got its name.
const FETCHER: &str = r#"#!/usr/bin/python3
"""fetch URL SHA256 MODE PATH"""
import hashlib, os, sys, urllib.request

url, sha256, mode, path = sys.argv[1:]
if os.path.exists(path):
    sys.exit()
os.makedirs(os.path.dirname(path), exist_ok=True)
part, digest = path + ".part", hashlib.sha256()
with urllib.request.urlopen(url, timeout=60) as source, open(part, "wb") as file:
    while block := source.read(1 << 20):
        digest.update(block)
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
if digest.hexdigest() != sha256:
    os.unlink(part)
    sys.exit(f"{url} has digest {digest.hexdigest()}, not {sha256}")
os.chmod(part, int(mode, 8))
os.rename(part, path)
"#;
