//! Two network namespaces, one cable and two cores: the server lives on one side, the load on the other.
//!
//! Touches: namespaces, processes and control groups of its own.
//!
//! ```text
//!   core 0                                core 1
//!   10.77.0.1/16 prov0 ───── veth ─────── load0 10.77.0.2/16
//! ```
//!
//! A server runs in a control group: its CPU is that of all its processes, those included that have ended and that
//! nobody waited for. The kernel's half of a packet over veth is done, and charged, on the sender's core: every
//! server has the same share of it.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tests::netns::Netns;
use tests::process;

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const SERVER_LINK: &str = "prov0";

pub(crate) struct Lab {
    server: Netns,
    load: Netns,
    scratch: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let (server, load) = (Netns::new(), Netns::new());
        server.cable(SERVER_LINK, &load, "load0");
        server.ip(&format!("address add {SERVER}/16 dev {SERVER_LINK}"));
        load.ip(&format!("address add {CLIENT}/16 dev load0"));
        // Who closes first keeps the port for a minute; a load of new connections would run out of them.
        load.sysctl("ipv4/tcp_tw_reuse", "1");
        load.sysctl("ipv4/ip_local_port_range", "1024 65535");
        // Processes inherit the core of the namespace's thread.
        server.run(|| pin(0))?;
        load.run(|| pin(1))?;
        let scratch = tempfile::Builder::new()
            .prefix("reveille-bench-")
            .tempdir()
            .context("making the bench's scratch directory")?;
        Ok(Self {
            server,
            load,
            scratch,
        })
    }

    /// An empty directory that lives as long as the lab, or until it is asked for again.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        // A peer's name is said with spaces and commas, which not every configuration file can quote.
        let directory = self
            .scratch
            .path()
            .join(name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"));
        if directory.exists() {
            fs::remove_dir_all(&directory).context("emptying a scratch directory")?;
        }
        fs::create_dir_all(&directory).context("making a scratch directory")?;
        Ok(directory)
    }

    /// Starts `command` on the server's side; what it prints goes to `log`.
    pub(crate) fn serve(&self, command: &Command, log: &Path) -> Result<Server> {
        let group = Group::new()?;
        let output = File::create(log).context("creating a server's log")?;
        // The shell waits until it has been put into its group, and then becomes the server.
        let mut shell = process::command("sh");
        shell.args(["-c", "read -r _ && exec \"$@\"", "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut child = self
            .server
            .run(move || shell.spawn())
            .context("starting a server")?;
        group.take(child.id())?;
        let started = Instant::now();
        let mut stdin = child
            .stdin
            .take()
            .context("a server's standard input is a pipe")?;
        stdin.write_all(b"go\n").context("letting a server go")?;
        Ok(Server {
            child,
            group,
            started,
            log: log.to_owned(),
        })
    }

    /// Runs `load` on the load's side.
    pub(crate) fn load<T: Send + 'static>(
        &self,
        load: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.load.run(load)
    }

    /// What a program prints that makes the load by itself.
    pub(crate) fn load_output(&self, program: &str, arguments: &[&str]) -> String {
        self.load.output(program, arguments)
    }
}

fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("pinning to a core: the bench needs two")
}

/// A server under test; it and all its children are gone when it is dropped.
pub(crate) struct Server {
    child: Child,
    group: Group,
    started: Instant,
    log: PathBuf,
}

impl Server {
    /// Fails with the end of the server's log when it is no longer running.
    pub(crate) fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("asking after a server")? {
            bail!(
                "the server ended with {status}; its log ends: {}",
                self.last_words()
            );
        }
        Ok(())
    }

    /// Asks `ready` until it says yes, and returns how long after the start that was.
    pub(crate) fn wait(&mut self, mut ready: impl FnMut() -> Result<bool>) -> Result<Duration> {
        while self.started.elapsed() < Duration::from_secs(30) {
            if ready()? {
                return Ok(self.started.elapsed());
            }
            self.alive()?;
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!(
            "the server was not ready after 30 s; its log ends: {}",
            self.last_words()
        );
    }

    pub(crate) fn meter(&self) -> Meter {
        self.group.meter.clone()
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(1500)..]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A second to say goodbye in, because a store may want to be closed.
        let leader = Pid::from_raw(self.child.id() as i32);
        let _ = killpg(leader, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline && !matches!(self.child.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::write(self.group.path.join("cgroup.kill"), "1");
        let _ = self.child.wait();
    }
}

/// A control group (version 2) of one server.
struct Group {
    path: PathBuf,
    meter: Meter,
}

impl Group {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let point = words.nth(1)?;
            (words.next()? == "cgroup2").then_some(point)
        });
        let mount =
            mount.context("there is no cgroup2 file system: mount one on /sys/fs/cgroup")?;
        let path = Path::new(mount).join(format!("reveille-bench-{}", std::process::id()));
        fs::create_dir(&path)
            .with_context(|| format!("making the control group {}", path.display()))?;
        let open = |name| File::open(path.join(name)).map(Arc::new);
        let meter = Meter {
            cpu: open("cpu.stat")?,
            processes: open("cgroup.procs")?,
        };
        Ok(Self { path, meter })
    }

    fn take(&self, process: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), process.to_string())
            .context("moving a server into its control group")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel lets go of killed processes a moment after they were waited for.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads what a server has used; its files are open because the load's side cannot see the control groups.
#[derive(Clone)]
pub(crate) struct Meter {
    cpu: Arc<File>,
    processes: Arc<File>,
}

impl Meter {
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let text = text(&self.cpu).context("reading a server's CPU")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        let micros = line
            .and_then(|line| line.parse().ok())
            .context("cpu.stat has no usage_usec")?;
        Ok(Duration::from_micros(micros))
    }

    /// Resident memory in MiB, the sum over the server's processes.
    pub(crate) fn resident(&self) -> Result<f64> {
        let processes = text(&self.processes).context("listing a server's processes")?;
        let mut kib = 0.0;
        for process in processes.lines() {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
            kib += value
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(0.0);
        }
        Ok(kib / 1024.0)
    }
}

fn text(file: &File) -> std::io::Result<String> {
    let mut buffer = [0; 8192];
    let length = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
