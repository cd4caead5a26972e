//! What of one process's memory is still to come, and where, while the process changes it.
//!
//! The kernel tells of each change by a message, and the thread that made the change goes on when
//! the message is read. Two threads that change the memory at once may be told of in either order,
//! whichever change came first. What that leaves open is decided so that no page is lost:
//!
//! - of memory that has moved somewhere, and then is told to be unmapped there, it is *doubtful*
//!   whether it is there: what was unmapped may be what was there before. As soon as the process
//!   is seen not to be changing its memory, the kernel is asked;
//! - the memory of a fork's child may be as it was before or after a move that another thread of
//!   its parent made at the same time. It is asked for at both places.
//!
//! To keep what was unmapped for longer would be wrong: a mapping beside it may grow there, which
//! nobody is told of, and would find it in the place of zeros.
//!
//! Dropped pages (`madvise`) may be taken as dropped before or after a fork at the same time:
//! neither had returned, so nobody can tell.

use crate::ranges::{Range, Ranges};

/// Memory of one process that is still to come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// What nobody brings yet.
    waiting: Ranges,
    /// What is being brought, for each that brings.
    claims: Vec<Ranges>,
    /// Where memory was that has moved since the process was last seen not to be changing it.
    moved: Vec<(u64, Range)>,
    /// Where it has moved to: first addresses, and those behind the last.
    arrived: Vec<(u64, u64)>,
    /// Whether memory may be missing without a message: a fork's child does not get all.
    lenient: bool,
    /// Where the last thread that was waited for has touched memory: what lies behind comes next.
    near: u64,
}

/// A part of a pages image that is to be brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Layout {
    /// For so many that bring pages.
    pub(crate) fn new(fillers: usize) -> Layout {
        Layout { claims: vec![Ranges::default(); fillers], ..Layout::default() }
    }

    /// Adds memory.
    pub(crate) fn add(&mut self, address: u64, range: Range) {
        self.waiting.insert(address, range);
    }

    /// Gives a filler something to bring, of at most `limit` bytes.
    pub(crate) fn claim(&mut self, filler: usize, limit: u64) -> Option<Claim> {
        let claims = self.claims.get_mut(filler)?;
        let (address, range) = self.waiting.take(self.near, limit)?;
        let Range { length, file, offset, .. } = range;
        // So that the next comes from behind it.
        if self.near == address {
            self.near = address + length;
        }
        claims.insert(address, range);
        Some(Claim { file, offset, length })
    }

    /// Where the claimed pages belong at this moment.
    pub(crate) fn claimed(&self, filler: usize) -> Vec<(u64, Range)> {
        self.claims.get(filler).map(|ranges| ranges.iter().collect()).unwrap_or_default()
    }

    /// Notes that pages are there, or have nowhere to be.
    pub(crate) fn done(&mut self, filler: usize, address: u64, length: u64) {
        if let Some(claims) = self.claims.get_mut(filler) {
            claims.cut(address, address.saturating_add(length));
        }
    }

    /// Forgets pages that are there, whoever was to bring them.
    pub(crate) fn forget(&mut self, address: u64, length: u64) {
        self.all().for_each(|ranges| drop(ranges.cut(address, address.saturating_add(length))));
        self.near = address + length;
    }

    /// What belongs to this address and what lies behind it.
    pub(crate) fn find(&self, address: u64) -> Option<Range> {
        std::iter::once(&self.waiting).chain(&self.claims).find_map(|ranges| ranges.find(address))
    }

    /// Memory has moved.
    pub(crate) fn remap(&mut self, from: u64, to: u64, length: u64) {
        let (from_end, to_end) = (from.saturating_add(length), to.saturating_add(length));
        let taken: Vec<_> = self.all().map(|ranges| ranges.cut(from, from_end)).collect();
        self.remove(to, to_end);
        for (ranges, taken) in self.all().zip(&taken) {
            for (address, range) in taken {
                ranges.insert(address - from + to, *range);
            }
        }
        self.moved.extend(taken.into_iter().flatten());
        self.arrived.push((to, to_end));
    }

    /// Pages were dropped: they are zeros from now on.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        self.all().for_each(|ranges| drop(ranges.cut(start, end)));
        let mut moved = Ranges::default();
        for (address, range) in self.moved.drain(..) {
            moved.insert_around(address, range);
        }
        moved.cut(start, end);
        self.moved.extend(moved.iter());
    }

    /// There is no memory any more, unless it has just moved there.
    pub(crate) fn unmap(&mut self, start: u64, end: u64) {
        let arrived = std::mem::take(&mut self.arrived);
        for ranges in self.all() {
            let unmapped = ranges.cut(start, end);
            let mut there = Ranges::default();
            unmapped.into_iter().for_each(|(address, range)| there.insert(address, range));
            let recent = arrived.iter().flat_map(|(start, end)| there.cut(*start, *end));
            for (address, range) in recent {
                ranges.insert(address, Range { doubtful: true, ..range });
            }
        }
        self.arrived = arrived;
    }

    /// Whether something is known to have happened in either of two orders.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.moved.is_empty() || !self.arrived.is_empty() || self.doubts().next().is_some()
    }

    /// The process was seen not to be changing its memory.
    pub(crate) fn settled(&mut self) {
        self.moved.clear();
        self.arrived.clear();
    }

    /// Memory that may be gone.
    pub(crate) fn doubts(&self) -> impl Iterator<Item = (u64, Range)> + '_ {
        let sets = std::iter::once(&self.waiting).chain(&self.claims);
        sets.flat_map(Ranges::iter).filter(|(_, range)| range.doubtful)
    }

    /// Settles a doubt.
    pub(crate) fn resolve(&mut self, address: u64, range: Range, is_there: bool) {
        for ranges in self.all() {
            for (address, range) in ranges.cut(address, address + range.length) {
                if is_there {
                    ranges.insert(address, Range { doubtful: false, ..range });
                }
            }
        }
    }

    /// Whether it is no contradiction if memory is not there.
    pub(crate) fn is_lenient(&self) -> bool {
        self.lenient
    }

    /// Where memory was that has moved lately.
    pub(crate) fn moved(&self) -> &[(u64, Range)] {
        &self.moved
    }

    /// What a child lacks that was forked off.
    pub(crate) fn child(&self) -> Layout {
        let mut child = Layout { lenient: true, ..Layout::new(self.claims.len()) };
        let sets = std::iter::once(&self.waiting).chain(&self.claims);
        for (address, range) in sets.flat_map(Ranges::iter) {
            child.waiting.insert(address, range);
        }
        child
    }

    /// Adds what is there as well, as a move at the same time has come before the fork or after it.
    pub(crate) fn also(&mut self, address: u64, range: Range) {
        self.waiting.insert_around(address, range);
    }

    /// All memory from `start` up to `end` that is still to come.
    pub(crate) fn part(&self, start: u64, end: u64) -> Vec<(u64, Range)> {
        let sets = std::iter::once(&self.waiting).chain(&self.claims);
        sets.flat_map(|ranges| ranges.clone().cut(start, end)).collect()
    }

    /// Whether all is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.waiting.is_empty() && self.claims.iter().all(Ranges::is_empty)
    }

    /// Bytes that are still to come.
    pub(crate) fn bytes(&self) -> u64 {
        let sets = std::iter::once(&self.waiting).chain(&self.claims);
        sets.flat_map(Ranges::iter).map(|(_, range)| range.length).sum()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Ranges> {
        std::iter::once(&mut self.waiting).chain(&mut self.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const PAGE: u64 = 4096;
    const FILLERS: usize = 2;

    /// What belongs to each page, one by one: where it is in the pages image.
    type Model = HashMap<u64, u64>;

    fn layout(pages: u64) -> (Layout, Model) {
        let mut layout = Layout::new(FILLERS);
        layout.add(0, Range { length: pages * PAGE, file: 0, offset: 0, doubtful: false });
        (layout, (0..pages).map(|page| (page, page)).collect())
    }

    fn found(layout: &Layout, page: u64) -> Option<u64> {
        layout.find(page * PAGE).map(|range| range.offset / PAGE)
    }

    /// A row of numbers that looks random, and is always the same.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed * 2 + 1;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        }
    }

    fn change(layout: &mut Layout, model: &mut Model, random: &mut impl FnMut(u64) -> u64) {
        let (first, count, to) = (random(90), random(9) + 1, random(90));
        let (start, end) = (first * PAGE, (first + count) * PAGE);
        match random(6) {
            0 => {
                layout.remove(start, end);
                model.retain(|page, _| !(first..first + count).contains(page));
            }
            // The kernel lets no memory move onto itself.
            1 if to + count <= first || first + count <= to => {
                layout.remap(start, to * PAGE, count * PAGE);
                let moved: Vec<_> =
                    (first..first + count).map(|page| model.remove(&page)).collect();
                for (page, moved) in (to..).zip(moved) {
                    model.remove(&page);
                    model.extend(moved.map(|at| (page, at)));
                }
            }
            // What has moved there lately is doubtful, and not forgotten.
            2 => {
                layout.unmap(start, end);
                model.retain(|page, _| {
                    let is_unmapped = (first..first + count).contains(page);
                    !is_unmapped || layout.find(page * PAGE).is_some_and(|range| range.doubtful)
                });
            }
            3 => drop(layout.claim(random(FILLERS as u64) as usize, count * PAGE)),
            4 => {
                let filler = random(FILLERS as u64) as usize;
                if let Some((address, range)) = layout.claimed(filler).pop() {
                    layout.done(filler, address, range.length);
                    let pages = address / PAGE..(address + range.length) / PAGE;
                    model.retain(|page, _| !pages.contains(page));
                }
            }
            _ => {
                layout.forget(start, PAGE);
                model.remove(&first);
            }
        }
    }

    #[test]
    fn every_page_is_where_its_process_has_moved_it() {
        for seed in 0..200 {
            let (mut layout, mut model) = layout(100);
            let mut random = numbers(seed);
            for step in 0..100 {
                change(&mut layout, &mut model, &mut random);
                for page in 0..110 {
                    let expected = model.get(&page).copied();
                    assert_eq!(found(&layout, page), expected, "page {page}, {seed}, {step}");
                }
            }
            assert_eq!(layout.is_complete(), model.is_empty());
        }
    }

    #[test]
    fn a_child_lacks_what_its_parent_lacks() {
        for seed in 0..50 {
            let (mut layout, mut model) = layout(100);
            let mut random = numbers(seed);
            (0..30).for_each(|_| change(&mut layout, &mut model, &mut random));
            layout.settled();
            let child = layout.child();
            for page in 0..110 {
                assert_eq!(found(&child, page), model.get(&page).copied(), "page {page}, {seed}");
                assert!(child.is_lenient());
            }
        }
    }

    #[test]
    fn where_memory_was_is_known_until_the_process_is_seen_to_be_calm() {
        let (mut layout, _) = layout(4);
        layout.claim(0, PAGE).unwrap();
        layout.remap(0, 10 * PAGE, 2 * PAGE);
        let mut child = layout.child();
        for (address, range) in layout.moved() {
            child.also(*address, *range);
        }
        for (page, expected) in [(0, 0), (1, 1), (10, 0), (11, 1), (2, 2), (3, 3)] {
            assert_eq!(found(&child, page), Some(expected), "page {page}");
        }
        assert!(layout.is_unsettled());
        layout.settled();
        assert!(!layout.is_unsettled() && layout.moved().is_empty());
    }

    #[test]
    fn what_was_dropped_does_not_come_back_in_a_child() {
        let (mut layout, _) = layout(4);
        layout.remap(0, 10 * PAGE, 2 * PAGE);
        layout.remove(0, PAGE);
        layout.remove(10 * PAGE, 11 * PAGE);
        let mut child = layout.child();
        for (address, range) in layout.moved() {
            child.also(*address, *range);
        }
        assert_eq!((found(&child, 0), found(&child, 10)), (None, None));
        assert_eq!((found(&child, 1), found(&child, 11)), (Some(1), Some(1)));
    }

    #[test]
    fn what_lies_behind_the_last_fault_comes_next() {
        let (mut layout, _) = layout(100);
        layout.forget(50 * PAGE, PAGE);
        let offset = |claim: Option<Claim>| claim.unwrap().offset / PAGE;
        assert_eq!(offset(layout.claim(0, 2 * PAGE)), 51);
        assert_eq!(offset(layout.claim(1, 100 * PAGE)), 53);
        assert_eq!(offset(layout.claim(0, PAGE)), 0);
    }

    #[test]
    fn unmapped_memory_is_forgotten_unless_it_has_just_arrived() {
        let (mut layout, _) = layout(8);
        layout.remap(0, 10 * PAGE, 2 * PAGE);
        layout.unmap(4 * PAGE, 6 * PAGE);
        layout.unmap(11 * PAGE, 14 * PAGE);
        let pages = [4, 5, 10, 11].map(|page| layout.find(page * PAGE));
        assert_eq!(
            pages.map(|page| page.map(|range| range.doubtful)),
            [None, None, Some(false), Some(true)]
        );
        let (address, range) = layout.doubts().next().unwrap();
        layout.clone().resolve(address, range, false);
        layout.resolve(address, range, true);
        assert!(layout.doubts().next().is_none() && found(&layout, 11) == Some(1));
        layout.settled();
        layout.unmap(10 * PAGE, 12 * PAGE);
        assert_eq!((found(&layout, 10), found(&layout, 11)), (None, None));
    }
}
