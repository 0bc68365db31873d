//! The site's files as people write them. These types are the format: the reader takes exactly these keys, and
//! the JSON schemas under `docs/schema` are made from them. Text is judged in the rooms beside this one.
//!
//! A field without `#[serde(default)]` is a key that must be there.

mod clusters;
mod links;

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Visitor};

use super::read::{Given, Table, WORD_OR_OTHER};
pub(super) use clusters::{
    AntiAffinity, Boot, BootMethod, Cluster, ClusterNetwork, ClusterType, HealthCheck, Isolation,
    Lifecycle, NodeGroup, Placement, Role, Service, ServiceType, Validation,
};
pub(super) use links::{
    Bond, Bridge, Host, HostLink, HostRoute, Link, LinkPolicy, Links, Masquerade, ReversePath, Vlan,
};

/// `site.yaml`: what one bastion serves, and how.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Reveille site.yaml")]
pub(super) struct Site {
    /// The site's name: lowercase letters, digits and hyphens.
    pub(super) site: Given<String>,
    /// Whether the inventory's word is enough to install a machine.
    #[serde(default)]
    pub(super) admission: Given<Admission>,
    /// The bastion's own links, made and kept as they are written here; or `unmanaged`.
    #[serde(default)]
    pub(super) links: Given<Links>,
    /// How the bastion's own network is kept.
    #[serde(default)]
    pub(super) host: Given<Host>,
    /// The networks that machines boot from.
    pub(super) networks: Given<Vec<Given<Box<Network>>>>,
    /// The boot HTTP server.
    #[serde(default)]
    pub(super) http: Given<Http>,
    /// The TFTP server.
    #[serde(default)]
    pub(super) tftp: Given<Tftp>,
    /// Names: those of machines and clusters, and all others for machines; nothing is served without this key.
    #[serde(default)]
    pub(super) dns: Given<Dns>,
    /// Time.
    #[serde(default)]
    pub(super) ntp: Given<Ntp>,
    /// The balancer of the clusters' ports.
    #[serde(default)]
    pub(super) balancer: Given<Balancer>,
    /// Who may use the control socket.
    #[serde(default)]
    pub(super) control: Given<Control>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Admission {
    /// A listed machine may be installed.
    Listed,
    /// A listed machine waits for `node approve`.
    Manual,
}

/// One network.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    /// Its name: lowercase letters, digits and hyphens.
    pub(super) name: Given<String>,
    /// The bastion's link on it, such as `eth1.107`.
    pub(super) link: Given<String>,
    /// Its addresses, such as `10.107.0.0/24`.
    pub(super) subnet: Given<String>,
    /// How DHCP behaves; `reservation` unless given.
    #[serde(default)]
    pub(super) mode: Given<Mode>,
    /// Addresses that mode `pool` lends: `10.107.0.100-150`.
    #[serde(default)]
    pub(super) range: Given<String>,
    /// The default gateway.
    #[serde(default)]
    pub(super) router: Given<String>,
    /// DNS servers.
    #[serde(default)]
    pub(super) dns: Given<Vec<Given<String>>>,
    /// Time servers, as addresses.
    #[serde(default)]
    pub(super) ntp: Given<Vec<Given<String>>>,
    /// The machines' domain name.
    #[serde(default)]
    pub(super) domain: Given<String>,
    /// Domains in which short names are looked up.
    #[serde(default)]
    pub(super) search: Given<Vec<Given<String>>>,
    /// Largest packet in bytes, 576 to 65535.
    #[serde(default)]
    pub(super) mtu: Given<u16>,
    /// How long an address is lent: `90s`, `30m`, `12h`, `7d`; 12h unless given.
    #[serde(default)]
    pub(super) lease: Given<String>,
    /// Static routes.
    #[serde(default)]
    pub(super) routes: Given<Vec<Given<Route>>>,
    /// Raw DHCP options by code, for those that have no key of their own.
    #[serde(default)]
    pub(super) options: Given<Table<OptionValue>>,
    /// Network boot programs by DHCP architecture code, before the built-in table.
    #[serde(default)]
    pub(super) loaders: Given<Table<String>>,
    /// Machines reach the bastion through a DHCP relay; false unless given.
    #[serde(default)]
    pub(super) relayed: Given<bool>,
    /// Answer IPv6 router solicitations with "no router", so that no boot stage waits for one; true unless given.
    #[serde(default)]
    pub(super) quiet_ipv6: Given<bool>,
    /// The profile that machines boot that are not listed; asked of mode `pool` only.
    #[serde(default)]
    pub(super) discovery: Given<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    /// Listed machines only, each its own address.
    Reservation,
    /// The same, and addresses of the range for machines that are not listed.
    Pool,
    /// Another server gives the addresses; this one says what to boot.
    Proxy,
    /// Silent.
    Off,
}

/// A static route.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// The destination, such as `10.0.0.0/8`.
    pub(super) to: Given<String>,
    /// The gateway's address.
    pub(super) via: Given<String>,
}

/// A raw DHCP option: text, or one of three spellings.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum OptionValue {
    /// The bytes of this text.
    Text(String),
    Bytes(OptionBytes),
}

/// A raw DHCP option other than text; one of the keys.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OptionBytes {
    /// Bytes in hexadecimal.
    #[serde(default)]
    pub(super) hex: Given<String>,
    /// One IPv4 address.
    #[serde(default)]
    pub(super) address: Given<String>,
    /// IPv4 addresses in order.
    #[serde(default)]
    pub(super) addresses: Given<Vec<Given<String>>>,
}

/// The boot HTTP server, on the networks' links.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    /// TCP port; 8080 unless given.
    #[serde(default)]
    pub(super) port: Given<u16>,
    /// TCP port for TLS; 8443 unless given.
    #[serde(default)]
    pub(super) tls_port: Given<u16>,
    /// TCP port for the events of Talos machines; 8444 unless given.
    #[serde(default)]
    pub(super) events_port: Given<u16>,
}

/// The TFTP server, on the networks' links.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tftp {
    /// Which transfer engine; `builtin` unless given.
    #[serde(default)]
    pub(super) engine: Given<TftpEngine>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TftpEngine {
    /// This project's own.
    Builtin,
    /// The `async-tftp` crate's.
    AsyncTftp,
}

/// Names.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dns {
    /// Who answers; `serve` unless given.
    #[serde(default)]
    pub(super) mode: Given<DnsMode>,
    /// The servers that are asked for all other names, each an address, perhaps with a port; none unless given.
    #[serde(default)]
    pub(super) forward: Given<Vec<Given<String>>>,
    /// How long an answer of ours may be kept: `30s`, `5m`; 60s unless given.
    #[serde(default)]
    pub(super) ttl: Given<String>,
    /// Links on which everybody may ask for the names that clusters show outside.
    #[serde(default)]
    pub(super) public: Given<Vec<Given<String>>>,
    /// More names and their addresses, for machines.
    #[serde(default)]
    pub(super) records: Given<Table<Vec<Given<String>>>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DnsMode {
    /// This bastion, on the networks' links.
    Serve,
    /// Other servers: `reveille dns records` lists what they must say, and preflight asks them.
    External,
    /// Nobody here, and nobody is asked.
    Off,
}

/// Time.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Ntp {
    /// Answer NTP on the networks' links, and say so in DHCP where a network names no server; false unless given.
    #[serde(default)]
    pub(super) serve: Given<bool>,
}

/// The balancer of the clusters' ports.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Balancer {
    /// Who takes the connections; `embedded` unless given.
    #[serde(default)]
    pub(super) engine: Given<BalancerEngine>,
    /// Links on which the public ports are taken too, besides those of the clusters' networks; none unless given.
    #[serde(default)]
    pub(super) public: Given<Vec<Given<String>>>,
    /// Ports of the ingress, 80 and 443, whose routers are told the client's address before its bytes (PROXY protocol, version 2),
    /// which they must expect; none unless given.
    #[serde(default)]
    pub(super) proxy_protocol: Given<Vec<Given<u16>>>,
    /// With `engine: external`: where the other balancer takes machines' connections. `api`, `api-int` and `*.apps` of
    /// the clusters lead there.
    #[serde(default)]
    pub(super) addresses: Given<Vec<Given<String>>>,
    /// With `engine: external`: where it takes those of users, under `api` and `*.apps` as the outside sees them; none
    /// unless given.
    #[serde(default)]
    pub(super) public_addresses: Given<Vec<Given<String>>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum BalancerEngine {
    /// The daemon itself.
    Embedded,
    /// A HAProxy that the daemon configures, in the unit `reveille-haproxy`.
    Haproxy,
    /// Another one, elsewhere: what must be true of it is listed, and looked at all the time.
    External,
    /// Nobody here.
    Off,
}

/// Who may use the control socket besides root.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    /// The group that may do everything; `reveille` unless given.
    #[serde(default)]
    pub(super) group: Given<String>,
    /// The group that may look; nobody unless given.
    #[serde(default)]
    pub(super) read_group: Given<String>,
    /// A loopback address and port for the same API with a bearer token, the status page and the metrics, such as
    /// `127.0.0.1:8067`; off unless given.
    #[serde(default)]
    pub(super) listen: Given<String>,
}

/// `machines.yaml`, and each `machines.d/*.yaml`: the inventory.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Reveille machines.yaml")]
pub(super) struct Machines {
    /// The machines, in any order.
    pub(super) machines: Given<Vec<Given<Box<Machine>>>>,
}

/// One machine. Its link is said either by `mac` or `macs`, `address` and `network`, or, when it has several, by
/// `links`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    /// Its name: lowercase letters, digits and hyphens.
    pub(super) name: Given<String>,
    /// The MAC address of its link, in any common spelling.
    #[serde(default)]
    pub(super) mac: Given<String>,
    /// MAC addresses that all mean its link: a bond, a spare card.
    #[serde(default)]
    pub(super) macs: Given<Vec<Given<String>>>,
    /// Its address.
    #[serde(default)]
    pub(super) address: Given<String>,
    /// The network of the address; unless given, the one whose subnet holds it.
    #[serde(default)]
    pub(super) network: Given<String>,
    /// Several links, each with what its system makes of it; it boots from the first untagged one with an address.
    #[serde(default)]
    pub(super) links: Given<Vec<Given<Link>>>,
    /// What it boots: the name of a file in `profiles`, without the suffix. Left out, the machine waits for a cluster
    /// that wants it.
    #[serde(default)]
    pub(super) profile: Given<String>,
    /// What clusters choose machines by.
    #[serde(default)]
    pub(super) labels: Given<Table<Text>>,
    /// The rack it stands in, for clusters that spread their machines.
    #[serde(default)]
    pub(super) rack: Given<String>,
    /// SMBIOS system UUID; a machine that shows another is not installed.
    #[serde(default)]
    pub(super) uuid: Given<String>,
    /// SMBIOS system serial number; a machine that shows another is not installed.
    #[serde(default)]
    pub(super) serial: Given<String>,
    /// Its host name; the name unless given.
    #[serde(default)]
    pub(super) hostname: Given<String>,
    /// Values for the profile's templates, there as `variables.KEY`.
    #[serde(default)]
    pub(super) variables: Given<Table<Text>>,
    /// Network boot programs by DHCP architecture code, before the network's.
    #[serde(default)]
    pub(super) loaders: Given<Table<String>>,
    /// The disk an install may write, before the profile's.
    #[serde(default)]
    pub(super) disk: Given<Disk>,
}

/// Which disk an install may write; one of the keys.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    /// The drive's serial number.
    #[serde(default)]
    pub(super) serial: Given<String>,
    /// The drive's World Wide Name, `0x` and hexadecimal digits.
    #[serde(default)]
    pub(super) wwn: Given<String>,
    /// A path that keeps its meaning across boots: `/dev/disk/by-…`.
    #[serde(default)]
    pub(super) path: Given<String>,
}

/// `profiles/NAME.yaml`: what a class of machine boots.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Reveille profile")]
pub(super) struct Profile {
    /// The kernel, an artefact of the depot.
    pub(super) kernel: Given<Artifact>,
    /// Initial ramdisks in the order the kernel sees them.
    #[serde(default)]
    pub(super) initrds: Given<Vec<Given<Artifact>>>,
    /// More files of the depot, there in the templates as the URL `artifacts.KEY`: what the initramfs or
    /// the system fetches by itself, such as a live root.
    #[serde(default)]
    pub(super) artifacts: Given<Table<Artifact>>,
    /// Kernel arguments, each a template.
    #[serde(default)]
    pub(super) arguments: Given<Vec<Given<String>>>,
    /// The document that a machine fetches; none unless given.
    #[serde(default)]
    pub(super) config: Given<Config>,
    /// Whether booting it writes a disk; `install` unless given.
    #[serde(default)]
    pub(super) purpose: Given<Purpose>,
    /// The disk an install may write, where the machine names none.
    #[serde(default)]
    pub(super) disk: Given<Disk>,
}

/// An artefact of the depot: its name, or its digest.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum Artifact {
    /// A name as `reveille image list` shows it.
    Name(String),
    Digest(ArtifactDigest),
}

/// An artefact by its content.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ArtifactDigest {
    /// SHA-256 of the file.
    pub(super) sha256: Given<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Purpose {
    /// It writes a disk. Once that was acknowledged, the machine is sent to its disk for ever.
    Install,
    /// It runs from memory and is booted each time.
    Live,
}

/// The document of a profile. Its files are templates, named from the profile's directory.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// What reads it.
    pub(super) format: Given<Format>,
    /// The Ignition config (JSON) or the Talos machine config. Left out, and `user_data` too, the platform of the
    /// machine's cluster writes the document.
    #[serde(default)]
    pub(super) file: Given<String>,
    /// cloud-init's `user-data`.
    #[serde(default)]
    pub(super) user_data: Given<String>,
    /// cloud-init's `vendor-data`.
    #[serde(default)]
    pub(super) vendor_data: Given<String>,
    /// cloud-init's `network-config`.
    #[serde(default)]
    pub(super) network_config: Given<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Format {
    Ignition,
    CloudInit,
    Talos,
    None,
}

/// Text, which may be written as a number or a truth value.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Text(pub(super) String);

impl JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

impl<'de> Deserialize<'de> for OptionValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let either = Either {
            word: Self::Text,
            other: Self::Bytes,
        };
        deserializer.deserialize_newtype_struct(WORD_OR_OTHER, either)
    }
}

impl<'de> Deserialize<'de> for Artifact {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let either = Either {
            word: Self::Name,
            other: Self::Digest,
        };
        deserializer.deserialize_newtype_struct(WORD_OR_OTHER, either)
    }
}

/// A value that is either one word or something larger: the reader shows a word as text, a map or a list as a newtype.
struct Either<T, M> {
    word: fn(String) -> T,
    other: fn(M) -> T,
}

impl<'de, T, M: Deserialize<'de>> Visitor<'de> for Either<T, M> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word, a map or a list")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok((self.word)(text.to_owned()))
    }

    fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, other: D) -> Result<T, D::Error> {
        M::deserialize(other).map(self.other)
    }
}
