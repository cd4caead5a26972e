//! The restore goes on: what has happened so far, and what follows from it.

use super::image::Image;
use super::late::Late;
use super::peer::Peer;
use super::report::{End, Report};
use super::{Plan, Source};
use crate::archive;
use crate::cause::Cause;
use crate::criu_log;
use crate::events::Event;
use crate::family::{HasEnded, Role, Stat, signal_all};
use crate::filters::{Tap, bytes_in, lending};
use crate::front::{AFTER_KILL, CRIU_GRACE, GRACE, Outcome, Reins};
use crate::gate::{Gate, Question, Stage};
use crate::holder::{Holder, Weight};
use crate::ids;
use crate::link::word::Word;
use crate::scratch::Scratch;
use crate::shell::{Part, Shell};
use crate::stdio;
use crate::tell::{Seconds, Voice, offer_line, print_line};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipe_io::inherit::{self, Direction};
use pipe_io::process;
use pipe_io::{Bytes, Rate};
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long an id may be that of a process which has ended: in many containers, and on some
/// machines, process 1 takes a while to reap.
const UNREAPED: Duration = Duration::from_secs(5);
/// How often to look whether it is free.
const LOOK_AT_IDS: Duration = Duration::from_millis(20);

/// A restore that goes on.
pub(super) struct Held {
    plan: Plan,
    criu: PathBuf,
    shell: Shell,
    holder: Holder,
    /// The other host, if the tree comes from one.
    peer: Option<Peer>,
    /// What the commands or the connections write into, each until its part is whole.
    parts: Vec<Option<Tap>>,
    /// What `shard-merge` writes into, until it has succeeded.
    merged: Option<Tap>,
    /// What `image-combine` writes into, until it has succeeded.
    combined: Option<Tap>,
    /// The processes of the tree, when CRIU may be started as soon as their ids are free.
    ids: Option<(Vec<u8>, Instant)>,
    /// Whether the tree brings a PID namespace of its own.
    has_namespace: bool,
    /// What takes the place of the root's standard descriptors, and how CRIU names those.
    inherited: Vec<(OwnedFd, String)>,
    bytes: u64,
    /// How much memory has come, if it comes when the tree runs.
    late: Option<Late>,
    question: Option<Question>,
    /// The root of the tree, since CRIU has told it.
    root: Option<Pid>,
    /// When CRIU has ended well: the tree runs.
    restored: Option<Instant>,
    /// Whether the front was killed.
    is_alone: bool,
    /// How the tree has ended, where that is waited for.
    tree_ended: Option<ExitStatus>,
}

impl Held {
    pub(super) fn new(
        plan: Plan,
        criu: PathBuf,
        shell: Shell,
        voice: Voice,
        reins: Reins,
        scratch: Scratch,
    ) -> Held {
        let late = matches!(plan.source, Source::Lazy(_)).then(Late::default);
        Held {
            plan,
            criu,
            shell,
            holder: Holder::new(voice, reins, scratch),
            peer: None,
            parts: Vec::new(),
            merged: None,
            combined: None,
            ids: None,
            has_namespace: false,
            inherited: Vec::new(),
            bytes: 0,
            late,
            question: None,
            root: None,
            restored: None,
            is_alone: false,
            tree_ended: None,
        }
    }

    /// Goes on to the end, whichever it is.
    pub(super) fn run(mut self) -> Outcome {
        if let Err(cause) = self.start_pipeline() {
            self.holder.fail(cause);
        }
        let mut told = false;
        while !self.is_over() {
            let limit = match self.restored {
                None if self.ids.is_some() => Instant::now() + LOOK_AT_IDS,
                Some(_) if self.late.is_some() => Instant::now() + GRACE,
                // What is left of the pipeline has so long to end; a tree ends when it wants.
                Some(restored) if restored.elapsed() < GRACE => restored + GRACE,
                Some(_) => Instant::now() + GRACE,
                None => self.holder.began + self.plan.time_limit,
            };
            let (events, ends) = self.holder.wait(limit);
            events.into_iter().for_each(|event| self.hear(event));
            ends.into_iter().for_each(|(role, status)| self.take_end(role, status));
            self.go_on();
            if self.plan.wait && !told && self.restored.is_some() && self.pipeline_has_ended() {
                told = true;
                self.tell_restored();
                self.holder.scratch.remove();
            }
        }
        if self.restored.is_some() {
            signal_all(&self.holder.family.left_in_sessions(self.root), Signal::SIGKILL);
        }
        self.tell(told)
    }

    // --- Starting ---------------------------------------------------------------------------

    fn start_pipeline(&mut self) -> Result<(), Cause> {
        let parts = match std::mem::replace(&mut self.plan.source, Source::Stdin) {
            Source::Stdin => Vec::new(),
            Source::Command(text) => self.start_commands(&text)?,
            Source::Link(arrival) => {
                let (peer, parts) = Peer::receive(arrival, &mut self.holder)?;
                (self.peer, self.parts) = (Some(peer), parts.taps);
                parts.readers
            }
            Source::Lazy(file) => vec![file],
        };
        let mut image = self.join(parts)?;
        if self.plan.combine {
            image = Some(self.start_combine(image)?);
        }
        self.start_server(image)?;
        self.peer.as_mut().map_or(Ok(()), Peer::say_ready)
    }

    fn start_server(&mut self, image: Option<OwnedFd>) -> Result<(), Cause> {
        let stdin = image.map_or_else(Stdio::inherit, Stdio::from);
        let directory = self.images();
        if self.plan.by_directory {
            DirBuilder::new().mode(0o700).create(&directory).map_err(Cause::System)?;
            return self.holder.start_filter(Role::Extract, "image-extract", |command| {
                command.arg("--images-dir").arg(directory).stdin(stdin);
                Ok(())
            });
        }
        let meeting = self.late.is_some().then(|| self.work_dir());
        // We are the first to ask, for the ids of the tree.
        self.holder.start_filter(Role::Serve, "image-serve", |command| {
            if let Some(meeting) = meeting {
                command.arg("--lazy").arg("--work-dir").arg(meeting);
            }
            command.args(["--clients", "2", "--images-dir"]).arg(directory).stdin(stdin);
            Ok(())
        })
    }

    /// Starts what writes the image, and returns where its parts come out.
    fn start_commands(&mut self, text: &str) -> Result<Vec<OwnedFd>, Cause> {
        let count = self.plan.shards.get();
        let mut readers = Vec::new();
        for index in 0..count {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            let shard = (count > 1).then_some(index);
            let shard_of = shard.map(|index| (index, count));
            let part = Part { shard: shard_of, image: None, parent: None };
            // Several commands cannot share what is typed or sent, and none with the tree.
            let shares_stdin = shard.is_none() && !self.plan.stdio;
            let given: &[RawFd] = if shares_stdin { &[1] } else { &[0, 1] };
            let mut command = self.shell.command(text, part, given);
            if !shares_stdin {
                command.stdin(Stdio::null());
            }
            command.stdout(tap.writer().map_err(Cause::System)?);
            self.holder.start(Role::Command(shard), command)?;
            self.parts.push(Some(tap));
            readers.push(read);
        }
        Ok(readers)
    }

    /// Puts the parts of an image together, and returns where it comes out.
    fn join(&mut self, mut parts: Vec<OwnedFd>) -> Result<Option<OwnedFd>, Cause> {
        if parts.len() <= 1 {
            return Ok(parts.pop());
        }
        let (tap, image) = Tap::new().map_err(Cause::System)?;
        let shards: Vec<&OwnedFd> = parts.iter().collect();
        self.holder.start_with_shards(Role::Merge, "shard-merge", &shards, |command| {
            command.stdout(tap.writer()?);
            Ok(())
        })?;
        self.merged = Some(tap);
        Ok(Some(image))
    }

    /// Makes one image of several that come one after the other, and returns where it comes out.
    fn start_combine(&mut self, images: Option<OwnedFd>) -> Result<OwnedFd, Cause> {
        let stdin = images.map_or_else(Stdio::inherit, Stdio::from);
        let (tap, image) = Tap::new().map_err(Cause::System)?;
        self.holder.start_filter(Role::Combine, "image-combine", |command| {
            command.arg("-").stdin(stdin).stdout(tap.writer()?);
            Ok(())
        })?;
        self.combined = Some(tap);
        Ok(image)
    }

    /// Where CRIU and the filter meet.
    fn images(&self) -> PathBuf {
        match self.plan.by_directory {
            true => self.holder.scratch.path().join("image"),
            false => self.holder.scratch.path().to_owned(),
        }
    }

    /// Starts CRIU if the ids of the tree are free. One that somebody has left unreaped may become
    /// free in a moment.
    fn start_criu_if_possible(&mut self) -> Result<(), Cause> {
        if self.holder.family.running(Role::Tar).is_some() {
            return Ok(());
        }
        let Some((pstree, since)) = self.ids.take() else { return Ok(()) };
        match ids::first_taken(&pstree) {
            Some(taken) if taken.is_zombie && since.elapsed() < UNREAPED => {
                self.ids = Some((pstree, since));
                Ok(())
            }
            Some(taken) => Err(Cause::Taken(taken)),
            None => self.start_criu(),
        }
    }

    fn start_criu(&mut self) -> Result<(), Cause> {
        let images = self.images();
        let gate = Gate::new().map_err(Cause::System)?;
        let mut criu = Command::new(&self.criu);
        criu.args(["restore", "--restore-detached", "--images-dir"]).arg(&images);
        if !self.plan.by_directory {
            criu.arg("--stream");
        }
        if self.late.is_some() {
            criu.arg("--lazy-pages");
        }
        if self.plan.wait {
            criu.arg("--restore-sibling");
        }
        criu.arg("--work-dir").arg(self.logs());
        criu.args(["-v4", "--log-file", "restore.log"]);
        let (options, standard) = self.plan.criu_options.without_standard_descriptors();
        self.inherited.extend(standard.into_iter().filter_map(ours));
        for (fd, name) in &self.inherited {
            criu.args(["--inherit-fd", &format!("fd[{}]:{name}", fd.as_raw_fd())]);
        }
        gate.ask_here(&mut criu, self.plan.time_limit + CRIU_GRACE + AFTER_KILL);
        criu.args(options);
        criu_log::remove(&self.log());
        let lent: Vec<&OwnedFd> = self.inherited.iter().map(|(fd, _)| fd).collect();
        let on_terminal = self.plan.criu_options.shell_job;
        lending(&lent, || Ok(self.holder.start_criu(criu, Some(gate), on_terminal)))
            .map_err(Cause::System)?
    }

    // --- Listening --------------------------------------------------------------------------

    fn hear(&mut self, event: Event) {
        match event {
            Event::Line(Role::Serve, line) if line == "socket-init" => self.go_ahead(),
            Event::Line(Role::Serve, line) if line.starts_with("unread ") => {
                let name = line.trim_start_matches("unread ").to_owned();
                self.holder.give_up(Cause::Lost(name));
            }
            Event::Line(Role::Serve, line) if self.hears_of_memory(&line) => {}
            Event::Line(Role::Relay(index), line) => self.hear_relay(index, &line),
            Event::Line(role, line) => match bytes_in(&line) {
                Some(bytes) if matches!(role, Role::Serve | Role::Extract) => self.bytes = bytes,
                Some(_) => {}
                None => self.holder.keep_line(role, line),
            },
            Event::Asked(question) if question.stage == Stage::PostRestore => {
                self.root = question.root;
                // Dropped, it is a no.
                self.question = Some(question).filter(|_| !self.holder.has_failed());
            }
            Event::Signal(signal) if self.plan.wait && self.restored.is_some() => {
                if let Some(root) = self.root {
                    let _ = kill(root, signal);
                }
            }
            Event::Signal(Signal::SIGUSR1) => self.holder.voice.pass_on(&self.report().json()),
            Event::Signal(signal) => self.holder.give_up(Cause::Signal(signal)),
            Event::FrontGone => {
                self.is_alone = true;
                self.holder.give_up(Cause::FrontKilled);
            }
            Event::Asked(_) | Event::Silent(_) | Event::ChildEnded => {}
        }
    }

    /// Whether a line tells how much memory has come.
    fn hears_of_memory(&mut self, line: &str) -> bool {
        let is_told = self.late.as_mut().is_some_and(|late| late.hear(line));
        if is_told && self.restored.is_some() {
            self.report_memory();
        }
        is_told
    }

    /// Tells programs that the tree runs and how much memory has come, while more is to come: when
    /// all of it is there, the last line says so.
    fn report_memory(&self) {
        let is_coming = self.late.is_some_and(Late::is_coming);
        if let Some(json) = self.plan.json.as_ref().filter(|_| is_coming) {
            offer_line(json, &self.report().json());
        }
    }

    fn hear_relay(&mut self, index: Option<usize>, line: &str) {
        let Some(peer) = &mut self.peer else { return };
        match peer.hear(index, line) {
            Ok(true) => {
                if let Some(tap) = self.parts.get_mut(index.unwrap_or(0)) {
                    *tap = None;
                }
            }
            Ok(false) => {}
            // At the latest when the tree runs, the other end has no more to say.
            Err(cause) => self.holder.give_up(cause),
        }
    }

    /// CRIU may be started.
    fn go_ahead(&mut self) {
        if self.holder.has_failed() {
            return;
        }
        match self.look_into_image() {
            Ok(pstree) => self.ids = Some((pstree, Instant::now())),
            Err(cause) => self.holder.fail(cause),
        }
    }

    /// Takes from the image what must be known or there before CRIU reads it, and returns the list
    /// of its processes.
    fn look_into_image(&mut self) -> Result<Vec<u8>, Cause> {
        let mut image = Image::open(&self.images(), self.plan.by_directory);
        let pstree = image.read(ids::PSTREE);
        self.has_namespace = ids::has_namespace(&pstree);
        if self.plan.stdio {
            let mut read = |name: &str| image.read(name);
            let mut images = stdio::Images { pstree: &pstree, read: &mut read };
            self.inherited = images.pipes().into_iter().filter_map(ours).collect();
        }
        if let Some(archive) = image.archive() {
            match self.plan.files {
                true => self.start_tar(archive)?,
                false => {
                    // One that is closed unread is lost, as `image-serve` sees it.
                    let _ = File::from(archive).read(&mut [0]);
                    self.holder.voice.say(format_args!(
                        "the image has files that go with the tree: --fs puts them back"
                    ));
                }
            }
        }
        let joins = self.plan.criu_options.joins_namespace;
        Ok(if joins { Vec::new() } else { pstree })
    }

    fn start_tar(&mut self, archive: OwnedFd) -> Result<(), Cause> {
        let mut tar = archive::unpack().map_err(|error| Cause::NotStarted(Role::Tar, error))?;
        tar.stdin(archive).stdout(Stdio::null());
        process::in_a_new_session(&mut tar);
        self.holder.start(Role::Tar, tar)
    }

    fn take_end(&mut self, role: Role, status: ExitStatus) {
        let success = status.success();
        match role {
            Role::Criu if success && self.holder.has_let_go => {
                self.restored = Some(Instant::now());
                if let Some(peer) = &mut self.peer {
                    peer.say_end(&Word::Restored);
                }
                self.holder.live.hurry();
                self.report_memory();
                return;
            }
            Role::Tree => self.tree_ended = Some(status),
            _ => {}
        }
        if role == Role::Criu {
            self.question = None;
        }
        // What was restored is killed if its memory cannot come.
        let is_fatal = role == Role::Serve && self.late.is_some() && !success;
        if self.holder.has_failed() || (self.restored.is_some() && !is_fatal) {
            return;
        }
        let ended = Cause::Ended(role, status);
        match role {
            Role::Command(index) if success => {
                if let Some(tap) = self.parts.get_mut(index.unwrap_or(0)) {
                    *tap = None;
                }
            }
            // Its reader may have had enough of what it wrote.
            Role::Command(index) => {
                let tap = self.parts.get(index.unwrap_or(0)).and_then(Option::as_ref);
                match tap.is_some_and(Tap::reader_is_gone) {
                    true => self.holder.suspect(ended, Weight::Filter),
                    false => self.holder.fail(ended),
                }
            }
            Role::Merge if success => self.merged = None,
            Role::Combine if success => self.combined = None,
            Role::Merge | Role::Combine => match self.is_unread(role) {
                // Who reads it tells why.
                true => {}
                false => self.holder.suspect(ended, Weight::Reader),
            },
            Role::Extract if success => self.go_ahead(),
            Role::Serve if is_fatal && self.holder.has_let_go => self.holder.fail(ended),
            Role::Serve | Role::Extract => match self.holder.has_let_go {
                // CRIU has all that it wanted.
                true => {}
                false => self.suspect_server(status, ended),
            },
            Role::Criu if success => self.holder.fail(Cause::DidNotAsk),
            Role::Criu if self.holder.has_let_go => self.holder.fail(ended),
            Role::Criu => self.holder.suspect(ended, Weight::Criu),
            Role::Tar if !success => self.holder.fail(ended),
            _ => {}
        }
    }

    /// Whether nobody reads what this filter writes.
    fn is_unread(&self, role: Role) -> bool {
        let tap = if role == Role::Merge { &self.merged } else { &self.combined };
        tap.as_ref().is_some_and(Tap::reader_is_gone)
    }

    /// A filter that refuses the image is the cause; one that CRIU has left is not.
    fn suspect_server(&mut self, status: ExitStatus, ended: Cause) {
        let weight = match (status.signal(), self.holder.family.started(Role::Criu)) {
            (Some(_), _) => Weight::Killed,
            (None, false) => Weight::Reader,
            (None, true) => Weight::Filter,
        };
        self.holder.suspect(ended, weight);
    }

    // --- Going on ---------------------------------------------------------------------------

    fn go_on(&mut self) {
        if self.holder.has_failed() {
            self.question = None;
            return self.holder.press();
        }
        if let Some(late) = self.late.filter(|_| self.restored.is_some()) {
            if late.is_coming() && self.holder.live.is_due() {
                self.holder.live.show(format_args!("restored; {late}"));
            }
            return;
        }
        if let Some(restored) = self.restored {
            // It waits for a client that never came, or does not notice that CRIU has gone.
            if restored.elapsed() >= GRACE {
                let filters = [Role::Serve, Role::Merge, Role::Combine];
                let running: Vec<Pid> =
                    filters.iter().filter_map(|it| self.holder.family.running(*it)).collect();
                signal_all(&running, Signal::SIGKILL);
            }
            return;
        }
        if let Err(cause) = self.start_criu_if_possible() {
            return self.holder.fail(cause);
        }
        self.holder.settle(|_, _| false);
        if self.holder.began.elapsed() >= self.plan.time_limit {
            let awaited = self.awaited();
            return self.holder.fail(Cause::TimeLimit(self.plan.time_limit, awaited.into()));
        }
        let may_run = self.is_whole() && self.question.is_some() && self.may_run();
        if let Some(question) = if may_run { self.question.take() } else { None } {
            if let Some(root) = self.root.filter(|_| self.plan.wait) {
                self.holder.family.adopt(Role::Tree, root);
            }
            self.holder.let_go(question);
        }
        self.show();
    }

    /// Whether nobody else holds it: another host says so when it is told that all is prepared.
    fn may_run(&mut self) -> bool {
        let Some(peer) = &mut self.peer else { return true };
        if let Err(cause) = peer.say_prepared() {
            self.holder.fail(cause);
            return false;
        }
        peer.may_go()
    }

    /// Whether those who have brought the image say that this was all.
    fn is_whole(&self) -> bool {
        let is_written = self.merged.is_none() && self.combined.is_none();
        self.parts.iter().all(Option::is_none) && is_written && !self.holder.has_failed()
    }

    fn pipeline_has_ended(&self) -> bool {
        [Role::Serve, Role::Merge, Role::Combine]
            .iter()
            .all(|it| self.holder.family.running(*it).is_none())
    }

    fn is_over(&self) -> bool {
        match (self.holder.has_failed(), self.restored) {
            (true, _) => self.holder.has_ended(),
            (false, None) => false,
            // Nobody is left to be told how the tree ends.
            (false, Some(_)) if self.plan.wait && self.root.is_some() && !self.is_alone => {
                // What is left of the tree may wait for memory.
                let is_served = self.late.is_none() || self.pipeline_has_ended();
                self.tree_ended.is_some() && is_served
            }
            (false, Some(_)) => self.pipeline_has_ended(),
        }
    }

    // --- Telling ----------------------------------------------------------------------------

    /// What is waited for.
    fn awaited(&self) -> &'static str {
        match self.holder.family.running(Role::Criu) {
            Some(_) if self.peer.is_some() && self.question.is_some() => "the other end",
            Some(_) => "CRIU's restore",
            None if self.is_whole() && !self.parts.is_empty() => "image-serve",
            None => "the image",
        }
    }

    fn show(&mut self) {
        let filter = if self.plan.by_directory { Role::Extract } else { Role::Serve };
        if self.holder.family.running(Role::Criu).is_none() {
            self.holder.ask_for_bytes(filter);
        }
        if self.holder.live.is_due() {
            let (bytes, rate) = (Bytes(self.bytes), Rate(self.bytes, self.duration()));
            let awaited = self.awaited();
            self.holder.live.show(format_args!("{bytes}, {rate}; waiting for {awaited}"));
        }
    }

    fn duration(&self) -> Duration {
        let end = self.restored.unwrap_or_else(Instant::now);
        end.saturating_duration_since(self.holder.began)
    }

    fn report(&self) -> Report {
        Report {
            result: match (self.holder.has_failed(), self.restored) {
                (true, _) => End::Failed,
                (false, Some(_)) => End::Restored,
                (false, None) => End::Going,
            },
            process: self.root.map(Pid::as_raw),
            has_namespace: self.has_namespace,
            bytes: self.bytes,
            memory: self.late,
            duration: self.duration(),
            cause: self.holder.cause().map(Cause::to_string),
        }
    }

    fn logs(&self) -> PathBuf {
        self.plan.logs.clone().unwrap_or_else(|| self.holder.scratch.path().to_owned())
    }

    /// Where CRIU works, and finds who serves memory.
    fn work_dir(&self) -> PathBuf {
        self.plan.criu_options.work_dir.clone().unwrap_or_else(|| self.logs())
    }

    fn log(&self) -> PathBuf {
        self.plan.criu_options.log(&self.logs(), "restore.log")
    }

    fn tell_restored(&self) {
        let voice = self.holder.voice;
        for role in [Role::Serve, Role::Merge, Role::Combine] {
            let failed = self.holder.family.status(role).filter(|status| !status.success());
            if let Some(status) = failed {
                voice.say(format_args!("warning: {role} {}", HasEnded(status)));
            }
        }
        let (bytes, rate) = (Bytes(self.bytes), Rate(self.bytes, self.duration()));
        let time = Seconds(self.duration());
        match self.late {
            Some(late) => voice.last_unless_quiet(format_args!("restored: in {time}; {late}")),
            None => voice.last_unless_quiet(format_args!("restored: {bytes}, {rate}; in {time}")),
        }
        self.print_report();
    }

    fn print_report(&self) {
        if let Some(json) = &self.plan.json {
            print_line(json, &self.report().json());
        }
    }

    /// The last line, and what stands before it.
    fn tell(mut self, told: bool) -> Outcome {
        if self.restored.is_some() && !told {
            self.tell_restored();
        }
        // Of what was killed last. Until then its id is taken.
        self.holder.family.reap();
        self.holder.explain(&self.log(), "criu-restore");
        self.holder.scratch.remove();
        if let Some(cause) = self.holder.cause() {
            let (left, state) = (self.holder.left_over(), self.state());
            self.holder.voice.last(format_args!("FAILED: {cause}{left}; {state}"));
            if let Some(peer) = &mut self.peer {
                peer.say_end(&match self.holder.has_let_go {
                    true => Word::Unsure(format!("{cause}; {state}")),
                    false => Word::Failed(cause.to_string()),
                });
            }
            self.print_report();
            return self.holder.failed_outcome();
        }
        match self.tree_ended.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => Outcome::Status(code as u8),
            Some((None, Some(number))) => match Signal::try_from(number) {
                Ok(signal) => Outcome::Signal(signal),
                Err(_) => Outcome::Status((128 + number) as u8),
            },
            _ => Outcome::Status(0),
        }
    }

    /// What there is of the tree after a failure.
    fn state(&self) -> String {
        let lives = |root: &Pid| Stat::of(*root).is_some_and(|it| !matches!(it.state, 'Z' | 'X'));
        match self.root.filter(|_| self.holder.has_let_go) {
            // Whoever guards the memory kills what lacks some. It may be that nothing did.
            Some(root) if self.late.is_some() => {
                let until = Instant::now() + GRACE;
                while lives(&root) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let end = if lives(&root) { "was restored and runs" } else { "was killed" };
                format!("process {root} {end}")
            }
            Some(root) if lives(&root) => format!("process {root} was restored and runs"),
            Some(_) => "nothing is restored".into(),
            None => "nothing is restored".into(),
        }
    }
}

/// Our own descriptor in the place of one of the root's. Without one, CRIU says what is missing.
fn ours((number, name): (RawFd, String)) -> Option<(OwnedFd, String)> {
    let direction = if number == 0 { Direction::Input } else { Direction::Output };
    inherit::duplicate(number, direction).ok().map(|fd| (fd, name))
}
