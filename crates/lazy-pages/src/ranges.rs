//! Memory that is still to come, by address.

use std::collections::BTreeMap;

/// A run of pages that is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Bytes.
    pub(crate) length: u64,
    /// Which pages image has it.
    pub(crate) file: usize,
    /// Where it begins there.
    pub(crate) offset: u64,
    /// Whether the memory may be gone, so that it is no contradiction if it is.
    pub(crate) doubtful: bool,
}

/// Runs that don't overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u64, Range>);

impl Range {
    /// What is left behind the first `bytes`.
    fn behind(self, bytes: u64) -> Range {
        Range { length: self.length - bytes, offset: self.offset + bytes, ..self }
    }

    /// The first `bytes`.
    fn first(self, bytes: u64) -> Range {
        Range { length: bytes, ..self }
    }
}

impl Ranges {
    /// Puts a run at this address, in the place of what was there.
    pub(crate) fn insert(&mut self, address: u64, range: Range) {
        self.cut(address, address.saturating_add(range.length));
        if range.length > 0 {
            self.0.insert(address, range);
        }
    }

    /// Puts what of a run does not overlap with what is there.
    pub(crate) fn insert_around(&mut self, address: u64, range: Range) {
        let end = address.saturating_add(range.length);
        let (mut at, mut rest) = (address, range);
        let taken: Vec<_> = self.within(address, end).collect();
        for (start, other) in taken {
            if start > at {
                self.0.insert(at, rest.first(start - at));
            }
            let passed = (start + other.length).min(end).saturating_sub(at);
            rest = rest.behind(passed);
            at += passed;
        }
        if rest.length > 0 {
            self.0.insert(at, rest);
        }
    }

    /// Takes out all from `start` up to `end`.
    pub(crate) fn cut(&mut self, start: u64, end: u64) -> Vec<(u64, Range)> {
        let touched: Vec<_> = self.within(start, end).collect();
        let mut taken = Vec::with_capacity(touched.len());
        for (address, range) in touched {
            self.0.remove(&address);
            let (mut at, mut middle) = (address, range);
            if at < start {
                self.0.insert(at, middle.first(start - at));
                middle = middle.behind(start - at);
                at = start;
            }
            if at + middle.length > end {
                self.0.insert(end, middle.behind(end - at));
                middle = middle.first(end - at);
            }
            taken.push((at, middle));
        }
        taken
    }

    /// The runs that have something from `start` up to `end`, whole.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Range)> + '_ {
        let before = self.0.range(..start).next_back().filter(|(at, it)| **at + it.length > start);
        let inside = (start < end).then(|| self.0.range(start..end));
        let before = before.filter(|_| start < end);
        before.into_iter().chain(inside.into_iter().flatten()).map(|(at, range)| (*at, *range))
    }

    /// The run that has this address, from there on.
    pub(crate) fn find(&self, address: u64) -> Option<Range> {
        let (start, range) = self.0.range(..=address).next_back()?;
        (address < start + range.length).then(|| range.behind(address - start))
    }

    /// Takes out the first run at or behind `near`, or the first of all, and of it at most
    /// `limit` bytes.
    pub(crate) fn take(&mut self, near: u64, limit: u64) -> Option<(u64, Range)> {
        let found = self.within(near, u64::MAX).next().map(|(at, _)| at.max(near));
        let start = found.or_else(|| self.0.keys().next().copied())?;
        let end = start.saturating_add(self.find(start)?.length.min(limit));
        self.cut(start, end).pop()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Range)> + '_ {
        self.0.iter().map(|(address, range)| (*address, *range))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
