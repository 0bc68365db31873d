//! How commands show things: tables for people, JSON for scripts, moments for both.

use comfy_table::{Table, presets};
use netboot::net::Timestamp;
use serde::Serialize;

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
