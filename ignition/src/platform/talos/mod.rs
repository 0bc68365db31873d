//! Talos: one machine config a member, and what its administrators read.
//!
//! ```text
//!   platformConfig ──judge──▶ Settings            version ──parse──▶ Version, and with it the contract
//!   secrets.yaml ──Bundle::read──▶ Bundle ◀── made by the daemon
//!   Membership + Settings + Bundle ──document──▶ talos.yaml
//!   Bundle + a certificate that it vouches for ──▶ talosconfig, kubeconfig
//! ```
//!
//! Fields are those of the release branches of siderolabs/talos, pkg/machinery/config: `types/v1alpha1/v1alpha1_types.go`,
//! `generate/{init,worker}.go` for what a new cluster is given, `contract.go` for which release is given what, and
//! `types/v1alpha1/v1alpha1_validation.go` for what a node refuses.
//!
//! Ugly facts. A node that refuses its config fetches it again for ever and says so on its console only, so everything it
//! would refuse is refused here. A worker that is given the CA's key is such a node. From 1.12 on the network and the name are
//! said in documents of their own, which 1.11 refuses by their kind.

mod access;
mod bundle;
mod machine;
mod patch;
pub mod pem;
mod settings;
mod version;

pub use access::{kubeconfig, talosconfig};
pub use bundle::{Bundle, BundleFault, Certified, Encryption};
pub use machine::document;
pub use settings::{Settings, judge};
pub use version::{Contract, Version};
