//! The ends of a stream: pipes, files and sockets.

use crate::inherit::{self, Direction, Refusal};
use crate::{pipe, poll};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{Whence, lseek};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// The kinds of descriptor that carry a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pipe or a FIFO.
    Pipe,
    /// A regular file.
    File,
    /// A stream socket, UNIX or TCP.
    Socket,
    /// A device that isn't a terminal, such as `/dev/null`.
    Device,
}

/// An open descriptor that carries a stream, in one direction.
///
/// Reading and writing wait as long as they must, also where another program has made the
/// descriptor, which it may share with us, non-blocking.
#[derive(Debug)]
pub struct Endpoint {
    fd: OwnedFd,
    kind: Kind,
}

impl Endpoint {
    /// Takes over a descriptor that the program was started with. Each number must be taken at
    /// most once.
    pub fn inherit(number: RawFd, direction: Direction) -> Result<Endpoint, Refusal> {
        Endpoint::new(inherit::take(number, direction)?)
    }

    /// Sees what kind of endpoint the descriptor is.
    pub fn new(fd: OwnedFd) -> Result<Endpoint, Refusal> {
        Ok(Endpoint { kind: kind(&fd)?, fd })
    }

    /// Takes over an end of a pipe that no other program holds, and returns its capacity in bytes.
    /// Reading and writing fail rather than wait. Two calls to the system, as it is for pipes that
    /// come by the thousand.
    pub fn own_pipe(fd: OwnedFd) -> io::Result<(Endpoint, usize)> {
        // Fails if it is no pipe.
        let capacity = pipe::capacity(&fd)?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Endpoint { fd, kind: Kind::Pipe }, capacity))
    }

    /// Makes a pipe as large as it may be: smaller is slower, and no error.
    pub fn grow(&self) {
        if self.kind == Kind::Pipe {
            let _ = pipe::grow(&self.fd, pipe::WANTED);
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Passes over `length` bytes of a regular file without reading them, and returns where they
    /// begin; `None` if the file has fewer.
    pub fn skip(&self, length: u64) -> io::Result<Option<u64>> {
        let seek = |offset, whence| lseek(&self.fd, offset, whence).map(|at| at as u64);
        let offset = seek(0, Whence::SeekCur)?;
        let size = u64::try_from(fstat(&self.fd)?.st_size).unwrap_or(0);
        match offset.checked_add(length).filter(|end| *end <= size) {
            Some(end) => {
                seek(i64::try_from(end).map_err(io::Error::other)?, Whence::SeekSet)?;
                Ok(Some(offset))
            }
            None => Ok(None),
        }
    }

    /// Goes to a place of a regular file, from where it is read or written next.
    pub fn seek(&self, offset: u64) -> io::Result<()> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        lseek(&self.fd, offset, Whence::SeekSet)?;
        Ok(())
    }

    /// Reads from a place of a regular file, wherever it is read next.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        loop {
            match nix::sys::uio::pread(&self.fd, buffer, offset) {
                Err(Errno::EINTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// Another descriptor of the same open file.
    pub fn try_clone(&self) -> io::Result<Endpoint> {
        Ok(Endpoint { fd: self.fd.try_clone()?, kind: self.kind })
    }

    /// Makes reading and writing fail rather than wait. Only for a descriptor that no other
    /// program has: it would be non-blocking there too.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.fd, FcntlArg::F_GETFL)?);
        fcntl(&self.fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// Writes what there is room for; fails with [`ErrorKind::WouldBlock`] where there is none,
    /// after [`Endpoint::set_nonblocking`].
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::write(&self.fd, bytes) {
                Err(Errno::EINTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// Closes the descriptor at once, whatever was taken of what was written.
    pub(crate) fn close_now(self) -> io::Result<()> {
        nix::unistd::close(self.fd).map_err(io::Error::from)
    }
}

/// A pipe, a file, a directory or a socket by its device and inode, the same through each
/// descriptor and each name that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    /// It carries two streams, one in each direction, that have nothing to do with each other.
    pub is_socket: bool,
}

impl FileId {
    /// What the descriptor leads to. `None` for a device, where any number of programs may write,
    /// and for what is not open.
    pub fn of(fd: impl AsFd) -> Option<FileId> {
        fstat(fd).ok().and_then(|stat| FileId::of_stat(&stat))
    }

    /// The same of what `stat` and its like have said.
    pub fn of_stat(stat: &FileStat) -> Option<FileId> {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let is_device = kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK;
        (!is_device).then_some(FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
            is_socket: kind == SFlag::S_IFSOCK,
        })
    }
}

fn kind(fd: &OwnedFd) -> Result<Kind, Refusal> {
    let stat = fstat(fd).map_err(|_| Refusal::NotOpen)?;
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => Ok(Kind::Pipe),
        SFlag::S_IFREG => Ok(Kind::File),
        SFlag::S_IFSOCK => match getsockopt(fd, sockopt::SockType) {
            Ok(SockType::Stream) => Ok(Kind::Socket),
            _ => Err(Refusal::NoStream),
        },
        SFlag::S_IFCHR if fd.is_terminal() => Err(Refusal::Terminal),
        SFlag::S_IFCHR => Ok(Kind::Device),
        _ => Err(Refusal::NoStream),
    }
}

impl From<Endpoint> for OwnedFd {
    fn from(endpoint: Endpoint) -> OwnedFd {
        endpoint.fd
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Endpoint {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }
}

impl Read for &Endpoint {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::read(&self.fd, buffer).map_err(io::Error::from) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll::wait_readable(&self.fd)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// A descriptor that is written as an [`Endpoint`] is: a slow reader is waited for also where
/// another program that shares the descriptor has made it non-blocking, as ssh does with its
/// standard error. Nothing is buffered.
#[derive(Debug)]
pub struct Patient<F>(pub F);

impl<F: AsFd> Write for Patient<F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::write(&self.0, buffer).map_err(io::Error::from) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll::wait_writable(&self.0)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Endpoint {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &Endpoint {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Patient(&self.fd).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
