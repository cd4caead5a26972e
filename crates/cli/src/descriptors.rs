//! Taking over the descriptors that a command line names.

use crate::{Place, ShardEnd};
use pipe_io::inherit::{Direction, Refusal};
use pipe_io::{Endpoint, FileId};
use std::fmt;
use std::os::fd::RawFd;
use wire_format::FileName;

/// Where messages go.
pub(crate) const STDERR: RawFd = 2;

/// The descriptors of a command line; sees to it that each has one part only.
#[derive(Debug, Default)]
pub struct Descriptors {
    taken: Vec<(RawFd, Place)>,
    /// What is written to.
    outputs: Vec<(FileId, Place)>,
    names: Vec<FileName>,
}

/// A command line that cannot be carried out, found before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageError {
    /// The descriptor cannot have the part that it is given.
    Refused(Place, Refusal),
    /// Descriptor 2, which messages go to.
    Stderr(Place),
    /// A descriptor with two parts.
    NamedTwice(RawFd, Place, Place),
    /// An external file with two descriptors.
    NameTwice(FileName),
    /// Two outputs that are one file.
    SameFile(Place, Place),
    /// Options that do not go together, or that lack one another.
    Options(&'static str),
}

impl Descriptors {
    /// Takes over a descriptor for this part. A pipe that image data goes through becomes as
    /// large as it may be.
    pub fn take(&mut self, place: &Place, direction: Direction) -> Result<Endpoint, UsageError> {
        let number = match place {
            Place::Stdin => 0,
            Place::Stdout => 1,
            Place::Shard { fd, .. } | Place::External { fd, .. } | Place::Progress { fd } => *fd,
            Place::ShardFile { .. } | Place::ShardFilter { .. } | Place::Command { .. } => {
                return Err(UsageError::Refused(place.clone(), Refusal::NotOpen));
            }
        };
        if number == STDERR {
            return Err(UsageError::Stderr(place.clone()));
        }
        self.claim(number, place)?;
        let endpoint = Endpoint::inherit(number, direction)
            .map_err(|refusal| UsageError::Refused(place.clone(), refusal))?;
        if direction == Direction::Output {
            self.claim_output(&endpoint, place)?;
        }
        if !matches!(place, Place::Progress { .. }) {
            endpoint.grow();
        }
        Ok(endpoint)
    }

    /// Notes what is written to: two that write to one would spoil it.
    fn claim_output(&mut self, endpoint: &Endpoint, place: &Place) -> Result<(), UsageError> {
        let Some(file) = FileId::of(endpoint) else { return Ok(()) };
        if let Some((_, first)) = self.outputs.iter().find(|(output, _)| *output == file) {
            return Err(UsageError::SameFile(first.clone(), place.clone()));
        }
        self.outputs.push((file, place.clone()));
        Ok(())
    }

    /// Takes over the descriptors of the shards, in their order on the command line.
    pub fn take_shards(
        &mut self,
        fds: impl IntoIterator<Item = RawFd>,
        direction: Direction,
    ) -> Result<Vec<ShardEnd>, UsageError> {
        fds.into_iter()
            .enumerate()
            .map(|(index, fd)| {
                let place = Place::Shard { index, fd };
                let endpoint = self.take(&place, direction)?;
                Ok(ShardEnd { place, endpoint, file: None })
            })
            .collect()
    }

    /// Takes over the descriptors of external files.
    pub fn take_external(
        &mut self,
        files: Vec<crate::ExternalFile>,
        direction: Direction,
    ) -> Result<Vec<(FileName, Place, Endpoint)>, UsageError> {
        files
            .into_iter()
            .map(|file| {
                if self.names.contains(&file.name) {
                    return Err(UsageError::NameTwice(file.name));
                }
                self.names.push(file.name.clone());
                let place = file.place();
                let endpoint = self.take(&place, direction)?;
                Ok((file.name, place, endpoint))
            })
            .collect()
    }

    /// Notes that the number has this part. Descriptor 2 may carry both messages and progress.
    pub(crate) fn claim(&mut self, number: RawFd, place: &Place) -> Result<(), UsageError> {
        if let Some((_, first)) = self.taken.iter().find(|(taken, _)| *taken == number) {
            return Err(UsageError::NamedTwice(number, first.clone(), place.clone()));
        }
        self.taken.push((number, place.clone()));
        Ok(())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Refused(place, refusal) => write!(f, "{place}: {refusal}"),
            UsageError::Stderr(place) => write!(f, "{place}: carries messages"),
            UsageError::NamedTwice(number, first, second) => {
                write!(f, "{second}: descriptor {number} is already used: {first}")
            }
            UsageError::NameTwice(name) => write!(f, "external file {name}: named twice"),
            UsageError::SameFile(first, second) => {
                write!(f, "{second}: the same file as {first}")
            }
            UsageError::Options(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for UsageError {}
