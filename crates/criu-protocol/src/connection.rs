//! A connection from CRIU.

use crate::Direction;
use crate::message::{LENGTH_FIELD, REQUEST_MAX, Reply, Request};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};
use pipe_io::socket;
use prost::Message;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use wire_format::{FileName, NameError};

/// Speaks with one CRIU. No call of it waits.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    direction: Direction,
    /// Bytes that were received and not yet understood.
    received: Vec<u8>,
    /// Descriptors that came with them.
    pipes: VecDeque<OwnedFd>,
    /// The next byte carries a pipe, for the last request.
    awaits_pipe: bool,
    hung_up: bool,
    /// The process that has sent what was received last, where the kernel tells.
    sender: Option<i32>,
}

/// What CRIU said.
#[derive(Debug)]
pub enum Event {
    /// It wants to write or to read this file. On a restore it waits for a reply. No file can
    /// have a name that is not a path component.
    Request(Result<FileName, NameError>),
    /// The pipe for the file of the last request.
    Pipe(OwnedFd),
    /// It has hung up: there will be no more.
    HangUp,
}

/// CRIU's words make no sense, or the socket failed.
#[derive(Debug)]
pub enum ProtocolError {
    /// The socket failed.
    Io(io::Error),
    /// The connection ended within a message.
    Truncated,
    /// A request of that many bytes.
    Oversized(usize),
    /// A request that cannot be decoded.
    Undecodable,
    /// A name that is not a path component.
    Name(NameError),
    /// A pipe was due, and did not come with its byte.
    NoPipe,
    /// A pipe came and could not be received: the program has too many descriptors open.
    TooManyDescriptors,
}

impl Connection {
    /// Speaks with the CRIU at the other end of `socket`.
    pub fn new(socket: UnixStream, direction: Direction) -> Connection {
        Connection {
            socket,
            direction,
            received: Vec::new(),
            pipes: VecDeque::new(),
            awaits_pipe: false,
            hung_up: false,
            sender: None,
        }
    }

    /// What CRIU said next, or `None` if it has not said it yet.
    ///
    /// On a dump each request is followed by its pipe; on a restore only if the reply was that
    /// the file exists.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        loop {
            if let Some(event) = self.next_received()? {
                return Ok(Some(event));
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// What CRIU said next, of what [`Connection::receive`] has received.
    pub fn next_received(&mut self) -> Result<Option<Event>, ProtocolError> {
        match self.understand()? {
            None if !self.hung_up => Ok(None),
            None if self.received.is_empty() && !self.awaits_pipe => Ok(Some(Event::HangUp)),
            None => Err(ProtocolError::Truncated),
            event => Ok(event),
        }
    }

    /// Receives once; `false` if there is nothing to receive yet.
    ///
    /// One call takes a request and the byte with its pipe: the kernel ends a message behind the
    /// byte that carried descriptors, and so tells which byte that was.
    pub fn receive(&mut self) -> Result<bool, ProtocolError> {
        let mut buffer = [0; REQUEST_MAX];
        let received = match socket::receive_now(&self.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                return Err(ProtocolError::TooManyDescriptors);
            }
            // CRIU died with a reply of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                self.hung_up = true;
                return Ok(true);
            }
            Err(error) => return Err(ProtocolError::Io(error)),
        };
        self.hung_up = received.length == 0;
        self.sender = received.sender;
        self.received.extend_from_slice(buffer.get(..received.length).unwrap_or_default());
        self.pipes.extend(received.fds);
        Ok(true)
    }

    /// Answers a request for reading.
    pub fn reply(&mut self, exists: bool) -> Result<(), ProtocolError> {
        let bytes = Reply { exists }.frame();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            // CRIU waits for each reply before it sends more, so there is always room for one.
            match send(self.socket.as_raw_fd(), &bytes, flags) {
                Ok(sent) if sent == bytes.len() => break,
                Ok(_) => return Err(ProtocolError::Io(io::ErrorKind::WriteZero.into())),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(ProtocolError::Io(error.into())),
            }
        }
        self.awaits_pipe = exists;
        Ok(())
    }

    /// Whether CRIU has begun to say something that is not complete: a request, or one whose pipe
    /// is due.
    pub fn is_within_a_message(&self) -> bool {
        self.awaits_pipe || !self.received.is_empty()
    }

    /// Takes no more from CRIU: what it sends from now on fails in CRIU, with a broken pipe. What
    /// it has sent before is still there for [`Connection::next_event`], and then a hang-up. The
    /// kernel sees to it that nothing falls between.
    pub fn refuse_more(&self) -> Result<(), ProtocolError> {
        self.socket.shutdown(Shutdown::Read).map_err(ProtocolError::Io)
    }

    /// The process that has connected, where the kernel tells.
    pub fn peer(&self) -> Option<i32> {
        getsockopt(&self.socket, sockopt::PeerCredentials).ok().map(|peer| peer.pid())
    }

    /// The process of CRIU's that has sent what was received last, as our PID namespace knows it: on
    /// a restore. Several share a connection, and each waits for the reply to what it asks.
    pub fn sender(&self) -> Option<i32> {
        self.sender
    }

    fn understand(&mut self) -> Result<Option<Event>, ProtocolError> {
        if self.awaits_pipe {
            if self.received.is_empty() {
                return Ok(None);
            }
            let pipe = self.pipes.pop_front().ok_or(ProtocolError::NoPipe)?;
            self.received.remove(0);
            self.awaits_pipe = false;
            return Ok(Some(Event::Pipe(pipe)));
        }
        let Some(length) = self.received.first_chunk::<LENGTH_FIELD>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > REQUEST_MAX {
            return Err(ProtocolError::Oversized(length));
        }
        let Some(body) = self.received.get(LENGTH_FIELD..LENGTH_FIELD + length) else {
            return Ok(None);
        };
        let request = Request::decode(body).map_err(|_| ProtocolError::Undecodable)?;
        let name = FileName::new(&request.filename);
        self.received.drain(..LENGTH_FIELD + length);
        self.awaits_pipe = self.direction == Direction::Capture;
        Ok(Some(Event::Request(name)))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Io(error) => f.write_str(&pipe_io::reason(error)),
            ProtocolError::Truncated => f.write_str("hung up within a request"),
            ProtocolError::Oversized(length) => write!(f, "a request of {length} bytes"),
            ProtocolError::Undecodable => f.write_str("a request that cannot be decoded"),
            ProtocolError::Name(error) => error.fmt(f),
            ProtocolError::NoPipe => f.write_str("a request without its pipe"),
            ProtocolError::TooManyDescriptors => {
                f.write_str("too many files open at once (see ulimit -n)")
            }
        }
    }
}

impl std::error::Error for ProtocolError {}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use pipe_io::pipe::Pipe;
    use std::io::{IoSlice, Read, Write};

    /// A request for `a.img`, as CRIU sends it.
    const REQUEST: &[u8] = b"\x07\0\0\0\x0a\x05a.img";

    fn connected(direction: Direction) -> (UnixStream, Connection) {
        let (criu, ours) = UnixStream::pair().unwrap();
        (criu, Connection::new(ours, direction))
    }

    fn send_pipe(criu: &UnixStream) {
        let pipe = Pipe::new().unwrap();
        let fds = [pipe.read.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let byte = [IoSlice::new(b"x")];
        sendmsg::<()>(criu.as_raw_fd(), &byte, &control, MsgFlags::empty(), None).unwrap();
    }

    fn is_request(event: Option<Event>) -> bool {
        matches!(event, Some(Event::Request(Ok(name))) if name.as_str() == "a.img")
    }

    #[test]
    fn requests_that_come_at_once_keep_their_pipes() {
        let (mut criu, mut connection) = connected(Direction::Capture);
        for _ in 0..3 {
            criu.write_all(REQUEST).unwrap();
            send_pipe(&criu);
        }
        drop(criu);
        for _ in 0..3 {
            assert!(is_request(connection.next_event().unwrap()));
            assert!(matches!(connection.next_event().unwrap(), Some(Event::Pipe(_))));
        }
        assert!(matches!(connection.next_event().unwrap(), Some(Event::HangUp)));
    }

    #[test]
    fn a_request_may_come_byte_by_byte() {
        let (mut criu, mut connection) = connected(Direction::Capture);
        for byte in REQUEST {
            assert!(connection.next_event().unwrap().is_none());
            criu.write_all(&[*byte]).unwrap();
        }
        assert!(is_request(connection.next_event().unwrap()));
    }

    #[test]
    fn a_pipe_follows_on_a_restore_only_if_the_file_exists() {
        let (mut criu, mut connection) = connected(Direction::Serve);
        for exists in [false, true] {
            criu.write_all(REQUEST).unwrap();
            assert!(is_request(connection.next_event().unwrap()));
            connection.reply(exists).unwrap();
            let mut reply = [0; 6];
            criu.read_exact(&mut reply).unwrap();
            assert_eq!(reply, [2, 0, 0, 0, 8, u8::from(exists)]);
        }
        send_pipe(&criu);
        assert!(matches!(connection.next_event().unwrap(), Some(Event::Pipe(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases: [(&[u8], &str); 4] = [
            (b"\xff\xff\xff\xff", "a request of 4294967295 bytes"),
            (b"\x02\0\0\0\xff\xff", "a request that cannot be decoded"),
            (b"\x07\0\0\0\x0a\x05a.imgx", "a request without its pipe"),
            (b"\x07\0\0\0\x0a\x05a.i", "hung up within a request"),
        ];
        for (bytes, expected) in cases {
            let (mut criu, mut connection) = connected(Direction::Capture);
            criu.write_all(bytes).unwrap();
            drop(criu);
            let error = loop {
                match connection.next_event() {
                    Ok(Some(Event::HangUp) | None) => panic!("{expected}: was not refused"),
                    Ok(Some(_)) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn every_cut_of_a_request_is_seen() {
        for cut in 1..=REQUEST.len() {
            let (mut criu, mut connection) = connected(Direction::Capture);
            criu.write_all(&REQUEST[..cut]).unwrap();
            drop(criu);
            if cut == REQUEST.len() {
                assert!(is_request(connection.next_event().unwrap()));
            }
            assert!(matches!(connection.next_event(), Err(ProtocolError::Truncated)), "at {cut}");
        }
    }
}
