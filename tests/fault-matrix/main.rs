//! What each filter does when something fails, for every peer and every fault that can be made.
//!
//! A cell says how the filter must end: its exit status, its message, within what time. Each
//! cell also checks what is left: on disk no socket and nothing that looks like an image, in
//! `/proc` no process of it and no socket. The cells are printed as a table:
//!
//!     cargo test -p tests --test fault-matrix -- --nocapture --test-threads 1
//!
//! A filter's peers are CRIU, the program before it, the programs after it, `--filter`
//! commands, the disk, its user (signals) and whoever starts it (descriptors, limits).

mod capture;
mod commands;
mod memory;
mod scene;
mod serve;
mod start;
mod streams;
mod table;

use table::Table;

#[test]
fn criu_sock_capture() {
    let mut table = Table::new("criu-sock-capture");
    capture::criu(&mut table);
    capture::reader(&mut table);
    capture::places(&mut table);
    start::signals(&mut table);
    start::descriptors_and_limits(&mut table);
    memory::little(&mut table);
    table.show();
}

#[test]
fn shard_split() {
    stream_filter("shard-split");
}

#[test]
fn shard_merge() {
    stream_filter("shard-merge");
}

#[test]
fn image_serve() {
    let mut table = Table::new("image-serve");
    stream_faults(&mut table);
    serve::criu(&mut table);
    memory::too_little_to_hold(&mut table);
    table.show();
}

#[test]
fn image_extract() {
    stream_filter("image-extract");
}

fn stream_filter(name: &'static str) {
    let mut table = Table::new(name);
    stream_faults(&mut table);
    if name.starts_with("shard-") {
        commands::commands(&mut table);
    }
    table.show();
}

fn stream_faults(table: &mut Table) {
    streams::program_before(table);
    streams::program_after(table);
    streams::disk(table);
    start::signals(table);
    start::descriptors_and_limits(table);
    memory::little(table);
}
