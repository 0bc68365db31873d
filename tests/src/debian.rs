//! A Debian tree inside a namespace, with the programs that would manage a machine's network laid over it.
//!
//! They are the real ones, never installed on the machine that runs the tests. What they write goes to a tmpfs, `/sys` and `/proc` are the
//! namespace's, and everything is gone with the namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::lab::asset;
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::timeline::Timeline;

/// Where the tree is mounted; the namespace has `/mnt` to itself.
pub const ROOT: &str = "/mnt/debian";

pub struct Debian<'a> {
    pub netns: &'a Netns,
}

impl<'a> Debian<'a> {
    /// Mounts the tree.
    ///
    /// # Panics
    /// When the laboratory was not set up, with the remedy.
    pub fn over(netns: &'a Netns) -> Self {
        let lower = [asset("managers"), asset("root")].map(|path| path.display().to_string());
        netns.run(move || mounted(&lower.join(":")).unwrap_or_else(|error| panic!("{error}")));
        Self { netns }
    }

    /// Writes a file of the tree, by its absolute path there.
    pub fn write(&self, path: &str, mode: u32, text: &str) {
        let path = PathBuf::from(format!("{ROOT}{path}"));
        let text = text.to_owned();
        self.netns.run(move || {
            use std::os::unix::fs::PermissionsExt;
            let parent = path.parent().expect("an absolute path has a parent");
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, text))
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
        });
    }

    /// Reads a file of the tree.
    pub fn read(&self, path: &str) -> String {
        let path = format!("{ROOT}{path}");
        self.netns.run(move || {
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {path}: {error}"))
        })
    }

    /// A program of the tree, to be started by the namespace; it dies with it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::command("chroot");
        command.args([ROOT, program]);
        command.env("PATH", "/usr/sbin:/usr/bin").env("LC_ALL", "C");
        command
    }

    /// systemd-networkd, on the files the tree has.
    pub fn networkd(&self, timeline: &Timeline) -> Process {
        let netif = "mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases \
                     /run/systemd/netif/lldp && chown -R systemd-network: /run/systemd/netif";
        self.output("sh", &["-c", netif]);
        let command = self.command("/lib/systemd/systemd-networkd");
        self.netns.start(timeline, "networkd", command)
    }

    /// NetworkManager on the files the tree has, and the bus it speaks over.
    pub fn network_manager(&self, timeline: &Timeline) -> [Process; 2] {
        let config = "[main]\nplugins=keyfile\ndns=none\nauth-polkit=false\n";
        self.write("/etc/NetworkManager/conf.d/lab.conf", 0o644, config);
        let bus = self.bus(timeline);
        let mut manager = self.command("NetworkManager");
        manager.arg("--no-daemon");
        let manager = self.netns.start(timeline, "NetworkManager", manager);
        [manager, bus]
    }

    /// systemd-resolved asking one server for everything, and the bus that `resolvectl` asks it over.
    pub fn resolved(&self, timeline: &Timeline, server: &str) -> [Process; 2] {
        let config = format!("[Resolve]\nDNS={server}\nDomains=~.\nLLMNR=no\nMulticastDNS=no\n");
        self.write("/etc/systemd/resolved.conf", 0o644, &config);
        // The user that it becomes.
        self.output("systemd-sysusers", &[]);
        self.output(
            "sh",
            &[
                "-c",
                "mkdir -p /run/systemd/resolve && chown systemd-resolve: /run/systemd/resolve",
            ],
        );
        let bus = self.bus(timeline);
        let command = self.command("/lib/systemd/systemd-resolved");
        [self.netns.start(timeline, "resolved", command), bus]
    }

    fn bus(&self, timeline: &Timeline) -> Process {
        self.output("mkdir", &["-p", "/run/dbus"]);
        let mut bus = self.command("dbus-daemon");
        bus.args(["--system", "--nofork", "--nopidfile", "--print-address"]);
        let bus = self.netns.start(timeline, "bus", bus);
        bus.wait_for("unix:path=", Duration::from_secs(10));
        bus
    }

    /// Runs a program of the tree to its end: everything it printed, and whether it went well.
    pub fn try_output(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<&str> = [ROOT, program].iter().chain(arguments).copied().collect();
        self.netns.try_output("chroot", &arguments)
    }

    /// What a program of the tree prints that must go well.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        self.try_output(program, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

fn mounted(lower: &str) -> Result<(), String> {
    let at = |what: &str| format!("{ROOT}{what}");
    let nothing = None::<&Path>;
    let put = |source: &str, target: String, flags, data: Option<&str>| {
        mount(Some(source), target.as_str(), Some(source), flags, data)
            .map_err(|error| format!("mounting {source} on {target}: {error}"))
    };
    for directory in ["/mnt/upper", "/mnt/work", ROOT] {
        fs::create_dir(directory).map_err(|error| format!("making {directory}: {error}"))?;
    }
    let data = format!("lowerdir={lower},upperdir=/mnt/upper,workdir=/mnt/work");
    put("overlay", ROOT.to_owned(), MsFlags::empty(), Some(&data))?;
    put("proc", at("/proc"), MsFlags::empty(), None)?;
    // A writable /sys would make networkd wait for a udev that isn't there.
    put("sysfs", at("/sys"), MsFlags::MS_RDONLY, None)?;
    put("tmpfs", at("/run"), MsFlags::empty(), None)?;
    let dev = at("/dev");
    mount(
        Some("/dev"),
        dev.as_str(),
        nothing,
        MsFlags::MS_BIND,
        nothing,
    )
    .map_err(|error| format!("mounting /dev: {error}"))
}
