//! The daemon under test: the real `reveille` binary, in the namespace of a laboratory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Lab, until};
use crate::manager::Manager;
use crate::netns::Netns;
use crate::process::{self, Process};
use crate::timeline::Timeline;

/// The name under which the daemon speaks in a timeline.
pub const DAEMON: &str = "reveille";
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A site, its state and the daemon that serves it. Dropping it kills the daemon; the files stay until the laboratory goes.
pub struct Bastion<'a> {
    netns: &'a Netns,
    timeline: Timeline,
    pub site: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
    manager: Option<Manager>,
    daemon: Option<Process>,
}

impl<'a> Bastion<'a> {
    /// Makes a bastion of a site: a copy, so that a test may change it.
    pub fn new(lab: &'a Lab, site: &Path) -> Self {
        let copy = lab.path("site");
        copy_tree(site, &copy);
        let state = lab.path("state");
        fs::create_dir(&state).expect("a state directory");
        let socket = lab.path("control.sock");
        let timeline = lab.timeline.clone();
        Self {
            netns: &lab.netns,
            timeline,
            site: copy,
            state,
            socket,
            manager: None,
            daemon: None,
        }
    }

    /// With a service manager, which keeps the daemon's listening sockets from one process to the next.
    pub fn managed(mut self) -> Self {
        self.manager = Some(Manager::new(&self.state));
        self
    }

    /// Puts a file into the depot.
    pub fn import(&self, file: &Path, name: &str) {
        let [file, state] = [file, &self.state].map(|path| path.to_str().expect("paths are text"));
        self.netns.output(
            reveille(),
            &["image", "import", file, "--name", name, "--state", state],
        );
    }

    /// Starts the daemon and waits until it answers on its control socket.
    pub fn start(&mut self) {
        let [site, state, socket] = [&self.site, &self.state, &self.socket]
            .map(|path| path.to_str().expect("paths are text"));
        let program = [
            reveille(),
            "serve",
            "--site",
            site,
            "--state",
            state,
            "--socket",
            socket,
        ];
        let mut daemon = match &self.manager {
            Some(manager) => {
                let program = program.map(str::to_owned);
                manager.start(self.netns, &self.timeline, DAEMON, &program)
            }
            None => {
                let mut serve = process::command(program[0]);
                serve.args(&program[1..]);
                self.netns.start(&self.timeline, DAEMON, serve)
            }
        };
        // What the last one left is not an answer of this one.
        until("the daemon to answer", READY_LIMIT, || {
            if let Some(status) = daemon.ended() {
                panic!("{}\nthe daemon ended with {status}", self.timeline.told());
            }
            std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
        });
        self.daemon = Some(daemon);
    }

    /// Pulls the plug: SIGKILL, at once.
    pub fn kill(&mut self) -> ExitStatus {
        self.daemon.take().expect("the daemon runs").kill()
    }

    /// Asks the daemon to stop, as systemd does.
    pub fn stop(&mut self) -> ExitStatus {
        self.daemon
            .take()
            .expect("the daemon runs")
            .stop(Duration::from_secs(20))
    }

    pub fn signal(&self, signal: Signal) {
        self.daemon
            .as_ref()
            .expect("the daemon runs")
            .signal(signal);
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").pid()
    }

    /// The operator's side of the socket.
    pub fn operator(&self) -> Operator<'a> {
        Operator {
            netns: self.netns,
            timeline: self.timeline.clone(),
            socket: self.socket.clone(),
        }
    }

    /// Runs a client command that must go well and returns what it prints.
    pub fn client(&self, words: &[&str]) -> String {
        self.operator().must(words)
    }
}

/// Somebody who runs `reveille` commands against the daemon, whichever process that is at the moment.
pub struct Operator<'a> {
    netns: &'a Netns,
    timeline: Timeline,
    socket: PathBuf,
}

impl Operator<'_> {
    /// Runs a client command and returns what it prints.
    pub fn command(&self, words: &[&str]) -> Result<String, String> {
        let socket = self.socket.to_str().expect("paths are text");
        self.netns
            .try_output(reveille(), &[words, &["--socket", socket]].concat())
    }

    /// As `command`, for what must go well.
    ///
    /// # Panics
    /// With the story, when it does not.
    pub fn must(&self, words: &[&str]) -> String {
        self.command(words)
            .unwrap_or_else(|error| panic!("{}\n{error}", self.timeline.told()))
    }
}

/// The binary under test: `REVEILLE` names another one, else it is built with the profile of the tests.
pub fn reveille() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Ok(path) = std::env::var("REVEILLE") {
            return path;
        }
        // A test lies in target/PROFILE/deps.
        let test = std::env::current_exe().expect("a test knows its own path");
        let directory = test
            .ancestors()
            .nth(2)
            .expect("a test lies two directories down")
            .to_owned();
        let profile = directory
            .file_name()
            .and_then(|name| name.to_str())
            .expect("the profile's directory has a name");
        let profile = if profile == "debug" { "dev" } else { profile };
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--package",
            "daemon",
            "--package",
            "agents",
            "--bins",
            "--profile",
            profile,
        ]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo tells a test about its own package would make build scripts run again, and half the tree with them.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_")) {
            if !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name.as_str()) {
                build.env_remove(name);
            }
        }
        assert!(
            build.status().expect("cargo can be run").success(),
            "building the daemon failed"
        );
        directory
            .join("reveille")
            .to_str()
            .expect("paths are text")
            .to_owned()
    })
}

/// A site of `tests/sites`.
pub fn site(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("sites")
        .join(name)
}

/// Copies a directory of plain files.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory for the copy");
    for entry in
        fs::read_dir(from).unwrap_or_else(|error| panic!("reading {}: {error}", from.display()))
    {
        let entry = entry.expect("a directory entry");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().expect("an entry has a type") {
            kind if kind.is_dir() => copy_tree(&source, &target),
            kind if kind.is_symlink() => {
                symlink(fs::read_link(&source).expect("a link"), target).expect("a copied link")
            }
            _ => drop(fs::copy(&source, &target).expect("a copied file")),
        }
    }
}
