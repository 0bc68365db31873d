//! Boot chains that take minutes: `make slow`. Other loaders than ours, imported by an operator, and a live root that a
//! dracut initramfs fetches; all served by the real daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::bastion::{Bastion, reveille};
use tests::lab::{Lab, asset};
use tests::qemu::{Cable, Firmware, Hardware};
use tests::sample::repository;
use tests::site::{rehearsal, rehearsed, sha256};

/// Emulated arm64 takes a minute to its kernel when idle.
const LIMIT: Duration = Duration::from_secs(600);

#[test]
#[ignore = "takes minutes and more packages: `make slow`"]
fn shim_and_grub_boot_a_kernel_by_tftp() {
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    loader(&bastion, "uefi-01", 7, "shimx64.efi");
    bastion.import(
        &asset("shim/usr/lib/shim/shimx64.efi.signed"),
        "loaders/shimx64.efi",
    );
    bastion.import(
        &asset("grub/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"),
        "loaders/grubx64.efi",
    );
    bastion.import(&asset("vmlinuz"), "loaders/vmlinuz");
    bastion.import(&asset("base.img"), "loaders/base.img");
    let menu = "linux /vmlinuz console=ttyS0 quiet no_timer_check\ninitrd /base.img\nboot\n";
    import_text(&lab, &bastion, menu, "loaders/grub/grub.cfg");
    bastion.start();
    let machine = rehearsed("uefi-01").power_on(&lab);
    machine
        .process
        .wait_for("node: address 10.107.0.12/24", LIMIT);
}

#[test]
#[ignore = "takes minutes and more packages: `make slow`"]
fn uefi_on_arm64_boots_a_kernel_by_http_through_grub() {
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    // GRUB 2.06 speaks HTTP on port 80 alone.
    let site = bastion.site.join("site.yaml");
    let text = fs::read_to_string(&site).expect("the site can be read");
    fs::write(&site, format!("{text}http: {{port: 80}}\n")).expect("the site can be written");
    let machine = "machines:\n  - {name: arm-02, mac: \"52:54:00:aa:00:06\", address: 10.107.0.16, profile: live, loaders: {11: grubaa64.efi}}\n";
    inventory(&bastion, machine);

    let installer =
        asset("arm64/usr/lib/debian-installer/images/12/arm64/text/debian-installer/arm64");
    bastion.import(&installer.join("grubaa64.efi"), "loaders/grubaa64.efi");
    let kernel = installer.join("linux");
    bastion.import(&kernel, "arm64/linux");
    let digest = sha256(fs::read(&kernel).expect("the kernel can be read"));
    let modules = installer.join("grub/arm64-efi");
    for name in [
        "http.mod",
        "command.lst",
        "fs.lst",
        "crypto.lst",
        "terminal.lst",
        "moddep.lst",
    ] {
        bastion.import(
            &modules.join(name),
            &format!("loaders/debian-installer/arm64/grub/arm64-efi/{name}"),
        );
    }
    let menu = format!(
        "insmod http\nlinux (http,10.107.0.1)/artifacts/{digest}/linux console=ttyAMA0\nboot\n"
    );
    import_text(
        &lab,
        &bastion,
        &menu,
        "loaders/debian-installer/arm64/grub/grub.cfg",
    );
    bastion.start();
    let hardware = Hardware {
        name: "arm-02".to_owned(),
        firmware: Firmware::UefiArm64,
        mac: "52:54:00:aa:00:06".to_owned(),
        memory_mib: 768,
        cable: Cable::Tap("tap1".to_owned()),
        disk: None,
    };
    hardware
        .power_on(&lab)
        .process
        .wait_for("Booting Linux on physical CPU", LIMIT);
}

/// The root carries the agent and its unit as nodes get them; nothing of the laboratory reports for it.
#[test]
#[ignore = "takes minutes and more packages: `make slow`"]
fn a_live_root_is_fetched_from_the_depot_and_its_own_agent_reports() {
    let lab = Lab::flat(7);
    let mut bastion = rehearsal(&lab);
    bastion.import(&asset("live/initramfs.img"), "live/initramfs.img");
    bastion.import(&live_root(&lab), "live/root.squashfs");
    let profile = "kernel: vmlinuz\n\
        initrds: [live/initramfs.img]\n\
        artifacts: {root: live/root.squashfs}\n\
        arguments:\n\
        - console=ttyS0\n\
        - TERM=dumb\n\
        - no_timer_check\n\
        - tsc=reliable\n\
        - root=live:{{ artifacts.root }}\n\
        - rd.live.image\n\
        - rd.live.overlay.overlayfs=1\n\
        - ip=dhcp\n\
        - rd.neednet=1\n\
        - reveille.report={{ report_url }}\n\
        purpose: live\n";
    fs::write(bastion.site.join("profiles/live-root.yaml"), profile)
        .expect("the profile can be written");
    let machine = "machines:\n  - {name: live-01, mac: \"52:54:00:aa:00:06\", address: 10.107.0.16, profile: live-root}\n";
    inventory(&bastion, machine);
    bastion.start();
    let hardware = Hardware {
        name: "live-01".to_owned(),
        // What the initramfs unpacks to and the root that it fetches lie in memory together.
        memory_mib: 1536,
        ..Hardware::numbered(6, Firmware::Bios)
    };
    let machine = hardware.power_on(&lab);
    machine
        .process
        .wait_for("live: / is overlay over squashfs", LIMIT);
    machine
        .process
        .wait_for("Finished reveille-agent.service", LIMIT);
    let node = bastion.client(&["node", "show", "live-01"]);
    assert!(node.contains("provisioned"), "{node}");
}

/// The laboratory's live root, with the agent and its unit laid beside what it has.
fn live_root(lab: &Lab) -> PathBuf {
    let (more, image) = (lab.path("more"), lab.path("root.squashfs"));
    let node = more.join("reveille");
    fs::create_dir_all(&node).expect("a directory for the agent");
    let agent = Path::new(reveille()).with_file_name("reveille-agent");
    fs::copy(agent, node.join("reveille-agent")).expect("the agent is built beside the daemon");
    let unit = repository().join("systemd/reveille-agent.service");
    fs::copy(unit, node.join("reveille-agent.service")).expect("the unit can be copied");
    fs::copy(asset("live/root.squashfs"), &image).expect("the root can be copied");
    let [from, to] = [&more, &image].map(|path| path.to_str().expect("paths are text"));
    lab.netns.output(
        "mksquashfs",
        &[from, to, "-quiet", "-no-progress", "-all-root"],
    );
    image
}

/// Adds machines to the site.
fn inventory(bastion: &Bastion<'_>, machines: &str) {
    let directory = bastion.site.join("machines.d");
    fs::create_dir(&directory).expect("a directory for machines");
    fs::write(directory.join("more.yaml"), machines).expect("the machines can be written");
}

/// Gives a machine a loader of its own.
fn loader(bastion: &Bastion<'_>, name: &str, architecture: u16, file: &str) {
    let path = bastion.site.join("machines.yaml");
    let text = fs::read_to_string(&path).expect("the machines can be read");
    let line = format!("- name: {name}\n");
    let more = format!("{line}    loaders: {{{architecture}: {file}}}\n");
    fs::write(path, text.replace(&line, &more)).expect("the machines can be written");
}

fn import_text(lab: &Lab, bastion: &Bastion<'_>, text: &str, name: &str) {
    let path = lab.path("imported-text");
    fs::write(&path, text).expect("the text can be written");
    bastion.import(Path::new(&path), name);
}
