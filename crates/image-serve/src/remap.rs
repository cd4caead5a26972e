//! Moving listening TCP ports, in `files.img` on its way to CRIU.
//!
//! The file is walked as protobuf's wire format has it, and only the number of the port changes,
//! and the lengths around it. So what we don't know of the file stays as it is, whatever version
//! of CRIU wrote it.

use criu_protocol::fields::{
    Field, Malformed, Value, fields, messages, put_bytes, put_message, put_number,
};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The file that holds CRIU's sockets.
pub(crate) const FILES: &str = "files.img";

/// The magic numbers that `files.img` begins with, each a little-endian `u32`.
const MAGIC: [u8; 8] = *b"\x19\x43\x56\x54\x38\x31\x30\x56";

/// `file_entry.isk`: an internet socket.
const ISK: u64 = 4;
/// In it: the protocol, the state, and the port that it is bound to.
const PROTO: u64 = 5;
const STATE: u64 = 6;
const SRC_PORT: u64 = 7;

const TCP: u64 = 6;
const TCP_LISTEN: u64 = 10;

/// `OLD:NEW`: what listened on one port is to listen on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortMove {
    pub(crate) old: u16,
    pub(crate) new: u16,
}

/// Why ports cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RemapError {
    /// Nothing in the image listens on this port, but something does on these.
    NotListening(u16, BTreeSet<u16>),
    /// The file is not one that CRIU has written.
    Malformed,
    /// The image has no `files.img`.
    NoFiles,
}

impl FromStr for PortMove {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PortMove, Self::Err> {
        let port = |text: &str| match text.parse::<u16>() {
            // `parse` alone would take "+80".
            Ok(port) if port > 0 && !text.starts_with('+') => Ok(port),
            _ => Err("not of the form OLD:NEW, two port numbers"),
        };
        let (old, new) = text.split_once(':').ok_or("not of the form OLD:NEW, two port numbers")?;
        Ok(PortMove { old: port(old)?, new: port(new)? })
    }
}

/// `files.img` with the ports moved.
pub(crate) fn remap(file: &[u8], moves: &[PortMove]) -> Result<Vec<u8>, RemapError> {
    let mut remap = Remap { moves, listening: BTreeSet::new() };
    let mut out = MAGIC.to_vec();
    for entry in messages(file.strip_prefix(&MAGIC).ok_or(Malformed)?) {
        put_message(&mut out, &remap.file_entry(entry?)?)?;
    }
    match moves.iter().find(|port| !remap.listening.contains(&port.old)) {
        Some(port) => Err(RemapError::NotListening(port.old, remap.listening)),
        None => Ok(out),
    }
}

struct Remap<'a> {
    moves: &'a [PortMove],
    /// The ports that something listens on, as they were.
    listening: BTreeSet<u16>,
}

impl Remap<'_> {
    fn file_entry(&mut self, entry: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(entry.len() + 4);
        for field in fields(entry) {
            match field? {
                Field { number: ISK, value: Value::Bytes(socket), .. } => {
                    put_bytes(&mut out, ISK, &self.socket(socket)?);
                }
                Field { raw, .. } => out.extend_from_slice(raw),
            }
        }
        Ok(out)
    }

    fn socket(&mut self, socket: &[u8]) -> Result<Vec<u8>, Malformed> {
        let Some(old) = listening_port(socket)? else { return Ok(socket.to_vec()) };
        self.listening.insert(old);
        let Some(port) = self.moves.iter().find(|port| port.old == old) else {
            return Ok(socket.to_vec());
        };
        let mut out = Vec::with_capacity(socket.len() + 2);
        for field in fields(socket) {
            match field? {
                Field { number: SRC_PORT, value: Value::Number(_), .. } => {
                    put_number(&mut out, SRC_PORT, port.new.into());
                }
                Field { raw, .. } => out.extend_from_slice(raw),
            }
        }
        Ok(out)
    }
}

/// The port of a TCP socket that listens.
fn listening_port(socket: &[u8]) -> Result<Option<u16>, Malformed> {
    let (mut proto, mut state, mut port) = (0, 0, 0);
    for field in fields(socket) {
        match field? {
            Field { number: PROTO, value: Value::Number(value), .. } => proto = value,
            Field { number: STATE, value: Value::Number(value), .. } => state = value,
            Field { number: SRC_PORT, value: Value::Number(value), .. } => port = value,
            _ => {}
        }
    }
    let listens = proto == TCP && state == TCP_LISTEN;
    Ok(u16::try_from(port).ok().filter(|_| listens))
}

impl From<Malformed> for RemapError {
    fn from(_: Malformed) -> RemapError {
        RemapError::Malformed
    }
}

impl fmt::Display for RemapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemapError::Malformed => f.write_str("files.img: not as CRIU writes it"),
            RemapError::NoFiles => f.write_str("files.img: not in the image"),
            RemapError::NotListening(port, others) if others.is_empty() => {
                write!(f, "files.img: nothing listens on TCP port {port}, nor on any other")
            }
            RemapError::NotListening(port, others) => {
                let others: Vec<_> = others.iter().map(u16::to_string).collect();
                let others = others.join(", ");
                write!(f, "files.img: nothing listens on TCP port {port}, only on {others}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(number: u64, value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, number, value);
        out
    }

    fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, number, value);
        out
    }

    /// A socket with fields around that nobody knows.
    fn socket(proto: u64, state: u64, port: u64) -> Vec<u8> {
        let fixed = b"\x81\x06\x01\x02\x03\x04\x05\x06\x07\x08";
        let parts =
            [varint(1, 9), varint(PROTO, proto), varint(STATE, state), varint(SRC_PORT, port)];
        [parts.concat(), bytes(99, b"future"), fixed.to_vec()].concat()
    }

    fn files(sockets: &[Vec<u8>]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for socket in sockets {
            let entry = [varint(1, 3), varint(2, 77), bytes(ISK, socket)].concat();
            out.extend_from_slice(&(entry.len() as u32).to_le_bytes());
            out.extend_from_slice(&entry);
        }
        out
    }

    fn moves(moves: &[(u16, u16)]) -> Vec<PortMove> {
        moves.iter().map(|(old, new)| PortMove { old: *old, new: *new }).collect()
    }

    #[test]
    fn only_the_port_of_a_listening_tcp_socket_changes() {
        let sockets = |port| {
            [
                socket(TCP, TCP_LISTEN, port),
                socket(TCP, 1, 80),
                socket(17, TCP_LISTEN, 80),
                socket(TCP, TCP_LISTEN, 443),
            ]
        };
        for new in [1, 127, 128, 16384, 65535] {
            let moved = remap(&files(&sockets(80)), &moves(&[(80, new)]));
            assert_eq!(moved, Ok(files(&sockets(new.into()))), "to {new}");
        }
    }

    #[test]
    fn ports_can_be_swapped() {
        let file = |first, second| {
            files(&[socket(TCP, TCP_LISTEN, first), socket(TCP, TCP_LISTEN, second)])
        };
        assert_eq!(remap(&file(80, 8080), &moves(&[(80, 8080), (8080, 80)])), Ok(file(8080, 80)));
    }

    #[test]
    fn a_port_that_is_not_found_tells_which_are() {
        let file = files(&[socket(TCP, TCP_LISTEN, 443), socket(TCP, TCP_LISTEN, 80)]);
        let error = remap(&file, &moves(&[(81, 82)])).unwrap_err();
        let message = "files.img: nothing listens on TCP port 81, only on 80, 443";
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn every_cut_of_the_file_is_refused() {
        let file = files(&[socket(TCP, TCP_LISTEN, 80)]);
        for cut in 0..file.len() {
            assert!(remap(&file[..cut], &moves(&[(80, 81)])).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_move_is_refused() {
        for text in
            ["", "80", "80:", ":80", "80:81:82", "0:1", "1:0", "80:65536", "a:b", "+1:2", "1:+2"]
        {
            assert!(text.parse::<PortMove>().is_err(), "{text}");
        }
        assert_eq!("80:8080".parse(), Ok(PortMove { old: 80, new: 8080 }));
    }
}
