//! The shapes of links: the bastion's own in `site.yaml`, and the machines' in `machines.yaml`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Either;
use crate::config::read::{Given, WORD_OR_OTHER};

/// The bastion's own links.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(in crate::config) enum Links {
    /// `unmanaged`: the system's own files make them, and nothing is listed here.
    Word(String),
    /// What there is to make, or to add to links that others make.
    Listed(Vec<Given<Box<HostLink>>>),
}

/// One of the bastion's own links. Without `vlan`, `bridge` and `bond` it is one that others make, and only what is
/// said here is added to it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HostLink {
    /// Its name: 1 to 15 letters.
    pub(in crate::config) name: Given<String>,
    /// It is a VLAN of another link.
    #[serde(default)]
    pub(in crate::config) vlan: Given<Vlan>,
    /// It joins other links as a bridge.
    #[serde(default)]
    pub(in crate::config) bridge: Given<Bridge>,
    /// It joins other links as a bond.
    #[serde(default)]
    pub(in crate::config) bond: Given<Bond>,
    /// Its addresses with the prefix of their network, IPv4 and IPv6: `10.107.0.1/24`.
    #[serde(default)]
    pub(in crate::config) addresses: Given<Vec<Given<String>>>,
    /// Largest packet in bytes, 68 to 65535, with IPv6 at least 1280; left as it is unless given.
    #[serde(default)]
    pub(in crate::config) mtu: Given<u16>,
    /// The gateway on it: what is asked of this link's addresses is answered by this gateway, and nothing else goes there.
    #[serde(default)]
    pub(in crate::config) gateway: Given<String>,
    /// The same for one IPv4 and one IPv6 gateway.
    #[serde(default)]
    pub(in crate::config) gateways: Given<Vec<Given<String>>>,
    /// The gateway's own routing table; unless given 1000 and the VLAN's id, otherwise 2000 and the link's place in the list.
    #[serde(default)]
    pub(in crate::config) table: Given<u32>,
    /// The gateway is also the whole host's; false unless given. A default route is touched only where this is true.
    #[serde(default)]
    pub(in crate::config) default_route: Given<bool>,
    /// Networks behind other gateways on it.
    #[serde(default)]
    pub(in crate::config) routes: Given<Vec<Given<HostRoute>>>,
    /// How strictly the sources of incoming packets are checked; `loose` with a gateway, otherwise left as it is.
    #[serde(default)]
    pub(in crate::config) rp_filter: Given<ReversePath>,
    /// Whether IPv4 packets that come in by it are forwarded; left as it is unless given or masquerade needs it.
    #[serde(default)]
    pub(in crate::config) forwarding: Given<bool>,
}

/// A VLAN (IEEE 802.1Q) of another link.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Vlan {
    /// The link that carries the tagged frames.
    pub(in crate::config) parent: Given<String>,
    /// The tag, 1 to 4094.
    pub(in crate::config) id: Given<u16>,
}

/// A bridge.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Bridge {
    /// The links it joins.
    pub(in crate::config) ports: Given<Vec<Given<String>>>,
    /// Whether it speaks the spanning tree protocol; false unless given.
    #[serde(default)]
    pub(in crate::config) stp: Given<bool>,
}

/// A bond.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Bond {
    /// How frames are spread over its ports.
    pub(in crate::config) mode: Given<BondMode>,
    /// The links it joins, the preferred one first.
    pub(in crate::config) ports: Given<Vec<Given<String>>>,
    /// How often the ports' carriers are looked at, 1ms to 10s; 100ms unless given.
    #[serde(default)]
    pub(in crate::config) monitor: Given<String>,
}

/// The kernel's word for how a bond spreads frames.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
pub(in crate::config) struct BondMode(pub(in crate::config) netboot::link::BondMode);

impl JsonSchema for BondMode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BondMode".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let words = netboot::link::BondMode::ALL.map(netboot::link::BondMode::word);
        schemars::json_schema!({ "type": "string", "enum": words })
    }
}

/// A route of the bastion itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HostRoute {
    /// The destination, such as `10.200.0.0/16`.
    pub(in crate::config) to: Given<String>,
    /// The gateway's address.
    pub(in crate::config) via: Given<String>,
    /// Lower is preferred; the kernel's choice unless given.
    #[serde(default)]
    pub(in crate::config) metric: Given<u32>,
}

/// How strictly the sources of incoming packets are checked.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum ReversePath {
    /// Not at all.
    Off,
    /// The way back must be the link it came by.
    Strict,
    /// There must be a way back, by any link.
    Loose,
}

/// How the bastion's own network is kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Host {
    /// Who makes the links; `managed` unless given.
    #[serde(default)]
    pub(in crate::config) links: Given<LinkPolicy>,
    /// Which networks reach the outside under an address of the bastion.
    #[serde(default)]
    pub(in crate::config) masquerade: Given<Vec<Given<Masquerade>>>,
    /// Whether each service is closed on the links it does not serve; true where links are listed and managed, unless
    /// given.
    #[serde(default)]
    pub(in crate::config) firewall: Given<bool>,
    /// How long an apply waits for `host confirm` before it is undone, 10s to 1h; 60s unless given.
    #[serde(default)]
    pub(in crate::config) confirm: Given<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum LinkPolicy {
    /// The daemon makes and keeps what the site lists.
    Managed,
    /// The system's own files do (`reveille host export` writes them); the daemon only says what differs.
    Unmanaged,
}

/// Machines of one network reach the outside.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Masquerade {
    /// The name of their network.
    pub(in crate::config) network: Given<String>,
    /// The bastion's link that they leave by.
    pub(in crate::config) out: Given<String>,
}

/// One of several links of a machine: a card, or what its system makes of its cards.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Link {
    /// Its name in the machine's system, 1 to 15 letters; `lan0`, `lan1` and so on by its place unless given. Other
    /// links refer to it by this name.
    #[serde(default)]
    pub(in crate::config) name: Given<String>,
    /// A card's MAC address, in any common spelling.
    #[serde(default)]
    pub(in crate::config) mac: Given<String>,
    /// MAC addresses that all mean this card.
    #[serde(default)]
    pub(in crate::config) macs: Given<Vec<Given<String>>>,
    /// It is a VLAN of another of these links, and bears that one's MAC address.
    #[serde(default)]
    pub(in crate::config) vlan: Given<Vlan>,
    /// It joins others of these links, and bears their MAC addresses; those have no address of their own.
    #[serde(default)]
    pub(in crate::config) bond: Given<Bond>,
    /// Largest packet in bytes, 68 to 65535; the network's unless given.
    #[serde(default)]
    pub(in crate::config) mtu: Given<u16>,
    /// Its address; none where it only carries others.
    #[serde(default)]
    pub(in crate::config) address: Given<String>,
    /// The network of the address; unless given, the one whose subnet holds it.
    #[serde(default)]
    pub(in crate::config) network: Given<String>,
    /// The machine's default route leads by it, and by no other; the boot link's unless given.
    #[serde(default)]
    pub(in crate::config) default_route: Given<bool>,
    /// The machine boots from it.
    #[serde(default)]
    pub(in crate::config) boot: Given<bool>,
}

impl<'de> Deserialize<'de> for Links {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let either = Either {
            word: Self::Word,
            other: Self::Listed,
        };
        deserializer.deserialize_newtype_struct(WORD_OR_OTHER, either)
    }
}
