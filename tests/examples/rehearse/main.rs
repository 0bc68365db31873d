//! `make rehearse`: two sites on virtual machines with real firmware, told as it happens. First the machines of
//! `tests/sites/rehearsal`, up to the daemon's table of nodes; then an OKD cluster, through all its phases.
//!
//! What doesn't come about in time ends it with everything that happened, and an exit code that isn't zero.

mod cluster;
mod okd;

use tests::bastion::Bastion;
use tests::lab::Lab;
use tests::qemu::Machine;
use tests::site::{rehearsal, rehearsed};

/// In the order of the story; a UEFI machine takes three times as long as a BIOS one.
const MACHINES: [&str; 3] = ["bios-01", "uefi-01", "http-01"];
/// What a person wants to see of a machine's console.
const STEPS: [(&str, &str); 4] = [
    (
        "node: kernel up",
        "firmware, loader, script and images went well: the kernel runs",
    ),
    ("node: address", "the initramfs has the same address"),
    (
        "node: ignition files exit 0",
        "Ignition wrote the node's files",
    ),
    (
        "node: phoned home",
        "the install is acknowledged: from now on it boots its disk",
    ),
];

fn main() {
    machines();
    okd::rehearse();
}

fn machines() {
    println!("A bastion in a namespace of its own serves the site tests/sites/rehearsal.");
    let lab = Lab::flat(6);
    let mut bastion = rehearsal(&lab);
    bastion.start();
    println!("{}", bastion.client(&["status"]));
    for name in MACHINES {
        let hardware = rehearsed(name);
        println!(
            "{name}: power on ({:?}, {})",
            hardware.firmware, hardware.mac
        );
        tell(&hardware.power_on(&lab), &STEPS);
    }
    println!();
    show(&bastion, &["node", "list"]);
    show(&bastion, &["node", "show", MACHINES[0]]);
    show(&bastion, &["node", "why", "cloud-01"]);
    show(&bastion, &["status"]);
}

/// Waits for lines on a machine's console, and says what each means.
fn tell(machine: &Machine, steps: &[(&str, &str)]) {
    for (pattern, meaning) in steps {
        let line = machine.wait_for(pattern);
        println!(
            "{}: {:5.1} s  {meaning}",
            machine.name,
            machine.seconds_to(&line)
        );
    }
}

fn show(bastion: &Bastion<'_>, words: &[&str]) {
    println!("$ reveille {}\n{}", words.join(" "), bastion.client(words));
}
