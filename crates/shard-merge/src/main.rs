//! `shard-merge` puts shards back into one image stream, in order.

mod error;
mod merge;
mod shard;

use clap::Parser;
use cli::{CommonArgs, Fd};
use std::process::ExitCode;

const NAME: &str = "shard-merge";

/// Put shards back into one image stream, in order, and write it to stdout.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    after_help = "Example:\n  shard-merge -s 10,11 10< <(zstd -d < 0.zst) 11< <(zstd -d < 1.zst) | \
                  image-serve -D d\n\nSee shard-merge(1)."
)]
struct Args {
    /// Read the shards from these descriptors, in any order
    #[arg(
        short,
        long,
        value_name = "FD",
        value_delimiter = ',',
        default_value = "0",
        hide_default_value = true
    )]
    shard_fds: Vec<Fd>,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    cli::main(NAME, |args: Args| merge::run(args))
}
