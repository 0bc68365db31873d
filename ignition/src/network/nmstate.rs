//! nmstate: the wanted state as one document for `nmstatectl apply` or OpenShift's NodeNetworkConfigurationPolicy
//! (nmstate.io/devel/api.html).
//!
//! Ugly facts. Whatever the document does not name is left as it is, except that a bridge's list of ports is whole. Without a carrier
//! nmstate still brings a link up. Addresses of a family need `enabled`, and so does having none.

use netboot::link::{Link, LinkKind, MAIN_TABLE, Route};
use serde_json::{Value, json};

use crate::network::{Network, Said, comments, mac, yaml};

/// The document.
pub fn document(network: &Network) -> Said<String> {
    let mut unsaid = Vec::new();
    let interfaces: Vec<Value> = network
        .links()
        .iter()
        .filter(|link| !network.is_others(link))
        .map(|link| interface(network, link, &mut unsaid))
        .collect();
    let mut document = json!({ "interfaces": interfaces });
    let links = network.links();
    let routes: Vec<Value> = links
        .iter()
        .flat_map(|link| link.routes.iter().map(move |route| said_route(link, route)))
        .collect();
    if !routes.is_empty() {
        document["routes"] = json!({ "config": routes });
    }
    let rules: Vec<Value> = links
        .iter()
        .flat_map(|link| &link.rules)
        .map(|rule| json!({ "ip-from": rule.from, "priority": rule.priority, "route-table": rule.table }))
        .collect();
    if !rules.is_empty() {
        document["route-rules"] = json!({ "config": rules });
    }
    if !network.dns.is_empty() || !network.search.is_empty() {
        let search: Vec<&str> = network.search.iter().map(|name| name.as_str()).collect();
        document["dns-resolver"] = json!({ "config": { "server": network.dns, "search": search } });
    }
    if let Some(name) = &network.hostname {
        document["hostname"] = json!({ "config": name.as_str() });
    }
    let text = comments(&unsaid) + &yaml(&document);
    Said { said: text, unsaid }
}

fn interface(network: &Network, link: &Link, unsaid: &mut Vec<crate::network::Unsaid>) -> Value {
    let mut body = json!({ "name": link.name, "state": "up" });
    match &link.kind {
        LinkKind::Card { .. } => {
            body["type"] = json!("ethernet");
            if let Some(mac) = mac(link, unsaid) {
                body["identifier"] = json!("mac-address");
                body["mac-address"] = json!(mac);
            }
        }
        LinkKind::Vlan { parent, id } => {
            body["type"] = json!("vlan");
            body["vlan"] = json!({ "base-iface": parent, "id": id });
        }
        LinkKind::Bridge { ports, stp } => {
            let ports: Vec<Value> = ports.iter().map(|port| json!({ "name": port })).collect();
            body["type"] = json!("linux-bridge");
            body["bridge"] = json!({ "options": { "stp": { "enabled": stp } }, "port": ports });
        }
        LinkKind::Bond {
            mode,
            ports,
            monitor_millis,
        } => {
            let options = json!({ "miimon": monitor_millis });
            body["type"] = json!("bond");
            body["link-aggregation"] =
                json!({ "mode": mode.word(), "options": options, "port": ports });
        }
    }
    if let Some(mtu) = link.mtu {
        body["mtu"] = json!(mtu);
    }
    if network.master(&link.name).is_none() {
        body["ipv4"] = protocol(link, true);
        body["ipv6"] = protocol(link, false);
    }
    body
}

fn protocol(link: &Link, v4: bool) -> Value {
    let addresses: Vec<Value> = link
        .addresses
        .iter()
        .filter(|net| net.addr().is_ipv4() == v4)
        .map(|net| json!({ "ip": net.addr(), "prefix-length": net.prefix_len() }))
        .collect();
    let mut body = json!({ "enabled": !addresses.is_empty() || !v4, "dhcp": false });
    if !v4 {
        body["autoconf"] = json!(false);
    }
    if !addresses.is_empty() {
        body["address"] = json!(addresses);
    }
    body
}

fn said_route(link: &Link, route: &Route) -> Value {
    let mut body = json!({ "destination": route.to, "next-hop-interface": link.name });
    if let Some(via) = route.via {
        body["next-hop-address"] = json!(via);
    }
    if let Some(source) = route.source {
        body["source"] = json!(source);
    }
    if route.metric != 0 {
        body["metric"] = json!(route.metric);
    }
    if route.table != MAIN_TABLE {
        body["table-id"] = json!(route.table);
    }
    body
}
