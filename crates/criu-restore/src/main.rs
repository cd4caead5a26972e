//! `criu-restore` restores a process tree from what the user's command writes.

mod usage;

use clap::Parser;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use supervise::gate;
use supervise::restore;
use supervise::tell::Voice;

const NAME: &str = "criu-restore";

/// Restore the process tree whose image COMMAND writes.
///
/// Nothing comes to life before all of the image is there and COMMAND has
/// succeeded. Without COMMAND, the image is on standard input.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    verbatim_doc_comment,
    override_usage = "criu-restore [OPTION]... [CRIU OPTION]... [-- COMMAND]",
    next_help_heading = "Image",
    after_help = "COMMAND is one argument, for bash. All other options are for `criu restore`.\n\n\
                  Example:\n  criu-restore -- 'aws s3 cp s3://bucket/image.zst - | zstd -d'\n\n\
                  Manual: criu-restore(1), criu-stream-utils(7)"
)]
struct Args {
    /// Run COMMAND N times, for a shard of the image each
    ///
    /// The shard's number, from 0, is in SHARD, and N in SHARDS.
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "1",
        hide_default_value = true,
        verbatim_doc_comment
    )]
    shards: NonZeroUsize,

    /// With --shards: COMMAND need not mention SHARD
    ///
    /// One that does not usually reads one shard again and again.
    #[arg(long, verbatim_doc_comment)]
    unnamed_shards: bool,

    /// Unpack the image into a directory, and restore from that
    ///
    /// For what CRIU can restore from no stream: firewall rules of nftables,
    /// and private memory in huge pages. The directory is a temporary one.
    #[arg(long, verbatim_doc_comment)]
    directory: bool,

    /// Let the tree run at once; FILE is its image
    ///
    /// Memory comes when it is touched, and meanwhile. FILE must not be
    /// compressed, and must stay as it is until this ends.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["shards", "unnamed_shards", "directory"],
        verbatim_doc_comment
    )]
    lazy: Option<PathBuf>,

    /// Put back the files that criu-checkpoint --fs took along
    ///
    /// They are in their places before anything runs.
    #[arg(long, verbatim_doc_comment)]
    fs: bool,

    /// Give the tree our own standard descriptors
    ///
    /// In place of those of its root that were pipes.
    #[arg(long, help_heading = "Tree", verbatim_doc_comment)]
    stdio: bool,

    /// Stay until the tree ends, and end as its root does
    ///
    /// Signals are passed on to the root.
    #[arg(long, help_heading = "Tree", verbatim_doc_comment)]
    wait: bool,

    /// Give up after so long [3600]
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "3600",
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Tree"
    )]
    time_limit: u32,

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
    restore::run(plan, voice).unwrap_or_else(|refusal| cli::failed(NAME, refusal))
}
