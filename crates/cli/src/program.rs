//! From a command line to an exit status.

use crate::{Counters, UsageError, signals, suggest};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, Parser};
use pipe_io::Patient;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::process::{ExitCode, Termination};
use std::sync::Arc;

/// How a program did not do what it was asked for.
#[derive(Debug)]
pub enum Failure<E> {
    /// Wrong usage, found before anything was touched: exit status 2.
    Usage(UsageError),
    /// It failed: exit status 1.
    Failed(E),
    /// The command behind `--` failed: its exit status.
    Command(E, u8),
}

impl<E> From<UsageError> for Failure<E> {
    fn from(error: UsageError) -> Failure<E> {
        Failure::Usage(error)
    }
}

/// What a filter says to the person at the keyboard.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    name: &'static str,
    verbose: bool,
}

impl Program {
    /// The program of this name; `verbose` as the option says.
    pub fn new(name: &'static str, verbose: bool) -> Program {
        Program { name, verbose }
    }

    /// Says something on stderr if `-v` was given.
    pub fn note(&self, message: impl fmt::Display) {
        if self.verbose {
            complain(self.name, message);
        }
    }

    /// Starts answering signals, with these counters. Call before anything is made that a signal
    /// should remove.
    pub fn attend_signals(&self, counters: &Arc<Counters>) -> io::Result<()> {
        // Before there is another thread.
        pipe_io::inherit::sleep_precisely();
        signals::attend(self.name, Arc::clone(counters), self.verbose)
    }

    /// Gives up what a program that only moves bytes never needs, before it looks at bytes from
    /// outside: from now on nothing that it might be made to start gains privileges by being
    /// started. The user's commands may want to gain them (`sudo criu`): start them before.
    pub fn confine(&self) {
        // Kernels before 3.5 have no such thing.
        let _ = nix::sys::prctl::set_no_new_privs();
    }
}

/// Runs a filter: parses its command line, calls `run`, prints its error as one line, and
/// returns its exit status.
pub fn main<A: Parser, T: Termination, E: fmt::Display>(
    name: &'static str,
    run: impl FnOnce(A) -> Result<T, Failure<E>>,
) -> ExitCode {
    let args = match parse::<A>(name, std::env::args_os()) {
        Ok(args) => args,
        Err(status) => return status,
    };
    match run(args) {
        Ok(success) => success.report(),
        Err(Failure::Failed(error)) => failed(name, error),
        Err(Failure::Command(error, status)) => {
            complain(name, error);
            ExitCode::from(status)
        }
        Err(Failure::Usage(error)) => wrong_usage(name, error),
    }
}

/// Parses a command line, which begins with the program's name. Where it asks for help or the
/// version, or is wrong, that is answered, and the exit status returned.
pub fn parse<A: Parser>(
    name: &str,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<A, ExitCode> {
    let parsed = command::<A>().try_get_matches_from(arguments);
    let args = parsed.and_then(|matches| A::from_arg_matches(&matches));
    args.map_err(|error| not_run(name, &error, &options::<A>()))
}

/// The options of a program, each by each of its names (`-n`, `--shards`), and whether a value
/// follows: for a program that passes others on.
pub fn options<A: Parser>() -> Vec<(String, bool)> {
    let mut options = Vec::new();
    for argument in command::<A>().get_arguments() {
        // One that is given behind `=` only is not looked for in the next word.
        let takes_value = argument.get_action().takes_values() && !argument.is_require_equals_set();
        options.extend(argument.get_short().map(|letter| (format!("-{letter}"), takes_value)));
        options.extend(argument.get_long().map(|name| (format!("--{name}"), takes_value)));
    }
    options
}

/// Says why the program has failed, and returns its exit status.
pub fn failed(name: &str, error: impl fmt::Display) -> ExitCode {
    complain(name, error);
    ExitCode::from(1)
}

/// Says what is wrong with the command line, and returns the exit status.
pub fn wrong_usage(name: &str, error: impl fmt::Display) -> ExitCode {
    complain(name, error);
    ExitCode::from(2)
}

/// The command line of a filter. clap's own -h and -V cannot be moved behind the other groups, so
/// these are ours.
fn command<A: Parser>() -> Command {
    let own = |id: &'static str, short, action, help: &'static str| {
        Arg::new(id).short(short).long(id).action(action).help(help).help_heading("Help")
    };
    A::command()
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(own("help", 'h', ArgAction::Help, "Print this; with -h, in short"))
        .arg(own("version", 'V', ArgAction::Version, "Print the version"))
}

/// Prints the help or the version that was asked for, or what is wrong with the command line.
fn not_run(name: &str, error: &clap::Error, options: &[(String, bool)]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match Patient(io::stdout()).write_all(compact(&error.render().to_string()).as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(1),
            }
        }
        _ => {
            let meant = suggestion(error, options).unwrap_or_default();
            complain(name, format_args!("{}{meant} (try '{name} --help')", one_line(error)));
            ExitCode::from(2)
        }
    }
}

/// Which options are nearly the one that does not exist.
fn suggestion(error: &clap::Error, options: &[(String, bool)]) -> Option<String> {
    let written = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(written))) => written,
        _ => return None,
    };
    let long = options.iter().map(|(option, _)| option.as_str()).filter(|it| it.starts_with("--"));
    let meant = suggest::meant(written, long);
    (!meant.is_empty()).then(|| format!(": did you mean {}?", meant.join(" or ")))
}

/// A help text without the lines of spaces that clap puts between the paragraphs of an option: so
/// `--help` fits a screen. The empty lines between the options stay.
fn compact(help: &str) -> String {
    let is_kept = |line: &&str| line.is_empty() || !line.trim().is_empty();
    help.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

/// The first paragraph of clap's message, on one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraph: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let line = paragraph.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// One write a message, so that messages of two programs never mix.
pub(crate) fn complain(name: &str, message: impl fmt::Display) {
    say(&format!("{name}: {message}\n"));
}

/// Writes a message or a line to stderr. That nobody reads it is no error.
pub(crate) fn say(text: &str) {
    let _ = Patient(io::stderr()).write_all(text.as_bytes());
}
