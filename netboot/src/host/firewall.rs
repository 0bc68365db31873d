//! The table of nftables that closes the bastion's services where they don't belong, and lets machines out.
//!
//! ```text
//!   input        what came in by a link on which a service is not open is dropped; nothing else is filtered
//!   forward      with masquerade: new connections into the inside are dropped
//!   postrouting  with masquerade: the inside leaves under the bastion's address
//! ```
//!
//! Every chain's policy is accept and every drop names a port or an inside link, so the table can't lock an administrator out.
//! It holds no sets: nft prints their elements in an order of its own, and a table that is read back must be equal to the one written.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::spec::{HostSpec, Masquerade, Service, Transport};
use super::state::{Ruleset, TABLE};
use crate::net::LinkName;

/// Our table of the firewall; `None` when there is nothing to filter and nothing to masquerade.
///
/// It is a fixed point: nft prints it as it was written (libnftables-json(5)).
#[must_use]
pub fn ruleset(spec: &HostSpec) -> Option<Ruleset> {
    let inside: BTreeSet<&LinkName> = spec.masquerade.iter().map(|way| &way.inside).collect();
    let (mut chains, mut rules) = (Vec::new(), Vec::new());
    if !spec.services.is_empty() {
        chains.push(chain("input", "filter", 0));
        rules.push(rule(
            "input",
            "loopback",
            &[name_is("iifname", "lo")],
            "accept",
        ));
        rules.extend(spec.services.iter().flat_map(closed_elsewhere));
    }
    if !inside.is_empty() {
        chains.push(chain("forward", "filter", 0));
        chains.push(chain("postrouting", "nat", 100));
        let known = json!({ "match": {
            "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"]
        }});
        rules.push(rule("forward", "answers", &[known], "accept"));
        for link in &inside {
            let from = name_is("iifname", link.as_str());
            rules.push(rule("forward", "from inside", &[from], "accept"));
        }
        for link in &inside {
            let into = name_is("oifname", link.as_str());
            rules.push(rule("forward", "new from outside", &[into], "drop"));
        }
        rules.extend(spec.masquerade.iter().map(masquerade));
    }
    chains.append(&mut rules);
    (!chains.is_empty()).then_some(Ruleset(chains))
}

/// The port is left alone on the service's links, and dropped on all others.
fn closed_elsewhere(service: &Service) -> impl Iterator<Item = Value> {
    let protocol = match service.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let port = json!({ "match": {
        "op": "==", "left": { "payload": { "protocol": protocol, "field": "dport" } }, "right": service.port
    }});
    let open = service.links.iter().map({
        let port = port.clone();
        move |link| {
            let by = name_is("iifname", link.as_str());
            rule("input", service.name, &[by, port.clone()], "accept")
        }
    });
    open.chain([rule("input", service.name, &[port], "drop")])
}

fn masquerade(way: &Masquerade) -> Value {
    let from = json!({ "match": {
        "op": "==",
        "left": { "payload": { "protocol": "ip", "field": "saddr" } },
        "right": { "prefix": { "addr": way.from.network(), "len": way.from.prefix() } }
    }});
    let out = name_is("oifname", way.out.as_str());
    rule(
        "postrouting",
        way.inside.as_str(),
        &[from, out],
        "masquerade",
    )
}

fn name_is(key: &str, name: &str) -> Value {
    json!({ "match": { "op": "==", "left": { "meta": { "key": key } }, "right": name } })
}

fn chain(name: &str, kind: &str, priority: i32) -> Value {
    json!({ "chain": {
        "family": "inet", "table": TABLE, "name": name,
        "type": kind, "hook": name, "prio": priority, "policy": "accept"
    }})
}

fn rule(chain: &str, comment: &str, matches: &[Value], verdict: &str) -> Value {
    let mut expressions = matches.to_vec();
    expressions.push(json!({ verdict: null }));
    json!({ "rule": {
        "family": "inet", "table": TABLE, "chain": chain, "comment": comment, "expr": expressions
    }})
}
