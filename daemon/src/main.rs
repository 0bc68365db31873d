//! The `reveille` binary: parse arguments, one `match`, print the error chain, exit code.

fn main() {}
