//! Whole boots: from power-on to the first line of the kernel's init, with real firmware on virtual machines.
//!
//! Touches: a laboratory of its own for each boot. The reference is dnsmasq and nginx with hand-written configuration.

use anyhow::{Context as _, Result};
use tests::lab::Lab;
use tests::qemu::{Firmware, Hardware};
use tests::reference::Reference;

use crate::Plan;
use crate::table::{Column, Table};

const COLUMNS: &[Column] = &[Column("s", 2)];
const KERNEL_ARGUMENTS: &str = "console=ttyS0 no_timer_check tsc=reliable quiet";
const MARKER: &str = "node: kernel up";

type Boot = fn(Firmware) -> Result<f64>;

const SERVERS: &[(&str, Boot)] = &[("dnsmasq and nginx", reference)];

const FIRMWARE: &[(&str, Firmware)] = &[
    ("BIOS, iPXE in ROM", Firmware::Bios),
    ("UEFI PXE", Firmware::UefiPxe),
    ("UEFI HTTP", Firmware::UefiHttp),
];

pub(crate) fn measure(plan: &Plan) -> Result<Vec<Table>> {
    let mut table = Table::new("Power-on to the kernel's init, emulated machine", COLUMNS);
    for (case, firmware) in FIRMWARE.iter().filter(|firmware| plan.has_case(firmware.0)) {
        for _ in 0..plan.rounds {
            for (name, boot) in SERVERS.iter().filter(|server| plan.wants(server.0)) {
                let seconds = boot(*firmware).with_context(|| format!("booting from {name}"))?;
                table.add(case, name, &[seconds]);
            }
        }
    }
    Ok(vec![table])
}

fn reference(firmware: Firmware) -> Result<f64> {
    let lab = Lab::flat(1);
    let _servers = Reference::start(&lab, &["base.img"], KERNEL_ARGUMENTS);
    Ok(power_on(&lab, firmware))
}

fn power_on(lab: &Lab, firmware: Firmware) -> f64 {
    let machine = Hardware::numbered(0, firmware).power_on(lab);
    let line = machine.wait_for(MARKER);
    machine.seconds_to(&line)
}
