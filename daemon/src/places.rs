//! Where the daemon and its commands find each other, and everything else.

use std::path::PathBuf;

use clap::Args;

/// Where the site's files are.
pub const SITE: &str = "/etc/reveille";
/// Where the daemon keeps what it must not forget.
pub const STATE: &str = "/var/lib/reveille";
/// Where the daemon listens for administrators.
pub const SOCKET: &str = "/run/reveille/control.sock";

/// Where the daemon finds everything.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The directory of the site's files
    #[arg(long, env = "REVEILLE_SITE", default_value = SITE, value_name = "DIR")]
    pub site: PathBuf,
    /// The directory of records, artefacts and certificates
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// The control socket
    #[arg(long, env = "REVEILLE_SOCKET", default_value = SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}
