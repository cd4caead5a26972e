//! What became of a restore, for programs.

use super::late::Late;
use serde::Serialize;
use std::time::Duration;

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum End {
    Going,
    Restored,
    Failed,
}

/// The facts.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) result: End,
    /// The root of the tree, where CRIU has told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) process: Option<i32>,
    /// Whether that is process 1 of a PID namespace.
    #[serde(rename = "pid_namespace")]
    pub(super) has_namespace: bool,
    pub(super) bytes: u64,
    /// How much memory has come, where it comes when the tree runs.
    #[serde(flatten)]
    pub(super) memory: Option<Late>,
    #[serde(rename = "duration_millis", serialize_with = "millis")]
    pub(super) duration: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<String>,
}

fn millis<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_millis() as u64)
}

impl Report {
    /// As one line of JSON.
    pub(super) fn json(&self) -> String {
        // Numbers and strings in a struct: this has no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
