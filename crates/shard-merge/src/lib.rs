//! Puts the shards that the command line names back into one image stream, in order, or refuses
//! them. This is a library so that the fuzz target `merge` can reach it.

mod claims;
mod error;
mod merge;
mod metadata_first;
mod passed;
mod shard;
mod sides;

pub use claims::ClaimError;
pub use error::Error;
pub use merge::Merge;
