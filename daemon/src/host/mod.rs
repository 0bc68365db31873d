//! The bastion's own network: reading the kernel, changing it, and hearing of what others change.
//!
//! What is wanted, and the way there, is decided in [`netboot::host`]; here are the hands.

pub mod kernel;
mod netlink;
mod nft;
mod operate;
mod read;

pub use netlink::Changes;
