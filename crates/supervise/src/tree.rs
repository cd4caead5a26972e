//! The process tree that is held, seen from outside.

use crate::family::{Processes, Stat};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};

/// The root of a tree, told from any later process with its number.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    root: Pid,
    started: u64,
}

/// What has become of a tree, by its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Runs,
    /// It was stopped, by a signal or a debugger.
    Stopped,
    /// It is not there any more.
    Gone,
}

impl Tree {
    /// `None` if there is no such process, or it has ended.
    pub fn of(root: Pid) -> Option<Tree> {
        let stat = Stat::of(root).filter(|stat| !is_dead(stat.state))?;
        Some(Tree { root, started: stat.started })
    }

    /// The root.
    pub fn root(&self) -> Pid {
        self.root
    }

    /// What tells its root from every other process that this machine has had, or another one.
    pub fn identity(&self) -> io::Result<String> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(format!("{} {} {}", boot.trim(), self.root, self.started))
    }

    /// What has become of it.
    pub fn state(&self) -> State {
        match Stat::of(self.root).filter(|stat| stat.started == self.started) {
            Some(stat) if is_dead(stat.state) => State::Gone,
            Some(Stat { state: 'T' | 't', .. }) => State::Stopped,
            Some(_) => State::Runs,
            None => State::Gone,
        }
    }

    /// A process of it whose memory is still being brought by `image-serve --lazy`: CRIU would
    /// leave out what is not there, and say nothing.
    pub fn lacks_memory(&self) -> Option<Pid> {
        // Looking through a process's mappings takes time, and few machines have anybody who
        // brings memory.
        if !somebody_brings_memory() {
            return None;
        }
        // What is complete stays so. A child that was forked meanwhile lacks what its parent
        // lacked then: so it is found with its parent, or in the next list.
        let mut seen = HashSet::new();
        loop {
            let all = Processes::now().from(self.root);
            let new: Vec<Pid> = all.into_iter().filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                return None;
            }
            if let Some(pid) = new.into_iter().find(|pid| lacks_memory(*pid)) {
                return Some(pid);
            }
        }
    }

    /// The memory that an image of it holds, about, in bytes: what is neither in a file nor shared
    /// with one. Pages that are shared within the tree count more than once.
    pub fn memory(&self) -> u64 {
        let processes = Processes::now().from(self.root);
        processes.into_iter().map(|pid| memory_of(pid).unwrap_or(0)).sum()
    }
}

fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// Whether a process that can be seen here has a userfaultfd.
fn somebody_brings_memory() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let descriptors =
        processes.flat_map(|process| fs::read_dir(process.path().join("fd"))).flatten().flatten();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
}

/// Whether missing pages of a process are brought by somebody: a mapping has the flag `um`.
fn lacks_memory(pid: Pid) -> bool {
    let Ok(file) = File::open(format!("/proc/{pid}/smaps")) else { return false };
    let has_flag = |line: Vec<u8>| {
        let flags = line.strip_prefix(b"VmFlags:").unwrap_or_default();
        flags.split(u8::is_ascii_whitespace).any(|flag| flag == b"um")
    };
    BufReader::new(file).split(b'\n').map_while(Result::ok).any(has_flag)
}

fn memory_of(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.unwrap_or(0)
    };
    Some((kilobytes("RssAnon") + kilobytes("RssShmem") + kilobytes("VmSwap")) * 1024)
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Runs => "runs on",
            State::Stopped => "is stopped",
            State::Gone => "is gone",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getpid;

    #[test]
    fn a_tree_that_runs_has_memory() {
        let tree = Tree::of(getpid()).unwrap();
        assert_eq!(tree.state(), State::Runs);
        assert!(tree.memory() > 100_000);
    }

    #[test]
    fn a_tree_is_gone_when_another_has_its_number() {
        let tree = Tree { started: 1, ..Tree::of(getpid()).unwrap() };
        assert_eq!(tree.state(), State::Gone);
    }
}
