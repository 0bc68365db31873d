//! `reveille reload`, `state`, `status`, `node`, `events` and `simulate`: one request over the control socket, then a table or the
//! JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use comfy_table::{Table, presets};
use http_body_util::BodyExt;
use netboot::attempt::Entry;
use netboot::site::Site;

use crate::cli::{
    EventsOptions, NodeCommand, SimulateOptions, Socket, StateCommand, StatusOptions,
};
use crate::client::{Ask, ask, runtime, send};
use crate::clusters::command;
use crate::config;
use crate::controller::now;
use crate::failure::{Exit, Failure, faulty_site, print};
use crate::http::words::{Consent, Exported, Reloaded};
use crate::show::{balancer_table, clear_screen, elsewhere_table, json, moment, table, table_text};
use crate::simulate::{self, Stand};
use crate::status::{Membership, NodeDetail, NodeStatus, Progress, Status, Why};
use crate::store;
use crate::tls::SiteCa;

const WATCH_TIME: Duration = Duration::from_secs(1);
/// Machines shown by `status`; `node list` shows them all.
const NODES_SHOWN: usize = 40;

/// `reveille reload`
///
/// # Errors
/// [`Failure`] with the faults of a refused site.
pub fn reload(socket: &Socket) -> Result<(), Failure> {
    let done: Reloaded = ask(socket, &Ask::post("/api/v1/reload", b""))?;
    let host = done.host.map_or(String::new(), |how| {
        format!("the bastion's own links: {how}\n")
    });
    print(&format!(
        "the site was loaded: {} machines, {} networks, {} profiles\n{host}{}",
        done.nodes,
        done.networks,
        done.profiles,
        if done.restart_needed {
            "site.yaml changed ports, the TFTP engine or the socket's groups: restart the daemon to use them\n"
        } else {
            ""
        }
    ))
}

/// `reveille state`
///
/// # Errors
/// [`Failure`]
pub fn state(command: StateCommand) -> Result<(), Failure> {
    match command {
        StateCommand::Export(socket) => {
            let done: Exported = ask(&socket, &Ask::post("/api/v1/state/export", b""))?;
            print(&format!("{}\n", done.file.display()))
        }
        StateCommand::Import { file, state } => {
            let memory = store::import(&state, &file).map_err(|error| {
                let act = format!("importing {} into {}", file.display(), state.display());
                Failure::of(Exit::Failed, act, &error).with_remedy(
                    "stop the daemon first, and import a whole file of `reveille state export`",
                )
            })?;
            print(&format!(
                "{} machines' records at generation {}; start the daemon, approve each machine whose disk may be \
                 written, then `reveille state accept`\n",
                memory.records.len(),
                memory.generation,
            ))
        }
        StateCommand::Accept(socket) => {
            let () = ask(&socket, &Ask::post("/api/v1/state/accept", b""))?;
            print("accepted: a listed machine without a record is a new one from here on\n")
        }
    }
}

/// `reveille status`
///
/// # Errors
/// [`Failure`]
pub fn status(options: &StatusOptions) -> Result<(), Failure> {
    if let Some(cluster) = &options.cluster {
        return command::status(cluster, options.watch, options.json, &options.socket);
    }
    let mut shown = None;
    loop {
        let status: Status = ask(&options.socket, &Ask::get("/api/v1/status"))?;
        let text = if options.json {
            json(&status)
        } else {
            status_text(&status)
        };
        if shown.as_ref() != Some(&text) {
            print(&format!(
                "{}{text}",
                clear_screen(options.watch && !options.json)
            ))?;
            shown = Some(text);
        }
        if !options.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_TIME);
    }
}

/// `reveille node …`
///
/// # Errors
/// [`Failure`]
pub fn node(command: NodeCommand) -> Result<(), Failure> {
    let (node, act, body) = match command {
        NodeCommand::List {
            json: as_json,
            socket,
        } => {
            let nodes: Vec<NodeStatus> = ask(&socket, &Ask::get("/api/v1/nodes"))?;
            return print(&if as_json {
                json(&nodes)
            } else {
                nodes_table(&nodes)
            });
        }
        NodeCommand::Show(node) => {
            let path = format!("/api/v1/nodes/{}", node.name);
            let detail: NodeDetail = ask(&node.socket, &Ask::get(&path))?;
            return print(&if node.json {
                json(&detail)
            } else {
                detail_text(&detail)
            });
        }
        NodeCommand::Why(node) => {
            let path = format!("/api/v1/nodes/{}/why", node.name);
            let why: Why = ask(&node.socket, &Ask::get(&path))?;
            return print(&if node.json {
                json(&why)
            } else {
                why_text(&why)
            });
        }
        NodeCommand::Approve(node) => (node, "approve", Vec::new()),
        NodeCommand::Reject(node) => (node, "reject", Vec::new()),
        NodeCommand::Cordon(node) => (node, "cordon", Vec::new()),
        NodeCommand::Uncordon(node) => (node, "uncordon", Vec::new()),
        NodeCommand::Reinstall { node, disk, ttl } => {
            let consent = Consent { disk, seconds: ttl };
            let body = serde_json::to_vec(&consent).expect("text and a number are always JSON");
            (node, "reinstall", body)
        }
    };
    let path = format!("/api/v1/nodes/{}/{act}", node.name);
    let detail: NodeDetail = ask(&node.socket, &Ask::post(&path, &body))?;
    let NodeStatus {
        name,
        state,
        next_boot,
        ..
    } = detail.status;
    print(&format!(
        "{name}: {act} done; it is {state}, its next boot is {next_boot}\n"
    ))
}

/// `reveille events`
///
/// # Errors
/// [`Failure`]
pub fn events(options: &EventsOptions) -> Result<(), Failure> {
    let EventsOptions {
        node,
        follow,
        limit,
        json: as_json,
        socket,
    } = options;
    let mut path = format!("/api/v1/events?limit={limit}&follow={follow}");
    if let Some(node) = node {
        path += &format!("&node={node}");
    }
    let line = |entry: &Entry| {
        if *as_json {
            serde_json::to_string(entry).expect("an entry is always JSON") + "\n"
        } else {
            told(entry)
        }
    };
    if *follow {
        return runtime()?.block_on(stream(&socket.socket, &path, |entry| print(&line(&entry))));
    }
    let entries: Vec<Entry> = ask(socket, &Ask::get(&path))?;
    if *as_json {
        return print(&json(&entries));
    }
    print(&entries.iter().map(line).collect::<String>())
}

/// `reveille simulate`
///
/// # Errors
/// [`Failure`]
pub fn simulate(options: &SimulateOptions) -> Result<(), Failure> {
    let answer = match &options.site {
        None => {
            let question = serde_json::to_vec(&options.question).expect("text is always JSON");
            ask(&options.socket, &Ask::post("/api/v1/simulate", &question))?
        }
        Some(directory) => {
            let loaded = config::load(directory, &options.state);
            let (settings, spec) = loaded.map_err(faulty_site)?;
            // A daemon that never ran has no authority yet; the pointer config then says http.
            let ca = SiteCa::existing(&options.state)
                .map_err(|error| Failure::of(Exit::Failed, "reading the site's CA", &error))?;
            let stand = Stand {
                addresses: BTreeMap::new(),
                ports: settings.ports(),
                ca_pem: ca.map_or(String::new(), |ca| ca.pem().to_owned()),
            };
            let site = Site::new(Arc::new(spec));
            simulate::simulate(&site, &stand, &options.question, now())
                .map_err(|why| Failure::new(Exit::Failed, why))?
        }
    };
    print(&if options.json {
        json(&answer)
    } else {
        answer.told()
    })
}

/// Reads lines of JSON until the daemon ends them.
async fn stream(
    socket: &Path,
    path: &str,
    mut each: impl FnMut(Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut body = send(socket, &Ask::get(path)).await?;
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::of(Exit::Failed, "following the daemon, which stopped", &error)
        })?;
        pending.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let entry = serde_json::from_slice(&line).map_err(|error| {
                Failure::of(Exit::Failed, "understanding the daemon's answer", &error)
            })?;
            each(entry)?;
        }
    }
    Err(Failure::new(
        Exit::Unreachable,
        "the daemon stopped, and its events with it",
    )
    .with_remedy("ask again once it runs: systemctl status reveille"))
}

/// One entry as a line: when, who, what.
fn told(entry: &Entry) -> String {
    let who = match (&entry.node, entry.mac) {
        (Some(node), _) => node.to_string(),
        (None, Some(mac)) => mac.to_string(),
        (None, None) => "bastion".to_owned(),
    };
    format!("{}  {who:<17}  {}\n", moment(entry.at), entry.fact)
}

fn status_text(status: &Status) -> String {
    let mut text = format!("{}\n", status.sentence);
    if let Some(refused) = &status.site.refused {
        text += &format!(
            "\nthe site changed at {} is refused; in force is the one loaded at {}:\n",
            moment(refused.at),
            moment(status.site.loaded)
        );
        for fault in &refused.faults {
            text += &format!("  {fault}\n");
        }
    }
    if !status.networks.is_empty() {
        let mut networks = table(&["network", "link", "mode", "subnet", "machines", "leases"]);
        for network in &status.networks {
            networks.add_row([
                network.name.to_string(),
                network.link.clone(),
                network.mode.clone(),
                network.subnet.clone(),
                network.nodes.to_string(),
                network.leases.to_string(),
            ]);
        }
        text += &format!("\n{}", table_text(&networks));
    }
    if !status.clusters.is_empty() {
        text += &format!("\n{}", command::list_text(&status.clusters));
    }
    if !status.balancer.is_empty() {
        text += &format!("\n{}", balancer_table(&status.balancer));
    }
    if !status.elsewhere.is_empty() {
        text += &format!("\n{}", elsewhere_table(&status.elsewhere, status.now));
    }
    let (waiting, others): (Vec<_>, Vec<_>) =
        status.nodes.iter().partition(|node| node.needs_person);
    let shown: Vec<NodeStatus> = waiting
        .into_iter()
        .chain(others)
        .take(NODES_SHOWN)
        .cloned()
        .collect();
    if !shown.is_empty() {
        text += &format!("\n{}", nodes_table(&shown));
    }
    if status.nodes.len() > shown.len() {
        let more = status.nodes.len() - shown.len();
        text += &format!("and {more} more; `reveille node list` shows all\n");
    }
    if !status.unlisted.is_empty() {
        let mut unlisted = table(&["not listed", "network", "last heard"]);
        for machine in &status.unlisted {
            unlisted.add_row([
                machine.mac.to_string(),
                machine.network.to_string(),
                moment(machine.last),
            ]);
        }
        text += &format!("\n{}", table_text(&unlisted));
    }
    text
}

fn nodes_table(nodes: &[NodeStatus]) -> String {
    let in_clusters = nodes.iter().any(|node| node.member.is_some());
    let mut header = vec!["name", "state", "next boot", "address", "profile"];
    if in_clusters {
        header.extend(["cluster", "role"]);
    }
    header.push("waits for");
    let mut rows = table(&header);
    for node in nodes {
        let mut row = vec![
            node.name.to_string(),
            node.state.clone(),
            node.next_boot.clone(),
            node.address.to_string(),
            node.profile
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
        ];
        if in_clusters {
            let said = node
                .member
                .as_ref()
                .map(|m| (m.cluster.to_string(), m.role.clone()));
            let (cluster, role) = said.unwrap_or_default();
            row.extend([cluster, role]);
        }
        row.push(node.waiting());
        rows.add_row(row);
    }
    table_text(&rows)
}

fn why_text(why: &Why) -> String {
    let mut text = format!("{} ({})\n", why.sentence, why.verdict);
    if !why.remedy.is_empty() {
        text += &format!("try: {}\n", why.remedy);
    }
    let mut hops = table(&["hop", "state", "at", "what"]);
    for hop in &why.hops {
        hops.add_row([
            hop.hop.clone(),
            hop.state.clone(),
            hop.at.map_or(String::new(), moment),
            hop.detail.clone(),
        ]);
    }
    text += &format!("\n{}", table_text(&hops));
    if let Some(Progress { at, words }) = &why.progress {
        text += &format!(
            "\nits system {words} at {}; nothing proves it\n",
            moment(*at)
        );
    }
    if !why.evidence.is_empty() {
        text += "\nevidence\n";
        text.extend(why.evidence.iter().map(told));
    }
    text
}

fn detail_text(detail: &NodeDetail) -> String {
    let status = &detail.status;
    let mut rows = Table::new();
    rows.load_style(presets::NOTHING);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    row("name", status.name.to_string());
    row("host name", detail.hostname.clone());
    row("state", status.state.clone());
    row(
        "next boot",
        format!("{} ({})", status.next_boot, status.rule),
    );
    row("waits for", status.waits_for.clone());
    if let Some(Progress { at, words }) = &status.progress {
        row("its system", format!("{words} at {}", moment(*at)));
    }
    if let Some(profile) = &status.profile {
        row("profile", profile.to_string());
    }
    if let Some(member) = &status.member {
        let Membership {
            cluster,
            group,
            role,
            index,
        } = member;
        row(
            "cluster",
            format!("{cluster}, {role} {index}, group {group}"),
        );
    }
    let cordoned = if status.cordoned { ", cordoned" } else { "" };
    row("admission", format!("{}{cordoned}", status.admission));
    for link in &detail.links {
        let macs: Vec<String> = link.macs.iter().map(ToString::to_string).collect();
        row(
            "link",
            format!("{} {} {}", link.network, link.address, macs.join(" ")),
        );
    }
    for (name, value) in [
        ("uuid", &detail.uuid),
        ("serial", &detail.serial),
        ("disk", &detail.disk),
    ] {
        if let Some(value) = value {
            row(name, value.clone());
        }
    }
    if let Some(at) = status.installed {
        row("installed", moment(at));
    }
    if let Some(permit) = &detail.permit {
        let state = if permit.open { "until" } else { "expired" };
        row(
            "may lose disk",
            format!(
                "{}, {state} {}, by {}",
                permit.disk,
                moment(permit.expires),
                permit.by
            ),
        );
    }
    if let Some(attempt) = &detail.attempt {
        let mut story = format!(
            "{} at {} from {}",
            attempt.number,
            moment(attempt.started),
            attempt.mac
        );
        if let Some(at) = attempt.released {
            story += &format!(", config left {}", moment(at));
        }
        if let Some(report) = &attempt.report {
            story += &format!(", reported {report}");
        }
        if let Some(words) = &attempt.failure {
            story += &format!(": {words}");
        }
        row("attempt", story);
    }
    row(
        "attempts",
        format!(
            "{} ever, {} without a success",
            status.attempts, status.failed_attempts
        ),
    );
    table_text(&rows)
}
