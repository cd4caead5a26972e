//! CRIU's own part, for a program that must know what an image holds before CRIU does.

use crate::Direction;
use crate::message::{LENGTH_FIELD, Reply, Request};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pipe_io::pipe::Pipe;
use pipe_io::poll::{self, PollFd, PollFlags};
use prost::Message;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Reads small files of an image that is being served in `images_dir`. Each call waits at most as
/// long as `limit` says, in all.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    until: Instant,
}

/// More than any file that this is meant for has.
const LARGEST: u64 = 64 << 20;

impl Client {
    /// Connects to the socket, whose path is short enough for that.
    pub fn connect(images_dir: &Path, limit: Duration) -> io::Result<Client> {
        let socket = UnixStream::connect(images_dir.join(Direction::Serve.socket_name()))?;
        Ok(Client { socket, until: Instant::now() + limit })
    }

    /// A whole file; `None` if the image has none of this name.
    pub fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self.open(name)? {
            Some(file) => self.read_to_end(File::from(file)).map(Some),
            None => Ok(None),
        }
    }

    /// The pipe that a file comes out of; `None` if the image has none of this name.
    pub fn open(&mut self, name: &str) -> io::Result<Option<OwnedFd>> {
        let request = Request { filename: name.to_owned() };
        self.set_limit()?;
        let mut message = (request.encoded_len() as u32).to_le_bytes().to_vec();
        request.encode_raw(&mut message);
        self.socket.write_all(&message)?;
        if !self.receive_reply()? {
            return Ok(None);
        }
        let Pipe { read, write } = Pipe::new()?;
        let fds = [write.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let byte = [IoSlice::new(&[0])];
        sendmsg::<()>(self.socket.as_raw_fd(), &byte, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(Some(read))
    }

    fn receive_reply(&mut self) -> io::Result<bool> {
        const LONGEST: usize = 64;

        let mut length = [0; LENGTH_FIELD];
        self.socket.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        let mut reply = vec![0; length.min(LONGEST)];
        self.socket.read_exact(&mut reply)?;
        let reply = Reply::decode(reply.as_slice()).map_err(io::Error::other)?;
        Ok(reply.exists)
    }

    fn read_to_end(&self, mut file: File) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1 << 14];
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if !poll::wait_for(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], left)? {
                return Err(ErrorKind::TimedOut.into());
            }
            match file.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(read) => bytes.extend(buffer.iter().take(read)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if bytes.len() as u64 > LARGEST {
                return Err(ErrorKind::OutOfMemory.into());
            }
        }
    }

    fn set_limit(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        let left = Some(left.max(Duration::from_millis(1)));
        self.socket.set_read_timeout(left)?;
        self.socket.set_write_timeout(left)
    }
}
