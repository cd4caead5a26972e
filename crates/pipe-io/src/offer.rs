//! Writing to a reader who is not waited for.

use crate::poll;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Writes these bytes if the reader takes them without waiting, also where other programs write to
/// it as well, through the same descriptor. Up to 4096 bytes go into a pipe as a whole or not at all.
///
/// # Errors
///
/// [`ErrorKind::WouldBlock`] where there is no room.
pub fn offer(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match send(to.as_fd().as_raw_fd(), bytes, flags) {
        Err(Errno::ENOTSOCK) => {}
        result => return Ok(result?),
    }
    if let Some(ours) = opened_once_more(&to) {
        return Ok(nix::unistd::write(ours, bytes)?);
    }
    // A file, which has nobody who could stall, or a pipe that only another user may open: between
    // these two calls somebody else may fill that, and then it is waited for.
    match poll::is_writable(&to)? {
        true => Ok(nix::unistd::write(to, bytes)?),
        false => Err(ErrorKind::WouldBlock.into()),
    }
}

/// The pipe or the terminal behind a descriptor, non-blocking for us alone: O_NONBLOCK belongs to
/// the open file, which whoever started us may share. A file would be written from its begin.
fn opened_once_more(to: &impl AsFd) -> Option<File> {
    let kind = SFlag::from_bits_truncate(fstat(to).ok()?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFIFO && !to.as_fd().is_terminal() {
        return None;
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let path = format!("/proc/self/fd/{}", to.as_fd().as_raw_fd());
    OpenOptions::new().write(true).custom_flags(flags.bits()).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::Pipe;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// Until nothing more is taken, and then without an end.
    fn fill(to: &OwnedFd) -> usize {
        let mut filled = 0;
        loop {
            match offer(to, &[b'.'; 1000]) {
                Ok(some) => filled += some,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return filled;
                }
            }
        }
    }

    #[test]
    fn a_reader_that_stalls_is_not_waited_for() {
        let Pipe { read, write } = Pipe::new().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        for (read, write) in [(read, write), (near.into(), far.into())] {
            let filled = fill(&write);
            assert!(filled > 10_000, "{filled}");
            drop(write);
            let mut content = Vec::new();
            File::from(read).read_to_end(&mut content).unwrap();
            assert_eq!(content.len(), filled);
        }
    }

    #[test]
    fn the_descriptor_stays_as_it_is() {
        let Pipe { read, write } = Pipe::new().unwrap();
        fill(&write);
        let flags = fcntl(&write, FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        drop(read);
        assert!(offer(&write, b"x").is_err());
    }

    #[test]
    fn a_file_goes_on_behind_what_it_has() {
        let memory = memfd_create("file", MFdFlags::empty()).unwrap();
        let mut file = File::from(memory);
        file.write_all(b"one ").unwrap();
        assert_eq!(offer(&file, b"two").unwrap(), 3);
        let mut content = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "one two");
    }
}
