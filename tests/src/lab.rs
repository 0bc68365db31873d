//! A laboratory: one namespace with a bridge, a place for files, and the timeline of all that happens in it.
//!
//! The big files (kernel, initramfs images, root file system) are made once by `tests/lab/setup.sh` and found in its cache.

use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::netns::Netns;
use crate::timeline::Timeline;

/// The provisioning network of every laboratory; the bastion has its first address.
pub const BASTION: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
pub const PREFIX: u8 = 24;
/// The bridge that is the provisioning link of a flat laboratory.
pub const LINK: &str = "br0";

// Fields are dropped in this order: the processes of the namespace end before their files are removed.
pub struct Lab {
    pub netns: Netns,
    pub timeline: Timeline,
    pub scratch: TempDir,
}

impl Lab {
    /// A namespace with the bastion's end of a flat network and `taps` sockets for machines, `tap0` and up.
    pub fn flat(taps: usize) -> Self {
        let lab = Self::empty();
        lab.netns.bridge(LINK, BASTION, PREFIX);
        for tap in 0..taps {
            lab.netns.tap(&format!("tap{tap}"), LINK);
        }
        lab
    }

    /// A namespace without links.
    pub fn empty() -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("reveille-lab-")
            .tempdir()
            .expect("a scratch directory");
        Self {
            netns: Netns::new(),
            timeline: Timeline::default(),
            scratch,
        }
    }

    /// Waits until something on the bastion's address takes connections on this port.
    ///
    /// # Panics
    /// When nothing does within its limit.
    pub fn answers_tcp(&self, port: u16) {
        let connect = move || {
            TcpStream::connect_timeout(&(BASTION, port).into(), Duration::from_secs(1)).is_ok()
        };
        until(
            &format!("port {port} to answer"),
            Duration::from_secs(20),
            || self.netns.run(connect),
        );
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

/// Looks again and again, a hundred times a second, for what nobody announces.
///
/// # Panics
/// When it does not come within the limit.
pub fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file that `tests/lab/setup.sh` made.
///
/// # Panics
/// When it is not there, with the remedy.
pub fn asset(name: &str) -> PathBuf {
    let path = cache().join(name);
    assert!(
        path.exists(),
        "{} is missing: run tests/lab/setup.sh as root (`make test` does)",
        path.display()
    );
    path
}

/// A file that a Debian package brings.
///
/// # Panics
/// When it is not there, with the remedy.
pub fn packaged(path: &str) -> PathBuf {
    let path = PathBuf::from(path);
    assert!(
        path.exists(),
        "{} is missing: run tests/lab/setup.sh packages as root (`make test` does)",
        path.display()
    );
    path
}

fn cache() -> PathBuf {
    if let Some(path) = std::env::var_os("REVEILLE_LAB") {
        return path.into();
    }
    let home = || {
        PathBuf::from(std::env::var_os("HOME").expect("HOME names the home directory"))
            .join(".cache")
    };
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(home, PathBuf::from)
        .join("reveille-lab")
}
