//! The commands of `--filter`, one a shard, as GNU `split` has it.
//!
//! Each runs as `/bin/sh -c COMMAND` in a process group of its own, so that a signal reaches all
//! of a pipeline, and what has failed can be cleared away to the last process.

use crate::{Place, ShardEnd, reason};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use pipe_io::inherit::Direction;
use pipe_io::pipe::Pipe;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process::{self, ExitWatch};
use pipe_io::{Bytes, Endpoint};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use wire_format::ImageId;

/// The process groups that run, for the thread that takes signals.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// How long commands may take to end by themselves, after one has failed and the others were told
/// by the end of their shard; and after a signal.
const GRACE: Duration = Duration::from_secs(3);

/// Commands that were started, in the order of their shards. When this is dropped while some
/// still run, they get some time to end, then SIGTERM, then SIGKILL. Drop the shards before.
#[derive(Debug, Default)]
pub struct Commands(Vec<Running>);

#[derive(Debug)]
struct Running {
    place: Place,
    child: Child,
    exit: ExitWatch,
    /// How many bytes of its shard nobody reads any more.
    unread: usize,
    ended: bool,
}

/// Why a command has not done its part.
#[derive(Debug)]
pub enum CommandError {
    /// It could not be started, or not be waited for.
    System(Place, io::Error),
    /// It has failed.
    Status(Place, ExitStatus),
    /// It was content with less than its shard, which lacks that many bytes.
    Unread(Place, usize),
}

impl Commands {
    /// Starts so many. With [`Direction::Output`] they read their shards and are told the image's
    /// id; with [`Direction::Input`] they write them.
    pub fn start(
        count: usize,
        command: &str,
        direction: Direction,
        image_id: Option<ImageId>,
    ) -> Result<(Commands, Vec<ShardEnd>), CommandError> {
        process::keep_statuses_of_children();
        let mut commands = Commands::default();
        let mut ends = Vec::new();
        for index in 0..count {
            let place = Place::ShardFilter { index, command: command.to_owned() };
            let mut shell = shell(index, count, command, direction, image_id);
            let (running, endpoint) = Running::start(place.clone(), &mut shell, direction)
                .map_err(|error| CommandError::System(place.clone(), error))?;
            commands.0.push(running);
            ends.push(ShardEnd { place, endpoint, file: None });
        }
        Ok((commands, ends))
    }

    /// Notes that so many bytes of a command's shard will not be read. The error if it has ended; a
    /// command that ends so later has failed, too.
    pub fn left_unread(&mut self, index: usize, bytes: usize) -> Option<CommandError> {
        let running = self.0.get_mut(index)?;
        running.unread = bytes;
        running.ended.then(|| CommandError::Unread(running.place.clone(), bytes))
    }

    /// What to poll for reading: one of them is ready when a command has ended.
    pub fn exits(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter(|command| !command.ended).map(|command| command.exit.as_fd())
    }

    /// Takes note of the commands that have ended, without waiting. `ended` is told of each.
    pub fn look(&mut self, mut ended: impl FnMut(usize)) -> Result<(), CommandError> {
        self.reap(Some(Instant::now()), &mut ended).map(drop)
    }

    /// Waits until all have succeeded, or one has failed. `ended` is told of each.
    pub fn wait(&mut self, mut ended: impl FnMut(usize)) -> Result<(), CommandError> {
        while self.reap(None, &mut ended)? {}
        Ok(())
    }

    /// The command that has failed, when a shard is not as it should be: its status says more
    /// than the shard. Call while the shards are still open, or all will have failed.
    pub fn to_blame(&mut self) -> Option<CommandError> {
        /// From the end of a command's output to the end of its shell.
        const DELAY: Duration = Duration::from_millis(300);

        let until = Instant::now() + DELAY;
        loop {
            match self.reap(Some(until), &mut |_| ()) {
                Err(error) => return Some(error),
                Ok(true) if Instant::now() < until => {}
                Ok(_) => return None,
            }
        }
    }

    /// Waits, until `until` if that is given, and takes note of those that have ended; `false`
    /// when all have.
    fn reap(
        &mut self,
        until: Option<Instant>,
        ended: &mut impl FnMut(usize),
    ) -> Result<bool, CommandError> {
        let mut running: Vec<_> =
            self.0.iter_mut().enumerate().filter(|(_, command)| !command.ended).collect();
        let Some((_, first)) = running.first() else { return Ok(false) };
        let place = first.place.clone();
        let ready = {
            let mut fds: Vec<_> = running
                .iter()
                .map(|(_, command)| PollFd::new(command.exit.as_fd(), PollFlags::POLLIN))
                .collect();
            let waited = match until {
                None => poll::wait(&mut fds),
                Some(until) => {
                    let limit = until.saturating_duration_since(Instant::now());
                    poll::wait_for(&mut fds, limit).map(drop)
                }
            };
            waited.map_err(|error| CommandError::System(place, error))?;
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>()
        };
        for ((index, command), _) in running.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            command.reap()?;
            ended(*index);
        }
        Ok(true)
    }

    /// Sees that all have ended, or that the time is up.
    fn all_end_within(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            match self.reap(Some(until), &mut |_| ()) {
                Ok(false) => return true,
                // What else has failed was made to.
                Ok(true) | Err(_) if Instant::now() < until => {}
                Ok(true) | Err(_) => return false,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let groups = running();
        for group in groups.iter() {
            let _ = killpg(*group, signal);
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if self.all_end_within(GRACE) {
            return;
        }
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
        if !self.all_end_within(GRACE) {
            self.signal(Signal::SIGKILL);
            self.all_end_within(GRACE);
        }
    }
}

impl Running {
    fn start(
        place: Place,
        shell: &mut Command,
        direction: Direction,
    ) -> io::Result<(Running, Endpoint)> {
        let Pipe { read, write } = Pipe::new()?;
        let ours = match direction {
            Direction::Output => {
                shell.stdin(read);
                write
            }
            Direction::Input => {
                // Several commands cannot share what is typed, and ssh would try.
                shell.stdin(Stdio::null()).stdout(write);
                read
            }
        };
        let ours = Endpoint::new(ours).map_err(io::Error::other)?;
        ours.grow();
        // No signal comes between the start and the note of it.
        let mut groups = running();
        let child = shell.spawn()?;
        groups.push(Pid::from_raw(child.id() as i32));
        drop(groups);
        let exit = ExitWatch::new(child.id())?;
        Ok((Running { place, child, exit, unread: 0, ended: false }, ours))
    }

    /// Takes note of the end, which has come.
    fn reap(&mut self) -> Result<(), CommandError> {
        let mut groups = running();
        let group = Pid::from_raw(self.child.id() as i32);
        if !succeeded(group) {
            // What a failed command has left running goes too. Its number is still taken.
            let _ = killpg(group, Signal::SIGTERM);
        }
        groups.retain(|running| *running != group);
        self.ended = true;
        let status =
            self.child.wait().map_err(|error| CommandError::System(self.place.clone(), error))?;
        drop(groups);
        if !status.success() {
            return Err(CommandError::Status(self.place.clone(), status));
        }
        match self.unread {
            0 => Ok(()),
            bytes => Err(CommandError::Unread(self.place.clone(), bytes)),
        }
    }
}

fn shell(
    index: usize,
    count: usize,
    command: &str,
    direction: Direction,
    image_id: Option<ImageId>,
) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).process_group(0);
    let given: &[RawFd] = match direction {
        Direction::Output => &[0],
        Direction::Input => &[0, 1],
    };
    process::as_our_caller(&mut shell, given);
    shell.env("SHARD", index.to_string()).env("SHARDS", count.to_string());
    if let Some(image_id) = image_id {
        shell.env("IMAGE_ID", image_id.to_string());
    }
    shell
}

/// Whether a child that has ended, and was not waited for, was successful.
fn succeeded(child: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(child), flags), Ok(WaitStatus::Exited(_, 0)))
}

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on a signal that ends the program, and sees that nothing is left running. No command
/// is started or waited for until the lock, which is returned, is dropped.
pub(crate) fn end_all(signal: Signal) -> MutexGuard<'static, Vec<Pid>> {
    const LOOK: Duration = Duration::from_millis(5);

    let groups = running();
    for group in groups.iter() {
        let _ = killpg(*group, signal);
        let _ = killpg(*group, Signal::SIGCONT);
    }
    let until = Instant::now() + GRACE;
    while groups.iter().any(|group| is_there(*group)) && Instant::now() < until {
        thread::sleep(LOOK);
    }
    for group in groups.iter() {
        let _ = killpg(*group, Signal::SIGKILL);
    }
    groups
}

/// Whether the group has a process that is not a zombie of ours.
fn is_there(group: Pid) -> bool {
    let _ = waitpid(group, Some(WaitPidFlag::WNOHANG));
    killpg(group, None) != Err(Errno::ESRCH)
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::System(place, error) => write!(f, "{place}: {}", reason(error)),
            CommandError::Status(place, status) => write!(f, "{place}: {}", Failed(*status)),
            CommandError::Unread(place, bytes) => {
                let bytes = Bytes(*bytes as u64);
                write!(f, "{place}: ended without reading the last {bytes} of its shard")
            }
        }
    }
}

impl std::error::Error for CommandError {}

/// How a command has failed, in words.
pub(crate) struct Failed(pub(crate) ExitStatus);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "failed with exit status {code}"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "killed by signal {number} ({signal})"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
            (None, None) => f.write_str("failed"),
        }
    }
}
