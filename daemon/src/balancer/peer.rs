//! Whether the other end of a connection is still there.
//!
//! Ugly fact. Keepalive is silent while there is something to send, and TCP_USER_TIMEOUT, made for that, also ends the
//! connection of a peer that acknowledges every probe but reads nothing, as a paused `oc logs -f | less` does (Linux,
//! `tcp_probe_timer`). So we ask TCP ourselves what it heard of the two.

use std::io;
use std::time::Duration;

use socket2::{Socket, TcpKeepalive};

use crate::sys::{self, Peer};

/// A backend that lost power says nothing: half a minute, and its clients are told. A client may be on a bad network.
pub(super) const BACKEND_GONE: Duration = Duration::from_secs(30);
pub(super) const CLIENT_GONE: Duration = Duration::from_secs(90);
/// The same for a peer that had no room: Linux asks it ever more rarely, every two minutes at last (TCP_RTO_MAX).
const FULL_GONE: Duration = Duration::from_secs(300);

/// Has the kernel end a connection on which nothing is under way when its peer was silent for this long.
pub(super) fn keep_alive(socket: &Socket, patience: Duration) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(patience / 2)
        .with_interval(patience / 6)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// The peer of a socket is gone without a word.
pub(super) fn is_gone(socket: &Socket, patience: Duration) -> bool {
    sys::peer(socket).is_ok_and(|peer| gone(&peer, patience))
}

/// A peer has not answered for this long, and should have. One without room answers, too, when it is asked.
fn gone(peer: &Peer, patience: Duration) -> bool {
    let full = peer.unacknowledged == 0 || peer.window == 0;
    let patience = if full { FULL_GONE } else { patience };
    peer.unacknowledged.max(peer.unsent) > 0 && peer.silent > patience
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_silent_peer_is_gone_only_when_it_had_something_to_answer() {
        let is_gone = |unacknowledged, unsent, window, silent| {
            let silent = Duration::from_secs(silent);
            let peer = Peer {
                unacknowledged,
                unsent,
                window,
                silent,
            };
            gone(&peer, BACKEND_GONE)
        };
        assert!(!is_gone(0, 0, 65_535, 3600), "idle, which is keepalive's");
        assert!(!is_gone(3, 0, 65_535, 29), "on its way");
        assert!(is_gone(3, 0, 65_535, 31), "without power");
        assert!(
            !is_gone(0, 9000, 0, 121),
            "reads nothing, and is asked rarely"
        );
        assert!(
            !is_gone(3, 9000, 0, 121),
            "dropped what it had no memory for"
        );
        assert!(is_gone(0, 9000, 0, 301), "was paused, and lost power then");
    }

    #[test]
    fn a_peer_that_reads_nothing_is_known_by_its_window_and_answers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("bound");
        let writer = std::net::TcpStream::connect(at).expect("taken");
        let (_reader, _) = listener.accept().expect("one");
        writer.set_nonblocking(true).expect("a socket");
        while io::Write::write(&mut &writer, &[0; 65_536]).is_ok() {}
        let limit = Instant::now() + Duration::from_secs(10);
        let full = |peer: &Peer| peer.unacknowledged == 0 && peer.unsent > 0;
        let mut peer = sys::peer(&writer).expect("TCP");
        while !full(&peer) && Instant::now() < limit {
            std::thread::yield_now();
            peer = sys::peer(&writer).expect("TCP");
        }
        assert!(full(&peer), "{peer:?}");
        assert!(!gone(&peer, Duration::ZERO), "{peer:?}");
    }
}
