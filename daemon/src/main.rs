//! The `reveille` binary: parse arguments, one `match`, print the chain of causes, exit code.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use daemon::cli::{CheckOptions, Cli, Command};
use daemon::config::check;
use daemon::failure::{Exit, Failure, print};
use daemon::{balancer, clusters, commands, dns, host, image, plan, preflight, serve};

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

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(options) => serve::run(options),
        Command::Check(options) => run_check(&options),
        Command::Reload(socket) => commands::reload(&socket),
        Command::Plan(options) => plan::run(&options),
        Command::Status(options) => commands::status(&options),
        Command::Node(command) => commands::node(command),
        Command::Cluster(command) => clusters::command::run(command),
        Command::Events(options) => commands::events(&options),
        Command::Simulate(options) => commands::simulate(&options),
        Command::Balancer(command) => balancer::command::run(command),
        Command::Dns(command) => dns::command::run(command),
        Command::Host(command) => host::command::run(command),
        Command::Preflight(options) => preflight::preflight(&options),
        Command::Image(command) => image::run(command),
        Command::State(command) => commands::state(command),
        Command::Version => print(&format!("reveille {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "reveille", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man { directory } => write_manual(&directory),
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
