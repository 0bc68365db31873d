//! The hands: the only crate that touches the bastion.

pub mod config;
pub mod controller;
pub mod dhcp;
pub mod http;
pub mod ledger;
pub mod link;
pub mod ra;
pub mod store;
pub mod sys;
pub mod tftp;
mod tftp_async;
pub mod tls;
