//! The kernel settings that matter: `fs.pipe-max-size`, and in a virtual machine whether an idle
//! processor waits for work before it is given back to the host.

use crate::cleanup::{self, Undo};
use std::fs;
use std::io;
use std::path::PathBuf;

const PATH: &str = "/proc/sys/fs/pipe-max-size";

/// Of Linux in a virtual machine with the haltpoll driver.
const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// What the kernel comes with, in nanoseconds.
const HALT_POLL_DEFAULT: usize = 200_000;

/// What kernels come with, in bytes.
pub(crate) const DEFAULT: usize = 1 << 20;

/// What contrib/sysctl.d recommends, in bytes.
pub(crate) const TUNED: usize = 4 << 20;

/// What is set now, in bytes.
pub(crate) fn pipe_max_size() -> io::Result<usize> {
    value(PATH)
}

/// The settings to measure with: `tuned` is what `BENCH_TUNED` asks for.
pub(crate) fn to_measure(tuned: Option<bool>) -> io::Result<Vec<usize>> {
    let current = pipe_max_size()?;
    match tuned {
        Some(false) => Ok(vec![current]),
        Some(true) => Ok(vec![TUNED]),
        None if is_writable(PATH) => Ok(vec![DEFAULT, TUNED]),
        None => Ok(vec![current]),
    }
}

/// A value that holds until this is dropped, or the program ends in any other way.
#[derive(Debug)]
pub(crate) struct Held(Option<Undo>);

/// Sets `fs.pipe-max-size`.
pub(crate) fn hold(bytes: usize) -> io::Result<Held> {
    hold_at(PATH, bytes)
}

/// How long an idle processor of this virtual machine waits for work, in nanoseconds; `None` where
/// there is no such setting.
pub(crate) fn halt_poll() -> Option<usize> {
    value(HALT_POLL).ok()
}

/// Whether somebody has turned that off, and we can turn it on.
pub(crate) fn can_turn_halt_poll_on() -> bool {
    halt_poll() == Some(0) && is_writable(HALT_POLL)
}

/// Sets it to what the kernel comes with.
pub(crate) fn hold_halt_poll() -> io::Result<Held> {
    hold_at(HALT_POLL, HALT_POLL_DEFAULT)
}

fn hold_at(path: &str, wanted: usize) -> io::Result<Held> {
    if value(path)? == wanted {
        return Ok(Held(None));
    }
    let before = fs::read_to_string(path)?;
    let undo = || Undo::Restore(PathBuf::from(path), before.clone());
    cleanup::later(undo());
    fs::write(path, wanted.to_string()).map_err(|error| {
        io::Error::new(error.kind(), format!("{path} can't be set to {wanted}: {error}"))
    })?;
    Ok(Held(Some(undo())))
}

fn value(path: &str) -> io::Result<usize> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(undo) = &self.0 {
            cleanup::now(undo);
        }
    }
}

fn is_writable(path: &str) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}
