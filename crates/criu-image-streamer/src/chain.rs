//! Two filters with a pipe between them, for several shards.
//!
//! They stay in this process's group, so the keyboard's signals and job control reach all three.
//! Any other signal is passed on to them, and if this process is killed they end too.

use crate::Action;
use crate::error::Error;
use crate::parts::{Parts, to_lend};
use cli::Progress;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pipe_io::pipe::{self, Pipe};
use pipe_io::process;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};
use supervise::events::{Event, Events};
use supervise::family::{Family, Role, signal_all};
use supervise::filters::lending;
use supervise::front::{Outcome, Reins};

/// How long the filters may take to end after a signal.
const GRACE: Duration = Duration::from_secs(3);

/// The filters, and what they have said and done.
pub(crate) struct Chain {
    action: Action,
    progress: Progress,
    family: Family,
    events: Events,
    /// The line with the sizes of the shards, until it is time for it.
    report: Option<String>,
    /// The first signal that was to end this process, and when it came.
    signal: Option<(Signal, Instant)>,
    statuses: Vec<ExitStatus>,
}

impl Chain {
    /// Starts both filters. Nothing that they are given stays open here.
    pub(crate) fn start(parts: Parts) -> Result<Chain, Error> {
        process::keep_statuses_of_children();
        let mut events = Reins::without_front().map(Events::new).map_err(Error::System)?;
        let Pipe { read, write } = Pipe::new().map_err(Error::System)?;
        pipe::grow(&write, pipe::WANTED).map_err(Error::System)?;
        let action = parts.action;
        let filter_speaks = speaker(&mut events, action.filter()).map_err(Error::System)?;
        let partner_speaks = speaker(&mut events, action.partner()).map_err(Error::System)?;
        let mut filter = parts.filter(&filter_speaks)?;
        let mut partner = parts.partner(&partner_speaks)?;
        match action {
            Action::Capture => (filter.stdout(write), partner.stdin(read)),
            Action::Serve | Action::Extract => (filter.stdin(read), partner.stdout(write)),
        };
        let mut family = Family::default();
        let for_filter: Vec<_> = parts.external().chain([&filter_speaks]).collect();
        start(&mut family, action.filter(), filter, &for_filter)?;
        let for_partner: Vec<_> = parts.shards.iter().chain([&partner_speaks]).collect();
        start(&mut family, action.partner(), partner, &for_partner)?;
        Ok(Chain {
            action,
            progress: parts.progress,
            family,
            events,
            report: None,
            signal: None,
            statuses: Vec::new(),
        })
    }

    /// Waits for the filters, and returns how this process is to end: by the signal that has come,
    /// or with the greatest status. A filter that was killed or misused says more than the "broken
    /// pipe" of its neighbour.
    pub(crate) fn run(mut self) -> Result<ExitCode, Error> {
        while self.statuses.len() < 2 {
            let events = self.events.wait(self.next_look()).map_err(Error::System)?;
            self.hear(events);
            self.statuses.extend(self.family.reap().into_iter().map(|(_, status)| status));
            if self.signal.is_some_and(|(_, since)| since.elapsed() >= GRACE) {
                signal_all(&self.running(), Signal::SIGKILL);
            }
        }
        // What they have said last.
        let events = self.events.wait(Instant::now()).map_err(Error::System)?;
        self.hear(events);
        if let Some((signal, _)) = self.signal {
            return Ok(Outcome::Signal(signal).end());
        }
        let status = self.statuses.iter().map(shell_status).max().unwrap_or(1);
        if let Some(report) = self.report.filter(|_| status == 0) {
            self.progress.pass_on(&report);
        }
        Ok(ExitCode::from(status))
    }

    fn next_look(&self) -> Instant {
        /// Signals and ends wake it up.
        const LONG: Duration = Duration::from_secs(600);

        match self.signal {
            Some((_, since)) => since + GRACE,
            None => Instant::now() + LONG,
        }
    }

    fn hear(&mut self, events: Vec<Event>) {
        let partner = self.action.partner();
        // It writes its line before it lets the end of the image through, and so before the
        // other's next one. Between the looks at the two both may have come.
        let is_first = |event: &Event| matches!(event, Event::Line(role, _) if *role == partner);
        let (first, rest): (Vec<_>, Vec<_>) = events.into_iter().partition(is_first);
        for event in first.into_iter().chain(rest) {
            match event {
                // For CRIU's filter the whole image is one shard.
                Event::Line(role, line) if role != partner && line.starts_with('{') => {}
                // The image is whole before it is served; and what was captured or unpacked is
                // so at the end.
                Event::Line(role, line) if role == partner && self.action != Action::Serve => {
                    self.report = Some(line);
                }
                Event::Line(_, line) => self.progress.pass_on(&line),
                Event::Signal(Signal::SIGUSR1) => {
                    let partner: Vec<_> = self.family.running(partner).into_iter().collect();
                    signal_all(&partner, Signal::SIGUSR1);
                }
                Event::Signal(signal) => {
                    self.signal.get_or_insert((signal, Instant::now()));
                    signal_all(&self.running(), signal);
                }
                Event::Silent(_) | Event::ChildEnded | Event::FrontGone | Event::Asked(_) => {}
            }
        }
    }

    fn running(&self) -> Vec<Pid> {
        let both = [self.action.filter(), self.action.partner()];
        both.into_iter().filter_map(|role| self.family.running(role)).collect()
    }
}

/// A pipe for the lines of a filter: what it is to write to, while we listen.
fn speaker(events: &mut Events, role: Role) -> io::Result<OwnedFd> {
    let Pipe { read, write } = Pipe::new()?;
    events.listen(role, read)?;
    to_lend(write)
}

fn start(
    family: &mut Family,
    role: Role,
    mut command: Command,
    lent: &[&OwnedFd],
) -> Result<(), Error> {
    process::with_us(&mut command);
    // It may come before the filter listens.
    process::blocking(&mut command, Signal::SIGUSR1);
    lending(lent, || family.start(role, command).map(drop))
        .map_err(|error| Error::NotStarted(role, error))
}

/// A status as a shell has it.
fn shell_status(status: &ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1)
}
