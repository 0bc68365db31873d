//! The commands, as a person or a script types them, against the real daemon.

use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::bastion::{Bastion, reveille};
use tests::client::Client;
use tests::lab::{Lab, until};
use tests::process;
use tests::site::sha256;

const LIMIT: Duration = Duration::from_secs(20);
const MAC: &str = "52:54:00:aa:00:01";
/// Groups that every Debian has: one to stand for those who may change, one for those who may look.
const SITE: &str = "site: cli
networks:
  - { name: provisioning, link: br0, subnet: 10.107.0.0/24, domain: cli.example }
control: { group: daemon, read_group: games }
";
const MACHINES: &str = "machines:
  - { name: node-1, mac: 52:54:00:aa:00:01, address: 10.107.0.11, profile: debian }
";
const PROFILE: &str = "kernel: vmlinuz
arguments: [\"reveille.report={{ report_url }}\", \"ds=nocloud;s={{ config_url }}\"]
config: { format: cloud-init, user_data: user-data }
";

fn bastion(lab: &Lab) -> Bastion<'_> {
    let site = lab.path("given");
    fs::create_dir_all(site.join("profiles")).expect("a site directory");
    let write = |name: &str, text: &str| fs::write(site.join(name), text).expect("a site file");
    write("site.yaml", SITE);
    write("machines.yaml", MACHINES);
    write("profiles/debian.yaml", PROFILE);
    write(
        "profiles/user-data",
        "#cloud-config\nhostname: {{ hostname }}\n",
    );
    let bastion = Bastion::new(lab, &site);
    let kernel = lab.path("vmlinuz");
    fs::write(&kernel, "no kernel at all").expect("a file");
    bastion.import(&kernel, "vmlinuz");
    bastion
}

/// Runs the client as it is, or as user 65534 with one more group; nobody's own words are parsed.
fn typed(lab: &Lab, group: Option<u32>, words: &[&str]) -> Output {
    let mut command = process::command("setpriv");
    if let Some(group) = group {
        command.args(["--reuid", "65534", "--regid", "65534"]);
        command.args(["--groups", &group.to_string()]);
    }
    command.arg("--").arg(reveille()).args(words);
    lab.netns
        .run(move || command.output())
        .expect("the client runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exited by itself")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn keys(value: &Value) -> Vec<&str> {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("an object: {value}"));
    object.keys().map(String::as_str).collect()
}

#[test]
fn exit_codes_tell_usage_reach_and_configuration_apart() {
    let lab = Lab::empty();
    let missing = lab.path("missing");
    let missing = missing.to_str().expect("paths are text");
    assert_eq!(code(&typed(&lab, None, &["version"])), 0);
    assert_eq!(code(&typed(&lab, None, &["--help"])), 0);
    for words in [
        &["nonsense"][..],
        &["node", "show", "NOT A NAME"],
        &["image", "import", "x"],
    ] {
        assert_eq!(code(&typed(&lab, None, words)), 64, "{words:?}");
    }
    for words in [
        &["status"][..],
        &["reload"],
        &["events"],
        &["node", "why", "node-1"],
    ] {
        let output = typed(&lab, None, &[words, &["--socket", missing]].concat());
        assert_eq!(code(&output), 69, "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("  because: ") && said.contains("  try: "),
            "{said}"
        );
        assert!(output.stdout.is_empty());
    }
    for words in [&["check"][..], &["serve", "--socket", missing]] {
        let place = ["--site", missing, "--state", missing];
        assert_eq!(
            code(&typed(&lab, None, &[words, &place].concat())),
            78,
            "{words:?}"
        );
    }
}

#[test]
fn a_damaged_artefact_is_found_and_named() {
    let lab = Lab::empty();
    let bastion = bastion(&lab);
    let state = bastion.state.to_str().expect("paths are text");
    let verify = || typed(&lab, None, &["image", "verify", "--state", state]);
    assert_eq!(code(&verify()), 0);
    let list = typed(&lab, None, &["image", "list", "--json", "--state", state]);
    let listed = json(&String::from_utf8_lossy(&list.stdout));
    let mut names = keys(&listed[0]);
    names.sort_unstable();
    assert_eq!(names, ["kind", "name", "sha256", "size"]);
    let digest = listed[0]["sha256"].as_str().expect("a digest");
    let file = bastion.state.join("depot/sha256").join(digest);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a writable file");
    fs::write(&file, "no kernel at alL").expect("a damaged file");
    let output = verify();
    assert_eq!(code(&output), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains(digest));
}

#[test]
fn gc_spares_a_file_that_only_a_template_of_the_site_in_force_names() {
    let lab = Lab::flat(0);
    let mut bastion = bastion(&lab);
    let root = lab.path("root.squashfs");
    fs::write(&root, "no root at all").expect("a file");
    bastion.import(&root, "live/root.squashfs");
    let profile = "kernel: vmlinuz\nartifacts: {root: live/root.squashfs}\narguments: [\"root=live:{{ artifacts.root }}\"]\npurpose: live\n";
    fs::write(bastion.site.join("profiles/debian.yaml"), profile).expect("a profile");
    fs::remove_file(bastion.site.join("profiles/user-data")).expect("it was there");
    bastion.start();
    let script = bastion.client(&["simulate", "--mac", MAC, "--stage", "ipxe"]);
    let url = format!(
        "root=live:http://10.107.0.1:8080/artifacts/{}/root.squashfs",
        sha256("no root at all")
    );
    assert!(script.contains(&url), "{script}");

    let [state, socket] = [&bastion.state, &bastion.socket]
        .map(|path| path.to_str().expect("paths are text").to_owned());
    let forget = ["image", "forget", "live/root.squashfs", "--state", &state];
    assert_eq!(code(&typed(&lab, None, &forget)), 0);
    let swept = || {
        let gc = ["image", "gc", "--state", &state, "--socket", &socket];
        String::from_utf8(typed(&lab, None, &gc).stdout).expect("text")
    };
    assert_eq!(swept(), "removed 0 files, 0 bytes\n");
    bastion.stop();
    assert_eq!(swept(), "removed 1 files, 14 bytes\n");
}

#[test]
fn the_socket_lets_each_caller_do_what_their_groups_may() {
    let lab = Lab::flat(0);
    let mut bastion = bastion(&lab);
    bastion.start();
    let home = bastion.socket.parent().expect("a directory").to_owned();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).expect("an open directory");
    let socket = bastion.socket.to_str().expect("paths are text").to_owned();
    let group = |name: &str| {
        let group = nix::unistd::Group::from_name(name).expect("a readable group file");
        group.expect("every Debian has this group").gid.as_raw()
    };
    let (changers, readers) = (group("daemon"), group("games"));
    let typed =
        |group, words: &[&str]| typed(&lab, group, &[words, &["--socket", &socket]].concat());
    for (who, looks, changes) in [
        (None, 0, 0),
        (Some(changers), 0, 0),
        (Some(readers), 0, 77),
        (Some(65533), 77, 77),
    ] {
        assert_eq!(code(&typed(who, &["status"])), looks, "{who:?} looks");
        let output = typed(who, &["node", "cordon", "node-1"]);
        assert_eq!(code(&output), changes, "{who:?} changes");
        if changes == 77 {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                said.contains(" may not ") && said.contains("  try: "),
                "{said}"
            );
        }
    }
    let mut raw = process::command("curl");
    raw.args(["-s", "-i", "--unix-socket", &socket]);
    raw.arg("http://reveille/api/v1/nodes/none");
    let answer = lab.netns.run(move || raw.output()).expect("curl runs");
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
}

#[test]
fn json_documents_have_the_keys_that_scripts_know() {
    let lab = Lab::flat(0);
    let mut bastion = bastion(&lab);
    bastion.start();
    let status = json(&bastion.client(&["status", "--json"]));
    for key in [
        "sentence",
        "healthy",
        "generation",
        "site",
        "networks",
        "counts",
        "nodes",
        "unlisted",
    ] {
        assert!(status.get(key).is_some(), "status has {key}: {status}");
    }
    let nodes = json(&bastion.client(&["node", "list", "--json"]));
    let shown = json(&bastion.client(&["node", "show", "node-1", "--json"]));
    for key in [
        "name",
        "state",
        "waits_for",
        "next_boot",
        "rule",
        "mac",
        "address",
        "profile",
    ] {
        assert!(nodes[0].get(key).is_some(), "node list has {key}: {nodes}");
        assert_eq!(shown.get(key), nodes[0].get(key), "node show has {key}");
    }
    let why = json(&bastion.client(&["node", "why", "node-1", "--json"]));
    assert_eq!(why["verdict"], "no-dhcp-seen");
    assert!(!why["remedy"].as_str().expect("a remedy").is_empty());
    assert!(!why["hops"].as_array().expect("hops").is_empty());
    bastion.client(&["node", "cordon", "node-1"]);
    until("the event to be in the ledger", LIMIT, || {
        let events = json(&bastion.client(&["events", "--node", "node-1", "--json"]));
        events.as_array().is_some_and(|events| {
            events
                .iter()
                .any(|event| event["fact"] == "person" && event["act"] == "cordon")
        })
    });
}

#[test]
fn a_faulty_site_is_refused_whole_and_the_last_good_one_stays_live() {
    let lab = Lab::flat(0);
    let mut bastion = bastion(&lab);
    bastion.start();
    let socket = bastion.socket.to_str().expect("paths are text").to_owned();
    let machines = bastion.site.join("machines.yaml");
    let mut file = fs::File::options()
        .append(true)
        .open(&machines)
        .expect("the inventory");
    file.write_all(
        b"  - { name: node-2, mac: 52:54:00:aa:00:01, address: 10.107.0.12, profile: debian }\n",
    )
    .expect("a second machine with the same address");
    let output = typed(&lab, None, &["reload", "--socket", &socket]);
    assert_eq!(code(&output), 78);
    assert!(String::from_utf8_lossy(&output.stderr).contains("machines.yaml:3:"));
    let status = json(&bastion.client(&["status", "--json"]));
    assert_eq!(status["healthy"], false);
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(1));
    assert!(
        status["site"]["refused"]["faults"][0].is_string(),
        "{status}"
    );

    let mended = fs::read_to_string(&machines).expect("the inventory");
    let second = "node-2, mac: 52:54:00:aa:00:02";
    fs::write(
        &machines,
        mended.replace("node-2, mac: 52:54:00:aa:00:01", second),
    )
    .expect("mended");
    bastion.signal(Signal::SIGHUP);
    until("the mended site to be in force", LIMIT, || {
        let status = json(&bastion.client(&["status", "--json"]));
        status["site"]["refused"].is_null() && status["nodes"].as_array().map(Vec::len) == Some(2)
    });
}

#[test]
fn a_plan_tells_what_a_reload_then_does() {
    let lab = Lab::flat(0);
    let mut bastion = bastion(&lab);
    bastion.start();
    let socket = bastion.socket.to_str().expect("paths are text").to_owned();
    let plan = |more: &[&str]| {
        let words = [&["plan", "--json", "--socket", &socket][..], more].concat();
        let output = typed(&lab, None, &words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (code(&output), said)
    };
    let (exit, said) = plan(&[]);
    assert_eq!(
        (exit, json(&said)["changes"].as_array().map(Vec::len)),
        (0, Some(0)),
        "{said}"
    );

    // In a directory of its own first, which `--site` names; then in force.
    let other = lab.path("other");
    tests::bastion::copy_tree(&bastion.site, &other);
    let machines = "machines:
  - { name: node-1, mac: 52:54:00:aa:00:01, address: 10.107.0.12, profile: debian }
  - { name: node-2, mac: 52:54:00:aa:00:02, address: 10.107.0.13, profile: debian, disk: { serial: S3Z9 } }
";
    fs::write(other.join("machines.yaml"), machines).expect("an inventory");
    let (exit, said) = plan(&["--site", other.to_str().expect("paths are text")]);
    let told = json(&said);
    assert_eq!(exit, 2, "{said}");
    let of = |name: &str| {
        let changes = told["changes"].as_array().expect("a list");
        let change = changes.iter().find(|change| change["name"] == name);
        change.unwrap_or_else(|| panic!("{name}: {said}")).clone()
    };
    assert_eq!(of("node-1")["change"], "changed");
    assert_eq!(of("node-1")["fields"][0]["name"], "links");
    assert_eq!(of("node-1")["danger"], false);
    let effects = of("node-2")["effects"].to_string();
    assert!(effects.contains("writes S3Z9"), "{effects}");
    assert_eq!(
        (&of("node-2")["change"], &of("node-2")["danger"]),
        (&"added".into(), &true.into())
    );
    assert_eq!(plan(&[]).0, 0, "looking at other files changed nothing");

    fs::write(bastion.site.join("machines.yaml"), machines).expect("an inventory");
    let (exit, here) = plan(&[]);
    assert_eq!(
        (exit, json(&here)),
        (2, told),
        "the same files, the same plan"
    );
    bastion.client(&["reload"]);
    let (exit, said) = plan(&[]);
    assert_eq!(exit, 0, "{said}");
    let node: Value = json(&bastion.client(&["node", "show", "node-2", "--json"]));
    assert_eq!(node["next_boot"], "boot");

    // Nobody touched the machine, but its profile now names another disk.
    let profile = bastion.site.join("profiles/debian.yaml");
    fs::write(&profile, format!("{PROFILE}disk: {{ serial: S4Q1 }}\n")).expect("a profile");
    let (exit, said) = plan(&[]);
    assert_eq!(exit, 2, "{said}");
    let told = json(&said);
    let changes = told["changes"].as_array().expect("a list");
    let machines: Vec<&Value> = changes
        .iter()
        .filter(|change| change["kind"] == "machine")
        .collect();
    assert_eq!(machines.len(), 1, "node-2 names a disk of its own: {said}");
    assert_eq!(
        (&machines[0]["name"], &machines[0]["danger"]),
        (&"node-1".into(), &true.into())
    );
    assert!(
        machines[0]["effects"].to_string().contains("writes S4Q1"),
        "{said}"
    );
}

#[test]
fn what_simulate_shows_is_what_the_wire_carries() {
    let lab = Lab::flat(0);
    let mut bastion = bastion(&lab);
    bastion.start();
    let simulated = |words: &[&str]| {
        let words = [&["simulate", "--json", "--mac", MAC], words].concat();
        json(&bastion.client(&words))
    };
    let client = Client::plug_in(&lab, "node-1", MAC);
    client.netns.ip("addr add 10.107.0.11/24 dev eth0");
    client.netns.ip("link set eth0 up");

    let offer = simulated(&["--arch", "7"]);
    let bytes = |part: &Value| unhex(part["hex"].as_str().expect("hexadecimal digits"));
    let request = bytes(&offer["parts"][0]);
    let answer = client.netns.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:68").expect("port 68");
        socket.set_broadcast(true).expect("a broadcasting socket");
        // Without a route there, only a socket bound to its link may speak to everybody.
        let link = std::ffi::OsString::from("eth0");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &link)
            .expect("a socket bound to its link");
        // As firmware does: the first packet may be earlier than the daemon's look at the new link.
        let pause = Some(Duration::from_secs(1));
        socket.set_read_timeout(pause).expect("a limit");
        let mut buffer = [0; 2048];
        let (count, _) = (0..LIMIT.as_secs())
            .find_map(|_| {
                socket
                    .send_to(&request, "255.255.255.255:67")
                    .expect("a packet sent");
                socket.recv_from(&mut buffer).ok()
            })
            .expect("an offer");
        buffer[..count].to_vec()
    });
    assert_eq!(answer, bytes(&offer["parts"][1]));

    let script = simulated(&["--stage", "ipxe"]);
    let url = "http://10.107.0.1:8080/boot/52-54-00-aa-00-01/script.ipxe";
    let served = client.get(url).expect("a script");
    let served = String::from_utf8(served.body).expect("text");
    let token = served
        .split("/agent/v1/report/")
        .nth(1)
        .and_then(|rest| rest.get(..32))
        .expect("the script reports somewhere");
    let expected = String::from_utf8(bytes(&script["parts"][0])).expect("text");
    assert_eq!(served.replace(token, &"0".repeat(32)), expected);
    assert_eq!(script["rule"], "boot-profile");
}

fn unhex(digits: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a digit") as u8;
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}
