//! DHCPv4 for machines that boot from the network: a packet and a site in, a reply out.
//!
//! [`Request::parse`] takes a packet apart, [`answer`] decides and writes the reply's bytes. The
//! daemon sends those bytes, `simulate` prints them: both call the same function.
//!
//! ```text
//!   bytes --parse--> Request --answer(site, link, heard, now)--> Answer + bytes
//!                                 | packet.rs: bounds, option walk
//!                                 | pxe.rs: who asks, what it is told to boot
//!                                 | answer.rs: RFC 2131's states, and where the reply goes
//!                                 | reply.rs, options.rs: what the reply says, and its bytes
//! ```
//!
//! What never happens here: an answer to a machine that is not ours, a NAK for another server's
//! client, a remembered boot decision. Every packet asks the site again.

mod answer;
mod options;
mod packet;
mod pxe;
mod reply;
#[cfg(test)]
mod tests;

pub use answer::{
    Answer, Destination, Heard, Ignored, Kind, LinkContext, Port, Reply, Verdict, answer,
};
pub use packet::{Ask, Malformed, Request, suboption};
pub use pxe::{client_of, uuid_of};
