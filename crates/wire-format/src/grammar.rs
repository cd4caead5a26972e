//! Checks that a sequence of markers forms a complete image.

use crate::{Body, FileName, Marker};
use std::collections::HashSet;
use std::fmt;

/// Follows a stream marker by marker and refuses what is out of place.
///
/// What it remembers is the files that are open, so its memory is bounded by what the stream has
/// really sent.
#[derive(Debug, Default)]
pub struct Grammar {
    next_seq: u64,
    current: Option<FileName>,
    open: HashSet<FileName>,
    complete: bool,
}

/// A marker that may not stand where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrammarError {
    /// A gap or a repeat.
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// Data or an end of file before any file name, or after the file's end.
    NoFile,
    /// The image ends while this file has not ended.
    Unfinished(FileName),
    /// Anything after the end of the image.
    AfterEnd,
}

impl Grammar {
    /// Takes the next marker of the stream. After an error the stream is not an image.
    pub fn accept(&mut self, marker: &Marker) -> Result<(), GrammarError> {
        if self.complete {
            return Err(GrammarError::AfterEnd);
        }
        if marker.seq != self.next_seq {
            return Err(GrammarError::Sequence { expected: self.next_seq, found: marker.seq });
        }
        match &marker.body {
            Body::Filename(name) => {
                if !self.open.contains(name) {
                    self.open.insert(name.clone());
                }
                self.current = Some(name.clone());
            }
            Body::FileData(_) if self.current.is_none() => return Err(GrammarError::NoFile),
            Body::FileData(_) => {}
            Body::FileEof => {
                let ended = self.current.take().ok_or(GrammarError::NoFile)?;
                self.open.remove(&ended);
            }
            Body::ImageEof => {
                if let Some(name) = self.open.iter().min() {
                    return Err(GrammarError::Unfinished(name.clone()));
                }
                self.complete = true;
            }
        }
        self.next_seq = self.next_seq.saturating_add(1);
        Ok(())
    }

    /// Whether the end of the image has come.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The number that the next marker must carry.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }
}

impl fmt::Display for GrammarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GrammarError::Sequence { expected, found } => {
                write!(f, "marker {found} where marker {expected} was due")
            }
            GrammarError::NoFile => f.write_str("a marker that belongs to no file"),
            GrammarError::Unfinished(name) => write!(f, "the image ends within the file {name}"),
            GrammarError::AfterEnd => f.write_str("data after the end of the image"),
        }
    }
}

impl std::error::Error for GrammarError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Body {
        Body::Filename(FileName::new(name).unwrap())
    }

    fn run(bodies: impl IntoIterator<Item = Body>) -> Result<bool, GrammarError> {
        let mut grammar = Grammar::default();
        for (seq, body) in bodies.into_iter().enumerate() {
            grammar.accept(&Marker::new(seq as u64, body))?;
        }
        Ok(grammar.is_complete())
    }

    #[test]
    fn files_may_interleave_and_come_again() {
        use Body::*;
        let stream = [
            name("a"),
            FileData(1),
            name("b"),
            FileData(2),
            FileEof,
            name("a"),
            FileData(3),
            FileEof,
            name("b"),
            FileEof,
            ImageEof,
        ];
        assert_eq!(run(stream), Ok(true));
    }

    #[test]
    fn an_image_without_its_end_is_not_complete() {
        assert_eq!(run([name("a"), Body::FileEof]), Ok(false));
        assert_eq!(run([Body::ImageEof]), Ok(true));
    }

    #[test]
    fn markers_out_of_place_are_refused() {
        use Body::*;
        assert_eq!(run([FileData(1)]), Err(GrammarError::NoFile));
        assert_eq!(run([FileEof]), Err(GrammarError::NoFile));
        assert_eq!(run([name("a"), FileEof, FileData(1)]), Err(GrammarError::NoFile));
        assert_eq!(run([name("a"), FileEof, FileEof]), Err(GrammarError::NoFile));
        assert_eq!(run([ImageEof, ImageEof]), Err(GrammarError::AfterEnd));
        let unfinished = GrammarError::Unfinished(FileName::new("a").unwrap());
        assert_eq!(run([name("a"), name("b"), FileEof, ImageEof]), Err(unfinished));
    }

    #[test]
    fn gaps_and_repeats_are_refused() {
        for found in [0, 2, u64::MAX] {
            let mut grammar = Grammar::default();
            grammar.accept(&Marker::new(0, name("a"))).unwrap();
            assert_eq!(
                grammar.accept(&Marker::new(found, Body::FileEof)),
                Err(GrammarError::Sequence { expected: 1, found })
            );
        }
    }
}
