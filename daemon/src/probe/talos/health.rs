//! Whether a Talos cluster is healthy, by what its nodes say: the part of `talosctl health` that the machine API can
//! answer (siderolabs/talos `pkg/cluster/check/default.go`, `PreBootSequenceChecks`), under the same names.
//!
//! | check | upstream, in `pkg/cluster/check` |
//! |---|---|
//! | etcd to be healthy | `service.go` ServiceHealthAssertion, control planes |
//! | etcd members to be consistent across nodes | `etcd.go` EtcdConsistentAssertion |
//! | etcd members to be control plane nodes | `etcd.go` EtcdControlPlaneNodesAssertion |
//! | control plane nodes to be etcd members | ours: upstream is content with some of them |
//! | apid to be ready | `apid.go` ApidReadyAssertion, all nodes |
//! | no diagnostics | `diagnostics.go` NoDiagnostics, all nodes |
//! | kubelet to be healthy | `service.go` ServiceHealthAssertion, control planes |
//! | all nodes to finish boot sequence | `events.go` AllNodesBootedAssertion; ours reads the stage that follows from the same events |
//! | all nodes to be ready | ours: each node's own conditions, trustd and the kubelets of workers among them |
//!
//! Left out: the sizes of memory and disks, which an inventory knows before, and all that Kubernetes is asked.
//! Pure: what was seen goes in, checks with words come out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netboot::net::NodeName;

/// What one node said, or why it said nothing.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The machine.
    pub node: NodeName,
    /// Where it was asked, and where its etcd has to be.
    pub address: IpAddr,
    /// Whether etcd belongs on it.
    pub control_plane: bool,
    /// What it said; the words of why not.
    pub told: Result<Told, String>,
}

/// What a node said of itself. A part that it did not tell is the words of why.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its release, such as `v1.12.0`.
    pub version: String,
    /// Its services.
    pub services: Result<Vec<Service>, String>,
    /// How far it is.
    pub stage: Result<Stage, String>,
    /// What Talos warns of.
    pub diagnostics: Result<Vec<String>, String>,
    /// The members that its own etcd knows; asked of control planes only.
    pub members: Result<Vec<Member>, String>,
}

/// A service of Talos.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, such as `kubelet`.
    pub id: String,
    /// The state of its latest event; nothing when there was none yet.
    pub state: Option<String>,
    /// What the latest event said.
    pub message: String,
    /// Whether its health check says so.
    pub healthy: bool,
}

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The boot sequence is over.
    pub running: bool,
    /// The stage's word.
    pub word: &'static str,
    /// Nothing is amiss at this stage.
    pub ready: bool,
    /// What is amiss, each in words.
    pub unmet: Vec<String>,
}

/// A member of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// etcd's number for it.
    pub id: u64,
    /// Its name.
    pub hostname: String,
    /// It has no vote yet.
    pub learner: bool,
    /// Where it speaks with the others. A URL that names no address is left out.
    pub addresses: Vec<IpAddr>,
}

/// One check of the cluster's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// Whether it is so.
    pub ok: bool,
    /// Where it is not, and why; empty when it is.
    pub words: String,
}

/// Every check, in upstream's order.
#[must_use]
pub fn checks(witnesses: &[Witness]) -> Vec<Check> {
    let all: Vec<&Witness> = witnesses.iter().collect();
    let planes: Vec<&Witness> = witnesses.iter().filter(|w| w.control_plane).collect();
    let ours: BTreeSet<IpAddr> = planes.iter().map(|plane| plane.address).collect();
    vec![
        each("etcd to be healthy", &planes, |told, _| {
            healthy(told, "etcd")
        }),
        consistent(&planes),
        each(
            "etcd members to be control plane nodes",
            &planes,
            |told, _| no_others(told, &ours),
        ),
        each(
            "control plane nodes to be etcd members",
            &planes,
            |told, plane| votes(told, plane.address).map(|_| ()),
        ),
        each("apid to be ready", &all, |_, _| Ok(())),
        each("no diagnostics", &all, |told, _| {
            nothing(told.diagnostics.as_deref())
        }),
        each("kubelet to be healthy", &planes, |told, _| {
            healthy(told, "kubelet")
        }),
        each("all nodes to finish boot sequence", &all, |told, _| {
            let stage = told.stage.as_ref().map_err(Clone::clone)?;
            match stage.running {
                true => Ok(()),
                false => Err(format!("still {}", stage.word)),
            }
        }),
        each("all nodes to be ready", &all, |told, _| {
            let stage = told.stage.as_ref().map_err(Clone::clone)?;
            match (stage.ready, stage.unmet.as_slice()) {
                (true, _) => Ok(()),
                (false, []) => Err("not ready".to_owned()),
                (false, unmet) => Err(unmet.join("; ")),
            }
        }),
    ]
}

/// The votes in etcd, as this node's own etcd counts them; it has one of them itself.
///
/// # Errors
/// Why it has none: no etcd, not a member, still a learner.
pub fn votes(told: &Told, address: IpAddr) -> Result<usize, String> {
    let members = told.members.as_ref().map_err(Clone::clone)?;
    let own = members.iter().find(|m| m.addresses.contains(&address));
    match own {
        None => Err(format!("etcd has no member at {address}")),
        Some(own) if own.learner => Err("a learner in etcd, without a vote yet".to_owned()),
        Some(_) => Ok(members.iter().filter(|member| !member.learner).count()),
    }
}

/// A check that every node has to pass. Who did not answer does not pass it, and none at all pass nothing.
fn each(
    name: &'static str,
    asked: &[&Witness],
    ask: impl Fn(&Told, &Witness) -> Result<(), String>,
) -> Check {
    let fault = |witness: &&Witness| {
        let told = witness.told.as_ref().map_err(Clone::clone);
        let fault = told.and_then(|told| ask(told, witness)).err()?;
        Some(format!("{}: {fault}", witness.node))
    };
    let mut faults: Vec<String> = asked.iter().filter_map(fault).collect();
    if asked.is_empty() {
        faults.push("there is no such node".to_owned());
    }
    Check {
        name,
        ok: faults.is_empty(),
        words: faults.join("; "),
    }
}

/// Its latest event says `Running`, and its health check agrees. A service that a node does not list is not healthy
/// either: upstream counts the answers.
fn healthy(told: &Told, id: &str) -> Result<(), String> {
    let services = told.services.as_ref().map_err(Clone::clone)?;
    let Some(service) = services.iter().find(|service| service.id == id) else {
        return Err(format!("there is no service {id}"));
    };
    match service.state.as_deref() {
        None => Err(format!("{id} has not begun")),
        Some("Running") if service.healthy => Ok(()),
        Some("Running") => Err(format!("{id} runs and is not healthy")),
        Some(state) => Err(format!("{id} is {state}: {}", service.message)),
    }
}

fn nothing(warnings: Result<&[String], &String>) -> Result<(), String> {
    match warnings {
        Ok([]) => Ok(()),
        Ok(warnings) => Err(warnings.join("; ")),
        Err(why) => Err(why.clone()),
    }
}

fn no_others(told: &Told, ours: &BTreeSet<IpAddr>) -> Result<(), String> {
    let members = told.members.as_ref().map_err(Clone::clone)?;
    let all = members.iter().flat_map(|member| &member.addresses);
    let others = all.filter(|address| !ours.contains(address));
    let others: Vec<String> = others.map(ToString::to_string).collect();
    match others.as_slice() {
        [] => Ok(()),
        others => Err(format!(
            "etcd has a member at {}, where no control plane is",
            others.join(", ")
        )),
    }
}

/// Every control plane's etcd knows the same members by number, name and vote. Two that don't may be two clusters.
fn consistent(planes: &[&Witness]) -> Check {
    type Known<'a> = BTreeSet<(u64, &'a str, bool)>;
    fn known(told: &Told) -> Result<Known<'_>, String> {
        let members = told.members.as_ref().map_err(Clone::clone)?;
        let members = members.iter();
        Ok(members
            .map(|member| (member.id, member.hostname.as_str(), member.learner))
            .collect())
    }
    let names = |members: &Known<'_>| {
        let names: Vec<&str> = members.iter().map(|(_, name, _)| *name).collect();
        names.join(", ")
    };
    let first = planes
        .iter()
        .find_map(|plane| Some((&plane.node, known(plane.told.as_ref().ok()?).ok()?)));
    each(
        "etcd members to be consistent across nodes",
        planes,
        |told, _| {
            let members = known(told)?;
            match &first {
                Some((first, expected)) if members != *expected => Err(format!(
                    "knows {}, and {first} knows {}",
                    names(&members),
                    names(expected)
                )),
                _ => Ok(()),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u8) -> Member {
        Member {
            id: u64::from(id),
            hostname: format!("cp-{id}"),
            learner: false,
            addresses: vec![address(id)],
        }
    }

    fn address(id: u8) -> IpAddr {
        IpAddr::from([10, 107, 0, id])
    }

    fn service(id: &str) -> Service {
        Service {
            id: id.to_owned(),
            state: Some("Running".to_owned()),
            message: "Health check successful".to_owned(),
            healthy: true,
        }
    }

    fn plane(id: u8) -> Witness {
        let told = Told {
            version: "v1.12.0".to_owned(),
            services: Ok(["apid", "etcd", "kubelet", "trustd"].map(service).into()),
            stage: Ok(Stage {
                running: true,
                word: "running",
                ready: true,
                unmet: Vec::new(),
            }),
            diagnostics: Ok(Vec::new()),
            members: Ok([1, 2, 3].map(member).into()),
        };
        Witness {
            node: format!("cp-{id}").parse().unwrap(),
            address: address(id),
            control_plane: true,
            told: Ok(told),
        }
    }

    /// A worker runs no etcd, and its kubelet is judged by its own conditions.
    fn worker(id: u8) -> Witness {
        let mut witness = plane(id);
        witness.node = format!("worker-{id}").parse().unwrap();
        witness.control_plane = false;
        let told = witness.told.as_mut().unwrap();
        told.services = Ok(["apid", "kubelet"].map(service).into());
        told.members = Err("not asked".to_owned());
        witness
    }

    fn cluster() -> Vec<Witness> {
        vec![plane(1), plane(2), plane(3), worker(9)]
    }

    /// A healthy cluster with one change: the checks that fail, with their words.
    fn failing(change: impl FnOnce(&mut Vec<Witness>)) -> Vec<(&'static str, String)> {
        let mut witnesses = cluster();
        change(&mut witnesses);
        let failed = checks(&witnesses).into_iter().filter(|check| !check.ok);
        failed.map(|check| (check.name, check.words)).collect()
    }

    fn told(witness: &mut Witness) -> &mut Told {
        witness.told.as_mut().unwrap()
    }

    fn only<'a>(failed: &'a [(&'static str, String)]) -> (&'static str, &'a str) {
        let [(name, words)] = failed else {
            panic!("one check should fail: {failed:?}");
        };
        (name, words)
    }

    #[test]
    fn a_cluster_with_nothing_amiss_passes_every_check() {
        assert_eq!(failing(|_| ()), []);
        assert_eq!(checks(&cluster()).len(), 9);
    }

    #[test]
    fn nobody_asked_is_not_healthy() {
        assert!(checks(&[]).iter().all(|check| !check.ok));
        let failed = failing(|all| all.retain(|witness| !witness.control_plane));
        assert!(failed.iter().any(|(name, _)| *name == "etcd to be healthy"));
    }

    #[test]
    fn a_node_that_does_not_answer_fails_apid_and_all_that_it_should_have_said() {
        let failed = failing(|all| all[3].told = Err("no answer within 5 s".to_owned()));
        let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "apid to be ready",
                "no diagnostics",
                "all nodes to finish boot sequence",
                "all nodes to be ready"
            ]
        );
        assert_eq!(failed[0].1, "worker-9: no answer within 5 s");
    }

    #[test]
    fn a_service_is_healthy_when_its_latest_event_is_running_and_its_check_says_so() {
        let etcd = |change: fn(&mut Service)| {
            let failed =
                failing(|all| change(&mut told(&mut all[1]).services.as_mut().unwrap()[1]));
            let (name, words) = only(&failed);
            assert_eq!(name, "etcd to be healthy");
            words.to_owned()
        };
        assert_eq!(
            etcd(|etcd| {
                etcd.state = Some("Failed".to_owned());
                etcd.message = "exit code 1".to_owned();
            }),
            "cp-2: etcd is Failed: exit code 1"
        );
        assert_eq!(
            etcd(|etcd| etcd.healthy = false),
            "cp-2: etcd runs and is not healthy"
        );
        assert_eq!(etcd(|etcd| etcd.state = None), "cp-2: etcd has not begun");
        assert_eq!(
            etcd(|etcd| etcd.id = "another".to_owned()),
            "cp-2: there is no service etcd"
        );
    }

    #[test]
    fn the_kubelet_of_a_worker_is_not_asked_for_by_name() {
        let kubelet = |node: usize| {
            failing(move |all| {
                let services = told(&mut all[node]).services.as_mut().unwrap();
                services.retain(|service| service.id != "kubelet");
            })
        };
        assert_eq!(kubelet(3), []);
        assert_eq!(only(&kubelet(0)).0, "kubelet to be healthy");
    }

    #[test]
    fn control_planes_that_know_other_members_are_told_apart() {
        let failed = failing(|all| {
            let members = told(&mut all[2]).members.as_mut().unwrap();
            members[0].id = 77;
        });
        let (name, words) = only(&failed);
        assert_eq!(name, "etcd members to be consistent across nodes");
        assert_eq!(
            words,
            "cp-3: knows cp-2, cp-3, cp-1, and cp-1 knows cp-1, cp-2, cp-3"
        );
    }

    #[test]
    fn a_learner_is_no_member_yet() {
        let failed = failing(|all| {
            for plane in &mut all[..3] {
                told(plane).members.as_mut().unwrap()[2].learner = true;
            }
        });
        let (name, words) = only(&failed);
        assert_eq!(name, "control plane nodes to be etcd members");
        assert_eq!(words, "cp-3: a learner in etcd, without a vote yet");
    }

    #[test]
    fn a_member_where_no_control_plane_is_was_left_behind_by_somebody() {
        let failed = failing(|all| {
            for plane in &mut all[..3] {
                told(plane).members.as_mut().unwrap().push(member(4));
            }
        });
        let (name, words) = only(&failed);
        assert_eq!(name, "etcd members to be control plane nodes");
        assert!(words.starts_with("cp-1: etcd has a member at 10.107.0.4,"));
    }

    #[test]
    fn a_node_that_still_boots_or_warns_or_lacks_something_is_named() {
        let stage = |word, running, ready, unmet: &[&str]| Stage {
            running,
            word,
            ready,
            unmet: unmet.iter().map(|&text| text.to_owned()).collect(),
        };
        let failed = failing(|all| {
            told(&mut all[0]).stage = Ok(stage("booting", false, true, &[]));
            told(&mut all[1]).diagnostics = Ok(vec!["addresses overlap".to_owned()]);
            told(&mut all[3]).stage = Ok(stage("running", true, false, &["time: not in sync"]));
        });
        assert_eq!(
            failed,
            [
                ("no diagnostics", "cp-2: addresses overlap".to_owned()),
                (
                    "all nodes to finish boot sequence",
                    "cp-1: still booting".to_owned()
                ),
                (
                    "all nodes to be ready",
                    "worker-9: time: not in sync".to_owned()
                ),
            ]
        );
    }
}
