//! A machine's own network in the documents it reads, where the inventory lists several links of it.
//!
//! ```text
//!   template values   network_arguments, talos_network, talos_documents: wherever a profile puts them
//!   Ignition          NetworkManager's keyfiles among storage.files, unless the config has some of its own
//!   NoCloud           network-config, unless the profile gives one
//!   Talos             documents after the machine config, from 1.12 on, unless it speaks of links itself
//! ```
//!
//! A machine with one plain card is left to DHCP, and its documents stay as their authors wrote them, byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::{Value, context};
use netboot::link::LinkKind;
use serde_json::json;

use crate::format::lint_yaml;
use crate::network::{Network, Unsaid, dracut, keyfile, netplan, talos};
use crate::{Fault, Subject};

/// Talos' first minor version that reads network documents beside its machine config.
const TALOS_DOCUMENTS: (u32, u32) = (1, 12);

/// What templates may say of the machine's own network, worked out only where `source` speaks of it. A machine that is
/// not listed has none.
pub(crate) fn values(
    field: &'static str,
    source: &str,
    subject: &Subject<'_>,
) -> Result<Value, Fault> {
    let (mut arguments, mut section, mut documents) =
        (String::new(), "{}".to_owned(), String::new());
    let asked = source.contains("network_arguments") || source.contains("talos_");
    let network = if asked {
        network(field, subject, true)?
    } else {
        None
    };
    if let Some(network) = network {
        if source.contains("network_arguments") {
            arguments = arguments_of(field, &network)?;
        }
        section = talos::section(&network).said;
        documents = talos::documents(&network).said;
    }
    Ok(context! {
        network_arguments => arguments,
        talos_network => section,
        talos_documents => documents,
    })
}

/// The initramfs can't do without what it was not told of a link that the system makes.
fn arguments_of(field: &'static str, network: &Network) -> Result<String, Fault> {
    let said = dracut::arguments(network);
    let made = |unsaid: &&Unsaid| {
        let link = network
            .links()
            .iter()
            .find(|link| unsaid.link.as_ref() == Some(&link.name));
        link.is_some_and(|link| !matches!(link.kind, LinkKind::Card { .. }))
    };
    match said.unsaid.iter().find(made) {
        Some(unsaid) => Err(Fault {
            field,
            line: None,
            problem: format!("network_arguments can't say of {unsaid}"),
            remedy: "rename the link, or leave it to the system's own documents".to_owned(),
        }),
        None => Ok(said.said.join(" ")),
    }
}

/// An Ignition config with the machine's keyfiles.
pub(crate) fn ignition(text: String, subject: &Subject<'_>) -> Result<String, Fault> {
    const FIELD: &str = "config.file";
    let Some(network) = listed(FIELD, subject, true)? else {
        return Ok(text);
    };
    let mut config: serde_json::Value = serde_json::from_str(&text).map_err(|error| Fault {
        field: FIELD,
        line: Some(error.line()),
        problem: error.to_string(),
        remedy: "mend the JSON".to_owned(),
    })?;
    let written: Vec<String> = ["files", "links", "directories"]
        .iter()
        .filter_map(|kind| config["storage"][kind].as_array())
        .flatten()
        .filter_map(|node| Some(node["path"].as_str()?.to_owned()))
        .collect();
    // Whoever writes connections writes all of them: two sets would fight over the cards.
    let connections = format!("{}/", keyfile::DIRECTORY);
    if written.iter().any(|path| path.starts_with(&connections)) {
        return Ok(text);
    }
    let files = keyfile::files(&network).said;
    let files = files
        .into_iter()
        .filter(|file| !written.contains(&file.path));
    let files = files.map(|file| {
        let source = format!("data:;base64,{}", STANDARD.encode(&file.text));
        json!({
            "path": file.path,
            "mode": file.mode,
            "overwrite": true,
            "contents": { "source": source },
        })
    });
    let all = &mut config["storage"]["files"];
    if let Some(listed) = all.as_array_mut() {
        listed.extend(files);
    } else {
        *all = files.collect();
    }
    Ok(config.to_string())
}

/// NoCloud's `network-config` for a profile that gives none.
pub(crate) fn network_config(subject: &Subject<'_>) -> Result<String, Fault> {
    let network = listed("config.network_config", subject, true)?;
    Ok(network.map_or(String::new(), |network| {
        netplan::document(&network, netplan::Reader::CloudInit).said
    }))
}

/// A Talos machine config with the machine's network documents.
pub(crate) fn talos(text: String, subject: &Subject<'_>) -> Result<String, Fault> {
    const FIELD: &str = "config.file";
    if subject.node.is_none_or(|node| node.system.is_empty()) {
        return Ok(text);
    }
    let documents = lint_yaml(FIELD, &text)?;
    let machine = |path: &str| {
        documents
            .iter()
            .find_map(|document| document.pointer(path).cloned())
    };
    let kinds = || {
        documents
            .iter()
            .filter_map(|document| document["kind"].as_str())
    };
    let of_links = ["LinkConfig", "LinkAliasConfig", "VLANConfig", "BondConfig"];
    if machine("/machine/network/interfaces").is_some()
        || kinds().any(|kind| of_links.contains(&kind))
    {
        return Ok(text);
    }
    let named = machine("/machine/network/hostname").is_some()
        || kinds().any(|kind| kind == "HostnameConfig");
    let Some(network) = listed(FIELD, subject, !named)? else {
        return Ok(text);
    };
    let image = machine("/machine/install/image");
    let version = image.as_ref().and_then(|image| minor(image.as_str()?));
    if version.is_some_and(|version| version >= TALOS_DOCUMENTS) {
        let told = talos::documents(&network).said;
        let told = told.strip_prefix("---\n").unwrap_or(&told);
        return Ok(format!("{}\n---\n{told}", text.trim_end()));
    }
    // Plain cards find their addresses by DHCP; what the system makes of them does not.
    let made = network
        .links()
        .iter()
        .find(|link| !matches!(link.kind, LinkKind::Card { .. }));
    match made {
        None => Ok(text),
        Some(link) => Err(Fault {
            field: FIELD,
            line: None,
            problem: format!("says nothing of link {}, and machine.install.image no Talos of 1.12 or later", link.name),
            remedy: "write `network: {{ talos_network }}` below `machine:`, or name the installer's image with its version"
                .to_owned(),
        }),
    }
}

/// `1.12` of `ghcr.io/siderolabs/installer:v1.12.0`.
fn minor(image: &str) -> Option<(u32, u32)> {
    let (_, tag) = image.rsplit_once(':')?;
    let mut parts = tag.strip_prefix('v')?.split(['.', '-', '@']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The network of a machine of which the inventory lists more than one plain card.
pub(crate) fn listed(
    field: &'static str,
    subject: &Subject<'_>,
    with_hostname: bool,
) -> Result<Option<Network>, Fault> {
    if subject.node.is_none_or(|node| node.system.is_empty()) {
        return Ok(None);
    }
    network(field, subject, with_hostname)
}

fn network(
    field: &'static str,
    subject: &Subject<'_>,
    with_hostname: bool,
) -> Result<Option<Network>, Fault> {
    let Some(node) = subject.node else {
        return Ok(None);
    };
    let own = subject.site.network_of(node);
    let hostname = Some(&node.hostname).filter(|_| with_hostname);
    Network::new(hostname, &own.links, &own.dns, &own.search)
        .map(Some)
        .map_err(|faults| {
            let problems: Vec<String> = faults.iter().map(|fault| fault.problem.clone()).collect();
            let remedy = faults.into_iter().next().map(|fault| fault.remedy);
            Fault {
                field,
                line: None,
                problem: problems.join("; "),
                remedy: remedy.unwrap_or_default(),
            }
        })
}
