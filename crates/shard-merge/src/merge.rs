//! The merge: what has data is read, and what comes next is written.

use crate::error::Error;
use crate::shard::Shard;
use crate::{Args, NAME};
use cli::{
    Counters, Descriptors, Failure, OutputError, Place, Program, Progress, SourceError,
    StreamOutput,
};
use pipe_io::inherit::Direction;
use pipe_io::poll::{self, PollFd, PollFlags};
use std::os::fd::AsFd;
use std::sync::Arc;
use wire_format::{Body, Grammar, GrammarError, ImageId, ReadError};

/// Does what the command line asks for.
pub(crate) fn run(args: Args) -> Result<(), Failure<Error>> {
    let mut descriptors = Descriptors::default();
    let fds = args.shard_fds.iter().map(|fd| fd.0);
    let shards = descriptors.take_shards(fds, Direction::Input)?;
    let stdout = descriptors.take(&Place::Stdout, Direction::Output)?;
    let mut progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;

    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(shards.len()));
    let merge = || {
        program.attend_signals(&counters).map_err(Error::System)?;
        let shards = shards.into_iter().enumerate().map(|(index, (place, endpoint))| {
            Shard::new(index, place, endpoint, Arc::clone(&counters))
        });
        let mut merge = Merge {
            shards: shards.collect(),
            grammar: Grammar::default(),
            image: None,
            output: StreamOutput::new(stdout, Arc::new(Counters::new(1))),
        };
        merge.run()?;
        // Who waits for this line must not see the image end before it.
        progress.finished(&counters);
        merge.output.finish().map_err(Error::Output)
    };
    merge().map_err(Failure::Failed)
}

/// A merge that goes on.
struct Merge {
    shards: Vec<Shard>,
    grammar: Grammar,
    /// The image that the shards belong to, and the first shard that said so.
    image: Option<(ImageId, Place)>,
    output: StreamOutput,
}

impl Merge {
    /// Writes all of the image but its end, which the caller does.
    fn run(&mut self) -> Result<(), Error> {
        loop {
            let Some(index) = self.next_shard()? else { continue };
            if self.forward(index)? == Body::ImageEof {
                return self.expect_ends();
            }
        }
    }

    /// The shard that has the marker that is due; `None` if that was waited for.
    fn next_shard(&mut self) -> Result<Option<usize>, Error> {
        let due = self.grammar.next_seq();
        let has_due = |shard: &Shard| shard.head_seq() == Some(due);
        if let Some(index) = self.shards.iter().position(has_due) {
            return Ok(Some(index));
        }
        self.look()?;
        if let Some(index) = self.shards.iter().position(has_due) {
            return Ok(Some(index));
        }
        self.refuse_gap(due)?;
        self.output.flush()?;
        self.wait()?;
        Ok(None)
    }

    /// Reads the markers that are there.
    fn look(&mut self) -> Result<(), Error> {
        let due = self.grammar.next_seq();
        for shard in &mut self.shards {
            let place = shard.place.clone();
            let Some(marker) = shard.look()? else { continue };
            let (seq, image_id) = (marker.seq, marker.image_id);
            if seq < due {
                let error = GrammarError::Sequence { expected: due, found: seq };
                return Err(Error::Grammar(place, shard.head_position(), error));
            }
            match (&self.image, image_id) {
                (None, Some(image_id)) => self.image = Some((image_id, place)),
                (Some((known, first)), Some(image_id)) if *known != image_id => {
                    return Err(Error::Mixed(first.clone(), place));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where no shard can have the marker that is due, there is a gap.
    fn refuse_gap(&self, due: u64) -> Result<(), Error> {
        if self.shards.iter().any(Shard::is_awaited) {
            return Ok(());
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

    /// Waits until a shard has something new, or the reader of the stream has gone.
    fn wait(&self) -> Result<(), Error> {
        let mut fds = vec![PollFd::new(self.output.endpoint().as_fd(), PollFlags::empty())];
        let awaited = self.shards.iter().filter(|shard| shard.is_awaited());
        fds.extend(awaited.map(|shard| PollFd::new(shard.as_fd(), PollFlags::POLLIN)));
        poll::wait(&mut fds).map_err(Error::System)?;
        match fds.first().and_then(PollFd::revents) {
            Some(events) if events.contains(PollFlags::POLLERR) => {
                Err(Error::Output(OutputError::reader_gone()))
            }
            _ => Ok(()),
        }
    }

    /// Writes the next marker of a shard and its payload, if it isn't the end of the image.
    fn forward(&mut self, index: usize) -> Result<Body, Error> {
        let shard = &mut self.shards[index];
        let position = shard.head_position();
        let Some(marker) = shard.take() else { return Err(Error::Missing(0)) };
        self.grammar
            .accept(&marker)
            .map_err(|error| Error::Grammar(shard.place.clone(), position, error))?;
        if let Some(image_id) = marker.image_id {
            self.output.identify(image_id);
        }
        if marker.body == Body::ImageEof {
            return Ok(Body::ImageEof);
        }
        self.output.marker(marker.body.clone())?;
        if let Body::FileData(length) = marker.body {
            self.output.payload(shard.endpoint(), length).map_err(|error| match error {
                SourceError::Output(error) => Error::Output(error),
                SourceError::Source(moved, error) => {
                    let truncated = ReadError::Truncated(shard.position() + moved);
                    Error::Read(shard.place.clone(), error.map_or(truncated, ReadError::Io))
                }
            })?;
            shard.took(length.into());
        }
        Ok(marker.body)
    }

    /// After the end of the image, all shards must end.
    fn expect_ends(&mut self) -> Result<(), Error> {
        self.output.flush()?;
        loop {
            for shard in &mut self.shards {
                if shard.head_seq().is_some() || shard.look()?.is_some() {
                    let error = GrammarError::AfterEnd;
                    return Err(Error::Grammar(shard.place.clone(), shard.head_position(), error));
                }
            }
            if !self.shards.iter().any(Shard::is_awaited) {
                return Ok(());
            }
            self.wait()?;
        }
    }
}
