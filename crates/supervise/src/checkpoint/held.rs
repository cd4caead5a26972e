//! The tree is held: what has happened so far, and what follows from it.

use super::pages::{self, Images};
use super::peer::{Peer, There};
use super::report::{End, Report};
use super::rounds::Rounds;
use super::series::Series;
use super::tracking::Tracking;
use super::{Destination, Plan, Refusal};
use crate::archive;
use crate::cause::Cause;
use crate::criu_log;
use crate::events::Event;
use crate::family::{Family, Role, signal_all};
use crate::filters::{Tap, bytes_in, lending};
use crate::front::{AFTER_KILL, CRIU_GRACE, Fact, GRACE, Outcome, Reins};
use crate::gate::{Gate, Question, Stage};
use crate::holder::{Holder, Weight};
use crate::scratch::Scratch;
use crate::shell::{Part, Shell};
use crate::tell::{Seconds, Voice, print_line};
use crate::tree::{State, Tree};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pipe_io::pipe::Pipe;
use pipe_io::process;
use pipe_io::{Bytes, Rate};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use wire_format::ImageId;

/// With so many shards, one is for the metadata, so that a restore can begin early. With two, a
/// single one would be left for the memory, and half as many compressors.
const WITH_METADATA: usize = 3;

/// How often to look whether all memory of the tree is there.
const LOOK_AT_MEMORY: Duration = Duration::from_millis(50);

/// A tree that is held while its image is made safe.
pub(super) struct Held {
    plan: Plan,
    tree: Tree,
    criu: PathBuf,
    shell: Shell,
    holder: Holder,
    /// The other host, if the tree goes to one.
    peer: Option<Peer>,
    image: ImageId,
    /// Where its small files are, if it comes through CRIU's page server.
    images: Option<Images>,
    /// The series that it belongs to.
    series: Option<Series>,
    /// What else builds on what the kernel tells of the tree.
    tracking: Option<Tracking>,
    /// What is sent while the tree runs.
    rounds: Option<Rounds>,
    /// What the image is expected to have, in bytes; unknown of an increment.
    expected: Option<u64>,
    /// What tar(1) writes into, until it has succeeded.
    files: Option<Tap>,
    /// What `criu-sock-capture` writes into, until it has succeeded.
    stream: Option<Tap>,
    /// What `shard-split` writes into, until it has succeeded.
    shards: Vec<Tap>,
    /// What the commands that read back write into, until they have succeeded.
    read_back: Vec<Option<Tap>>,
    /// Whether CRIU is to be started as soon as all memory of the tree is there.
    due: bool,
    /// A process that was seen to lack memory.
    incomplete: Option<Pid>,
    frozen: Option<Instant>,
    thawed: Option<Instant>,
    bytes: u64,
    question: Option<Question>,
    verification: Verification,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verification {
    Due,
    Goes,
    Done,
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
    ) -> Result<Held, Refusal> {
        let image = ImageId(pipe_io::random().map_err(Refusal::System)?);
        let is_tracked = plan.increments.is_some() || plan.rounds.is_some();
        let tracking = is_tracked.then(|| Tracking::open(&tree)).transpose()?;
        let last = tracking.as_ref().and_then(Tracking::last);
        let series = plan.increments.as_deref().map(|it| Series::open(it, last)).transpose()?;
        let (series, images) = series.unzip();
        let is_increment = images.as_ref().is_some_and(|it: &Images| it.before.is_some());
        let verification = match plan.verify {
            Some(_) => Verification::Due,
            None => Verification::Done,
        };
        Ok(Held {
            expected: (!is_increment).then(|| tree.memory()),
            rounds: plan.rounds.map(|most| Rounds::new(most.get(), scratch.path().to_owned())),
            plan,
            tree,
            criu,
            shell,
            holder: Holder::new(voice, reins, scratch),
            peer: None,
            image,
            images,
            series,
            tracking,
            files: None,
            stream: None,
            shards: Vec::new(),
            read_back: Vec::new(),
            due: false,
            incomplete: None,
            frozen: None,
            thawed: None,
            bytes: 0,
            question: None,
            verification,
        })
    }

    /// Holds the tree to the end, whichever it is.
    pub(super) fn run(mut self) -> Outcome {
        if let Err(cause) = self.start() {
            self.holder.fail(cause);
        }
        while !self.is_over() {
            let limit = match self.incomplete {
                Some(_) => Instant::now() + LOOK_AT_MEMORY,
                None => self.holder.began + self.plan.time_limit,
            };
            let limits = self.peer.as_ref().and_then(Peer::limit).into_iter().chain([limit]);
            let (events, ends) = self.holder.wait(limits.min().unwrap_or(limit));
            events.into_iter().for_each(|event| self.hear(event));
            ends.into_iter().for_each(|(role, status)| self.take_end(role, status));
            self.go_on();
        }
        // What is left after a success is what the commands have started. It is ended where it is
        // in their sessions: what has a session of its own was meant to stay.
        signal_all(&self.holder.family.left_in_sessions(None), Signal::SIGKILL);
        self.tell()
    }

    // --- Starting ---------------------------------------------------------------------------

    fn start(&mut self) -> Result<(), Cause> {
        match &self.plan.destination {
            Destination::Command(_) => self.start_pipeline(),
            // The rest when it has answered.
            Destination::Host(route) => {
                self.peer = Some(Peer::connect(route, &self.shell, &mut self.holder)?);
                Ok(())
            }
        }
    }

    fn start_pipeline(&mut self) -> Result<(), Cause> {
        let (stream, image) = Tap::new().map_err(Cause::System)?;
        if let Some(rounds) = &mut self.rounds {
            self.images = Some(rounds.begin(self.image).map_err(Cause::System)?);
        }
        match self.images {
            None => self.start_capture(&stream)?,
            Some(_) => self.start_page_capture(stream.writer().map_err(Cause::System)?)?,
        }
        self.stream = Some(stream);
        self.start_takers(image)
    }

    fn start_capture(&mut self, stream: &Tap) -> Result<(), Cause> {
        let directory = self.holder.scratch.path().to_owned();
        let id = self.image.to_string();
        let archive = match self.plan.files.is_empty() {
            true => None,
            false => {
                let (tap, archive) = Tap::new().map_err(Cause::System)?;
                self.files = Some(tap);
                Some(archive)
            }
        };
        let lent: Vec<&OwnedFd> = archive.iter().collect();
        let prepare = |command: &mut Command| {
            command.args(["--end-at-inventory", "--image-id", &id, "--images-dir"]).arg(directory);
            if let Some(archive) = &archive {
                let external = format!("{}:{}", archive::NAME, archive.as_raw_fd());
                command.args(["--ext-file-fds", &external]);
            }
            command.stdout(stream.writer()?);
            Ok(())
        };
        lending(&lent, || Ok(self.holder.start_filter(Role::Capture, "criu-sock-capture", prepare)))
            .map_err(Cause::System)?
    }

    fn start_page_capture(&mut self, stream: OwnedFd) -> Result<(), Cause> {
        let Some(images) = self.images.clone() else { return Ok(()) };
        let (scratch, id) = (self.holder.scratch.path().to_owned(), self.image);
        self.holder.start_filter(Role::PageCapture, "criu-page-capture", |command| {
            images.prepare_capture(command, &scratch, id);
            command.stdout(stream);
            Ok(())
        })
    }

    /// Starts what takes the image, and splits it into shards if there are several.
    fn start_takers(&mut self, image: OwnedFd) -> Result<(), Cause> {
        if self.plan.shards.get() == 1 {
            return self.hand_over(None, image);
        }
        let mut readers = Vec::new();
        for _ in 0..self.plan.shards.get() {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            self.shards.push(tap);
            readers.push(read);
        }
        let fds: Vec<&OwnedFd> = self.shards.iter().map(Tap::fd).collect();
        let metadata_first = self.plan.shards.get() >= WITH_METADATA;
        self.holder.start_with_shards(Role::Split, "shard-split", &fds, |command| {
            if metadata_first {
                command.arg("--metadata-first");
            }
            command.stdin(image);
            Ok(())
        })?;
        let mut commands = readers.into_iter().enumerate();
        commands.try_for_each(|(index, read)| self.hand_over(Some(index), read))
    }

    /// Gives the image, or a shard of it, to whoever takes it.
    fn hand_over(&mut self, index: Option<usize>, image: OwnedFd) -> Result<(), Cause> {
        let text = match (&self.plan.destination, &mut self.peer) {
            (_, Some(peer)) => return peer.send(index, image, &mut self.holder),
            (Destination::Command(text), None) => text,
            (Destination::Host(_), None) => return Ok(()),
        };
        let part = Part {
            shard: index.map(|index| (index, self.plan.shards.get())),
            image: Some(self.image),
            parent: self.parent(),
        };
        let mut command = self.shell.command(text, part, &[0]);
        command.stdin(image);
        self.holder.start(Role::Command(index), command)
    }

    /// Starts CRIU if all memory of the tree is there: what is still on its way to a process that
    /// was restored with memory on demand would be missing in the image.
    fn start_criu_if_possible(&mut self) -> Result<(), Cause> {
        if !self.due {
            return Ok(());
        }
        self.incomplete = self.tree.lacks_memory();
        self.due = self.incomplete.is_some();
        if self.due { Ok(()) } else { self.start_criu() }
    }

    fn start_criu(&mut self) -> Result<(), Cause> {
        let scratch = self.holder.scratch.path().to_owned();
        let mut criu = Command::new(&self.criu);
        // A tree that runs on between two rounds is not let go by anybody.
        let gate = match self.is_in_round() {
            true => None,
            false => Some(Gate::new().map_err(Cause::System)?),
        };
        criu.arg(if gate.is_some() { "dump" } else { "pre-dump" });
        match &self.images {
            None => _ = criu.args(["--stream", "--images-dir"]).arg(&scratch),
            Some(images) => images.prepare_criu(&mut criu),
        }
        criu.arg("--tree").arg(self.tree.root().to_string());
        criu.arg("--work-dir").arg(self.plan.logs.as_ref().unwrap_or(&scratch));
        // With more, CRIU notes each run of pages that it sends, and takes longer for that than for
        // an increment of fragmented memory.
        let verbosity = if self.images.is_some() { "-v3" } else { "-v4" };
        criu.args([verbosity, "--log-file", "dump.log"]);
        if self.plan.leave_running {
            criu.arg("--leave-running");
        }
        if let Some(gate) = &gate {
            gate.ask_here(&mut criu, self.plan.time_limit + CRIU_GRACE + AFTER_KILL);
        }
        criu.args(&self.plan.criu_options.arguments);
        criu_log::remove(&self.log());
        if let Some(tracking) = &self.tracking {
            tracking.note(self.image).map_err(Cause::System)?;
        }
        let holder = &mut self.holder;
        match self.images {
            None => holder.start_criu(criu, gate, false),
            Some(_) => {
                pages::connected(criu, &scratch, |criu| holder.start_criu(criu, gate, false))
                    .map_err(Cause::System)?
            }
        }
    }

    /// The tree is frozen: what it writes to does not change any more.
    fn start_tar(&mut self) -> Result<(), Cause> {
        let Some(tap) = self.files.as_ref().filter(|_| !self.holder.has_failed()) else {
            return Ok(());
        };
        let mut tar =
            archive::pack(&self.plan.files).map_err(|error| Cause::NotStarted(Role::Tar, error))?;
        tar.stdin(Stdio::null()).stdout(tap.writer().map_err(Cause::System)?);
        process::in_a_new_session(&mut tar);
        self.holder.start(Role::Tar, tar)
    }

    fn start_verification(&mut self, text: &str) -> Result<(), Cause> {
        self.verification = Verification::Goes;
        let count = self.plan.shards.get();
        let mut readers = Vec::new();
        for index in 0..count {
            let (tap, read) = Tap::new().map_err(Cause::System)?;
            let shard = (count > 1).then_some(index);
            let part = Part {
                shard: shard.map(|index| (index, count)),
                image: Some(self.image),
                parent: self.parent(),
            };
            let mut command = self.shell.command(text, part, &[0, 1]);
            command.stdin(Stdio::null()).stdout(tap.writer().map_err(Cause::System)?);
            self.holder.start(Role::ReadBack(shard), command)?;
            self.read_back.push(Some(tap));
            readers.push(read);
        }
        // A single part is a stream by itself.
        let image = if count > 1 { self.start_merge(&readers)? } else { readers.remove(0) };
        let id = self.image.to_string();
        self.holder.start_filter(Role::Extract, "image-extract", |command| {
            command.args(["--verify", "--image-id", &id]).stdin(image);
            Ok(())
        })
    }

    fn start_merge(&mut self, shards: &[OwnedFd]) -> Result<OwnedFd, Cause> {
        let Pipe { read, write } = Pipe::new().map_err(Cause::System)?;
        let shards: Vec<&OwnedFd> = shards.iter().collect();
        self.holder.start_with_shards(Role::Merge, "shard-merge", &shards, |command| {
            command.stdout(write);
            Ok(())
        })?;
        Ok(read)
    }

    // --- Listening --------------------------------------------------------------------------

    fn hear(&mut self, event: Event) {
        match event {
            Event::Line(Role::Capture | Role::PageCapture, line) if line == "socket-init" => {
                self.due = true;
            }
            Event::Line(Role::Capture | Role::PageCapture, line) if line == "checkpoint-start" => {
                if self.is_in_round() {
                    return;
                }
                self.frozen = Some(Instant::now());
                if let Err(cause) = self.start_tar() {
                    self.holder.fail(cause);
                }
            }
            Event::Line(Role::Connection(index), line) => {
                self.with_peer(Weight::Told, |peer| peer.hear(index, &line));
            }
            Event::Line(Role::Relay(index), line) => {
                self.with_peer(Weight::Reader, |peer| peer.hear_relay(index, &line));
            }
            Event::Silent(role @ Role::Connection(index)) => {
                if self.peer.as_mut().is_some_and(|peer| peer.has_lost(index)) {
                    let closed = Cause::Unlinked(role, "it was closed".into());
                    self.holder.suspect(closed, Weight::Reader);
                }
            }
            Event::Line(role, line) => match bytes_in(&line) {
                Some(bytes) if role == self.capture() => self.bytes = bytes,
                Some(_) => {}
                None => self.holder.keep_line(role, line),
            },
            Event::Asked(question) if question.stage == Stage::PostDump => {
                // Dropped, it is a no.
                self.question = Some(question).filter(|_| !self.holder.has_failed());
            }
            Event::Signal(Signal::SIGUSR1) => self.holder.voice.pass_on(&self.report().json()),
            // The answer that is due says where the tree runs, and nothing else can.
            Event::Signal(_) | Event::FrontGone if self.is_going() => {}
            Event::Signal(signal) => self.holder.give_up(Cause::Signal(signal)),
            Event::FrontGone => self.holder.give_up(Cause::FrontKilled),
            Event::Asked(_) | Event::Silent(_) | Event::ChildEnded => {}
        }
    }

    fn is_going(&self) -> bool {
        self.peer.as_ref().is_some_and(Peer::is_going)
    }

    /// Has the peer hear something; what it complains of is suspected with this weight.
    fn with_peer(&mut self, weight: Weight, hear: impl FnOnce(&mut Peer) -> Result<(), Cause>) {
        if let Some(Err(cause)) = self.peer.as_mut().map(hear) {
            self.holder.suspect(cause, weight);
        }
    }

    fn take_end(&mut self, role: Role, status: ExitStatus) {
        let success = status.success();
        if role == Role::Criu && !self.is_in_round() {
            self.thawed = Some(Instant::now());
            // Nobody waits for an answer any more.
            self.question = None;
        }
        if self.holder.has_failed() {
            return;
        }
        let ended = Cause::Ended(role, status);
        match role {
            // What the next round sends follows in the same stream.
            Role::Criu | Role::PageCapture if success && self.is_in_round() => {}
            Role::Capture | Role::PageCapture if success => drop(self.stream.take()),
            Role::Connection(index) => {
                if self.peer.as_mut().is_some_and(|peer| peer.has_lost(index)) {
                    let (cause, weight) = match success {
                        true => (Cause::Unlinked(role, "it was closed".into()), Weight::Reader),
                        // It may have said why.
                        false => (ended, Weight::Killed),
                    };
                    self.holder.suspect(cause, weight);
                }
            }
            Role::Capture | Role::PageCapture => {
                match self.stream.as_ref().is_some_and(Tap::reader_is_gone) {
                    // Its relay tells why.
                    true if self.peer.is_some() => {}
                    true if self.shards.is_empty() => self.suspect_reader(Role::Command(None)),
                    // shard-split tells why.
                    true => {}
                    false => self.holder.suspect_filter(role, status),
                }
            }
            Role::Tar if success => self.files = None,
            Role::Split if success => self.shards.clear(),
            Role::Split => match self.shards.iter().position(Tap::reader_is_gone) {
                Some(_) if self.peer.is_some() => {}
                Some(index) => self.suspect_reader(Role::Command(Some(index))),
                None => self.holder.suspect_filter(role, status),
            },
            Role::Command(_) if success => {
                if !has_written(role, &self.holder.family) {
                    self.suspect_reader(role);
                }
            }
            Role::Criu if success && self.holder.has_let_go => {}
            Role::Criu if success => self.holder.fail(Cause::DidNotAsk),
            Role::Criu if !self.holder.has_let_go => self.holder.suspect(ended, Weight::Criu),
            Role::ReadBack(index) if success => {
                if let Some(tap) = self.read_back.get_mut(index.unwrap_or(0)) {
                    *tap = None;
                }
            }
            // Its reader may have had enough of what it wrote.
            Role::ReadBack(index) if self.is_unread(index) => {
                self.holder.suspect(ended, Weight::Filter);
            }
            Role::Merge if success => {}
            Role::Merge => self.holder.suspect_filter(role, status),
            Role::Extract if success => self.verification = Verification::Done,
            _ => self.holder.fail(ended),
        }
    }

    /// Whether nobody reads what this command reads back.
    fn is_unread(&self, index: Option<usize>) -> bool {
        let tap = self.read_back.get(index.unwrap_or(0)).and_then(Option::as_ref);
        tap.is_some_and(Tap::reader_is_gone)
    }

    fn suspect_reader(&mut self, role: Role) {
        self.holder.suspect(Cause::ReadTooLittle(role), Weight::Reader);
    }

    // --- Going on ---------------------------------------------------------------------------

    fn go_on(&mut self) {
        if self.holder.has_failed() {
            self.question = None;
            return self.holder.press();
        }
        if let Err(cause) = self.start_criu_if_possible() {
            return self.holder.fail(cause);
        }
        if let Some(Err(cause)) = self.peer.as_mut().map(Peer::look_at_clock) {
            return self.holder.fail(cause);
        }
        if self.is_going() {
            return self.show();
        }
        let runs_there = self.peer.as_ref().is_some_and(|peer| peer.there() == There::Runs);
        self.holder.settle(|cause, family| match cause {
            Cause::ReadTooLittle(role) => has_written(*role, family),
            // Its end was seen before its last words.
            Cause::Unlinked(..) | Cause::Ended(Role::Connection(_), _) => runs_there,
            _ => false,
        });
        if self.holder.began.elapsed() >= self.plan.time_limit {
            let awaited = self.awaited();
            return self.holder.fail(Cause::TimeLimit(self.plan.time_limit, awaited));
        }
        match self.peer {
            None => self.let_go_if_safe(),
            Some(_) => self.go_on_with_peer(),
        }
        self.show();
    }

    fn go_on_with_peer(&mut self) {
        let is_well = !self.holder.has_failed() && !self.holder.is_suspicious();
        let Some(peer) = &mut self.peer else { return };
        let begins = is_well && peer.begin_if_ready();
        let result = match (begins, is_well && self.round_is_over()) {
            (true, _) => self.start_pipeline(),
            (false, true) => self.start_next_round(),
            (false, false) => Ok(()),
        };
        if let Err(cause) = result {
            return self.holder.fail(cause);
        }
        let may_go = is_well && self.is_handed_over() && self.question.is_some();
        let Some(peer) = &mut self.peer else { return };
        if peer.is_prepared() && may_go {
            // The front knows it before the other host does.
            self.holder.events.reins().tell(Fact::Going);
            if let Err(cause) = peer.go() {
                self.holder.suspect(cause, Weight::Filter);
            }
        }
        if peer.there() != There::Runs {
            return;
        }
        if let Some(question) = self.question.take() {
            self.holder.let_go(question);
        }
    }

    /// Whether the tree runs while its memory is sent.
    fn is_in_round(&self) -> bool {
        self.rounds.as_ref().is_some_and(Rounds::tree_runs)
    }

    /// Whether all was sent that had changed when the round began.
    fn round_is_over(&self) -> bool {
        self.is_in_round()
            && self.has_succeeded(Role::PageCapture)
            && self.has_succeeded(Role::Criu)
    }

    fn start_next_round(&mut self) -> Result<(), Cause> {
        let Some(rounds) = &mut self.rounds else { return Ok(()) };
        let (number, bytes) = (rounds.number(), std::mem::take(&mut self.bytes));
        self.holder.voice.note(format_args!("round {number}: {}", Bytes(bytes)));
        rounds.end_one(bytes);
        self.image = ImageId(pipe_io::random().map_err(Cause::System)?);
        self.images = Some(rounds.begin(self.image).map_err(Cause::System)?);
        self.expected = None;
        match self.stream.as_ref().map(Tap::writer) {
            Some(writer) => self.start_page_capture(writer.map_err(Cause::System)?),
            None => Ok(()),
        }
    }

    fn let_go_if_safe(&mut self) {
        if !self.is_stored() || self.holder.has_failed() {
            return;
        }
        let due = self.verification == Verification::Due;
        if let Some(text) = self.plan.verify.clone().filter(|_| due) {
            if let Err(cause) = self.start_verification(&text) {
                self.holder.fail(cause);
            }
        }
        if !self.is_safe() {
            return;
        }
        if let Some(question) = self.question.take() {
            self.holder.let_go(question);
        }
    }

    /// Whether all of the image was taken from CRIU, and passed on.
    fn is_handed_over(&self) -> bool {
        let is_split = self.plan.shards.get() == 1 || self.has_succeeded(Role::Split);
        self.has_succeeded(self.capture()) && !self.is_in_round() && is_split
    }

    /// Whether all of the image has been taken by commands that have succeeded, or the tree runs
    /// at the other host.
    fn is_stored(&self) -> bool {
        let succeeded = |role| self.has_succeeded(role);
        let count = self.plan.shards.get();
        let is_taken = match (&self.peer, count) {
            (Some(peer), _) => peer.there() == There::Runs,
            (None, 1) => succeeded(Role::Command(None)),
            (None, _) => (0..count).all(|it| succeeded(Role::Command(Some(it)))),
        };
        self.is_handed_over() && is_taken
    }

    /// Whether it is stored and, if that is asked for, was read back: image-extract has found all
    /// of it, and those that have brought it say that this was all.
    fn is_safe(&self) -> bool {
        let count = self.plan.shards.get();
        let read_back = self.plan.verify.is_none()
            || match count {
                1 => self.has_succeeded(Role::ReadBack(None)),
                _ => {
                    self.has_succeeded(Role::Merge)
                        && (0..count).all(|it| self.has_succeeded(Role::ReadBack(Some(it))))
                }
            };
        self.is_stored() && self.verification == Verification::Done && read_back
    }

    /// Who takes the image from CRIU.
    fn capture(&self) -> Role {
        match (&self.images, &self.rounds) {
            (None, None) => Role::Capture,
            _ => Role::PageCapture,
        }
    }

    /// The image that this one is an increment of, in a series.
    fn parent(&self) -> Option<ImageId> {
        self.series.as_ref()?;
        Some(self.images.as_ref()?.before.as_ref()?.id)
    }

    fn has_succeeded(&self, role: Role) -> bool {
        self.holder.family.status(role).is_some_and(|status| status.success())
    }

    fn is_over(&self) -> bool {
        match self.holder.has_failed() {
            false => self.holder.has_let_go && self.thawed.is_some_and(|it| self.has_hung_up(it)),
            true => self.holder.has_ended(),
        }
    }

    /// Whether the connections have ended by themselves, since CRIU has, or will not.
    fn has_hung_up(&self, thawed: Instant) -> bool {
        let connections = match self.peer {
            Some(_) => self.plan.shards.get(),
            None => 0,
        };
        let is_running = |index: usize| {
            let index = (connections > 1).then_some(index);
            self.holder.family.running(Role::Connection(index)).is_some()
        };
        thawed.elapsed() >= GRACE || !(0..connections).any(is_running)
    }

    // --- Telling ----------------------------------------------------------------------------

    /// What is waited for, in words.
    fn awaited(&self) -> String {
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

    fn show(&mut self) {
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

    fn report(&self) -> Report {
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

    fn there(&self) -> Option<(String, There)> {
        match &self.plan.destination {
            Destination::Command(_) => None,
            Destination::Host(route) => {
                let there = self.peer.as_ref().map_or(There::No, Peer::there);
                Some((route.to_string(), there))
            }
        }
    }

    fn log(&self) -> PathBuf {
        let directory = self.plan.logs.as_deref().unwrap_or(self.holder.scratch.path());
        self.plan.criu_options.log(directory, "dump.log")
    }

    /// The last line, and what stands before it.
    fn tell(self) -> Outcome {
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

/// Whether the program that writes what this command reads has succeeded.
fn has_written(command: Role, family: &Family) -> bool {
    let writer = match command {
        Role::Command(Some(_)) => Role::Split,
        _ if family.started(Role::PageCapture) => Role::PageCapture,
        _ => Role::Capture,
    };
    family.status(writer).is_some_and(|status| status.success())
}
