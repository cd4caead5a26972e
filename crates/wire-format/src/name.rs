//! Names of the files in an image.

use std::fmt;
use std::sync::Arc;

/// The longest file name, in bytes: what Linux file systems take.
pub const NAME_MAX: usize = 255;

/// A file name that is safe to create in a directory: one path component.
///
/// Not empty, at most [`NAME_MAX`] bytes, no `/`, no NUL, not `.` or `..` (docs/design.md section 3).
/// Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(Arc<str>);

/// A name that no file in an image may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError(String);

impl FileName {
    /// Takes `name` if it is one path component.
    pub fn new(name: &str) -> Result<FileName, NameError> {
        let refused = name.is_empty()
            || name.len() > NAME_MAX
            || name.contains(['/', '\0'])
            || name == "."
            || name == "..";
        if refused {
            return Err(NameError(name.chars().take(NAME_MAX).collect()));
        }
        Ok(FileName(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    /// Control characters are escaped, so that a hostile name cannot break a message's line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_printable(&self.0, f)
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("file name '")?;
        fmt_printable(&self.0, f)?;
        f.write_str("' is not a single path component")
    }
}

impl std::error::Error for NameError {}

fn fmt_printable(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use fmt::Write;
    text.chars().try_for_each(|c| {
        if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "/", "a/b", "../x", "/etc/passwd", "a\0b"] {
            assert!(FileName::new(name).is_err(), "{name:?}");
        }
        assert!(FileName::new(&"n".repeat(NAME_MAX + 1)).is_err());
    }

    #[test]
    fn names_as_criu_makes_them_are_taken() {
        for name in ["pages-1.img", "core-4294967295.img", "...", " ", "a:b", &"n".repeat(NAME_MAX)]
        {
            assert_eq!(FileName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_name_cannot_break_the_line_of_a_message() {
        assert_eq!(FileName::new("a\nb\x1b").unwrap().to_string(), "a\\nb\\u{1b}");
    }
}
