//! Fake worlds and real laboratories for the test suites. No product code.

pub mod netns;
pub mod process;
pub mod timeline;
