//! CRIU's side of the streamer's socket (docs/design.md section 4).

use crate::pipes;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

/// A connection to a streamer.
#[derive(Debug)]
pub(crate) struct Client(UnixStream);

impl Client {
    /// To whoever takes dumps in `directory`.
    pub(crate) fn dump(directory: &Path) -> io::Result<Client> {
        UnixStream::connect(directory.join("streamer-capture.sock")).map(Client)
    }

    /// To whoever serves restores in `directory`.
    pub(crate) fn restore(directory: &Path) -> io::Result<Client> {
        UnixStream::connect(directory.join("streamer-serve.sock")).map(Client)
    }

    /// Opens a file of a dump: the end of its pipe to write into.
    pub(crate) fn open_to_write(&mut self, name: &str) -> io::Result<OwnedFd> {
        self.request(name)?;
        let (read, write) = pipes::pipe()?;
        self.send_descriptor(read.as_raw_fd())?;
        Ok(write)
    }

    /// Opens a file of a restore: the end of its pipe to read from, if the file exists.
    pub(crate) fn open_to_read(&mut self, name: &str) -> io::Result<Option<OwnedFd>> {
        self.request(name)?;
        let mut reply = [0; 6];
        self.0.read_exact(&mut reply)?;
        match reply {
            [2, 0, 0, 0, 8, 0] => Ok(None),
            [2, 0, 0, 0, 8, 1] => {
                let (read, write) = pipes::pipe()?;
                self.send_descriptor(write.as_raw_fd())?;
                Ok(Some(read))
            }
            _ => Err(io::Error::other(format!("{reply:02x?} is no reply"))),
        }
    }

    /// Length and protobuf in one call, as CRIU sends them. The names here are short.
    fn request(&mut self, name: &str) -> io::Result<()> {
        let length = name.len() as u8;
        let mut message = vec![length + 2, 0, 0, 0, 1 << 3 | 2, length];
        message.extend_from_slice(name.as_bytes());
        self.0.write_all(&message)
    }

    fn send_descriptor(&self, descriptor: RawFd) -> io::Result<()> {
        let descriptors = [descriptor];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let byte = [IoSlice::new(&[0])];
        loop {
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.0.as_raw_fd(), &byte, &rights, flags, None) {
                Ok(_) => return Ok(()),
                // Only root may have any number of descriptors under way.
                Err(Errno::ETOOMANYREFS) => thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
