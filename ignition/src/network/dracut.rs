//! Kernel arguments that an initramfs makes its network from: dracut's `network-legacy` and NetworkManager's
//! `nm-initrd-generator` read the same words (dracut.cmdline(7), "Network"; nm-initrd-generator(8)).
//!
//! ```text
//! ifname=lan0:52:54:00:aa:00:01   vlan=lan0.107:lan0   bond=bond0:eth1,eth2:mode=802.3ad,miimon=100   bridge=br0:eth1
//! ip=ADDRESS::GATEWAY:MASK:HOSTNAME:LINK:none[:MTU]    rd.route=NET:GATEWAY:LINK    nameserver=ADDRESS
//! ```
//!
//! Ugly facts. A VLAN's id is read from the end of its name, so a name that doesn't end in it can't be said. Tables,
//! rules, metrics and source addresses have no words: whoever needs them says them again in the installed system's own format.
//! An IPv6 address is put in brackets everywhere, because the words are parted by colons. A card given the name
//! that the kernel would give to another (`eth0`) may meet it on its way.

use std::net::IpAddr;

use ipnet::IpNet;
use netboot::link::{Link, LinkKind, MAIN_TABLE, Route};

use crate::network::{Network, Said, Unsaid, is_default, mac, same_family};

/// The arguments, one string each, none with a space in it.
pub fn arguments(network: &Network) -> Said<Vec<String>> {
    let mut said = Said::default();
    for link in network.links() {
        made(link, &mut said);
    }
    let mut hostname = network.hostname.as_ref();
    for link in network.links() {
        if network.master(&link.name).is_some() {
            if let Some(mtu) = link.mtu {
                said.unsaid
                    .push(Unsaid::of(link, format!("MTU {mtu}, because it is a port")));
            }
            continue;
        }
        let name = hostname.map_or("", |hostname| hostname.as_str());
        if addressed(link, name, &mut said) {
            hostname = None;
        }
    }
    if let Some(hostname) = hostname {
        let what = format!("the host name {hostname}, because no link has an address");
        said.unsaid.push(Unsaid::of_host(what));
    }
    said.said.extend(
        network
            .dns
            .iter()
            .map(|server| format!("nameserver={}", host(*server))),
    );
    if !network.search.is_empty() {
        said.unsaid.push(Unsaid::of_host("the search domains"));
    }
    if !said.said.is_empty() {
        // Without it a local root is not made to wait for a network.
        said.said.insert(0, "rd.neednet=1".to_owned());
    }
    said
}

/// What makes or names the link itself.
fn made(link: &Link, said: &mut Said<Vec<String>>) {
    let name = &link.name;
    let ports = |ports: &[_]| {
        let names: Vec<String> = ports.iter().map(ToString::to_string).collect();
        names.join(",")
    };
    match &link.kind {
        LinkKind::Card { .. } => {
            if let Some(mac) = mac(link, &mut said.unsaid) {
                said.said.push(format!("ifname={name}:{mac}"));
            }
        }
        LinkKind::Vlan { parent, id } => {
            if !ends_in(name.as_str(), id.get()) {
                let what = format!(
                    "all of it: its name must be vlan{} or end in .{} for its id to be read",
                    id.get(),
                    id.get()
                );
                said.unsaid.push(Unsaid::of(link, what));
                return;
            }
            said.said.push(format!("vlan={name}:{parent}"));
        }
        LinkKind::Bridge { ports: joined, stp } => {
            if *stp {
                said.unsaid
                    .push(Unsaid::of(link, "the spanning tree protocol"));
            }
            said.said.push(format!("bridge={name}:{}", ports(joined)));
        }
        LinkKind::Bond {
            mode,
            ports: joined,
            monitor_millis,
        } => {
            let mode = mode.word();
            said.said.push(format!(
                "bond={name}:{}:mode={mode},miimon={monitor_millis}",
                ports(joined)
            ));
        }
    }
}

/// Whether both readers take the id from the name: `network-legacy` knows `vlan107` and `eth0.107` only.
fn ends_in(name: &str, id: u16) -> bool {
    let digits = name
        .strip_prefix("vlan")
        .or_else(|| name.rsplit_once('.').map(|(_, digits)| digits));
    digits.is_some_and(|digits| {
        digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse() == Ok(id)
    })
}

/// The link's addresses and routes. True when the host name has been said with them.
fn addressed(link: &Link, hostname: &str, said: &mut Said<Vec<String>>) -> bool {
    let name = &link.name;
    if let LinkKind::Vlan { id, .. } = link.kind
        && !ends_in(name.as_str(), id.get())
    {
        return false;
    }
    let (main, other): (Vec<&Route>, Vec<&Route>) = link
        .routes
        .iter()
        .partition(|route| route.table == MAIN_TABLE);
    let (gateways, routes): (Vec<&Route>, Vec<&Route>) = main
        .into_iter()
        .partition(|route| is_default(route) && route.via.is_some());
    let mtu = link.mtu.map_or(String::new(), |mtu| format!(":{mtu}"));
    let mut first = [true, true];
    for (index, net) in link.addresses.iter().enumerate() {
        // The gateway goes with the first address of its family.
        let first = std::mem::take(&mut first[usize::from(net.addr().is_ipv6())]);
        let gateway = gateways
            .iter()
            .filter_map(|route| route.via)
            .find(|via| first && same_family(net, *via))
            .map_or(String::new(), host);
        let mask = match net {
            IpNet::V4(net) => net.netmask().to_string(),
            IpNet::V6(net) => net.prefix_len().to_string(),
        };
        let (hostname, mtu) = if index == 0 {
            (hostname, mtu.as_str())
        } else {
            ("", "")
        };
        let address = host(net.addr());
        said.said.push(format!(
            "ip={address}::{gateway}:{mask}:{hostname}:{name}:none{mtu}"
        ));
    }
    if link.addresses.is_empty() && (link.kind.parent().is_some() || link.mtu.is_some()) {
        // A link that is made and not spoken of would ask for an address.
        said.said.push(format!("ip={name}:none{mtu}"));
    }
    for route in &routes {
        let via = route.via.map_or(String::new(), host);
        let to = match route.to {
            IpNet::V4(net) => net.to_string(),
            IpNet::V6(net) => format!("[{net}]"),
        };
        said.said.push(format!("rd.route={to}:{via}:{name}"));
    }
    unsaid_routes(link, &gateways, &routes, &other, &mut said.unsaid);
    !link.addresses.is_empty()
}

fn unsaid_routes(
    link: &Link,
    gateways: &[&Route],
    routes: &[&Route],
    other: &[&Route],
    unsaid: &mut Vec<Unsaid>,
) {
    for is_v4 in [true, false] {
        let of_family: Vec<IpAddr> = gateways
            .iter()
            .filter_map(|route| route.via)
            .filter(|via| via.is_ipv4() == is_v4)
            .collect();
        let any = link
            .addresses
            .iter()
            .any(|net| net.addr().is_ipv4() == is_v4);
        for via in of_family.iter().skip(usize::from(any)) {
            unsaid.push(Unsaid::of(link, format!("the gateway {via}")));
        }
    }
    for route in gateways.iter().chain(routes) {
        if route.metric != 0 {
            let what = format!("metric {} of the route to {}", route.metric, route.to);
            unsaid.push(Unsaid::of(link, what));
        }
        if let Some(source) = route.source {
            let what = format!("source {source} of the route to {}", route.to);
            unsaid.push(Unsaid::of(link, what));
        }
    }
    for route in other {
        let what = format!("the route to {} in table {}", route.to, route.table);
        unsaid.push(Unsaid::of(link, what));
    }
    for rule in &link.rules {
        let what = format!("the rule from {} to table {}", rule.from, rule.table);
        unsaid.push(Unsaid::of(link, what));
    }
}

/// An address as the readers take it between colons.
fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
