//! The ledger over the API: the latest entries as one JSON array, or a stream of lines that goes on.
//!
//! A stream begins with what is there and misses nothing after it: it subscribes first and reads
//! then, and leaves out of the live part what the reading has shown already. A follower that is too
//! slow is told how many entries it missed and goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use netboot::attempt::{Entry, Fact};
use netboot::net::{NodeName, Timestamp};
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::rights::Reader;
use super::words::Problem;
use crate::bastion::Bastion;
use crate::controller::now;

/// Entries of one answer, unless asked for fewer.
pub const COUNT_MAX: usize = 2560;

/// What is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Wanted {
    /// Only of this machine.
    node: Option<NodeName>,
    /// Only since then, in milliseconds since 1970.
    since: Timestamp,
    /// The latest so many.
    limit: Option<usize>,
    /// Go on with what happens from now on, one JSON document a line.
    follow: bool,
}

pub(crate) async fn events(
    _: Reader,
    State(bastion): State<Arc<Bastion>>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) = wanted.map_err(|refused| {
        Problem::new(StatusCode::BAD_REQUEST, refused.body_text())
            .with_remedy("ask with node, since (milliseconds), limit and follow (true or false)")
    })?;
    let live = bastion.ledger.follow();
    let past = past(&bastion, &wanted).await;
    if !wanted.follow {
        return Ok(Json(past).into_response());
    }
    let stream = Stream {
        node: wanted.node,
        shown: past.clone(),
        past: past.into(),
        live,
        stop: bastion.stopping().clone(),
    };
    let body = Body::from_stream(futures_lite::stream::unfold(stream, Stream::next));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The latest entries, the oldest first. Reads the disk, so not on a thread that answers others.
async fn past(bastion: &Arc<Bastion>, wanted: &Wanted) -> Vec<Entry> {
    let ledger = bastion.ledger.clone();
    let Wanted {
        node, since, limit, ..
    } = wanted.clone();
    let read = tokio::task::spawn_blocking(move || {
        let count = limit.unwrap_or(COUNT_MAX).min(COUNT_MAX);
        let mut entries = match &node {
            Some(node) => ledger.history(node),
            None => ledger.since(since, count),
        };
        entries.retain(|entry| entry.at >= since);
        entries.split_off(entries.len().saturating_sub(count))
    });
    read.await
        .expect("reading the ledger does not panic, and nobody aborts it")
}

struct Stream {
    node: Option<NodeName>,
    past: VecDeque<Entry>,
    /// What the live part must not repeat; empty once it has passed them.
    shown: Vec<Entry>,
    live: broadcast::Receiver<Arc<Entry>>,
    stop: CancellationToken,
}

impl Stream {
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        let entry = match self.past.pop_front() {
            Some(entry) => entry,
            None => self.next_live().await?,
        };
        let mut line = serde_json::to_vec(&entry).expect("an entry is always JSON");
        line.push(b'\n');
        Some((Ok(line.into()), self))
    }

    /// The next entry as it is taken; `None` when the daemon stops.
    async fn next_live(&mut self) -> Option<Entry> {
        loop {
            let heard = tokio::select! {
                () = self.stop.cancelled() => return None,
                heard = self.live.recv() => heard,
            };
            match heard {
                Ok(entry) => {
                    let other = self.node.is_some() && entry.node != self.node;
                    if other || self.was_shown(&entry) {
                        continue;
                    }
                    return Some(Entry::clone(&entry));
                }
                Err(RecvError::Lagged(missed)) => {
                    return Some(Entry {
                        at: now(),
                        mac: None,
                        node: None,
                        fact: Fact::Bastion {
                            room: "ledger".into(),
                            what: format!(
                                "{missed} entries passed faster than this follower read; ask again for them"
                            ),
                        },
                    });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn was_shown(&mut self, entry: &Entry) -> bool {
        let Some(place) = self.shown.iter().position(|shown| shown == entry) else {
            return false;
        };
        // Entries come in one order, so what stands before it won't come again.
        self.shown.drain(..=place);
        true
    }
}
