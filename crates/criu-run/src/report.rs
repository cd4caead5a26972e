//! Telling what happens: a line for each event, and a command of the user's.

use nix::unistd::Pid;
use serde::Serialize;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use supervise::shell::{Part, Shell};
use supervise::tell::Voice;

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The program was started.
    Started { process: i32 },
    /// The program goes on from its image.
    Restored { process: i32, bytes: u64, duration_millis: u64 },
    /// So much of its memory has come, and is still to come, in bytes.
    Filling { filled: u64, left: u64 },
    /// All of its memory is there.
    Filled { filled: u64, fill_duration_millis: u64 },
    /// A checkpoint or a snapshot has begun.
    Freezing { snapshot: bool },
    /// A snapshot is safe.
    Snapshot(Figures),
    /// The image is safe, and the program has gone.
    Checkpointed(Figures),
    /// There is no new image.
    Failed { snapshot: bool, cause: String },
    /// The program has ended.
    Ended { status: i32 },
}

/// The figures of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    pub(crate) bytes: u64,
    pub(crate) frozen_millis: u64,
    /// While it was frozen.
    pub(crate) bytes_per_second: u64,
}

impl Figures {
    pub(crate) fn new(bytes: u64, frozen_millis: u64) -> Figures {
        let bytes_per_second = bytes.saturating_mul(1000) / frozen_millis.max(1);
        Figures { bytes, frozen_millis, bytes_per_second }
    }
}

/// How events are told.
pub(crate) struct Teller {
    pub(crate) voice: Voice,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) command: Option<String>,
    pub(crate) shell: Shell,
    pub(crate) began: Instant,
    /// The commands that run.
    pub(crate) running: Vec<Pid>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: u64,
    uptime_millis: u64,
    #[serde(flatten)]
    event: &'a Event,
}

impl Teller {
    pub(crate) fn tell(&mut self, event: &Event) {
        let line = self.line(event);
        match (self.json, self.quiet) {
            (true, _) => self.voice.pass_on(&line),
            (false, false) => self.say(event),
            (false, true) => {}
        }
        // This one comes every second.
        if !matches!(event, Event::Filling { .. }) {
            self.run_command(event, &line);
        }
    }

    fn line(&self, event: &Event) -> String {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            time: time.as_secs(),
            uptime_millis: self.began.elapsed().as_millis() as u64,
            event,
        };
        // Numbers and strings in a struct: this has no way to fail.
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// criu-checkpoint and criu-restore tell of the rest.
    fn say(&self, event: &Event) {
        match event {
            Event::Started { process } => {
                self.voice.say(format_args!("started: process {process}"))
            }
            Event::Restored { process, .. } => {
                self.voice.say(format_args!("goes on from its image: process {process}"));
            }
            Event::Failed { snapshot: true, .. } => {
                self.voice.say("no snapshot; the one before it counts");
            }
            Event::Failed { snapshot: false, .. } => self.voice.say("no checkpoint"),
            Event::Freezing { snapshot: true } => self.voice.say("snapshot"),
            Event::Freezing { snapshot: false } => self.voice.say("checkpoint"),
            Event::Ended { status } => self.voice.say(format_args!("ended: status {status}")),
            Event::Filling { .. }
            | Event::Filled { .. }
            | Event::Snapshot(_)
            | Event::Checkpointed(_) => {}
        }
    }

    fn run_command(&mut self, event: &Event, line: &str) {
        let Some(text) = &self.command else { return };
        let part = Part { shard: None, image: None, parent: None };
        let mut command: Command = self.shell.command(text, part, &[0, 1]);
        command.env("EVENT", event.name()).env("EVENT_JSON", line);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        match command.spawn() {
            Ok(child) => self.running.push(Pid::from_raw(child.id() as i32)),
            Err(error) => {
                let reason = pipe_io::reason(&error);
                self.voice.say(format_args!("the command of --on-event: {reason}"));
            }
        }
    }
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Event::Started { .. } => "started",
            Event::Restored { .. } => "restored",
            Event::Filling { .. } => "filling",
            Event::Filled { .. } => "filled",
            Event::Freezing { .. } => "freezing",
            Event::Snapshot(_) => "snapshot",
            Event::Checkpointed(_) => "checkpointed",
            Event::Failed { .. } => "failed",
            Event::Ended { .. } => "ended",
        }
    }
}
