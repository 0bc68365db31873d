//! What changed files would do to the running daemon, before they do it.
//!
//! The plan is the difference of two views of one memory: the site in force, and the same records under the new
//! files. It asks the very function that answers machines, so what it says of a boot is what the boot will be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use netboot::event::Event;
use netboot::host::LinkPolicy;
use netboot::net::{LinkName, NodeName, Timestamp};
use netboot::node::NodeSpec;
use netboot::site::Site;
use netboot::spec::{ConfigSource, Network, Profile, Purpose, SiteSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::SitePlanOptions;
use crate::client::{Ask, ask};
use crate::clusters::plan::say_cluster;
use crate::config::Settings;
use crate::failure::{Exit, Failure, print};
use crate::host::command::obstacles_text;
use crate::host::words::{self, Obstructed};
use crate::show::{json, table, table_text};
use crate::status::NodeStatus;

/// What would change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The whole in one sentence.
    pub sentence: String,
    /// Everything that differs; empty when nothing does.
    pub changes: Vec<Difference>,
    /// What keeps some of the bastion's own links from being made, or all of them.
    pub obstacles: Vec<Obstructed>,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `network`, `profile`, `cluster`, `machine`, `link`, `service` or `daemon`.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// `added`, `removed` or `changed`.
    pub change: Change,
    /// Which of its values differ.
    pub fields: Vec<Field>,
    /// What follows from it, one clause each: the next boot, the disk that is written.
    pub effects: Vec<String>,
    /// True where a disk is written that would not be written now, or a machine at work is forgotten.
    pub danger: bool,
}

/// What a difference is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What only a restart puts in force.
    Daemon,
    /// One of the bastion's own links, or what hangs on it.
    Link,
    /// What the bastion serves besides: names, the time.
    Service,
    /// A network.
    Network,
    /// A profile.
    Profile,
    /// A cluster.
    Cluster,
    /// A machine.
    Machine,
}

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Some of its values differ.
    Changed,
}

/// One value that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// The key in its file.
    pub name: String,
    /// What it was; empty where it was not given.
    pub before: String,
    /// What it would be; empty where it is not given.
    pub after: String,
}

impl Kind {
    /// The word in tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Link => "link",
            Self::Service => "service",
            Self::Network => "network",
            Self::Profile => "profile",
            Self::Cluster => "cluster",
            Self::Machine => "machine",
        }
    }
}

impl Change {
    /// The word in tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

impl From<words::Change> for Difference {
    fn from(change: words::Change) -> Self {
        Self {
            kind: Kind::Link,
            name: change
                .link
                .map_or_else(|| "host".to_owned(), |link| link.to_string()),
            change: Change::Changed,
            fields: Vec::new(),
            effects: vec![change.what],
            danger: false,
        }
    }
}

impl Plan {
    /// What `spec` would change in `site` at `now`, with what its `settings` and the `host`'s network would come to.
    #[must_use]
    pub fn of(
        site: &Site,
        spec: &Arc<SiteSpec>,
        settings: Option<Difference>,
        host: words::Plan,
        now: Timestamp,
    ) -> Self {
        let after = site.apply(Event::SpecReplaced(Arc::clone(spec)), now).site;
        let mut changes: Vec<Difference> = settings.into_iter().collect();
        // What others own, and what contradicts theirs, stays as it is.
        if spec.host().policy == LinkPolicy::Managed && host.refused().next().is_none() {
            changes.extend(host.changes.into_iter().map(Difference::from));
        }
        changes.extend(services(site.spec(), spec));
        changes.extend(networks(site.spec(), spec));
        changes.extend(profiles(site, &after));
        changes.extend(clusters(site.spec(), spec));
        changes.extend(machines(site, &after, now));
        Self {
            sentence: sentence(&changes),
            changes,
            obstacles: host.obstacles,
        }
    }
}

fn sentence(changes: &[Difference]) -> String {
    if changes.is_empty() {
        return "nothing would change".to_owned();
    }
    let mut named = BTreeMap::<Kind, BTreeSet<&str>>::new();
    for change in changes {
        named.entry(change.kind).or_default().insert(&change.name);
    }
    let counted: Vec<String> = named
        .iter()
        .map(|(kind, names)| {
            let count = names.len();
            let plural = if count == 1 || *kind == Kind::Daemon {
                ""
            } else {
                "s"
            };
            format!("{count} {}{plural}", kind.word())
        })
        .collect();
    let danger = changes.iter().filter(|change| change.danger).count();
    let danger = match danger {
        0 => "no further disk is written".to_owned(),
        1 => "1 needs a careful look".to_owned(),
        count => format!("{count} need a careful look"),
    };
    format!("{} would change; {danger}", counted.join(", "))
}

/// `reveille plan`
///
/// # Errors
/// [`Failure`]; code 2 when something would change, which is printed.
pub fn run(options: &SitePlanOptions) -> Result<(), Failure> {
    let plan: Plan = match &options.site {
        None => ask(&options.socket, &Ask::get("/api/v1/plan"))?,
        Some(directory) => {
            let site = std::path::absolute(directory).map_err(|error| {
                Failure::of(Exit::Failed, "finding the site's directory", &error)
            })?;
            let other = OtherSite { site };
            let body = serde_json::to_vec(&other).map_err(|error| {
                Failure::of(
                    Exit::Usage,
                    "sending the name of the site's directory",
                    &error,
                )
            })?;
            ask(&options.socket, &Ask::post("/api/v1/plan", &body))?
        }
    };
    print(&if options.json {
        json(&plan)
    } else {
        plan.told()
    })?;
    if plan.changes.is_empty() {
        return Ok(());
    }
    Err(Failure {
        exit: Exit::Changes,
        causes: Vec::new(),
        remedy: None,
    })
}

/// Files other than those of the site in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherSite {
    /// Their directory on the bastion.
    pub site: PathBuf,
}

impl Plan {
    /// As people read it.
    fn told(&self) -> String {
        let mut text = format!("{}\n", self.sentence);
        if self.changes.is_empty() {
            return text + &obstacles_text(&self.obstacles);
        }
        let mut rows = table(&["kind", "name", "change", "what"]);
        for difference in &self.changes {
            rows.add_row([
                difference.kind.word(),
                &difference.name,
                difference.change.word(),
                &difference.what(),
            ]);
        }
        text += &format!("\n{}", table_text(&rows));
        text + &obstacles_text(&self.obstacles)
    }
}

impl Difference {
    fn what(&self) -> String {
        /// Longer values are not shown; that they differ is.
        const SHOWN_MAX: usize = 60;
        let short = |text: &str| text.chars().count() <= SHOWN_MAX;
        let fields = self.fields.iter().map(|field| match field {
            Field {
                name,
                before,
                after,
            } if !short(before) || !short(after) => name.clone(),
            Field {
                name,
                before,
                after,
            } if before.is_empty() => format!("{name} {after}"),
            Field {
                name,
                before,
                after,
            } if after.is_empty() => format!("{name} no longer {before}"),
            Field {
                name,
                before,
                after,
            } => format!("{name} {before} -> {after}"),
        });
        let effects = self.effects.iter().map(|effect| {
            let mark = if self.danger { "! " } else { "" };
            format!("{mark}{effect}")
        });
        fields.chain(effects).collect::<Vec<_>>().join("; ")
    }
}

/// A thing's values by key, as text.
type Said = BTreeMap<&'static str, String>;

/// How something differs whose values were said before and after.
fn difference(
    kind: Kind,
    name: &str,
    before: Option<&Said>,
    after: Option<&Said>,
) -> Option<Difference> {
    let change = match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => Change::Added,
        (Some(_), None) => Change::Removed,
        (Some(_), Some(_)) => Change::Changed,
    };
    let mut fields = Vec::new();
    if let (Some(before), Some(after)) = (before, after) {
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let value = |said: &Said| said.get(key).cloned().unwrap_or_default();
            let (before, after) = (value(before), value(after));
            if before != after {
                fields.push(Field {
                    name: (*key).to_owned(),
                    before,
                    after,
                });
            }
        }
    }
    Some(Difference {
        kind,
        name: name.to_owned(),
        change,
        fields,
        effects: Vec::new(),
        danger: false,
    })
}

/// What only a restart puts in force.
#[must_use]
pub fn settings(before: &Settings, after: &Settings) -> Option<Difference> {
    let said = |settings: &Settings| {
        Said::from([
            ("site", settings.site.clone()),
            ("http.port", settings.http_port.to_string()),
            ("http.tls_port", settings.tls_port.to_string()),
            ("http.events_port", settings.events_port.to_string()),
            (
                "tftp.engine",
                format!("{:?}", settings.tftp_engine).to_lowercase(),
            ),
            (
                "balancer.engine",
                format!("{:?}", settings.balancer).to_lowercase(),
            ),
            ("balancer.public", {
                let links: Vec<&str> = settings.public_links.iter().map(LinkName::as_str).collect();
                links.join(", ")
            }),
            ("control.group", settings.group.clone()),
            (
                "control.read_group",
                settings.read_group.clone().unwrap_or_default(),
            ),
            ("control.listen", optional(settings.listen.as_ref())),
        ])
    };
    if before == after {
        return None;
    }
    let mut found = difference(
        Kind::Daemon,
        "settings",
        Some(&said(before)),
        Some(&said(after)),
    )?;
    found
        .effects
        .push("in force after `systemctl restart reveille`".to_owned());
    Some(found)
}

/// Pairs what bears one name before and after.
fn paired<'a, T, K: Ord>(
    before: impl Iterator<Item = &'a Arc<T>>,
    after: impl Iterator<Item = &'a Arc<T>>,
    key: impl Fn(&'a T) -> K,
) -> BTreeMap<K, (Option<&'a T>, Option<&'a T>)>
where
    T: 'a,
{
    let mut pairs = BTreeMap::<K, (Option<&T>, Option<&T>)>::new();
    for item in before {
        pairs.entry(key(item)).or_default().0 = Some(item);
    }
    for item in after {
        pairs.entry(key(item)).or_default().1 = Some(item);
    }
    pairs
}

fn services(before: &SiteSpec, after: &SiteSpec) -> Vec<Difference> {
    let names = |spec: &SiteSpec| {
        let dns = spec.dns();
        Said::from([
            ("mode", format!("{:?}", dns.mode).to_lowercase()),
            ("forward", format!("{:?}", dns.forward)),
            ("ttl", format!("{}s", dns.ttl_seconds)),
            ("public", format!("{:?}", dns.public)),
            ("records", format!("{:?}", dns.records)),
        ])
    };
    let time = |spec: &SiteSpec| Said::from([("serve", spec.serves_time().to_string())]);
    let said = [
        ("dns", names(before), names(after)),
        ("ntp", time(before), time(after)),
    ];
    said.into_iter()
        .filter(|(_, before, after)| before != after)
        .filter_map(|(name, before, after)| {
            difference(Kind::Service, name, Some(&before), Some(&after))
        })
        .collect()
}

fn networks(before: &SiteSpec, after: &SiteSpec) -> Vec<Difference> {
    let pairs = paired(before.networks(), after.networks(), |network| &network.name);
    let changed = pairs
        .into_iter()
        .filter(|(_, (before, after))| before != after);
    changed
        .filter_map(|(name, (before, after))| {
            let (said, will) = (before.map(say_network), after.map(say_network));
            difference(Kind::Network, name.as_str(), said.as_ref(), will.as_ref())
        })
        .collect()
}

fn say_network(network: &Network) -> Said {
    let words = |values: &[std::net::Ipv4Addr]| {
        let words: Vec<String> = values.iter().map(ToString::to_string).collect();
        words.join(" ")
    };
    Said::from([
        ("link", network.link.to_string()),
        ("subnet", network.subnet.to_string()),
        ("mode", format!("{:?}", network.mode).to_lowercase()),
        ("range", optional(network.range.as_ref())),
        ("router", optional(network.router.as_ref())),
        ("dns", words(&network.dns)),
        ("ntp", words(&network.ntp)),
        ("domain", optional(network.domain.as_ref())),
        ("search", format!("{:?}", network.search)),
        ("mtu", optional(network.mtu.as_ref())),
        ("lease", format!("{}s", network.lease_seconds)),
        ("routes", format!("{:?}", network.routes)),
        ("options", format!("{:?}", network.options)),
        ("loaders", format!("{:?}", network.loaders)),
        ("relayed", network.relayed.to_string()),
        ("quiet_ipv6", network.quiet_ipv6.to_string()),
        ("discovery", optional(network.discovery.as_ref())),
    ])
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

fn profiles(before: &Site, after: &Site) -> Vec<Difference> {
    let (old, new) = (before.spec(), after.spec());
    let pairs = paired(old.profiles(), new.profiles(), |profile| &profile.name);
    let changed = pairs
        .into_iter()
        .filter(|(_, (before, after))| before != after);
    changed
        .filter_map(|(name, (was, becomes))| {
            let (said, will) = (was.map(say_profile), becomes.map(say_profile));
            let mut found = difference(Kind::Profile, name.as_str(), said.as_ref(), will.as_ref())?;
            let bearers = new
                .nodes()
                .filter(|node| after.profile_name(node) == Some(name))
                .count();
            if found.change == Change::Changed && bearers > 0 {
                let plural = if bearers == 1 { "" } else { "s" };
                found
                    .effects
                    .push(format!("{bearers} machine{plural} of it"));
            }
            Some(found)
        })
        .collect()
}

fn say_profile(profile: &Profile) -> Said {
    let initrds: Vec<String> = profile
        .initrds
        .iter()
        .map(|artifact| artifact.digest.to_string())
        .collect();
    // Documents are long; that they differ is what can be said in a line.
    let config = if profile.config == ConfigSource::None {
        String::new()
    } else {
        let digest = Sha256::digest(format!("{:?}", profile.config));
        digest[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    Said::from([
        ("kernel", profile.kernel.digest.to_string()),
        ("initrds", initrds.join(" ")),
        ("artifacts", format!("{:?}", profile.artifacts)),
        ("arguments", profile.arguments.join(" ")),
        ("config", config),
        ("purpose", format!("{:?}", profile.purpose).to_lowercase()),
        (
            "disk",
            profile
                .disk
                .as_ref()
                .map_or_else(String::new, |disk| disk.text().to_owned()),
        ),
    ])
}

fn clusters(before: &SiteSpec, after: &SiteSpec) -> Vec<Difference> {
    let pairs = paired(before.clusters(), after.clusters(), |cluster| &cluster.name);
    let changed = pairs
        .into_iter()
        .filter(|(_, (before, after))| before != after);
    changed
        .filter_map(|(name, (was, becomes))| {
            let (said, will) = (was.map(say_cluster), becomes.map(say_cluster));
            difference(Kind::Cluster, name.as_str(), said.as_ref(), will.as_ref())
        })
        .collect()
}

fn machines(before: &Site, after: &Site, now: Timestamp) -> Vec<Difference> {
    let (old, new) = (before.spec(), after.spec());
    let pairs = paired(old.nodes(), new.nodes(), |node| &node.name);
    pairs
        .into_iter()
        .filter_map(|(name, (was, will))| machine(before, after, name, was, will, now))
        .collect()
}

fn machine(
    before: &Site,
    after: &Site,
    name: &NodeName,
    was: Option<&NodeSpec>,
    will: Option<&NodeSpec>,
    now: Timestamp,
) -> Option<Difference> {
    let old = was.map(|node| NodeStatus::of(before, node, now));
    let new = will.map(|node| NodeStatus::of(after, node, now));
    let answer = |status: &Option<NodeStatus>| {
        status
            .as_ref()
            .map(|status| (status.next_boot.clone(), status.rule.clone()))
    };
    let (wrote, writes) = (
        written(before, was, old.as_ref()),
        written(after, will, new.as_ref()),
    );
    // A profile that others changed may write a disk of a machine that nobody touched.
    if was == will && answer(&old) == answer(&new) && wrote == writes {
        return None;
    }
    let (said, says) = (was.map(say_machine), will.map(say_machine));
    let mut found = difference(Kind::Machine, name.as_str(), said.as_ref(), says.as_ref())?;
    if answer(&old) != answer(&new)
        && let Some(new) = &new
    {
        let was = old
            .as_ref()
            .map_or_else(String::new, |old| format!(" (was {})", old.next_boot));
        found
            .effects
            .push(format!("next boot: {}{was}, {}", new.next_boot, new.rule));
    }
    if let Some(disk) = writes.clone().filter(|_| wrote != writes) {
        found.effects.push(format!("writes {disk}"));
        found.danger = true;
    }
    if let (Some(old), None) = (&old, &new)
        && old.state != "registered"
    {
        found.effects.push(format!(
            "it is {}: no longer answered, its record stays",
            old.state
        ));
        found.danger = true;
    }
    Some(found)
}

/// The disk that the machine's next boot would write, if it would write one.
fn written(site: &Site, node: Option<&NodeSpec>, status: Option<&NodeStatus>) -> Option<String> {
    let (node, profile) = (node?, site.profile_of(node?)?);
    if status?.next_boot != "boot" || profile.purpose != Purpose::Install {
        return None;
    }
    let rule = node.disk.as_ref().or(profile.disk.as_ref());
    let disk = rule.map(|rule| rule.text().to_owned());
    Some(disk.unwrap_or_else(|| "the disk its installer finds".to_owned()))
}

fn say_machine(node: &NodeSpec) -> Said {
    let links: Vec<String> = node
        .links
        .iter()
        .map(|link| {
            let macs: Vec<String> = link.macs.iter().map(ToString::to_string).collect();
            format!("{} on {} ({})", link.address, link.network, macs.join(" "))
        })
        .collect();
    Said::from([
        ("links", links.join(", ")),
        ("system", format!("{:?}", node.system)),
        ("profile", optional(node.profile.as_ref())),
        ("labels", format!("{:?}", node.labels)),
        ("rack", node.rack.clone().unwrap_or_default()),
        ("hostname", node.hostname.to_string()),
        ("uuid", optional(node.uuid.as_ref())),
        ("serial", node.serial.clone().unwrap_or_default()),
        ("variables", format!("{:?}", node.variables)),
        ("loaders", format!("{:?}", node.loaders)),
        (
            "disk",
            node.disk
                .as_ref()
                .map_or_else(String::new, |disk| disk.text().to_owned()),
        ),
    ])
}
