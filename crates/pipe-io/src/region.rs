//! Memory outside the heap, in pieces large enough for huge pages.

use crate::pipe::page;
use nix::errno::Errno;
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
    is_huge: bool,
}

// SAFETY: the memory is this value's alone, like a `Box`'s.
unsafe impl Send for Region {}

impl Region {
    /// Memory for `capacity` bytes, in the kernel's usual pages, also where the system gives huge ones to
    /// those who have not asked: the first byte would take 2 MiB.
    pub fn small_pages(capacity: usize) -> io::Result<Region> {
        let capacity = capacity.max(1);
        let start = map(capacity)?;
        // SAFETY: advice about a mapping that is ours; it changes no contents.
        let _ = unsafe { madvise(start, capacity, MmapAdvise::MADV_NOHUGEPAGE) };
        Ok(Region { start, capacity, filled: 0, is_huge: false })
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
        Ok(Region { start: aligned, capacity, filled: 0, is_huge: true })
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

    /// Parts what was not filled from what was, up to the page. Dropped, it gives back address
    /// space; filled, it saves a mapping, of which a program may have some 65,000
    /// (`vm.max_map_count`).
    pub fn split_off_unfilled(&mut self) -> Option<Region> {
        let kept = self.filled.next_multiple_of(page());
        if kept >= self.capacity {
            return None;
        }
        let rest = Region {
            start: split_off(self.start, kept),
            capacity: self.capacity - kept,
            filled: 0,
            is_huge: self.is_huge,
        };
        self.capacity = kept;
        Some(rest)
    }

    /// Whether huge pages were asked for.
    pub fn is_huge(&self) -> bool {
        self.is_huge
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
    let unmapped = unsafe { munmap(start, length) };
    if unmapped == Err(Errno::ENOMEM) {
        // What is left would be one mapping too many. At least the memory is given back.
        // SAFETY: as above; the address space stays ours for ever.
        let _ = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

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
    fn what_was_not_filled_is_given_back() {
        for filled in [0, 1, 4096, 4097, 3 << 20] {
            for mut region in
                [Region::small_pages(8 << 20).unwrap(), Region::huge_pages(8 << 20).unwrap()]
            {
                region.unfilled()[..filled].fill(7);
                region.fill(filled);
                drop(region.split_off_unfilled());
                assert_eq!(region.capacity(), filled.next_multiple_of(page()));
                assert!(region.bytes() == vec![7; filled]);
            }
        }
        let mut full = Region::small_pages(100).unwrap();
        full.fill(100);
        assert!(full.split_off_unfilled().is_none());
        assert_eq!(full.capacity(), 100);
    }

    #[test]
    fn the_rest_of_a_region_is_filled_on_its_own() {
        let mut first = Region::small_pages(8 << 20).unwrap();
        first.unfilled()[..5000].fill(1);
        first.fill(5000);
        let mut second = first.split_off_unfilled().unwrap();
        assert_eq!((first.capacity(), second.capacity()), (8192, (8 << 20) - 8192));
        second.unfilled()[..9].fill(2);
        second.fill(9);
        assert!(first.bytes() == [1; 5000] && second.bytes() == [2; 9]);
        drop(first);
        assert!(second.bytes() == [2; 9]);
        second.fill(usize::MAX >> 1);
        assert!(second.split_off_unfilled().is_none());
    }

    #[test]
    fn small_pages_are_small_also_where_huge_ones_are_the_default() {
        if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let region = Region::small_pages(8 << 20).unwrap();
        let address = region.bytes().as_ptr() as usize;
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_it = false;
        let flags = maps.lines().find_map(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            if let Some((start, end)) = range.and_then(|it| Some((number(it.0)?, number(it.1)?))) {
                is_it = (start..end).contains(&address);
            }
            line.strip_prefix("VmFlags:").filter(|_| is_it)
        });
        let flags = flags.expect("the mapping is there");
        assert!(flags.split_whitespace().any(|flag| flag == "nh"), "{flags}");
    }

    #[test]
    fn huge_pages_begin_where_one_can() {
        let region = Region::huge_pages(1).unwrap();
        assert_eq!(region.bytes().as_ptr() as usize % HUGE, 0);
        assert_eq!(region.capacity(), HUGE);
    }
}
