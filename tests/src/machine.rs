//! A fake machine: firmware, loader, installer, disk and operating system as one small state machine.
//! It stands where hundreds of machines must lose packets and power a million times; real firmware is
//! booted elsewhere. Its habits are those of real clients: it asks again, it installs over whatever is
//! on its disk without asking, and it repeats its report until it is acknowledged.

use std::net::Ipv4Addr;

use netboot::net::MacAddress;
use netboot::spec::Purpose;
use uuid::Uuid;

use crate::chance::Chance;

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its boot card.
    pub mac: MacAddress,
    /// What its board says.
    pub uuid: Option<Uuid>,
    /// What it is doing.
    pub now: Doing,
    /// What is on its disk.
    pub disk: Disk,
    /// The token of the latest script it received.
    pub token: Option<u64>,
    /// The token that the system on its disk was installed with.
    pub disk_token: Option<u64>,
    /// The address it holds.
    pub address: Option<Ipv4Addr>,
    /// The console's last word when it was told to wait or to go away.
    pub told: Option<String>,
    /// Reports not yet acknowledged may be forgotten by a power cut; this one was acknowledged.
    pub install_acknowledged: bool,
}

/// What is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Nothing that boots.
    Blank,
    /// An install that was cut off.
    Torn,
    /// A system.
    System,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Nothing; the power is off.
    Off,
    /// Firmware asks DHCP what to boot.
    Firmware,
    /// iPXE asks for its script.
    Script,
    /// The installer or live system fetches its config.
    Config(Purpose),
    /// The installer writes the disk, this many steps more.
    Writing(u8),
    /// The installer says that it is done, until it is heard.
    Reporting,
    /// The system on the disk, or in memory, runs and says so, until it is heard.
    Running {
        /// It was heard.
        heard: bool,
    },
}

/// What a machine wants of the world in its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// A DHCP exchange as PXE firmware.
    Dhcp,
    /// Its boot script.
    Script,
    /// Its config.
    Config,
    /// To be heard: the install is done.
    ReportInstalled,
    /// To be heard: the system runs.
    ReportBooted,
}

/// What the world answered. No answer at all is a step without a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An address, and a loader to run.
    Loader(Ipv4Addr),
    /// Boot, with this token.
    Boot(u64, Purpose),
    /// Leave for the disk.
    LocalDisk,
    /// Wait, or go away, and why.
    Wait(String),
    /// The config.
    Config,
    /// No config for you.
    ConfigRefused,
    /// The report is on the bastion's disk.
    Acknowledged,
}

impl Machine {
    /// A machine with a blank disk, switched off.
    #[must_use]
    pub fn new(mac: MacAddress, uuid: Option<Uuid>) -> Self {
        Self {
            mac,
            uuid,
            now: Doing::Off,
            disk: Disk::Blank,
            token: None,
            disk_token: None,
            address: None,
            told: None,
            install_acknowledged: false,
        }
    }

    /// Switches it on, or off and on again. What was in memory is gone; a disk that was being written is torn.
    pub fn power_cycle(&mut self) {
        if matches!(self.now, Doing::Writing(_)) {
            self.disk = Disk::Torn;
        }
        self.now = Doing::Firmware;
        self.address = None;
        self.token = None;
        self.told = None;
    }

    /// What it wants next. Writing a disk needs nobody.
    pub fn wish(&mut self) -> Wish {
        match self.now {
            Doing::Off => Wish::Nothing,
            Doing::Firmware => Wish::Dhcp,
            Doing::Script => Wish::Script,
            Doing::Config(_) => Wish::Config,
            Doing::Writing(0) => {
                self.disk = Disk::System;
                self.disk_token = self.token;
                self.now = Doing::Reporting;
                Wish::Nothing
            }
            Doing::Writing(left) => {
                self.disk = Disk::Torn;
                self.now = Doing::Writing(left - 1);
                Wish::Nothing
            }
            Doing::Reporting => Wish::ReportInstalled,
            Doing::Running { heard: false } => Wish::ReportBooted,
            Doing::Running { heard: true } => Wish::Nothing,
        }
    }

    /// Takes an answer.
    pub fn hear(&mut self, heard: Heard, dice: &mut Chance) {
        match heard {
            Heard::Loader(address) => {
                self.address = Some(address);
                self.now = Doing::Script;
            }
            Heard::Boot(token, purpose) => {
                self.token = Some(token);
                self.told = None;
                self.now = Doing::Config(purpose);
            }
            Heard::LocalDisk if self.disk == Disk::System => {
                self.token = self.disk_token;
                self.now = Doing::Running { heard: false };
            }
            Heard::LocalDisk => self.power_cycle(),
            Heard::Wait(why) => self.told = Some(why),
            Heard::Config if self.now == Doing::Config(Purpose::Install) => {
                self.now = Doing::Writing(u8::try_from(dice.below(4)).expect("small"));
            }
            Heard::Config => self.now = Doing::Running { heard: false },
            // An installer without a config gives up, and the machine starts over.
            Heard::ConfigRefused => self.power_cycle(),
            Heard::Acknowledged if self.now == Doing::Reporting => {
                self.install_acknowledged = true;
                // The machine restarts, and asks the network first: the worst boot order there is.
                self.power_cycle();
            }
            Heard::Acknowledged => self.now = Doing::Running { heard: true },
        }
    }
}
