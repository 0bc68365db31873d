//! The hands: the only crate that touches the bastion.
