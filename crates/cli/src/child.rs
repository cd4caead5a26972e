//! The command behind `--`, which is CRIU as a rule: a filter starts it when it may, and waits for
//! it, as `timeout` and `flock` do.
//!
//! It stays in the filter's process group, so a `^C` at the keyboard reaches it as it reaches every
//! program of the pipeline. When the filter ends early for another reason, CRIU is not killed where
//! it stands: its connections and its tree would be left as they are in the middle of a dump. It
//! is hung up on, gives up by itself and lets the tree run on, and only if that takes too long, or
//! if it has not connected yet, it is told by SIGTERM.

use crate::commands::Failed;
use crate::{Place, program, reason};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process::{self, ExitWatch};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The command that runs, for the thread that takes signals.
static RUNNING: Mutex<Option<Arc<Process>>> = Mutex::new(None);

/// How long CRIU may take to give up by itself, once it is hung up on. It notices with the next
/// byte that it wants to send; before that it may be reading the page tables of a large process.
const ROLLBACK: Duration = Duration::from_secs(30);

/// How long the command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// How long the rest of the program may take to hang up on CRIU, after a signal. Longer takes only
/// a write to a reader that stalls.
const LET_GO: Duration = Duration::from_secs(1);

/// The command behind `--`, started.
#[derive(Debug)]
pub struct Child {
    program: &'static str,
    place: Place,
    child: std::process::Child,
    process: Arc<Process>,
    status: Option<ExitStatus>,
}

/// What both threads know of it.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    exit: ExitWatch,
    /// Written to when a signal ends the program.
    stop: EventFd,
    /// Whether CRIU has connected.
    connected: AtomicBool,
    /// Whether all that connects us with CRIU is closed.
    hung_up: AtomicBool,
}

/// Why the command has not done its part.
#[derive(Debug)]
pub enum ChildError {
    /// It could not be started.
    Start(Place, io::Error),
    /// It could not be waited for.
    Wait(Place, io::Error),
    /// It has failed.
    Status(Place, ExitStatus),
    /// It has ended before CRIU has connected as often as was due.
    Unconnected(Place),
}

impl Child {
    /// Starts the command that these words are; without any there is none.
    ///
    /// It finds the environment, the directory and the signals as the program has found them, and
    /// every descriptor that the program was given and has not taken for itself. Its standard
    /// input is empty: on a restore the image is ours, and CRIU reads nothing.
    pub fn start(program: &'static str, words: &[OsString]) -> Result<Option<Child>, ChildError> {
        let Some((name, arguments)) = words.split_first() else { return Ok(None) };
        let words = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let place = Place::Command { words };
        Child::spawn(program, name, arguments, place.clone())
            .map(Some)
            .map_err(|error| ChildError::Start(place, error))
    }

    fn spawn(
        program: &'static str,
        name: &OsStr,
        arguments: &[OsString],
        place: Place,
    ) -> io::Result<Child> {
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        // Where stderr was closed it is /dev/null: a file of CRIU's that got its number would
        // collect CRIU's messages.
        process::as_our_caller(&mut command, &[0, 1, 2]);
        process::keep_statuses_of_children();
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        // No signal comes between the start and the note of it.
        let mut running = running();
        let child = command.spawn()?;
        let process = Arc::new(Process {
            pid: Pid::from_raw(child.id() as i32),
            exit: ExitWatch::new(child.id())?,
            stop,
            connected: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
        });
        *running = Some(Arc::clone(&process));
        Ok(Child { program, place, child, process, status: None })
    }

    /// What to poll for reading, beside all else that is waited for: if one of them is ready,
    /// [`Child::attend`] is due.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let exit = self.status.is_none().then(|| self.process.exit.as_fd());
        exit.into_iter().chain([self.process.stop.as_fd()])
    }

    /// Notes that CRIU has connected: from now on it is hung up on before it is told by SIGTERM.
    pub fn connected(&self) {
        self.process.connected.store(true, Ordering::Relaxed);
    }

    /// Takes note of the command's end, if that has come. A command that has failed is an error.
    pub fn attend(&mut self) -> Result<(), ChildError> {
        let wait = |error| ChildError::Wait(self.place.clone(), error);
        if poll::is_readable(&self.process.stop).map_err(wait)? {
            // Nobody reads this: the program ends by a signal.
            return Err(wait(ErrorKind::Interrupted.into()));
        }
        if self.status.is_none() && poll::is_readable(&self.process.exit).map_err(wait)? {
            self.reap()?;
        }
        self.failure().map_or(Ok(()), Err)
    }

    /// Whether it has ended, and successfully.
    pub fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// The error of a command that has ended, and left CRIU's part undone.
    pub fn unconnected(&self) -> ChildError {
        ChildError::Unconnected(self.place.clone())
    }

    /// Ends the program's work, of which `outcome` is the result, with the end of the command.
    ///
    /// After a success the command is waited for, and must succeed as well; after a failure it is
    /// made to end. Its own failure is the one to tell where `is_effect` says that the program's is
    /// only what followed from CRIU's end. Close before, whatever connects us with CRIU.
    pub fn conclude<E: From<ChildError>>(
        child: Option<Child>,
        outcome: Result<(), E>,
        is_effect: impl FnOnce(&E) -> bool,
    ) -> Result<(), E> {
        let Some(child) = child else { return outcome };
        child.process.hung_up.store(true, Ordering::Relaxed);
        if poll::is_readable(&child.process.stop).unwrap_or(false) {
            // The thread that takes signals does the rest, and holds this until the end.
            drop(running());
        }
        match outcome {
            Ok(()) => child.finish().map_err(E::from),
            Err(error) => match child.stop() {
                Some(failure) if is_effect(&error) => Err(E::from(failure)),
                _ => Err(error),
            },
        }
    }

    /// Waits for the end.
    fn finish(mut self) -> Result<(), ChildError> {
        while !self.has_ended() {
            let mut fds: Vec<_> = self.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll::wait(&mut fds).map_err(|error| ChildError::Wait(self.place.clone(), error))?;
            self.attend()?;
        }
        Ok(())
    }

    /// Sees that it ends. Returns how it has failed, if it was not made to.
    fn stop(mut self) -> Option<ChildError> {
        if self.status.is_none() {
            let by_itself = self.process.ends_by_itself();
            if by_itself || self.process.ends_by_sigterm() {
                let _ = self.reap();
            } else {
                let place = &self.place;
                let left = format_args!("{place}: does not end (process {})", self.process.pid);
                program::complain(self.program, left);
            }
            if !by_itself {
                return None;
            }
        }
        self.failure()
    }

    fn failure(&self) -> Option<ChildError> {
        let failed = self.status.filter(|status| !status.success());
        failed.map(|status| ChildError::Status(self.place.clone(), status))
    }

    /// Waits for the end, which has come. Its number is taken until then.
    fn reap(&mut self) -> Result<(), ChildError> {
        let mut running = running();
        let status = self.child.wait();
        *running = None;
        drop(running);
        self.status = Some(status.map_err(|error| ChildError::Wait(self.place.clone(), error))?);
        Ok(())
    }
}

impl Process {
    /// Gives CRIU, which is hung up on, the time to roll back; `false` if it does not end. Who has
    /// not connected does not know of it.
    fn ends_by_itself(&self) -> bool {
        let time = if self.connected.load(Ordering::Relaxed) { ROLLBACK } else { Duration::ZERO };
        self.ends_within(time)
    }

    fn ends_by_sigterm(&self) -> bool {
        let _ = kill(self.pid, Signal::SIGTERM);
        let _ = kill(self.pid, Signal::SIGCONT);
        self.ends_within(GRACE)
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.exit.as_fd(), PollFlags::POLLIN)];
        poll::wait_for(&mut fds, limit).unwrap_or(false)
    }

    /// Waits until CRIU is hung up on, or has ended; `false` if that takes too long.
    fn is_let_go(&self) -> bool {
        const LOOK: Duration = Duration::from_millis(5);

        let until = Instant::now() + LET_GO;
        while !self.hung_up.load(Ordering::Relaxed) {
            if self.ends_within(LOOK) {
                break;
            }
            if Instant::now() > until {
                return false;
            }
        }
        true
    }

    fn end(&self) {
        let _ = self.stop.write(1);
        // If it is not let go, then it will be by the end of the program, and nobody is left who
        // could wait for its rollback. SIGTERM would spoil that.
        if !self.connected.load(Ordering::Relaxed) || self.is_let_go() {
            let _ = self.ends_by_itself() || self.ends_by_sigterm();
            let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

fn running() -> MutexGuard<'static, Option<Arc<Process>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the command, because a signal ends the program. No command is started or waited for until
/// the lock, which is returned, is dropped.
pub(crate) fn end() -> MutexGuard<'static, Option<Arc<Process>>> {
    let running = running();
    if let Some(process) = running.as_ref() {
        process.end();
    }
    running
}

impl ChildError {
    /// The exit status that the program has for it, as `env` and `timeout` have it: that of the
    /// command, or 128 and the signal that has killed it; 127 where there is no such command, 126
    /// where it cannot be started.
    pub fn exit_status(&self) -> u8 {
        match self {
            ChildError::Start(_, error) if error.kind() == ErrorKind::NotFound => 127,
            ChildError::Start(..) => 126,
            ChildError::Status(_, status) => {
                let signal = status.signal().map(|signal| 128 + signal);
                status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
            }
            ChildError::Wait(..) | ChildError::Unconnected(_) => 1,
        }
    }
}

impl fmt::Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChildError::Start(place, error) | ChildError::Wait(place, error) => {
                write!(f, "{place}: {}", reason(error))
            }
            ChildError::Status(place, status) => write!(f, "{place}: {}", Failed(*status)),
            ChildError::Unconnected(place) => {
                write!(f, "{place}: ended before CRIU had connected")
            }
        }
    }
}

impl std::error::Error for ChildError {}
