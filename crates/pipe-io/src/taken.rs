//! Whether what was written has been taken by its reader.
//!
//! What is in a pipe when its reader ends is lost, and nobody is told: a writer that has closed
//! the pipe before cannot be. So a pipe stays open until it is empty, and a reader that goes
//! before that is seen as a broken pipe, also behind the last byte.

use crate::{Endpoint, Kind, pipe, poll, socket};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long the peer of a socket may take nothing before it is not waited for any more.
///
/// The bytes are copies that the system delivers after our end, and a peer may wait for that end
/// before it reads. Nothing is lost by going on but the news that it has died: at half of this
/// one that dies on a busy machine is missed; at double a pipeline whose peer waits ends that
/// much later.
const SOCKET_PATIENCE: Duration = Duration::from_secs(1);

impl Endpoint {
    /// How many bytes of what was written its reader has not taken yet; 0 for a file or a device,
    /// where there is nobody to wait for. For a socket, any other number says only that some are
    /// left: of a TCP connection those that the peer's system has not acknowledged.
    pub fn untaken(&self) -> io::Result<usize> {
        match self.kind() {
            Kind::Pipe => pipe::queued(self),
            Kind::Socket => socket::unsent(self),
            Kind::File | Kind::Device => Ok(0),
        }
    }

    /// Ends what was written, as [`Endpoint::close_while`] does with nothing else to watch.
    pub fn close(self) -> io::Result<()> {
        self.close_while(None).map(drop)
    }

    /// Waits until the reader has taken all that was written, and closes the descriptor. Fails
    /// with [`ErrorKind::BrokenPipe`] if the reader of a pipe goes without, and with what the
    /// system says of a socket whose peer has. The peer of a socket may take its time: see
    /// [`Endpoint::untaken`].
    ///
    /// `false` if `party` hangs up before, which is somebody on whom it depends what is still
    /// there.
    ///
    /// The close may fail too: on some file systems that is when a full disk shows. A socket is
    /// shut down for writing first: others may hold it open, and its reader waits for the end.
    pub fn close_while(self, party: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        if self.kind() == Kind::Socket {
            // A peer that has gone with all it wanted is no error here.
            let _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Write);
        }
        let taken = self.await_taken(party)?;
        self.close_now()?;
        Ok(taken)
    }

    fn await_taken(&self, party: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let mut pace = Pace::default();
        let mut is_broken = false;
        loop {
            let left = self.untaken()?;
            if self.kind() == Kind::Socket {
                // Asked for after `left`: a UNIX socket loses what its peer has left unread.
                refuse_reset(self)?;
            }
            if left == 0 {
                return Ok(true);
            }
            if is_broken {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let pause = pace.pause(left);
            if self.kind() == Kind::Socket && pace.stalled() >= SOCKET_PATIENCE {
                return Ok(true);
            }
            // A socket that is shut down tells by poll what says nothing here, again and again.
            let own = (self.kind() == Kind::Pipe).then(|| self.as_fd());
            let mut fds: Vec<_> = own
                .into_iter()
                .chain(party)
                .map(|fd| PollFd::new(fd, PollFlags::empty()))
                .collect();
            poll::wait_for(&mut fds, pause)?;
            let mut failed = fds.iter().map(has_failed);
            is_broken = own.is_some() && failed.next() == Some(true);
            if !is_broken && failed.next() == Some(true) {
                // It may have waited for just that.
                return Ok(self.untaken()? == 0);
            }
        }
    }
}

fn has_failed(fd: &PollFd<'_>) -> bool {
    fd.revents().is_some_and(|events| events.intersects(poll::READER_GONE))
}

fn refuse_reset(socket: &Endpoint) -> io::Result<()> {
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// How often to look whether a pipe was emptied, which nothing tells: poll says when a full one
/// has its first free slot, and no more.
///
/// To look takes the pipe's mutex, on which a reader that copies keeps us spinning, so it is done
/// ever less often as long as nothing changes, and not much more often when it does.
#[derive(Debug)]
pub struct Pace {
    left: usize,
    pause: Duration,
    changed: Instant,
}

impl Pace {
    /// The shortest pause: less than what a reader is woken up for costs.
    const SHORTEST: Duration = Duration::from_micros(50);
    /// The longest: so much later than it could be, at most, an image ends.
    const LONGEST: Duration = Duration::from_millis(5);

    /// How long to wait before the next look, when so many bytes are left.
    pub fn pause(&mut self, left: usize) -> Duration {
        if left == self.left {
            self.pause = (self.pause * 2).min(Pace::LONGEST);
        } else {
            self.pause = (self.pause / 2).max(Pace::SHORTEST);
            (self.left, self.changed) = (left, Instant::now());
        }
        self.pause
    }

    /// How long nothing has been taken.
    fn stalled(&self) -> Duration {
        self.changed.elapsed()
    }
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { left: 0, pause: Pace::SHORTEST, changed: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::Pipe;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{self, sleep};

    const A_WHILE: Duration = Duration::from_millis(50);

    fn endpoint(fd: impl Into<OwnedFd>) -> Endpoint {
        Endpoint::new(fd.into()).unwrap()
    }

    /// A pipe that holds some bytes, and its read end.
    fn written() -> (File, Endpoint) {
        let Pipe { read, write } = Pipe::new().unwrap();
        let write = endpoint(write);
        (&write).write_all(&[7; 5000]).unwrap();
        (read.into(), write)
    }

    #[test]
    fn a_pipe_is_closed_when_its_reader_has_all() {
        let (mut read, write) = written();
        let read_all = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for bytes in [1, 4000, 998, 1] {
                    sleep(A_WHILE);
                    read_all.store(bytes == 1, Ordering::Relaxed);
                    read.read_exact(&mut [0; 4096][..bytes]).unwrap();
                }
                assert_eq!(read.read(&mut [0]).unwrap(), 0);
            });
            assert!(write.close_while(None).unwrap());
            assert!(read_all.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn a_reader_that_goes_without_the_last_byte_breaks_the_pipe() {
        for taken in [0, 4999] {
            let (mut read, write) = written();
            let reader = thread::spawn(move || {
                read.read_exact(&mut vec![0; taken]).unwrap();
                sleep(A_WHILE);
            });
            assert_eq!(write.close().unwrap_err().kind(), ErrorKind::BrokenPipe);
            reader.join().unwrap();
        }
        let (mut read, write) = written();
        read.read_exact(&mut [0; 5000]).unwrap();
        drop(read);
        write.close().unwrap();
    }

    #[test]
    fn a_party_that_hangs_up_ends_the_wait() {
        let (read, write) = written();
        let (party, other) = UnixStream::pair().unwrap();
        let waits = thread::spawn(move || write.close_while(Some(party.as_fd())).unwrap());
        sleep(A_WHILE);
        assert!(!waits.is_finished());
        drop(other);
        assert!(!waits.join().unwrap());
        drop(read);
        // When all was taken, it has done no harm.
        let (mut read, write) = written();
        let (party, _) = UnixStream::pair().unwrap();
        read.read_exact(&mut [0; 5000]).unwrap();
        assert!(write.close_while(Some(party.as_fd())).unwrap());
    }

    #[test]
    fn waiting_computes_nothing() {
        let (read, write) = written();
        let used = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
        let spent = thread::spawn(move || {
            let before = used().unwrap();
            let _ = write.close();
            Duration::from(used().unwrap() - before)
        });
        sleep(Duration::from_millis(500));
        drop(read);
        let spent = spent.join().unwrap();
        assert!(spent < Duration::from_millis(50), "{spent:?}");
    }

    fn sockets() -> [(OwnedFd, Endpoint); 2] {
        let (far, near) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        [(far.into(), endpoint(near)), (accepted.into(), endpoint(tcp))]
    }

    #[test]
    fn a_peer_that_has_all_is_fine_and_one_that_goes_without_is_not() {
        for (far, near) in sockets() {
            (&near).write_all(&[7; 5000]).unwrap();
            let mut far = File::from(far);
            let reader = thread::spawn(move || far.read_to_end(&mut Vec::new()).unwrap());
            near.close().unwrap();
            assert_eq!(reader.join().unwrap(), 5000);
        }
        for (far, near) in sockets() {
            (&near).write_all(&[7; 5000]).unwrap();
            drop(far);
            assert!(near.close().is_err());
        }
    }

    #[test]
    fn a_peer_that_waits_for_the_end_gets_it() {
        let [(far, near), _] = sockets();
        (&near).write_all(&[7; 5000]).unwrap();
        let start = Instant::now();
        near.close().unwrap();
        assert!(start.elapsed() >= SOCKET_PATIENCE);
        let mut received = Vec::new();
        File::from(far).read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 5000);
    }
}
