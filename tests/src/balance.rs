//! A balancer in a process of its own, with a service manager's half of a restart: it keeps listening sockets and hands
//! them to the next process, as systemd does (FDSTORE, LISTEN_FDS).
//!
//! The process is `src/bin/balance.rs`: the daemon's engine behind listeners from a file, where the daemon's come from its
//! clusters.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::balancer::ListenerStatus;
use netboot::endpoint::{Backend, Balance, Check, Listener, Place};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::lab::{Lab, until};
use crate::manager::Manager;
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
    manager: Manager,
    process: Option<Process>,
}

impl<'a> Balancer<'a> {
    /// `program` is the path of `src/bin/balance.rs` when built. Nothing runs yet.
    pub fn new(lab: &'a Lab, program: &'static str, engine: Engine) -> Self {
        let directory = lab.path("balancer");
        fs::create_dir(&directory).expect("a directory");
        let manager = Manager::new(&directory);
        Self {
            lab,
            engine,
            haproxy: None,
            program,
            directory,
            manager,
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
        let directory = self.directory.to_str().expect("paths are text").to_owned();
        let engine = format!("{:?}", self.engine).to_lowercase();
        let program = [self.program.to_owned(), directory, engine];
        let _ = fs::remove_file(self.directory.join("status"));
        let (netns, timeline) = (&self.lab.netns, &self.lab.timeline);
        self.process = Some(self.manager.start(netns, timeline, "balancer", &program));
        if self.engine == Engine::Haproxy && self.haproxy.is_none() {
            self.start_haproxy();
        }
    }

    /// Ends HAProxy and starts it again, as its unit does.
    pub fn restart_haproxy(&mut self) {
        self.haproxy.take().expect("it runs").kill();
        self.start_haproxy();
    }

    fn start_haproxy(&mut self) {
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

/// The file in which a process finds what is wanted, and the one into which it writes its status.
pub fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("wanted"), directory.join("status"))
}
