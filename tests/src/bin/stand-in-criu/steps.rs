//! What tests see of the stand-in, and what they make it do. In the environment:
//!
//! - `STAND_IN_STEPS=FILE`: each step is added to FILE when it is reached, one a line.
//! - `STAND_IN_PAUSE=STEP:MILLISECONDS`: waits so long at this step.
//! - `STAND_IN_FAULT=STEP:WHAT`: at this step, `fail` (with `STAND_IN_ERROR` in the log, or more
//!   of them, a line each), `die` (by SIGKILL), `hang`, or `end` (with status 0).
//! - `STAND_IN_TRACKS_NOT=1`: a check finds no kernel that tells which pages have changed.
//! - `STAND_IN_BYTES=N`: so much memory has the image of a process that is no `victim hold`.
//!
//! The steps of a dump are `start`, `connected`, `frozen`, `pages` (half of the memory was sent),
//! `inventory` (all was sent), `asking`, `answered`, `gone` and `end`; those of a pre-dump
//! `pre-start`, `pre-frozen`, `pre-pages` and `pre-end`; those of a restore `start`,
//! `connected`, `pages` (the memory was read), `made` (the process is there, and does not run),
//! `asking`, `answered`, `runs` and `end`.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::exit;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

use crate::Fault;
use crate::log::Log;

/// This step is reached.
pub(crate) fn reached(step: &str, log: &Log) -> Result<(), Fault> {
    log.say(&format!("step: {step}"));
    if let Some(file) = env::var_os("STAND_IN_STEPS") {
        let mut file = OpenOptions::new().append(true).create(true).open(file)?;
        file.write_all(format!("{step}\n").as_bytes())?;
    }
    if let Some(time) = at(step, "STAND_IN_PAUSE") {
        sleep(Duration::from_millis(time.parse()?));
    }
    match at(step, "STAND_IN_FAULT").as_deref() {
        Some("fail") => {
            let errors = env::var("STAND_IN_ERROR").unwrap_or_else(|_| "as the test wants".into());
            let (last, before) = {
                let mut lines: Vec<&str> = errors.lines().collect();
                (lines.pop().unwrap_or_default(), lines)
            };
            before.iter().for_each(|line| log.error(line));
            Err(last.into())
        }
        Some("die") => {
            let _ = raise(Signal::SIGKILL);
            Ok(())
        }
        Some("hang") => loop {
            sleep(Duration::from_secs(1000));
        },
        Some("end") => exit(0),
        Some(what) => Err(format!("STAND_IN_FAULT: {what}").into()),
        None => Ok(()),
    }
}

/// What the variable says of this step.
fn at(step: &str, variable: &str) -> Option<String> {
    let value = env::var(variable).ok()?;
    let (name, what) = value.split_once(':')?;
    (name == step).then(|| what.to_owned())
}
