//! The outputs of the shards, and when each of them is complete.

use crate::error::Error;
use crate::shard::Shard;
use cli::{Commands, Counters, OutputFile, Place, ShardEnd};
use pipe_io::{Endpoint, Kind};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// What stands behind the pipes that the shards are written through.
pub(crate) struct Outputs {
    counters: Arc<Counters>,
    commands: Option<Commands>,
    places: Vec<Place>,
    relayed: Vec<bool>,
    files: Vec<(Place, OutputFile)>,
    done: Receiver<(usize, io::Result<()>)>,
}

impl Outputs {
    /// Puts a pipe before everything that is not one, so that nothing but a pipe can keep the
    /// split waiting, and a pipe only if it is asked to.
    pub(crate) fn new(
        ends: Vec<ShardEnd>,
        commands: Option<Commands>,
        counters: &Arc<Counters>,
    ) -> Result<(Outputs, Vec<Shard>), Error> {
        let (sender, done) = channel();
        let mut outputs = Outputs {
            counters: Arc::clone(counters),
            commands,
            places: Vec::new(),
            relayed: Vec::new(),
            files: Vec::new(),
            done,
        };
        let shards = ends
            .into_iter()
            .enumerate()
            .map(|(index, end)| outputs.add(index, end, &sender))
            .collect::<Result<_, _>>()?;
        Ok((outputs, shards))
    }

    fn add(
        &mut self,
        index: usize,
        end: ShardEnd,
        sender: &Sender<(usize, io::Result<()>)>,
    ) -> Result<Shard, Error> {
        let ShardEnd { place, endpoint, file } = end;
        let is_pipe = endpoint.kind() == Kind::Pipe;
        let endpoint =
            if is_pipe { endpoint } else { self.relay(index, &place, endpoint, sender.clone())? };
        self.files.extend(file.map(|file| (place.clone(), file)));
        self.places.push(place.clone());
        self.relayed.push(!is_pipe);
        Shard::new(index, place, endpoint, Arc::clone(&self.counters))
    }

    fn relay(
        &self,
        index: usize,
        place: &Place,
        to: Endpoint,
        sender: Sender<(usize, io::Result<()>)>,
    ) -> Result<Endpoint, Error> {
        // If nobody wants to know any more, the split has failed for another reason.
        let done = move |result| drop(sender.send((index, result)));
        pipe_io::relay(to, done).map_err(|error| Error::Shard(place.clone(), error))
    }

    /// The reason behind an error: a broken pipe is only where it shows.
    pub(crate) fn explain(&mut self, error: Error) -> Error {
        if !matches!(error, Error::Shard(..)) {
            return error;
        }
        let command = self.commands.as_mut().and_then(Commands::to_blame);
        let relayed = self.done.try_iter().find_map(|(index, result)| {
            Some(Error::Shard(self.places.get(index)?.clone(), result.err()?))
        });
        command.map(Error::Command).or(relayed).unwrap_or(error)
    }

    /// Whether a shard is written by way of a relay, which sees to it that all is taken.
    pub(crate) fn is_relayed(&self, index: usize) -> bool {
        self.relayed.get(index) == Some(&true)
    }

    /// Closes a shard that has all that it gets.
    pub(crate) fn close(&mut self, shard: Shard) {
        if self.commands.is_none() && !self.is_relayed(shard.index()) {
            self.counters.end(shard.index());
        }
    }

    /// The error of a shard whose reader goes without the last bytes.
    pub(crate) fn refuse_unread(&mut self, shard: &Shard, bytes: usize) -> Error {
        let commands = self.commands.as_mut();
        match commands.and_then(|commands| commands.left_unread(shard.index(), bytes)) {
            Some(error) => Error::Command(error),
            None => shard.failed(ErrorKind::BrokenPipe.into()),
        }
    }

    /// What to poll for reading beside the shards: one of them is ready when a command has ended.
    pub(crate) fn exits(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.commands.iter().flat_map(Commands::exits)
    }

    /// The shards whose commands have ended since this was asked last.
    pub(crate) fn ended(&mut self) -> Result<Vec<usize>, Error> {
        let mut ended = Vec::new();
        if let Some(commands) = &mut self.commands {
            let counters = &self.counters;
            commands.look(|index| {
                counters.end(index);
                ended.push(index);
            })?;
        }
        Ok(ended)
    }

    /// Waits until all shards, which were closed, are complete, and only then gives the files
    /// their names. With `sync` they are all on the disk before the first of them has its name,
    /// and the names are when this returns.
    pub(crate) fn complete(mut self, sync: bool) -> Result<(), Error> {
        let start = Instant::now();
        self.await_relays(start)?;
        if let Some(mut commands) = self.commands.take() {
            commands.wait(|index| end(&self.counters, index, start))?;
        }
        let failed = |place: Place| move |error| Error::Shard(place, error);
        if sync {
            for (place, file) in &self.files {
                file.sync().map_err(failed(place.clone()))?;
            }
        }
        let mut published = Vec::new();
        for (place, file) in self.files {
            published.push((place.clone(), file.publish().map_err(failed(place))?));
        }
        if sync {
            for (place, file) in published {
                file.sync().map_err(failed(place))?;
            }
        }
        Ok(())
    }

    fn await_relays(&self, start: Instant) -> Result<(), Error> {
        let relays = self.relayed.iter().filter(|relayed| **relayed).count();
        for _ in 0..relays {
            let Ok((index, result)) = self.done.recv() else {
                return Err(Error::System(ErrorKind::BrokenPipe.into()));
            };
            match (result, self.places.get(index)) {
                (Err(error), Some(place)) => return Err(Error::Shard(place.clone(), error)),
                (Err(error), None) => return Err(Error::System(error)),
                (Ok(()), _) => end(&self.counters, index, start),
            }
        }
        Ok(())
    }
}

/// Notes that a shard has kept us waiting until now.
fn end(counters: &Counters, index: usize, since: Instant) {
    counters.blocked(index, since.elapsed());
    counters.end(index);
}
