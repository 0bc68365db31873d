//! The commands: what can be typed, and which room does it.
//!
//! `serve` is the daemon. `check`, `image`, `completions` and `man` work on files and need no daemon;
//! `simulate` needs none when it is given a site. Everything else is one request over the control
//! socket. Tables for people go to standard output, `--json` prints one document with stable keys,
//! and a failure goes to standard error: one cause per line, then what to do next.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use netboot::net::NodeName;

use crate::config::check;
use crate::image::{self, ImageCommand};
use crate::simulate::Question;
use crate::{client, serve};

/// Wakes bare metal in the right order: DHCP, TFTP, boot scripts and configs for machines that netboot.
#[derive(Debug, Parser)]
#[command(name = "reveille", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::Options),
    /// Judge the site's files without a daemon: every fault at once, with its place and remedy
    Check(CheckOptions),
    /// Load the site's files again; a faulty site is refused whole
    Reload(Socket),
    /// Show what the bastion does and what each machine waits for
    Status(StatusOptions),
    /// Look at machines, admit them, set them aside
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show what happened: who asked, what was answered, what it rests on
    Events(EventsOptions),
    /// Show the exact answer a machine would get, and the rule that chose it
    Simulate(SimulateOptions),
    /// Keep the boot artefacts: kernels, ramdisks, loaders
    #[command(subcommand)]
    Image(ImageCommand),
    /// Save what was seen of the machines, bring it back, settle what was lost
    #[command(subcommand)]
    State(StateCommand),
    /// Print the version
    Version,
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// The directory they go to
        directory: PathBuf,
    },
}

/// What is judged, and how it is told.
#[derive(Debug, Args)]
struct CheckOptions {
    /// The directory of the site's files
    #[arg(long, env = "REVEILLE_SITE", default_value = serve::SITE, value_name = "DIR")]
    site: PathBuf,
    /// The daemon's state directory: the site's artefacts are looked up in its depot
    #[arg(long, env = "REVEILLE_STATE", default_value = serve::STATE, value_name = "DIR")]
    state: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Print the JSON schema of a kind of file instead
    #[arg(long, value_name = "KIND")]
    schema: Option<check::Kind>,
}

/// Where the daemon listens.
#[derive(Clone, Debug, Args)]
pub struct Socket {
    /// The daemon's control socket
    #[arg(long, env = "REVEILLE_SOCKET", default_value = serve::SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// How `status` is shown.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// Show it again whenever it changes, until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// Which events, and how they are shown.
#[derive(Debug, Args)]
pub struct EventsOptions {
    /// Only of this machine
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// Go on with what happens, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// The latest so many
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// Print JSON: one document, or with --follow one a line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// Whose answer, and from which site.
#[derive(Debug, Args)]
pub struct SimulateOptions {
    #[command(flatten)]
    pub question: Question,
    /// Judge by these files, as if nothing had been seen yet, instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    pub site: Option<PathBuf>,
    /// The state directory whose depot --site is judged with
    #[arg(long, env = "REVEILLE_STATE", default_value = serve::STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// What can be asked about, or done to, one machine.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the machines
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Show everything known of one machine
    Show(OneNode),
    /// Say how far a machine came, what it waits for or failed at, and what to do about it
    Why(OneNode),
    /// Admit a machine, or let one try again after failed attempts
    Approve(ActedOn),
    /// Refuse a machine until it is approved
    Reject(ActedOn),
    /// Set a machine aside: it is not installed, an installed disk still boots
    Cordon(ActedOn),
    /// Take a machine back
    Uncordon(ActedOn),
    /// Consent to lose the disk of an installed machine: its next boot installs it again
    Reinstall {
        #[command(flatten)]
        node: ActedOn,
        /// Serial number of the disk that may be lost
        #[arg(long, value_name = "SERIAL")]
        disk: String,
        /// How long the consent holds: a number and s, m, h or d
        #[arg(long, default_value = "1h", value_parser = parse_seconds)]
        ttl: u64,
    },
}

/// What can be done about the records of what was seen.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Write the records to a file in the state directory's exports, and print its name
    Export(Socket),
    /// Replace the records of a stopped daemon by an export; machines then wait for approval
    Import {
        /// The export
        file: PathBuf,
        /// The daemon's state directory
        #[arg(long, env = "REVEILLE_STATE", default_value = serve::STATE, value_name = "DIR")]
        state: PathBuf,
    },
    /// After a lost or restored store: take what is left for all there is, and hold no machine back for it
    Accept(Socket),
}

/// One machine, looked at.
#[derive(Debug, Args)]
pub struct OneNode {
    /// The machine's name
    pub name: NodeName,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// One machine, acted on.
#[derive(Debug, Args)]
pub struct ActedOn {
    /// The machine's name
    pub name: NodeName,
    #[command(flatten)]
    pub socket: Socket,
}

/// The exit codes that scripts rely on, besides 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Failed while running.
    Failed = 1,
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

/// Does what was typed.
///
/// # Errors
/// [`Failure`], to be printed as it is.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(options) => serve::run(options),
        Command::Check(options) => run_check(&options),
        Command::Reload(socket) => client::reload(&socket),
        Command::Status(options) => client::status(&options),
        Command::Node(command) => client::node(command),
        Command::Events(options) => client::events(&options),
        Command::Simulate(options) => client::simulate(&options),
        Command::Image(command) => image::run(command),
        Command::State(command) => client::state(command),
        Command::Version => print(&format!("reveille {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "reveille", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man { directory } => write_manual(&directory),
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

fn run_check(options: &CheckOptions) -> Result<(), Failure> {
    if let Some(kind) = options.schema {
        return print(&check::schema(kind));
    }
    let mut verdict = Vec::new();
    let code = check::run(&options.site, &options.state, options.json, &mut verdict)
        .map_err(|error| Failure::of(Exit::Failed, "writing the verdict", &error))?;
    print(&String::from_utf8_lossy(&verdict))?;
    match code {
        0 => Ok(()),
        // The verdict has said everything.
        _ => Err(Failure {
            exit: Exit::Configuration,
            causes: Vec::new(),
            remedy: None,
        }),
    }
}

fn write_manual(directory: &std::path::Path) -> Result<(), Failure> {
    let act = || format!("writing the manual pages to {}", directory.display());
    clap_mangen::generate_to(Cli::command(), directory)
        .map_err(|error| Failure::of(Exit::Failed, act(), &error))
}

fn parse_seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write a number and s, m, h or d, such as 90m".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    count.checked_mul(factor).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_to_live_is_a_number_and_a_unit() {
        assert_eq!(parse_seconds("1h"), Ok(3600));
        assert_eq!(parse_seconds("90m"), Ok(5400));
        for text in ["", "h", "1", "1w", "-1h", "1.5h", "99999999999999999999d"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

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
