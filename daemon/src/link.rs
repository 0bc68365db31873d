//! Which links this machine has, with which addresses, told by the kernel as it changes.
//!
//! One task listens to the kernel's link and address events and publishes the whole table; the
//! servers of DHCP, TFTP, HTTP and router advertisements open, move and close their sockets by it.
//!
//! ```text
//!   kernel --event--> read everything again --changed?--> watch channel --> servers
//! ```
//!
//! Ugly facts. An event says what changed, but events are lost when the kernel's queue overflows,
//! and a VLAN that is deleted and made again has the same name and another index. So an event is
//! only a reason to look: the table is read whole, and compared. A slow clock looks too.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_lite::StreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Events come in bursts (a link brings its addresses); one look after this pause sees them all.
const SETTLE: Duration = Duration::from_millis(20);
/// A look without an event, for the events that were lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);

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
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, handle, events) =
        new_multicast_connection(&groups).context("opening the kernel's route socket")?;
    tokio::spawn(connection);
    let links = read(&handle).await?;
    let (publish, receiver) = watch::channel(Arc::new(links));
    tokio::spawn(follow(handle, events, publish));
    Ok(receiver)
}

async fn follow(
    handle: Handle,
    mut events: impl StreamExt<Item = (NetlinkMessage<RouteNetlinkMessage>, impl Sized)> + Unpin,
    publish: watch::Sender<Arc<Links>>,
) {
    loop {
        tokio::select! {
            () = publish.closed() => return,
            event = events.next() => {
                if event.is_none() {
                    warn!("the kernel closed the route socket, so links are no longer followed: restart the service");
                    return;
                }
                settle(&mut events).await;
            }
            () = tokio::time::sleep(LOOK_ANYWAY) => {}
        }
        match read(&handle).await {
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

async fn settle(events: &mut (impl StreamExt + Unpin)) {
    let deadline = tokio::time::sleep(SETTLE);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            () = &mut deadline => return,
            event = events.next() => if event.is_none() { return },
        }
    }
}

async fn read(handle: &Handle) -> anyhow::Result<Links> {
    let mut by_index = BTreeMap::new();
    let mut links = std::pin::pin!(handle.link().get().execute());
    while let Some(message) = links.next().await {
        let message = message.context("reading the kernel's links")?;
        let flags = message.header.flags;
        let mut link = Link {
            name: String::new(),
            index: message.header.index,
            mac: [0; 6],
            up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            mtu: 1500,
            addresses: Vec::new(),
            link_local: None,
        };
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name = name;
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = mtu;
            } else if let LinkAttribute::Address(mac) = attribute {
                link.mac = mac.try_into().unwrap_or_default();
            }
        }
        by_index.insert(link.index, link);
    }
    let mut addresses = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = addresses.next().await {
        let message = message.context("reading the kernel's addresses")?;
        let Some(link) = by_index.get_mut(&message.header.index) else {
            continue;
        };
        let (mut local, mut peer) = (None, None);
        for attribute in message.attributes {
            if let AddressAttribute::Local(address) = attribute {
                local = Some(address);
            } else if let AddressAttribute::Address(address) = attribute {
                peer = Some(address);
            }
        }
        // On a point-to-point link the local address is ours and the other one is the peer's.
        match local.or(peer) {
            Some(IpAddr::V4(address)) => {
                link.addresses
                    .extend(Ipv4Net::new(address, message.header.prefix_len));
            }
            Some(IpAddr::V6(address)) if address.is_unicast_link_local() => {
                link.link_local.get_or_insert(address);
            }
            Some(IpAddr::V6(_)) | None => {}
        }
    }
    Ok(by_index
        .into_values()
        .map(|link| (link.name.clone(), link))
        .collect())
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
