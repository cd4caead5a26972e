//! Making an identity for a new image.

use std::io;
use wire_format::ImageId;

/// An id that no other image has.
pub fn new_image_id() -> io::Result<ImageId> {
    pipe_io::random().map(ImageId)
}
