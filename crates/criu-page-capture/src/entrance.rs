//! Where CRIU connects, and which of those that do is CRIU.
//!
//! Everybody on a machine can connect to its TCP ports. So one that connects is CRIU's only once it
//! has said what CRIU says first; and until then others may connect, too. Those of other users are
//! not heard, as far as the kernel tells whose they are.

use crate::around::Around;
use crate::error::Error;
use crate::wire::{Wire, hung_up, receive_some};
use cli::{Cleanup, Program};
use criu_protocol::page_server::{Command, HEADER_MIN, Layout, is_believed};
use criu_protocol::{is_allowed, listen_at, page_size};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{setsockopt, sockopt};
use pipe_io::Endpoint;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::hash::Hash;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

/// A TCP address: loopback, unless the user says another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) SocketAddr);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Address, Self::Err> {
        let is_port = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let address = match text.parse() {
            Ok(port) if is_port => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            _ => text.parse().ok(),
        };
        address.map(Address).ok_or("neither a port nor a numeric address and a port")
    }
}

/// Where CRIU is to connect.
#[derive(Debug)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// It is given a descriptor.
    Inherited,
}

/// What CRIU connects to.
#[derive(Debug)]
pub(crate) struct Entrance {
    listener: Option<Listener>,
    /// Those that have connected, and have not said enough yet.
    candidates: Vec<Candidate>,
    /// What the command is told in the place of `{}`.
    word: Option<String>,
    /// The descriptor that the command inherits.
    for_command: Option<OwnedFd>,
    program: Program,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removes the socket when it is dropped")] Cleanup,
    ),
}

/// What has connected.
struct Arrival {
    socket: OwnedFd,
    /// The machine that it comes from, as far as that is known.
    from: Option<IpAddr>,
    /// Whether it may be CRIU, by whose it is.
    is_believed: bool,
}

#[derive(Debug)]
struct Candidate {
    socket: Endpoint,
    /// The machine that it comes from, as far as that is known.
    from: Option<IpAddr>,
    received: Vec<u8>,
}

/// What a candidate is.
enum Verdict {
    /// Not decided.
    Open,
    /// CRIU, whose first command has come; it speaks this layout.
    Criu(Layout),
    /// Not CRIU.
    Stranger(Error),
}

/// More are not heard at once. CRIU connects, and says nothing until it has come to memory: so where
/// there are too many, one of a machine that has the most of them makes room for the next.
const CANDIDATES_MAX: usize = 64;

impl Entrance {
    /// Makes it possible to connect.
    pub(crate) fn open(place: Place, program: Program) -> Result<Entrance, Error> {
        let mut entrance = Entrance {
            listener: None,
            candidates: Vec::new(),
            word: None,
            for_command: None,
            program,
        };
        match place {
            Place::Tcp(address) => {
                let failed = |error| Error::Address(address, error);
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                program.note(format_args!("listening on {}:{port}", address.ip()));
                entrance.word = Some(port.to_string());
                entrance.listener = Some(Listener::Tcp(listener));
            }
            Place::Unix(path) => {
                let made = || Ok((listen_at(&path)?, path.clone()));
                let (listener, cleanup) = Cleanup::of(made).map_err(Error::Listen)?;
                entrance.listener = Some(Listener::Unix(listener, cleanup));
            }
            Place::Inherited => {
                let (ours, theirs) = UnixStream::pair().map_err(Error::System)?;
                let theirs = OwnedFd::from(theirs);
                // The command inherits it.
                fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))
                    .map_err(|errno| Error::System(errno.into()))?;
                entrance.word = Some(theirs.as_raw_fd().to_string());
                entrance.for_command = Some(theirs);
                entrance.candidates.push(Candidate::new(ours, None)?);
            }
        }
        Ok(entrance)
    }

    /// The command, with the port or the number of the descriptor in the place of each `{}`.
    pub(crate) fn fill_in(&self, words: Vec<OsString>) -> Vec<OsString> {
        let fill = |word: OsString| match (&self.word, word.to_str()) {
            (Some(number), Some(text)) => text.replace("{}", number).into(),
            _ => word,
        };
        words.into_iter().map(fill).collect()
    }

    /// Notes that the command was started. Whether it has a connected descriptor.
    pub(crate) fn command_was_started(&mut self) -> bool {
        self.for_command.take().is_some()
    }

    /// Waits for CRIU.
    pub(crate) fn admit(mut self, around: &mut Around, output: &Endpoint) -> Result<Wire, Error> {
        loop {
            let mut fds: Vec<_> = self.candidates.iter().map(|it| it.socket.as_fd()).collect();
            fds.extend(self.listener.iter().map(Listener::as_fd));
            let ready = around.wait_for_criu(&fds, output)?;
            // What has come is heard before new ones take the place of the oldest.
            for index in (0..self.candidates.len()).rev() {
                if !ready.get(index).is_some_and(|ready| *ready) {
                    continue;
                }
                let Some(candidate) = self.candidates.get_mut(index) else { continue };
                match candidate.hear() {
                    Verdict::Open => {}
                    Verdict::Criu(layout) => {
                        let Candidate { socket, received, .. } = self.candidates.swap_remove(index);
                        return Ok(Wire::new(socket, layout, page_size(), received));
                    }
                    Verdict::Stranger(error) if self.listener.is_none() => return Err(error),
                    Verdict::Stranger(error) => {
                        self.candidates.remove(index);
                        self.program.note(format_args!("a connection is not CRIU's: {error}"));
                    }
                }
            }
            self.accept()?;
        }
    }

    /// Takes the connections that are there.
    fn accept(&mut self) -> Result<(), Error> {
        let Some(listener) = &self.listener else { return Ok(()) };
        while let Some(arrival) = listener.accept()? {
            if !arrival.is_believed {
                self.program.note("a connection is another user's");
                continue;
            }
            self.candidates.push(Candidate::new(arrival.socket, arrival.from)?);
            if self.candidates.len() > CANDIDATES_MAX {
                self.candidates.remove(most_frequent(self.candidates.iter().map(|it| it.from)));
            }
        }
        Ok(())
    }
}

impl Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, _) => listener.as_fd(),
        }
    }

    /// The next connection, if there is one.
    fn accept(&self) -> Result<Option<Arrival>, Error> {
        loop {
            let accepted = match self {
                Listener::Tcp(listener) => listener.accept().map(|(stream, peer)| Arrival {
                    is_believed: stream.local_addr().is_ok_and(|local| is_believed(peer, local)),
                    socket: prepared(stream).into(),
                    from: Some(peer.ip().to_canonical()),
                }),
                Listener::Unix(listener, _) => listener.accept().map(|(stream, _)| Arrival {
                    is_believed: is_allowed(&stream).unwrap_or(false),
                    socket: stream.into(),
                    from: None,
                }),
            };
            match accepted {
                Ok(accepted) => return Ok(Some(accepted)),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => return Err(Error::System(error)),
                },
            }
        }
    }
}

/// Answers are a few bytes, for which CRIU waits; and a machine that has gone is noticed some time.
fn prepared(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    stream
}

/// The first of those that are most alike.
fn most_frequent<T: Copy + Eq + Hash>(values: impl Iterator<Item = T> + Clone) -> usize {
    let mut counts = HashMap::new();
    values.clone().for_each(|value| *counts.entry(value).or_insert(0) += 1);
    let most = counts.values().max().copied();
    values.into_iter().position(|value| counts.get(&value).copied() == most).unwrap_or(0)
}

impl Candidate {
    fn new(socket: impl Into<OwnedFd>, from: Option<IpAddr>) -> Result<Candidate, Error> {
        let socket =
            Endpoint::new(socket.into()).map_err(|error| Error::System(io::Error::other(error)))?;
        Ok(Candidate { socket, from, received: Vec::new() })
    }

    /// Receives what is there of the first command.
    fn hear(&mut self) -> Verdict {
        let mut wanted = HEADER_MIN;
        loop {
            if let Some(first) = self.received.first_chunk() {
                let layout = Layout::of(first);
                wanted = layout.header_length();
                if self.received.len() >= wanted {
                    return self.judge(layout);
                }
            }
            match receive_some(&self.socket, &mut self.received, wanted) {
                Ok(0) => return Verdict::Stranger(Error::HungUp),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Verdict::Open,
                Err(error) => return Verdict::Stranger(hung_up(error)),
            }
        }
    }

    fn judge(&self, layout: Layout) -> Verdict {
        match layout.decode(&self.received, page_size()) {
            Ok(Command::Pages(memory, _)) => {
                let error = criu_protocol::page_server::OrderError::NotOpen(memory);
                Verdict::Stranger(Error::Order(error))
            }
            Ok(_) => Verdict::Criu(layout),
            Err(error) => Verdict::Stranger(Error::Command(error)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_who_comes_most_often_makes_room() {
        assert_eq!(most_frequent([1, 2, 3, 2].iter()), 1);
        assert_eq!(most_frequent([7, 8, 9].iter()), 0);
    }

    #[test]
    fn a_port_alone_is_of_this_machine_alone() {
        let address = |text: &str| text.parse().map(|Address(address)| address.to_string());
        assert_eq!(address("27"), Ok("127.0.0.1:27".into()));
        assert_eq!(address("0.0.0.0:27"), Ok("0.0.0.0:27".into()));
        assert_eq!(address("[::1]:0"), Ok("[::1]:0".into()));
        for text in ["", ":27", "+27", "65536", "localhost:27", "127.0.0.1", "::1"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
