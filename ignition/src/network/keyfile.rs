//! NetworkManager's keyfiles, one for each link (nm-settings-keyfile(5)). Fedora and RHEL CoreOS read them from the Ignition
//! config; NetworkManager takes none that others than root can read.
//!
//! Ugly facts. A card with a MAC address is matched by it and keeps the name its system gives it, so whatever lies on it names
//! its connection by UUID. The UUID is made from the link's name, so that a file written anew is the same connection.
//! A card that is known by its name and only carries others has no file, and keeps the connection it has. NetworkManager gives a route a metric of its own (100 and up) unless one is said, also for 0. A port's connection has no addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use netboot::link::{Link, LinkKind, MAIN_TABLE};
use netboot::net::LinkName;
use sha2::{Digest, Sha256};

use crate::network::{File, Network, Said, Unsaid, comments, hostname_file, mac};

/// Where NetworkManager looks for them.
pub const DIRECTORY: &str = "/etc/NetworkManager/system-connections";

/// The files, and `/etc/hostname` when the host's name is known.
pub fn files(network: &Network) -> Said<Vec<File>> {
    let mut said: Said<Vec<File>> = Said {
        said: hostname_file(network).into_iter().collect(),
        unsaid: network.unresolved().into_iter().collect(),
    };
    for link in network.links() {
        if network.is_others(link) {
            continue;
        }
        let mut unsaid = Vec::new();
        let text = text(network, link, &mut unsaid);
        said.said.push(File {
            path: format!("{DIRECTORY}/{}.nmconnection", link.name),
            mode: 0o600,
            text,
        });
        said.unsaid.extend(unsaid);
    }
    said
}

fn text(network: &Network, link: &Link, unsaid: &mut Vec<Unsaid>) -> String {
    let name = &link.name;
    let (kind, own) = kind(network, link);
    let mac = mac(link, unsaid);
    let mut text = comments(unsaid);
    text += &format!(
        "[connection]\nid={name}\nuuid={}\ntype={kind}\n",
        uuid(name)
    );
    if mac.is_none() {
        text += &format!("interface-name={name}\n");
    }
    // Above the connections that systems make by themselves for every card.
    text += "autoconnect-priority=10\n";
    let master = network.master(name);
    if let Some(master) = master {
        let kind = if matches!(master.kind, LinkKind::Bond { .. }) {
            "bond"
        } else {
            "bridge"
        };
        text += &format!("master={}\nslave-type={kind}\n", uuid(&master.name));
    }
    text += "\n[ethernet]\n";
    if let Some(mac) = mac {
        text += &format!("mac-address={mac}\n");
    }
    if let Some(mtu) = link.mtu {
        text += &format!("mtu={mtu}\n");
    }
    text += &own;
    if master.is_none() {
        text += &protocol(network, link, true);
        text += &protocol(network, link, false);
    }
    text
}

/// The type, and the section that only that type has.
fn kind(network: &Network, link: &Link) -> (&'static str, String) {
    match &link.kind {
        LinkKind::Card { .. } => ("ethernet", String::new()),
        LinkKind::Vlan { parent, id } => {
            let by_mac = network.link(parent).is_some_and(
                |parent| matches!(&parent.kind, LinkKind::Card { macs } if !macs.is_empty()),
            );
            let parent = if by_mac {
                uuid(parent)
            } else {
                parent.to_string()
            };
            // Flag 1 reorders headers, which the kernel does unless told not to.
            (
                "vlan",
                format!("\n[vlan]\nflags=1\nid={}\nparent={parent}\n", id.get()),
            )
        }
        LinkKind::Bridge { stp, .. } => ("bridge", format!("\n[bridge]\nstp={stp}\n")),
        LinkKind::Bond {
            mode,
            monitor_millis,
            ..
        } => {
            let mode = mode.word();
            (
                "bond",
                format!("\n[bond]\nmiimon={monitor_millis}\nmode={mode}\n"),
            )
        }
    }
}

/// `[ipv4]` or `[ipv6]`.
fn protocol(network: &Network, link: &Link, v4: bool) -> String {
    let of_family = |address: IpAddr| address.is_ipv4() == v4;
    let addresses: Vec<&IpNet> = link
        .addresses
        .iter()
        .filter(|net| of_family(net.addr()))
        .collect();
    let mut text = if v4 { "\n[ipv4]\n" } else { "\n[ipv6]\n" }.to_owned();
    for (index, address) in addresses.iter().enumerate() {
        text += &format!("address{}={address}\n", index + 1);
    }
    let resolves = network.resolves(&link.name);
    let servers: String = network
        .dns
        .iter()
        .filter(|server| resolves && !addresses.is_empty() && of_family(**server))
        .map(|server| format!("{server};"))
        .collect();
    if !servers.is_empty() {
        text += &format!("dns={servers}\n");
    }
    // Domains are looked up over either family; one place is enough.
    let first = link
        .addresses
        .first()
        .is_some_and(|net| of_family(net.addr()));
    if resolves && first && !network.search.is_empty() {
        let domains: String = network
            .search
            .iter()
            .map(|domain| format!("{domain};"))
            .collect();
        text += &format!("dns-search={domains}\n");
    }
    text += match (addresses.is_empty(), v4) {
        (false, _) => "method=manual\n",
        (true, true) => "method=disabled\n",
        (true, false) => "method=link-local\n",
    };
    let routes = link
        .routes
        .iter()
        .filter(|route| of_family(route.to.addr()));
    for (number, route) in (1..).zip(routes) {
        let via = route.via.map_or(String::new(), |via| via.to_string());
        text += &format!("route{number}={},{via},{}\n", route.to, route.metric);
        let mut options = Vec::new();
        if let Some(source) = route.source {
            options.push(format!("src={source}"));
        }
        if route.table != MAIN_TABLE {
            options.push(format!("table={}", route.table));
        }
        if !options.is_empty() {
            text += &format!("route{number}_options={}\n", options.join(","));
        }
    }
    let rules = link.rules.iter().filter(|rule| of_family(rule.from.addr()));
    for (number, rule) in (1..).zip(rules) {
        text += &format!(
            "routing-rule{number}=priority {} from {} table {}\n",
            rule.priority, rule.from, rule.table
        );
    }
    text
}

/// A UUID made from a name (RFC 9562, section 5.8): the same for the same link, for ever.
fn uuid(link: &LinkName) -> String {
    let mut octets = [0; 16];
    let digest = Sha256::digest(format!("reveille link {link}"));
    octets.copy_from_slice(&digest[..16]);
    octets[6] = 0x80 | (octets[6] & 0x0f);
    octets[8] = 0x80 | (octets[8] & 0x3f);
    let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
