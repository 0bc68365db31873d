//! How large a packet may be on the way to a network's router: pings that nobody may fragment.
//!
//! The size is found in a few rounds. Each sends pings of sixteen sizes between the largest known to pass and the
//! smallest known not to, so that five rounds are enough for any size there is.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use netboot::net::MacAddress;
use netboot::spec::Network;
use tokio::time::timeout;

use super::frames::{Ear, Heard, Stranger, ping, read};
use super::segment::{Evidence, ours_in};
use super::{Check, Id};
use crate::link::Link;

const ANSWER_TIME: Duration = Duration::from_millis(400);
/// Lost pings are sent again before their size is held against them.
const TRIES: usize = 2;
/// Every link that carries IPv4 takes this much (68 bytes at the least, RFC 791, section 3.2).
const SMALL: u16 = 100;

/// As whom preflight speaks on a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Voice {
    pub(super) mac: MacAddress,
    pub(super) stranger: Stranger,
    pub(super) ping_id: u16,
}

/// What the pings showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    /// Not even a small one was answered.
    Nothing,
    /// The largest size that was answered.
    UpTo(u16),
}

/// Measures the way to the network's router. Nothing to say where the router is this bastion, or is gone.
pub(super) async fn check(
    network: &Network,
    link: &Link,
    evidence: &Evidence,
    ear: &Ear,
    voice: Voice,
) -> Option<Check> {
    let linked = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    let wanted = network.mtu.unwrap_or(linked);
    if linked < wanted {
        return Some(judge_link(network, link, wanted));
    }
    let router = network.router?;
    // Whoever else has our address would get the answers.
    let alone = |ours: &Ipv4Addr| !evidence.stations.contains_key(ours);
    let ours = ours_in(link, network).filter(|ours| *ours != router && alone(ours))?;
    let station = *evidence.stations.get(&router)?.first()?;
    let way = Way {
        ear,
        voice,
        ours,
        station,
        router,
    };
    let passed = way.largest(wanted).await;
    Some(judge(network, router, wanted, passed))
}

struct Way<'a> {
    ear: &'a Ear,
    voice: Voice,
    ours: Ipv4Addr,
    station: MacAddress,
    router: Ipv4Addr,
}

impl Way<'_> {
    async fn largest(&self, wanted: u16) -> Passed {
        let small = SMALL.min(wanted);
        let answered = self.answered(&[small, wanted]).await;
        if answered.contains(&wanted) {
            return Passed::UpTo(wanted);
        }
        if answered.is_empty() {
            return Passed::Nothing;
        }
        // `low` passes and `high` doesn't.
        let (mut low, mut high) = (small, wanted);
        loop {
            let sizes = spread(low, high);
            if sizes.is_empty() {
                return Passed::UpTo(low);
            }
            let answered = self.answered(&sizes).await;
            low = answered.last().copied().unwrap_or(low);
            high = sizes.into_iter().find(|size| *size > low).unwrap_or(high);
        }
    }

    /// Which of these sizes were answered.
    async fn answered(&self, sizes: &[u16]) -> BTreeSet<u16> {
        let Voice {
            mac,
            stranger,
            ping_id,
        } = self.voice;
        let mut answered = BTreeSet::new();
        let mut buffer = Ear::buffer();
        for _ in 0..TRIES {
            for size in sizes.iter().filter(|size| !answered.contains(*size)) {
                let frame = ping(mac, self.ours, self.station, self.router, ping_id, *size);
                if let Some(frame) = frame {
                    // One that is too large for the link is one that does not pass.
                    let _ = self.ear.say(&frame).await;
                }
            }
            let hearing = async {
                while answered.len() < sizes.len() {
                    let Ok(frame) = self.ear.hear(&mut buffer).await else {
                        return;
                    };
                    let heard = read(frame, mac, stranger, ping_id);
                    if let Some(Heard::Pong { from, size }) = heard
                        && from == self.router
                        && sizes.contains(&size)
                    {
                        answered.insert(size);
                    }
                }
            };
            // Whoever has not answered by then is asked again, or counts as silent.
            let _ = timeout(ANSWER_TIME, hearing).await;
            if answered.len() == sizes.len() {
                break;
            }
        }
        answered
    }
}

/// At most sixteen sizes that part what lies between two into even pieces; none when nothing does.
fn spread(low: u16, high: u16) -> Vec<u16> {
    const PIECES: u32 = 17;
    let (low, high) = (u32::from(low), u32::from(high));
    let sizes: BTreeSet<u32> = (1..PIECES)
        .map(|piece| low + high.saturating_sub(low) * piece / PIECES)
        .filter(|size| low < *size && *size < high)
        .collect();
    sizes
        .into_iter()
        .map(|size| u16::try_from(size).expect("it lies below a size of 16 bits"))
        .collect()
}

fn judge_link(network: &Network, link: &Link, wanted: u16) -> Check {
    Check::fail(
        Id::PathMtu,
        format!("network {}", network.name),
        format!(
            "machines are told {wanted} bytes, and link {} takes {}",
            link.name, link.mtu
        ),
        format!(
            "ip link set {} mtu {wanted}, or `mtu: {}` for the network",
            link.name, link.mtu
        ),
    )
}

fn judge(network: &Network, router: Ipv4Addr, wanted: u16, passed: Passed) -> Check {
    let (id, subject) = (Id::PathMtu, format!("network {}", network.name));
    match passed {
        Passed::UpTo(size) if size == wanted => {
            let evidence = format!("packets of {wanted} bytes reach {router} and come back");
            Check::pass(id, subject, evidence)
        }
        Passed::UpTo(size) => Check::fail(
            id,
            subject,
            format!("packets of {wanted} bytes don't reach {router}; {size} bytes do"),
            format!(
                "raise the MTU of the switches and of {router} to {wanted}, or say `mtu: {size}` for the network"
            ),
        ),
        Passed::Nothing => Check::warn(
            id,
            subject,
            format!("{router} answers ARP and no ping, so nothing could be measured"),
            "let the router answer pings of this network",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_rounds_find_any_size() {
        for limit in [100, 101, 1399, 1400, 1472, 8999, 65_534] {
            let (mut low, mut high, mut rounds) = (100, 65_535, 0);
            loop {
                let sizes = spread(low, high);
                if sizes.is_empty() {
                    break;
                }
                rounds += 1;
                low = sizes
                    .iter()
                    .copied()
                    .filter(|s| *s <= limit)
                    .max()
                    .unwrap_or(low);
                high = sizes.into_iter().find(|size| *size > low).unwrap_or(high);
            }
            assert_eq!(low, limit);
            assert!(rounds <= 5, "{limit} took {rounds} rounds");
        }
        assert_eq!(spread(1500, 1500), [0_u16; 0]);
        assert_eq!(spread(1499, 1500), [0_u16; 0]);
    }
}
