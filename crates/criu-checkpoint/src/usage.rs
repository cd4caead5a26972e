//! From the command line to a plan.

use crate::{Args, NAME};
use nix::unistd::Pid;
use pipe_io::inherit::Refusal;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use supervise::checkpoint::{self, Destination, Plan};
use supervise::criu_options::{self, OptionError};
use supervise::shell::{criu_to_use, find_program, mentions_shard};

/// What is wrong with a command line.
#[derive(Debug)]
enum UsageError {
    /// The result cannot be written there.
    Json(RawFd, Refusal),
    Option(OptionError),
    /// There is no command, or not one argument.
    Command,
    /// The command is no text.
    NoText,
    /// It would write all shards to one place.
    OneShard,
    /// The kernel does not tell which pages have changed.
    NotTracked,
    /// A relative path, and the current directory is gone.
    Path(&'static str, PathBuf),
    /// A word that belongs to nothing.
    Word(OsString),
}

/// The command line as it was given, and what is to be done.
pub(crate) fn parse() -> Result<(Args, Plan), ExitCode> {
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_else(|| NAME.into());
    let wrong =
        |error: UsageError| cli::wrong_usage(NAME, format_args!("{error} (try '{NAME} --help')"));
    let split = criu_options::split(arguments, &cli::options::<Args>())
        .map_err(|error| wrong(UsageError::Option(error)))?;
    let own = std::iter::once(program).chain(split.own);
    let args: Args = cli::parse(NAME, own)?;
    let command = one_command(split.behind).map_err(wrong)?;
    if let Some(word) = split.criu.words.first() {
        return Err(wrong(UsageError::Word(word.clone())));
    }
    for text in args.verify.iter().chain([&command]) {
        if args.shards.get() > 1 && !args.unnamed_shards && !mentions_shard(text) {
            return Err(wrong(UsageError::OneShard));
        }
    }
    let criu = criu_to_use();
    // One that is not there is told of later.
    let tracks = || find_program(&criu).is_none_or(|criu| checkpoint::tracks_memory(&criu));
    if args.increments.is_some() && !tracks() {
        return Err(wrong(UsageError::NotTracked));
    }
    let plan = Plan {
        tree: Pid::from_raw(args.tree),
        leave_running: args.leave_running,
        logs: args.images_dir.clone(),
        shards: args.shards,
        destination: Destination::Command(command),
        increments: increments(&args).map_err(wrong)?,
        rounds: None,
        verify: args.verify.clone(),
        files: files(&args).map_err(wrong)?,
        time_limit: Duration::from_secs(args.time_limit.into()),
        criu_options: split.criu,
        criu,
        json: json(&args).map_err(wrong)?,
    };
    Ok((args, plan))
}

fn one_command(behind: Option<Vec<OsString>>) -> Result<String, UsageError> {
    match behind.unwrap_or_default().as_mut_slice() {
        [command] => std::mem::take(command).into_string().map_err(|_| UsageError::NoText),
        _ => Err(UsageError::Command),
    }
}

fn files(args: &Args) -> Result<Vec<PathBuf>, UsageError> {
    args.fs.iter().map(|path| absolute("--fs", path)).collect()
}

fn increments(args: &Args) -> Result<Option<PathBuf>, UsageError> {
    args.increments.iter().map(|path| absolute("--increments", path)).next().transpose()
}

fn absolute(option: &'static str, path: &Path) -> Result<PathBuf, UsageError> {
    std::path::absolute(path).map_err(|_| UsageError::Path(option, path.to_owned()))
}

/// Where the line of JSON goes.
fn json(args: &Args) -> Result<Option<OwnedFd>, UsageError> {
    cli::result_to(args.json, args.json_fd).map_err(|(fd, refusal)| UsageError::Json(fd, refusal))
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Json(fd, refusal) => write!(f, "the result (fd {fd}): {refusal}"),
            UsageError::Option(error) => error.fmt(f),
            UsageError::Command => f.write_str(
                "the command that takes the image is missing, or not one argument after --",
            ),
            UsageError::NoText => f.write_str("the command is not valid UTF-8"),
            UsageError::OneShard => f.write_str(
                "the command does not mention SHARD, so all shards would go to one place; \
                 --unnamed-shards if that is right",
            ),
            UsageError::NotTracked => f.write_str(
                "--increments: this kernel does not tell which pages have changed, \
                 as 'criu check --feature mem_dirty_track' says",
            ),
            UsageError::Path(option, path) => write!(
                f,
                "{option} {}: a relative name, and the current directory is gone",
                path.display()
            ),
            UsageError::Word(word) => {
                let word = word.to_string_lossy();
                write!(f, "'{word}' is no option; the command stands after --")
            }
        }
    }
}
