//! Memory that changes all the time and is never out of step.

use crate::Fault;

const WORDS: usize = 4096 / size_of::<u64>();

/// Turns in which [`Heap::turn`] comes around to the same page again.
const TURNS_A_PASS: u64 = 50;

/// A number of pages, each of which is a function of its own index and of the
/// turn in which it was written last. No page resembles another, so a
/// compressor finds little in them.
pub(crate) struct Heap {
    words: Vec<u64>,
    turn: u64,
}

impl Heap {
    pub(crate) fn new(megabytes: usize) -> Self {
        let mut heap = Heap { words: vec![0; megabytes << 20 >> 3], turn: 0 };
        for page in 0..heap.pages() {
            heap.write(page);
        }
        heap
    }

    /// Verifies the part of the pages whose turn it is, and writes them anew.
    pub(crate) fn turn(&mut self) -> Result<(), Fault> {
        let part = (self.turn % TURNS_A_PASS) as usize;
        let pages = self.pages();
        let turns = TURNS_A_PASS as usize;
        let written = (self.turn / TURNS_A_PASS).saturating_sub(1) * TURNS_A_PASS;
        let written = if self.turn < TURNS_A_PASS { 0 } else { written + part as u64 + 1 };
        self.turn += 1;
        for page in pages * part / turns..pages * (part + 1) / turns {
            self.verify(page, written)?;
            self.write(page);
        }
        Ok(())
    }

    /// How many times every page has been found to be what it should.
    pub(crate) fn passes(&self) -> u64 {
        self.turn / TURNS_A_PASS
    }

    fn pages(&self) -> usize {
        self.words.len() / WORDS
    }

    fn write(&mut self, page: usize) {
        let turn = self.turn;
        for (index, word) in self.words[page * WORDS..][..WORDS].iter_mut().enumerate() {
            *word = value(page, index, turn);
        }
    }

    fn verify(&self, page: usize, turn: u64) -> Result<(), Fault> {
        for (index, word) in self.words[page * WORDS..][..WORDS].iter().enumerate() {
            if *word != value(page, index, turn) {
                return Err(format!("heap page {page} word {index}: not of turn {turn}").into());
            }
        }
        Ok(())
    }
}

fn value(page: usize, index: usize, turn: u64) -> u64 {
    let page = (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let turn = turn.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let mixed = (page ^ turn).wrapping_add(index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 29)
}
