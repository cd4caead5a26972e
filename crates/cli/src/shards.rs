//! The shards that a command line names: descriptors, files, or commands.

use crate::operands::{self, OutputFile};
use crate::{Counters, Descriptors, Failure, Fd, Place, Program, UsageError};
use pipe_io::Endpoint;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

/// The shards that a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardPlan {
    /// Each is named: first the descriptors, then the paths.
    Named {
        /// By number.
        fds: Vec<RawFd>,
        /// By operand.
        paths: Vec<PathBuf>,
    },
    /// Each is at the other end of a command.
    Filter {
        /// How many.
        count: usize,
        /// What the shell runs.
        command: String,
    },
}

/// A shard that is open.
#[derive(Debug)]
pub struct ShardEnd {
    /// Its name in messages.
    pub place: Place,
    /// What it is read from or written to.
    pub endpoint: Endpoint,
    /// The file that it will be, when the image is complete.
    pub file: Option<OutputFile>,
}

/// Why an operand cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// It is none that could carry a shard.
    Usage(UsageError),
    /// The system refuses it.
    System(Place, io::Error),
}

impl ShardPlan {
    /// From the options as they were given; `default` is the descriptor that is meant where
    /// there are none. Without a number there are as many commands as CPUs.
    pub fn new(
        fds: &[Fd],
        paths: Vec<PathBuf>,
        shards: Option<NonZeroU16>,
        filter: Option<String>,
        default: RawFd,
    ) -> ShardPlan {
        let cpus = || thread::available_parallelism().map_or(1, usize::from);
        match filter {
            Some(command) => {
                let count = shards.map_or_else(cpus, |count| usize::from(count.get()));
                ShardPlan::Filter { count, command }
            }
            None if fds.is_empty() && paths.is_empty() => {
                ShardPlan::Named { fds: vec![default], paths }
            }
            None => ShardPlan::Named { fds: fds.iter().map(|fd| fd.0).collect(), paths },
        }
    }

    /// How many shards there are.
    pub fn count(&self) -> usize {
        match self {
            ShardPlan::Named { fds, paths } => fds.len() + paths.len(),
            ShardPlan::Filter { count, .. } => *count,
        }
    }

    /// The descriptors.
    pub fn fds(&self) -> &[RawFd] {
        match self {
            ShardPlan::Named { fds, .. } => fds,
            ShardPlan::Filter { .. } => &[],
        }
    }

    /// Starts answering signals, with counters for these shards, and confines the program unless it
    /// is to start commands. Call before anything is made that a signal should remove.
    pub fn begin(&self, name: &'static str, verbose: bool) -> io::Result<(Program, Arc<Counters>)> {
        let (program, counters) =
            (Program::new(name, verbose), Arc::new(Counters::with_blocked(self.count())));
        program.attend_signals(&counters)?;
        if !matches!(self, ShardPlan::Filter { .. }) {
            program.confine();
        }
        Ok((program, counters))
    }

    /// Opens the operands for writing. Files get a temporary name; a FIFO waits for its reader.
    /// None may be what `descriptors` has already.
    pub fn open_outputs(&self, descriptors: &mut Descriptors) -> Result<Vec<ShardEnd>, OpenError> {
        operands::open_outputs(self.operands(), descriptors)
    }

    /// Opens the operands for reading, without waiting. None may be what `descriptors` has already.
    pub fn open_inputs(&self, descriptors: &mut Descriptors) -> Result<Vec<ShardEnd>, OpenError> {
        operands::open_inputs(self.operands(), descriptors)
    }

    fn operands(&self) -> Vec<(Place, PathBuf)> {
        let ShardPlan::Named { fds, paths } = self else { return Vec::new() };
        let place = |(index, path): (usize, &PathBuf)| {
            (Place::ShardFile { index, path: path.clone() }, path.clone())
        };
        (fds.len()..).zip(paths).map(place).collect()
    }
}

impl OpenError {
    /// As the failure of a program; `system` makes its own error of what the system has said.
    pub fn into_failure<E>(self, system: impl FnOnce(Place, io::Error) -> E) -> Failure<E> {
        match self {
            OpenError::Usage(error) => Failure::Usage(error),
            OpenError::System(place, error) => Failure::Failed(system(place, error)),
        }
    }
}
