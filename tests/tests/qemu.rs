//! Machines with real firmware, from power-on to files written by the real Ignition, and the real cloud-init: all of them
//! served by the real daemon. Needs root and what `tests/lab/setup.sh` brings.

use std::time::Duration;

use tests::client::{Client, Script};
use tests::lab::{Lab, asset};
use tests::process;
use tests::qemu::{DISK_BOOTED, Machine, bootable_disk};
use tests::site::{rehearsal, rehearsed, sha256};

/// From power-on to an acknowledged report: every stage of Ignition, and its files by their hash.
fn is_configured_by_ignition(name: &str, purpose: &str) {
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    bastion.start();
    let machine = rehearsed(name).power_on(&lab);
    machine.wait_for("node: kernel up");
    expect_ignition(&machine, name, purpose);
    machine.wait_for("node: phoned home");
    let node = bastion.client(&["node", "show", name]);
    assert!(node.to_lowercase().contains("provisioned"), "{node}");
}

fn expect_ignition(machine: &Machine, name: &str, purpose: &str) {
    for stage in ["fetch-offline", "fetch", "kargs", "disks", "mount", "files"] {
        machine.wait_for(&format!("node: ignition {stage} exit 0"));
    }
    machine.wait_for(&format!("node: file /etc/hostname {}", sha256(name)));
    machine.wait_for(&format!("node: file /etc/purpose {}", sha256(purpose)));
}

#[test]
fn a_bios_machine_is_configured_by_ignition() {
    is_configured_by_ignition("bios-01", "lights");
}

#[test]
fn a_uefi_machine_is_configured_by_ignition() {
    is_configured_by_ignition("uefi-01", "load");
}

#[test]
fn a_uefi_machine_that_boots_by_http_is_configured_by_ignition() {
    is_configured_by_ignition("http-01", "phone");
}

#[test]
fn a_machine_that_reported_its_install_is_sent_to_its_disk_until_a_person_consents() {
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    bastion.start();
    let disk = lab.path("disk");
    bootable_disk(&disk);
    let mut hardware = rehearsed("bios-01");
    hardware.disk = Some((disk, "LAB-DISK-1"));

    let installed = hardware.power_on(&lab);
    installed.wait_for("node: phoned home");
    drop(installed);
    for _ in 0..2 {
        hardware.power_on(&lab).wait_for(DISK_BOOTED);
    }
    // A restart of the daemon changes nothing about it.
    bastion.stop();
    bastion.start();
    hardware.power_on(&lab).wait_for(DISK_BOOTED);

    bastion.client(&["node", "reinstall", "bios-01", "--disk", "LAB-DISK-1"]);
    let consented = hardware.power_on(&lab);
    expect_ignition(&consented, "bios-01", "lights");
}

#[test]
fn a_held_machine_shows_why_on_its_console_and_goes_on_when_a_person_says_so() {
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    bastion.start();
    bastion.client(&["node", "cordon", "uefi-01"]);
    let machine = rehearsed("uefi-01").power_on(&lab);
    machine.wait_for("Reveille: set aside");
    bastion.client(&["node", "uncordon", "uefi-01"]);
    machine.wait_for("node: kernel up");
}

/// U-Boot has a boot script of its own, which an operator imports: Debian 12 has no iPXE for arm64 that could run ours.
#[test]
fn u_boot_on_arm64_runs_the_boot_script_that_was_imported() {
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    let (text, script) = (lab.path("boot.txt"), lab.path("boot.scr.uimg"));
    std::fs::write(
        &text,
        "echo laboratory script at ${ipaddr} from ${serverip}\n",
    )
    .expect("a script can be written");
    let [text, image] = [&text, &script].map(|path| path.to_str().expect("paths are text"));
    lab.netns.output(
        "mkimage",
        &[
            "-A", "arm64", "-T", "script", "-C", "none", "-d", text, image,
        ],
    );
    bastion.import(&script, "loaders/boot.scr.uimg");
    bastion.start();
    let machine = rehearsed("arm-01").power_on(&lab);
    machine.wait_for("laboratory script at 10.107.0.15 from 10.107.0.1");
    // Without a further word from the script, U-Boot goes on to its EFI loader and asks as UEFI on arm64.
    machine.wait_for("Filename 'snponly-arm64.efi'");
}

#[test]
fn cloud_init_is_seeded_by_the_daemon() {
    let lab = Lab::flat(0);
    let mut bastion = rehearsal(&lab);
    bastion.start();
    let client = Client::plug_in(&lab, "cloud-01", &tests::qemu::mac(4));
    let script = client.boot_script();
    let seed = script
        .argument("ds=nocloud-net;s")
        .expect("the script names the seed");

    let scratch = lab.path("cloud-init");
    std::fs::create_dir(&scratch).expect("a scratch directory");
    let mut run = process::family(concat!(env!("CARGO_MANIFEST_DIR"), "/lab/cloud-init-run"));
    run.arg(asset("root"))
        .arg(scratch)
        .arg(format!("console=ttyS0 ds=nocloud-net;s={seed}"));
    run.args(["/etc/hostname", "/etc/purpose", "/etc/ran"]);
    let mut cloud_init = client.netns.start(&lab.timeline, "cloud-init", run);
    cloud_init.wait_for("cloud-init: over", Duration::from_secs(60));
    for line in [
        "init --local exit 0",
        "init exit 0",
        "modules --mode=config exit 0",
        "modules --mode=final exit 0",
        "status: done",
    ] {
        cloud_init.wait_for(line, Duration::ZERO);
    }
    let files = [
        ("/etc/hostname", "cloud-01\n"),
        ("/etc/purpose", "seeded from provisioning for 10.107.0.14"),
        ("/etc/ran", "ran"),
    ];
    for (path, content) in files {
        cloud_init.wait_for(&format!("file {path} {}", sha256(content)), Duration::ZERO);
    }
    cloud_init.wait(Duration::from_secs(10));
    // cloud-init's own phone_home reported the install.
    assert!(
        matches!(client.script(), Script::Other(_)),
        "cloud-01 is not offered an installer again"
    );
}
