//! Pipes: making them, their capacity, what is queued in them.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::io;
use std::ops::{Add, Div};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How many bytes a page of this kernel has: a slot of a pipe holds at most so many. 4096 in most
/// places; 16 and 64 KiB on some arm64 and ppc64le.
pub fn page() -> usize {
    static CACHED: AtomicUsize = AtomicUsize::new(0);
    const USUAL: usize = 4096;

    match CACHED.load(Ordering::Relaxed) {
        0 => {
            let asked = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
            let page = asked.and_then(|page| usize::try_from(page).ok()).unwrap_or(USUAL);
            CACHED.store(page, Ordering::Relaxed);
            page
        }
        page => page,
    }
}

/// The capacity that we want of a pipe, in bytes. CRIU has trouble with larger ones. At a
/// quarter of it one splice hop moves half as much per second, and costs twice the CPU time
/// (docs/design.md section 6).
pub const WANTED: usize = 4 << 20;

/// What a reader takes at once, at most, in bytes: CRIU, lz4, mbuffer and dd ask for a MiB.
pub const ONE_READ: usize = 1 << 20;

/// The two ends of a pipe.
#[derive(Debug)]
pub struct Pipe {
    /// Where bytes come out.
    pub read: OwnedFd,
    /// Where bytes go in.
    pub write: OwnedFd,
}

impl Pipe {
    /// A pipe of the default capacity, kept from programs that we start.
    pub fn new() -> io::Result<Pipe> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Pipe { read, write })
    }
}

/// Whether this is the end of a pipe where bytes come out.
pub fn is_read_end(fd: impl AsFd) -> bool {
    fcntl(fd, FcntlArg::F_GETFL)
        .is_ok_and(|flags| OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE != OFlag::O_WRONLY)
}

/// The capacity of a pipe in bytes, by either of its ends.
pub fn capacity(fd: impl AsFd) -> io::Result<usize> {
    Ok(fcntl(fd, FcntlArg::F_GETPIPE_SZ)? as usize)
}

/// What the capacity of a pipe counts for a slot, in bytes: a page. It is what the kernel gives for
/// one byte, and asked for once.
fn slot() -> usize {
    static CACHED: AtomicUsize = AtomicUsize::new(0);

    match CACHED.load(Ordering::Relaxed) {
        0 => {
            let smallest =
                || Ok::<_, io::Error>(fcntl(Pipe::new()?.write, FcntlArg::F_SETPIPE_SZ(1))?);
            let asked = smallest().ok().and_then(|bytes| usize::try_from(bytes).ok());
            let slot = asked.filter(|bytes| *bytes > 0).unwrap_or_else(page);
            CACHED.store(slot, Ordering::Relaxed);
            slot
        }
        slot => slot,
    }
}

/// A number of page slots. A pipe is a ring of them, and each holds a page or any part of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slots(pub u64);

impl Slots {
    /// How many a pipe has, by either of its ends.
    pub fn of(pipe: impl AsFd) -> io::Result<Slots> {
        Ok(Slots((capacity(pipe)? / slot()) as u64))
    }

    /// How many so many bytes take, if they fill their pages.
    pub fn for_bytes(bytes: usize) -> Slots {
        Slots(bytes.div_ceil(page()) as u64)
    }

    /// As many less, or none.
    pub fn saturating_sub(self, other: Slots) -> Slots {
        Slots(self.0.saturating_sub(other.0))
    }

    /// How many bytes they hold with so many in each.
    pub fn bytes(self, in_each: u64) -> u64 {
        self.0.saturating_mul(in_each)
    }
}

impl Add for Slots {
    type Output = Slots;

    fn add(self, other: Slots) -> Slots {
        Slots(self.0.saturating_add(other.0))
    }
}

impl Div<u64> for Slots {
    type Output = Slots;

    fn div(self, by: u64) -> Slots {
        Slots(self.0.checked_div(by).unwrap_or(0))
    }
}

/// Grows a pipe to `wanted` bytes, or to the most that is allowed, and returns its capacity.
///
/// Past `/proc/sys/fs/pipe-max-size` `F_SETPIPE_SZ` needs CAP_SYS_RESOURCE, and fails without
/// leaving the pipe any larger: taking that for an answer costs ten times the speed. A pipe
/// never shrinks here; where it cannot grow it stays as it is.
pub fn grow(fd: impl AsFd, wanted: usize) -> io::Result<usize> {
    /// What was refused last: no use in asking again.
    static REFUSED: AtomicUsize = AtomicUsize::new(usize::MAX);

    let fd = fd.as_fd();
    let now = capacity(fd)?;
    let mut wanted = wanted;
    if wanted >= REFUSED.load(Ordering::Relaxed) {
        wanted = max_size();
    }
    while wanted > now {
        match fcntl(fd, FcntlArg::F_SETPIPE_SZ(wanted.min(i32::MAX as usize) as i32)) {
            Ok(capacity) => return Ok(capacity as usize),
            Err(Errno::EINTR) => {}
            Err(Errno::EPERM) if wanted > max_size() => {
                REFUSED.fetch_min(wanted, Ordering::Relaxed);
                wanted = max_size();
            }
            // pipe-user-pages-soft, or no memory: less may still do.
            Err(_) => wanted /= 2,
        }
    }
    Ok(now)
}

/// Gives back the page slots of a pipe that `bytes` don't need when they fill their pages. `false`
/// if they take more slots than that.
pub fn shrink(fd: impl AsFd, bytes: usize) -> bool {
    let wanted = bytes.next_multiple_of(page()).min(i32::MAX as usize);
    fcntl(fd, FcntlArg::F_SETPIPE_SZ(wanted as i32)).is_ok()
}

/// The largest capacity that needs no privilege, in bytes.
fn max_size() -> usize {
    static CACHED: AtomicUsize = AtomicUsize::new(0);
    const KERNEL_DEFAULT: usize = 1 << 20;

    match CACHED.load(Ordering::Relaxed) {
        0 => {
            let size = fs::read_to_string("/proc/sys/fs/pipe-max-size")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(KERNEL_DEFAULT);
            CACHED.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// How long a pipe is left to a peer that copies, before pages are moved again: the time in which
/// 10 GB/s fill or empty it, and 50 µs, by which a sleep was late when this was measured; see
/// [`crate::inherit::sleep_precisely`].
///
/// The peer holds the pipe's mutex while it copies, and whoever comes meanwhile spins for it.
/// Measured with `make bench` (restore-1, CPU s/GB of `image-serve`): with 1 MiB pipes and no
/// rest 0.21, with 50 µs 0.15, with this (100 µs) 0.08, with 400 µs 0.07 and a quarter less
/// throughput; with 4 MiB pipes 0.13, 0.09, with 100 µs 0.07, with this (400 µs) 0.04. Without the
/// 50 µs there were a fifth more wake-ups, and restore-1 and restore-4 took a quarter more CPU time.
///
/// A pipe of 128 KiB or less is not left at all: it would take longer to fall asleep and to wake up
/// than to empty the pipe. With pipes of two pages, which a user without privileges gets who has
/// many, that made a restore five times slower.
pub fn rest(capacity: usize) -> Duration {
    const SMALL: usize = 128 << 10;
    const SLACK: Duration = Duration::from_micros(50);

    match capacity > SMALL {
        true => Duration::from_nanos(capacity as u64 / 10) + SLACK,
        false => Duration::ZERO,
    }
}

/// How many bytes can be read from a pipe or a socket at once. Says nothing about page slots.
///
/// It takes the pipe's mutex: a writer in the middle of a large write makes it wait.
pub fn queued(fd: impl AsFd) -> io::Result<usize> {
    nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);

    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a valid place, and keeps nothing.
    unsafe { fionread(fd.as_fd().as_raw_fd(), &mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_pipe_grows_to_what_is_allowed_and_never_shrinks() {
        let pipe = Pipe::new().unwrap();
        let grown = grow(&pipe.write, usize::MAX >> 1).unwrap();
        assert!(grown >= max_size().min(1 << 20), "{grown}");
        assert_eq!(capacity(&pipe.read).unwrap(), grown);
        assert_eq!(grow(&pipe.read, page()).unwrap(), grown);
    }

    #[test]
    fn a_pipe_has_a_slot_for_each_page() {
        let pipe = Pipe::new().unwrap();
        for slots in [1, 2, 16] {
            fcntl(&pipe.write, FcntlArg::F_SETPIPE_SZ((slots * page()) as i32)).unwrap();
            assert_eq!(Slots::of(&pipe.read).unwrap(), Slots(slots as u64));
        }
        assert_eq!(slot(), page());
        assert_eq!(Slots::for_bytes(page()) + Slots::for_bytes(1), Slots::for_bytes(page() + 1));
    }

    #[test]
    fn queued_counts_bytes() {
        let pipe = Pipe::new().unwrap();
        std::fs::File::from(pipe.write).write_all(b"12345").unwrap();
        assert_eq!(queued(&pipe.read).unwrap(), 5);
    }
}
