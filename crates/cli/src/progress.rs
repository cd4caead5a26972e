//! The lines that tell a supervising program how far things are.

use crate::descriptors::STDERR;
use crate::{Counters, Descriptors, Place, UsageError, program};
use pipe_io::Endpoint;
use pipe_io::inherit::Direction;
use std::io::Write;
use std::os::fd::RawFd;
use wire_format::FileName;

/// Where progress lines go. A reader that went away is no error.
#[derive(Debug)]
pub struct Progress(Sink);

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
            descriptors.claim(fd, &place)?;
            return Ok(Progress(Sink::Stderr));
        }
        match descriptors.take(&place, Direction::Output) {
            Ok(endpoint) => Ok(Progress(Sink::Endpoint(endpoint))),
            Err(error) => Err(error),
        }
    }

    /// CRIU may be started.
    pub fn socket_init(&mut self) {
        self.line("socket-init");
    }

    /// The process is frozen.
    pub fn checkpoint_start(&mut self) {
        self.line("checkpoint-start");
    }

    /// A file of the image was not read by whom it is for.
    pub fn unread(&mut self, name: &FileName) {
        self.line(&format!("unread {name}"));
    }

    /// All is done: how much went where, as one line of JSON.
    pub fn finished(&mut self, counters: &Counters) {
        self.line(&counters.json());
    }

    fn line(&mut self, text: &str) {
        // One write a line, so that lines of two programs never mix.
        let line = format!("{text}\n");
        match &mut self.0 {
            Sink::Stderr => program::say(&line),
            Sink::Endpoint(endpoint) => _ = endpoint.write_all(line.as_bytes()),
        }
    }
}
