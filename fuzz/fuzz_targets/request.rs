//! The decoder of CRIU's requests, on a socket: bytes in pieces, some with descriptors.
#![no_main]

use criu_protocol::{Connection, Direction, Event};
use fuzz::bounded;
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let direction = if kind & 1 == 0 { Direction::Capture } else { Direction::Serve };
    let (ours, criu) = UnixStream::pair().expect("sockets");
    let mut connection = Connection::new(ours, direction);
    bounded(bytes, 16, || {
        let mut left = bytes;
        // A piece: its length and the number of descriptors with it, then its bytes.
        while let Some((head, rest)) = left.split_first() {
            let length = usize::from(head >> 2).min(rest.len());
            let (piece, rest) = rest.split_at(length);
            left = rest;
            if !piece.is_empty() {
                send(&criu, piece, usize::from(head & 3).saturating_sub(1));
            }
            if !hear(&mut connection, direction, bytes.len()) {
                return;
            }
        }
        drop(criu);
        // It has hung up, or was cut off: nothing else is possible any more.
        loop {
            match connection.next_event() {
                Ok(Some(Event::HangUp)) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => panic!("waits for a peer that has gone"),
            }
        }
    });
});

fn send(criu: &UnixStream, piece: &[u8], descriptors: usize) {
    static SENT: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("/dev/null"));
    let descriptors = vec![SENT.as_raw_fd(); descriptors];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &rights[..0] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = sendmsg::<()>(criu.as_raw_fd(), &[IoSlice::new(piece)], rights, flags, None);
}

/// Takes all events that are there; `false` after an error.
fn hear(connection: &mut Connection, direction: Direction, most: usize) -> bool {
    for _ in 0..=most {
        match connection.next_event() {
            Ok(None) => return true,
            Ok(Some(Event::Request(name))) if direction == Direction::Serve => {
                if connection.reply(name.is_ok_and(|name| name.as_str().len() % 2 == 0)).is_err() {
                    return false;
                }
            }
            Ok(Some(Event::HangUp)) => panic!("nobody has hung up"),
            Ok(Some(_)) => {}
            Err(_) => return false,
        }
    }
    panic!("more events than bytes");
}
