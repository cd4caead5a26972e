//! How much memory has come, where it comes when the tree runs.

use pipe_io::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What `image-serve --lazy` has said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Late {
    filled: u64,
    left: u64,
    fill_duration_millis: u64,
}

impl Late {
    /// Takes note of a progress line; `false` if it is about something else.
    pub(super) fn hear(&mut self, line: &str) -> bool {
        let told = serde_json::from_str(line).ok();
        *self = told.unwrap_or(*self);
        told.is_some() || line == "restored"
    }

    /// Whether some is known to be still to come.
    pub(super) fn is_coming(self) -> bool {
        self.left > 0
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Late { filled, left, fill_duration_millis } = *self;
        if left > 0 && filled == 0 {
            return write!(f, "{} to come", Bytes(left));
        }
        let seconds = fill_duration_millis as f64 / 1e3;
        write!(f, "filled: {}, in {seconds:.1} s", Bytes(filled))?;
        if left > 0 { write!(f, "; {} to come", Bytes(left)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_about_memory_are_heard() {
        let mut late = Late::default();
        assert!(late.hear("restored"));
        assert_eq!((late, late.is_coming()), (Late::default(), false));
        assert!(late.hear(r#"{"filled":0,"left":8000000,"fill_duration_millis":0}"#));
        assert_eq!((late.to_string().as_str(), late.is_coming()), ("8.0 MB to come", true));
        assert!(late.hear(r#"{"filled":3000000,"left":5000000,"fill_duration_millis":1500}"#));
        let told = late.to_string();
        assert!(told.contains("in 1.5 s") && told.contains("to come"), "{told}");
        for line in ["socket-init", "{}", r#"{"shards":[{"size":3}]}"#] {
            assert!(!late.hear(line), "{line}");
        }
        assert_eq!(late.filled, 3_000_000);
    }
}
