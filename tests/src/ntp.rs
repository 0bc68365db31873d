//! A fake NTP server: it answers at once, with a clock that is as wrong as a test wants it.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::netns::Netns;

/// Seconds from 1900, where NTP counts from, to 1970.
const EPOCH: u64 = 2_208_988_800;

/// Serves on an address of a namespace for as long as the test runs, `ahead` seconds ahead of the real time.
pub fn serve(netns: &Netns, address: Ipv4Addr, ahead: u64) {
    let socket = netns.run(move || UdpSocket::bind((address, 123)).expect("a free port 123"));
    std::thread::spawn(move || {
        let mut question = [0; 48];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if length == question.len() {
                let _ = socket.send_to(&answer(&question, ahead), from);
            }
        }
    });
}

/// RFC 4330, section 5.
fn answer(question: &[u8; 48], ahead: u64) -> [u8; 48] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("it is later than 1970") + Duration::from_secs(EPOCH + ahead);
    let seconds = (now.as_secs() & u64::from(u32::MAX)) as u32;
    let fraction = ((u64::from(now.subsec_nanos()) << 32) / 1_000_000_000) as u32;
    let mut answer = [0; 48];
    // No leap second, version 4, a server; stratum 2.
    answer[..2].copy_from_slice(&[0b00_100_100, 2]);
    answer[24..32].copy_from_slice(&question[40..]);
    for at in [32, 40] {
        answer[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
        answer[at + 4..at + 8].copy_from_slice(&fraction.to_be_bytes());
    }
    answer
}
