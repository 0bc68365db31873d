//! A rack that is powered on at once: sixteen machines with real BIOS and iPXE, one daemon.

use std::collections::BTreeSet;
use std::time::Duration;

use tests::lab::Lab;
use tests::qemu::{Cable, Firmware, Hardware, Machine, mac};
use tests::site::{add_machines, rehearsal};

const MACHINES: u8 = 16;
/// Sixteen kernels on two busy cores; an idle pair of cores needs a minute.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn sixteen_machines_powered_on_at_once_all_reach_their_kernel_with_their_own_address() {
    let lab = Lab::flat(usize::from(MACHINES));
    let mut bastion = rehearsal(&lab);
    add_machines(&bastion.site, "storm", MACHINES, "live");
    bastion.start();
    let machines: Vec<Machine> = (0..MACHINES)
        .map(|number| {
            let hardware = Hardware {
                name: format!("storm-{number:02}"),
                firmware: Firmware::Bios,
                mac: mac(100 + number),
                memory_mib: 256,
                cable: Cable::Tap(format!("tap{number}")),
                disk: None,
            };
            hardware.power_on(&lab)
        })
        .collect();
    let mut addresses = BTreeSet::new();
    for (number, mut machine) in (0..).zip(machines) {
        let line = machine.process.wait_for("node: address", LIMIT);
        let expected = format!("node: address 10.107.0.{}/24", 100 + number);
        assert!(
            line.text.starts_with(&expected),
            "{}: {}",
            machine.name,
            line.text
        );
        addresses.insert(line.text);
        machine.process.kill();
    }
    assert_eq!(addresses.len(), usize::from(MACHINES));
}
