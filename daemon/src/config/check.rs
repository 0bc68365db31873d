//! `reveille check`: judges a site offline and says everything that is wrong with it, for people, for scripts
//! (`--json`), and for editors (`--schema`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use schemars::Schema;
use serde::Serialize;
use serde_json::Value;

use super::file;
use super::{Fault, load};

/// Exit codes of the contract: clean, and bad configuration.
const CLEAN: u8 = 0;
const FAULTY: u8 = 78;

/// A kind of file that has a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// `site.yaml`
    Site,
    /// `machines.yaml` and `machines.d/*.yaml`
    Machines,
    /// `profiles/*.yaml`
    Profile,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Site, Self::Machines, Self::Profile];

    /// Its word on the command line and in file names.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Machines => "machines",
            Self::Profile => "profile",
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    clean: bool,
    faults: &'a [Fault],
    more: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<Size<'a>>,
}

#[derive(Serialize)]
struct Size<'a> {
    name: &'a str,
    networks: usize,
    machines: usize,
    profiles: usize,
}

/// Judges the site and writes the verdict; returns the exit code.
///
/// # Errors
/// The verdict could not be written.
pub fn run(site: &Path, state: &Path, json: bool, out: &mut impl Write) -> io::Result<u8> {
    let loaded = load(site, state);
    let size = loaded.as_ref().ok().map(|(settings, spec)| Size {
        name: &settings.site,
        networks: spec.networks().count(),
        machines: spec.node_count(),
        profiles: spec.profiles().count(),
    });
    let code = if loaded.is_ok() { CLEAN } else { FAULTY };
    if json {
        let (faults, more) = match &loaded {
            Ok(_) => (&[][..], 0),
            Err(report) => (&report.faults[..], report.more),
        };
        let verdict = Verdict {
            clean: loaded.is_ok(),
            faults,
            more,
            site: size,
        };
        serde_json::to_writer_pretty(&mut *out, &verdict)?;
        writeln!(out)?;
        return Ok(code);
    }
    match (&loaded, size) {
        (Err(report), _) => writeln!(out, "{report}")?,
        (Ok(_), size) => {
            if let Some(Size {
                name,
                networks,
                machines,
                profiles,
            }) = size
            {
                let (networks, machines, profiles) = (
                    counted(networks, "network"),
                    counted(machines, "machine"),
                    counted(profiles, "profile"),
                );
                writeln!(
                    out,
                    "site {name}: {networks}, {machines}, {profiles}, no faults"
                )?;
            }
        }
    }
    Ok(code)
}

/// The JSON schema of one kind of file, with a line feed at its end.
#[must_use]
pub fn schema(kind: Kind) -> String {
    let schema: Schema = match kind {
        Kind::Site => schemars::schema_for!(file::Site),
        Kind::Machines => schemars::schema_for!(file::Machines),
        Kind::Profile => schemars::schema_for!(file::Profile),
    };
    let text = serde_json::to_string_pretty(&sorted(schema.as_value()));
    text.expect("a schema is JSON") + "\n"
}

/// With every object's keys in alphabetical order, whatever order the build of serde_json keeps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<_, _> = members.iter().collect();
            let members = members.into_iter();
            members
                .map(|(key, member)| (key.clone(), sorted(member)))
                .collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
