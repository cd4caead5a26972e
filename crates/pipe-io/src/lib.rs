//! Linux pipes and what can stand at their ends.
//!
//! The filters move an image by passing page references from pipe to pipe; every system call of
//! that path is here, behind a safe function that is named after what it does:
//!
//! - [`pipe`]: making pipes, their capacity, what is queued in them;
//! - [`mod@splice`]: moving pages without copying them;
//! - [`Endpoint`]: a descriptor that carries a stream, and the four kinds that it can be;
//! - [`Region`]: memory in huge pages, for what cannot rest in a pipe;
//! - [`Mover`]: moving bytes from any endpoint to any other;
//! - [`relay`]: writing what cannot be written without waiting, through a pipe;
//! - [`poll`](mod@poll): waiting;
//! - [`process`]: starting programs, and waiting for them;
//! - [`shared`]: a process that has our descriptors, and keeps them open when we die;
//! - [`userfault`]: bringing the pages of another process's memory when they are touched;
//! - [`socket`]: receiving descriptors from a peer;
//! - [`inherit`]: the descriptors and signal dispositions that a program is started with.
//!
//! All `unsafe` code of the project is in this crate. docs/design.md section 6 has the measurements
//! that decided how it works.
//!
//! ```
//! use pipe_io::pipe::Pipe;
//! use pipe_io::splice::splice_now;
//! use pipe_io::{Endpoint, pipe};
//! use std::io::Write;
//!
//! let end = |fd| Endpoint::new(fd).unwrap();
//! let (from, to) = (Pipe::new()?, Pipe::new()?);
//! end(from.write).write_all(b"a page")?;
//! let (read, write) = (end(from.read), end(to.write));
//! assert_eq!(splice_now(&read, &write, 4096)?, 6);
//! assert_eq!(pipe::queued(&to.read)?, 6);
//! # Ok::<(), std::io::Error>(())
//! ```

mod amount;
mod emptied;
mod endpoint;
pub mod inherit;
mod intake;
mod mover;
mod offer;
pub mod pipe;
pub mod poll;
pub mod process;
mod random;
mod reason;
mod region;
mod relay;
mod rest;
pub mod shared;
pub mod socket;
pub mod splice;
mod taken;
pub mod userfault;

pub use amount::{Bytes, Rate};
pub use emptied::Emptied;
pub use endpoint::{Endpoint, FileId, Kind, Patient};
pub use intake::Intake;
pub use mover::{MoveError, Mover};
pub use offer::offer;
pub use random::random;
pub use reason::reason;
pub use region::Region;
pub use relay::relay;
pub use rest::Rest;
pub use taken::Pace;
