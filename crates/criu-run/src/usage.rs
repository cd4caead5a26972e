//! From the command line to a plan.

use crate::image::{Image, Source};
use crate::{Args, NAME, OnFailure};
use nix::sys::signal::Signal;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use supervise::criu_options::{self, OptionError};
use supervise::shell::mentions_shard;
use supervise::tell::Voice;

/// What is to be done.
pub(crate) struct Plan {
    pub(crate) image: Image,
    pub(crate) fresh: bool,
    /// The file that memory comes from when the restored program runs.
    pub(crate) lazy: Option<PathBuf>,
    pub(crate) shards: NonZeroUsize,
    /// Absolute paths.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) checkpoint_on: Signal,
    pub(crate) deadline: Duration,
    pub(crate) on_failure: OnFailure,
    pub(crate) checkpointed_status: u8,
    pub(crate) every: Option<Duration>,
    pub(crate) on_event: Option<String>,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) criu_options: Vec<OsString>,
    /// The program and its arguments.
    pub(crate) program: Vec<OsString>,
    pub(crate) voice: Voice,
}

/// What is wrong with a command line.
#[derive(Debug)]
enum UsageError {
    Option(OptionError),
    /// There is no program.
    NoProgram,
    /// It is not said where the image is kept.
    NoImage,
    /// Memory on demand, and the image is in no file.
    LazyCommand,
    /// Memory on demand, and the file is compressed.
    LazyCompressed(PathBuf),
    /// All shards would go to one place.
    OneShard(&'static str),
    /// A relative path, and the current directory is gone.
    Path(PathBuf),
    /// A word that belongs to nothing.
    Word(OsString),
}

pub(crate) fn parse() -> Result<Plan, ExitCode> {
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_else(|| NAME.into());
    let wrong =
        |error: UsageError| cli::wrong_usage(NAME, format_args!("{error} (try '{NAME} --help')"));
    let split = criu_options::split(arguments, &cli::options::<Args>())
        .map_err(|error| wrong(UsageError::Option(error)))?;
    let args: Args = cli::parse(NAME, std::iter::once(program).chain(split.own))?;
    if let Some(word) = split.criu.words.first() {
        return Err(wrong(UsageError::Word(word.clone())));
    }
    let program = split.behind.filter(|words| !words.is_empty());
    let program = program.ok_or_else(|| wrong(UsageError::NoProgram))?;
    plan(args, split.criu.arguments, program).map_err(wrong)
}

fn plan(
    args: Args,
    criu_options: Vec<OsString>,
    program: Vec<OsString>,
) -> Result<Plan, UsageError> {
    let image = match (&args.image, args.save, args.load) {
        (Some(path), _, _) => Image::in_file(&absolute(path)?),
        (None, Some(save), Some(load)) => {
            for (option, text) in [("--save", &save), ("--load", &load)] {
                if args.shards.get() > 1 && !mentions_shard(text) {
                    return Err(UsageError::OneShard(option));
                }
            }
            Image::behind(save, load, args.exists)
        }
        (None, ..) => return Err(UsageError::NoImage),
    };
    let lazy = match image.source() {
        _ if !args.lazy => None,
        Source::File(path) => Some(path.to_owned()),
        Source::CompressedFile(path) => return Err(UsageError::LazyCompressed(path.to_owned())),
        Source::Command => return Err(UsageError::LazyCommand),
    };
    Ok(Plan {
        image,
        fresh: args.fresh,
        lazy,
        shards: args.shards,
        files: args.fs.iter().map(absolute).collect::<Result<_, _>>()?,
        checkpoint_on: args.checkpoint_on,
        deadline: Duration::from_secs(args.deadline.into()),
        on_failure: args.on_failure,
        checkpointed_status: args.checkpointed_status,
        every: args.every.map(|seconds| Duration::from_secs(seconds.into())),
        on_event: args.on_event,
        json: args.json,
        quiet: args.quiet,
        verbose: args.verbose,
        criu_options,
        program,
        voice: Voice::new(NAME, args.quiet, args.verbose),
    })
}

fn absolute(path: &PathBuf) -> Result<PathBuf, UsageError> {
    std::path::absolute(path).map_err(|_| UsageError::Path(path.clone()))
}

/// A signal by its name, with or without SIG, or its number.
pub(crate) fn signal(text: &str) -> Result<Signal, NoSignal> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let number = text.parse().ok().and_then(|number: i32| Signal::try_from(number).ok());
    let found = name.parse().ok().or(number);
    // These two cannot be waited for, and that is about children.
    let is_fit = |it: &Signal| !matches!(it, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCHLD);
    found.filter(is_fit).ok_or(NoSignal)
}

/// What is no signal that can be waited for.
#[derive(Debug)]
pub(crate) struct NoSignal;

impl fmt::Display for NoSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a signal that can be waited for")
    }
}

impl std::error::Error for NoSignal {}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Option(error) => error.fmt(f),
            UsageError::NoProgram => f.write_str("the program is missing: it stands after --"),
            UsageError::NoImage => f.write_str(
                "it is not said where the image is kept: --image FILE, or --save and --load",
            ),
            UsageError::LazyCommand => f.write_str(
                "--lazy reads memory from a file in any order: it takes --image, not --load",
            ),
            UsageError::LazyCompressed(path) => write!(
                f,
                "{}: --lazy reads memory in any order, which a compressed image does not allow",
                path.display()
            ),
            UsageError::OneShard(option) => write!(
                f,
                "the command of {option} does not mention SHARD, so all shards would be one place"
            ),
            UsageError::Path(path) => {
                write!(f, "{}: a relative name, and the current directory is gone", path.display())
            }
            UsageError::Word(word) => {
                let word = word.to_string_lossy();
                write!(f, "'{word}' is no option; the program stands after --")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text).unwrap(), Signal::SIGTERM, "{text}");
        }
        for text in ["", "KILL", "9", "STOP", "CHLD", "99", "TERMINATE"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
