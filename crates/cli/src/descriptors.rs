//! Taking over the descriptors that a command line names.

use crate::{Place, ShardEnd};
use pipe_io::inherit::{self, Direction, Refusal};
use pipe_io::{Endpoint, FileId};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, RawFd};
use wire_format::FileName;

/// Where messages go.
pub(crate) const STDERR: RawFd = 2;

/// The descriptors and the files of a command line; sees to it that each has one part only.
#[derive(Debug)]
pub struct Descriptors {
    taken: Vec<(RawFd, Place)>,
    claims: Vec<Claim>,
    names: Vec<FileName>,
}

/// A file that has a part.
#[derive(Clone, Debug)]
struct Claim {
    what: What,
    part: Part,
    place: Place,
}

/// A file by what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// One that is there.
    File(FileId),
    /// One that is not, by its directory and its name there.
    New(FileId, OsString),
}

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// An image, or a part of one, is read from it.
    Input,
    /// An image, or a part of one, is written to it.
    Output,
    /// Lines are written to it.
    Lines,
}

impl Claim {
    /// Whether the two cannot both be.
    fn excludes(&self, other: &Claim) -> bool {
        let is_two_way = matches!(&self.what, What::File(file) if file.is_socket);
        let are_opposite = (self.part == Part::Input) != (other.part == Part::Input);
        let are_lines = self.part == Part::Lines && other.part == Part::Lines;
        self.what == other.what && !are_lines && !(is_two_way && are_opposite)
    }
}

impl Default for Descriptors {
    /// Of stderr it is known what it is for.
    fn default() -> Descriptors {
        let mut descriptors =
            Descriptors { taken: Vec::new(), claims: Vec::new(), names: Vec::new() };
        if !inherit::was_closed_at_start(STDERR) {
            // The first cannot be the same as another.
            let _ = descriptors.claim_file(FileId::of(io::stderr()), Part::Lines, &Place::Stderr);
        }
        descriptors
    }
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
    /// Two parts of the program that are one file.
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
            Place::Stderr => STDERR,
            Place::ShardFile { .. }
            | Place::ShardFilter { .. }
            | Place::Command { .. }
            | Place::File { .. } => {
                return Err(UsageError::Refused(place.clone(), Refusal::NotOpen));
            }
        };
        if number == STDERR {
            return Err(UsageError::Stderr(place.clone()));
        }
        self.claim_number(number, place)?;
        let endpoint = Endpoint::inherit(number, direction)
            .map_err(|refusal| UsageError::Refused(place.clone(), refusal))?;
        let part = match (direction, place) {
            (Direction::Input, _) => Part::Input,
            (Direction::Output, Place::Progress { .. }) => Part::Lines,
            (Direction::Output, _) => Part::Output,
        };
        self.claim_file(FileId::of(&endpoint), part, place)?;
        if part != Part::Lines {
            endpoint.grow();
        }
        Ok(endpoint)
    }

    /// Notes that lines are written to stdout.
    pub fn print(&mut self) -> Result<(), UsageError> {
        if inherit::was_closed_at_start(1) {
            return Err(UsageError::Refused(Place::Stdout, Refusal::NotOpen));
        }
        self.claim_file(FileId::of(io::stdout()), Part::Lines, &Place::Stdout)
    }

    /// Notes that a file which was opened by its name is read.
    pub(crate) fn claim_input(&mut self, fd: impl AsFd, place: &Place) -> Result<(), UsageError> {
        self.claim_file(FileId::of(fd), Part::Input, place)
    }

    /// Notes that a file will be written, or replaced by one that is.
    pub(crate) fn claim_output(&mut self, file: FileId, place: &Place) -> Result<(), UsageError> {
        self.claim_file(Some(file), Part::Output, place)
    }

    /// Notes that a file of this name will be made in this directory.
    pub(crate) fn claim_new(
        &mut self,
        directory: FileId,
        name: OsString,
        place: &Place,
    ) -> Result<(), UsageError> {
        self.claim(What::New(directory, name), Part::Output, place)
    }

    /// Which part a file has, if one of those that were claimed is read or written by it.
    pub fn part_of(&self, file: FileId) -> Option<&Place> {
        let is_it = |claim: &&Claim| claim.what == What::File(file);
        self.claims.iter().find(is_it).map(|claim| &claim.place)
    }

    fn claim_file(
        &mut self,
        file: Option<FileId>,
        part: Part,
        place: &Place,
    ) -> Result<(), UsageError> {
        file.map_or(Ok(()), |file| self.claim(What::File(file), part, place))
    }

    fn claim(&mut self, what: What, part: Part, place: &Place) -> Result<(), UsageError> {
        let claim = Claim { what, part, place: place.clone() };
        if let Some(first) = self.claims.iter().find(|first| first.excludes(&claim)) {
            return Err(UsageError::SameFile(first.place.clone(), claim.place));
        }
        self.claims.push(claim);
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
    pub(crate) fn claim_number(&mut self, number: RawFd, place: &Place) -> Result<(), UsageError> {
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
