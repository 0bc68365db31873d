//! Why a wish for the host's network is not taken at all; nothing was changed.

use axum::http::StatusCode;
use netboot::net::Timestamp;

use crate::host::journal::JournalError;
use crate::host::kernel::Failed;
use crate::host::words::Obstructed;
use crate::http::words::Problem;
use crate::show::moment;

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Others make the links.
    #[error("this site says `links: unmanaged` under `host`, so others make the bastion's links")]
    Unmanaged,
    /// One change at a time.
    #[error("a change by {by} waits to be confirmed until {}", moment(*until))]
    Waits {
        /// Who asked for it.
        by: String,
        /// When it is undone.
        until: Timestamp,
    },
    /// There is nothing to confirm; with what became of the last change.
    #[error("no change waits to be confirmed; {0}")]
    NothingWaits(String),
    /// Something is in the way that a person must settle.
    #[error("nothing is changed, because something is in the way")]
    Obstructed(Vec<Obstructed>),
    /// The kernel can't be asked.
    #[error("{0}")]
    Kernel(#[from] Failed),
    /// Without the journal there is no way back.
    #[error("nothing is changed, because there would be no way back after a crash")]
    Journal(#[from] JournalError),
    /// The daemon ends.
    #[error("the daemon stops")]
    Stopping,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = |status| Self::new(status, refusal.to_string());
        match &refusal {
            Refusal::Unmanaged => problem(StatusCode::CONFLICT).with_remedy(
                "`reveille host plan` says what differs; to have them made here, say `links: managed` under `host` in site.yaml",
            ),
            Refusal::Waits { .. } => problem(StatusCode::CONFLICT)
                .with_remedy("`reveille host confirm` keeps it; otherwise wait until it is undone"),
            Refusal::NothingWaits(_) => problem(StatusCode::CONFLICT)
                .with_remedy("`reveille host status` shows how the host's network stands"),
            Refusal::Obstructed(obstacles) => {
                let refused = || obstacles.iter().filter(|obstacle| obstacle.kind == Obstructed::REFUSED);
                let mut problem = problem(StatusCode::CONFLICT);
                problem.causes = refused()
                    .map(|obstacle| format!("{}: {}", obstacle.link, obstacle.problem))
                    .collect();
                let mut remedies: Vec<&str> =
                    refused().map(|obstacle| obstacle.remedy.as_str()).collect();
                remedies.dedup();
                problem.with_remedy(remedies.join("; "))
            }
            Refusal::Kernel(failed) => {
                problem(StatusCode::INTERNAL_SERVER_ERROR).with_remedy(failed.remedy.clone())
            }
            Refusal::Journal(error) => {
                let mut problem = problem(StatusCode::INTERNAL_SERVER_ERROR);
                problem.causes = vec![error.to_string()];
                problem
            }
            Refusal::Stopping => problem(StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}
