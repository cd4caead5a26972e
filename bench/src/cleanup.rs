//! Leaving the machine as it was: at the end, after a panic and when interrupted.

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Something to undo.
#[derive(Debug, PartialEq)]
pub(crate) enum Undo {
    /// Put this text back into this file.
    Restore(PathBuf, String),
    /// Remove this directory and what is in it.
    Remove(PathBuf),
    /// Kill this process, which may have ended long ago.
    Kill(Pid),
}

static TO_UNDO: Mutex<Vec<Undo>> = Mutex::new(Vec::new());

/// From now on nothing ends this program without [`undo_all`], except for SIGKILL. Must be called
/// before other threads are started, since they inherit which signals are blocked; programs that
/// are started don't.
pub(crate) fn install() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            undo_all();
            eprintln!("bench: {signal}: stopped, settings restored");
            std::process::exit(128 + signal as i32);
        }
    });
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        undo_all();
        report(panic);
    }));
    Ok(())
}

/// Remembers what to undo.
pub(crate) fn later(undo: Undo) {
    steps().push(undo);
}

/// Undoes one thing now.
pub(crate) fn now(undo: &Undo) {
    let mut steps = steps();
    if let Some(index) = steps.iter().position(|step| step == undo) {
        steps.remove(index).run();
    }
}

/// Undoes everything, the last first.
pub(crate) fn undo_all() {
    let mut steps = steps();
    while let Some(step) = steps.pop() {
        step.run();
    }
}

fn steps() -> std::sync::MutexGuard<'static, Vec<Undo>> {
    TO_UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Undo {
    fn run(&self) {
        let outcome = match self {
            Undo::Restore(path, text) => fs::write(path, text),
            Undo::Remove(path) => fs::remove_dir_all(path),
            Undo::Kill(pid) => kill(*pid, Signal::SIGKILL).map_err(io::Error::from),
        };
        if let (Err(error), Undo::Restore(path, text)) = (outcome, self) {
            eprintln!("bench: {}: {} was not put back: {error}", path.display(), text.trim());
        }
    }
}
