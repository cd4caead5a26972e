//! What a checkpoint and a restore have in common: programs are started and listened to, the first
//! failure is found, and after it everything ends, in time.

use crate::cause::Cause;
use crate::criu_log;
use crate::events::{Event, Events};
use crate::family::{Family, Role, signal_all};
use crate::filters::{self, lending, numbers};
use crate::front::{AFTER_KILL, CRIU_GRACE, Fact, GRACE, Outcome, Reins};
use crate::gate::{Gate, Question};
use crate::scratch::Scratch;
use crate::tell::{Live, Voice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipe_io::pipe::Pipe;
use pipe_io::process;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// From the end of one program to that of its neighbours, which follow from it or have caused it.
const SETTLE: Duration = Duration::from_millis(300);
/// How long scripts below CRIU may go on after a failure: past that, they are what CRIU waits for.
const SCRIPT_GRACE: Duration = Duration::from_secs(8);
/// How often to look when nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// How often to look when something has failed.
const LOOK_SOON: Duration = Duration::from_millis(50);

/// What CRIU is deaf to: a signal to all processes of a group or a control group is for us, and a
/// CRIU that dies where it stands leaves TCP sockets in repair mode. So does one whose filter or
/// whose reader has died, or whose log is longer than `ulimit -f` allows, and that limit would kill
/// a restored task too, which writes to the log as its last act before it runs.
const CRIU_IGNORES: &[Signal] = &[
    Signal::SIGPIPE,
    Signal::SIGXFSZ,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The programs that work, and what went wrong first.
pub(crate) struct Holder {
    pub(crate) voice: Voice,
    pub(crate) scratch: Scratch,
    pub(crate) family: Family,
    pub(crate) events: Events,
    pub(crate) live: Live,
    pub(crate) began: Instant,
    /// Whether CRIU was told that the tree may go on: nothing can be undone then.
    pub(crate) has_let_go: bool,
    /// What the filters and CRIU have said.
    said: Vec<(Role, String)>,
    asked_for_bytes: Instant,
    suspicion: Option<Suspicion>,
    failure: Option<Failure>,
}

/// How much a suspicion weighs against another that comes to light in the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    /// A filter has failed: mostly it has a neighbour that did.
    Filter,
    /// CRIU has failed.
    Criu,
    /// Somebody has gone without reading what he was given.
    Reader,
    /// A filter was killed: that is a cause by itself.
    Killed,
    /// The other host says why.
    Told,
}

/// What may have failed first; what comes to light soon may tell better.
struct Suspicion {
    cause: Cause,
    weight: Weight,
    since: Instant,
}

struct Failure {
    cause: Cause,
    since: Instant,
    told: bool,
}

impl Holder {
    pub(crate) fn new(voice: Voice, reins: Reins, scratch: Scratch) -> Holder {
        let now = Instant::now();
        Holder {
            voice,
            scratch,
            family: Family::default(),
            events: Events::new(reins),
            live: Live::new(voice),
            began: now,
            has_let_go: false,
            said: Vec::new(),
            asked_for_bytes: now,
            suspicion: None,
            failure: None,
        }
    }

    // --- Starting ---------------------------------------------------------------------------

    pub(crate) fn start(&mut self, role: Role, command: Command) -> Result<(), Cause> {
        self.family.start(role, command).map_err(|error| Cause::NotStarted(role, error)).map(drop)
    }

    /// Starts a filter, and listens to it.
    pub(crate) fn start_filter(
        &mut self,
        role: Role,
        name: &str,
        prepare: impl FnOnce(&mut Command) -> io::Result<()>,
    ) -> Result<(), Cause> {
        let not_started = |error| Cause::NotStarted(role, error);
        let (mut command, says) = filters::filter(name).map_err(not_started)?;
        prepare(&mut command).map_err(Cause::System)?;
        self.start(role, command)?;
        self.events.listen(role, says).map_err(Cause::System)
    }

    /// Starts `shard-split` or `shard-merge` with these shards.
    pub(crate) fn start_with_shards(
        &mut self,
        role: Role,
        name: &str,
        shards: &[&OwnedFd],
        prepare: impl FnOnce(&mut Command) -> io::Result<()>,
    ) -> Result<(), Cause> {
        lending(shards, || {
            Ok(self.start_filter(role, name, |command| {
                command.arg("--shard-fds").arg(numbers(shards));
                prepare(command)
            }))
        })
        .map_err(Cause::System)?
    }

    /// Starts CRIU, which asks the gate if there is one, and listens to it. With `on_terminal` it
    /// stays in the caller's session, and has the caller's standard input.
    pub(crate) fn start_criu(
        &mut self,
        mut criu: Command,
        gate: Option<Gate>,
        on_terminal: bool,
    ) -> Result<(), Cause> {
        let Pipe { read, write } = Pipe::new().map_err(Cause::System)?;
        let again = write.try_clone().map_err(Cause::System)?;
        criu.stdout(write).stderr(again);
        // Not as our caller would start it: with SIGCHLD ignored it fails, and with it blocked it
        // does not see that a task has died.
        if !on_terminal {
            criu.stdin(Stdio::null());
            process::in_a_new_session(&mut criu);
        }
        process::ignoring(&mut criu, CRIU_IGNORES);
        if let Some(gate) = gate {
            self.events.open_gate(gate);
        }
        self.start(Role::Criu, criu)?;
        self.events.listen(Role::Criu, read).map_err(Cause::System)?;
        if let Some(pid) = self.family.running(Role::Criu) {
            self.events.reins().tell(Fact::Criu(pid));
        }
        Ok(())
    }

    // --- Going on ---------------------------------------------------------------------------

    /// Waits until something happens or it is time to look again, and returns what has happened,
    /// and who has ended.
    pub(crate) fn wait(&mut self, until: Instant) -> (Vec<Event>, Vec<(Role, ExitStatus)>) {
        let soon = self.failure.is_some() || self.suspicion.is_some();
        let look = Instant::now() + if soon { LOOK_SOON } else { LOOK };
        let until = if soon { look } else { look.min(until) };
        let events = self.events.wait(until).unwrap_or_else(|error| {
            self.fail(Cause::System(error));
            // Lest it go round and round.
            std::thread::sleep(LOOK_SOON);
            Vec::new()
        });
        let ended = self.family.reap();
        if let Some((_, status)) = ended.iter().find(|(role, _)| *role == Role::Criu) {
            // At once: the front cannot take this status any more.
            self.events.reins().tell(Fact::CriuEnded { success: status.success() });
        }
        (events, ended)
    }

    /// Keeps a line of a program, for the case that it is to blame.
    pub(crate) fn keep_line(&mut self, role: Role, line: String) {
        /// More than any of them has to say.
        const KEPT: usize = 200;

        self.voice.note(&line);
        if self.said.len() < KEPT {
            self.said.push((role, line));
        }
    }

    /// Notes what may have failed first.
    pub(crate) fn suspect(&mut self, cause: Cause, weight: Weight) {
        let since = match &self.suspicion {
            Some(other) if other.weight >= weight => return,
            Some(other) => other.since,
            None => Instant::now(),
        };
        self.suspicion = Some(Suspicion { cause, weight, since });
    }

    /// Notes that a filter has failed.
    pub(crate) fn suspect_filter(&mut self, role: Role, status: ExitStatus) {
        let killed = status.signal().is_some();
        let weight = if killed { Weight::Killed } else { Weight::Filter };
        self.suspect(Cause::Ended(role, status), weight);
    }

    /// Fails with what is suspected, if that has stood long enough. `is_cleared` says that
    /// it was unfounded.
    pub(crate) fn settle(&mut self, is_cleared: impl FnOnce(&Cause, &Family) -> bool) {
        let Some(suspicion) = self.suspicion.take() else { return };
        if is_cleared(&suspicion.cause, &self.family) {
            return;
        }
        match suspicion.since.elapsed() >= SETTLE {
            true => self.fail(suspicion.cause),
            false => self.suspicion = Some(suspicion),
        }
    }

    /// Whether something may have failed.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Fails, unless CRIU is letting the tree go: then nothing can be undone.
    pub(crate) fn give_up(&mut self, cause: Cause) {
        if !self.has_let_go {
            self.fail(cause);
        }
    }

    /// Takes this for what failed first, unless something has before; what follows from it does
    /// not count.
    pub(crate) fn fail(&mut self, cause: Cause) {
        if self.failure.is_some() {
            return;
        }
        if !self.has_let_go {
            self.events.shut_gate();
        }
        self.failure = Some(Failure { cause, since: Instant::now(), told: false });
        self.press();
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What failed first.
    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.failure.as_ref().map(|failure| &failure.cause)
    }

    /// Says yes to CRIU.
    pub(crate) fn let_go(&mut self, question: Question) {
        // The front knows it before CRIU does.
        self.events.reins().tell(Fact::LetGo);
        self.has_let_go = true;
        question.yes();
    }

    /// Ends what goes on after a failure: first the pipeline, at which CRIU gives up by itself, and
    /// what does not end, by force.
    pub(crate) fn press(&mut self) {
        let Some(failure) = &mut self.failure else { return };
        let time = failure.since.elapsed();
        let first = !std::mem::replace(&mut failure.told, true);
        // Once the tree goes, nothing is in the way of CRIU but its scripts.
        if !self.has_let_go {
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

    /// Whether all has ended after a failure, or will not.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(failure) = &self.failure else { return false };
        self.family.running(Role::Criu).is_none()
            && (self.has_let_go
                || self.family.without_criu().is_empty()
                || failure.since.elapsed() >= GRACE + AFTER_KILL)
    }

    // --- Telling ----------------------------------------------------------------------------

    /// Asks a filter for its line of bytes, once a second.
    pub(crate) fn ask_for_bytes(&mut self, role: Role) {
        if self.asked_for_bytes.elapsed() < LOOK {
            return;
        }
        if let Some(filter) = self.family.running(role) {
            let _ = kill(filter, Signal::SIGUSR1);
            self.asked_for_bytes = Instant::now();
        }
    }

    /// Passes on what the programs have said that are to blame, and CRIU's reasons by its log.
    pub(crate) fn explain(&self, log: &Path, kept_name: &str) {
        let blamed = match self.cause() {
            Some(Cause::Ended(role, _) | Cause::NotStarted(role, _)) => *role,
            Some(Cause::TimeLimit(..) | Cause::DidNotAsk | Cause::Lost(_)) => Role::Criu,
            _ => return,
        };
        let of_criu = blamed == Role::Criu;
        let is_told = |role: Role, line: &str| {
            role == blamed
                || (of_criu
                    && line.split_once(": ").is_some_and(|(_, it)| it.starts_with("CRIU: ")))
        };
        for (_, line) in self.said.iter().filter(|(role, line)| is_told(*role, line)) {
            self.voice.pass_on(line);
        }
        let criu_failed = self.family.status(Role::Criu).is_some_and(|status| !status.success());
        if of_criu && criu_failed {
            self.explain_criu(log, kept_name);
        }
    }

    fn explain_criu(&self, log: &Path, kept_name: &str) {
        let causes = criu_log::causes(log).unwrap_or_default();
        causes.errors.iter().for_each(|line| self.voice.pass_on(line));
        causes.hints.iter().for_each(|hint| self.voice.say(format_args!("hint: {hint}")));
        let kept = match log.starts_with(self.scratch.path()) {
            true => self.scratch.keep(log, kept_name),
            false => Some(log.to_owned()).filter(|log| log.is_file()),
        };
        if let Some(kept) = kept {
            self.voice.say(format_args!("CRIU's log: {}", kept.display()));
        }
    }

    /// Who could not be ended, for the last line.
    pub(crate) fn left_over(&self) -> String {
        let left: Vec<String> = match self.has_let_go {
            true => Vec::new(),
            false => self.family.without_criu().iter().map(Pid::to_string).collect(),
        };
        match left.is_empty() {
            true => String::new(),
            false => format!("; could not be ended: {}", left.join(", ")),
        }
    }

    /// Whether CRIU was killed, or has to be.
    pub(crate) fn criu_was_killed(&self) -> bool {
        self.family.status(Role::Criu).is_some_and(|status| status.signal().is_some())
    }

    /// How the command ends after a failure.
    pub(crate) fn failed_outcome(&self) -> Outcome {
        match self.cause() {
            Some(Cause::Signal(signal)) => Outcome::Signal(*signal),
            _ => Outcome::Status(1),
        }
    }
}
