//! All memory that comes late.

use crate::Error;
use crate::image::{ImageFile, PagesImage};
use crate::layout::Layout;
use crate::pagemap::Late;
use crate::ranges::Range;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory of all processes of an image that comes late, and where it is.
#[derive(Debug)]
pub struct Pages {
    file: ImageFile,
    images: Vec<PagesImage>,
    /// By the number of the process in the image: what is late of it, in which pages image.
    tasks: HashMap<i32, (usize, Vec<Late>)>,
    brought: AtomicU64,
}

impl Pages {
    /// Of an image that is in this file.
    pub fn new(file: ImageFile) -> Pages {
        Pages { file, images: Vec::new(), tasks: HashMap::new(), brought: AtomicU64::new(0) }
    }

    /// Adds a process.
    pub fn add(&mut self, pid: i32, image: PagesImage, late: Vec<Late>) {
        self.tasks.insert(pid, (self.images.len(), late));
        self.images.push(image);
    }

    /// How many bytes have come, those for fork's children too.
    pub(crate) fn filled(&self) -> u64 {
        self.brought.load(Ordering::Relaxed)
    }

    /// The file that the image is.
    pub fn file(&self) -> &ImageFile {
        &self.file
    }

    /// What is to come of a process; `None` if the image does not have it.
    pub(crate) fn layout(&self, pid: i32, fillers: usize) -> Option<Layout> {
        let (file, late) = self.tasks.get(&pid)?;
        let mut layout = Layout::new(fillers);
        for Late { address, length, offset } in late.iter().copied() {
            layout.add(address, Range { length, file: *file, offset, doubtful: false });
        }
        Some(layout)
    }

    /// Reads from a pages image, and sees that the file is as it was at first.
    pub(crate) fn read(&self, file: usize, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.images.get(file).ok_or(Error::Changed)?.read(&self.file, offset, buffer)?;
        self.file.must_be_unchanged()
    }

    /// Notes that so many bytes have come.
    pub(crate) fn brought(&self, bytes: u64) {
        self.brought.fetch_add(bytes, Ordering::Relaxed);
    }
}
