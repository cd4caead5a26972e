//! Waiting for CRIU in the images directory.

use crate::Connection;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What CRIU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `criu dump`: it writes files.
    Capture,
    /// `criu restore`: it reads them.
    Serve,
    /// `criu restore --lazy-pages`: it hands over memory. [`Connection`] does not speak this.
    LazyPages,
}

/// A socket in the images directory that CRIU can connect to.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    direction: Direction,
}

/// Why CRIU cannot be listened for.
#[derive(Debug)]
pub enum ListenError {
    /// The images directory cannot be opened.
    Directory(PathBuf, io::Error),
    /// The socket cannot be made.
    Socket(PathBuf, io::Error),
    /// Another program listens there.
    Taken(PathBuf),
    /// The socket is another user's, so it cannot be known whether somebody listens.
    Foreign(PathBuf),
}

impl Direction {
    /// The name of the socket in the images directory.
    pub fn socket_name(self) -> &'static str {
        match self {
            Direction::Capture => "streamer-capture.sock",
            Direction::Serve => "streamer-serve.sock",
            Direction::LazyPages => "lazy-pages.socket",
        }
    }
}

impl Listener {
    /// Makes the socket in `directory` and listens. It can be connected to by our own user (and
    /// root) only. One that a killed program has left behind is replaced.
    ///
    /// The caller removes [`Listener::path`] when it is done.
    pub fn bind(directory: &Path, direction: Direction) -> Result<Listener, ListenError> {
        let path = directory.join(direction.socket_name());
        let socket = listen_at(&path)?;
        if direction == Direction::Serve {
            // Where the kernel cannot, Connection::sender does not tell.
            let _ = pipe_io::socket::ask_for_senders(&socket);
        }
        Ok(Listener { socket, path, direction })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a connection, if there is one. Those of other users are turned away, as long as they
    /// are not root.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        let stream = self.accept_stream()?;
        Ok(stream.map(|stream| Connection::new(stream, self.direction)))
    }

    /// The same, for what [`Connection`] does not speak.
    pub fn accept_stream(&self) -> io::Result<Option<UnixStream>> {
        loop {
            let stream = match self.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => return Err(error),
                },
            };
            if is_allowed(&stream)? {
                return Ok(Some(stream));
            }
        }
    }

    /// Takes no more connections: from now on they are refused at once, while the socket stays
    /// where it is and tells that the program lives.
    pub fn refuse_more(&self) {
        let _ =
            nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// Makes a socket with this path and listens, without waiting in `accept`. It can be connected to
/// by our own user (and root) only. One that a killed program has left behind is replaced.
pub fn listen_at(path: &Path) -> Result<UnixListener, ListenError> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let unopened = |error| ListenError::Directory(directory.to_owned(), error);
    let unmade = |error| ListenError::Socket(path.to_owned(), error);
    let folder = File::open(directory).map_err(unopened)?;
    let address = Address::new(&folder, path);
    // Two programs that start at once must not both replace what a third has left.
    let _lock = lock(&folder);
    if path.symlink_metadata().is_ok() {
        match address.is_listened_on() {
            Ok(true) => return Err(ListenError::Taken(path.to_owned())),
            Ok(false) => {}
            Err(Errno::EACCES) => return Err(ListenError::Foreign(path.to_owned())),
            Err(error) => return Err(unmade(error.into())),
        }
        remove_stale(path).map_err(unmade)?;
    }
    address.bind().map_err(unmade)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether what has connected is of our own user, or of root. Others are hung up on.
pub fn is_allowed(stream: &UnixStream) -> io::Result<bool> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    let allowed = peer.uid() == 0 || peer.uid() == geteuid().as_raw();
    if !allowed {
        let _ = stream.shutdown(Shutdown::Both);
    }
    Ok(allowed)
}

/// Locks a directory for a moment. A user may have locked it for longer, around all of a dump:
/// then nobody else is there to be kept out, and we go on without.
fn lock(folder: &File) -> Option<Flock<File>> {
    const TRIES: usize = 50;
    const PAUSE: Duration = Duration::from_millis(10);

    let mut folder = folder.try_clone().ok()?;
    for _ in 0..TRIES {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, _)) => folder = back,
        }
        thread::sleep(PAUSE);
    }
    None
}

/// Removes a socket that nobody listens on; anything else in its place is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if !path.symlink_metadata()?.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    std::fs::remove_file(path)
}

/// The socket's path in a form that fits into an address, which ends at 107 bytes.
struct Address(PathBuf);

impl Address {
    const PATH_MAX: usize = 107;

    fn new(folder: &File, path: &Path) -> Address {
        if path.as_os_str().len() <= Address::PATH_MAX {
            return Address(path.to_owned());
        }
        let name = path.file_name().unwrap_or_default();
        let folder = format!("/proc/self/fd/{}", folder.as_raw_fd());
        Address(Path::new(&folder).join(name))
    }

    /// Asks without disturbing whoever listens: a connection of another type than theirs is
    /// refused as such (EPROTOTYPE), and only if there is somebody. Whoever may not write to the
    /// socket is told nothing (EACCES).
    fn is_listened_on(&self) -> nix::Result<bool> {
        let probe = || -> nix::Result<()> {
            let kind = SockType::Datagram;
            let probe: OwnedFd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            connect(probe.as_raw_fd(), &UnixAddr::new(&self.0)?)
        };
        match probe() {
            Ok(()) | Err(Errno::EPROTOTYPE) => Ok(true),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn bind(&self) -> io::Result<UnixListener> {
        // For the socket to be ours alone from its first moment on. No other thread of a filter
        // makes files.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&self.0);
        umask(before);
        let socket = bound?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, error) = match self {
            ListenError::Directory(path, error) | ListenError::Socket(path, error) => (path, error),
            ListenError::Taken(path) => {
                return write!(f, "{}: another program listens there", path.display());
            }
            ListenError::Foreign(path) => {
                return write!(f, "{}: is another user's, who may listen there", path.display());
            }
        };
        write!(f, "{}: {}", path.display(), pipe_io::reason(error))
    }
}

impl std::error::Error for ListenError {}
