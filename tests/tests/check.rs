//! `reveille check` on sites in files: a good one is clean, a bad one names every fault at its place, and the
//! committed schemas are those of the types.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use daemon::config::check::{Kind, schema};
use daemon::config::load;
use netboot::host::{HostSpec, LinkPolicy, ReversePath};
use netboot::spec::SiteSpec;
use tests::bastion::reveille;
use tests::sample::{ARTIFACTS, repository, site, state};

/// What the faulty site names rightly.
const ON_THE_SHELF: [&str; 2] = ["debian-13/vmlinuz", "debian-13/initrd.img"];

/// What the command prints and its exit code.
fn checked(site: &Path, state: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(reveille());
    command.arg("check").arg("--site").arg(site);
    command.arg("--state").arg(state).args(more);
    let output = command.output().expect("the command runs");
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("a verdict is text");
    (output.status.code(), text)
}

/// Compares with a committed file, or rewrites it where `UPDATE_GOLDEN` is set.
fn golden(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).expect("written");
    }
    let wanted = std::fs::read_to_string(path).unwrap_or_default();
    let hint = "run again with UPDATE_GOLDEN=1 and look at the difference";
    assert!(
        wanted == text,
        "{} differs; {hint}:\n{text}",
        path.display()
    );
}

#[test]
fn the_sample_site_is_clean() {
    let state = state(&ARTIFACTS);
    let verdict = checked(&site(), state.path(), &[]);
    let clean = "site lab: 3 networks, 5 machines, 5 profiles, 1 cluster, no faults\n";
    assert_eq!(verdict, (Some(0), clean.to_owned()));
}

#[test]
fn every_seeded_fault_is_named_with_its_place_value_and_remedy() {
    let state = state(&ON_THE_SHELF);
    let (code, text) = checked(Path::new("fixtures/faulty-site"), state.path(), &[]);
    assert_eq!(code, Some(78));
    golden(Path::new("fixtures/faulty-site.txt"), &text);
}

/// A site with two networks: `more` is of `site.yaml`, `machines` the list of `machines.yaml`.
fn written(more: &str, machines: &str) -> tempfile::TempDir {
    const NETWORKS: &str = "site: lab\nhttp: { port: 8081 }\nnetworks:\n  \
        - { name: provisioning, link: eth1.107, subnet: 10.107.0.0/24 }\n  \
        - { name: storage, link: eth2, subnet: 10.200.0.0/16, mode: off }\n";
    let site = tempfile::tempdir().expect("a directory");
    let write = |file: &str, text: &str| {
        let path = site.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    write("site.yaml", &format!("{NETWORKS}{more}"));
    write("machines.yaml", &format!("machines: {machines}\n"));
    write(
        "profiles/live.yaml",
        "kernel: debian-13/vmlinuz\npurpose: live\n",
    );
    site
}

fn loaded(more: &str, machines: &str) -> SiteSpec {
    let site = written(more, machines);
    let loaded = load(site.path(), state(&ON_THE_SHELF).path());
    let (_, spec) = loaded.unwrap_or_else(|report| panic!("{report}"));
    spec
}

/// What the site wants of the bastion, from the text of `links` and `host`.
fn host(text: &str) -> HostSpec {
    HostSpec::clone(loaded(text, "[]").host())
}

#[test]
fn frames_of_vlans_and_bonds_bear_the_macs_of_the_cards_below() {
    let site = loaded(
        "links:\n- { name: eth1.107, vlan: { parent: eth1, id: 107 }, addresses: [10.107.0.1/24] }\n",
        "[{ name: node-1, profile: live, links: [\
            { name: bond0.7, vlan: { parent: bond0, id: 7 }, address: 10.200.0.11 },\
            { name: eth0, mac: 52:54:00:aa:00:01 }, { name: eth1, mac: 52:54:00:aa:00:02 },\
            { name: bond0, bond: { mode: active-backup, ports: [eth0, eth1] }, address: 10.107.0.11 }] }]",
    );
    let node = site.node(&"node-1".parse().unwrap()).unwrap();
    let both = ["52:54:00:aa:00:01", "52:54:00:aa:00:02"].map(|mac| mac.parse().unwrap());
    let legs = node.links.iter().map(|link| {
        assert_eq!(link.macs, both);
        (
            link.name.as_ref().unwrap().to_string(),
            link.network.to_string(),
        )
    });
    // The boot link first: firmware tags no frames.
    let wanted = [("bond0", "provisioning"), ("bond0.7", "storage")];
    let wanted = wanted.map(|(name, network)| (name.to_owned(), network.to_owned()));
    assert_eq!(legs.collect::<Vec<_>>(), wanted);
    let names = node.system.iter().map(|link| link.name.to_string());
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["bond0.7", "eth0", "eth1", "bond0"]
    );
}

#[test]
fn a_machines_tag_and_way_out_must_be_those_of_its_networks() {
    let site = written(
        "links:\n- { name: eth2, vlan: { parent: eth1, id: 8 }, addresses: [10.200.0.1/16] }\n",
        "[{ name: node-1, profile: live, links: [\
            { name: lan0, mac: 52:54:00:aa:00:01, address: 10.107.0.11 },\
            { name: lan0.7, vlan: { parent: lan0, id: 7 }, address: 10.200.0.11, default_route: true }] }]",
    );
    let (code, text) = checked(site.path(), state(&ON_THE_SHELF).path(), &[]);
    assert_eq!(code, Some(78), "{text}");
    for fault in [
        "id 7 is not the VLAN of network storage: the bastion's eth2 has 8",
        "default_route true is asked of network storage, which has no router",
    ] {
        assert!(text.contains(fault), "{text}");
    }
}

#[test]
fn a_machine_with_one_plain_card_is_left_to_dhcp_however_it_is_written() {
    for text in [
        "mac: 52:54:00:aa:00:01, address: 10.107.0.11",
        "links: [{ macs: [52-54-00-AA-00-01], address: 10.107.0.11 }]",
    ] {
        let site = loaded("", &format!("[{{ name: node-1, profile: live, {text} }}]"));
        let node = site.node(&"node-1".parse().unwrap()).unwrap();
        assert!(node.system.is_empty(), "{text}");
        assert_eq!(
            node.boot_link().address.to_string(),
            "10.107.0.11",
            "{text}"
        );
    }
}

#[test]
fn a_gateway_gets_a_table_of_its_own_and_the_main_one_only_where_it_is_asked_for() {
    let text = "links:\n\
        - { name: eth1.107, vlan: { parent: eth1, id: 107 }, addresses: [10.107.0.1/24], gateway: 10.107.0.254 }\n\
        - { name: eth0, addresses: [203.0.113.5/24], gateway: 203.0.113.1, default_route: true, rp_filter: off }\n";
    let spec = host(text);
    let [inner, outer] = &spec.links[..] else {
        panic!("{spec:?}");
    };
    assert!(inner.link.routes.iter().all(|route| route.table == 1107));
    assert_eq!(inner.rp_filter, Some(ReversePath::Loose));
    let [rule] = inner.link.rules[..] else {
        panic!("{inner:?}");
    };
    assert_eq!(
        (rule.from.to_string(), rule.table),
        ("10.107.0.1/32".into(), 1107)
    );
    let everywhere = outer
        .link
        .routes
        .iter()
        .filter(|route| route.to.prefix_len() == 0);
    let tables: Vec<u32> = everywhere.map(|route| route.table).collect();
    assert_eq!(
        (tables, outer.rp_filter),
        (vec![2002, 254], Some(ReversePath::Off))
    );
}

#[test]
fn the_firewall_opens_a_service_where_it_is_served_and_masquerade_forwards() {
    let spec = host(
        "links:\n- { name: eth1.107, vlan: { parent: eth1, id: 107 }, addresses: [10.107.0.1/24] }\n\
         host: { masquerade: [{ network: provisioning, out: eth0 }], confirm: 1m }\n",
    );
    assert_eq!(
        (spec.policy, spec.confirm_seconds),
        (LinkPolicy::Managed, 60)
    );
    assert_eq!(spec.links[0].forwarding, Some(true));
    let open = spec.services.iter().map(|service| {
        let links = service
            .links
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        (service.port, links.join(" "))
    });
    let (both, answered) = ("eth1.107 eth2".to_owned(), "eth1.107".to_owned());
    let wanted: Vec<(u16, String)> = [8081, 8443, 8444, 9345, 22623]
        .map(|port| (port, both.clone()))
        .into_iter()
        .chain([67, 69, 4011].map(|port| (port, answered.clone())))
        .collect();
    assert_eq!(open.collect::<Vec<_>>(), wanted);
}

#[test]
fn nothing_is_made_and_nothing_filtered_where_others_own_the_network() {
    for text in ["links: unmanaged\n", "host: { links: unmanaged }\n"] {
        let spec = host(text);
        assert_eq!(spec.policy, LinkPolicy::Unmanaged, "{text}");
        assert!(spec.services.is_empty() && spec.links.is_empty(), "{text}");
    }
    assert!(host("").services.is_empty());
}

#[test]
fn scripts_get_the_same_faults_as_people() {
    let state = state(&ON_THE_SHELF);
    let site = Path::new("fixtures/faulty-site");
    let (code, json) = checked(site, state.path(), &["--json"]);
    let (_, text) = checked(site, state.path(), &[]);
    let verdict: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &verdict["clean"]), (Some(78), &false.into()));
    let faults = verdict["faults"].as_array().unwrap();
    assert!(faults.len() >= 12, "{}", faults.len());
    for fault in faults {
        let word = |key: &str| fault[key].as_str().unwrap().to_owned();
        let mut place = word("file");
        if fault["line"] != 0 {
            write!(place, ":{}:{}", fault["line"], fault["column"]).unwrap();
        }
        let said = text
            .lines()
            .any(|line| line.starts_with(&format!("{place}:")) && line.ends_with(&word("problem")));
        assert!(said, "{fault}");
        assert!(!word("remedy").is_empty(), "{fault}");
    }
}

#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for kind in Kind::ALL {
        let path = format!("daemon/docs/schema/{}.schema.json", kind.word());
        golden(&repository().join(path), &schema(kind));
    }
}

#[test]
fn a_root_of_another_build_than_its_kernel_is_named() {
    let names = [
        "scos/2/x86_64/vmlinuz",
        "scos/2/x86_64/initramfs.img",
        "scos/1/x86_64/rootfs.img",
    ];
    let site = written("", "[]");
    let profile = "kernel: scos/2/x86_64/vmlinuz\ninitrds: [scos/2/x86_64/initramfs.img]\n\
        artifacts: { rootfs: scos/1/x86_64/rootfs.img }\n\
        arguments: [\"coreos.live.rootfs_url={{ artifacts.rootfs }}\"]\n";
    std::fs::write(site.path().join("profiles/coreos.yaml"), profile).expect("written");
    let Err(report) = load(site.path(), state(&names).path()) else {
        panic!("two builds were taken for one");
    };
    let said = report.to_string();
    assert!(
        said.contains("coreos.yaml:3") && said.contains("another build than the kernel"),
        "{said}"
    );
    let mended = profile.replace("scos/1/x86_64/rootfs.img", "scos/2/x86_64/initramfs.img");
    std::fs::write(site.path().join("profiles/coreos.yaml"), mended).expect("written");
    let left = load(
        site.path(),
        state(&[names[0], names[1], "debian-13/vmlinuz"]).path(),
    );
    assert!(
        left.is_ok(),
        "{}",
        left.err()
            .map_or(String::new(), |report| report.to_string())
    );
}
