//! Configs with secrets on their way out: one at a time for each machine, until its TCP has acknowledged all of it.
//!
//! What may leave is decided in `netboot::delivery`; here is the reading of the socket's queue, which proves that it arrived.
//!
//! Ugly fact: nothing tells when a queue has drained, so it is looked at, in pauses that grow. On a healthy wire the first or
//! second look is the last.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netboot::attempt::Fact;
use netboot::delivery::UnderWay;
use netboot::event::{Event, Outcome};
use netboot::net::{Digest, NodeName};
use netboot::release::Asker;
use netboot::spec::Profile;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::boot::{Asked, unexpected};
use super::{Method, Origin, Refusal, Reply, Server, Wire};
use crate::controller::now;
use crate::sys;

/// How long the last bytes may be on their way.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(30);
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// The deliveries that run now.
#[derive(Debug, Default)]
pub(super) struct Desk(Arc<Mutex<UnderWay>>);

impl Desk {
    /// A place for one delivery; `None` while another of the same attempt runs.
    pub(super) fn begin(&self, node: &NodeName, attempt: u32) -> Option<Ticket> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.begin(node, attempt).then(|| Ticket {
            desk: Arc::clone(&self.0),
            node: node.clone(),
            attempt,
        })
    }
}

/// One delivery's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    desk: Arc<Mutex<UnderWay>>,
    node: NodeName,
    attempt: u32,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut under_way = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.end(&self.node, self.attempt);
    }
}

/// A delivery whose bytes a reply bears.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) ticket: Ticket,
    pub(super) document: String,
    /// Which of the attempt's, from 1.
    pub(super) number: u8,
}

impl Server {
    /// Whether the config behind a token holds secrets.
    pub(super) fn holds_secrets(&self, token: &Digest) -> bool {
        let site = self.controller.snapshot().load();
        let profile = site.profile_of_token(token);
        profile.is_some_and(Profile::holds_secrets)
    }

    /// Answers who asks for a config with secrets. That it begins to leave is on disk before it does; whoever only asks for
    /// its size uses nothing up.
    pub(super) async fn secret(
        &self,
        asked: &Asked<'_>,
        asker: Asker,
        method: Method,
    ) -> Result<Reply, Refusal> {
        let may = self.controller.snapshot().load().may_deliver(&asker, now());
        let prepared = match may {
            Ok((release, _)) => {
                // A config that doesn't render is not counted as one that left.
                let reply = self.document(asked, &release)?;
                if method == Method::Head {
                    return Ok(reply);
                }
                let ticket = self.deliveries.begin(&release.node.name, release.attempt);
                Some((reply, ticket.ok_or(Refusal::ConfigUnderWay)?))
            }
            // That it is asked for once more goes on record.
            Err(withheld) if withheld.spent().is_some() && method == Method::Get => None,
            Err(withheld) => return Err(self.withhold(asked, &withheld)),
        };
        match (self.apply(Event::SecretAsked(asker)).await?, prepared) {
            (Outcome::Secret(Ok((release, number))), Some((mut reply, ticket)))
                if ticket.attempt == release.attempt =>
            {
                self.note_config(asked, Some(release.attempt), None);
                reply.delivery = Some(Delivery {
                    ticket,
                    document: asked.file.to_owned(),
                    number,
                });
                Ok(reply)
            }
            (Outcome::Secret(Err(withheld)), _) => Err(self.withhold(asked, &withheld)),
            // It was started anew in between.
            (Outcome::Secret(Ok(_)), _) => Err(Refusal::ConfigUnderWay),
            (other, _) => unexpected(&other),
        }
    }

    /// Ends a delivery whose reply was `sent`, or was not.
    pub(super) async fn settle(
        &self,
        origin: &Origin,
        wire: &Wire,
        delivery: Delivery,
        sent: bool,
    ) {
        let Delivery {
            ticket,
            document,
            number,
        } = delivery;
        let acknowledged = sent && acknowledged(socket(wire), ACKNOWLEDGED_WITHIN).await;
        let (node, attempt) = (ticket.node.clone(), ticket.attempt);
        let fact = Fact::Delivery {
            document: document.into(),
            attempt,
            number,
            acknowledged,
        };
        self.note(origin, fact);
        if !acknowledged {
            tracing::warn!(%node, attempt, number, "a config with secrets was sent and not acknowledged");
            return;
        }
        let event = Event::Delivered { node, attempt };
        if self.apply(event).await.is_err() {
            // Until it is on disk the place stays taken, so that nothing is delivered twice.
            std::mem::forget(ticket);
        }
    }
}

fn socket(wire: &Wire) -> &TcpStream {
    match wire {
        Wire::Left(stream) => stream,
        Wire::Right(stream) => stream.get_ref().0,
    }
}

/// True once the peer's TCP has acknowledged all that was written; false when it broke off, or `within` is over.
async fn acknowledged(socket: &TcpStream, within: Duration) -> bool {
    let [mut pause, longest] = PAUSES;
    let drained = async {
        loop {
            match sys::unacknowledged(socket) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
            // A reset leaves the queue as it was, for ever.
            if !matches!(SockRef::from(socket).take_error(), Ok(None)) {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    };
    tokio::time::timeout(within, drained).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LARGE: usize = 32 << 20;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (ours.unwrap().0, theirs.unwrap())
    }

    /// Writes until the peer's window and our queue are full.
    fn fill(socket: &TcpStream) {
        let mut written = 0;
        while let Ok(count) = socket.try_write(&[7; 64 * 1024]) {
            written += count;
            assert!(written < LARGE, "nothing bounds the queue");
        }
    }

    #[tokio::test]
    async fn what_the_peer_read_is_acknowledged() {
        let (mut ours, mut theirs) = pair().await;
        let reader = tokio::spawn(async move {
            let mut all = vec![0; 1 << 20];
            theirs.read_exact(&mut all).await.unwrap();
            theirs
        });
        ours.write_all(&vec![7; 1 << 20]).await.unwrap();
        assert!(acknowledged(&ours, Duration::from_secs(20)).await);
        // A peer that goes afterwards takes nothing back.
        drop(reader.await.unwrap());
        assert!(acknowledged(&ours, Duration::from_secs(20)).await);
    }

    #[tokio::test]
    async fn a_peer_that_breaks_off_has_acknowledged_nothing() {
        let (ours, theirs) = pair().await;
        ours.writable().await.unwrap();
        fill(&ours);
        // Closing with unread bytes resets the connection.
        drop(theirs);
        assert!(!acknowledged(&ours, Duration::from_secs(20)).await);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_has_acknowledged_nothing_in_time() {
        let (ours, theirs) = pair().await;
        ours.writable().await.unwrap();
        fill(&ours);
        assert!(!acknowledged(&ours, Duration::from_millis(50)).await);
        drop(theirs);
    }

    #[test]
    fn a_place_is_one_attempts_and_is_given_back() {
        let desk = Desk::default();
        let node: NodeName = "node".parse().unwrap();
        let first = desk.begin(&node, 1).unwrap();
        assert!(desk.begin(&node, 1).is_none());
        // The machine was started anew while its old connection hangs.
        let second = desk.begin(&node, 2).unwrap();
        drop(first);
        assert!(desk.begin(&node, 2).is_none());
        drop(second);
        assert!(desk.begin(&node, 2).is_some());
    }
}
