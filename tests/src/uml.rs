//! A bastion with a real kernel VLAN: user-mode Linux on the tagged port of a VLAN-aware switch.
//!
//! The kernel that runs the tests may have no 8021q; user-mode Linux brings its own, and its programs run at native speed.
//! Its root is a Debian tree under a tmpfs, so nothing it does reaches the disk. The switch is `vde_switch`: ports 1 to 9 are
//! access ports of VLAN 107, where machines see untagged frames only; port 10 is the trunk.
//!
//! Ugly facts: two user-mode Linuxes on one port steal each other's frames, and one whose parent is gone lingers, hence the
//! pid namespace. Its `vecN` devices use virtio headers that the switch does not know; `ethN=vde` does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::{Lab, asset, packaged};
use crate::process::{self, Process};

/// Access ports of the switch.
const PORTS: u16 = 9;
const TRUNK: u16 = 10;
const LIMIT: Duration = Duration::from_secs(20);
/// A loaded machine of two cores takes half a minute from the kernel to `multi-user.target`.
const BOOT_LIMIT: Duration = Duration::from_secs(150);

pub struct Switch {
    control: PathBuf,
    _process: Process,
}

impl Switch {
    pub fn start(lab: &Lab) -> Self {
        let control = lab.path("switch");
        let management = lab.path("switch-management");
        let commands = lab.path("switch-commands");
        let mut script = String::from("vlan/create 107\n");
        for port in 1..=PORTS {
            script += &format!("port/create {port}\nport/setvlan {port} 107\n");
        }
        script += &format!("port/create {TRUNK}\nvlan/addport 107 {TRUNK}\n");
        fs::write(&commands, script).expect("the switch's commands can be written");
        let mut switch = process::command("vde_switch");
        switch
            .arg("-s")
            .arg(&control)
            .arg("-M")
            .arg(&management)
            .arg("-f")
            .arg(&commands);
        let process = lab.netns.start(&lab.timeline, "switch", switch);
        crate::lab::until("the switch to listen", LIMIT, || {
            control.join("ctl").exists() && management.exists()
        });
        Self {
            control,
            _process: process,
        }
    }

    /// An access port of VLAN 107.
    pub fn access(&self, port: u16) -> crate::qemu::Cable {
        assert!(
            (1..=PORTS).contains(&port),
            "the switch has access ports 1 to {PORTS}"
        );
        crate::qemu::Cable::Vde {
            switch: self.control.clone(),
            port,
        }
    }
}

pub struct Bastion {
    pub process: Process,
}

impl Bastion {
    /// Boots systemd over Debian's tree, with `overlay` laid on top of it, and waits until it says that it serves.
    pub fn boot(lab: &Lab, switch: &Switch, overlay: &Path) -> Self {
        packaged("/usr/lib/uml/modules");
        let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab");
        let lower = [overlay, &kit.join("bastion"), &asset("root")]
            .map(|path| path.display().to_string())
            .join(":");
        let mut kernel = process::family("linux.uml");
        kernel.args("mem=768M rootfstype=hostfs root=/dev/root rootflags=/ ro quiet con=null con0=null,fd:1".split(' '));
        kernel.arg(format!("init={}", kit.join("uml-init").display()));
        kernel.arg(format!("lab.lower={lower}"));
        kernel.arg(format!(
            "eth1=vde,{},52:54:00:aa:01:07,{TRUNK}",
            switch.control.display()
        ));
        let process = lab.netns.start(&lab.timeline, "bastion", kernel);
        process.wait_for("bastion: serving", BOOT_LIMIT);
        Self { process }
    }
}
