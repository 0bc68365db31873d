//! What `platformConfig` says of a k3s cluster.

use serde_json::{Map, Value};

use crate::platform::SettingFault;

/// Keys of `config.yaml` that the definition or the cluster's secrets say.
const SAID: [&str; 16] = [
    "token",
    "token-file",
    "agent-token",
    "agent-token-file",
    "server",
    "cluster-init",
    "cluster-reset",
    "datastore-endpoint",
    "data-dir",
    "config",
    "node-ip",
    "node-name",
    "cluster-cidr",
    "service-cidr",
    "tls-san",
    "selinux",
];

/// `platformConfig`, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Packaged parts that are left out: `traefik`, `servicelb`, …
    pub disable: Vec<String>,
    /// Whether containers are confined by SELinux; wants k3s-selinux on the system.
    pub selinux: bool,
    /// How pods reach each other; k3s' own default when empty.
    pub flannel_backend: Option<String>,
    /// More names and addresses of the API.
    pub tls_sans: Vec<String>,
    /// Keys for the system's first user.
    pub ssh_keys: Vec<String>,
    /// More of the servers' `config.yaml`, word for word.
    pub server: Map<String, Value>,
    /// More of the agents' `config.yaml`, word for word.
    pub agent: Map<String, Value>,
}

/// Reads `platformConfig`.
///
/// # Errors
/// Every key that is unknown, of the wrong kind, or not its to say.
pub fn judge(settings: &Value) -> Result<Settings, Vec<SettingFault>> {
    let (mut read, mut faults) = (Settings::default(), Vec::new());
    let empty = Map::new();
    let keys = match settings {
        Value::Null => &empty,
        Value::Object(keys) => keys,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let remedy = "write keys and values";
            return Err(vec![SettingFault::new(
                "",
                settings,
                "is no mapping",
                remedy,
            )]);
        }
    };
    for (key, value) in keys {
        let pointer = format!("/{key}");
        let mut refuse = |problem: &str, remedy: &str| {
            faults.push(SettingFault::new(pointer.clone(), value, problem, remedy));
        };
        match key.as_str() {
            "disable" | "tlsSan" | "sshKeys" => match (key.as_str(), texts(value)) {
                ("disable", Some(texts)) => read.disable = texts,
                ("tlsSan", Some(texts)) => read.tls_sans = texts,
                (_, Some(texts)) => read.ssh_keys = texts,
                (_, None) => refuse("is no list of texts", "write a list, such as [traefik]"),
            },
            "selinux" => match value.as_bool() {
                Some(on) => read.selinux = on,
                None => refuse("is neither true nor false", "write one of the two"),
            },
            "flannelBackend" => match value.as_str() {
                Some(word @ ("none" | "vxlan" | "host-gw" | "wireguard-native")) => {
                    read.flannel_backend = Some(word.to_owned());
                }
                _ => refuse(
                    "is no backend",
                    "use vxlan, host-gw, wireguard-native or none",
                ),
            },
            "server" | "agent" => match value.as_object() {
                Some(more) => {
                    faults.extend(not_theirs(&pointer, more));
                    let place = if key == "server" {
                        &mut read.server
                    } else {
                        &mut read.agent
                    };
                    place.clone_from(more);
                }
                None => refuse("is no mapping", "write keys of k3s' config.yaml"),
            },
            _ => refuse(
                "is not known",
                "use disable, selinux, flannelBackend, tlsSan, sshKeys, server or agent",
            ),
        }
    }
    // Maps come in the order of their reader, people read by key.
    faults.sort_by(|one, other| one.pointer.cmp(&other.pointer));
    if faults.is_empty() {
        Ok(read)
    } else {
        Err(faults)
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items.map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A key is the same with a `+` behind it, which adds to the list of another file.
fn not_theirs(pointer: &str, more: &Map<String, Value>) -> Vec<SettingFault> {
    let said = |key: &&String| SAID.contains(&key.trim_end_matches('+'));
    let theirs = more.keys().filter(said);
    theirs
        .map(|key| {
            SettingFault::new(
                format!("{pointer}/{key}"),
                &Value::Null,
                "is said by the definition",
                "leave it out; tlsSan, selinux and the networks have keys of their own",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_are_unknown_or_said_elsewhere_are_refused_all_at_once() {
        let settings = json!({
            "disable": "traefik",
            "flannelBackend": "ipsec",
            "server": { "token": "x", "tls-san+": ["y"], "etcd-expose-metrics": true },
            "agents": {},
        });
        let faults = judge(&settings).unwrap_err();
        let pointers: Vec<&str> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/agents",
                "/disable",
                "/flannelBackend",
                "/server/tls-san+",
                "/server/token"
            ]
        );
    }
}
