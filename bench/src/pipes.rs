//! Pipes, and what is put into them.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, vmsplice};
use nix::unistd::pipe2;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

/// A new pipe: its read end and its write end.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// A pipe that is as large as the filters make theirs: 4 MiB, or what is allowed.
///
/// `pipe_io::pipe::grow` does the same, but remembers what was refused, and the setting changes
/// while the benchmark runs.
pub(crate) fn grown_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    const WANTED: usize = 4 << 20;

    let (read, write) = pipe()?;
    let resize = |bytes: usize| fcntl(&write, FcntlArg::F_SETPIPE_SZ(bytes as i32));
    if resize(WANTED).is_err() {
        // Not even that, where pipes are small.
        let _ = resize(crate::setting::pipe_max_size()?.min(WANTED));
    }
    Ok((read, write))
}

/// Pipes that use up what `fs.pipe-user-pages-soft` allows this user, as long as they are open.
pub(crate) fn use_up() -> io::Result<Vec<OwnedFd>> {
    const PAGES_MAX: usize = 1 << 20;

    let mut held = Vec::new();
    for _ in 0..PAGES_MAX {
        let (read, write) = pipe()?;
        let before = fcntl(&write, FcntlArg::F_GETPIPE_SZ)?;
        held.push(read);
        if fcntl(&write, FcntlArg::F_SETPIPE_SZ(before * 2)).is_err() {
            return Ok(held);
        }
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(crate::setting::pipe_max_size()? as i32));
    }
    Err(io::Error::other("pipes can be had without end"))
}

/// Puts memory into a pipe by reference, as CRIU does: whatever fits, call after call.
pub(crate) fn vmsplice_all(pipe: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match vmsplice(pipe.as_fd(), &[IoSlice::new(bytes)], SpliceFFlags::empty()) {
            Ok(moved) => bytes = &bytes[moved..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
