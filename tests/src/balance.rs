//! A balancer in a process of its own, with a service manager's half of a restart: it keeps listening sockets and hands
//! them to the next process, as systemd does (FDSTORE, LISTEN_FDS).
//!
//! The process is `src/bin/balance.rs`: the daemon's engine behind listeners from a file, where the daemon's come from its
//! clusters. The manager here is a fake of systemd's; the words between the two are sd_notify(3) and sd_listen_fds(3).

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::balancer::ListenerStatus;
use netboot::endpoint::{Backend, Balance, Check, Listener, Place};
use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};

use crate::lab::{Lab, until};
use crate::process::{self, Process};

const LIMIT: Duration = Duration::from_secs(20);

/// One listener, as the process reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub name: String,
    pub port: u16,
    pub private: bool,
    /// Links and addresses.
    pub places: Vec<(String, Ipv4Addr)>,
    /// Machines, addresses, and whether they are spares.
    pub backends: Vec<(String, SocketAddrV4, bool)>,
    pub source_hash: bool,
    pub proxy_protocol: bool,
}

impl Wanted {
    /// The same for the balancer. Checks are quick, because tests wait for them.
    pub fn listener(&self) -> Listener {
        let place = |(link, address): &(String, Ipv4Addr)| Place {
            link: link.parse().expect("a link's name"),
            address: *address,
        };
        let backend = |(node, address, spare): &(String, SocketAddrV4, bool)| Backend {
            node: node.parse().expect("a machine's name"),
            address: *address,
            spare: *spare,
        };
        Listener {
            cluster: "lab".to_owned(),
            name: self.name.clone(),
            port: self.port,
            private: self.private,
            places: self.places.iter().map(place).collect(),
            backends: self.backends.iter().map(backend).collect(),
            check: Check {
                interval: 500,
                ..Check::tcp()
            },
            balance: match self.source_hash {
                true => Balance::SourceHash,
                false => Balance::LeastConnections,
            },
            proxy_protocol: self.proxy_protocol,
        }
    }
}

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Embedded,
    /// The program, which runs beside the balancer as its unit would run it.
    Haproxy,
}

/// A balancer's process and what outlives it.
pub struct Balancer<'a> {
    lab: &'a Lab,
    engine: Engine,
    haproxy: Option<Process>,
    program: &'static str,
    directory: PathBuf,
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    process: Option<Process>,
}

impl<'a> Balancer<'a> {
    /// `program` is the path of `src/bin/balance.rs` when built. Nothing runs yet.
    pub fn new(lab: &'a Lab, program: &'static str, engine: Engine) -> Self {
        let directory = lab.path("balancer");
        fs::create_dir(&directory).expect("a directory");
        let socket = UnixDatagram::bind(directory.join("notify")).expect("the manager's socket");
        let kept = Arc::new(Mutex::new(BTreeMap::new()));
        let keeping = Arc::clone(&kept);
        std::thread::spawn(move || keep(&socket, &keeping));
        Self {
            lab,
            engine,
            haproxy: None,
            program,
            directory,
            kept,
            process: None,
        }
    }

    /// Says what is wanted from now on; a process that runs is told.
    pub fn want(&self, wanted: &[Wanted]) {
        let text = serde_json::to_string(wanted).expect("plain data");
        let beside = self.directory.join("wanted.new");
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.directory.join("wanted")).expect("renamed");
        if let Some(process) = &self.process {
            process.signal(Signal::SIGHUP);
        }
    }

    /// Starts a process with the sockets that the last one left.
    pub fn start(&mut self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut script = String::from("export LISTEN_PID=$$; exec \"$@\"");
        let mut names = Vec::new();
        for (number, (name, socket)) in kept.iter().enumerate() {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor of ours");
            let raw = socket.as_raw_fd();
            script.push_str(&format!(" {}<&{raw} {raw}<&-", number + 3));
            names.push(name.clone());
        }
        let mut command = process::command("bash");
        command
            .args(["-c", &script, "bash", self.program])
            .arg(&self.directory)
            .arg(format!("{:?}", self.engine).to_lowercase())
            .env("NOTIFY_SOCKET", self.directory.join("notify"));
        if !names.is_empty() {
            command
                .env("LISTEN_FDS", names.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let _ = fs::remove_file(self.directory.join("status"));
        self.process = Some(
            self.lab
                .netns
                .start(&self.lab.timeline, "balancer", command),
        );
        for socket in kept.values() {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a descriptor of ours");
        }
        if self.engine == Engine::Haproxy && self.haproxy.is_none() {
            let configuration = self.directory.join("haproxy.cfg");
            until("a configuration", LIMIT, || configuration.exists());
            let mut command = process::family("haproxy");
            command
                .args(["-W", "-db", "-S"])
                .arg(self.directory.join("master.sock"));
            command.arg("-f").arg(configuration);
            let haproxy = self.lab.netns.start(&self.lab.timeline, "haproxy", command);
            self.haproxy = Some(haproxy);
        }
    }

    /// Asks it to stop, as the manager does, and waits until it did.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        assert!(
            process.stop(LIMIT).success(),
            "{}",
            self.lab.timeline.told()
        );
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// What it says of itself.
    pub fn status(&self) -> Vec<ListenerStatus> {
        let text = fs::read_to_string(self.directory.join("status")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Waits until what it says of itself is as it should be.
    pub fn until(&self, what: &str, is_so: impl Fn(&[ListenerStatus]) -> bool) {
        until(what, LIMIT, || is_so(&self.status()));
    }

    /// Waits until these machines, and no others, are behind a port and up.
    pub fn until_up(&self, port: u16, nodes: &[&str]) {
        self.until(&format!("{nodes:?} to be up behind {port}"), |listeners| {
            listeners.iter().any(|listener| {
                let there = listener.backends.iter().filter(|b| b.health != "leaving");
                let up: Vec<&str> = there
                    .clone()
                    .filter(|b| b.health == "up")
                    .map(|b| b.node.as_str())
                    .collect();
                listener.port == port && up == nodes && there.count() == nodes.len()
            })
        });
    }
}

/// The manager: takes the sockets it is given, and closes those it is told to.
fn keep(socket: &UnixDatagram, kept: &Mutex<BTreeMap<String, OwnedFd>>) {
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!([i32; 8]);
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)
        else {
            return;
        };
        let mut passed = Vec::new();
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                #[allow(unsafe_code)]
                // SAFETY: the kernel made these descriptors for this message, and nobody else knows them.
                passed.extend(
                    numbers
                        .into_iter()
                        .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
                );
            }
        }
        let length = message.bytes;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let word = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let Some(name) = word("FDNAME=") else {
            continue;
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if word("FDSTOREREMOVE=").is_some() {
            kept.remove(name);
        } else if let Some(socket) = passed.pop() {
            kept.insert(name.to_owned(), socket);
        }
    }
}

/// The file in which a process finds what is wanted, and the one into which it writes its status.
pub fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("wanted"), directory.join("status"))
}
