//! The cells, checked and printed.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::pipeline::{Finished, Running};

use crate::scene::Scene;

/// How a filter must end.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Status 0, no message.
    Success,
    /// Status 0; it was asked for counters, and has told them.
    Counted,
    /// Status 1 and this message, in which `*` stands for anything.
    Refused(String),
    /// Status 2 and this message.
    Usage(String),
    /// By this signal, without a message.
    Killed(Signal),
    /// In any way that a user can see: success, a message, or a signal; but never a panic.
    Seen,
}

/// A message and status 1.
pub(crate) fn refused(message: impl Into<String>) -> End {
    End::Refused(message.into())
}

/// From the fault to the end, which takes 3 seconds where a command is deaf to SIGTERM. A machine
/// that compiles meanwhile takes longer.
const TIME_LIMIT: Duration = Duration::from_secs(12);

/// The cells of one filter.
pub(crate) struct Table {
    filter: &'static str,
    rows: Vec<String>,
    failures: Vec<String>,
}

impl Table {
    pub(crate) fn new(filter: &'static str) -> Table {
        Table { filter, rows: Vec::new(), failures: Vec::new() }
    }

    pub(crate) fn filter(&self) -> &'static str {
        self.filter
    }

    /// `act` starts the filter and makes the fault, at its very end.
    pub(crate) fn cell(
        &mut self,
        peer: &str,
        fault: &str,
        end: End,
        act: impl FnOnce(&Scene) -> Running,
    ) {
        let scene = Scene::new(self.filter);
        let running = act(&scene);
        let since = Instant::now();
        let finished = running.finish();
        let time = since.elapsed();
        let mut wrong = Vec::new();
        if let Some(cause) = differs(&end, &finished) {
            wrong.push(format!("{cause}: {}, said {:?}", finished.status, finished.stderr));
        }
        if time > TIME_LIMIT {
            wrong.push(format!("took {time:?}"));
        }
        let succeeded = finished.status.success();
        wrong.extend(scene.left_in_proc());
        wrong.extend(scene.left_on_disk(&finished.status));
        wrong.extend(scene.left_in_outputs(succeeded));
        let said = finished.stderr.first().map_or("", String::as_str);
        let said =
            said.strip_prefix(self.filter).map_or(said, |rest| rest.trim_start_matches(": "));
        self.row(peer, fault, &status(&finished), said, time);
        let cell = format!("{}, {peer}, {fault}", self.filter);
        self.failures.extend(wrong.into_iter().map(|wrong| format!("{cell}: {wrong}")));
    }

    /// A cell that this machine cannot have.
    pub(crate) fn skip(&mut self, peer: &str, fault: &str, reason: &str) {
        println!("skipped: {}, {peer}, {fault}: {reason}", self.filter);
    }

    fn row(&mut self, peer: &str, fault: &str, status: &str, said: &str, time: Duration) {
        let millis = time.as_millis();
        let said: String = said.chars().take(80).collect();
        let filter = self.filter;
        self.rows.push(format!(
            "{filter:17} | {peer:14} | {fault:44} | {status:7} | {millis:4} ms | {said}"
        ));
    }

    /// Fails the test if a cell is wrong.
    pub(crate) fn show(self) {
        assert!(
            self.failures.is_empty(),
            "{} wrong:\n{}",
            self.failures.len(),
            self.failures.join("\n")
        );
    }
}

impl Drop for Table {
    /// Also what was found before a cell has panicked.
    fn drop(&mut self) {
        println!("{}", self.rows.join("\n"));
    }
}

fn status(finished: &Finished) -> String {
    match (finished.status.code(), finished.status.signal().map(Signal::try_from)) {
        (Some(code), _) => code.to_string(),
        (None, Some(Ok(signal))) => signal.to_string(),
        _ => "?".into(),
    }
}

/// How the end differs from what it must be.
fn differs(end: &End, finished: &Finished) -> Option<String> {
    let Finished { name, status, stderr, .. } = finished;
    if stderr.iter().any(|line| line.contains("panicked")) {
        return Some("a panic".into());
    }
    let (code, message) = match end {
        End::Seen => {
            let silent = !status.success() && status.signal().is_none() && stderr.is_empty();
            return silent.then(|| "failed without a word".into());
        }
        End::Killed(signal) => {
            let right = status.signal() == Some(*signal as i32) && stderr.is_empty();
            return (!right).then(|| format!("not killed by {signal}"));
        }
        End::Counted => return (!status.success()).then(|| "not status 0".into()),
        End::Success => (0, None),
        End::Refused(message) => (1, Some(message)),
        End::Usage(message) => (2, Some(message)),
    };
    if status.code() != Some(code) {
        return Some(format!("not status {code}"));
    }
    let right = match (message, stderr.as_slice()) {
        (None, []) => true,
        (Some(message), [line]) => is_like(line, &format!("{name}: {message}")),
        _ => false,
    };
    (!right).then(|| format!("not the message {message:?}"))
}

/// Whether the line is the pattern, in which `*` stands for anything.
fn is_like(line: &str, pattern: &str) -> bool {
    let (first, rest) = pattern.split_once('*').unwrap_or((pattern, "*"));
    let Some(mut left) = line.strip_prefix(first) else { return false };
    if !pattern.contains('*') {
        return left.is_empty();
    }
    let parts: Vec<&str> = rest.split('*').collect();
    for part in &parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.is_empty() || parts.last() == Some(&"")
}
