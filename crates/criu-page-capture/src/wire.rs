//! The connection to CRIU, once it is known to be that.

use crate::around::Around;
use crate::error::Error;
use criu_protocol::page_server::{Command, Layout};
use nix::sys::socket::{MsgFlags, send};
use pipe_io::{Endpoint, poll, socket};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Reads commands and pages from CRIU, and answers.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Endpoint,
    layout: Layout,
    page_size: u64,
    /// What was received and not taken yet.
    received: Vec<u8>,
}

impl Wire {
    /// The connection from which `received` has come so far: no more than a first command.
    pub(crate) fn new(socket: Endpoint, layout: Layout, page_size: u64, received: Vec<u8>) -> Wire {
        Wire { socket, layout, page_size, received }
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
        let command = self.layout.decode(&self.received, self.page_size).map_err(Error::Command)?;
        self.received.drain(..length.min(self.received.len()));
        Ok(command)
    }

    /// Appends the pages that were announced to `bytes`, where they are few: with them comes the
    /// next command, which saves a call for each.
    pub(crate) fn few_pages(
        &mut self,
        length: usize,
        bytes: &mut Vec<u8>,
        around: &mut Around,
        output: &Endpoint,
    ) -> Result<(), Error> {
        self.receive(length + self.layout.header_length(), around, output)?;
        bytes.extend(self.received.drain(..length.min(self.received.len())));
        Ok(())
    }

    /// Where many pages that were announced are taken from: nothing of them has been received.
    pub(crate) fn many_pages(&self) -> &Endpoint {
        &self.socket
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

    /// Receives until so many bytes are there.
    fn receive(
        &mut self,
        wanted: usize,
        around: &mut Around,
        output: &Endpoint,
    ) -> Result<(), Error> {
        while self.received.len() < wanted {
            match receive_some(&self.socket, &mut self.received, wanted) {
                Ok(0) => return Err(Error::HungUp),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    around.wait(&[self.socket.as_fd()], output, None)?;
                    if around.has_ended()
                        && !poll::is_readable(&self.socket).map_err(Error::System)?
                    {
                        return Err(Error::HungUp);
                    }
                }
                Err(error) => return Err(hung_up(error)),
            }
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
