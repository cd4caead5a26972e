//! What the metadata shard gets: every small file, and the name of every large one.

use criu_protocol::is_memory;
use std::collections::HashMap;
use wire_format::FileName;

/// Up to this size, in bytes, a file is small, whatever it is.
const SMALL: u64 = 128 << 10;

/// All small files together have at least so much, in bytes. At half of it a dump of a few
/// thousand processes has a `pagemap` among the large files, and CRIU must wait for it; at double
/// a slow network brings the metadata noticeably later than it could.
const BUDGET: u64 = 8 << 20;

/// And this part of all that has come: a `pagemap` image of fragmented memory has some 12 bytes
/// for each 4 KiB page.
const PART: u64 = 32;

/// What may be held in memory of files of which it is not known whether they are small, in bytes.
const HELD_MAX: u64 = 64 << 20;

/// Decides which files are small, and holds them until that is known: by their size when they end.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// The files that have begun, and where their data goes.
    files: HashMap<FileName, File>,
    /// Bytes that are held, of all files.
    held: u64,
    /// Bytes of small files that have ended.
    small: u64,
    /// Bytes of all files.
    seen: u64,
    /// Whether a large file was replaced by a later one.
    is_large_replaced: bool,
}

#[derive(Debug)]
enum File {
    /// It has not ended, and may be small. Its bytes so far, and whether it was small already when
    /// it came before.
    Held(Vec<u8>, bool),
    /// Complete, and small.
    Small,
    /// Its data goes to the other shards; and whether it is complete.
    Large(bool),
}

/// Where the next bytes of a file go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// They are to be held: [`Metadata::hold`] takes them.
    Hold,
    /// It has just become large. These bytes of it were held, and come first.
    BecomesLarge(Vec<u8>),
    /// To the other shards.
    Large,
}

impl Metadata {
    /// A file begins, or goes on. One whose name has come before stays where it was: readers may
    /// take the metadata shard's data before the others', and the later file must replace the
    /// earlier one.
    pub(crate) fn begin(&mut self, name: &FileName) {
        match self.files.get_mut(name) {
            Some(file @ File::Small) => *file = File::Held(Vec::new(), true),
            Some(File::Large(complete)) => self.is_large_replaced |= std::mem::take(complete),
            Some(File::Held(..)) => {}
            None => _ = self.files.insert(name.clone(), File::Held(Vec::new(), false)),
        }
    }

    /// What becomes of the next `length` bytes of a file that has begun.
    pub(crate) fn decide(&mut self, name: &FileName, length: u64) -> Decision {
        self.seen += length;
        let may_hold = self.held + length <= HELD_MAX
            && self.small + self.held + length <= BUDGET.max(self.seen / PART);
        let Some(file) = self.files.get_mut(name) else { return Decision::Large };
        let File::Held(bytes, again) = file else { return Decision::Large };
        let size = bytes.len() as u64 + length;
        if *again || size <= SMALL || (may_hold && !is_memory(name.as_str())) {
            return Decision::Hold;
        }
        self.held = self.held.saturating_sub(bytes.len() as u64);
        let bytes = std::mem::take(bytes);
        *file = File::Large(false);
        Decision::BecomesLarge(bytes)
    }

    /// Takes bytes of a file that is held. Returns all that is held of it, to be written at once,
    /// if it is much: it is small only because it was so when it came before.
    pub(crate) fn hold(&mut self, name: &FileName, more: &[u8]) -> Option<Vec<u8>> {
        let Some(File::Held(bytes, again)) = self.files.get_mut(name) else { return None };
        bytes.extend_from_slice(more);
        self.held += more.len() as u64;
        if !*again || bytes.len() as u64 <= SMALL {
            return None;
        }
        let bytes = std::mem::take(bytes);
        self.held = self.held.saturating_sub(bytes.len() as u64);
        Some(bytes)
    }

    /// A file has ended: its bytes if it is small, `None` if it is large.
    pub(crate) fn end(&mut self, name: &FileName) -> Option<Vec<u8>> {
        let file = self.files.get_mut(name)?;
        let bytes = match file {
            File::Held(bytes, _) => std::mem::take(bytes),
            File::Small | File::Large(_) => {
                *file = File::Large(true);
                return None;
            }
        };
        *file = File::Small;
        self.held = self.held.saturating_sub(bytes.len() as u64);
        self.small += bytes.len() as u64;
        Some(bytes)
    }

    /// Whether a reader that has the metadata, and some of a large file, may have the wrong one.
    pub(crate) fn is_large_replaced(&self) -> bool {
        self.is_large_replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> FileName {
        FileName::new(name).unwrap()
    }

    /// Whether a file of so many bytes is small.
    fn is_small(metadata: &mut Metadata, file: &str, size: u64) -> bool {
        const STEP: u64 = 1 << 16;
        let file = name(file);
        metadata.begin(&file);
        let mut left = size;
        while left > 0 {
            let step = left.min(STEP);
            if metadata.decide(&file, step) == Decision::Hold {
                metadata.hold(&file, &vec![0; step as usize]);
            }
            left -= step;
        }
        metadata.end(&file).is_some()
    }

    #[test]
    fn what_is_small_goes_by_bytes() {
        let mut metadata = Metadata::default();
        assert!(is_small(&mut metadata, "core-7.img", 900));
        assert!(is_small(&mut metadata, "pages-1.img", SMALL));
        assert!(!is_small(&mut metadata, "pages-2.img", SMALL + 1));
        assert!(is_small(&mut metadata, "pagemap-7.img", 1 << 20));
        assert!(!is_small(&mut metadata, "ghost-file-1.img", BUDGET));
        assert!(is_small(&mut metadata, "empty.img", 0));
    }

    #[test]
    fn the_small_files_are_a_small_part_of_a_large_image() {
        let mut metadata = Metadata::default();
        assert!(!is_small(&mut metadata, "pages-1.img", BUDGET * PART * 2));
        assert!(is_small(&mut metadata, "pagemap-7.img", BUDGET));
        let small = (0..100).filter(|i| is_small(&mut metadata, &format!("tmpfs-{i}"), 1 << 20));
        assert!(small.count() < 20);
    }

    #[test]
    fn a_name_that_comes_again_stays_where_it_was() {
        let mut metadata = Metadata::default();
        assert!(is_small(&mut metadata, "a", 10));
        assert!(is_small(&mut metadata, "a", 10 * SMALL));
        assert!(is_small(&mut metadata, "a", 10));
        assert!(!is_small(&mut metadata, "pages-1.img", 10 * SMALL));
        assert!(!metadata.is_large_replaced());
        assert!(!is_small(&mut metadata, "pages-1.img", 10));
        assert!(metadata.is_large_replaced());
    }
}
