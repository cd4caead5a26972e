//! Numbers that come again from their seed (splitmix64), so that a failed case
//! can be repeated from the seed that the test prints.

use std::thread;

/// Runs a case with each of the seeds from 0 to `cases`, or to `CASES` in the environment; or with
/// that in `SEED` alone. Fails, and names the seed, when a case does.
pub fn for_each_seed(cases: u64, case: fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CASES").unwrap_or(cases),
    };
    for seed in seeds {
        // The name of the thread is what a failure prints first.
        let thread = thread::Builder::new().name(format!("SEED={seed}"));
        let thread = thread.spawn(move || case(seed));
        let passed = thread.expect("a thread").join().is_ok();
        assert!(passed, "the case SEED={seed} failed: see above");
    }
}

/// A seeded sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end - 1`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.any() % end as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A number below `end`, of any order of magnitude with equal chance.
    pub fn magnitude_below(&mut self, end: usize) -> usize {
        let bits = self.below(end.ilog2() as usize + 2);
        self.below(1 << bits).min(end - 1)
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// `length` bytes, no page of which is like another.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.any().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
