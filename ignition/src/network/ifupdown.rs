//! Debian's ifupdown, as one file for `/etc/network/interfaces.d` (interfaces(5)).
//!
//! Ugly facts. What ifupdown has no word for, and everything that would need the packages vlan, bridge-utils or ifenslave,
//! is said as a command of iproute2. A stanza is brought up once for each family, so links are made in the first stanza only.
//! Commands run in a shell: names are plain by then. A bond's mode is set before its ports join, and they must be down.
//! Cards are known by name only.

use ipnet::IpNet;
use netboot::link::{Link, LinkKind, MAIN_TABLE, Route, Rule};

use crate::network::{File, Network, Said, Unsaid, comments, hostname_file};

/// The file's path. `/etc/network/interfaces` must have a line `source /etc/network/interfaces.d/*`, as Debian's has.
pub const PATH: &str = "/etc/network/interfaces.d/reveille";

/// The file, and `/etc/hostname` when the host's name is known.
pub fn files(network: &Network) -> Said<Vec<File>> {
    let mut unsaid: Vec<Unsaid> = network.unresolved().into_iter().collect();
    for link in network.links() {
        if let LinkKind::Card { macs } = &link.kind
            && !macs.is_empty()
        {
            unsaid.push(Unsaid::of(
                link,
                "its MAC addresses; the card must have this name",
            ));
        }
    }
    let mut text = comments(&unsaid);
    for link in network.links() {
        if network.is_others(link) {
            continue;
        }
        text += &format!("\nauto {}\n", link.name);
        text += &stanzas(network, link);
    }
    let mut said: Vec<File> = hostname_file(network).into_iter().collect();
    said.push(File {
        path: PATH.to_owned(),
        mode: 0o644,
        text,
    });
    Said { said, unsaid }
}

fn stanzas(network: &Network, link: &Link) -> String {
    let name = &link.name;
    let mut text = String::new();
    let mut made = made(link);
    for (family, v4) in [("inet", true), ("inet6", false)] {
        let addresses: Vec<&IpNet> = link
            .addresses
            .iter()
            .filter(|net| net.addr().is_ipv4() == v4)
            .collect();
        let routed = routed(link, v4);
        let bare = link.addresses.is_empty() && v4;
        if addresses.is_empty() && routed.is_empty() && !bare {
            continue;
        }
        match addresses.first() {
            Some(first) => {
                text += &format!("iface {name} {family} static\n    address {first}\n");
                if !v4 {
                    text += "    accept_ra 0\n";
                }
                if network.resolves(name) && link.addresses.first() == Some(*first) {
                    text += &resolver(network);
                }
                text += &std::mem::take(&mut made);
            }
            None => {
                text += &format!("iface {name} {family} manual\n");
                text += &std::mem::take(&mut made);
                text += &format!("    up ip link set {name} up\n");
            }
        }
        for address in addresses.iter().skip(1) {
            text += &format!("    up ip address add {address} dev {name}\n");
            text += &format!("    down ip address del {address} dev {name}\n");
        }
        text += &routed;
    }
    text
}

/// Read by the package resolvconf, or systemd-resolved's own.
fn resolver(network: &Network) -> String {
    let servers: Vec<String> = network.dns.iter().map(ToString::to_string).collect();
    let domains: Vec<&str> = network.search.iter().map(|name| name.as_str()).collect();
    let mut text = String::new();
    if !servers.is_empty() {
        text += &format!("    dns-nameservers {}\n", servers.join(" "));
    }
    if !domains.is_empty() {
        text += &format!("    dns-search {}\n", domains.join(" "));
    }
    text
}

/// Commands for the routes and rules of one family.
fn routed(link: &Link, v4: bool) -> String {
    let mut text = String::new();
    let of_family = |route: &&Route| route.to.addr().is_ipv4() == v4;
    for route in link.routes.iter().filter(of_family) {
        text += &format!("    up ip route replace {}\n", said_route(link, route));
    }
    let of_family = |rule: &&Rule| rule.from.addr().is_ipv4() == v4;
    for rule in link.rules.iter().filter(of_family) {
        let ip = if v4 { "ip" } else { "ip -6" };
        let words = format!(
            "from {} lookup {} priority {}",
            rule.from, rule.table, rule.priority
        );
        text += &format!("    up {ip} rule add {words}\n");
        text += &format!("    down {ip} rule del {words}\n");
    }
    text
}

/// Commands that make the link, and take it away.
fn made(link: &Link) -> String {
    let name = &link.name;
    let made = match &link.kind {
        LinkKind::Card { .. } => None,
        LinkKind::Vlan { parent, id } => Some(format!(
            "add link {parent} name {name} type vlan id {}",
            id.get()
        )),
        LinkKind::Bridge { stp, .. } => Some(format!(
            "add name {name} type bridge stp_state {}",
            u8::from(*stp)
        )),
        LinkKind::Bond {
            mode,
            monitor_millis,
            ..
        } => Some(format!(
            "add name {name} type bond mode {} miimon {monitor_millis}",
            mode.word()
        )),
    };
    let mut text = String::new();
    if let Some(parent) = link.kind.parent() {
        text += &format!("    pre-up ip link set {parent} up\n");
    }
    if let Some(made) = &made {
        text += &format!("    pre-up [ -e /sys/class/net/{name} ] || ip link {made}\n");
    }
    for port in link.kind.ports() {
        let down = matches!(link.kind, LinkKind::Bond { .. });
        if down {
            text += &format!("    pre-up ip link set {port} down\n");
        }
        text += &format!("    pre-up ip link set {port} master {name}\n");
        text += &format!("    pre-up ip link set {port} up\n");
    }
    if let Some(mtu) = link.mtu {
        text += &format!("    pre-up ip link set {name} mtu {mtu}\n");
    }
    if made.is_some() {
        text += &format!("    post-down ip link del {name}\n");
    }
    text
}

fn said_route(link: &Link, route: &Route) -> String {
    let mut text = route.to.to_string();
    if let Some(via) = route.via {
        text += &format!(" via {via}");
    }
    text += &format!(" dev {}", link.name);
    if let Some(source) = route.source {
        text += &format!(" src {source}");
    }
    if route.metric != 0 {
        text += &format!(" metric {}", route.metric);
    }
    if route.table != MAIN_TABLE {
        text += &format!(" table {}", route.table);
    }
    text
}
