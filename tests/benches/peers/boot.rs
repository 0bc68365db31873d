//! Whole boots: from power-on to the first line of the kernel's init, with real firmware on virtual machines.
//!
//! Touches: a laboratory of its own for each boot. The reference is dnsmasq and nginx with hand-written configuration.

use std::fs;

use anyhow::{Context as _, Result};
use tests::bastion::Bastion;
use tests::lab::{LINK, Lab, PREFIX, asset};
use tests::qemu::{Firmware, Hardware, mac};
use tests::reference::Reference;

use crate::Plan;
use crate::table::{Column, Table};

const COLUMNS: &[Column] = &[Column("s", 2)];
const KERNEL_ARGUMENTS: &str = "console=ttyS0 no_timer_check tsc=reliable quiet";
const MARKER: &str = "node: kernel up";

type Boot = fn(Firmware) -> Result<f64>;

const SERVERS: &[(&str, Boot)] = &[("Reveille", reveille), ("dnsmasq and nginx", reference)];

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

fn reveille(firmware: Firmware) -> Result<f64> {
    let lab = Lab::flat(1);
    let site = lab.path("written");
    fs::create_dir_all(site.join("profiles"))?;
    fs::write(
        site.join("site.yaml"),
        format!("site: bench\nnetworks:\n  - name: provisioning\n    link: {LINK}\n    subnet: 10.107.0.0/{PREFIX}\n"),
    )
    .context("writing site.yaml")?;
    fs::write(
        site.join("machines.yaml"),
        format!(
            "machines:\n  - {{ name: node-00, mac: \"{}\", address: 10.107.0.50, profile: live }}\n",
            mac(0)
        ),
    )
    .context("writing machines.yaml")?;
    let arguments: Vec<String> = KERNEL_ARGUMENTS
        .split(' ')
        .map(|word| format!("\"{word}\""))
        .collect();
    fs::write(
        site.join("profiles/live.yaml"),
        format!(
            "kernel: vmlinuz\ninitrds: [base.img]\narguments: [{}]\npurpose: live\n",
            arguments.join(", ")
        ),
    )
    .context("writing a profile")?;
    let mut bastion = Bastion::new(&lab, &site);
    for name in ["vmlinuz", "base.img"] {
        bastion.import(&asset(name), name);
    }
    bastion.start();
    Ok(power_on(&lab, firmware))
}

fn power_on(lab: &Lab, firmware: Firmware) -> f64 {
    let machine = Hardware::numbered(0, firmware).power_on(lab);
    let line = machine.wait_for(MARKER);
    machine.seconds_to(&line)
}
