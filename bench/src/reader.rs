//! What stands at the end of a dump: readers that throw away.

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

/// How bytes are taken out of a pipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Take {
    /// Spliced to /dev/null: the least that a reader can do.
    Splice,
    /// Copied out, 128 KiB at a time, as a compressor reads.
    Read,
    /// Copied out by a `dd` of its own, 1 MiB at a time, as lz4 and mbuffer read.
    Dd,
    /// Spliced, at so many bytes a second.
    Throttled(f64),
}

/// Takes all there is, and returns how many bytes that was.
pub(crate) fn drain(pipe: OwnedFd, take: Take) -> io::Result<u64> {
    match take {
        Take::Splice => splice_away(&pipe, |_| ()),
        Take::Read => read_away(File::from(pipe), 128 << 10),
        Take::Dd => read_away(File::from(pipe), 1 << 20),
        Take::Throttled(rate) => {
            let start = Instant::now();
            splice_away(&pipe, |taken| {
                let due = Duration::from_secs_f64(taken as f64 / rate);
                thread::sleep(due.saturating_sub(start.elapsed()));
            })
        }
    }
}

fn splice_away(pipe: &OwnedFd, mut after_each: impl FnMut(u64)) -> io::Result<u64> {
    const AT_ONCE: usize = 4 << 20;

    let null = OpenOptions::new().write(true).open("/dev/null")?;
    let mut taken = 0;
    loop {
        match splice(pipe, None, &null, None, AT_ONCE, SpliceFFlags::empty()) {
            Ok(0) => return Ok(taken),
            Ok(bytes) => taken += bytes as u64,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        after_each(taken);
    }
}

fn read_away(pipe: File, at_once: usize) -> io::Result<u64> {
    read_into(pipe, &mut vec![0; at_once])
}

/// Reads all there is into the buffer, again and again, and returns how many bytes that was.
pub(crate) fn read_into(mut pipe: File, buffer: &mut [u8]) -> io::Result<u64> {
    let mut taken = 0;
    loop {
        match pipe.read(buffer) {
            Ok(0) => return Ok(taken),
            Ok(bytes) => taken += bytes as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
