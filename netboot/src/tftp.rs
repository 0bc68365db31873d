//! TFTP as a machine's firmware speaks it: packets, option negotiation, one transfer's clock, and the
//! desk that keeps the transfers of one link apart. Pure: time is handed in, bytes go nowhere.
//!
//! ```text
//!   client                              desk
//!   RRQ name octet tsize blksize  --->  admit: clean the name, look for a transfer it repeats
//!                                       (the caller asks its source for the file)
//!         <---  OACK tsize blksize      open: what the limits and this client's past allow
//!   ACK 0                         --->  packet: ACK 0 opens the first window
//!         <---  DATA 1 .. window
//!   ACK window                    --->  ... until the block shorter than the rest is acknowledged
//! ```
//!
//! What real clients do, and what is done about it:
//! - EDK2 asks for `tsize`, answers the OACK with ERROR 8 and asks again, maybe from the same port: an
//!   ERROR ends a transfer at once and is nothing to complain about.
//! - Files longer than 65535 blocks wrap to block 0. Blocks are counted in 64 bits here; the wire's 16
//!   bits are read as a distance from the last acknowledged block.
//! - A repeated ACK must not repeat data (the "sorcerer's apprentice"), yet with windows a repeated ACK
//!   is how a client reports a lost first block. `transfer` says which of them it believes.
//! - EDK2 passes a boot file name on with a stray 0xFF when DHCP did not end it with NUL; some ROMs
//!   write backslashes. The name is cleaned before anybody looks at it.
//! - Some clients ask for more than they can hold. One that fell silent early gets less next time.

mod desk;
mod packet;
mod transfer;

pub use desk::{Admission, Desk, Ignored, Limits, Outcome, Session, Turn};
pub use packet::{
    Agreed, ErrorCode, Malformed, Mode, Offer, Packet, Request, clean_path, data_header,
    encode_error, encode_options, netascii, parse,
};
pub use transfer::{Send, Transfer, block_octets};
