//! The image stream that the five filters, the shards and criu-image-streamer 1.0 share.
//!
//! A stream is a sequence of *markers*, each a little-endian `u32` length and that many bytes of
//! protobuf; a marker that announces file data is followed by the data itself. The crate knows
//! the markers ([`Marker`]) and their framing ([`StreamReader`], [`StreamWriter`]), and checks that a
//! sequence of markers forms a complete image ([`Grammar`]). criu-image-stream(5) and
//! docs/design.md section 3 describe the format.
//!
//! It opens no descriptor and makes no system call: reading and writing go through
//! [`std::io::Read`] and [`std::io::Write`], and the payload goes past it. Between two calls of
//! [`StreamReader::next_marker`] the caller takes the announced bytes out of the source, by whatever
//! means moves them fastest.
//!
//! ```
//! use wire_format::{Body, FileName, Grammar, StreamReader, StreamWriter};
//!
//! let mut writer = StreamWriter::new(Vec::new(), None);
//! writer.data(&FileName::new("inventory.img")?, 5)?;
//! writer.flush()?;
//! writer.get_mut().extend_from_slice(b"hello");
//! writer.file_eof(&FileName::new("inventory.img")?)?;
//! writer.image_eof()?;
//! writer.flush()?;
//! let stream = writer.into_inner();
//!
//! let mut reader = StreamReader::new(stream.as_slice());
//! let mut grammar = Grammar::default();
//! while let Some(marker) = reader.next_marker()? {
//!     grammar.accept(&marker)?;
//!     if let Body::FileData(length) = marker.body {
//!         let source = reader.get_mut();
//!         *source = &source[length as usize..];
//!         reader.advance(length.into());
//!     }
//! }
//! assert!(grammar.is_complete());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod foreign;
mod grammar;
mod identity;
mod marker;
mod name;
mod reader;
mod writer;

pub use foreign::Foreign;
pub use grammar::{Grammar, GrammarError};
pub use identity::{ImageId, NoImageId, Shard, SplitId};
pub use marker::{Body, MARKER_MAX, Marker, MarkerError};
pub use name::{FileName, NAME_MAX, NameError};
pub use reader::{ReadError, StreamReader};
pub use writer::StreamWriter;
