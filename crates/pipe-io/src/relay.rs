//! Writing, through a pipe, to an endpoint whose writes can block.

use crate::pipe::Pipe;
use crate::{Endpoint, MoveError, Mover};
use std::io;
use std::thread;

/// How much is on its way between the pipe and what it leads to, in bytes: more than a wake-up
/// costs, and little beside what the pipe itself holds, by which the room is measured.
const PIECE: usize = 256 << 10;

/// A relay's thread needs little: it moves page references.
const STACK: usize = 128 << 10;

/// A pipe whose content a thread moves on to `to`: whoever writes the pipe sees its free slots
/// and its readiness, and never waits for `to`.
///
/// `splice` to a socket waits for the peer whatever `SPLICE_F_NONBLOCK` says, UNIX and TCP alike
/// (tried on Linux 6.18, with 4 KiB to 1 MiB at a time: it blocks for ever once SO_SNDBUF is
/// full, and a large piece is stuck half-way). Only O_NONBLOCK changes that, which belongs to the
/// open file and so to others too; and no flag keeps a file on a slow disk from waiting. The
/// price is two more splices of the same pages; a socket gets a copy (see [`Mover`]).
///
/// When the pipe is closed and `to` has all of it and is closed, `done` is told. When `to` fails,
/// `done` is told first, and then the pipe breaks.
pub fn relay(
    to: Endpoint,
    done: impl FnOnce(io::Result<()>) + Send + 'static,
) -> io::Result<Endpoint> {
    let Pipe { read, write } = Pipe::new()?;
    let endpoint = |fd| Endpoint::new(fd).map_err(io::Error::other);
    let (read, write) = (endpoint(read)?, endpoint(write)?);
    write.grow();
    let run = move || {
        done(move_all(&read, to));
        drop(read);
    };
    thread::Builder::new().name("relay".into()).stack_size(STACK).spawn(run)?;
    Ok(write)
}

fn move_all(from: &Endpoint, to: Endpoint) -> io::Result<()> {
    let mut mover = Mover::default();
    while mover.staged(from, &to, PIECE).map_err(MoveError::into_inner)? > 0 {}
    to.close()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    fn through(near: UnixStream) -> (Endpoint, std::sync::mpsc::Receiver<io::Result<()>>) {
        let (send, receive) = channel();
        let to = Endpoint::new(OwnedFd::from(near)).unwrap();
        (relay(to, move |result| send.send(result).unwrap()).unwrap(), receive)
    }

    #[test]
    fn what_is_written_arrives_and_then_its_end() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let held_by_another = near.try_clone().unwrap();
        let (mut pipe, done) = through(near);
        let bytes = vec![7; 3 << 20];
        let expected = bytes.clone();
        let writer = std::thread::spawn(move || pipe.write_all(&bytes).unwrap());
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert!(received == expected);
        writer.join().unwrap();
        done.recv().unwrap().unwrap();
        drop(held_by_another);
    }

    #[test]
    fn a_stalled_peer_does_not_lock_the_pipe() {
        let (near, far) = UnixStream::pair().unwrap();
        let (pipe, _done) = through(near);
        let filled = std::thread::spawn(move || {
            let mut filled = 0;
            while crate::poll::is_writable(&pipe).unwrap() || filled < 600_000 {
                filled += (&pipe).write(&[7; 4096]).unwrap();
                crate::pipe::queued(&pipe).unwrap();
            }
            filled
        });
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !filled.is_finished() {
            assert!(std::time::Instant::now() < limit, "locked");
            std::thread::yield_now();
        }
        assert!(filled.join().unwrap() >= 600_000);
        drop(far);
    }

    #[test]
    fn a_peer_that_goes_is_told_before_the_pipe_breaks() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut pipe, done) = through(near);
        drop(far);
        while pipe.write_all(&[7; 4096]).is_ok() {}
        let error = done.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_disk_is_reported() {
        let (send, receive) = channel();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let to = Endpoint::new(full.into()).unwrap();
        let mut pipe = relay(to, move |result| send.send(result).unwrap()).unwrap();
        let _ = pipe.write_all(b"x");
        drop(pipe);
        assert_eq!(receive.recv().unwrap().unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
