//! The watch over what clusters lean on: a look at each service that is started, once a second, told to the controller.
//!
//! ```text
//!   balancer, DNS, DHCP, TFTP, boot HTTP, depot ──look──▶ Event::Seen ──▶ what is started next, who is held
//!   targets of others, less often                ──look──▶            └──▶ `status`: a condition for each service
//! ```
//!
//! What follows from a look is decided in `netboot`. The balancer's view of the site and the names leave out what is not
//! started, and take it in by themselves. A cluster that is taken away has its services stopped in the reverse order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use images::Depot;
use netboot::cluster::{
    BEGUN, ClusterName, ClusterSpec, ClusterState, FactKey, FactName, Get, Host, Member, Provider,
    Seen, Service, ServiceKind, ServiceName, ServiceState, Target,
};
use netboot::event::Event;
use netboot::net::LinkName;
use netboot::site::Site;
use netboot::spec::Network;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::status::ClusterSummary;
use crate::balancer::ListenerStatus;
use crate::bastion::Bastion;
use crate::controller::{NotWritten, now};
use crate::link::met_at;
use crate::preflight::addresses_of;
use crate::probe::glance::{glance, untrusting};
use crate::{elsewhere, image};

/// Between two looks at what is ours.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// Between two looks at what others have, while it is not up and when it is.
const LOOK_AT_OTHERS_TIME: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];
/// How long others may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// How long the balancer may take to let go of a cluster, and between two looks whether it has.
const STOP_TIME: Duration = Duration::from_secs(3);
const STOP_LOOK_TIME: Duration = Duration::from_millis(50);

/// What was seen, good or bad, in words.
pub(crate) type Looked = Result<String, String>;

/// Looks at the services of every cluster until `stop`.
///
/// # Errors
/// [`NotWritten::Stopping`] when the controller is gone.
pub(crate) async fn watch(
    bastion: Arc<Bastion>,
    stop: CancellationToken,
) -> Result<(), NotWritten> {
    let depot = image::depot(&bastion.options.state).ok().map(Arc::new);
    let mut due = BTreeMap::<(ClusterName, ServiceName), Instant>::new();
    let mut ticks = tokio::time::interval(LOOK_TIME);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        bastion.controller.alive().await?;
        let site = bastion.controller.snapshot().load();
        let mut looks = JoinSet::new();
        let at = Instant::now();
        let mut watched = BTreeSet::new();
        for (spec, state) in site.clusters() {
            for service in state.watched(spec) {
                let key = (spec.name.clone(), service.name.clone());
                watched.insert(key.clone());
                if due.get(&key).is_some_and(|due| *due > at) {
                    continue;
                }
                if service.provider != Provider::Builtin {
                    let up = state.look_at(service).is_some_and(|look| look.holds);
                    due.insert(key, at + LOOK_AT_OTHERS_TIME[usize::from(up)]);
                }
                let one = One {
                    bastion: Arc::clone(&bastion),
                    depot: depot.clone(),
                    site: Arc::clone(&site),
                    spec: Arc::clone(spec),
                    service: service.clone(),
                };
                looks.spawn(one.look());
            }
        }
        due.retain(|key, _| watched.contains(key));
        let mut seen = BTreeMap::<ClusterName, Vec<Seen>>::new();
        while let Some(looked) = looks.join_next().await {
            let (cluster, look) = looked.expect("no look panics, and nobody aborts one");
            seen.entry(cluster).or_default().push(look);
        }
        for (spec, state) in site.clusters() {
            seen.entry(spec.name.clone())
                .or_default()
                .extend(begun(&site, state));
        }
        for (cluster, seen) in seen.into_iter().filter(|(_, seen)| !seen.is_empty()) {
            let Some(record) = site.cluster_record(&cluster) else {
                continue;
            };
            let founded = record.founded;
            let event = Event::Seen {
                cluster,
                founded,
                seen,
            };
            // What was not written down is seen again the next time.
            let _ = bastion.controller.apply(event).await;
        }
        tell(&bastion);
    }
}

/// Stops the services of a cluster that is in force, the last of the start order first, each once the one before is seen to
/// be gone.
///
/// # Errors
/// [`NotWritten`]; those that were stopped by then stay so until [`start_again`].
pub(crate) async fn stop(bastion: &Bastion, name: &ClusterName) -> Result<(), NotWritten> {
    let site = bastion.controller.snapshot().load();
    let Some((spec, state)) = site.cluster(name) else {
        return Ok(());
    };
    let order = state.services(spec);
    for (index, (service, _)) in order.iter().rev().enumerate() {
        let event = Event::ServicesStopped(name.clone(), index + 1);
        bastion.controller.apply(event).await?;
        // Names are gone with the event. Listeners are gone when the balancer says so, and it has its time.
        let mut tries = (STOP_TIME.as_millis() / STOP_LOOK_TIME.as_millis()) as u32;
        let listens = || {
            let all = bastion.balancer.status();
            all.iter().any(|listener| listener.cluster == name.as_str())
        };
        while service.kind == ServiceKind::LoadBalancer && tries > 0 && listens() {
            tokio::time::sleep(STOP_LOOK_TIME).await;
            tries -= 1;
        }
        tracing::info!(cluster = %name, service = %service.name, "stopped");
    }
    Ok(())
}

/// The cluster stays after all.
pub(crate) async fn start_again(bastion: &Bastion, name: &ClusterName) {
    // Where it can't be said, nobody is served any more either.
    let _ = bastion
        .controller
        .apply(Event::ServicesStopped(name.clone(), 0))
        .await;
}

/// The first boot of a cluster's machines, until it is known.
fn begun(site: &Site, state: &ClusterState) -> Option<Seen> {
    let fact: FactName = BEGUN.parse().ok()?;
    if state.knows(&fact, None) {
        return None;
    }
    let boots = |member: &&Arc<Member>| {
        let attempt = site.record(&member.node).attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.profile == member.profile)
    };
    let first = state.members.iter().find(boots)?;
    Some(Seen {
        key: FactKey { node: None, fact },
        holds: true,
        words: format!("{} was served its boot", first.node),
        boot: None,
    })
}

/// Says how each service is, and which clusters take longer than their definition thought.
fn tell(bastion: &Bastion) {
    let site = bastion.controller.snapshot().load();
    let health = &bastion.health;
    let mut subjects = BTreeSet::new();
    for (spec, state) in site.clusters() {
        for (service, how) in state.services(spec) {
            let subject = format!("service {} of {}", service.name, spec.name);
            match &how {
                ServiceState::Up => {
                    let look = state.look_at(service);
                    health.well(&subject, look.map_or("up", |look| &look.words));
                }
                ServiceState::Failed(_) | ServiceState::Waits(_) => {
                    health.ill(&subject, how.to_string());
                }
                ServiceState::Starting
                | ServiceState::Trusted
                | ServiceState::Off
                | ServiceState::Stopped => continue,
            }
            subjects.insert(subject);
        }
        let now = now();
        if let Some((minutes, begun)) = state.late(spec, now) {
            let subject = format!("making of {}", spec.name);
            // Why people had better look.
            let late = format!(
                "not ready {minutes} minutes after {}; {}; see `reveille cluster status {}`",
                begun.words,
                ClusterSummary::of(&site, spec, state, now).sentence,
                spec.name
            );
            health.ill(&subject, late);
            subjects.insert(subject);
        }
    }
    health.retain(|subject| {
        let ours = subject.starts_with("service ") || subject.starts_with("making of ");
        !ours || subjects.contains(subject)
    });
}

/// One look at one service.
struct One {
    bastion: Arc<Bastion>,
    depot: Option<Arc<Depot>>,
    site: Arc<Site>,
    spec: Arc<ClusterSpec>,
    service: Service,
}

impl One {
    async fn look(self) -> (ClusterName, Seen) {
        let looked = match (&self.service.provider, self.service.kind) {
            (Provider::External(Some(target)), _) => reach(target).await,
            (Provider::Elsewhere, kind) => self.elsewhere(kind).await,
            (Provider::Builtin, ServiceKind::LoadBalancer) => self.listeners(),
            (Provider::Builtin, ServiceKind::Dns) => self.names().await,
            (Provider::Builtin, ServiceKind::Dhcp) => self.addresses(),
            (Provider::Builtin, ServiceKind::PxeBoot) => self.boots().await,
            // Nobody watches these: see `Service::is_watched`, and what definitions may say.
            (Provider::Builtin, ServiceKind::Storage | ServiceKind::Monitoring)
            | (Provider::External(None) | Provider::Off, _) => Err("is not ours".to_owned()),
        };
        let (holds, words) = match looked {
            Ok(words) => (true, words),
            Err(words) => (false, words),
        };
        let fact = self.service.fact();
        let key = FactKey { node: None, fact };
        (
            self.spec.name.clone(),
            Seen {
                key,
                holds,
                words,
                boot: None,
            },
        )
    }

    /// What others must serve of this kind for the cluster.
    async fn elsewhere(&self, kind: ServiceKind) -> Result<String, String> {
        let trust = |cluster: &ClusterName| elsewhere::trust(&self.bastion.keyring, cluster);
        let links = Arc::clone(&self.bastion.links.borrow());
        let mut asked = elsewhere::questions(&self.site, &links, trust);
        asked.retain(|question| question.concerns(&self.spec.name, kind));
        elsewhere::sum(&elsewhere::look(asked, now()).await)
    }

    fn network(&self) -> Result<&Network, String> {
        let network = self.site.spec().network(&self.spec.network);
        network
            .map(|network| &**network)
            .ok_or_else(|| format!("network {} is gone from the site", self.spec.network))
    }

    /// The cluster's ports are listened on, whoever is behind them.
    fn listeners(&self) -> Looked {
        let all = self.bastion.balancer.status();
        let name = self.spec.name.as_str();
        let ours = || all.iter().filter(|listener| listener.cluster == name);
        if let Some(fault) = ours().find_map(|listener| listener.fault.clone()) {
            return Err(fault);
        }
        let takes = |listener: &ListenerStatus| {
            let at = listener.addresses.iter().map(ToString::to_string);
            at.collect::<Vec<_>>().join(", ")
        };
        if ours().next().is_none() || ours().any(|listener| listener.addresses.is_empty()) {
            return Err("its ports are not listened on yet".to_owned());
        }
        let at: Vec<String> = ours().map(takes).collect();
        Ok(format!("takes connections at {}", at.join(", ")))
    }

    /// Our own server says where the cluster's API is.
    async fn names(&self) -> Looked {
        let network = self.network()?;
        if let Some(fault) = self.bastion.servers.dns.faults().remove(&network.link) {
            return Err(fault);
        }
        let links = self.bastion.links.borrow().clone();
        let (_, address) = met_at(self.site.spec(), &links, &network.link)?;
        let api = format!("api.{}", self.spec.fqdn());
        let said = addresses_of(address, &api).await;
        let said =
            said.map_err(|why| format!("{address}:53 does not say where {api} is: {why}"))?;
        // Another balancer has addresses of its own.
        let elsewhere = self.site.spec().dns().balanced.as_ref();
        let elsewhere = elsewhere.and_then(|balanced| balanced.inside.first());
        let wanted = *elsewhere.unwrap_or(&address);
        match said.contains(&wanted) {
            true => Ok(format!("{api} is {wanted} at {address}:53")),
            false => Err(format!(
                "{address}:53 says that {api} is {}, and not {wanted}: `reveille dns records` lists what it must say",
                listed(&said)
            )),
        }
    }

    /// DHCP is served on the link of the cluster's machines.
    fn addresses(&self) -> Looked {
        let network = self.network()?;
        let dhcp = &self.bastion.servers.dhcp;
        must_serve(network, [dhcp.faults()])?;
        match dhcp.served().contains(&network.link) {
            true => Ok(format!("DHCP is served on {}", network.link)),
            false => Err(no_address(network)),
        }
    }

    /// What its machines load is served, and every file of their profiles is there.
    async fn boots(&self) -> Looked {
        let network = self.network()?;
        let servers = &self.bastion.servers;
        must_serve(network, [servers.tftp.faults(), servers.http.faults()])?;
        let links = self.bastion.links.borrow().clone();
        let served = servers.http.served();
        let here = links.get(network.link.as_str()).is_some_and(|link| {
            let own = |at: Ipv4Addr| served.iter().any(|served| *served.ip() == at);
            link.addresses.iter().any(|have| own(have.addr()))
        });
        if !here {
            return Err(no_address(network));
        }
        let depot = self.depot.clone().ok_or(
            "the depot can't be opened: look at the state directory's owner, mode and free space",
        )?;
        let spec = self.site.spec();
        let profiles: BTreeSet<_> = self
            .spec
            .groups
            .iter()
            .map(|group| &group.profile)
            .collect();
        let profiles = profiles.into_iter().filter_map(|name| spec.profile(name));
        let files: Vec<_> = profiles
            .flat_map(|profile| profile.files().cloned())
            .collect();
        let count = files.len();
        let gone = tokio::task::spawn_blocking(move || {
            files
                .into_iter()
                .find(|file| !depot.path(&file.digest).is_file())
        });
        let gone = gone
            .await
            .expect("looking at files does not panic, and nobody aborts it");
        match gone {
            None => Ok(format!(
                "served on {}, {count} files are there",
                network.link
            )),
            Some(file) => Err(format!(
                "{} ({}) is not in the depot: import or pull it again; `reveille image list` has the names",
                file.file, file.digest
            )),
        }
    }
}

/// Why a room does not serve a network's link.
fn must_serve<const ROOMS: usize>(
    network: &Network,
    faults: [BTreeMap<LinkName, String>; ROOMS],
) -> Result<(), String> {
    let told = faults
        .into_iter()
        .find_map(|mut faults| faults.remove(&network.link));
    told.map_or(Ok(()), Err)
}

fn no_address(network: &Network) -> String {
    format!(
        "link {} is not served: give it an address in {}, and see `reveille host status`",
        network.link, network.subnet
    )
}

fn listed(addresses: &[Ipv4Addr]) -> String {
    match addresses {
        [] => "nowhere".to_owned(),
        some => some
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// Looks at what others have: a connection, and an answer where a path is asked for.
pub(crate) async fn reach(target: &Target) -> Looked {
    let remedy = "start it, let the bastion through, or correct `configuration`";
    match timeout(ANSWER_TIME, ask(target)).await {
        Ok(Ok(words)) => Ok(words),
        Ok(Err(why)) => Err(format!("{target}: {why}; {remedy}")),
        Err(_) => {
            let seconds = ANSWER_TIME.as_secs();
            Err(format!("{target}: no answer within {seconds} s; {remedy}"))
        }
    }
}

async fn ask(target: &Target) -> Looked {
    let said = |error: std::io::Error| error.to_string();
    let host = match &target.host {
        Host::Address(address) => address.to_string(),
        Host::Name(name) => name.to_string(),
    };
    let addresses = lookup_host((host.as_str(), target.port)).await;
    let addresses: Vec<_> = addresses.map_err(said)?.collect();
    let stream = TcpStream::connect(&addresses[..]).await.map_err(said)?;
    let Some(Get { tls, path }) = &target.get else {
        return Ok(format!("{target} takes connections"));
    };
    let authority = format!("{}:{}", target.host, target.port);
    let answered = match tls {
        false => glance(stream, &authority, path).await,
        true => {
            let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
            let tls = untrusting().map_err(|error| error.to_string())?;
            let stream = tls.connect(name, stream).await.map_err(said)?;
            glance(stream, &authority, path).await
        }
    };
    match answered.map_err(said)? {
        Some(status @ 200..=399) => Ok(format!("{status} from {target}")),
        Some(status) => Err(format!("it answers {status}")),
        None => Err("it answers no HTTP".to_owned()),
    }
}
