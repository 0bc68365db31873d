//! What the site lists of the bastion's own links, firewall and masquerade, and what the kernel has of it.

use std::sync::Arc;

use netboot::host::{HostSpec, LinkPolicy, Obstacle, ObstacleKind, Operation, diff, target};

use super::{Check, Id, Scene, listed};
use crate::host::kernel::{Failed, Kernel};

/// What would have to be done.
#[derive(Debug)]
struct Plan {
    operations: Vec<Operation>,
    obstacles: Vec<Obstacle>,
}

/// Compares the site with the kernel; a site that lists nothing has nothing to compare.
pub(super) async fn check(scene: Arc<Scene>) -> Vec<Check> {
    let host = scene.spec.host();
    if host.is_empty() {
        return Vec::new();
    }
    vec![judge(host.policy, plan(host).await)]
}

async fn plan(host: &HostSpec) -> Result<Plan, Failed> {
    let present = Kernel::open().await?.read().await?;
    let wanted = target(host, &present);
    Ok(Plan {
        operations: diff(&present, &wanted.state),
        obstacles: wanted.obstacles,
    })
}

fn judge(policy: LinkPolicy, plan: Result<Plan, Failed>) -> Check {
    let (id, subject) = (Id::HostLinks, "site.yaml");
    let Plan {
        operations,
        obstacles,
    } = match plan {
        Ok(plan) => plan,
        Err(Failed { cause, remedy }) => return Check::warn(id, subject, cause, remedy),
    };
    let refused = obstacles
        .iter()
        .any(|obstacle| obstacle.kind == ObstacleKind::Refused);
    if let Some(first) = obstacles.first() {
        let remedy = first.remedy.clone();
        let said = obstacles
            .iter()
            .map(|obstacle| format!("{}: {}", obstacle.link, obstacle.problem));
        let evidence = listed(said);
        return if refused {
            Check::fail(id, subject, evidence, remedy)
        } else {
            Check::warn(id, subject, evidence, remedy)
        };
    }
    if operations.is_empty() {
        let evidence = "links, firewall and masquerade are as the site lists them";
        return Check::pass(id, subject, evidence);
    }
    let evidence = format!(
        "not as the site lists it: {}",
        listed(operations.iter().map(ToString::to_string))
    );
    let remedy = match policy {
        LinkPolicy::Managed => "the running daemon does this by itself; see that it runs",
        LinkPolicy::Unmanaged => {
            "correct the system's own network files, or let the daemon do it: `host: { links: managed }`"
        }
    };
    Check::warn(id, subject, evidence, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn obstacle(kind: ObstacleKind) -> Obstacle {
        Obstacle {
            link: "eth1.107".parse().expect("a name"),
            problem: "its parent is not there".into(),
            remedy: "plug it in".into(),
            kind,
        }
    }

    fn judged(operations: Vec<Operation>, obstacles: Vec<Obstacle>) -> Check {
        let plan = Plan {
            operations,
            obstacles,
        };
        judge(LinkPolicy::Managed, Ok(plan))
    }

    #[test]
    fn a_contradiction_fails_what_waits_or_differs_warns_and_nothing_to_do_passes() {
        let up = Operation::SetUp {
            link: "eth1".parse().expect("a name"),
            up: true,
        };
        assert_eq!(judged(vec![], vec![]).result, Outcome::Pass);
        let differs = judged(vec![up.clone()], vec![]);
        assert_eq!(differs.result, Outcome::Warn);
        assert!(differs.evidence.contains("eth1"), "{}", differs.evidence);
        let waits = judged(vec![up], vec![obstacle(ObstacleKind::Waits)]);
        assert_eq!(waits.result, Outcome::Warn);
        assert_eq!(waits.remedy.as_deref(), Some("plug it in"));
        let both = vec![
            obstacle(ObstacleKind::Waits),
            obstacle(ObstacleKind::Refused),
        ];
        assert_eq!(judged(vec![], both).result, Outcome::Fail);
    }
}
