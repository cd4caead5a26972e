//! `fs.pipe-max-size`, the one kernel setting that matters.

use crate::cleanup::{self, Undo};
use std::fs;
use std::io;
use std::path::PathBuf;

const PATH: &str = "/proc/sys/fs/pipe-max-size";

/// What kernels come with, in bytes.
pub(crate) const DEFAULT: usize = 1 << 20;

/// What contrib/sysctl.d recommends, in bytes.
pub(crate) const TUNED: usize = 4 << 20;

/// What is set now, in bytes.
pub(crate) fn pipe_max_size() -> io::Result<usize> {
    fs::read_to_string(PATH)?.trim().parse().map_err(io::Error::other)
}

/// The settings to measure with: `tuned` is what `BENCH_TUNED` asks for.
pub(crate) fn to_measure(tuned: Option<bool>) -> io::Result<Vec<usize>> {
    let current = pipe_max_size()?;
    match tuned {
        Some(false) => Ok(vec![current]),
        Some(true) => Ok(vec![TUNED]),
        None if is_writable() => Ok(vec![DEFAULT, TUNED]),
        None => Ok(vec![current]),
    }
}

/// A value that holds until this is dropped, or the program ends in any other way.
#[derive(Debug)]
pub(crate) struct Held(Option<Undo>);

/// Sets the value.
pub(crate) fn hold(bytes: usize) -> io::Result<Held> {
    if pipe_max_size()? == bytes {
        return Ok(Held(None));
    }
    let before = fs::read_to_string(PATH)?;
    let undo = || Undo::Restore(PathBuf::from(PATH), before.clone());
    cleanup::later(undo());
    fs::write(PATH, bytes.to_string()).map_err(|error| {
        io::Error::new(error.kind(), format!("{PATH} can't be set to {bytes}: {error}"))
    })?;
    Ok(Held(Some(undo())))
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(undo) = &self.0 {
            cleanup::now(undo);
        }
    }
}

fn is_writable() -> bool {
    nix::unistd::access(PATH, nix::unistd::AccessFlags::W_OK).is_ok()
}
