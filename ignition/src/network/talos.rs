//! Talos: the `machine.network` section that 1.9 to 1.11 read, and the documents that stand beside the machine config
//! from 1.12 on (siderolabs/talos, pkg/machinery/config/types/v1alpha1 and types/network).
//!
//! Ugly facts. Neither has routing rules (1.13's RoutingRuleConfig does), so neither is told of tables, which without a rule
//! lead nowhere. A default route has no destination in a document: one of all zeros is refused there. In the section a VLAN is
//! named after its parent and id, whatever it is called here. A card known by its MAC address gets an alias made of it in the
//! documents, because an alias that equals some card's own name fails. A document of one kind and name may come once,
//! so a host name said here must not be said in the operator's own documents.

use netboot::link::{Link, LinkKind, MAIN_TABLE, Route};
use netboot::net::LinkName;
use serde_json::{Map, Value, json};

use crate::network::{Network, Said, Unsaid, comments, is_default, mac, yaml};

/// `machine.network` as JSON in one line, which YAML takes as a value.
pub fn section(network: &Network) -> Said<String> {
    let mut unsaid = Vec::new();
    let mut section = Map::new();
    if let Some(name) = &network.hostname {
        section.insert("hostname".to_owned(), json!(name.as_str()));
    }
    if !network.dns.is_empty() {
        section.insert("nameservers".to_owned(), json!(network.dns));
    }
    if !network.search.is_empty() {
        section.insert("searchDomains".to_owned(), json!(domains(network)));
    }
    let devices: Vec<Value> = network
        .links()
        .iter()
        .filter(|link| link.kind.parent().is_none())
        .map(|link| device(network, link, &mut unsaid))
        .collect();
    if !devices.is_empty() {
        section.insert("interfaces".to_owned(), json!(devices));
    }
    Said {
        said: Value::Object(section).to_string(),
        unsaid,
    }
}

/// The documents, parted by `---`; empty when there is nothing to say.
pub fn documents(network: &Network) -> Said<String> {
    let mut unsaid = Vec::new();
    let mut documents = Vec::new();
    if let Some(name) = &network.hostname {
        documents.push(document(
            "HostnameConfig",
            &json!({ "hostname": name.as_str() }),
        ));
    }
    for link in network.links() {
        if let Some(mac) = mac(link, &mut unsaid) {
            let name = called(network, &link.name);
            let selector = format!("mac(link.permanent_addr) == \"{mac}\"");
            documents.push(document(
                "LinkAliasConfig",
                &json!({ "name": name, "selector": { "match": selector } }),
            ));
        }
        documents.push(of_link(network, link, &mut unsaid));
    }
    if !network.dns.is_empty() || !network.search.is_empty() {
        let servers: Vec<Value> = network
            .dns
            .iter()
            .map(|server| json!({ "address": server }))
            .collect();
        let mut resolver = json!({ "nameservers": servers });
        if !network.search.is_empty() {
            resolver["searchDomains"] = json!({ "domains": domains(network) });
        }
        documents.push(document("ResolverConfig", &resolver));
    }
    let texts: Vec<String> = documents.iter().map(yaml).collect();
    let said = if texts.is_empty() {
        String::new()
    } else {
        comments(&unsaid) + &texts.join("---\n")
    };
    Said { said, unsaid }
}

fn domains(network: &Network) -> Vec<&str> {
    network.search.iter().map(|name| name.as_str()).collect()
}

fn document(kind: &str, body: &Value) -> Value {
    let mut document = json!({ "apiVersion": "v1alpha1", "kind": kind });
    for (key, value) in body.as_object().into_iter().flatten() {
        document[key] = value.clone();
    }
    document
}

/// What the documents call a link.
fn called(network: &Network, name: &LinkName) -> String {
    let card = network.link(name).map(|link| &link.kind);
    match card {
        Some(LinkKind::Card { macs }) if !macs.is_empty() => {
            format!("mac{}", macs[0].to_string().replace(':', ""))
        }
        _ => name.to_string(),
    }
}

fn of_link(network: &Network, link: &Link, unsaid: &mut Vec<Unsaid>) -> Value {
    let joined = |ports: &[LinkName]| -> Vec<String> {
        ports.iter().map(|port| called(network, port)).collect()
    };
    let (kind, mut body) = match &link.kind {
        LinkKind::Card { .. } => ("LinkConfig", json!({})),
        LinkKind::Vlan { parent, id } => (
            "VLANConfig",
            json!({ "vlanID": id, "vlanMode": "802.1q", "parent": called(network, parent) }),
        ),
        LinkKind::Bridge { ports, stp } => (
            "BridgeConfig",
            json!({ "links": joined(ports), "stp": { "enabled": stp } }),
        ),
        LinkKind::Bond {
            mode,
            ports,
            monitor_millis,
        } => (
            "BondConfig",
            json!({ "links": joined(ports), "bondMode": mode.word(), "miimon": monitor_millis }),
        ),
    };
    body["name"] = json!(called(network, &link.name));
    body["up"] = json!(true);
    if let Some(mtu) = link.mtu {
        body["mtu"] = json!(mtu);
    }
    if !link.addresses.is_empty() {
        let addresses: Vec<Value> = link
            .addresses
            .iter()
            .map(|address| json!({ "address": address }))
            .collect();
        body["addresses"] = json!(addresses);
    }
    let routes: Vec<Value> = main_routes(link, unsaid)
        .map(|route| {
            let mut said = json!({});
            // Without a gateway the family of a default route would be unknown.
            if !is_default(route) || route.via.is_none() {
                said["destination"] = json!(route.to);
            }
            gateway(route, &mut said);
            said
        })
        .collect();
    if !routes.is_empty() {
        body["routes"] = json!(routes);
    }
    document(kind, &body)
}

fn device(network: &Network, link: &Link, unsaid: &mut Vec<Unsaid>) -> Value {
    let mut body = json!({ "dhcp": false });
    match mac(link, unsaid) {
        Some(mac) => body["deviceSelector"] = json!({ "hardwareAddr": mac, "physical": true }),
        None => body["interface"] = json!(link.name),
    }
    match &link.kind {
        LinkKind::Card { .. } | LinkKind::Vlan { .. } => {}
        LinkKind::Bridge { ports, stp } => {
            named_ports(network, link, unsaid);
            body["bridge"] = json!({ "interfaces": ports, "stp": { "enabled": stp } });
        }
        LinkKind::Bond {
            mode,
            ports,
            monitor_millis,
        } => {
            let macs: Vec<Value> = ports
                .iter()
                .filter_map(|port| match &network.link(port)?.kind {
                    LinkKind::Card { macs } => {
                        Some(json!({ "hardwareAddr": macs.first()?, "physical": true }))
                    }
                    LinkKind::Vlan { .. } | LinkKind::Bridge { .. } | LinkKind::Bond { .. } => None,
                })
                .collect();
            // One or the other, never both.
            body["bond"] = if macs.len() == ports.len() {
                json!({ "deviceSelectors": macs, "mode": mode.word(), "miimon": monitor_millis })
            } else {
                named_ports(network, link, unsaid);
                json!({ "interfaces": ports, "mode": mode.word(), "miimon": monitor_millis })
            };
        }
    }
    filled(link, &mut body, unsaid);
    let vlans: Vec<Value> = network
        .vlans(&link.name)
        .map(|vlan| {
            let mut body = json!({ "dhcp": false });
            if let LinkKind::Vlan { parent, id } = &vlan.kind {
                body["vlanId"] = json!(id);
                if vlan.name.as_str() != format!("{parent}.{}", id.get()) {
                    unsaid.push(Unsaid::of(
                        vlan,
                        "its name; it is named after its parent and id",
                    ));
                }
            }
            for upper in network.vlans(&vlan.name) {
                unsaid.push(Unsaid::of(upper, "all of it: a VLAN on a VLAN"));
            }
            filled(vlan, &mut body, unsaid);
            body
        })
        .collect();
    if !vlans.is_empty() {
        body["vlans"] = json!(vlans);
    }
    body
}

/// Ports that are known by their MAC address and can only be named here.
fn named_ports(network: &Network, link: &Link, unsaid: &mut Vec<Unsaid>) {
    for port in link.kind.ports() {
        if called(network, port) != port.as_str() {
            let what = format!("its port {port} by MAC address; it is taken by its name");
            unsaid.push(Unsaid::of(link, what));
        }
    }
}

/// The parts that a device and a VLAN of the section share.
fn filled(link: &Link, body: &mut Value, unsaid: &mut Vec<Unsaid>) {
    if let Some(mtu) = link.mtu {
        body["mtu"] = json!(mtu);
    }
    if !link.addresses.is_empty() {
        body["addresses"] = json!(link.addresses);
    }
    let routes: Vec<Value> = main_routes(link, unsaid)
        .map(|route| {
            let mut said = json!({ "network": route.to });
            gateway(route, &mut said);
            said
        })
        .collect();
    if !routes.is_empty() {
        body["routes"] = json!(routes);
    }
}

fn gateway(route: &Route, said: &mut Value) {
    if let Some(via) = route.via {
        said["gateway"] = json!(via);
    }
    if let Some(source) = route.source {
        said["source"] = json!(source);
    }
    if route.metric != 0 {
        said["metric"] = json!(route.metric);
    }
}

/// Routes of the main table; all others, and the rules, are named as unsaid.
fn main_routes<'a>(link: &'a Link, unsaid: &mut Vec<Unsaid>) -> impl Iterator<Item = &'a Route> {
    for route in &link.routes {
        if route.table != MAIN_TABLE {
            let what = format!("the route to {} in table {}", route.to, route.table);
            unsaid.push(Unsaid::of(link, what));
        }
    }
    for rule in &link.rules {
        let what = format!("the rule from {} to table {}", rule.from, rule.table);
        unsaid.push(Unsaid::of(link, what));
    }
    link.routes.iter().filter(|route| route.table == MAIN_TABLE)
}
