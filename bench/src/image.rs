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
    /// In the order in which they are dumped; the inventory is not among them.
    pub(crate) small: Vec<SmallFile>,
    pub(crate) pages: Vec<PagesFile>,
    /// Pages that go to one pages image before the next has its turn.
    pub(crate) burst: usize,
}

/// A file of some hundred bytes.
#[derive(Debug)]
pub(crate) struct SmallFile {
    pub(crate) name: String,
    /// The page whose first bytes are in it.
    page: usize,
    length: usize,
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
        match self {
            Shape::Process => Image {
                small: small_files(40, memory),
                pages: vec![PagesFile { name: "pages-1.img".into(), range: 0..pages }],
                burst: usize::MAX,
            },
            Shape::Tree => Image {
                small: small_files(8 * Shape::PROCESSES, memory),
                pages: (0..Shape::PROCESSES)
                    .map(|index| PagesFile {
                        name: format!("pages-{}.img", index + 1),
                        range: pages * index / Shape::PROCESSES
                            ..pages * (index + 1) / Shape::PROCESSES,
                    })
                    .collect(),
                burst: Shape::BURST,
            },
            Shape::SmallFiles => Image {
                small: small_files(Shape::SMALL_FILES, memory),
                pages: Vec::new(),
                burst: usize::MAX,
            },
        }
    }
}

impl Image {
    /// The file with which a dump ends.
    pub(crate) fn inventory() -> SmallFile {
        SmallFile { name: "inventory.img".into(), page: 1, length: 60 }
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        let small: usize = self.small.iter().map(|file| file.length).sum();
        let pages: usize = self.pages.iter().map(|file| file.range.len() * PAGE).sum();
        (small + Image::inventory().length + pages) as u64
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
    pub(crate) fn content<'a>(&self, memory: &'a Memory) -> &'a [u8] {
        &memory.bytes(self.page..self.page + 1)[..self.length]
    }
}

/// Between 100 and 900 bytes each, which is what most of CRIU's files have.
fn small_files(count: usize, memory: &Memory) -> Vec<SmallFile> {
    (0..count)
        .map(|index| SmallFile {
            name: format!("core-{}.img", index + 1),
            page: index % memory.pages(),
            length: 100 + index * 7 % 800,
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
