//! The lines of a link.

use super::{PROTOCOL, VERSION};
use pipe_io::Patient;
use std::fmt;
use std::io::{self, Write};

/// What one end says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It may begin.
    Ready(Version),
    /// The tree is there, and waits.
    Prepared,
    /// It may run.
    Go,
    /// It runs.
    Restored,
    /// It does not run, and never will.
    Failed(String),
    /// Nobody knows whether it runs.
    Unsure(String),
}

/// Which version an end of a link has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Of what goes over the link.
    pub protocol: u32,
    /// Of the program.
    pub program: String,
}

/// Says it to the end of the link that has our standard output; `false` if it is not there.
pub(crate) fn say(word: &Word) -> bool {
    Patient(io::stdout()).write_all(format!("{word}\n").as_bytes()).is_ok()
}

/// How the first line begins.
const NAME: &str = "criu-migrate";

impl Version {
    /// This program's.
    pub(crate) fn ours() -> Version {
        Version { protocol: PROTOCOL, program: VERSION.to_owned() }
    }
}

impl Word {
    /// `None` if it is none.
    pub(crate) fn parse(line: &str) -> Option<Word> {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (first, rest) {
            (NAME, rest) => {
                let (protocol, program) = rest.split_once(" ready ")?;
                let protocol = protocol.parse().ok()?;
                Some(Word::Ready(Version { protocol, program: program.to_owned() }))
            }
            ("prepared", "") => Some(Word::Prepared),
            ("go", "") => Some(Word::Go),
            ("restored", "") => Some(Word::Restored),
            ("failed", reason) => Some(Word::Failed(reason.to_owned())),
            ("unsure", reason) => Some(Word::Unsure(reason.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Ready(Version { protocol, program }) => {
                write!(f, "{NAME} {protocol} ready {program}")
            }
            Word::Prepared => f.write_str("prepared"),
            Word::Go => f.write_str("go"),
            Word::Restored => f.write_str("restored"),
            Word::Failed(reason) => write!(f, "failed {}", OneLine(reason)),
            Word::Unsure(reason) => write!(f, "unsure {}", OneLine(reason)),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "protocol {} (version {})", self.protocol, OneLine(&self.program))
    }
}

/// Text of another program's, as a part of a line on a terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 500;

        let printable = |it: char| if it.is_control() { ' ' } else { it };
        self.0.chars().take(LONGEST).map(printable).try_for_each(|it| write!(f, "{it}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_as_they_were_said() {
        let words = [
            Word::Ready(Version::ours()),
            Word::Prepared,
            Word::Go,
            Word::Restored,
            Word::Failed("criu failed (status 1)".into()),
            Word::Unsure("criu failed (status 1)".into()),
        ];
        for word in words {
            assert_eq!(Word::parse(&word.to_string()), Some(word));
        }
    }

    #[test]
    fn what_is_no_word_is_told_from_one() {
        let lines =
            ["", "Welcome", "restored at last", "criu-migrate: restored", "criu-migrate x ready 1"];
        for line in lines {
            assert_eq!(Word::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_reason_is_one_line() {
        let said = Word::Failed("a\nrestored\x1b[2J".into()).to_string();
        assert_eq!(said, "failed a restored [2J");
    }
}
