//! The questions that the daemon asks of the clusters it raises. What comes back is witnessed, never decided here.

pub(crate) mod glance;
pub mod kube;
pub mod talos;
