//! Talos' machine configs: each release is told only what it reads and all that it demands, and no worker ever holds a
//! private key.

#[path = "talos/sample.rs"]
mod sample;
#[path = "talos/secrets.rs"]
mod secrets;

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ignition::platform::Role;
use ignition::platform::talos::{Contract, Encryption, Version, judge};
use ignition::secret::Secret;
use netboot::node::DiskRule;
use proptest::prelude::*;
use serde_json::{Value, json};

use sample::{Case, VERSIONS, bundle, sound};

/// Every role, release, kind of machine and rule for disks.
fn cases() -> impl Iterator<Item = Case> {
    let roles = [Role::ControlPlane, Role::Worker, Role::Infra];
    let disks = [
        DiskRule::Serial("S3Z9NB0K123456".to_owned()),
        DiskRule::Wwn("0x5000c500a0b1c2d3".to_owned()),
        DiskRule::Path("/dev/disk/by-path/pci-0000:00:17.0-ata-1".to_owned()),
    ];
    let settings = [
        Value::Null,
        json!({ "timeServers": ["ntp.lab.example"], "certSANs": ["blue.example"], "discovery": false }),
    ];
    roles.into_iter().flat_map(move |role| {
        let (disks, settings) = (disks.clone(), settings.clone());
        VERSIONS.into_iter().flat_map(move |version| {
            let settings = settings.clone();
            disks.clone().into_iter().flat_map(move |disk| {
                settings.clone().into_iter().flat_map(move |settings| {
                    let disk = disk.clone();
                    [false, true].map(move |dual_homed| Case {
                        role,
                        version,
                        settings: settings.clone(),
                        disk: Some(disk.clone()),
                        dual_homed,
                    })
                })
            })
        })
    })
}

/// One line of `talos/fields.txt`.
struct Field {
    control_only: bool,
    releases: std::ops::RangeInclusive<u16>,
    must: bool,
    name: String,
}

fn table() -> Vec<Field> {
    let text = include_str!("talos/fields.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [role, releases, need, name] = words[..] else {
                panic!("{line} has four words");
            };
            let (first, last) = releases.split_once('-').expect("a range");
            Field {
                control_only: role == "control",
                releases: sound(first)..=sound(last),
                must: need == "must",
                name: name.to_owned(),
            }
        })
        .collect()
}

/// The fields of a document that hold a value, or an empty map or list.
fn fields(place: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, below) in map {
                fields(&format!("{place}.{key}"), below, found);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for below in list {
                fields(&format!("{place}[]"), below, found);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => found.push(place.to_owned()),
    }
}

#[test]
fn each_release_is_told_only_what_it_reads_and_all_that_it_demands() {
    let table = table();
    for case in cases() {
        let minor = sound::<Version>(case.version).contract().minor();
        let here = |field: &&Field| {
            field.releases.contains(&minor)
                && (!field.control_only || case.role == Role::ControlPlane)
        };
        let allowed: Vec<&Field> = table.iter().filter(here).collect();
        let mut found = Vec::new();
        for mut document in case.documents() {
            let kind = document["kind"].as_str().unwrap_or_default().to_owned();
            let map = document.as_object_mut().expect("a map");
            if !kind.is_empty() {
                map.remove("kind");
                assert_eq!(
                    map.remove("apiVersion"),
                    Some(json!("v1alpha1")),
                    "{case:?}"
                );
            }
            fields(&kind, &document, &mut found);
        }
        for name in &found {
            let covers = |field: &&Field| match field.name.strip_suffix("**") {
                Some(above) => name.starts_with(above),
                None => *name == field.name,
            };
            assert!(allowed.iter().any(covers), "{name} in {case:?}");
        }
        for field in allowed.iter().filter(|field| field.must) {
            assert!(found.contains(&field.name), "no {} in {case:?}", field.name);
        }
        let install = found
            .iter()
            .filter(|name| name.starts_with(".machine.install.disk"));
        assert_eq!(install.count(), 1, "one disk in {case:?}");
    }
}

#[test]
fn each_line_of_the_table_is_of_use() {
    let mut found = Vec::new();
    let mut old = bundle(40);
    old.encryption = Encryption::AesCbc(Secret::new(STANDARD.encode([1; 32])));
    for case in cases() {
        for bundle in [&bundle(40), &old] {
            let text = case.text(bundle).expect("a config");
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
            for document in documents {
                fields(
                    document["kind"].as_str().unwrap_or_default(),
                    &document,
                    &mut found,
                );
            }
        }
    }
    for field in table() {
        let stem = field.name.trim_end_matches("**");
        assert!(
            found.iter().any(|name| name.starts_with(stem)),
            "{}",
            field.name
        );
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the golden files lie outside this crate, which itself touches nothing"
)]
fn the_configs_of_each_release_are_those_of_the_golden_files() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/talos");
    for version in VERSIONS {
        for (role, word) in [
            (Role::ControlPlane, "controlplane"),
            (Role::Worker, "worker"),
        ] {
            let mut case = Case::new(role, version);
            case.dual_homed = true;
            let text = case.text(&bundle(40)).expect("a config");
            let minor = sound::<Version>(version).contract().minor();
            let path = directory.join(format!("1.{minor}-{word}.yaml"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &text).expect("a writable directory");
            }
            let golden = fs::read_to_string(&path).unwrap_or_default();
            let parsed = |text: &str| serde_saphyr::from_multiple::<Value>(text).expect("YAML");
            assert_eq!(
                parsed(&text),
                parsed(&golden),
                "{}: UPDATE_GOLDEN=1 rewrites it",
                path.display()
            );
        }
    }
}

#[test]
fn the_endpoint_is_the_bastions_name_and_the_apis_certificate_holds_it() {
    for version in VERSIONS {
        let config = &Case::new(Role::ControlPlane, version).documents()[0];
        let endpoint = &config["cluster"]["controlPlane"]["endpoint"];
        assert_eq!(endpoint, "https://api.blue.lab.example:6443");
        let names = &config["cluster"]["apiServer"]["certSANs"];
        assert_eq!(names, &json!(["api.blue.lab.example", "10.1.0.1"]));
        let image = &config["machine"]["install"]["image"];
        assert_eq!(
            image,
            &json!(format!("ghcr.io/siderolabs/installer:{version}"))
        );
    }
}

#[test]
fn a_disk_is_found_by_the_whole_of_its_number_so_that_no_other_is_taken() {
    let mut case = Case::new(Role::Worker, "1.11.3");
    case.disk = Some(DiskRule::Wwn("0x5000c500a0b1c2d3".to_owned()));
    let install = case.documents()[0]["machine"]["install"].clone();
    assert_eq!(
        install["diskSelector"],
        json!({ "wwid": "*.5000c500a0b1c2d3" })
    );
    case.disk = Some(DiskRule::Path("/dev/disk/by-path/a".to_owned()));
    let install = case.documents()[0]["machine"]["install"].clone();
    assert_eq!(install["disk"], "/dev/disk/by-path/a");
}

#[test]
fn a_machine_on_several_networks_shows_the_address_of_the_cluster() {
    let mut case = Case::new(Role::ControlPlane, "1.11.3");
    case.dual_homed = true;
    let config = &case.documents()[0];
    let subnets = json!(["10.1.0.0/24"]);
    assert_eq!(
        config["machine"]["kubelet"]["nodeIP"]["validSubnets"],
        subnets
    );
    assert_eq!(config["cluster"]["etcd"]["advertisedSubnets"], subnets);
}

#[test]
fn patches_are_laid_on_in_their_order_and_only_on_their_role() {
    let settings = json!({
        "patches": [{ "machine": { "sysctls": { "a": "everybody" } } }],
        "controlPlanePatches": ["cluster:\n  etcd:\n    extraArgs:\n      quota-backend-bytes: '1'\n"],
        "workerPatches": [
            "machine:\n  sysctls:\n    a: worker\n---\napiVersion: v1alpha1\nkind: HostnameConfig\nhostname: other\n",
        ],
    });
    let patched = |role| {
        let mut case = Case::new(role, "1.12.1");
        case.settings = settings.clone();
        case.documents()
    };
    let (control, worker) = (patched(Role::ControlPlane), patched(Role::Worker));
    assert_eq!(control[0]["machine"]["sysctls"]["a"], "everybody");
    assert_eq!(
        control[0]["cluster"]["etcd"]["extraArgs"]["quota-backend-bytes"],
        "1"
    );
    assert!(control[0]["cluster"]["etcd"]["ca"]["key"].is_string());
    assert_eq!(worker[0]["machine"]["sysctls"]["a"], "worker");
    assert_eq!(
        (worker[1]["kind"].as_str(), worker[1]["hostname"].as_str()),
        (Some("HostnameConfig"), Some("other"))
    );
}

#[test]
fn what_talos_would_refuse_is_refused_here_with_its_place() {
    #[track_caller]
    fn check(version: &str, settings: &Value, pointer: &str, words: &str) {
        let faults = judge(settings, sound(version)).expect_err("a fault");
        let faults: Vec<(String, String)> = faults
            .into_iter()
            .map(|fault| (fault.pointer.clone(), fault.to_string()))
            .collect();
        let found = faults
            .iter()
            .any(|(place, text)| place == pointer && text.contains(words));
        assert!(found, "{faults:?}");
    }
    let (old, new) = ("1.11.0", "1.12.0");
    check(old, &json!([]), "", "is no map");
    check(old, &json!({ "patch": [] }), "/patch", "workerPatches");
    check(
        old,
        &json!({ "kubernetesVersion": "1.35.0" }),
        "/kubernetesVersion",
        "choose one of 1.29 to 1.34",
    );
    check(
        old,
        &json!({ "kubernetesVersion": 1.34 }),
        "/kubernetesVersion",
        "write it in full",
    );
    check(
        old,
        &json!({ "installImage": "factory.talos.dev/installer/ab:v1.12.0" }),
        "/installImage",
        "tag v1.11.0",
    );
    check(
        old,
        &json!({ "discovery": "off" }),
        "/discovery",
        "neither true nor false",
    );
    check(
        old,
        &json!({ "timeServers": ["a", "b c"] }),
        "/timeServers/1",
        "no host name",
    );
    check(
        old,
        &json!({ "certSANs": "a" }),
        "/certSANs",
        "a list of at most 64",
    );
    check(old, &json!({ "patches": [1] }), "/patches/0", "is no patch");
    check(
        old,
        &json!({ "patches": ["a: ["] }),
        "/patches/0",
        "is no YAML",
    );
    check(
        old,
        &json!({ "patches": [{ "mashine": {} }] }),
        "/patches/0/mashine",
        "begins with one of",
    );
    let json_patch = json!([{ "op": "add", "path": "/machine/time", "value": {} }]);
    check(
        old,
        &json!({ "patches": [json_patch] }),
        "/patches/0",
        "JSON patch",
    );
    check(
        old,
        &json!({ "patches": ["- op: remove\n  path: /machine/time\n"] }),
        "/patches/0",
        "JSON patch",
    );
    let key = json!({ "machine": { "ca": { "key": "c2VjcmV0" } } });
    check(
        old,
        &json!({ "workerPatches": [key] }),
        "/workerPatches/0/machine/ca/key",
        "is a private key",
    );
    check(
        old,
        &json!({ "controlPlanePatches": [key] }),
        "/controlPlanePatches/0/machine/ca/key",
        "is a private key",
    );
    let etcd = json!({ "cluster": { "etcd": { "subnet": "a" } } });
    check(
        old,
        &json!({ "patches": [etcd] }),
        "/patches/0/cluster/etcd",
        "move it to controlPlanePatches",
    );
    judge(&json!({ "controlPlanePatches": [etcd] }), sound(old)).expect("sound");
    let name = json!({ "apiVersion": "v1alpha1", "kind": "HostnameConfig", "auto": "stable" });
    check(
        old,
        &json!({ "patches": [name] }),
        "/patches/0/kind",
        "raise the cluster's version",
    );
    judge(&json!({ "patches": [name] }), sound(new)).expect("sound");
    let arguments = json!({ "machine": { "install": { "extraKernelArgs": ["a"] } } });
    check(
        new,
        &json!({ "patches": [arguments] }),
        "/patches/0/machine/install/extraKernelArgs",
        "Image Factory",
    );
    judge(&json!({ "patches": [arguments] }), sound(old)).expect("sound");
    let removal = json!({ "machine": { "files": [{ "$patch": "delete", "path": "/a" }] } });
    check(
        new,
        &json!({ "patches": [removal] }),
        "/patches/0/machine/files/0",
        "removes a key",
    );
    let clock = json!({ "machine": { "time": { "servers": ["a"] } } });
    check(
        new,
        &json!({ "patches": [clock] }),
        "/patches/0/machine/time",
        "TimeSyncConfig",
    );
    judge(&json!({ "patches": [clock] }), sound(old)).expect("sound");
    let named = json!({ "machine": { "network": { "hostname": "a" } } });
    check(
        new,
        &json!({ "patches": [named] }),
        "/patches/0/machine/network/hostname",
        "several machines",
    );
}

#[test]
fn a_fault_never_shows_a_private_key() {
    let settings = json!({ "workerPatches": [{ "machine": { "ca": { "key": "c2VjcmV0" } } }] });
    let faults = judge(&settings, sound("1.11.0")).expect_err("a fault");
    assert!(!format!("{faults:?}").contains("c2VjcmV0"));
}

#[test]
fn a_machine_without_a_disk_and_a_bootstrap_machine_get_no_config() {
    let mut case = Case::new(Role::Worker, "1.11.3");
    case.disk = None;
    assert!(
        case.text(&bundle(40))
            .expect_err("no disk")
            .problem
            .contains("no disk")
    );
    let case = Case::new(Role::Bootstrap, "1.11.3");
    assert!(
        case.text(&bundle(40))
            .expect_err("no role")
            .problem
            .contains("no worker")
    );
}

fn roles() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Worker), Just(Role::Infra)]
}

/// Settings as an operator may write them, with everything that patches can reach.
fn settings(keys: Vec<String>) -> impl Strategy<Value = Value> {
    let place = prop_oneof![
        Just("/machine/ca/key"),
        Just("/machine/sysctls/a"),
        Just("/machine/files"),
        Just("/cluster/ca/key"),
        Just("/cluster/etcd/ca/key"),
        Just("/cluster/inlineManifests"),
        Just("/debug"),
    ];
    let value = prop_oneof![
        proptest::sample::select(keys).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(json!({ "$patch": "delete" })),
        Just(json!([{ "content": "a" }])),
    ];
    let patch = (place, value).prop_map(|(place, value)| {
        place[1..]
            .rsplit('/')
            .fold(value, |below, key| json!({ key: below }))
    });
    let list = || proptest::collection::vec(patch.clone(), 0..3);
    (list(), list(), any::<bool>()).prop_map(|(patches, worker, discovery)| {
        json!({ "patches": patches, "workerPatches": worker, "discovery": discovery })
    })
}

proptest! {
    #[test]
    fn no_worker_ever_holds_a_private_key_of_the_bundle(
        (seed, settings) in any::<u8>().prop_flat_map(|seed| {
            let seed = seed.min(240);
            let keys: Vec<String> = bundle(seed)
                .private_keys()
                .flat_map(|key| [key.expose().clone(), STANDARD.encode(key.expose())])
                .collect();
            (Just(seed), settings(keys))
        }),
        role in roles(),
        version in proptest::sample::select(&VERSIONS[..]),
        dual_homed: bool,
    ) {
        let bundle = bundle(seed);
        let case = Case { settings, dual_homed, ..Case::new(role, version) };
        if let Ok(text) = case.text(&bundle) {
            for key in bundle.private_keys() {
                let body: String = key.expose().lines().filter(|line| !line.starts_with('-')).collect();
                prop_assert!(!text.contains(&STANDARD.encode(key.expose())));
                prop_assert!(!text.contains(&body[..64]), "a line of the key's PEM");
            }
            prop_assert!(!text.contains("PRIVATE KEY"));
        }
    }

    #[test]
    fn any_settings_are_judged_without_a_panic(text in ".{0,80}", contract in 0..4_usize) {
        let version = format!("1.{}.0", Contract::ALL[contract].minor());
        let settings = json!({ "patches": [text.clone(), { text.clone(): text.clone() }], "installImage": text, "timeServers": [text] });
        let _ = judge(&settings, sound(&version));
    }
}
