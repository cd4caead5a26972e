//! Which markers of an image have been passed on, where that need not be in order.

use std::collections::BTreeMap;

/// The numbers that were seen. It remembers ranges, so that few numbers ahead of the others cost
/// little.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// All below were seen.
    next: u64,
    /// What was seen beyond: the first number of each range, and the one behind its last. Ranges
    /// touch neither each other nor `next`.
    ahead: BTreeMap<u64, u64>,
}

impl Passed {
    /// The lowest number that was not seen.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Notes a number; `false` if it was seen before, or is one that no image needs.
    pub(crate) fn insert(&mut self, seq: u64) -> bool {
        let before = self.ahead.range(..=seq).next_back().map(|(start, end)| (*start, *end));
        if seq < self.next || before.is_some_and(|(_, end)| seq < end) {
            return false;
        }
        let Some(behind) = seq.checked_add(1) else { return false };
        let end = self.ahead.remove(&behind).unwrap_or(behind);
        match before.filter(|(_, end)| *end == seq) {
            Some((start, _)) => _ = self.ahead.insert(start, end),
            None if seq == self.next => self.next = end,
            None => _ = self.ahead.insert(seq, end),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_seen_once_in_any_order() {
        // A permutation of the numbers below a prime.
        for factor in [1, 2, 50, 77, 100] {
            let mut passed = Passed::default();
            let mut seen = [false; 101];
            for seq in (0..101).map(|i| i * factor % 101) {
                assert!(passed.insert(seq), "{seq}");
                assert!(!passed.insert(seq), "{seq} twice");
                seen[seq as usize] = true;
                let next = seen.iter().position(|seen| !seen).unwrap_or(101);
                assert_eq!(passed.next(), next as u64);
            }
            assert!(passed.ahead.is_empty());
        }
        assert!(!Passed::default().insert(u64::MAX));
    }
}
