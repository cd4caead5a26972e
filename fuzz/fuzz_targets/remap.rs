//! The rewriter of `files.img`.
#![no_main]
#![allow(dead_code)]

#[path = "../../crates/image-serve/src/remap.rs"]
mod remap;

use fuzz::bounded;
use libfuzzer_sys::fuzz_target;
use remap::{PortMove, RemapError, remap};

fuzz_target!(|bytes: &[u8]| {
    let Some((ports, file)) = bytes.split_first_chunk::<4>() else { return };
    let [a, b, c, d] = *ports;
    let (old, new) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    // In most inputs the file begins as it must.
    let file = match file.strip_prefix(b"!") {
        Some(other) => other.to_vec(),
        None => [b"\x19\x43\x56\x54\x38\x31\x30\x56", file].concat(),
    };
    // The command line takes no other ports.
    if old == 0 || new == 0 {
        return;
    }
    let file = file.as_slice();
    match bounded(file, 8, || remap(file, &[PortMove { old, new }])) {
        // Nothing else has changed: there and back is as staying. Unless something listened on
        // the new port too, which then goes back with the old one.
        Ok(moved) => {
            let to = |old, new| [PortMove { old, new }];
            let stayed = remap(file, &to(old, old)).expect("it was well-formed");
            if remap(file, &to(new, new)).is_err() {
                assert_eq!(remap(&moved, &to(new, old)), Ok(stayed));
            }
            assert_eq!(remap(&moved, &[]).as_ref(), Ok(&moved));
            assert!(moved.len() <= 2 * file.len());
        }
        Err(RemapError::NotListening(port, listening)) => {
            assert!(port == old && !listening.contains(&old));
        }
        Err(RemapError::Malformed | RemapError::NoFiles) => {}
    }
});
