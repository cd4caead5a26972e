//! A stand-in for the program `criu`, for tests of the commands that start it: `CRIU=stand-in-criu`.
//!
//! It needs no root, and does for a process of `victim hold` what CRIU does: freezes it by ptrace
//! (so that its own death thaws it), reads its memory, speaks the streamer's protocol byte for
//! byte, runs its action scripts, and kills the process or lets it run on. A restore starts a
//! process that goes on from the memory in the image, and finds out whether that is whole. Any
//! other process is frozen in the same way; its image is random bytes, and a restore starts its
//! command line again.
//!
//! What it lacks: process ids are not restored, nor descriptors.
//!
//! Tests see and steer it by its environment: see [`steps`].

mod dump;
mod image;
mod log;
mod options;
mod restore;
mod scripts;
mod steps;
mod tree;

use std::process::ExitCode;

use crate::log::Log;
use crate::options::Options;

/// What goes wrong, as it stands in the log.
type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!("stand-in-criu: {fault}");
            return ExitCode::FAILURE;
        }
    };
    let log = Log::open(&options);
    let (done, what) = match options.verb.as_str() {
        // Of all that it could check, only whether the kernel tells which pages have changed.
        "check" => {
            return match std::env::var_os("STAND_IN_TRACKS_NOT") {
                None => ExitCode::SUCCESS,
                Some(_) => ExitCode::FAILURE,
            };
        }
        "pre-dump" => (dump::pre_dump(&options, &log), "Pre-dumping"),
        "dump" => (dump::dump(&options, &log), "Dumping"),
        "restore" => (restore::restore(&options, &log), "Restoring"),
        other => (Err(format!("no such action: {other}").into()), "Nothing"),
    };
    match done {
        Ok(()) => {
            log.say(&format!("{what} finished successfully"));
            ExitCode::SUCCESS
        }
        Err(fault) => {
            log.error(&fault.to_string());
            log.error(&format!("{what} FAILED."));
            ExitCode::FAILURE
        }
    }
}
