//! The `reveille` binary: parse arguments, one `match`, print the chain of causes, exit code.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use daemon::cli::{Cli, Exit, run};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => {
            // A closed pipe behind `reveille --help | head` is no failure of ours.
            let _ = refused.print();
            let asked_for = matches!(
                refused.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return if asked_for {
                ExitCode::SUCCESS
            } else {
                Exit::Usage.into()
            };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            failure.exit.into()
        }
    }
}
