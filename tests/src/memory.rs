//! How much a program holds: its resident memory, and the pages in its pipes,
//! which no number in `/proc` tells.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::unistd::Pid;

use crate::criu::pipe;

const PAGE: usize = 4096;

/// What a program holds at a moment, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Resident memory.
    pub resident: usize,
    /// Pages in its pipes, counted by occupied slots: a page of which two slots
    /// hold a part counts twice. A slot that came from a socket may hold more
    /// than a page; then its bytes count.
    pub in_pipes: usize,
}

impl Held {
    /// By the process `pid` now. Its descriptors up to `above` are not looked
    /// at: what is in them is somebody else's.
    pub fn by(pid: Pid, above: i32) -> Held {
        Held { resident: status(pid, "VmRSS"), in_pipes: in_pipes(pid, above) }
    }

    /// All of it.
    pub fn total(self) -> usize {
        self.resident + self.in_pipes
    }
}

/// The most resident memory that the process has had, in bytes.
pub fn peak(pid: Pid) -> usize {
    status(pid, "VmHWM")
}

/// A number in `/proc/PID/status`, in bytes; 0 when the process has gone.
fn status(pid: Pid, key: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0) * 1024
}

fn in_pipes(pid: Pid, above: i32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    for entry in entries {
        let number: i32 = entry.file_name().to_str().expect("a number").parse().expect("a number");
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let fresh = target.to_string_lossy().starts_with("pipe:") && seen.insert(target);
        if fresh && number > above {
            let mut open = OpenOptions::new();
            let open = open.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
            // What has gone meanwhile holds nothing.
            bytes += open.open(entry.path()).map_or(0, |pipe| occupied(&pipe));
        }
    }
    bytes
}

/// What a pipe holds. Its slots are duplicated into a pipe of
/// the same size, in which then so many pages less have room.
fn occupied(held: &File) -> usize {
    if !held.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return 0;
    }
    let capacity = capacity(held);
    let (_read_end, write_end) = pipe(Some(capacity)).expect("a pipe to count slots with");
    assert_eq!(self::capacity(&write_end), capacity, "no pipe of that size to count slots with");
    let all = tee(held, &write_end, usize::MAX >> 1, SpliceFFlags::SPLICE_F_NONBLOCK);
    let Ok(bytes) = all else {
        return 0; // It is empty.
    };
    fcntl(&write_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe of ours");
    let mut probe = File::from(write_end);
    let mut room = 0;
    loop {
        // Whole pages are never merged with what is there.
        match probe.write(&[0; PAGE]) {
            Ok(_) => room += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return bytes.max(capacity - room * PAGE);
            }
            Err(error) => panic!("counting slots: {error}"),
        }
    }
}

fn capacity(pipe: impl AsFd) -> usize {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).expect("a pipe") as usize
}
