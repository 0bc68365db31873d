//! `reveille check`: judges a site offline and says everything that is wrong with it, for people, for scripts
//! (`--json`), and for editors (`--schema`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use schemars::Schema;
use serde::Serialize;
use serde_json::Value;

use super::clusters::Change;
use super::file;
use super::{Fault, Loaded, load_changed};

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
    /// `clusters/*.yaml` and `clusters/*.json`
    Cluster,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Site, Self::Machines, Self::Profile, Self::Cluster];

    /// Its word on the command line and in file names.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Machines => "machines",
            Self::Profile => "profile",
            Self::Cluster => "cluster",
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    clean: bool,
    faults: &'a [Fault],
    warnings: &'a [Fault],
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
    clusters: usize,
}

/// Judges the site and writes the verdict; returns the exit code.
///
/// # Errors
/// The verdict could not be written.
pub fn run(site: &Path, state: &Path, json: bool, out: &mut impl Write) -> io::Result<u8> {
    let loaded = load_changed(site, state, &Change::None);
    let loaded = loaded.and_then(|loaded| loaded.must_place_afresh().map(|()| loaded));
    let code = if loaded.is_ok() { CLEAN } else { FAULTY };
    if json {
        let (faults, warnings, more) = match &loaded {
            Ok(loaded) => (&[][..], &loaded.warnings[..], 0),
            Err(report) => (&report.faults[..], &[][..], report.more),
        };
        let verdict = Verdict {
            clean: loaded.is_ok(),
            faults,
            warnings,
            more,
            site: loaded.as_ref().ok().map(Size::of),
        };
        serde_json::to_writer_pretty(&mut *out, &verdict)?;
        writeln!(out)?;
        return Ok(code);
    }
    match &loaded {
        Err(report) => writeln!(out, "{report}")?,
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(out, "warning: {warning}")?;
            }
            writeln!(out, "{}", Size::of(loaded).told(loaded.warnings.len()))?;
        }
    }
    Ok(code)
}

impl<'a> Size<'a> {
    fn of(loaded: &'a Loaded) -> Self {
        let Loaded { settings, spec, .. } = loaded;
        Self {
            name: &settings.site,
            networks: spec.networks().count(),
            machines: spec.node_count(),
            profiles: spec.profiles().count(),
            clusters: spec.clusters().count(),
        }
    }

    fn told(&self, warnings: usize) -> String {
        let mut parts = vec![
            counted(self.networks, "network"),
            counted(self.machines, "machine"),
            counted(self.profiles, "profile"),
        ];
        if self.clusters > 0 {
            parts.push(counted(self.clusters, "cluster"));
        }
        parts.push("no faults".to_owned());
        if warnings > 0 {
            parts.push(counted(warnings, "warning"));
        }
        format!("site {}: {}", self.name, parts.join(", "))
    }
}

/// The JSON schema of one kind of file, with a line feed at its end.
#[must_use]
pub fn schema(kind: Kind) -> String {
    let schema: Schema = match kind {
        Kind::Site => schemars::schema_for!(file::Site),
        Kind::Machines => schemars::schema_for!(file::Machines),
        Kind::Profile => schemars::schema_for!(file::Profile),
        Kind::Cluster => schemars::schema_for!(file::Cluster),
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
