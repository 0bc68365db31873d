//! Looks at a cluster through its Kubernetes API, and the certificates of its nodes.
//!
//! ```text
//!   access   CA, certificate, key, addresses: parsed once
//!   look     wants ──▶ what was seen, in words
//!   csr      pending requests ──▶ `netboot::csr::judge` ──▶ approval of the expected ones
//!   wire     one bounded HTTPS connection
//! ```
//!
//! What comes back is witnessed, never decided here. A look or a round is one future: dropping it leaves nothing behind, and
//! each takes at most some seconds, whatever the cluster does.

pub mod access;
pub mod csr;
pub mod look;
mod pkcs10;
mod wire;

pub use access::{AccessFault, KubeAccess, TrustedCa};
pub use look::{OperatorsWatch, Want, look};
pub use wire::{Server, Trouble};
