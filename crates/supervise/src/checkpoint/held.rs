//! The tree is held: what has happened so far, and what follows from it.

use super::Plan;
use super::cause::Cause;
use super::report::{End, Report};
use crate::events::{Event, Events};
use crate::family::{Family, Role, signal_all};
use crate::filters::{Tap, bytes_in, filter, lending, numbers};
use crate::front::{AFTER_KILL, CRIU_GRACE, Fact, GRACE, Outcome, Reins};
use crate::gate::{Gate, Question, Stage};
use crate::scratch::Scratch;
use crate::shell::{Part, Shell};
use crate::tell::{Bytes, Live, Rate, Seconds, Voice};
use crate::tree::{State, Tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipe_io::pipe::Pipe;
use pipe_io::process;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use wire_format::ImageId;

/// From the end of one program to that of its neighbours, which follow from it or have caused it.
const SETTLE: Duration = Duration::from_millis(300);
/// How long scripts below CRIU may go on after a failure: past that, they are what CRIU waits for.
const SCRIPT_GRACE: Duration = Duration::from_secs(8);
/// How often to look when nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// How often to look when something has failed.
const LOOK_SOON: Duration = Duration::from_millis(50);

/// What CRIU is deaf to: a signal to all processes of a group or a control group is for us, and a
/// CRIU that dies where it stands leaves TCP sockets in repair mode.
pub(crate) const CRIU_IGNORES: &[Signal] = &[
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A tree that is held while its image is made safe.
pub(super) struct Held {
    plan: Plan,
    tree: Tree,
    criu: PathBuf,
    shell: Shell,
    voice: Voice,
    scratch: Scratch,
    image: ImageId,
    /// What the image is expected to have, in bytes.
    expected: u64,
    family: Family,
    events: Events,
    /// What `criu-sock-capture` writes into, until it has succeeded.
    stream: Option<Tap>,
    /// What `shard-split` writes into, until it has succeeded.
    shards: Vec<Tap>,
    /// What the commands that read back write into, until they have succeeded.
    read_back: Vec<Option<Tap>>,
    /// What the filters said.
    said: Vec<(Role, String)>,
    live: Live,
    asked_for_bytes: Instant,
    began: Instant,
    frozen: Option<Instant>,
    thawed: Option<Instant>,
    bytes: u64,
    question: Option<Question>,
    verification: Verification,
    /// Whether CRIU was told that the tree may go.
    let_go: bool,
    suspicion: Option<Suspicion>,
    failure: Option<Failure>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verification {
    Due,
    Goes,
    Done,
}

/// What may have failed first; what comes to light soon may tell better.
struct Suspicion {
    cause: Cause,
    weight: u8,
    since: Instant,
}

struct Failure {
    cause: Cause,
    since: Instant,
    told: bool,
}

impl Held {
    pub(super) fn new(
        plan: Plan,
        tree: Tree,
        criu: PathBuf,
        shell: Shell,
        voice: Voice,
        reins: Reins,
        scratch: Scratch,
    ) -> io::Result<Held> {
        let now = Instant::now();
        let verification = match plan.verify {
            Some(_) => Verification::Due,
            None => Verification::Done,
        };
        Ok(Held {
            expected: tree.memory(),
            plan,
            tree,
            criu,
            shell,
            voice,
            scratch,
            image: ImageId(pipe_io::random()?),
            family: Family::default(),
            events: Events::new(reins),
            stream: None,
            shards: Vec::new(),
            read_back: Vec::new(),
            said: Vec::new(),
            live: Live::new(voice),
            asked_for_bytes: now,
            began: now,
            frozen: None,
            thawed: None,
            bytes: 0,
            question: None,
            verification,
            let_go: false,
            suspicion: None,
            failure: None,
        })
    }

    /// Holds the tree to the end, whichever it is.
    pub(super) fn run(mut self) -> Outcome {
        if let Err(cause) = self.start_pipeline() {
            self.fail(cause);
        }
        while !self.is_over() {
            match self.events.wait(self.next_look()) {
                Ok(events) => events.into_iter().for_each(|event| self.hear(event)),
                Err(error) => self.fail(Cause::System(error)),
            }
            for (role, status) in self.family.reap() {
                self.take_end(role, status);
            }
            self.go_on();
        }
        self.clear_away();
        self.tell()
    }

    // --- Starting ---------------------------------------------------------------------------

    fn start_pipeline(&mut self) -> Result<(), Cause> {
        let (stream, image) = Tap::new().map_err(Cause::System)?;
        self.start_filter(Role::Capture, "criu-sock-capture", |command, held| {
            command.args(["--end-at-inventory", "--image-id"]).arg(held.image.to_string());
            command.arg("--images-dir").arg(held.scratch.path());
            command.stdout(stream.writer()?);
            Ok(())
        })?;
        self.stream = Some(stream);
        if self.plan.shards.get() == 1 {
            return self.start_command(None, image);
        }
        let mut readers = Vec::new();
        for _ in 0..self.plan.shards.get() {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            self.shards.push(tap);
            readers.push(read);
        }
        self.start_split(image)?;
        let commands = readers.into_iter().enumerate();
        commands.into_iter().try_for_each(|(index, read)| self.start_command(Some(index), read))
    }

    fn start_split(&mut self, image: OwnedFd) -> Result<(), Cause> {
        let taps = std::mem::take(&mut self.shards);
        let fds: Vec<&OwnedFd> = taps.iter().map(Tap::fd).collect();
        let started = lending(&fds, || {
            Ok(self.start_filter(Role::Split, "shard-split", |command, _| {
                command.arg("--shard-fds").arg(numbers(&fds)).stdin(image);
                Ok(())
            }))
        });
        self.shards = taps;
        started.map_err(Cause::System)?
    }

    fn start_command(&mut self, index: Option<usize>, image: OwnedFd) -> Result<(), Cause> {
        let role = Role::Command(index);
        let part = Part {
            shard: index.map(|index| (index, self.plan.shards.get())),
            image: Some(self.image),
        };
        let mut command = self.shell.command(&self.plan.command, part, &[0]);
        command.stdin(image);
        self.start(role, command)
    }

    fn start_criu(&mut self) -> Result<(), Cause> {
        let gate = Gate::new().map_err(Cause::System)?;
        let mut criu = Command::new(&self.criu);
        criu.args(["dump", "--stream", "--tree"]).arg(self.tree.root().to_string());
        criu.arg("--images-dir").arg(self.scratch.path());
        if self.plan.criu_options.work_dir.is_none()
            && let Some(logs) = &self.plan.logs
        {
            criu.arg("--work-dir").arg(logs);
        }
        criu.args(["-v4", "--log-file", "dump.log"]);
        if self.plan.leave_running {
            criu.arg("--leave-running");
        }
        gate.ask_here(&mut criu, self.plan.time_limit + CRIU_GRACE + AFTER_KILL);
        criu.args(&self.plan.criu_options.arguments);
        let Pipe { read, write } = Pipe::new().map_err(Cause::System)?;
        let again = write.try_clone().map_err(Cause::System)?;
        criu.stdin(Stdio::null()).stdout(write).stderr(again);
        process::as_our_caller(&mut criu, &[0, 1, 2]);
        process::in_a_new_session(&mut criu);
        process::ignoring(&mut criu, CRIU_IGNORES);
        // A log of an earlier run must not be taken for this one's.
        let _ = fs::remove_file(self.log());
        self.events.open_gate(gate);
        self.start(Role::Criu, criu)?;
        self.listen(Role::Criu, read)?;
        if let Some(pid) = self.family.running(Role::Criu) {
            self.events.reins().tell(Fact::Criu(pid));
        }
        Ok(())
    }

    fn start_verification(&mut self, text: &str) -> Result<(), Cause> {
        self.verification = Verification::Goes;
        let count = self.plan.shards.get();
        let mut readers = Vec::new();
        for index in 0..count {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            let shard = (count > 1).then_some(index);
            let part = Part { shard: shard.map(|index| (index, count)), image: Some(self.image) };
            let mut command = self.shell.command(text, part, &[0, 1]);
            command.stdin(Stdio::null()).stdout(tap.writer().map_err(Cause::System)?);
            self.start(Role::ReadBack(shard), command)?;
            self.read_back.push(Some(tap));
            readers.push(read);
        }
        // A single part is a stream by itself.
        let image = if count > 1 { self.start_merge(&readers)? } else { readers.remove(0) };
        self.start_filter(Role::Extract, "image-extract", |command, held| {
            command.args(["--verify", "--image-id"]).arg(held.image.to_string()).stdin(image);
            Ok(())
        })
    }

    fn start_merge(&mut self, shards: &[OwnedFd]) -> Result<OwnedFd, Cause> {
        let Pipe { read, write } = Pipe::new().map_err(Cause::System)?;
        let fds: Vec<&OwnedFd> = shards.iter().collect();
        lending(&fds, || {
            Ok(self.start_filter(Role::Merge, "shard-merge", |command, _| {
                command.arg("--shard-fds").arg(numbers(&fds)).stdout(write);
                Ok(())
            }))
        })
        .map_err(Cause::System)??;
        Ok(read)
    }

    fn start_filter(
        &mut self,
        role: Role,
        name: &str,
        prepare: impl FnOnce(&mut Command, &Held) -> io::Result<()>,
    ) -> Result<(), Cause> {
        let (mut command, says) = filter(name).map_err(|error| Cause::NotStarted(role, error))?;
        prepare(&mut command, self).map_err(Cause::System)?;
        self.start(role, command)?;
        self.listen(role, says)
    }

    fn start(&mut self, role: Role, command: Command) -> Result<(), Cause> {
        self.family.start(role, command).map_err(|error| Cause::NotStarted(role, error)).map(drop)
    }

    fn listen(&mut self, role: Role, pipe: OwnedFd) -> Result<(), Cause> {
        self.events.listen(role, pipe).map_err(Cause::System)
    }

    // --- Listening --------------------------------------------------------------------------

    fn hear(&mut self, event: Event) {
        match event {
            Event::Line(Role::Capture, line) if line == "socket-init" => {
                if self.failure.is_none()
                    && let Err(cause) = self.start_criu()
                {
                    self.fail(cause);
                }
            }
            Event::Line(Role::Capture, line) if line == "checkpoint-start" => {
                self.frozen = Some(Instant::now());
            }
            Event::Line(role, line) => match bytes_in(&line) {
                Some(bytes) if role == Role::Capture => self.bytes = bytes,
                Some(_) => {}
                None => {
                    self.voice.note(&line);
                    self.said.push((role, line));
                }
            },
            Event::Asked(question) if question.stage == Stage::PostDump => {
                // Dropped, it is a no.
                self.question = Some(question).filter(|_| self.failure.is_none());
            }
            Event::Signal(Signal::SIGUSR1) => self.voice.pass_on(&self.report().json()),
            Event::Signal(signal) => self.give_up(Cause::Signal(signal)),
            Event::FrontGone => self.give_up(Cause::FrontKilled),
            Event::Asked(_) | Event::Silent(_) | Event::ChildEnded => {}
        }
    }

    /// Fails, unless CRIU is letting the tree go: then nothing can be undone.
    fn give_up(&mut self, cause: Cause) {
        if !self.let_go {
            self.fail(cause);
        }
    }

    fn take_end(&mut self, role: Role, status: ExitStatus) {
        let success = status.success();
        if role == Role::Criu {
            self.thawed = Some(Instant::now());
            // Nobody waits for an answer any more.
            self.question = None;
        }
        if self.failure.is_some() {
            return;
        }
        match role {
            Role::Capture if success => drop(self.stream.take()),
            Role::Capture => {
                let gone = self.stream.as_ref().is_some_and(Tap::reader_is_gone);
                match gone {
                    true if self.shards.is_empty() => self.suspect_reader(Role::Command(None)),
                    true => {}
                    false => self.suspect_writer(role, status),
                }
            }
            Role::Split if success => self.shards.clear(),
            Role::Split => match self.shards.iter().position(Tap::reader_is_gone) {
                Some(index) => self.suspect_reader(Role::Command(Some(index))),
                None => self.suspect_writer(role, status),
            },
            Role::Command(_) if success => {
                if !self.has_written(role) {
                    self.suspect_reader(role);
                }
            }
            Role::Criu if success && self.let_go => {}
            Role::Criu if success => self.fail(Cause::DidNotAsk),
            Role::Criu if self.let_go => self.fail(Cause::Ended(role, status)),
            Role::Criu => self.suspect(Cause::Ended(role, status), 2),
            Role::ReadBack(index) if success => {
                if let Some(tap) = self.read_back.get_mut(index.unwrap_or(0)) {
                    *tap = None;
                }
            }
            Role::Merge | Role::Extract if success => {
                if [Role::Merge, Role::Extract].iter().all(|it| self.family.running(*it).is_none())
                {
                    self.verification = Verification::Done;
                }
            }
            Role::Merge => self.suspect_writer(role, status),
            _ => self.fail(Cause::Ended(role, status)),
        }
    }

    /// Whether the program that writes what this command reads has succeeded.
    fn has_written(&self, command: Role) -> bool {
        let writer = match command {
            Role::Command(Some(_)) => Role::Split,
            _ => Role::Capture,
        };
        self.family.status(writer).is_some_and(|status| status.success())
    }

    fn suspect_reader(&mut self, role: Role) {
        self.suspect(Cause::ReadTooLittle(role), 3);
    }

    /// A program that was killed is the cause itself; one that failed often has one.
    fn suspect_writer(&mut self, role: Role, status: ExitStatus) {
        let weight = if status.signal().is_some() { 4 } else { 1 };
        self.suspect(Cause::Ended(role, status), weight);
    }

    fn suspect(&mut self, cause: Cause, weight: u8) {
        let since = match &self.suspicion {
            Some(other) if other.weight >= weight => return,
            Some(other) => other.since,
            None => Instant::now(),
        };
        self.suspicion = Some(Suspicion { cause, weight, since });
    }

    // --- Going on ---------------------------------------------------------------------------

    fn next_look(&self) -> Instant {
        let soon = self.failure.is_some() || self.suspicion.is_some();
        let limit = self.began + self.plan.time_limit;
        let look = Instant::now() + if soon { LOOK_SOON } else { LOOK };
        if soon { look } else { look.min(limit) }
    }

    fn go_on(&mut self) {
        if self.failure.is_some() {
            return self.press();
        }
        if let Some(suspicion) = &self.suspicion {
            let cleared = match &suspicion.cause {
                Cause::ReadTooLittle(role) => self.has_written(*role),
                _ => false,
            };
            if cleared {
                self.suspicion = None;
            } else if suspicion.since.elapsed() >= SETTLE
                && let Some(suspicion) = self.suspicion.take()
            {
                return self.fail(suspicion.cause);
            }
        }
        if self.began.elapsed() >= self.plan.time_limit {
            let awaited = self.awaited();
            return self.fail(Cause::TimeLimit(self.plan.time_limit, awaited));
        }
        self.let_go_if_safe();
        self.show();
    }

    fn let_go_if_safe(&mut self) {
        if !self.is_stored() {
            return;
        }
        if self.verification == Verification::Due
            && let Some(text) = self.plan.verify.clone()
        {
            if let Err(cause) = self.start_verification(&text) {
                self.fail(cause);
            }
            return;
        }
        if self.verification == Verification::Done
            && let Some(question) = self.question.take()
        {
            // The front knows it before CRIU does.
            self.events.reins().tell(Fact::LetGo);
            self.let_go = true;
            question.yes();
        }
    }

    /// Whether all of the image has been taken by commands that have succeeded.
    fn is_stored(&self) -> bool {
        let succeeded = |role| self.family.status(role).is_some_and(|it: ExitStatus| it.success());
        let count = self.plan.shards.get();
        let commands = match count {
            1 => succeeded(Role::Command(None)),
            _ => succeeded(Role::Split) && (0..count).all(|it| succeeded(Role::Command(Some(it)))),
        };
        succeeded(Role::Capture) && commands
    }

    fn is_safe(&self) -> bool {
        self.is_stored() && self.verification == Verification::Done
    }

    fn fail(&mut self, cause: Cause) {
        if self.failure.is_some() {
            return;
        }
        self.question = None;
        if !self.let_go {
            self.events.shut_gate();
        }
        self.failure = Some(Failure { cause, since: Instant::now(), told: false });
        self.press();
    }

    /// Ends what goes on after a failure: first the pipeline, at which CRIU gives up by itself, and
    /// what does not end, by force.
    fn press(&mut self) {
        let Some(failure) = &mut self.failure else { return };
        let time = failure.since.elapsed();
        let first = !std::mem::replace(&mut failure.told, true);
        // With the only image of a tree that goes, nothing is in the way of CRIU but its scripts.
        if !self.let_go {
            let rest = || self.family.without_criu();
            match time {
                _ if first => signal_all(&rest(), Signal::SIGTERM),
                _ if time >= GRACE => signal_all(&rest(), Signal::SIGKILL),
                _ => {}
            }
        }
        let Some(criu) = self.family.running(Role::Criu) else { return };
        match time {
            _ if time >= CRIU_GRACE + AFTER_KILL => self.family.give_up_on(Role::Criu),
            _ if time >= CRIU_GRACE => _ = kill(criu, Signal::SIGKILL),
            _ if time >= SCRIPT_GRACE + GRACE => {
                signal_all(&self.family.below_criu(), Signal::SIGKILL);
            }
            _ if time >= SCRIPT_GRACE => signal_all(&self.family.below_criu(), Signal::SIGTERM),
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        match &self.failure {
            None => self.let_go && self.family.status(Role::Criu).is_some(),
            Some(_) if self.family.running(Role::Criu).is_some() => false,
            Some(failure) => {
                self.family.without_criu().is_empty()
                    || failure.since.elapsed() >= GRACE + AFTER_KILL
            }
        }
    }

    /// What is left after a success is what the commands have started, and is ended where it is in
    /// their sessions: what has a session of its own was meant to stay.
    fn clear_away(&mut self) {
        signal_all(&self.family.left_in_sessions(), Signal::SIGKILL);
    }

    // --- Telling ----------------------------------------------------------------------------

    /// What is waited for, in words.
    fn awaited(&self) -> String {
        let running = |role| self.family.running(role).is_some();
        if self.let_go {
            return "CRIU to let the tree go".into();
        }
        if self.verification == Verification::Goes {
            return "the image to be read back".into();
        }
        if self.is_safe() {
            return "CRIU to ask".into();
        }
        if let Some(index) = self.shards.iter().position(Tap::is_filled) {
            return Role::Command(Some(index)).to_string();
        }
        if self.stream.as_ref().is_some_and(Tap::is_filled) && self.shards.is_empty() {
            return Role::Command(None).to_string();
        }
        if running(Role::Capture) || self.frozen.is_none() {
            return "CRIU's dump".into();
        }
        let waiting = (0..self.plan.shards.get()).map(|it| Role::Command(Some(it)));
        let mut waiting = waiting.chain([Role::Command(None)]).filter(|role| running(*role));
        match (waiting.next(), waiting.next()) {
            (Some(role), None) => role.to_string(),
            (Some(_), Some(_)) => "the commands".into(),
            _ => "shard-split".into(),
        }
    }

    fn show(&mut self) {
        if self.asked_for_bytes.elapsed() >= LOOK
            && let Some(capture) = self.family.running(Role::Capture)
        {
            // It prints a line of bytes.
            let _ = kill(capture, Signal::SIGUSR1);
            self.asked_for_bytes = Instant::now();
        }
        if !self.live.is_due() {
            return;
        }
        let awaited = self.awaited();
        let rate = Rate(self.bytes, self.frozen_for());
        let left = self.expected.saturating_sub(self.bytes);
        let time = match rate.time_for(left) {
            Some(time) if left > 0 && self.stream.is_some() => {
                format!(", {} s left", time.as_secs() + 1)
            }
            _ => String::new(),
        };
        let bytes = Bytes(self.bytes);
        let expected = Bytes(self.expected.max(self.bytes));
        self.live
            .show(format_args!("{bytes} of about {expected}, {rate}{time}; waiting for {awaited}"));
    }

    fn frozen_for(&self) -> Duration {
        let Some(frozen) = self.frozen else { return Duration::ZERO };
        self.thawed.unwrap_or_else(Instant::now).saturating_duration_since(frozen)
    }

    fn report(&self) -> Report {
        Report {
            end: match (&self.failure, self.is_over()) {
                (Some(_), _) => End::Failed,
                (None, true) => End::Done,
                (None, false) => End::Going,
            },
            bytes: self.bytes,
            frozen: self.frozen_for(),
            image: self.image,
            image_is_safe: self.is_safe(),
            process: self.tree.root(),
            state: self.tree.state(),
            cause: self.failure.as_ref().map(|failure| failure.cause.to_string()),
        }
    }

    fn log(&self) -> PathBuf {
        let options = &self.plan.criu_options;
        options.log_file.clone().unwrap_or_else(|| {
            let directory = options.work_dir.as_ref().or(self.plan.logs.as_ref());
            directory.map_or(self.scratch.path(), PathBuf::as_path).join("dump.log")
        })
    }

    /// The last line, and what stands before it.
    fn tell(mut self) -> Outcome {
        let criu = self.family.status(Role::Criu);
        self.wait_for_tree(criu);
        let report = self.report();
        if self.failure.is_some() {
            self.explain(criu);
        }
        self.scratch.remove();
        let time = Seconds(report.frozen);
        let state = format_args!("process {} {}", report.process, report.state).to_string();
        let outcome = match self.failure.take() {
            None => {
                let rate = Rate(report.bytes, report.frozen);
                let bytes = Bytes(report.bytes);
                self.voice.last_unless_quiet(format_args!(
                    "done: {bytes}, {rate}; frozen for {time}; {state}"
                ));
                Outcome::Status(0)
            }
            Some(failure) => {
                let warning = self.warning(criu);
                self.voice.last(format_args!(
                    "FAILED: {}{warning}; frozen for {time}; {state}",
                    failure.cause
                ));
                match failure.cause {
                    Cause::Signal(signal) => Outcome::Signal(signal),
                    _ => Outcome::Status(1),
                }
            }
        };
        if self.plan.json {
            report.print();
        }
        outcome
    }

    /// What must be known beside the cause.
    fn warning(&self, criu: Option<ExitStatus>) -> String {
        let mut warning = String::new();
        if criu.is_some_and(|status| status.signal().is_some()) {
            warning += "; CRIU was killed: TCP connections of the tree may be dead";
        }
        if self.is_safe() {
            warning += "; the image is whole";
        }
        let left: Vec<String> = self.family.without_criu().iter().map(Pid::to_string).collect();
        if !left.is_empty() {
            warning += &format!("; could not be ended: {}", left.join(", "));
        }
        warning
    }

    /// Whoever was killed, or let go by a CRIU that was killed, takes a moment.
    fn wait_for_tree(&self, criu: Option<ExitStatus>) {
        let passing = match criu {
            Some(status) if status.success() && self.let_go && !self.stays() => State::Runs,
            Some(status) if status.signal().is_some() => State::Stopped,
            _ => return,
        };
        let until = Instant::now() + GRACE;
        while self.tree.state() == passing && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the tree is to be there afterwards.
    fn stays(&self) -> bool {
        self.plan.leave_running || self.plan.criu_options.leaves_tree
    }

    /// What the programs have said of their failure.
    fn explain(&mut self, criu: Option<ExitStatus>) {
        let Some(failure) = &self.failure else { return };
        let blamed = match &failure.cause {
            Cause::Ended(role, _) | Cause::NotStarted(role, _) => Some(*role),
            Cause::TimeLimit(..) | Cause::DidNotAsk => Some(Role::Criu),
            _ => None,
        };
        let Some(blamed) = blamed else { return };
        let of_criu = blamed == Role::Criu;
        for (_, line) in self.said.iter().filter(|(role, line)| {
            *role == blamed || (of_criu && line.starts_with("criu-sock-capture: CRIU: "))
        }) {
            self.voice.pass_on(line);
        }
        if !of_criu || criu.is_none_or(|status| status.success()) {
            return;
        }
        let log = self.log();
        let causes = crate::criu_log::causes(&log).unwrap_or_default();
        causes.errors.iter().for_each(|line| self.voice.pass_on(line));
        causes.hints.iter().for_each(|hint| self.voice.say(format_args!("hint: {hint}")));
        let kept = match log.starts_with(self.scratch.path()) {
            true => self.scratch.keep(&log, &format!("criu-dump-{}", self.tree.root())),
            false => Some(log).filter(|log| log.is_file()),
        };
        if let Some(kept) = kept {
            self.voice.say(format_args!("CRIU's log: {}", kept.display()));
        }
    }
}
