//! Rounds of a migration while the tree runs: each sends what has changed since the one before, so
//! that little is left for the dump that freezes the tree.

use super::pages::{Before, Images};
use pipe_io::Bytes;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use wire_format::ImageId;

/// A round that has sent no more than so many bytes leaves so little that another one would not
/// shorten the freeze: CRIU itself needs as long as these take over a fast link. Chosen, not
/// measured.
const LITTLE: u64 = 16 << 20;

/// The rounds of a migration.
#[derive(Debug)]
pub(super) struct Rounds {
    /// Where the small files of all rounds go.
    directory: PathBuf,
    most: u32,
    /// The image of the last round that was begun.
    last: Option<ImageId>,
    /// How many bytes each round has sent that is over.
    sent: Vec<u64>,
    /// Whether the tree is dumped, and not left running.
    is_dump: bool,
}

impl Rounds {
    /// No more than `most`, which leave their small files below `directory`.
    pub(super) fn new(most: u32, directory: PathBuf) -> Rounds {
        Rounds { directory, most, last: None, sent: Vec::new(), is_dump: false }
    }

    /// Begins the next round, or the dump, of which the image has this id.
    pub(super) fn begin(&mut self, id: ImageId) -> io::Result<Images> {
        let name = |number: usize| format!("round-{number}");
        let number = self.sent.len();
        let directory = self.directory.join(name(number));
        DirBuilder::new().mode(0o700).create(&directory)?;
        let before = self.last.replace(id).map(|id| Before {
            id,
            directory: PathBuf::from("..").join(name(number.saturating_sub(1))),
        });
        Ok(Images { directory, before })
    }

    /// A round is over that has sent so many bytes.
    pub(super) fn end_one(&mut self, bytes: u64) {
        // Where the tree changes as fast as its memory is sent, further rounds are for nothing.
        let shrinks = self.sent.last().is_none_or(|before| bytes < before / 4 * 3);
        self.sent.push(bytes);
        let is_last = self.sent.len() >= self.most as usize;
        self.is_dump = is_last || !shrinks || bytes <= LITTLE;
    }

    /// Whether the tree runs in the round that goes on.
    pub(super) fn tree_runs(&self) -> bool {
        !self.is_dump
    }

    /// Of the round that goes on, from 1.
    pub(super) fn number(&self) -> usize {
        self.sent.len() + 1
    }

    /// What all rounds have sent that are over.
    pub(super) fn bytes(&self) -> u64 {
        self.sent.iter().sum()
    }
}

/// For the last line.
impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.sent.len();
        let rounds = if count == 1 { "round" } else { "rounds" };
        write!(f, "{} in {count} {rounds} before", Bytes(self.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// How many rounds there are, if they would send so many bytes each.
    fn rounds(most: u32, sizes: &[u64]) -> usize {
        let mut rounds = Rounds::new(most, PathBuf::new());
        for (number, bytes) in sizes.iter().enumerate() {
            rounds.end_one(*bytes);
            if !rounds.tree_runs() {
                return number + 1;
            }
        }
        usize::MAX
    }

    #[test]
    fn rounds_go_on_while_less_and_less_is_left() {
        const MIB: u64 = 1 << 20;
        assert_eq!(rounds(8, &[1000 * MIB, 300 * MIB, 100 * MIB, 15 * MIB]), 4);
        assert_eq!(rounds(8, &[1000 * MIB, 300 * MIB, 290 * MIB]), 3);
        assert_eq!(rounds(8, &[1000 * MIB, 1000 * MIB]), 2);
        assert_eq!(rounds(8, &[8 * MIB]), 1);
        assert_eq!(rounds(2, &[1000 * MIB, 300 * MIB]), 2);
        assert_eq!(rounds(1, &[1000 * MIB]), 1);
    }

    #[test]
    fn each_round_builds_on_the_one_before() {
        let directory = TempDir::new().unwrap();
        let mut rounds = Rounds::new(8, directory.path().to_owned());
        let first = rounds.begin(ImageId([1; 16])).unwrap();
        assert!(first.before.is_none() && first.directory.is_dir());
        rounds.end_one(100 << 20);
        let second = rounds.begin(ImageId([2; 16])).unwrap();
        let before = second.before.unwrap();
        assert_eq!(before.id, ImageId([1; 16]));
        assert!(second.directory.join(before.directory).ends_with("round-1/../round-0"));
        assert_ne!(first.directory, second.directory);
    }
}
