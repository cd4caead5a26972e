//! A user's command line, run by bash.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use tests::pipeline::command;

use crate::bench::{Bench, pid_of, programs, wait_for};

/// A script that runs in the background, in the scratch directory, with the
/// workspace's programs first in PATH. Its processes
/// are killed if the test ends before they do.
pub(crate) struct Pipeline {
    bash: Child,
    scratch: PathBuf,
    messages: PathBuf,
}

impl Pipeline {
    /// Its status is that of the last program in it that failed. `name` tells
    /// it from the test's other pipelines.
    pub(crate) fn start(bench: &Bench, name: &str, script: &str) -> Pipeline {
        let messages = bench.scratch().join(format!("{name}.messages"));
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", programs().display());
        let bash = command("bash")
            .args(["-c", &format!("set -o pipefail\n{script}")])
            .current_dir(bench.scratch())
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&messages).expect("create a file for messages"))
            .process_group(0)
            .spawn()
            .expect("start bash");
        Pipeline { bash, scratch: bench.scratch().to_path_buf(), messages }
    }

    /// Waits until `line` stands in the file `progress` of the scratch
    /// directory, and fails the test if the pipeline ends before.
    pub(crate) fn wait_for_progress(&mut self, progress: &str, line: &str) {
        wait_for(&format!("{line} in {progress}"), || {
            // In this order: what ended may have written the line just before.
            let ended = self.bash.try_wait().expect("look after bash").is_some();
            let written = fs::read_to_string(self.scratch.join(progress)).unwrap_or_default();
            let found = written.lines().any(|written| written == line);
            assert!(found || !ended, "no {line}; the pipeline ended:\n{}", self.messages());
            found.then_some(())
        });
    }

    /// The script's own process, or what that has executed.
    pub(crate) fn pid(&self) -> Pid {
        pid_of(&self.bash)
    }

    /// Sends a signal to all of them, as ^C at the keyboard does.
    pub(crate) fn signal(&self, signal: Signal) {
        killpg(pid_of(&self.bash), signal).expect("send a signal");
    }

    /// The exit status, as a shell shows it: 128 and more after a signal.
    pub(crate) fn status(&mut self) -> i32 {
        let status =
            wait_for("the pipeline's end", || self.bash.try_wait().expect("wait for bash"));
        status.code().or_else(|| Some(128 + status.signal()?)).expect("it has ended")
    }

    /// Fails the test, with the programs' messages, unless the status is 0.
    pub(crate) fn must_succeed(&mut self) {
        let status = self.status();
        assert_eq!(status, 0, "the pipeline's messages:\n{}", self.messages());
    }

    /// The last line that they have said.
    pub(crate) fn last_message(&self) -> String {
        self.messages().lines().last().unwrap_or_default().to_owned()
    }

    /// What the programs have said on standard error.
    pub(crate) fn messages(&self) -> String {
        fs::read_to_string(&self.messages).unwrap_or_default()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Unless bash has been reaped the number can't be anybody else's.
        if matches!(self.bash.try_wait(), Ok(None)) {
            let _ = killpg(pid_of(&self.bash), Signal::SIGKILL);
            let _ = self.bash.wait();
        }
    }
}
