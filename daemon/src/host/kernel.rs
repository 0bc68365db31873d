//! The kernel's side of the bastion's network: everything a [`HostState`] holds, read as it is, and the
//! one place where it is changed.
//!
//! Ugly facts. IPv4 forwarding and `rp_filter` travel in link messages (`IFLA_AF_SPEC`), because the unit may not
//! write `/proc/sys`. A link takes no alias at the moment it is made, so it is made in the device group
//! [`MARK_GROUP`], which is our mark until the alias follows.

use netboot::host::{HostState, Operation, PROTOCOL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;

use crate::host::netlink::{self, Changes, NetlinkError};
use crate::host::read::{self, Reading};
use crate::host::{nft, operate};

/// The device group (`IFLA_GROUP`) of a link of ours between its making and its alias.
pub(crate) const MARK_GROUP: u32 = PROTOCOL as u32;

/// Something that was not done, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Failed {
    /// What was tried and why it failed.
    pub cause: String,
    /// What to do next.
    pub remedy: String,
}

/// The kernel, in the network namespace of this process.
#[derive(Debug)]
pub struct Kernel(());

impl Kernel {
    /// Makes sure that the kernel can be asked.
    ///
    /// # Errors
    /// As those of [`Self::read`].
    pub async fn open() -> Result<Self, Failed> {
        let kernel = Self(());
        kernel.read().await.map(|_| kernel)
    }

    /// Everything as it is now.
    ///
    /// # Errors
    /// The kernel or the `nft` program can't be asked.
    pub async fn read(&self) -> Result<HostState, Failed> {
        let mut host = read_all().await.map_err(|error| Failed {
            cause: format!("reading the host's links, addresses, routes and rules: {error}"),
            remedy: "try again; when it stays, look into the kernel's log (dmesg)".into(),
        })?;
        host.ruleset = nft::read().await?;
        Ok(host)
    }

    /// Does one thing, whole or not at all. What is so already (a link gone, a rule there) is a success.
    ///
    /// # Errors
    /// With the kernel's reason, and what to do about it.
    pub async fn carry_out(&self, operation: &Operation) -> Result<(), Failed> {
        operate::carry_out(operation).await
    }

    /// Word of every later change of what [`Self::read`] reads.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::of_host()
    }
}

async fn read_all() -> Result<HostState, NetlinkError> {
    let mut reading = read_links().await?;
    let routes = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let rules = RouteNetlinkMessage::GetRule(RuleMessage::default());
    reading.routes(&netlink::dump(routes).await?);
    let rules = netlink::dump(rules).await?;
    let defaults = netlink::ask(read::ask_defaults()).await?;
    Ok(reading.host(&rules, &defaults))
}

/// The links and their addresses.
pub(crate) async fn read_links() -> Result<Reading, NetlinkError> {
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut reading = Reading::of_links(&netlink::dump(links).await?);
    reading.addresses(&netlink::dump(addresses).await?);
    Ok(reading)
}
