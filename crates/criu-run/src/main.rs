//! `criu-run` runs a program that survives its machine: it is restored from its image if there is
//! one, and checkpointed when it is asked to go.
//!
//! Beside the user's program it starts `criu-checkpoint` and `criu-restore`, and is itself, under
//! other names, process 1 of the program's PID namespace ([`init`]) and what stands between the
//! program and a descriptor that CRIU cannot carry ([`relay`]).

mod image;
mod init;
mod life;
mod program;
mod relay;
mod report;
mod signals;
mod usage;

use clap::Parser;
use nix::sys::signal::Signal;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "criu-run";

/// Run a program that survives its machine.
///
/// If there is an image of PROGRAM it is restored, else PROGRAM is started.
/// On SIGTERM it is checkpointed; the exit status is 75 then.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    verbatim_doc_comment,
    override_usage = "criu-run --image FILE [OPTION]... [CRIU OPTION]... -- PROGRAM [ARG]...\n       \
                      criu-run --save COMMAND --load COMMAND [OPTION]... -- PROGRAM [ARG]...",
    next_help_heading = "Image",
    after_help = "COMMANDs are for bash. All other options are for CRIU.\n\n\
                  Example:\n  criu-run --image job.img.zst -- python3 train.py\n\n\
                  Manual: criu-run(1), criu-stream-utils(7)"
)]
struct Args {
    /// Keep the image in FILE
    ///
    /// Compressed, if FILE ends with .zst, .lz4 or .gz. A new image takes the
    /// place of the old one when it is whole and on the disk.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save", "load", "exists"], verbatim_doc_comment)]
    image: Option<PathBuf>,

    /// Let a restored program run before its memory is there
    ///
    /// FILE must not be compressed: memory comes from it when it is touched,
    /// and meanwhile. A checkpoint waits until all of it is there.
    #[arg(long, verbatim_doc_comment)]
    lazy: bool,

    /// Store the image, from standard input, by COMMAND
    #[arg(long, value_name = "COMMAND", requires = "load")]
    save: Option<String>,

    /// Fetch the image, to standard output, by COMMAND
    #[arg(long, value_name = "COMMAND", requires = "save")]
    load: Option<String>,

    /// See by COMMAND whether there is an image
    ///
    /// Status 0: there is. 1: there is none. Any other: it cannot be known.
    /// Without, --load must write nothing and succeed if there is none.
    #[arg(long, value_name = "COMMAND", verbatim_doc_comment)]
    exists: Option<String>,

    /// Start PROGRAM whether or not there is an image
    #[arg(long)]
    fresh: bool,

    /// Save and load N shards at once, by N COMMANDs
    ///
    /// The shard's number, from 0, is in SHARD, and N in SHARDS.
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "1",
        hide_default_value = true,
        conflicts_with = "image",
        verbatim_doc_comment
    )]
    shards: NonZeroUsize,

    /// Take the file or directory PATH along
    ///
    /// It is archived while PROGRAM is frozen, and put back before it runs.
    /// May be repeated.
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    fs: Vec<PathBuf>,

    /// Checkpoint on SIGNAL [TERM]
    #[arg(
        long,
        value_name = "SIGNAL",
        default_value = "TERM",
        hide_default_value = true,
        value_parser = usage::signal,
        help_heading = "Checkpoint"
    )]
    checkpoint_on: Signal,

    /// Time for a checkpoint, then give up [3600]
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "3600",
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Checkpoint"
    )]
    deadline: u32,

    /// If that fails: pass, or ignore it [pass]
    #[arg(
        long,
        value_name = "ACTION",
        value_enum,
        default_value = "pass",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "Checkpoint"
    )]
    on_failure: OnFailure,

    /// Exit with STATUS when checkpointed [75]
    #[arg(
        long,
        value_name = "STATUS",
        default_value = "75",
        hide_default_value = true,
        help_heading = "Checkpoint"
    )]
    checkpointed_status: u8,

    /// Take a snapshot every so often
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Checkpoint"
    )]
    every: Option<u32>,

    /// Run COMMAND for each event, which is in EVENT
    #[arg(long, value_name = "COMMAND", help_heading = "Reporting")]
    on_event: Option<String>,

    /// Tell events as lines of JSON
    #[arg(long, help_heading = "Reporting")]
    json: bool,

    /// Say only what goes wrong
    #[arg(short, long, help_heading = "Reporting", conflicts_with = "verbose")]
    quiet: bool,

    /// Say more on stderr
    #[arg(short, long, help_heading = "Reporting")]
    verbose: bool,
}

/// What becomes of the signal when there is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OnFailure {
    /// The program gets it.
    Pass,
    /// The program runs on.
    Ignore,
}

fn main() -> ExitCode {
    // Under other names it is a part of itself.
    if let Some(status) = init::run_if_named().or_else(relay::run_if_named) {
        return status;
    }
    match usage::parse() {
        Ok(plan) => life::live(plan),
        Err(status) => status,
    }
}
