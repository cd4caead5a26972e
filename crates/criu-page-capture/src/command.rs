//! The command behind `--`.

use cli::reason;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process::{self, ExitWatch};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{self as std_process, Command, ExitStatus, Stdio};

/// The command, started.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    child: std_process::Child,
    exit: ExitWatch,
    status: Option<ExitStatus>,
}

/// Why the command has not done its part.
#[derive(Debug)]
pub(crate) enum ChildError {
    /// It could not be started, or not be waited for.
    System(String, io::Error),
    /// It has failed.
    Status(String, ExitStatus),
    /// It has ended before all of the memory had come.
    Early(String),
}

impl Child {
    /// Starts the command that these words are; without any there is none.
    pub(crate) fn start(words: &[OsString]) -> Result<Option<Child>, ChildError> {
        let Some((program, arguments)) = words.split_first() else { return Ok(None) };
        let name = program.to_string_lossy().into_owned();
        let failed = |error| ChildError::System(name.clone(), error);
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(io::stderr().as_fd().try_clone_to_owned().map_err(failed)?);
        process::unblock_signals(&mut command);
        let child = command.spawn().map_err(failed)?;
        let exit = ExitWatch::new(child.id()).map_err(failed)?;
        Ok(Some(Child { name, child, exit, status: None }))
    }

    /// What to poll for reading: if it is ready, [`Child::attend`] is due.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.status.is_none().then(|| self.exit.as_fd()).into_iter()
    }

    /// Takes note of the command's end, if that has come. A command that has failed is an error.
    pub(crate) fn attend(&mut self) -> Result<(), ChildError> {
        let failed = |error| ChildError::System(self.name.clone(), error);
        if self.status.is_none() && poll::is_readable(&self.exit).map_err(failed)? {
            self.status = Some(self.child.wait().map_err(failed)?);
        }
        match self.status.filter(|status| !status.success()) {
            Some(status) => Err(ChildError::Status(self.name.clone(), status)),
            None => Ok(()),
        }
    }

    /// Whether it has ended, and successfully.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// The error of a command that has ended too early.
    pub(crate) fn early(&self) -> ChildError {
        ChildError::Early(self.name.clone())
    }

    /// Waits for the end, and returns how the command has failed.
    pub(crate) fn finish(mut self) -> Result<(), ChildError> {
        while !self.has_ended() {
            let mut fds: Vec<_> = self.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll::wait(&mut fds).map_err(|error| ChildError::System(self.name.clone(), error))?;
            self.attend()?;
        }
        Ok(())
    }
}

impl fmt::Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChildError::System(name, error) => write!(f, "command ({name}): {}", reason(error)),
            ChildError::Status(name, status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "command ({name}): failed with exit status {code}"),
                (_, Some(signal)) => write!(f, "command ({name}): killed by signal {signal}"),
                (None, None) => write!(f, "command ({name}): failed"),
            },
            ChildError::Early(name) => {
                write!(f, "command ({name}): ended before the dump was complete")
            }
        }
    }
}
