//! How a machine boots. Pure: no IO, no clock, no async, no environment, no logging.
//!
//! One value, [`site::Site`], holds what the files want and what was seen. Its verbs:
//! [`site::SiteSpec::new`] refuses a contradictory inventory; [`site::Site::decide`] says what a machine
//! boots; [`site::Site::may_release`] says whether its config may leave; [`site::Site::apply`] turns an
//! event into the next snapshot; [`site::Site::explain`] says where a machine stands and why. None of
//! them fails at run time, and none remembers an answer.
//!
//! Not here: sockets, files, clocks, threads, hashed collections, and the names of platforms.

pub mod attempt;
pub mod boot;
pub mod cluster;
pub mod csr;
pub mod delivery;
pub mod device_flow;
pub mod dhcp;
pub mod endpoint;
pub mod event;
mod faults;
pub mod host;
pub mod identity;
pub mod ipxe;
mod lease;
pub mod link;
pub mod loader;
pub mod net;
pub mod node;
pub mod ntp;
pub mod ra;
pub mod release;
pub mod site;
pub mod spec;
pub mod tftp;
pub mod verdict;
pub mod zone;
