//! The state that a program inherits: descriptors by number, ignored and blocked signals, limits.

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::SFlag;
use std::fmt;
use std::io::IsTerminal;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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

/// Another descriptor for what this number leads to, which stays open for programs that we start.
pub fn duplicate(number: RawFd, direction: Direction) -> Result<OwnedFd, Refusal> {
    check_open(number, direction)?;
    // SAFETY: `check_open` has seen that the descriptor is open, and it is only borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fd.try_clone_to_owned().map_err(|_| Refusal::NotOpen)
}

/// What a descriptor is that programs which we start would find open, where it connects them with
/// others: a pipe, a socket or a terminal.
pub fn what_programs_inherit(number: RawFd) -> Option<&'static str> {
    if number < 0 {
        return None;
    }
    // SAFETY: the number is not -1, and it is only asked about while borrowed: if it is not open the
    // kernel says EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).ok()?);
    if flags.contains(FdFlag::FD_CLOEXEC) {
        return None;
    }
    let stat = nix::sys::stat::fstat(fd).ok()?;
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => Some("a pipe"),
        SFlag::S_IFSOCK => Some("a socket"),
        SFlag::S_IFCHR if fd.is_terminal() => Some("a terminal"),
        _ => None,
    }
}

/// Which of the descriptors 0, 1 and 2 the program was started without, as bits.
static CLOSED_AT_START: AtomicU8 = AtomicU8::new(0);
/// The signals that the program was started with ignored, and with blocked: signal N is bit N - 1.
static IGNORED_AT_START: AtomicU64 = AtomicU64::new(0);
static BLOCKED_AT_START: AtomicU64 = AtomicU64::new(0);
/// The soft limit of descriptors that the program was started with; 0 if it is not known.
static DESCRIPTORS_AT_START: AtomicU64 = AtomicU64::new(0);

/// The numbers of all signals, real-time ones too.
const SIGNALS: std::ops::RangeInclusive<libc::c_int> = 1..=64;

/// Runs before Rust's own start-up code, which opens `/dev/null` in the place of a standard
/// descriptor that is closed (an image written there would be lost without a word), and which
/// ignores SIGPIPE.
// SAFETY: the section holds pointers to functions of this type, which the C library calls once
// before `main`; the function needs nothing that is not there so early.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_START: extern "C" fn() = note_start;

extern "C" fn note_start() {
    for number in 0..3 {
        // SAFETY: asks the kernel about a number; takes and gives no memory.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            CLOSED_AT_START.fetch_or(1 << number, Ordering::Relaxed);
        }
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        DESCRIPTORS_AT_START.store(soft, Ordering::Relaxed);
    }
    let mut blocked = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: a null new mask makes this a question; the answer goes into `blocked`.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), blocked.as_mut_ptr()) };
    for signal in SIGNALS {
        if handler(signal) == Some(libc::SIG_IGN) {
            IGNORED_AT_START.fetch_or(1 << (signal - 1), Ordering::Relaxed);
        }
        // SAFETY: the set is valid: all zeros is the empty one, or the kernel has filled it.
        if unsafe { libc::sigismember(blocked.as_ptr(), signal) } == 1 {
            BLOCKED_AT_START.fetch_or(1 << (signal - 1), Ordering::Relaxed);
        }
    }
}

/// What a signal does; `None` for one that the C library keeps for itself.
fn handler(signal: libc::c_int) -> Option<libc::sighandler_t> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action makes this a question; the answer goes into `action`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid `sigaction`, whether or not the kernel has filled it.
    let action = unsafe { action.assume_init() };
    (asked == 0).then_some(action.sa_sigaction)
}

/// Gives the calling process the signal dispositions, the signal mask, the limit of descriptors and
/// the timer slack that the program was started with, and closes those of the descriptors 0, 1 and
/// 2 that it was started without, except `given`. For a child, between fork and exec: it allocates nothing.
pub(crate) fn become_as_at_start(given: &[RawFd]) {
    let (ignored, blocked) =
        (IGNORED_AT_START.load(Ordering::Relaxed), BLOCKED_AT_START.load(Ordering::Relaxed));
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: makes the set, which is ours, empty.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    for signal in SIGNALS {
        let bit = 1 << (signal - 1);
        let wanted = if ignored & bit == 0 { libc::SIG_DFL } else { libc::SIG_IGN };
        // A handler of ours is reset by exec.
        if matches!(handler(signal), Some(libc::SIG_DFL | libc::SIG_IGN)) {
            // SAFETY: neither of the two actions is a function.
            unsafe { libc::signal(signal, wanted) };
        }
        if blocked & bit != 0 {
            // SAFETY: the set is valid, as it was made empty above.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), signal) };
        }
    }
    // SAFETY: takes a valid set, and gives no memory.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut()) };
    let descriptors = DESCRIPTORS_AT_START.load(Ordering::Relaxed);
    if let (Ok((_, hard)), 1..) = (getrlimit(Resource::RLIMIT_NOFILE), descriptors) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, descriptors, hard);
    }
    if let slack @ 1.. = TIMER_SLACK_AT_START.load(Ordering::Relaxed) {
        let _ = prctl::set_timerslack(slack);
    }
    for number in (0..3).filter(|number| was_closed_at_start(*number) && !given.contains(number)) {
        // SAFETY: the process is about to execute another program; what Rust's start-up code has
        // opened under this number is used by nobody.
        unsafe { libc::close(number) };
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
/// returns that. Programs that it starts have what it was started with: those that use `select`
/// have no use for more than they know.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// How late a sleep of the program might end before [`sleep_precisely`], in nanoseconds; 0 if that
/// was not called.
static TIMER_SLACK_AT_START: AtomicU64 = AtomicU64::new(0);

/// Has this thread, and those that it starts, sleep for as long as they mean to: without this, a
/// sleep of 50 µs is one of 100. The programs that it starts would inherit that, and what CRIU
/// restores, too: see [`crate::process::as_our_caller`].
pub fn sleep_precisely() {
    if let Ok(slack @ 1..) = prctl::get_timerslack() {
        TIMER_SLACK_AT_START.store(slack as u64, Ordering::Relaxed);
        let _ = prctl::set_timerslack(1);
    }
}

/// Whether the program was started with the signal ignored (as `nohup` does), which a polite
/// program leaves so.
pub fn is_ignored(signal: Signal) -> bool {
    IGNORED_AT_START.load(Ordering::Relaxed) & (1 << (signal as i32 - 1)) != 0
}
