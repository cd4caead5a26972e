//! Where several connections meet on the host that they lead to.
//!
//! Each is a process of its own there. All but the first hand their standard input to the first,
//! over a socket whose name nobody can guess who has not seen their command lines, and whose
//! other end must be of the same user. They stay until the first has done its work: at their end
//! their connections end.

use crate::gate::is_trusted;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::{reason, socket};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long connections wait for each other: on a busy host a few sshd at once take ten seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// What all connections of one migration know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u128);

/// Which connection of how many this one is, and of which migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appointment {
    /// The migration.
    pub token: Token,
    /// The number of this one, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// A connection that was handed over.
#[derive(Debug)]
pub struct Guest {
    /// The line to its process, which waits for the end of it.
    pub stream: UnixStream,
    /// What it reads.
    pub input: OwnedFd,
}

/// Why connections did not meet.
#[derive(Debug)]
pub enum MeetingError {
    /// This one did not come.
    Missing(usize),
    /// The first one did not come, or has gone.
    NobodyThere,
    /// The place is another user's.
    NotOurs,
    /// What came is not what was to come.
    Confused,
    /// The system refuses something basic.
    System(io::Error),
}

impl Token {
    /// A new one.
    pub fn new() -> io::Result<Token> {
        Ok(Token(u128::from_be_bytes(pipe_io::random()?)))
    }

    fn address(self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(format!("criu-migrate-{self}"))
    }
}

impl Appointment {
    /// In the process of the first connection: the other ones, in their order.
    ///
    /// # Errors
    ///
    /// When not all of them come in time.
    pub fn gather(self) -> Result<Vec<Guest>, MeetingError> {
        let until = Instant::now() + LIMIT;
        let address = self.token.address().map_err(MeetingError::System)?;
        let listener = match UnixListener::bind_addr(&address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                return Err(MeetingError::NotOurs);
            }
            bound => bound.map_err(MeetingError::System)?,
        };
        let mut guests: Vec<Option<Guest>> = (1..self.count).map(|_| None).collect();
        while let Some(missing) = guests.iter().position(Option::is_none) {
            wait(&listener, until)?.then_some(()).ok_or(MeetingError::Missing(missing + 1))?;
            let (stream, _) = listener.accept().map_err(MeetingError::System)?;
            if !is_trusted(&stream) {
                continue;
            }
            let Some((index, guest)) = receive(stream, until)? else { continue };
            match index.checked_sub(1).and_then(|index| guests.get_mut(index)) {
                Some(place @ None) => *place = Some(guest),
                _ => return Err(MeetingError::Confused),
            }
        }
        let guests: Vec<Guest> = guests.into_iter().flatten().collect();
        for guest in &guests {
            (&guest.stream).write_all(WELCOME).map_err(MeetingError::System)?;
        }
        Ok(guests)
    }

    /// In the process of another connection: hands over its standard input. What is returned ends
    /// when the first one has done its work.
    ///
    /// # Errors
    ///
    /// When the first one does not come in time, or cannot go on.
    pub fn attend(self, input: impl AsFd) -> Result<UnixStream, MeetingError> {
        let until = Instant::now() + LIMIT;
        let mut stream = self.connect(until)?;
        if !is_trusted(&stream) {
            return Err(MeetingError::NotOurs);
        }
        socket::send(&stream, &index_bytes(self.index), input).map_err(MeetingError::System)?;
        // The first one waits for the rest.
        let mut welcome = [0; WELCOME.len()];
        match wait(&stream, until + LIMIT)? && stream.read_exact(&mut welcome).is_ok() {
            true if welcome == *WELCOME => Ok(stream),
            _ => Err(MeetingError::NobodyThere),
        }
    }

    fn connect(self, until: Instant) -> Result<UnixStream, MeetingError> {
        const AGAIN: Duration = Duration::from_millis(20);

        let address = self.token.address().map_err(MeetingError::System)?;
        loop {
            match UnixStream::connect_addr(&address) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() != ErrorKind::ConnectionRefused => {
                    return Err(MeetingError::System(error));
                }
                Err(_) if Instant::now() >= until => return Err(MeetingError::NobodyThere),
                Err(_) => sleep(AGAIN),
            }
        }
    }
}

/// What tells a connection that all have come.
const WELCOME: &[u8; 1] = b"k";

fn index_bytes(index: usize) -> [u8; 4] {
    u32::try_from(index).unwrap_or(u32::MAX).to_le_bytes()
}

/// What a connection brings: its number, and its input. `None` if it has gone.
fn receive(stream: UnixStream, until: Instant) -> Result<Option<(usize, Guest)>, MeetingError> {
    if !wait(&stream, until)? {
        return Ok(None);
    }
    let mut index = [0; 4];
    let received = socket::receive_now(&stream, &mut index).map_err(MeetingError::System)?;
    match (received.length, received.fds.into_iter().next()) {
        (4, Some(input)) => Ok(Some((u32::from_le_bytes(index) as usize, Guest { stream, input }))),
        (0, _) => Ok(None),
        _ => Err(MeetingError::Confused),
    }
}

/// Waits until it can be read; `false` if that takes too long.
fn wait(fd: impl AsFd, until: Instant) -> Result<bool, MeetingError> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let left = until.saturating_duration_since(Instant::now());
    poll::wait_for(&mut fds, left).map_err(MeetingError::System)
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Appointment {
    type Err = &'static str;

    /// `TOKEN:INDEX:COUNT`, as `Token` and numbers are shown.
    fn from_str(text: &str) -> Result<Appointment, Self::Err> {
        const WRONG: &str = "not of the form TOKEN:INDEX:COUNT";

        let mut parts = text.split(':');
        let (Some(token), Some(index), Some(count), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(WRONG);
        };
        let token = match token.len() {
            32 => u128::from_str_radix(token, 16).map_err(|_| WRONG)?,
            _ => return Err(WRONG),
        };
        let index: u16 = index.parse().map_err(|_| WRONG)?;
        let count: u16 = count.parse().map_err(|_| WRONG)?;
        match index < count {
            true => {
                Ok(Appointment { token: Token(token), index: index.into(), count: count.into() })
            }
            false => Err(WRONG),
        }
    }
}

impl fmt::Display for MeetingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MeetingError::Missing(index) => write!(f, "connection {index} did not come"),
            MeetingError::NobodyThere => f.write_str("connection 0 did not come, or has gone"),
            MeetingError::NotOurs => f.write_str("where connections meet is somebody else"),
            MeetingError::Confused => f.write_str("another connection came than was to come"),
            MeetingError::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl std::error::Error for MeetingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            MeetingError::System(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipe_io::pipe::Pipe;
    use std::fs::File;
    use std::thread;

    fn appointment(text: &str) -> Option<(usize, usize)> {
        text.parse().ok().map(|it: Appointment| (it.index, it.count))
    }

    #[test]
    fn connections_meet_in_any_order_and_keep_their_numbers() {
        let token = Token::new().unwrap();
        let attending: Vec<_> = (1..4)
            .rev()
            .map(|index| {
                thread::spawn(move || {
                    let Pipe { read, write } = Pipe::new().unwrap();
                    File::from(write).write_all(index.to_string().as_bytes()).unwrap();
                    let mut stream = Appointment { token, index, count: 4 }.attend(read).unwrap();
                    stream.read_exact(&mut [0]).unwrap_err()
                })
            })
            .collect();
        let guests = Appointment { token, index: 0, count: 4 }.gather().unwrap();
        for (guest, expected) in guests.into_iter().zip(["1", "2", "3"]) {
            let mut brought = String::new();
            File::from(guest.input).read_to_string(&mut brought).unwrap();
            assert_eq!(brought, expected);
        }
        for attending in attending {
            assert_eq!(attending.join().unwrap().kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_connection_that_comes_twice_is_refused() {
        let token = Token::new().unwrap();
        let attend = move || {
            let Pipe { read, .. } = Pipe::new().unwrap();
            Appointment { token, index: 1, count: 3 }.attend(read).is_ok()
        };
        let both = [thread::spawn(attend), thread::spawn(attend)];
        let gathered = Appointment { token, index: 0, count: 3 }.gather();
        assert!(matches!(gathered, Err(MeetingError::Confused)));
        assert!(both.into_iter().all(|attending| !attending.join().unwrap()));
    }

    #[test]
    fn a_place_that_is_taken_is_not_used() {
        let token = Token::new().unwrap();
        let _taken = UnixListener::bind_addr(&token.address().unwrap()).unwrap();
        let gathered = Appointment { token, index: 0, count: 2 }.gather();
        assert!(matches!(gathered, Err(MeetingError::NotOurs)));
    }

    #[test]
    fn an_appointment_has_one_form() {
        let token = "0123456789abcdef0123456789abcdef";
        assert_eq!(appointment(&format!("{token}:2:3")), Some((2, 3)));
        for wrong in ["", ":0:1", "x:0:2"] {
            assert_eq!(appointment(wrong), None, "{wrong}");
        }
        for wrong in ["", ":3", ":3:3", ":-1:3", ":0:0", ":0:1:2", ":0:99999"] {
            assert_eq!(appointment(&format!("{token}{wrong}")), None, "{wrong}");
        }
    }
}
