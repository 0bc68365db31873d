//! A snapshot to one member's place in its cluster, in the words of the platforms.

use std::net::Ipv4Addr;

use ignition::platform::{Membership, Peer};
use netboot::cluster::{ClusterSpec, ClusterState, Member, Role};
use netboot::net::Hostname;
use netboot::node::NodeSpec;
use netboot::site::Site;

/// A machine's address on its cluster's network.
pub(crate) fn address(spec: &ClusterSpec, node: &NodeSpec) -> Option<Ipv4Addr> {
    let on_it = node.links.iter().find(|link| link.network == spec.network);
    on_it.map(|link| link.address)
}

/// The members of a role with their machines and addresses, by rank.
pub(crate) fn of_role<'a>(
    site: &'a Site,
    spec: &'a ClusterSpec,
    state: &'a ClusterState,
    role: Role,
) -> impl Iterator<Item = (&'a Member, &'a NodeSpec, Ipv4Addr)> {
    state.of_role(role).filter_map(|member| {
        let node = site.spec().node(&member.node)?;
        Some((member, &**node, address(spec, node)?))
    })
}

/// The control planes of a machine's cluster: what [`membership`] borrows.
pub(crate) fn peers<'a>(site: &'a Site, member: &Member) -> Vec<Peer<'a>> {
    let Some((spec, state)) = site.cluster(&member.cluster) else {
        return Vec::new();
    };
    of_role(site, spec, state, Role::ControlPlane)
        .map(|(_, node, address)| Peer {
            hostname: &node.hostname,
            address,
        })
        .collect()
}

/// One member's place. `server` is the bastion's own address on the link that the machine came by.
pub(crate) fn membership<'a>(
    spec: &'a ClusterSpec,
    state: &ClusterState,
    member: &Member,
    node: &'a NodeSpec,
    server: Ipv4Addr,
    peers: &'a [Peer<'a>],
) -> Option<Membership<'a>> {
    let hostname: &Hostname = &node.hostname;
    Some(Membership {
        cluster: spec.name.as_str(),
        domain: &spec.domain,
        version: &spec.version,
        api_address: server,
        pods: &spec.pods,
        services: &spec.services,
        role: member.role,
        index: usize::from(member.index),
        hostname,
        address: address(spec, node)?,
        founds: state.founds(member),
        control_planes: peers,
        settings: &spec.settings,
    })
}
