//! `reveille host …`: what is asked of the daemon, and how its answers are told.
//!
//! An apply tells its steps before it knows whether they stay: those lines travel over the very connection
//! that may have been cut, and their acknowledgement is the proof that it was not.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::{ApplyOptions, HostCommand, PlanOptions, Socket};
use crate::client::{Ask, ask, runtime};
use crate::config;
use crate::failure::{Exit, Failure, faulty_site, print};
use crate::host::export;
use crate::host::kernel::Kernel;
use crate::host::words::{Applied, Done, HostReport, Last, Obstructed, Outcome, Plan, Step, Wish};
use crate::show::{json, moment, table, table_text};

/// How long an apply is watched before the administrator is left with it.
const PROOF_TIME: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(200);
/// Parents that are asked for their `SSH_CONNECTION`: sudo, su and shells in shells.
const PARENTS_MAX: usize = 32;

/// `reveille host …`
///
/// # Errors
/// [`Failure`]; one without causes says by its exit code alone that changes are pending.
pub fn run(command: HostCommand) -> Result<(), Failure> {
    match command {
        HostCommand::Plan(options) => plan(&options),
        HostCommand::Apply(options) => apply(&options),
        HostCommand::Export(options) => export::run(&options),
        HostCommand::Confirm(socket) => {
            let last: Last = ask(&socket, &Ask::post("/api/v1/host/confirm", b""))?;
            print(&format!("kept: {}\n", last.why))
        }
        HostCommand::Status {
            json: as_json,
            socket,
        } => {
            let report: HostReport = ask(&socket, &Ask::get("/api/v1/host"))?;
            print(&if as_json {
                json(&report)
            } else {
                report_text(&report)
            })
        }
    }
}

/// Changes are pending; the output has said which.
fn pending() -> Failure {
    Failure {
        exit: Exit::Changes,
        causes: Vec::new(),
        remedy: None,
    }
}

fn plan(options: &PlanOptions) -> Result<(), Failure> {
    let plan: Plan = match &options.site {
        None => ask(&options.socket, &Ask::get("/api/v1/host/plan"))?,
        Some(directory) => {
            let (_, spec) = config::load(directory, &options.state).map_err(faulty_site)?;
            let present = runtime()?
                .block_on(async { Kernel::open().await?.read().await })
                .map_err(|failed| {
                    Failure::new(Exit::Failed, failed.cause.clone()).with_remedy(failed.remedy)
                })?;
            Plan::of(spec.host(), &present)
        }
    };
    if options.json {
        print(&json(&plan))?;
    } else {
        print(&plan_text(&plan))?;
    }
    if plan.refused().next().is_some() {
        let failure = Failure::new(Exit::Failed, "nothing can be changed until that is settled");
        return Err(failure.with_remedy("settle what is refused above, then ask again"));
    }
    if plan.changes.is_empty() {
        Ok(())
    } else {
        Err(pending())
    }
}

fn apply(options: &ApplyOptions) -> Result<(), Failure> {
    let wish = Wish {
        within: options.confirm_within,
        ask: options.ask,
        session: session(),
    };
    let body = serde_json::to_vec(&wish).expect("text and numbers are always JSON");
    let socket = &options.socket;
    let mut applied: Applied = ask(socket, &Ask::post("/api/v1/host/apply", &body))?;
    let steps = steps_text(&applied);
    if options.json {
        eprint!("{steps}");
    } else {
        print(&steps)?;
    }
    if applied.outcome == Outcome::Waiting && !options.ask {
        watch(socket, &mut applied)?;
    }
    if options.json {
        print(&json(&applied))?;
    }
    match applied.outcome {
        Outcome::Nothing | Outcome::Kept => {
            if !options.json {
                print(&format!("{}\n", applied.sentence))?;
            }
            Ok(())
        }
        Outcome::Waiting => {
            if !options.json {
                print(&format!("{}\n", applied.sentence))?;
            }
            Err(pending())
        }
        Outcome::Failed | Outcome::RolledBack => Err(failure(&applied)),
    }
}

/// Waits until it is decided whether the changes stay, but not for long.
fn watch(socket: &Socket, applied: &mut Applied) -> Result<(), Failure> {
    let end = Instant::now() + PROOF_TIME;
    while applied.outcome == Outcome::Waiting && Instant::now() < end {
        std::thread::sleep(LOOK);
        let report: HostReport = ask(socket, &Ask::get("/api/v1/host"))?;
        if let Some(last) = report.last {
            applied.outcome = last.outcome;
            applied.sentence = last.sentence();
            applied.deadline = last.deadline;
        }
    }
    Ok(())
}

fn failure(applied: &Applied) -> Failure {
    let mut failure = Failure::new(Exit::Failed, applied.sentence.clone());
    // The first failure is the sentence; what could not be undone comes on top of it.
    for step in applied
        .undone
        .iter()
        .filter(|step| step.result == Done::Failed)
    {
        failure.causes.extend(step.cause.clone());
    }
    let mut steps = applied.steps.iter().chain(&applied.undone);
    let remedy = steps.find_map(|step| step.remedy.clone());
    failure.with_remedy(remedy.unwrap_or_else(|| {
        "mend the links in site.yaml, then `reveille host plan`; `reveille host apply --ask` keeps only what you confirm"
            .to_owned()
    }))
}

/// The connection that this command was typed over, as its shell or a parent of that knows it: sudo and su
/// take the variable away.
fn session() -> Option<String> {
    const NAME: &str = "SSH_CONNECTION";
    if let Ok(session) = std::env::var(NAME) {
        return Some(session);
    }
    let mut process = "self".to_owned();
    for _ in 0..PARENTS_MAX {
        process = parent(&process)?;
        let environment = fs::read(Path::new("/proc").join(&process).join("environ")).ok()?;
        let found = environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| str::from_utf8(variable).ok())
            .find_map(|variable| variable.strip_prefix(NAME)?.strip_prefix('='));
        if let Some(session) = found {
            return Some(session.to_owned());
        }
    }
    None
}

/// The parent of a process, from its line `PPid:` (proc_pid_status(5)).
fn parent(process: &str) -> Option<String> {
    let status = fs::read_to_string(Path::new("/proc").join(process).join("status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    let parent = parent.trim();
    (parent != "0").then(|| parent.to_owned())
}

fn plan_text(plan: &Plan) -> String {
    let mut text = match plan.changes.len() {
        0 if plan.obstacles.is_empty() => "the host's network is as the site wants it\n".to_owned(),
        0 => "nothing can be changed now\n".to_owned(),
        1 => "1 change; `reveille host apply` carries it out\n".to_owned(),
        count => format!("{count} changes; `reveille host apply` carries them out\n"),
    };
    for change in &plan.changes {
        text += &format!("  {}\n", change.what);
    }
    text + &obstacles_text(&plan.obstacles)
}

pub(crate) fn obstacles_text(obstacles: &[Obstructed]) -> String {
    let lines = obstacles.iter().map(|obstacle| {
        let Obstructed {
            link,
            kind,
            problem,
            remedy,
        } = obstacle;
        format!("{kind}: {link}: {problem}\n  try: {remedy}\n")
    });
    lines.collect()
}

fn steps_text(applied: &Applied) -> String {
    let line = |word: &str, step: &Step| format!("{word:<11} {}\n", step.what);
    let steps = applied.steps.iter().map(|step| match step.result {
        Done::Done => line("done", step),
        Done::Failed => line("failed", step),
        Done::Left => line("not tried", step),
    });
    let undone = applied.undone.iter().map(|step| match step.result {
        Done::Failed => line("stays", step),
        Done::Done | Done::Left => line("rolled back", step),
    });
    let text: String = steps.chain(undone).collect();
    text + &obstacles_text(&applied.obstacles)
}

fn report_text(report: &HostReport) -> String {
    let mut text = format!("{}\n", report.sentence);
    if let Some(last) = &report.last {
        text += &format!("last apply, {}: {}\n", moment(last.at), last.sentence());
    }
    if !report.links.is_empty() {
        let mut links = table(&["link", "kind", "state", "addresses", "made by"]);
        for row in &report.links {
            links.add_row([
                row.name.to_string(),
                row.kind.clone(),
                row.state.clone(),
                row.addresses.join(" "),
                row.made_by.clone(),
            ]);
        }
        text += &format!("\n{}", table_text(&links));
    }
    if !report.plan.changes.is_empty() {
        text += "\ndiffers from the site; to be done:\n";
        for change in &report.plan.changes {
            text += &format!("  {}\n", change.what);
        }
    }
    if !report.plan.obstacles.is_empty() {
        text += &format!("\n{}", obstacles_text(&report.plan.obstacles));
    }
    for rival in &report.rivals {
        let links: Vec<String> = rival.links.iter().map(ToString::to_string).collect();
        text += &format!(
            "\n{} configures {} too\n  try: {}\n",
            rival.program,
            links.join(", "),
            rival.remedy
        );
    }
    text
}
