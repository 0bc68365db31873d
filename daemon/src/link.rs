//! Which links this machine has, with which addresses, told by the kernel as it changes.
//!
//! One task listens to the kernel's link and address events and publishes the whole table; the
//! servers of DHCP, TFTP, HTTP and router advertisements open, move and close their sockets by it.
//!
//! ```text
//!   kernel --event--> read everything again --changed?--> watch channel --> servers
//! ```
//!
//! Ugly facts. A VLAN that is deleted and made again has the same name and another index. Events are lost, so one is
//! only a reason to look: the table is read whole, and compared.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Context;
use ipnet::Ipv4Net;
use netboot::net::{LinkName, Subnet};
use netboot::spec::{Mode, SiteSpec};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::host::{Changes, kernel};

/// One network interface as the kernel has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    /// The kernel's number; it changes when a link is deleted and made again.
    pub index: u32,
    pub mac: [u8; 6],
    /// Administratively up and with a carrier.
    pub up: bool,
    pub mtu: u32,
    /// In the kernel's order: the first of a subnet is its primary address.
    pub addresses: Vec<Ipv4Net>,
    pub link_local: Option<Ipv6Addr>,
}

impl Link {
    /// The address by which whoever has no subnet in common with this link meets it.
    #[must_use]
    pub fn first_address(&self) -> Option<Ipv4Addr> {
        self.addresses.first().map(Ipv4Net::addr)
    }
}

/// Every link by name.
pub type Links = BTreeMap<String, Link>;

/// A link of the site's networks, and our address that the machines of all of them meet, those behind relays too: the one
/// in the network that is on the link itself, or the link's first where every network is behind a relay. DHCP names this
/// one, so everything else must be there.
///
/// # Errors
/// There is no such link, or no such address, in words for `status`.
pub(crate) fn met_at<'a>(
    spec: &SiteSpec,
    links: &'a Links,
    name: &LinkName,
) -> Result<(&'a Link, Ipv4Addr), String> {
    let link = links
        .get(name.as_str())
        .ok_or_else(|| format!("there is no link {name}; it is served as soon as it appears"))?;
    let address = match spec.network_on(name, None) {
        Some(network) => {
            let mut ours = link.addresses.iter().map(Ipv4Net::addr);
            ours.find(|address| network.subnet.contains(*address))
                .ok_or_else(|| format!("in {}", network.subnet))
        }
        None => link.first_address().ok_or_else(|| "at all".to_owned()),
    };
    match address {
        Ok(address) => Ok((link, address)),
        Err(which) => Err(format!("link {name} has no address {which}; give it one")),
    }
}

/// One link's address that its machines meet, and who they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Front {
    pub(crate) link: LinkName,
    /// A link that was deleted and made again keeps its name, but what it brings bears another number.
    pub(crate) index: u32,
    /// See [`met_at`].
    pub(crate) address: Ipv4Addr,
    /// Every network of the link that is answered, behind its relays too.
    pub(crate) clients: Vec<Subnet>,
}

/// Where machines are answered now, a link each; one that isn't there, or has no address, is DHCP's fault to tell.
pub(crate) fn fronts(spec: &SiteSpec, links: &Links) -> Vec<Front> {
    let mut clients = BTreeMap::<&LinkName, Vec<Subnet>>::new();
    for network in spec.networks().filter(|n| n.mode != Mode::Off) {
        let of_link = clients.entry(&network.link).or_default();
        of_link.push(network.subnet);
    }
    let fronts = clients.into_iter().filter_map(|(name, clients)| {
        let (link, address) = met_at(spec, links, name).ok()?;
        Some(Front {
            link: name.clone(),
            index: link.index,
            address,
            clients,
        })
    });
    fronts.collect()
}

/// Starts watching; the receiver holds the table read before this returns.
///
/// # Errors
/// The kernel's route socket could not be opened or read.
pub async fn start() -> anyhow::Result<watch::Receiver<Arc<Links>>> {
    let changes = Changes::of_links();
    let (publish, receiver) = watch::channel(Arc::new(read().await?));
    tokio::spawn(follow(changes, publish));
    Ok(receiver)
}

async fn follow(mut changes: Changes, publish: watch::Sender<Arc<Links>>) {
    loop {
        tokio::select! {
            () = publish.closed() => return,
            () = changes.next() => {}
        }
        match read().await {
            Ok(links) => {
                publish.send_if_modified(|published| {
                    if **published == links {
                        return false;
                    }
                    log_difference(published, &links);
                    *published = Arc::new(links);
                    true
                });
            }
            Err(error) => warn!("{error:#}, so the last known links stay in use"),
        }
    }
}

async fn read() -> anyhow::Result<Links> {
    let reading = kernel::read_links().await;
    Ok(reading.context("reading the kernel's links")?.links())
}

fn log_difference(before: &Links, after: &Links) {
    for (name, link) in after {
        match before.get(name) {
            None => info!(link = %name, up = link.up, "link appeared"),
            Some(old) if old.index != link.index => info!(link = %name, "link was made anew"),
            Some(old) if old.up != link.up => {
                info!(link = %name, up = link.up, "link changed state")
            }
            Some(old) if old.addresses != link.addresses => {
                info!(link = %name, addresses = ?link.addresses, "link changed its addresses");
            }
            Some(_) => debug!(link = %name, "link is as before, or changed in a detail"),
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        info!(link = %name, "link vanished");
    }
}

#[cfg(test)]
mod tests {
    use netboot::spec::{Network, SiteParts};

    use super::*;

    #[test]
    fn machines_of_all_networks_of_a_link_meet_one_address_of_ours() {
        let network = |name: &str, link: &str, subnet: &str, relayed| {
            let (name, link) = (name.parse().unwrap(), link.parse().unwrap());
            Network {
                relayed,
                ..Network::plain(name, link, subnet.parse().unwrap())
            }
        };
        let link = |name: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap());
            let link = Link {
                name: name.to_owned(),
                index: 1,
                mac: [2; 6],
                up: true,
                mtu: 1500,
                addresses: addresses.collect(),
                link_local: None,
            };
            (name.to_owned(), link)
        };
        let networks = vec![
            network("near", "both", "10.107.0.0/24", false),
            network("behind", "both", "10.108.0.0/24", true),
            network("far", "far", "10.109.0.0/24", true),
            Network {
                mode: Mode::Off,
                ..network("off", "far", "10.110.0.0/24", true)
            },
            network("bare", "bare", "10.111.0.0/24", false),
            network("none", "none", "10.112.0.0/24", true),
            network("gone", "gone", "10.113.0.0/24", true),
        ];
        let spec = SiteSpec::new(SiteParts {
            networks,
            ..SiteParts::default()
        });
        let spec = spec.expect("the networks go together");
        let links = Links::from([
            link("both", &["192.0.2.1/24", "10.107.0.1/24"]),
            link("far", &["192.0.2.2/24", "192.0.2.3/24"]),
            link("bare", &["192.0.2.4/24"]),
            link("none", &[]),
        ]);
        let met = |name: &str| {
            let met = met_at(&spec, &links, &name.parse().unwrap());
            met.map(|(_, address)| address.to_string())
        };
        assert_eq!(met("both").as_deref(), Ok("10.107.0.1"));
        assert_eq!(met("far").as_deref(), Ok("192.0.2.2"));
        assert!(met("bare").unwrap_err().contains("10.111.0.0/24"));
        assert!(met("none").unwrap_err().contains("no address at all"));
        assert!(met("gone").unwrap_err().contains("there is no link gone"));
        let fronts = fronts(&spec, &links).into_iter();
        let fronts = fronts.map(|front| (front.link.to_string(), front.clients.len()));
        let answered = [("both".to_owned(), 2), ("far".to_owned(), 1)];
        assert_eq!(fronts.collect::<Vec<_>>(), answered);
    }
}
