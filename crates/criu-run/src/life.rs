//! The life of a program: started or restored, checkpointed now and then, and ended.

use crate::image::Unknown;
use crate::program::{self, StandardDescriptors};
use crate::report::{Event, Figures, Teller};
use crate::signals::Signals;
use crate::usage::Plan;
use crate::{NAME, OnFailure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipe_io::pipe::Pipe;
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process;
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use supervise::family::HasEnded;
use supervise::filters::{self, lending};
use supervise::ids;
use supervise::shell::Shell;
use supervise::tree::{State, Tree};

/// The exit status when `criu-run` itself has failed, and the program was not started: that of
/// `timeout` and `env`.
pub(crate) const OWN_FAILURE: u8 = 125;
/// When it cannot be known whether there is an image: later, it may be.
const UNKNOWN: u8 = 124;
/// When there is an image, and it was not restored.
const NOT_RESTORED: u8 = 123;

/// How long the last output, and the commands of events, are waited for.
const LAST: Duration = Duration::from_secs(5);

/// Runs the program to its end, or to a checkpoint.
pub(crate) fn live(plan: Plan) -> ExitCode {
    process::keep_statuses_of_children();
    let voice = plan.voice;
    let fail = |status: u8, reason: String| {
        voice.last(reason);
        ExitCode::from(status)
    };
    for name in ["criu-checkpoint", "criu-restore"] {
        if filters::path_of(name).is_none() {
            return fail(OWN_FAILURE, format!("{name}: not found"));
        }
    }
    if let Err(error) = program::check_descriptors() {
        return cli::wrong_usage(NAME, error);
    }
    // As process 1 of a container, and for what a program without a namespace leaves behind.
    let _ = prctl::set_child_subreaper(true);
    let signals = match Signals::take(plan.checkpoint_on) {
        Ok(signals) => signals,
        Err(error) => return fail(OWN_FAILURE, pipe_io::reason(&error)),
    };
    let shell = Shell::find();
    let exists = match plan.fresh {
        true => Ok(false),
        false => plan.image.exists(&shell, plan.shards.get(), &signals),
    };
    let exists = match exists {
        Ok(exists) => exists,
        Err(Unknown::Signal(signal)) => return end_before_start(&plan, signal),
        Err(unknown) => return fail(UNKNOWN, unknown.to_string()),
    };
    if exists {
        // What we start from here on may live as long as the program.
        ids::stay_out_of_the_way();
    }
    let teller = Teller {
        voice,
        json: plan.json,
        quiet: plan.quiet,
        command: plan.on_event.clone(),
        shell,
        began: Instant::now(),
        running: Vec::new(),
    };
    match Life::begin(plan, teller, signals, exists) {
        Ok(life) => life.run(),
        Err((status, reason)) => {
            voice.last(reason);
            ExitCode::from(status)
        }
    }
}

/// Nothing has been started: by the signal for a checkpoint this ends as after one, as there is
/// nothing that is not in the image.
fn end_before_start(plan: &Plan, signal: Signal) -> ExitCode {
    plan.voice.last_unless_quiet(format_args!("{signal}: nothing was started"));
    if signal != plan.checkpoint_on {
        process::die_of(signal);
        return ExitCode::from((128 + signal as i32) as u8);
    }
    ExitCode::from(plan.checkpointed_status)
}

/// Who stands for the program: who gets its signals, and whose end is its end.
struct Stand {
    pid: Pid,
    /// Whether it is process 1 of the program's namespace, whose status may stand for a signal.
    is_init: bool,
}

struct Life {
    plan: Plan,
    teller: Teller,
    signals: Signals,
    stand: Stand,
    /// The root of the tree, when it is known: after a restore, when that is done.
    root: Option<Pid>,
    relays: Vec<Pid>,
    /// What criu-restore or criu-checkpoint writes its result to.
    result: Option<File>,
    text: Vec<u8>,
    restoring: bool,
    /// Whether a restore was asked to give up. It may have let the program run by then, which gets
    /// the signal.
    called_back: bool,
    /// Whether memory of the program is still to come: what is frozen then has no whole image.
    filling: bool,
    /// Why the program was killed: its memory could not come.
    lost: Option<String>,
    /// Held while CRIU restores.
    turn: Option<Turn>,
    checkpoint: Option<Checkpoint>,
    /// The signal that asked for a checkpoint, and when.
    asked: Option<(Signal, Instant)>,
    last_snapshot: Instant,
    ended: Option<ExitStatus>,
}

/// One restore after the other: for a moment CRIU makes the file of process 1 again, under the name
/// that it had, and two copies of one image would take it from each other.
struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// `None` where it does not come in time: somebody else may hold the lock.
    fn wait() -> Option<Turn> {
        const LIMIT: Duration = Duration::from_secs(60);
        const LOOK: Duration = Duration::from_millis(10);

        let until = Instant::now() + LIMIT;
        loop {
            let directory = File::open(program::DIRECTORY).ok()?;
            match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(Turn { _lock: lock }),
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < until => std::thread::sleep(LOOK),
                Err(_) => return None,
            }
        }
    }
}

struct Checkpoint {
    pid: Pid,
    snapshot: bool,
    /// Its result, when it has come.
    result: Option<Outcome>,
    /// How it has ended. If it was killed, its other process still writes a result.
    ended: Option<ExitStatus>,
}

/// The result of criu-checkpoint or criu-restore.
#[derive(Clone, Debug, Deserialize)]
struct Outcome {
    result: String,
    process: Option<i32>,
    #[serde(default)]
    pid_namespace: bool,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    frozen_millis: u64,
    #[serde(default)]
    duration_millis: u64,
    #[serde(flatten)]
    memory: Option<Memory>,
    cause: Option<String>,
}

/// How much of the program's memory has come, in a result of `criu-restore --lazy`.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Memory {
    filled: u64,
    left: u64,
    fill_duration_millis: u64,
}

impl Life {
    fn begin(
        plan: Plan,
        mut teller: Teller,
        signals: Signals,
        exists: bool,
    ) -> Result<Life, (u8, String)> {
        let descriptors = StandardDescriptors::prepare();
        let mut descriptors =
            descriptors.map_err(|error| (error.exit_status(), error.to_string()))?;
        let relays = std::mem::take(&mut descriptors.relays);
        let mut turn = None;
        let (stand, root, result) = if exists {
            turn = Turn::wait();
            let failed = |error: io::Error| {
                (OWN_FAILURE, format!("criu-restore: {}", pipe_io::reason(&error)))
            };
            let (pid, result) = restore(&plan, descriptors).map_err(failed)?;
            (Stand { pid, is_init: false }, None, Some(result))
        } else {
            let started = program::start(&plan.program, descriptors)
                .map_err(|error| (error.exit_status(), error.to_string()))?;
            teller.tell(&Event::Started { process: started.root.as_raw() });
            if !started.has_namespace && !plan.quiet {
                teller.voice.say(format_args!(
                    "no PID namespace: process ids from {} on must be free at a restore",
                    started.root
                ));
            }
            let stand = Stand { pid: started.root, is_init: started.has_namespace };
            (stand, Some(started.root), None)
        };
        Ok(Life {
            plan,
            teller,
            signals,
            stand,
            root,
            relays,
            result,
            text: Vec::new(),
            restoring: exists,
            called_back: false,
            filling: false,
            lost: None,
            turn,
            checkpoint: None,
            asked: None,
            last_snapshot: Instant::now(),
            ended: None,
        })
    }

    fn run(mut self) -> ExitCode {
        loop {
            self.wait();
            for signal in self.signals.taken() {
                self.take_signal(signal);
            }
            self.hear();
            while let Ok(Some((pid, status))) = process::reap_any() {
                self.take_end(pid, status);
            }
            if let Some(code) = self.go_on() {
                return code;
            }
        }
    }

    fn wait(&self) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.result.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        let limit = match (self.asked, self.plan.every) {
            (Some((_, since)), _) if self.filling => self.left_since(since),
            (_, Some(every)) if self.may_take_snapshot() => {
                every.saturating_sub(self.last_snapshot.elapsed())
            }
            _ => Duration::from_secs(60),
        };
        if poll::wait_for(&mut fds, limit).is_err() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn take_signal(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD => {}
            signal if signal == self.plan.checkpoint_on => {
                self.asked.get_or_insert((signal, Instant::now()));
                // A snapshot that goes on has no time any more.
                if let Some(checkpoint) = self.checkpoint.as_ref().filter(|it| it.snapshot) {
                    let _ = kill(checkpoint.pid, Signal::SIGTERM);
                }
                // A restore that is not done has changed nothing: the image is as it was.
                if self.restoring {
                    self.called_back = true;
                    let _ = kill(self.stand.pid, Signal::SIGTERM);
                }
            }
            signal => _ = kill(self.stand.pid, signal),
        }
    }

    /// Hears the result of criu-restore or criu-checkpoint.
    fn hear(&mut self) {
        let Some(file) = &mut self.result else { return };
        if !poll::is_readable(&*file).unwrap_or(false) {
            return;
        }
        let mut buffer = [0; 4096];
        match file.read(&mut buffer) {
            Ok(read @ 1..) => self.text.extend(buffer.iter().take(read)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => self.result = None,
        }
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            if let Ok(outcome) = serde_json::from_slice(&line) {
                self.take_outcome(outcome);
            }
        }
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.result = Some(outcome);
        } else if outcome.result == "restored" {
            if self.restoring {
                self.take_restored(&outcome);
            }
            if let Some(memory) = outcome.memory {
                self.take_memory(memory);
            }
        } else if outcome.result == "failed" && self.filling {
            self.lost = outcome.cause;
        }
    }

    fn take_restored(&mut self, outcome: &Outcome) {
        self.restoring = false;
        self.turn = None;
        self.root = outcome.process.map(Pid::from_raw);
        self.stand.is_init = outcome.pid_namespace;
        self.last_snapshot = Instant::now();
        self.teller.tell(&Event::Restored {
            process: outcome.process.unwrap_or(0),
            bytes: outcome.bytes,
            duration_millis: outcome.duration_millis,
        });
    }

    /// The line that says that nothing is left is the last.
    fn take_memory(&mut self, memory: Memory) {
        let Memory { filled, left, fill_duration_millis } = memory;
        self.filling = left > 0;
        self.teller.tell(&match self.filling {
            true => Event::Filling { filled, left },
            false => Event::Filled { filled, fill_duration_millis },
        });
    }

    fn take_end(&mut self, pid: Pid, status: ExitStatus) {
        self.relays.retain(|relay| *relay != pid);
        self.teller.running.retain(|command| *command != pid);
        if pid == self.stand.pid {
            // What criu-restore said at last.
            self.hear();
            match self.root.filter(|root| *root != pid && is_running(*root)) {
                // criu-restore was killed. The program has become a child of ours, or will be one
                // when what was beside criu-restore has ended too.
                Some(root) => self.stand.pid = root,
                None => self.ended = Some(status),
            }
        } else if let Some(checkpoint) = self.checkpoint.as_mut().filter(|it| it.pid == pid) {
            checkpoint.ended = Some(status);
            // Its result may have come with its end.
            self.hear();
        }
    }

    /// A checkpoint that has ended, and has no more to say.
    fn ended_checkpoint(&mut self) -> Option<(Checkpoint, ExitStatus)> {
        let checkpoint = self.checkpoint.as_ref()?;
        let status = checkpoint.ended?;
        // Killed, it may have left another process that still holds the program.
        let is_told = status.code().is_some() || checkpoint.result.is_some();
        if !is_told && self.result.is_some() {
            return None;
        }
        self.result = None;
        Some((self.checkpoint.take()?, status))
    }

    fn take_checkpoint(&mut self, checkpoint: Checkpoint, status: ExitStatus) {
        let outcome = checkpoint.result;
        let figures = outcome
            .as_ref()
            .map_or_else(Figures::default, |it| Figures::new(it.bytes, it.frozen_millis));
        self.last_snapshot = Instant::now();
        let success = status.success() || outcome.as_ref().is_some_and(|it| it.result == "done");
        match (success, checkpoint.snapshot) {
            (true, true) => self.teller.tell(&Event::Snapshot(figures)),
            (true, false) => {
                self.teller.tell(&Event::Checkpointed(figures));
                self.asked = None;
                self.root = None;
            }
            (false, snapshot) => {
                let cause = outcome.and_then(|it| it.cause);
                let cause = cause.unwrap_or_else(|| HasEnded(status).to_string());
                self.teller.tell(&Event::Failed { snapshot, cause });
                self.give_up_on(snapshot);
            }
        }
    }

    /// After a checkpoint that failed its signal is passed on, or forgotten. A snapshot has none: the
    /// signal that may have ended it is still to be answered.
    fn give_up_on(&mut self, snapshot: bool) {
        if snapshot {
            return;
        }
        let signal = self.asked.take().map(|(signal, _)| signal);
        if let Some(signal) = signal.filter(|_| self.plan.on_failure == OnFailure::Pass) {
            let _ = kill(self.stand.pid, signal);
        }
    }

    fn may_take_snapshot(&self) -> bool {
        let is_whole = self.root.is_some() && !self.filling;
        is_whole && self.checkpoint.is_none() && self.asked.is_none()
    }

    /// What is left of the time for a checkpoint that was asked for then.
    fn left_since(&self, asked: Instant) -> Duration {
        self.plan.deadline.saturating_sub(asked.elapsed())
    }

    /// Begins what is due; the exit status when all is over.
    fn go_on(&mut self) -> Option<ExitCode> {
        if let Some((checkpoint, status)) = self.ended_checkpoint() {
            self.take_checkpoint(checkpoint, status);
        }
        // A checkpoint that goes on says what the program's end means.
        if self.checkpoint.is_some() {
            return None;
        }
        if let Some(status) = self.ended {
            return Some(self.end(status));
        }
        if let (Some((_, since)), Some(root)) = (self.asked, self.root) {
            let left = self.left_since(since);
            match self.filling {
                false => self.begin_checkpoint(root, false, left),
                true if left.is_zero() => self.give_up_filling(),
                true => {}
            }
            return None;
        }
        let is_due = self.plan.every.is_some_and(|every| self.last_snapshot.elapsed() >= every);
        if let Some(root) = self.root.filter(|_| is_due && self.may_take_snapshot()) {
            self.begin_checkpoint(root, true, Duration::from_secs(3600));
        }
        None
    }

    /// No checkpoint has begun in time: memory was still to come.
    fn give_up_filling(&mut self) {
        let deadline = self.plan.deadline.as_secs();
        let cause = format!("{deadline} s were not enough; waited for the program's memory");
        self.teller.voice.say(&cause);
        self.teller.tell(&Event::Failed { snapshot: false, cause });
        self.give_up_on(false);
    }

    fn begin_checkpoint(&mut self, root: Pid, snapshot: bool, limit: Duration) {
        self.teller.tell(&Event::Freezing { snapshot });
        match checkpoint(&self.plan, root, snapshot, limit) {
            Ok((pid, result)) => {
                self.text.clear();
                self.result = Some(result);
                self.checkpoint = Some(Checkpoint { pid, snapshot, result: None, ended: None });
            }
            Err(error) => {
                let cause = pipe_io::reason(&error);
                self.teller.voice.say(format_args!("criu-checkpoint: {cause}"));
                self.last_snapshot = Instant::now();
                self.teller.tell(&Event::Failed { snapshot, cause });
                self.give_up_on(snapshot);
            }
        }
    }

    /// Ends as the program did, or because it was checkpointed.
    fn end(&mut self, status: ExitStatus) -> ExitCode {
        // Not let go by a checkpoint: that takes the root with it.
        let checkpointed = self.root.is_none() && !self.restoring;
        if self.restoring {
            return self.end_without_restore(status);
        }
        if checkpointed {
            self.let_output_end();
            return ExitCode::from(self.plan.checkpointed_status);
        }
        if let Some(cause) = self.lost.take() {
            self.teller.tell(&Event::Ended { status: 128 + Signal::SIGKILL as i32 });
            self.let_output_end();
            self.teller.voice.last(format_args!(
                "the program was killed, as its memory could not come: {cause}; the image is kept"
            ));
            return ExitCode::from(OWN_FAILURE);
        }
        let (code, signal) = self.as_program(status);
        if self.called_back && signal == Some(Signal::SIGTERM) {
            return self.end_as_it_was();
        }
        self.teller.tell(&Event::Ended { status: i32::from(code) });
        self.let_output_end();
        if let Some(signal) = signal {
            process::die_of(signal);
        }
        ExitCode::from(code)
    }

    fn end_without_restore(&mut self, status: ExitStatus) -> ExitCode {
        if self.asked.is_some() {
            return self.end_as_it_was();
        }
        self.let_output_end();
        let ended = HasEnded(status);
        self.teller.voice.last(format_args!(
            "not restored: criu-restore {ended}; the image is kept (--fresh starts the program anew)"
        ));
        ExitCode::from(NOT_RESTORED)
    }

    /// It was asked to go before it was back, or at that moment: the image is as it was.
    fn end_as_it_was(&mut self) -> ExitCode {
        self.let_output_end();
        self.teller.tell(&Event::Checkpointed(Figures::default()));
        ExitCode::from(self.plan.checkpointed_status)
    }

    /// The program's exit status, or its signal and the status that a shell shows for that.
    fn as_program(&self, status: ExitStatus) -> (u8, Option<Signal>) {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        let number = match (code, status.signal()) {
            (_, Some(number)) => number,
            (Some(code), None) if code > 128 && self.stand.is_init => i32::from(code) - 128,
            (Some(code), None) => return (code, None),
            (None, None) => return (u8::MAX, None),
        };
        ((128 + number) as u8, Signal::try_from(number).ok())
    }

    /// The relays end with the output. What lives on without the program may hold it open.
    fn let_output_end(&mut self) {
        let until = Instant::now() + LAST;
        while !(self.relays.is_empty() && self.teller.running.is_empty()) && Instant::now() < until
        {
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll::wait_for(&mut fds, Duration::from_millis(50));
            self.signals.taken();
            while let Ok(Some((pid, _))) = process::reap_any() {
                self.relays.retain(|relay| *relay != pid);
                self.teller.running.retain(|command| *command != pid);
            }
        }
    }
}

/// Whether there is such a process, and it has not ended.
fn is_running(pid: Pid) -> bool {
    Tree::of(pid).is_some_and(|it| it.state() != State::Gone)
}

/// A command of this family that is about to be started, and what its result comes out of.
struct Prepared {
    command: Command,
    result: OwnedFd,
    /// What it writes the result to.
    write: OwnedFd,
}

impl Prepared {
    /// With options that both commands have, and CRIU's.
    fn new(
        name: &str,
        plan: &Plan,
        words: Vec<OsString>,
        text: Option<&str>,
    ) -> io::Result<Prepared> {
        let Pipe { read, write } = Pipe::new()?;
        let mut command = Command::new(filters::path_of(name).ok_or(io::ErrorKind::NotFound)?);
        command.args(words).arg("--json-fd").arg(write.as_raw_fd().to_string());
        if plan.shards.get() > 1 {
            command.arg("--shards").arg(plan.shards.to_string());
        }
        if plan.verbose {
            command.arg("--verbose");
        } else if plan.quiet || plan.json {
            command.arg("--quiet");
        }
        command.args(&plan.criu_options);
        if let Some(text) = text {
            command.arg("--").arg(text);
        }
        Ok(Prepared { command, result: read, write })
    }

    fn start(mut self) -> io::Result<(Pid, File)> {
        process::in_a_new_session(&mut self.command);
        let child = lending(&[&self.write], || self.command.spawn())?;
        Ok((Pid::from_raw(child.id() as i32), File::from(self.result)))
    }
}

/// Starts criu-checkpoint.
fn checkpoint(plan: &Plan, root: Pid, snapshot: bool, limit: Duration) -> io::Result<(Pid, File)> {
    let mut words: Vec<OsString> = vec!["--tree".into(), root.to_string().into()];
    // Less than a second is no time to try.
    words.extend(["--time-limit".into(), limit.as_secs().max(1).to_string().into()]);
    if snapshot {
        words.push("--leave-running".into());
    }
    for path in &plan.files {
        words.extend(["--fs".into(), path.into()]);
    }
    // The copy of ourselves that is process 1 is a file without a name.
    if !plan.criu_options.iter().any(|it| it == "--ghost-limit") {
        words.extend(["--ghost-limit".into(), "64M".into()]);
    }
    let mut prepared = Prepared::new("criu-checkpoint", plan, words, Some(&plan.image.save))?;
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    prepared.command.stdin(Stdio::null()).stdout(stderr);
    process::as_our_caller(&mut prepared.command, &[0, 1]);
    prepared.start()
}

/// Starts criu-restore, which stays until the program ends.
fn restore(plan: &Plan, descriptors: StandardDescriptors) -> io::Result<(Pid, File)> {
    let mut words: Vec<OsString> = vec!["--wait".into(), "--stdio".into()];
    if !plan.files.is_empty() {
        words.push("--fs".into());
    }
    let text = match &plan.lazy {
        Some(file) => {
            words.extend(["--lazy".into(), file.into()]);
            None
        }
        None => Some(plan.image.load.as_str()),
    };
    let mut prepared = Prepared::new("criu-restore", plan, words, text)?;
    descriptors.give(&mut prepared.command);
    process::as_our_caller(&mut prepared.command, &[]);
    prepared.start()
}
