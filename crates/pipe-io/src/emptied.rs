//! Being told when a pipe that was full has been read from.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Watches pipes from their write ends.
///
/// `poll` says that a pipe has room as soon as its reader has begun to copy, which may take it half
/// a millisecond more, and whoever writes then spins for the pipe's mutex. The kernel wakes up who
/// waits for a full pipe when a read has ended: this tells of that, once for each time. So a pipe
/// must have been filled to its last slot before it is waited for.
///
/// As a descriptor it is readable when there is something to tell.
#[derive(Debug)]
pub struct Emptied(Epoll);

impl Emptied {
    /// Watches none yet.
    pub fn new() -> io::Result<Emptied> {
        Ok(Emptied(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a pipe, and tells at once if it has room. Each has another `token`. What nobody has
    /// open any more is not watched any more.
    pub fn watch(&self, pipe: impl AsFd, token: u64) -> io::Result<()> {
        let events = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        Ok(self.0.add(pipe, EpollEvent::new(events, token))?)
    }

    /// The tokens of those that were read from, or that nobody reads any more, since they were
    /// full.
    pub fn take(&self) -> io::Result<Vec<u64>> {
        /// Those that are left are told the next time.
        const AT_ONCE: usize = 64;

        let mut events = [EpollEvent::empty(); AT_ONCE];
        let told = match self.0.wait(&mut events, EpollTimeout::ZERO) {
            // They are told the next time.
            Err(Errno::EINTR) => 0,
            told => told?,
        };
        Ok(events.iter().take(told).map(EpollEvent::data).collect())
    }
}

impl AsFd for Emptied {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::{self, Pipe, page};
    use crate::poll;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn it_is_told_once_that_a_full_pipe_was_read_from() {
        let Pipe { read, write } = Pipe::new().unwrap();
        let capacity = pipe::capacity(&write).unwrap();
        let (mut read, mut write) = (File::from(read), File::from(write));
        let emptied = Emptied::new().unwrap();
        emptied.watch(&write, 7).unwrap();
        assert_eq!(emptied.take().unwrap(), [7]);
        write.write_all(&vec![1; capacity]).unwrap();
        assert!(!poll::is_readable(&emptied).unwrap());
        for _ in 0..3 {
            read.read_exact(&mut vec![0; capacity / 2]).unwrap();
            assert!(poll::is_readable(&emptied).unwrap());
            assert_eq!(emptied.take().unwrap(), [7]);
            assert_eq!(emptied.take().unwrap(), []);
            write.write_all(&vec![1; capacity / 2]).unwrap();
        }
        read.read_exact(&mut vec![0; page()]).unwrap();
        drop(write);
        assert_eq!(emptied.take().unwrap(), []);
    }

    #[test]
    fn a_reader_that_goes_is_told_of() {
        let Pipe { read, write } = Pipe::new().unwrap();
        let emptied = Emptied::new().unwrap();
        emptied.watch(&write, 7).unwrap();
        emptied.take().unwrap();
        drop(read);
        // A process that another test starts at this moment has it until its exec.
        poll::wait_readable(&emptied).unwrap();
        assert_eq!(emptied.take().unwrap(), [7]);
    }
}
