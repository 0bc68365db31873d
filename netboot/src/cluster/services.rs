//! What a cluster leans on, and in which order it is started. Pure: `dependsOn` first, then `startupOrder`, then
//! the name.

use std::collections::{BTreeMap, BTreeSet};

/// One service that a definition asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique in its cluster.
    pub name: String,
    /// What it is.
    pub kind: ServiceKind,
    /// Names of services that must be up before it.
    pub depends_on: Vec<String>,
    /// Whether the cluster's phases wait for it.
    pub required: bool,
    /// Among services that don't depend on each other, the lower one starts first.
    pub startup_order: u32,
    /// Its `configuration`, as written.
    pub configuration: std::sync::Arc<serde_json::Value>,
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

/// Why services have no start order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceFault {
    /// `depends_on` names a service that isn't there.
    Unknown {
        /// Whose.
        service: String,
        /// What it named.
        wanted: String,
    },
    /// They wait for each other, in a ring that ends where it began.
    Cycle(Vec<String>),
    /// A service starts by its number before one that it depends on.
    Order {
        /// Which.
        service: String,
        /// The one it depends on, with a higher number.
        after: String,
    },
}

/// The names in start order; stopping is the same list upwards.
///
/// # Errors
/// Every fault.
pub fn start_order(services: &[Service]) -> Result<Vec<&Service>, Vec<ServiceFault>> {
    let by_name: BTreeMap<&str, &Service> = services
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect();
    let mut faults = Vec::new();
    for service in services {
        for wanted in &service.depends_on {
            let fault = match by_name.get(wanted.as_str()) {
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
    let mut started: BTreeSet<&str> = BTreeSet::new();
    let mut order = Vec::with_capacity(services.len());
    while order.len() < services.len() {
        let ready = |service: &&&Service| {
            !started.contains(service.name.as_str())
                && service.depends_on.iter().all(|wanted| {
                    started.contains(wanted.as_str()) || !by_name.contains_key(wanted.as_str())
                })
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
fn ring(by_name: &BTreeMap<&str, &Service>, started: &BTreeSet<&str>) -> Vec<String> {
    let mut walk: Vec<&str> = Vec::new();
    let mut here = by_name.keys().copied().find(|name| !started.contains(name));
    while let Some(name) = here {
        if let Some(begin) = walk.iter().position(|seen| *seen == name) {
            let ring = walk[begin..].iter().chain([&name]);
            return ring.map(|name| (*name).to_owned()).collect();
        }
        walk.push(name);
        let wanted = by_name
            .get(name)
            .into_iter()
            .flat_map(|service| &service.depends_on);
        here = wanted
            .map(String::as_str)
            .find(|name| by_name.contains_key(name) && !started.contains(name));
    }
    walk.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, order: u32, depends_on: &[&str]) -> Service {
        Service {
            name: name.to_owned(),
            kind: ServiceKind::Dns,
            depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
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
            service: "d".to_owned(),
            wanted: "e".to_owned()
        }));
        assert!(faults.contains(&ServiceFault::Order {
            service: "d".to_owned(),
            after: "f".to_owned()
        }));
        assert!(faults.contains(&ServiceFault::Cycle(
            ["a", "b", "c", "a"].map(str::to_owned).to_vec()
        )));
    }
}
