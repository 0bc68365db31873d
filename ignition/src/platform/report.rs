//! The units by which a member tells the bastion what it did, again and again until that is acknowledged.

use serde_json::{Value, json};

use crate::Urls;

/// The name of the unit on a system that is up.
pub(super) const UNIT: &str = "reveille-report.service";

/// Reports that the system is up. An empty report says that the profile's purpose is done.
pub(super) fn ignition_unit(urls: &Urls) -> Value {
    let wants = "After=network-online.target\n";
    let text = unit(
        "this machine is up",
        wants,
        &curl(urls, ""),
        "WantedBy=multi-user.target",
    );
    json!({ "name": UNIT, "enabled": true, "contents": text })
}

/// Reports that the disk is written, before CoreOS' installer reboots into it.
pub(super) fn installer_unit(urls: &Urls) -> Value {
    let between = "After=network-online.target coreos-installer.service\n\
        Before=coreos-installer.target coreos-installer-reboot.service coreos-installer-noreboot.service\n";
    let required = "RequiredBy=coreos-installer.target";
    let text = unit(
        "the disk is written",
        between,
        &curl(urls, "installed"),
        required,
    );
    json!({ "name": "reveille-installed.service", "enabled": true, "contents": text })
}

/// The same as [`ignition_unit`] under cloud-init.
pub(super) fn cloud_init_unit(urls: &Urls) -> String {
    let python = format!(
        "/usr/bin/python3 -c \\\"import urllib.request; urllib.request.urlopen('{}', b'', 30)\\\"",
        urls.report
    );
    let wants = "After=network-online.target\n";
    unit(
        "this machine is up",
        wants,
        &python,
        "WantedBy=multi-user.target",
    )
}

/// Every system that Ignition configures has curl, and every one that cloud-init configures has Python.
fn curl(urls: &Urls, body: &str) -> String {
    format!(
        "/usr/bin/curl --fail --silent --show-error --max-time 30 --output /dev/null --data '{body}' {}",
        urls.report
    )
}

/// A loop of the shell's, not `Restart=`: who waits for the unit must not see the first try fail.
fn unit(what: &str, order: &str, command: &str, install: &str) -> String {
    format!(
        "[Unit]\n\
         Description=Report to the bastion that {what}\n\
         Wants=network-online.target\n\
         {order}\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/bin/sh -c \"until {command}; do sleep 5; done\"\n\
         \n\
         [Install]\n\
         {install}\n"
    )
}
