//! A process in the ring: passes every message on, and looks after its heap.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Fault;
use crate::heap::Heap;
use crate::status::Status;

/// What a member is besides its place in the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Plain,
    /// Has further threads: one answers on the socket pair (which is its
    /// standard error), and some count.
    Threads,
    /// The same, and one more thread that answers on TCP.
    ThreadsAndTcp,
    /// Holds a socket that CRIU refuses to dump.
    Undumpable,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Plain => "plain",
            Role::Threads => "threads",
            Role::ThreadsAndTcp => "threads-and-tcp",
            Role::Undumpable => "undumpable",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Role::Plain, Role::Threads, Role::ThreadsAndTcp, Role::Undumpable]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

/// A process whose standard input and output are pipes of the ring.
///
/// Descriptors come as the standard ones because those can be had without
/// `unsafe`.
pub(crate) struct Member {
    directory: PathBuf,
    index: usize,
    megabytes: usize,
    role: Role,
}

impl Member {
    /// From `DIR INDEX MEGABYTES ROLE`.
    pub(crate) fn parse(words: &[&str]) -> Option<Self> {
        let [directory, index, megabytes, role] = words else {
            return None;
        };
        Some(Member {
            directory: directory.into(),
            index: index.parse().ok()?,
            megabytes: megabytes.parse().ok()?,
            role: Role::from_name(role)?,
        })
    }

    /// Until the ring is closed.
    pub(crate) fn run(self) -> Result<(), Fault> {
        let status = Status::create(&self.directory, &format!("member-{}", self.index))?;
        let step = Arc::new(AtomicU64::new(0));
        let outcome = self.go_round(&status, &step);
        if let Err(fault) = &outcome {
            status.complain(step.load(Ordering::Relaxed), fault)?;
        }
        outcome
    }

    fn go_round(&self, status: &Status, step: &Arc<AtomicU64>) -> Result<(), Fault> {
        let _undumpable = match self.role {
            Role::Undumpable => Some(undumpable_socket()?),
            _ => None,
        };
        if self.role == Role::ThreadsAndTcp {
            self.start_tcp(step)?;
        }
        if matches!(self.role, Role::Threads | Role::ThreadsAndTcp) {
            self.start_threads()?;
        }
        let input = BufReader::new(File::from(io::stdin().as_fd().try_clone_to_owned()?));
        let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let mut heap = Heap::new(self.megabytes);
        for line in input.lines() {
            let number = in_sequence("the ring", &line?, step.load(Ordering::Relaxed))?;
            step.store(number, Ordering::Relaxed);
            heap.turn()?;
            status.report(number, heap.passes())?;
            if writeln!(output, "{number}").is_err() {
                break;
            }
        }
        Ok(())
    }

    fn start_tcp(&self, step: &Arc<AtomicU64>) -> Result<(), Fault> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        std::fs::write(self.directory.join("port"), port.to_string())?;
        let step = Arc::clone(step);
        thread::spawn(move || answer_on_tcp(&listener, &step));
        Ok(())
    }

    fn start_threads(&self) -> Result<(), Fault> {
        let pair = UnixStream::from(io::stderr().as_fd().try_clone_to_owned()?);
        let status = Status::create(&self.directory, "pair")?;
        thread::spawn(move || watch(&status, |status, step| answer_on_pair(&pair, status, step)));

        for index in 0..3 {
            let status = Status::create(&self.directory, &format!("thread-{index}"))?;
            thread::spawn(move || watch(&status, count_with_a_heap));
        }
        Ok(())
    }
}

/// The number in `line`, which must be the one after `last`.
pub(crate) fn in_sequence(place: &str, line: &str, last: u64) -> Result<u64, Fault> {
    match line.trim().parse() {
        Ok(number) if number == last + 1 => Ok(number),
        _ => Err(format!("{place}: message {line:?} after {last}").into()),
    }
}

fn undumpable_socket() -> Result<OwnedFd, Fault> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| format!("a vsock socket: {errno}").into())
}

/// Runs `work`, and reports what ends it.
fn watch(status: &Status, work: impl FnOnce(&Status, &mut u64) -> Result<(), Fault>) {
    let mut step = 0;
    if let Err(fault) = work(status, &mut step) {
        let _ = status.complain(step, &fault);
    }
}

/// Tells everybody who connects how many messages have passed.
fn answer_on_tcp(listener: &TcpListener, step: &AtomicU64) {
    for connection in listener.incoming().flatten() {
        let _ = writeln!(&connection, "{}", step.load(Ordering::Relaxed));
    }
}

/// Sends every number that comes back, as long as they come in sequence.
fn answer_on_pair(pair: &UnixStream, status: &Status, step: &mut u64) -> Result<(), Fault> {
    let mut lines = BufReader::new(pair).lines();
    while let Some(line) = lines.next().transpose()? {
        *step = in_sequence("the socket pair", &line, *step)?;
        status.report(*step, 0)?;
        let mut pair = pair;
        writeln!(pair, "{step}")?;
    }
    Ok(())
}

fn count_with_a_heap(status: &Status, step: &mut u64) -> Result<(), Fault> {
    let mut heap = Heap::new(1);
    loop {
        heap.turn()?;
        *step += 1;
        status.report(*step, heap.passes())?;
        thread::sleep(Duration::from_millis(20));
    }
}
