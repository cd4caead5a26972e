//! Bytes that were promised to a shard and did not fit.

use pipe_io::pipe::page;
use std::collections::VecDeque;

/// What is still to be written to a shard before anything else. It never holds more than the
/// markers that are collected and the payload of one chunk, which is at most a pipe's capacity;
/// that of a metadata shard may be longer.
#[derive(Debug, Default)]
pub(crate) struct Debt(VecDeque<u8>);

impl Debt {
    /// Whether there is nothing to be written.
    pub(crate) fn is_paid(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes are to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds bytes at the end.
    pub(crate) fn owe(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The first bytes, at most a page of them: to write so many never blocks where the pipe has
    /// a free slot.
    pub(crate) fn page(&self) -> &[u8] {
        let (front, _) = self.0.as_slices();
        front.get(..page()).unwrap_or(front)
    }

    /// Notes that the first bytes were written.
    pub(crate) fn pay(&mut self, bytes: usize) {
        self.0.drain(..bytes.min(self.0.len()));
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}
