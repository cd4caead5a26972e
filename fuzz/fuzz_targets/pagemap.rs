//! The rewriter of `pagemap-PID.img`.
#![no_main]

use fuzz::bounded;
use lazy_pages::{Pagemap, split};
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 4096;

fn sum(runs: &[(u64, u64)]) -> u64 {
    runs.iter().map(|(_, length)| length).sum()
}

fuzz_target!(|bytes: &[u8]| {
    // In most inputs the file begins as it must.
    let file = match bytes.strip_prefix(b"!") {
        Some(other) => other.to_vec(),
        None => [b"\x19\x43\x56\x54\x25\x40\x08\x56", bytes].concat(),
    };
    let Ok(map) = bounded(&file, 12, || split(&file, PAGE)) else { return };
    let Pagemap { pages_id, size, rewritten, eager, lazy } = map;

    // What CRIU restores and what comes late is the pages image, each byte once.
    let late = lazy.iter().map(|late| (late.offset, late.length));
    let mut parts: Vec<(u64, u64)> = eager.iter().copied().chain(late).collect();
    parts.sort_unstable();
    let end = parts.iter().fold(0, |end, (offset, length)| {
        assert_eq!(*offset, end);
        end + length
    });
    assert_eq!(end, size);

    // No page comes to two places, nor to half of one.
    let mut before = 0;
    for late in &lazy {
        assert!(late.address >= before && late.address % PAGE == 0 && late.length % PAGE == 0);
        before = late.address + late.length;
    }

    // CRIU reads the pages image without what comes late, and nothing else has changed.
    let again = split(&rewritten, PAGE).expect("CRIU could not read it");
    assert_eq!(
        (again.pages_id, again.size, sum(&again.eager)),
        (pages_id, sum(&eager), sum(&eager))
    );
    assert!(again.lazy.is_empty());
    assert_eq!(again.rewritten, rewritten);
    assert!(rewritten.len() <= 2 * file.len());
});
