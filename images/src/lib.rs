//! The files that machines boot: a depot of immutable artefacts named by digest, a resumable
//! download into it, and the network boot programs that the distribution ships.
//!
//! May touch its own directory, outbound HTTPS and the distribution's iPXE directory (reading).
//! Knows nothing of nodes, phases or the store.

mod artifact;
mod depot;
mod fetch;
mod loader;
mod stream;

pub use artifact::{Artifact, ArtifactKind, ArtifactName};
pub use depot::{Depot, DepotError, Fault, Swept};
pub use fetch::{FetchError, Progress, Pull, Roots, pull};
pub use loader::{Loaders, PACKAGE_DIRECTORIES};
pub use stream::{STREAM_MAX, StreamError, boot_files};
