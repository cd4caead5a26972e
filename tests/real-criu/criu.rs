//! Running `criu dump` and `criu restore`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::bench::wait_for;

/// The CRIU of this run, with the options that every dump and restore takes.
pub(crate) struct Criu {
    program: PathBuf,
}

/// How CRIU reads or writes the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// As files in the images directory.
    Files,
    /// Through the streamer that listens there.
    Stream,
}

impl Criu {
    pub(crate) fn new(program: PathBuf) -> Self {
        Criu { program }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Starts the dump of the tree under `pid`, with `options` besides the
    /// usual ones.
    pub(crate) fn dump(&self, image: Image, images: &Path, pid: i32, options: &[&str]) -> Run {
        let mut command = self.command("dump", image, images);
        command.args(["-t", &pid.to_string()]).args(options);
        Run::start(command, images.join("dump.log"))
    }

    /// Starts a restore; CRIU ends when the tree runs.
    pub(crate) fn restore(&self, image: Image, images: &Path, options: &[&str]) -> Run {
        let mut command = self.command("restore", image, images);
        command.arg("--restore-detached").args(options);
        Run::start(command, images.join("restore.log"))
    }

    fn command(&self, action: &str, image: Image, images: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(action).arg("-D").arg(images);
        command.args(["-v4", "-o", &format!("{action}.log")]);
        command.args(["--network-lock", "skip", "--tcp-established"]);
        if image == Image::Stream {
            command.arg("--stream");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// A CRIU that runs. It is killed if the test ends before it does.
pub(crate) struct Run {
    child: Child,
    log: PathBuf,
}

impl Run {
    fn start(mut command: Command, log: PathBuf) -> Self {
        // A CRIU that does not come as far as its log must not be taken for the one before it.
        let _ = fs::remove_file(&log);
        let child = command.spawn().expect("start criu");
        Run { child, log }
    }

    /// Waits until CRIU has ended. Did it succeed?
    pub(crate) fn succeeds(&mut self) -> bool {
        self.status().success()
    }

    fn status(&mut self) -> ExitStatus {
        wait_for("criu's end", || self.child.try_wait().expect("wait for criu"))
    }

    /// Fails the test, with CRIU's last words, unless CRIU succeeds.
    pub(crate) fn must_succeed(&mut self) {
        let status = self.status();
        assert!(status.success(), "criu failed ({status}):\n{}", self.last_words());
    }

    /// kill -9, and reap.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The errors in CRIU's log, and its end.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.len().saturating_sub(5);
        let errors = lines[..end].iter().filter(|line| line.contains("Error"));
        errors.chain(&lines[end..]).copied().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.kill();
    }
}
