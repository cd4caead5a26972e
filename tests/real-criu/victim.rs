//! The process tree that is dumped (`src/bin/victim`), seen from outside.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use tests::pipeline::command;

use crate::bench::{Bench, PATIENCE, pid_of, program, wait_for};

/// Killed, and its processes reaped, when the test ends.
pub(crate) struct Victim {
    directory: PathBuf,
    root: Child,
    tcp: bool,
}

/// What one of its threads says of itself in its status file.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pid: i32,
    step: u64,
    passes: u64,
}

/// All of them, by the names of the files.
pub(crate) type Statuses = BTreeMap<String, Status>;

impl Victim {
    /// Starts `victim tree` with `options`, and waits until all of it goes.
    pub(crate) fn start(bench: &Bench, options: &[&str]) -> Victim {
        let directory = bench.directory("victim");
        let root = command(program("victim"))
            .arg("tree")
            .arg(&directory)
            .args(options)
            .args((!bench.tcp()).then_some("--no-tcp"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the victim");
        let victim = Victim { directory, root, tcp: bench.tcp() };
        // Beyond the first turns, in which no heap has been rewritten yet.
        victim.wait_until("every process runs", |statuses| {
            statuses.len() >= 7 && statuses.values().all(|status| status.step > 60)
        });
        victim
    }

    pub(crate) fn pid(&self) -> i32 {
        pid_of(&self.root).as_raw()
    }

    /// From now on it is to answer on another port. Returns the one that it had.
    pub(crate) fn is_moved_to(&self, port: u16) -> u16 {
        let before = self.port();
        fs::write(self.directory.join("port"), port.to_string()).expect("write the port");
        before
    }

    /// The port on which it answers, unless CRIU can't dump TCP sockets.
    pub(crate) fn port(&self) -> u16 {
        let port = fs::read_to_string(self.directory.join("port")).expect("read the port");
        port.parse().expect("a port number")
    }

    /// Once CRIU has killed the tree: waits until its process ids are free, and
    /// returns the states in which it was dumped.
    pub(crate) fn reap(&mut self) -> Statuses {
        let statuses = self.statuses();
        // The children become this process's own only with their parent's end.
        wait_for("the root's end", || self.root.try_wait().expect("wait for the victim"));
        for pid in pids(&statuses) {
            wait_for(&format!("the end of process {pid}"), || is_gone(pid).then_some(()));
        }
        statuses
    }

    /// Fails the test unless every process goes on from where it was `dumped`,
    /// under the same process id, finds all of its state as it left it, and
    /// the one that listens on TCP answers.
    pub(crate) fn must_go_on(&self, dumped: &Statuses) {
        let deep = |name: &str| dumped[name].passes > 0;
        self.wait_until("every process goes on", |statuses| {
            statuses.iter().all(|(name, now)| {
                let then = &dumped[name];
                // Two more passes: the first may have begun before the dump.
                now.step > then.step && (!deep(name) || now.passes >= then.passes + 2)
            })
        });
        for (name, now) in self.statuses() {
            assert_eq!(now.pid, dumped[&name].pid, "{name}: another process id");
        }
        if self.tcp {
            self.must_answer_on_tcp(dumped);
        }
    }

    /// Fails the test if one of its processes runs, and frees their numbers.
    pub(crate) fn must_be_gone(&self, dumped: &Statuses, case: &str) {
        // Those that have ended are only zombies: a parent's end makes its children this process's.
        let pids = pids(dumped);
        let runs = |pid: &i32| self.owns(*pid);
        assert!(!pids.iter().any(runs), "{case}: {pids:?} run");
        wait_for("the numbers of the dead", || pids.iter().all(|pid| is_gone(*pid)).then_some(()));
    }

    /// Fails the test unless it accepts a connection on the port that it had,
    /// and answers with a count beyond the one at which it was `dumped`.
    fn must_answer_on_tcp(&self, dumped: &Statuses) {
        let mut answer = String::new();
        let mut connection = TcpStream::connect(("127.0.0.1", self.port())).expect("connect");
        connection.set_read_timeout(Some(PATIENCE)).expect("set the timeout");
        connection.read_to_string(&mut answer).expect("read the answer");
        let answer: u64 = answer.trim().parse().expect("a number");
        assert!(answer > dumped["member-1"].step, "answers {answer}, dumped at {dumped:?}");
    }

    /// What all of them say now. Fails the test if one says that it found its
    /// state damaged.
    pub(crate) fn statuses(&self) -> Statuses {
        let files = fs::read_dir(&self.directory).expect("list the victim's directory");
        let paths = files.map(|file| file.expect("list the victim's directory").path());
        let paths = paths.filter(|path| path.extension().is_some_and(|it| it == "status"));
        paths.filter_map(|path| Some((path.file_stem()?.to_str()?.into(), read(&path)?))).collect()
    }

    fn wait_until(&self, what: &str, condition: impl Fn(&Statuses) -> bool) {
        wait_for(what, || condition(&self.statuses()).then_some(()));
    }

    /// Is `pid` one of this tree's processes, and not somebody else's who has
    /// the number now? They all have the directory among their arguments.
    fn owns(&self, pid: i32) -> bool {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let directory = self.directory.as_os_str().as_encoded_bytes();
        arguments.split(|byte| *byte == 0).any(|argument| argument == directory)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.root.try_wait();
        // Not `statuses`, which may panic.
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        let mut pids: Vec<i32> = texts.filter_map(|text| field(&text, "pid")).collect();
        pids.push(self.pid());
        pids.sort_unstable();
        pids.dedup();
        for pid in pids.iter().copied().filter(|pid| self.owns(*pid)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // They become this process's children, to be reaped, one generation
        // after the other.
        for _ in 0..100 {
            pids.retain(|pid| !is_gone(*pid));
            if pids.is_empty() {
                break;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

fn pids(statuses: &Statuses) -> Vec<i32> {
    let mut pids: Vec<i32> = statuses.values().map(|status| status.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Reaps `pid` if it is a child that has ended. Is the number free?
fn is_gone(pid: i32) -> bool {
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// `None` if the file is only being written for the first time.
fn read(path: &Path) -> Option<Status> {
    let text = fs::read_to_string(path).ok()?;
    if let Some((_, error)) = text.split_once(" error=") {
        panic!("{} found its state damaged: {}", path.display(), error.trim());
    }

    let (step, passes) = (field(&text, "step")?, field(&text, "passes")?);
    Some(Status { pid: field(&text, "pid")?, step, passes })
}

fn field<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}
