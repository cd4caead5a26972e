//! What a program is started with: descriptors by number, the signals that are ignored or blocked,
//! and how many descriptors it may have.

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a descriptor is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reading.
    Input,
    /// Writing.
    Output,
}

/// Why a descriptor cannot carry a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such descriptor.
    NotOpen,
    /// A terminal carries no image.
    Terminal,
    /// It was opened for writing only.
    NotReadable,
    /// It was opened for reading only.
    NotWritable,
    /// A directory, a datagram socket, or the like.
    NoStream,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NotOpen => "is not open",
            Refusal::Terminal => "is a terminal",
            Refusal::NotReadable => "is not open for reading",
            Refusal::NotWritable => "is not open for writing",
            Refusal::NoStream => "is not a pipe, a FIFO, a file or a stream socket",
        })
    }
}

impl std::error::Error for Refusal {}

/// Takes over the descriptor with this number, and keeps it from programs that we start.
///
/// Each number must be taken at most once in the life of the program.
pub fn take(number: RawFd, direction: Direction) -> Result<OwnedFd, Refusal> {
    check_open(number, direction)?;
    // SAFETY: `check_open` has seen that the descriptor is open, and by this function's contract
    // nobody else in the program owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // Cannot fail on an open descriptor.
    let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    Ok(fd)
}

/// Which of the descriptors 0, 1 and 2 the program was started without, as bits.
static CLOSED_AT_START: AtomicU8 = AtomicU8::new(0);

/// What a program that we start is to find as we have found it.
#[derive(Clone, Copy, Debug)]
struct Inherited {
    blocked: SigSet,
    /// Of the signals whose disposition we or Rust's start-up code change.
    ignores_pipe: bool,
    ignores_child: bool,
    /// The soft and the hard limit of descriptors.
    descriptors: (u64, u64),
}

static INHERITED: OnceLock<Inherited> = OnceLock::new();

/// Runs before Rust's own start-up code, which opens `/dev/null` in the place of a standard
/// descriptor that is closed (an image written there would be lost without a word), and ignores
/// SIGPIPE.
// SAFETY: the section holds pointers to functions of this type, which the C library calls once
// before `main`; the function needs nothing that is not there so early.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_INHERITED: extern "C" fn() = note_inherited;

extern "C" fn note_inherited() {
    note_closed();
    let _ = INHERITED.set(Inherited {
        blocked: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()),
        ignores_pipe: is_ignored(Signal::SIGPIPE),
        ignores_child: is_ignored(Signal::SIGCHLD),
        descriptors: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default(),
    });
}

fn note_closed() {
    for number in 0..3 {
        // SAFETY: asks the kernel about a number; takes and gives no memory.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            CLOSED_AT_START.fetch_or(1 << number, Ordering::Relaxed);
        }
    }
}

/// Whether the program was started without this descriptor, 0, 1 or 2.
pub fn was_closed_at_start(number: RawFd) -> bool {
    (0..3).contains(&number) && CLOSED_AT_START.load(Ordering::Relaxed) & (1 << number) != 0
}

fn check_open(number: RawFd, direction: Direction) -> Result<(), Refusal> {
    if number < 0 || was_closed_at_start(number) {
        return Err(Refusal::NotOpen);
    }
    // SAFETY: the number is not -1, and it is only asked about while borrowed: if it is not
    // open the kernel says EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|_| Refusal::NotOpen)?;
    let flags = OFlag::from_bits_retain(flags);
    match (direction, flags & OFlag::O_ACCMODE) {
        _ if flags.contains(OFlag::O_PATH) => Err(Refusal::NoStream),
        (Direction::Input, OFlag::O_WRONLY) => Err(Refusal::NotReadable),
        (Direction::Output, OFlag::O_RDONLY) => Err(Refusal::NotWritable),
        _ => Ok(()),
    }
}

/// Raises the number of descriptors that the program may have to what it is allowed to have, and
/// returns that.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Lets the program that will be started find what we were started with: the signals that are
/// blocked or ignored, and the limit of descriptors. Its environment and directory are ours as
/// they are.
pub fn pass_on(command: &mut Command) {
    let Some(inherited) = INHERITED.get().copied() else { return };
    let undo = move || {
        if inherited.ignores_pipe {
            ignore(libc::SIGPIPE);
        }
        if inherited.ignores_child {
            ignore(libc::SIGCHLD);
        }
        let (soft, hard) = inherited.descriptors;
        if hard > 0 {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
        inherited.blocked.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec it makes four system calls at most, with memory of its own
    // stack, and allocates nothing.
    unsafe { command.pre_exec(undo) };
}

/// Sees to it that a child that has ended can be waited for: under a caller that ignores SIGCHLD
/// the kernel would forget its status.
pub fn keep_statuses() {
    // SAFETY: installs no function, and takes no memory.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

fn ignore(signal: libc::c_int) {
    // SAFETY: installs no function, and takes no memory.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Whether the program was started with the signal ignored (as `nohup` does), which a polite
/// program leaves so.
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action makes this a question; the answer goes into `action`.
    let asked = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid `sigaction`, whether or not the kernel has filled it.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
