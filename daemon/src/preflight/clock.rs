//! The NTP servers that machines are told of, and how far the bastion's clock is from theirs.
//!
//! One question and its answer, 48 bytes each (SNTP: RFC 4330; the fields: RFC 5905, section 7.3). Certificates and
//! tokens are made by the bastion's clock and judged by the machines', so the two must agree.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Check, Id, Scene};

const PORT: u16 = 123;
const ANSWER_TIME: Duration = Duration::from_secs(1);
const TRIES: usize = 3;
const PACKET: usize = 48;
/// More than a site has; what is beyond is not asked.
const SERVERS_MAX: usize = 16;
/// Apart by this much, logs no longer fit together.
const WARN_SECONDS: f64 = 2.0;
/// Apart by this much, freshly made certificates and tokens are refused.
const FAIL_SECONDS: f64 = 60.0;
/// Seconds from 1900 to 1970.
const EPOCH: f64 = 2_208_988_800.0;
/// Seconds of one era of NTP (2^32), which began in 1900; the next begins in 2036.
const ERA: f64 = 4_294_967_296.0;

/// What a server said.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// How far its clock is ahead of ours, in seconds.
    Ahead(f64),
    /// It has no time itself: it says so, or asks to be left alone.
    Unsynchronised,
}

/// The servers that the machines of any network are told of.
pub(super) fn servers(scene: &Scene) -> BTreeSet<Ipv4Addr> {
    let spec = &scene.spec;
    scene
        .networks()
        .flat_map(|network| match scene.our_address(network) {
            Some(ours) => spec.time_servers(network, ours),
            None => network.ntp.clone(),
        })
        .take(SERVERS_MAX)
        .collect()
}

/// Asks a server for the time.
pub(super) async fn check(server: Ipv4Addr) -> Vec<Check> {
    let mut last = None;
    for _ in 0..TRIES {
        match timeout(ANSWER_TIME, ask(server)).await {
            Ok(Ok(answer)) => return vec![judge(server, Ok(answer))],
            Ok(Err(error)) => last = Some(error.to_string()),
            Err(_) => {}
        }
    }
    let why = last.unwrap_or_else(|| format!("silent for {TRIES} s"));
    vec![judge(server, Err(why))]
}

async fn ask(server: Ipv4Addr) -> io::Result<Answer> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((server, PORT)).await?;
    let sent = seconds();
    let mut question = [0; PACKET];
    // Version 4, mode 3 (client).
    question[0] = 0b00_100_011;
    let stamp = to_stamp(sent);
    question[40..].copy_from_slice(&stamp);
    socket.send(&question).await?;
    let mut answer = [0; PACKET];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(answer) = read(&answer[..length], stamp, sent, seconds()) {
            return Ok(answer);
        }
    }
}

/// Understands an answer to the question that bore `stamp` and was sent and answered at these seconds since 1970.
/// `None` for what is no answer to it.
fn read(answer: &[u8], stamp: [u8; 8], sent: f64, received: f64) -> Option<Answer> {
    let answer: &[u8; PACKET] = answer.get(..PACKET)?.try_into().ok()?;
    let (leap, mode) = (answer[0] >> 6, answer[0] & 0b111);
    // RFC 4330, section 5: the server copies our transmit timestamp, which is how we know our answer.
    if mode != 4 || answer[24..32] != stamp {
        return None;
    }
    // Stratum 0 is a kiss of death; leap 3 and stratum 16 say "not synchronised".
    if leap == 3 || answer[1] == 0 || answer[1] >= 16 {
        return Some(Answer::Unsynchronised);
    }
    let (heard, told) = (
        from_stamp(&answer[32..40], sent),
        from_stamp(&answer[40..48], sent),
    );
    Some(Answer::Ahead(((heard - sent) + (told - received)) / 2.0))
}

fn to_stamp(seconds: f64) -> [u8; 8] {
    let since = (seconds + EPOCH).rem_euclid(ERA);
    // Both are in range: below 2^32, and a fraction of it.
    let whole = since.floor();
    let fraction = ((since - whole) * ERA) as u32;
    let mut stamp = [0; 8];
    stamp[..4].copy_from_slice(&(whole as u32).to_be_bytes());
    stamp[4..].copy_from_slice(&fraction.to_be_bytes());
    stamp
}

/// A timestamp in the era that brings it nearest to `near`.
fn from_stamp(stamp: &[u8], near: f64) -> f64 {
    let half = |at: usize| {
        let bytes: [u8; 4] = [stamp[at], stamp[at + 1], stamp[at + 2], stamp[at + 3]];
        f64::from(u32::from_be_bytes(bytes))
    };
    let seconds = half(0) + half(4) / ERA - EPOCH;
    seconds + ((near - seconds) / ERA).round() * ERA
}

fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn judge(server: Ipv4Addr, answer: Result<Answer, String>) -> Check {
    let (id, subject) = (Id::NtpOffset, format!("server {server}"));
    match answer {
        Ok(Answer::Ahead(ahead)) => {
            let side = if ahead < 0.0 { "behind" } else { "ahead of" };
            let apart = ahead.abs();
            let evidence = format!("its clock is {apart:.3} s {side} the bastion's");
            let remedy = "find out which of the two is wrong (`date -u` here, `chronyc tracking` there), and let the bastion \
                          follow that server";
            if apart > FAIL_SECONDS {
                Check::fail(id, subject, evidence, remedy)
            } else if apart > WARN_SECONDS {
                Check::warn(id, subject, evidence, remedy)
            } else {
                Check::pass(id, subject, evidence)
            }
        }
        Ok(Answer::Unsynchronised) => Check::warn(
            id,
            subject,
            "answers that it has no time itself",
            "give that server a source (`chronyc sources` there); machines won't take its time",
        ),
        Err(why) => Check::warn(
            id,
            subject,
            format!("gives no time: {why}"),
            "start an NTP server there, let UDP 123 pass, or correct `ntp` in site.yaml",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    const NOW: f64 = 1_800_000_000.5;

    fn answer(ahead: f64) -> [u8; PACKET] {
        let mut answer = [0; PACKET];
        answer[..2].copy_from_slice(&[0b00_100_100, 2]);
        answer[24..32].copy_from_slice(&to_stamp(NOW));
        let theirs = to_stamp(NOW + ahead);
        answer[32..40].copy_from_slice(&theirs);
        answer[40..].copy_from_slice(&theirs);
        answer
    }

    fn ahead(answer: &[u8]) -> f64 {
        match read(answer, to_stamp(NOW), NOW, NOW) {
            Some(Answer::Ahead(ahead)) => ahead,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_offset_is_read_to_the_millisecond_in_both_directions_and_over_an_era() {
        for offset in [0.0, 0.25, -0.25, 3600.0, -86_400.0, 400_000_000.0] {
            let read = ahead(&answer(offset));
            assert!((read - offset).abs() < 0.001, "{read} is not {offset}");
        }
    }

    #[test]
    fn only_an_answer_to_our_question_counts() {
        let good = answer(0.0);
        let understood = |answer: &[u8]| read(answer, to_stamp(NOW), NOW, NOW);
        for (at, byte) in [(0, 0b00_100_011), (24, 0), (31, 0xfe)] {
            let mut other = good;
            other[at] = byte;
            assert_eq!(understood(&other), None, "byte {at}");
        }
        assert_eq!(understood(&good[..47]), None);
        for (at, byte) in [(0, 0b11_100_100), (1, 0), (1, 16)] {
            let mut other = good;
            other[at] = byte;
            assert_eq!(understood(&other), Some(Answer::Unsynchronised));
        }
    }

    #[test]
    fn seconds_warn_and_minutes_fail() {
        let result = |answer| judge(Ipv4Addr::LOCALHOST, answer).result;
        assert_eq!(result(Ok(Answer::Ahead(-1.9))), Outcome::Pass);
        assert_eq!(result(Ok(Answer::Ahead(2.1))), Outcome::Warn);
        assert_eq!(result(Ok(Answer::Ahead(-61.0))), Outcome::Fail);
        assert_eq!(result(Ok(Answer::Unsynchronised)), Outcome::Warn);
        assert_eq!(result(Err("silent".into())), Outcome::Warn);
    }
}
