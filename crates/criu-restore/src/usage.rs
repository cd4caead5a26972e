//! From the command line to a plan.

use crate::{Args, NAME};
use pipe_io::inherit::Refusal;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use supervise::criu_options::{self, OptionError};
use supervise::restore::{Plan, Source};
use supervise::shell::{criu_to_use, mentions_shard};

/// What is wrong with a command line.
#[derive(Debug)]
enum UsageError {
    /// The result cannot be written there.
    Json(RawFd, Refusal),
    Option(OptionError),
    /// More than one argument behind `--`.
    Command,
    /// The command is no text.
    NoText,
    /// It would read one shard again and again.
    OneShard,
    /// Shards come from commands only.
    NoCommand,
    /// The image would be typed.
    Terminal,
    /// The terminal of the tree is where the image comes from.
    ShellJob,
    /// A command, and an image that none writes.
    CommandAndFile,
    /// The file that memory is to come from cannot be opened.
    Image(PathBuf, io::Error),
    /// It is no file that can be read in any order.
    NoFile(PathBuf),
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
    let args: Args = cli::parse(NAME, std::iter::once(program).chain(split.own))?;
    if let Some(word) = split.criu.words.first() {
        return Err(wrong(UsageError::Word(word.clone())));
    }
    let command = command(split.behind).map_err(wrong)?;
    let image = args.lazy.as_deref().map(open).transpose().map_err(wrong)?;
    match &command {
        Some(_) if image.is_some() => return Err(wrong(UsageError::CommandAndFile)),
        None if image.is_some() => {}
        Some(text) if args.shards.get() > 1 && !args.unnamed_shards && !mentions_shard(text) => {
            return Err(wrong(UsageError::OneShard));
        }
        Some(_) => {}
        None if args.shards.get() > 1 => return Err(wrong(UsageError::NoCommand)),
        None if split.criu.shell_job => return Err(wrong(UsageError::ShellJob)),
        None if io::stdin().is_terminal() => return Err(wrong(UsageError::Terminal)),
        None => {}
    }
    let plan = Plan {
        logs: args.images_dir.clone(),
        shards: args.shards,
        source: match image {
            Some(file) => Source::Lazy(file),
            None => command.map_or(Source::Stdin, Source::Command),
        },
        combine: false,
        by_directory: args.directory,
        files: args.fs,
        stdio: args.stdio,
        wait: args.wait,
        time_limit: Duration::from_secs(args.time_limit.into()),
        criu_options: split.criu,
        criu: criu_to_use(),
        json: json(&args).map_err(wrong)?,
    };
    Ok((args, plan))
}

fn command(behind: Option<Vec<OsString>>) -> Result<Option<String>, UsageError> {
    let mut behind = behind.unwrap_or_default();
    match (behind.pop(), behind.is_empty()) {
        (None, _) => Ok(None),
        (Some(command), true) => command.into_string().map(Some).map_err(|_| UsageError::NoText),
        (Some(_), false) => Err(UsageError::Command),
    }
}

/// The image that memory comes from.
fn open(path: &Path) -> Result<OwnedFd, UsageError> {
    let refused = |error| UsageError::Image(path.to_owned(), error);
    // To open a FIFO would be to wait for its writer.
    if !path.metadata().map_err(refused)?.is_file() {
        return Err(UsageError::NoFile(path.to_owned()));
    }
    File::open(path).map(OwnedFd::from).map_err(refused)
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
            UsageError::Command => {
                f.write_str("the command that writes the image is to be one argument after --")
            }
            UsageError::NoText => f.write_str("the command is not valid UTF-8"),
            UsageError::OneShard => f.write_str(
                "the command does not mention SHARD, so it would read one shard again and again; \
                 --unnamed-shards if that is right",
            ),
            UsageError::NoCommand => f.write_str("the command that writes the shards is missing"),
            UsageError::Terminal => f.write_str("no command, and standard input is a terminal"),
            UsageError::ShellJob => f.write_str(
                "--shell-job needs the terminal on standard input, so a command must write the \
                 image",
            ),
            UsageError::CommandAndFile => {
                f.write_str("--lazy reads the image itself: no command stands behind --")
            }
            UsageError::Image(path, error) => {
                write!(f, "{}: {}", path.display(), cli::reason(error))
            }
            UsageError::NoFile(path) => {
                write!(f, "{}: --lazy needs a regular file", path.display())
            }
            UsageError::Word(word) => {
                let word = word.to_string_lossy();
                write!(f, "'{word}' is no option; the command stands after --")
            }
        }
    }
}
