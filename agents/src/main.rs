//! The `reveille-agent` binary: what a node says to its bastion.
//!
//! `reveille-agent report installed` is the last act of an installer, before it reboots: it returns
//! only when the bastion has the report on disk, because a machine whose report got lost would be
//! installed again. May touch the kernel command line, one CA file, and HTTP to the bastion.

mod bastion;
mod facts;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};

use bastion::{Ended, Said};

/// Tells the bastion how this machine fares.
#[derive(Debug, Parser)]
#[command(name = "reveille-agent", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Report, and try again until the bastion acknowledges it
    Report {
        /// What to report
        word: Word,
        /// Why, for `failed`
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Where to report; the kernel argument `reveille.report=URL` unless given
        #[arg(long)]
        url: Option<String>,
        /// The PEM file of the authority that an https URL is checked against
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Give up after so many seconds; never unless given
        #[arg(long, value_name = "SECONDS")]
        give_up: Option<u64>,
    },
}

/// A story that goes well passes through the first four in this order.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Word {
    /// The disk is written and boots by itself
    Installed,
    /// The system is up
    Booted,
    /// It joined its cluster
    Joined,
    /// It is ready for work
    Ready,
    /// It gave up
    Failed,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => {
            // Nobody reads the help behind a closed pipe.
            let _ = refused.print();
            let asked_for = matches!(
                refused.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return ExitCode::from(if asked_for { 0 } else { 64 });
        }
    };
    match report(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, why)) => {
            eprintln!("error: {why}");
            ExitCode::from(code)
        }
    }
}

fn report(command: Command) -> Result<(), (u8, String)> {
    let Command::Report {
        word,
        reason,
        url,
        ca,
        give_up,
    } = command;
    let url = match url {
        Some(url) => url,
        None => facts::report_url().map_err(|why| (78, why))?,
    };
    let bastion = bastion::Bastion::new(&url, ca.as_deref()).map_err(|why| (78, why))?;
    let said = Said {
        report: word.text(),
        detail: reason,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| (1, format!("starting the runtime: {error}")))?;
    let patience = give_up.map(Duration::from_secs);
    match runtime.block_on(bastion.report(&said, patience)) {
        Ended::Acknowledged => Ok(()),
        Ended::Refused(why) => Err((77, format!("the bastion refused the report: {why}"))),
        Ended::GaveUp(why) => Err((
            69,
            format!("the bastion did not acknowledge in time: {why}"),
        )),
    }
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Booted => "booted",
            Self::Joined => "joined",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}
