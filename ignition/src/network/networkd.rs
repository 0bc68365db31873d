//! systemd-networkd: a `.netdev` file for each link that is made, a `.network` file for each link
//! (systemd.netdev(5), systemd.network(5)).
//!
//! Ugly facts. The first `.network` file that matches a link is the only one that counts for it, in the order of their names; ours
//! begin with 10. networkd removes addresses, routes and rules that it did not make from the links it manages, unless
//! `networkd.conf` says `ManageForeignRoutingPolicyRules=no`, so nobody else should set up those links. Without
//! `ConfigureWithoutCarrier` a link that has no cable yet has no address to listen on. The MTU is said in the `.network` file: a
//! bridge that is made with one follows its ports all the same, and keeps one that is set on it later
//! (`br_mtu_auto_adjust`, Linux net/bridge/br_if.c).

use netboot::link::{Link, LinkKind, MAIN_TABLE};

use crate::network::{File, Network, Said, comments, hostname_file};

/// Where networkd looks for them.
pub const DIRECTORY: &str = "/etc/systemd/network";

/// The files, and `/etc/hostname` when the host's name is known.
pub fn files(network: &Network) -> Said<Vec<File>> {
    let mut said: Said<Vec<File>> = Said {
        said: hostname_file(network).into_iter().collect(),
        unsaid: network.unresolved().into_iter().collect(),
    };
    for link in network.links() {
        let mut file = |suffix: &str, text: String| {
            said.said.push(File {
                path: format!("{DIRECTORY}/10-{}.{suffix}", link.name),
                mode: 0o644,
                text,
            });
        };
        if let Some(text) = netdev(link) {
            file("netdev", text);
        }
        file("network", text(network, link));
    }
    said
}

fn netdev(link: &Link) -> Option<String> {
    let (kind, own) = match &link.kind {
        LinkKind::Card { .. } => return None,
        LinkKind::Vlan { id, .. } => ("vlan", format!("[VLAN]\nId={}\n", id.get())),
        LinkKind::Bridge { stp, .. } => ("bridge", format!("[Bridge]\nSTP={}\n", word(*stp))),
        LinkKind::Bond {
            mode,
            monitor_millis,
            ..
        } => {
            let mode = mode.word();
            (
                "bond",
                format!("[Bond]\nMode={mode}\nMIIMonitorSec={monitor_millis}ms\n"),
            )
        }
    };
    let head = comments(&[]);
    Some(format!(
        "{head}[NetDev]\nName={}\nKind={kind}\n\n{own}",
        link.name
    ))
}

fn text(network: &Network, link: &Link) -> String {
    let mut text = comments(&[]);
    text += "[Match]\n";
    if let LinkKind::Card { macs } = &link.kind
        && !macs.is_empty()
    {
        // A VLAN bears its parent's address too, but not as a permanent one.
        let macs: Vec<String> = macs.iter().map(ToString::to_string).collect();
        text += &format!("PermanentMACAddress={}\n", macs.join(" "));
    } else {
        text += &format!("Name={}\n", link.name);
    }
    if let Some(mtu) = link.mtu {
        text += &format!("\n[Link]\nMTUBytes={mtu}\n");
    }
    text += "\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n";
    match network.master(&link.name) {
        Some(master) if matches!(master.kind, LinkKind::Bond { .. }) => {
            text += &format!("Bond={}\n", master.name);
        }
        Some(master) => text += &format!("Bridge={}\n", master.name),
        None => {}
    }
    for vlan in network.vlans(&link.name) {
        text += &format!("VLAN={}\n", vlan.name);
    }
    for address in &link.addresses {
        text += &format!("Address={address}\n");
    }
    if network.resolves(&link.name) {
        for server in &network.dns {
            text += &format!("DNS={server}\n");
        }
        let domains: Vec<&str> = network.search.iter().map(|name| name.as_str()).collect();
        if !domains.is_empty() {
            text += &format!("Domains={}\n", domains.join(" "));
        }
    }
    for route in &link.routes {
        text += &format!("\n[Route]\nDestination={}\n", route.to);
        match route.via {
            Some(via) => text += &format!("Gateway={via}\n"),
            None if route.to.addr().is_ipv4() => text += "Scope=link\n",
            None => {}
        }
        if let Some(source) = route.source {
            text += &format!("PreferredSource={source}\n");
        }
        if route.metric != 0 {
            text += &format!("Metric={}\n", route.metric);
        }
        if route.table != MAIN_TABLE {
            text += &format!("Table={}\n", route.table);
        }
    }
    for rule in &link.rules {
        text += &format!(
            "\n[RoutingPolicyRule]\nFrom={}\nPriority={}\nTable={}\n",
            rule.from, rule.priority, rule.table
        );
    }
    text
}

fn word(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
