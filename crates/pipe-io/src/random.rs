//! Random numbers of the kernel's.

use std::fs::File;
use std::io::{self, Read};

/// Sixteen bytes that nobody can guess.
pub fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
