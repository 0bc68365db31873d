//! `reveille dns …`: the records that follow from the site, for people and for other servers.

use netboot::zone::{DnsMode, Names, Side};
use serde::{Deserialize, Serialize};

use crate::cli::DnsCommand;
use crate::client::{Ask, ask};
use crate::failure::{Failure, print};
use crate::show::{json, table, table_text};

/// The site's names as scripts see them; keys are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamesReport {
    /// `serve`, `external` or `off`.
    pub mode: String,
    /// The zones' serial number.
    pub serial: u32,
    /// How long an answer may be kept, in seconds.
    pub ttl_seconds: u32,
    /// The records, by side and name.
    pub records: Vec<RecordReport>,
    /// What machines see, as a master file.
    pub inside: String,
    /// What everybody sees on public links, as a master file.
    pub outside: String,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReport {
    /// Who sees it.
    pub side: Side,
    /// Whose it is, with a dot at its end.
    pub name: String,
    /// `A`, `AAAA` or `PTR`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub data: String,
}

impl NamesReport {
    pub(crate) fn of(mode: DnsMode, names: &Names) -> Self {
        let records = names.records().into_iter().map(|record| RecordReport {
            side: record.side,
            name: record.name.to_string(),
            kind: record.data.word().to_owned(),
            data: record.data.to_string(),
        });
        Self {
            mode: match mode {
                DnsMode::Serve => "serve",
                DnsMode::External => "external",
                DnsMode::Off => "off",
            }
            .to_owned(),
            serial: names.serial,
            ttl_seconds: names.ttl_seconds,
            records: records.collect(),
            inside: names.zone_file(Side::Inside),
            outside: names.zone_file(Side::Outside),
        }
    }
}

/// `reveille dns …`
///
/// # Errors
/// [`Failure`] when the daemon can't be asked.
pub fn run(command: DnsCommand) -> Result<(), Failure> {
    match command {
        DnsCommand::Records {
            json: as_json,
            socket,
        } => {
            let report: NamesReport = ask(&socket, &Ask::get("/api/v1/dns"))?;
            print(&if as_json {
                json(&report)
            } else {
                records_text(&report)
            })
        }
        DnsCommand::Zone { outside, socket } => {
            let report: NamesReport = ask(&socket, &Ask::get("/api/v1/dns"))?;
            print(if outside {
                &report.outside
            } else {
                &report.inside
            })
        }
    }
}

fn records_text(report: &NamesReport) -> String {
    let who = match report.mode.as_str() {
        "serve" => "served here",
        "external" => "to be served by the networks' DNS servers; `reveille preflight` asks them",
        _ => "served nowhere by this bastion; enter them where machines ask",
    };
    let mut shown = table(&["NAME", "TYPE", "DATA", "SEEN"]);
    for RecordReport {
        side,
        name,
        kind,
        data,
    } in &report.records
    {
        shown.add_row([name, kind, data, &side.to_string()]);
    }
    let count = report.records.len();
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} record{plural}, {who}\n\n{}", table_text(&shown))
}
