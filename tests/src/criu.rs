//! A stand-in for CRIU: the client's side of the streamer's socket (docs/design.md
//! section 4), byte for byte, and the ways in which it may go wrong.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;

/// How long the streamer may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether somebody listens on a UNIX socket, by the name that it was bound to. Its file is there
/// a moment before.
pub fn is_listened_on(socket: &str) -> bool {
    const ACCEPTS: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("the kernel's list");
    sockets.lines().any(|line| {
        line.split(' ').nth(3) == Some(ACCEPTS) && line.ends_with(&format!(" {socket}"))
    })
}

/// `criu dump --stream`. Dropping it hangs up, as the death of CRIU does; the
/// pipes that it has opened live on until they are dropped too.
#[derive(Debug)]
pub struct DumpClient(Connection);

impl DumpClient {
    /// Connects to the `criu-sock-capture` of `images_dir`.
    pub fn connect(images_dir: &Path) -> io::Result<Self> {
        Connection::open(images_dir, "streamer-capture.sock").map(Self)
    }

    /// Opens a file: the write end of its pipe, to be filled and dropped.
    pub fn open(&mut self, name: &str) -> io::Result<File> {
        self.open_sized(name, None)
    }

    /// The same with a pipe of `capacity` bytes, if that is allowed.
    pub fn open_sized(&mut self, name: &str, capacity: Option<usize>) -> io::Result<File> {
        self.request(name)?;
        let (read_end, write_end) = pipe(capacity)?;
        self.send_pipe(&read_end)?;
        Ok(write_end.into())
    }

    /// Sends a whole file.
    pub fn send(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.open(name)?.write_all(content)
    }

    /// Asks for a file and leaves it at that: no pipe follows.
    pub fn request(&mut self, name: &str) -> io::Result<()> {
        self.0.send_message(&request(name.as_bytes()))
    }

    /// Sends the byte that carries a pipe's read end (or anything else).
    pub fn send_pipe(&mut self, read_end: impl AsFd) -> io::Result<()> {
        self.0.send_descriptor(read_end)
    }

    /// Sends bytes that are nothing of the protocol.
    pub fn send_garbage(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.socket.write_all(bytes)
    }

    /// Closes the reading side of the socket.
    pub fn stop_reading(&mut self) {
        self.0.socket.shutdown(std::net::Shutdown::Read).expect("the socket is open");
    }

    /// Waits until the streamer hangs up; true if it did within the time limit.
    pub fn was_hung_up_on(&mut self) -> bool {
        match self.0.socket.read(&mut [0]) {
            Ok(received) => received == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// `criu restore --stream`. Dropping it hangs up.
#[derive(Debug)]
pub struct RestoreClient(Connection);

impl RestoreClient {
    /// Connects to the `image-serve` of `images_dir`.
    pub fn connect(images_dir: &Path) -> io::Result<Self> {
        Connection::open(images_dir, "streamer-serve.sock").map(Self)
    }

    /// Opens a file: the read end of its pipe, or `None` if the image has no
    /// such file.
    pub fn open(&mut self, name: &str) -> io::Result<Option<File>> {
        self.open_sized(name, None)
    }

    /// The same with a pipe of `capacity` bytes, if that is allowed.
    pub fn open_sized(&mut self, name: &str, capacity: Option<usize>) -> io::Result<Option<File>> {
        if !self.ask(name)? {
            return Ok(None);
        }
        let (read_end, write_end) = pipe(capacity)?;
        self.send_pipe(&write_end)?;
        Ok(Some(read_end.into()))
    }

    /// A whole file, or `None` if the image has no such file.
    pub fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open(name)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Asks for a file: whether the image has it. If so, [`Self::send_pipe`] is
    /// due.
    pub fn ask(&mut self, name: &str) -> io::Result<bool> {
        self.0.send_message(&request(name.as_bytes()))?;
        self.0.receive_reply()
    }

    /// Sends the byte that carries a pipe's write end (or anything else).
    pub fn send_pipe(&mut self, write_end: impl AsFd) -> io::Result<()> {
        self.0.send_descriptor(write_end)
    }

    /// Sends bytes that are nothing of the protocol.
    pub fn send_garbage(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.socket.write_all(bytes)
    }
}

/// A request's protobuf: `{ required string filename = 1 }`.
pub fn request(name: &[u8]) -> Vec<u8> {
    let mut protobuf = vec![1 << 3 | 2];
    if name.len() >= 0x80 {
        protobuf.push(name.len() as u8 | 0x80);
    }
    protobuf.push(if name.len() >= 0x80 { (name.len() >> 7) as u8 } else { name.len() as u8 });
    protobuf.extend_from_slice(name);
    protobuf
}

/// A pipe that no child inherits, of `capacity` bytes if that is allowed: its
/// read end and its write end.
pub fn pipe(capacity: Option<usize>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(bytes) = capacity {
        // Refused beyond pipe-max-size: any size is good for a test.
        let _ = fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(bytes as i32));
    }
    Ok((read_end, write_end))
}

#[derive(Debug)]
struct Connection {
    socket: UnixStream,
}

impl Connection {
    /// A UNIX socket's path ends at 107 bytes, so go by a descriptor of the
    /// directory, which may have any path.
    fn open(images_dir: &Path, socket: &str) -> io::Result<Self> {
        let dir = File::open(images_dir)?;
        let path = format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd());
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// CRIU writes the length and the message in two calls or one, so both occur:
    /// here two, and [`DumpClient::send_garbage`] can send any other split.
    fn send_message(&mut self, protobuf: &[u8]) -> io::Result<()> {
        self.socket.write_all(&(protobuf.len() as u32).to_le_bytes())?;
        self.socket.write_all(protobuf)
    }

    fn send_descriptor(&mut self, descriptor: impl AsFd) -> io::Result<()> {
        let descriptors = [descriptor.as_fd().as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let byte = [IoSlice::new(&[0])];
        let socket = self.socket.as_raw_fd();
        sendmsg::<()>(socket, &byte, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// A reply is `{ required bool exists = 1 }`: two bytes and their length.
    fn receive_reply(&mut self) -> io::Result<bool> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length)?;
        let mut protobuf = vec![0; u32::from_le_bytes(length).min(1024) as usize];
        self.socket.read_exact(&mut protobuf)?;
        match protobuf[..] {
            [0x08, 0] => Ok(false),
            [0x08, 1] => Ok(true),
            _ => Err(io::Error::other(format!("{protobuf:02x?} is no reply"))),
        }
    }
}
