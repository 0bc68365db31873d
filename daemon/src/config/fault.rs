//! Everything that is wrong with a site, each with its place, value and remedy. Faults are gathered, never
//! thrown: one bad word must not hide the next.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

use netboot::net::Malformed;

/// Faults that are kept; the rest is only counted.
const KEPT_MAX: usize = 10_000;
/// Faults that are printed.
const PRINTED_MAX: usize = 200;

/// Where a value stands: a file by its index in [`Faults`], line and column from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: u32,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The file, beginning with the site directory as it was given.
    pub file: PathBuf,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// From 1, in characters; 0 when the file as a whole is meant.
    pub column: u32,
    /// The key, such as `address`.
    pub key: String,
    /// The offending value, cut to 80 characters.
    pub value: String,
    /// What is wrong, as the rest of a sentence that begins with key and value.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// Why a site was refused: its faults in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In file order.
    pub faults: Vec<Fault>,
    /// Faults beyond those.
    pub more: usize,
}

/// The place where faults are gathered while a site is read.
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    files: Vec<PathBuf>,
    found: Vec<(Place, Fault)>,
    more: usize,
    warnings: Vec<(Place, Fault)>,
}

impl Faults {
    /// Names a file, for the places in it.
    pub(super) fn open(&self, path: &Path) -> Place {
        let mut gathered = self.0.borrow_mut();
        let file = u32::try_from(gathered.files.len()).unwrap_or(u32::MAX);
        gathered.files.push(path.to_owned());
        Place {
            file,
            line: 0,
            column: 0,
        }
    }

    /// Adds a fault.
    pub(super) fn add(
        &self,
        place: Place,
        key: &str,
        value: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let mut gathered = self.0.borrow_mut();
        if gathered.found.len() == KEPT_MAX {
            gathered.more += 1;
            return;
        }
        let fault = gathered.fault(place, key, value, problem.into(), remedy.into());
        gathered.found.push((place, fault));
    }

    /// Adds what a person had better know of a site that is good all the same.
    pub(super) fn warn(&self, place: Place, key: &str, value: &str, problem: &str, remedy: &str) {
        let mut gathered = self.0.borrow_mut();
        if gathered.warnings.len() < KEPT_MAX {
            let warning = gathered.fault(place, key, value, problem.to_owned(), remedy.to_owned());
            gathered.warnings.push((place, warning));
        }
    }

    /// The file of a place.
    pub(super) fn file(&self, place: Place) -> PathBuf {
        self.0.borrow().file(place)
    }

    /// The warnings in file order.
    pub(super) fn warnings(&self) -> Vec<Fault> {
        let mut warnings = self.0.borrow().warnings.clone();
        warnings.sort_by_key(|(place, _)| *place);
        warnings.into_iter().map(|(_, warning)| warning).collect()
    }

    /// Adds the refusal of a value by the type it was meant for.
    pub(super) fn add_malformed(&self, place: Place, key: &str, malformed: &Malformed) {
        let Malformed { what, value, rule } = malformed;
        let article = if what.starts_with(['a', 'e', 'i', 'o', 'I']) {
            "an"
        } else {
            "a"
        };
        let problem = format!("is not {article} {what}");
        self.add(place, key, value, problem, *rule);
    }

    /// True when another fault would only be counted, so that nobody need work out its remedy.
    pub(super) fn is_full(&self) -> bool {
        self.0.borrow().found.len() >= KEPT_MAX
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        let gathered = self.0.borrow();
        gathered.found.len() + gathered.more
    }

    /// `machines.yaml:12:5`, for a fault that points at another place too.
    pub(super) fn say(&self, place: Place) -> String {
        let file = self.file(place);
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        format!("{file}:{}:{}", place.line, place.column)
    }

    /// All of them in file order, or nothing.
    pub(super) fn into_report(self) -> Option<Report> {
        let Gathered {
            mut found, more, ..
        } = self.0.into_inner();
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|(place, _)| *place);
        found.dedup_by(|(_, one), (_, other)| one == other);
        let faults = found.into_iter().map(|(_, fault)| fault).collect();
        Some(Report { faults, more })
    }
}

impl Gathered {
    fn file(&self, place: Place) -> PathBuf {
        let index = usize::try_from(place.file).ok();
        let file = index.and_then(|index| self.files.get(index));
        file.cloned().unwrap_or_default()
    }

    fn fault(
        &self,
        place: Place,
        key: &str,
        value: &str,
        problem: String,
        remedy: String,
    ) -> Fault {
        Fault {
            file: self.file(place),
            line: place.line,
            column: place.column,
            key: shortened(key),
            value: shortened(value),
            problem,
            remedy,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            key,
            value,
            problem,
            remedy,
        } = self;
        write!(f, "{}:", file.display())?;
        if *line > 0 {
            write!(f, "{line}:{column}:")?;
        }
        for word in [key, value, problem] {
            if !word.is_empty() {
                write!(f, " {word}")?;
            }
        }
        write!(f, "\n    {remedy}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in self.faults.iter().take(PRINTED_MAX) {
            writeln!(f, "{fault}")?;
        }
        let hidden = self.faults.len().saturating_sub(PRINTED_MAX) + self.more;
        if hidden > 0 {
            writeln!(f, "and {hidden} more")?;
        }
        let count = self.faults.len() + self.more;
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{count} fault{plural}; nothing of this site is used")
    }
}

impl std::error::Error for Report {}

/// `did you mean …?` when a candidate is near, else all of them.
pub(super) fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    match netboot::net::nearest(word, candidates.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if candidates.is_empty() => "remove it".to_owned(),
        None if candidates.len() <= 30 => format!("choose one of: {}", candidates.join(", ")),
        None => format!("choose one of the {} there are", candidates.len()),
    }
}

fn shortened(text: &str) -> String {
    const LETTERS_MAX: usize = 80;
    let mut short: String = text
        .chars()
        .take(LETTERS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(LETTERS_MAX).is_some() {
        short.push('…');
    }
    short
}
