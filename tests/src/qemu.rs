//! A virtual machine with real firmware, a cable and a serial line.
//!
//! Ugly facts, each of them measured:
//! - `-accel kvm` may open /dev/kvm and then hang inside a virtual machine: TCG is forced, never offered as a fallback.
//! - QEMU's ROM for a NIC *is* iPXE. EDK2's own PXE client is reached only with an empty `romfile=`.
//! - EDK2 tries IPv6 first and waits for it; firmware configuration switches it off, and PXE too for HTTP Boot.
//! - `qemu64` is a fifth faster under TCG than `max`, and a second CPU makes it slower.
//! - With `vnet_hdr` a guest leaves checksums to the next link, which a tap on a bridge never computes.
//! - U-Boot on arm64 ignores the address QEMU gives its NIC.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::lab::{Lab, packaged};
use crate::process::{self, Process};
use crate::timeline::Line;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firmware {
    /// SeaBIOS, and iPXE in the NIC's ROM.
    Bios,
    /// EDK2 and its PXE client (architecture 7).
    UefiPxe,
    /// EDK2 and its HTTP Boot client (architecture 16).
    UefiHttp,
    /// U-Boot on arm64 (architecture 22, then 11).
    UbootArm64,
    /// EDK2 on arm64 and its PXE client (architecture 11).
    UefiArm64,
}

/// Where a machine's cable ends.
#[derive(Clone, Debug)]
pub enum Cable {
    Tap(String),
    /// A port of a `vde_switch`, by its control directory.
    Vde {
        switch: PathBuf,
        port: u16,
    },
}

pub struct Machine {
    pub name: String,
    pub firmware: Firmware,
    pub process: Process,
    pub powered_on: Duration,
}

/// A machine to be switched on.
pub struct Hardware {
    pub name: String,
    pub firmware: Firmware,
    pub mac: String,
    pub memory_mib: u32,
    pub cable: Cable,
    /// A disk with its serial number, after the network in the boot order.
    pub disk: Option<(PathBuf, &'static str)>,
}

impl Hardware {
    /// A machine of the laboratory by its number: `node-NN`, its own address, the tap of that number.
    pub fn numbered(number: u8, firmware: Firmware) -> Self {
        Self {
            name: format!("node-{number:02}"),
            firmware,
            mac: mac(number),
            memory_mib: 512,
            cable: Cable::Tap(format!("tap{number}")),
            disk: None,
        }
    }

    pub fn power_on(&self, lab: &Lab) -> Machine {
        let command = self.command(lab);
        let powered_on = lab.timeline.now();
        let process = lab.netns.start(&lab.timeline, &self.name, command);
        Machine {
            name: self.name.clone(),
            firmware: self.firmware,
            process,
            powered_on,
        }
    }

    fn command(&self, lab: &Lab) -> Command {
        let arm = matches!(self.firmware, Firmware::UbootArm64 | Firmware::UefiArm64);
        let mut qemu = process::command(if arm {
            "qemu-system-aarch64"
        } else {
            "qemu-system-x86_64"
        });
        qemu.args(
            "-accel tcg,thread=multi -smp 1 -nodefaults -no-user-config -display none -no-reboot"
                .split(' '),
        );
        qemu.args(["-serial", "stdio", "-m", &self.memory_mib.to_string()]);
        let digits = self.mac.replace(':', "");
        qemu.args(["-uuid", &format!("4c4c4544-0000-1070-8000-{digits}")]);
        qemu.args([
            "-smbios",
            &format!("type=1,serial=SN-{digits},manufacturer=Laboratory,product=Node"),
        ]);
        match &self.cable {
            Cable::Tap(tap) => {
                let tap = format!("tap,id=n0,ifname={tap},script=no,downscript=no,vnet_hdr=off");
                qemu.args(["-netdev", &tap]);
            }
            Cable::Vde { switch, port } => {
                qemu.args([
                    "-netdev",
                    &format!("vde,id=n0,sock={},port={port}", switch.display()),
                ]);
            }
        }
        if let Some((file, serial)) = &self.disk {
            qemu.args([
                "-drive",
                &format!("if=none,id=d0,format=raw,file={}", file.display()),
            ]);
            qemu.args([
                "-device",
                &format!("virtio-blk-pci,drive=d0,serial={serial},bootindex=1"),
            ]);
        }
        let rom = if self.firmware == Firmware::Bios {
            ""
        } else {
            ",romfile="
        };
        qemu.args([
            "-device",
            &format!("virtio-net-pci,netdev=n0,mac={},bootindex=0{rom}", self.mac),
        ]);
        match self.firmware {
            Firmware::Bios => {
                packaged("/usr/lib/ipxe/qemu/pxe-virtio.rom");
                qemu.args(["-machine", "q35", "-cpu", "qemu64"]);
            }
            Firmware::UefiPxe | Firmware::UefiHttp => {
                qemu.args(["-machine", "q35,smm=off", "-cpu", "qemu64"]);
                self.flash(
                    lab,
                    &mut qemu,
                    "/usr/share/OVMF/OVMF_CODE_4M.fd",
                    "/usr/share/OVMF/OVMF_VARS_4M.fd",
                );
                let mut without = vec!["IPv6Support"];
                if self.firmware == Firmware::UefiHttp {
                    without.extend(["IPv4PXESupport", "IPv6PXESupport"]);
                }
                for feature in without {
                    qemu.args([
                        "-fw_cfg",
                        &format!("name=opt/org.tianocore/{feature},string=n"),
                    ]);
                }
            }
            Firmware::UbootArm64 => {
                let firmware = packaged("/usr/lib/u-boot/qemu_arm64/u-boot.bin");
                qemu.args(["-machine", "virt", "-cpu", "cortex-a53", "-bios"])
                    .arg(firmware);
            }
            Firmware::UefiArm64 => {
                qemu.args(["-machine", "virt", "-cpu", "cortex-a53"]);
                self.flash(
                    lab,
                    &mut qemu,
                    "/usr/share/AAVMF/AAVMF_CODE.fd",
                    "/usr/share/AAVMF/AAVMF_VARS.fd",
                );
            }
        }
        qemu
    }

    /// EDK2 lives in two flash chips: its code, and variables that each machine needs a copy of.
    fn flash(&self, lab: &Lab, qemu: &mut Command, code: &str, variables: &str) {
        let own = lab.path(&format!("{}-variables.fd", self.name));
        fs::copy(packaged(variables), &own).expect("the variables can be copied");
        let chip = |unit: u8, rest: String| format!("if=pflash,format=raw,unit={unit},{rest}");
        qemu.args([
            "-drive",
            &chip(0, format!("readonly=on,file={}", packaged(code).display())),
        ]);
        qemu.args(["-drive", &chip(1, format!("file={}", own.display()))]);
    }
}

impl Machine {
    /// Waits for a line on the serial console.
    pub fn wait_for(&self, pattern: &str) -> Line {
        self.process.wait_for(pattern, self.firmware.patience())
    }

    /// Seconds between power-on and a line.
    pub fn seconds_to(&self, line: &Line) -> f64 {
        (line.at - self.powered_on).as_secs_f64()
    }
}

impl Firmware {
    /// Ten times what two idle cores need from power-on to the end of init: the machine that runs the tests may be busy.
    pub fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Bios => 90,
            Self::UefiPxe | Self::UefiHttp => 180,
            Self::UbootArm64 => 60,
            Self::UefiArm64 => 300,
        })
    }
}

/// The address of a laboratory's machine.
pub fn mac(number: u8) -> String {
    format!("52:54:00:aa:00:{number:02x}")
}

/// What a machine with BIOS says on its serial line when it starts the disk of `bootable_disk`.
pub const DISK_BOOTED: &str = "the disk boots";

/// Writes a disk image whose boot sector says `DISK_BOOTED` on the first serial port and halts.
pub fn bootable_disk(path: &std::path::Path) {
    // 7c00 xor ax, ax; mov ds, ax; mov si, 7c15; mov dx, 3f8
    // 7c0a lodsb; test al, al; jz 7c12; out dx, al; jmp 7c0a
    // 7c12 hlt; jmp 7c12; then the text
    let code = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x15, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03,
        0xee, 0xeb, 0xf8, 0xf4, 0xeb, 0xfd,
    ];
    let mut image = vec![0; 1 << 20];
    let text = format!("{DISK_BOOTED}\r\n");
    image[..code.len()].copy_from_slice(&code);
    image[code.len()..code.len() + text.len()].copy_from_slice(text.as_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(path, image).expect("a disk image can be written");
}
