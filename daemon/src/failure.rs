//! How a command ends badly: an exit code that scripts rely on, one cause a line, and what to do next.

use std::fmt;
use std::process::ExitCode;

use crate::config::Report;

/// Faults of a refused site that are shown; `check` shows them all.
pub const FAULTS_SHOWN: usize = 20;

/// The exit codes that scripts rely on, besides 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Failed while running.
    Failed = 1,
    /// Nothing failed, and changes are pending.
    Changes = 2,
    /// Bad usage.
    Usage = 64,
    /// No daemon answers.
    Unreachable = 69,
    /// The caller may not.
    NotPermitted = 77,
    /// The site has faults.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do its work.
#[derive(Debug)]
pub struct Failure {
    /// What the process says by its exit code.
    pub exit: Exit,
    /// What was being done, then each cause below it.
    pub causes: Vec<String>,
    /// What to do next.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure with one cause.
    pub fn new(exit: Exit, cause: impl Into<String>) -> Self {
        Self {
            exit,
            causes: vec![cause.into()],
            remedy: None,
        }
    }

    /// A failure with the whole chain of an error.
    pub fn of(exit: Exit, act: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut causes = vec![act.into()];
        let mut next = Some(error);
        while let Some(error) = next {
            causes.push(error.to_string());
            next = error.source();
        }
        Self {
            exit,
            causes,
            remedy: None,
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, cause) in self.causes.iter().enumerate() {
            let lead = if depth == 0 { "error: " } else { "  because: " };
            writeln!(f, "{lead}{cause}")?;
        }
        match &self.remedy {
            Some(remedy) => writeln!(f, "  try: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Writes to standard output. A reader that has seen enough, as in `reveille events | head`, is no failure.
///
/// # Errors
/// [`Failure`] when the output can't be written for another reason.
pub fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::of(Exit::Failed, "writing the output", &error)),
    }
}

/// A site that can't be served, as a failure of the whole.
pub fn faulty_site(report: Report) -> Failure {
    let count = report.faults.len() + report.more;
    let mut failure = Failure::new(
        Exit::Configuration,
        format!("the site has {count} faults, so nothing is served"),
    );
    let shown = report.faults.iter().take(FAULTS_SHOWN);
    failure.causes.extend(shown.map(ToString::to_string));
    failure.with_remedy("mend the files; `reveille check` lists every fault")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_one_cause_a_line_and_ends_with_the_remedy() {
        let error = std::io::Error::other("no such file");
        let failure =
            Failure::of(Exit::Failed, "reading the site", &error).with_remedy("make the file");
        assert_eq!(
            failure.to_string(),
            "error: reading the site\n  because: no such file\n  try: make the file\n"
        );
    }
}
