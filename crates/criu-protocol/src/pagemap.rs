//! The files of an image that say where the pages of its memory are.
//!
//! `pagemap-PID.img` is of a task and `pagemap-shmem-ID.img` of a shared segment. Each names the
//! file with the pages, `pages-ID.img`, and lists the runs of them; what is here stands in that
//! file in the order of the list, one page after the other.

use crate::page_server::{CommandError, Layout, Origin, Run};
use prost::Message;
use std::fmt;
use wire_format::FileName;

/// What a pagemap says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pagemap {
    /// The number of the file with the pages.
    pub pages_id: u32,
    /// All that the memory has, by its place.
    pub runs: Vec<Run>,
    /// How numbers of pages are written.
    pub layout: Layout,
}

/// Bytes that are not a pagemap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagemapError {
    /// Another magic number stands at its begin.
    Magic,
    /// It ends within an entry.
    Truncated,
    /// An entry that cannot be decoded.
    Undecodable,
    /// A run of pages that cannot be.
    Run(CommandError),
    /// Two runs have the page at this address.
    Twice(u64),
}

/// What the file begins with: the kind of all CRIU's images, and this one.
const MAGIC: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

/// `flags` and `in_parent` are not there in images of old releases of CRIU, which have either.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    short_pages: u32,
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    long_pages: Option<u64>,
}

impl Pagemap {
    /// The file, as the CRIU writes it whose page server protocol has this layout.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put(&Head { pages_id: self.pages_id }, &mut bytes);
        for run in &self.runs {
            let flags = Some(run.origin.flags());
            let entry = Entry {
                vaddr: run.start,
                short_pages: 0,
                in_parent: None,
                flags,
                long_pages: None,
            };
            // What the short layout says has at most 32 bits; a run that was joined may have more.
            match (self.layout, u32::try_from(run.pages)) {
                (Layout::Short, Ok(pages)) => {
                    put(&Entry { short_pages: pages, ..entry }, &mut bytes)
                }
                _ => put(&Entry { long_pages: Some(run.pages), ..entry }, &mut bytes),
            }
        }
        bytes
    }

    /// Reads the file.
    pub fn decode(bytes: &[u8], page_size: u64) -> Result<Pagemap, PagemapError> {
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(PagemapError::Magic)?;
        let head: Head = take(&mut rest)?;
        let mut pagemap =
            Pagemap { pages_id: head.pages_id, runs: Vec::new(), layout: Layout::Short };
        while !rest.is_empty() {
            let entry: Entry = take(&mut rest)?;
            if entry.long_pages.is_some() {
                pagemap.layout = Layout::Long;
            }
            let origin = match (entry.flags, entry.in_parent) {
                (Some(flags), _) => Origin::decode(flags).map_err(PagemapError::Run)?,
                (None, Some(true)) => Origin::Parent,
                (None, _) => Origin::Here { lazy: false },
            };
            let pages = entry.long_pages.unwrap_or(entry.short_pages.into());
            let run = Run { start: entry.vaddr, pages, origin };
            run.check(page_size).map_err(PagemapError::Run)?;
            pagemap.runs.push(run);
        }
        Ok(pagemap)
    }

    /// Sees that no page is there twice.
    pub fn check(&self, page_size: u64) -> Result<(), PagemapError> {
        let mut runs: Vec<_> = self.runs.iter().collect();
        // As a rule it is sorted.
        runs.sort_by_key(|run| run.start);
        let overlap = runs.windows(2).find_map(|pair| match pair {
            [first, second] if first.end(page_size) > second.start => Some(second.start),
            _ => None,
        });
        overlap.map_or(Ok(()), |start| Err(PagemapError::Twice(start)))
    }

    /// The name of the file with the pages.
    pub fn pages_file(&self) -> Result<FileName, wire_format::NameError> {
        pages_file(self.pages_id)
    }

    /// How many bytes that file has.
    pub fn bytes_here(&self, page_size: u64) -> u64 {
        let here = self.runs.iter().filter(|run| run.origin != Origin::Parent);
        here.fold(0, |sum, run| sum.saturating_add(run.bytes(page_size)))
    }
}

/// The size of a page of this system, in bytes, which is that of the pages in its images.
pub fn page_size() -> u64 {
    const USUAL: u64 = 4096;

    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(USUAL)
}

/// The name of the file with the pages that has this number.
pub fn pages_file(id: u32) -> Result<FileName, wire_format::NameError> {
    FileName::new(&format!("pages-{id}.img"))
}

fn put(message: &impl Message, bytes: &mut Vec<u8>) {
    bytes.extend((message.encoded_len() as u32).to_le_bytes());
    message.encode_raw(bytes);
}

fn take<M: Message + Default>(bytes: &mut &[u8]) -> Result<M, PagemapError> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(PagemapError::Truncated)?;
    let (message, rest) = rest
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or(PagemapError::Truncated)?;
    *bytes = rest;
    M::decode(message).map_err(|_| PagemapError::Undecodable)
}

impl fmt::Display for PagemapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PagemapError::Magic => f.write_str("is not a pagemap of CRIU's"),
            PagemapError::Truncated => f.write_str("a pagemap that is cut short"),
            PagemapError::Undecodable => f.write_str("a pagemap that cannot be decoded"),
            PagemapError::Run(error) => error.fmt(f),
            PagemapError::Twice(start) => write!(f, "the page at {start:#x} comes twice"),
        }
    }
}

impl std::error::Error for PagemapError {}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn run(start: u64, pages: u64, origin: Origin) -> Run {
        Run { start, pages, origin }
    }

    fn sample(layout: Layout) -> Pagemap {
        let runs = vec![
            run(0, 256, Origin::Here { lazy: false }),
            run(0x100000, 1, Origin::Parent),
            run(0x7f0000000000, 129, Origin::Here { lazy: true }),
        ];
        Pagemap { pages_id: 1, runs, layout }
    }

    #[test]
    fn a_pagemap_is_the_bytes_that_criu_writes() {
        let mut pagemap = sample(Layout::Long);
        pagemap.runs.truncate(2);
        assert_eq!(
            pagemap.encode(),
            b"\x19\x43\x56\x54\x25\x40\x08\x56\x02\0\0\0\x08\x01\
              \x09\0\0\0\x08\0\x10\0\x20\x04\x28\x80\x02\
              \x0a\0\0\0\x08\x80\x80\x40\x10\0\x20\x01\x28\x01"
        );
        pagemap.layout = Layout::Short;
        assert_eq!(
            pagemap.encode(),
            b"\x19\x43\x56\x54\x25\x40\x08\x56\x02\0\0\0\x08\x01\
              \x07\0\0\0\x08\0\x10\x80\x02\x20\x04\
              \x08\0\0\0\x08\x80\x80\x40\x10\x01\x20\x01"
        );
    }

    #[test]
    fn a_pagemap_comes_back_as_it_was_written() {
        for layout in [Layout::Short, Layout::Long] {
            let pagemap = sample(layout);
            assert_eq!(Pagemap::decode(&pagemap.encode(), PAGE), Ok(pagemap.clone()));
            assert_eq!(pagemap.check(PAGE), Ok(()));
            assert_eq!(pagemap.bytes_here(PAGE), (256 + 129) * PAGE);
        }
    }

    #[test]
    fn every_cut_of_a_pagemap_is_seen() {
        let bytes = sample(Layout::Long).encode();
        let boundaries: Vec<usize> = (0..=3)
            .map(|kept| Pagemap {
                runs: sample(Layout::Long).runs[..kept].to_vec(),
                ..sample(Layout::Long)
            })
            .map(|pagemap| pagemap.encode().len())
            .collect();
        for cut in 0..bytes.len() {
            let result = Pagemap::decode(&bytes[..cut], PAGE);
            assert_eq!(result.is_ok(), boundaries.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn a_page_that_is_there_twice_is_found() {
        let mut pagemap = sample(Layout::Long);
        pagemap.runs.push(run(0xff000, 1, Origin::Parent));
        assert_eq!(pagemap.check(PAGE), Err(PagemapError::Twice(0xff000)));
    }

    #[test]
    fn old_images_say_it_in_another_way() {
        let bytes = b"\x19\x43\x56\x54\x25\x40\x08\x56\x02\0\0\0\x08\x01\
                      \x04\0\0\0\x08\0\x10\x02\x07\0\0\0\x08\x80\x40\x10\x01\x18\x01";
        let pagemap = Pagemap::decode(bytes, PAGE).unwrap();
        let expected = [run(0, 2, Origin::Here { lazy: false }), run(0x2000, 1, Origin::Parent)];
        assert_eq!(pagemap.runs, expected);
    }
}
