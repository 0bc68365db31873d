//! A machine of a cluster without hardware: a namespace on the laboratory's bridge, whose firmware and whose system's first
//! fetch are `curl`. Nothing boots; what listens at its address is up to the test.

use std::net::Ipv4Addr;

use crate::lab::{BASTION, LINK, Lab};
use crate::netns::Netns;

pub struct Node {
    pub netns: Netns,
    number: u8,
}

impl Node {
    /// The machine with MAC address 52:54:00:aa:00:NUMBER and the address 10 higher than its number.
    pub fn new(lab: &Lab, number: u8) -> Self {
        let netns = Netns::new();
        let cable = format!("m{number}");
        lab.netns.cable(&cable, &netns, "eth0");
        lab.netns.ip(&format!("link set {cable} master {LINK}"));
        let node = Self { netns, number };
        let netns = &node.netns;
        netns.ip(&format!("link set eth0 address {}", node.mac(':')));
        netns.ip(&format!("addr add {}/24 dev eth0", node.address()));
        node
    }

    pub fn address(&self) -> Ipv4Addr {
        let [a, b, c, _] = BASTION.octets();
        Ipv4Addr::new(a, b, c, 10 + self.number)
    }

    fn mac(&self, between: char) -> String {
        let octets = [
            "52",
            "54",
            "00",
            "aa",
            "00",
            &format!("{:02x}", self.number),
        ];
        octets.join(&between.to_string())
    }

    /// The script that its firmware is given.
    pub fn script(&self) -> String {
        let mac = self.mac('-');
        let url = format!("http://{BASTION}:8080/boot/{mac}/script.ipxe");
        let words = ["--silent", "--show-error", "--max-time", "10", &url];
        self.netns.output("curl", &words)
    }

    /// The status, and the body.
    pub fn fetch(&self, url: &str) -> (String, String) {
        // Whose certificate it is, is shown elsewhere.
        let limits = ["--silent", "--insecure", "--max-time", "10"];
        let said = self.netns.output(
            "curl",
            &[&limits[..], &["--write-out", "\n%{http_code}", url]].concat(),
        );
        let (body, status) = said.rsplit_once('\n').expect("a status after the body");
        (status.to_owned(), body.to_owned())
    }

    /// What stands behind a word of a script, such as `talos.config=`.
    pub fn argument(script: &str, word: &str) -> Option<String> {
        let mut words = script.split_whitespace();
        words
            .find_map(|said| said.strip_prefix(word))
            .map(str::to_owned)
    }
}
