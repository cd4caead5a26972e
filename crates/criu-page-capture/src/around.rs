//! What is watched while something else is waited for.

use crate::error::Error;
use crate::files::Files;
use cli::{Child, OutputError, Progress};
use pipe_io::Endpoint;
use pipe_io::poll::{self, PollFd, PollFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// All that can change while CRIU is waited for: files appear, the command ends, the reader of the
/// stream goes.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) files: Files,
    pub(crate) child: Option<Child>,
    pub(crate) progress: Progress,
    /// Whether the processes were told to be frozen.
    is_frozen: bool,
}

impl Around {
    pub(crate) fn new(files: Files, child: Option<Child>, progress: Progress) -> Around {
        Around { files, child, progress, is_frozen: false }
    }

    /// Takes note of what has happened in the images directory. CRIU makes its first file when the
    /// processes are frozen.
    pub(crate) fn attend_files(&mut self) -> Result<(), Error> {
        self.files.attend()?;
        if self.files.have_begun() {
            self.tell_frozen();
        }
        Ok(())
    }

    /// Tells, once, that the processes are frozen.
    pub(crate) fn tell_frozen(&mut self) {
        if !std::mem::replace(&mut self.is_frozen, true) {
            self.progress.checkpoint_start();
        }
    }

    /// Waits until one of `fds` can be read, or something else happens, but no longer than `limit`
    /// if there is one. Says of each of `fds` whether it can be read.
    ///
    /// Fails if the reader of `output` has gone, or the command has failed.
    pub(crate) fn wait(
        &mut self,
        fds: &[BorrowedFd<'_>],
        output: &Endpoint,
        limit: Option<Duration>,
    ) -> Result<Vec<bool>, Error> {
        let for_input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled = vec![PollFd::new(output.as_fd(), PollFlags::empty())];
        polled.extend(fds.iter().copied().map(for_input));
        polled.push(for_input(self.files.as_fd()));
        polled.extend(self.child.iter().flat_map(Child::fds).map(for_input));
        match limit {
            Some(limit) => poll::wait_for(&mut polled, limit).map(drop),
            None => poll::wait(&mut polled),
        }
        .map_err(Error::System)?;
        let mut events = polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if events.next().is_some_and(|events| events.intersects(poll::READER_GONE)) {
            return Err(Error::Output(OutputError::reader_gone()));
        }
        let ready = events.by_ref().take(fds.len()).map(|events| !events.is_empty()).collect();
        self.attend_files()?;
        self.child.iter_mut().try_for_each(Child::attend)?;
        Ok(ready)
    }

    /// The same while CRIU has not connected: the command must not end.
    pub(crate) fn wait_for_criu(
        &mut self,
        fds: &[BorrowedFd<'_>],
        output: &Endpoint,
    ) -> Result<Vec<bool>, Error> {
        let ready = self.wait(fds, output, None)?;
        match &self.child {
            Some(child) if child.has_ended() => Err(Error::Child(child.unconnected())),
            _ => Ok(ready),
        }
    }

    /// Whether there was a command, and it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.child.as_ref().is_some_and(Child::has_ended)
    }
}
