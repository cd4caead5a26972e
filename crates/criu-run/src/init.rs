//! Process 1 of the program's PID namespace.
//!
//! It starts the program, passes signals on, waits for whatever has lost its parent, and ends as
//! the program does. The program itself is process 2, so that signals do to it what they always do:
//! the kernel spares process 1 those that it has no handler for.
//!
//! It is part of the tree that is checkpointed. Its file is a copy of this program that has no name
//! any more: CRIU keeps such a file in the image, so that an image does not depend on which version
//! of this program is installed where it is restored.

use crate::NAME;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use pipe_io::process;
use std::env;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

/// The name by which it is started.
pub(crate) const INIT: &str = "criu-run-init";

/// The status where there is no such program, and where it cannot be started, as `env` has them.
pub(crate) const NOT_FOUND: u8 = 127;
pub(crate) const NOT_STARTED: u8 = 126;

/// Is process 1, if it was started as that, until the program ends.
pub(crate) fn run_if_named() -> Option<ExitCode> {
    let mut words = env::args_os();
    if words.next()? != INIT {
        return None;
    }
    Some(ExitCode::from(run(words.collect())))
}

fn run(words: Vec<OsString>) -> u8 {
    process::keep_statuses_of_children();
    let all = SigSet::all();
    let Some((name, arguments)) = words.split_first() else { return NOT_STARTED };
    let mut command = Command::new(name);
    command.args(arguments);
    process::as_our_caller(&mut command, &[]);
    if all.thread_block().is_err() {
        return NOT_STARTED;
    }
    let program = match command.spawn() {
        Ok(child) => Pid::from_raw(child.id() as i32),
        Err(error) => {
            eprintln!("{NAME}: {}: {}", name.to_string_lossy(), pipe_io::reason(&error));
            return status_of_failed_start(&error);
        }
    };
    loop {
        // Real-time signals have no name here: they are lost.
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap_until(program) {
                    return as_status(status);
                }
            }
            Ok(signal) => _ = kill(program, signal),
            Err(_) => {}
        }
    }
}

/// Takes the statuses of all that has ended, and returns the program's if it is among them.
fn reap_until(program: Pid) -> Option<ExitStatus> {
    while let Ok(Some((pid, status))) = process::reap_any() {
        if pid == program {
            return Some(status);
        }
    }
    None
}

/// An exit status as a shell gives it.
fn as_status(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).and_then(|status| u8::try_from(status).ok()).unwrap_or(u8::MAX)
}

pub(crate) fn status_of_failed_start(error: &std::io::Error) -> u8 {
    match error.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_STARTED,
    }
}
