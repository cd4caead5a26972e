//! What became of a checkpoint, for programs.

use super::peer::There;
use crate::tree::State;
use nix::unistd::Pid;
use serde::Serialize;
use std::fmt;
use std::time::Duration;
use wire_format::ImageId;

/// How far a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum End {
    Going,
    Done,
    Failed,
}

/// The facts.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) end: End,
    pub(super) bytes: u64,
    pub(super) frozen: Duration,
    pub(super) image: ImageId,
    /// The image that this one is an increment of.
    pub(super) parent: Option<ImageId>,
    /// What rounds have sent before, while the tree ran.
    pub(super) before: Option<u64>,
    pub(super) image_is_safe: bool,
    pub(super) process: Pid,
    pub(super) state: State,
    /// The host that the tree goes to, and what is known of it there.
    pub(super) there: Option<(String, There)>,
    pub(super) cause: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    result: End,
    process: i32,
    process_state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runs_at_host: Option<There>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_is_safe: Option<bool>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_before: Option<u64>,
    frozen_millis: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
}

impl Report {
    /// As one line of JSON.
    pub(super) fn json(&self) -> String {
        // In a migration there is no image that anybody could name.
        let is_stored = self.there.is_none();
        let line = Line {
            result: self.end,
            process: self.process.as_raw(),
            process_state: match self.state {
                State::Runs => "runs",
                State::Stopped => "stopped",
                State::Gone => "gone",
            },
            host: self.there.as_ref().map(|(host, _)| host.as_str()),
            runs_at_host: self.there.as_ref().map(|(_, there)| *there),
            image_id: is_stored.then(|| self.image.to_string()),
            parent_id: self.parent.map(|id| id.to_string()),
            image_is_safe: is_stored.then_some(self.image_is_safe),
            bytes: self.bytes,
            bytes_before: self.before,
            frozen_millis: self.frozen.as_millis() as u64,
            cause: self.cause.as_deref(),
        };
        // Numbers and strings in a struct: this has no way to fail.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// Where the tree is: the end of the last line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { process, state, .. } = self;
        match &self.there {
            None => write!(f, "process {process} {state}"),
            Some((host, There::No)) => {
                write!(f, "process {process} {state} here, and not at {host}")
            }
            Some((host, There::Perhaps)) => {
                write!(
                    f,
                    "process {process} {state} here, and perhaps runs at {host} too: look there"
                )
            }
            Some((host, There::Runs)) => {
                write!(f, "process {process} {state} here, and runs at {host}")
            }
        }
    }
}
