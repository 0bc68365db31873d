//! Who may boot when, and what is waited for, side by side.
//!
//! ```text
//!                OKD                            Talos                       k3s
//!   bootstrap    bootstrap + control planes     the first control plane     the first server
//!                bootstrap-complete and         bootstrapped                api, node-ready, etcd-member
//!                bootstrap-member-removed
//!   control-     -                              the other control planes    servers, one by one
//!   plane        machine-config-server of one   etcd-member, node-ready     etcd-member, node-ready
//!   worker       workers                        workers                     agents, 50 at a time
//!                node-ready                     node-ready                  node-ready
//!   addon        version-available and          healthy                     -
//!                operators-settled
//! ```
//!
//! Never a timer: each line is evidence that somebody saw. OKD's control planes wait for the bootstrap machine by
//! themselves, so they may start beside it; k3s' servers refuse each other while etcd takes one in.
//!
//! Ugly fact. Where a definition leaves the network plugin to a person, no node is Ready before it was installed, and the
//! phases wait for that.

use netboot::cluster::{Admit, Course, FactName, Gate, Order, Phase, Role, Stage};

/// What a definition may ask to be seen before its cluster is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthCheck {
    /// OKD's operators have settled.
    ClusterOperators,
    /// Every node is ready.
    NodeReadiness,
    /// The API answers.
    ApiAvailability,
}

impl HealthCheck {
    /// The word in definitions.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ClusterOperators => "cluster-operators",
            Self::NodeReadiness => "node-readiness",
            Self::ApiAvailability => "api-availability",
        }
    }

    /// The evidence for it, where every platform has it.
    pub(super) fn common(self) -> Option<Vec<Gate>> {
        match self {
            Self::ClusterOperators => None,
            Self::NodeReadiness => {
                let mut gates = vec![Gate::Every(Role::ControlPlane, fact("node-ready"))];
                gates.extend(workers_ready());
                Some(gates)
            }
            Self::ApiAvailability => Some(vec![known("api")]),
        }
    }
}

/// Agents that may join at the same time: each asks its server for certificates.
const AGENTS: u16 = 50;

pub(super) fn okd() -> Course {
    Course {
        phases: vec![
            Phase {
                admits: vec![
                    admit(Role::Bootstrap, Order::Together),
                    admit(Role::ControlPlane, Order::Together),
                ],
                gates: vec![
                    known("bootstrap-complete"),
                    known("bootstrap-member-removed"),
                ],
                retires: Some(Role::Bootstrap),
                stage: Stage::Bootstrap,
            },
            phase(
                Stage::ControlPlane,
                Vec::new(),
                vec![Gate::Any(Role::ControlPlane, fact("machine-config-server"))],
            ),
            phase(Stage::Worker, workers(&Order::Together), workers_ready()),
            phase(Stage::Addon, Vec::new(), operators_settled()),
            phase(Stage::Ready, Vec::new(), Vec::new()),
        ],
    }
}

pub(super) fn talos() -> Course {
    Course {
        phases: vec![
            phase(
                Stage::Bootstrap,
                vec![admit(Role::ControlPlane, Order::First)],
                vec![known("bootstrapped")],
            ),
            phase(
                Stage::ControlPlane,
                vec![admit(Role::ControlPlane, Order::Together)],
                servers_joined(),
            ),
            phase(Stage::Worker, workers(&Order::Together), workers_ready()),
            phase(Stage::Addon, Vec::new(), vec![known("healthy")]),
            phase(Stage::Ready, Vec::new(), Vec::new()),
        ],
    }
}

pub(super) fn k3s() -> Course {
    let one_by_one = Order::Batches {
        size: 1,
        until: vec![fact("node-ready"), fact("etcd-member")],
    };
    let agents = Order::Batches {
        size: AGENTS,
        until: vec![fact("node-ready")],
    };
    Course {
        phases: vec![
            phase(
                Stage::Bootstrap,
                vec![admit(Role::ControlPlane, Order::First)],
                vec![
                    known("api"),
                    Gate::Any(Role::ControlPlane, fact("node-ready")),
                    Gate::Any(Role::ControlPlane, fact("etcd-member")),
                ],
            ),
            phase(
                Stage::ControlPlane,
                vec![admit(Role::ControlPlane, one_by_one)],
                servers_joined(),
            ),
            phase(Stage::Worker, workers(&agents), workers_ready()),
            phase(Stage::Ready, Vec::new(), Vec::new()),
        ],
    }
}

fn phase(stage: Stage, admits: Vec<Admit>, gates: Vec<Gate>) -> Phase {
    Phase {
        stage,
        admits,
        gates,
        retires: None,
    }
}

fn admit(role: Role, order: Order) -> Admit {
    Admit { role, order }
}

fn workers(order: &Order) -> Vec<Admit> {
    [Role::Worker, Role::Infra]
        .map(|role| admit(role, order.clone()))
        .into()
}

pub(super) fn operators_settled() -> Vec<Gate> {
    vec![known("version-available"), known("operators-settled")]
}

fn workers_ready() -> Vec<Gate> {
    [Role::Worker, Role::Infra]
        .map(|role| Gate::Every(role, fact("node-ready")))
        .into()
}

fn servers_joined() -> Vec<Gate> {
    ["etcd-member", "node-ready"]
        .map(|word| Gate::Every(Role::ControlPlane, fact(word)))
        .into()
}

fn known(word: &str) -> Gate {
    Gate::Fact(fact(word))
}

fn fact(word: &str) -> FactName {
    word.parse().expect("the words of this file are names")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Platform;

    #[test]
    fn every_role_of_a_platform_boots_in_some_phase_and_stages_come_in_order() {
        for platform in Platform::ALL {
            let course = platform.course();
            let stages: Vec<Stage> = course.phases.iter().map(|phase| phase.stage).collect();
            assert!(
                stages.is_sorted() && stages.last() == Some(&Stage::Ready),
                "{stages:?}"
            );
            for role in Role::ALL {
                let wanted = match role {
                    Role::Bastion => false,
                    Role::Bootstrap => platform == Platform::Okd,
                    Role::ControlPlane | Role::Worker | Role::Infra => true,
                };
                assert_eq!(course.admits(role), wanted, "{platform} {role}");
            }
        }
    }

    #[test]
    fn what_is_asked_for_besides_is_seen_before_the_end_and_no_gate_is_there_twice() {
        for platform in Platform::ALL {
            let mut course = platform.course();
            let asked = [
                HealthCheck::ClusterOperators,
                HealthCheck::NodeReadiness,
                HealthCheck::ApiAvailability,
            ];
            let gates: Vec<Gate> = asked
                .into_iter()
                .filter_map(|check| platform.evidence(check))
                .flatten()
                .collect();
            course.also(gates.clone());
            course.also(gates.clone());
            let all: Vec<&Gate> = course
                .phases
                .iter()
                .flat_map(|phase| &phase.gates)
                .collect();
            for gate in &gates {
                let times = all.iter().filter(|other| **other == gate).count();
                assert!(times >= 1, "{platform} {gate:?}");
            }
            let before: usize = platform
                .course()
                .phases
                .iter()
                .map(|phase| phase.gates.len())
                .sum();
            assert!(all.len() <= before + gates.len());
            assert_eq!(course.phases.last().map(|last| last.gates.len()), Some(0));
        }
    }

    #[test]
    fn no_worker_boots_before_a_phase_with_a_gate_of_the_control_plane() {
        for platform in Platform::ALL {
            let phases = platform.course().phases;
            let worker =
                |phase: &Phase| phase.admits.iter().any(|admit| admit.role == Role::Worker);
            let first = phases.iter().position(worker).unwrap();
            assert!(
                phases[..first].iter().all(|phase| !phase.gates.is_empty()),
                "{platform}"
            );
        }
    }
}
