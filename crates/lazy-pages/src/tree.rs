//! The processes whose memory is on demand, and ending them.

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pipe_io::poll;
use pipe_io::process::ExitWatch;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

/// Processes, by descriptors that always mean them, whatever becomes of their numbers.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<i32, ExitWatch>);

/// How long the end of all processes is waited for before somebody is told that it takes long.
const PATIENCE: Duration = Duration::from_secs(5);

impl Tree {
    /// Adds a process. That it has ended already is no error.
    pub(crate) fn add(&mut self, pid: i32) {
        if let Ok(watch) = ExitWatch::of_any(Pid::from_raw(pid)) {
            self.0.insert(pid, watch);
        }
    }

    /// Forgets those that have ended.
    pub(crate) fn prune(&mut self) {
        self.0.retain(|_, watch| !poll::is_readable(watch).unwrap_or(false));
    }

    /// Adds the children of those that are known, and theirs; returns those that are new.
    pub(crate) fn add_children(&mut self) -> Vec<i32> {
        let mut new = Vec::new();
        let mut next: Vec<i32> = self.0.keys().copied().collect();
        while let Some(parent) = next.pop() {
            // The number may be another's by now.
            let has_ended = |watch| poll::is_readable(watch).unwrap_or(true);
            if self.0.get(&parent).is_none_or(has_ended) {
                continue;
            }
            for child in children(parent) {
                if !self.0.contains_key(&child) {
                    self.add(child);
                    next.push(child);
                    new.push(child);
                }
            }
        }
        new
    }

    /// Kills all of them, and their children, until none of their memory is left, and says so.
    /// What still lives after some time is waited for: to let go of its memory would be to give it
    /// zeros.
    pub(crate) fn end(
        &mut self,
        mut is_memory_left: impl FnMut() -> bool,
        say: impl Fn(fmt::Arguments<'_>),
    ) {
        const SHORTEST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_millis(100);

        self.prune();
        self.add_children();
        let numbers: Vec<_> = self.0.keys().map(i32::to_string).collect();
        say(format_args!("kills {}: their memory is incomplete", numbers.join(", ")));
        let begun = Instant::now();
        let (mut is_told, mut pause) = (false, SHORTEST);
        loop {
            for process in self.0.values() {
                let _ = process.send(Signal::SIGKILL);
            }
            if !is_memory_left() {
                return;
            }
            if begun.elapsed() > PATIENCE && !is_told {
                is_told = true;
                say(format_args!("holds processes that cannot be found where they lack memory"));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
            self.add_children();
        }
    }

    /// The descriptors that it holds.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        self.0.values().map(|watch| watch.as_fd().as_raw_fd()).collect()
    }
}

/// The children of a process, of all its threads.
fn children(parent: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .flatten()
        .collect()
}
