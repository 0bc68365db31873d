//! The commands: what can be typed, and which room does it.
//!
//! `serve` is the daemon. `check`, `image`, `completions` and `man` work on files and need no daemon;
//! `simulate` needs none when it is given a site, and `preflight` does without one. Everything else is one request over the control
//! socket. Tables for people go to standard output, `--json` prints one document with stable keys,
//! and a failure goes to standard error: one cause per line, then what to do next.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use images::ArtifactName;
use netboot::cluster::ClusterName;
use netboot::net::{Digest, NodeName};

use crate::config::check;
use crate::host::export::ExportOptions;
use crate::host::words::Wish;
use crate::places::{Options, SITE, SOCKET, STATE};
use crate::preflight::check::Id;
use crate::simulate::Question;

/// Wakes bare metal in the right order: DHCP, TFTP, boot scripts and configs for machines that netboot.
#[derive(Debug, Parser)]
#[command(name = "reveille", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What can be typed first.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(Options),
    /// Judge the site's files without a daemon: every fault at once, with its place and remedy
    Check(CheckOptions),
    /// Load the site's files again; a faulty site is refused whole
    Reload(Socket),
    /// Show what changed files would do to networks, machines and the bastion's links; exit 2 when something
    Plan(SitePlanOptions),
    /// Show what the bastion does and what each machine waits for
    Status(StatusOptions),
    /// Look at machines, admit them, set them aside
    #[command(subcommand)]
    Node(NodeCommand),
    /// Make clusters: judge their definitions, put them in force, follow them
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show what happened: who asked, what was answered, what it rests on
    Events(EventsOptions),
    /// Show the exact answer a machine would get, and the rule that chose it
    Simulate(SimulateOptions),
    /// Show the names that follow from the site, also for other servers to serve
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Show what the clusters' ports need, also for other balancers to take them
    #[command(subcommand)]
    Balancer(BalancerCommand),
    /// See and change the bastion's own links, addresses and routes
    #[command(subcommand)]
    Host(HostCommand),
    /// Check what machines will meet before any boots: other DHCP servers, addresses, VLAN, DNS, NTP, disk
    Preflight(PreflightOptions),
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
pub struct CheckOptions {
    /// The directory of the site's files
    #[arg(long, env = "REVEILLE_SITE", default_value = SITE, value_name = "DIR")]
    pub site: PathBuf,
    /// The daemon's state directory: the site's artefacts are looked up in its depot
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Print the JSON schema of a kind of file instead
    #[arg(long, value_name = "KIND")]
    pub schema: Option<check::Kind>,
}

/// Where the daemon listens.
#[derive(Clone, Debug, Args)]
pub struct Socket {
    /// The daemon's control socket
    #[arg(long, env = "REVEILLE_SOCKET", default_value = SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// Which files are compared with what is in force, and how it is told.
#[derive(Debug, Args)]
pub struct SitePlanOptions {
    /// These files on the bastion instead of the daemon's own
    #[arg(long, value_name = "DIR")]
    pub site: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// How `status` is shown.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// One cluster, its phases and machines
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<ClusterName>,
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
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// What is checked, and what does not count.
#[derive(Debug, Args)]
pub struct PreflightOptions {
    /// Only what matters to this cluster, and what it needs besides
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<ClusterName>,
    /// Check by these files from this process, as root, instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    pub site: Option<PathBuf>,
    /// The state directory, where this process checks by itself
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Let a check fail without counting it; may be given again
    #[arg(long, value_name = "CHECK", value_enum)]
    pub skip: Vec<Id>,
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

/// What can be asked about names.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// List the records and who sees them
    Records {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Write what machines see as a zone file
    Zone {
        /// Write what everybody sees on public links instead
        #[arg(long)]
        outside: bool,
        #[command(flatten)]
        socket: Socket,
    },
}

/// What can be asked about the clusters' ports.
#[derive(Debug, Subcommand)]
pub enum BalancerCommand {
    /// List each port: where it is taken and from whom, who is behind it now, and how that is checked
    Requirements {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
}

/// What can be done about clusters.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Keep a definition and put it in force, with the site's files as a reload would
    Apply(ClusterApplyOptions),
    /// Show what a definition would come to; nothing changes; exit 2 when something would
    Plan(DefinitionOptions),
    /// List the clusters
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Show a cluster's phase, its gates with the latest look at each, and what its machines wait for
    Status {
        /// The cluster's name
        name: ClusterName,
        /// Show it again whenever it changes, until interrupted
        #[arg(long)]
        watch: bool,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Take an applied definition away, free its machines, forget its records and secrets; no disk is written
    Destroy {
        /// The cluster's name
        name: ClusterName,
        /// The name once more
        #[arg(long, value_name = "NAME")]
        confirm: ClusterName,
        #[command(flatten)]
        socket: Socket,
    },
    /// Keep what a cluster's documents are made from: OKD's installer directory, or Talos' secrets.yaml
    Import {
        /// The cluster's name
        name: ClusterName,
        /// What openshift-install left in its directory, or a file that `talosctl gen secrets` wrote
        #[arg(required_unless_present = "installer")]
        path: Option<PathBuf>,
        /// Run this openshift-install on the definition, in an empty directory that is gone afterwards, and keep what it makes
        #[arg(long, value_name = "PROGRAM", conflicts_with = "path")]
        installer: Option<PathBuf>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Hand out the file that kubectl uses; the ledger notes who asked
    Kubeconfig(HandOutOptions),
    /// Hand out the file that talosctl uses; the ledger notes who asked
    Talosconfig(HandOutOptions),
}

/// Of which cluster something is handed out, and where to.
#[derive(Debug, Args)]
pub struct HandOutOptions {
    /// The cluster
    #[arg(value_name = "NAME")]
    pub name: ClusterName,
    /// Write it to this new file, readable by you alone, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub socket: Socket,
}

/// A definition, and how it is told what becomes of it.
#[derive(Debug, Args)]
pub struct DefinitionOptions {
    /// One cluster's definition, YAML or JSON; `-` reads standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// A definition, and whether its end is waited for.
#[derive(Debug, Args)]
pub struct ClusterApplyOptions {
    #[command(flatten)]
    pub definition: DefinitionOptions,
    /// Follow the phases until the cluster is ready; exit 1 when the definition's `timeoutMinutes` are over. Unless given, what
    /// its `waitForCluster` says; `--wait=false` returns at once
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub wait: Option<bool>,
    /// Put it in force although a check of `reveille preflight CLUSTER` fails
    #[arg(long)]
    pub ignore_preflight: bool,
}

/// What can be done about the bastion's own network.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Show what the site's files would change of it; exit 2 when there is something
    Plan(PlanOptions),
    /// Load the site and carry that out; undone by itself unless proven or confirmed; exit 2 while it waits
    Apply(ApplyOptions),
    /// Keep the change that waits
    Confirm(Socket),
    /// Show the links, what differs from the site, and what became of the last change
    Status {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Say the same network in files of the system, for it to make the links itself
    Export(ExportOptions),
}

/// What is planned, and how it is told.
#[derive(Debug, Args)]
pub struct PlanOptions {
    /// Plan these files on this host without the daemon, as root
    #[arg(long, value_name = "DIR")]
    pub site: Option<PathBuf>,
    /// The state directory whose depot --site is judged with
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
}

/// How a change is kept.
#[derive(Debug, Args)]
pub struct ApplyOptions {
    /// How long it waits to be proven or confirmed, 10s to 1h; the site's `host.confirm` otherwise
    #[arg(long, value_name = "TIME", value_parser = parse_confirm)]
    pub confirm_within: Option<u32>,
    /// Keep it only when `host confirm` says so
    #[arg(long)]
    pub ask: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
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
        #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
        state: PathBuf,
    },
    /// After a lost or restored store: take what is left for all there is, and hold no machine back for it
    Accept(Socket),
}

/// What can be done with the depot.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Bring in a file under a name
    Import {
        /// The file
        file: PathBuf,
        /// Its name in the depot, such as debian-12/linux
        #[arg(long)]
        name: ArtifactName,
        /// Refuse the file unless it has this digest
        #[arg(long, value_name = "HEX")]
        sha256: Option<Digest>,
        #[command(flatten)]
        state: DepotOf,
    },
    /// Download a file over HTTPS, or the three of a CoreOS build; an interrupted download goes on where it stopped
    Pull {
        /// Its name in the depot, such as debian-12/linux
        #[arg(required_unless_present = "stream", requires = "url")]
        name: Option<ArtifactName>,
        /// Where it is published
        #[arg(long, requires = "sha256", requires = "name")]
        url: Option<String>,
        /// Its published digest
        #[arg(long, value_name = "HEX", requires = "name")]
        sha256: Option<Digest>,
        /// Kernel, initramfs and root of this stream metadata instead, as `openshift-install coreos print-stream-json`
        /// prints it
        #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "url", "sha256"])]
        stream: Option<PathBuf>,
        /// The machines' architecture, as the stream spells it
        #[arg(long, default_value = "x86_64", requires = "stream")]
        arch: String,
        /// Trust the authorities of this PEM file instead of the system's
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        #[command(flatten)]
        state: DepotOf,
    },
    /// List the names
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: DepotOf,
    },
    /// Read every file and compare it with its digest; exit 1 when something is wrong
    Verify {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: DepotOf,
    },
    /// Take a name away; its file stays until gc
    Forget {
        /// The name
        name: ArtifactName,
        #[command(flatten)]
        state: DepotOf,
    },
    /// Remove files that no name and no running daemon needs
    Gc {
        #[command(flatten)]
        state: DepotOf,
        #[command(flatten)]
        socket: Socket,
    },
}

/// Where the depot is.
#[derive(Debug, Args)]
pub struct DepotOf {
    /// The daemon's state directory; the depot is in it
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
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

fn parse_confirm(text: &str) -> Result<u32, String> {
    let seconds = u32::try_from(parse_seconds(text)?).unwrap_or(u32::MAX);
    if Wish::WITHIN.contains(&seconds) {
        Ok(seconds)
    } else {
        Err("give it at least 10s and at most 1h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
}
