//! Addresses for machines that are not listed. One machine, one lease a network; the choice depends
//! on the MAC and the leases alone, so two bastions with the same store would choose alike.

use std::net::Ipv4Addr;

use crate::net::{MacAddress, Timestamp};
use crate::site::{Lease, Site};
use crate::spec::{Mode, Network};

/// Addresses of a range that are looked at for one offer.
const PROBES_MAX: u64 = 1024;

impl Site {
    /// The address to offer `mac` on `network`: the one it has, the one it asks for, or the first free one
    /// from a start that its MAC decides.
    #[must_use]
    pub fn address_to_lend(
        &self,
        network: &Network,
        mac: MacAddress,
        wanted: Option<Ipv4Addr>,
        now: Timestamp,
    ) -> Option<Ipv4Addr> {
        let range = network.range.filter(|_| network.mode == Mode::Pool)?;
        let free = |address: &Ipv4Addr| self.may_lend(network, mac, *address, now);
        let start = mac.octets().iter().fold(0u64, |sum, octet| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*octet))
        });
        self.lease_of(network, mac)
            .filter(free)
            .or(wanted.filter(free))
            .or_else(|| {
                (0..range.count().min(PROBES_MAX))
                    .map(|i| range.nth(start.wrapping_add(i)))
                    .find(free)
            })
    }

    /// True when `address` may be lent to `mac`: in the range, and nobody else's.
    #[must_use]
    pub fn may_lend(
        &self,
        network: &Network,
        mac: MacAddress,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> bool {
        network.mode == Mode::Pool
            && network.range.is_some_and(|range| range.contains(address))
            && self.spec.node_by_mac(mac).is_none()
            && self
                .leases
                .get(&address)
                .is_none_or(|lease| lease.expires <= now || (lease.mac == mac && !lease.declined))
    }

    /// The address that `mac` was lent on `network`, expired or not.
    #[must_use]
    pub fn lease_of(&self, network: &Network, mac: MacAddress) -> Option<Ipv4Addr> {
        let range = network.range?;
        let mut here = self.lent.range((mac, range.first())..=(mac, range.last()));
        let held = |address: &Ipv4Addr| {
            self.leases
                .get(address)
                .is_some_and(|lease| !lease.declined)
        };
        here.find(|(_, address)| held(address))
            .map(|(_, address)| *address)
    }

    /// Puts a lease in the place of whatever was on its address.
    pub(crate) fn keep_lease(&mut self, address: Ipv4Addr, lease: Lease) {
        self.drop_lease(address);
        self.lent.insert((lease.mac, address));
        self.leases.insert(address, lease);
    }

    /// Forgets the lease on an address.
    pub(crate) fn drop_lease(&mut self, address: Ipv4Addr) {
        if let Some(former) = self.leases.remove(&address) {
            self.lent.remove(&(former.mac, address));
        }
    }
}
