//! What the targets share: a bound on memory. libFuzzer's own sees single allocations of
//! gigabytes only.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: hands every call on to the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Calls `parse`, and panics if the memory that it had at once was more than `factor` times the
/// input, and a constant: more than what the input has really sent.
pub fn bounded<R>(input: &[u8], factor: usize, parse: impl FnOnce() -> R) -> R {
    const CONSTANT: usize = 64 << 10;
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = parse();
    let had = PEAK.load(Relaxed) - before;
    let limit = CONSTANT + factor * input.len();
    assert!(had <= limit, "{had} bytes of memory for {} of input", input.len());
    result
}
