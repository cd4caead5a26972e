//! `criu-checkpoint` dumps a process tree into the user's command, and lets it go when the image
//! is safe.

mod usage;

use clap::Parser;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use supervise::checkpoint;
use supervise::gate;
use supervise::tell::Voice;

const NAME: &str = "criu-checkpoint";

/// Dump a process tree into COMMAND, and let it go when the image is safe.
///
/// The tree stays frozen until COMMAND has succeeded, and only then is killed
/// or resumed. If anything fails, it runs on.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    verbatim_doc_comment,
    override_usage = "criu-checkpoint -t PID [OPTION]... [CRIU OPTION]... -- COMMAND",
    next_help_heading = "Tree",
    after_help = "COMMAND is one argument, for bash. All other options are for `criu dump`.\n\n\
                  Example:\n  criu-checkpoint -t 1234 -- 'zstd | aws s3 cp - s3://bucket/image.zst'\n\n\
                  Manual: criu-checkpoint(1), criu-stream-utils(7)"
)]
struct Args {
    /// Dump the tree under process PID
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    tree: i32,

    /// Resume the tree, instead of killing it
    #[arg(short = 'R', long)]
    leave_running: bool,

    /// Leave out what has not changed since the last image
    ///
    /// DIR is where criu-checkpoint notes what that was; the first image is
    /// a whole one. image-combine makes a whole image of all.
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Image",
        conflicts_with = "fs",
        verbatim_doc_comment
    )]
    increments: Option<PathBuf>,

    /// Give up after so long: the tree runs on [3600]
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "3600",
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    time_limit: u32,

    /// Run COMMAND N times, for a shard of the image each
    ///
    /// The shard's number, from 0, is in SHARD, and N in SHARDS.
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "1",
        hide_default_value = true,
        help_heading = "Image",
        verbatim_doc_comment
    )]
    shards: NonZeroUsize,

    /// With --shards: COMMAND need not mention SHARD
    ///
    /// One that does not usually writes all shards to one place.
    #[arg(long, help_heading = "Image", verbatim_doc_comment)]
    unnamed_shards: bool,

    /// Take the file or directory PATH along
    ///
    /// tar(1) archives it while the tree is frozen. May be repeated.
    #[arg(long, value_name = "PATH", help_heading = "Image", verbatim_doc_comment)]
    fs: Vec<PathBuf>,

    /// Read the image back by COMMAND before letting go
    ///
    /// COMMAND is what criu-restore would be given. All of the image is read
    /// and checked, and that it is this image.
    #[arg(long, value_name = "COMMAND", help_heading = "Image", verbatim_doc_comment)]
    verify: Option<String>,

    /// Have CRIU leave its logs in DIR [none stay]
    #[arg(
        short = 'D',
        long,
        value_name = "DIR",
        allow_hyphen_values = true,
        help_heading = "Reporting"
    )]
    images_dir: Option<PathBuf>,

    /// Write the result as a line of JSON to stdout
    #[arg(long, help_heading = "Reporting", conflicts_with = "json_fd")]
    json: bool,

    /// Write that line to FD
    #[arg(long, value_name = "FD", help_heading = "Reporting")]
    json_fd: Option<cli::Fd>,

    /// Say only what goes wrong
    #[arg(short, long, help_heading = "Reporting", conflicts_with = "verbose")]
    quiet: bool,

    /// Say more on stderr
    #[arg(short, long, help_heading = "Reporting")]
    verbose: bool,
}

fn main() -> ExitCode {
    if let Some(status) = gate::answer() {
        return status;
    }
    let (args, plan) = match usage::parse() {
        Ok(parsed) => parsed,
        Err(status) => return status,
    };
    let voice = Voice::new(NAME, args.quiet, args.verbose);
    checkpoint::run(plan, voice).unwrap_or_else(|refusal| cli::failed(NAME, refusal))
}
