//! The pages, in the regular file that the image is.
//!
//! What is brought was read before, and the file was seen to be unchanged after that: so no page of
//! an image that was cut or rewritten reaches the process. Reading from a mapping would save a
//! copy, but a change would be seen only after its bytes were brought.

use crate::Error;
use std::fs::File;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::SystemTime;

/// The regular file.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    state: State,
}

/// What changes when the contents do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    size: u64,
    modified: SystemTime,
}

/// Where a part of a pages image is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the regular file, from this offset on.
    File(u64),
    /// In memory.
    Memory(Arc<Vec<u8>>),
}

/// A pages image, as it lies in the regular file.
#[derive(Debug, Default)]
pub struct PagesImage {
    /// Where each part begins in the pages image, how long it is, and where it is.
    parts: Vec<(u64, u64, Place)>,
    size: u64,
}

impl ImageFile {
    /// The file, as it is at this moment.
    pub fn new(fd: OwnedFd) -> Result<ImageFile, Error> {
        let file = File::from(fd);
        let state = State::of(&file)?;
        Ok(ImageFile { file, state })
    }

    /// Fails if the file is not what it was at first.
    pub fn must_be_unchanged(&self) -> Result<(), Error> {
        match State::of(&self.file)? == self.state {
            true => Ok(()),
            false => Err(Error::Changed),
        }
    }

    /// Reads at an offset. The bytes are good if the file is seen to be unchanged afterwards.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::Changed,
            _ => Error::Image(error),
        })
    }

    /// Reads all of it, by so many threads: what cannot be read shows, and what was on a disk is in
    /// memory afterwards.
    pub fn read_all(&self, threads: NonZeroUsize) -> Result<(), Error> {
        let next = AtomicU64::new(0);
        thread::scope(|scope| {
            let read = || self.read_pieces(&next);
            let readers: Vec<_> = (0..threads.get()).map(|_| scope.spawn(read)).collect();
            readers.into_iter().try_for_each(|reader| {
                reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        self.must_be_unchanged()
    }

    fn read_pieces(&self, next: &AtomicU64) -> Result<(), Error> {
        let mut buffer = vec![0; READ];
        loop {
            let offset = next.fetch_add(READ as u64, Ordering::Relaxed);
            let left = usize::try_from(self.state.size.saturating_sub(offset)).unwrap_or(READ);
            if left == 0 {
                return Ok(());
            }
            self.read(offset, buffer.get_mut(..left.min(READ)).unwrap_or_default())?;
        }
    }
}

/// How much is read at once of an image that is read as a whole, in bytes.
const READ: usize = 1 << 20;

impl State {
    fn of(file: &File) -> Result<State, Error> {
        let metadata = file.metadata().map_err(Error::Image)?;
        let modified = metadata.modified().map_err(Error::Image)?;
        Ok(State { size: metadata.len(), modified })
    }
}

impl PagesImage {
    /// Adds the next part.
    pub fn push(&mut self, length: u64, place: Place) {
        self.parts.push((self.size, length, place));
        self.size += length;
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What of the pages image lies where, from `offset` on: offsets and lengths in each place.
    pub fn slices(&self, offset: u64, length: u64) -> impl Iterator<Item = (&Place, u64, u64)> {
        let end = offset.saturating_add(length);
        let first = self.parts.partition_point(|(start, length, _)| start + length <= offset);
        let parts = self.parts.get(first..).unwrap_or_default().iter();
        parts.take_while(move |(start, ..)| *start < end).map(move |(start, length, place)| {
            let skipped = offset.saturating_sub(*start);
            let length = (start + length).min(end) - (start + skipped);
            (place, skipped, length)
        })
    }

    /// Fills the buffer from `offset` on.
    pub(crate) fn read(
        &self,
        file: &ImageFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut rest = buffer;
        for (place, skipped, length) in self.slices(offset, rest.len() as u64) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut_checked(length).ok_or(Error::Changed)?;
            match place {
                Place::File(at) => file.read(at + skipped, now)?,
                Place::Memory(bytes) => {
                    let start = usize::try_from(skipped).unwrap_or(usize::MAX);
                    let bytes = bytes.get(start..).and_then(|bytes| bytes.get(..length));
                    now.copy_from_slice(bytes.ok_or(Error::Changed)?);
                }
            }
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(Error::Changed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pages_image_is_read_across_its_parts() {
        let path = std::env::temp_dir().join(format!("lazy-pages-image-{}", std::process::id()));
        std::fs::write(&path, b"..cdefg..ij").unwrap();
        let file = ImageFile::new(File::open(&path).unwrap().into()).unwrap();
        let mut image = PagesImage::default();
        image.push(2, Place::Memory(Arc::new(b"ab".to_vec())));
        image.push(5, Place::File(2));
        image.push(1, Place::Memory(Arc::new(b"h".to_vec())));
        image.push(2, Place::File(9));
        for start in 0..10 {
            for end in start..=10 {
                let mut buffer = vec![0; end - start];
                image.read(&file, start as u64, &mut buffer).unwrap();
                assert_eq!(buffer, b"abcdefghij"[start..end]);
            }
        }
        assert!(matches!(image.read(&file, 9, &mut [0; 2]), Err(Error::Changed)));
        std::fs::write(&path, b"..cde").unwrap();
        assert!(matches!(image.read(&file, 2, &mut [0; 5]), Err(Error::Changed)));
        assert!(matches!(file.must_be_unchanged(), Err(Error::Changed)));
        std::fs::remove_file(&path).unwrap();
    }
}
