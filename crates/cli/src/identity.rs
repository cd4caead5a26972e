//! Making identities.

use std::io;
use wire_format::{ImageId, SplitId};

/// An id that no other image has.
pub fn new_image_id() -> io::Result<ImageId> {
    pipe_io::random().map(ImageId)
}

/// An id that no other split has.
pub fn new_split_id() -> io::Result<SplitId> {
    pipe_io::random().map(SplitId)
}
