//! What is wrong with a command line.

use crate::{Args, NAME};
use pipe_io::inherit::Refusal;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use supervise::criu_options::{self, OptionError, Split};

/// Why a command line cannot be carried out.
#[derive(Debug)]
pub(crate) enum UsageError {
    Option(OptionError),
    /// One of `--restore-options`.
    RestoreOption(OptionError),
    /// There is neither a host nor a command, or both.
    Host,
    /// The command is not one argument.
    Command,
    /// The command is no text.
    NoText,
    /// All connections would be one and the same.
    OneConnection,
    /// Rounds go over one connection.
    OneAfterTheOther,
    /// The kernel does not tell which pages have changed.
    NotTracked,
    /// It would run in both places.
    Stays,
    /// It has a terminal.
    Terminal,
    /// A relative path, and the current directory is gone.
    Path(PathBuf),
    /// The result cannot be written there.
    Json(RawFd, Refusal),
    /// The image cannot be read there.
    Input(Refusal),
    /// The answers cannot be written there.
    Output(Refusal),
    /// A word that belongs to nothing.
    Word(OsString),
}

/// The command line in its parts.
pub(crate) fn parse() -> Result<(Args, Split), ExitCode> {
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_else(|| NAME.into());
    let mut split = criu_options::split(arguments, &cli::options::<Args>())
        .map_err(|error| wrong(UsageError::Option(error)))?;
    let own = std::iter::once(program).chain(std::mem::take(&mut split.own));
    Ok((cli::parse(NAME, own)?, split))
}

/// Says what is wrong, and returns the exit status.
pub(crate) fn wrong(error: UsageError) -> ExitCode {
    cli::wrong_usage(NAME, format_args!("{error} (try '{NAME} --help')"))
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Option(error) => error.fmt(f),
            UsageError::RestoreOption(error) => write!(f, "--restore-options: {error}"),
            UsageError::Host => f.write_str("either a host is needed, or a command after --"),
            UsageError::Command => f.write_str("the command is to be one argument after --"),
            UsageError::NoText => f.write_str("the command is not valid UTF-8"),
            UsageError::OneConnection => f.write_str(
                "the command mentions neither RECEIVE nor SHARD, so all connections would be one",
            ),
            UsageError::OneAfterTheOther => f.write_str("--pre-copy goes over one connection only"),
            UsageError::NotTracked => f.write_str(
                "--pre-copy: this kernel does not tell which pages have changed, \
                 as 'criu check --feature mem_dirty_track' says",
            ),
            UsageError::Stays => {
                f.write_str("the tree would run in both places: use criu-checkpoint for a copy")
            }
            UsageError::Terminal => {
                f.write_str("--shell-job cannot be used: the tree has no terminal at the other end")
            }
            UsageError::Path(path) => write!(
                f,
                "--fs {}: a relative name, and the current directory is gone",
                path.display()
            ),
            UsageError::Json(fd, refusal) => write!(f, "the result (fd {fd}): {refusal}"),
            UsageError::Input(refusal) => write!(f, "the image (stdin): {refusal}"),
            UsageError::Output(refusal) => write!(f, "the answers (stdout): {refusal}"),
            UsageError::Word(word) => write!(f, "'{}' is no option", word.to_string_lossy()),
        }
    }
}
