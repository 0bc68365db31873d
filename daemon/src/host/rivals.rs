//! Programs that would configure the same links, and how to keep each off them.
//!
//! ```text
//!   NetworkManager    /run/NetworkManager/devices/INDEX         managed=true
//!   systemd-networkd  /run/systemd/netif/links/INDEX            ADMIN_STATE= other than unmanaged
//!   ifupdown          /etc/network/interfaces and its sources   iface NAME
//! ```
//!
//! Ugly facts. These are the programs' own notes, and networkd's says that nobody should parse it; asking over
//! D-Bus would need a bus and a library for three words. networkd's notes go when it stops; NetworkManager's stay,
//! so it counts only while systemd knows its unit as running. ifupdown is no daemon: it acts at boot and when a link
//! appears. What is not understood is taken for no rival.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use netboot::host::HostState;
use netboot::net::LinkName;

/// The most that is read of a file.
const FILE_MAX: u64 = 256 * 1024;
/// The most files that `/etc/network/interfaces` may lead to.
const SOURCES_MAX: usize = 64;

/// A program that configures links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Its name.
    pub program: &'static str,
    /// Those of the links asked for that it configures.
    pub links: Vec<LinkName>,
    /// How to keep it off them, in one line.
    pub remedy: String,
}

/// Who else configures these links, on the host below `root`.
#[must_use]
pub fn rivals(root: &Path, links: &BTreeSet<&LinkName>, present: &HostState) -> Vec<Rival> {
    let index = |link: &LinkName| present.links.get(link).map(|link| link.index);
    let among = |claims: &dyn Fn(&LinkName) -> bool| -> Vec<LinkName> {
        let claimed = links.iter().filter(|link| claims(link));
        claimed.map(|link| (*link).clone()).collect()
    };
    let manager = among(&|link| index(link).is_some_and(|index| manager_claims(root, index)));
    let networkd = among(&|link| index(link).is_some_and(|index| networkd_claims(root, index)));
    let stanzas = Interfaces::read(root).0;
    let ifupdown = among(&|link| stanzas.iter().any(|stanza| stanza.link == link.as_str()));
    let mut rivals = Vec::new();
    if !manager.is_empty() {
        let set = manager
            .iter()
            .map(|link| format!("nmcli device set {link} managed no"));
        let names = manager.iter().map(|link| format!("interface-name:{link}"));
        rivals.push(Rival {
            remedy: format!(
                "{}; and for good, in /etc/NetworkManager/conf.d/reveille.conf: [keyfile] unmanaged-devices={}",
                joined(set, "; "),
                joined(names, ";")
            ),
            program: "NetworkManager",
            links: manager,
        });
    }
    if !networkd.is_empty() {
        let names = networkd.iter().map(ToString::to_string);
        rivals.push(Rival {
            remedy: format!(
                "write /etc/systemd/network/00-reveille.network with [Match] Name={} and [Link] Unmanaged=yes; networkctl reload",
                joined(names, " ")
            ),
            program: "systemd-networkd",
            links: networkd,
        });
    }
    if !ifupdown.is_empty() {
        let named = |stanza: &&Stanza| ifupdown.iter().any(|link| link.as_str() == stanza.link);
        let places = stanzas.iter().filter(named);
        let places = places.map(|stanza| format!("{}:{}", stanza.file.display(), stanza.line));
        rivals.push(Rival {
            remedy: format!(
                "remove the stanza at {}, without ifdown, which would take the link down",
                joined(places, " and ")
            ),
            program: "ifupdown",
            links: ifupdown,
        });
    }
    rivals
}

fn joined(words: impl Iterator<Item = String>, by: &str) -> String {
    words.collect::<Vec<_>>().join(by)
}

/// The start of a file, empty if it can't be read.
fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(FILE_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// NetworkManager's state file of a device (its `src/core/nm-config.c`, `nm_config_device_state_write`).
fn manager_claims(root: &Path, index: u32) -> bool {
    let state = text(&root.join(format!("run/NetworkManager/devices/{index}")));
    // systemd leaves this link for as long as a unit is active.
    let units = root.join("run/systemd/units");
    let runs = !units.is_dir() || units.join("invocation:NetworkManager.service").is_symlink();
    runs && state.lines().any(|line| line.trim() == "managed=true")
}

/// systemd-networkd's state file of a link (its `src/network/networkd-state-file.c`, `link_save`).
fn networkd_claims(root: &Path, index: u32) -> bool {
    let state = text(&root.join(format!("run/systemd/netif/links/{index}")));
    let state = state
        .lines()
        .find_map(|line| line.strip_prefix("ADMIN_STATE="));
    state.is_some_and(|state| !["unmanaged", "linger", "initialized", "pending"].contains(&state))
}

/// One `iface` stanza that would change a link.
struct Stanza {
    link: String,
    file: PathBuf,
    line: usize,
}

/// The stanzas of interfaces(5), its `source` and `source-directory` followed.
struct Interfaces(Vec<Stanza>);

impl Interfaces {
    fn read(root: &Path) -> Self {
        let mut stanzas = Vec::new();
        let mut files = vec![PathBuf::from("/etc/network/interfaces")];
        let mut at = 0;
        while let Some(file) = files.get(at).cloned() {
            at += 1;
            let text = text(&below(root, &file));
            for (line, words) in (1..).zip(text.lines().map(|line| line.split_whitespace())) {
                match words.collect::<Vec<_>>()[..] {
                    // Whoever says `manual` leaves the link to somebody else.
                    ["iface", _, _, "manual" | "loopback"] => {}
                    ["iface", link, ..] => stanzas.push(Stanza {
                        link: link.to_owned(),
                        file: file.clone(),
                        line,
                    }),
                    ["source" | "source-directory", pattern] => {
                        let more = matching(root, &file, pattern);
                        let new = more.into_iter().filter(|file| !files.contains(file));
                        let new: Vec<_> = new.take(SOURCES_MAX - files.len()).collect();
                        files.extend(new);
                    }
                    _ => {}
                }
            }
        }
        Self(stanzas)
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The files of a pattern: a directory's, or those whose name fits what stands around a `*`; a path that begins
/// without a slash begins beside the file that names it.
fn matching(root: &Path, named_in: &Path, pattern: &str) -> Vec<PathBuf> {
    let beside = named_in.parent().unwrap_or(named_in);
    let pattern = beside.join(pattern);
    let (directory, (start, end)) = if below(root, &pattern).is_dir() {
        (pattern, (String::new(), String::new()))
    } else {
        let Some(name) = pattern.file_name().and_then(|name| name.to_str()) else {
            return Vec::new();
        };
        let Some((start, end)) = name.split_once('*') else {
            return vec![pattern];
        };
        let fits = (start.to_owned(), end.to_owned());
        (pattern.parent().unwrap_or(beside).to_owned(), fits)
    };
    let Ok(entries) = below(root, &directory).read_dir() else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with(&start) && name.ends_with(&end))
        .collect();
    names.sort();
    names.into_iter().map(|name| directory.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        root
    }

    /// What is said of `eth1.107`, which has the number 7, and of `eth2`, which is not there.
    fn said(root: &Path) -> Vec<Rival> {
        let names: Vec<LinkName> = ["eth1.107", "eth2"]
            .map(|name| name.parse().unwrap())
            .into();
        let link = serde_json::json!({
            "index": 7, "ours": true, "kind": { "other": "vlan" }, "mac": null, "up": true, "mtu": 1500,
            "master": null, "addresses": [], "routes": [], "forwarding": false, "rp_filter": "off"
        });
        let mut present = HostState::default();
        let link = serde_json::from_value(link).expect("a link");
        present.links.insert(names[0].clone(), link);
        rivals(root, &names.iter().collect(), &present)
    }

    #[test]
    fn network_manager_is_named_while_it_runs_and_manages_the_link() {
        // As nm_config_device_state_write of NetworkManager 1.42 writes it.
        let state =
            "[device]\nmanaged=true\nconnection-uuid=2b38c2b1\nroute-metric-default-aspired=100\n";
        let root = root(&[("run/NetworkManager/devices/7", state)]);
        assert_eq!(said(root.path()), [Rival {
            program: "NetworkManager",
            links: vec!["eth1.107".parse().unwrap()],
            remedy: "nmcli device set eth1.107 managed no; and for good, in /etc/NetworkManager/conf.d/reveille.conf: [keyfile] unmanaged-devices=interface-name:eth1.107".into(),
        }]);
        let units = root.path().join("run/systemd/units");
        fs::create_dir_all(&units).unwrap();
        assert_eq!(said(root.path()), [], "it was stopped, and its notes stay");
        std::os::unix::fs::symlink(
            "0123456789abcdef",
            units.join("invocation:NetworkManager.service"),
        )
        .unwrap();
        assert_eq!(said(root.path()).len(), 1);
        let state = state.replace("true", "false");
        fs::write(root.path().join("run/NetworkManager/devices/7"), state).unwrap();
        assert_eq!(said(root.path()), []);
    }

    #[test]
    fn ifupdown_is_named_with_the_place_of_its_stanza() {
        let root = root(&[
            (
                "etc/network/interfaces",
                "# iface eth1.107 inet dhcp\nauto lo\niface lo inet loopback\nsource interfaces.d/*.cfg\nsource /etc/network/interfaces\n",
            ),
            (
                "etc/network/interfaces.d/vlans.cfg",
                "allow-hotplug eth2\niface eth2 inet manual\n\niface eth1.107 inet static\n    address 10.107.0.1/24\n",
            ),
            ("etc/network/interfaces.d/old", "iface eth2 inet dhcp\n"),
        ]);
        assert_eq!(said(root.path()), [Rival {
            program: "ifupdown",
            links: vec!["eth1.107".parse().unwrap()],
            remedy: "remove the stanza at /etc/network/interfaces.d/vlans.cfg:4, without ifdown, which would take the link down".into(),
        }]);
    }

    #[test]
    fn a_host_without_any_of_them_has_no_rival() {
        assert_eq!(said(root(&[]).path()), []);
    }
}
