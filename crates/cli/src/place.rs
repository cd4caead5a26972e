//! The places that messages name.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use wire_format::FileName;

/// A part that a descriptor, a file or a command has in the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Descriptor 0, read as an image stream.
    Stdin,
    /// Descriptor 1, written as an image stream.
    Stdout,
    /// Descriptor 2, which messages go to.
    Stderr,
    /// A shard.
    Shard {
        /// Its place on the command line, counted from 0.
        index: usize,
        /// Its descriptor.
        fd: RawFd,
    },
    /// A shard that an operand names.
    ShardFile {
        /// Its place on the command line, counted from 0.
        index: usize,
        /// The operand.
        path: PathBuf,
    },
    /// A shard that a command writes or reads.
    ShardFilter {
        /// What the command knows as `SHARD`.
        index: usize,
        /// The command.
        command: String,
    },
    /// The command behind `--`.
    Command {
        /// Its words, with a space between them.
        words: String,
    },
    /// A file that is not CRIU's, woven into the image.
    External {
        /// Its name in the image.
        name: FileName,
        /// The descriptor that it is read from or written to.
        fd: RawFd,
    },
    /// An image that an operand names.
    File {
        /// The operand.
        path: PathBuf,
    },
    /// Where progress lines go.
    Progress {
        /// Its descriptor.
        fd: RawFd,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Stdin => f.write_str("stdin"),
            Place::Stdout => f.write_str("stdout"),
            Place::Stderr => f.write_str("stderr"),
            Place::Shard { index, fd } => write!(f, "shard {index} (fd {fd})"),
            Place::ShardFile { index, path } => write!(f, "shard {index} ({})", path.display()),
            Place::ShardFilter { index, command } => {
                write!(f, "shard {index} ({})", abridged(command))
            }
            Place::Command { words } => write!(f, "command ({})", abridged(words)),
            Place::External { name, fd } => write!(f, "external file {name} (fd {fd})"),
            Place::File { path } => write!(f, "{}", path.display()),
            Place::Progress { fd } => write!(f, "progress (fd {fd})"),
        }
    }
}

/// The command on one line, and not a long one: the start tells it from others.
fn abridged(command: &str) -> String {
    const LONGEST: usize = 40;
    let words: Vec<_> = command.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_takes_one_line_of_a_message() {
        let place = |command: &str| Place::ShardFilter { index: 2, command: command.into() };
        assert_eq!(place("zstd |\n  cat").to_string(), "shard 2 (zstd | cat)");
        let long = place(&"é".repeat(100)).to_string();
        assert_eq!(long, format!("shard 2 ({}...)", "é".repeat(40)));
    }
}
