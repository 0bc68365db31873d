//! `reveille host export`: the system's own programs make the bastion's network from the exported files, and then nothing is
//! left for us to do. The bridges and cables are real; VLANs need a kernel of their own (`vlan`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use daemon::config;
use daemon::host::kernel::Kernel;
use netboot::host::{HostSpec, HostState, diff, ruleset, target};
use tests::bastion::reveille;
use tests::debian::{Debian, ROOT};
use tests::lab::until;
use tests::netns::Netns;
use tests::network::cabled;
use tests::timeline::Timeline;

const SITE: &str = "site: handover
networks:
  - { name: provisioning, link: br107, subnet: 10.107.0.0/24, router: 10.107.0.1 }
links:
  - name: br107
    bridge: { ports: [eth1, eth2] }
    addresses: [10.107.0.1/24, 10.107.1.1/24, \"2001:db8:107::1/64\"]
    gateways: [10.107.0.254, \"2001:db8:107::fe\"]
    mtu: 1400
    routes: [{ to: 10.200.0.0/16, via: 10.107.0.254, metric: 100 }]
  - name: eth0
    addresses: [203.0.113.5/24]
    gateway: 203.0.113.1
    default_route: true
host:
  masquerade: [{ network: provisioning, out: eth0 }]
";

struct Handover {
    netns: Netns,
    _far: Netns,
    timeline: Timeline,
    site: tempfile::TempDir,
    spec: HostSpec,
}

impl Handover {
    fn new() -> Self {
        let (netns, far) = cabled();
        let site = tempfile::tempdir().expect("a directory");
        fs::write(site.path().join("site.yaml"), SITE).expect("a file");
        let (_, spec) = config::load(site.path(), &site.path().join("state"))
            .unwrap_or_else(|report| panic!("{:?}", report.faults));
        let spec = spec.host().as_ref().clone();
        assert!(!spec.services.is_empty() && !spec.masquerade.is_empty());
        Self {
            netns,
            _far: far,
            timeline: Timeline::default(),
            site,
            spec,
        }
    }

    fn export(&self, format: &str, more: &[&str]) -> Result<String, String> {
        let (site, state) = (
            self.site.path().display().to_string(),
            self.site.path().join("state"),
        );
        let state = state.display().to_string();
        let mut words = vec![
            "host", "export", "--format", format, "--site", &site, "--state", &state,
        ];
        words.extend(more);
        self.netns.try_output(reveille(), &words)
    }

    fn present(&self) -> HostState {
        self.netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let kernel = Kernel::open().await.expect("a kernel that can be read");
                kernel.read().await.expect("a kernel that can be read")
            })
        })
    }

    /// What the plan still holds, a line each.
    fn left_to_do(&self) -> Vec<String> {
        let present = self.present();
        let target = target(&self.spec, &present);
        let obstacles = target
            .obstacles
            .iter()
            .map(|obstacle| format!("{obstacle:?}"));
        let operations = diff(&present, &target.state);
        obstacles
            .chain(operations.iter().map(ToString::to_string))
            .collect()
    }

    /// Writes the files into the tree, lets `make` bring up the links, and waits until there is nothing left but the table of the
    /// firewall and the sysctls; then applies these as the system would.
    fn comes_true<T>(&self, format: &str, make: impl FnOnce(&Debian<'_>, &Timeline) -> T) {
        let debian = Debian::over(&self.netns);
        let told = self.export(format, &["--output", ROOT]).expect("an export");
        self.timeline.note(told);
        let _running = make(&debian, &self.timeline);
        let is_there = || {
            self.present()
                .links
                .keys()
                .any(|link| link.as_str() == "br107")
        };
        until("br107 to be there", Duration::from_secs(30), is_there);
        debian.output("/lib/systemd/systemd-sysctl", &[]);
        debian.output("nft", &["-f", "/etc/nftables.d/reveille.nft"]);
        let over = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("nothing to be left to do", Duration::from_secs(30), || {
                self.left_to_do().is_empty()
            });
        }));
        assert!(
            over.is_ok(),
            "{}\n{format} left: {:#?}",
            self.timeline.told(),
            self.left_to_do()
        );
        // The table, too, word for word what we would have put there.
        assert_eq!(self.present().ruleset, ruleset(&self.spec));
    }
}

#[test]
fn nothing_is_left_to_do_where_networkd_has_the_files() {
    Handover::new().comes_true("networkd", |debian, timeline| debian.networkd(timeline));
}

#[test]
fn nothing_is_left_to_do_where_networkmanager_has_the_files() {
    Handover::new().comes_true("networkmanager", |debian, timeline| {
        debian.network_manager(timeline)
    });
}

#[test]
fn nothing_is_left_to_do_where_ifupdown_has_the_file() {
    Handover::new().comes_true("ifupdown", |debian, timeline| {
        debian.output("mkdir", &["-p", "/run/network"]);
        timeline.note(debian.output("ifup", &["-a", "-i", "/etc/network/interfaces.d/reveille"]));
    });
}

#[test]
fn an_export_writes_over_its_own_files_and_over_no_others() {
    let handover = Handover::new();
    let output = handover.site.path().join("root");
    let below = |path: &str| output.join(path);
    let export = |format| handover.export(format, &["--output", output.to_str().expect("a path")]);
    let first = export("networkd").expect("an export");
    assert!(
        first.contains("wrote") && first.contains("set `links: unmanaged` under `host:`"),
        "{first}"
    );
    assert_eq!(export("networkd").expect("the same again"), first);
    // A link that the site no longer says.
    let old = below("etc/systemd/network/10-old.network");
    fs::copy(below("etc/systemd/network/10-br107.network"), &old).expect("a copy");
    let told = export("networkd").expect("an export");
    assert!(
        told.contains(&format!("remove {}", old.display())),
        "{told}"
    );
    // A file of the administrator's own.
    let foreign = below("etc/NetworkManager/system-connections/eth0.nmconnection");
    fs::create_dir_all(foreign.parent().expect("a directory")).expect("a directory");
    fs::write(&foreign, "[connection]\nid=mine\n").expect("a file");
    let refused = export("networkmanager").expect_err("a refusal");
    assert!(
        refused.contains("eth0.nmconnection is there") && refused.contains("try: move it away"),
        "{refused}"
    );
    assert_eq!(
        fs::read_to_string(&foreign).expect("the file"),
        "[connection]\nid=mine\n"
    );
    assert!(!exists(&below(
        "etc/NetworkManager/system-connections/br107.nmconnection"
    )));
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[test]
fn an_export_without_a_directory_prints_every_file_and_what_to_do_with_it() {
    let handover = Handover::new();
    for (format, path) in [
        ("networkd", "/etc/systemd/network/10-br107.netdev"),
        (
            "networkmanager",
            "/etc/NetworkManager/system-connections/br107.nmconnection (mode 0600)",
        ),
        ("ifupdown", "/etc/network/interfaces.d/reveille"),
        ("nmstate", "/etc/nmstate/reveille.yml"),
    ] {
        let printed = handover.export(format, &[]).expect("an export");
        for part in [
            path,
            "/etc/sysctl.d/60-reveille.conf",
            "/etc/nftables.d/reveille.nft",
            "reveille host plan",
        ] {
            assert!(printed.contains(part), "no {part} in\n{printed}");
        }
    }
    let bare = SITE
        .split("links:")
        .next()
        .expect("what is above the links");
    fs::write(handover.site.path().join("site.yaml"), bare).expect("a file");
    let refused = handover.export("nmstate", &[]).expect_err("nothing to say");
    assert!(
        refused.contains("lists no links") && refused.contains("try: list them"),
        "{refused}"
    );
}
