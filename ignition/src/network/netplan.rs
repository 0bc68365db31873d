//! Netplan's version 2, which is also cloud-init's network-config (netplan's doc/netplan-yaml.md;
//! cloud-init's doc/rtd/reference/network-config-format-v2.rst).
//!
//! Ugly facts. Only where cloud-init hands the document to netplan (Ubuntu) does all of it count. Where it writes other
//! files from it (Debian, RHEL), it puts routes of every table into the main one, forgets rules, and dies of a route without a gateway
//! (cloudinit/net/eni.py, `_render_route`); so what is meant for any cloud-init says less. A route without a gateway needs `scope:
//! link`. A card is renamed to its name here when its MAC address is known. With networkd beneath, a bridge's MTU follows its ports.
//! Values that another YAML reader would take for something else (a MAC of decimal digits is a number of base 60 in YAML 1.1) are quoted.

use netboot::link::{Link, LinkKind, MAIN_TABLE, Route};
use serde_json::{Map, Value, json};

use crate::network::{Network, Said, Unsaid, comments, mac, yaml};

/// Who reads the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Netplan itself, which knows every word.
    Netplan,
    /// Any cloud-init: only words that all of its writers take as they are meant.
    CloudInit,
}

/// The document, with its `network` key at the top.
pub fn document(network: &Network, reader: Reader) -> Said<String> {
    let mut unsaid: Vec<Unsaid> = network.unresolved().into_iter().collect();
    if network.hostname.is_some() {
        unsaid.push(Unsaid::of_host(
            "the host name; cloud-init has it from meta-data",
        ));
    }
    let mut top = Map::new();
    top.insert("version".to_owned(), json!(2));
    for link in network.links() {
        let section = match link.kind {
            LinkKind::Card { .. } => "ethernets",
            LinkKind::Vlan { .. } => "vlans",
            LinkKind::Bridge { .. } => "bridges",
            LinkKind::Bond { .. } => "bonds",
        };
        let body = body(network, link, reader, &mut unsaid);
        let links = top.entry(section).or_insert_with(|| json!({}));
        links[link.name.as_str()] = Value::Object(body);
    }
    let text = comments(&unsaid) + &yaml(&json!({ "network": top }));
    Said { said: text, unsaid }
}

fn body(
    network: &Network,
    link: &Link,
    reader: Reader,
    unsaid: &mut Vec<Unsaid>,
) -> Map<String, Value> {
    let mut body = Map::new();
    let mut say = |key: &str, value: Value| body.insert(key.to_owned(), value);
    match &link.kind {
        LinkKind::Card { .. } => {
            if let Some(mac) = mac(link, unsaid) {
                say("match", json!({ "macaddress": mac }));
                say("set-name", json!(link.name));
            }
        }
        LinkKind::Vlan { parent, id } => {
            say("id", json!(id));
            say("link", json!(parent));
        }
        LinkKind::Bridge { ports, stp } => {
            say("interfaces", json!(ports));
            say("parameters", json!({ "stp": stp }));
        }
        LinkKind::Bond {
            mode,
            ports,
            monitor_millis,
        } => {
            say("interfaces", json!(ports));
            say(
                "parameters",
                json!({ "mode": mode.word(), "mii-monitor-interval": monitor_millis }),
            );
        }
    }
    say("dhcp4", json!(false));
    say("dhcp6", json!(false));
    if network.master(&link.name).is_none() {
        say("accept-ra", json!(false));
    }
    if let Some(mtu) = link.mtu {
        say("mtu", json!(mtu));
        if follows_ports(network, link) {
            let what = format!("that MTU {mtu} holds; give its ports the same, or it follows them");
            unsaid.push(Unsaid::of(link, what));
        }
    }
    if !link.addresses.is_empty() {
        say("addresses", json!(link.addresses));
    }
    if network.resolves(&link.name) {
        let search: Vec<&str> = network.search.iter().map(|name| name.as_str()).collect();
        say(
            "nameservers",
            json!({ "addresses": network.dns, "search": search }),
        );
    }
    let portable = |route: &&Route| route.table == MAIN_TABLE && route.via.is_some();
    let (routes, left): (Vec<&Route>, Vec<&Route>) = link
        .routes
        .iter()
        .partition(|route| reader == Reader::Netplan || portable(route));
    for route in left {
        let what = format!("the route to {} in table {}", route.to, route.table);
        unsaid.push(Unsaid::of(link, what));
    }
    if !routes.is_empty() {
        say("routes", routes.into_iter().map(route).collect());
    }
    match reader {
        Reader::Netplan if !link.rules.is_empty() => {
            let rules = link.rules.iter().map(
                |rule| json!({ "from": rule.from, "table": rule.table, "priority": rule.priority }),
            );
            say("routing-policy", rules.collect());
        }
        Reader::Netplan => {}
        Reader::CloudInit => {
            for rule in &link.rules {
                let what = format!("the rule from {} to table {}", rule.from, rule.table);
                unsaid.push(Unsaid::of(link, what));
            }
        }
    }
    body
}

/// Whether a bridge would get another MTU than its own from its ports.
fn follows_ports(network: &Network, link: &Link) -> bool {
    let LinkKind::Bridge { ports, .. } = &link.kind else {
        return false;
    };
    let least = ports
        .iter()
        .map(|port| network.link(port).and_then(|port| port.mtu))
        .min();
    link.mtu.is_some() && !ports.is_empty() && least != Some(link.mtu)
}

fn route(route: &Route) -> Value {
    let mut said = json!({ "to": route.to });
    match route.via {
        Some(via) => said["via"] = json!(via),
        None => said["scope"] = json!("link"),
    }
    if let Some(source) = route.source {
        said["from"] = json!(source);
    }
    if route.metric != 0 {
        said["metric"] = json!(route.metric);
    }
    if route.table != MAIN_TABLE {
        said["table"] = json!(route.table);
    }
    said
}
