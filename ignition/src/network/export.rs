//! The bastion's own network as files, for people who want their system to make it.
//!
//! The links are said in the system's own format. Forwarding and the check of sources are sysctls, and masquerade and the firewall are
//! a table of nftables, in the same words for every format: systemd applies `sysctl.d` to each link as it appears (udev's
//! 99-systemd.rules), and no format says all of it in every version.

use netboot::host::{HostSpec, ReversePath, Ruleset, TABLE, ruleset};
use netboot::link::{Link, LinkKind};
use serde_json::Value;

use crate::Fault;
use crate::network::{File, Network, Said, Unsaid, comments, ifupdown, keyfile, networkd, nmstate};

/// What makes the links of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// systemd-networkd.
    Networkd,
    /// NetworkManager.
    NetworkManager,
    /// Debian's ifupdown.
    Ifupdown,
    /// nmstate, over NetworkManager.
    Nmstate,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [
        Self::Networkd,
        Self::NetworkManager,
        Self::Ifupdown,
        Self::Nmstate,
    ];

    /// What is done once the files are there.
    fn enabled_by(self) -> &'static str {
        match self {
            Self::Networkd => "systemctl enable --now systemd-networkd && networkctl reload",
            Self::NetworkManager => {
                "systemctl enable --now NetworkManager && nmcli connection reload"
            }
            Self::Ifupdown => {
                "see that /etc/network/interfaces has `source /etc/network/interfaces.d/*`, then ifup -a"
            }
            Self::Nmstate => "nmstatectl apply /etc/nmstate/reveille.yml; systemctl enable nmstate",
        }
    }
}

/// The bastion's network as files, and what is to be done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The files, and what they don't say.
    pub files: Said<Vec<File>>,
    /// What an administrator does next, in order.
    pub steps: Vec<String>,
}

/// Says the bastion's network in a format.
///
/// # Errors
/// Links that no file can bear.
pub fn export(spec: &HostSpec, format: Format) -> Result<Export, Vec<Fault>> {
    let links: Vec<Link> = spec
        .links
        .iter()
        .map(|wanted| wanted.link.clone())
        .collect();
    let network = Network::new(None, &links, &[], &[])?;
    let mut files = match format {
        Format::Networkd => networkd::files(&network),
        Format::NetworkManager => keyfile::files(&network),
        Format::Ifupdown => ifupdown::files(&network),
        Format::Nmstate => {
            let Said { said, unsaid } = nmstate::document(&network);
            let file = File {
                path: "/etc/nmstate/reveille.yml".to_owned(),
                mode: 0o644,
                text: said,
            };
            Said {
                said: vec![file],
                unsaid,
            }
        }
    };
    let mut steps = Vec::new();
    let cards: Vec<&str> = network
        .links()
        .iter()
        .filter(|link| matches!(link.kind, LinkKind::Card { .. }))
        .filter(|link| format == Format::Networkd || !network.is_others(link))
        .map(|link| link.name.as_str())
        .collect();
    if !cards.is_empty() {
        steps.push(format!(
            "see whether other files configure {}, and bring into these what must stay: one set of files counts for a link",
            cards.join(", ")
        ));
    }
    steps
        .push("set `links: unmanaged` under `host:` in site.yaml, then reveille reload".to_owned());
    steps.push(format.enabled_by().to_owned());
    if let Some(file) = sysctls(spec) {
        files.said.push(file);
        steps.push("systemctl restart systemd-sysctl".to_owned());
    }
    if let Some(ruleset) = ruleset(spec) {
        files.said.push(firewall(&ruleset, &mut files.unsaid));
        steps.push(format!(
            "include \"{FIREWALL}\" at the end of /etc/nftables.conf (Fedora: /etc/sysconfig/nftables.conf), then systemctl enable --now nftables"
        ));
    }
    steps.push("reveille host plan, which says what still differs".to_owned());
    Ok(Export { files, steps })
}

/// `sysctl.d`'s words for what the formats have none for. Slashes part the words, so that a link's name may hold dots
/// (sysctl.d(5)).
fn sysctls(spec: &HostSpec) -> Option<File> {
    let mut text = comments(&[]);
    let head = text.len();
    for wanted in &spec.links {
        let name = &wanted.link.name;
        if let Some(on) = wanted.forwarding {
            text += &format!("net/ipv4/conf/{name}/forwarding = {}\n", u8::from(on));
        }
        if let Some(rp_filter) = wanted.rp_filter {
            let value = match rp_filter {
                ReversePath::Off => 0,
                ReversePath::Strict => 1,
                ReversePath::Loose => 2,
            };
            text += &format!("net/ipv4/conf/{name}/rp_filter = {value}\n");
        }
    }
    (text.len() > head).then(|| File {
        path: "/etc/sysctl.d/60-reveille.conf".to_owned(),
        mode: 0o644,
        text,
    })
}

const FIREWALL: &str = "/etc/nftables.d/reveille.nft";

/// The table in nft's own words (nft(8)). It takes the place of the one there is, in one transaction.
fn firewall(ruleset: &Ruleset, unsaid: &mut Vec<Unsaid>) -> File {
    let mut body = String::new();
    for chain in ruleset.0.iter().filter_map(|object| object.get("chain")) {
        let word = |key: &str| chain[key].as_str().unwrap_or_default();
        body += &format!(
            "  chain {} {{\n    type {} hook {} priority {}; policy {};\n",
            word("name"),
            word("type"),
            word("hook"),
            chain["prio"],
            word("policy")
        );
        let rules = ruleset.0.iter().filter_map(|object| object.get("rule"));
        for rule in rules.filter(|rule| rule["chain"] == chain["name"]) {
            match statement(rule) {
                Some(statement) => body += &format!("    {statement}\n"),
                None => unsaid.push(Unsaid::of_host(format!("the firewall's rule {rule}"))),
            }
        }
        body += "  }\n";
    }
    let text = format!(
        "{}table inet {TABLE} {{}}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}}}\n",
        comments(&[])
    );
    File {
        path: FIREWALL.to_owned(),
        mode: 0o644,
        text,
    }
}

/// A rule as a line; `None` for words that our own ruleset doesn't use.
fn statement(rule: &Value) -> Option<String> {
    let mut words = Vec::new();
    for expression in rule["expr"].as_array()? {
        let (key, value) = expression.as_object()?.iter().next()?;
        words.push(match key.as_str() {
            "match" => condition(value)?,
            "accept" | "drop" | "masquerade" => key.clone(),
            _ => return None,
        });
    }
    if let Some(comment) = rule["comment"].as_str() {
        words.push(format!("comment \"{comment}\""));
    }
    Some(words.join(" "))
}

fn condition(value: &Value) -> Option<String> {
    let (left, right) = (&value["left"], &value["right"]);
    let left = if let Some(key) = left["meta"]["key"].as_str() {
        key.to_owned()
    } else if let Some(key) = left["ct"]["key"].as_str() {
        format!("ct {key}")
    } else {
        let payload = &left["payload"];
        format!(
            "{} {}",
            payload["protocol"].as_str()?,
            payload["field"].as_str()?
        )
    };
    let right = if let Some(name) = right.as_str() {
        format!("\"{name}\"")
    } else if let Some(number) = right.as_u64() {
        number.to_string()
    } else if let Some(states) = right.as_array() {
        let states: Option<Vec<&str>> = states.iter().map(Value::as_str).collect();
        states?.join(",")
    } else {
        let prefix = &right["prefix"];
        format!("{}/{}", prefix["addr"].as_str()?, prefix["len"].as_u64()?)
    };
    match value["op"].as_str()? {
        "==" | "in" => Some(format!("{left} {right}")),
        _ => None,
    }
}
