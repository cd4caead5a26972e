//! Checkpoints of a real process tree, by the real CRIU, through the filters.
//!
//! As root: `CRIU=$(contrib/get-criu) cargo test --test real-criu`. Without
//! root or a CRIU that starts, every test says `skipped: …` and passes. The
//! tests run one at a time: each dumps hundreds of megabytes.

mod bench;
mod command;
mod containers;
mod criu;
mod pipeline;
mod stamper;
mod storm;
mod victim;

mod cases;
mod chaos;
mod cycles;
mod directory;
mod failures;
mod kernels;
mod lazy;
mod metadata_first;
mod migration;
mod page_server;
mod run_outputs;
mod run_services;
mod run_victims;
mod runs;
mod safety;
mod services;
mod serving;
mod streams;
mod warm;
