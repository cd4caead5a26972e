//! The marker decoder. What it takes is a marker that is written and read as the same.
#![no_main]

use fuzz::bounded;
use libfuzzer_sys::fuzz_target;
use wire_format::Marker;

fuzz_target!(|bytes: &[u8]| {
    let Ok(marker) = bounded(bytes, 4, || Marker::decode(bytes)) else { return };
    let mut encoded = Vec::new();
    marker.encode(&mut encoded);
    assert_eq!(Marker::decode(&encoded[4..]).as_ref(), Ok(&marker));
});
