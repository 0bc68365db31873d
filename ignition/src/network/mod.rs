//! A host's own network, said in every format that its systems read.
//!
//! ```text
//!               .-> dracut     kernel arguments of an initramfs
//!               |-> keyfile    NetworkManager; Fedora and RHEL CoreOS through Ignition
//!   [Link] -> Network -> netplan    Ubuntu, and cloud-init's network-config version 2
//!               |-> talos      a machine config's network, and the documents of 1.12 and later
//!               |-> networkd   systemd-networkd
//!               |-> ifupdown   Debian's /etc/network/interfaces
//!               `-> nmstate    OpenShift, RHEL
//! ```
//!
//! A [`Network`] is the door: below it no name can break out of a file or an argument, every link that another
//! one lies on is listed, and lower links come before upper ones. What a format has no word for is never dropped in
//! silence: it is an [`Unsaid`], and a comment where the format has comments.
//!
//! [`export`] is the bastion's own network for people who want their system to make it.
//!
//! Every address is static and router advertisements are not followed, in all formats: what the site does not say, the
//! host does not do.

pub mod dracut;
pub mod export;
pub mod ifupdown;
pub mod keyfile;
pub mod netplan;
pub mod networkd;
pub mod nmstate;
pub mod talos;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netboot::link::{Link, LinkKind, MAIN_TABLE, Route};
use netboot::net::{Hostname, LinkName, MacAddress};

use crate::Fault;

/// What every file begins with, as a comment.
const HEAD: &str = "Written by Reveille from the site's files. Change those, not this.";

/// The network of one host, sound enough to be written in any format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    hostname: Option<Hostname>,
    links: Vec<Link>,
    dns: Vec<IpAddr>,
    search: Vec<Hostname>,
}

impl Network {
    /// Takes the links of a host, in any order. A link that others lie on and nobody lists is taken for a card of that name.
    ///
    /// # Errors
    /// Every link whose name a file can't bear, that is listed twice, that lies on itself, or that is a port and has addresses.
    pub fn new(
        hostname: Option<&Hostname>,
        links: &[Link],
        dns: &[IpAddr],
        search: &[Hostname],
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut fault = |problem: String, remedy: &str| {
            faults.push(Fault {
                field: "links",
                line: None,
                problem,
                remedy: remedy.to_owned(),
            });
        };
        let listed: BTreeSet<&LinkName> = links.iter().map(|link| &link.name).collect();
        let implied: BTreeSet<&LinkName> = links
            .iter()
            .flat_map(below)
            .filter(|name| !listed.contains(name))
            .collect();
        for name in listed.iter().chain(&implied).filter(|name| !plain(name)) {
            let problem = format!("link name {:?} can't be written in a file", name.as_str());
            fault(
                problem,
                "rename the link to letters, digits, dots, hyphens and underscores",
            );
        }
        let mut waiting: Vec<&Link> = Vec::with_capacity(links.len());
        let mut names = BTreeSet::new();
        for link in links {
            if names.insert(&link.name) {
                waiting.push(link);
            } else {
                fault(format!("link {} is listed twice", link.name), "remove one");
            }
        }
        let mut joined = BTreeSet::new();
        for (link, port) in links
            .iter()
            .flat_map(|link| link.kind.ports().iter().map(move |port| (link, port)))
        {
            if !joined.insert(port) {
                fault(
                    format!("link {port} is a port twice"),
                    "keep it in one bridge or bond",
                );
            }
            let own = |other: &&Link| {
                !(other.addresses.is_empty() && other.routes.is_empty() && other.rules.is_empty())
            };
            if links.iter().filter(own).any(|other| other.name == *port) {
                let problem = format!(
                    "link {port} is a port of {} and has addresses, routes or rules",
                    link.name
                );
                fault(problem, "give them to the bridge or bond");
            }
        }
        let mut ready: BTreeSet<&LinkName> = implied.clone();
        let mut ordered: Vec<Link> = implied.into_iter().map(card).collect();
        while !waiting.is_empty() {
            let (now, later): (Vec<&Link>, Vec<&Link>) = waiting
                .into_iter()
                .partition(|link| below(link).all(|name| ready.contains(name)));
            if now.is_empty() {
                let names: Vec<&str> = later.iter().map(|link| link.name.as_str()).collect();
                fault(
                    format!("links {} lie on each other", names.join(", ")),
                    "mend their parents and ports",
                );
                break;
            }
            ready.extend(now.iter().map(|link| &link.name));
            ordered.extend(now.into_iter().cloned());
            waiting = later;
        }
        if faults.is_empty() {
            Ok(Self {
                hostname: hostname.cloned(),
                links: ordered,
                dns: dns.to_vec(),
                search: search.to_vec(),
            })
        } else {
            Err(faults)
        }
    }

    /// The links, lower ones first.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    fn link(&self, name: &LinkName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == *name)
    }

    /// The bridge or bond that a link is a port of.
    fn master(&self, port: &LinkName) -> Option<&Link> {
        self.links
            .iter()
            .find(|link| link.kind.ports().contains(port))
    }

    /// A card known by its name of which nothing is said: others may have given it what they like, and keep it.
    fn is_others(&self, link: &Link) -> bool {
        let nothing = link.mtu.is_none()
            && link.addresses.is_empty()
            && link.routes.is_empty()
            && link.rules.is_empty();
        let by_name = matches!(&link.kind, LinkKind::Card { macs } if macs.is_empty());
        nothing && by_name && self.master(&link.name).is_none()
    }

    /// The VLANs that lie on a link.
    fn vlans(&self, parent: &LinkName) -> impl Iterator<Item = &Link> {
        self.links
            .iter()
            .filter(move |link| link.kind.parent() == Some(parent))
    }

    /// The link whose file names the DNS servers, in formats that hang them on one: that of the default route, else the
    /// first with an address.
    fn resolving(&self) -> Option<&LinkName> {
        let outward = |link: &&Link| {
            link.routes
                .iter()
                .any(|route| is_default(route) && route.table == MAIN_TABLE)
        };
        let link = self.links.iter().find(outward);
        link.or_else(|| self.links.iter().find(|link| !link.addresses.is_empty()))
            .map(|link| &link.name)
    }

    /// Whether a link's file names the DNS servers.
    fn resolves(&self, link: &LinkName) -> bool {
        let any = !self.dns.is_empty() || !self.search.is_empty();
        any && self.resolving() == Some(link)
    }

    /// What is said of DNS but hangs on no link that could say it.
    fn unresolved(&self) -> Option<Unsaid> {
        let any = !self.dns.is_empty() || !self.search.is_empty();
        (any && self.resolving().is_none()).then(|| {
            Unsaid::of_host("the DNS servers, because no link has an address that reaches them")
        })
    }
}

/// A file of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute, without `..`.
    pub path: String,
    /// Permission bits, such as 0o600.
    pub mode: u32,
    /// All of it.
    pub text: String,
}

/// Something of the network that a format has no word for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsaid {
    /// The link, if it is about one.
    pub link: Option<LinkName>,
    /// What is missing, and where that matters what becomes of it.
    pub what: String,
}

impl Unsaid {
    fn of(link: &Link, what: impl Into<String>) -> Self {
        Self {
            link: Some(link.name.clone()),
            what: what.into(),
        }
    }

    fn of_host(what: impl Into<String>) -> Self {
        Self {
            link: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.link {
            Some(link) => write!(f, "{link}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What a format says of a network, and what it can't say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "what a format can't say is not to be lost"]
pub struct Said<T> {
    /// In the format's own words.
    pub said: T,
    /// Everything else.
    pub unsaid: Vec<Unsaid>,
}

/// Whether a file was written by this room, so that it may be written anew.
#[must_use]
pub fn is_ours(text: &str) -> bool {
    text.strip_prefix("# ")
        .is_some_and(|rest| rest.starts_with(HEAD))
}

/// The links that another one lies on.
fn below(link: &Link) -> impl Iterator<Item = &LinkName> {
    link.kind.parent().into_iter().chain(link.kind.ports())
}

fn card(name: &LinkName) -> Link {
    Link {
        name: name.clone(),
        kind: LinkKind::Card { macs: Vec::new() },
        mtu: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    }
}

/// Names that need no quoting in any format, and that no shell, glob or option parser reads as anything else. `all` and
/// `default` mean every link in sysctls, ifupdown and Talos.
fn plain(name: &LinkName) -> bool {
    let name = name.as_str();
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.bytes().all(sound) && !name.starts_with(['-', '.']) && !matches!(name, "all" | "default")
}

fn is_default(route: &Route) -> bool {
    route.to.prefix_len() == 0
}

fn same_family(net: &IpNet, address: IpAddr) -> bool {
    net.addr().is_ipv4() == address.is_ipv4()
}

/// The MAC address a card's file names; formats know one, and a card of several is known by the first.
fn mac(link: &Link, unsaid: &mut Vec<Unsaid>) -> Option<MacAddress> {
    let LinkKind::Card { macs } = &link.kind else {
        return None;
    };
    if macs.len() > 1 {
        let others: Vec<String> = macs[1..].iter().map(ToString::to_string).collect();
        unsaid.push(Unsaid::of(
            link,
            format!("its other MAC addresses {}", others.join(", ")),
        ));
    }
    macs.first().copied()
}

/// Lines that tell, as comments, what a file leaves out.
pub(crate) fn comments(unsaid: &[Unsaid]) -> String {
    let mut text = format!("# {HEAD}\n");
    for one in unsaid {
        text += &format!("# Not said here: {one}\n");
    }
    text
}

/// A document as YAML that readers of version 1.1 take as it is meant.
pub(crate) fn yaml(document: &serde_json::Value) -> String {
    serde_saphyr::to_string(document).expect("what JSON can say, YAML can")
}

/// The host's name as a file, where a format leaves it to one.
fn hostname_file(network: &Network) -> Option<File> {
    let name = network.hostname.as_ref()?;
    Some(File {
        path: "/etc/hostname".to_owned(),
        mode: 0o644,
        text: format!("{name}\n"),
    })
}
