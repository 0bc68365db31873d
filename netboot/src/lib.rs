//! How a machine boots. Pure: no IO, no clock, no async.
