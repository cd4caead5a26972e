//! The link between the two ends of a migration.
//!
//! It has one connection or several, each the standard input and output of a program such as ssh,
//! which has `criu-migrate --receive` at its other end. From here to there goes a shard of the
//! image on each, in [`frames`], so that a connection which is lost is never taken for the end of
//! the image. Behind the image on the first connection, and from there to here, go lines:
//!
//! ```text
//! there, on each      criu-migrate 2 ready 0.1.0     it may begin; 2 is the version of all this
//! there, on the first prepared                       the tree is restored, and waits
//! here, on the first  go                             nothing is in the way here: let it run
//! there, on the first restored                       it runs; so the tree here may be killed
//! there               failed REASON                  it does not run, and never will
//! there               unsure REASON                  it was told to run, and then something failed
//! ```
//!
//! What a shard holds is as the command line of the other end says: one image, or with `--pre-copy`
//! an image and its increments, one after the other.
//!
//! Until `go` a no at either end is final. Between `go` and `restored` only the other end knows
//! where the tree runs; here it is held until the answer comes, and if none comes it runs on here,
//! and perhaps there too.

pub(crate) mod frames;
pub mod meeting;
pub(crate) mod relay;
pub mod route;
pub mod word;

pub use meeting::{Appointment, MeetingError, Token};
pub use route::{Connect, Route};

use std::fmt::Display;
use std::os::fd::AsFd;
use word::{Version, Word};

/// The version of what goes over a link.
pub const PROTOCOL: u32 = 2;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// In the process of a connection that is not the first one: hands over its input, and stays until
/// the first one has done its work.
///
/// # Errors
///
/// When the first one does not come, or cannot go on.
pub fn attend(appointment: Appointment, input: impl AsFd) -> Result<(), MeetingError> {
    let stream = appointment.attend(input)?;
    if !word::say(&Word::Ready(Version::ours())) {
        return Ok(());
    }
    pipe_io::poll::wait_readable(stream).map_err(MeetingError::System)
}

/// Says over the link that nothing will be restored, and why.
pub fn say_failed(reason: impl Display) {
    word::say(&Word::Failed(reason.to_string()));
}
