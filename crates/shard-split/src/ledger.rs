//! How many page slots of a pipe are taken.
//!
//! A pipe is a ring of page slots, and FIONREAD counts bytes: a marker of ten bytes takes a slot
//! as a full page does. So we remember what we have put in, in its order, and learn from the
//! bytes that are still queued how much of it has been read.

use pipe_io::pipe::{Slots, page};
use std::collections::VecDeque;

/// What was put into a pipe and may still be there.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: VecDeque<Entry>,
    bytes: u64,
    slots: Slots,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    slots: Slots,
}

impl Ledger {
    /// Notes that bytes were put into the pipe, in at most that many slots.
    pub(crate) fn put(&mut self, bytes: u64, slots: Slots) {
        self.entries.push_back(Entry { bytes, slots });
        self.bytes += bytes;
        self.slots = self.slots + slots;
    }

    /// How many slots are taken at most, when so many bytes are queued in the pipe.
    pub(crate) fn taken(&mut self, queued: u64) -> Slots {
        while let Some(first) = self.entries.front().copied() {
            if self.bytes - first.bytes < queued {
                break;
            }
            self.entries.pop_front();
            self.bytes -= first.bytes;
            self.slots = self.slots.saturating_sub(first.slots);
        }
        // Bytes that are not ours were in the pipe before we came.
        let foreign = queued.saturating_sub(self.bytes);
        let read_of_first = self.bytes.saturating_sub(queued);
        // A slot is free only when its last byte was read.
        let page = page() as u64;
        self.slots.saturating_sub(Slots(read_of_first / page)) + Slots(foreign.div_ceil(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(puts: &[(u64, u64)]) -> Ledger {
        let mut ledger = Ledger::default();
        puts.iter().for_each(|(bytes, slots)| ledger.put(*bytes, Slots(*slots)));
        ledger
    }

    #[test]
    fn a_marker_takes_a_slot_until_its_last_byte_is_read() {
        let page = page() as u64;
        let mut ledger = ledger(&[(9, 1), (4 * page, 4)]);
        assert_eq!(ledger.taken(9 + 4 * page), Slots(5));
        assert_eq!(ledger.taken(1 + 4 * page), Slots(5));
        assert_eq!(ledger.taken(4 * page), Slots(4));
        assert_eq!(ledger.taken(4 * page - 1), Slots(4));
        assert_eq!(ledger.taken(2 * page + 1), Slots(3));
        assert_eq!(ledger.taken(0), Slots(0));
    }

    #[test]
    fn sparse_slots_are_not_taken_for_free() {
        let mut ledger = ledger(&[(300, 3)]);
        assert_eq!(ledger.taken(1), Slots(3));
        assert_eq!(ledger.taken(0), Slots(0));
    }

    #[test]
    fn what_was_there_before_counts() {
        assert_eq!(Ledger::default().taken(page() as u64 + 1), Slots(2));
    }
}
