//! Making an identity for a new image.

use std::fs::File;
use std::io::{self, Read};
use wire_format::ImageId;

/// An id that no other image has: 16 bytes of the kernel's random numbers.
pub fn new_image_id() -> io::Result<ImageId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(ImageId(bytes))
}
