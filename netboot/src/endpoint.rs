//! Who answers each port of a cluster: the one truth behind the names in DNS and the listeners of the balancer.
//!
//! A platform gives a table of [`Port`]s once; facts that were seen decide who is behind each now. Everything here is a
//! function of the two, so the set can be computed for any moment and compared.
//!
//! ```text
//!   table of ports (platform) ─┐
//!   members (site's files) ────┼─> endpoints() ─> Endpoint ─> placed() ─> Listener ─> balancer
//!   facts (evidence, latched) ─┘                     └──────> names and their sides ─> DNS
//! ```
//!
//! Invariants. A backend leaves only on evidence: a fact that was seen to hold, never the time that passed or a check
//! that failed (checks decide whom a connection goes to, not who belongs). What is private is never placed on a public
//! link. No address and port is listened on for two clusters.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::cluster::Role;
use crate::net::{LinkName, NodeName};

/// On which of the bastion's links a port is listened on, and its name answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sides {
    /// Only where the cluster's own machines are: what is behind it gives secrets to whoever asks.
    Private,
    /// There, and on the links that the site calls public.
    Both,
}

/// How a backend is asked whether it may get connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// It completes a TCP handshake.
    Tcp,
    /// It answers `GET path` over TLS with 200, or with 401 where it serves nobody it does not know. Its certificate is not looked at: the question is whether it is
    /// ready, not who it is, and no secret is sent.
    HttpsReadyz {
        /// Such as `/readyz`.
        path: String,
    },
}

/// A probe and its patience.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// What is asked.
    pub probe: Probe,
    /// Time between two looks, in milliseconds; an answer is waited for as long, at the most.
    pub interval: u32,
    /// Good answers in a row that bring a backend in.
    pub rise: u8,
    /// Bad answers in a row that take it out.
    pub fall: u8,
}

impl Check {
    /// A look at `/readyz` every two seconds, in after two, out after three: within ten seconds of an API server's
    /// word, well under the 30 s that it keeps serving after it (Kubernetes, `--shutdown-delay-duration`).
    #[must_use]
    pub fn readyz() -> Self {
        Self {
            probe: Probe::HttpsReadyz {
                path: "/readyz".to_owned(),
            },
            interval: 2000,
            rise: 2,
            fall: 3,
        }
    }

    /// A handshake every two seconds, in after two, out after three.
    #[must_use]
    pub fn tcp() -> Self {
        Self {
            probe: Probe::Tcp,
            ..Self::readyz()
        }
    }
}

/// How the backend of a new connection is chosen among the healthy ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Balance {
    /// The one with the fewest connections.
    LeastConnections,
    /// By the client's address: the same one as long as it is there, and nobody else's changes when one leaves.
    SourceHash,
}

/// For how long the members of a role are behind a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stay {
    /// From the cluster's first moment to its last.
    Always,
    /// Until a fact of the cluster was seen to hold.
    Until(String),
    /// Until a member of other roles was seen to hold a fact of its own; from then on only as a spare, for as long as
    /// nobody else behind the port answers.
    SpareOnce {
        /// Who takes over.
        roles: Vec<Role>,
        /// The fact of a node.
        fact: String,
    },
    /// From a fact that any member of the role itself holds.
    Once(String),
}

/// One role behind a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Whose members.
    pub role: Role,
    /// For how long.
    pub stay: Stay,
}

/// One row of a platform's table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The TCP port, on the bastion and on the members.
    pub port: u16,
    /// What it is, in the platform's word, such as `api`.
    pub name: String,
    /// Who is behind it.
    pub turns: Vec<Turn>,
    /// Where it is listened on.
    pub sides: Sides,
    /// Who of them gets connections.
    pub check: Check,
    /// Which of those.
    pub balance: Balance,
    /// Begin each connection with the client's address (PROXY protocol, version 2), which the members must expect.
    pub proxy_protocol: bool,
}

/// The rows that platforms are made of.
impl Port {
    /// Kubernetes' API, on the control plane, and before that on `bootstrap` until its fact.
    #[must_use]
    pub fn api(bootstrap_until: Option<&str>) -> Self {
        Self {
            port: 6443,
            name: "api".to_owned(),
            turns: control_plane(bootstrap_until),
            sides: Sides::Both,
            check: Check::readyz(),
            balance: Balance::LeastConnections,
            proxy_protocol: false,
        }
    }

    /// OKD's machine config server. It gives secrets to whoever asks, so it is private; its certificate's check is TCP
    /// because its health is no evidence of more (`/healthz` is always 200).
    #[must_use]
    pub fn machine_config(bootstrap_until: &str) -> Self {
        Self {
            port: 22623,
            name: "machine-config".to_owned(),
            turns: control_plane(Some(bootstrap_until)),
            sides: Sides::Private,
            check: Check::tcp(),
            balance: Balance::LeastConnections,
            proxy_protocol: false,
        }
    }

    /// RKE2's supervisor, which new nodes join by.
    #[must_use]
    pub fn supervisor() -> Self {
        Self {
            port: 9345,
            name: "supervisor".to_owned(),
            turns: control_plane(None),
            sides: Sides::Private,
            check: Check::tcp(),
            balance: Balance::LeastConnections,
            proxy_protocol: false,
        }
    }

    /// The router of the cluster's services: the control plane until a worker or infra node holds
    /// `worker_fact`, then those.
    #[must_use]
    pub fn ingress(port: u16, name: &str, worker_fact: &str) -> Self {
        let stay = Stay::SpareOnce {
            roles: vec![Role::Infra, Role::Worker],
            fact: worker_fact.to_owned(),
        };
        let once = || Stay::Once(worker_fact.to_owned());
        let turn = |role, stay| Turn { role, stay };
        Self {
            port,
            name: name.to_owned(),
            turns: vec![
                turn(Role::Infra, once()),
                turn(Role::Worker, once()),
                turn(Role::ControlPlane, stay),
            ],
            sides: Sides::Both,
            check: Check::tcp(),
            balance: Balance::SourceHash,
            proxy_protocol: false,
        }
    }
}

fn control_plane(bootstrap_until: Option<&str>) -> Vec<Turn> {
    let bootstrap = bootstrap_until.map(|fact| Turn {
        role: Role::Bootstrap,
        stay: Stay::Until(fact.to_owned()),
    });
    let control_plane = Turn {
        role: Role::ControlPlane,
        stay: Stay::Always,
    };
    bootstrap.into_iter().chain([control_plane]).collect()
}

/// A machine of a cluster, as far as its ports go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The machine.
    pub node: NodeName,
    /// What it is there for.
    pub role: Role,
    /// Where the bastion reaches it.
    pub address: Ipv4Addr,
}

/// What was seen of a cluster and holds since.
pub trait Evidence {
    /// Was this fact of the cluster, or of one node, ever seen to hold?
    fn holds(&self, fact: &str, node: Option<&NodeName>) -> bool;
}

impl<F: Fn(&str, Option<&NodeName>) -> bool> Evidence for F {
    fn holds(&self, fact: &str, node: Option<&NodeName>) -> bool {
        self(fact, node)
    }
}

/// A machine behind a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The machine.
    pub node: NodeName,
    /// Where it is connected to.
    pub address: SocketAddrV4,
    /// Gets connections only while nobody else behind the port is healthy.
    pub spare: bool,
}

/// One port of one cluster, and who answers it now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The cluster's name.
    pub cluster: String,
    /// The row it is made of.
    pub port: Port,
    /// In the order of the platform's table, then of the site's listing.
    pub backends: Vec<Backend>,
}

/// Who answers each port of a cluster, given what was seen.
#[must_use]
pub fn endpoints(
    cluster: &str,
    ports: &[Port],
    members: &[Member],
    seen: &impl Evidence,
) -> Vec<Endpoint> {
    let of_port = |port: &Port| Endpoint {
        cluster: cluster.to_owned(),
        backends: backends(port, members, seen),
        port: port.clone(),
    };
    ports.iter().map(of_port).collect()
}

fn backends(port: &Port, members: &[Member], seen: &impl Evidence) -> Vec<Backend> {
    let any = |role, fact: &str| {
        let of_role = members.iter().filter(|member| member.role == role);
        of_role
            .into_iter()
            .any(|member| seen.holds(fact, Some(&member.node)))
    };
    let mut found: Vec<Backend> = Vec::new();
    for turn in &port.turns {
        let spare = match &turn.stay {
            Stay::Always => false,
            Stay::Until(fact) if seen.holds(fact, None) => continue,
            Stay::Until(_) => false,
            Stay::SpareOnce { roles, fact } => roles.iter().any(|role| any(*role, fact)),
            Stay::Once(fact) if any(turn.role, fact) => false,
            Stay::Once(_) => continue,
        };
        for member in members.iter().filter(|member| member.role == turn.role) {
            // A machine that became something else is behind a port once.
            if found.iter().all(|backend| backend.node != member.node) {
                found.push(Backend {
                    node: member.node.clone(),
                    address: SocketAddrV4::new(member.address, port.port),
                    spare,
                });
            }
        }
    }
    found
}

/// One of the bastion's links that listeners may be placed on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The link.
    pub link: LinkName,
    /// The bastion's address there.
    pub address: Ipv4Addr,
}

/// Where one cluster's ports are listened on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// Where its machines are.
    pub private: Vec<Place>,
    /// Where its users come from.
    pub public: Vec<Place>,
    /// Whether users may come from outside at all.
    pub open: bool,
}

/// What the balancer is told to do: connections to any of these places go to one of these backends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The cluster's name.
    pub cluster: String,
    /// The port's, such as `api`.
    pub name: String,
    /// The TCP port.
    pub port: u16,
    /// Only packets that came in by the place's own link are for it: the address alone doesn't say, because Linux takes a
    /// packet for any of its addresses on any link. The bastion's own are among them.
    pub private: bool,
    /// Where; none while the links are gone.
    pub places: Vec<Place>,
    /// Who may be behind it.
    pub backends: Vec<Backend>,
    /// Who of them gets connections.
    pub check: Check,
    /// Which of those.
    pub balance: Balance,
    /// Begin each connection with the client's address.
    pub proxy_protocol: bool,
}

/// An address and port that two clusters want.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cluster {second} would listen on {at}, where cluster {first} does: give one of them another network or address"
)]
pub struct Taken {
    /// Who has it.
    pub first: String,
    /// Who can't have it too.
    pub second: String,
    /// What both want.
    pub at: SocketAddrV4,
}

/// Puts endpoints on the bastion's links. The cluster that comes first keeps what two want.
///
/// # Errors
/// Beside the listeners, every place that was wanted twice, and left out the second time.
#[must_use]
pub fn placed<'a>(
    clusters: impl IntoIterator<Item = (&'a [Endpoint], &'a Ground)>,
) -> (Vec<Listener>, Vec<Taken>) {
    let (mut listeners, mut taken) = (Vec::new(), Vec::new());
    let mut owners = BTreeMap::<SocketAddrV4, &str>::new();
    for (endpoints, ground) in clusters {
        for Endpoint {
            cluster,
            port,
            backends,
        } in endpoints
        {
            let private = port.sides == Sides::Private || !ground.open;
            let public: &[Place] = if private { &[] } else { &ground.public };
            let mut places: Vec<Place> = Vec::new();
            for place in ground.private.iter().chain(public) {
                let at = SocketAddrV4::new(place.address, port.port);
                match owners.get(&at) {
                    None => {
                        owners.insert(at, cluster);
                        places.push(place.clone());
                    }
                    Some(_) if places.iter().any(|have| have.address == place.address) => {}
                    Some(first) => taken.push(Taken {
                        first: (*first).to_owned(),
                        second: cluster.clone(),
                        at,
                    }),
                }
            }
            listeners.push(Listener {
                cluster: cluster.clone(),
                name: port.name.clone(),
                port: port.port,
                private,
                places,
                backends: backends.clone(),
                check: port.check.clone(),
                balance: port.balance,
                proxy_protocol: port.proxy_protocol,
            });
        }
    }
    (listeners, taken)
}

impl Listener {
    /// `okd api 6443`: what it is called in words and in other programs' configurations.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} {} {}", self.cluster, self.name, self.port)
    }
}

#[cfg(test)]
mod tests;
