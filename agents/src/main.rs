//! The `reveille-agent` binary: what a node says to its bastion.

fn main() {}
