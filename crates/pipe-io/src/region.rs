//! Memory outside the heap, in pieces large enough for huge pages.

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;

/// A huge page, in bytes.
const HUGE: usize = 2 << 20;

/// Anonymous memory of a fixed capacity, filled from its start. What was not filled takes no
/// memory, up to the page.
#[derive(Debug)]
pub struct Region {
    start: NonNull<c_void>,
    capacity: usize,
    filled: usize,
}

// SAFETY: the memory is this value's alone, like a `Box`'s.
unsafe impl Send for Region {}

impl Region {
    /// Memory for `capacity` bytes, in pages of 4 KiB.
    pub fn small_pages(capacity: usize) -> io::Result<Region> {
        Ok(Region { start: map(capacity.max(1))?, capacity: capacity.max(1), filled: 0 })
    }

    /// Memory for `capacity` bytes, in huge pages as far as the system gives them: one fault for
    /// 2 MiB in the place of 512.
    pub fn huge_pages(capacity: usize) -> io::Result<Region> {
        let capacity = capacity.next_multiple_of(HUGE);
        let start = map(capacity + HUGE)?;
        let before = start.as_ptr().align_offset(HUGE);
        let after = HUGE - before;
        let aligned = if before == 0 { start } else { split_off(start, before) };
        unmap(split_off(aligned, capacity), after);
        if before > 0 {
            unmap(start, before);
        }
        // SAFETY: advice about a mapping that is ours; it changes no contents.
        let _ = unsafe { madvise(aligned, capacity, MmapAdvise::MADV_HUGEPAGE) };
        Ok(Region { start: aligned, capacity, filled: 0 })
    }

    /// What was filled.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has at least `filled` bytes, readable and initialized (the kernel
        // gives zeros), and lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.filled) }
    }

    /// What can still be filled.
    pub fn unfilled(&mut self) -> &mut [u8] {
        let start = split_off(self.start, self.filled);
        // SAFETY: the rest of the mapping, writable and initialized by the kernel, which nobody
        // else refers to while `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(start.as_ptr().cast(), self.capacity - self.filled) }
    }

    /// Notes that the next `bytes` were filled.
    pub fn fill(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.capacity);
    }

    /// How many bytes it can take in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        unmap(self.start, self.capacity);
    }
}

fn map(length: usize) -> io::Result<NonNull<c_void>> {
    let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
    let (protection, flags) = (
        ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
    );
    // SAFETY: a new anonymous mapping at a place of the kernel's choice touches nobody's memory.
    Ok(unsafe { mmap_anonymous(None, length, protection, flags) }?)
}

/// The address `offset` bytes into a mapping that is longer than that, or just as long.
fn split_off(start: NonNull<c_void>, offset: usize) -> NonNull<c_void> {
    // SAFETY: by this function's contract the result lies within the mapping or at its end.
    unsafe { start.byte_add(offset) }
}

fn unmap(start: NonNull<c_void>, length: usize) {
    // SAFETY: the callers pass a part of a mapping that is theirs, and never use it again.
    let _ = unsafe { munmap(start, length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_pages_hold_what_was_filled() {
        for mut region in
            [Region::small_pages(10_000).unwrap(), Region::huge_pages(5 << 20).unwrap()]
        {
            let capacity = region.capacity();
            for expected in [b"abc".as_slice(), b"defg"] {
                region.unfilled()[..expected.len()].copy_from_slice(expected);
                region.fill(expected.len());
            }
            assert_eq!(region.bytes(), b"abcdefg");
            assert_eq!(region.unfilled().len(), capacity - 7);
            region.fill(usize::MAX >> 1);
            assert_eq!(region.bytes().len(), capacity);
        }
    }

    #[test]
    fn huge_pages_begin_where_one_can() {
        let region = Region::huge_pages(1).unwrap();
        assert_eq!(region.bytes().as_ptr() as usize % HUGE, 0);
        assert_eq!(region.capacity(), HUGE);
    }
}
