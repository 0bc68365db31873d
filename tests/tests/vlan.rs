//! VLAN 107 as it will be where the system keeps it: systemd-networkd makes `eth1.107`, a real kernel VLAN device behind a tagged
//! trunk, and the daemon's real unit serves the machines on access ports of a VLAN-aware switch. See `tests/src/host.rs`.

use std::fs;

use tests::bastion::{copy_tree, site};
use tests::host::{Gateway, Host, OUTSIDE, installed};
use tests::lab::Lab;
use tests::qemu::Machine;
use tests::site::{rehearsed, sha256};
use tests::switch::{Port, Switch};

#[test]
fn machines_on_access_ports_of_vlan_107_are_configured_by_the_systemd_unit() {
    let lab = Lab::empty();
    let files = lab.path("site");
    copy_tree(&site("rehearsal"), &files);
    let text = fs::read_to_string(files.join("site.yaml")).expect("the site can be read");
    let text = text.replace("link: br0", "link: eth1.107");
    fs::write(files.join("site.yaml"), text).expect("the site can be written");

    let switch = Switch::start(&lab);
    let outside = Gateway::outside(&lab, &switch);
    let overlay = installed(&lab, &files, &["bastion", "bastion-vlan"]);
    let host = Host::boot(&lab, &switch, &overlay);
    let mut shell = host.shell(&outside, OUTSIDE);
    shell.must("systemctl start reveille");
    // The kernel's own word for the link, and systemd's for the unit.
    let vlan = shell.must("cat /proc/net/vlan/config");
    assert!(vlan.contains("eth1.107       | 107  | eth1"), "{vlan}");
    let unit = shell.must("systemctl show reveille --property=ActiveState,User");
    assert!(
        unit.contains("ActiveState=active") && unit.contains("User=reveille"),
        "{unit}"
    );

    let machines: Vec<Machine> = [("bios-01", 1), ("uefi-01", 2)]
        .map(|(name, port)| {
            let mut hardware = rehearsed(name);
            hardware.cable = switch.cable(Port::Inside(port));
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
