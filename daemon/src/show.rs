//! How commands show things: tables for people, JSON for scripts, moments for both.

use comfy_table::{Table, presets};
use netboot::net::Timestamp;
use serde::Serialize;

use crate::balancer::ListenerStatus;
use crate::elsewhere::{Finding, State};

/// One JSON document, as people can read it too.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("our own shapes are always JSON") + "\n"
}

/// A table without frames: it survives `grep` and `awk`.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table
}

/// A table as text.
pub(crate) fn table_text(table: &Table) -> String {
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// A moment as people read it.
pub(crate) fn moment(at: Timestamp) -> String {
    i64::try_from(at.millis())
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .map_or_else(|| at.millis().to_string(), |moment| format!("{moment:.0}"))
}

/// A row for each backend; the words of its last check where they are not good.
pub(crate) fn balancer_table(listeners: &[ListenerStatus]) -> String {
    let mut rows = table(&[
        "cluster", "port", "backend", "health", "open", "served", "detail",
    ]);
    for listener in listeners {
        let port = format!("{} {}", listener.port, listener.name);
        if let Some(problem) = listener.problem() {
            let cells = [&*listener.cluster, &port, "", "", "", "", &problem];
            rows.add_row(cells.map(str::to_owned));
        }
        for backend in &listener.backends {
            let detail = if backend.health == "up" {
                ""
            } else {
                &*backend.detail
            };
            let spare = if backend.spare { " (spare)" } else { "" };
            rows.add_row([
                listener.cluster.clone(),
                port.clone(),
                format!("{}{spare}", backend.node),
                backend.health.clone(),
                backend.connections.to_string(),
                backend.served.to_string(),
                detail.to_owned(),
            ]);
        }
    }
    table_text(&rows)
}

/// What others must serve; what is wrong comes first.
pub(crate) fn elsewhere_table(findings: &[Finding], now: Timestamp) -> String {
    let mut rows = table(&["cluster", "elsewhere", "state", "age", "detail"]);
    let mut findings: Vec<&Finding> = findings.iter().collect();
    findings.sort_by_key(|finding| finding.state != State::Wrong);
    for finding in findings {
        let state = match finding.state {
            State::Right => "right",
            State::Waits => "waits",
            State::Wrong => "WRONG",
        };
        let age = now.millis().saturating_sub(finding.at.millis()) / 1000;
        let remedy = finding.remedy.as_ref();
        let remedy = remedy.map_or(String::new(), |remedy| format!("; try: {remedy}"));
        rows.add_row([
            finding.cluster.clone(),
            finding.subject.clone(),
            state.to_owned(),
            format!("{age} s"),
            format!("{}{remedy}", finding.detail),
        ]);
    }
    table_text(&rows)
}

/// What clears the old picture, when one follows another on a terminal; in a file they stand below each other.
pub(crate) fn clear_screen(again: bool) -> &'static str {
    use std::io::IsTerminal;
    match again && std::io::stdout().is_terminal() {
        true => "\x1b[H\x1b[2J",
        false => "",
    }
}
