//! How the host's network stands, for people and scripts: computed from the task's own view and the kernel's,
//! never stored.

use std::collections::BTreeSet;
use std::path::Path;

use netboot::host::{HostState, LinkPolicy, PresentKind};
use netboot::link::LinkKind;
use netboot::net::LinkName;

use crate::host::keeper::{Keeping, Stance};
use crate::host::refusal::Refusal;
use crate::host::rivals::rivals;
use crate::host::words::{HostReport, LinkRow, Obstructed, Plan, Rivalry};

impl Keeping {
    /// Everything there is to say.
    pub(crate) async fn report(&self) -> Result<HostReport, Refusal> {
        let present = self.kernel.read().await?;
        let plan = Plan::of(&self.spec, &present);
        let (healthy, sentence) = self.sentence();
        let listed: BTreeSet<&LinkName> = self
            .spec
            .links
            .iter()
            .map(|wanted| &wanted.link.name)
            .collect();
        let ours = present.links.iter().filter(|(_, link)| link.ours);
        let names: BTreeSet<&LinkName> = ours.map(|(name, _)| name).chain(listed).collect();
        // A link that others make is theirs to configure, and never to be taken from them.
        let made = self.spec.links.iter().map(|wanted| &wanted.link);
        let made = made.filter(|link| !matches!(link.kind, LinkKind::Card { .. }));
        let made = made.map(|link| &link.name).collect();
        Ok(HostReport {
            sentence,
            healthy,
            policy: match self.spec.policy {
                LinkPolicy::Managed => "managed",
                LinkPolicy::Unmanaged => "unmanaged",
            }
            .to_owned(),
            last: self.last.clone(),
            plan,
            links: names.iter().map(|name| row(name, &present)).collect(),
            rivals: match self.spec.policy {
                LinkPolicy::Managed => rivals(Path::new("/"), &made, &present),
                // Others make the links, as the site says.
                LinkPolicy::Unmanaged => Vec::new(),
            }
            .into_iter()
            .map(Rivalry::from)
            .collect(),
        })
    }

    /// The whole in one sentence, and whether it is a good one.
    pub(crate) fn sentence(&self) -> (bool, String) {
        match &self.stance {
            Stance::Pending(_) => {
                let how = self
                    .last
                    .as_ref()
                    .map_or(String::new(), |last| last.sentence());
                return (false, format!("a change is carried out and {how}"));
            }
            Stance::Held(held) => {
                let what = format!(
                    "the host's network is left as it was, because a change was undone: {}; mend site.yaml, or `reveille host apply` tries it again",
                    held.why
                );
                return (false, what);
            }
            Stance::Keeping => {}
        }
        if let Some(trouble) = &self.trouble {
            return (false, trouble.what.clone());
        }
        let obstacles: Vec<String> = self
            .obstacles
            .iter()
            .map(Obstructed::from)
            .map(|it| {
                format!(
                    "{} {}: {}, try: {}",
                    it.link, it.kind, it.problem, it.remedy
                )
            })
            .collect();
        if !obstacles.is_empty() {
            return (false, obstacles.join("; "));
        }
        match (self.spec.policy, self.differs) {
            (LinkPolicy::Unmanaged, 0) => (
                true,
                "others make the host's links, as the site wants them".to_owned(),
            ),
            (LinkPolicy::Unmanaged, count) => (
                false,
                format!(
                    "others make the host's links, and they differ from the site in {count} points: `reveille host plan` says which"
                ),
            ),
            (LinkPolicy::Managed, _) if self.spec.is_empty() => (
                true,
                "the site lists no links of the bastion, so none is touched".to_owned(),
            ),
            (LinkPolicy::Managed, _) => (
                true,
                "the host's network is as the site wants it".to_owned(),
            ),
        }
    }
}

fn row(name: &LinkName, present: &HostState) -> LinkRow {
    let Some(link) = present.links.get(name) else {
        return LinkRow {
            name: name.clone(),
            kind: String::new(),
            state: "absent".to_owned(),
            addresses: Vec::new(),
            made_by: String::new(),
        };
    };
    let of_ports = || {
        let of_this =
            |(_, port): &(&LinkName, &netboot::host::LinkState)| port.master.as_ref() == Some(name);
        let names = present.links.iter().filter(of_this);
        let names: Vec<String> = names.map(|(port, _)| port.to_string()).collect();
        if names.is_empty() {
            String::new()
        } else {
            format!(" of {}", names.join(", "))
        }
    };
    LinkRow {
        name: name.clone(),
        kind: match &link.kind {
            PresentKind::Known(LinkKind::Card { .. }) => "card".to_owned(),
            PresentKind::Known(LinkKind::Vlan { parent, id }) => {
                format!("VLAN {} on {parent}", id.get())
            }
            PresentKind::Known(LinkKind::Bridge { .. }) => format!("bridge{}", of_ports()),
            PresentKind::Known(LinkKind::Bond { mode, .. }) => {
                format!("{} bond{}", mode.word(), of_ports())
            }
            PresentKind::Other(kind) => kind.clone(),
        },
        state: if link.up { "up" } else { "down" }.to_owned(),
        addresses: link
            .addresses
            .iter()
            .map(|address| address.net.to_string())
            .collect(),
        made_by: if link.ours { "reveille" } else { "others" }.to_owned(),
    }
}
