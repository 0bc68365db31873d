//! The bastion's own network: what the site wants of it, what is there, and the way from one to the other.
//!
//! ```text
//!   HostSpec --target--.
//!                      |--> HostState wanted --.
//!   HostState present -'                       |--diff--> [Operation] --> the kernel
//!                      '-----------------------'
//! ```
//!
//! The same difference leads back: to undo is to wish for the state that was before. What is ours is marked
//! in the kernel (a link by its alias, an address, a route and a rule by their protocol number, the firewall by its
//! table), and what is not ours is part of every target exactly as it is.

mod spec;
mod state;

pub use spec::{HostLink, HostSpec, LinkPolicy, Masquerade, ReversePath, Service, Transport};
pub use state::{
    ALIAS, Address, HostState, LinkState, Operation, Owned, PROTOCOL, PresentKind, Ruleset, TABLE,
};
