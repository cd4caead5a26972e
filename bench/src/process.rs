//! Starting programs, and what they cost.

use crate::Error;
use crate::results::ProcessCost;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A program that is about to be started.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    command: Command,
    inherited: Vec<OwnedFd>,
    is_filter: bool,
    huge_pages: bool,
}

impl Program {
    /// One of the filters, which are beside this program.
    pub(crate) fn filter(name: &str) -> Result<Program, Error> {
        let own = std::env::current_exe()?;
        Program::filter_of(own.parent().ok_or("this program is in no directory")?, name)
    }

    /// The filter of this name in another directory.
    pub(crate) fn filter_of(directory: &Path, name: &str) -> Result<Program, Error> {
        let path = directory.join(name);
        match path.exists() {
            true => Ok(Program::new(&path)),
            false => Err(format!("{} isn't there", path.display()).into()),
        }
    }

    /// Any program, counted among the filters. Nothing comes to its standard input, and nobody
    /// sees its standard output.
    pub(crate) fn new(path: &Path) -> Program {
        let mut command = Command::new(path);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Program { name, command, inherited: Vec::new(), is_filter: true, huge_pages: true }
    }

    /// Not counted: CRIU itself.
    pub(crate) fn aside(mut self) -> Program {
        self.is_filter = false;
        self
    }

    /// As on a machine that has none.
    pub(crate) fn without_huge_pages(mut self) -> Program {
        self.huge_pages = false;
        self
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Program {
        self.command.args(arguments);
        self
    }

    pub(crate) fn stdin(mut self, fd: OwnedFd) -> Program {
        self.command.stdin(fd);
        self
    }

    pub(crate) fn stdout(mut self, fd: OwnedFd) -> Program {
        self.command.stdout(fd);
        self
    }

    /// An option whose value is the numbers of descriptors, which the program inherits.
    pub(crate) fn fds(self, option: &str, fds: Vec<OwnedFd>) -> Program {
        let numbers: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let mut program = self.arg(option).arg(numbers.join(","));
        program.inherited.extend(fds);
        program
    }

    /// Descriptors keep their numbers, so that nothing has to be done between fork and exec, and
    /// the memory of this process is not copied. No other thread starts programs.
    fn start(mut self) -> Result<Running, Error> {
        for fd in &self.inherited {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // A new program has what this one has at that moment.
        prctl::set_thp_disable(!self.huge_pages)?;
        let spawned = self.command.spawn();
        prctl::set_thp_disable(false)?;
        match spawned {
            Ok(child) => Ok(Running { name: self.name, child, is_filter: self.is_filter }),
            Err(error) => Err(format!("{}: {error}", self.name).into()),
        }
    }
}

#[derive(Debug)]
struct Running {
    name: String,
    child: Child,
    is_filter: bool,
}

/// Programs that work together. Those that still run when it is dropped are killed.
#[derive(Debug)]
pub(crate) struct Group {
    running: Vec<Running>,
    watch: Watch,
}

impl Group {
    /// How long one round may take: a hundred times what it should.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// Starts the programs; all of them are killed when they take too long.
    pub(crate) fn start(programs: Vec<Program>) -> Result<Group, Error> {
        let mut group = Group { running: Vec::new(), watch: Watch::start(Group::PATIENCE) };
        programs.into_iter().try_for_each(|program| group.add(program).map(drop))?;
        Ok(group)
    }

    /// Starts one more, and returns its process id.
    pub(crate) fn add(&mut self, program: Program) -> Result<i32, Error> {
        let running = program.start()?;
        let pid = running.child.id() as i32;
        self.watch.add(pid);
        self.running.push(running);
        Ok(pid)
    }

    /// Waits until all have ended, and says what each has cost. An exit status other than 0 is an
    /// error.
    pub(crate) fn finish(mut self) -> Result<Vec<ProcessCost>, Error> {
        let mut costs = Vec::new();
        let mut failed = Vec::new();
        for running in &mut self.running {
            let before = getrusage(UsageWho::RUSAGE_CHILDREN)?;
            let status = running.child.wait()?;
            let after = getrusage(UsageWho::RUSAGE_CHILDREN)?;
            let peak = self.watch.remove(running.child.id() as i32);
            if !status.success() {
                failed.push(format!("{}: {status}", running.name));
            }
            costs.push(cost(running, &before, &after, peak));
        }
        self.running.clear();
        match failed.is_empty() {
            true => Ok(costs),
            false => Err(failed.join("; ").into()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for running in &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

/// What the kernel added to the account of reaped children with this one: the same numbers as
/// `wait4` gives, without `unsafe`.
fn cost(running: &Running, before: &Usage, after: &Usage, peak: u64) -> ProcessCost {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let switches = |usage: &Usage| {
        (usage.voluntary_context_switches() + usage.involuntary_context_switches()) as u64
    };
    ProcessCost {
        name: running.name.clone(),
        is_filter: running.is_filter,
        user_seconds: seconds(after.user_time()) - seconds(before.user_time()),
        system_seconds: seconds(after.system_time()) - seconds(before.system_time()),
        peak_rss_bytes: peak,
        context_switches: switches(after) - switches(before),
    }
}

/// Follows the memory of processes, and ends them when their time is up.
///
/// `ru_maxrss` is of no use here: it counts what the process was before exec, which is this one
/// with all its memory. The kernel's own high-water mark is asked for every few milliseconds.
#[derive(Debug)]
struct Watch {
    peaks: Arc<Mutex<Vec<(i32, u64)>>>,
}

impl Watch {
    /// At half of this one sees more of a peak just before the end, at double less; both cost
    /// less than one percent of a processor.
    const INTERVAL: Duration = Duration::from_millis(10);

    fn start(patience: Duration) -> Watch {
        let peaks = Arc::new(Mutex::new(Vec::new()));
        let watched = Arc::downgrade(&peaks);
        let deadline = Instant::now() + patience;
        // Ends by itself once nobody asks for peaks. Waiting for that would take up to an interval.
        thread::spawn(move || {
            while let Some(peaks) = watched.upgrade() {
                let mut peaks = peaks.lock().unwrap_or_else(PoisonError::into_inner);
                for (pid, peak) in peaks.iter_mut() {
                    *peak = high_water_mark(*pid).unwrap_or(0).max(*peak);
                    if Instant::now() > deadline {
                        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                    }
                }
                drop(peaks);
                thread::sleep(Watch::INTERVAL);
            }
        });
        Watch { peaks }
    }

    fn add(&self, pid: i32) {
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner).push((pid, 0));
    }

    fn remove(&self, pid: i32) -> u64 {
        let mut peaks = self.peaks.lock().unwrap_or_else(PoisonError::into_inner);
        let index = peaks.iter().position(|(watched, _)| *watched == pid);
        index.map_or(0, |index| peaks.swap_remove(index).1)
    }
}

/// Bytes, of a process that runs.
fn high_water_mark(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// A program that can be found like a shell finds it.
pub(crate) fn in_path(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} isn't in PATH")))
}
