//! Here: the tree is dumped, and killed when it runs at the other end.

use crate::usage::{UsageError, wrong};
use crate::{Args, NAME};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use supervise::checkpoint::{self, Destination, Plan};
use supervise::criu_options::{self, CriuOptions, Split};
use supervise::link::{Connect, Route};
use supervise::shell::{criu_to_use, find_program, mentions_shard};
use supervise::tell::Voice;

/// Carries it out, and returns how this process is to end.
pub(crate) fn run(args: Args, split: Split) -> ExitCode {
    let voice = Voice::new(NAME, args.quiet, args.verbose);
    match plan(args, split) {
        Ok(plan) => checkpoint::run(plan, voice).unwrap_or_else(|error| cli::failed(NAME, error)),
        Err(error) => wrong(error),
    }
}

fn plan(args: Args, mut split: Split) -> Result<Plan, UsageError> {
    let time_limit = Duration::from_secs(args.time_limit.into());
    let route = Route {
        connect: connect(&args, &mut split)?,
        verbose: args.verbose,
        time_limit,
        connections: usize::from(args.shards.get()),
        restore_options: restore_options(&args)?,
        pre_copy: args.pre_copy.is_some(),
    };
    must_move(&split.criu)?;
    let criu = criu_to_use();
    may_pre_copy(&args, &criu)?;
    Ok(Plan {
        tree: Pid::from_raw(args.tree.unwrap_or(0)),
        leave_running: false,
        logs: args.images_dir.clone(),
        shards: NonZeroUsize::from(args.shards),
        destination: Destination::Host(route),
        increments: None,
        rounds: args.pre_copy,
        verify: None,
        files: files(&args)?,
        time_limit,
        criu_options: split.criu,
        criu,
        json: json(&args)?,
    })
}

/// A host, or one argument after `--`.
fn connect(args: &Args, split: &mut Split) -> Result<Connect, UsageError> {
    let command = split.behind.take();
    let host = if command.is_none() { split.criu.take_operand() } else { None };
    if let Some(host) = host {
        let options = args.ssh_option.iter().map(OsString::from).collect();
        return Ok(Connect::Ssh { host, options });
    }
    if let Some(word) = split.criu.words.pop() {
        return Err(UsageError::Word(word));
    }
    let command = match command.as_deref() {
        Some([command]) => command.clone().into_string().map_err(|_| UsageError::NoText)?,
        Some(_) => return Err(UsageError::Command),
        None => return Err(UsageError::Host),
    };
    let tells_apart = command.contains("RECEIVE") || mentions_shard(&command);
    if args.shards.get() > 1 && !tells_apart {
        return Err(UsageError::OneConnection);
    }
    Ok(Connect::Command(command))
}

/// They are for the shell over there. What would be refused there is found here, unless it is
/// quoted.
fn restore_options(args: &Args) -> Result<String, UsageError> {
    let words = args.restore_options.split_whitespace().map(OsString::from);
    let split = criu_options::split(words, &cli::options::<Args>());
    must_move(&split.map_err(UsageError::RestoreOption)?.criu)?;
    Ok(args.restore_options.clone())
}

/// Rounds go one after the other over one connection, and need a kernel that tells what has changed.
fn may_pre_copy(args: &Args, criu: &str) -> Result<(), UsageError> {
    if args.pre_copy.is_none() {
        return Ok(());
    }
    if args.shards.get() > 1 {
        return Err(UsageError::OneAfterTheOther);
    }
    // One that is not there is told of later.
    match find_program(criu).is_none_or(|criu| checkpoint::tracks_memory(&criu)) {
        true => Ok(()),
        false => Err(UsageError::NotTracked),
    }
}

fn must_move(options: &CriuOptions) -> Result<(), UsageError> {
    match (options.leaves_tree, options.shell_job) {
        (true, _) => Err(UsageError::Stays),
        (_, true) => Err(UsageError::Terminal),
        (false, false) => Ok(()),
    }
}

fn files(args: &Args) -> Result<Vec<PathBuf>, UsageError> {
    let absolute =
        |path: &PathBuf| std::path::absolute(path).map_err(|_| UsageError::Path(path.clone()));
    args.fs.iter().map(absolute).collect()
}

/// Where the line of JSON goes.
fn json(args: &Args) -> Result<Option<OwnedFd>, UsageError> {
    cli::result_to(args.json, args.json_fd).map_err(|(fd, refusal)| UsageError::Json(fd, refusal))
}
