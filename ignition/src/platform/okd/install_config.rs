//! `install-config.yaml`: what `openshift-install` is told, from the definition and its `platformConfig`.

use netboot::net::{Hostname, Subnet};
use serde_json::{Map, Value, json};

use crate::platform::SettingFault;
use crate::secret::Secret;

/// What OKD takes where nobody has a pull secret of Red Hat's (okd-project/okd, README.md).
const FAKE_PULL_SECRET: &str = r#"{"auths":{"fake":{"auth":"aWQ6cGFzcwo="}}}"#;
/// Pod addresses of one node, as the installer's default of `hostPrefix` counts them.
const HOST_PREFIX: u8 = 23;
/// The smallest that still holds the pods of a node.
const HOST_PREFIX_MAX: u8 = 26;

/// What `platformConfig` says of an OKD cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Keys for the user `core`.
    pub ssh_keys: Vec<String>,
    /// A file of the bastion with the pull secret, below the site's directory or absolute.
    pub pull_secret_file: Option<String>,
    /// More of `install-config.yaml`, word for word.
    pub install_config: Map<String, Value>,
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
        match (key.as_str(), value) {
            ("sshKey", Value::String(text)) => {
                let lines = text.lines().map(str::trim);
                read.ssh_keys = lines
                    .filter(|line| !line.is_empty())
                    .map(str::to_owned)
                    .collect();
            }
            ("pullSecretFile", Value::String(path)) => read.pull_secret_file = Some(path.clone()),
            ("installConfig", Value::Object(more)) => {
                read.install_config.clone_from(more);
                faults.extend(not_theirs(more));
            }
            ("sshKey" | "pullSecretFile", _) => refuse("is no text", "write it as text"),
            ("installConfig", _) => refuse("is no mapping", "write keys of install-config.yaml"),
            ("pullSecret", _) => refuse(
                "is a secret in the site's files",
                "put it into a file that only root can read, and name that with pullSecretFile",
            ),
            _ => refuse(
                "is not known",
                "use sshKey, pullSecretFile or installConfig",
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

/// Keys of `installConfig` that the definition says already.
fn not_theirs(more: &Map<String, Value>) -> Vec<SettingFault> {
    const SAID: [(&str, &str); 9] = [
        ("/apiVersion", "leave it out"),
        ("/baseDomain", "set the cluster's domain"),
        ("/metadata", "set the cluster's name"),
        ("/platform", "machines of one's own are platform none"),
        ("/compute", "set the counts of the node groups"),
        ("/controlPlane", "set the counts of the node groups"),
        ("/pullSecret", "use pullSecretFile"),
        ("/sshKey", "use platformConfig.sshKey"),
        (
            "/networking/clusterNetwork",
            "set the cluster's pod networks",
        ),
    ];
    let more = Value::Object(more.clone());
    let services = (
        "/networking/serviceNetwork",
        "set the cluster's service networks",
    );
    let machines = ("/networking/machineNetwork", "set the cluster's network");
    let said = SAID.into_iter().chain([services, machines]);
    said.filter_map(|(pointer, remedy)| {
        let value = more.pointer(pointer)?;
        let pointer = format!("/installConfig{pointer}");
        Some(SettingFault::new(
            pointer,
            value,
            "is said by the definition",
            remedy,
        ))
    })
    .collect()
}

/// What the definition says, as far as the installer asks.
#[derive(Clone, Copy, Debug)]
pub struct Definition<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Its base domain.
    pub domain: &'a Hostname,
    /// Where its machines have their addresses.
    pub machines: Subnet,
    /// Pod addresses; never empty.
    pub pods: &'a [Subnet],
    /// Service addresses; never empty.
    pub services: &'a [Subnet],
    /// How many control planes.
    pub control_planes: usize,
    /// How many workers and infra nodes.
    pub workers: usize,
}

/// `install-config.yaml` but for its pull secret.
///
/// Workers are none to the installer: it makes machines only where it knows their maker.
///
/// # Errors
/// A pod network that has no room for the cluster's nodes.
pub fn install_config(
    definition: &Definition<'_>,
    settings: &Settings,
) -> Result<Value, SettingFault> {
    let nodes = definition.control_planes + definition.workers;
    let mut pods = Vec::new();
    for subnet in definition.pods {
        let prefix = host_prefix(*subnet, nodes).ok_or_else(|| {
            SettingFault::new(
                "",
                &json!(subnet.to_string()),
                format!("has no room for the pods of {nodes} nodes"),
                format!(
                    "give the cluster a pod network of /{} or larger",
                    room_for(nodes)
                ),
            )
        })?;
        pods.push(json!({ "cidr": subnet.to_string(), "hostPrefix": prefix }));
    }
    let services: Vec<String> = definition
        .services
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut config = json!({
        "apiVersion": "v1",
        "metadata": { "name": definition.cluster },
        "baseDomain": definition.domain.as_str(),
        "controlPlane": { "name": "master", "replicas": definition.control_planes },
        "compute": [{ "name": "worker", "replicas": 0 }],
        "networking": {
            "networkType": "OVNKubernetes",
            "clusterNetwork": pods,
            "serviceNetwork": services,
            "machineNetwork": [{ "cidr": definition.machines.to_string() }],
        },
        "platform": { "none": {} },
    });
    if !settings.ssh_keys.is_empty() {
        config["sshKey"] = settings.ssh_keys.join("\n").into();
    }
    lay_over(&mut config, &Value::Object(settings.install_config.clone()));
    Ok(config)
}

/// The whole `install-config.yaml`, as JSON, which every YAML reader takes.
#[must_use]
pub fn with_pull_secret(mut config: Value, pull_secret: Option<&Secret<String>>) -> Secret<String> {
    let pull_secret = pull_secret.map_or(FAKE_PULL_SECRET, |secret| secret.expose().trim());
    config["pullSecret"] = pull_secret.into();
    Secret::new(format!("{config:#}\n"))
}

/// The installer's scheduler manifest, with its word on whether control planes take ordinary load. JSON is YAML to its
/// reader.
///
/// # Errors
/// Why the text is none.
pub fn schedule_masters(manifest: &str, masters: bool) -> Result<String, &'static str> {
    let mut scheduler: Value = serde_saphyr::from_str(manifest).map_err(|_| "is no YAML")?;
    let spec = scheduler.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.ok_or("has no spec")?;
    spec.insert("mastersSchedulable".to_owned(), masters.into());
    Ok(scheduler.to_string())
}

/// The prefix of one node's pods: the installer's own where it fits.
fn host_prefix(pods: Subnet, nodes: usize) -> Option<u8> {
    (HOST_PREFIX..=HOST_PREFIX_MAX).find(|prefix| {
        let bits = prefix.saturating_sub(pods.prefix());
        *prefix >= pods.prefix() && (1_usize << bits) >= nodes
    })
}

fn room_for(nodes: usize) -> u8 {
    let fits = |prefix: &u8| (1_usize << (HOST_PREFIX_MAX - prefix)) >= nodes;
    (1..=HOST_PREFIX_MAX).rev().find(fits).unwrap_or(1)
}

/// Mappings are joined, anything else is replaced.
fn lay_over(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                lay_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().unwrap()
    }

    fn made(pods: &str, settings: &Value) -> Result<Value, SettingFault> {
        let (pods, services) = ([sound(pods)], [sound("172.30.0.0/16")]);
        let domain = sound("lab.example");
        let definition = Definition {
            cluster: "okd",
            domain: &domain,
            machines: sound("10.107.0.0/24"),
            pods: &pods,
            services: &services,
            control_planes: 3,
            workers: 2,
        };
        let settings = judge(settings).unwrap();
        let text = with_pull_secret(install_config(&definition, &settings)?, None);
        Ok(serde_saphyr::from_str(text.expose()).unwrap())
    }

    #[test]
    fn an_install_config_says_what_the_definition_says_and_lays_the_rest_over_it() {
        let settings = json!({
            "sshKey": "ssh-ed25519 AAAA one\n\nssh-ed25519 AAAA two\n",
            "installConfig": { "networking": { "networkType": "OpenShiftSDN" }, "fips": true },
        });
        let config = made("10.128.0.0/14", &settings).unwrap();
        for (pointer, wanted) in [
            ("/metadata/name", json!("okd")),
            ("/baseDomain", json!("lab.example")),
            ("/controlPlane/replicas", json!(3)),
            ("/compute/0/replicas", json!(0)),
            ("/platform", json!({ "none": {} })),
            ("/networking/clusterNetwork/0/hostPrefix", json!(23)),
            ("/networking/serviceNetwork/0", json!("172.30.0.0/16")),
            ("/networking/networkType", json!("OpenShiftSDN")),
            ("/fips", json!(true)),
            ("/pullSecret", json!(FAKE_PULL_SECRET)),
            (
                "/sshKey",
                json!("ssh-ed25519 AAAA one\nssh-ed25519 AAAA two"),
            ),
        ] {
            assert_eq!(config.pointer(pointer), Some(&wanted), "{pointer}");
        }
    }

    #[test]
    fn a_pod_network_is_cut_so_that_every_node_has_its_share_or_refused() {
        let prefix = |pods: &str| {
            made(pods, &Value::Null)
                .map(|config| config["networking"]["clusterNetwork"][0]["hostPrefix"].clone())
        };
        assert_eq!(prefix("10.128.0.0/20").unwrap(), json!(23));
        assert_eq!(prefix("10.128.0.0/22").unwrap(), json!(25));
        let refused = prefix("10.128.0.0/24").unwrap_err().to_string();
        assert!(refused.contains("/23 or larger"), "{refused}");
    }

    #[test]
    fn keys_that_are_unknown_secret_or_said_elsewhere_are_refused_all_at_once() {
        let settings = json!({
            "pullSecret": "{}",
            "sshKeys": [],
            "sshKey": 1,
            "installConfig": { "baseDomain": "x.example", "networking": { "clusterNetwork": [] } },
        });
        let faults = judge(&settings).unwrap_err();
        let pointers: Vec<&str> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/installConfig/baseDomain",
                "/installConfig/networking/clusterNetwork",
                "/pullSecret",
                "/sshKey",
                "/sshKeys",
            ]
        );
    }
}
