//! Seeing whether `inventory.img` is whole.
//!
//! The file is the mark of a dump that succeeded, so it must not be one that CRIU was killed
//! in the middle of: its pipe would end just as it does for a whole one.

use criu_protocol::inventory;
use pipe_io::pipe::Pipe;
use pipe_io::{Endpoint, splice};
use std::fs::File;
use std::io::{self, Read};

/// Follows the bytes of the file as they pass.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    bytes: Vec<u8>,
}

impl Inventory {
    /// An inventory has some hundred bytes. What is longer is not looked at further.
    const BYTES_MAX: usize = 64 << 10;

    /// Looks at the first of `queued` bytes in `pipe`, and leaves them there. Returns how many
    /// may be taken out before the next look: in many small pieces they take more page slots than
    /// a new pipe has.
    pub(crate) fn look(&mut self, pipe: &Endpoint, queued: usize) -> io::Result<usize> {
        let length = queued.min(Inventory::BYTES_MAX.saturating_sub(self.bytes.len()));
        if length == 0 {
            return Ok(queued);
        }
        let copy = Pipe::new()?;
        let copied = splice::tee_now(pipe, &copy.write, length)?;
        drop(copy.write);
        File::from(copy.read).take(copied as u64).read_to_end(&mut self.bytes)?;
        Ok(copied)
    }

    /// Whether what has passed can be a whole inventory.
    pub(crate) fn is_whole(&self) -> bool {
        self.bytes.len() >= Inventory::BYTES_MAX || inventory::is_whole(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_whole(bytes: &[u8]) -> bool {
        Inventory { bytes: bytes.to_vec() }.is_whole()
    }

    #[test]
    fn every_cut_of_an_inventory_is_seen() {
        let whole = b"\x16\x31\x31\x58\x03\0\0\0abc";
        assert!(is_whole(whole));
        for cut in 0..whole.len() {
            assert!(!is_whole(&whole[..cut]), "cut at {cut}");
        }
    }
}
