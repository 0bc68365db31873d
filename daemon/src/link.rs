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
    /// Our address in a subnet of this link, which is the one its machines can reach.
    #[must_use]
    pub fn address_in(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        let ours = self.addresses.iter().map(Ipv4Net::addr);
        ours.into_iter().find(|address| subnet.contains(address))
    }
}

/// Every link by name.
pub type Links = BTreeMap<String, Link>;

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
