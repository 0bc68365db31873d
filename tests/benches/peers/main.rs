//! Reveille against its peers: DHCP, TFTP, HTTP, DNS, balancing, start and memory, and whole boots, in one run.
//!
//! Touches: network namespaces, processes and a scratch directory of its own, as root. It prints the
//! README's table in Markdown on standard output and each sample as it comes on standard error.
//!
//! A round asks every server in turn, so that a slow minute of the machine hits all of them;
//! a figure is the median of the rounds with the range behind it.

mod balancer;
mod balancer_load;
mod boot;
mod dhcp;
mod dhcp_load;
mod dns;
mod http;
mod http_load;
mod lab;
mod reveille;
mod table;
mod tftp;
mod tftp_load;

use anyhow::{Context, Result, ensure};

use lab::Lab;

const USAGE: &str = "usage: make bench [ARGS=\"[dhcp] [tftp] [http] [dns] [balancer] [boot] [--rounds N] [--server NAME]... [--case TEXT]...\"]";

/// What of the bench is run.
pub(crate) struct Plan {
    groups: Vec<String>,
    servers: Vec<String>,
    cases: Vec<String>,
    pub(crate) rounds: usize,
}

impl Plan {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Self {
            groups: Vec::new(),
            servers: Vec::new(),
            cases: Vec::new(),
            rounds: 5,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--rounds" => {
                    plan.rounds = arguments.next().context(USAGE)?.parse().context(USAGE)?
                }
                "--server" => plan.servers.push(arguments.next().context(USAGE)?),
                "--case" => plan.cases.push(arguments.next().context(USAGE)?),
                // Cargo says so to every bench target.
                "--bench" => {}
                group => plan.groups.push(group.to_owned()),
            }
        }
        ensure!(plan.rounds > 0, USAGE);
        Ok(plan)
    }

    /// Is this server asked for? All are when none is named.
    pub(crate) fn wants(&self, server: &str) -> bool {
        self.servers.is_empty() || self.servers.iter().any(|name| server.starts_with(name))
    }

    /// Is this case asked for? All are when none is named.
    pub(crate) fn has_case(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|text| case.contains(text.as_str()))
    }

    fn has(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|name| name == group)
    }
}

fn main() -> Result<()> {
    let plan = Plan::read(std::env::args().skip(1))?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root: run the bench as root"
    );
    let lab = Lab::new()?;
    let mut tables = Vec::new();
    if plan.has("dhcp") {
        tables.extend(dhcp::measure(&lab, &plan)?);
    }
    if plan.has("tftp") {
        tables.extend(tftp::measure(&lab, &plan)?);
    }
    if plan.has("http") {
        tables.extend(http::measure(&lab, &plan)?);
    }
    if plan.has("dns") {
        tables.extend(dns::measure(&lab, &plan)?);
    }
    if plan.has("balancer") {
        tables.extend(balancer::measure(&lab, &plan)?);
    }
    if plan.has("boot") {
        tables.extend(boot::measure(&plan)?);
    }
    println!("{}", circumstances(&plan));
    for table in tables.iter().filter(|table| !table.is_empty()) {
        println!("{}", table.markdown());
    }
    Ok(())
}

/// The machine that the figures are of.
fn circumstances(plan: &Plan) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("unknown".to_owned(), |value| {
            value.trim_matches([' ', '\t', ':', '=', '"']).to_owned()
        })
    };
    format!(
        "{}, one core for the server and one for the load; Linux {}; peers as {} packages them; medians of {} with the range.\n",
        field(&read("/proc/cpuinfo"), "model name"),
        read("/proc/sys/kernel/osrelease").trim(),
        field(&read("/etc/os-release"), "PRETTY_NAME"),
        plan.rounds,
    )
}
