//! Processes that know their memory: `storm.py`, which changes it in every way and checks it, and
//! any other that is dumped and restored as a whole.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::bench::{Bench, pid_of, skip, wait_for};
use crate::criu::Image;
use crate::pipeline::Pipeline;

/// Takes a dump into the file `image`.
pub(crate) const DUMP: &str = "criu-sock-capture -D dump -p 3 3>dump.progress > image";

/// Changes its memory in every way, and checks it: what it says in its status
/// file is how many operations it has done, or what it found wrong.
const STORM: &str = include_str!("storm.py");

/// What the processes of a herd execute.
const NAMES: [&str; 5] = ["python3", "true", "victim", "java", "redis-server"];

/// Processes that have one file among their arguments, and are killed when the test ends.
pub(crate) struct Herd {
    /// Who was started here, if anybody was.
    root: Option<Child>,
    /// The file.
    mark: PathBuf,
}

/// `storm.py`.
pub(crate) struct Storm {
    herd: Herd,
    status: PathBuf,
}

impl Herd {
    /// Starts a program. The file `mark` must be among its arguments and those of its children.
    pub(crate) fn start(mut command: Command, mark: &Path) -> std::io::Result<Herd> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Herd { root: Some(command.spawn()?), mark: mark.to_owned() })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.root.as_ref().map_or(0, |root| pid_of(root).as_raw())
    }

    /// Dumps it into the file `image`.
    pub(crate) fn dump(&mut self, bench: &Bench) {
        self.dump_process(bench, self.pid());
    }

    /// The same, where another process is the root.
    pub(crate) fn dump_process(&mut self, bench: &Bench, pid: i32) {
        let images = bench.directory("dump");
        let mut pipeline = Pipeline::start(bench, "dump", DUMP);
        pipeline.wait_for_progress("dump.progress", "socket-init");
        bench.criu.dump(Image::Stream, &images, pid, &[]).must_succeed();
        pipeline.must_succeed();
        self.must_be_gone();
    }

    /// kill -9, and wait for the end of all.
    pub(crate) fn kill(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.must_be_gone();
    }

    /// Waits until no process of the tree is left, and all its numbers are free.
    pub(crate) fn must_be_gone(&mut self) {
        wait_for("the end of the tree", || {
            let is_root_there = self.is_root_there();
            let reaped = reap();
            (self.processes().is_empty() && !reaped && !is_root_there).then_some(())
        });
    }

    fn is_root_there(&mut self) -> bool {
        let Some(root) = &mut self.root else { return false };
        let _ = root.try_wait();
        Path::new(&format!("/proc/{}", root.id())).exists()
    }

    /// All processes of the tree.
    fn processes(&self) -> Vec<i32> {
        let numbers = fs::read_dir("/proc").expect("list /proc").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let file = self.mark.as_os_str().as_encoded_bytes();
        let has_it = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(|argument| argument == file)
        };
        numbers.filter(has_it).collect()
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        for _ in 0..100 {
            let is_root_there = self.is_root_there();
            reap();
            let left = self.processes();
            if left.is_empty() && !is_root_there {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// Waits for processes of the tree that have ended: they are children of this
/// process by now. Were there any, or are there any that have not quite ended?
fn reap() -> bool {
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_of_a_tree = NAMES.iter().any(|name| stat.contains(&format!("({name})")));
        let has_ended = [") Z ", ") X "].iter().any(|state| stat.contains(state));
        if is_of_a_tree && has_ended {
            let flags = Some(WaitPidFlag::WNOHANG);
            found |= waitpid(Pid::from_raw(pid), flags).is_ok();
        }
    }
    found
}

impl Storm {
    /// So many processes with so much memory together. `None` where there is no
    /// Python that can do it.
    pub(crate) fn start(
        bench: &Bench,
        name: &str,
        processes: usize,
        megabytes: usize,
    ) -> Option<Storm> {
        Storm::start_by(bench, name, &["python3"], processes, megabytes)
    }

    /// Started by these words.
    pub(crate) fn start_by(
        bench: &Bench,
        name: &str,
        words: &[&str],
        processes: usize,
        megabytes: usize,
    ) -> Option<Storm> {
        let status = bench.scratch().join("storm.status");
        let mut python = Command::new(words[0]);
        python.args(&words[1..]).args(Storm::words(bench, processes, megabytes / processes));
        let Ok(herd) = Herd::start(python, &status) else {
            return skip(name, "no python3 here to change memory");
        };
        let storm = Storm { herd, status };
        storm.must_go_on();
        Some(storm)
    }

    /// Started by somebody else, with [`Storm::words`].
    pub(crate) fn of(bench: &Bench) -> Storm {
        let status = bench.scratch().join("storm.status");
        Storm { herd: Herd { root: None, mark: status.clone() }, status }
    }

    /// What python3 is to be started with, for so many processes with so much memory each.
    pub(crate) fn words(bench: &Bench, processes: usize, megabytes: usize) -> Vec<String> {
        let program = bench.scratch().join("storm.py");
        fs::write(&program, STORM).expect("write a program");
        let status = bench.scratch().join("storm.status");
        let paths = [program, status].map(|path| path.display().to_string());
        paths.into_iter().chain([processes.to_string(), megabytes.to_string()]).collect()
    }

    /// From now on the operations are others.
    pub(crate) fn reseed(&self, seed: u64) {
        let link = self.status.with_extension("seed");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(seed.to_string(), link).expect("write a seed");
    }

    /// What the processes have said by now.
    pub(crate) fn note(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = (0..8).map(|index| self.status.with_extension(index.to_string()));
        paths.filter_map(|path| Some((path.clone(), fs::read(path).ok()?))).collect()
    }

    /// Puts that in the place of what was said since. For CRIU the files stay as they were.
    pub(crate) fn set_back(&self, noted: &[(PathBuf, Vec<u8>)]) {
        for (path, text) in noted {
            let file = fs::File::options().write(true).open(path);
            file.and_then(|mut file| file.write_all(text)).expect("write a status");
        }
    }

    /// Fails the test unless operations follow.
    pub(crate) fn must_go_on(&self) {
        let before = self.operations();
        wait_for("operations", || (self.operations() > before + 20).then_some(()));
    }

    /// How many operations were done. Fails the test if one has found wrong
    /// memory.
    pub(crate) fn operations(&self) -> u64 {
        let mut sum = 0;
        for index in 0..8 {
            let path = self.status.with_extension(index.to_string());
            let text = fs::read_to_string(path).unwrap_or_default();
            assert!(!text.contains("wrong"), "process {index} found {text}");
            sum += text.trim().parse::<u64>().unwrap_or(0);
        }
        sum
    }

    pub(crate) fn pid(&self) -> i32 {
        self.herd.pid()
    }

    pub(crate) fn dump(&mut self, bench: &Bench) {
        self.herd.dump(bench);
    }

    pub(crate) fn dump_process(&mut self, bench: &Bench, pid: i32) {
        self.herd.dump_process(bench, pid);
    }

    pub(crate) fn kill(&mut self) {
        self.herd.kill();
    }

    pub(crate) fn must_be_gone(&mut self) {
        self.herd.must_be_gone();
    }
}
