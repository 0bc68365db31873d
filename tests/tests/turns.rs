//! A cluster's machines before the real daemon, from the definition in its site to the config with secrets: whose turn it is,
//! what leaves once, and what a killed daemon still knows. The machines are namespaces with `curl`: nothing boots here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::bastion::Bastion;
use tests::lab::{Lab, until};
use tests::netns::Netns;

const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: lab.example }
";
const MACHINES: &str = "machines:
  - { name: head-1, mac: 52:54:00:aa:00:01, address: 10.107.0.11, disk: { path: /dev/disk/by-path/pci-0 } }
  - { name: head-2, mac: 52:54:00:aa:00:02, address: 10.107.0.12, disk: { path: /dev/disk/by-path/pci-0 } }
  - { name: head-3, mac: 52:54:00:aa:00:03, address: 10.107.0.13, disk: { path: /dev/disk/by-path/pci-0 } }
  - { name: work-1, mac: 52:54:00:aa:00:04, address: 10.107.0.14, disk: { path: /dev/disk/by-path/pci-0 } }
";
const PROFILE: &str = "kernel: vmlinuz
arguments: [talos.platform=metal, \"talos.config={{ config_url }}talos.yaml\"]
config: { format: talos }
";
const CLUSTER: &str = "name: lab
type: TALOS
version: v1.11.5
network: { serviceCIDR: 10.200.0.0/16 }
nodeGroups:
  - { name: heads, role: CONTROL_PLANE, count: 3, boot: { configTemplate: talos } }
  - { name: workers, role: WORKER, count: 1, boot: { configTemplate: talos } }
";
const LIMIT: Duration = Duration::from_secs(60);

fn given(root: &Path) {
    for (name, text) in [
        ("site.yaml", SITE),
        ("machines.yaml", MACHINES),
        ("profiles/talos.yaml", PROFILE),
        ("clusters/lab.yaml", CLUSTER),
    ] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }
}

/// The namespace of machine `number`, on the bridge.
fn machine(lab: &Lab, number: u8) -> Netns {
    let machine = Netns::new();
    let cable = format!("m{number}");
    lab.netns.cable(&cable, &machine, "eth0");
    lab.netns.ip(&format!("link set {cable} master br0"));
    machine.ip(&format!(
        "link set eth0 address 52:54:00:aa:00:{number:02x}"
    ));
    machine.ip(&format!("addr add 10.107.0.{}/24 dev eth0", 10 + number));
    machine
}

fn script(machine: &Netns, number: u8) -> String {
    let url = format!("http://10.107.0.1:8080/boot/52-54-00-aa-00-{number:02x}/script.ipxe");
    machine.output(
        "curl",
        &["--silent", "--show-error", "--max-time", "10", &url],
    )
}

/// The status, and the body.
fn fetch(machine: &Netns, url: &str) -> (String, String) {
    let words = [
        "--silent",
        "--max-time",
        "10",
        "--write-out",
        "\n%{http_code}",
        url,
    ];
    let said = machine.output("curl", &words);
    let (body, status) = said.rsplit_once('\n').expect("a status after the body");
    (status.to_owned(), body.to_owned())
}

fn config_url(script: &str) -> String {
    let argument = script
        .split_whitespace()
        .find_map(|word| word.strip_prefix("talos.config="));
    argument.expect("the script names a config").to_owned()
}

#[test]
fn the_first_control_plane_gets_its_config_once_and_everybody_else_waits() {
    let lab = Lab::flat(0);
    let (head, other) = (machine(&lab, 1), machine(&lab, 2));
    let root = lab.path("given");
    given(&root);
    let mut bastion = Bastion::new(&lab, &root);
    let kernel = lab.path("vmlinuz");
    fs::write(&kernel, "a kernel").expect("written");
    bastion.import(&kernel, "vmlinuz");
    bastion.start();
    lab.answers_tcp(8080);

    // Nobody boots before the cluster's secrets are made.
    until("the secrets to be made", LIMIT, || {
        script(&head, 1).contains("talos.config=")
    });
    let waits = script(&other, 2);
    let sentence = "waits its turn in lab (bootstrap phase): bootstrapped not seen yet";
    assert!(waits.contains(sentence), "{waits}");

    let url = config_url(&script(&head, 1));
    let (status, _) = fetch(&other, &url);
    assert_eq!(
        status, "403",
        "another machine asked with the first one's token"
    );
    let (status, config) = fetch(&head, &url);
    assert_eq!(status, "200", "{config}");
    assert!(config.contains("type: controlplane"), "{config}");
    assert!(
        config.contains("https://api.lab.lab.example:6443"),
        "{config}"
    );
    until("the delivery to be written down", LIMIT, || {
        fetch(&head, &url).0 == "503"
    });

    bastion.kill();
    bastion.start();
    lab.answers_tcp(8080);
    assert_eq!(fetch(&head, &url).0, "503", "what left once left for good");
    until("the secrets to be read again", LIMIT, || {
        script(&other, 2).contains(sentence)
    });

    let status = bastion.client(&["cluster", "status", "lab"]);
    assert!(status.contains("bootstrapped"), "{status}");
    let why = bastion.client(&["node", "why", "head-1"]);
    assert!(why.contains("config-asked-again"), "{why}");
    let kubeconfig = bastion.client(&["cluster", "kubeconfig", "lab"]);
    assert!(
        kubeconfig.contains("https://api.lab.lab.example:6443"),
        "no server in it"
    );

    // The next boot is another attempt, with a config of its own.
    let again = config_url(&script(&head, 1));
    assert_ne!(again, url);
    assert_eq!(fetch(&head, &again).0, "200");
}
