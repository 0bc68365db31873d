//! The hands: the only crate that touches the bastion.

pub mod controller;
pub mod ledger;
