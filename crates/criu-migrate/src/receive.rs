//! There: the tree is restored, and runs when the other end says so.

use crate::Args;
use crate::usage::{UsageError, wrong};
use pipe_io::Endpoint;
use pipe_io::inherit::{self, Direction, Refusal};
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;
use supervise::criu_options::Split;
use supervise::link;
use supervise::link::meeting::Guest;
use supervise::restore::{self, Arrival, Plan, Source};
use supervise::shell::criu_to_use;
use supervise::tell::Voice;

/// Its name in messages, which the user of the other end sees among those of that end.
const THIS_END: &str = "criu-migrate --receive";

/// Carries it out, and returns how this process is to end.
pub(crate) fn run(args: Args, split: Split) -> ExitCode {
    let input = match prepare(&split) {
        Ok(input) => input,
        Err(error) => return wrong(error),
    };
    let guests = match args.connection {
        Some(appointment) if appointment.index > 0 => {
            let attended = link::attend(appointment, input);
            return attended.map_or_else(failed, |()| ExitCode::SUCCESS);
        }
        Some(appointment) => appointment.gather(),
        None => Ok(Vec::new()),
    };
    match guests {
        Ok(guests) => restore(args, split, input, guests),
        Err(error) => failed(error),
    }
}

/// What is read: the image, or a part of it.
fn prepare(split: &Split) -> Result<OwnedFd, UsageError> {
    if let Some(word) = split.criu.words.iter().chain(split.behind.iter().flatten()).next() {
        return Err(UsageError::Word(word.clone()));
    }
    if split.criu.shell_job {
        return Err(UsageError::Terminal);
    }
    stream(1, Direction::Output).map_err(UsageError::Output)?;
    stream(0, Direction::Input).map_err(UsageError::Input)
}

fn stream(number: i32, direction: Direction) -> Result<OwnedFd, Refusal> {
    Endpoint::new(inherit::duplicate(number, direction)?).map(OwnedFd::from)
}

fn restore(args: Args, split: Split, first: OwnedFd, others: Vec<Guest>) -> ExitCode {
    let plan = Plan {
        logs: args.images_dir,
        shards: NonZeroUsize::MIN.saturating_add(others.len()),
        source: Source::Link(Arrival { first, others }),
        combine: args.pre_copy.is_some(),
        by_directory: args.directory,
        // The other end decides whether there are any.
        files: true,
        stdio: false,
        wait: false,
        time_limit: Duration::from_secs(args.time_limit.into()),
        criu_options: split.criu,
        criu: criu_to_use(),
        json: None,
    };
    let voice = Voice::new(THIS_END, args.quiet, args.verbose);
    restore::run(plan, voice).unwrap_or_else(failed)
}

/// Tells both the user and the other end.
fn failed(error: impl Display) -> ExitCode {
    let status = cli::failed(THIS_END, &error);
    link::say_failed(error);
    status
}
