//! The process tree that is dumped: frozen by ptrace, so that it runs on when this process dies.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Fault;

/// A tree that is frozen, for as long as this process lives.
#[derive(Debug)]
pub(crate) struct Frozen {
    processes: Vec<Pid>,
}

impl Frozen {
    /// Freezes the process and its descendants.
    pub(crate) fn freeze(root: i32) -> Result<Frozen, Fault> {
        let mut frozen = Frozen { processes: Vec::new() };
        let mut left = vec![Pid::from_raw(root)];
        while let Some(pid) = left.pop() {
            match stop(pid) {
                Ok(()) => {}
                // One that was about to end has ended.
                Err(Errno::ESRCH | Errno::EPERM | Errno::ECHILD) if pid.as_raw() != root => {
                    continue;
                }
                Err(errno) => return Err(format!("Unable to seize task {pid}: {errno}").into()),
            }
            // Its children are looked for when it can make no more.
            left.extend(children(pid));
            frozen.processes.push(pid);
        }
        Ok(frozen)
    }

    /// Lets all run on.
    pub(crate) fn thaw(self) {
        for pid in self.processes {
            let _ = ptrace::detach(pid, None);
        }
    }

    /// Kills all.
    pub(crate) fn kill(self) {
        for pid in self.processes {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
        }
    }
}

fn stop(pid: Pid) -> nix::Result<()> {
    ptrace::seize(pid, Options::empty())?;
    ptrace::interrupt(pid)?;
    match waitpid(pid, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Exited(..) | WaitStatus::Signaled(..) => Err(Errno::ESRCH),
        _ => Ok(()),
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw).collect()
}

/// The words of a process's command line, the first one being its program's path.
pub(crate) fn command_line(pid: i32) -> Result<Vec<String>, Fault> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let text = String::from_utf8(fs::read(format!("/proc/{pid}/cmdline"))?)?;
    let mut words: Vec<String> =
        text.trim_end_matches('\0').split('\0').map(String::from).collect();
    if let Some(first) = words.first_mut() {
        *first = program.to_str().ok_or("a path that is no text")?.to_owned();
    }
    Ok(words)
}

/// The memory of a `victim hold`, which tells in a file where that is; `None` of any other.
pub(crate) fn memory(pid: i32, command_line: &[String]) -> Result<Option<Vec<u8>>, Fault> {
    let [program, mode, file, ..] = command_line else { return Ok(None) };
    if !program.ends_with("/victim") || mode != "hold" {
        return Ok(None);
    }
    let place = fs::read_to_string(PathBuf::from(format!("{file}.memory")))?;
    let (address, length) = place.trim().split_once(' ').ok_or("no place of the memory")?;
    let mut memory = vec![0; length.parse()?];
    let source = fs::File::open(format!("/proc/{pid}/mem"))?;
    source.read_exact_at(&mut memory, address.parse()?)?;
    Ok(Some(memory))
}
