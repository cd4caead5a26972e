//! Shared parts of the programs.
//!
//! - [`main`] runs a program: it parses the command line, prints the error, returns the status;
//! - [`CommonArgs`], [`CommandArgs`]: options that several programs have;
//! - [`Descriptors`] takes over the descriptors that options name, and [`Place`] names them;
//! - [`Child`] is the command behind `--`, [`Commands`] are those of `--filter`;
//! - [`Progress`] and [`Counters`] report how far the program is;
//! - [`StreamInput`] reads an image stream and refuses a broken one, [`StreamOutput`] writes one.
//!
//! docs/design.md section 5 has the conventions.
//!
//! ```
//! use cli::Place;
//!
//! let place = Place::Shard { index: 2, fd: 11 };
//! assert_eq!(place.to_string(), "shard 2 (fd 11)");
//! ```

mod args;
mod child;
mod cleanup;
mod closing;
mod commands;
mod counters;
mod descriptors;
mod identity;
mod operands;
mod place;
mod program;
mod progress;
mod shards;
mod signals;
mod stream_input;
mod stream_output;
mod suggest;

pub use args::{CommandArgs, CommonArgs, ExternalFile, Fd, result_to};
pub use child::{Child, ChildError};
pub use cleanup::Cleanup;
pub use closing::{Closing, ClosingError};
pub use commands::{CommandError, Commands};
pub use counters::Counters;
pub use descriptors::{Descriptors, UsageError};
pub use identity::{new_image_id, new_split_id};
pub use operands::{OutputFile, Published};
pub use pipe_io::reason;
pub use place::Place;
pub use program::{Failure, Program, failed, main, options, parse, wrong_usage};
pub use progress::Progress;
pub use shards::{OpenError, ShardEnd, ShardPlan};
pub use stream_input::{InputError, PayloadError, StreamInput};
pub use stream_output::{OutputError, SourceError, StreamOutput};
