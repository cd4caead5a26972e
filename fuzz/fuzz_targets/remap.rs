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
    let file = file.as_slice();
    match bounded(file, 8, || remap(file, &[PortMove { old, new }])) {
        // Nothing else has changed: there and back it is what it is without a change.
        Ok(moved) => {
            let unmoved = remap(file, &[]).expect("it was well-formed");
            if let Ok(back) = remap(&moved, &[PortMove { old: new, new: old }]) {
                let is_alone = !matches!(remap(file, &[PortMove { old: new, new }]), Ok(_));
                assert!(!is_alone || old == new || back == unmoved || has_padding(file));
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

/// A number written longer than it need be comes back shorter.
fn has_padding(file: &[u8]) -> bool {
    file.windows(2).any(|pair| pair[0] & 0x80 != 0 && pair[1] == 0)
}
