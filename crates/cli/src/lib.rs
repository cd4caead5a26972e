//! What makes five programs one family.
//!
//! The same options ([`CommonArgs`]), lists of descriptors ([`Descriptors`]), names of places in
//! messages ([`Place`]), progress lines ([`Progress`]), counters ([`Counters`]), exit status
//! ([`main`]), behaviour on signals, and the same refusals of an image stream that is not whole
//! ([`StreamInput`]), the same way of writing one ([`StreamOutput`]). DESIGN.md section 5 has the rules.

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

pub use args::{CommandArgs, CommonArgs, ExternalFile, Fd};
pub use child::{Child, ChildError};
pub use cleanup::Cleanup;
pub use closing::{Closing, ClosingError};
pub use commands::{CommandError, Commands};
pub use counters::Counters;
pub use descriptors::{Descriptors, UsageError};
pub use identity::new_image_id;
pub use operands::{OutputFile, Published};
pub use pipe_io::reason;
pub use place::Place;
pub use program::{Failure, Program, failed, main, options, parse, wrong_usage};
pub use progress::Progress;
pub use shards::{OpenError, ShardEnd, ShardPlan};
pub use stream_input::{InputError, PayloadError, StreamInput};
pub use stream_output::{OutputError, SourceError, StreamOutput};
