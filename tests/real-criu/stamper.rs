//! A process that stamps its memory with rising numbers, and images of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use tests::pipeline::command;

use crate::bench::{Bench, pid_of, program, wait_for};

/// `victim stamp`; killed, and reaped, when the test ends.
pub(crate) struct Stamper {
    file: PathBuf,
    megabytes: usize,
    child: Child,
}

impl Stamper {
    pub(crate) fn start(bench: &Bench, megabytes: usize) -> Stamper {
        let file = bench.scratch().join("generation");
        let child = command(program("victim"))
            .arg("stamp")
            .arg(&file)
            .arg(megabytes.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the victim");
        let stamper = Stamper { file, megabytes, child };
        wait_for("the first generations", || (stamper.generation() > 2).then_some(()));
        stamper
    }

    pub(crate) fn pid(&self) -> i32 {
        pid_of(&self.child).as_raw()
    }

    /// The last that is complete; 0 if there is none yet.
    pub(crate) fn generation(&self) -> u64 {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Fails the test unless generation follows generation.
    pub(crate) fn must_run(&self) {
        let seen = self.generation();
        wait_for("more generations", || (self.generation() > seen + 1).then_some(()));
    }

    /// Fails the test unless the process is dead, and reaps it.
    pub(crate) fn must_be_gone(&mut self) {
        let ended = self.child.try_wait().expect("wait for the victim");
        assert!(ended.is_some(), "the process {} is still there", self.pid());
    }

    /// Whether the process is there, in whatever state.
    pub(crate) fn is_there(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    }

    /// The pages of this process in the `pages-*.img` of a directory: their
    /// generations, in the order of the pages.
    pub(crate) fn generations(&self, images: &Path) -> Vec<u64> {
        const PAGE: usize = 4096;
        let mut stamps = Vec::new();
        for file in fs::read_dir(images).expect("list the image") {
            let path = file.expect("list the image").path();
            if !path.file_name().is_some_and(|it| it.to_string_lossy().starts_with("pages-")) {
                continue;
            }
            let pages = fs::read(path).expect("read the pages");
            stamps.extend(pages.chunks_exact(PAGE).filter_map(|page| {
                let stamp = page.strip_prefix(b"stamped!")?;
                let word = |at: usize| u64::from_le_bytes(*stamp[at..].first_chunk().expect("8"));
                Some((word(0), word(8)))
            }));
        }
        stamps.sort_unstable();
        let indices: Vec<u64> = stamps.iter().map(|(index, _)| *index).collect();
        let all: Vec<u64> = (0..(self.megabytes << 20 >> 12) as u64).collect();
        assert!(indices == all, "{} pages instead of {}", indices.len(), all.len());
        stamps.into_iter().map(|(_, generation)| generation).collect()
    }
}

/// Whether these are of one moment: at most two neighbouring generations, the
/// newer one in an unbroken prefix.
pub(crate) fn are_of_one_moment(generations: &[u64]) -> bool {
    let newest = generations.first().copied().unwrap_or(0);
    let prefix = generations.iter().take_while(|generation| **generation == newest).count();
    generations[prefix..].iter().all(|generation| *generation + 1 == newest)
}

impl Drop for Stamper {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid());
        let _ = self.child.try_wait();
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let file = self.file.as_os_str().as_encoded_bytes();
        if arguments.split(|byte| *byte == 0).any(|argument| argument == file) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // Restored, it is a child of this process all the same.
        for _ in 0..100 {
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            if !Path::new(&format!("/proc/{pid}")).exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
