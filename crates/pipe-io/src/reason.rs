//! The text of a system error.

use nix::errno::Errno;
use std::io;

/// What the system says of an error, in the C library's words and without the number.
pub fn reason(error: &io::Error) -> String {
    let number = match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => number,
        (None, io::ErrorKind::BrokenPipe) => Errno::EPIPE as i32,
        (None, io::ErrorKind::OutOfMemory) => Errno::ENOMEM as i32,
        (None, _) => return error.to_string(),
    };
    let said = io::Error::from_raw_os_error(number).to_string();
    match said.strip_suffix(&format!(" (os error {number})")) {
        Some(words) => words.to_owned(),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_system_s() {
        let reason = |errno: Errno| super::reason(&errno.into());
        assert_eq!(reason(Errno::ENOSPC), "No space left on device");
        assert_eq!(reason(Errno::EBADF), "Bad file descriptor");
        assert_eq!(super::reason(&io::ErrorKind::BrokenPipe.into()), "Broken pipe");
        assert_eq!(super::reason(&io::ErrorKind::OutOfMemory.into()), "Cannot allocate memory");
        assert_eq!(super::reason(&io::Error::other("its own words")), "its own words");
    }
}
