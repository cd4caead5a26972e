//! The keeper: a process that lives as long as memory is missing, and does nothing as long as all
//! goes well.
//!
//! When the last descriptor of a memory is closed the kernel fills what is missing with zeros, and
//! the process runs on with them. The keeper shares our descriptors, so none is closed by our
//! death, and what is missing is waited for as before. Then it kills the processes, and only when
//! their memory is gone does it let go.

use crate::Error;
use crate::tree::Tree;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid, setsid};
use pipe_io::inherit::raise_descriptor_limit;
use pipe_io::pipe::Pipe;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process::ExitWatch;
use pipe_io::userfault::{self, UserFault};
use pipe_io::{Patient, shared};
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A keeper that runs. It ends when this is dropped, unless there is something to be kept.
#[derive(Debug)]
pub struct Keeper {
    program: &'static str,
    pid: Pid,
    exit: ExitWatch,
    /// Through which it is told of the processes.
    processes: Pipe,
}

impl Keeper {
    /// Starts the keeper, which speaks as `program`. To be called before there is a second thread.
    pub fn start(program: &'static str) -> Result<Keeper, Error> {
        let processes = Pipe::new().map_err(Error::NoKeeper)?;
        let parent = getpid();
        // Before there is a keeper that could not know when we die.
        ExitWatch::of_any(parent).map_err(Error::NoPidfd)?;
        let keep = || keep(program, parent, processes.read.as_fd());
        let pid = shared::start(keep).map_err(Error::NoKeeper)?;
        let exit = ExitWatch::of_any(pid).map_err(Error::NoKeeper)?;
        Ok(Keeper { program, pid, exit, processes })
    }

    /// Says something as the program.
    pub(crate) fn say(&self, message: fmt::Arguments<'_>) {
        say(self.program, message);
    }

    /// Tells of a process that is to be killed if we die.
    pub(crate) fn tell(&self, pid: i32) -> Result<(), Error> {
        let bytes = pid.to_ne_bytes();
        match nix::unistd::write(&self.processes.write, &bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(Error::KeeperDied),
            Err(error) => Err(Error::System(error.into())),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // If somebody's memory is still open the keeper will do what it is there for.
        if userfault::numbers().is_ok_and(|numbers| numbers.is_empty()) {
            let _ = self.exit.send(Signal::SIGKILL);
            while waitpid(self.pid, None) == Err(Errno::EINTR) {}
        }
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }
}

/// What the keeper does; returns its exit status.
fn keep(program: &str, parent: Pid, processes: BorrowedFd<'_>) -> u8 {
    // A signal to the terminal's processes, or to all of this name, should not reach both of us.
    let _ = SigSet::all().thread_block();
    let _ = setsid();
    let _ = prctl::set_name(c"lazy-keeper");
    raise_descriptor_limit();
    let Ok(watch) = ExitWatch::of_any(parent) else { return 1 };
    if getppid() != parent {
        return 0;
    }
    let tree = follow(&watch, processes);
    let mut kept = tree.descriptors();
    kept.push(watch.as_fd().as_raw_fd());
    match shared::inherit(&kept) {
        Ok(memories) => let_go(program, tree, memories),
        // Nothing can be told apart: what is open stays so until we are killed.
        Err(error) => {
            let reason = pipe_io::reason(&error);
            say(program, format_args!("keeper: {reason}: holds the processes where they are"));
            loop {
                std::thread::park();
            }
        }
    }
}

/// Takes note of the processes, until the one that serves them has died.
fn follow(watch: &ExitWatch, processes: BorrowedFd<'_>) -> Tree {
    let mut tree = Tree::default();
    loop {
        let mut fds = [
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
            PollFd::new(processes, PollFlags::POLLIN),
        ];
        if poll::wait(&mut fds).is_err() {
            return tree;
        }
        let [died, told] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if told.contains(PollFlags::POLLIN) {
            let mut bytes = [0; size_of::<i32>()];
            // Each was written at once.
            if nix::unistd::read(processes, &mut bytes) == Ok(bytes.len()) {
                tree.prune();
                tree.add(i32::from_ne_bytes(bytes));
            }
        } else if !died.is_empty() {
            return tree;
        }
    }
}

/// Lets go of the memories, after all that would be given zeros have been killed.
fn let_go(program: &str, mut tree: Tree, mut memories: Vec<UserFault>) -> u8 {
    memories.retain(UserFault::is_alive);
    if memories.is_empty() {
        return 0;
    }
    let is_left = || {
        memories.retain(UserFault::is_alive);
        !memories.is_empty()
    };
    tree.end(is_left, |message| say(program, format_args!("keeper: {message}")));
    0
}

/// One write a message, as the programs do.
fn say(program: &str, message: fmt::Arguments<'_>) {
    let _ = Patient(io::stderr()).write_all(format!("{program}: {message}\n").as_bytes());
}
