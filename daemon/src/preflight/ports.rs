//! The ports that are served: ours, free, or somebody else's, and whose.
//!
//! A DHCP server of virtual machines on `virbr0` is no rival of one on `eth1.107`. A port that two servers share
//! (SO_REUSEADDR) is open to both, and each gets some of the packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use netboot::host::Transport;
use netboot::net::LinkName;
use netboot::zone::DnsMode;
use socket2::Domain;

use super::{Check, Id, Scene, listed};
use crate::probe::talos::sink;
use crate::sockets::{Holder, Process, list, processes, who};

/// A program of this name is taken for the daemon, whose ports these are.
const DAEMON: &str = "reveille";
/// A port that the site serves on a link.
#[derive(Clone, Debug)]
struct Wanted {
    link: LinkName,
    index: u32,
    addresses: Vec<Ipv4Addr>,
}

/// Looks at every port on every served link.
pub(super) async fn check(scene: Arc<Scene>) -> Vec<Check> {
    // Reading every process' open files is work for a thread that may block.
    let checked = tokio::task::spawn_blocking(move || look(&scene));
    checked
        .await
        .expect("looking at sockets does not panic, and nobody aborts it")
}

fn look(scene: &Scene) -> Vec<Check> {
    let wanted = wanted(scene);
    let names: Vec<Wanted> = wanted.iter().cloned().chain(public(scene)).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let mut holders = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        for domain in [Domain::IPV4, Domain::IPV6] {
            match list(transport, domain) {
                Ok(more) => holders.extend(more),
                Err(error) => {
                    return vec![Check::warn(
                        Id::Ports,
                        "this host",
                        format!("the kernel does not list its sockets: {error}"),
                        "load its modules (modprobe -a inet_diag udp_diag tcp_diag), or look yourself: ss -lunp; ss -ltnp",
                    )];
                }
            }
        }
    }
    let inodes = holders.iter().map(|holder| holder.inode).collect();
    let processes = processes(&inodes);
    let events = sink::is_wanted(&scene.spec).then_some((Transport::Tcp, scene.ports.events));
    let ports = [
        (Transport::Udp, 67),
        (Transport::Udp, 4011),
        (Transport::Udp, 69),
        (Transport::Tcp, scene.ports.plain),
        (Transport::Tcp, scene.ports.tls),
    ];
    let serves_names = scene.spec.dns().mode == DnsMode::Serve;
    let dns = [(Transport::Udp, 53), (Transport::Tcp, 53)];
    let dns = dns.into_iter().filter(|_| serves_names);
    let ntp = scene.spec.serves_time().then_some((Transport::Udp, 123));
    let judged = ports
        .into_iter()
        .chain(events)
        .chain(ntp)
        .map(|port| (port, &wanted));
    let judged = judged.chain(dns.map(|port| (port, &names)));
    judged
        .filter(|(_, wanted)| !wanted.is_empty())
        .map(|((transport, port), wanted)| judge(transport, port, wanted, &holders, &processes))
        .collect()
}

fn wanted(scene: &Scene) -> Vec<Wanted> {
    let links: BTreeSet<&LinkName> = scene.networks().map(|network| &network.link).collect();
    there(scene, links)
}

/// The links on which everybody may ask for names.
fn public(scene: &Scene) -> Vec<Wanted> {
    there(scene, scene.spec.dns().public.iter())
}

fn there<'a>(scene: &Scene, links: impl IntoIterator<Item = &'a LinkName>) -> Vec<Wanted> {
    let there = links.into_iter().filter_map(|name| {
        let link = scene.links.get(name.as_str())?;
        Some(Wanted {
            link: name.clone(),
            index: link.index,
            addresses: link.addresses.iter().map(ipnet::Ipv4Net::addr).collect(),
        })
    });
    there.collect()
}

impl Wanted {
    /// A socket that gets packets of this link.
    fn is_met_by(&self, holder: &Holder) -> bool {
        let by_link = holder.link == 0 || holder.link == self.index;
        let by_address = match holder.address {
            IpAddr::V4(address) => address.is_unspecified() || self.addresses.contains(&address),
            // An unspecified IPv6 socket takes IPv4 too, unless it was told otherwise.
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(address) => self.addresses.contains(&address),
                None => address.is_unspecified(),
            },
        };
        by_link && by_address
    }
}

fn judge(
    transport: Transport,
    port: u16,
    wanted: &[Wanted],
    holders: &[Holder],
    processes: &BTreeMap<u32, Process>,
) -> Check {
    let word = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let (id, subject) = (Id::Ports, format!("{word} {port}"));
    let mut ours = BTreeSet::new();
    let mut others = BTreeMap::<String, BTreeSet<&LinkName>>::new();
    let of_port = |holder: &&Holder| holder.transport == transport && holder.port == port;
    for holder in holders.iter().filter(of_port) {
        for link in wanted.iter().filter(|link| link.is_met_by(holder)) {
            match processes.get(&holder.inode) {
                Some(process) if process.name == DAEMON => {
                    ours.insert(&link.link);
                }
                process => {
                    let who = who(process, holder);
                    others.entry(who).or_default().insert(&link.link);
                }
            }
        }
    }
    let links = |links: &BTreeSet<&LinkName>| {
        let links: Vec<&str> = links.iter().map(|link| link.as_str()).collect();
        links.join(", ")
    };
    if others.is_empty() {
        let evidence = if ours.is_empty() {
            "free".to_owned()
        } else {
            format!("ours on {}", links(&ours))
        };
        return Check::pass(id, subject, evidence);
    }
    let evidence = others
        .iter()
        .map(|(who, on)| format!("{who} has it on {}", links(on)));
    let flag = match transport {
        Transport::Tcp => "-ltnp",
        Transport::Udp => "-lunp",
    };
    let remedy = format!(
        "stop that program or bind it to another link; `ss {flag} sport = :{port}` shows it; its unit: systemctl \
         status PROCESS"
    );
    Check::fail(id, subject, listed(evidence), remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn wanted() -> [Wanted; 1] {
        [Wanted {
            link: "eth1.107".parse().expect("a name"),
            index: 7,
            addresses: vec![Ipv4Addr::new(10, 107, 0, 1)],
        }]
    }

    fn holder(address: &str, link: u32) -> Holder {
        Holder {
            transport: Transport::Udp,
            port: 67,
            address: address.parse().expect("an address"),
            link,
            user: 0,
            inode: 5,
        }
    }

    fn judged(holder: Holder, process: Option<&str>) -> Check {
        let named = |name: &str| {
            let name = name.to_owned();
            BTreeMap::from([(5, Process { id: 9, name })])
        };
        let processes = process.map_or(BTreeMap::new(), named);
        judge(Transport::Udp, 67, &wanted(), &[holder], &processes)
    }

    #[test]
    fn whoever_gets_packets_of_our_link_is_named_and_whoever_does_not_is_no_rival() {
        for (address, link) in [("0.0.0.0", 0), ("10.107.0.1", 0), ("0.0.0.0", 7), ("::", 0)] {
            let check = judged(holder(address, link), Some("dnsmasq"));
            assert_eq!(check.result, Outcome::Fail, "{address} on {link}");
            assert_eq!(check.evidence, "dnsmasq (process 9) has it on eth1.107");
        }
        for (address, link) in [("0.0.0.0", 8), ("192.0.2.1", 0), ("::1", 0)] {
            let check = judged(holder(address, link), Some("dnsmasq"));
            assert_eq!(check.result, Outcome::Pass, "{address} on {link}");
        }
        let hidden = judged(holder("0.0.0.0", 0), None);
        assert_eq!(hidden.evidence, "a process of user root has it on eth1.107");
        let daemon = judged(holder("0.0.0.0", 7), Some(DAEMON));
        assert_eq!(
            (daemon.result, daemon.evidence.as_str()),
            (Outcome::Pass, "ours on eth1.107")
        );
    }
}
