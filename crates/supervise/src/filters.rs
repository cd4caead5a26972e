//! Starting the filters, and the pipes between them.
//!
//! This process keeps the end of each pipe that is written to. So it sees when a reader has gone,
//! and how much waits to be read; and a reader finds the end of what it reads only when this
//! process lets it: when whoever wrote it has succeeded. What has failed never looks complete.

use crate::shell::find_filter;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use pipe_io::pipe::{self, Pipe};
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process;
use serde::Deserialize;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The end of a pipe that another program writes to.
#[derive(Debug)]
pub struct Tap {
    write: OwnedFd,
    capacity: usize,
}

impl Tap {
    /// A pipe, as large as it may be: this end of it, and the one to read.
    pub fn new() -> io::Result<(Tap, OwnedFd)> {
        let Pipe { read, write } = Pipe::new()?;
        let capacity = pipe::grow(&write, pipe::WANTED)?;
        Ok((Tap { write, capacity }, read))
    }

    /// For the program that writes.
    pub fn writer(&self) -> io::Result<OwnedFd> {
        self.write.try_clone()
    }

    /// The descriptor itself, to be lent.
    pub fn fd(&self) -> &OwnedFd {
        &self.write
    }

    /// Whether nobody can read it any more.
    pub fn reader_is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.write.as_fd(), PollFlags::empty())];
        poll::look(&mut fds).unwrap_or(false)
            && fds.iter().any(|fd| fd.revents().is_some_and(|it| it.intersects(poll::READER_GONE)))
    }

    /// Whether its reader is behind: half of it, or more, waits to be read.
    pub fn is_filled(&self) -> bool {
        pipe::queued(&self.write).is_ok_and(|bytes| bytes >= self.capacity / 2)
            || !poll::is_writable(&self.write).unwrap_or(true)
    }
}

/// A filter that will be started, in a session of its own; what it says comes out of the pipe that
/// is returned.
///
/// # Errors
///
/// `NotFound` where there is no such filter.
pub fn filter(name: &str) -> io::Result<(Command, OwnedFd)> {
    let path = find_filter(name).ok_or(io::ErrorKind::NotFound)?;
    let mut command = Command::new(path);
    process::as_our_caller(&mut command, &[0, 1, 2]);
    process::in_a_new_session(&mut command);
    // The front ends what a holder leaves, but both may be killed at once.
    process::with_us(&mut command);
    // It is asked for its counters, perhaps before it listens.
    process::blocking(&mut command, Signal::SIGUSR1);
    let Pipe { read, write } = Pipe::new()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(write);
    Ok((command, read))
}

/// Whether all of these programs are there; if not, which is not.
pub fn missing<'a>(names: &[&'a str]) -> Option<&'a str> {
    names.iter().copied().find(|name| find_filter(name).is_none())
}

/// The path of a filter, for messages.
pub fn path_of(name: &str) -> Option<PathBuf> {
    find_filter(name)
}

/// Starts something while these descriptors are open in it too, under the same numbers. Not while
/// another thread starts anything.
pub fn lending<T>(fds: &[impl AsFd], start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let set = |flags| -> io::Result<()> {
        fds.iter().try_for_each(|fd| Ok(fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)?))
    };
    set(FdFlag::empty())?;
    let started = start();
    set(FdFlag::FD_CLOEXEC)?;
    started
}

/// The numbers of descriptors, as the filters take them.
pub fn numbers(fds: &[impl AsFd]) -> String {
    let numbers: Vec<String> = fds.iter().map(|fd| fd.as_fd().as_raw_fd().to_string()).collect();
    numbers.join(",")
}

/// A filter's JSON line: how many bytes went through it. `None` for any other line.
pub fn bytes_in(line: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Report {
        shards: Vec<Shard>,
    }
    #[derive(Deserialize)]
    struct Shard {
        size: u64,
    }

    let report: Report = line.starts_with('{').then(|| serde_json::from_str(line).ok())??;
    Some(report.shards.iter().map(|shard| shard.size).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_tap_sees_what_waits_and_whether_somebody_reads() {
        let (tap, read) = Tap::new().unwrap();
        assert!(!tap.is_filled() && !tap.reader_is_gone());
        let mut writer = std::fs::File::from(tap.writer().unwrap());
        io::Write::write_all(&mut writer, &vec![0; tap.capacity / 2]).unwrap();
        assert!(tap.is_filled());
        drop(read);
        // A process that another test starts at this moment has it until its exec.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !tap.reader_is_gone() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn only_a_report_has_bytes() {
        let line = r#"{"shards":[{"size":3,"transfer_duration_millis":1},{"size":4}]}"#;
        assert_eq!(bytes_in(line), Some(7));
        assert_eq!(bytes_in("socket-init"), None);
        assert_eq!(bytes_in("{}"), None);
    }
}
