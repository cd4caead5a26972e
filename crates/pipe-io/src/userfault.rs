//! Memory on demand: the kernel's userfaultfd, from the side of the program that brings the pages.
//!
//! A process registers a part of its memory with a descriptor ([`UserFault`]) and hands that to
//! us. Whoever touches a page that is not there waits until we have put one in its place, and
//! what the process does to the layout of that memory is told before it goes on.
//!
//! While the last descriptor is open a missing page is waited for. When it is closed the kernel
//! fills what is missing with zeros.

use crate::pipe::page;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// The memory of one process that is brought on demand.
#[derive(Debug)]
pub struct UserFault(OwnedFd);

/// What the kernel tells about that memory.
#[derive(Debug)]
pub enum Message {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process has forked; the child's memory lacks what the parent's lacked at that moment.
    Fork(UserFault),
    /// So many bytes have moved from one address to another.
    Remap {
        /// The old address.
        from: u64,
        /// The new one.
        to: u64,
        /// How many bytes.
        length: u64,
    },
    /// The pages from `start` up to `end` are being dropped: they are zeros from now on.
    Remove {
        /// The first address.
        start: u64,
        /// The first address behind them.
        end: u64,
    },
    /// There is no memory any more from `start` up to `end`.
    Unmap {
        /// The first address.
        start: u64,
        /// The first address behind it.
        end: u64,
    },
}

/// How far pages were brought, and why no farther.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Bytes that are in their place.
    pub done: u64,
    /// What stands against the page behind them.
    pub obstacle: Obstacle,
}

/// Why a page cannot be brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The layout of the memory is changing: the messages have to be read first.
    Changing,
    /// A page is there already.
    Present,
    /// No memory that is brought on demand is there, or only a part of what was asked for.
    Unmapped,
    /// The process has ended, or has executed another program.
    Gone,
    /// Another reason.
    System(Errno),
}

/// Why there is no memory on demand here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The kernel was built without it.
    NotBuilt,
    /// This program may not use it: it lacks the capability.
    NotCapable,
    /// This program may not use it, though it has the capability.
    Forbidden,
    /// The kernel does not tell what a process does to its memory.
    NoEvents,
    /// Another reason.
    System(Errno),
}

/// The version of the interface.
const API: u64 = 0xaa;

/// What CRIU asks the kernel to tell: forks, and memory that is moved, dropped and unmapped.
const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    /// Bytes, or a negative error number.
    done: i64,
}

#[repr(C)]
struct Zero {
    start: u64,
    length: u64,
    mode: u64,
    /// Bytes, or a negative error number.
    done: i64,
}

#[repr(C)]
struct Span {
    start: u64,
    length: u64,
}

/// Asks for the interface, and for what the kernel is to tell.
fn agree(fd: &OwnedFd, api: &mut Api) -> nix::Result<i32> {
    nix::ioctl_readwrite!(uffdio_api, API, 0x3f, Api);
    // SAFETY: reads and writes the structure that it is defined for, and keeps nothing.
    unsafe { uffdio_api(fd.as_raw_fd(), api) }
}

/// Copies memory of ours to memory of the process.
fn copy(fd: &OwnedFd, copy: &mut Copy) -> nix::Result<i32> {
    nix::ioctl_readwrite!(uffdio_copy, API, 0x03, Copy);
    // SAFETY: writes into the structure, and into memory that its process has registered to be
    // written by us; of our own memory it only reads, and fails where it cannot.
    unsafe { uffdio_copy(fd.as_raw_fd(), copy) }
}

/// A message as the kernel writes it: the kind, and from byte 8 on three numbers.
const MESSAGE: usize = 32;

impl UserFault {
    /// Takes a descriptor that a process has sent.
    pub fn new(fd: OwnedFd) -> UserFault {
        UserFault(fd)
    }

    /// Whether processes can have memory on demand here whose changes we are told of.
    pub fn check() -> Result<(), Unavailable> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        // SAFETY: takes flags and gives a new descriptor, or -1.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags.bits()) };
        if number < 0 {
            return Err(match Errno::last() {
                Errno::ENOSYS => Unavailable::NotBuilt,
                Errno::EPERM | Errno::EACCES => Unavailable::not_allowed(),
                error => Unavailable::System(error),
            });
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(number as RawFd) };
        let mut api = Api { api: API, features: EVENTS, ioctls: 0 };
        match agree(&fd, &mut api) {
            Ok(_) => Ok(()),
            Err(Errno::EPERM) => Err(Unavailable::not_allowed()),
            Err(Errno::EINVAL) => Err(Unavailable::NoEvents),
            Err(error) => Err(Unavailable::System(error)),
        }
    }

    /// The next message, or `None` if there is none at this moment. Whoever waits in a fork or in
    /// a change of the layout goes on with this.
    ///
    /// Faults come before everything else.
    pub fn next_message(&self) -> io::Result<Option<Message>> {
        loop {
            let mut bytes = [0; MESSAGE];
            match nix::unistd::read(&self.0, &mut bytes) {
                Ok(MESSAGE) => match understand(&bytes) {
                    Some(message) => return Ok(Some(message)),
                    None => return Err(io::ErrorKind::InvalidData.into()),
                },
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts whole pages at this address, and wakes who waits for them.
    pub fn copy(&self, to: u64, bytes: &[u8]) -> Result<(), Stopped> {
        let length = bytes.len() as u64;
        let mut step = Copy { to, from: bytes.as_ptr() as u64, length, mode: 0, done: 0 };
        let result = copy(&self.0, &mut step);
        stopped(result, step.done, length)
    }

    /// Makes pages of zeros at this address, and wakes who waits for them.
    pub fn zero(&self, start: u64, length: u64) -> Result<(), Stopped> {
        nix::ioctl_readwrite!(uffdio_zeropage, API, 0x04, Zero);
        let mut zero = Zero { start, length, mode: 0, done: 0 };
        // SAFETY: writes into the structure, and changes only which pages are there in memory
        // that its process has registered to be filled by us.
        let result = unsafe { uffdio_zeropage(self.0.as_raw_fd(), &mut zero) };
        stopped(result, zero.done, length)
    }

    /// Wakes who waits for this page, to look again.
    pub fn wake(&self, start: u64) {
        nix::ioctl_read!(uffdio_wake, API, 0x02, Span);
        let mut span = Span { start, length: page() as u64 };
        // SAFETY: reads the structure, and changes no memory.
        let _ = unsafe { uffdio_wake(self.0.as_raw_fd(), &mut span) };
    }

    /// What would stand against bringing a page to this address now, if anything. It is not
    /// brought.
    pub fn probe(&self, address: u64) -> Option<Obstacle> {
        // The kernel looks at all else before it sees that there is nothing to be read.
        let (from, length) = (unreadable(), page() as u64);
        let mut step = Copy { to: address, from, length, mode: 0, done: 0 };
        let result = copy(&self.0, &mut step);
        match stopped(result, step.done, length).map_err(|stopped| stopped.obstacle) {
            Ok(()) | Err(Obstacle::System(Errno::EFAULT)) => None,
            Err(obstacle) => Some(obstacle),
        }
    }

    /// Whether the memory is still there. It is not when its process has ended, or has executed
    /// another program.
    pub fn is_alive(&self) -> bool {
        self.probe(ANYWHERE) != Some(Obstacle::Gone)
    }

    /// Whether the layout is changing: somebody waits for messages to be read, or is just about to
    /// go on.
    pub fn is_changing(&self) -> bool {
        self.probe(ANYWHERE) == Some(Obstacle::Changing)
    }
}

/// An address that every process could have something at, past those that are reserved.
const ANYWHERE: u64 = 1 << 30;

/// The address of a page of our own that nobody can read, the kernel included.
fn unreadable() -> u64 {
    static PLACE: OnceLock<u64> = OnceLock::new();
    *PLACE.get_or_init(|| {
        let (length, flags) = (NonZeroUsize::MIN, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping at a place of the kernel's choice touches nobody's memory.
        let place = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) };
        place.map_or(0, |place| place.as_ptr() as u64)
    })
}

/// The descriptors of this kind that are open in this process, by their numbers.
pub fn numbers() -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let is_one = fs::read_link(entry.path())
            .is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]");
        if is_one {
            found.extend(entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
    }
    Ok(found)
}

fn stopped(result: nix::Result<i32>, done: i64, wanted: u64) -> Result<(), Stopped> {
    let done = u64::try_from(done).unwrap_or(0).min(wanted);
    let Err(error) = result else { return Ok(()) };
    let obstacle = match error {
        Errno::EAGAIN => Obstacle::Changing,
        Errno::EEXIST => Obstacle::Present,
        Errno::ENOENT => Obstacle::Unmapped,
        Errno::ESRCH | Errno::ENOSPC => Obstacle::Gone,
        error => Obstacle::System(error),
    };
    Err(Stopped { done, obstacle })
}

fn understand(bytes: &[u8; MESSAGE]) -> Option<Message> {
    let number = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u64::from_ne_bytes(*word));
    let (first, second, third) = (number(8)?, number(16)?, number(24)?);
    match bytes.first()? {
        0x12 => Some(Message::Fault(second & !(page() as u64 - 1))),
        0x13 => {
            let number = RawFd::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
            Some(Message::Fork(UserFault(unsafe { OwnedFd::from_raw_fd(number) })))
        }
        0x14 => Some(Message::Remap { from: first, to: second, length: third }),
        0x15 => Some(Message::Remove { start: first, end: second }),
        0x16 => Some(Message::Unmap { start: first, end: second }),
        _ => None,
    }
}

impl AsFd for UserFault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Unavailable {
    /// The capability counts in the first user namespace only, and a seccomp profile asks for none.
    /// vm.unprivileged_userfaultfd is not enough: whoever follows forks needs the capability.
    fn not_allowed() -> Unavailable {
        const CAP_SYS_PTRACE: u32 = 19;

        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        match set {
            Some(set) if set >> CAP_SYS_PTRACE & 1 == 0 => Unavailable::NotCapable,
            _ => Unavailable::Forbidden,
        }
    }
}

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unavailable::NotBuilt => f.write_str("this kernel has none (CONFIG_USERFAULTFD)"),
            Unavailable::NotCapable => f.write_str("not allowed here: it takes CAP_SYS_PTRACE"),
            Unavailable::Forbidden => f.write_str(
                "not allowed here: it takes a seccomp profile that lets userfaultfd(2) through, \
                 and no user namespace",
            ),
            Unavailable::NoEvents => {
                f.write_str("this kernel does not tell of forks and moved memory (before 4.11)")
            }
            Unavailable::System(error) => f.write_str(&crate::reason(&(*error).into())),
        }
    }
}

impl std::error::Error for Unavailable {}
