//! What one cluster needs besides the site: its machines, its names, its ports, its secrets and its services.
//!
//! A cluster that is not in force yet can't have what only begins with it: its names in our own server, its secrets, the
//! services of this bastion. Nothing of that fails before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ignition::platform::Platform;
use netboot::cluster::{
    ClusterName, ClusterSpec, ClusterState, FactKey, Look, Provider, SECRETS, Service, ServiceKind,
    ServiceState,
};
use netboot::endpoint::Sides;
use netboot::net::{LinkName, Timestamp};
use netboot::site::Site;
use netboot::zone::DnsMode;
use tokio::task::JoinSet;

use super::names::addresses_of;
use super::{Check, Id, Scene, listed};
use crate::balancer::feed;
use crate::clusters::services::reach;
use crate::sockets::holder;
use crate::status::NodeStatus;

/// Servers that are asked for a cluster's names; each is asked three questions.
const SERVERS_MAX: usize = 8;

/// The cluster that is looked at.
#[derive(Clone, Debug)]
pub struct Focus {
    /// Which.
    pub name: ClusterName,
    /// The site with it, as it is or as it would be.
    pub site: Arc<Site>,
    /// Whether it is one of the site's already.
    pub in_force: bool,
    /// Whether the daemon takes connections for clusters at all.
    pub balances: bool,
    /// Links on which public ports are listened on.
    pub public: Vec<LinkName>,
    /// Where the daemon takes connections, and for which cluster.
    pub listens: BTreeMap<SocketAddrV4, String>,
}

impl Focus {
    /// The definition, and what is known of the cluster.
    pub(super) fn cluster(&self) -> Option<(&Arc<ClusterSpec>, &Arc<ClusterState>)> {
        self.site.cluster(&self.name)
    }

    fn subject(&self) -> String {
        format!("cluster {}", self.name)
    }
}

/// Looks at all of it.
pub(super) async fn check(scene: Arc<Scene>) -> Vec<Check> {
    let Some((focus, (spec, state))) = scene
        .focus
        .as_ref()
        .and_then(|focus| Some((focus, focus.cluster()?)))
    else {
        return Vec::new();
    };
    let mut checks = vec![judge_machines(focus, state, scene.at)];
    checks.extend(judge_secrets(focus, state));
    let (names, ports, services) = tokio::join!(
        names(&scene, focus, spec, state),
        ports(Arc::clone(&scene)),
        services(focus, spec, state)
    );
    checks.extend(names);
    checks.extend(ports);
    checks.extend(services);
    checks
}

/// Every member boots, is installed, or waits for nothing but its turn.
fn judge_machines(focus: &Focus, state: &ClusterState, at: Timestamp) -> Check {
    let (id, subject) = (Id::ClusterMachines, focus.subject());
    let mut stuck = Vec::new();
    for member in &state.members {
        let Some(node) = focus.site.spec().node(&member.node) else {
            continue;
        };
        let status = NodeStatus::of(&focus.site, node, at);
        let goes = matches!(status.next_boot.as_str(), "boot" | "disk");
        if !goes && status.rule != "not-its-turn" {
            stuck.push(format!("{}: {}", member.node, status.waits_for));
        }
    }
    if stuck.is_empty() {
        let count = state.members.len();
        return Check::pass(
            id,
            subject,
            format!("{count} have their places; none is held back"),
        );
    }
    let remedy = "`reveille node why NAME` says what keeps a machine, and what lets it go on";
    Check::fail(id, subject, listed(stuck), remedy)
}

/// What documents are made from is at hand and young enough.
fn judge_secrets(focus: &Focus, state: &ClusterState) -> Option<Check> {
    let (id, subject) = (Id::ClusterSecrets, focus.subject());
    let fact = SECRETS.parse().ok()?;
    let look = state.looks.get(&FactKey { node: None, fact });
    let remedy = format!(
        "nobody boots before they are there: import those that others make, `reveille cluster import {} PATH`; OKD's are good for an install for a day",
        focus.name
    );
    match look {
        None if !focus.in_force => None,
        None => Some(Check::warn(id, subject, "not looked at yet", remedy)),
        Some(Look {
            holds: true, words, ..
        }) => Some(Check::pass(id, subject, words)),
        Some(Look { words, .. }) => Some(Check::fail(id, subject, words, remedy)),
    }
}

/// What each server that machines are told of says of the names by which they find the cluster.
async fn names(
    scene: &Scene,
    focus: &Focus,
    spec: &ClusterSpec,
    state: &ClusterState,
) -> Vec<Check> {
    let (id, mode) = (Id::ClusterNames, scene.spec.dns().mode);
    let Some(network) = scene.spec.network(&spec.network) else {
        return Vec::new();
    };
    let ours = scene.our_address(network);
    let servers = match ours {
        Some(ours) => scene.spec.dns_servers(network, ours),
        None => network.dns.clone(),
    };
    let fqdn = spec.fqdn();
    if servers.is_empty() {
        let evidence = format!("machines are told of no DNS server, and find api.{fqdn} nowhere");
        let remedy =
            "name servers by the network's `dns`, or write `dns: { mode: serve }` in site.yaml";
        return vec![Check::warn(id, focus.subject(), evidence, remedy)];
    }
    let balanced_here = state.does(ServiceKind::LoadBalancer, spec)
        || spec.needs.iter().any(|service| {
            service.kind == ServiceKind::LoadBalancer && service.provider == Provider::Builtin
        });
    let wanted = Wanted {
        addresses: match &scene.spec.dns().balanced {
            Some(elsewhere) => elsewhere.inside.clone(),
            None if balanced_here => ours.into_iter().collect(),
            // Where others balance, only they know the address.
            None => Vec::new(),
        },
        // What begins with the cluster, or waits for another service, is not missing yet.
        patient: mode == DnsMode::Serve && (!focus.in_force || !state.does(ServiceKind::Dns, spec)),
    };
    let subject = |server: Ipv4Addr| format!("{}, server {server}", focus.subject());
    let mut checks = Vec::new();
    let mut asked = JoinSet::new();
    for server in servers.into_iter().take(SERVERS_MAX) {
        if wanted.patient && Some(server) == ours {
            let evidence =
                "tells them as soon as the cluster is in force and its DNS service is started";
            checks.push(Check::pass(id, subject(server), evidence));
            continue;
        }
        let names = ["api", "api-int", "reveille-preflight.apps"];
        let names = names.map(|name| format!("{name}.{fqdn}"));
        asked.spawn(async move {
            let mut said = Vec::new();
            for name in names {
                let answer = addresses_of(server, &name).await;
                let silent = answer.is_err();
                said.push((name, answer));
                // Each further question would wait as long.
                if silent {
                    break;
                }
            }
            (server, said)
        });
    }
    while let Some(answered) = asked.join_next().await {
        let (server, said) = answered.expect("a question does not panic, and nobody aborts one");
        checks.push(judge_names(subject(server), &wanted, &said));
    }
    checks
}

/// What names must say.
#[derive(Clone, Debug)]
struct Wanted {
    /// Any of these; whatever is there, where empty.
    addresses: Vec<Ipv4Addr>,
    /// A name that isn't there yet is no fault.
    patient: bool,
}

fn judge_names(
    subject: String,
    wanted: &Wanted,
    said: &[(String, Result<Vec<Ipv4Addr>, String>)],
) -> Check {
    let id = Id::ClusterNames;
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    for (name, answer) in said {
        match answer {
            Err(why) => wrong.push(format!("{name}: {why}")),
            Ok(addresses) if addresses.is_empty() => missing.push(format!("{name} is not there")),
            Ok(addresses) => {
                let right = wanted.addresses.is_empty()
                    || addresses
                        .iter()
                        .all(|address| wanted.addresses.contains(address));
                if !right {
                    let words =
                        |addresses: &[Ipv4Addr]| listed(addresses.iter().map(ToString::to_string));
                    let (is, must) = (words(addresses), words(&wanted.addresses));
                    wrong.push(format!("{name} is {is}, and must be {must}"));
                }
            }
        }
    }
    let remedy = "enter what `reveille dns records` lists into that server, or let this bastion serve it (`dns: { mode: serve }`)";
    let patient = wanted.patient && wrong.is_empty();
    match (wrong.is_empty() && missing.is_empty(), patient) {
        (true, _) => Check::pass(
            id,
            subject,
            format!("{} names lead to the cluster", said.len()),
        ),
        (false, true) => {
            let remedy =
                "it is told as soon as the cluster is in force and its DNS service is started";
            Check::warn(id, subject, listed(missing), remedy)
        }
        (false, false) => Check::fail(
            id,
            subject,
            listed(wrong.into_iter().chain(missing)),
            remedy,
        ),
    }
}

/// The ports that are to be listened on are this cluster's, or free.
async fn ports(scene: Arc<Scene>) -> Vec<Check> {
    // Reading every process' open files is work for a thread that may block.
    let looked = tokio::task::spawn_blocking(move || {
        let focus = scene.focus.as_ref()?;
        let (spec, state) = focus.cluster()?;
        let platform: Platform = spec.platform.parse().ok()?;
        let ground = feed::ground(&scene.spec, spec, &scene.links, &focus.public);
        let builtin = |service: &Service| {
            service.kind == ServiceKind::LoadBalancer && service.provider == Provider::Builtin
        };
        let wanted = state.does(ServiceKind::LoadBalancer, spec) || spec.needs.iter().any(builtin);
        if !wanted || !focus.balances {
            return None;
        }
        if ground.private.is_empty() {
            let evidence = format!(
                "network {} has no address of ours to listen on",
                spec.network
            );
            let remedy = "give its link one: `reveille host status` shows the links";
            return Some(Check::fail(
                Id::ClusterPorts,
                focus.subject(),
                evidence,
                remedy,
            ));
        }
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        for port in platform.ports() {
            let public = match port.sides {
                Sides::Private => &[][..],
                Sides::Both => &ground.public,
            };
            for place in ground.private.iter().chain(public) {
                let at = SocketAddrV4::new(place.address, port.port);
                if seen.insert(at) {
                    let ours = focus.listens.get(&at).cloned();
                    found.push((at, ours.or_else(|| holder(at))));
                }
            }
        }
        Some(judge_ports(focus, &found))
    });
    let looked = looked.await;
    let check = looked.expect("looking at sockets does not panic, and nobody aborts it");
    check.into_iter().collect()
}

/// Each place with who has it: a cluster's name, or a program's.
fn judge_ports(focus: &Focus, found: &[(SocketAddrV4, Option<String>)]) -> Check {
    let (id, subject) = (Id::ClusterPorts, focus.subject());
    let name = focus.name.as_str();
    let taken = found.iter().filter_map(|(at, who)| {
        let who = who.as_deref().filter(|who| *who != name)?;
        Some(format!("{at} is taken by {who}"))
    });
    let taken: Vec<String> = taken.collect();
    if !taken.is_empty() {
        let remedy = "stop that program or bind it to another address; `ss -ltnp` shows it; two clusters need two networks or two addresses";
        return Check::fail(id, subject, listed(taken), remedy);
    }
    let ours = found.iter().filter(|(_, who)| who.is_some()).count();
    let free = found.len() - ours;
    Check::pass(id, subject, format!("taken for it: {ours}; free: {free}"))
}

/// How each service is; of a cluster that is not in force only what others bring can be looked at.
async fn services(focus: &Focus, spec: &ClusterSpec, state: &ClusterState) -> Vec<Check> {
    let mut checks = Vec::new();
    for (service, how) in state.services(spec) {
        let how = match (&service.provider, focus.in_force) {
            (Provider::External(Some(target)), false) => match reach(target).await {
                Ok(_) => ServiceState::Up,
                Err(why) => ServiceState::Failed(why),
            },
            // What must be so elsewhere has checks of its own.
            (Provider::Builtin | Provider::Elsewhere, false) => continue,
            (
                Provider::Builtin | Provider::Elsewhere | Provider::External(_) | Provider::Off,
                _,
            ) => how,
        };
        let words = match (&how, state.look_at(service)) {
            (ServiceState::Up, Some(look)) => look.words.clone(),
            _ => how.to_string(),
        };
        checks.push(judge_service(focus, service, &how, words));
    }
    checks
}

fn judge_service(focus: &Focus, service: &Service, how: &ServiceState, words: String) -> Check {
    let (id, subject) = (
        Id::ClusterServices,
        format!("service {} of {}", service.name, focus.name),
    );
    let remedy = format!(
        "`reveille cluster status {}` shows what it waits for; `required: false` lets the cluster go on without it",
        focus.name
    );
    match how {
        ServiceState::Up | ServiceState::Trusted | ServiceState::Off => {
            Check::pass(id, subject, words)
        }
        ServiceState::Failed(_) if service.required => Check::fail(id, subject, words, remedy),
        ServiceState::Failed(_)
        | ServiceState::Waits(_)
        | ServiceState::Starting
        | ServiceState::Stopped => Check::warn(id, subject, words, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn wanted(addresses: &[u8], patient: bool) -> Wanted {
        Wanted {
            addresses: addresses.iter().map(|last| address(*last)).collect(),
            patient,
        }
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 107, 0, last)
    }

    fn judged(wanted: &Wanted, answer: Result<Vec<Ipv4Addr>, String>) -> Outcome {
        let said = [("api.lab.example".to_owned(), answer)];
        judge_names(String::new(), wanted, &said).result
    }

    #[test]
    fn a_name_that_leads_elsewhere_fails_and_one_that_comes_with_the_cluster_is_waited_for() {
        let at_once = wanted(&[1], false);
        assert_eq!(judged(&at_once, Ok(vec![address(1)])), Outcome::Pass);
        assert_eq!(judged(&at_once, Ok(vec![address(2)])), Outcome::Fail);
        assert_eq!(
            judged(&at_once, Ok(vec![address(1), address(2)])),
            Outcome::Fail
        );
        assert_eq!(judged(&at_once, Ok(Vec::new())), Outcome::Fail);
        assert_eq!(judged(&at_once, Err("silent".to_owned())), Outcome::Fail);
        let later = wanted(&[1], true);
        assert_eq!(judged(&later, Ok(Vec::new())), Outcome::Warn);
        assert_eq!(judged(&later, Ok(vec![address(2)])), Outcome::Fail);
        assert_eq!(judged(&later, Err("silent".to_owned())), Outcome::Fail);
        let anywhere = wanted(&[], false);
        assert_eq!(judged(&anywhere, Ok(vec![address(9)])), Outcome::Pass);
        assert_eq!(judged(&anywhere, Ok(Vec::new())), Outcome::Fail);
    }

    #[test]
    fn a_port_of_another_program_or_cluster_fails_and_its_own_and_free_ones_pass() {
        let focus = Focus {
            name: "lab".parse().expect("a name"),
            site: Arc::default(),
            in_force: true,
            balances: true,
            public: Vec::new(),
            listens: BTreeMap::new(),
        };
        let judged = |who: Option<&str>| {
            let at = SocketAddrV4::new(address(1), 6443);
            judge_ports(&focus, &[(at, who.map(str::to_owned))])
        };
        assert_eq!(judged(None).evidence, "taken for it: 0; free: 1");
        assert_eq!(judged(Some("lab")).evidence, "taken for it: 1; free: 0");
        for other in ["nginx (process 812)", "other"] {
            let check = judged(Some(other));
            assert_eq!(check.result, Outcome::Fail);
            assert_eq!(
                check.evidence,
                format!("10.107.0.1:6443 is taken by {other}")
            );
        }
    }
}
