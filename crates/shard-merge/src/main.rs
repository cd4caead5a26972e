//! `shard-merge` puts shards back into one image stream, in order.

mod claims;
mod error;
mod merge;
mod shard;

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
    after_help = "Examples:\n  shard-merge a.img b.img | image-serve -D d\n  \
                  shard-merge -n 4 --filter 'zstd -d < $SHARD.zst' | image-serve -D d\n\n\
                  See shard-merge(1)."
)]
struct Args {
    /// Read shards from these descriptors, in any order; from stdin if no shard is named
    #[arg(short, long, value_name = "FD", value_delimiter = ',')]
    shard_fds: Vec<Fd>,

    /// Read shards from these files, FIFOs or UNIX sockets, in any order
    #[arg(value_name = "INPUT")]
    inputs: Vec<PathBuf>,

    /// Run so many commands; as many as there are CPUs if this is not given
    #[arg(short = 'n', long, value_name = "N", requires = "filter")]
    shards: Option<NonZeroU16>,

    /// Read each shard from a shell command; SHARD and SHARDS are in its environment
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["shard_fds", "inputs"])]
    filter: Option<String>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| merge::run(args))
}
