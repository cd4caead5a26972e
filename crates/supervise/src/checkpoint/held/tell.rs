//! What is told of a tree that is held: meanwhile and at the end.

use super::{Held, Verification};
use crate::cause::Cause;
use crate::checkpoint::Destination;
use crate::checkpoint::peer::{Peer, There};
use crate::checkpoint::report::{End, Report};
use crate::checkpoint::rounds::Rounds;
use crate::family::Role;
use crate::filters::Tap;
use crate::front::{GRACE, Outcome};
use crate::tell::{Seconds, print_line};
use crate::tree::State;
use pipe_io::{Bytes, Rate};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

impl Held {
    /// What is waited for, in words.
    pub(super) fn awaited(&self) -> String {
        let running = |role| self.holder.family.running(role).is_some();
        if self.holder.has_let_go {
            return "CRIU to let the tree go".into();
        }
        let unanswered = self.peer.as_ref().filter(|peer| peer.is_connecting() || peer.is_going());
        if let Some(peer) = unanswered {
            return format!("the answer of {}", peer.host());
        }
        if self.verification == Verification::Goes {
            return "the image to be read back".into();
        }
        if self.is_safe() {
            return "CRIU to ask".into();
        }
        if let Some(index) = self.shards.iter().position(Tap::is_filled) {
            return self.taker(Some(index)).to_string();
        }
        if self.stream.as_ref().is_some_and(Tap::is_filled) && self.shards.is_empty() {
            return self.taker(None).to_string();
        }
        if let Some(pid) = self.incomplete {
            return format!("the memory of process {pid}, which image-serve brings");
        }
        if running(self.capture()) || self.frozen.is_none() {
            return "CRIU's dump".into();
        }
        if let Some(peer) = &self.peer {
            return match peer.is_prepared() {
                true => "CRIU to ask".into(),
                false => format!("the restore at {}", peer.host()),
            };
        }
        let waiting = (0..self.plan.shards.get()).map(|it| Role::Command(Some(it)));
        let mut waiting = waiting.chain([Role::Command(None)]).filter(|role| running(*role));
        match (waiting.next(), waiting.next()) {
            (Some(role), None) => role.to_string(),
            (Some(_), Some(_)) => "the commands".into(),
            _ => "shard-split".into(),
        }
    }

    /// Who takes the image, or a shard of it.
    fn taker(&self, index: Option<usize>) -> Role {
        match self.peer {
            Some(_) => Role::Connection(index),
            None => Role::Command(index),
        }
    }

    pub(super) fn show(&mut self) {
        self.holder.ask_for_bytes(self.capture());
        if !self.holder.live.is_due() {
            return;
        }
        let awaited = self.awaited();
        if let Some(rounds) = self.rounds.as_ref().filter(|it| it.tree_runs()) {
            let (number, bytes) = (rounds.number(), Bytes(self.bytes));
            let line = format_args!("round {number}: {bytes}; waiting for {awaited}");
            return self.holder.live.show(line);
        }
        let rate = Rate(self.bytes, self.frozen_for());
        let left = self.expected.unwrap_or(0).saturating_sub(self.bytes);
        let time = match rate.time_for(left) {
            Some(time) if left > 0 && self.stream.is_some() => {
                format!(", {} s left", time.as_secs() + 1)
            }
            _ => String::new(),
        };
        let bytes = Bytes(self.bytes);
        let of = match self.expected {
            Some(expected) => format!(" of about {}", Bytes(expected.max(self.bytes))),
            None => String::new(),
        };
        self.holder.live.show(format_args!("{bytes}{of}, {rate}{time}; waiting for {awaited}"));
    }

    fn frozen_for(&self) -> Duration {
        let Some(frozen) = self.frozen else { return Duration::ZERO };
        self.thawed.unwrap_or_else(Instant::now).saturating_duration_since(frozen)
    }

    pub(super) fn report(&self) -> Report {
        Report {
            end: match (self.holder.has_failed(), self.is_over()) {
                (true, _) => End::Failed,
                (false, true) => End::Done,
                (false, false) => End::Going,
            },
            bytes: self.bytes,
            frozen: self.frozen_for(),
            image: self.image,
            parent: self.parent(),
            before: self.rounds.as_ref().map(Rounds::bytes),
            image_is_safe: self.is_safe(),
            process: self.tree.root(),
            state: self.tree.state(),
            there: self.there(),
            cause: self.holder.cause().map(Cause::to_string),
        }
    }

    pub(super) fn there(&self) -> Option<(String, There)> {
        match &self.plan.destination {
            Destination::Command(_) => None,
            Destination::Host(route) => {
                let there = self.peer.as_ref().map_or(There::No, Peer::there);
                Some((route.to_string(), there))
            }
        }
    }

    pub(super) fn log(&self) -> PathBuf {
        let directory = self.plan.logs.as_deref().unwrap_or(self.holder.scratch.path());
        self.plan.criu_options.log(directory, "dump.log")
    }

    /// The last line, and what stands before it.
    pub(super) fn tell(self) -> Outcome {
        self.wait_for_tree();
        let report = self.report();
        let voice = self.holder.voice;
        self.note_in_series(report.state);
        self.holder.explain(&self.log(), &format!("criu-dump-{}", report.process));
        self.holder.scratch.remove();
        let time = Seconds(report.frozen);
        let outcome = match self.holder.cause() {
            None => {
                let (bytes, rate) = (Bytes(report.bytes), Rate(report.bytes, report.frozen));
                let before = match (&self.rounds, report.parent) {
                    (Some(rounds), _) => format!("{rounds}; "),
                    (None, Some(parent)) => format!("an increment of {parent}; "),
                    (None, None) => String::new(),
                };
                voice.last_unless_quiet(format_args!(
                    "done: {bytes}, {rate}; {before}frozen for {time}; {report}"
                ));
                Outcome::Status(0)
            }
            Some(cause) => {
                let warning = self.warning();
                voice.last(format_args!("FAILED: {cause}{warning}; frozen for {time}; {report}"));
                self.holder.failed_outcome()
            }
        };
        if let Some(json) = &self.plan.json {
            print_line(json, &report.json());
        }
        outcome
    }

    /// Notes what the next image of a series can build on. Where that cannot be noted, it is whole.
    fn note_in_series(&self, state: State) {
        if let (Some(tracking), State::Gone) = (&self.tracking, state) {
            tracking.forget();
        }
        let Some(series) = &self.series else { return };
        let noted = match (self.holder.cause(), state) {
            (None, State::Runs | State::Stopped) => series.go_on(),
            (None, State::Gone) => series.end(),
            (Some(_), _) => series.give_up(),
        };
        if let (Err(error), Some(directory)) = (noted, &self.plan.increments) {
            let (path, error) = (directory.display(), pipe_io::reason(&error));
            self.holder.voice.say(format_args!("warning: {path}: {error}"));
        }
    }

    /// What must be known beside the cause.
    fn warning(&self) -> String {
        let mut warning = self.holder.left_over();
        if self.holder.criu_was_killed() {
            warning += "; CRIU was killed: TCP connections of the tree may be dead";
        }
        if self.is_safe() && self.peer.is_none() {
            warning += "; the image is whole";
        }
        warning
    }

    /// Whoever was killed, or let go by a CRIU that was killed, takes a moment.
    fn wait_for_tree(&self) {
        let stays = self.plan.leave_running || self.plan.criu_options.leaves_tree;
        let passing = match self.holder.family.status(Role::Criu) {
            Some(status) if status.success() && self.holder.has_let_go && !stays => State::Runs,
            Some(status) if status.signal().is_some() => State::Stopped,
            _ => return,
        };
        let until = Instant::now() + GRACE;
        while self.tree.state() == passing && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
