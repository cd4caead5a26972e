//! The two sides of a set with a metadata shard: each in order, and neither waiting for the other.

use crate::passed::Passed;
use std::collections::HashMap;
use wire_format::{Body, FileName, GrammarError, Marker};

/// What a marker comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The metadata shard.
    Metadata,
    /// The other shards, in the order of their numbers.
    Others,
}

/// Follows the markers of both sides, and refuses what would be no image in the order of all
/// numbers. So the content of a file must all be on one side, and where a marker has the number
/// behind one of the other side it must be a name.
#[derive(Debug, Default)]
pub(crate) struct Sides {
    passed: Passed,
    metadata: Current,
    others: Current,
    files: HashMap<FileName, File>,
}

/// Where a side is.
#[derive(Debug, Default)]
struct Current {
    /// The file that its next marker belongs to.
    file: Option<FileName>,
    /// The number that this marker must have then.
    due: u64,
}

/// What has come of a file.
#[derive(Debug, Default)]
struct File {
    /// The highest number of a marker that named it, and of one that ended it, counted from 1.
    named: u64,
    ended: u64,
    /// Where its content comes from.
    side: Option<Side>,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Nothing,
    /// The name of a file that has not begun.
    Announce(FileName),
    /// So many bytes of this file, which follow.
    Data(FileName, u32),
    /// The end of this file; and whether all files have been named.
    End(FileName, bool),
}

/// Why a marker may not stand where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SideError {
    /// By the rules of every stream.
    Grammar(GrammarError),
    /// Its file has content on the other side.
    OtherSide(FileName),
}

impl Sides {
    /// The lowest number of a marker that has not come.
    pub(crate) fn next_seq(&self) -> u64 {
        self.passed.next()
    }

    /// The file that the metadata shard's next payload belongs to.
    pub(crate) fn current_metadata(&self) -> Option<&FileName> {
        self.metadata.file.as_ref()
    }

    /// Takes the next marker of a side, which is not the end of the image.
    pub(crate) fn accept(&mut self, side: Side, marker: Marker) -> Result<Step, SideError> {
        let Marker { seq, body, all_named, .. } = marker;
        if !self.passed.insert(seq) {
            let expected = self.passed.next();
            return Err(SideError::Grammar(GrammarError::Sequence { expected, found: seq }));
        }
        let current = match side {
            Side::Metadata => &mut self.metadata,
            Side::Others => &mut self.others,
        };
        if current.due != seq {
            current.file = None;
        }
        current.due = seq + 1;
        match body {
            Body::Filename(name) => {
                current.file = Some(name.clone());
                let is_new = !self.files.contains_key(&name);
                let file = self.files.entry(name.clone()).or_default();
                file.named = file.named.max(seq + 1);
                // The others' names come again with what they are for.
                let is_announced = is_new && side == Side::Metadata;
                Ok(if is_announced { Step::Announce(name) } else { Step::Nothing })
            }
            Body::FileData(length) => {
                let name = current.file.clone().ok_or(SideError::Grammar(GrammarError::NoFile))?;
                self.content(side, &name)?;
                Ok(Step::Data(name, length))
            }
            Body::FileEof => {
                let name = current.file.take().ok_or(SideError::Grammar(GrammarError::NoFile))?;
                let file = self.content(side, &name)?;
                file.ended = file.ended.max(seq + 1);
                // Only the metadata shard knows.
                Ok(Step::End(name, all_named && side == Side::Metadata))
            }
            Body::ImageEof => Err(SideError::Grammar(GrammarError::AfterEnd)),
        }
    }

    /// Whether the image may end now: the first file that has not ended.
    pub(crate) fn unfinished(&self) -> Option<FileName> {
        let unfinished = self.files.iter().filter(|(_, file)| file.named > file.ended);
        unfinished.map(|(name, _)| name).min().cloned()
    }

    fn content(&mut self, side: Side, name: &FileName) -> Result<&mut File, SideError> {
        let file = self.files.entry(name.clone()).or_default();
        if *file.side.get_or_insert(side) != side {
            return Err(SideError::OtherSide(name.clone()));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> FileName {
        FileName::new(name).unwrap()
    }

    fn named(file: &str) -> Body {
        Body::Filename(name(file))
    }

    fn run(
        markers: impl IntoIterator<Item = (Side, u64, Body)>,
    ) -> Result<Option<FileName>, SideError> {
        let mut sides = Sides::default();
        for (side, seq, body) in markers {
            sides.accept(side, Marker::new(seq, body))?;
        }
        Ok(sides.unfinished())
    }

    #[test]
    fn a_side_may_be_ahead_of_the_other() {
        use Body::*;
        use Side::*;
        let metadata = [
            (Metadata, 0, named("pages-1.img")),
            (Metadata, 3, named("core-7.img")),
            (Metadata, 4, FileEof),
        ];
        let others = [
            (Others, 1, named("pages-1.img")),
            (Others, 2, FileData(7)),
            (Others, 5, named("pages-1.img")),
            (Others, 6, FileEof),
        ];
        let in_order = metadata.clone().into_iter().chain(others.clone());
        assert_eq!(run(in_order), Ok(None));
        assert_eq!(run(others.clone().into_iter().chain(metadata)), Ok(None));
        assert_eq!(run(others.into_iter().take(3)), Ok(Some(name("pages-1.img"))));
    }

    #[test]
    fn a_file_with_two_sides_is_refused() {
        use Side::*;
        let both = [
            (Metadata, 0, named("a")),
            (Metadata, 1, Body::FileEof),
            (Others, 2, named("a")),
            (Others, 3, Body::FileData(1)),
        ];
        assert_eq!(run(both.clone()), Err(SideError::OtherSide(name("a"))));
        let [a, b, c, d] = both;
        assert_eq!(run([c, d, a, b]), Err(SideError::OtherSide(name("a"))));
    }

    #[test]
    fn what_no_stream_may_hold_is_refused() {
        use Side::*;
        let no_file = Err(SideError::Grammar(GrammarError::NoFile));
        assert_eq!(run([(Metadata, 0, named("a")), (Others, 1, Body::FileEof)]), no_file);
        let without_a_name =
            [(Others, 0, named("a")), (Metadata, 1, named("b")), (Others, 2, Body::FileData(1))];
        assert_eq!(run(without_a_name), no_file);
        let repeat = GrammarError::Sequence { expected: 1, found: 0 };
        assert_eq!(
            run([(Metadata, 0, named("a")), (Others, 0, named("a"))]),
            Err(SideError::Grammar(repeat))
        );
    }
}
