//! One input.

use crate::claims::Claim;
use crate::error::Error;
use cli::{Counters, Place};
use pipe_io::{Endpoint, Kind, pipe, poll};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use wire_format::{Marker, ReadError, StreamReader};

/// A shard that is being read.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) place: Place,
    index: usize,
    counters: Arc<Counters>,
    reader: StreamReader<Ready>,
    /// Its next marker, once it is there.
    head: Option<Marker>,
    /// The number of the last marker that was taken.
    last: Option<u64>,
    /// What its first marker has said.
    claim: Option<Claim>,
    /// Where the next marker begins, in bytes from the start of the shard.
    head_position: u64,
    /// Bytes of payload that come before the next marker, where they are taken as they come.
    payload_left: u32,
    ended: bool,
}

/// Reads what is there, and fails with [`ErrorKind::WouldBlock`] rather than wait.
#[derive(Debug)]
struct Ready(Endpoint);

impl Ready {
    fn is_ready(&self) -> io::Result<bool> {
        let can_wait = matches!(self.0.kind(), Kind::Pipe | Kind::Socket);
        Ok(!can_wait || poll::is_readable(&self.0)?)
    }
}

impl Read for Ready {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_ready()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.0.read(buffer)
    }
}

impl Shard {
    /// The shard of this index, counted from 0.
    pub(crate) fn new(
        index: usize,
        place: Place,
        endpoint: Endpoint,
        counters: Arc<Counters>,
    ) -> Shard {
        Shard {
            place,
            index,
            counters,
            reader: StreamReader::new(Ready(endpoint)),
            head: None,
            last: None,
            claim: None,
            head_position: 0,
            payload_left: 0,
            ended: false,
        }
    }

    /// Reads the next marker, if it is there and was not read yet. Returns the marker when it
    /// was read now.
    pub(crate) fn look(&mut self) -> Result<Option<&Marker>, Error> {
        if !self.is_awaited() || self.payload_left > 0 {
            return Ok(None);
        }
        match self.reader.next_marker() {
            Ok(Some(marker)) => {
                let position = self.reader.position();
                self.counters.add(self.index, position - self.head_position);
                self.claim.get_or_insert_with(|| Claim::of(&marker));
                self.reader.look_ahead(&marker);
                Ok(Some(self.head.insert(marker)))
            }
            Ok(None) => {
                self.ended = true;
                self.counters.end(self.index);
                Ok(None)
            }
            Err(ReadError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Error::Read(self.place.clone(), error)),
        }
    }

    /// Whether its next marker has not come, nor its end.
    pub(crate) fn is_awaited(&self) -> bool {
        self.head.is_none() && !self.ended
    }

    /// Whether its first marker has come, or its end.
    pub(crate) fn has_begun(&self) -> bool {
        self.claim.is_some() || self.ended
    }

    /// What it says of itself; nothing if it is empty.
    pub(crate) fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// Notes that it kept us waiting.
    pub(crate) fn blocked(&self, time: Duration) {
        self.counters.blocked(self.index, time);
    }

    /// Its next marker, once it is there.
    pub(crate) fn head(&self) -> Option<&Marker> {
        self.head.as_ref()
    }

    /// The number of its next marker, once it is there.
    pub(crate) fn head_seq(&self) -> Option<u64> {
        self.head.as_ref().map(|marker| marker.seq)
    }

    /// Where its next marker begins, in bytes from the start of the shard.
    pub(crate) fn head_position(&self) -> u64 {
        self.head_position
    }

    /// Takes the next marker. Its payload is to be taken before the shard is looked at again.
    pub(crate) fn take(&mut self) -> Option<Marker> {
        self.head_position = self.reader.position();
        self.last = self.head_seq().or(self.last);
        self.head.take()
    }

    /// The least number that its next marker may have: they rise inside each shard.
    pub(crate) fn least_seq(&self) -> u64 {
        self.last.map_or(0, |last| last.saturating_add(1))
    }

    /// Payload that was read together with a marker, up to so many bytes. It comes before what is
    /// in [`Shard::endpoint`].
    pub(crate) fn held(&self, most: u32) -> &[u8] {
        let held = self.reader.held();
        held.get(..most as usize).unwrap_or(held)
    }

    /// Notes that payload was taken: first what is held, and then out of [`Shard::endpoint`].
    pub(crate) fn took(&mut self, bytes: u64) {
        self.reader.drop_held(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.reader.advance(bytes);
        self.head_position = self.reader.position();
        self.counters.add(self.index, bytes);
        self.payload_left = self.payload_left.saturating_sub(bytes as u32);
    }

    /// Notes that so many bytes of payload follow, which are taken as they come.
    pub(crate) fn expect_payload(&mut self, bytes: u32) {
        self.payload_left = bytes;
    }

    /// How many bytes of payload are to come before the next marker.
    pub(crate) fn payload_left(&self) -> u32 {
        self.payload_left
    }

    /// How many of them can be taken without waiting.
    pub(crate) fn payload_there(&self) -> Result<u32, Error> {
        let endpoint = self.endpoint();
        if !matches!(endpoint.kind(), Kind::Pipe | Kind::Socket) {
            return Ok(self.payload_left);
        }
        let held = self.held(self.payload_left).len() as u32;
        if held > 0 {
            return Ok(held);
        }
        let failed = |error| Error::open(self.place.clone(), error);
        let mut queued = pipe::queued(endpoint).map_err(failed)?;
        if queued == 0 && poll::is_readable(endpoint).map_err(failed)? {
            // It has ended, unless something has come in the meantime.
            queued = pipe::queued(endpoint).map_err(failed)?;
            if queued == 0 {
                let error = ReadError::Truncated(self.reader.position());
                return Err(Error::Read(self.place.clone(), error));
            }
        }
        Ok(self.payload_left.min(u32::try_from(queued).unwrap_or(u32::MAX)))
    }

    /// Where the payload comes from.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.reader.get_ref().0
    }

    /// How many bytes of it were read.
    pub(crate) fn position(&self) -> u64 {
        self.reader.position()
    }
}

impl AsFd for Shard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint().as_fd()
    }
}
