//! The machine that was measured.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::utsname::uname;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

/// What a reader must know to compare numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    /// `fs.pipe-max-size` before the benchmark touched it, in bytes.
    pub(crate) pipe_max_size: usize,
    /// It doesn't bind us: CAP_SYS_RESOURCE is there.
    pub(crate) may_exceed_pipe_max_size: bool,
    pub(crate) transparent_hugepages: String,
    /// How long an idle processor of a virtual machine waits for work before the host gets it, in
    /// nanoseconds; `None` where Linux does not say.
    #[serde(default)]
    pub(crate) halt_poll_ns: Option<usize>,
    /// How long it takes to wake up a thread that waits for a byte on another processor, in
    /// microseconds.
    #[serde(default)]
    pub(crate) wake_up_micros: f64,
    /// The commit of the filters, if git knows; with a `+` for uncommitted changes.
    pub(crate) commit: String,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Machine {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let release = uname().map(|uname| uname.release().to_string_lossy().into_owned());
        Machine {
            kernel: release.unwrap_or_default(),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: available_parallelism().map_or(0, usize::from),
            memory_bytes: memory("MemTotal"),
            pipe_max_size: crate::setting::pipe_max_size().unwrap_or(0),
            may_exceed_pipe_max_size: has_sys_resource(),
            transparent_hugepages: line("/sys/kernel/mm/transparent_hugepage/enabled"),
            halt_poll_ns: crate::setting::halt_poll(),
            wake_up_micros: wake_up().unwrap_or_default().as_secs_f64() * 1e6,
            commit: commit().unwrap_or_default(),
        }
    }
}

/// How long it takes until a thread that waits for a byte on another processor has it: half of the
/// way there and back. `None` if there is only one.
fn wake_up() -> Option<Duration> {
    let ours = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut processors = (0..CpuSet::count()).filter(|it| ours.is_set(*it).unwrap_or(false));
    let (here, there) = (processors.next()?, processors.next()?);
    let (near, far) = UnixStream::pair().ok()?;
    thread::scope(|scope| {
        scope.spawn(move || pin(there).and_then(|()| echo(far)));
        scope.spawn(move || pin(here).and_then(|()| there_and_back(near))).join().ok()?.ok()
    })
}

fn pin(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn echo(mut socket: UnixStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        socket.read_exact(&mut byte)?;
        socket.write_all(&byte)?;
    }
}

fn there_and_back(mut socket: UnixStream) -> io::Result<Duration> {
    const TIMES: u32 = 2000;

    let start = Instant::now();
    for _ in 0..TIMES {
        socket.write_all(&[0])?;
        socket.read_exact(&mut [0])?;
    }
    Ok(start.elapsed() / TIMES / 2)
}

/// Bytes of memory that programs could still get.
pub(crate) fn memory_available() -> u64 {
    memory("MemAvailable")
}

fn memory(name: &str) -> u64 {
    let text = field("/proc/meminfo", name).unwrap_or_default();
    text.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;

    let effective = field("/proc/self/status", "CapEff").unwrap_or_default();
    u64::from_str_radix(&effective, 16).is_ok_and(|set| set >> CAP_SYS_RESOURCE & 1 == 1)
}

/// The first `NAME: VALUE` in a file of the kernel's.
fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changed.is_empty() { "" } else { "+" };
    Some(git(&["rev-parse", "--short=12", "HEAD"])? + mark)
}
