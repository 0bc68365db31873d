//! `reveille cluster`: one request over the control socket, then tables or the JSON.

use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use netboot::cluster::{ClusterName, Stage};
use netboot::net::NodeName;

use super::plan::ClusterPlan;
use super::status::{ClusterStatus, ClusterSummary, GateStatus, ServiceStatus};
use super::{ClusterApplied, ClusterDestroyed};
use crate::cli::{ClusterApplyOptions, ClusterCommand, DefinitionOptions, Socket};
use crate::client::{Ask, ask};
use crate::failure::{Exit, Failure, print};
use crate::handout;
use crate::http::clusters::DEFINITION_BYTES_MAX;
use crate::preflight::progress;
use crate::show::{clear_screen, json, moment, table, table_text};

const WATCH_TIME: Duration = Duration::from_secs(1);

/// `reveille cluster`
///
/// # Errors
/// [`Failure`]; `plan` ends with code 2 when something would change, which is printed.
pub fn run(command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Import {
            name,
            path,
            installer,
            socket,
        } => {
            let given = match (installer, path) {
                (Some(installer), _) => handout::Given::Installer(installer),
                (None, Some(path)) => handout::Given::Path(path),
                (None, None) => unreachable!("the command line asks for one of them"),
            };
            handout::import(&name, &given, &socket)
        }
        ClusterCommand::Kubeconfig(options) => handout::run(&options, "kubeconfig"),
        ClusterCommand::Talosconfig(options) => handout::run(&options, "talosconfig"),
        ClusterCommand::Apply(options) => {
            let ClusterApplyOptions {
                definition,
                wait,
                ignore_preflight,
            } = options;
            let query = format!("ignore-preflight={ignore_preflight}");
            let progress = progress();
            if !ignore_preflight {
                progress.set_message("the daemon looks around before, for up to 15 s");
            }
            let done = send::<ClusterApplied>("provision", Some(query), &definition);
            progress.finish_and_clear();
            let done = done?;
            print(&match (definition.json, done.changed) {
                (true, _) => json(&done),
                (false, true) => applied_text(&done),
                (false, false) => format!("{} is in force already; nothing changed\n", done.name),
            })?;
            let validation = done.plan.validation;
            match wait.unwrap_or(validation.wait_for_cluster) {
                true => follow(&done.name, validation.timeout_minutes, &definition.socket),
                false => Ok(()),
            }
        }
        ClusterCommand::Plan(options) => {
            let plan: ClusterPlan = send("plan", None, &options)?;
            print(&if options.json {
                json(&plan)
            } else {
                plan_text(&plan)
            })?;
            if !plan.changed {
                return Ok(());
            }
            Err(Failure {
                exit: Exit::Changes,
                causes: Vec::new(),
                remedy: None,
            })
        }
        ClusterCommand::List {
            json: as_json,
            socket,
        } => {
            let clusters: Vec<ClusterSummary> = ask(&socket, &Ask::get("/api/v1/clusters"))?;
            print(&if as_json {
                json(&clusters)
            } else {
                list_text(&clusters)
            })
        }
        ClusterCommand::Status {
            name,
            watch,
            json: as_json,
            socket,
        } => status(&name, watch, as_json, &socket),
        ClusterCommand::Destroy {
            name,
            confirm,
            socket,
        } => {
            let path = format!("/api/v1/clusters/{name}?confirm={confirm}");
            let done: ClusterDestroyed = ask(&socket, &Ask::delete(&path))?;
            let released: Vec<&str> = done.released.iter().map(|node| node.as_str()).collect();
            let free = match released.is_empty() {
                true => "it had no machines".to_owned(),
                false => format!(
                    "free for others, their disks as they were: {}",
                    released.join(", ")
                ),
            };
            print(&format!(
                "{name} is gone, and its secrets with it; {free}\n"
            ))
        }
    }
}

/// `reveille cluster status NAME`, `reveille status NAME`
///
/// # Errors
/// [`Failure`]
pub fn status(
    name: &ClusterName,
    watch: bool,
    as_json: bool,
    socket: &Socket,
) -> Result<(), Failure> {
    let path = format!("/api/v1/clusters/{name}");
    let mut shown = None;
    loop {
        let status: ClusterStatus = ask(socket, &Ask::get(&path))?;
        let text = if as_json {
            json(&status)
        } else {
            status_text(&status)
        };
        if shown.as_ref() != Some(&text) {
            print(&format!("{}{text}", clear_screen(watch && !as_json)))?;
            shown = Some(text);
        }
        if !watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_TIME);
    }
}

/// Waits until a cluster is ready, and tells on standard error what it waits for meanwhile. A daemon that is restarted
/// in between is waited for, too.
fn follow(name: &ClusterName, minutes: Option<u16>, socket: &Socket) -> Result<(), Failure> {
    let path = format!("/api/v1/clusters/{name}");
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs(u64::from(minutes) * 60));
    let mut told = None;
    loop {
        // The ages of looks change each second, and are no news.
        let (news, phase, sentence) = match ask::<ClusterStatus>(socket, &Ask::get(&path)) {
            Ok(ClusterStatus { summary, .. }) => {
                let (ready, machines) = (summary.ready, summary.machines);
                let sentence = &summary.sentence;
                let sentence = format!("{ready} of {machines} machines ready; {sentence}");
                (
                    Some((summary.phase.clone(), ready)),
                    summary.phase,
                    sentence,
                )
            }
            Err(failure) if failure.exit == Exit::Unreachable => {
                let sentence = "no daemon answers; it is waited for";
                (None, String::new(), sentence.to_owned())
            }
            Err(failure) => return Err(failure),
        };
        if told.as_ref() != Some(&news) {
            // Nobody may read it, and that is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{name}: {sentence}");
            told = Some(news);
        }
        if phase == Stage::Ready.word() {
            return Ok(());
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            let minutes = minutes.unwrap_or_default();
            let what = format!("{name} is not ready after {minutes} minutes: {sentence}");
            let remedy = format!(
                "it goes on by itself: `reveille cluster status {name} --watch` follows it, `reveille node why` says what a machine waits for"
            );
            return Err(Failure::new(Exit::Failed, what).with_remedy(remedy));
        }
        std::thread::sleep(WATCH_TIME);
    }
}

fn send<Answer: serde::de::DeserializeOwned>(
    act: &str,
    query: Option<String>,
    options: &DefinitionOptions,
) -> Result<Answer, Failure> {
    let text = read(&options.file)?;
    // Faults name the file; a name that would need escaping is left out.
    let file = options.file.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let named = file.chars().all(plain) && file != "-";
    let file = named.then(|| format!("file={file}"));
    let query: Vec<String> = query.into_iter().chain(file).collect();
    let path = format!("/api/v1/clusters/{act}?{}", query.join("&"));
    ask(&options.socket, &Ask::post(&path, &text))
}

/// A definition, `-` for standard input.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let limit = DEFINITION_BYTES_MAX as u64;
    let mut text = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin()
            .lock()
            .take(limit + 1)
            .read_to_end(&mut text),
        false => File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut text)),
    };
    let act = || format!("reading the definition {}", path.display());
    read.map_err(|error| Failure::of(Exit::Usage, act(), &error))?;
    if text.len() > DEFINITION_BYTES_MAX {
        let what = format!("{}: it is larger than {} MiB", act(), limit >> 20);
        return Err(Failure::new(Exit::Usage, what));
    }
    Ok(text)
}

fn applied_text(done: &ClusterApplied) -> String {
    let name = &done.name;
    let mut text = String::new();
    for warning in &done.plan.warnings {
        text += &format!("warning: {warning}\n");
    }
    text + &format!(
        "{name} is in force with {} machines; before they power on: `reveille preflight {name}`, then `reveille cluster status {name} --watch`\n",
        done.plan.machines.len()
    )
}

fn plan_text(plan: &ClusterPlan) -> String {
    let mut text = format!(
        "{}\n{}, pods {}, services {}\nquorum: {}\n",
        plan.sentence,
        plan.api,
        plan.pods.join(" "),
        plan.services.join(" "),
        plan.quorum,
    );
    if !plan.needs.is_empty() {
        let needs: Vec<String> = plan.needs.iter().map(service_words).collect();
        text += &format!("services start in this order: {}\n", needs.join(", "));
    }
    let mut machines = table(&[
        "node",
        "role",
        "#",
        "group",
        "host name",
        "address",
        "profile",
        "change",
        "writes",
    ]);
    for machine in &plan.machines {
        machines.add_row([
            machine.node.to_string(),
            machine.role.clone(),
            machine.index.to_string(),
            machine.group.to_string(),
            machine.hostname.clone(),
            machine.address.to_string(),
            machine.profile.to_string(),
            machine.change.clone(),
            machine
                .wipes
                .clone()
                .unwrap_or_else(|| "nothing".to_owned()),
        ]);
    }
    text += &format!("\n{}", table_text(&machines));
    if !plan.released.is_empty() {
        let released: Vec<&str> = plan.released.iter().map(|node| node.as_str()).collect();
        text += &format!(
            "given back, their disks as they are: {}\n",
            released.join(", ")
        );
    }
    let mut phases = table(&["phase", "may boot", "until"]);
    for phase in &plan.phases {
        phases.add_row([
            phase.phase.clone(),
            phase.admits.join("; "),
            phase.until.join("; "),
        ]);
    }
    text += &format!("\n{}", table_text(&phases));
    let mut artefacts = table(&["profile", "artefact", "bytes", "sha256"]);
    for artefact in &plan.artefacts {
        artefacts.add_row([
            artefact.profile.to_string(),
            artefact.file.clone(),
            artefact.size.to_string(),
            artefact.sha256.clone(),
        ]);
    }
    text += &format!("\n{}", table_text(&artefacts));
    for warning in &plan.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    if plan.changed {
        text += "\nan apply looks around first, as `reveille preflight` does, and changes nothing while a check fails\n";
    }
    text
}

pub(crate) fn list_text(clusters: &[ClusterSummary]) -> String {
    let mut rows = table(&["name", "platform", "version", "phase", "ready", "waits for"]);
    for cluster in clusters {
        rows.add_row([
            cluster.name.to_string(),
            cluster.platform.clone(),
            cluster.version.clone(),
            cluster.phase.clone(),
            format!("{} of {}", cluster.ready, cluster.machines),
            cluster.sentence.clone(),
        ]);
    }
    table_text(&rows)
}

fn status_text(status: &ClusterStatus) -> String {
    let summary = &status.summary;
    let mut text = format!(
        "{} ({} {} below {}), {} since {}: {} of {} machines ready\n{}\n",
        summary.name,
        summary.platform,
        summary.version,
        summary.domain,
        summary.phase,
        moment(summary.since),
        summary.ready,
        summary.machines,
        summary.sentence,
    );
    if let Some(call) = &status.bootstrap {
        let done = call.done.map_or("not answered yet".to_owned(), |at| {
            format!("done {}", moment(at))
        });
        text += &format!("its database is started on {}: {done}\n", call.node);
    }
    if !status.retired.is_empty() {
        let left: Vec<&str> = status.retired.iter().map(NodeName::as_str).collect();
        text += &format!("did their work and left: {}\n", left.join(", "));
    }
    let mut gates = table(&["phase", "state", "waits for", "have", "latest look"]);
    for phase in &status.phases {
        for gate in &phase.gates {
            gates.add_row([
                phase.phase.clone(),
                phase.state.clone(),
                gate_words(gate),
                match gate.have > gate.want {
                    true => format!("{}, needs {}", gate.have, gate.want),
                    false => format!("{} of {}", gate.have, gate.want),
                },
                gate.look
                    .as_ref()
                    .map_or_else(String::new, |look| look.words.clone()),
            ]);
        }
    }
    text += &format!("\n{}", table_text(&gates));
    if !status.services.is_empty() {
        let mut services = table(&["service", "what", "by", "required", "state", "latest look"]);
        for service in &status.services {
            services.add_row([
                service.name.clone(),
                service.kind.clone(),
                service.mode.clone(),
                if service.required { "yes" } else { "no" }.to_owned(),
                service.state.clone(),
                service.detail.clone(),
            ]);
        }
        text += &format!("\n{}", table_text(&services));
    }
    let mut members = table(&[
        "node",
        "role",
        "#",
        "group",
        "state",
        "next boot",
        "waits for",
    ]);
    for member in &status.members {
        members.add_row([
            member.node.to_string(),
            member.role.clone(),
            member.index.to_string(),
            member.group.to_string(),
            member.state.clone(),
            member.next_boot.clone(),
            member.waits_for.clone(),
        ]);
    }
    text + &format!("\n{}", table_text(&members))
}

fn service_words(service: &ServiceStatus) -> String {
    let optional = if service.required { "" } else { ", optional" };
    format!("{} ({}{optional})", service.name, service.mode)
}

fn gate_words(gate: &GateStatus) -> String {
    match &gate.role {
        None => gate.fact.clone(),
        Some(role) if gate.any => format!("{} of any {role}", gate.fact),
        Some(role) => format!("{} of each {role}", gate.fact),
    }
}
