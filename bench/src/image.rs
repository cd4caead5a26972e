//! The shapes of image that are dumped and restored.

use crate::memory::{Memory, PAGE};
use std::ops::Range;

/// A shape, as the table of cases names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One process: forty small files and all the memory in one.
    Process,
    /// Fifty processes, whose pages images are written in turns.
    Tree,
    /// 20,000 small files and no memory.
    SmallFiles,
}

/// An image: which files it has, and which of the [`Memory`] is in each.
#[derive(Debug)]
pub(crate) struct Image {
    /// In the order in which they are dumped.
    pub(crate) small: Vec<SmallFile>,
    /// The file with which a dump ends.
    pub(crate) inventory: SmallFile,
    pub(crate) pages: Vec<PagesFile>,
    /// Pages that go to one pages image before the next has its turn.
    pub(crate) burst: usize,
}

/// A file of some hundred bytes. It begins with a number that CRIU reads as it opens such a file.
#[derive(Debug)]
pub(crate) struct SmallFile {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// A file that holds memory.
#[derive(Debug)]
pub(crate) struct PagesFile {
    pub(crate) name: String,
    pub(crate) range: Range<usize>,
}

impl Shape {
    const SMALL_FILES: usize = 20_000;
    const PROCESSES: usize = 50;
    /// 256 KiB: four times what a new pipe holds.
    const BURST: usize = 64;

    /// The image of this shape that has all of the memory in it.
    pub(crate) fn image(self, memory: &Memory) -> Image {
        let pages = memory.pages();
        let (small, pages, burst) = match self {
            Shape::Process => {
                (40, vec![PagesFile { name: "pages-1.img".into(), range: 0..pages }], usize::MAX)
            }
            Shape::Tree => (8 * Shape::PROCESSES, tree(pages), Shape::BURST),
            Shape::SmallFiles => (Shape::SMALL_FILES, Vec::new(), usize::MAX),
        };
        let inventory = SmallFile::new("inventory.img".into(), &[7; 60]);
        Image { small: small_files(small, memory), inventory, pages, burst }
    }
}

fn tree(pages: usize) -> Vec<PagesFile> {
    let file = |index| PagesFile {
        name: format!("pages-{}.img", index + 1),
        range: pages * index / Shape::PROCESSES..pages * (index + 1) / Shape::PROCESSES,
    };
    (0..Shape::PROCESSES).map(file).collect()
}

impl Image {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        let small: usize = self.small.iter().map(|file| file.content.len()).sum();
        let pages: usize = self.pages.iter().map(|file| file.range.len() * PAGE).sum();
        (small + self.inventory.content.len() + pages) as u64
    }

    /// How many files there are, the inventory included.
    pub(crate) fn files(&self) -> u64 {
        (self.small.len() + self.pages.len() + 1) as u64
    }

    /// The pages files' bursts, in the order in which they are dumped: the file's index and the
    /// pages.
    pub(crate) fn bursts(&self) -> Vec<(usize, Range<usize>)> {
        let mut left: Vec<_> = self.pages.iter().map(|file| file.range.clone()).collect();
        let mut bursts = Vec::new();
        while left.iter().any(|range| range.start < range.end) {
            for (index, range) in left.iter_mut().enumerate() {
                let end = range.start.saturating_add(self.burst).min(range.end);
                if range.start < end {
                    bursts.push((index, range.start..end));
                }
                range.start = end;
            }
        }
        bursts
    }
}

impl SmallFile {
    fn new(name: String, bytes: &[u8]) -> SmallFile {
        const MAGIC: [u8; 4] = 0x5456_4319_u32.to_le_bytes();

        SmallFile { name, content: [&MAGIC, bytes].concat() }
    }
}

/// Between 100 and 900 bytes each, which is what most of CRIU's files have.
fn small_files(count: usize, memory: &Memory) -> Vec<SmallFile> {
    (0..count)
        .map(|index| {
            let page = index % memory.pages();
            let bytes = &memory.bytes(page..page + 1)[..100 + index * 7 % 800];
            SmallFile::new(format!("core-{}.img", index + 1), bytes)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_cover_all_of_the_memory() {
        let memory = Memory::new(1000);
        for shape in [Shape::Process, Shape::Tree] {
            let bursts = shape.image(&memory).bursts();
            let pages: usize = bursts.iter().map(|(_, range)| range.len()).sum();
            assert_eq!(pages, 1000, "{shape:?}");
        }
    }
}
