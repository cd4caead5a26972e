//! What CRIU says on `lazy-pages.socket`.
//!
//! One connection serves the whole tree. Each process says its number in the image and then sends
//! the descriptor of its memory, with one byte; one that has ended already says its number negative.
//! When all processes are about to run, CRIU says so with another number, and hangs up.

use crate::Error;
use nix::errno::Errno;
use pipe_io::socket;
use pipe_io::userfault::UserFault;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// "The tree is let run."
const RESTORED: u32 = 0x5253_5446;

/// A connection from CRIU.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: UnixStream,
    /// Bytes that were received and not yet understood.
    received: Vec<u8>,
    /// Descriptors that came with them.
    fds: VecDeque<OwnedFd>,
    /// The process whose descriptor is due.
    announced: Option<i32>,
    /// Who has sent the last bytes.
    sender: i32,
    hung_up: bool,
}

/// What CRIU said.
#[derive(Debug)]
pub(crate) enum Event {
    /// The memory of a process.
    Memory {
        /// Its number in the image.
        pid: i32,
        /// Its number here.
        sender: i32,
        memory: UserFault,
    },
    /// The processes are let run.
    Restored,
    /// There will be no more.
    HangUp,
}

impl Connection {
    pub(crate) fn new(socket: UnixStream) -> Connection {
        Connection {
            socket,
            received: Vec::new(),
            fds: VecDeque::new(),
            announced: None,
            sender: 0,
            hung_up: false,
        }
    }

    /// What CRIU said next, or `None` if it has not said it yet. Never waits.
    pub(crate) fn next_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.understand()? {
                return Ok(Some(event));
            }
            if self.hung_up {
                let is_between = self.received.is_empty() && self.announced.is_none();
                return if is_between { Ok(Some(Event::HangUp)) } else { Err(Error::Protocol) };
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    fn understand(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(pid) = self.announced {
                if self.received.is_empty() {
                    return Ok(None);
                }
                let fd = self.fds.pop_front().ok_or(Error::Protocol)?;
                self.received.remove(0);
                self.announced = None;
                let memory = UserFault::new(fd);
                return Ok(Some(Event::Memory { pid, sender: self.sender, memory }));
            }
            let Some(word) = self.received.first_chunk::<4>().copied() else { return Ok(None) };
            self.received.drain(..4);
            if u32::from_ne_bytes(word) == RESTORED {
                return Ok(Some(Event::Restored));
            }
            let pid = i32::from_ne_bytes(word);
            // A process that has ended has no memory.
            self.announced = (pid >= 0).then_some(pid);
        }
    }

    /// Receives once; `false` if there is nothing to receive yet. What two processes have said
    /// never comes together, nor what comes behind a descriptor.
    fn receive(&mut self) -> Result<bool, Error> {
        let mut buffer = [0; 64];
        let received = match socket::receive_now(&self.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                self.hung_up = true;
                return Ok(true);
            }
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                return Err(Error::System(Errno::EMFILE.into()));
            }
            Err(error) => return Err(Error::System(error)),
        };
        self.hung_up = received.length == 0;
        if !self.hung_up {
            self.sender = received.sender.unwrap_or(0);
        }
        self.received.extend_from_slice(buffer.get(..received.length).unwrap_or_default());
        self.fds.extend(received.fds);
        Ok(true)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Write};
    use std::os::fd::AsRawFd;

    fn connected() -> (UnixStream, Connection) {
        let (criu, ours) = UnixStream::pair().unwrap();
        socket::ask_for_senders(&ours).unwrap();
        (criu, Connection::new(ours))
    }

    fn send_descriptor(criu: &UnixStream) {
        let fds = [criu.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let byte = [IoSlice::new(b"\0")];
        sendmsg::<()>(criu.as_raw_fd(), &byte, &control, MsgFlags::empty(), None).unwrap();
    }

    #[test]
    fn each_process_is_known_by_its_number_in_the_image_and_by_who_has_sent_it() {
        let (mut criu, mut connection) = connected();
        for pid in [7_i32, 8] {
            criu.write_all(&pid.to_ne_bytes()).unwrap();
            send_descriptor(&criu);
        }
        criu.write_all(&(-9_i32).to_ne_bytes()).unwrap();
        criu.write_all(&RESTORED.to_ne_bytes()).unwrap();
        drop(criu);
        for expected in [7, 8] {
            let event = connection.next_event().unwrap();
            let Some(Event::Memory { pid, sender, .. }) = event else { panic!("{event:?}") };
            assert_eq!((pid, sender), (expected, std::process::id() as i32));
        }
        assert!(matches!(connection.next_event().unwrap(), Some(Event::Restored)));
        assert!(matches!(connection.next_event().unwrap(), Some(Event::HangUp)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (bytes, has_descriptor) in [(&b"\x07"[..], false), (b"\x07\0\0\0", false)] {
            let (mut criu, mut connection) = connected();
            criu.write_all(bytes).unwrap();
            assert!(!has_descriptor && connection.next_event().unwrap().is_none());
            drop(criu);
            assert!(matches!(connection.next_event(), Err(Error::Protocol)));
        }
        let (mut criu, mut connection) = connected();
        criu.write_all(b"\x07\0\0\0x").unwrap();
        assert!(matches!(connection.next_event(), Err(Error::Protocol)));
    }
}
