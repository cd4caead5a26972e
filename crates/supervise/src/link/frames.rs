//! A shard of an image on a connection: pieces, each behind its length (4 bytes, little endian),
//! and a length of 0 at the end.

use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::{Endpoint, MoveError, Mover, pipe};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

/// Why a shard did not arrive.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection has ended in the middle of it.
    Cut,
    /// The connection failed.
    Input(io::Error),
    /// Whoever the shard is for does not take it.
    Output,
}

/// Sends all that comes out of a pipe, whose other readers are gone, and its end.
pub(crate) fn send(from: &Endpoint, mut to: &Endpoint) -> Result<(), MoveError> {
    let mut mover = Mover::default();
    loop {
        let length = wait_for_bytes(from).map_err(MoveError::Input)?;
        // A pipe holds at most 2 GiB.
        let header = (length as u32).to_le_bytes();
        to.write_all(&header).map_err(MoveError::Output)?;
        if length == 0 {
            return Ok(());
        }
        let mut left = length as u64;
        while left > 0 {
            match mover.some(from, to, left)? {
                0 => return Err(MoveError::Input(io::ErrorKind::UnexpectedEof.into())),
                moved => left -= moved as u64,
            }
        }
    }
}

/// Waits until there are bytes in a pipe, and returns how many; 0 at its end.
fn wait_for_bytes(pipe: &Endpoint) -> io::Result<usize> {
    /// How long to wait where a pipe is ready and has nothing: a piece of length 0 is in it.
    const AGAIN: Duration = Duration::from_millis(1);

    loop {
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        poll::wait(&mut fds)?;
        let [fd] = fds;
        let has_ended = fd.revents().is_some_and(|it| it.contains(PollFlags::POLLHUP));
        match pipe::queued(pipe)? {
            0 if has_ended => return Ok(0),
            0 => sleep(AGAIN),
            bytes => return Ok(bytes),
        }
    }
}

/// Receives a shard up to its end, and nothing behind it.
pub(crate) fn receive(mut from: &Endpoint, to: &Endpoint) -> Result<(), Broken> {
    let mut mover = Mover::default();
    loop {
        let mut header = [0; 4];
        from.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Broken::Cut,
            _ => Broken::Input(error),
        })?;
        let mut left = u64::from(u32::from_le_bytes(header));
        if left == 0 {
            return Ok(());
        }
        while left > 0 {
            match mover.some(from, to, left) {
                Ok(0) => return Err(Broken::Cut),
                Ok(moved) => left -= moved as u64,
                Err(MoveError::Input(error)) => return Err(Broken::Input(error)),
                Err(MoveError::Output(_)) => return Err(Broken::Output),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipe_io::pipe::Pipe;
    use std::fs::File;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn endpoint(fd: impl Into<std::os::fd::OwnedFd>) -> Endpoint {
        Endpoint::new(fd.into()).unwrap()
    }

    fn framed(bytes: &'static [u8]) -> Vec<u8> {
        let (source, link) = (Pipe::new().unwrap(), Pipe::new().unwrap());
        let writer = thread::spawn(move || File::from(source.write).write_all(bytes).unwrap());
        let sender = thread::spawn(move || {
            send(&endpoint(source.read), &endpoint(link.write)).unwrap();
        });
        let mut framed = Vec::new();
        File::from(link.read).read_to_end(&mut framed).unwrap();
        writer.join().unwrap();
        sender.join().unwrap();
        framed
    }

    /// What `receive` passes on of these bytes, by a pipe or a socket, how it ends, and what it
    /// leaves.
    fn received(bytes: &[u8], by_socket: bool) -> (Vec<u8>, Result<(), Broken>, Vec<u8>) {
        let bytes = bytes.to_vec();
        let (mut far, near) = if by_socket {
            let (far, near) = UnixStream::pair().unwrap();
            (File::from(std::os::fd::OwnedFd::from(far)), endpoint(near))
        } else {
            let link = Pipe::new().unwrap();
            (File::from(link.write), endpoint(link.read))
        };
        let target = Pipe::new().unwrap();
        let writer = thread::spawn(move || far.write_all(&bytes).unwrap());
        let receiver = thread::spawn(move || {
            let result = receive(&near, &endpoint(target.write));
            let mut rest = Vec::new();
            (&near).read_to_end(&mut rest).unwrap();
            (result, rest)
        });
        let mut passed_on = Vec::new();
        File::from(target.read).read_to_end(&mut passed_on).unwrap();
        writer.join().unwrap();
        let (result, rest) = receiver.join().unwrap();
        (passed_on, result, rest)
    }

    #[test]
    fn a_shard_arrives_whole_and_what_is_behind_it_stays() {
        static SHARD: [u8; 3_000_000] = [7; 3_000_000];
        for by_socket in [false, true] {
            let mut sent = framed(&SHARD);
            sent.extend(b"go\n");
            let (passed_on, result, rest) = received(&sent, by_socket);
            assert!(result.is_ok());
            assert!(passed_on == SHARD);
            assert_eq!(rest, b"go\n");
        }
    }

    #[test]
    fn an_empty_shard_is_its_end() {
        assert_eq!(framed(b""), [0; 4]);
    }

    #[test]
    fn a_connection_that_ends_anywhere_before_the_end_is_cut() {
        let sent = framed(b"a shard");
        for length in 0..sent.len() {
            let (passed_on, result, _) = received(&sent[..length], false);
            assert!(matches!(result, Err(Broken::Cut)), "{length} bytes");
            assert!(passed_on.len() < 8);
        }
    }
}
