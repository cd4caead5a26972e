//! A process with much memory, for the real CRIU to dump.

use crate::Error;
use crate::memory::{Memory, PAGE};
use nix::unistd;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

/// There when the memory is filled.
pub(crate) const READY: &str = "ready";
/// Made to have the memory checked, after which it is gone and [`CHECKED`] is there.
pub(crate) const CHECK: &str = "check";
/// Made to have it touch some of its memory, after which it is gone and [`ANSWERED`] is there.
pub(crate) const ASK: &str = "ask";
/// Its first progress.
pub(crate) const ANSWERED: &str = "answered";
/// `ok`, or what is damaged.
pub(crate) const CHECKED: &str = "checked";

/// Until killed. CRIU wants to see nothing of the caller's session and descriptors.
pub(crate) fn run(directory: &Path, megabytes: &str) -> Result<ExitCode, Error> {
    let directory = fs::canonicalize(directory)?;
    unistd::setsid()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&null)?;
    drop(null);

    let memory = Memory::new(megabytes.parse::<usize>()? * (1 << 20) / PAGE);
    fs::write(directory.join(READY), "")?;
    loop {
        if fs::remove_file(directory.join(ASK)).is_ok() && memory.is_whole_here_and_there() {
            fs::write(directory.join(ANSWERED), "")?;
        }
        if fs::remove_file(directory.join(CHECK)).is_ok() {
            let verdict = match memory.first_damaged() {
                None => "ok".to_owned(),
                Some(page) => format!("page {page} is damaged"),
            };
            // Whole from its first moment on.
            fs::write(directory.join("checking"), verdict)?;
            fs::rename(directory.join("checking"), directory.join(CHECKED))?;
        }
        sleep(Duration::from_millis(5));
    }
}
