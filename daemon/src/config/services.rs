//! What a cluster definition says of the services it leans on, and of how its making is followed: each judged by itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use ignition::platform::{HealthCheck, Platform};
use netboot::cluster::{
    Course, Provider, SERVICE_NAME_MAX, Service, ServiceKind, ServiceName, Target, Validation,
};
use netboot::net::Malformed;
use netboot::spec::{Mode, Network};
use netboot::zone::DnsMode;
use serde_json::Value;

use super::BalancerEngine;
use super::fault::{Faults, Place};
use super::file;
use super::free::Free;
use super::judge::{list, missing, need};
use super::read::Given;
use super::site::SiteFile;

/// What a service is judged beside.
#[derive(Clone, Copy)]
pub(super) struct Served<'a> {
    pub(super) site: &'a SiteFile,
    pub(super) network: Option<&'a Network>,
    pub(super) faults: &'a Faults,
}

impl Served<'_> {
    /// Judges one service; `None` when it is too faulty to be compared with others.
    pub(super) fn service(self, entry: &file::Service, item: Place) -> Option<Service> {
        let faults = self.faults;
        let file::Service {
            name,
            kind,
            configuration,
            depends_on,
            required,
            startup_order,
        } = entry;
        let own: Option<ServiceName> = need(faults, "name", name, item);
        if let (Some(own), Some(place)) = (&own, name.place())
            && own.as_str().len() > SERVICE_NAME_MAX
        {
            let remedy = format!("use at most {SERVICE_NAME_MAX} letters");
            faults.add(place, "name", own.as_str(), "is too long", remedy);
            return None;
        }
        if kind.is_absent() {
            missing(faults, "type", item);
        }
        let kind = kind.value().map(|kind| match kind {
            file::ServiceType::LoadBalancer => ServiceKind::LoadBalancer,
            file::ServiceType::Dns => ServiceKind::Dns,
            file::ServiceType::Dhcp => ServiceKind::Dhcp,
            file::ServiceType::PxeBoot => ServiceKind::PxeBoot,
            file::ServiceType::Storage => ServiceKind::Storage,
            file::ServiceType::Monitoring => ServiceKind::Monitoring,
        });
        let provider = self.provider(kind?, configuration);
        let wanted = list(faults, "dependsOn", depends_on, super::judge::parse);
        let whole = wanted.len() == depends_on.value().map_or(0, Vec::len);
        let plain = configuration.value().map_or(Value::Null, Free::plain);
        Some(Service {
            name: own?,
            kind: kind?,
            provider: provider?,
            depends_on: whole.then_some(wanted)?,
            required: required.value().copied().unwrap_or(true),
            startup_order: startup_order.value().copied().unwrap_or(0),
            configuration: Arc::new(plain),
        })
    }

    /// Who does it: the word of `configuration.mode`, else who does it for the site; `None` after a fault.
    fn provider(self, kind: ServiceKind, given: &Given<Free>) -> Option<Provider> {
        let told = Told {
            place: given.place().unwrap_or_default(),
            value: given.value().map_or(Value::Null, Free::plain),
            free: given.value(),
            faults: self.faults,
        };
        let here = self.not_here(kind);
        let mode = told.text("mode")?;
        match mode.as_deref() {
            Some("builtin") => {
                if let Some((problem, remedy)) = here {
                    told.fault("mode", "builtin", problem, remedy);
                    return None;
                }
                for key in ["address", "url"] {
                    if let Some(value) = told.text(key)? {
                        let problem = "is where others have it, and it is done here";
                        told.fault(
                            key,
                            &value,
                            problem,
                            "write `mode: external`, or take it out",
                        );
                        return None;
                    }
                }
                Some(Provider::Builtin)
            }
            Some("external") => told.target().map(|target| self.by_others(kind, target)),
            Some("off") => Some(Provider::Off),
            Some(other) => {
                let remedy = "write builtin, external or off";
                told.fault("mode", other, "is not known here", remedy);
                None
            }
            None if here.is_none() => Some(Provider::Builtin),
            None => match (told.target()?, kind) {
                (None, ServiceKind::LoadBalancer | ServiceKind::Dns) if self.is_off(kind) => {
                    Some(Provider::Off)
                }
                (target, _) => Some(self.by_others(kind, target)),
            },
        }
    }

    /// Why this bastion doesn't do it, and what to do about that.
    fn not_here(self, kind: ServiceKind) -> Option<(&'static str, &'static str)> {
        let network = self.network.map(|network| network.mode);
        match kind {
            ServiceKind::LoadBalancer => match self.site.settings.balancer {
                BalancerEngine::Embedded | BalancerEngine::Haproxy => None,
                BalancerEngine::Off => Some((
                    "is not done here: `balancer.engine` of site.yaml is off",
                    "write external or off, or let the site's balancer run",
                )),
                BalancerEngine::External => Some((
                    "is not done here: `balancer.engine` of site.yaml is external",
                    "write external, or let the site's balancer run",
                )),
            },
            ServiceKind::Dns if self.site.dns.mode != DnsMode::Serve => Some((
                "is not done here: `dns.mode` of site.yaml is not serve",
                "write external or off, or `dns: { mode: serve }` in site.yaml",
            )),
            ServiceKind::Dhcp | ServiceKind::PxeBoot if network == Some(Mode::Off) => Some((
                "is not done here: the cluster's network has `mode: off`",
                "write external or off, or give the network another mode",
            )),
            ServiceKind::Storage | ServiceKind::Monitoring => Some((
                "is not done here: others bring it",
                "write external, with `address: HOST:PORT` or `url: https://…` to have it looked at",
            )),
            ServiceKind::Dns | ServiceKind::Dhcp | ServiceKind::PxeBoot => None,
        }
    }

    /// Others do it: where it says itself where, there; else where the site says it of all clusters.
    fn by_others(self, kind: ServiceKind, target: Option<Target>) -> Provider {
        let elsewhere = match kind {
            ServiceKind::LoadBalancer => self.site.settings.balancer == BalancerEngine::External,
            ServiceKind::Dns => self.site.dns.mode == DnsMode::External,
            ServiceKind::Dhcp
            | ServiceKind::PxeBoot
            | ServiceKind::Storage
            | ServiceKind::Monitoring => false,
        };
        match target {
            None if elsewhere => Provider::Elsewhere,
            target => Provider::External(target),
        }
    }

    /// Whether the site does without it.
    fn is_off(self, kind: ServiceKind) -> bool {
        match kind {
            ServiceKind::LoadBalancer => self.site.settings.balancer == BalancerEngine::Off,
            ServiceKind::Dns => self.site.dns.mode == DnsMode::Off,
            ServiceKind::Dhcp
            | ServiceKind::PxeBoot
            | ServiceKind::Storage
            | ServiceKind::Monitoring => false,
        }
    }
}

/// A service's `configuration`.
struct Told<'a> {
    place: Place,
    value: Value,
    free: Option<&'a Free>,
    faults: &'a Faults,
}

impl Told<'_> {
    fn fault(&self, key: &str, value: &str, problem: &str, remedy: &str) {
        let place = self.free.and_then(|free| free.place_of(&format!("/{key}")));
        let place = place.unwrap_or(self.place);
        self.faults.add(place, key, value, problem, remedy);
    }

    /// A key's text, if it is there; `None` after a fault.
    fn text(&self, key: &str) -> Option<Option<String>> {
        match self.value.get(key) {
            None | Some(Value::Null) => Some(None),
            Some(Value::String(text)) => Some(Some(text.clone())),
            Some(other) => {
                self.fault(key, &other.to_string(), "is not text", "put it in quotes");
                None
            }
        }
    }

    /// Where it is looked at, if anywhere; `None` after a fault.
    fn target(&self) -> Option<Option<Target>> {
        let (address, url) = (self.text("address")?, self.text("url")?);
        let parsed = |key, parsed: Result<Target, Malformed>| match parsed {
            Ok(target) => Some(Some(target)),
            Err(malformed) => {
                let place = self.free.and_then(|free| free.place_of(&format!("/{key}")));
                let place = place.unwrap_or(self.place);
                self.faults.add_malformed(place, key, &malformed);
                None
            }
        };
        match (address, url) {
            (None, None) => Some(None),
            (Some(address), None) => parsed("address", Target::of_address(&address)),
            (None, Some(url)) => parsed("url", Target::of_url(&url)),
            (Some(_), Some(url)) => {
                self.fault(
                    "url",
                    &url,
                    "is given beside `address`",
                    "take one of the two out",
                );
                None
            }
        }
    }
}

/// Judges how a cluster's making is followed; what must be seen before its end is added to its course.
pub(super) fn validation(
    given: &Given<file::Validation>,
    platform: Option<Platform>,
    course: &mut Course,
    faults: &Faults,
) -> Validation {
    let absent = file::Validation::default();
    let file::Validation {
        wait_for_cluster,
        timeout_minutes,
        health_checks,
    } = given.value().unwrap_or(&absent);
    if let Some((place, 0)) = timeout_minutes.good().map(|(place, given)| (place, *given)) {
        let remedy = "write 1 to 65535, or take it out";
        faults.add(place, "timeoutMinutes", "0", "is no time at all", remedy);
    }
    let checks = health_checks.value().into_iter().flatten();
    let mut seen = BTreeSet::new();
    for (place, check) in checks.filter_map(Given::good) {
        let check = match check {
            file::HealthCheck::ClusterOperators => HealthCheck::ClusterOperators,
            file::HealthCheck::NodeReadiness => HealthCheck::NodeReadiness,
            file::HealthCheck::ApiAvailability => HealthCheck::ApiAvailability,
        };
        if !seen.insert(check) {
            let remedy = "name each check once";
            faults.add(
                place,
                "healthChecks",
                check.word(),
                "is there twice",
                remedy,
            );
            continue;
        }
        let Some(platform) = platform else { continue };
        match platform.evidence(check) {
            Some(gates) => course.also(gates),
            None => {
                let problem = format!("is nothing that {platform} shows");
                let remedy =
                    "write node-readiness and api-availability, which every platform shows";
                faults.add(place, "healthChecks", check.word(), problem, remedy);
            }
        }
    }
    Validation {
        wait: wait_for_cluster.value().copied().unwrap_or(false),
        timeout_minutes: timeout_minutes.value().copied(),
    }
}
