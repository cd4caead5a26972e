//! A stand-in for CRIU's side of the page server protocol (docs/design.md section 9), byte for byte,
//! and a reader and writer of pagemaps that owe nothing to `criu-protocol`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The size of a page, in bytes.
pub const PAGE: usize = 4096;

/// The flags of pages.
pub const IN_PARENT: u32 = 1;
/// Pages that a restore may bring late.
pub const LAZY: u32 = 2;
/// Pages that are there.
pub const PRESENT: u32 = 4;

/// How a command is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As CRIU 4.1 has it.
    Short,
    /// As CRIU 4.2 has it.
    Long,
}

/// The number of a task's memory on the wire.
pub fn task(pid: u64) -> u64 {
    pid << 8 | 1
}

/// The number of a shared segment.
pub fn segment(id: u64) -> u64 {
    id << 8 | 2
}

/// The bytes of a command.
pub fn command(layout: Layout, command: u32, pages: u64, start: u64, memory: u64) -> Vec<u8> {
    let mut bytes = command.to_le_bytes().to_vec();
    match layout {
        Layout::Short => bytes.extend((pages as u32).to_le_bytes()),
        Layout::Long => {
            // What CRIU has not initialized.
            bytes.extend(*b"\xde\xad\xbe\xef");
            bytes.extend(pages.to_le_bytes());
        }
    }
    bytes.extend(start.to_le_bytes());
    bytes.extend(memory.to_le_bytes());
    bytes
}

/// The number of the command that opens memory.
pub const OPEN: u32 = 4;
/// The number of the one that asks for a parent.
pub const PARENT: u32 = 5;
/// The number of the one that adds pages.
pub const ADD: u32 = 6;
/// The number of the last one.
pub const CLOSE: u32 = 0x1023;
/// The number of the last one on a socket that CRIU was given.
pub const FORCE_CLOSE: u32 = 0x1024;

/// What CRIU has: a connection, TCP or UNIX. Dropping it hangs up.
#[derive(Debug)]
pub struct PageClient {
    socket: Socket,
    layout: Layout,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// A number that this process was given.
    Inherited(RawFd),
}

impl PageClient {
    /// Connects to a port of this machine.
    pub fn tcp(port: u16, layout: Layout) -> io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket: Socket::Tcp(socket), layout })
    }

    /// Connects to a UNIX socket.
    pub fn unix(path: &Path, layout: Layout) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket: Socket::Unix(socket), layout })
    }

    /// Has a socket that this process was given.
    pub fn inherited(number: RawFd, layout: Layout) -> Self {
        Self { socket: Socket::Inherited(number), layout }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket) => socket.write_all(bytes),
            Socket::Unix(socket) => socket.write_all(bytes),
            Socket::Inherited(number) => {
                let mut left = bytes;
                while !left.is_empty() {
                    left = &left[send(*number, left, MsgFlags::MSG_NOSIGNAL)?..];
                }
                Ok(())
            }
        }
    }

    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket) => socket.read_exact(bytes),
            Socket::Unix(socket) => socket.read_exact(bytes),
            Socket::Inherited(number) => {
                match recv(*number, bytes, MsgFlags::MSG_WAITALL)? == bytes.len() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
    }

    /// Sends a command.
    pub fn command(&mut self, number: u32, pages: u64, start: u64, memory: u64) -> io::Result<()> {
        self.send(&command(self.layout, number, pages, start, memory))
    }

    /// Asks whether there is a parent.
    pub fn has_parent(&mut self, memory: u64) -> io::Result<i32> {
        self.command(PARENT, 0, 0, memory)?;
        self.number()
    }

    /// Opens memory: whether it has a parent.
    pub fn open(&mut self, memory: u64) -> io::Result<u8> {
        self.command(OPEN, 0, 0, memory)?;
        let mut answer = [0];
        self.receive(&mut answer)?;
        Ok(answer[0])
    }

    /// Sends pages.
    pub fn pages(&mut self, memory: u64, start: u64, flags: u32, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(bytes.len() % PAGE, 0, "whole pages");
        self.command(ADD | flags << 16, (bytes.len() / PAGE) as u64, start, memory)?;
        self.send(bytes)
    }

    /// Says that pages are unchanged.
    pub fn unchanged(&mut self, memory: u64, start: u64, pages: u64) -> io::Result<()> {
        self.command(ADD | IN_PARENT << 16, pages, start, memory)
    }

    /// Says that it was all, and waits for the answer.
    pub fn close(&mut self) -> io::Result<i32> {
        self.command(CLOSE, 0, 0, 0)?;
        self.number()
    }

    /// The answer to a question.
    pub fn number(&mut self) -> io::Result<i32> {
        let mut answer = [0; 4];
        self.receive(&mut answer)?;
        Ok(i32::from_le_bytes(answer))
    }

    /// Whether an answer comes within this time.
    pub fn is_answered_within(&mut self, limit: Duration) -> bool {
        let peeked = match &mut self.socket {
            Socket::Tcp(socket) => {
                socket.set_read_timeout(Some(limit)).expect("a limit");
                let peeked = socket.peek(&mut [0]);
                socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
                peeked
            }
            Socket::Unix(_) | Socket::Inherited(_) => panic!("only for TCP"),
        };
        peeked.is_ok()
    }
}

/// A run of pages as a pagemap lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its address.
    pub start: u64,
    /// How many pages.
    pub pages: u64,
    /// Its flags.
    pub flags: u32,
}

/// The bytes of a pagemap.
pub fn pagemap(layout: Layout, pages_id: u64, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = b"\x19CVT%@\x08V".to_vec();
    let mut put = |message: Vec<u8>| {
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
    };
    put([vec![0x08], varint(pages_id)].concat());
    for entry in entries {
        let (short, long) = match layout {
            Layout::Short => (entry.pages, vec![]),
            Layout::Long => (0, [vec![0x28], varint(entry.pages)].concat()),
        };
        let flags = vec![0x20, entry.flags as u8];
        put([vec![0x08], varint(entry.start), vec![0x10], varint(short), flags, long].concat());
    }
    bytes
}

/// What a pagemap says: the number of its file with pages, and its entries.
pub fn read_pagemap(bytes: &[u8]) -> (u64, Vec<Entry>) {
    let mut rest = bytes.strip_prefix(b"\x19CVT%@\x08V").expect("the magic numbers");
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().expect("a length");
        let (message, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        messages.push(fields(message));
        rest = after;
    }
    let head = messages.remove(0);
    let field = |message: &[(u64, u64)], number| {
        message.iter().find(|(found, _)| *found == number).map(|(_, value)| *value)
    };
    let entries = messages.iter().map(|message| Entry {
        start: field(message, 1).expect("an address"),
        pages: field(message, 5).or(field(message, 2)).expect("a number of pages"),
        flags: field(message, 4).expect("flags") as u32,
    });
    (field(&head, 1).expect("a number"), entries.collect())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Numbers and values of a message that has nothing but varints.
fn fields(mut message: &[u8]) -> Vec<(u64, u64)> {
    let mut take = || {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = message.split_first()?;
            message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(value)
    };
    let mut fields = Vec::new();
    while let (Some(key), Some(value)) = (take(), take()) {
        assert_eq!(key & 7, 0, "a varint");
        fields.push((key >> 3, value));
    }
    fields
}
