//! The groups of a cluster definition, each judged by itself.

use ignition::platform::Platform;
use netboot::cluster::{AntiAffinity, COUNT_MAX, GroupName, NodeGroup, Placement, Role};
use netboot::net::ProfileName;
use netboot::spec::Network;

use super::clusters::{Beside, from_network, the_network};
use super::fault::{Faults, Place};
use super::file;
use super::judge::{list, missing, need, parse};
use super::machines::texts;
use super::read::Given;

/// What a group is judged beside.
#[derive(Clone, Copy)]
pub(super) struct Grouped<'a> {
    pub(super) by_template: bool,
    pub(super) platform: Option<Platform>,
    pub(super) network: Option<&'a Network>,
    /// Of the whole cluster.
    pub(super) public: bool,
    pub(super) beside: &'a Beside<'a>,
    pub(super) faults: &'a Faults,
}

impl Grouped<'_> {
    /// Judges one group; `None` when it is too faulty to be compared with others.
    pub(super) fn group(self, entry: &file::NodeGroup, place: Place) -> Option<NodeGroup> {
        let faults = self.faults;
        let file::NodeGroup {
            name,
            role,
            count,
            placement,
            boot,
            template,
            network,
            tags,
            metadata,
            lifecycle,
        } = entry;
        let name = need(faults, "name", name, place);
        if role.is_absent() {
            missing(faults, "role", place);
        }
        let role = role.value().map(|role| match role {
            file::Role::Bastion => Role::Bastion,
            file::Role::Bootstrap => Role::Bootstrap,
            file::Role::ControlPlane => Role::ControlPlane,
            file::Role::Worker => Role::Worker,
            file::Role::Infra => Role::Infra,
        });
        if count.is_absent() {
            missing(faults, "count", place);
        }
        if let Some((place, count)) = count.good().filter(|(_, count)| **count > COUNT_MAX) {
            let remedy = format!("write 0 to {COUNT_MAX}");
            faults.add(place, "count", &count.to_string(), "is too many", remedy);
        }
        if let Some(place) = template.place().filter(|_| !self.by_template) {
            let problem = "makes virtual machines, and these are of metal";
            let remedy = "take it out; `boot.configTemplate` names a profile of the site";
            faults.add(place, "template", "", problem, remedy);
        }
        self.same_network(network);
        let (temporary, becomes) = self.leaves(lifecycle, role);
        let profile = self.profile(boot, role);
        let placement = self.placement(placement);
        let text = |_: &Faults, _: &str, given: &Given<String>| given.value().cloned();
        let tags = list(faults, "tags", tags, text);
        let metadata = texts("metadata", metadata, faults);
        Some(NodeGroup {
            name: name?,
            role: role?,
            count: *count.value()?,
            profile: profile?,
            placement: placement?,
            temporary,
            becomes: becomes?,
            tags,
            metadata,
        })
    }

    fn same_network(self, network: &Given<file::ClusterNetwork>) {
        let Some((place, said)) = network.good() else {
            return;
        };
        let public = said.public_access.good();
        if let Some((place, public)) = public.filter(|(_, public)| **public != self.public) {
            let remedy = "take it out: the cluster's own `network.publicAccess` decides for all";
            let problem = "is not what the cluster says";
            self.faults
                .add(place, "publicAccess", &public.to_string(), problem, remedy);
        }
        let here = the_network(said, place, self.beside.site, self.faults);
        if let (Some(here), Some(whole)) = (here, self.network)
            && here.name != whole.name
        {
            let problem = format!("is not the cluster's network, {}", whole.name);
            let remedy = "take it out: the machines of a cluster boot from one network";
            self.faults
                .add(place, "network", here.name.as_str(), problem, remedy);
        }
    }

    /// Whether the machines leave, and what they become; `None` after a fault.
    fn leaves(
        self,
        lifecycle: &Given<file::Lifecycle>,
        role: Option<Role>,
    ) -> (bool, Option<Option<GroupName>>) {
        let absent = file::Lifecycle::default();
        let said = lifecycle.value().unwrap_or(&absent);
        let temporary = said.temporary.value().copied();
        let temporary = temporary.unwrap_or(role == Some(Role::Bootstrap));
        if let Some((place, true)) = said.cleanup_after_boot.good().map(|(p, wish)| (p, *wish))
            && !temporary
        {
            let remedy = "write `temporary: true` beside it, or take it out";
            let problem = "is asked of machines that stay";
            self.faults
                .add(place, "cleanupAfterBoot", "true", problem, remedy);
        }
        let becomes = match said.becomes.is_absent() {
            true => Some(None),
            false => parse(self.faults, "becomes", &said.becomes).map(Some),
        };
        (temporary, becomes)
    }

    fn profile(self, boot: &Given<file::Boot>, role: Option<Role>) -> Option<ProfileName> {
        if let Some(boot) = boot.value() {
            from_network("method", &boot.method, self.faults);
            if !boot.config_template.is_absent() {
                return parse(self.faults, "configTemplate", &boot.config_template);
            }
        }
        let (platform, role) = (self.platform?, role?);
        let of_role: ProfileName = format!("{platform}-{role}").parse().ok()?;
        let of_platform: ProfileName = platform.word().parse().ok()?;
        let known = |name: &ProfileName| self.beside.profiles.contains(name);
        Some(match !known(&of_role) && known(&of_platform) {
            true => of_platform,
            false => of_role,
        })
    }

    fn placement(self, given: &Given<file::Placement>) -> Option<Placement> {
        let absent = file::Placement::default();
        let file::Placement {
            labels,
            anti_affinity,
            preferred_nodes,
            target_nodes,
        } = given.value().unwrap_or(&absent);
        let names = |key, given: &Given<Vec<Given<String>>>| {
            let names = list(self.faults, key, given, parse);
            (names.len() == given.value().map_or(0, Vec::len)).then_some(names)
        };
        Some(Placement {
            labels: texts("labels", labels, self.faults),
            anti_affinity: match anti_affinity.value() {
                None | Some(file::AntiAffinity::Off) => AntiAffinity::Off,
                Some(file::AntiAffinity::Soft) => AntiAffinity::Soft,
                Some(file::AntiAffinity::Hard) => AntiAffinity::Hard,
            },
            preferred: names("preferredNodes", preferred_nodes)?,
            targets: names("targetNodes", target_nodes)?,
        })
    }
}

/// An even number of voters survives no more losses than one voter fewer (etcd, docs/faq.md, "Why an odd number of
/// cluster members").
pub(super) fn warn_of_quorum(groups: &[NodeGroup], place: Place, faults: &Faults) {
    let of_role = groups
        .iter()
        .filter(|group| group.role == Role::ControlPlane);
    let voters: usize = of_role.map(|group| usize::from(group.count)).sum();
    if voters > 0 && voters.is_multiple_of(2) {
        let problem = format!(
            "have {voters} control planes: losing {} of them stops the cluster, as with {}",
            voters / 2,
            voters - 1
        );
        let remedy = format!("want {} or {}", voters - 1, voters + 1);
        faults.warn(place, "nodeGroups", "", &problem, &remedy);
    }
}
