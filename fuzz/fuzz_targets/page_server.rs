//! What comes from CRIU's page server: commands in both layouts, and the pagemaps of an image.
#![no_main]

use criu_protocol::Pagemap;
use criu_protocol::page_server::{Command, HEADER_MIN, Layout, Memory, Order};
use fuzz::bounded;
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 4096;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind & 1 {
        0 => bounded(bytes, 16, || commands(bytes)),
        _ => bounded(bytes, 64, || pagemap(bytes)),
    }
});

/// As the program reads them, where all pages are skipped.
fn commands(bytes: &[u8]) {
    let Some(first) = bytes.first_chunk::<HEADER_MIN>() else { return };
    let layout = Layout::of(first);
    let mut order = Order::default();
    let mut left = bytes;
    while let Some((header, rest)) = left.split_at_checked(layout.header_length()) {
        left = rest;
        let Ok(command) = layout.decode(header, PAGE) else { return };
        if let Command::Pages(memory, run) = command {
            let bytes = run.bytes(PAGE);
            assert!(bytes > 0 && run.end(PAGE) == run.start + bytes && run.end(PAGE) < 1 << 63);
            let name = memory.pagemap().expect("a name");
            assert_eq!(Memory::of_pagemap(&name), Some(memory));
        }
        if order.accept(&command).is_err() {
            return;
        }
    }
}

/// What is read is what is written again, but for fields that nobody knows.
fn pagemap(bytes: &[u8]) {
    let Ok(pagemap) = Pagemap::decode(bytes, PAGE) else { return };
    let again = Pagemap::decode(&pagemap.encode(), PAGE).expect("our own");
    assert_eq!(again.runs, pagemap.runs);
    assert_eq!(again.pages_id, pagemap.pages_id);
    if pagemap.check(PAGE).is_ok() {
        let runs = pagemap.runs.iter().map(|run| run.bytes(PAGE));
        assert!(runs.sum::<u64>() >= pagemap.bytes_here(PAGE));
        pagemap.pages_file().expect("a name");
    }
}
