//! `shard-split` spreads one image stream over several outputs, by what each can take.

mod debt;
mod error;
mod ledger;
mod metadata;
mod outputs;
mod room;
mod settle;
mod shard;
mod sort;
mod split;

use clap::Parser;
use cli::{CommonArgs, Fd};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "shard-split";

/// Spread the image stream on stdin over several shards, by what each can take.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "shard-split [OPTION]... [OUTPUT]... < IMAGE\n       \
                      shard-split [-m] [-n N] --filter COMMAND < IMAGE",
    next_help_heading = "Shards",
    after_help = "Example:\n  criu-sock-capture -- criu dump --stream -t PID |\n    \
                  shard-split -n 4 --filter 'zstd -q > $SHARD.zst'\n\n\
                  Manual: shard-split(1), criu-stream-utils(7)"
)]
struct Args {
    /// Give the first shard all small files
    ///
    /// And the others the memory. So a restore can begin when the first shard
    /// is there. Needs two shards or more.
    #[arg(short, long, verbatim_doc_comment)]
    metadata_first: bool,

    /// Write shards to these descriptors
    ///
    /// To stdout if no shard is named. Takes a list with commas, and may be
    /// repeated.
    #[arg(short, long, value_name = "FD", value_delimiter = ',', verbatim_doc_comment)]
    shard_fds: Vec<Fd>,

    /// Write shards to these files, whole or not at all
    ///
    /// Also to FIFOs, devices and UNIX sockets.
    #[arg(value_name = "OUTPUT", help_heading = "Shards", verbatim_doc_comment)]
    outputs: Vec<PathBuf>,

    /// Run N commands [one for each CPU]
    // `requires` alone is not held to where what is required conflicts with what is given.
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        requires = "filter",
        conflicts_with_all = ["shard_fds", "outputs"]
    )]
    shards: Option<NonZeroU16>,

    /// Write each shard to a shell command
    ///
    /// SHARD (from 0), SHARDS and IMAGE_ID are in its environment.
    #[arg(
        long,
        value_name = "COMMAND",
        conflicts_with_all = ["shard_fds", "outputs"],
        verbatim_doc_comment
    )]
    filter: Option<String>,

    /// Flush the files to disk before they get their names
    // Another one cannot be flushed, or is not ours to flush.
    #[arg(long, requires = "outputs", conflicts_with = "filter")]
    sync: bool,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| split::run(args))
}
