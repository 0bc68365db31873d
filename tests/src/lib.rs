//! Fake worlds and real laboratories for the test suites. No product code.

pub mod bastion;
pub mod chance;
pub mod client;
pub mod crowd;
pub mod debian;
pub mod dhcp;
pub mod hands;
pub mod host;
pub mod http;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod network;
pub mod ntp;
pub mod process;
pub mod qemu;
pub mod reference;
pub mod sample;
pub mod site;
pub mod switch;
pub mod talos;
pub mod tftp;
pub mod timeline;
pub mod wire;
pub mod world;
