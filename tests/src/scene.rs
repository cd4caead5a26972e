//! Where a command runs that holds a process: a directory of its own, an environment that all of
//! its processes can be told by, and what it leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::pipeline::{Filter, PATIENCE, program, wait_until};

/// In the environment of all processes of a scene.
const MARK: &str = "SCENE";

/// A directory, which is removed in the end.
#[derive(Debug)]
pub struct Scene {
    directory: TempDir,
    criu: PathBuf,
}

/// A process of a scene.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// What it executes, without its directory.
    pub name: String,
    /// Its number.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// What it was started with.
    pub arguments: String,
}

impl Default for Scene {
    fn default() -> Scene {
        Scene::new()
    }
}

impl Scene {
    /// With the stand-in for CRIU.
    pub fn new() -> Scene {
        Scene::with(program("stand-in-criu"))
    }

    /// With this CRIU.
    pub fn with(criu: PathBuf) -> Scene {
        let directory = TempDir::new().expect("a directory");
        fs::create_dir(directory.path().join("tmp")).expect("a directory for temporary files");
        Scene { directory, criu }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// What stands in a file; nothing if it is not there.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// A program that is to run here. The stand-in for CRIU adds its steps to the file `steps`.
    pub fn run(&self, name: &str) -> Filter {
        self.place(Filter::new(name))
    }

    /// The same, started with commands of the shell before it.
    pub fn run_after(&self, commands: &str, name: &str) -> Filter {
        self.place(Filter::after(commands, name))
    }

    /// Runs a program of any other start here.
    pub fn place(&self, filter: Filter) -> Filter {
        let mut path = program("criu-checkpoint");
        path.pop();
        let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap_or_default());
        filter
            .current_dir(self.path())
            .env(MARK, self.path())
            .env("PATH", path)
            .env("CRIU", &self.criu)
            .env("TMPDIR", self.file("tmp"))
            .env("STAND_IN_STEPS", self.file("steps"))
    }

    /// `criu-checkpoint -t PID OPTIONS -- COMMAND`, to be started.
    pub fn checkpoint(&self, pid: i32, options: &[&str], command: &str) -> Filter {
        let filter = self.run("criu-checkpoint").args(["-t", &pid.to_string()]);
        filter.args(options).args(["--", command])
    }

    /// `criu-restore OPTIONS -- COMMAND`, to be started.
    pub fn restore(&self, options: &[&str], command: &str) -> Filter {
        self.run("criu-restore").args(options).args(["--", command])
    }

    /// `criu-migrate -t PID OPTIONS -- COMMAND`, to be started. The other end is on this machine
    /// too, in a namespace that is there already: so the ids of the tree need not be free.
    pub fn migrate(&self, pid: i32, options: &[&str], command: &str) -> Filter {
        let filter = self.run("criu-migrate").args(["-t", &pid.to_string()]);
        let filter = filter.args(["--restore-options", "--join-ns none"]);
        filter.args(options).args(["--", command])
    }

    /// The processes that were started here and run, in the order of their names.
    pub fn processes(&self) -> Vec<Process> {
        let numbers = fs::read_dir("/proc").expect("list /proc").flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut found: Vec<Process> = numbers.filter_map(|pid| self.process(pid)).collect();
        found.sort();
        found
    }

    /// Those of one name, in the order in which they were started.
    pub fn processes_named(&self, name: &str) -> Vec<Process> {
        let mut found = self.processes();
        found.retain(|process| process.name == name);
        found.sort_by_key(|process| process.pid);
        found
    }

    fn process(&self, pid: i32) -> Option<Process> {
        let mark = format!("{MARK}={}", self.path().display());
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        environment.split(|byte| *byte == 0).find(|it| *it == mark.as_bytes())?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        if field("State:")?.trim().starts_with(['Z', 'X']) {
            return None;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments =
            String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
        let first = arguments.split(' ').next().unwrap_or_default();
        let mut name = first.rsplit('/').next().unwrap_or_default().to_owned();
        if arguments.contains(" --images-dir ") && arguments.contains(" --log-file ") {
            name = "criu".into();
        } else if name == "exe" {
            // The gate's script: /proc/PID/exe.
            name = "script".into();
        }
        Some(Process { name, pid, parent: field("PPid:")?.trim().parse().ok()?, arguments })
    }

    /// Waits until a step of the stand-in's is reached.
    #[track_caller]
    pub fn wait_for_step(&self, step: &str) {
        self.wait_until(&format!("the step {step}"), || {
            self.read("steps").lines().any(|line| line == step)
        });
    }

    /// Waits until a file is there.
    #[track_caller]
    pub fn wait_for_file(&self, name: &str) {
        self.wait_until(&format!("the file {name}"), || self.file(name).exists());
    }

    /// Waits until it is so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        wait_until(what, is_so);
    }

    /// What is left when nothing should be: processes, and temporary files but CRIU's logs, which
    /// are kept after a failure. Waits for what takes a moment. Without `with_files`, only
    /// processes count.
    pub fn left(&self, with_files: bool) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.processes();
            let files = self.temporary_files();
            if processes.is_empty() && (files.is_empty() || !with_files) {
                return None;
            }
            if Instant::now() >= deadline {
                return Some(format!("left: {processes:?} {files:?}"));
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// Fails the test unless nothing is left.
    #[track_caller]
    pub fn must_leave_nothing(&self) {
        assert_eq!(self.left(true), None);
    }

    /// What is in the directory for temporary files, but for logs that are kept.
    pub fn temporary_files(&self) -> Vec<String> {
        let files = fs::read_dir(self.file("tmp")).expect("list the temporary files").flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| !(name.starts_with("criu-") && name.ends_with(".log"))).collect()
    }
}
