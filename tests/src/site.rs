//! The sites that the tests boot: `tests/sites`, machines added to a copy of one, and sites of Talos machines.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::bastion::{Bastion, site};
use crate::lab::{Lab, asset};
use crate::qemu::{Cable, Firmware, Hardware, mac};

/// Writes one file of a site, and the directories above it.
pub fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, text).expect("written");
}

/// A site whose machines boot Talos: a `site.yaml`, the profile `talos`, and machines of these names, which
/// [`Node::new`](crate::node::Node::new) makes by the numbers from 1.
pub fn of_talos(root: &Path, site: &str, machines: &[&str]) {
    const PROFILE: &str = "kernel: vmlinuz
arguments: [talos.platform=metal, \"talos.config={{ config_url }}talos.yaml\"]
config: { format: talos }
disk: { path: /dev/disk/by-path/pci-0 }
";
    let mut listed = "machines:\n".to_owned();
    for (number, name) in (1..).zip(machines) {
        let address = 10 + number;
        let _ = writeln!(
            listed,
            "  - {{ name: {name}, mac: \"52:54:00:aa:00:{number:02x}\", address: 10.107.0.{address} }}"
        );
    }
    write(root, "site.yaml", site);
    write(root, "machines.yaml", &listed);
    write(root, "profiles/talos.yaml", PROFILE);
}

/// Kernel and initramfs images of the rehearsal site, in the depot.
pub fn import_images(bastion: &Bastion<'_>) {
    for name in ["vmlinuz", "base.img", "ignition.img"] {
        bastion.import(&asset(name), name);
    }
}

/// The rehearsal site with its images, not yet served.
pub fn rehearsal(lab: &Lab) -> Bastion<'_> {
    let bastion = Bastion::new(lab, &site("rehearsal"));
    import_images(&bastion);
    bastion
}

/// A machine of the rehearsal site, its cable in the tap of its number.
pub fn rehearsed(name: &str) -> Hardware {
    let (number, firmware) = match name {
        "bios-01" => (1, Firmware::Bios),
        "uefi-01" => (2, Firmware::UefiPxe),
        "http-01" => (3, Firmware::UefiHttp),
        "arm-01" => (5, Firmware::UbootArm64),
        _ => panic!("the rehearsal site has no machine {name} with firmware"),
    };
    let cable = Cable::Tap(format!("tap{number}"));
    Hardware {
        name: name.to_owned(),
        firmware,
        mac: mac(number),
        memory_mib: 512,
        cable,
        disk: None,
    }
}

/// Adds `count` machines `PREFIX-NN` to a site; the addresses are 10.107.0.100 and up, the MACs those of `mac(100)` and up.
pub fn add_machines(site: &Path, prefix: &str, count: u8, profile: &str) {
    let mut text = String::from("machines:\n");
    for number in 0..count {
        let place = 100 + number;
        let _ = writeln!(
            text,
            "  - {{name: {prefix}-{number:02}, mac: \"{}\", address: 10.107.0.{place}, profile: {profile}}}",
            mac(place)
        );
    }
    let directory = site.join("machines.d");
    fs::create_dir_all(&directory).expect("a directory for machines");
    fs::write(directory.join(format!("{prefix}.yaml")), text).expect("machines can be written");
}

/// SHA-256 in hexadecimal, as `sha256sum` prints it.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes.as_ref())
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
