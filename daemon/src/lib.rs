//! The hands: the only crate that touches the bastion.

pub mod bastion;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod dhcp;
pub mod failure;
pub mod host;
pub mod http;
pub mod image;
pub mod ledger;
pub mod link;
pub mod loaders;
pub mod metrics;
pub mod notify;
pub mod plan;
pub mod preflight;
pub mod ra;
pub mod serve;
pub mod simulate;
pub mod status;
pub mod store;
pub mod sys;
pub mod tftp;
mod tftp_async;
pub mod tls;
