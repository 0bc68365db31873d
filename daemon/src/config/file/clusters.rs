//! Cluster definitions as people write them. The keys keep the spelling of the definitions that people have.

#![expect(
    dead_code,
    reason = "what virtual machines would be made from is read, so that its kinds are judged before it is refused"
)]

use schemars::JsonSchema;
use serde::Deserialize;

use super::Text;
use crate::config::free::Free;
use crate::config::read::{Given, Table};

/// `clusters/*.yaml` and `clusters/*.json`, and what `reveille cluster apply` takes: one cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Reveille cluster definition")]
pub(in crate::config) struct Cluster {
    /// Its name: lowercase letters, digits and hyphens; the first label of its domain.
    pub(in crate::config) name: Given<String>,
    /// What it is made with.
    #[serde(rename = "type")]
    pub(in crate::config) kind: Given<ClusterType>,
    /// The platform's release, as its own project writes it: `4.19.0`, `v1.11.5`, `v1.32.0+k3s1`.
    pub(in crate::config) version: Given<String>,
    /// How its machines boot; `PXE` unless given.
    #[serde(default)]
    pub(in crate::config) boot_method: Given<BootMethod>,
    /// Where its machines are.
    #[serde(default)]
    pub(in crate::config) network: Given<ClusterNetwork>,
    /// Its machines, in groups that are alike. The first control plane listed starts the cluster.
    pub(in crate::config) node_groups: Given<Vec<Given<Box<NodeGroup>>>>,
    /// What it leans on.
    #[serde(default)]
    pub(in crate::config) services: Given<Vec<Given<Box<Service>>>>,
    /// No key of it is known yet.
    #[serde(default)]
    pub(in crate::config) security: Given<Security>,
    /// How its making is followed, and what must be seen besides.
    #[serde(default)]
    pub(in crate::config) validation: Given<Validation>,
    /// What only its platform knows.
    #[serde(default)]
    pub(in crate::config) platform_config: Given<Free>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(in crate::config) enum ClusterType {
    /// OKD and OpenShift.
    Okd,
    /// Talos Linux.
    Talos,
    /// k3s.
    K3s,
    /// Known, and refused until it comes.
    Rke2,
    /// kubeadm; known, and refused until it comes.
    Vanilla,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(in crate::config) enum BootMethod {
    /// From the network.
    Pxe,
    /// Known, and refused until it comes.
    Iso,
    /// Known, and refused: machines of metal have no templates.
    Template,
    /// Known, and refused until it comes.
    Hybrid,
}

/// Where a cluster's machines are, and its own addresses.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct ClusterNetwork {
    /// A network of `site.yaml`; unless given, the one whose link is `privateVLAN`, or the only one that answers.
    #[serde(default)]
    pub(in crate::config) network: Given<String>,
    /// The VLAN of its network, 1 to 4094.
    #[serde(rename = "privateVLAN", default)]
    pub(in crate::config) private_vlan: Given<u16>,
    /// `VLAN`: the link of the network must be one. `NONE` asks for nothing.
    #[serde(default)]
    pub(in crate::config) isolation: Given<Isolation>,
    /// Whether people outside use the cluster: its ports are taken and its names told on the site's public links, too;
    /// true unless given.
    #[serde(default)]
    pub(in crate::config) public_access: Given<bool>,
    /// The domain below which the cluster's own lies, `lab.example` for `api.NAME.lab.example`; the network's unless
    /// given.
    #[serde(default)]
    pub(in crate::config) domain: Given<String>,
    /// Pod addresses; unless given, the platform's own default.
    #[serde(rename = "podCIDR", default)]
    pub(in crate::config) pod_cidr: Given<String>,
    /// Service addresses; unless given, the platform's own default.
    #[serde(rename = "serviceCIDR", default)]
    pub(in crate::config) service_cidr: Given<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(in crate::config) enum Isolation {
    Vlan,
    None,
}

/// Machines of one role that are alike.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct NodeGroup {
    /// Its name in the cluster: lowercase letters, digits and hyphens.
    pub(in crate::config) name: Given<String>,
    /// What its machines do.
    pub(in crate::config) role: Given<Role>,
    /// How many machines, 0 to 5000.
    pub(in crate::config) count: Given<u16>,
    /// Which machines may serve.
    #[serde(default)]
    pub(in crate::config) placement: Given<Placement>,
    /// What they boot.
    #[serde(default)]
    pub(in crate::config) boot: Given<Boot>,
    /// Known, and refused: machines of metal have no templates.
    #[serde(default)]
    pub(in crate::config) template: Given<Template>,
    /// The cluster's network again; machines of another one have no place in it yet.
    #[serde(default)]
    pub(in crate::config) network: Given<ClusterNetwork>,
    /// Words for people; plans and `--json` show them.
    #[serde(default)]
    pub(in crate::config) tags: Given<Vec<Given<String>>>,
    /// Words for people, by key; plans and `--json` show them.
    #[serde(default)]
    pub(in crate::config) metadata: Given<Table<Text>>,
    /// When its machines leave.
    #[serde(default)]
    pub(in crate::config) lifecycle: Given<Lifecycle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum Role {
    /// This host; no machine is placed.
    Bastion,
    /// Starts the cluster and leaves.
    Bootstrap,
    /// Runs the API and etcd.
    ControlPlane,
    /// Runs workloads.
    Worker,
    /// Runs the cluster's own workloads.
    Infra,
}

/// Which machines of the inventory may serve. Those with a `profile` of their own never do.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Placement {
    /// Labels that a machine must bear in the inventory.
    #[serde(default)]
    pub(in crate::config) labels: Given<Table<Text>>,
    /// Whether machines of the group may share a `rack`; `OFF` unless given.
    #[serde(default)]
    pub(in crate::config) anti_affinity: Given<AntiAffinity>,
    /// Machines by name that are taken first, in this order.
    #[serde(default)]
    pub(in crate::config) preferred_nodes: Given<Vec<Given<String>>>,
    /// None but these machines, by name.
    #[serde(default)]
    pub(in crate::config) target_nodes: Given<Vec<Given<String>>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(in crate::config) enum AntiAffinity {
    /// They may.
    Off,
    /// Rather not.
    Soft,
    /// Never.
    Hard,
}

/// What the machines of a group boot.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Boot {
    /// The cluster's `bootMethod` unless given.
    #[serde(default)]
    pub(in crate::config) method: Given<BootMethod>,
    /// A profile of the site, without the suffix; unless given, `TYPE-ROLE` such as `k3s-worker`, else `TYPE`.
    #[serde(default)]
    pub(in crate::config) config_template: Given<String>,
}

/// What virtual machines are made from.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Template {
    /// An image.
    #[serde(default)]
    pub(in crate::config) image_source: Given<String>,
    /// What cloud-init does in it.
    #[serde(default)]
    pub(in crate::config) cloud_init: Given<Free>,
}

/// When the machines of a group leave the cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Lifecycle {
    /// When the phase is over that they serve in; true for role BOOTSTRAP unless given.
    #[serde(default)]
    pub(in crate::config) temporary: Given<bool>,
    /// They are free for others then; says the same as `temporary`, which it needs.
    #[serde(default)]
    pub(in crate::config) cleanup_after_boot: Given<bool>,
    /// The group whose last places they take then. They are installed again only with a consent to lose their disk.
    #[serde(default)]
    pub(in crate::config) becomes: Given<String>,
}

/// What a cluster leans on.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Service {
    /// Its name in the definition: lowercase letters, digits and hyphens, at most 55.
    pub(in crate::config) name: Given<String>,
    /// What it is.
    #[serde(rename = "type")]
    pub(in crate::config) kind: Given<ServiceType>,
    /// Who does it, by `mode`: `builtin`, this bastion; `external`, others, looked at by `address: HOST:PORT` (a
    /// connection) or `url: http://…` (a GET; `https` with any certificate), without either where the site says that others balance or tell names, and
    /// else taken on trust; `off`, nobody. Unless given, what the site does. Other keys are words for people.
    #[serde(default)]
    pub(in crate::config) configuration: Given<Free>,
    /// Services of the list that must be up before it is started.
    #[serde(default)]
    pub(in crate::config) depends_on: Given<Vec<Given<String>>>,
    /// Whether the cluster waits for it: while it isn't up no new machine begins, and no phase ends; true unless given.
    #[serde(default)]
    pub(in crate::config) required: Given<bool>,
    /// The required services of a lower number must be up before it is started; 0 unless given.
    #[serde(default)]
    pub(in crate::config) startup_order: Given<u32>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum ServiceType {
    /// The cluster's ports.
    LoadBalancer,
    /// The cluster's names.
    Dns,
    /// Addresses for its machines.
    Dhcp,
    /// What its machines boot from.
    PxeBoot,
    /// Storage, by others.
    Storage,
    /// Monitoring, by others.
    Monitoring,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Security {}

/// How a cluster's making is followed. Phases end by evidence and never by a clock.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::config) struct Validation {
    /// Whether `reveille cluster apply` waits until the cluster is ready, or the time is over.
    #[serde(default)]
    pub(in crate::config) wait_for_cluster: Given<bool>,
    /// Minutes from the first machine's boot after which `status` raises an alarm while the cluster isn't ready; no phase
    /// ends by it.
    #[serde(default)]
    pub(in crate::config) timeout_minutes: Given<u16>,
    /// What must be seen before the cluster is ready, besides what its platform asks for.
    #[serde(default)]
    pub(in crate::config) health_checks: Given<Vec<Given<HealthCheck>>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum HealthCheck {
    ClusterOperators,
    NodeReadiness,
    ApiAvailability,
}
