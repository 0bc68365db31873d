//! Patches: what an operator adds to the configs that are made here.
//!
//! They are Talos' strategic merge patches, parts of a config that are laid over it: maps merge, lists grow, other values
//! replace what was there unless they are empty, `$patch: delete` as the value of a key removes it. The lists and maps that
//! Talos treats otherwise are named below (siderolabs/talos, pkg/machinery/config/merge/merge.go, the `merge` tags and the
//! `Merge` functions of types/v1alpha1/v1alpha1_types.go).
//!
//! JSON patches (RFC 6902) are refused: Talos itself refuses them for a config of several documents, which every config
//! of 1.12 is.

use serde_json::{Map, Value, json};

use super::version::Contract;
use crate::platform::SettingFault;

/// Lists that a patch replaces.
const REPLACED: [&str; 2] = [
    "/cluster/network/podSubnets",
    "/cluster/network/serviceSubnets",
];
/// A map that a patch replaces.
const AUDIT_POLICY: &str = "/cluster/apiServer/auditPolicy";
/// Lists whose items merge with the one that says the same under one of these keys.
const MATCHED: [(&str, &[&str]); 4] = [
    (
        "/machine/network/interfaces",
        &["interface", "deviceSelector"],
    ),
    ("/machine/network/interfaces/*/vlans", &["vlanId"]),
    ("/cluster/apiServer/admissionControl", &["name"]),
    ("/configFiles", &["mountPath"]),
];
/// What marks a removal.
const MARK: &str = "$patch";
/// Documents that 1.11 and older refuse by their kind (website/content/v1.12/reference/configuration/network).
const SINCE_1_12: [&str; 15] = [
    "BondConfig",
    "BridgeConfig",
    "DHCPv4Config",
    "DHCPv6Config",
    "DummyLinkConfig",
    "HCloudVIPConfig",
    "HostnameConfig",
    "Layer2VIPConfig",
    "LinkAliasConfig",
    "LinkConfig",
    "ResolverConfig",
    "StaticHostConfig",
    "TimeSyncConfig",
    "VLANConfig",
    "WireguardConfig",
];
/// What 1.12 is told by documents, and refuses to be told by the machine config too (the `V1Alpha1ConflictValidate` functions
/// of pkg/machinery/config/types/network).
const BY_DOCUMENTS: [(&str, &str); 5] = [
    ("/machine/features/stableHostname", "HostnameConfig"),
    (
        "/machine/network/interfaces",
        "LinkConfig, VLANConfig or BondConfig",
    ),
    ("/machine/network/nameservers", "ResolverConfig"),
    ("/machine/network/searchDomains", "ResolverConfig"),
    ("/machine/time", "TimeSyncConfig"),
];
/// Private keys of the bundle, which no patch may set.
const KEYS: [&str; 5] = [
    "/machine/ca/key",
    "/cluster/ca/key",
    "/cluster/aggregatorCA/key",
    "/cluster/serviceAccount/key",
    "/cluster/etcd/ca/key",
];
/// What only control planes may be told; a worker refuses its config for `etcd`, and should not know the rest.
const CONTROL_PLANE_ONLY: [&str; 5] = [
    "/cluster/etcd",
    "/cluster/aggregatorCA",
    "/cluster/serviceAccount",
    "/cluster/secretboxEncryptionSecret",
    "/cluster/aescbcEncryptionSecret",
];

/// Whom a list of patches is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    Everybody,
    ControlPlanes,
    Workers,
}

/// Takes one patch in: a map, or text that is YAML of one or several documents.
pub(super) fn read(
    pointer: &str,
    patch: &Value,
    audience: Audience,
    contract: Contract,
    faults: &mut Vec<SettingFault>,
) -> Vec<Value> {
    let documents = match patch {
        Value::Object(_) => vec![patch.clone()],
        Value::String(text) => match serde_saphyr::from_multiple::<Value>(text) {
            Ok(documents) => documents,
            Err(error) => {
                let words = error.to_string();
                let problem = format!("is no YAML: {}", words.lines().next().unwrap_or_default());
                faults.push(SettingFault::new(pointer, patch, problem, "mend it"));
                return Vec::new();
            }
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => vec![patch.clone()],
    };
    for document in &documents {
        check(pointer, document, audience, contract, faults);
    }
    documents
}

fn check(
    pointer: &str,
    document: &Value,
    audience: Audience,
    contract: Contract,
    faults: &mut Vec<SettingFault>,
) {
    let mut fault = |below: &str, value: &Value, problem: &str, remedy: String| {
        faults.push(SettingFault::new(
            format!("{pointer}{below}"),
            value,
            problem,
            remedy,
        ));
    };
    let is_json_patch = |value: &Value| value.get("op").is_some() && value.get("path").is_some();
    let as_list = document
        .as_array()
        .is_some_and(|list| list.iter().all(is_json_patch));
    if as_list || is_json_patch(document) {
        let remedy = "write the part of the config that it changes, as a strategic merge patch";
        return fault("", document, "is a JSON patch", remedy.to_owned());
    }
    let Some(parts) = document.as_object() else {
        let remedy = "write it as the part of a config that it changes";
        return fault("", document, "is no patch", remedy.to_owned());
    };
    for place in marks(document) {
        let remedy =
            format!("`{MARK}: delete` removes a key of a map, alone below it, or a whole document");
        fault(&place, &json!(MARK), "removes nothing here", remedy);
    }
    if let Some(kind) = parts.get("kind") {
        let word = kind.as_str().unwrap_or_default();
        if parts
            .get("apiVersion")
            .is_none_or(|version| version != "v1alpha1")
        {
            let remedy = "write apiVersion: v1alpha1".to_owned();
            fault(
                "/kind",
                kind,
                "is a document without its apiVersion",
                remedy,
            );
        }
        if !contract.has_documents() && SINCE_1_12.contains(&word) {
            let remedy =
                "raise the cluster's version to 1.12, or patch machine.network or machine.time";
            fault(
                "/kind",
                kind,
                "is a document that this release refuses",
                remedy.to_owned(),
            );
        }
        return;
    }
    for key in parts.keys() {
        let known = ["version", "debug", "persist", "machine", "cluster"];
        if !known.contains(&key.as_str()) {
            let problem = "is no part of a machine config";
            let remedy = format!(
                "a patch begins with one of {}, or is a document with its kind",
                known.join(", ")
            );
            fault(&format!("/{}", escape(key)), &json!(key), problem, remedy);
        }
    }
    // The value itself must not be shown.
    let hidden = json!("…");
    for place in KEYS {
        if document.pointer(place).is_some_and(|key| key != "") {
            let remedy = "leave it out: private keys come from the cluster's secrets bundle, and go to control planes only";
            fault(place, &hidden, "is a private key", remedy.to_owned());
        }
    }
    if audience != Audience::ControlPlanes {
        for place in CONTROL_PLANE_ONLY {
            if document.pointer(place).is_some() {
                let remedy = "move it to controlPlanePatches".to_owned();
                fault(
                    place,
                    &hidden,
                    "is not for workers, which refuse such a config",
                    remedy,
                );
            }
        }
    }
    if let Some(value) = document.pointer("/machine/type") {
        let remedy = "leave it out: it is the node group's role".to_owned();
        fault(
            "/machine/type",
            value,
            "is decided by the cluster's definition",
            remedy,
        );
    }
    if let Some(value) = document.pointer("/machine/network/hostname") {
        let remedy = "leave it out: it is the inventory's".to_owned();
        fault(
            "/machine/network/hostname",
            value,
            "would be the name of several machines",
            remedy,
        );
    }
    for (place, kind) in BY_DOCUMENTS {
        if contract.has_documents()
            && let Some(value) = document.pointer(place)
        {
            let remedy = format!("write it as a document of kind {kind}");
            fault(place, value, "is said by documents in this release", remedy);
        }
    }
    let on_grub = document.pointer("/machine/install/grubUseUKICmdline") == Some(&json!(false));
    let arguments = "/machine/install/extraKernelArgs";
    if contract.has_documents()
        && !on_grub
        && let Some(value) = document.pointer(arguments)
    {
        let problem = "is refused by this release beside grubUseUKICmdline";
        let remedy = "bake kernel arguments into installImage (Image Factory), or say grubUseUKICmdline: false beside them";
        fault(arguments, value, problem, remedy.to_owned());
    }
}

/// The places of marks that don't remove a key of a map or a document.
fn marks(document: &Value) -> Vec<String> {
    fn walk(place: &str, value: &Value, in_list: bool, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                let marked = map.get(MARK);
                let whole = map.len() == 1 || (place.is_empty() && map.contains_key("kind"));
                if marked.is_some_and(|mark| in_list || mark != "delete" || !whole) {
                    found.push(place.to_owned());
                }
                for (key, below) in map {
                    walk(&format!("{place}/{}", escape(key)), below, false, found);
                }
            }
            Value::Array(list) => {
                for (index, below) in list.iter().enumerate() {
                    walk(&format!("{place}/{index}"), below, true, found);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = Vec::new();
    walk("", document, false, &mut found);
    found
}

/// A key as a part of a JSON pointer (RFC 6901, section 3).
pub(super) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Lays one document of a patch over those of a config, of which the first is the machine config.
///
/// # Errors
/// Where the patch has a list or a map and the config something else.
pub(super) fn apply(documents: &mut Vec<Value>, patch: &Value) -> Result<(), String> {
    if patch.get("kind").is_none() {
        return match documents.first_mut() {
            Some(config) => merge("", config, patch),
            None => Ok(()),
        };
    }
    let same = |document: &Value| {
        ["kind", "name"]
            .iter()
            .all(|key| document.get(key) == patch.get(key))
    };
    let found = documents.iter().position(same);
    if removes(patch) {
        if let Some(index) = found {
            documents.remove(index);
        }
        return Ok(());
    }
    let index = found.unwrap_or_else(|| {
        documents.push(json!({}));
        documents.len() - 1
    });
    merge("", &mut documents[index], patch)
}

fn removes(patch: &Value) -> bool {
    patch.get(MARK).is_some_and(|mark| mark == "delete")
}

fn merge(place: &str, left: &mut Value, right: &Value) -> Result<(), String> {
    match (&mut *left, right) {
        (_, Value::Null) => {}
        (Value::Object(_), Value::Object(_)) if place == AUDIT_POLICY => *left = right.clone(),
        (Value::Object(left), Value::Object(right)) => return merge_maps(place, left, right),
        (Value::Array(left), Value::Array(right)) => return merge_lists(place, left, right),
        (Value::Null, Value::Object(_) | Value::Array(_)) => {
            *left = if right.is_object() {
                json!({})
            } else {
                json!([])
            };
            return merge(place, left, right);
        }
        (Value::Object(_) | Value::Array(_), _) | (_, Value::Object(_) | Value::Array(_)) => {
            let found = kind(left);
            return Err(format!(
                "{place} is {} in the patch and {found} in the config",
                kind(right)
            ));
        }
        (_, Value::String(text)) if text.is_empty() => {}
        (_, Value::Number(number)) if number.as_f64() == Some(0.0) => {}
        (_, Value::Bool(_) | Value::Number(_) | Value::String(_)) => *left = right.clone(),
    }
    Ok(())
}

fn merge_maps(
    place: &str,
    left: &mut Map<String, Value>,
    right: &Map<String, Value>,
) -> Result<(), String> {
    for (key, value) in right {
        if removes(value) {
            left.remove(key);
            continue;
        }
        let below = format!("{place}/{}", escape(key));
        match value {
            Value::Object(_) | Value::Array(_) => {
                merge(&below, left.entry(key).or_insert(Value::Null), value)?;
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                match left.get_mut(key) {
                    Some(old) => merge(&below, old, value)?,
                    None => {
                        left.insert(key.clone(), value.clone());
                    }
                }
            }
        }
    }
    Ok(())
}

fn merge_lists(place: &str, left: &mut Vec<Value>, right: &[Value]) -> Result<(), String> {
    if REPLACED.contains(&place) {
        if !right.is_empty() {
            *left = right.to_vec();
        }
        return Ok(());
    }
    let keys = MATCHED
        .iter()
        .find(|(list, _)| *list == place)
        .map_or(&[][..], |(_, keys)| keys);
    for item in right {
        let key = keys.iter().find(|key| item.get(key).is_some());
        let same = |old: &&mut Value| key.is_some_and(|key| old.get(key) == item.get(key));
        match left.iter_mut().find(same) {
            Some(old) => merge(&format!("{place}/*"), old, item)?,
            None => left.push(item.clone()),
        }
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "a map",
        Value::Array(_) => "a list",
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => "a value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_merge(left: Value, patch: Value, wanted: Value) {
        let mut documents = vec![left];
        apply(&mut documents, &patch).expect("a patch that fits");
        assert_eq!(documents, [wanted]);
    }

    #[test]
    fn maps_merge_and_lists_grow() {
        check_merge(
            json!({ "machine": { "sysctls": { "a": "1" }, "certSANs": ["x"], "token": "t" } }),
            json!({ "machine": { "sysctls": { "b": "2" }, "certSANs": ["y"], "token": "" } }),
            json!({ "machine": { "sysctls": { "a": "1", "b": "2" }, "certSANs": ["x", "y"], "token": "t" } }),
        );
    }

    #[test]
    fn subnets_and_the_audit_policy_are_replaced() {
        check_merge(
            json!({ "cluster": { "network": { "podSubnets": ["a"] }, "apiServer": { "auditPolicy": { "rules": [1] } } } }),
            json!({ "cluster": { "network": { "podSubnets": ["b"] }, "apiServer": { "auditPolicy": { "kind": "Policy" } } } }),
            json!({ "cluster": { "network": { "podSubnets": ["b"] }, "apiServer": { "auditPolicy": { "kind": "Policy" } } } }),
        );
    }

    #[test]
    fn an_interface_merges_with_the_one_of_its_name_and_its_vlans_by_their_id() {
        let interfaces = |list: Value| json!({ "machine": { "network": { "interfaces": list } } });
        check_merge(
            interfaces(json!([{ "interface": "a", "mtu": 1500, "vlans": [{ "vlanId": 1 }] }])),
            interfaces(
                json!([{ "interface": "a", "mtu": 9000, "vlans": [{ "vlanId": 1, "mtu": 9 }] }, { "interface": "b" }]),
            ),
            interfaces(json!([
                { "interface": "a", "mtu": 9000, "vlans": [{ "vlanId": 1, "mtu": 9 }] },
                { "interface": "b" },
            ])),
        );
    }

    #[test]
    fn a_key_is_removed_by_its_mark_and_false_is_a_value() {
        check_merge(
            json!({ "machine": { "features": { "hostDNS": { "enabled": true }, "kubePrism": {} } } }),
            json!({ "machine": { "features": { "hostDNS": { "enabled": false }, "kubePrism": { MARK: "delete" } }, "time": { "x": { MARK: "delete" } } } }),
            json!({ "machine": { "features": { "hostDNS": { "enabled": false } }, "time": {} } }),
        );
    }

    #[test]
    fn documents_are_known_by_kind_and_name() {
        let link =
            |name: &str| json!({ "apiVersion": "v1alpha1", "kind": "LinkConfig", "name": name });
        let mut documents = vec![json!({}), link("a"), link("b")];
        let mut patch = link("b");
        patch["mtu"] = json!(9000);
        apply(&mut documents, &patch).unwrap();
        apply(&mut documents, &link("c")).unwrap();
        let mut gone = link("a");
        gone[MARK] = json!("delete");
        apply(&mut documents, &gone).unwrap();
        assert_eq!(documents, [json!({}), patch, link("c")]);
    }

    #[test]
    fn a_list_is_never_laid_over_a_map() {
        let mut documents = vec![json!({ "machine": { "sysctls": {} } })];
        let refused = apply(&mut documents, &json!({ "machine": { "sysctls": ["a"] } }));
        assert_eq!(
            refused.unwrap_err(),
            "/machine/sysctls is a list in the patch and a map in the config"
        );
    }
}
