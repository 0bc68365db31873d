//! The order in which a Talos cluster comes up.
//!
//! ```text
//!   Bootstrap      the first control plane alone      until its etcd was bootstrapped and the API answers
//!   ControlPlane   the other control planes           until each is a member of etcd
//!   Worker         workers and infra                  until Talos' API answers on each
//!   Addon          nobody new                         until the cluster calls itself healthy
//! ```
//!
//! Ugly facts. Bootstrapping twice makes two clusters, so nobody else is there yet when it is done. A control plane that
//! finds no etcd to join gives up after half an hour and boots again (`EtcdJoinTimeout`, siderolabs/talos,
//! pkg/machinery/constants). Nodes are not waited for to be Ready: without a network plugin, which a patch may leave
//! for later, none ever is.

use netboot::cluster::{Admit, Course, FactName, Gate, Order, Phase, Role, Stage};

/// The phases of every Talos cluster.
#[must_use]
pub fn course() -> Course {
    let admit = |role, order| Admit { role, order };
    let phase = |stage, admits: &[Admit], gates: &[Gate]| Phase {
        stage,
        admits: admits.to_vec(),
        gates: gates.to_vec(),
        retires: None,
    };
    Course {
        phases: vec![
            phase(
                Stage::Bootstrap,
                &[admit(Role::ControlPlane, Order::First)],
                &[Gate::Fact(fact("bootstrapped")), Gate::Fact(fact("api"))],
            ),
            phase(
                Stage::ControlPlane,
                &[admit(Role::ControlPlane, Order::Together)],
                &[Gate::Every(Role::ControlPlane, fact("etcd-member"))],
            ),
            phase(
                Stage::Worker,
                &[
                    admit(Role::Worker, Order::Together),
                    admit(Role::Infra, Order::Together),
                ],
                &[
                    Gate::Every(Role::Worker, fact("machine-api")),
                    Gate::Every(Role::Infra, fact("machine-api")),
                ],
            ),
            phase(Stage::Addon, &[], &[Gate::Fact(fact("healthy"))]),
            phase(Stage::Ready, &[], &[]),
        ],
    }
}

fn fact(word: &str) -> FactName {
    word.parse()
        .expect("the words above are small letters and hyphens")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_boots_beside_the_first_control_plane_before_etcd_is_bootstrapped() {
        let course = course();
        assert_eq!(course.first(), Stage::Bootstrap);
        let first = course.phase(Stage::Bootstrap).expect("the first phase");
        let alone = Admit {
            role: Role::ControlPlane,
            order: Order::First,
        };
        assert_eq!(first.admits, [alone]);
        assert!(first.gates.contains(&Gate::Fact(fact("bootstrapped"))));
        for role in [Role::ControlPlane, Role::Worker, Role::Infra] {
            assert!(course.admits(role));
        }
        assert!(!course.admits(Role::Bootstrap), "Talos has none");
    }
}
