//! What became of a checkpoint, for programs.

use crate::tree::State;
use nix::unistd::Pid;
use serde::Serialize;
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
    pub(super) image_is_safe: bool,
    pub(super) process: Pid,
    pub(super) state: State,
    pub(super) cause: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    result: End,
    process: i32,
    process_state: &'static str,
    image_id: String,
    image_is_safe: bool,
    bytes: u64,
    frozen_millis: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
}

impl Report {
    /// As one line of JSON.
    pub(super) fn json(&self) -> String {
        let line = Line {
            result: self.end,
            process: self.process.as_raw(),
            process_state: match self.state {
                State::Runs => "runs",
                State::Stopped => "stopped",
                State::Gone => "gone",
            },
            image_id: self.image.to_string(),
            image_is_safe: self.image_is_safe,
            bytes: self.bytes,
            frozen_millis: self.frozen.as_millis() as u64,
            cause: self.cause.as_deref(),
        };
        // Numbers and strings in a struct: this has no way to fail.
        serde_json::to_string(&line).unwrap_or_default()
    }
}
