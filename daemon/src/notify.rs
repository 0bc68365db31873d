//! What the daemon tells its service supervisor: ready, reloading, stopping, alive, and one line of
//! status. sd_notify(3): datagrams to the socket that `NOTIFY_SOCKET` names; without one, nothing is
//! sent. A lost notification is no reason to stop serving, so failures are a line in the log.

use std::time::Duration;

use sd_notify::NotifyState;

/// Every server listens.
pub fn ready(sentence: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(sentence)]);
}

/// The site is being read again. systemd 253 and later measure the reload from this moment and wait
/// for the next [`ready`]; the monotonic clock's value must be in the same datagram.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(moment) => send(&[NotifyState::Reloading, moment]),
        Err(error) => tracing::warn!(%error, "reading the monotonic clock for the supervisor"),
    }
}

/// Nothing new is answered from here on.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// The line that `systemctl status` shows.
pub fn status(sentence: &str) {
    send(&[NotifyState::Status(sentence)]);
}

/// Everything that must answer did.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is due, where the supervisor watches at all: half of its patience.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "telling the supervisor; its view of this daemon is stale");
    }
}
