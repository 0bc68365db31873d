//! Captured packets: the fixtures of `tests/wire`, and how they are made from real firmware and real clients.

use std::fs;
use std::path::{Path, PathBuf};

use etherparse::{SlicedPacket, TransportSlice};

/// One UDP message of a capture.
pub struct Captured {
    pub port: u16,
    /// Sent to one station's address, not to everybody.
    pub unicast: bool,
    pub bytes: Vec<u8>,
}

/// Where the captures are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wire")
}

/// The names of all captures, in order.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory())
        .expect("the directory of captures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "pcap"))
        .map(|path| {
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// The Ethernet frames of a capture, in order.
///
/// # Panics
/// When it is not a little-endian pcap file of Ethernet frames, which is what tcpdump writes here.
pub fn frames(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).expect("a capture");
    assert_eq!(bytes[..4], [0xd4, 0xc3, 0xb2, 0xa1], "a pcap file");
    let mut frames = Vec::new();
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().expect("four bytes"));
        at += 16;
        // tcpdump may be in the middle of writing the last one.
        let Some(frame) = bytes.get(at..at + length as usize) else {
            break;
        };
        at += length as usize;
        frames.push(frame.to_vec());
    }
    frames
}

/// The messages of one capture of `tests/wire`.
pub fn read(name: &str) -> Vec<Captured> {
    let mut captured = Vec::new();
    for frame in frames(&directory().join(format!("{name}.pcap"))) {
        let packet = SlicedPacket::from_ethernet(&frame).expect("a frame");
        let Some(TransportSlice::Udp(udp)) = packet.transport else {
            continue;
        };
        captured.push(Captured {
            port: udp.destination_port(),
            unicast: frame[0] & 1 == 0,
            bytes: udp.payload().to_vec(),
        });
    }
    captured
}
