//! Memory that stands in for that of a frozen process: every page knows its number.

use std::ops::Range;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;

/// Page-aligned memory, all of it in real pages.
#[derive(Debug)]
pub(crate) struct Memory {
    buffer: Vec<u8>,
    start: usize,
    pages: usize,
}

impl Memory {
    /// Allocates and stamps `pages` pages.
    pub(crate) fn new(pages: usize) -> Memory {
        let mut buffer = vec![0; (pages + 1) * PAGE];
        let start = buffer.as_ptr().align_offset(PAGE);
        let aligned = &mut buffer[start..start + pages * PAGE];
        aligned.chunks_exact_mut(PAGE).enumerate().for_each(|(number, page)| stamp(page, number));
        Memory { buffer, start, pages }
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The bytes of some pages.
    pub(crate) fn bytes(&self, pages: Range<usize>) -> &[u8] {
        &self.buffer[self.start + pages.start * PAGE..self.start + pages.end * PAGE]
    }

    /// Whether a few pages, far from each other, are those that they should be.
    pub(crate) fn is_whole_here_and_there(&self) -> bool {
        const LOOKS: usize = 10;
        let numbers = (0..self.pages).step_by((self.pages / LOOKS).max(1));
        numbers.into_iter().all(|number| is_page(self.bytes(number..number + 1), number))
    }

    /// The first page that isn't the one that it should be.
    pub(crate) fn first_damaged(&self) -> Option<usize> {
        let pages = self.bytes(0..self.pages).chunks_exact(PAGE);
        pages.enumerate().position(|(number, page)| !is_page(page, number))
    }
}

/// Puts the page's number at its beginning and, inverted, at its end, so that a page that was
/// swapped, shifted or torn is seen.
fn stamp(page: &mut [u8], number: usize) {
    let number = number as u64;
    page[..8].copy_from_slice(&number.to_le_bytes());
    page[PAGE - 8..].copy_from_slice(&(!number).to_le_bytes());
}

/// Whether these are the bytes of that page.
pub(crate) fn is_page(page: &[u8], number: usize) -> bool {
    let number = number as u64;
    page[..8] == number.to_le_bytes() && page[PAGE - 8..] == (!number).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_in_the_wrong_place_is_seen() {
        let mut memory = Memory::new(4);
        assert_eq!(memory.bytes(0..1).as_ptr().align_offset(PAGE), 0);
        assert_eq!(memory.first_damaged(), None);
        let second = memory.start + PAGE;
        memory.buffer[second + PAGE - 1] ^= 1;
        assert_eq!(memory.first_damaged(), Some(1));
    }
}
