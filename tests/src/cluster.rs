//! Members of a cluster as the platforms see them: a site of one machine, and the place that a test gives it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ignition::platform::{Membership, Peer, Role};
use ignition::{Subject, Urls, sample_urls};
use netboot::net::{Digest, Hostname, Subnet};
use netboot::node::{DiskRule, NodeLink, NodeSpec};
use netboot::spec::{Artifact, ConfigSource, Network, Profile, Purpose, SiteParts, SiteSpec};
use serde_json::Value;

/// A cluster called `lab` below `example.test`, one of whose machines is looked at.
pub struct Cluster {
    pub domain: Hostname,
    pub settings: Value,
    pub urls: Urls,
    /// Of purpose `live` unless a test changes it.
    pub profile: Profile,
    pub disk: Option<DiskRule>,
    site: SiteSpec,
    control_planes: Vec<(Hostname, Ipv4Addr)>,
    pods: Vec<Subnet>,
    services: Vec<Subnet>,
}

fn sound<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a sound value")
}

impl Cluster {
    /// Its `platformConfig`, and the files its profile names: name, file and digest of each.
    pub fn new(settings: Value, artifacts: &[(&str, &str, Digest)]) -> Self {
        let network = Network {
            dns: vec![Ipv4Addr::new(10, 107, 0, 1)],
            ..Network::plain(sound("lab"), sound("eth1"), sound("10.107.0.0/24"))
        };
        let profile = Profile {
            name: sound("only"),
            kernel: artifact("vmlinuz", Digest::from_bytes([1; 32])),
            initrds: Vec::new(),
            artifacts: artifacts
                .iter()
                .map(|(name, file, digest)| ((*name).to_owned(), artifact(file, *digest)))
                .collect(),
            arguments: Vec::new(),
            config: ConfigSource::None,
            purpose: Purpose::Live,
            disk: None,
        };
        let node = NodeSpec {
            name: sound("machine-7"),
            links: vec![NodeLink {
                macs: vec![sound("52:54:00:aa:00:07")],
                network: sound("lab"),
                address: Ipv4Addr::new(10, 107, 0, 17),
                name: None,
                default_route: false,
            }],
            system: Vec::new(),
            uuid: None,
            serial: None,
            hostname: sound("machine-7.lab.example.test"),
            profile: Some(sound("only")),
            labels: BTreeMap::new(),
            rack: None,
            variables: BTreeMap::new(),
            loaders: BTreeMap::new(),
            disk: None,
        };
        let parts = SiteParts {
            networks: vec![network],
            nodes: vec![node],
            profiles: vec![profile.clone()],
            ..SiteParts::default()
        };
        Self {
            domain: sound("example.test"),
            settings,
            urls: sample_urls(Ipv4Addr::new(10, 107, 0, 1)),
            profile,
            disk: None,
            site: SiteSpec::new(parts).expect("a sound site"),
            control_planes: (1..=3)
                .map(|n| {
                    let name = sound(&format!("cp-{n}.lab.example.test"));
                    (name, Ipv4Addr::new(10, 107, 0, 10 + n))
                })
                .collect(),
            pods: vec![sound("10.42.0.0/16")],
            services: vec![sound("10.43.0.0/16")],
        }
    }

    /// Looks at the machine as the member of this role and rank.
    pub fn member<T>(
        &self,
        role: Role,
        index: u16,
        look: impl FnOnce(&Membership<'_>, &Subject<'_>) -> T,
    ) -> T {
        let node = self.site.node(&sound("machine-7")).expect("the machine");
        let network = self.site.network(&sound("lab")).expect("the network");
        let peers: Vec<Peer<'_>> = self
            .control_planes
            .iter()
            .map(|(hostname, address)| Peer {
                hostname,
                address: *address,
            })
            .collect();
        let member = Membership {
            cluster: "lab",
            domain: &self.domain,
            version: "v1.32.0+k3s1",
            api_address: Ipv4Addr::new(10, 107, 0, 1),
            pods: &self.pods,
            services: &self.services,
            role,
            index: index.into(),
            hostname: &node.hostname,
            address: Ipv4Addr::new(10, 107, 0, 17),
            founds: role == Role::ControlPlane && index == 0,
            control_planes: &peers,
            settings: &self.settings,
        };
        let subject = Subject {
            site: &self.site,
            node: Some(node),
            link: Some(node.boot_link()),
            network,
            disk: self.disk.as_ref(),
            generation: 0,
            urls: &self.urls,
        };
        look(&member, &subject)
    }
}

fn artifact(file: &str, digest: Digest) -> Artifact {
    Artifact {
        file: file.to_owned(),
        digest,
        size: 1,
    }
}
