//! A bastion that serves boot HTTP alone, inside a namespace, on a site written in code. The store
//! stands aside: what the controller commits is counted, and refused while a test says so.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use daemon::clusters::keyring::Keyring;
use daemon::controller::Controller;
use daemon::http::{self, Http, Limits, Parts, Ports};
use daemon::ledger::Ledger;
use daemon::link;
use daemon::tls::SiteCa;
use daemon::vault::Vault;
use images::{Depot, Loaders, PACKAGE_DIRECTORIES};
use netboot::attempt::Entry;
use netboot::net::{MacAddress, NetworkName, ProfileName};
use netboot::node::{NodeLink, NodeSpec};
use netboot::site::Site;
use netboot::spec::{Artifact, ConfigSource, Network, Profile, Purpose, SiteParts, SiteSpec};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::lab::until;
use crate::netns::Netns;

pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
/// The plain side, as URLs begin.
pub const BASE: &str = "http://10.107.0.1:8080";

/// What the machines of the site do, by their numbers.
pub const IGNITION: u8 = 1;
pub const CLOUD_INIT: u8 = 2;
pub const TALOS: u8 = 3;
pub const LIVE: u8 = 4;

pub struct Bastion {
    pub netns: Netns,
    pub http: Http,
    pub controller: Controller,
    pub entries: mpsc::Receiver<Entry>,
    pub depot: Depot,
    pub commits: Arc<AtomicUsize>,
    /// While true, nothing can be written down.
    pub broken_disk: Arc<AtomicBool>,
    /// While true, whatever is being written waits.
    pub stuck_disk: Arc<AtomicBool>,
    pub directory: TempDir,
    /// Last: what runs in it is dropped before it.
    _runtime: tokio::runtime::Runtime,
}

impl Bastion {
    /// A bastion on link `eth0` of a namespace of its own, listening.
    pub fn start(limits: Limits) -> Self {
        Self::of(limits, |_| {})
    }

    /// The same, on a site that was changed before it was checked.
    pub fn of(limits: Limits, change: impl FnOnce(&mut SiteParts) + Send + 'static) -> Self {
        let netns = Netns::new();
        netns.bridge("eth0", SERVER, 16);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let commits = Arc::new(AtomicUsize::new(0));
        let broken_disk = Arc::new(AtomicBool::new(false));
        let stuck_disk = Arc::new(AtomicBool::new(false));
        let (counted, broken) = (Arc::clone(&commits), Arc::clone(&broken_disk));
        let stuck = Arc::clone(&stuck_disk);
        let (http, controller, entries, depot, runtime) = netns.run(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            let (ledger, entries) = Ledger::channel();
            let (http, controller, depot) = runtime.block_on(async {
                let depot = Depot::open(path.join("depot")).expect("a depot");
                let mut parts = site(&depot);
                change(&mut parts);
                let spec = SiteSpec::new(parts).unwrap_or_else(|faults| panic!("{faults:?}"));
                let (controller, _) = Controller::start(Site::new(Arc::new(spec)), move |_, _| {
                    while stuck.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    if broken.load(Ordering::SeqCst) {
                        return Err("the disk is full".to_owned());
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                });
                let parts = Parts {
                    depot: depot.clone(),
                    loaders: Arc::new(Loaders::read(&PACKAGE_DIRECTORIES)),
                    controller: controller.clone(),
                    ledger,
                    ca: Arc::new(SiteCa::open(&path.join("tls")).expect("a CA")),
                    ports: Ports::default(),
                    keyring: Arc::new(Keyring::new(Arc::new(
                        Vault::open(&path.join("secrets"), None).expect("a vault"),
                    ))),
                    flow_key: [7; 32],
                    limits,
                };
                let links = link::start().await.expect("the kernel tells its links");
                (http::start(parts, links).0, controller, depot)
            });
            (http, controller, entries, depot, runtime)
        });
        until("boot HTTP to listen", Duration::from_secs(10), || {
            http.served().len() >= 2
        });
        Self {
            netns,
            http,
            controller,
            entries,
            depot,
            commits,
            broken_disk,
            stuck_disk,
            directory,
            _runtime: runtime,
        }
    }

    /// A machine of this number on the same wire, with its reserved address.
    pub fn machine(&self, number: u8) -> Netns {
        self.stranger(&mac(number).to_string(), address(number))
    }

    /// Any station on the same wire.
    pub fn stranger(&self, mac: &str, address: Ipv4Addr) -> Netns {
        let netns = Netns::new();
        let port = format!(
            "p{}",
            address.octets().map(|octet| octet.to_string()).join("-")
        );
        self.netns.cable(&port, &netns, "eth0");
        self.netns.ip(&format!("link set {port} master eth0"));
        netns.ip("link set eth0 down");
        netns.ip(&format!("link set eth0 address {mac} up"));
        netns.ip(&format!("addr add {address}/16 dev eth0"));
        netns
    }

    /// Writes a file of so many bytes into the depot, no two blocks alike.
    pub fn artifact(&self, name: &str, bytes: usize) -> images::Artifact {
        let content: Vec<u8> = (0..bytes)
            .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
            .collect();
        let name = name.parse().expect("a name");
        self.depot
            .import_from(&name, &*content, None)
            .expect("imported")
    }

    /// The ledger's entries so far.
    pub fn facts(&mut self) -> Vec<Entry> {
        std::iter::from_fn(|| self.entries.try_recv().ok()).collect()
    }

    /// The site's CA, where `curl --cacert` finds it.
    pub fn ca(&self) -> String {
        let text = SiteCa::open(&self.directory.path().join("tls"))
            .expect("a CA")
            .pem()
            .to_owned();
        let path = self.directory.path().join("ca.pem");
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

/// The URL of an artefact.
pub fn url(artifact: &images::Artifact) -> String {
    format!(
        "{BASE}/artifacts/{}/{}",
        artifact.digest,
        artifact.name.file()
    )
}

pub fn mac(number: u8) -> MacAddress {
    MacAddress::from_octets([0x52, 0x54, 0, 0xaa, 0, number]).expect("a station's address")
}

pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 107, 1, number)
}

/// The URL of a machine's script.
pub fn script(number: u8) -> String {
    format!("{BASE}/boot/{}/script.ipxe", mac(number).hyphenated())
}

/// What follows a word in a script: a URL of the kernel's command line.
pub fn argument<'a>(script: &'a str, key: &str) -> &'a str {
    let word = script
        .split_whitespace()
        .find_map(|word| word.strip_prefix(key));
    word.unwrap_or_else(|| panic!("no {key} in {script}"))
}

fn site(depot: &Depot) -> SiteParts {
    let artifact = |name: &str| {
        let stored = depot
            .import_from(&name.parse().expect("a name"), name.as_bytes(), None)
            .expect("imported");
        Artifact {
            file: stored.name.file().to_owned(),
            digest: stored.digest,
            size: stored.size,
        }
    };
    let network: NetworkName = "lab".parse().expect("a name");
    let profile = |name: &str, config, arguments: &[&str], purpose| Profile {
        name: name.parse().expect("a name"),
        kernel: artifact("debian/vmlinuz"),
        initrds: vec![artifact("debian/initrd.img")],
        artifacts: std::collections::BTreeMap::new(),
        arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        config,
        purpose,
        disk: None,
    };
    let ignition = r#"{"ignition":{"version":"3.3.0"},"storage":{"files":[{"path":"/etc/hostname","mode":420,"overwrite":true,"contents":{"source":"data:,{{ hostname }}"}}]}}"#;
    let profiles = vec![
        profile(
            "ignition",
            ConfigSource::Ignition(ignition.into()),
            &[
                "ignition.config.url={{ config_url }}config.ign",
                "report={{ report_url }}",
            ],
            Purpose::Install,
        ),
        profile(
            "cloud-init",
            ConfigSource::CloudInit {
                user_data: "#cloud-config\nhostname: {{ hostname }}\n".into(),
                vendor_data: None,
                network_config: None,
            },
            &["ds=nocloud;s={{ config_url }}"],
            Purpose::Install,
        ),
        profile(
            "talos",
            ConfigSource::Talos("version: v1alpha1\nmachine:\n  type: worker\n".into()),
            &["talos.config={{ config_url }}talos.yaml"],
            Purpose::Install,
        ),
        profile("live", ConfigSource::None, &[], Purpose::Live),
    ];
    let node = |number: u8, profile: &str| NodeSpec {
        name: format!("node-{number}").parse().expect("a name"),
        links: vec![NodeLink {
            macs: vec![mac(number)],
            network: network.clone(),
            address: address(number),
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: None,
        serial: Some(format!("SN{number}")),
        hostname: format!("node-{number}").parse().expect("a host name"),
        profile: Some(profile.parse::<ProfileName>().expect("a name")),
        labels: Default::default(),
        rack: None,
        variables: [].into(),
        loaders: [].into(),
        disk: None,
    };
    SiteParts {
        networks: vec![Network {
            lease_seconds: 3600,
            ..Network::plain(
                network.clone(),
                "eth0".parse().expect("a link name"),
                "10.107.0.0/16".parse().expect("a subnet"),
            )
        }],
        nodes: vec![
            node(IGNITION, "ignition"),
            node(CLOUD_INIT, "cloud-init"),
            node(TALOS, "talos"),
            node(LIVE, "live"),
        ],
        profiles,
        ..SiteParts::default()
    }
}

/// What `curl` gets: status and body. Headers, where wanted, are part of the body (`-i`).
pub fn curl(netns: &Netns, words: &[&str]) -> (u16, String) {
    let mut all = vec!["-sS", "--max-time", "30", "-w", "\n%{http_code}"];
    all.extend(words);
    let said = netns.output("curl", &all);
    let (body, status) = said.rsplit_once('\n').expect("curl writes the status last");
    (status.trim().parse().expect("a status"), body.to_owned())
}

/// The content of a file, which must be there.
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
