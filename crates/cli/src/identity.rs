//! Making identities.

use std::fs::File;
use std::io::{self, Read};
use wire_format::{ImageId, SplitId};

/// An id that no other image has.
pub fn new_image_id() -> io::Result<ImageId> {
    random().map(ImageId)
}

/// An id that no other split has.
pub fn new_split_id() -> io::Result<SplitId> {
    random().map(SplitId)
}

/// 16 bytes of the kernel's random numbers.
fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
