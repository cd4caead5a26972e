//! Starting the program, so that it can be checkpointed: with standard descriptors that CRIU can
//! carry, and in a PID namespace of its own, where its ids are never taken.

use crate::init::{self, INIT};
use crate::relay;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Pid, mkstemp, unlink};
use pipe_io::inherit::{self, Direction};
use pipe_io::process;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The standard descriptors that the program, or the restored one, gets.
pub(crate) struct StandardDescriptors {
    /// What stands in the place of ours; `None` where ours will do.
    ends: [Option<OwnedFd>; 3],
    /// What moves the output.
    pub(crate) relays: Vec<Pid>,
}

/// Why the program could not be started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// A descriptor that CRIU could not carry.
    Descriptor(i32, &'static str),
    /// There can be no pipe between the program and a descriptor.
    Relay(io::Error),
    /// The program cannot be started, for this reason.
    Program(OsString, io::Error),
    /// There can be no process 1 for it.
    Init(io::Error),
}

/// A program that was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    /// The root of its tree: process 1 of its namespace, or itself.
    pub(crate) root: Pid,
    /// Whether it has a namespace of its own.
    pub(crate) has_namespace: bool,
}

impl StandardDescriptors {
    /// Puts pipes between the program and what CRIU cannot carry, or would want to find again as
    /// it was: terminals, sockets, and files that grow.
    pub(crate) fn prepare() -> Result<StandardDescriptors, StartError> {
        let mut ends = [None, None, None];
        let mut relays = Vec::new();
        for (number, end) in (0..).zip(&mut ends) {
            if is_carried(number) {
                continue;
            }
            let relay = relay::start(number).map_err(StartError::Relay)?;
            // Whoever types is not waited for.
            if number > 0 {
                relays.push(relay.pid);
            }
            *end = Some(relay.end);
        }
        Ok(StandardDescriptors { ends, relays })
    }

    /// Gives them to a command, and keeps none.
    pub(crate) fn give(self, command: &mut Command) {
        let [stdin, stdout, stderr] = self.ends;
        command.stdin(stdin.map_or_else(Stdio::inherit, Stdio::from));
        command.stdout(stdout.map_or_else(Stdio::inherit, Stdio::from));
        command.stderr(stderr.map_or_else(Stdio::inherit, Stdio::from));
    }
}

/// Whether CRIU carries the descriptor of this number as it is: a pipe, `/dev/null` and the like, a
/// file that is only read; and nothing.
fn is_carried(number: i32) -> bool {
    let direction = if number == 0 { Direction::Input } else { Direction::Output };
    let Ok(fd) = inherit::duplicate(number, direction) else { return true };
    let Ok(stat) = fstat(&fd) else { return true };
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => true,
        SFlag::S_IFREG => number == 0,
        SFlag::S_IFCHR => !io::IsTerminal::is_terminal(&fd),
        _ => false,
    }
}

/// Refuses descriptors above 2 that the program would inherit and CRIU could not carry: better now
/// than at the first checkpoint.
pub(crate) fn check_descriptors() -> Result<(), StartError> {
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(number) = number.filter(|number| *number > 2) else { continue };
        if let Some(kind) = inherit::what_programs_inherit(number) {
            return Err(StartError::Descriptor(number, kind));
        }
    }
    Ok(())
}

/// Starts the program.
pub(crate) fn start(
    words: &[OsString],
    descriptors: StandardDescriptors,
) -> Result<Started, StartError> {
    let Some((name, arguments)) = words.split_first() else {
        return Err(StartError::Init(io::ErrorKind::InvalidInput.into()));
    };
    match enter_new_namespace() {
        Ok(back) => {
            let started = start_init(words, descriptors);
            // What we start from now on is in our own again.
            setns(&back, CloneFlags::CLONE_NEWPID)
                .map_err(|error| StartError::Init(error.into()))?;
            Ok(Started { root: started?, has_namespace: true })
        }
        Err(_) => {
            let mut command = Command::new(name);
            command.args(arguments);
            descriptors.give(&mut command);
            process::as_our_caller(&mut command, &[]);
            process::in_a_new_session(&mut command);
            let child = command.spawn();
            let child = child.map_err(|error| StartError::Program(name.clone(), error))?;
            Ok(Started { root: Pid::from_raw(child.id() as i32), has_namespace: false })
        }
    }
}

/// Has what is started next be process 1 of a new PID namespace; returns the way back.
fn enter_new_namespace() -> io::Result<File> {
    let ours = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    Ok(ours)
}

fn start_init(words: &[OsString], descriptors: StandardDescriptors) -> Result<Pid, StartError> {
    let copy = Copy::of_ourselves().map_err(StartError::Init)?;
    let mut command = Command::new(&copy.path);
    command.arg0(INIT).args(words);
    descriptors.give(&mut command);
    process::as_our_caller(&mut command, &[]);
    process::in_a_new_session(&mut command);
    // It has been executed when this returns, and its name can go.
    let child = command.spawn().map_err(StartError::Init)?;
    Ok(Pid::from_raw(child.id() as i32))
}

/// Where the file of process 1 is, for a moment.
pub(crate) const DIRECTORY: &str = "/tmp";

/// A copy of this program in a directory that is there on every machine.
struct Copy {
    path: PathBuf,
}

impl Copy {
    fn of_ourselves() -> io::Result<Copy> {
        // CRIU makes the file again, for a moment, in the directory that it was in.
        let (file, path) = mkstemp(&Path::new(DIRECTORY).join("criu-run-init-XXXXXX"))?;
        let copy = Copy { path };
        let mut file = File::from(file);
        io::copy(&mut File::open("/proc/self/exe")?, &mut file)?;
        nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(0o755))?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = unlink(&self.path);
    }
}

impl StartError {
    /// The exit status of `criu-run`.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            StartError::Descriptor(..) => 2,
            StartError::Program(_, error) => init::status_of_failed_start(error),
            StartError::Relay(_) | StartError::Init(_) => crate::life::OWN_FAILURE,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Descriptor(number, kind) => write!(
                f,
                "descriptor {number} is {kind}, and PROGRAM could not be checkpointed with it: \
                 close it ({number}>&-)"
            ),
            StartError::Relay(error) => {
                write!(f, "no pipe for the program's output: {}", pipe_io::reason(error))
            }
            StartError::Program(name, error) => {
                write!(f, "{}: {}", name.to_string_lossy(), pipe_io::reason(error))
            }
            StartError::Init(error) if error.raw_os_error() == Some(Errno::EACCES as i32) => {
                f.write_str("/tmp: programs cannot be executed there (noexec)")
            }
            StartError::Init(error) => write!(f, "process 1: {}", pipe_io::reason(error)),
        }
    }
}

impl std::error::Error for StartError {}
