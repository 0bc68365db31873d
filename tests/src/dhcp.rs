//! A bastion that serves DHCP and quiet IPv6 alone, inside a namespace, on a site written in code. The store stands aside: what the
//! controller commits is counted and dropped.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use daemon::controller::Controller;
use daemon::dhcp::{self, Dhcp};
use daemon::ledger::Ledger;
use daemon::link;
use daemon::ra::{self, QuietIpv6};
use netboot::attempt::Entry;
use netboot::net::{Digest, MacAddress};
use netboot::node::{NodeLink, NodeSpec};
use netboot::site::Site;
use netboot::spec::{Artifact, ConfigSource, Mode, Network, Profile, Purpose, SiteParts, SiteSpec};
use tokio::sync::mpsc;

use crate::netns::Netns;

/// The bastion's address on every laboratory network.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);

/// The site's one network, on link `eth0`.
pub fn network(mode: Mode) -> Network {
    Network {
        mode,
        range: (mode == Mode::Pool)
            .then(|| "10.107.200.1-10.107.200.100".parse().expect("a range")),
        router: Some(Ipv4Addr::new(10, 107, 0, 254)),
        dns: vec![SERVER],
        ntp: vec![SERVER],
        domain: Some("lab.example".parse().expect("a domain")),
        search: vec!["lab.example".parse().expect("a domain")],
        mtu: Some(1400),
        routes: vec![(
            "192.0.2.0/24".parse().expect("a destination"),
            Ipv4Addr::new(10, 107, 0, 253),
        )],
        lease_seconds: 3600,
        options: [(125, vec![1, 2, 3])].into(),
        ..Network::plain(
            "lab".parse().expect("a name"),
            "eth0".parse().expect("a link name"),
            "10.107.0.0/16".parse().expect("a subnet"),
        )
    }
}

/// The MAC address of the listed machine with this number.
pub fn mac(number: u16) -> MacAddress {
    let [high, low] = number.to_be_bytes();
    MacAddress::from_octets([0x52, 0x54, 0, 0xaa, high, low]).expect("a station's address")
}

/// The address reserved for the listed machine with this number.
pub fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 107, 1, 0)) + u32::from(number))
}

/// A listed machine with one address on one network.
pub fn node(name: &str, mac: MacAddress, network: &Network, address: Ipv4Addr) -> NodeSpec {
    NodeSpec {
        name: name.parse().expect("a name"),
        links: vec![NodeLink {
            macs: vec![mac],
            network: network.name.clone(),
            address,
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: None,
        hostname: name.parse().expect("a host name"),
        profile: Some("live".parse().expect("a name")),
        labels: Default::default(),
        rack: None,
        variables: [].into(),
        loaders: [].into(),
        disk: None,
    }
}

/// A site with this network and so many listed machines, counted from 1.
pub fn site(network: Network, machines: u16) -> SiteSpec {
    let listed = |number| {
        node(
            &format!("node-{number}"),
            mac(number),
            &network,
            address(number),
        )
    };
    let nodes = (1..=machines).map(listed).collect();
    site_of(vec![network], nodes)
}

/// A site with these networks and machines, all of one live profile.
pub fn site_of(networks: Vec<Network>, nodes: Vec<NodeSpec>) -> SiteSpec {
    let profile = Profile {
        name: "live".parse().expect("a name"),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: std::collections::BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::None,
        purpose: Purpose::Live,
        disk: None,
    };
    let parts = SiteParts {
        nodes,
        networks,
        profiles: vec![profile],
        ..SiteParts::default()
    };
    SiteSpec::new(parts).unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// The running bastion; dropping it ends it.
pub struct Bastion {
    pub dhcp: Dhcp,
    pub quiet: QuietIpv6,
    pub controller: Controller,
    pub entries: mpsc::Receiver<Entry>,
    pub commits: Arc<AtomicUsize>,
    runtime: tokio::runtime::Runtime,
}

impl Bastion {
    /// Starts it in a namespace whose link `eth0` may come later.
    pub fn start(netns: &Netns, spec: SiteSpec) -> Self {
        let commits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&commits);
        netns.run(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            let (ledger, entries) = Ledger::channel();
            let (dhcp, quiet, controller) = runtime.block_on(async {
                let (controller, _) = Controller::start(Site::new(Arc::new(spec)), move |_, _| {
                    counted.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                });
                let links = link::start().await.expect("the kernel tells its links");
                let (dhcp, _) =
                    dhcp::start(controller.clone(), ledger.clone(), links.clone(), 8080);
                let (quiet, _) = ra::start(controller.clone(), ledger, links);
                (dhcp, quiet, controller)
            });
            Self {
                dhcp,
                quiet,
                controller,
                entries,
                commits,
                runtime,
            }
        })
    }

    /// As `start`, and waits until the link is served.
    pub fn serving(netns: &Netns, spec: SiteSpec) -> Self {
        let links = spec
            .networks()
            .map(|network| network.link.clone())
            .collect();
        let bastion = Self::start(netns, spec);
        bastion.wait_until("every link is served", |bastion| {
            bastion.dhcp.served() == links
        });
        bastion
    }

    /// Packets that got no reply for this reason.
    pub fn ignored(&self, reason: &str) -> u64 {
        self.dhcp
            .counters()
            .reasons()
            .get(reason)
            .copied()
            .unwrap_or(0)
    }

    /// Messages received, or replies sent, by their word.
    pub fn total(&self, word: &str) -> u64 {
        let totals = self.dhcp.counters().totals();
        totals
            .iter()
            .find(|(name, _)| *name == word)
            .map_or(0, |(_, count)| *count)
    }

    /// Waits until something is true of it.
    ///
    /// # Panics
    /// When it is still not true after ten seconds.
    pub fn wait_until(&self, what: &str, is_true: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_true(self) {
            assert!(
                Instant::now() < deadline,
                "not true after ten seconds: {what}; {:?}, {:?}, {:?}",
                self.dhcp.faults(),
                self.dhcp.counters().totals(),
                self.dhcp.counters().reasons(),
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The runtime it lives in, whose threads are in the namespace.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }
}
