//! What the system says of an error.

use nix::errno::Errno;
use std::io;

/// What the system says of an error, without the number.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None if error.kind() == io::ErrorKind::BrokenPipe => Errno::EPIPE.desc().to_owned(),
        None => error.to_string(),
    }
}
