//! What is worth asking of a cluster now: nothing that can't be so yet, and nothing of machines that were never given a
//! config, for they would cost a timeout each.

use std::net::SocketAddr;

use ignition::platform::Platform;
use netboot::cluster::{ClusterSpec, ClusterState, Role, Stage};
use netboot::net::NodeName;
use netboot::node::NodeSpec;
use netboot::site::Site;

use super::member::of_role;
use crate::probe::kube::{OperatorsWatch, Server, TrustedCa, Want};
use crate::probe::talos::{Machine, PORT};

/// Kubernetes' API.
const API: u16 = 6443;
/// OKD's machine-config server.
const MACHINE_CONFIG: u16 = 22623;

/// True of a machine whose config left: its system may be up.
pub(super) fn may_be_up(site: &Site, node: &NodeName) -> bool {
    site.record(node).configured.is_some()
}

/// Where the cluster's API may answer: the control planes, and the bootstrap machine while there is one.
pub(super) fn apis(site: &Site, spec: &ClusterSpec, state: &ClusterState) -> Vec<SocketAddr> {
    let of = |role| of_role(site, spec, state, role);
    let all = of(Role::ControlPlane).chain(of(Role::Bootstrap));
    all.filter(|(member, ..)| may_be_up(site, &member.node))
        .map(|(_, _, address)| SocketAddr::from((address, API)))
        .collect()
}

/// The machines whose own API may answer.
pub(super) fn machines(site: &Site, spec: &ClusterSpec, state: &ClusterState) -> Vec<Machine> {
    let roles = [Role::ControlPlane, Role::Worker, Role::Infra];
    let all = roles
        .into_iter()
        .flat_map(|role| of_role(site, spec, state, role));
    all.filter(|(member, ..)| may_be_up(site, &member.node))
        .map(|(member, _, address)| Machine {
            node: member.node.clone(),
            api: SocketAddr::from((address, PORT)),
            control_plane: member.role == Role::ControlPlane,
        })
        .collect()
}

/// What is asked of Kubernetes' API.
pub(super) fn wants(
    platform: Platform,
    site: &Site,
    spec: &ClusterSpec,
    state: &ClusterState,
    machine_config_ca: Option<&TrustedCa>,
    operators: &OperatorsWatch,
) -> Vec<Want> {
    let mut wants = vec![Want::Api];
    let stage = state.record.stage;
    if platform == Platform::Okd {
        match stage {
            Stage::Bootstrap => {
                wants.extend([Want::BootstrapComplete, Want::BootstrapMemberRemoved]);
            }
            Stage::ControlPlane => {
                wants.extend(config_servers(site, spec, state, machine_config_ca));
            }
            Stage::Worker => {}
            Stage::Addon | Stage::Ready => {
                let settled = Want::OperatorsSettled(operators.clone());
                wants.extend([Want::VersionAvailable, settled]);
            }
        }
    }
    let roles = [Role::ControlPlane, Role::Worker, Role::Infra];
    for (member, node, _) in roles
        .into_iter()
        .flat_map(|role| of_role(site, spec, state, role))
    {
        if !may_be_up(site, &member.node) {
            continue;
        }
        let (node, name) = (member.node.clone(), name_of(platform, spec, node));
        if platform == Platform::K3s && member.role == Role::ControlPlane {
            let (node, name) = (node.clone(), name.clone());
            wants.push(Want::EtcdVoter { node, name });
        }
        wants.push(Want::NodeReady { node, name });
    }
    wants
}

/// The name that the cluster knows a machine by.
pub(super) fn name_of(platform: Platform, spec: &ClusterSpec, node: &NodeSpec) -> String {
    match platform {
        // Its hosts bear their whole name, and kubelets go by that.
        Platform::Okd if !node.hostname.as_str().contains('.') => {
            format!("{}.{}", node.hostname, spec.fqdn())
        }
        Platform::Okd | Platform::Talos | Platform::K3s => node.hostname.as_str().to_owned(),
    }
}

fn config_servers(
    site: &Site,
    spec: &ClusterSpec,
    state: &ClusterState,
    ca: Option<&TrustedCa>,
) -> Vec<Want> {
    let name = format!("api-int.{}", spec.fqdn());
    let Some(ca) = ca else {
        return Vec::new();
    };
    of_role(site, spec, state, Role::ControlPlane)
        .filter_map(|(member, _, address)| {
            let at = SocketAddr::from((address, MACHINE_CONFIG));
            Some(Want::MachineConfigServer {
                node: member.node.clone(),
                server: Server::new(at, &name).ok()?,
                ca: ca.clone(),
            })
        })
        .collect()
}
