//! What a cluster leans on: in which order it is started, how each service is, and which of them hold the cluster.
//!
//! ```text
//!   dependsOn, startupOrder ──▶ before()    what must have been up before a service is started
//!   latched facts           ──▶ started     never taken back, so that a flicker of DNS shuts no listener
//!   latest looks            ──▶ state       up, starting, waits, failed; a required one that is not up holds
//! ```
//!
//! That a service was up once is a fact of the cluster, `service-NAME`, known for good like every fact; what depends on
//! it is started from then on. How it is now is the latest look at that fact. A look that is bad takes no turn away
//! from a machine that used it: it only keeps others from beginning, and the phase from ending.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::{ClusterSpec, ClusterState, FactKey, FactName, Look, Target};
use crate::net::Name;

/// The kind of [`ServiceName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfService {}

/// A service's name in its cluster, at most [`SERVICE_NAME_MAX`] letters.
pub type ServiceName = Name<OfService>;

/// What the fact of a service begins with.
const FACT: &str = "service-";
/// Letters of a service's name: its fact is one label (RFC 1123, section 2.1).
pub const SERVICE_NAME_MAX: usize = 63 - FACT.len();

/// One service that a definition asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique in its cluster.
    pub name: ServiceName,
    /// What it is.
    pub kind: ServiceKind,
    /// Who does it.
    pub provider: Provider,
    /// Names of services that must be up before it.
    pub depends_on: Vec<ServiceName>,
    /// Whether the cluster waits for it.
    pub required: bool,
    /// The required ones of a lower number must be up before it, too.
    pub startup_order: u32,
    /// Its `configuration`, as written.
    pub configuration: Arc<serde_json::Value>,
}

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
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

impl ServiceKind {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::LoadBalancer => "load-balancer",
            Self::Dns => "dns",
            Self::Dhcp => "dhcp",
            Self::PxeBoot => "pxe-boot",
            Self::Storage => "storage",
            Self::Monitoring => "monitoring",
        }
    }
}

/// Who does a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// This bastion.
    Builtin,
    /// Others; without a target nobody looks at it, and it is taken on trust.
    External(Option<Target>),
    /// Others, where the site says: what its clusters need there is looked at.
    Elsewhere,
    /// Nobody: the cluster does without, and what depends on it does not wait.
    Off,
}

impl Provider {
    /// The word in definitions, tables and JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::External(_) | Self::Elsewhere => "external",
            Self::Off => "off",
        }
    }
}

/// How a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// The latest look found it so.
    Up,
    /// It is started, and nobody has looked since; after a start of the daemon, too.
    Starting,
    /// These must be up first.
    Waits(Vec<ServiceName>),
    /// What the latest look showed.
    Failed(String),
    /// Others have it, and nothing says where to look.
    Trusted,
    /// See [`Provider::Off`].
    Off,
    /// The cluster is being taken away.
    Stopped,
}

impl ServiceState {
    /// Whether a cluster that requires it may go on.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(self, Self::Up | Self::Trusted | Self::Off)
    }

    /// The word in tables and JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Starting => "starting",
            Self::Waits(_) => "waits",
            Self::Failed(_) => "failed",
            Self::Trusted => "by others",
            Self::Off => "off",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waits(names) => {
                let names: Vec<&str> = names.iter().map(ServiceName::as_str).collect();
                write!(f, "waits for {}", names.join(", "))
            }
            Self::Failed(words) => f.write_str(words),
            Self::Trusted => f.write_str("by others, not looked at"),
            Self::Up | Self::Starting | Self::Off | Self::Stopped => f.write_str(self.word()),
        }
    }
}

/// A required service that is not up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Which.
    pub service: ServiceName,
    /// How it is instead.
    pub state: ServiceState,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {} (required): {}", self.service, self.state)
    }
}

impl Service {
    /// The fact that it was up.
    ///
    /// # Panics
    /// Never: a name that is too long is refused when its definition is read.
    #[must_use]
    pub fn fact(&self) -> FactName {
        let fact = format!("{FACT}{}", self.name).parse();
        fact.expect("a service's name leaves room for what its fact begins with")
    }

    /// Whether anybody can look at it.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(
            self.provider,
            Provider::Builtin | Provider::External(Some(_)) | Provider::Elsewhere
        )
    }

    /// What must have been up before it is started.
    fn before<'a>(&self, all: &'a [Self]) -> impl Iterator<Item = &'a Self> {
        all.iter().filter(|other| {
            let earlier = other.required && other.startup_order < self.startup_order;
            other.is_watched() && (earlier || self.depends_on.contains(&other.name))
        })
    }
}

impl ClusterState {
    /// How each service is, in start order.
    #[must_use]
    pub fn services<'a>(&self, spec: &'a ClusterSpec) -> Vec<(&'a Service, ServiceState)> {
        // Definitions without an order are refused when they are read.
        let order = start_order(&spec.needs).unwrap_or_default();
        let state = |service: &'a Service| (service, self.state_of(service, spec));
        order.into_iter().map(state).collect()
    }

    /// The services that are started and can be looked at, in file order.
    pub fn watched<'a>(&self, spec: &'a ClusterSpec) -> impl Iterator<Item = &'a Service> {
        let started = |service: &&Service| service.is_watched() && self.is_started(service, spec);
        spec.needs.iter().filter(started)
    }

    /// Whether this bastion does what services of a kind are there for: it is not listed, or started.
    #[must_use]
    pub fn does(&self, kind: ServiceKind, spec: &ClusterSpec) -> bool {
        let mut of_kind = spec
            .needs
            .iter()
            .filter(|service| service.kind == kind)
            .peekable();
        let started = |service: &Service| {
            service.provider == Provider::Builtin && self.is_started(service, spec)
        };
        of_kind.peek().is_none() || of_kind.any(started)
    }

    /// The required services that are not up: while there are any, no machine begins and the phase does not end.
    #[must_use]
    pub fn down(&self, spec: &ClusterSpec) -> Vec<Down> {
        let required = spec.needs.iter().filter(|service| service.required);
        let down = required.map(|service| Down {
            service: service.name.clone(),
            state: self.state_of(service, spec),
        });
        down.filter(|down| !down.state.serves()).collect()
    }

    fn state_of(&self, service: &Service, spec: &ClusterSpec) -> ServiceState {
        match service.provider {
            Provider::Off => return ServiceState::Off,
            Provider::External(None) => return ServiceState::Trusted,
            Provider::Builtin | Provider::External(Some(_)) | Provider::Elsewhere => {}
        }
        if self.is_stopped(service, spec) {
            return ServiceState::Stopped;
        }
        let waits = self.waits_for(service, spec);
        if !waits.is_empty() {
            return ServiceState::Waits(waits);
        }
        match self.look_at(service) {
            Some(Look { holds: true, .. }) => ServiceState::Up,
            Some(Look { words, .. }) => ServiceState::Failed(words.clone()),
            None => ServiceState::Starting,
        }
    }

    /// The latest look at a service, since the daemon started.
    #[must_use]
    pub fn look_at(&self, service: &Service) -> Option<&Look> {
        self.looks.get(&FactKey {
            node: None,
            fact: service.fact(),
        })
    }

    fn is_started(&self, service: &Service, spec: &ClusterSpec) -> bool {
        !self.is_stopped(service, spec) && self.waits_for(service, spec).is_empty()
    }

    /// Whether a service is among the last of the start order that are stopped already.
    fn is_stopped(&self, service: &Service, spec: &ClusterSpec) -> bool {
        if self.stopped == 0 {
            return false;
        }
        let order = start_order(&spec.needs).unwrap_or_default();
        let mut last = order.iter().rev().take(self.stopped);
        last.any(|other| other.name == service.name)
    }

    /// What keeps a service from being started. One that was up is started for good.
    fn waits_for(&self, service: &Service, spec: &ClusterSpec) -> Vec<ServiceName> {
        let was_up = |service: &Service| self.knows(&service.fact(), None);
        if was_up(service) {
            return Vec::new();
        }
        let before = service.before(&spec.needs);
        let missing = before.filter(|other| !was_up(other));
        missing.map(|other| other.name.clone()).collect()
    }
}

/// Why services have no start order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceFault {
    /// `depends_on` names a service that isn't there.
    Unknown {
        /// Whose.
        service: ServiceName,
        /// What it named.
        wanted: ServiceName,
    },
    /// They wait for each other, in a ring that ends where it began.
    Cycle(Vec<ServiceName>),
    /// A service starts by its number before one that it depends on.
    Order {
        /// Which.
        service: ServiceName,
        /// The one it depends on, with a higher number.
        after: ServiceName,
    },
}

/// The services in start order: `depends_on` first, then the number, then the name. Stopping is the same list upwards.
///
/// # Errors
/// Every fault.
pub fn start_order(services: &[Service]) -> Result<Vec<&Service>, Vec<ServiceFault>> {
    let by_name: BTreeMap<&ServiceName, &Service> = services
        .iter()
        .map(|service| (&service.name, service))
        .collect();
    let mut faults = Vec::new();
    for service in services {
        for wanted in &service.depends_on {
            let fault = match by_name.get(wanted) {
                None => ServiceFault::Unknown {
                    service: service.name.clone(),
                    wanted: wanted.clone(),
                },
                Some(other) if other.startup_order > service.startup_order => ServiceFault::Order {
                    service: service.name.clone(),
                    after: wanted.clone(),
                },
                Some(_) => continue,
            };
            faults.push(fault);
        }
    }
    let mut started: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut order = Vec::with_capacity(services.len());
    while order.len() < services.len() {
        let ready = |service: &&&Service| {
            !started.contains(&service.name)
                && service
                    .depends_on
                    .iter()
                    .all(|wanted| started.contains(wanted) || !by_name.contains_key(wanted))
        };
        let next = by_name
            .values()
            .filter(ready)
            .min_by_key(|service| (service.startup_order, &service.name));
        let Some(next) = next else {
            faults.push(ServiceFault::Cycle(ring(&by_name, &started)));
            break;
        };
        started.insert(&next.name);
        order.push(*next);
        if order.len() == by_name.len() {
            break;
        }
    }
    if faults.is_empty() {
        Ok(order)
    } else {
        Err(faults)
    }
}

/// One ring among the services that never start: follow what each waits for until a name comes again.
fn ring<'a>(
    by_name: &BTreeMap<&'a ServiceName, &'a Service>,
    started: &BTreeSet<&ServiceName>,
) -> Vec<ServiceName> {
    let mut walk: Vec<&ServiceName> = Vec::new();
    let mut here = by_name.keys().copied().find(|name| !started.contains(name));
    while let Some(name) = here {
        if let Some(begin) = walk.iter().position(|seen| *seen == name) {
            let ring = walk[begin..].iter().chain([&name]);
            return ring.map(|name| (*name).clone()).collect();
        }
        walk.push(name);
        let wanted = by_name
            .get(name)
            .into_iter()
            .flat_map(|service| &service.depends_on);
        let mut stuck = wanted.filter(|name| by_name.contains_key(name) && !started.contains(name));
        here = stuck.next();
    }
    walk.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, order: u32, depends_on: &[&str]) -> Service {
        Service {
            name: name.parse().unwrap(),
            kind: ServiceKind::Dns,
            provider: Provider::Builtin,
            depends_on: depends_on
                .iter()
                .map(|name| name.parse().unwrap())
                .collect(),
            required: true,
            startup_order: order,
            configuration: serde_json::Value::Null.into(),
        }
    }

    #[test]
    fn services_start_after_what_they_depend_on_then_by_number_then_by_name() {
        let services = [
            service("pxe", 2, &["lb"]),
            service("dns", 2, &[]),
            service("lb", 1, &[]),
            service("a", 3, &[]),
        ];
        let order = start_order(&services).unwrap();
        let names: Vec<&str> = order.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["lb", "dns", "pxe", "a"]);
    }

    #[test]
    fn a_ring_an_unknown_name_and_a_wrong_number_are_all_told_at_once() {
        let services = [
            service("a", 1, &["b"]),
            service("b", 1, &["c"]),
            service("c", 1, &["a"]),
            service("d", 1, &["e", "f"]),
            service("f", 2, &[]),
        ];
        let faults = start_order(&services).unwrap_err();
        assert!(faults.contains(&ServiceFault::Unknown {
            service: "d".parse().unwrap(),
            wanted: "e".parse().unwrap()
        }));
        assert!(faults.contains(&ServiceFault::Order {
            service: "d".parse().unwrap(),
            after: "f".parse().unwrap()
        }));
        assert!(
            faults.contains(&ServiceFault::Cycle(
                ["a", "b", "c", "a"]
                    .map(|name| name.parse().unwrap())
                    .to_vec()
            ))
        );
    }
}
