//! Starting the filters, or the program that they are compared with, as a user would.

use crate::Error;
use crate::pipes;
use crate::process::{Group, Program};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Who does the work.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Streamer<'a> {
    /// The filters of this workspace.
    Filters,
    /// The same, and one of the shards holds the metadata.
    MetadataFirst,
    /// Those of another version, in this directory.
    Base(&'a Path),
    /// criu-image-streamer, or what has its command line.
    Peer(&'a Path),
}

/// What `image-serve` holds an image in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Store {
    /// What it chooses.
    Auto,
    /// Anonymous memory.
    Memory,
    /// The same, without huge pages.
    SmallPages,
}

/// A streamer that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) programs: Group,
    progress: BufReader<File>,
}

impl Streamer<'_> {
    /// Starts what takes a dump in `directory` and spreads it over `outputs`.
    pub(crate) fn capture(self, directory: &Path, outputs: Vec<OwnedFd>) -> Result<Started, Error> {
        let (progress, report) = pipes::pipe()?;
        let programs = match (self, <[OwnedFd; 1]>::try_from(outputs)) {
            (Streamer::Peer(path), outputs) => {
                let outputs = outputs.map_or_else(|many| many, Vec::from);
                vec![peer(path, directory, outputs, report).arg("capture")]
            }
            (_, Ok([output])) => {
                vec![self.socket_filter("criu-sock-capture", directory, report)?.stdout(output)]
            }
            (_, Err(outputs)) => {
                let (read, write) = pipes::pipe()?;
                let report_too = report.try_clone()?;
                let split = self.shard_filter("shard-split", outputs, report_too)?.stdin(read);
                let split = match self {
                    Streamer::MetadataFirst => split.arg("--metadata-first"),
                    _ => split,
                };
                let capture = self.socket_filter("criu-sock-capture", directory, report)?;
                vec![capture.stdout(write), split]
            }
        };
        Started::start(programs, progress)
    }

    /// Starts what serves a restore in `directory` from the image, with memory on demand.
    pub(crate) fn serve_lazily(self, directory: &Path, image: OwnedFd) -> Result<Started, Error> {
        let (progress, report) = pipes::pipe()?;
        let serve =
            self.socket_filter("image-serve", directory, report)?.arg("--lazy").stdin(image);
        Started::start(vec![serve], progress)
    }

    /// Starts what puts `inputs` together and serves a restore in `directory`.
    pub(crate) fn serve(
        self,
        directory: &Path,
        inputs: Vec<OwnedFd>,
        store: Store,
    ) -> Result<Started, Error> {
        let (progress, report) = pipes::pipe()?;
        let programs = match (self, <[OwnedFd; 1]>::try_from(inputs)) {
            (Streamer::Peer(path), inputs) => {
                let inputs = inputs.map_or_else(|many| many, Vec::from);
                vec![peer(path, directory, inputs, report).arg("serve")]
            }
            (_, Ok([input])) => {
                vec![store.of(self.socket_filter("image-serve", directory, report)?).stdin(input)]
            }
            (_, Err(inputs)) => {
                let (read, write) = pipes::pipe()?;
                let report_too = report.try_clone()?;
                vec![
                    self.shard_filter("shard-merge", inputs, report_too)?.stdout(write),
                    store.of(self.socket_filter("image-serve", directory, report)?).stdin(read),
                ]
            }
        };
        Started::start(programs, progress)
    }

    fn socket_filter(
        self,
        name: &str,
        directory: &Path,
        progress: OwnedFd,
    ) -> Result<Program, Error> {
        Ok(self.filter(name)?.arg("-D").arg(directory).fds("-p", vec![progress]))
    }

    fn shard_filter(
        self,
        name: &str,
        shards: Vec<OwnedFd>,
        progress: OwnedFd,
    ) -> Result<Program, Error> {
        Ok(self.filter(name)?.fds("-s", shards).fds("-p", vec![progress]))
    }

    fn filter(self, name: &str) -> Result<Program, Error> {
        match self {
            Streamer::Base(directory) => Program::filter_of(directory, name),
            _ => Program::filter(name),
        }
    }
}

impl Store {
    fn of(self, program: Program) -> Program {
        match self {
            Store::Auto => program,
            Store::Memory => program.arg("--store=memory"),
            Store::SmallPages => program.arg("--store=memory").without_huge_pages(),
        }
    }
}

impl Started {
    fn start(programs: Vec<Program>, progress: OwnedFd) -> Result<Started, Error> {
        let programs = Group::start(programs)?;
        Ok(Started { programs, progress: BufReader::new(File::from(progress)) })
    }

    /// Waits until CRIU may connect.
    pub(crate) fn wait_for_socket(&mut self) -> Result<(), Error> {
        let mut line = String::new();
        while self.progress.read_line(&mut line)? > 0 {
            if line.trim() == "socket-init" {
                return Ok(());
            }
            line.clear();
        }
        Err("ended before its socket was there".into())
    }
}

fn peer(path: &Path, directory: &Path, shards: Vec<OwnedFd>, progress: OwnedFd) -> Program {
    Program::new(path)
        .arg("--images-dir")
        .arg(directory)
        .fds("--shard-fds", shards)
        .fds("--progress-fd", vec![progress])
}
