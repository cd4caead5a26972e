//! Reading an image stream, and refusing one that is not whole.

use crate::{Place, reason};
use pipe_io::{Endpoint, Intake, Kind, MoveError, Mover, poll, splice};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use wire_format::{Body, Grammar, GrammarError, ImageId, Marker, ReadError, StreamReader};

/// An image stream on its way in. It ends with the end of the image, or with an error.
#[derive(Debug)]
pub struct StreamInput {
    place: Place,
    /// Whether markers may be read together with what follows them.
    reads_ahead: bool,
    reader: StreamReader<Intake>,
    grammar: Grammar,
    mover: Mover,
    /// Whether other images may follow.
    several: bool,
    /// Whether the image may be an increment, which is not whole.
    increments: bool,
}

/// Why the stream is not an image, or cannot be had.
#[derive(Debug)]
pub enum InputError {
    /// Reading it failed.
    Read(Place, ReadError),
    /// At this byte stands a marker that may not stand there.
    Grammar(Place, u64, GrammarError),
    /// It is an increment of this image, without which it cannot be restored.
    Increment(Place, ImageId),
    /// It ends after so many bytes, before the end of the image.
    Truncated(Place, u64),
}

impl StreamInput {
    /// The stream that comes from `endpoint`.
    pub fn new(place: Place, endpoint: Endpoint) -> StreamInput {
        StreamInput::of(place, Intake::direct(endpoint), false)
    }

    /// The stream that comes from `endpoint`, where a program may write that copies. Bytes may be
    /// read ahead.
    pub fn staged(place: Place, endpoint: Endpoint) -> StreamInput {
        StreamInput::of(place, Intake::staged(endpoint), true)
    }

    fn of(place: Place, intake: Intake, reads_ahead: bool) -> StreamInput {
        StreamInput {
            place,
            reads_ahead,
            reader: StreamReader::new(intake),
            grammar: Grammar::default(),
            mover: Mover::default(),
            several: false,
            increments: false,
        }
    }

    /// Takes an increment, too, of which the user has said that it is known to be one, or which is
    /// passed on as it is.
    pub fn or_increment(self) -> StreamInput {
        StreamInput { increments: true, ..self }
    }

    /// Begins with the next of several images, which stand one after the other, and returns its
    /// first marker; `None` where the last one has ended.
    pub fn next_image(&mut self) -> Result<Option<Marker>, InputError> {
        self.several = true;
        self.grammar = Grammar::default();
        self.reader.restart();
        let position = self.reader.position();
        let Some(marker) = self.read()? else { return Ok(None) };
        self.accept(position, &marker)?;
        Ok(Some(marker))
    }

    /// The next marker. At the end of the image it makes sure that nothing follows.
    ///
    /// After a [`Body::FileData`] the payload is to be moved before the next call.
    pub fn next_marker(&mut self) -> Result<Marker, InputError> {
        let position = self.reader.position();
        let marker = self.read()?.ok_or_else(|| self.truncated())?;
        self.accept(position, &marker)?;
        if let Some(parent) = marker.parent_id.filter(|_| !self.increments) {
            return Err(InputError::Increment(self.place.clone(), parent));
        }
        if self.reads_ahead {
            self.reader.look_ahead(&marker);
        }
        if marker.body == Body::ImageEof && !self.several {
            self.expect_end()?;
        }
        Ok(marker)
    }

    /// The payload that was read ahead, up to so many bytes.
    fn held(&self, length: u64) -> &[u8] {
        let held = self.reader.held();
        held.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or(held)
    }

    /// Notes that so many bytes of it were taken.
    fn took_held(&mut self, bytes: usize) -> u64 {
        self.reader.drop_held(bytes);
        self.reader.advance(bytes as u64);
        bytes as u64
    }

    /// Moves up to `length` bytes of payload to `to`, and returns how many.
    pub fn move_payload(&mut self, to: &Endpoint, length: u64) -> Result<u64, PayloadError> {
        let held = self.held(length);
        if !held.is_empty() {
            let mut to = to;
            let written = to.write(held).map_err(PayloadError::Output)?;
            return Ok(self.took_held(written));
        }
        let length = self.await_payload(length)?;
        match self.mover.some(self.reader.get_ref().outlet(), to, length) {
            Ok(0) => Err(PayloadError::Input(self.truncated())),
            Ok(moved) => Ok(self.took(moved)),
            Err(MoveError::Output(error)) => Err(PayloadError::Output(error)),
            Err(MoveError::Input(error)) => Err(PayloadError::Input(self.failed(error))),
        }
    }

    /// Moves payload to `to` without waiting; `None` if nothing can be moved at this moment. One
    /// of the two must be a pipe.
    pub fn move_payload_now(
        &mut self,
        to: &Endpoint,
        length: u64,
    ) -> Result<Option<u64>, PayloadError> {
        /// What can be written at all takes so many bytes at once.
        const ATOMIC: u64 = 4096;

        let held = self.held(length.min(ATOMIC));
        if !held.is_empty() {
            let mut to = to;
            return match poll::is_writable(to)
                .and_then(|can| can.then(|| to.write(held)).transpose())
            {
                Ok(written) => Ok(written.map(|written| self.took_held(written))),
                Err(error) => Err(PayloadError::Output(error)),
            };
        }
        let length = self.await_payload(length)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match splice::splice_now(self.reader.get_ref().outlet(), to, length) {
            Ok(0) => Err(PayloadError::Input(self.truncated())),
            Ok(moved) => Ok(Some(self.took(moved))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error)
                if error.kind() == ErrorKind::BrokenPipe
                    || self.endpoint().kind() == Kind::Pipe =>
            {
                Err(PayloadError::Output(error))
            }
            Err(error) => Err(PayloadError::Input(self.failed(error))),
        }
    }

    /// Reads some payload into memory, and returns how many bytes.
    pub fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, InputError> {
        let mut held = self.held(buffer.len() as u64);
        if !held.is_empty() {
            let read = held.read(buffer).map_err(|error| self.failed(error))?;
            self.took_held(read);
            return Ok(read);
        }
        match self.reader.get_mut().read(buffer) {
            Ok(0) if !buffer.is_empty() => Err(self.truncated()),
            Ok(read) => {
                self.reader.advance(read as u64);
                Ok(read)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Passes over payload of a regular file, and returns where in the file it begins.
    pub fn skip_payload(&mut self, length: u64) -> Result<u64, InputError> {
        // The file's own position is behind what was read ahead.
        let held = self.reader.held().len() as u64;
        let skipped = self.endpoint().skip(length.saturating_sub(held));
        match skipped.map_err(|error| self.failed(error))? {
            Some(offset) => {
                self.reader.drop_held(usize::try_from(length).unwrap_or(usize::MAX));
                self.reader.advance(length);
                Ok(offset.saturating_sub(held))
            }
            None => Err(self.truncated()),
        }
    }

    /// Reads payload into memory, where it cannot be moved.
    pub fn read_payload(&mut self, buffer: &mut [u8]) -> Result<(), InputError> {
        let mut left = buffer;
        while !left.is_empty() {
            let read = self.read_some(left)?;
            left = left.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }

    /// How many bytes of the stream were read.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// What the stream comes from.
    pub fn endpoint(&self) -> &Endpoint {
        self.reader.get_ref().source()
    }

    /// How much of the next `length` bytes of payload can be taken at once, when some can.
    fn await_payload(&mut self, length: u64) -> Result<u64, PayloadError> {
        match self.reader.get_mut().await_some(length) {
            Ok(0) => Err(PayloadError::Input(self.truncated())),
            Ok(length) => Ok(length),
            Err(error) => Err(PayloadError::Input(self.failed(error))),
        }
    }

    fn took(&mut self, bytes: usize) -> u64 {
        self.reader.get_mut().took(bytes);
        self.reader.advance(bytes as u64);
        bytes as u64
    }

    fn expect_end(&mut self) -> Result<(), InputError> {
        let position = self.reader.position();
        match self.reader.next_marker() {
            Ok(None) => Ok(()),
            Err(ReadError::Io(error)) => Err(self.failed(error)),
            // Whether they are a marker or not: nothing may be there.
            Ok(Some(_))
            | Err(ReadError::Truncated(_) | ReadError::Marker(..) | ReadError::Foreign(_)) => {
                Err(InputError::Grammar(self.place.clone(), position, GrammarError::AfterEnd))
            }
        }
    }

    fn read(&mut self) -> Result<Option<Marker>, InputError> {
        self.reader.next_marker().map_err(|error| InputError::Read(self.place.clone(), error))
    }

    fn accept(&mut self, position: u64, marker: &Marker) -> Result<(), InputError> {
        self.grammar
            .accept(marker)
            .map_err(|error| InputError::Grammar(self.place.clone(), position, error))
    }

    fn failed(&self, error: io::Error) -> InputError {
        InputError::Read(self.place.clone(), ReadError::Io(error))
    }

    fn truncated(&self) -> InputError {
        InputError::Truncated(self.place.clone(), self.reader.position())
    }
}

/// Why payload could not be moved.
#[derive(Debug)]
pub enum PayloadError {
    /// The stream is at fault.
    Input(InputError),
    /// What it was moved to is at fault.
    Output(io::Error),
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputError::Read(place, ReadError::Io(error)) => {
                write!(f, "{place}: {}", reason(error))
            }
            InputError::Read(place, error) => write!(f, "{place}: {error}"),
            InputError::Grammar(place, position, error) => {
                write!(f, "{place}: byte {position}: {error}")
            }
            InputError::Increment(place, parent) => {
                write!(f, "{place}: an increment of image {parent}: see image-combine(1)")
            }
            InputError::Truncated(place, bytes) => {
                write!(f, "{place}: {}", ReadError::Truncated(*bytes))
            }
        }
    }
}

impl std::error::Error for InputError {}
