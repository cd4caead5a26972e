//! Progress lines, for a supervising program.

use crate::descriptors::STDERR;
use crate::{Counters, Descriptors, Place, UsageError, program};
use pipe_io::Endpoint;
use pipe_io::inherit::Direction;
use serde::Serialize;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;
use wire_format::FileName;

/// Where progress lines go. A reader that went away is no error.
#[derive(Debug)]
pub struct Progress(Sink);

#[derive(Serialize)]
struct Filled {
    filled: u64,
    left: u64,
    fill_duration_millis: u64,
}

#[derive(Debug)]
enum Sink {
    Stderr,
    Endpoint(Endpoint),
}

impl Progress {
    /// Takes over the progress descriptor. Descriptor 2 stays stderr as well.
    pub fn open(fd: RawFd, descriptors: &mut Descriptors) -> Result<Progress, UsageError> {
        let place = Place::Progress { fd };
        if fd == STDERR {
            descriptors.claim_number(fd, &place)?;
            return Ok(Progress(Sink::Stderr));
        }
        match descriptors.take(&place, Direction::Output) {
            Ok(endpoint) => Ok(Progress(Sink::Endpoint(endpoint))),
            Err(error) => Err(error),
        }
    }

    /// CRIU may be started.
    pub fn socket_init(&self) {
        self.line("socket-init");
    }

    /// The process is frozen.
    pub fn checkpoint_start(&self) {
        self.line("checkpoint-start");
    }

    /// The processes are let run, and their memory is on its way.
    pub fn restored(&self) {
        self.line("restored");
    }

    /// So many bytes of memory have come, and are still to come, after so much time.
    pub fn filled(&self, filled: u64, left: u64, time: Duration) {
        // Numbers in a struct: this has no way to fail.
        let report = Filled { filled, left, fill_duration_millis: time.as_millis() as u64 };
        self.line(&serde_json::to_string(&report).unwrap_or_default());
    }

    /// A file of the image was not read by whom it is for.
    pub fn unread(&self, name: &FileName) {
        self.line(&format!("unread {name}"));
    }

    /// All is done: how much went where, as one line of JSON.
    pub fn finished(&self, counters: &Counters) {
        self.line(&counters.json());
    }

    /// Another descriptor for the same, for another program.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        match &self.0 {
            Sink::Stderr => io::stderr().as_fd().try_clone_to_owned(),
            Sink::Endpoint(endpoint) => endpoint.as_fd().try_clone_to_owned(),
        }
    }

    /// A line of another program's progress.
    pub fn pass_on(&mut self, line: &str) {
        self.line(line);
    }

    fn line(&self, text: &str) {
        // One write a line, so that lines of two programs never mix.
        let line = format!("{text}\n");
        match &self.0 {
            Sink::Stderr => program::say(&line),
            Sink::Endpoint(endpoint) => {
                let mut endpoint = endpoint;
                _ = endpoint.write_all(line.as_bytes());
            }
        }
    }
}
