//! `reveille balancer …`: what each port of the clusters needs, for people who set up another balancer and its firewall.

use std::net::SocketAddrV4;

use netboot::endpoint::{Balance, Endpoint, Sides};
use netboot::net::NodeName;
use netboot::site::Site;
use serde::{Deserialize, Serialize};

use super::{ListenerStatus, feed};
use crate::cli::BalancerCommand;
use crate::client::{Ask, ask};
use crate::config::BalancerEngine;
use crate::elsewhere::probe_words;
use crate::failure::{Failure, print};
use crate::show::{json, table, table_text};

/// What the clusters' ports need, as scripts see it; keys are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequirementsReport {
    /// `embedded`, `haproxy`, `external` or `off`.
    pub engine: String,
    /// By cluster, then in the platform's order.
    pub listeners: Vec<Requirement>,
}

/// What one port needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The cluster.
    pub cluster: String,
    /// The port's name, such as `api`.
    pub name: String,
    /// The TCP port, here and on the machines.
    pub port: u16,
    /// The names that lead here.
    pub names: Vec<String>,
    /// Where connections are taken; empty where that is nobody's to say.
    pub at: Vec<SocketAddrV4>,
    /// True where only the cluster's machines may connect: what is behind it gives secrets to whoever asks.
    pub machines_only: bool,
    /// Who is behind it now.
    pub backends: Vec<RequiredBackend>,
    /// How a backend is asked whether it may get connections.
    pub check: String,
    /// Time between two checks, in milliseconds.
    pub check_interval_millis: u32,
    /// Good answers in a row that bring a backend in.
    pub rise: u8,
    /// Bad answers in a row that take it out.
    pub fall: u8,
    /// `least-connections` or `client-address`.
    pub balance: String,
    /// Connections to backends begin with a PROXY header, version 2.
    pub proxy_protocol: bool,
}

/// A machine that must be behind a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredBackend {
    /// The machine.
    pub node: NodeName,
    /// Where.
    pub address: SocketAddrV4,
    /// Only while nobody else behind the port is healthy.
    pub spare: bool,
}

impl RequirementsReport {
    /// `here` is what this bastion's own balancer says of itself.
    pub(crate) fn of(site: &Site, engine: BalancerEngine, here: &[ListenerStatus]) -> Self {
        let mut listeners = Vec::new();
        for (spec, state) in site.clusters() {
            for endpoint in feed::of_cluster(site.spec(), spec, state) {
                let balanced = site.spec().dns().balanced.as_ref();
                let at = match balanced {
                    Some(elsewhere) => {
                        let outside = elsewhere.outside.iter();
                        let public = spec.public && endpoint.port.sides == Sides::Both;
                        let all = elsewhere.inside.iter().chain(outside.filter(|_| public));
                        all.map(|address| SocketAddrV4::new(*address, endpoint.port.port))
                            .collect()
                    }
                    None => {
                        let same = |status: &&ListenerStatus| {
                            status.cluster == endpoint.cluster && status.port == endpoint.port.port
                        };
                        let status = here.iter().find(same);
                        status.map_or_else(Vec::new, |status| status.addresses.clone())
                    }
                };
                listeners.push(Requirement::of(&spec.fqdn(), endpoint, at));
            }
        }
        Self {
            engine: format!("{engine:?}").to_lowercase(),
            listeners,
        }
    }
}

impl Requirement {
    fn of(fqdn: &str, endpoint: Endpoint, at: Vec<SocketAddrV4>) -> Self {
        let Endpoint {
            cluster,
            port,
            backends,
        } = endpoint;
        let hosts: &[&str] = match (port.name.as_str(), port.sides) {
            ("api", _) => &["api", "api-int"],
            (_, Sides::Private) => &["api-int"],
            (_, Sides::Both) => &["*.apps"],
        };
        Self {
            cluster,
            names: hosts.iter().map(|host| format!("{host}.{fqdn}")).collect(),
            port: port.port,
            at,
            machines_only: port.sides == Sides::Private,
            backends: backends
                .into_iter()
                .map(|backend| RequiredBackend {
                    node: backend.node,
                    address: backend.address,
                    spare: backend.spare,
                })
                .collect(),
            check: probe_words(&port.check.probe),
            check_interval_millis: port.check.interval,
            rise: port.check.rise,
            fall: port.check.fall,
            balance: match port.balance {
                Balance::LeastConnections => "least-connections",
                Balance::SourceHash => "client-address",
            }
            .to_owned(),
            proxy_protocol: port.proxy_protocol,
            name: port.name,
        }
    }
}

/// `reveille balancer …`
///
/// # Errors
/// [`Failure`] when the daemon can't be asked.
pub fn run(command: BalancerCommand) -> Result<(), Failure> {
    let BalancerCommand::Requirements {
        json: as_json,
        socket,
    } = command;
    let report: RequirementsReport = ask(&socket, &Ask::get("/api/v1/balancer"))?;
    print(&if as_json {
        json(&report)
    } else {
        text(&report)
    })
}

fn text(report: &RequirementsReport) -> String {
    let who = match report.engine.as_str() {
        "external" => {
            "to be taken by another balancer; `reveille status` shows what was found there"
        }
        "off" => "taken nowhere by this bastion",
        _ => "taken by this bastion",
    };
    let count = report.listeners.len();
    let plural = if count == 1 { "" } else { "s" };
    let mut text = format!("{count} port{plural}, {who}\n");
    for listener in &report.listeners {
        let Requirement {
            cluster,
            name,
            port,
            names,
            at,
            machines_only,
            backends,
            check,
            check_interval_millis,
            rise,
            fall,
            balance,
            proxy_protocol,
        } = listener;
        let at: Vec<String> = at.iter().map(ToString::to_string).collect();
        let at = match at.is_empty() {
            true => format!("port {port}"),
            false => at.join(", "),
        };
        let from = match machines_only {
            true => "the cluster's machines alone; closed to everybody else",
            false => "machines and users",
        };
        let proxied = match proxy_protocol {
            true => ", with a PROXY header (version 2)",
            false => "",
        };
        text += &format!(
            "\n{cluster} {name}: TCP, passed through, at {at}\n  names    {}\n  from     {from}\n  \
             balance  {balance}{proxied}\n  check    {check}; every {check_interval_millis} ms, in after {rise}, out after {fall}\n",
            names.join(", "),
        );
        let mut rows = table(&["backend", "address", "spare"]);
        for RequiredBackend {
            node,
            address,
            spare,
        } in backends
        {
            let spare = if *spare { "spare" } else { "" };
            rows.add_row([node.as_str(), &address.to_string(), spare]);
        }
        text += &table_text(&rows);
    }
    text
}
