//! The state of a dump, as CRIU has told it so far.

use crate::error::Error;
use criu_protocol::{CPUINFO, Connection, Event, INVENTORY, ProtocolError};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire_format::FileName;

/// A dump that goes on, or has ended.
#[derive(Debug)]
pub(crate) struct Dump {
    connection: Connection,
    /// The file whose pipe is due.
    announced: Option<FileName>,
    /// Whether it is known to be of processes, and not of the CPU's features.
    is_criu_dump: bool,
    /// Whether a file was sent.
    begun: bool,
    /// Whether a file was sent that CRIU has only when the process is frozen.
    frozen: bool,
    /// Whether a file was sent that describes the address space of a process.
    address_space: bool,
    /// Whether a file was sent that has memory.
    memory: bool,
    /// Whether the file was sent that CRIU sends last.
    inventory: bool,
    hung_up: bool,
}

/// What a dump has brought.
#[derive(Debug)]
pub(crate) enum News {
    /// The process is frozen from now on.
    Frozen,
    /// A file, and the pipe that it comes through.
    File(FileName, OwnedFd),
}

impl Dump {
    pub(crate) fn new(connection: Connection) -> Dump {
        Dump {
            is_criu_dump: is_criu_dump(connection.peer()),
            connection,
            announced: None,
            begun: false,
            frozen: false,
            address_space: false,
            memory: false,
            inventory: false,
            hung_up: false,
        }
    }

    /// What CRIU has said next, or `None` if it has not, or has hung up.
    pub(crate) fn news(&mut self) -> Result<Option<News>, Error> {
        while !self.hung_up {
            match self.connection.next_event()? {
                None => return Ok(None),
                Some(Event::HangUp) => self.hung_up = true,
                Some(Event::Pipe(pipe)) => {
                    let name = self.announced.take().ok_or(ProtocolError::NoPipe)?;
                    return Ok(Some(News::File(name, pipe)));
                }
                Some(Event::Request(name)) => {
                    let name = name.map_err(ProtocolError::Name)?;
                    let froze = !self.frozen && name.as_str() != CPUINFO;
                    self.begun = true;
                    self.frozen |= froze;
                    self.address_space |= name.as_str().starts_with("mm-");
                    self.memory |= name.as_str().starts_with("pages-");
                    self.inventory |= name.as_str() == INVENTORY;
                    self.announced = Some(name);
                    if froze {
                        return Ok(Some(News::Frozen));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes no more files. What CRIU sends from now on fails in CRIU, and so does its dump; what
    /// it has sent already is found here. CRIU must still be there.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        let mut news = self.news();
        if self.hung_up {
            return Err(Error::DidNotWait);
        }
        self.connection.refuse_more()?;
        if matches!(news, Ok(None)) {
            news = self.news();
        }
        match (self.announced.take(), news) {
            (Some(name), _) | (None, Ok(Some(News::File(name, _)))) => Err(Error::LateFile(name)),
            (None, Err(error)) => Err(error),
            (None, Ok(Some(News::Frozen) | None)) => Ok(()),
        }
    }

    /// Whether there are processes without a page of memory: it went elsewhere, as with `criu dump
    /// --page-server`.
    pub(crate) fn lacks_memory(&self) -> bool {
        self.address_space && !self.memory
    }

    /// Whether CRIU has begun to send a file and its pipe has not come.
    pub(crate) fn is_sending(&self) -> bool {
        self.connection.is_within_a_message()
    }

    /// Whether CRIU has sent the file that it sends last.
    pub(crate) fn has_sent_inventory(&self) -> bool {
        self.inventory
    }

    pub(crate) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Whether all was sent that makes an image: `inventory.img`, or `cpuinfo.img` alone, which
    /// is what `criu cpuinfo dump` makes. A `criu dump` that fails early may send it, too.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.inventory || (self.begun && !self.frozen && !self.is_criu_dump)
    }
}

/// Whether the process is a `criu dump`, and not a `criu cpuinfo dump`. The protocol does not tell;
/// its command line does, unless it speaks for another program (`criu service`, `criu swrk`).
fn is_criu_dump(process: Option<i32>) -> bool {
    let Some(process) = process else { return false };
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let has = |word: &[u8]| line.split(|byte| *byte == 0).any(|argument| argument == word);
    (has(b"dump") || has(b"pre-dump")) && !has(b"cpuinfo")
}

impl AsFd for Dump {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_protocol::Direction;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn dump() -> (UnixStream, Dump) {
        let (criu, socket) = UnixStream::pair().unwrap();
        (criu, Dump::new(Connection::new(socket, Direction::Capture)))
    }

    /// The moment in which this matters is too short for a test from outside.
    #[test]
    fn a_file_that_came_just_before_the_end_is_found() {
        let (mut criu, mut dump) = dump();
        criu.write_all(b"\x08\0\0\0\x0a\x06late.x").unwrap();
        assert!(matches!(dump.end(), Err(Error::LateFile(name)) if name.as_str() == "late.x"));
    }

    #[test]
    fn half_a_request_before_the_end_is_found() {
        let (mut criu, mut dump) = dump();
        criu.write_all(b"\x08\0\0").unwrap();
        assert!(dump.end().is_err());
    }

    #[test]
    fn a_criu_that_has_gone_is_found() {
        let (criu, mut dump) = dump();
        drop(criu);
        assert!(matches!(dump.end(), Err(Error::DidNotWait)));
    }

    #[test]
    fn criu_cannot_send_after_the_end() {
        let (mut criu, mut dump) = dump();
        assert!(dump.end().is_ok());
        assert_eq!(criu.write_all(b"\x08").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }
}
