//! Cluster definitions: what is refused and where, and the commands that plan, apply, show and destroy clusters, against
//! the real daemon. Its depot holds a few bytes for each artefact: nothing boots here.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;

use daemon::config::clusters::{Change, Offer};
use daemon::config::{Loaded, Report, load_changed};
use netboot::cluster::Role;
use serde_json::Value;
use tests::bastion::{Bastion, reveille};
use tests::lab::Lab;
use tests::process;
use tests::sample;

const SITE: &str = "site: test
networks:
  - { name: cluster, link: eth1.107, subnet: 10.1.107.0/24, domain: lab.example }
  - { name: other, link: eth2, subnet: 10.2.0.0/24, domain: lab.example }
";
const MACHINES: &str = "machines:
  - { name: storage01, mac: 52:54:00:aa:00:01, address: 10.1.107.10 }
  - { name: hv5, mac: 52:54:00:aa:00:05, address: 10.1.107.15, rack: a }
  - { name: hv6, mac: 52:54:00:aa:00:06, address: 10.1.107.16, rack: b }
  - { name: hv7, mac: 52:54:00:aa:00:07, address: 10.1.107.17, rack: c }
  - { name: own-1, mac: 52:54:00:aa:00:08, address: 10.1.107.18, profile: live }
";
const DEFINITION: &str = "name: lab
type: K3S
version: v1.32.0+k3s1
network: { privateVLAN: 107 }
nodeGroups:
  - { name: control, role: CONTROL_PLANE, count: 3, placement: { antiAffinity: HARD } }
  - { name: workers, role: WORKER, count: 1, boot: { configTemplate: k3s } }
services:
  - { name: dns, type: DNS, startupOrder: 1 }
  - { name: api, type: LOAD_BALANCER, dependsOn: [dns], startupOrder: 2 }
";

/// A site that has the machines of the example definitions, below `root`.
fn site(root: &Path) -> PathBuf {
    site_with(root, "")
}

/// The same with more keys in its `site.yaml`.
fn site_with(root: &Path, more: &str) -> PathBuf {
    let site = root.join("given");
    let write = |name: &str, text: &str| {
        let path = site.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    };
    write("site.yaml", &format!("{SITE}{more}"));
    write("machines.yaml", MACHINES);
    for name in ["scos-bootstrap", "scos-master"] {
        let disk = "disk: { path: /dev/disk/by-path/pci-0 }\n";
        let text = format!("kernel: vmlinuz\nconfig: {{ format: ignition }}\n{disk}");
        write(&format!("profiles/{name}.yaml"), &text);
    }
    write(
        "profiles/k3s.yaml",
        "kernel: vmlinuz\nartifacts: { k3s: k3s }\nconfig: { format: cloud-init }\n",
    );
    write("profiles/live.yaml", "kernel: vmlinuz\npurpose: live\n");
    site
}

fn fixture(name: &str) -> PathBuf {
    fs::canonicalize("fixtures/clusters")
        .expect("the fixtures are there")
        .join(name)
}

/// The site with a definition offered, and perhaps one of its own.
fn judged(own: Option<&str>, offered: &str) -> Result<Loaded, Report> {
    judged_beside("", own, offered)
}

fn judged_beside(more: &str, own: Option<&str>, offered: &str) -> Result<Loaded, Report> {
    let (root, state) = (
        tempfile::tempdir().expect("a directory"),
        sample::state(&["vmlinuz", "k3s"]),
    );
    let site = site_with(root.path(), more);
    if let Some(own) = own {
        fs::create_dir(site.join("clusters")).expect("made");
        fs::write(site.join("clusters/own.yaml"), own).expect("written");
    }
    let change = Change::Put(Offer {
        file: PathBuf::from("cluster.yaml"),
        text: offered.into(),
    });
    let loaded = load_changed(&site, state.path(), &change)?;
    loaded.must_place_afresh()?;
    Ok(loaded)
}

#[test]
fn every_bad_definition_is_refused_at_its_place_with_a_remedy() {
    judged(None, DEFINITION).unwrap_or_else(|report| panic!("{report}"));
    for (was, becomes, place, problem) in [
        (
            "role: CONTROL_PLANE",
            "role: WORKER",
            "6:3",
            "has no control plane",
        ),
        ("role: WORKER", "role: WORKR", "7:", "did you mean WORKER?"),
        ("role: WORKER", "role: BOOTSTRAP", "7:", "is no role of k3s"),
        (
            "count: 3",
            "count: 9",
            "6:",
            "wants 9 more machines on network cluster",
        ),
        ("count: 1", "count: 5001", "7:", "is too many"),
        ("K3S", "RKE2", "2:7", "RKE2 comes later"),
        ("K3S", "VANILLA", "2:7", "(kubeadm) comes later"),
        (
            "network:",
            "bootMethod: ISO\nnetwork:",
            "4:13",
            "comes later",
        ),
        (
            "network:",
            "bootMetod: PXE\nnetwork:",
            "4:1",
            "did you mean bootMethod?",
        ),
        (
            "v1.32.0+k3s1",
            "1.32",
            "3:10",
            "write it as the release is tagged",
        ),
        ("107", "108", "4:", "is the VLAN of no network of the site"),
        (
            "privateVLAN: 107",
            "publicAccess: true",
            "4:",
            "may be on any of cluster, other",
        ),
        (
            "107 }",
            "107, podCIDR: 10.1.0.0/16 }",
            "4:",
            "overlaps 10.1.107.0/24",
        ),
        (
            "107 }",
            "107, podCIDR: 10.43.0.0/24 }",
            "4:",
            "overlaps 10.43.0.0/24",
        ),
        ("Template: k3s", "Template: k33s", "7:", "write k3s"),
        (
            "Template: k3s",
            "Template: live",
            "7:",
            "has a config of its own",
        ),
        (
            "count: 1,",
            "count: 1, placement: { targetNodes: [hv8] },",
            "7:",
            "is no machine of the site",
        ),
        (
            "count: 1,",
            "count: 1, placement: { targetNodes: [own-1] },",
            "7:",
            "boots a profile of its own",
        ),
        (
            "count: 1,",
            "count: 1, lifecycle: { becomes: nobody },",
            "7:",
            "is no other group",
        ),
        ("name: workers", "name: control", "7:", "names two groups"),
        (
            "type: DNS,",
            "type: DNS, dependsOn: [api],",
            "9:",
            "wait for each other in a ring",
        ),
        ("[dns]", "[dsn]", "10:", "is no service of this cluster"),
        ("startupOrder: 1", "startupOrder: 3", "10:", "starts later"),
        ("name: dns", "name: Names", "9:", "is not a name"),
        (
            "type: DNS",
            "type: DNS, configuration: { mode: own }",
            "9:",
            "write builtin, external or off",
        ),
        (
            "type: DNS",
            "type: DNS, configuration: { mode: builtin }",
            "9:",
            "`dns.mode` of site.yaml is not serve",
        ),
        (
            "type: DNS",
            "type: STORAGE, configuration: { address: nfs }",
            "9:",
            "write HOST:PORT",
        ),
        (
            "type: DNS",
            "type: MONITORING, configuration: { url: \"ftp://a\" }",
            "9:",
            "write http://HOST",
        ),
        (
            "type: LOAD_BALANCER",
            "type: LOAD_BALANCER, configuration: { mode: builtin, address: \"a:1\" }",
            "10:",
            "is where others have it",
        ),
        (
            "services:",
            "validation: { healthChecks: [node-readiness, cluster-operators] }\nservices:",
            "8:",
            "is nothing that k3s shows",
        ),
        (
            "services:",
            "validation: { timeoutMinutes: 0 }\nservices:",
            "8:",
            "is no time at all",
        ),
        (
            "privateVLAN: 107",
            "network: other, isolation: VLAN",
            "4:",
            "its link eth2 is no VLAN",
        ),
        (
            "services:",
            "platformConfig:\n  tlsSAN: [a]\nservices:",
            "9:3",
            "tlsSAN",
        ),
    ] {
        let offered = DEFINITION.replacen(was, becomes, 1);
        assert_ne!(offered, DEFINITION, "{was}");
        let report = judged(None, &offered).expect_err(becomes).to_string();
        let told = report.contains(problem) && report.contains(&format!("cluster.yaml:{place}"));
        assert!(told, "{becomes}:\n{report}");
        let faults = judged(None, &offered).expect_err(becomes).faults;
        assert!(
            faults.iter().all(|fault| !fault.remedy.is_empty()),
            "{report}"
        );
    }
}

#[test]
fn two_clusters_share_no_name_no_machine_and_no_addresses() {
    let own = DEFINITION
        .replace("count: 3", "count: 1")
        .replace("name: lab", "name: own")
        .replace(
            "count: 1, boot",
            "count: 1, placement: { targetNodes: [hv5] }, boot",
        );
    let offered = own.replace("name: own", "name: lab");
    let report = judged(Some(&own), &offered)
        .expect_err("shared")
        .to_string();
    for told in [
        "overlaps 10.42.0.0/16, the podCIDR of cluster own",
        "overlaps 10.43.0.0/16, the serviceCIDR of cluster own",
        "targetNodes hv5 is also claimed by cluster own, first at own.yaml:7:",
    ] {
        assert!(report.contains(told), "{told}:\n{report}");
    }
    let report = judged(Some(&own), &own).expect_err("one name").to_string();
    assert!(
        report.contains("cluster.yaml:1:7: name own is defined in the site too"),
        "{report}"
    );
}

#[test]
fn an_address_and_port_that_another_cluster_or_the_bastion_has_is_refused() {
    let of = |name: &str, network: &str, range: u8| {
        format!(
            "name: {name}\ntype: K3S\nversion: v1.32.0+k3s1\nnetwork: {{ network: {network}, podCIDR: 10.{range}.0.0/17, \
             serviceCIDR: 10.{range}.128.0/17 }}\nnodeGroups:\n  - {{ name: control, role: CONTROL_PLANE, count: 1, \
             boot: {{ configTemplate: k3s }} }}\n"
        )
    };
    let refused = |more: &str, own: &str, offered: &str| {
        let judged = judged_beside(more, Some(own), offered);
        judged
            .err()
            .map_or(String::new(), |report| report.to_string())
    };
    let (own, beside, apart) = (
        of("own", "cluster", 100),
        of("lab", "cluster", 101),
        of("lab", "other", 101),
    );
    let told = refused("", &own, &beside);
    let sentence = "cluster.yaml:4:10: network lab would listen on port 6443 of this bastion's address in network cluster, \
                    where cluster own does";
    assert!(told.contains(sentence), "{told}");
    // Each has a network of its own, but users would meet both at one address.
    let told = refused("balancer: { public: [eth0] }\n", &own, &apart);
    assert!(
        told.contains("port 6443 of link eth0, where cluster own does"),
        "{told}"
    );
    assert!(
        told.contains("take eth0 out of `balancer.public`"),
        "{told}"
    );
    let elsewhere = "balancer: { engine: external, addresses: [10.9.9.9] }\n";
    let told = refused(elsewhere, &own, &apart);
    assert!(
        told.contains("port 6443 of 10.9.9.9, where cluster own does"),
        "{told}"
    );
    let told = refused("http: { port: 6443 }\n", "", &beside);
    assert!(
        told.contains("where this bastion itself does (http.port)"),
        "{told}"
    );
    // Nobody listens.
    let told = refused("balancer: { engine: off }\n", &own, &beside);
    assert!(!told.contains("would listen"), "{told}");
}

#[test]
fn a_balancer_on_the_wrong_side_or_without_an_address_is_refused() {
    for (balancer, problem) in [
        (
            "{ public: [eth2] }",
            "public eth2 is the link of network other",
        ),
        ("{ engine: external }", "has no addresses"),
        (
            "{ engine: external, addresses: [] }",
            "addresses has 0 addresses",
        ),
        ("{ addresses: [10.9.9.9] }", "is of a balancer elsewhere"),
        (
            "{ engine: external, addresses: [10.9.9.9], public: [eth0] }",
            "is for a balancer of this bastion's",
        ),
        (
            "{ engine: external, addresses: [10.9.9] }",
            "is not an IPv4 address",
        ),
        (
            "{ proxy_protocol: [6443] }",
            "6443 is answered by servers that don't know the PROXY protocol",
        ),
    ] {
        let more = format!("balancer: {balancer}\n");
        let report = judged_beside(&more, None, DEFINITION)
            .expect_err(balancer)
            .to_string();
        assert!(
            report.contains(problem) && report.contains("site.yaml:5:"),
            "{balancer}:\n{report}"
        );
    }
}

#[test]
fn what_no_member_could_be_given_is_told_before_one_boots() {
    let root = tempfile::tempdir().expect("a directory");
    let site = site(root.path());
    let profile = "kernel: vmlinuz
arguments: [flatcar.first_boot=1]
artifacts: { k3s: k3s }
config: { format: ignition }
disk: { path: /dev/disk/by-path/pci-0 }
purpose: install
";
    fs::write(site.join("profiles/k3s.yaml"), profile).expect("written");
    fs::create_dir(site.join("clusters")).expect("made");
    fs::write(site.join("clusters/lab.yaml"), DEFINITION).expect("written");
    let state = sample::state(&["vmlinuz", "k3s"]);
    let refused = load_changed(&site, state.path(), &Change::None).expect_err("refused");
    let refused = refused.to_string();
    assert!(
        refused.contains("k3s.yaml:2") && refused.contains("boot Flatcar"),
        "{refused}"
    );
}

#[test]
fn an_even_number_of_control_planes_is_taken_with_a_warning() {
    let loaded = judged(None, &DEFINITION.replace("count: 3", "count: 2"));
    let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    assert!(warning.contains("have 2 control planes"), "{warning}");
    assert!(warning.contains("want 1 or 3"), "{warning}");
}

#[test]
fn what_a_definition_leaves_out_is_taken_from_the_network_and_the_platform() {
    let loaded = judged(None, DEFINITION).unwrap_or_else(|report| panic!("{report}"));
    let cluster = loaded.spec.clusters().next().expect("one cluster");
    assert_eq!(cluster.network.as_str(), "cluster");
    assert_eq!(cluster.fqdn(), "lab.lab.example");
    assert_eq!(cluster.pods[0].to_string(), "10.42.0.0/16");
    assert_eq!(cluster.services[0].to_string(), "10.43.0.0/16");
    // There is no profile k3s-control-plane.
    assert_eq!(cluster.groups[0].profile.as_str(), "k3s");
    assert_eq!(cluster.count(Role::ControlPlane), 3);
}

#[test]
fn a_definition_of_virtual_machines_is_refused_by_its_boot_method_alone() {
    let text = fs::read_to_string(fixture("k3s-edge.json")).expect("a fixture");
    let text = text.replace(
        "\"version\"",
        "\"network\": { \"privateVLAN\": 107 }, \"version\"",
    );
    let report = judged(None, &text).expect_err("templates");
    let [fault] = &report.faults[..] else {
        panic!("{report}");
    };
    assert_eq!(
        (fault.key.as_str(), fault.value.as_str()),
        ("bootMethod", "TEMPLATE")
    );
}

struct Clustered<'a> {
    lab: &'a Lab,
    bastion: Bastion<'a>,
}

impl<'a> Clustered<'a> {
    fn start(lab: &'a Lab) -> Self {
        let bastion = Bastion::new(lab, &site(&lab.path("source")));
        for name in ["vmlinuz", "k3s"] {
            let file = lab.path(name);
            fs::write(&file, name).expect("a file");
            bastion.import(&file, name);
        }
        let mut clustered = Self { lab, bastion };
        clustered.bastion.start();
        clustered
    }

    /// Exit code, standard output and standard error of a command.
    fn typed(&self, words: &[&str]) -> (i32, String, String) {
        let mut command = process::command(reveille());
        command
            .args(words)
            .arg("--socket")
            .arg(&self.bastion.socket);
        let output: Output = self
            .lab
            .netns
            .run(move || command.output())
            .expect("the client runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let code = output.status.code().expect("it exited by itself");
        (code, text(output.stdout), text(output.stderr))
    }

    fn json(&self, words: &[&str]) -> Value {
        let (_, out, error) = self.typed(&[words, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|bad| panic!("{bad}: {out}{error}"))
    }

    /// Status line, headers and body of an answer.
    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(&self.bastion.socket).expect("the socket answers");
        let head = format!("POST {path} HTTP/1.1\r\nHost: reveille\r\nConnection: close\r\n");
        let length = body.len();
        write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

#[test]
fn a_cluster_is_planned_applied_once_remembered_shown_and_destroyed() {
    let lab = Lab::empty();
    let mut at = Clustered::start(&lab);
    let file = fixture("okd-production.json");
    let file = file.to_str().expect("paths are text");

    let (code, plan, _) = at.typed(&["cluster", "plan", "-f", file]);
    assert_eq!(code, 2, "{plan}");
    for told in [
        "okd-production: okd 4.19.0, 4 machines on cluster; it would be new, and 4 disks would be written",
        "api.okd-production.lab.example, pods 10.128.0.0/14, services 172.30.0.0/16",
        "3 control planes; one may be lost",
        "load-balancer (builtin), pxe-server (builtin)",
        "/dev/disk/by-path/pci-0",
        "bootstrap-complete",
        "vmlinuz",
    ] {
        assert!(plan.contains(told), "{told}:\n{plan}");
    }
    assert_eq!(
        at.json(&["cluster", "list"]),
        serde_json::json!([]),
        "a plan changes nothing"
    );

    // Its `waitForCluster` would wait for machines that are not there.
    let apply = ["cluster", "apply", "-f", file, "--wait=false"];
    let (code, _, error) = at.typed(&apply);
    let told = [
        "preflight of okd-production fails; nothing changed",
        "--ignore-preflight",
    ];
    assert!(
        code == 1 && told.iter().all(|told| error.contains(told)),
        "{error}"
    );
    assert_eq!(at.json(&["cluster", "list"]), serde_json::json!([]));
    // There is no link at all here, and nothing boots.
    let (code, out, error) = at.typed(&[&apply[..], &["--ignore-preflight"]].concat());
    assert_eq!(code, 0, "{out}{error}");
    let generation = at.json(&["status"])["generation"].clone();
    let (code, out, _) = at.typed(&apply);
    assert_eq!((code, out.contains("nothing changed")), (0, true), "{out}");
    assert_eq!(
        at.json(&["status"])["generation"],
        generation,
        "applied once"
    );
    let (code, out, _) = at.typed(&["cluster", "plan", "-f", file]);
    assert_eq!(code, 0, "{out}");

    at.bastion.kill();
    at.bastion.start();
    let status = at.json(&["cluster", "status", "okd-production"]);
    assert_eq!(
        (&status["phase"], &status["applied"]),
        (&"bootstrap".into(), &true.into())
    );
    let nodes = at.json(&["node", "list"]);
    let member = |name: &str| {
        let nodes = nodes.as_array().expect("a list");
        let node = nodes
            .iter()
            .find(|node| node["name"] == name)
            .expect("listed");
        node["member"].clone()
    };
    let wanted = serde_json::json!({
        "cluster": "okd-production", "group": "masters", "role": "control-plane", "index": 0
    });
    assert_eq!(member("hv5"), wanted);
    assert_eq!(member("storage01")["role"], "bootstrap");
    assert_eq!(member("own-1"), Value::Null);
    let (_, text, _) = at.typed(&["status", "okd-production"]);
    // There are no links here, so nothing that it leans on is up.
    assert!(
        text.contains("bootstrap phase: service load-balancer (required): ")
            && text.contains("; bootstrap-complete not seen yet"),
        "{text}"
    );
    let (_, text, _) = at.typed(&["status"]);
    assert!(
        text.contains("cluster okd-production: bootstrap phase, 0 of 4 ready"),
        "{text}"
    );

    let confirm = |name| ["cluster", "destroy", "okd-production", "--confirm", name];
    let (code, _, error) = at.typed(&confirm("okd-staging"));
    assert!(
        code == 1 && error.contains("must be confirmed by its name"),
        "{error}"
    );
    let (code, out, error) = at.typed(&confirm("okd-production"));
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("hv5, hv6, hv7, storage01"), "{out}");
    assert_eq!(at.json(&["cluster", "list"]), serde_json::json!([]));
    let (code, _, error) = at.typed(&confirm("okd-production"));
    assert!(
        code == 1 && error.contains("there is no cluster okd-production"),
        "{error}"
    );
    at.bastion.kill();
    at.bastion.start();
    assert_eq!(
        at.json(&["cluster", "list"]),
        serde_json::json!([]),
        "it stays gone"
    );
}

/// The installer is a fake (`tests/lab/openshift-install-fake`), for the real one can't be had here.
#[test]
fn an_installer_is_run_on_the_definition_in_force_and_its_set_is_kept() {
    let lab = Lab::empty();
    let at = Clustered::start(&lab);
    let file = fixture("okd-production.json");
    let file = file.to_str().expect("paths are text");
    let installer = fs::canonicalize("lab/openshift-install-fake").expect("it is there");
    let installer = installer.to_str().expect("paths are text");
    let import = [
        "cluster",
        "import",
        "okd-production",
        "--installer",
        installer,
    ];

    let (code, _, error) = at.typed(&import);
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("`reveille cluster apply` its definition first"),
        "{error}"
    );
    // There is no link here at all, so preflight fails.
    let apply = [
        "cluster",
        "apply",
        "-f",
        file,
        "--wait=false",
        "--ignore-preflight",
    ];
    let (code, out, error) = at.typed(&apply);
    assert_eq!(code, 0, "{out}{error}");
    let (code, out, error) = at.typed(&import);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("its certificates are fresh"), "{out}");
    let (code, out, _) = at.typed(&["cluster", "kubeconfig", "okd-production"]);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("https://api.okd-production.lab.example:6443"),
        "{out}"
    );
    // The ingress' routers may be told whose connection it is.
    let told = "balancer: { proxy_protocol: [443] }\n";
    fs::write(lab.path("site").join("site.yaml"), SITE.to_owned() + told).expect("written");
    let (code, out, error) = at.typed(&["reload"]);
    assert_eq!(code, 0, "{out}{error}");
    let ports = at.json(&["balancer", "requirements"]);
    let ports = ports.to_string();
    assert_eq!(
        ports.matches("\"proxy_protocol\":true").count(),
        1,
        "{ports}"
    );
}

#[test]
fn a_refused_definition_is_a_problem_with_every_fault_and_is_not_kept() {
    let lab = Lab::empty();
    let at = Clustered::start(&lab);
    let text = fs::read_to_string(fixture("k3s-edge.json")).expect("a fixture");
    let answer = at.post("/api/v1/clusters/provision", &text);
    assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    for told in ["TEMPLATE", "may be on any of cluster, other"] {
        assert!(answer.contains(told), "{told}: {answer}");
    }
    let file = lab.path("many.yaml");
    fs::write(&file, DEFINITION.replace("count: 3", "count: 8")).expect("written");
    let file = file.to_str().expect("paths are text");
    let (code, _, error) = at.typed(&["cluster", "apply", "-f", file]);
    assert_eq!(code, 78, "{error}");
    assert!(
        error.contains("many.yaml:6:") && error.contains("wants 8 more machines"),
        "{error}"
    );
    assert_eq!(at.json(&["cluster", "list"]), serde_json::json!([]));
    assert!(!at.bastion.state.join("clusters/lab.yaml").exists());
}

#[test]
fn a_cluster_of_the_site_is_destroyed_once_its_file_is_gone() {
    let lab = Lab::empty();
    let at = Clustered::start(&lab);
    let file = at.bastion.site.join("clusters/lab.yaml");
    fs::create_dir(file.parent().expect("a directory")).expect("made");
    fs::write(&file, DEFINITION).expect("written");
    at.bastion.client(&["reload"]);
    assert_eq!(at.json(&["cluster", "status", "lab"])["applied"], false);
    let destroy = ["cluster", "destroy", "lab", "--confirm", "lab"];
    let (code, _, error) = at.typed(&destroy);
    assert!(
        code == 1 && error.contains("is defined in the site, in "),
        "{error}"
    );
    fs::remove_file(&file).expect("removed");
    let (code, out, error) = at.typed(&destroy);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("hv5"), "{out}");
}
