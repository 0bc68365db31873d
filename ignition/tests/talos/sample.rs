//! A member of a Talos cluster to make configs for. Its bundle is a stand-in: the labels are right, the bytes are not keys.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ignition::platform::talos::{Bundle, Certified, Encryption, document, pem};
use ignition::platform::{Membership, Peer, Role};
use ignition::secret::Secret;
use ignition::{Document, Fault, Subject, sample_urls};
use netboot::link::{Link, LinkKind};
use netboot::net::{Digest, Hostname, VlanId};
use netboot::node::{DiskRule, NodeLink, NodeSpec};
use netboot::spec::{Artifact, ConfigSource, Network, Profile, Purpose, SiteParts, SiteSpec};
use serde_json::Value;

pub(crate) fn sound<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a sound value")
}

fn block(label: &str, seed: u8) -> String {
    let body: Vec<u8> = (0..96)
        .map(|index: u8| index.wrapping_mul(seed) ^ seed)
        .collect();
    pem::encode(label, &[&[0x30, 96][..], &body].concat())
}

fn certified(label: &str, seed: u8) -> Certified {
    Certified {
        certificate: block(pem::CERTIFICATE, seed),
        key: Secret::new(block(label, seed + 1)),
    }
}

pub(crate) fn bundle(seed: u8) -> Bundle {
    let secret = |salt: u8| Secret::new(STANDARD.encode([seed ^ salt; 32]));
    Bundle {
        cluster_id: STANDARD
            .encode([seed; 32])
            .replace('+', "-")
            .replace('/', "_"),
        cluster_secret: secret(1),
        bootstrap_token: Secret::new("aaaaaa.bbbbbbbbbbbbbbbb".to_owned()),
        encryption: Encryption::Secretbox(secret(2)),
        trustd_token: Secret::new("012345.0123456789012345".to_owned()),
        etcd: certified(pem::EC_KEY, seed.wrapping_add(3)),
        kubernetes: certified(pem::EC_KEY, seed.wrapping_add(5)),
        aggregator: certified(pem::EC_KEY, seed.wrapping_add(7)),
        service_account: Secret::new(block(pem::RSA_KEY, seed.wrapping_add(9))),
        os: certified(pem::ED25519_KEY, seed.wrapping_add(11)),
    }
}

/// A member of a cluster, and the machine that it is.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) role: Role,
    pub(crate) version: &'static str,
    pub(crate) settings: Value,
    pub(crate) disk: Option<DiskRule>,
    /// Two networks, on a card and on a VLAN of it.
    pub(crate) dual_homed: bool,
}

impl Case {
    pub(crate) fn new(role: Role, version: &'static str) -> Self {
        Self {
            role,
            version,
            settings: Value::Null,
            disk: Some(DiskRule::Serial("S3Z9NB0K123456".to_owned())),
            dual_homed: false,
        }
    }

    pub(crate) fn text(&self, bundle: &Bundle) -> Result<String, Fault> {
        let hostname: Hostname = sound("node-1.lab.example");
        let domain: Hostname = sound("lab.example");
        let address = Ipv4Addr::new(10, 1, 0, 11);
        let first = Peer {
            hostname: &hostname,
            address,
        };
        let networks = [1, 2].map(|number: u8| Network {
            router: Some(Ipv4Addr::new(10, number, 0, 254)),
            dns: vec![Ipv4Addr::new(10, number, 0, 1)],
            ntp: vec![Ipv4Addr::new(10, number, 0, 1)],
            ..Network::plain(
                sound(&format!("network-{number}")),
                sound(&format!("eth{number}")),
                sound(&format!("10.{number}.0.0/24")),
            )
        });
        let site = SiteSpec::new(SiteParts {
            networks: networks.into(),
            nodes: vec![self.node()],
            profiles: vec![profile()],
            ..SiteParts::default()
        })
        .expect("a sound site");
        let node = site.node(&sound("node-1")).expect("the machine");
        let network = site.network(&sound("network-1")).expect("its network");
        let urls = sample_urls(Ipv4Addr::new(10, 1, 0, 1));
        let subject = Subject {
            site: &site,
            node: Some(node),
            link: Some(node.boot_link()),
            network,
            disk: self.disk.as_ref(),
            generation: 0,
            urls: &urls,
        };
        let member = Membership {
            cluster: "blue",
            domain: &domain,
            version: self.version,
            api_address: Ipv4Addr::new(10, 1, 0, 1),
            pods: &[sound("10.244.0.0/16")],
            services: &[sound("10.96.0.0/12")],
            role: self.role,
            index: 0,
            hostname: &hostname,
            address,
            founds: self.role == Role::ControlPlane,
            control_planes: &[first],
            settings: &self.settings,
        };
        assert_eq!(
            document(&member, bundle, &subject, Document::UserData),
            Ok(None)
        );
        document(&member, bundle, &subject, Document::Talos).map(|text| text.expect("a config"))
    }

    pub(crate) fn documents(&self) -> Vec<Value> {
        let text = self.text(&bundle(40)).expect("a config");
        serde_saphyr::from_multiple(&text).expect("YAML")
    }

    fn node(&self) -> NodeSpec {
        let card = sound("52:54:00:aa:00:01");
        let leg = |number: u8, name: &str| NodeLink {
            macs: vec![card],
            network: sound(&format!("network-{number}")),
            address: Ipv4Addr::new(10, number, 0, 11),
            name: self.dual_homed.then(|| sound(name)),
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
        let (mut links, mut system) = (vec![leg(1, "lan0")], Vec::new());
        if self.dual_homed {
            links.push(leg(2, "lan0.7"));
            let id = VlanId::new(7).expect("a VLAN id");
            let parent = sound("lan0");
            system = vec![
                link("lan0", LinkKind::Card { macs: vec![card] }),
                link("lan0.7", LinkKind::Vlan { parent, id }),
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
            labels: BTreeMap::new(),
            rack: None,
            variables: BTreeMap::new(),
            loaders: BTreeMap::new(),
            disk: None,
        }
    }
}

fn profile() -> Profile {
    Profile {
        name: sound("only"),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::None,
        purpose: Purpose::Live,
        disk: None,
    }
}

pub(crate) const VERSIONS: [&str; 4] = ["v1.9.5", "v1.10.7", "v1.11.3", "v1.12.1"];
