//! One network in every format, read by the programs it is written for. They are real and Debian's, except for nmstate's
//! library, which is upstream's, and Talos, whose words are compared with its documentation only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ignition::network::netplan::Reader;
use ignition::network::{File, Network, dracut, ifupdown, keyfile, netplan, networkd, nmstate};
use netboot::link::{Link, MAIN_TABLE};
use serde_json::Value;
use tests::debian::Debian;
use tests::lab::until;
use tests::netns::Netns;
use tests::network::{bridged, cabled, every_kind};
use tests::timeline::Timeline;

/// Sections of a keyfile, keys of a section.
type Keyfile = BTreeMap<String, BTreeMap<String, String>>;

fn keyfile_of(text: &str) -> Keyfile {
    let mut keyfile = Keyfile::new();
    let mut section = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            let keys = keyfile.entry(section.clone()).or_default();
            assert_eq!(
                keys.insert(key.to_owned(), value.to_owned()),
                None,
                "{line} twice"
            );
        }
    }
    keyfile
}

/// The connections that the initramfs' own generator makes, by name.
fn generated(debian: &Debian<'_>, arguments: &[String]) -> BTreeMap<String, Keyfile> {
    let mut words = vec!["-s", "--"];
    words.extend(arguments.iter().map(String::as_str));
    let output = debian.output("/usr/lib/NetworkManager/nm-initrd-generator", &words);
    let mut connections = BTreeMap::new();
    for part in output.split("*** Connection '").skip(1) {
        let (name, text) = part.split_once('\'').expect("a name in quotes");
        connections.insert(name.to_owned(), keyfile_of(text));
    }
    connections
}

fn value<'a>(keyfile: &'a Keyfile, section: &str, key: &str) -> Option<&'a str> {
    keyfile.get(section)?.get(key).map(String::as_str)
}

fn written(network: &Network) -> BTreeMap<String, Keyfile> {
    let files = keyfile::files(network).said;
    let connections = files.iter().filter_map(|File { path, text, .. }| {
        let name = path.strip_prefix(keyfile::DIRECTORY)?.strip_prefix('/')?;
        Some((
            name.strip_suffix(".nmconnection")?.to_owned(),
            keyfile_of(text),
        ))
    });
    connections.collect()
}

#[test]
fn an_initramfs_makes_of_the_arguments_what_the_keyfiles_say() {
    let netns = Netns::new();
    let debian = Debian::over(&netns);
    let network = every_kind();
    let mut generated = generated(&debian, &dracut::arguments(&network).said);
    let mut written = written(&network);
    // The generator gives every connection all the servers.
    for (section, server) in [("ipv4", "10.107.0.1;"), ("ipv6", "2001:db8:107::53;")] {
        for connections in [&generated, &written] {
            assert_eq!(
                value(&connections["lan0.107"], section, "dns"),
                Some(server)
            );
        }
    }
    assert_eq!(
        generated.keys().collect::<Vec<_>>(),
        written.keys().collect::<Vec<_>>()
    );
    let names: BTreeMap<String, String> = network
        .links()
        .iter()
        .map(|link| link.name.to_string())
        .flat_map(|name| {
            let uuid = |all: &BTreeMap<String, Keyfile>| {
                value(&all[&name], "connection", "uuid")
                    .expect("a UUID")
                    .to_owned()
            };
            [
                (uuid(&generated), name.clone()),
                (uuid(&written), name.clone()),
            ]
        })
        .collect();
    for connections in [&mut generated, &mut written] {
        for keyfile in connections.values_mut() {
            comparable(keyfile, &names);
        }
    }
    for link in network.links() {
        let name = link.name.as_str();
        assert_eq!(generated[name], written[name], "{name}");
    }
}

/// Leaves what both sides can say, each link by its name: the arguments know no tables, rules, metrics and search domains, and the
/// generator writes the gateway behind the first address.
fn comparable(keyfile: &mut Keyfile, names: &BTreeMap<String, String>) {
    let shared = [
        "connection.type",
        "connection.master",
        "connection.slave-type",
        "ethernet.mtu",
        "vlan.id",
        "vlan.parent",
        "bond.mode",
        "bond.miimon",
        "bridge.stp",
    ];
    for (section, keys) in &mut *keyfile {
        let everywhere = if section == "ipv4" {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        let mut said = Vec::new();
        for (key, value) in &*keys {
            let value = names.get(value).unwrap_or(value);
            let parts: Vec<&str> = value.split(',').collect();
            match key.trim_end_matches(|c: char| c.is_ascii_digit()) {
                "address" => {
                    said.push(format!("address {}", parts[0]));
                    said.extend(parts.get(1).map(|via| format!("route {everywhere} {via}")));
                }
                "route" if !keys.contains_key(&format!("{key}_options")) => {
                    said.push(format!(
                        "route {} {}",
                        parts[0],
                        parts.get(1).unwrap_or(&"")
                    ));
                }
                _ if shared.contains(&format!("{section}.{key}").as_str()) => {
                    said.push(format!("{key} {value}"));
                }
                _ => {}
            }
        }
        *keys = said.into_iter().map(|line| (line, String::new())).collect();
    }
    keyfile.retain(|_, keys| !keys.is_empty());
}

#[test]
fn networkmanager_reads_every_keyfile_and_drops_nothing() {
    let netns = Netns::new();
    let debian = Debian::over(&netns);
    for File { path, mode, text } in keyfile::files(&every_kind()).said {
        debian.write(&path, mode, &text);
        if path == "/etc/hostname" {
            continue;
        }
        let command =
            format!("nmcli --offline connection modify connection.autoconnect-retries 1 < {path}");
        let mut read = keyfile_of(&debian.output("sh", &["-c", &command]));
        let mut written = keyfile_of(&text);
        for keyfile in [&mut read, &mut written] {
            for (key, value) in keyfile.values_mut().flatten() {
                if key == "mac-address" {
                    *value = value.to_ascii_uppercase();
                }
                // No gateway and one host, in the program's words.
                *value = value.replace(",0.0.0.0,", ",,").replace(",::,", ",,");
                if key.starts_with("routing-rule") {
                    *value = value.replace("/32 ", " ").replace("/128 ", " ");
                }
            }
            for (section, key) in [
                ("connection", "autoconnect-retries"),
                // What the program takes for granted, it doesn't write.
                ("vlan", "flags"),
            ] {
                keyfile.get_mut(section).map(|keys| keys.remove(key));
            }
            keyfile.retain(|_, keys| !keys.is_empty());
        }
        assert_eq!(read, written, "{path}");
    }
}

/// What is wanted of the links, a line for each fact.
fn wanted(links: &[Link]) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for link in links {
        let name = &link.name;
        facts.insert(format!("{name} is up"));
        facts.extend(link.mtu.map(|mtu| format!("{name} mtu {mtu}")));
        facts.extend(
            link.kind
                .ports()
                .iter()
                .map(|port| format!("{port} joins {name}")),
        );
        facts.extend(link.addresses.iter().map(|net| format!("{name} has {net}")));
        for route in &link.routes {
            let via = route.via.map_or(String::new(), |via| format!(" via {via}"));
            let source = route
                .source
                .map_or(String::new(), |source| format!(" from {source}"));
            // An IPv6 route has a metric always: 1024 unless given (Linux include/uapi/linux/ipv6_route.h, IP6_RT_PRIO_USER).
            let metric = match route.metric {
                0 if route.to.addr().is_ipv6() => 1024,
                metric => metric,
            };
            facts.insert(format!(
                "{name} to {}{via}{source} metric {metric} table {}",
                route.to, route.table
            ));
        }
        for rule in &link.rules {
            facts.insert(format!(
                "rule {} from {} table {}",
                rule.priority, rule.from, rule.table
            ));
        }
    }
    facts
}

/// The same facts as the kernel has them, by `ip`.
fn present(netns: &Netns, links: &[Link]) -> BTreeSet<String> {
    let list = |words: &str| -> Vec<Value> {
        serde_json::from_str(&netns.ip(words)).expect("ip prints JSON")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let whole = |net: String, v4: bool| match net.as_str() {
        "default" if v4 => "0.0.0.0/0".to_owned(),
        "default" => "::/0".to_owned(),
        _ if net.contains('/') => net,
        _ if v4 => format!("{net}/32"),
        _ => format!("{net}/128"),
    };
    let ours = |name: &str| links.iter().find(|link| link.name.as_str() == name);
    let mut facts = BTreeSet::new();
    for link in list("-j address show") {
        let name = text(&link["ifname"]);
        if link["master"].is_string() {
            facts.insert(format!("{name} joins {}", text(&link["master"])));
        }
        let Some(wanted) = ours(&name) else { continue };
        if link["flags"]
            .as_array()
            .is_some_and(|flags| flags.contains(&"UP".into()))
        {
            facts.insert(format!("{name} is up"));
        }
        if wanted.mtu.is_some() {
            facts.insert(format!("{name} mtu {}", link["mtu"]));
        }
        for address in link["addr_info"].as_array().into_iter().flatten() {
            if address["scope"] != "link" && address["tentative"] != true {
                facts.insert(format!(
                    "{name} has {}/{}",
                    text(&address["local"]),
                    address["prefixlen"]
                ));
            }
        }
    }
    for (family, v4) in [("-4", true), ("-6", false)] {
        for route in list(&format!("{family} -j route show table all")) {
            let name = text(&route["dev"]);
            let foreign = ["kernel", "ra"].contains(&text(&route["protocol"]).as_str());
            if foreign
                || ours(&name).is_none()
                || !["", "unicast"].contains(&text(&route["type"]).as_str())
            {
                continue;
            }
            let field = |key: &str, word: &str| {
                route[key]
                    .as_str()
                    .map_or(String::new(), |value| format!(" {word} {value}"))
            };
            let table = route["table"]
                .as_str()
                .map_or(MAIN_TABLE.to_string(), str::to_owned);
            let (to, metric) = (
                whole(text(&route["dst"]), v4),
                route["metric"].as_u64().unwrap_or(0),
            );
            facts.insert(format!(
                "{name} to {to}{}{} metric {metric} table {table}",
                field("gateway", "via"),
                field("prefsrc", "from")
            ));
        }
        for rule in list(&format!("{family} -j rule show")) {
            if text(&rule["src"]) != "all" {
                let length = rule["srclen"]
                    .as_u64()
                    .map_or(String::new(), |length| format!("/{length}"));
                let from = whole(format!("{}{length}", text(&rule["src"])), v4);
                facts.insert(format!(
                    "rule {} from {from} table {}",
                    rule["priority"],
                    text(&rule["table"])
                ));
            }
        }
    }
    facts
}

/// Waits until the kernel has what was wanted, and nothing else.
fn comes_true(netns: &Netns, timeline: &Timeline, links: &[Link]) {
    let wanted = wanted(links);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("the network to come true", Duration::from_secs(30), || {
            present(netns, links) == wanted
        });
    }));
    if outcome.is_err() {
        let present = present(netns, links);
        let missing: Vec<_> = wanted.difference(&present).collect();
        let more: Vec<_> = present.difference(&wanted).collect();
        panic!(
            "{}\nmissing {missing:#?}\nand more than wanted {more:#?}",
            timeline.told()
        );
    }
}

#[test]
fn systemd_networkd_makes_the_network_of_its_files() {
    let ((netns, _far), timeline) = (cabled(), Timeline::default());
    let debian = Debian::over(&netns);
    let (network, links) = bridged(false);
    for File { path, mode, text } in networkd::files(&network).said {
        debian.write(&path, mode, &text);
    }
    let _networkd = debian.networkd(&timeline);
    comes_true(&netns, &timeline, &links);
}

#[test]
fn netplan_makes_the_network_of_its_document() {
    let ((netns, _far), timeline) = (cabled(), Timeline::default());
    let debian = Debian::over(&netns);
    let (network, links) = bridged(true);
    let document = netplan::document(&network, Reader::Netplan);
    assert_eq!(
        document.unsaid.len(),
        1,
        "the host name: {:?}",
        document.unsaid
    );
    debian.write("/etc/netplan/50-reveille.yaml", 0o600, &document.said);
    debian.output("ldconfig", &[]);
    debian.output("netplan", &["generate"]);
    let _networkd = debian.networkd(&timeline);
    comes_true(&netns, &timeline, &links);
}

#[test]
fn netplan_and_cloud_init_take_every_kind_of_link() {
    let netns = Netns::new();
    let debian = Debian::over(&netns);
    let network = every_kind();
    let document = netplan::document(&network, Reader::Netplan).said;
    debian.write("/etc/netplan/50-reveille.yaml", 0o600, &document);
    debian.output("ldconfig", &[]);
    debian.output("netplan", &["generate"]);
    let read = |link: &str| debian.read(&format!("/run/systemd/network/10-netplan-{link}.network"));
    for (link, lines) in [
        (
            "lan0",
            &["PermanentMACAddress=52:54:00:10:00:01", "VLAN=lan0.107"][..],
        ),
        (
            "lan0.107",
            &[
                "Address=2001:db8:107::11/64",
                "Table=1107",
                "Priority=18600",
                "DNS=10.107.0.1",
            ],
        ),
        ("bond0", &["VLAN=bond0.20", "MTUBytes=9000"]),
        ("bond0.20", &["Bridge=br20"]),
        (
            "br20",
            &["Address=10.20.0.11/24", "Gateway=10.20.0.1", "Metric=100"],
        ),
    ] {
        let text = read(link);
        for line in lines {
            assert!(text.contains(line), "{link}: no {line} in\n{text}");
        }
    }
    // cloud-init's own reader, and the files it writes where there is no netplan.
    let document = netplan::document(&network, Reader::CloudInit).said;
    debian.write("/tmp/network-config", 0o600, &document);
    let script = r#"
import yaml
from cloudinit.net import eni, network_state
config = yaml.safe_load(open("/tmp/network-config"))["network"]
state = network_state.parse_net_config_data(config, skip_broken=False)
eni.Renderer().render_network_state(state, target="/tmp/rendered")
"#;
    debian.write("/tmp/read.py", 0o644, script);
    debian.output("python3", &["/tmp/read.py"]);
    let text = debian.read("/tmp/rendered/etc/network/interfaces");
    for line in [
        "address 10.107.0.11/24",
        "vlan-raw-device lan0",
        "bond-mode active-backup",
        "bridge_ports bond0.20",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    // The gateway of each family once, though there is another in a table of its own.
    assert_eq!(text.matches("default").count(), 2, "{text}");
}

#[test]
fn networkmanager_makes_the_network_of_its_keyfiles() {
    let ((netns, _far), timeline) = (cabled(), Timeline::default());
    let debian = Debian::over(&netns);
    let (network, links) = bridged(false);
    for File { path, mode, text } in keyfile::files(&network).said {
        debian.write(&path, mode, &text);
    }
    let _manager = debian.network_manager(&timeline);
    comes_true(&netns, &timeline, &links);
}

#[test]
fn ifupdown_makes_the_network_of_its_file() {
    let ((netns, _far), timeline) = (cabled(), Timeline::default());
    let debian = Debian::over(&netns);
    let (network, links) = bridged(false);
    for File { path, mode, text } in ifupdown::files(&network).said {
        debian.write(&path, mode, &text);
    }
    debian.write("/run/network/made", 0o644, "");
    let said = debian.output("ifup", &["-a", "-v", "-i", ifupdown::PATH]);
    timeline.note(said);
    comes_true(&netns, &timeline, &links);
}

/// What nmstate would have NetworkManager do, by upstream's own library; it refuses words it doesn't know.
fn by_nmstate(network: &Network) -> Vec<(String, String)> {
    let document = nmstate::document(network);
    let state = ::nmstate::NetworkState::new_from_yaml(&document.said)
        .unwrap_or_else(|error| panic!("{error}\n{}", document.said));
    let mut files = state
        .gen_conf()
        .unwrap_or_else(|error| panic!("{error}\n{}", document.said));
    files.remove("NetworkManager").expect("keyfiles")
}

#[test]
fn nmstate_takes_every_kind_of_link() {
    let files: BTreeMap<String, Keyfile> = by_nmstate(&every_kind())
        .iter()
        .map(|(name, text)| {
            (
                name.trim_end_matches(".nmconnection").to_owned(),
                keyfile_of(text),
            )
        })
        .collect();
    for (link, section, key, wanted) in [
        ("lan0", "ethernet", "mtu", "1600"),
        ("lan0.107", "vlan", "id", "107"),
        ("bond0", "bond", "miimon", "100"),
        ("bond0", "bond", "mode", "active-backup"),
        ("bond0", "ethernet", "mtu", "9000"),
        ("br20", "bridge", "stp", "false"),
        ("bond0.20", "connection", "slave-type", "bridge"),
    ] {
        let found = files.get(link).and_then(|file| value(file, section, key));
        assert_eq!(found, Some(wanted), "{link} {section}.{key} in {files:#?}");
    }
}

#[test]
fn nmstate_makes_the_network_of_its_document() {
    let ((netns, _far), timeline) = (cabled(), Timeline::default());
    let debian = Debian::over(&netns);
    let (network, links) = bridged(false);
    for (name, text) in by_nmstate(&network) {
        debian.write(&format!("{}/{name}", keyfile::DIRECTORY), 0o600, &text);
    }
    let _manager = debian.network_manager(&timeline);
    comes_true(&netns, &timeline, &links);
}
