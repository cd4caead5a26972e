//! How many page slots of a pipe are taken.
//!
//! A pipe is a ring of page slots, and FIONREAD counts bytes: a marker of ten bytes takes a slot
//! as a full page does. So we remember what we have put in, in its order, and learn from the
//! bytes that are still queued how much of it has been read.

use pipe_io::pipe::PAGE;
use std::collections::VecDeque;

/// What was put into a pipe and may still be there.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: VecDeque<Entry>,
    bytes: u64,
    slots: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    slots: u64,
}

impl Ledger {
    /// Notes that bytes were put into the pipe, in at most that many slots.
    pub(crate) fn put(&mut self, bytes: u64, slots: u64) {
        self.entries.push_back(Entry { bytes, slots });
        self.bytes += bytes;
        self.slots += slots;
    }

    /// How many slots are taken at most, when so many bytes are queued in the pipe.
    pub(crate) fn taken(&mut self, queued: u64) -> u64 {
        while let Some(first) = self.entries.front().copied() {
            if self.bytes - first.bytes < queued {
                break;
            }
            self.entries.pop_front();
            self.bytes -= first.bytes;
            self.slots -= first.slots;
        }
        // Bytes that are not ours were in the pipe before we came.
        let foreign = queued.saturating_sub(self.bytes);
        let read_of_first = self.bytes.saturating_sub(queued);
        // A slot is free only when its last byte was read.
        self.slots.saturating_sub(read_of_first / PAGE as u64) + foreign.div_ceil(PAGE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE as u64;

    #[test]
    fn a_marker_takes_a_slot_until_its_last_byte_is_read() {
        let mut ledger = Ledger::default();
        ledger.put(9, 1);
        ledger.put(4 * P, 4);
        assert_eq!(ledger.taken(9 + 4 * P), 5);
        assert_eq!(ledger.taken(1 + 4 * P), 5);
        assert_eq!(ledger.taken(4 * P), 4);
        assert_eq!(ledger.taken(4 * P - 1), 4);
        assert_eq!(ledger.taken(2 * P + 1), 3);
        assert_eq!(ledger.taken(0), 0);
    }

    #[test]
    fn sparse_slots_are_not_taken_for_free() {
        let mut ledger = Ledger::default();
        ledger.put(300, 3);
        assert_eq!(ledger.taken(1), 3);
        assert_eq!(ledger.taken(0), 0);
    }

    #[test]
    fn what_was_there_before_counts() {
        assert_eq!(Ledger::default().taken(P + 1), 2);
    }
}
