//! The merge: what has data is read, and what comes next is written.

use crate::claims::{self, ClaimError, Set};
use crate::error::Error;
use crate::shard::Shard;
use cli::{Counters, OutputError, Place, Program, ShardEnd, SourceError, StreamOutput};
use pipe_io::poll::{self, PollFd, PollFlags};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire_format::{Body, Grammar, GrammarError, ImageId, ReadError};

/// A merge that goes on.
#[derive(Debug)]
pub struct Merge {
    program: Program,
    pub(crate) shards: Vec<Shard>,
    /// What the shards have said of themselves, once all have.
    set: Option<Set>,
    /// The image, and the first shard that said so.
    image: Option<(ImageId, Place)>,
    grammar: Grammar,
    pub(crate) output: StreamOutput,
    /// How long the marker that is due has not come.
    pub(crate) waited: Duration,
}

impl Merge {
    /// Puts these shards together. The counters have a place for each.
    pub fn new(
        program: Program,
        ends: Vec<ShardEnd>,
        output: StreamOutput,
        counters: &Arc<Counters>,
    ) -> Merge {
        let shard = |(index, end): (usize, ShardEnd)| {
            Shard::new(index, end.place, end.endpoint, Arc::clone(counters))
        };
        Merge {
            program,
            shards: ends.into_iter().enumerate().map(shard).collect(),
            set: None,
            image: None,
            grammar: Grammar::default(),
            output,
            waited: Duration::ZERO,
        }
    }

    /// Writes all of the image but its end. All shards have ended then.
    pub fn run(&mut self) -> Result<(), Error> {
        self.await_claims()?;
        if let Some(metadata) = self.set.as_ref().and_then(|set| set.metadata) {
            return self.run_metadata_first(metadata);
        }
        loop {
            let Some(index) = self.next_shard()? else { continue };
            if self.forward(index)? == Body::ImageEof {
                self.look()?;
                self.check_claims()?;
                return self.expect_ends();
            }
        }
    }

    /// Writes the end of the image, after [`Merge::run`].
    pub fn finish(self) -> Result<(), Error> {
        Ok(self.output.finish()?)
    }

    /// Nothing is let through before all shards have said that they belong together. Those of
    /// another program say nothing, and with them there is nothing to wait for.
    fn await_claims(&mut self) -> Result<(), Error> {
        loop {
            self.look()?;
            self.check_claims()?;
            if self.set.is_some() || self.shards.iter().any(is_foreign) {
                return Ok(());
            }
            self.wait()?;
        }
    }

    /// Sees whether the shards belong together, as soon as all have begun, or some that do not.
    fn check_claims(&mut self) -> Result<(), Error> {
        if self.set.is_some() {
            return Ok(());
        }
        let is_mixed = self.shards.iter().any(is_foreign) && self.shards.iter().any(is_ours);
        if !is_mixed && !self.shards.iter().all(Shard::has_begun) {
            return Ok(());
        }
        let claims: Vec<_> =
            self.shards.iter().map(|shard| (shard.place.clone(), shard.claim())).collect();
        let set = claims::check(&claims)?;
        if set.count.is_none() && claims.len() > 1 {
            self.program.note("the shards do not say what image they belong to");
        }
        self.set = Some(set);
        Ok(())
    }

    /// The shard that has the marker that is due; `None` if that was waited for.
    fn next_shard(&mut self) -> Result<Option<usize>, Error> {
        let due = self.grammar.next_seq();
        let has_due = |shard: &Shard| shard.head_seq() == Some(due);
        let mut found = self.shards.iter().position(has_due);
        if found.is_none() {
            self.look()?;
            self.check_claims()?;
            found = self.shards.iter().position(has_due);
        }
        if found.is_none() {
            self.refuse_gap(due)?;
            self.output.flush()?;
            self.waited += self.wait()?;
            return Ok(None);
        }
        let waited = std::mem::take(&mut self.waited);
        if let Some(shard) = found.and_then(|index| self.shards.get(index)) {
            shard.blocked(waited);
        }
        Ok(found)
    }

    /// Reads the markers that are there.
    fn look(&mut self) -> Result<(), Error> {
        let due = self.grammar.next_seq();
        for index in 0..self.shards.len() {
            let Some(seq) = self.look_at(index)? else { continue };
            if let Some(shard) = self.shards.get(index) {
                refuse_repeat(shard, seq, due)?;
            }
        }
        Ok(())
    }

    /// The same where they need not come in the order of their numbers.
    pub(crate) fn look_at_all(&mut self) -> Result<(), Error> {
        (0..self.shards.len()).try_for_each(|index| self.look_at(index).map(drop))
    }

    /// Reads the next marker of a shard if it is there, and was not yet read: its number.
    pub(crate) fn look_at(&mut self, index: usize) -> Result<Option<u64>, Error> {
        let Some(shard) = self.shards.get_mut(index) else { return Ok(None) };
        let Some(marker) = shard.look()? else { return Ok(None) };
        let (seq, image_id) = (marker.seq, marker.image_id);
        let Some(image_id) = image_id else { return Ok(Some(seq)) };
        match &self.image {
            None => self.image = Some((image_id, shard.place.clone())),
            // While not all have begun, the majority may yet tell which is the odd one.
            Some((known, first)) if *known != image_id && self.set.is_some() => {
                let error = ClaimError::OtherImage(shard.place.clone(), Some(first.clone()));
                return Err(error.into());
            }
            Some(_) => {}
        }
        Ok(Some(seq))
    }

    /// Whether a shard has not yet its next marker, nor its end.
    pub(crate) fn is_any_awaited(&self) -> bool {
        self.shards.iter().any(Shard::is_awaited)
    }

    /// Where no shard can have the marker that is due, there is a gap.
    pub(crate) fn refuse_gap(&self, due: u64) -> Result<(), Error> {
        if self.is_any_awaited() {
            return Ok(());
        }
        // An empty shard may be one that received nothing; now it is seen that it had something.
        if let Some(Set { count: Some(count), unclaimed, .. }) = &self.set {
            if !unclaimed.is_empty() {
                return Err(ClaimError::Missing(unclaimed.clone(), *count).into());
            }
        }
        let nearest = self
            .shards
            .iter()
            .filter_map(|shard| Some((shard.head_seq()?, shard)))
            .min_by_key(|(seq, _)| *seq);
        Err(match (nearest, self.shards.as_slice()) {
            (Some((found, shard)), _) => {
                let error = GrammarError::Sequence { expected: due, found };
                Error::Grammar(shard.place.clone(), shard.head_position(), error)
            }
            (None, [only]) => {
                Error::Read(only.place.clone(), ReadError::Truncated(only.position()))
            }
            (None, _) => Error::Missing(due),
        })
    }

    /// Waits until a shard has something new, or the reader of the stream has gone. Returns how
    /// long that took.
    pub(crate) fn wait(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        let mut fds = vec![PollFd::new(self.output.endpoint().as_fd(), PollFlags::empty())];
        let awaited = self.shards.iter().filter(|shard| shard.is_awaited());
        fds.extend(awaited.map(|shard| PollFd::new(shard.as_fd(), PollFlags::POLLIN)));
        poll::wait(&mut fds).map_err(Error::System)?;
        match fds.first().and_then(PollFd::revents) {
            Some(events) if events.intersects(poll::READER_GONE) => {
                Err(Error::Output(OutputError::reader_gone()))
            }
            _ => Ok(start.elapsed()),
        }
    }

    /// Writes the next marker of a shard and its payload, if it isn't the end of the image.
    fn forward(&mut self, index: usize) -> Result<Body, Error> {
        let Some(shard) = self.shards.get_mut(index) else { return Err(Error::Missing(0)) };
        let position = shard.head_position();
        let Some(marker) = shard.take() else { return Err(Error::Missing(0)) };
        self.grammar
            .accept(&marker)
            .map_err(|error| Error::Grammar(shard.place.clone(), position, error))?;
        if let Some(image_id) = marker.image_id {
            self.output.identify(image_id);
        }
        if let Some(parent_id) = marker.parent_id {
            self.output.descend_from(parent_id);
        }
        if marker.body == Body::ImageEof {
            return Ok(Body::ImageEof);
        }
        self.output.put(marker.body.clone(), marker.all_named)?;
        if let Body::FileData(length) = marker.body {
            move_payload(&mut self.output, shard, length)?;
        }
        Ok(marker.body)
    }

    /// After the end of the image, all shards must end.
    pub(crate) fn expect_ends(&mut self) -> Result<(), Error> {
        self.output.flush()?;
        loop {
            for shard in &mut self.shards {
                if shard.head_seq().is_some() || shard.look()?.is_some() {
                    let error = GrammarError::AfterEnd;
                    return Err(Error::Grammar(shard.place.clone(), shard.head_position(), error));
                }
            }
            self.check_claims()?;
            if !self.is_any_awaited() {
                return Ok(());
            }
            self.wait()?;
        }
    }
}

/// Whether it has begun and says which shard it is.
fn is_ours(shard: &Shard) -> bool {
    shard.claim().is_some_and(|claim| claim.shard.is_some())
}

/// Whether it has begun and does not say so.
fn is_foreign(shard: &Shard) -> bool {
    shard.claim().is_some_and(|claim| claim.shard.is_none())
}

fn refuse_repeat(shard: &Shard, seq: u64, due: u64) -> Result<(), Error> {
    if seq >= due {
        return Ok(());
    }
    let error = GrammarError::Sequence { expected: due, found: seq };
    Err(Error::Grammar(shard.place.clone(), shard.head_position(), error))
}

/// Moves the payload that follows a marker, and notes how long the shard kept us waiting for it.
pub(crate) fn move_payload(
    output: &mut StreamOutput,
    shard: &mut Shard,
    length: u32,
) -> Result<(), Error> {
    let mut left = length;
    while left > 0 {
        let held = shard.held(left);
        if !held.is_empty() {
            output.held_payload(held, left)?;
            let taken = held.len() as u32;
            shard.took(taken.into());
            left -= taken;
            continue;
        }
        let moved =
            output.some_payload(shard.endpoint(), length, left).map_err(|error| match error {
                SourceError::Output(error) => Error::Output(error),
                SourceError::Source(_, None) => {
                    Error::Read(shard.place.clone(), ReadError::Truncated(shard.position()))
                }
                SourceError::Source(_, Some(error)) => Error::open(shard.place.clone(), error),
            })?;
        shard.blocked(output.take_starved());
        shard.took(moved.into());
        left -= moved;
    }
    Ok(())
}
