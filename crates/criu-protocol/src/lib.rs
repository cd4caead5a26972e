//! CRIU's side of the socket.
//!
//! `criu dump --stream` and `criu restore --stream` connect to a UNIX socket in their images
//! directory, and for every image file send its name and one end of a pipe. This crate listens
//! there ([`Listener`]) and speaks the protocol ([`Connection`]); it does not touch the contents of
//! the pipes. docs/design.md section 4 describes the protocol.
//!
//! With `--page-server` CRIU sends all memory over one connection, and writes the other files
//! itself: [`page_server`] reads that protocol, and [`Pagemap`] is the image's map of its memory
//! (docs/design.md section 9). Who passes a file on with one field changed finds it by [`fields`].
//!
//! ```
//! use criu_protocol::{Connection, Direction, Event};
//! use std::io::Write;
//! use std::os::unix::net::UnixStream;
//!
//! let (mut criu, ours) = UnixStream::pair()?;
//! let mut connection = Connection::new(ours, Direction::Serve);
//! criu.write_all(b"\x0f\0\0\0\x0a\x0dinventory.img")?;
//! let event = connection.next_event().unwrap();
//! assert!(matches!(event, Some(Event::Request(Ok(name))) if name.as_str() == "inventory.img"));
//! # Ok::<(), std::io::Error>(())
//! ```

mod client;
mod connection;
pub mod fields;
pub mod inventory;
mod listener;
mod message;
mod network_lock;
pub mod page_server;
mod pagemap;

pub use client::Client;
pub use connection::{Connection, Event, ProtocolError};
pub use listener::{Direction, ListenError, Listener, is_allowed, listen_at};
pub use network_lock::is_only_network_lock;
pub use pagemap::{Pagemap, PagemapError, page_size, pages_file};

/// The last file of a dump and the first of a restore. A dump that failed never sends it.
pub const INVENTORY: &str = "inventory.img";

/// The file that CRIU may send before the process is frozen.
pub const CPUINFO: &str = "cpuinfo.img";

/// Whether a file is the memory of a process or a shared segment, which CRIU reads to its end and
/// after all else.
pub fn is_memory(name: &str) -> bool {
    name.starts_with("pages-")
}

/// Whether a file is an established TCP connection.
pub fn is_tcp(name: &str) -> bool {
    name.starts_with("tcp-stream-")
}

/// Whether a file is the rules of nftables, whose size CRIU takes by fstat: it is 0 for a pipe, and
/// they are closed unread.
pub fn is_nftables(name: &str) -> bool {
    name.starts_with("nftables-")
}

/// Whether a file of an image begins in this way because it has one of the magic numbers that CRIU
/// reads as soon as it opens the file. It opens others, such as `pages-1.img` and
/// `nftables-1.img`, without reading anything.
pub fn is_read_when_opened(file: &[u8]) -> bool {
    const COMMON: [u8; 4] = 0x5456_4319_u32.to_le_bytes();
    const SERVICE: [u8; 4] = 0x5510_5940_u32.to_le_bytes();

    file.starts_with(&COMMON) || file.starts_with(&SERVICE)
}
