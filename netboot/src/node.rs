//! A machine: what the inventory wants of it, and what was seen of it. The two are never merged.

mod network;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::delivery::Deliveries;
use crate::link::Link;
use crate::loader::LoaderTable;
use crate::net::{
    Digest, Hostname, LinkName, MacAddress, NetworkName, NodeName, ProfileName, Timestamp,
};

pub use network::{NodeNetwork, card_name};

/// What the inventory says of one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSpec {
    /// Unique in the site.
    pub name: NodeName,
    /// Where it has an address, the boot link first; never empty.
    pub links: Vec<NodeLink>,
    /// The links that its system makes of its cards, as far as the inventory lists them: kinds, names and sizes, while
    /// addresses and routes follow from `links`. Empty for one plain card, whose system is left to DHCP.
    pub system: Vec<Link>,
    /// SMBIOS system UUID, compared with what the firmware shows.
    pub uuid: Option<Uuid>,
    /// SMBIOS system serial number, compared with what iPXE shows.
    pub serial: Option<String>,
    /// DHCP option 12 and the documents' host name; the node's name when the file gives none.
    pub hostname: Hostname,
    /// What it boots; `None` leaves it to whichever cluster places it.
    pub profile: Option<ProfileName>,
    /// What clusters choose machines by.
    pub labels: BTreeMap<String, String>,
    /// Where it stands, for clusters that spread over racks.
    pub rack: Option<String>,
    /// Values for the profile's templates.
    pub variables: BTreeMap<String, String>,
    /// Loaders by architecture code, before the network's.
    pub loaders: LoaderTable,
    /// The disk an install may write; before the profile's rule.
    pub disk: Option<DiskRule>,
}

/// False for UUIDs that boards are known to ship in numbers.
#[must_use]
pub fn uuid_is_sound(uuid: Uuid) -> bool {
    /// The samples of two BIOS vendors, which many boards still carry.
    const SHARED: [u128; 3] = [
        0x0300_0200_0400_0500_0006_0007_0008_0009,
        0x0002_0003_0004_0005_0006_0007_0008_0009,
        0xfefe_fefe_fefe_fefe_fefe_fefe_fefe_fefe,
    ];
    !uuid.is_nil() && !uuid.is_max() && !SHARED.contains(&uuid.as_u128())
}

/// One attachment of a machine to a network: any of these MACs gets this address there, and on other networks
/// what other attachments say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLink {
    /// What its frames bear; never empty. A VLAN's are its parent's and a bond's its ports'; several also when a spare card
    /// or a replaced one bears the same address.
    pub macs: Vec<MacAddress>,
    /// The network the address belongs to.
    pub network: NetworkName,
    /// The reserved address.
    pub address: Ipv4Addr,
    /// The link of [`NodeSpec::system`] that bears it.
    pub name: Option<LinkName>,
    /// The inventory names it as the machine's way out; of one link at most. See [`crate::spec::SiteSpec::way_out`].
    pub default_route: bool,
}

impl NodeSpec {
    /// The link the machine boots from.
    #[must_use]
    pub fn boot_link(&self) -> &NodeLink {
        self.links
            .first()
            .expect("a node without links is refused when the site is built")
    }

    /// The first link that bears `mac`, on whatever network.
    #[must_use]
    pub fn link_of(&self, mac: MacAddress) -> Option<&NodeLink> {
        self.links.iter().find(|link| link.macs.contains(&mac))
    }

    /// The link that bears `mac` on a network: one card may have an address untagged and others on its VLANs.
    #[must_use]
    pub fn link_on(&self, mac: MacAddress, network: &NetworkName) -> Option<&NodeLink> {
        let on_it = |link: &&NodeLink| link.network == *network && link.macs.contains(&mac);
        self.links.iter().find(on_it)
    }

    /// The link that bears `address`.
    #[must_use]
    pub fn link_at(&self, address: Ipv4Addr) -> Option<&NodeLink> {
        self.links.iter().find(|link| link.address == address)
    }

    /// Every MAC of the machine, once for each link whose frames bear it.
    pub fn macs(&self) -> impl Iterator<Item = MacAddress> + '_ {
        self.links.iter().flat_map(|link| link.macs.iter().copied())
    }
}

/// Which disk an install may write. Given to the installer as a template value; a rule by serial is
/// also what `node reinstall --disk` must repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskRule {
    /// The drive's serial number.
    Serial(String),
    /// The World Wide Name, `0x` and hexadecimal digits.
    Wwn(String),
    /// A path that keeps its meaning across boots: `/dev/disk/by-…`.
    Path(String),
}

impl DiskRule {
    /// The path that udev gives the disk: by-id for a WWN; a serial has none of its own.
    #[must_use]
    pub fn device(&self) -> Option<String> {
        match self {
            Self::Serial(_) => None,
            Self::Wwn(wwn) => Some(format!("/dev/disk/by-id/wwn-{wwn}")),
            Self::Path(path) => Some(path.clone()),
        }
    }

    /// The text of the rule, whatever its kind.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Serial(text) | Self::Wwn(text) | Self::Path(text) => text,
        }
    }
}

/// Everything durable that was seen of one machine. Made by events only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// Whether it may be installed at all.
    pub admission: Admission,
    /// An operator set it aside: installs wait; an installed disk still boots.
    pub cordoned: bool,
    /// Where its present story stands.
    pub state: BootState,
    /// Counts installs wanted: 0 for the first, one more for each permit used.
    pub generation: u32,
    /// When a config first left in this generation: from then on its system may be up, whichever attempt is the latest.
    pub configured: Option<Timestamp>,
    /// The latch: an install that was acknowledged. Only a used permit clears it.
    pub installed: Option<Install>,
    /// Consent to lose the disk, given and not yet used.
    pub permit: Option<WipePermit>,
    /// The disk serial consented to for this generation.
    pub consented_disk: Option<String>,
    /// Boot scripts served since the last success or the last person's word.
    pub failed_attempts: u8,
    /// The latest boot script served.
    pub attempt: Option<Attempt>,
    /// Attempts ever, so that an attempt's number is never used twice.
    pub attempts_ever: u32,
}

/// Whether a machine may be installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// The inventory lists it and the site's policy takes that for a yes.
    #[default]
    Listed,
    /// A person said yes.
    Approved,
    /// A person said no.
    Rejected,
}

/// The life of one boot story. No order is derived: see [`BootState::reached`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootState {
    /// Known, nothing served yet in this generation.
    #[default]
    Registered,
    /// A boot script left.
    Booting,
    /// Its config left.
    Installing,
    /// The install, or the live boot, was acknowledged.
    Provisioned,
    /// It said it joined its cluster.
    Joined,
    /// It said it is ready for work.
    Ready,
    /// It said it failed, or used up its attempts.
    Failed,
}

impl BootState {
    /// True when this state lies at or past `wanted` on the way to `Ready`. `Failed` reaches nothing.
    #[must_use]
    pub fn reached(self, wanted: Self) -> bool {
        self.step()
            .zip(wanted.step())
            .is_some_and(|(here, there)| here >= there)
    }

    fn step(self) -> Option<u8> {
        match self {
            Self::Registered => Some(0),
            Self::Booting => Some(1),
            Self::Installing => Some(2),
            Self::Provisioned => Some(3),
            Self::Joined => Some(4),
            Self::Ready => Some(5),
            Self::Failed => None,
        }
    }

    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Booting => "booting",
            Self::Installing => "installing",
            Self::Provisioned => "provisioned",
            Self::Joined => "joined",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

/// An acknowledged install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The generation it fulfilled.
    pub generation: u32,
    /// The attempt that did it.
    pub attempt: u32,
    /// When the report was taken.
    pub at: Timestamp,
}

/// A person's consent to wipe one machine, naming the disk that will be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WipePermit {
    /// Serial number of the disk that may be lost.
    pub disk: String,
    /// When it was given.
    pub given: Timestamp,
    /// Worth nothing from here on.
    pub expires: Timestamp,
    /// Who gave it, as the control socket knew them.
    pub by: String,
}

impl WipePermit {
    /// True while it may still be used.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.given <= now && now < self.expires
    }
}

/// One boot script served, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Counts from 1 over the node's whole life here.
    pub number: u32,
    /// SHA-256 of the token in its URLs; the token itself is kept nowhere.
    pub token: Digest,
    /// The MAC that fetched the script.
    pub mac: MacAddress,
    /// The profile it was served.
    pub profile: ProfileName,
    /// When the script left.
    pub started: Timestamp,
    /// When its config was first released.
    pub released: Option<Timestamp>,
    /// How its config with secrets left, where it has one.
    pub deliveries: Deliveries,
    /// The last thing the machine itself reported.
    pub report: Option<Report>,
}

/// What a machine says of itself, in the order of a story that goes well; `Failed` ends one that doesn't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The disk is written and will boot by itself.
    Installed,
    /// The system is up.
    Booted,
    /// It joined its cluster.
    Joined,
    /// It is ready for work.
    Ready,
    /// It gave up, and why, in its own words (at most 256 characters).
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_node_has_reached_nothing_not_even_failure() {
        let all = [
            BootState::Registered,
            BootState::Booting,
            BootState::Installing,
            BootState::Provisioned,
            BootState::Joined,
            BootState::Ready,
            BootState::Failed,
        ];
        for wanted in all {
            assert!(!BootState::Failed.reached(wanted), "{wanted:?}");
            assert_eq!(
                BootState::Ready.reached(wanted),
                wanted != BootState::Failed,
                "{wanted:?}"
            );
        }
    }
}
