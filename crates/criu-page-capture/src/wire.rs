//! The connection to CRIU, once it is known to be that.

use crate::around::Around;
use crate::error::Error;
use criu_protocol::page_server::{Command, Layout};
use nix::sys::socket::{MsgFlags, send};
use pipe_io::{Endpoint, poll, socket};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// Reads commands and pages from CRIU, and answers.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Endpoint,
    layout: Layout,
    page_size: u64,
    /// What was received, and not taken yet from `from` to `to`.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// Whether more is received than is wanted.
    ahead: bool,
}

/// Where memory is fragmented, CRIU sends commands and single pages by two or three calls each. So
/// up to so many bytes of what comes are received at once, and what of a long run is among them is
/// copied. Chosen, not measured.
const AHEAD: usize = 64 << 10;

/// So long they are let gather when CRIU has begun to send again: else this program wakes up for
/// each of them, and on a single processor takes turns with CRIU. CRIU sends a dozen runs in this
/// time. Chosen, not measured.
const GATHER: Duration = Duration::from_micros(100);

impl Wire {
    /// The connection from which `received` has come so far: no more than a first command.
    pub(crate) fn new(socket: Endpoint, layout: Layout, page_size: u64, received: Vec<u8>) -> Wire {
        let to = received.len();
        let mut buffer = received;
        buffer.resize(AHEAD.max(to), 0);
        Wire { socket, layout, page_size, buffer, from: 0, to, ahead: false }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// The next command. The pages that it announces come next.
    pub(crate) fn command(
        &mut self,
        around: &mut Around,
        output: &Endpoint,
    ) -> Result<Command, Error> {
        let length = self.layout.header_length();
        self.receive(length, around, output)?;
        let command =
            self.layout.decode(self.received(), self.page_size).map_err(Error::Command)?;
        self.take(length);
        Ok(command)
    }

    /// Appends the pages that were announced to `bytes`, where they are few: with them comes the
    /// next command.
    pub(crate) fn few_pages(
        &mut self,
        length: usize,
        bytes: &mut Vec<u8>,
        around: &mut Around,
        output: &Endpoint,
    ) -> Result<(), Error> {
        self.ahead = true;
        self.receive(length + self.layout.header_length(), around, output)?;
        bytes.extend(self.take(length));
        Ok(())
    }

    /// Notes that commands come without pages.
    pub(crate) fn no_pages(&mut self) {
        self.ahead = true;
    }

    /// Where many pages that were announced, of so many bytes, are taken from. What was received of
    /// them is appended to `bytes`.
    pub(crate) fn many_pages(&mut self, length: u64, bytes: &mut Vec<u8>) -> &Endpoint {
        self.ahead = false;
        bytes.extend(self.take(usize::try_from(length).unwrap_or(usize::MAX)));
        &self.socket
    }

    /// Notes that CRIU waits for an answer.
    pub(crate) fn question(&mut self) {
        self.ahead = false;
    }

    fn received(&self) -> &[u8] {
        self.buffer.get(self.from..self.to).unwrap_or_default()
    }

    /// Takes so many bytes of what was received, or all.
    fn take(&mut self, length: usize) -> &[u8] {
        let begin = self.from;
        self.from += length.min(self.to - self.from);
        self.buffer.get(begin..self.from).unwrap_or_default()
    }

    /// Answers a question.
    pub(crate) fn answer(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut left = bytes;
        while !left.is_empty() {
            match send(self.socket.as_fd().as_raw_fd(), left, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => {
                    poll::wait_writable(&self.socket).map_err(Error::Connection)?;
                }
                Err(error) => return Err(hung_up(error.into())),
            }
        }
        Ok(())
    }

    /// Whether CRIU, which has nothing more to say, has hung up.
    pub(crate) fn has_hung_up(&self) -> Result<bool, Error> {
        poll::is_readable(&self.socket).map_err(Error::System)
    }

    /// Receives until so many bytes are there: no more than the buffer has.
    fn receive(
        &mut self,
        wanted: usize,
        around: &mut Around,
        output: &Endpoint,
    ) -> Result<(), Error> {
        if self.from + wanted > self.buffer.len() {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        while self.to - self.from < wanted {
            let end = if self.ahead { self.buffer.len() } else { self.from + wanted };
            let free = self.buffer.get_mut(self.to..end).unwrap_or_default();
            match socket::receive_now(&self.socket, free) {
                Ok(received) if received.length == 0 => return Err(Error::HungUp),
                Ok(received) => self.to += received.length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(around, output)?;
                }
                Err(error) => return Err(hung_up(error)),
            }
        }
        Ok(())
    }

    /// Waits until there is something to receive.
    fn wait(&self, around: &mut Around, output: &Endpoint) -> Result<(), Error> {
        around.wait(&[self.socket.as_fd()], output, None)?;
        if around.has_ended() && !poll::is_readable(&self.socket).map_err(Error::System)? {
            return Err(Error::HungUp);
        }
        if self.ahead {
            std::thread::sleep(GATHER);
        }
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Receives once, without waiting, until `bytes` has `wanted` at most. 0 at the end.
pub(crate) fn receive_some(
    socket: &Endpoint,
    bytes: &mut Vec<u8>,
    wanted: usize,
) -> io::Result<usize> {
    let before = bytes.len();
    bytes.resize(wanted.max(before), 0);
    let received = socket::receive_now(socket, bytes.get_mut(before..).unwrap_or_default());
    let length = received.as_ref().map_or(0, |received| received.length);
    bytes.truncate(before + length);
    received.map(|received| received.length)
}

/// A peer that was killed is no failure of the connection.
pub(crate) fn hung_up(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Error::HungUp,
        _ => Error::Connection(error),
    }
}
