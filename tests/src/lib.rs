//! Fake worlds and real laboratories for the test suites. No product code.
