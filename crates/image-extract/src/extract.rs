//! Unpacking: files into the directory, external ones to their descriptors.

use crate::directory::Directory;
use crate::error::Error;
use crate::walk::{Visitor, walk};
use crate::{Args, NAME};
use cli::{Closing, Counters, Descriptors, Failure, Place, Program, Progress, StreamInput};
use pipe_io::Endpoint;
use pipe_io::inherit::{Direction, raise_descriptor_limit};
use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use wire_format::FileName;

/// Does what the command line asks for.
pub(crate) fn run(directory: PathBuf, args: Args) -> Result<(), Failure<Error>> {
    let mut descriptors = Descriptors::default();
    let stdin = descriptors.take(&Place::Stdin, Direction::Input)?;
    let progress = Progress::open(args.common.progress_fd.0, &mut descriptors)?;
    let external = descriptors.take_external(args.external, Direction::Output)?;

    let program = Program::new(NAME, args.common.verbose);
    let counters = Arc::new(Counters::new(1));
    let extract = || {
        program.attend_signals(&counters).map_err(Error::System)?;
        program.confine();
        // As many files are open at once as the dump had.
        raise_descriptor_limit();
        let mut extraction = Extraction {
            directory: Directory::open(directory, args.mode, args.sync, descriptors)?,
            external: External::new(external),
            wanted: Wanted::new(args.names),
            open: HashMap::new(),
            nowhere: nowhere().map_err(Error::System)?,
        };
        let input = StreamInput::new(Place::Stdin, stdin);
        let input = if args.increment { input.or_increment() } else { input };
        walk(input, &counters, &mut extraction)?;
        extraction.finish()?;
        progress.finished(&counters);
        Ok(())
    };
    extract().map_err(Failure::Failed)
}

/// Takes what nobody wants.
pub(crate) fn nowhere() -> io::Result<Endpoint> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    Endpoint::new(null.into()).map_err(io::Error::other)
}

/// An extraction that goes on.
struct Extraction {
    directory: Directory,
    external: External,
    wanted: Wanted,
    /// The files in the directory that are not complete; `None` before their first data, as many
    /// may be named before any of them has data.
    open: HashMap<FileName, Option<Endpoint>>,
    nowhere: Endpoint,
}

/// Which files go into the directory.
struct Wanted {
    /// All, unless there are some here.
    names: HashSet<FileName>,
    /// Those of them that have not come yet.
    missing: HashSet<FileName>,
}

/// The files that go to descriptors.
struct External {
    places: HashMap<FileName, Place>,
    /// Those that are not complete.
    open: HashMap<FileName, Endpoint>,
    /// Those that are.
    closing: Closing,
}

impl Extraction {
    fn finish(self) -> Result<(), Error> {
        if let Some(name) =
            self.wanted.missing.into_iter().chain(self.external.open.into_keys()).min()
        {
            return Err(Error::NoSuchFile(name));
        }
        self.external.closing.finish()?;
        self.directory.publish()
    }
}

impl Wanted {
    fn new(names: Vec<FileName>) -> Wanted {
        let names: HashSet<_> = names.into_iter().collect();
        Wanted { missing: names.clone(), names }
    }

    fn contains(&self, name: &FileName) -> bool {
        self.names.is_empty() || self.names.contains(name)
    }
}

impl External {
    fn new(files: Vec<(FileName, Place, Endpoint)>) -> External {
        let (mut places, mut open) = (HashMap::new(), HashMap::new());
        for (name, place, endpoint) in files {
            places.insert(name.clone(), place);
            open.insert(name, endpoint);
        }
        External { places, open, closing: Closing::default() }
    }
}

impl Visitor for Extraction {
    fn file(&mut self, name: &FileName) -> Result<(), Error> {
        if let Some(place) = self.external.places.get(name) {
            self.wanted.missing.remove(name);
            return match self.external.open.contains_key(name) {
                true => Ok(()),
                false => Err(Error::ExternalAgain(place.clone())),
            };
        }
        if self.wanted.contains(name) && !self.open.contains_key(name) {
            self.wanted.missing.remove(name);
            self.open.insert(name.clone(), None);
        }
        Ok(())
    }

    fn sink(&mut self, name: &FileName) -> Result<&Endpoint, Error> {
        if let Some(external) = self.external.open.get(name) {
            return Ok(external);
        }
        match self.open.get_mut(name) {
            Some(Some(file)) => Ok(file),
            Some(file) => Ok(file.insert(create(&mut self.directory, name)?)),
            None => Ok(&self.nowhere),
        }
    }

    fn took(&mut self, _: &FileName, _: u64) {}

    fn failed(&self, name: &FileName, error: io::Error) -> Error {
        match self.external.places.get(name) {
            Some(place) => Error::External(place.clone(), error),
            None => self.directory.failed(name, error),
        }
    }

    fn end(&mut self, name: &FileName) -> Result<(), Error> {
        if let (Some(file), Some(place)) =
            (self.external.open.remove(name), self.external.places.get(name))
        {
            self.directory.sync(&file).map_err(|error| self.failed(name, error))?;
            return Ok(self.external.closing.add(place.clone(), file)?);
        }
        let file = match self.open.remove(name) {
            Some(None) => Some(create(&mut self.directory, name)?),
            file => file.flatten(),
        };
        match file.map(|file| self.directory.close(file)) {
            Some(Err(error)) => Err(self.failed(name, error)),
            _ => Ok(()),
        }
    }
}

fn create(directory: &mut Directory, name: &FileName) -> Result<Endpoint, Error> {
    let file = directory.create(name)?;
    Endpoint::new(file).map_err(|error| directory.failed(name, io::Error::other(error)))
}
