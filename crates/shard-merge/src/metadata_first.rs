//! The merge of a set with a metadata shard: what that has goes first.

use crate::error::Error;
use crate::merge::{Merge, move_payload};
use crate::shard::Shard;
use crate::sides::{Side, SideError, Sides, Step};
use wire_format::{Body, GrammarError};

impl Merge {
    /// Writes all of the image but its end; `metadata` is the place of the metadata shard. All
    /// shards have ended then.
    ///
    /// What the metadata shard has is let through as soon as it is there, and the others' data is
    /// never held back for it: where shards lead here straight from a dump, it ends with the dump,
    /// and what a compressor has of it may come only then.
    pub(crate) fn run_metadata_first(&mut self, metadata: usize) -> Result<(), Error> {
        let mut sides = Sides::default();
        loop {
            if self.forward_metadata(metadata, &mut sides)? {
                continue;
            }
            let mut next = self.next_other(metadata, &sides);
            if next.is_none() {
                self.look_at_all()?;
                if self.has_content(metadata) {
                    continue;
                }
                next = self.next_other(metadata, &sides);
            }
            match next {
                Some(index) => self.forward_side(index, Side::Others, &mut sides)?,
                None if self.is_any_awaited() => {
                    self.output.flush()?;
                    self.waited += self.wait()?;
                    continue;
                }
                None => return self.end_sides(&sides),
            }
            let waited = std::mem::take(&mut self.waited);
            if let Some(shard) = next.and_then(|index| self.shards.get(index)) {
                shard.blocked(waited);
            }
        }
    }

    /// Forwards the next marker of the metadata shard, or some of its payload, if it is there.
    ///
    /// Its payload goes in pieces, as it comes: the rest may come only when there is more of the
    /// others' to be read.
    fn forward_metadata(&mut self, metadata: usize, sides: &mut Sides) -> Result<bool, Error> {
        if self.shards.get(metadata).is_some_and(|shard| shard.payload_left() > 0) {
            return self.forward_some_payload(metadata, sides);
        }
        self.look_at(metadata)?;
        let is_there = self.has_content(metadata);
        if is_there {
            self.forward_side(metadata, Side::Metadata, sides)?;
        }
        Ok(is_there)
    }

    fn forward_some_payload(&mut self, metadata: usize, sides: &Sides) -> Result<bool, Error> {
        let Some(shard) = self.shards.get_mut(metadata) else { return Ok(false) };
        let there = shard.payload_there()?;
        if let Some(name) = sides.current_metadata().filter(|_| there > 0) {
            self.output.data(name, there)?;
            move_payload(&mut self.output, shard, there)?;
        }
        Ok(there > 0)
    }

    fn has_content(&self, index: usize) -> bool {
        self.shards.get(index).is_some_and(has_content)
    }

    /// Which of the other shards has the marker that comes next on their side.
    ///
    /// If the numbers before it are all accounted for, that is the next number. If they are not,
    /// they may be of the metadata shard: then it is the lowest, when all have one.
    fn next_other(&self, metadata: usize, sides: &Sides) -> Option<usize> {
        let due = sides.next_seq();
        let others = || self.shards.iter().enumerate().filter(move |(index, _)| *index != metadata);
        let has_due = |shard: &Shard| shard.head_seq() == Some(due) && has_content(shard);
        if let Some((index, _)) = others().find(|(_, shard)| has_due(shard)) {
            return Some(index);
        }
        let may_be_metadata = self.shards.get(metadata).is_some_and(Shard::is_awaited);
        if !may_be_metadata || others().any(|(_, shard)| shard.is_awaited()) {
            return None;
        }
        let heads = others().filter_map(|(index, shard)| Some((shard.head_seq()?, index, shard)));
        let (_, index, shard) = heads.min_by_key(|(seq, ..)| *seq)?;
        has_content(shard).then_some(index)
    }

    /// Writes what the next marker of a shard says, and its payload.
    fn forward_side(&mut self, index: usize, side: Side, sides: &mut Sides) -> Result<(), Error> {
        let Some(shard) = self.shards.get_mut(index) else { return Ok(()) };
        let position = shard.head_position();
        let least = shard.least_seq();
        let Some(marker) = shard.take() else { return Ok(()) };
        if marker.seq < least {
            let error = GrammarError::Sequence { expected: least, found: marker.seq };
            return Err(Error::Grammar(shard.place.clone(), position, error));
        }
        if let Some(image_id) = marker.image_id {
            self.output.identify(image_id);
        }
        if let Some(parent_id) = marker.parent_id {
            self.output.descend_from(parent_id);
        }
        let step = sides.accept(side, marker).map_err(|error| match error {
            SideError::Grammar(error) => Error::Grammar(shard.place.clone(), position, error),
            SideError::OtherSide(name) => Error::OtherSide(shard.place.clone(), name),
        })?;
        match step {
            Step::Nothing => {}
            Step::Announce(name) => self.output.file(&name)?,
            Step::Data(_, length) if side == Side::Metadata => shard.expect_payload(length),
            Step::Data(name, length) => {
                self.output.data(&name, length)?;
                move_payload(&mut self.output, shard, length)?;
            }
            Step::End(name, true) => self.output.file_eof_all_named(&name)?,
            Step::End(name, false) => self.output.file_eof(&name)?,
        }
        Ok(())
    }

    /// All shards have ended, or have the end of the image: sees that it is the end of all.
    fn end_sides(&mut self, sides: &Sides) -> Result<(), Error> {
        let due = sides.next_seq();
        let ends = |shard: &Shard| shard.head_seq() == Some(due) && !has_content(shard);
        let Some(index) = self.shards.iter().position(ends) else {
            self.refuse_gap(due)?;
            return Err(Error::Missing(due));
        };
        let Some(shard) = self.shards.get_mut(index) else { return Ok(()) };
        let position = shard.head_position();
        shard.take();
        match sides.unfinished() {
            Some(name) => {
                let error = GrammarError::Unfinished(name);
                Err(Error::Grammar(shard.place.clone(), position, error))
            }
            None => self.expect_ends(),
        }
    }
}

/// Whether its next marker is there, and is not the end of the image.
fn has_content(shard: &Shard) -> bool {
    shard.head().is_some_and(|marker| marker.body != Body::ImageEof)
}
