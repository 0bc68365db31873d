//! A network namespace of a test's own, with its own mounts and host name. Needs root.
//!
//! The namespace has no name in the file system: it is held by one thread, everything a test does in it is done by that
//! thread, and it is gone when the thread is, whatever way the test ends. Sockets made by the thread belong to the
//! namespace wherever they are used later; children spawned by it live in the namespace and die with the thread.
//!
//! Its mounts are private: `/sys` shows the namespace's own links, and `/etc/resolv.conf` is a copy, because the scripts of
//! real DHCP clients rewrite it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::process::{self, Process, said};
use crate::timeline::Timeline;

type Task = Box<dyn FnOnce() + Send>;

pub struct Netns {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Netns {
    /// A namespace with nothing but its loopback, up.
    ///
    /// # Panics
    /// Without root, with the remedy.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run `make test` as root"
        );
        let (tasks, inbox) = channel::<Task>();
        let (ready, is_ready) = channel();
        let thread = std::thread::spawn(move || {
            let _ = ready.send(move_in());
            for task in inbox {
                task();
            }
        });
        let moved = is_ready.recv().expect("the thread of a namespace starts");
        moved.unwrap_or_else(|error| panic!("making a network namespace: {error}"));
        let netns = Self {
            tasks: Some(tasks),
            thread: Some(thread),
        };
        netns.ip("link set lo up");
        netns
    }

    /// Does `work` inside the namespace and returns what it made: a socket, a child, an answer. One at a time.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, answer) = channel();
        let task: Task = Box::new(move || {
            let _ = sender.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        });
        self.tasks
            .as_ref()
            .expect("a living namespace has its inbox")
            .send(task)
            .expect("its thread lives");
        match answer.recv().expect("its thread answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a process made by `process::command` or `process::family` inside the namespace.
    pub fn start(&self, timeline: &Timeline, name: &str, command: Command) -> Process {
        let (timeline, name) = (timeline.clone(), name.to_owned());
        self.run(move || Process::start(&timeline, &name, command))
    }

    /// Runs a command to its end inside the namespace: whether it went well, and everything it printed.
    pub fn try_output(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = process::command(program);
        command.args(arguments);
        self.run(move || {
            let output = command
                .output()
                .map_err(|error| format!("{}: {error}", said(&command)))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() {
                Ok(text(&output.stdout))
            } else {
                Err(format!(
                    "{}: {}\n{}{}",
                    said(&command),
                    output.status,
                    text(&output.stdout),
                    text(&output.stderr)
                ))
            }
        })
    }

    /// What a command prints that must go well.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        self.try_output(program, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// `ip` with these words, inside the namespace.
    pub fn ip(&self, words: &str) -> String {
        self.output("ip", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// Writes a network sysctl of the namespace, by its path below `/proc/sys/net`.
    pub fn sysctl(&self, path: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{path}"), value.to_owned());
        self.run(move || {
            fs::write(&path, value).unwrap_or_else(|error| panic!("writing {path}: {error}"))
        });
    }

    /// Connections to a TCP port of the namespace that the kernel holds: also those that no server took yet, and not
    /// those that its server ended.
    pub fn tcp_connections(&self, port: u16) -> usize {
        // proc_net_tcp.txt of the kernel's documentation: established, SYN received, and ended by the peer alone.
        const OPEN: [&str; 3] = ["01", "03", "08"];
        let table = self.run(|| fs::read_to_string("/proc/thread-self/net/tcp").expect("a table"));
        let port = format!(":{port:04X}");
        let rows = table.lines().skip(1);
        let rows = rows.map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[1].ends_with(&port) && OPEN.contains(&row[3]))
            .count()
    }

    /// A bridge that forwards from its first moment, with an address.
    pub fn bridge(&self, name: &str, address: Ipv4Addr, prefix: u8) {
        self.ip(&format!(
            "link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        ));
        self.sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
        self.ip(&format!("addr add {address}/{prefix} dev {name}"));
        self.ip(&format!("link set {name} up"));
    }

    /// A tap on a bridge: the socket a virtual machine's cable is put into.
    pub fn tap(&self, name: &str, bridge: &str) {
        self.ip(&format!("tuntap add {name} mode tap"));
        self.sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
        self.ip(&format!("link set {name} master {bridge} up"));
    }

    /// Two ends of a cable: `here` in this namespace, `there` in the other one; both up.
    pub fn cable(&self, here: &str, other: &Self, there: &str) {
        let thread = other.run(|| format!("{}", nix::unistd::gettid()));
        // `ip` takes a pid; a thread's id serves as well, and only that thread is in the namespace.
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {thread}"
        ));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.tasks.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn move_in() -> Result<(), String> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    unshare(flags).map_err(|error| format!("unshare: {error}"))?;
    let nothing = None::<&Path>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)
        .map_err(|error| format!("making mounts private: {error}"))?;
    // A sysfs shows the links of the namespace it was mounted from.
    mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::MS_RDONLY,
        nothing,
    )
    .map_err(|error| format!("mounting /sys: {error}"))?;
    mount(
        Some("tmpfs"),
        "/mnt",
        Some("tmpfs"),
        MsFlags::empty(),
        nothing,
    )
    .map_err(|error| format!("mounting /mnt: {error}"))?;
    let resolver = fs::read("/etc/resolv.conf").unwrap_or_default();
    fs::write("/mnt/resolv.conf", resolver)
        .map_err(|error| format!("copying resolv.conf: {error}"))?;
    if Path::new("/etc/resolv.conf").exists() {
        mount(
            Some("/mnt/resolv.conf"),
            "/etc/resolv.conf",
            nothing,
            MsFlags::MS_BIND,
            nothing,
        )
        .map_err(|error| format!("covering resolv.conf: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn two_namespaces_on_one_cable_hear_each_other_and_nobody_else() {
        let (left, right) = (Netns::new(), Netns::new());
        left.cable("eth0", &right, "eth0");
        left.ip("addr add 10.107.0.1/24 dev eth0");
        right.ip("addr add 10.107.0.2/24 dev eth0");
        let listening = right.run(|| UdpSocket::bind("10.107.0.2:69").unwrap());
        listening
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let speaking = left.run(|| UdpSocket::bind("10.107.0.1:0").unwrap());
        speaking.send_to(b"hello", "10.107.0.2:69").unwrap();
        let mut heard = [0; 16];
        let (length, from) = listening.recv_from(&mut heard).unwrap();
        assert_eq!(
            (&heard[..length], from.ip().to_string().as_str()),
            (&b"hello"[..], "10.107.0.1")
        );
        assert!(
            UdpSocket::bind("10.107.0.1:0").is_err(),
            "the address is not the machine's own"
        );
    }

    #[test]
    fn a_namespace_shows_its_own_links_and_keeps_the_resolver_to_itself() {
        let netns = Netns::new();
        let before = fs::read("/etc/resolv.conf").ok();
        netns.run(|| {
            let links: Vec<_> = fs::read_dir("/sys/class/net")
                .unwrap()
                .map(|link| link.unwrap().file_name())
                .collect();
            assert_eq!(links, ["lo"]);
            fs::write("/etc/resolv.conf", "nameserver 192.0.2.1\n").unwrap();
        });
        assert_eq!(fs::read("/etc/resolv.conf").ok(), before);
    }
}
