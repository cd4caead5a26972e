//! What the tests that cross several filters share: a stand-in for CRIU
//! ([`criu`]), a reader and writer of the image stream that owe nothing to
//! `wire-format` ([`stream`]), the starting of our programs with any
//! descriptors and a time limit ([`pipeline`], [`filters`]), the malformed
//! streams that every filter must refuse ([`malformed`]), what a program holds
//! in memory and in pipes ([`memory`]), a stand-in for CRIU's
//! side of its page server ([`page_server`]), and numbers that come again from their
//! seed ([`random`]).
//!
//! Everything here panics with a sentence when it cannot go on: it is a failed
//! test.

pub mod chaos;
pub mod criu;
pub mod filters;
pub mod hold;
pub mod malformed;
pub mod memory;
pub mod page_server;
pub mod pipeline;
pub mod random;
pub mod scene;
pub mod stream;
