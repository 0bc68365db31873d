//! Listening sockets that outlive this process: left with the service manager, which gives them to the next one.
//!
//! systemd keeps copies of descriptors for a service (sd_pid_notify_with_fds(3), `FDSTORE=1`) and passes them to its
//! next process like those of a socket unit (sd_listen_fds(3)). While nobody accepts, the kernel completes handshakes and
//! queues connections, so an upgrade or a crash refuses nobody. Without a service manager nothing is kept.
//!
//! Ugly facts. A stored descriptor keeps its port taken, so what is no longer wanted must be removed by name. Names are
//! one word without a colon.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use sd_notify::NotifyState;

use crate::sys;

/// The sockets that the last process left, by name.
#[derive(Debug, Default)]
pub struct Inheritance(BTreeMap<String, OwnedFd>);

impl Inheritance {
    /// Takes them over. Once in a process: the second time there are none.
    #[must_use]
    pub fn take() -> Self {
        let passed = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed.collect(),
            Err(error) => {
                tracing::warn!(%error, "the service manager passed sockets that cannot be read");
                Vec::new()
            }
        };
        Self(sys::adopt(passed).into_iter().collect())
    }

    /// The socket of a name, once.
    pub fn claim(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Closes what nobody claimed, here and with the service manager.
    pub fn renounce(&mut self) {
        for name in std::mem::take(&mut self.0).into_keys() {
            forget(&name);
        }
    }
}

/// Leaves a copy of a socket with the service manager, in place of an earlier one of that name.
pub fn keep(name: &str, socket: impl AsFd) {
    forget(name);
    let states = [NotifyState::FdStore, NotifyState::FdName(name)];
    if let Err(error) = sd_notify::notify_with_fds(&states, &[socket.as_fd()]) {
        tracing::warn!(%error, "leaving {name} with the service manager; a restart will refuse connections for a moment");
    }
}

/// Has the service manager close its copy.
pub fn forget(name: &str) {
    let states = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(%error, "taking {name} back from the service manager");
    }
}
