//! `shard-merge` puts shards back into one image stream, in order.

mod run;

use clap::Parser;
use cli::{CommonArgs, Fd};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "shard-merge";

/// Put shards back into one image stream, in order, and write it to stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    override_usage = "shard-merge [OPTION]... [INPUT]... > IMAGE\n       \
                      shard-merge [-n N] --filter COMMAND > IMAGE",
    next_help_heading = "Shards",
    after_help = "Example:\n  shard-merge -n 4 --filter 'zstd -dc $SHARD.zst' |\n    \
                  image-serve -- criu restore --stream --restore-detached\n\n\
                  Manual: shard-merge(1), criu-stream-utils(7)"
)]
struct Args {
    /// Read shards from these descriptors
    ///
    /// In any order; from stdin if no shard is named. Takes a list with
    /// commas, and may be repeated.
    #[arg(short, long, value_name = "FD", value_delimiter = ',', verbatim_doc_comment)]
    shard_fds: Vec<Fd>,

    /// Read shards from these files, in any order
    ///
    /// Also FIFOs and UNIX sockets.
    #[arg(value_name = "INPUT", help_heading = "Shards", verbatim_doc_comment)]
    inputs: Vec<PathBuf>,

    /// Run N commands [one for each CPU]
    // `requires` alone is not held to where what is required conflicts with what is given.
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        requires = "filter",
        conflicts_with_all = ["shard_fds", "inputs"]
    )]
    shards: Option<NonZeroU16>,

    /// Read each shard from a shell command
    ///
    /// SHARD (from 0) and SHARDS are in its environment.
    #[arg(
        long,
        value_name = "COMMAND",
        conflicts_with_all = ["shard_fds", "inputs"],
        verbatim_doc_comment
    )]
    filter: Option<String>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| run::run(args))
}
