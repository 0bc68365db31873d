//! A machine's own network in what it reads: there when the inventory lists several links of it, and not a byte of
//! it for a machine with one plain card.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ignition::{Document, Fault, Subject, arguments, document, sample_urls};
use netboot::link::{Link, LinkKind};
use netboot::net::{Digest, VlanId};
use netboot::node::{NodeLink, NodeSpec};
use netboot::spec::{Artifact, ConfigSource, Network, Profile, Purpose, SiteParts, SiteSpec};
use serde_json::Value;

fn sound<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a sound value")
}

fn network(name: &str, number: u8, router: bool) -> Network {
    Network {
        router: router.then(|| Ipv4Addr::new(10, number, 0, 254)),
        dns: vec![Ipv4Addr::new(10, number, 0, 1)],
        domain: Some(sound("lab.example")),
        lease_seconds: 3600,
        ..Network::plain(
            sound(name),
            sound(&format!("eth{number}")),
            sound(&format!("10.{number}.0.0/24")),
        )
    }
}

/// One card, and on it the VLAN of this name if any.
fn node(vlan: Option<&str>) -> NodeSpec {
    let card = sound("52:54:00:aa:00:01");
    let leg = |network: &str, number, name: &str| NodeLink {
        macs: vec![card],
        network: sound(network),
        address: Ipv4Addr::new(10, number, 0, 11),
        name: vlan.map(|_| sound(name)),
        default_route: false,
    };
    let link = |name: &str, kind| Link {
        name: sound(name),
        kind,
        mtu: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    };
    let (mut links, mut system) = (vec![leg("provisioning", 1, "lan0")], Vec::new());
    if let Some(name) = vlan {
        links.push(leg("storage", 2, name));
        let id = VlanId::new(7).expect("a VLAN id");
        let parent = sound("lan0");
        system = vec![
            link("lan0", LinkKind::Card { macs: vec![card] }),
            link(name, LinkKind::Vlan { parent, id }),
        ];
    }
    NodeSpec {
        name: sound("node-1"),
        links,
        system,
        uuid: None,
        serial: None,
        hostname: sound("node-1.lab.example"),
        profile: Some(sound("only")),
        labels: BTreeMap::default(),
        rack: None,
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    }
}

fn profile(config: ConfigSource, arguments: &[&str]) -> Profile {
    Profile {
        name: sound("only"),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
        config,
        purpose: Purpose::Live,
        disk: None,
    }
}

/// What `ask` gets of a profile and the machine with this VLAN.
fn told<T>(
    profile: &Profile,
    vlan: Option<&str>,
    ask: impl Fn(&Profile, &Subject<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let parts = SiteParts {
        networks: vec![
            network("provisioning", 1, true),
            network("storage", 2, true),
        ],
        nodes: vec![node(vlan)],
        profiles: vec![profile.clone()],
        ..SiteParts::default()
    };
    let site = SiteSpec::new(parts).expect("a sound site");
    let node = site.node(&sound("node-1")).expect("the machine");
    let network = site.network(&sound("provisioning")).expect("the network");
    let urls = sample_urls(Ipv4Addr::new(10, 1, 0, 1));
    let subject = Subject {
        site: &site,
        node: Some(node),
        link: Some(node.boot_link()),
        network,
        disk: None,
        generation: 0,
        urls: &urls,
    };
    ask(profile, &subject)
}

fn reads(config: ConfigSource, vlan: Option<&str>, wanted: Document) -> Result<String, Fault> {
    told(&profile(config, &[]), vlan, |profile, subject| {
        document(profile, subject, wanted)
    })
    .map(|text| text.expect("the format has it"))
}

fn ignition(text: &str) -> ConfigSource {
    ConfigSource::Ignition(Arc::from(text))
}

fn talos(text: &str) -> ConfigSource {
    ConfigSource::Talos(Arc::from(text))
}

const IGNITION: &str = r#"{ "ignition": { "version": "3.4.0" } }"#;
const TALOS: &str = "version: v1alpha1\nmachine:\n  type: worker\n";

#[test]
fn a_machine_with_one_plain_card_reads_what_its_authors_wrote_byte_for_byte() {
    assert_eq!(
        reads(ignition(IGNITION), None, Document::Ignition).as_deref(),
        Ok(IGNITION)
    );
    assert_eq!(
        reads(talos(TALOS), None, Document::Talos).as_deref(),
        Ok(TALOS)
    );
    let cloud_init = ConfigSource::CloudInit {
        user_data: Arc::from(""),
        vendor_data: None,
        network_config: None,
    };
    assert_eq!(
        reads(cloud_init, None, Document::NetworkConfig).as_deref(),
        Ok("")
    );
}

#[test]
fn an_ignition_config_gets_keyfiles_that_only_root_reads() {
    let text = reads(ignition(IGNITION), Some("lan0.7"), Document::Ignition).expect("a config");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let files = config["storage"]["files"].as_array().expect("files");
    let file = |path: &str| {
        let file = files.iter().find(|file| file["path"] == path);
        let file = file.unwrap_or_else(|| panic!("no {path} in {text}"));
        let source = file["contents"]["source"].as_str().expect("a source");
        let data = source.strip_prefix("data:;base64,").expect("data");
        let data = STANDARD.decode(data).expect("base64");
        (file["mode"].clone(), String::from_utf8(data).expect("text"))
    };
    let directory = "/etc/NetworkManager/system-connections";
    let (mode, card) = file(&format!("{directory}/lan0.nmconnection"));
    assert_eq!(mode, 0o600);
    assert!(card.contains("address1=10.1.0.11/24"), "{card}");
    assert!(card.contains("0.0.0.0/0,10.1.0.254"), "{card}");
    let (_, vlan) = file(&format!("{directory}/lan0.7.nmconnection"));
    assert!(
        vlan.contains("id=7") && vlan.contains("address1=10.2.0.11/24"),
        "{vlan}"
    );
    assert!(!vlan.contains("0.0.0.0/0"), "{vlan}");
    assert_eq!(file("/etc/hostname").1, "node-1.lab.example\n");
}

#[test]
fn connections_of_the_configs_own_are_left_alone() {
    let own = r#"{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"/etc/NetworkManager/system-connections/a.nmconnection","mode":384}]}}"#;
    let told = reads(ignition(own), Some("lan0.7"), Document::Ignition);
    assert_eq!(told.as_deref(), Ok(own));
}

#[test]
fn nocloud_is_told_the_network_unless_the_profile_tells_it() {
    let cloud_init = |network_config| ConfigSource::CloudInit {
        user_data: Arc::from(""),
        vendor_data: None,
        network_config,
    };
    let wanted = Document::NetworkConfig;
    let text = reads(cloud_init(None), Some("lan0.7"), wanted).expect("a document");
    for word in ["vlans:", "lan0.7:", "10.2.0.11/24", "52:54:00:aa:00:01"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let own = cloud_init(Some(Arc::from("version: 2\n")));
    assert_eq!(
        reads(own, Some("lan0.7"), wanted).as_deref(),
        Ok("version: 2\n")
    );
}

#[test]
fn talos_is_told_by_documents_from_the_version_on_that_reads_them() {
    let with = |version: &str| {
        let image = format!("  install: {{ image: \"ghcr.io/siderolabs/installer:{version}\" }}\n");
        reads(
            talos(&(TALOS.to_owned() + &image)),
            Some("lan0.7"),
            Document::Talos,
        )
    };
    let text = with("v1.12.0").expect("a config");
    assert!(text.starts_with(TALOS), "{text}");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let kinds: Vec<&str> = documents
        .iter()
        .filter_map(|document| document["kind"].as_str())
        .collect();
    assert!(
        kinds.contains(&"VLANConfig") && kinds.contains(&"HostnameConfig"),
        "{kinds:?}"
    );

    let refused = with("v1.11.5").expect_err("1.11 reads no documents");
    assert!(refused.remedy.contains("talos_network"), "{refused}");
    let template = format!("{TALOS}  network: {{{{ talos_network }}}}\n");
    let text = reads(talos(&template), Some("lan0.7"), Document::Talos).expect("a config");
    let config: Value = serde_saphyr::from_str(&text).expect("YAML");
    let card = &config["machine"]["network"]["interfaces"][0];
    assert_eq!(card["vlans"][0]["vlanId"], 7, "{text}");
}

#[test]
fn an_initramfs_is_told_by_arguments_or_the_profile_is_refused() {
    let profile = profile(ConfigSource::None, &["quiet", "{{ network_arguments }}"]);
    let rendered = told(&profile, Some("lan0.7"), arguments).expect("arguments");
    for word in ["ifname=lan0:52:54:00:aa:00:01", "vlan=lan0.7:lan0"] {
        assert!(
            rendered[1].split(' ').any(|said| said == word),
            "{rendered:?}"
        );
    }
    // The id of a VLAN is read from its name there.
    let refused = told(&profile, Some("tagged"), arguments).expect_err("no id in the name");
    assert!(refused.problem.contains("tagged"), "{refused}");
}
