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

mod control_path;
mod diff;
mod faults;
mod firewall;
mod model;
mod operation;
mod spec;
mod state;
mod target;

pub use control_path::{ControlPath, Judgement, Session, SessionSign, Signs, judge};
pub use diff::{diff, restore};
pub(crate) use faults::host_faults;
pub use firewall::ruleset;
pub use model::Inapplicable;
pub use operation::Operation;
pub use spec::{HostLink, HostSpec, LinkPolicy, Masquerade, ReversePath, Service, Transport};
pub use state::{
    ALIAS, Address, HostState, LinkDefaults, LinkState, Owned, PROTOCOL, PresentKind, Ruleset,
    TABLE,
};
pub use target::{Obstacle, ObstacleKind, Target, target};
