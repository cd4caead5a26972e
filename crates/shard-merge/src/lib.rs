//! What `shard-merge` does with the shards that its command line names: puts them back into one
//! image stream, in order, or refuses them. A library, so that the fuzz target `merge` reaches it.

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
