//! The bastion's own network: reading the kernel, changing it, and hearing of what others change.
//!
//! What is wanted, and the way there, is decided in [`netboot::host`]; here are the hands, and the one task
//! that uses them ([`keeper`]).

mod apply;
pub mod command;
pub mod export;
mod fights;
mod journal;
pub mod keeper;
pub mod kernel;
mod netlink;
mod nft;
mod operate;
mod path;
mod read;
mod refusal;
mod report;
pub mod rivals;
pub mod words;

pub use journal::Journal;
pub use netlink::Changes;
pub use refusal::Refusal;
