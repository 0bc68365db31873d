//! A bastion with a kernel of its own, and what lies on both its sides.
//!
//! The kernel that runs the tests may have no 8021q. So the bastion is a virtual machine: Debian's kernel, Debian's systemd, two
//! cards, and the daemon as its real unit. Nothing it writes outlives it.
//!
//! ```text
//!     outside                                        inside
//!     203.0.113.1, and the host 198.51.100.9         10.107.0.254, and the host 198.51.100.9
//!        | VLAN 203                                     | VLAN 107
//!        +----------------------- switch ---------------+------ machines
//!                 | 203            | 107 tagged
//!           eth0, 203.0.113.5     eth1        bastion
//! ```
//!
//! One far host, reachable by both gateways: no route by destination can answer both ways right.
//!
//! Ugly facts: user-mode Linux would be faster still, but Debian's has nftables without the families `inet` and `ip`. Without
//! `net.ifnames=0` udev renames the cards. The daemon's debug symbols would double the disk that carries it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::bastion::{copy_tree, reveille};
use crate::lab::{Lab, asset, packaged, until};
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::qemu::Cable;
use crate::switch::{Port, Switch};
use crate::timeline::Timeline;
use crate::wire;

/// The bastion on its public side.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
/// The public gateway.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The gateway on VLAN 107 that is not the bastion.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 254);
/// A host beyond both gateways.
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// The bastion's cards, and its VLAN's links with them.
const TRUNK_MAC: &str = "52:54:00:aa:01:07";
const PUBLIC_MAC: &str = "52:54:00:aa:02:03";
/// Ten times what two idle cores need from power-on to the first shell.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// One of the two gateways, with the far host behind it, and what it saw from its first moment on.
pub struct Gateway {
    pub netns: Netns,
    _cable: Process,
    capture: Capture,
}

impl Gateway {
    pub fn outside(lab: &Lab, switch: &Switch) -> Self {
        Self::plug_in(lab, switch, Port::Public(1), OUTSIDE, "52:54:00:aa:03:01")
    }

    pub fn inside(lab: &Lab, switch: &Switch) -> Self {
        Self::plug_in(lab, switch, Port::Inside(9), INSIDE, "52:54:00:aa:03:02")
    }

    fn plug_in(lab: &Lab, switch: &Switch, port: Port, address: Ipv4Addr, mac: &str) -> Self {
        let netns = Netns::new();
        let cable = switch.plug(lab, &netns, port, mac);
        netns.ip(&format!("addr add {address}/24 dev eth0"));
        netns.ip(&format!("addr add {FAR}/32 dev lo"));
        let capture = Capture::start(lab, &netns, &format!("{port:?}"));
        Self {
            netns,
            _cable: cable,
            capture,
        }
    }

    /// Every frame that came to its card, or left by it, until now; none is captured after.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.capture.end()
    }

    /// A connection from an address of this side; waits at most so long.
    pub fn connect(
        &self,
        from: Ipv4Addr,
        to: (Ipv4Addr, u16),
        limit: Duration,
    ) -> std::io::Result<TcpStream> {
        self.netns.run(move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((from, 0)).into())?;
            socket.connect_timeout(&SocketAddr::from(to).into(), limit)?;
            Ok(socket.into())
        })
    }
}

/// All that passes the card `eth0` of a namespace, strangers' frames included.
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    pub fn start(lab: &Lab, netns: &Netns, name: &str) -> Self {
        let file = lab.path(&format!("{name}.pcap"));
        let mut tcpdump = process::command("tcpdump");
        tcpdump.args("-i eth0 -Z root -B 16384 -w".split(' '));
        tcpdump.arg(&file);
        let name = format!("capture of {name}");
        let tcpdump = netns.start(&lab.timeline, &name, tcpdump);
        tcpdump.wait_for("listening on", COMMAND_LIMIT);
        Self { tcpdump, file }
    }

    /// Ends it, and gives what it saw.
    pub fn end(&mut self) -> Vec<Vec<u8>> {
        self.tcpdump.stop(COMMAND_LIMIT);
        self.tcpdump
            .wait_for("0 packets dropped by kernel", COMMAND_LIMIT);
        wire::frames(&self.file)
    }
}

/// The bastion's virtual machine. Its story is told when a test fails.
pub struct Host {
    timeline: Timeline,
    _process: Process,
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.timeline.told());
        }
    }
}

impl Host {
    /// Boots systemd over Debian's root, with `overlay` laid on top of it. The daemon is not started.
    pub fn boot(lab: &Lab, switch: &Switch, overlay: &Path) -> Self {
        let disk = lab.path("overlay.ext4");
        let megabytes = megabytes(overlay) * 5 / 4 + 16;
        packaged("/usr/sbin/mke2fs");
        let mut make = Command::new("/usr/sbin/mke2fs");
        make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]);
        let make = make.arg(overlay).arg(&disk).arg(format!("{megabytes}M"));
        let output = make.output().expect("mke2fs can be run");
        assert!(output.status.success(), "{output:?}");

        let mut qemu = process::command("qemu-system-x86_64");
        qemu.args(
            "-accel tcg,thread=multi -smp 1 -nodefaults -no-user-config -display none -no-reboot"
                .split(' '),
        );
        qemu.args("-machine q35 -cpu qemu64 -m 1024 -serial stdio".split(' '));
        qemu.arg("-kernel").arg(asset("vmlinuz"));
        qemu.arg("-initrd").arg(asset("bastion.img"));
        qemu.args([
            "-append",
            "console=ttyS0 quiet no_timer_check tsc=reliable panic=-1 net.ifnames=0 systemd.show_status=0",
        ]);
        for (name, file) in [
            ("root", asset("root.ext4")),
            ("overlay", disk),
            ("modules", asset("modules.ext4")),
        ] {
            let file = file.display();
            qemu.args([
                "-drive",
                &format!("if=none,id={name},format=raw,readonly=on,file={file}"),
            ]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive={name}")]);
        }
        for (port, mac) in [(Port::Public(2), PUBLIC_MAC), (Port::Trunk, TRUNK_MAC)] {
            let Cable::Vde { switch, port } = switch.cable(port) else {
                unreachable!("a switch has no taps");
            };
            let switch = switch.display();
            qemu.args([
                "-netdev",
                &format!("vde,id=p{port},sock={switch},port={port}"),
            ]);
            qemu.args([
                "-device",
                &format!("virtio-net-pci,netdev=p{port},mac={mac}"),
            ]);
        }
        let process = lab.netns.start(&lab.timeline, "bastion", qemu);
        Self {
            timeline: lab.timeline.clone(),
            _process: process,
        }
    }

    /// The administrator: a root shell over the public side, from this address of the gateway.
    pub fn shell(&self, outside: &Gateway, from: Ipv4Addr) -> Shell {
        let mut stream = None;
        until("the bastion's port 22", BOOT_LIMIT, || {
            stream = (outside.connect(from, (PUBLIC, 22), Duration::from_secs(1))).ok();
            stream.is_some()
        });
        let stream = stream.expect("there is one, or `until` panicked");
        stream
            .set_read_timeout(Some(COMMAND_LIMIT))
            .expect("a timeout can be set");
        let reader = BufReader::new(stream.try_clone().expect("a second handle"));
        Shell { stream, reader }
    }
}

/// A root shell on the bastion, over TCP.
pub struct Shell {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Shell {
    /// What a script prints, both ways, or that and its exit code.
    pub fn run(&mut self, script: &str) -> Result<String, String> {
        self.type_line(&format!(
            "{{ {script}\n}} </dev/null 2>&1; echo \"=end= $?\""
        ));
        let mut said = String::new();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(count) if count > 0 => {}
                end => panic!("the shell was lost in {script:?}: {end:?}\n{said}"),
            }
            // A program need not end its last line.
            let Some((last, code)) = line.split_once("=end= ") else {
                said += &line;
                continue;
            };
            said += last;
            return match code.trim() {
                "0" => Ok(said),
                code => Err(format!("{script}: exit code {code}\n{said}")),
            };
        }
    }

    /// What a script prints that must go well.
    pub fn must(&mut self, script: &str) -> String {
        self.run(script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Becomes this command; its lines come with the moments at which they were heard, until it ends or the receiver is dropped.
    pub fn follow(mut self, command: &str) -> Receiver<(Instant, String)> {
        self.type_line(&format!("exec {command}"));
        self.stream
            .set_read_timeout(None)
            .expect("a timeout can be taken away");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in self.reader.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        lines
    }

    fn type_line(&mut self, line: &str) {
        (self.stream.write_all(format!("{line}\n").as_bytes())).expect("the shell takes a line");
    }
}

/// What `make install` and an administrator put on a bastion: the daemon, a site, its images, and files of this directory's
/// `lab`, each laid over the ones before.
pub fn installed(lab: &Lab, site: &Path, kits: &[&str]) -> PathBuf {
    let overlay = lab.path("overlay");
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for kit in kits {
        copy_tree(&crate_root.join("lab").join(kit), &overlay);
    }
    let binaries = Path::new(reveille())
        .parent()
        .expect("a binary lies in a directory");
    let mut make = Command::new("make");
    make.current_dir(crate_root.parent().expect("the workspace lies above"))
        .args(["--silent", "install", "prefix=/usr"])
        .arg(format!("DESTDIR={}", overlay.display()))
        .arg(format!("built={}", binaries.display()));
    run(&mut make);
    run(Command::new("strip")
        .arg(overlay.join("usr/bin/reveille"))
        .arg(overlay.join("usr/lib/reveille/reveille-agent")));
    copy_tree(site, &overlay.join("etc/reveille"));
    let state = overlay.join("var/lib/reveille").display().to_string();
    fs::create_dir_all(&state).expect("a state directory");
    for name in ["vmlinuz", "base.img", "ignition.img"] {
        let file = asset(name).display().to_string();
        let words = ["image", "import", &file, "--name", name, "--state", &state];
        run(Command::new(reveille()).args(words));
    }
    overlay
}

fn run(command: &mut Command) {
    let status = command.status().expect("the command can be run");
    assert!(status.success(), "{command:?}: {status}");
}

fn megabytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("a readable directory");
    let sizes = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("an entry's size");
        if metadata.is_dir() {
            megabytes(&entry.path())
        } else {
            metadata.len() >> 20
        }
    });
    // Small files count for something, too.
    sizes.sum::<u64>() + 1
}
