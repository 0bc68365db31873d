//! A cluster's machines before the real daemon, from the definition in its site to the config with secrets: whose turn it is,
//! what leaves once, and what a killed daemon still knows. The machines are namespaces with `curl`: nothing boots here.

use std::fs;
use std::time::Duration;

use tests::bastion::Bastion;
use tests::lab::{Lab, until};
use tests::node::Node;
use tests::site::{of_talos, write};

const SITE: &str = "site: test
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: lab.example }
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

fn config_url(script: &str) -> String {
    Node::argument(script, "talos.config=").expect("the script names a config")
}

#[test]
fn the_first_control_plane_gets_its_config_once_and_everybody_else_waits() {
    let lab = Lab::flat(0);
    let (head, other) = (Node::new(&lab, 1), Node::new(&lab, 2));
    let root = lab.path("given");
    of_talos(&root, SITE, &["head-1", "head-2", "head-3", "work-1"]);
    write(&root, "clusters/lab.yaml", CLUSTER);
    let mut bastion = Bastion::new(&lab, &root);
    let kernel = lab.path("vmlinuz");
    fs::write(&kernel, "a kernel").expect("written");
    bastion.import(&kernel, "vmlinuz");
    bastion.start();
    lab.answers_tcp(8080);

    // Nobody boots before the cluster's secrets are made.
    until("the secrets to be made", LIMIT, || {
        head.script().contains("talos.config=")
    });
    let waits = other.script();
    let sentence = "waits its turn in lab (bootstrap phase): bootstrapped not seen yet";
    assert!(waits.contains(sentence), "{waits}");

    let mac = [
        "simulate",
        "--mac",
        "52:54:00:aa:00:01",
        "--stage",
        "config",
    ];
    let shown = bastion.client(&mac);
    assert!(
        shown.contains("type: controlplane") && shown.contains("token: SECRET"),
        "{shown}"
    );

    let url = config_url(&head.script());
    let (status, _) = other.fetch(&url);
    assert_eq!(
        status, "403",
        "another machine asked with the first one's token"
    );
    let (status, config) = head.fetch(&url);
    assert_eq!(status, "200", "{config}");
    assert!(config.contains("type: controlplane"), "{config}");
    assert!(
        config.contains("https://api.lab.lab.example:6443"),
        "{config}"
    );
    until("the delivery to be written down", LIMIT, || {
        head.fetch(&url).0 == "503"
    });

    bastion.kill();
    bastion.start();
    lab.answers_tcp(8080);
    assert_eq!(head.fetch(&url).0, "503", "what left once left for good");
    until("the secrets to be read again", LIMIT, || {
        other.script().contains(sentence)
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
    let again = config_url(&head.script());
    assert_ne!(again, url);
    assert_eq!(head.fetch(&again).0, "200");
}
