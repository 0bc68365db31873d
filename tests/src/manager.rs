//! A fake of systemd's half of a restart: it keeps listening sockets for a service, and hands them to the next process.
//!
//! The words between the two are sd_notify(3) with FDSTORE, and sd_listen_fds(3).

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::netns::Netns;
use crate::process::{self, Process};
use crate::timeline::Timeline;

pub struct Manager {
    notify: PathBuf,
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
}

impl Manager {
    /// One whose socket lies in a directory.
    pub fn new(directory: &Path) -> Self {
        let notify = directory.join("notify");
        let socket = UnixDatagram::bind(&notify).expect("the manager's socket");
        let kept = Arc::new(Mutex::new(BTreeMap::new()));
        let keeping = Arc::clone(&kept);
        std::thread::spawn(move || keep(&socket, &keeping));
        Self { notify, kept }
    }

    /// Keeps a socket as if a process had left it.
    pub fn leave(&self, name: &str, socket: OwnedFd) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(name.to_owned(), socket);
    }

    /// Starts a process with the sockets that the last one left.
    pub fn start(
        &self,
        netns: &Netns,
        timeline: &Timeline,
        name: &str,
        program: &[String],
    ) -> Process {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut script = String::from("export LISTEN_PID=$$; exec \"$@\"");
        let mut names = Vec::new();
        for (number, (name, socket)) in kept.iter().enumerate() {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor of ours");
            let raw = socket.as_raw_fd();
            // Out of the way of the numbers that they get, which may be those of others here.
            script.push_str(&format!(" {}<&{raw} {raw}<&-", number + 100));
            names.push(name.clone());
        }
        for number in 0..kept.len() {
            script.push_str(&format!(" {}<&{1} {1}<&-", number + 3, number + 100));
        }
        let mut command = process::command("bash");
        command
            .args(["-c", &script, "bash"])
            .args(program)
            .env("NOTIFY_SOCKET", &self.notify);
        if !names.is_empty() {
            command
                .env("LISTEN_FDS", names.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let process = netns.start(timeline, name, command);
        for socket in kept.values() {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a descriptor of ours");
        }
        process
    }
}

/// Takes the sockets it is given, and closes those it is told to.
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
