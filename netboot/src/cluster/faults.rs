//! What contradicts itself in a definition, or stands against the site and other clusters. Every fault at once.

use std::collections::BTreeMap;

use super::{ClusterSpec, NodeGroup, Role, ServiceFault, ServiceName, start_order};
use crate::faults::fault;
use crate::net::{NodeName, Subnet, nearest};
use crate::spec::{ConfigSource, Item, SiteParts, SpecFault};

/// The contradictions of every definition.
pub(crate) fn cluster_faults(parts: &SiteParts, found: &mut Vec<SpecFault>) {
    for (index, cluster) in parts.clusters.iter().enumerate() {
        let earlier = &parts.clusters[..index];
        if let Some(first) = earlier.iter().position(|other| other.name == cluster.name) {
            let again = fault(
                Item::Cluster(index),
                "name",
                &cluster.name,
                "names two clusters".to_owned(),
                "give each cluster a name of its own",
            );
            found.push(SpecFault {
                earlier: Some(Item::Cluster(first)),
                ..again
            });
        }
        own_faults(index, cluster, found);
        subnet_faults(index, cluster, parts, found);
        for (place, group) in cluster.groups.iter().enumerate() {
            group_faults(Item::Group(index, place), cluster, group, parts, found);
        }
    }
    claimed_twice(parts, found);
}

fn own_faults(index: usize, cluster: &ClusterSpec, found: &mut Vec<SpecFault>) {
    if cluster.count(Role::ControlPlane) == 0 {
        let problem = "has no control plane".to_owned();
        found.push(fault(
            Item::Cluster(index),
            "nodeGroups",
            &cluster.name,
            problem,
            "add a group with `role: CONTROL_PLANE` and a count of 1, 3 or 5",
        ));
    }
    for (place, group) in cluster.groups.iter().enumerate() {
        if cluster.groups[..place]
            .iter()
            .any(|other| other.name == group.name)
        {
            found.push(fault(
                Item::Group(index, place),
                "name",
                &group.name,
                "names two groups".to_owned(),
                "give each group a name of its own",
            ));
        }
    }
    let place_of = |name: &ServiceName| {
        cluster
            .needs
            .iter()
            .position(|service| service.name == *name)
    };
    for (place, service) in cluster.needs.iter().enumerate() {
        if cluster.needs[..place]
            .iter()
            .any(|other| other.name == service.name)
        {
            found.push(fault(
                Item::Service(index, place),
                "name",
                &service.name,
                "names two services".to_owned(),
                "give each service a name of its own",
            ));
        }
    }
    for wrong in start_order(&cluster.needs).err().into_iter().flatten() {
        let (name, value, problem, remedy) = match wrong {
            ServiceFault::Unknown { service, wanted } => (
                Some(service),
                wanted.to_string(),
                "is no service of this cluster".to_owned(),
                "name a service of the list, or take it out",
            ),
            ServiceFault::Cycle(ring) => (
                ring.first().cloned(),
                ring.iter()
                    .map(ServiceName::as_str)
                    .collect::<Vec<_>>()
                    .join(" -> "),
                "wait for each other in a ring".to_owned(),
                "take one `dependsOn` out",
            ),
            ServiceFault::Order { service, after } => (
                Some(service),
                after.to_string(),
                "starts later by its `startupOrder`".to_owned(),
                "give it a lower `startupOrder`, or take it out of `dependsOn`",
            ),
        };
        let place = name.and_then(|name| place_of(&name));
        let item = place.map_or(Item::Cluster(index), |place| Item::Service(index, place));
        found.push(fault(item, "dependsOn", &value, problem, remedy));
    }
}

fn group_faults(
    item: Item,
    cluster: &ClusterSpec,
    group: &NodeGroup,
    parts: &SiteParts,
    found: &mut Vec<SpecFault>,
) {
    if group.role == Role::Bastion {
        return;
    }
    if !cluster.course.admits(group.role) {
        let problem = format!("is no role of {}", cluster.platform);
        found.push(fault(
            item,
            "role",
            &group.role.word().replace('-', "_").to_uppercase(),
            problem,
            "take the group out",
        ));
    }
    match parts
        .profiles
        .iter()
        .find(|profile| profile.name == group.profile)
    {
        None => {
            let names = parts.profiles.iter().map(|profile| profile.name.as_str());
            let remedy = match nearest(group.profile.as_str(), names) {
                Some(near) => format!("write {near}, or add profiles/{}.yaml", group.profile),
                None => format!("add profiles/{}.yaml", group.profile),
            };
            found.push(fault(
                item,
                "configTemplate",
                &group.profile,
                "is no profile of the site".to_owned(),
                remedy,
            ));
        }
        Some(profile) if !matches!(profile.config, ConfigSource::Platform(_)) => {
            let problem =
                "has a config of its own, and a cluster's machines read what the platform writes"
                    .to_owned();
            found.push(fault(
                item,
                "configTemplate",
                &group.profile,
                problem,
                "leave `file` and `user_data` out of the profile's `config`",
            ));
        }
        Some(_) => {}
    }
    if let Some(next) = &group.becomes {
        let sound = cluster.group(next).is_some_and(|other| {
            other.name != group.name && other.count >= group.count && other.becomes.is_none()
        });
        if !sound || !group.temporary {
            found.push(fault(
                item,
                "becomes",
                next,
                "is no other group with room for these machines".to_owned(),
                "name a group of at least that `count`, and say `temporary: true` here",
            ));
        }
    }
    for (field, names) in [
        ("preferredNodes", &group.placement.preferred),
        ("targetNodes", &group.placement.targets),
    ] {
        for name in names {
            match parts.nodes.iter().find(|node| node.name == *name) {
                None => {
                    let known = parts.nodes.iter().map(|node| node.name.as_str());
                    let near = nearest(name.as_str(), known);
                    let remedy = near.map_or("list it in machines.yaml".to_owned(), |near| {
                        format!("write {near}, or list it in machines.yaml")
                    });
                    found.push(fault(
                        item,
                        field,
                        name,
                        "is no machine of the site".to_owned(),
                        remedy,
                    ));
                }
                Some(node) if node.profile.is_some() => {
                    let problem =
                        "boots a profile of its own, so no cluster may have it".to_owned();
                    found.push(fault(
                        item,
                        field,
                        name,
                        problem,
                        "take `profile` out of its entry in machines.yaml",
                    ));
                }
                Some(_) => {}
            }
        }
    }
}

fn subnet_faults(
    index: usize,
    cluster: &ClusterSpec,
    parts: &SiteParts,
    found: &mut Vec<SpecFault>,
) {
    let item = Item::Cluster(index);
    if !parts
        .networks
        .iter()
        .any(|network| network.name == cluster.network)
    {
        let names = parts.networks.iter().map(|network| network.name.as_str());
        let remedy = nearest(cluster.network.as_str(), names)
            .map_or("name a network of site.yaml".to_owned(), |near| {
                format!("write {near}")
            });
        found.push(fault(
            item,
            "network",
            &cluster.network,
            "is no network of the site".to_owned(),
            remedy,
        ));
    }
    let own = |cluster: &ClusterSpec| -> Vec<(&'static str, Subnet)> {
        let pods = cluster.pods.iter().map(|subnet| ("podCIDR", *subnet));
        pods.chain(
            cluster
                .services
                .iter()
                .map(|subnet| ("serviceCIDR", *subnet)),
        )
        .collect()
    };
    let mut others: Vec<(String, Subnet)> = parts
        .networks
        .iter()
        .map(|network| (format!("network {}", network.name), network.subnet))
        .collect();
    for other in &parts.clusters[..index] {
        others.extend(
            own(other)
                .into_iter()
                .map(|(kind, subnet)| (format!("the {kind} of cluster {}", other.name), subnet)),
        );
    }
    for (field, subnet) in own(cluster) {
        for (whose, taken) in others.iter().filter(|(_, taken)| taken.overlaps(subnet)) {
            found.push(fault(
                item,
                field,
                &subnet,
                format!("overlaps {taken}, {whose}"),
                "choose addresses that nobody else has",
            ));
        }
        others.push((format!("its own {field}"), subnet));
    }
}

/// A machine that two clusters insist on.
fn claimed_twice(parts: &SiteParts, found: &mut Vec<SpecFault>) {
    let mut claims: BTreeMap<&NodeName, (usize, usize)> = BTreeMap::new();
    for (index, cluster) in parts.clusters.iter().enumerate() {
        for (place, group) in cluster.groups.iter().enumerate() {
            // More targets than seats leave the others a choice.
            if group.placement.targets.len() > usize::from(group.count) {
                continue;
            }
            for name in &group.placement.targets {
                let Some((first, group)) = claims.insert(name, (index, place)) else {
                    continue;
                };
                let problem = format!("is also claimed by cluster {}", parts.clusters[first].name);
                let twice = fault(
                    Item::Group(index, place),
                    "targetNodes",
                    name,
                    problem,
                    "name it in one of them",
                );
                found.push(SpecFault {
                    earlier: Some(Item::Group(first, group)),
                    ..twice
                });
            }
        }
    }
}
