//! What a machine becomes: a profile and one node in, the finished document of that node out. Pure.
//!
//! Three verbs matter: [`syntax`] and [`rehearse`] find every fault of a profile's templates when a site is loaded, and
//! [`document`] renders what one node reads, on request. Kernel arguments are templates too:
//! [`arguments`]. A template that rendered in rehearsal renders in earnest, because both take the same
//! [`Subject`] and nothing else.
//!
//! Not here: sockets, paths of the bastion, clocks, and any memory of what was rendered before.

mod format;
pub mod network;
mod own;
pub mod platform;
pub mod secret;
mod template;

use std::net::Ipv4Addr;

use netboot::node::{DiskRule, NodeLink, NodeSpec};
use netboot::spec::{ConfigSource, Format, Network, Profile, SiteSpec};

pub use template::{Fault, RENDERED_MAX};

/// All that a template may speak of, but for its profile's `artifacts`.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The site, for the other networks that the machine is on.
    pub site: &'a SiteSpec,
    /// The machine; `None` for one that is not listed and boots a discovery profile.
    pub node: Option<&'a NodeSpec>,
    /// The link it boots from, where it is listed.
    pub link: Option<&'a NodeLink>,
    /// The network it boots on.
    pub network: &'a Network,
    /// The disk that may be written.
    pub disk: Option<&'a DiskRule>,
    /// Counts installs, so that `instance-id` changes when a machine is installed anew.
    pub generation: u32,
    /// Where this attempt's documents are.
    pub urls: &'a Urls,
}

/// The URLs of one attempt. Each is absolute; `config` ends with a slash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Urls {
    /// The bastion's boot HTTP, without a slash at the end: `http://10.107.0.1:8080`.
    pub base: String,
    /// The directory of the attempt's documents: `http://10.107.0.1:8080/config/<token>/`.
    pub config: String,
    /// The same over TLS, for what should not travel in clear.
    pub config_tls: String,
    /// Where the machine reports: `http://10.107.0.1:8080/agent/v1/report/<token>`.
    pub report: String,
    /// Where Talos machines tell how far they are, for `talos.events.sink=`: `10.107.0.1:8444`.
    pub events: String,
    /// The site's CA certificate as PEM; empty while there is none.
    pub ca_pem: String,
}

/// One file that a node asks for under its config URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// `config.ign`: points at [`Document::Ignition`] over TLS with our CA, and says nothing else.
    IgnitionPointer,
    /// `node.ign`.
    Ignition,
    /// `user-data`.
    UserData,
    /// `meta-data`.
    MetaData,
    /// `vendor-data`.
    VendorData,
    /// `network-config`.
    NetworkConfig,
    /// `talos.yaml`.
    Talos,
}

impl Document {
    /// Every document.
    pub const ALL: [Self; 7] = [
        Self::IgnitionPointer,
        Self::Ignition,
        Self::UserData,
        Self::MetaData,
        Self::VendorData,
        Self::NetworkConfig,
        Self::Talos,
    ];

    /// The format whose readers ask for it.
    #[must_use]
    pub fn format(self) -> Format {
        match self {
            Self::IgnitionPointer | Self::Ignition => Format::Ignition,
            Self::UserData | Self::MetaData | Self::VendorData | Self::NetworkConfig => {
                Format::CloudInit
            }
            Self::Talos => Format::Talos,
        }
    }

    /// The document behind the last part of a config URL.
    #[must_use]
    pub fn by_file(file: &str) -> Option<Self> {
        match file {
            "config.ign" => Some(Self::IgnitionPointer),
            "node.ign" => Some(Self::Ignition),
            "user-data" => Some(Self::UserData),
            "meta-data" => Some(Self::MetaData),
            "vendor-data" => Some(Self::VendorData),
            "network-config" => Some(Self::NetworkConfig),
            "talos.yaml" => Some(Self::Talos),
            _ => None,
        }
    }

    /// True for what a machine is configured by, and may hold secrets; false for what only leads there or is known anyway.
    #[must_use]
    pub fn is_whole(self) -> bool {
        match self {
            Self::Ignition | Self::UserData | Self::Talos => true,
            Self::IgnitionPointer | Self::MetaData | Self::VendorData | Self::NetworkConfig => {
                false
            }
        }
    }

    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::IgnitionPointer | Self::Ignition => "application/vnd.coreos.ignition+json",
            Self::UserData | Self::MetaData | Self::VendorData | Self::NetworkConfig => {
                "text/plain; charset=utf-8"
            }
            Self::Talos => "application/yaml",
        }
    }
}

/// The finished document of one node; `None` when the profile's format has no such file.
///
/// # Errors
/// A template that does not render, or whose result the node's own reader would refuse.
pub fn document(
    profile: &Profile,
    subject: &Subject<'_>,
    document: Document,
) -> Result<Option<String>, Fault> {
    let text = match (&profile.config, document) {
        (
            ConfigSource::Ignition(_) | ConfigSource::Platform(Format::Ignition),
            Document::IgnitionPointer,
        ) => format::ignition::pointer(subject.urls),
        (ConfigSource::Ignition(source), Document::Ignition) => {
            let text = template::render("config.file", source, profile, subject)?;
            format::ignition::lint(&text)?;
            own::ignition(text, subject)?
        }
        (ConfigSource::CloudInit { user_data, .. }, Document::UserData) => {
            let text = template::render("config.user_data", user_data, profile, subject)?;
            format::cloud_init::lint_user_data(&text)?;
            text
        }
        (
            ConfigSource::CloudInit { .. } | ConfigSource::Platform(Format::CloudInit),
            Document::MetaData,
        ) => format::cloud_init::meta_data(subject),
        (ConfigSource::CloudInit { vendor_data, .. }, Document::VendorData) => optional(
            "config.vendor_data",
            vendor_data.as_deref(),
            profile,
            subject,
        )?,
        (
            ConfigSource::CloudInit {
                network_config: None,
                ..
            },
            Document::NetworkConfig,
        )
        | (ConfigSource::Platform(Format::CloudInit), Document::NetworkConfig) => {
            own::network_config(subject)?
        }
        (ConfigSource::Platform(Format::CloudInit), Document::VendorData) => String::new(),
        (ConfigSource::CloudInit { network_config, .. }, Document::NetworkConfig) => {
            let text = optional(
                "config.network_config",
                network_config.as_deref(),
                profile,
                subject,
            )?;
            format::lint_yaml("config.network_config", &text)?;
            text
        }
        (ConfigSource::Talos(source), Document::Talos) => {
            let text = template::render("config.file", source, profile, subject)?;
            format::talos::lint(&text)?;
            own::talos(text, subject)?
        }
        _ => return Ok(None),
    };
    Ok(Some(text))
}

/// The kernel arguments of one boot, one string each.
///
/// # Errors
/// A template that does not render, or renders to more than one line.
pub fn arguments(profile: &Profile, subject: &Subject<'_>) -> Result<Vec<String>, Fault> {
    let mut rendered = Vec::with_capacity(profile.arguments.len());
    for source in &profile.arguments {
        let argument = template::render("arguments", source, profile, subject)?;
        if argument.chars().any(char::is_control) {
            let problem = format!("{source:?} renders to more than one line");
            return Err(Fault {
                field: "arguments",
                line: None,
                problem,
                remedy: "keep line breaks out of its variables".to_owned(),
            });
        }
        if !argument.trim().is_empty() {
            rendered.push(argument.trim().to_owned());
        }
    }
    Ok(rendered)
}

/// Whether one template can be parsed at all.
///
/// # Errors
/// What is wrong with it, and where.
pub fn syntax(field: &'static str, source: &str) -> Result<(), Fault> {
    template::syntax(field, source)
}

/// Renders everything a machine of the profile would read, and names what its readers would refuse.
#[must_use]
pub fn rehearse(profile: &Profile, subject: &Subject<'_>) -> Vec<Fault> {
    let rendered = Document::ALL
        .into_iter()
        .map(|wanted| document(profile, subject, wanted).map(|_| ()));
    std::iter::once(arguments(profile, subject).map(|_| ()))
        .chain(rendered)
        .filter_map(Result::err)
        .collect()
}

/// URLs of the right form that lead nowhere, for [`rehearse`] and plans.
#[must_use]
pub fn sample_urls(server: Ipv4Addr) -> Urls {
    let base = format!("http://{server}:8080");
    Urls {
        config: format!("{base}/config/0000000000000000000000/"),
        config_tls: format!("https://{server}:8443/config/0000000000000000000000/"),
        report: format!("{base}/agent/v1/report/0000000000000000000000"),
        events: format!("{server}:8444"),
        ca_pem: String::new(),
        base,
    }
}

fn optional(
    field: &'static str,
    source: Option<&str>,
    profile: &Profile,
    subject: &Subject<'_>,
) -> Result<String, Fault> {
    source.map_or(Ok(String::new()), |source| {
        template::render(field, source, profile, subject)
    })
}
