//! Starting our programs with whatever descriptors a shell could give them, and
//! watching what a user would see: messages, progress lines, bytes, status. What
//! is started here is killed when its time is up or its test fails, so nothing
//! hangs: blocked reads and writes end, and the test says who was too slow.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::criu::pipe;

/// How long a program may run unless a test says otherwise, on a busy machine too.
const TIME_LIMIT: Duration = Duration::from_secs(90);

/// How long a test waits for what must come, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it is so.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The descriptor that [`Filter::progress_apart`] uses.
const PROGRESS_FD: i32 = 9;

/// Where cargo put the program: beside this test's own directory.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let program = profile.join(name);
    assert!(
        program.exists(),
        "{} isn't there: run `cargo build --workspace` (with the tests' profile) first",
        program.display()
    );
    program
}

/// A command that starts with every signal at its default. Whoever has started the tests may have
/// them ignored: `nohup` does so with SIGHUP, the `&` of a script with SIGINT and SIGQUIT. A program
/// keeps that, and not even the `trap` of a shell changes it.
pub fn command(name: impl AsRef<OsStr>) -> Command {
    static IGNORES: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").expect("our own status");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // Rust ignores SIGPIPE, and gives it back to what it starts.
        mask.expect("a mask") & !(1 << (Signal::SIGPIPE as i32 - 1)) != 0
    });
    if !*IGNORES {
        return Command::new(name);
    }
    // Not by a PATH, which a test may empty.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal").arg(name);
    command
}

/// What starts a program so that a system call fails, as if the kernel were older or a sandbox
/// forbade it, and logs that; `None` where there is no strace(1), or it may not do so.
pub fn without_call(call: &str, error: &str, log: &Path) -> Option<Vec<String>> {
    let [trace, inject] = [format!("trace={call}"), format!("inject={call}:error={error}")];
    let log = log.to_str().expect("a plain name");
    let strace = ["strace", "-f", "-qq", "-e", &trace, "-e", &inject, "-o", log];
    let works = Command::new(strace[0]).args(&strace[1..]).arg("true").output();
    let works = works.is_ok_and(|output| output.status.success());
    works.then(|| strace.map(str::to_owned).to_vec())
}

/// A program that is about to be started. Its standard input and output are
/// `/dev/null` unless said otherwise; its standard error is watched.
#[derive(Debug)]
pub struct Filter {
    name: String,
    command: Command,
    fds: Vec<FdMapping>,
    progress: Option<Lines>,
    limit: Duration,
}

impl Filter {
    /// The program of this name.
    pub fn new(name: &str) -> Self {
        Self::started_as(name, command(program(name)))
    }

    /// The program of this name, started by `launcher`: words to which its path and its arguments
    /// are added, and which put it into their own place (`setpriv …`, `sh -c '…; exec "$0" "$@"'`).
    pub fn under(launcher: &[&str], name: &str) -> Self {
        let (first, rest) = launcher.split_first().expect("a launcher");
        let mut command = command(first);
        command.args(rest).arg(program(name));
        Self::started_as(name, command)
    }

    /// The program of this name, started with commands of the shell before it, such as
    /// `ulimit -n 8` or `exec <&-`.
    pub fn after(commands: &str, name: &str) -> Self {
        Self::under(&["bash", "-c", &format!("{commands}\nexec \"$0\" \"$@\"")], name)
    }

    fn started_as(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let name = name.into();
        Self { name, command, fds: Vec::new(), progress: None, limit: TIME_LIMIT }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, |filter, argument| filter.arg(argument))
    }

    /// The program's standard error goes there, and is not watched.
    pub fn stderr_to(mut self, endpoint: impl Into<OwnedFd>) -> Self {
        self.command.stderr(endpoint.into());
        self
    }

    /// In this directory.
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// With this in its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// As a user without privileges, if the test has any.
    pub fn unprivileged(mut self) -> Self {
        const NOBODY: u32 = 65534;
        if nix::unistd::geteuid().is_root() {
            self.command.gid(NOBODY).uid(NOBODY);
        }
        self
    }

    /// The program inherits `endpoint` as its descriptor `number`.
    pub fn fd(mut self, number: i32, endpoint: impl Into<OwnedFd>) -> Self {
        self.fds.push(FdMapping { parent_fd: endpoint.into(), child_fd: number });
        self
    }

    /// The program's standard input.
    pub fn stdin(mut self, endpoint: impl Into<OwnedFd>) -> Self {
        self.command.stdin(endpoint.into());
        self
    }

    /// The program's standard output.
    pub fn stdout(mut self, endpoint: impl Into<OwnedFd>) -> Self {
        self.command.stdout(endpoint.into());
        self
    }

    /// Progress lines go to a descriptor of their own (`-p`), so that standard
    /// error holds only messages.
    pub fn progress_apart(mut self) -> Self {
        let (read_end, write_end) = pipe(None).expect("a pipe for the progress lines");
        self.progress = Some(Lines::of(read_end));
        self.arg("-p").arg(PROGRESS_FD.to_string()).fd(PROGRESS_FD, write_end)
    }

    /// The program is killed when it still runs after this time.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the program.
    pub fn start(mut self) -> Running {
        self.command.fd_mappings(self.fds).expect("no descriptor is given twice");
        let mut child = self.command.spawn().expect("the program starts");
        // Without a pipe of ours there is nothing to watch.
        let stderr = match child.stderr.take() {
            Some(stderr) => Lines::of(OwnedFd::from(stderr)),
            None => Lines::none(),
        };
        let pid = Pid::from_raw(child.id() as i32);
        let child = Arc::new(Mutex::new(child));
        let _watch = watch(Arc::clone(&child), self.limit);
        let deadline = Instant::now() + self.limit;
        Running { name: self.name, pid, child, stderr, progress: self.progress, deadline, _watch }
    }

    /// Runs the program to its end with these bytes on its standard input, and
    /// collects its standard output.
    pub fn run(self, input: &[u8]) -> Finished {
        let (stdin, feed) = pipe(None).expect("a pipe for stdin");
        let (collect, stdout) = pipe(None).expect("a pipe for stdout");
        let running = self.stdin(stdin).stdout(stdout).start();
        let output = collect_from(collect);
        write_until_refused(feed, input);
        let mut finished = running.finish();
        finished.stdout = output.join().expect("stdout is collected");
        finished
    }
}

/// Kills the child when the time is up. The sender's drop calls it off.
fn watch(child: Arc<Mutex<Child>>, limit: Duration) -> Sender<()> {
    let (call_off, called_off) = channel();
    thread::spawn(move || {
        if called_off.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let _ = child.lock().expect("the child").kill();
        }
    });
    call_off
}

/// A program that was started. Dropping it kills the program.
#[derive(Debug)]
pub struct Running {
    name: String,
    pid: Pid,
    child: Arc<Mutex<Child>>,
    stderr: Lines,
    progress: Option<Lines>,
    deadline: Instant,
    _watch: Sender<()>,
}

impl Running {
    /// The program's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What it writes on its standard error.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Its progress lines, where they go by its options.
    pub fn progress(&self) -> &Lines {
        self.progress.as_ref().unwrap_or(&self.stderr)
    }

    /// Waits for this progress line.
    pub fn wait_for(&self, line: &str) -> &Self {
        self.progress().wait_for(&format!("{}: the line {line:?}", self.name), |seen| seen == line);
        self
    }

    /// Waits until the program catches the signal, then sends it.
    pub fn signal_when_caught(&self, signal: Signal) {
        let caught = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
            let status = status.unwrap_or_default();
            // Blocked counts too: a signalfd reads what is blocked.
            let masks = status.lines().filter_map(|line| {
                let mask = line.strip_prefix("SigCgt:").or_else(|| line.strip_prefix("SigBlk:"))?;
                u64::from_str_radix(mask.trim(), 16).ok()
            });
            masks.fold(0, |all, mask| all | mask) >> (signal as i32 - 1) & 1 == 1
        };
        wait_until(&format!("{} catches {signal}", self.name), caught);
        self.signal(signal);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the program is there");
    }

    /// Hundredths of a second that the program has computed, for itself and in the kernel.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("its stat");
        let (_, fields) = stat.rsplit_once(") ").expect("its fields");
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
    }

    /// Whether the program still runs.
    pub fn is_running(&self) -> bool {
        self.child.lock().expect("the child").try_wait().expect("the child").is_none()
    }

    /// Waits for the program's end. Panics if its time was up.
    pub fn finish(self) -> Finished {
        let status = loop {
            if let Some(status) = self.child.lock().expect("the child").try_wait().expect("wait") {
                break status;
            }
            thread::sleep(Duration::from_micros(500));
        };
        let stderr = self.stderr.all();
        let timed_out = status.signal() == Some(9) && Instant::now() >= self.deadline;
        assert!(!timed_out, "{} hung and was killed; it had said {stderr:?}", self.name);
        let progress = self.progress().all();
        Finished { name: self.name.clone(), status, stdout: Vec::new(), stderr, progress }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut child = match self.child.lock() {
            Ok(child) => child,
            Err(poisoned) => poisoned.into_inner(),
        };
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// What is left of a program: what its user saw.
#[derive(Debug)]
pub struct Finished {
    /// The program's name.
    pub name: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output, if it was collected.
    pub stdout: Vec<u8>,
    /// The lines on its standard error.
    pub stderr: Vec<String>,
    /// The lines on its progress descriptor.
    pub progress: Vec<String>,
}

impl Finished {
    /// The program did everything that was asked for.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        let Self { name, status, stderr, .. } = self;
        assert!(status.success(), "{name}: {status}, said {stderr:?}");
        self
    }

    /// The program exited with `code` and said why in one line that starts with
    /// its name. Needs [`Filter::progress_apart`].
    #[track_caller]
    pub fn refused(&self, code: i32, case: &str) -> &Self {
        let Self { name, status, stderr, .. } = self;
        assert_eq!(status.code(), Some(code), "{name}, {case}: {status}, said {stderr:?}");
        assert_eq!(stderr.len(), 1, "{name}, {case}: not one line: {stderr:?}");
        let said = stderr[0].strip_prefix(&format!("{name}: "));
        let cause = said.unwrap_or_else(|| panic!("{name}, {case}: no name first: {stderr:?}"));
        assert!(!cause.trim().is_empty(), "{name}, {case}: no cause: {stderr:?}");
        self
    }

    /// The same with exit status 1 and a line `PROGRAM: place: cause`.
    #[track_caller]
    pub fn refused_with_a_place(&self, case: &str) -> &Self {
        self.refused(1, case);
        let parts = self.stderr[0].splitn(3, ": ").filter(|part| !part.is_empty()).count();
        assert_eq!(parts, 3, "{case}: not `PROGRAM: place: cause`: {:?}", self.stderr);
        self
    }

    /// The sizes in the JSON line with which the progress ends, in bytes.
    #[track_caller]
    pub fn shard_sizes(&self) -> Vec<u64> {
        let line = self.progress.iter().rfind(|line| line.starts_with('{'));
        let line = line.unwrap_or_else(|| panic!("{}: no JSON in {:?}", self.name, self.progress));
        shard_sizes(line)
    }
}

/// The sizes in a final JSON line, in bytes; panics if it isn't one.
#[track_caller]
pub fn shard_sizes(line: &str) -> Vec<u64> {
    let json: serde_json::Value = serde_json::from_str(line).expect("the line is JSON");
    let shards = json["shards"].as_array().unwrap_or_else(|| panic!("no shards in {line}"));
    let number = |shard: &serde_json::Value, key: &str| {
        shard[key].as_u64().unwrap_or_else(|| panic!("no number {key:?} in {line}"))
    };
    shards
        .iter()
        .map(|shard| {
            number(shard, "transfer_duration_millis");
            number(shard, "size")
        })
        .collect()
}

/// The lines that come out of a descriptor, as they come.
#[derive(Clone, Debug)]
pub struct Lines(Arc<(Mutex<Seen>, Condvar)>);

#[derive(Clone, Debug, Default)]
struct Seen {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Collects from `endpoint` until its end.
    pub fn of(endpoint: OwnedFd) -> Self {
        let lines = Self(Arc::default());
        let collected = lines.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(File::from(endpoint));
            let (seen, changed) = &*collected.0;
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_string();
                seen.lock().expect("the lines").lines.push(text);
                changed.notify_all();
                line.clear();
            }
            seen.lock().expect("the lines").ended = true;
            changed.notify_all();
        });
        lines
    }

    /// No lines, and their end.
    fn none() -> Self {
        let lines = Self(Arc::default());
        lines.0.0.lock().expect("the lines").ended = true;
        lines
    }

    /// The lines so far.
    pub fn so_far(&self) -> Vec<String> {
        self.0.0.lock().expect("the lines").lines.clone()
    }

    /// Waits for a line that `is_it`; panics with `what` when none comes.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let found = |seen: &Seen| seen.lines.iter().find(|line| is_it(line)).cloned();
        let seen = self.wait_until(what, |seen| seen.ended || found(seen).is_some());
        found(&seen).unwrap_or_else(|| panic!("{what} never came, only {:?}", seen.lines))
    }

    /// All lines, after the end.
    pub fn all(&self) -> Vec<String> {
        self.wait_until("the end of the lines", |seen| seen.ended).lines
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Seen {
        let (seen, changed) = &*self.0;
        let (guard, limit) = changed
            .wait_timeout_while(seen.lock().expect("the lines"), TIME_LIMIT, |seen| !is_so(seen))
            .expect("the lines");
        let seen = guard.clone();
        // A panic while the lines are locked would poison them for their collector.
        drop(guard);
        let lines = &seen.lines;
        assert!(!limit.timed_out(), "{what}: too late, only {lines:?}");
        seen
    }
}

/// Collects what comes out of `endpoint` until its end, in the background.
pub fn collect_from(endpoint: impl Into<OwnedFd>) -> JoinHandle<Vec<u8>> {
    let mut endpoint = File::from(endpoint.into());
    thread::spawn(move || {
        let mut content = Vec::new();
        endpoint.read_to_end(&mut content).expect("the endpoint can be read");
        content
    })
}

/// Writes `bytes` and closes; a reader that goes away before is no error.
pub fn write_until_refused(endpoint: OwnedFd, bytes: &[u8]) {
    let _ = File::from(endpoint).write_all(bytes);
}
