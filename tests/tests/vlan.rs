//! VLAN 107 as it will be: the daemon as its real systemd unit, on a bastion whose `eth1.107` is a real kernel VLAN device,
//! behind a tagged trunk; the machines on access ports of a VLAN-aware switch. See `tests/src/uml.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::bastion::{copy_tree, reveille, site};
use tests::lab::{Lab, asset};
use tests::qemu::Machine;
use tests::site::{rehearsed, sha256};
use tests::uml::{Bastion, Switch};

#[test]
fn machines_on_access_ports_of_vlan_107_are_configured_by_the_systemd_unit() {
    let lab = Lab::empty();
    let switch = Switch::start(&lab);
    let bastion = Bastion::boot(&lab, &switch, &installed(&lab));
    // The kernel's own word for the link, and systemd's for the unit.
    bastion.process.wait_for(
        "vlan: eth1.107       | 107  | eth1",
        std::time::Duration::ZERO,
    );
    bastion
        .process
        .wait_for("ActiveState=active", std::time::Duration::ZERO);

    let machines: Vec<Machine> = [("bios-01", 1), ("uefi-01", 2)]
        .map(|(name, port)| {
            let mut hardware = rehearsed(name);
            hardware.cable = switch.access(port);
            hardware.power_on(&lab)
        })
        .into();
    for machine in &machines {
        machine.wait_for(&format!(
            "node: file /etc/hostname {}",
            sha256(&machine.name)
        ));
        machine.wait_for("node: phoned home");
    }
}

/// What `make install` puts on a bastion, with a site and the images.
fn installed(lab: &Lab) -> std::path::PathBuf {
    let overlay = lab.path("overlay");
    fs::create_dir(&overlay).expect("a directory for the overlay");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace lies above");
    let binaries = Path::new(reveille())
        .parent()
        .expect("a binary lies in a directory");
    let mut make = Command::new("make");
    make.current_dir(root)
        .args(["--silent", "install", "prefix=/usr"]);
    make.arg(format!("DESTDIR={}", overlay.display()));
    make.arg(format!("built={}", binaries.display()));
    assert!(
        make.status().expect("make can be run").success(),
        "`make install` failed"
    );

    let etc = overlay.join("etc/reveille");
    copy_tree(&site("rehearsal"), &etc);
    let text = fs::read_to_string(etc.join("site.yaml")).expect("the site can be read");
    fs::write(
        etc.join("site.yaml"),
        text.replace("link: br0", "link: eth1.107"),
    )
    .expect("the site can be written");
    let state = overlay.join("var/lib/reveille");
    fs::create_dir_all(&state).expect("a state directory");
    for name in ["vmlinuz", "base.img", "ignition.img"] {
        let (file, state) = (asset(name), state.display().to_string());
        let file = file.to_str().expect("paths are text");
        lab.netns.output(
            reveille(),
            &["image", "import", file, "--name", name, "--state", &state],
        );
    }
    overlay
}
