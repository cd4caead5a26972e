//! `pagemap-PID.img`: which pages of a process are in its `pages-ID.img`, and which of them may
//! come late.
//!
//! The file is two magic numbers and messages, each with its length before it: a head, which names
//! the pages image, and an entry for each run of pages. CRIU marks the entries whose memory may
//! come late; [`split`] takes them out of the file that CRIU gets, as `criu dump --lazy-pages` would
//! have written it. All that we don't know of the file stays as it is.

use criu_protocol::fields::{Field, Malformed, Value, fields, messages, put_message, put_number};
use std::fmt;

/// The magic numbers that the file begins with, each a little-endian `u32`.
const MAGIC: [u8; 8] = *b"\x19\x43\x56\x54\x25\x40\x08\x56";

/// In the head: the number in the name of the pages image.
const PAGES_ID: u64 = 1;

/// In an entry: the address, the number of pages (in two places, of which older versions have the
/// first only), whether they are in an earlier image, and the flags, which older versions lack.
const ADDRESS: u64 = 1;
const COMPAT_PAGES: u64 = 2;
const IN_PARENT: u64 = 3;
const FLAGS: u64 = 4;
const PAGES: u64 = 5;

/// The pages are in an earlier image.
const PARENT: u64 = 1;
/// They may come late.
const LAZY: u64 = 2;
/// They are in the pages image.
const PRESENT: u64 = 4;

/// A pagemap, parted into what CRIU restores and what comes late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pagemap {
    /// The number in the name of the pages image.
    pub pages_id: u64,
    /// How many bytes the pages image has to have.
    pub size: u64,
    /// The file for CRIU.
    pub rewritten: Vec<u8>,
    /// The parts of the pages image that CRIU restores: where they begin, and how many bytes.
    pub eager: Vec<(u64, u64)>,
    /// What comes late.
    pub lazy: Vec<Late>,
}

/// Memory that comes late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Its address in the process.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Where it begins in the pages image.
    pub offset: u64,
}

/// Why a pagemap cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagemapError {
    /// It is not one that CRIU has written.
    Malformed,
    /// It wants pages of an earlier image.
    Incremental,
}

/// Parts a pagemap whose pages have `page` bytes.
pub fn split(file: &[u8], page: u64) -> Result<Pagemap, PagemapError> {
    let mut messages = messages(file.strip_prefix(&MAGIC).ok_or(Malformed)?);
    let head = messages.next().ok_or(Malformed)??;
    let mut map = Pagemap { pages_id: pages_id(head)?, ..Pagemap::default() };
    map.rewritten.extend_from_slice(&MAGIC);
    put_message(&mut map.rewritten, head)?;
    let mut end = 0;
    for entry in messages {
        end = map.add(entry?, end, page)?;
    }
    Ok(map)
}

impl Pagemap {
    /// Takes in an entry, which must lie behind the address `end`; returns where it ends.
    fn add(&mut self, entry: &[u8], end: u64, page: u64) -> Result<u64, PagemapError> {
        let Entry { address, pages, flags } = Entry::decode(entry)?;
        let length = pages.checked_mul(page).ok_or(Malformed)?;
        let behind = address.checked_add(length).ok_or(Malformed)?;
        if address < end || address % page != 0 {
            return Err(PagemapError::Malformed);
        }
        if flags & PARENT != 0 {
            return Err(PagemapError::Incremental);
        }
        let offset = self.size;
        let is_late = flags & LAZY != 0 && flags & PRESENT != 0;
        if flags & PRESENT != 0 {
            self.size = offset.checked_add(length).ok_or(Malformed)?;
        }
        if is_late {
            if length > 0 {
                self.lazy.push(Late { address, length, offset });
            }
            put_message(&mut self.rewritten, &absent(entry, flags)?)?;
            return Ok(behind);
        }
        if flags & PRESENT != 0 && length > 0 {
            match self.eager.last_mut() {
                Some((start, run)) if *start + *run == offset => *run += length,
                _ => self.eager.push((offset, length)),
            }
        }
        put_message(&mut self.rewritten, entry)?;
        Ok(behind)
    }
}

struct Entry {
    address: u64,
    pages: u64,
    flags: u64,
}

impl Entry {
    fn decode(entry: &[u8]) -> Result<Entry, PagemapError> {
        let (mut address, mut compat, mut pages) = (None, None, None);
        let (mut in_parent, mut flags) = (false, None);
        for field in fields(entry) {
            let Field { number, value: Value::Number(value), .. } = field? else { continue };
            match number {
                ADDRESS => address = Some(value),
                COMPAT_PAGES => compat = Some(value),
                IN_PARENT => in_parent = value != 0,
                FLAGS => flags = Some(value),
                PAGES => pages = Some(value),
                _ => {}
            }
        }
        let without = if in_parent { PARENT } else { PRESENT };
        Ok(Entry {
            address: address.ok_or(Malformed)?,
            pages: pages.or(compat).ok_or(Malformed)?,
            flags: flags.unwrap_or(without) | if in_parent { PARENT } else { 0 },
        })
    }
}

/// The entry as it is when the pages are not in the pages image.
fn absent(entry: &[u8], flags: u64) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(entry.len());
    for field in fields(entry) {
        match field? {
            Field { number: FLAGS, value: Value::Number(_), .. } => {
                put_number(&mut out, FLAGS, flags & !PRESENT);
            }
            Field { raw, .. } => out.extend_from_slice(raw),
        }
    }
    Ok(out)
}

fn pages_id(head: &[u8]) -> Result<u64, Malformed> {
    let mut id = None;
    for field in fields(head) {
        if let Field { number: PAGES_ID, value: Value::Number(value), .. } = field? {
            id = Some(value);
        }
    }
    id.ok_or(Malformed)
}

impl From<Malformed> for PagemapError {
    fn from(_: Malformed) -> PagemapError {
        PagemapError::Malformed
    }
}

impl fmt::Display for PagemapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PagemapError::Malformed => f.write_str("not as CRIU writes it"),
            PagemapError::Incremental => f.write_str("wants pages of an earlier image"),
        }
    }
}

impl std::error::Error for PagemapError {}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn message(fields: &[(u64, u64)]) -> Vec<u8> {
        let mut message = Vec::new();
        for (number, value) in fields {
            put_number(&mut message, *number, *value);
        }
        message
    }

    fn file(messages: &[&[(u64, u64)]]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        for fields in messages {
            put_message(&mut file, &message(fields)).unwrap();
        }
        file
    }

    fn entry(page: u64, pages: u64, flags: u64) -> Vec<(u64, u64)> {
        vec![(ADDRESS, page * PAGE), (COMPAT_PAGES, pages), (FLAGS, flags), (PAGES, pages)]
    }

    #[test]
    fn what_may_come_late_is_left_out() {
        let entries = [
            entry(10, 1, PRESENT),
            entry(11, 3, PRESENT),
            entry(20, 5, LAZY | PRESENT),
            entry(30, 7, LAZY),
            entry(40, 2, PRESENT),
        ];
        let late =
            |index: usize| if index == 2 { entry(20, 5, LAZY) } else { entries[index].clone() };
        let all: Vec<_> = entries.iter().map(Vec::as_slice).collect();
        let rewritten: Vec<_> = (0..entries.len()).map(late).collect();
        let rewritten: Vec<_> = rewritten.iter().map(Vec::as_slice).collect();
        let head: &[(u64, u64)] = &[(PAGES_ID, 7), (9, 1)];
        let map = split(&file(&[&[head], all.as_slice()].concat()), PAGE).unwrap();
        assert_eq!(map.pages_id, 7);
        assert_eq!(map.size, 11 * PAGE);
        assert_eq!(map.eager, [(0, 4 * PAGE), (9 * PAGE, 2 * PAGE)]);
        let late = Late { address: 20 * PAGE, length: 5 * PAGE, offset: 4 * PAGE };
        assert_eq!(map.lazy, [late]);
        assert_eq!(map.rewritten, file(&[&[head], rewritten.as_slice()].concat()));
    }

    #[test]
    fn what_is_unknown_stays() {
        let mut entry = message(&[(ADDRESS, 0), (FLAGS, LAZY | PRESENT), (PAGES, 1)]);
        entry.extend_from_slice(b"\xfa\x01\x03abc");
        let mut changed = message(&[(ADDRESS, 0), (FLAGS, LAZY), (PAGES, 1)]);
        changed.extend_from_slice(b"\xfa\x01\x03abc");
        let with = |entry: &[u8]| {
            let mut file = file(&[&[(PAGES_ID, 1)]]);
            put_message(&mut file, entry).unwrap();
            file
        };
        assert_eq!(split(&with(&entry), PAGE).unwrap().rewritten, with(&changed));
    }

    #[test]
    fn an_entry_without_flags_is_in_the_pages_image() {
        let old = [&[(PAGES_ID, 1)][..], &[(ADDRESS, 0), (COMPAT_PAGES, 2)]];
        let map = split(&file(&old), PAGE).unwrap();
        assert_eq!((map.size, map.eager, map.lazy), (2 * PAGE, vec![(0, 2 * PAGE)], vec![]));
        assert_eq!(map.rewritten, file(&old));
    }

    #[test]
    fn what_is_no_pagemap_is_refused() {
        let head: &[(u64, u64)] = &[(PAGES_ID, 1)];
        let overlap = [head, &entry(1, 2, PRESENT), &entry(2, 1, PRESENT)];
        let huge = [head, &[(ADDRESS, PAGE), (PAGES, u64::MAX / PAGE)]];
        let unaligned = [head, &[(ADDRESS, 1), (PAGES, 1)]];
        for messages in [&overlap[..], &huge, &unaligned, &[&[]], &[]] {
            assert_eq!(split(&file(messages), PAGE), Err(PagemapError::Malformed), "{messages:?}");
        }
        for parent in [entry(1, 1, PARENT), vec![(ADDRESS, 0), (PAGES, 1), (IN_PARENT, 1)]] {
            let refused = split(&file(&[head, &parent]), PAGE);
            assert_eq!(refused, Err(PagemapError::Incremental));
        }
        let whole = file(&[head, &entry(1, 1, PRESENT)]);
        for cut in 0..whole.len() {
            let is_boundary = cut == file(&[head]).len();
            assert_eq!(split(&whole[..cut], PAGE).is_ok(), is_boundary, "cut at {cut}");
        }
    }
}
