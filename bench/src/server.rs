//! The streamer's side of the socket, for threads of this process.

use crate::Error;
use criu_protocol::{Connection, Event, Listener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

/// Waits for the stand-in to connect.
pub(crate) fn accept(listener: &Listener) -> Result<Connection, Error> {
    loop {
        wait(listener)?;
        if let Some(connection) = listener.accept()? {
            return Ok(connection);
        }
    }
}

/// Waits for what it says next.
pub(crate) fn next_event(connection: &mut Connection) -> Result<Event, Error> {
    loop {
        if let Some(event) = connection.next_event()? {
            return Ok(event);
        }
        wait(&*connection)?;
    }
}

fn wait(fd: impl AsFd) -> Result<(), Error> {
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    Ok(())
}
