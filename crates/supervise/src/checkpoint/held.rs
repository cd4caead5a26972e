//! The tree is held: what has happened so far, and what follows from it.

mod start;
mod tell;

use super::pages::Images;
use super::peer::{Peer, There};
use super::rounds::Rounds;
use super::series::Series;
use super::tracking::Tracking;
use super::{Plan, Refusal};
use crate::cause::Cause;
use crate::events::Event;
use crate::family::{Family, Role, signal_all};
use crate::filters::{Tap, bytes_in};
use crate::front::{Fact, GRACE, Outcome, Reins};
use crate::gate::{Question, Stage};
use crate::holder::{Holder, Weight};
use crate::scratch::Scratch;
use crate::shell::Shell;
use crate::tell::Voice;
use crate::tree::Tree;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pipe_io::Bytes;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use wire_format::ImageId;

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
