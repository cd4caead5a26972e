//! Moving bytes from any endpoint to any other.

use crate::pipe::Pipe;
use crate::{Endpoint, Kind, poll, splice};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

/// Moves bytes between endpoints of any two kinds, without copying them through user memory
/// where the kernel can do without.
///
/// From or to a pipe that is one splice. Between two endpoints that aren't pipes the bytes rest
/// in a pipe of the mover's own. A descriptor that cannot be spliced (opened with O_APPEND, or
/// on an unusual file system) is read and written.
///
/// What comes out of a pipe or a socket goes into a socket as a copy. The pages in it may be the
/// memory of a frozen process (CRIU puts them there by `vmsplice`), and a socket's queue would hold these
/// pages and not their contents, for as long as the peer does not read, whoever has exited
/// meanwhile: after the process was resumed the peer got what it had written since (seen on Linux
/// 6.18 with UNIX and TCP sockets, 32 of 32 pages).
#[derive(Debug, Default)]
pub struct Mover {
    scratch: Option<Scratch>,
    copies: bool,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Scratch {
    read: Endpoint,
    write: Endpoint,
}

/// Why bytes could not be moved, and on which side.
#[derive(Debug)]
pub enum MoveError {
    /// The input failed.
    Input(io::Error),
    /// The output failed.
    Output(io::Error),
}

impl Mover {
    /// Moves up to `length` bytes, and waits for the first of them. 0 at the end of the input.
    pub fn some(
        &mut self,
        from: &Endpoint,
        to: &Endpoint,
        length: u64,
    ) -> Result<usize, MoveError> {
        // One call to splice moves at most 2 GiB.
        let length = length.min(1 << 30) as usize;
        if self.copies || must_copy(from, to) {
            return self.copy(from, to, length);
        }
        let moved = if from.kind() == Kind::Pipe || to.kind() == Kind::Pipe {
            direct(from, to, length)
        } else {
            self.through_scratch(from, to, length)
        };
        match moved {
            Err(error) if error.is_unsupported() => {
                self.copies = true;
                self.copy(from, to, length)
            }
            moved => moved,
        }
    }

    /// Moves up to `length` bytes by way of a pipe of the mover's own, also where one splice would
    /// do.
    ///
    /// A splice from a pipe to a file holds the pipe's mutex for as long as it waits there, and
    /// whoever writes the pipe, or only asks what is queued in it, waits too.
    pub fn staged(
        &mut self,
        from: &Endpoint,
        to: &Endpoint,
        length: usize,
    ) -> Result<usize, MoveError> {
        match must_copy(from, to) {
            true => self.copy(from, to, length),
            false => self.through_scratch(from, to, length),
        }
    }

    fn through_scratch(
        &mut self,
        from: &Endpoint,
        to: &Endpoint,
        length: usize,
    ) -> Result<usize, MoveError> {
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => none.insert(Scratch::new().map_err(MoveError::Input)?),
        };
        let staged = direct(from, &scratch.write, length)?;
        let mut left = staged;
        while left > 0 {
            left -= match direct(&scratch.read, to, left) {
                // What is staged must not be lost.
                Err(error) if error.is_unsupported() => {
                    copy(&mut self.buffer, &scratch.read, to, left)
                }
                moved => moved,
            }?;
        }
        Ok(staged)
    }

    fn copy(&mut self, from: &Endpoint, to: &Endpoint, length: usize) -> Result<usize, MoveError> {
        copy(&mut self.buffer, from, to, length)
    }
}

/// Whether pages must not be passed on, but their contents: see [`Mover`].
fn must_copy(from: &Endpoint, to: &Endpoint) -> bool {
    matches!(from.kind(), Kind::Pipe | Kind::Socket) && to.kind() == Kind::Socket
}

impl Scratch {
    fn new() -> io::Result<Scratch> {
        let Pipe { read, write } = Pipe::new()?;
        let endpoint = |fd| Endpoint::new(fd).map_err(io::Error::other);
        let scratch = Scratch { read: endpoint(read)?, write: endpoint(write)? };
        scratch.write.grow();
        Ok(scratch)
    }
}

impl MoveError {
    /// What the system has said, whichever side it was.
    pub fn into_inner(self) -> io::Error {
        let (MoveError::Input(error) | MoveError::Output(error)) = self;
        error
    }

    /// Whether the descriptors are such that the kernel cannot splice them.
    fn is_unsupported(&self) -> bool {
        let (MoveError::Input(error) | MoveError::Output(error)) = self;
        error.kind() == ErrorKind::InvalidInput
    }
}

/// One splice between two endpoints, one of which is a pipe.
fn direct(from: &Endpoint, to: &Endpoint, length: usize) -> Result<usize, MoveError> {
    loop {
        match splice::splice(from, to, length) {
            Ok(moved) => return Ok(moved),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Somebody who shares a descriptor made it non-blocking.
                poll::wait_readable(from).map_err(MoveError::Input)?;
                poll::wait_writable(to).map_err(MoveError::Output)?;
            }
            // A pipe cannot fail as an input.
            Err(error) if from.kind() == Kind::Pipe || error.kind() == ErrorKind::BrokenPipe => {
                return Err(MoveError::Output(error));
            }
            Err(error) => return Err(MoveError::Input(error)),
        }
    }
}

/// How much is copied at once, in bytes. It stays in the second level of a cache; with a quarter
/// of it a socket takes twice as many calls.
const COPIED: usize = 256 << 10;

fn copy(
    buffer: &mut Vec<u8>,
    mut from: &Endpoint,
    mut to: &Endpoint,
    length: usize,
) -> Result<usize, MoveError> {
    buffer.resize(COPIED, 0);
    let (window, _) = buffer.split_at_mut(length.min(COPIED));
    let read = from.read(window).map_err(MoveError::Input)?;
    let (bytes, _) = window.split_at(read);
    to.write_all(bytes).map_err(MoveError::Output)?;
    Ok(read)
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (MoveError::Input(error) | MoveError::Output(error)) = self;
        error.fmt(f)
    }
}

impl std::error::Error for MoveError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    const LENGTH: usize = 3 << 20;

    /// Where the bytes of a test come from or go to: the endpoint, and what feeds or empties it.
    struct Place {
        endpoint: Endpoint,
        far: Option<File>,
        path: Option<PathBuf>,
    }

    fn endpoint(fd: impl Into<std::os::fd::OwnedFd>) -> Endpoint {
        Endpoint::new(fd.into()).unwrap()
    }

    fn place(kind: &str, input: bool, folder: &Path, bytes: &[u8]) -> Place {
        match kind {
            "pipe" => {
                let Pipe { read, write } = Pipe::new().unwrap();
                let (near, far) = if input { (read, write) } else { (write, read) };
                Place { endpoint: endpoint(near), far: Some(far.into()), path: None }
            }
            "socket" => {
                let (near, far) = UnixStream::pair().unwrap();
                let far = File::from(std::os::fd::OwnedFd::from(far));
                Place { endpoint: endpoint(near), far: Some(far), path: None }
            }
            _ => {
                let path = folder.join(format!("{kind}-{input}"));
                fs::write(&path, if input { bytes } else { b"" }).unwrap();
                let append = !input && kind == "append";
                let file = OpenOptions::new().read(input).write(!input).append(append).open(&path);
                Place { endpoint: endpoint(file.unwrap()), far: None, path: Some(path) }
            }
        }
    }

    #[test]
    fn bytes_move_between_all_kinds_of_endpoint() {
        let folder = std::env::temp_dir().join(format!("pipe-io-mover-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let bytes: Vec<u8> = (0..LENGTH).map(|i| ((i * i) >> 7) as u8).collect();
        for input in ["pipe", "socket", "file"] {
            for output in ["pipe", "socket", "file", "append"] {
                let from = place(input, true, &folder, &bytes);
                let to = place(output, false, &folder, &bytes);
                let received = move_all(from, to, &bytes);
                assert!(received == bytes, "{input} to {output}");
            }
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_socket_gets_copies_of_the_pages_in_a_pipe_or_another_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, unix) = UnixStream::pair().unwrap();
        let (tcp_far, _) = listener.accept().unwrap();
        let (far, tcp_far): (OwnedFd, OwnedFd) = (far.into(), tcp_far.into());
        for (far, near) in [(far, endpoint(unix)), (tcp_far, endpoint(tcp))] {
            for (staged, by_socket) in [(false, false), (true, false), (false, true)] {
                let Pipe { read, write } = Pipe::new().unwrap();
                let mut memory = vec![b'A'; 4 * 4096];
                assert_eq!(splice::vmsplice_now(&write, &memory).unwrap(), memory.len());
                let (mut from, mut mover) = (endpoint(read), Mover::default());
                if by_socket {
                    let (near, far) = UnixStream::pair().unwrap();
                    splice::splice(&from, &near, memory.len()).unwrap();
                    from = endpoint(far);
                }
                let moved = match staged {
                    true => mover.staged(&from, &near, memory.len()),
                    false => mover.some(&from, &near, memory.len() as u64),
                };
                assert_eq!(moved.unwrap(), memory.len());
                memory.fill(b'B');
                let mut received = vec![0; memory.len()];
                File::from(far.try_clone().unwrap()).read_exact(&mut received).unwrap();
                assert!(received.iter().all(|byte| *byte == b'A'));
            }
        }
    }

    fn move_all(from: Place, to: Place, bytes: &[u8]) -> Vec<u8> {
        std::thread::scope(|scope| {
            if let Some(mut far) = from.far {
                scope.spawn(move || far.write_all(bytes).unwrap());
            }
            let reader = to.far.map(|mut far| {
                scope.spawn(move || {
                    let mut received = Vec::new();
                    far.read_to_end(&mut received).unwrap();
                    received
                })
            });
            let mut mover = Mover::default();
            while mover.some(&from.endpoint, &to.endpoint, u64::MAX).unwrap() > 0 {}
            drop(to.endpoint);
            match reader {
                Some(reader) => reader.join().unwrap(),
                None => fs::read(to.path.unwrap()).unwrap(),
            }
        })
    }
}
