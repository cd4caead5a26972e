//! Where the bytes of images rest that cannot be read again.

use criu_protocol::page_size;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pipe_io::{Endpoint, Kind};
use std::io;

/// What the bytes of an image are read from when they are needed.
#[derive(Debug)]
pub(crate) struct Store {
    endpoint: Endpoint,
    /// Where the next bytes go; `None` for a file of the user's, which has all of them.
    end: Option<u64>,
}

impl Store {
    /// The file that the image was found in.
    pub(crate) fn file(endpoint: Endpoint) -> Store {
        Store { endpoint, end: None }
    }

    /// Memory, as a file: what is put into it by `splice` comes out of it without a copy, and what
    /// is not needed any more is given back in the middle.
    pub(crate) fn memory() -> io::Result<Store> {
        let fd = memfd_create(c"image-combine", MFdFlags::MFD_CLOEXEC)?;
        Ok(Store { endpoint: Endpoint::new(fd).map_err(io::Error::other)?, end: Some(0) })
    }

    /// Where bytes go that follow `before` others of their file: where they fill the same pages
    /// of memory as they fill of the file, so that those of the file can be given back.
    pub(crate) fn place(&self, before: u64) -> u64 {
        let (end, page) = (self.end.unwrap_or(0), page_size());
        // Behind the bytes before them, as a rule.
        if end % page == before % page {
            return end;
        }
        end.next_multiple_of(page) + before % page
    }

    /// Notes that bytes were put there.
    pub(crate) fn filled(&mut self, to: u64) {
        self.end = Some(to);
    }

    /// Gives back all memory but that of the `needed` ranges, which are sorted.
    pub(crate) fn keep_only(&self, needed: impl Iterator<Item = (u64, u64)>) -> io::Result<()> {
        let Some(end) = self.end else { return Ok(()) };
        let mut from = 0;
        for (start, to) in needed.chain([(end.next_multiple_of(page_size()), u64::MAX)]) {
            self.punch(from, start)?;
            from = from.max(to);
        }
        Ok(())
    }

    /// Gives back the whole pages between two places.
    fn punch(&self, from: u64, to: u64) -> io::Result<()> {
        let page = page_size();
        let (from, to) = (from.next_multiple_of(page), to - to % page);
        if from < to {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let number = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
            fallocate(&self.endpoint, flags, number(from)?, number(to - from)?)?;
        }
        Ok(())
    }

    /// What to read from, and to write to.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether it is memory.
    pub(crate) fn is_memory(&self) -> bool {
        self.end.is_some()
    }
}

/// Whether an image in it can be read again.
pub(crate) fn can_be_read_again(endpoint: &Endpoint) -> bool {
    endpoint.kind() == Kind::File
}
