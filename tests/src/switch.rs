//! A VLAN-aware switch: `vde_switch`, with machines, a bastion's trunk and whole namespaces on its ports.
//!
//! ```text
//! ports 1 to 9     access, VLAN 107   the machines' side: untagged frames only
//! port 10          trunk, VLAN 107 tagged
//! ports 11 to 15   access, VLAN 203   the public side
//! ```
//!
//! Ugly fact: a frame to a MAC address that the switch has not heard yet goes to every port of its VLAN, as on a real one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::{Lab, until};
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::qemu::Cable;

const LIMIT: Duration = Duration::from_secs(20);
const TRUNK: u16 = 10;

/// Which of the switch's networks a port is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// An access port of VLAN 107, 1 to 9.
    Inside(u16),
    /// A port of the public network, 1 to 5.
    Public(u16),
    /// Where VLAN 107 is tagged.
    Trunk,
}

impl Port {
    fn number(self) -> u16 {
        match self {
            Self::Inside(port @ 1..=9) => port,
            Self::Public(port @ 1..=5) => TRUNK + port,
            Self::Trunk => TRUNK,
            Self::Inside(_) | Self::Public(_) => panic!("the switch has no port {self:?}"),
        }
    }
}

pub struct Switch {
    control: PathBuf,
    _process: Process,
}

impl Switch {
    pub fn start(lab: &Lab) -> Self {
        let control = lab.path("switch");
        let management = lab.path("switch-management");
        let commands = lab.path("switch-commands");
        let mut script = String::from("vlan/create 107\nvlan/create 203\n");
        let access = (1..=9).map(|port| (Port::Inside(port), 107));
        let public = (1..=5).map(|port| (Port::Public(port), 203));
        for (port, vlan) in access.chain(public) {
            let port = port.number();
            script += &format!("port/create {port}\nport/setvlan {port} {vlan}\n");
        }
        script += &format!("port/create {TRUNK}\nvlan/addport 107 {TRUNK}\n");
        fs::write(&commands, script).expect("the switch's commands can be written");
        let mut switch = process::command("vde_switch");
        switch.arg("-s").arg(&control).arg("-M").arg(&management);
        switch.arg("-f").arg(&commands);
        let process = lab.netns.start(&lab.timeline, "switch", switch);
        until("the switch to listen", LIMIT, || {
            control.join("ctl").exists() && management.exists()
        });
        Self {
            control,
            _process: process,
        }
    }

    /// The cable of a virtual machine.
    pub fn cable(&self, port: Port) -> Cable {
        Cable::Vde {
            switch: self.control.clone(),
            port: port.number(),
        }
    }

    /// Gives a namespace a card `eth0` on a port, up. Dropping what this returns pulls the cable.
    pub fn plug(&self, lab: &Lab, netns: &Netns, port: Port, mac: &str) -> Process {
        let mut cable = process::command("vde_plug2tap");
        cable.arg("-s").arg(&self.control);
        cable.args(["-p", &port.number().to_string(), "eth0"]);
        let process = netns.start(&lab.timeline, &format!("{port:?}"), cable);
        until("the card to be there", LIMIT, || {
            netns.run(|| std::path::Path::new("/sys/class/net/eth0").exists())
        });
        netns.sysctl("ipv6/conf/eth0/disable_ipv6", "1");
        netns.ip(&format!("link set eth0 address {mac} up"));
        process
    }
}
